//! Who serves: backends that are DNS names, answered by a real DNS server; priorities; zones.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use fairway_tests::http::{ask, connect, get};
use fairway_tests::{Fairway, Host, Net, Nginx, Other, VIP4, run, wait_for};

const VIP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(VIP4), 80);

/// A real DNS server at 10.78.0.63 that knows the names of a file in the form of /etc/hosts, for
/// a second each, and more records.
fn dns(net: &Net, hosts: &Path, records: &[&str]) -> Other {
    let file = format!("--addn-hosts={}", hosts.display());
    let all = [&["--local=/test/", "--local-ttl=1", &file], records].concat();
    Other::dnsmasq(net, 53, &all)
}

fn document(fields: &str) -> String {
    format!(
        "resolver: {{servers: [10.78.0.63], timeout: 300ms}}\nservices:\n  - name: web\n    \
         addresses: [{VIP4}]\n    ports: [{{port: 80}}]\n    \
         healthCheck: {{interval: 100ms, timeout: 90ms, fall: 1, rise: 1}}\n{fields}"
    )
}

/// Which servers answer, and how often.
fn answers(net: &Net) -> BTreeMap<String, u32> {
    net.on(Host::Client, || {
        let mut answers = BTreeMap::new();
        for _ in 0..30 {
            let name = get(VIP, "/").unwrap_or_else(|_| "nobody".into());
            *answers.entry(name).or_default() += 1;
        }
        answers
    })
}

fn names(net: &Net) -> Vec<String> {
    answers(net).into_keys().collect()
}

fn troubles(fairway: &Fairway) -> String {
    fairway.status().unwrap()["troubles"].to_string()
}

#[test]
fn a_name_is_followed_and_its_last_answer_outlives_the_server() {
    let Some(net) = Net::new() else { return };
    let servers: Vec<Nginx> = (1..=2).map(|n| Nginx::start(&net, n)).collect();
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    let (one, two) = ("10.78.0.11 web.test\n", "10.78.0.12 web.test\n");
    std::fs::write(&hosts, one).unwrap();
    // No DNS server yet: the service waits for its backends, and says so.
    let fairway = Fairway::start(&net, &document("    backends: [\"web.test:8080\"]\n"));
    wait_for("the trouble is told", || {
        troubles(&fairway).contains("`web.test` cannot be resolved")
    });
    assert!(troubles(&fairway).contains("no address of it is known"));

    let server = dns(&net, &hosts, &[]);
    wait_for("the first answer serves", || names(&net) == ["s1"]);
    wait_for("and no trouble is left", || !troubles(&fairway).contains("resolved"));
    assert_eq!(fairway.backends()[0]["name"], "web.test", "orders reach it by its name");

    let mut held = net.on(Host::Client, || connect(VIP).unwrap());
    assert_eq!(ask(&mut held, "/").unwrap(), "s1");
    std::fs::write(&hosts, format!("{one}{two}")).unwrap();
    server.hang_up();
    wait_for("an address has come", || names(&net) == ["s1", "s2"]);
    std::fs::write(&hosts, two).unwrap();
    server.hang_up();
    wait_for("an address has gone", || names(&net) == ["s2"]);
    assert_eq!(ask(&mut held, "/").unwrap(), "s1", "an open connection may go on");
    let left = fairway.cli(&["drain", "web.test", "--wait", "--timeout", "300ms"]);
    assert_eq!(left.status.code(), Some(1), "and is waited for by the name that it came by");
    assert!(fairway.cli(&["undrain", "web.test"]).status.success());
    drop(held);

    // A name that is emptied by mistake, and then a server that is gone: what was known holds.
    std::fs::write(&hosts, "").unwrap();
    server.hang_up();
    wait_for("the empty name is told", || troubles(&fairway).contains("no such name"));
    assert!(troubles(&fairway).contains("its last known address holds"), "{}", troubles(&fairway));
    drop(server);
    wait_for("the dead server is told", || !troubles(&fairway).contains("no such name"));
    assert!(troubles(&fairway).contains("`web.test` cannot be resolved"), "{}", troubles(&fairway));
    assert_eq!(names(&net), ["s2"]);
    assert!(fairway.metrics(&net).contains("fairway_dns_names_failing 1"));
    // A reload that leaves the name alone keeps its addresses.
    fairway.apply(&document("    backends: [\"web.test:8080\"]\n    timeouts: {idle: 5m}\n"));
    assert_eq!(names(&net), ["s2"]);
    // Nor does a service that is renamed lose them.
    let renamed =
        document("    backends: [\"web.test:8080\"]\n").replace("name: web", "name: shop");
    fairway.apply(&renamed);
    assert_eq!(names(&net), ["s2"]);

    std::fs::write(&hosts, one).unwrap();
    let _dns = dns(&net, &hosts, &[]);
    wait_for("it is followed again", || names(&net) == ["s1"]);
    wait_for("all is well", || fairway.metrics(&net).contains("fairway_dns_names_failing 0"));
    drop(servers);
}

#[test]
fn a_change_of_names_refuses_nobody() {
    let Some(net) = Net::new() else { return };
    let _servers: Vec<Nginx> = (1..=2).map(|n| Nginx::start(&net, n)).collect();
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    std::fs::write(&hosts, "10.78.0.11 a.test\n10.78.0.12 b.test\n").unwrap();
    let _dns = dns(&net, &hosts, &[]);
    let named = |name: &str| document(&format!("    backends: [\"{name}:8080\"]\n"));
    let fairway = Fairway::start(&net, &named("a.test"));
    let path = fairway.config_path();
    let text = run(fairway_tests::program().to_str().unwrap(), &["check", path.to_str().unwrap()]);
    assert!(text.contains("good, 1 service, 0 backends, 1 backend name\n"), "{text}");
    assert_eq!(names(&net), ["s1"], "from the first moment on");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut seen: Vec<String> = Vec::new();
            while !over.load(Relaxed) {
                seen.extend(names(&net));
            }
            seen
        });
        for name in ["b.test", "a.test", "b.test", "typo.test"] {
            fairway.apply(&named(name));
        }
        over.store(true, Relaxed);
        assert!(!client.join().unwrap().contains(&"nobody".to_owned()));
    });
    assert_eq!(names(&net), ["s2"], "a name that is nobody's leaves what was there");
    let output = fairway.cli(&["reload"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("`typo.test` cannot be resolved: there is no such name"), "{text}");
}

#[test]
fn srv_records_make_groups_of_priority() {
    let Some(net) = Net::new() else { return };
    let mut servers: Vec<Nginx> = (1..=3).map(|n| Nginx::start(&net, n)).collect();
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    std::fs::write(&hosts, "10.78.0.11 a.test\n10.78.0.12 b.test\n10.78.0.13 c.test\n").unwrap();
    let records = [
        "--srv-host=_http._tcp.test,a.test,8080,10,3",
        "--srv-host=_http._tcp.test,b.test,8080,10,1",
        "--srv-host=_http._tcp.test,c.test,8080,20,1",
    ];
    let server = dns(&net, &hosts, &records);
    let text = document("    backends: [{srv: _http._tcp.test}]\n");
    let fairway = Fairway::start(&net, &text);
    wait_for("all are known", || fairway.backends().as_array().unwrap().len() == 3);
    let seen: Vec<_> = fairway.backends().as_array().unwrap().iter().map(told).collect();
    let want = [("10.78.0.11:8080", 3, 0), ("10.78.0.12:8080", 1, 0), ("10.78.0.13:8080", 1, 1)];
    assert_eq!(seen, want.map(|(addr, weight, group)| (addr.to_owned(), weight, group)));
    assert_eq!(names(&net), ["s1", "s2"]);

    servers[0].kill();
    wait_for("it is down", || fairway.state_of("10.78.0.11:8080").unwrap() == "down");
    assert_eq!(names(&net), ["s2"], "the other of its priority takes over");
    // With a threshold, what is missing goes to the next priority.
    fairway.apply(&format!("{text}    failoverThreshold: 100%\n"));
    assert_eq!(names(&net), ["s2", "s3"]);
    fairway.apply(&text);
    assert_eq!(names(&net), ["s2"]);
    servers[1].kill();
    wait_for("the next priority serves", || names(&net) == ["s3"]);
    servers[0].restart();
    wait_for("and the first again", || names(&net) == ["s1"]);
    // The service is said to be no more, and then its records are gone: neither takes it away.
    drop(server);
    let none = dns(&net, &hosts, &["--srv-host=_http._tcp.test"]);
    wait_for("its end is told", || troubles(&fairway).contains("there is no such service"));
    assert_eq!(fairway.backends().as_array().unwrap().len(), 3);
    drop(none);
    let _nothing = dns(&net, &hosts, &[]);
    wait_for("its absence is told", || troubles(&fairway).contains("there is no such name"));
    assert_eq!(fairway.backends().as_array().unwrap().len(), 3);
    assert_eq!(names(&net), ["s1"]);
}

#[test]
fn names_are_looked_up_as_this_machine_does() {
    let Some(net) = Net::new() else { return };
    let _servers: Vec<Nginx> = (1..=2).map(|n| Nginx::start(&net, n)).collect();
    let _wide = Nginx::start_at(&net, "[fd78::2]:8080".parse().unwrap(), "s6");
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    std::fs::write(&hosts, "10.78.0.11 web.test\nfd78::2 six.test\n").unwrap();
    // Whatever is asked below the search domain has an address, which is nobody's.
    let _dns = dns(&net, &hosts, &["--address=/corp.example/fd78::99"]);
    net.etc(Host::Lb, "resolv.conf", "nameserver 10.78.0.63\nsearch corp.example\n");
    net.etc(Host::Lb, "hosts", "10.78.0.12 db1\n");
    let text = document("    backends: [\"web.test:8080\", \"db1:8080\", \"six.test:8080\"]\n");
    let text = text.replace("resolver: {servers: [10.78.0.63], timeout: 300ms}\n", "");
    let fairway = Fairway::start(&net, &text);
    wait_for("all serve", || names(&net) == ["s1", "s2", "s6"]);
    assert_eq!(fairway.backends().as_array().unwrap().len(), 3, "and nobody else");
    assert!(!troubles(&fairway).contains("resolved"), "{}", troubles(&fairway));
}

#[test]
fn a_plan_asks_for_names_that_are_new() {
    let Some(net) = Net::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    std::fs::write(&hosts, "10.78.0.11 web.test\n10.78.0.12 web.test\n").unwrap();
    let _dns = dns(&net, &hosts, &[]);
    let fairway = Fairway::start(
        &net,
        &document("    backends: [\"10.78.0.11:8080\", \"10.78.0.12:8080\"]\n"),
    );
    let new = fairway.folder().join("new.yaml");
    let named = document("    backends: [\"web.test:8080\"]\n");
    std::fs::write(&new, fairway.whole(&named)).unwrap();
    let output = fairway.cli(&["plan", new.to_str().unwrap(), "--output", "json"]);
    let plan: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(plan["changes"][0]["slotsMoved"], 0.0, "the same addresses: {plan}");
    fairway.apply(&named);
    wait_for("as foretold", || fairway.backends().as_array().unwrap().len() == 2);
}

#[test]
fn flows_stay_in_the_zone_of_the_box() {
    let Some(net) = Net::new() else { return };
    let mut servers: Vec<Nginx> = (1..=4).map(|n| Nginx::start(&net, n)).collect();
    let backend =
        |n: usize, zone: &str| format!("{{address: \"{}\", zone: {zone}}}", servers[n].addr);
    let backends = [backend(0, "a"), backend(1, "a"), backend(2, "b"), backend(3, "b")].join(", ");
    let fields = format!("    backends: [{backends}]\n    trafficDistribution: PreferSameZone\n");
    let text = format!("dataplane: {{zone: a}}\n{}", document(&fields));
    let fairway = Fairway::start(&net, &text);
    assert_eq!(names(&net), ["s1", "s2"]);
    servers[0].kill();
    wait_for("it is down", || fairway.state_of("10.78.0.11:8080").unwrap() == "down");
    let answers = answers(&net);
    assert!(answers["s2"] > 5, "half stays: {answers:?}");
    assert!(answers.keys().any(|name| name == "s3" || name == "s4"), "{answers:?}");
    servers[1].kill();
    wait_for("the other zone serves", || names(&net) == ["s3", "s4"]);
}

fn told(backend: &serde_json::Value) -> (String, u64, u64) {
    let number = |name: &str| backend[name].as_u64().unwrap();
    (backend["address"].as_str().unwrap().into(), number("weight"), number("group"))
}
