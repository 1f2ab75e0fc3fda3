//! Connections through a real Fairway: balance, failure, limits, abuse.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;

use fairway_tests::http::{Outcome, ask, connect, get, load};
use fairway_tests::{Fairway, Host, Net, Nginx, SECOND, VIP4, VIP6, all, wait_for};

const VIP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(VIP4), 80);

/// A service on both VIPs, port 80, over `backends`, with further `fields`.
fn document(backends: &[&Nginx], fields: &str) -> String {
    let mut text = format!(
        "services:\n  - name: web\n    addresses: [{VIP4}, \"{VIP6}\"]\n    ports: [{{port: 80}}]\n    backends:\n"
    );
    for backend in backends {
        writeln!(text, "      - {{address: {}, name: {}}}", backend.addr, backend.name).unwrap();
    }
    if !fields.contains("healthCheck") {
        text += "    healthCheck: {interval: 200ms, timeout: 150ms, fall: 2, rise: 1}\n";
    }
    for field in fields.lines() {
        writeln!(text, "    {field}").unwrap();
    }
    text
}

fn servers(net: &Net, count: u8) -> Vec<Nginx> {
    (1..=count).map(|n| Nginx::start(net, n)).collect()
}

/// Who answers `count` requests.
fn shares(net: &Net, vip: SocketAddr, count: u32) -> BTreeMap<String, u32> {
    net.on(Host::Client, || {
        let mut shares = BTreeMap::new();
        for _ in 0..count {
            *shares.entry(get(vip, "/").unwrap()).or_default() += 1;
        }
        shares
    })
}

#[test]
fn every_scheduler_balances_within_its_bounds() {
    let Some(net) = Net::new() else { return };
    let servers = servers(&net, 3);
    let all: Vec<&Nginx> = servers.iter().collect();
    let fairway = Fairway::start(&net, &document(&all, ""));
    for (scheduler, least, most) in [
        // Consistent and random ones: five standard deviations around 100 of 300.
        ("maglev", 60, 140),
        ("random", 60, 140),
        ("powerOfTwo", 60, 140),
        // Exact but for the rounds of two workers.
        ("roundRobin", 96, 104),
        // One client at a time: loads are nearly always zero, and ties rotate.
        ("leastConnections", 60, 140),
        ("shortestExpectedDelay", 60, 140),
        ("neverQueue", 60, 140),
    ] {
        fairway.apply(&document(&all, &format!("scheduler: {scheduler}")));
        let shares = shares(&net, VIP, 300);
        assert_eq!(shares.len(), 3, "{scheduler}: {shares:?}");
        for count in shares.values() {
            assert!((least..=most).contains(count), "{scheduler}: {shares:?}");
        }
    }
    for scheduler in ["sourceHash", "destinationHash"] {
        fairway.apply(&document(&all, &format!("scheduler: {scheduler}")));
        let shares = shares(&net, VIP, 30);
        assert_eq!(shares.len(), 1, "{scheduler}: one source, one destination: {shares:?}");
    }
}

#[test]
fn ipv6_clients_are_served() {
    let Some(net) = Net::new() else { return };
    let servers = servers(&net, 1);
    let fairway = Fairway::start(&net, &document(&[&servers[0]], ""));
    assert_eq!(shares(&net, SocketAddr::new(VIP6.into(), 80), 5)["s1"], 5);
    assert_eq!(fairway.count("connections"), 5);
}

#[test]
fn slow_start_grows_a_share_over_its_window() {
    let Some(net) = Net::new() else { return };
    let servers = servers(&net, 2);
    let fields = "slowStart: {window: 3s, from: 10%}";
    let fairway = Fairway::start(&net, &document(&[&servers[0], &servers[1]], fields));
    let addr = servers[0].addr.to_string();
    assert!(fairway.cli(&["drain", &addr]).status.success());
    assert!(fairway.cli(&["undrain", &addr]).status.success());
    let began = Instant::now();
    assert_eq!(fairway.state_of(&addr).unwrap(), "starting");
    // Requests and those that the starting backend answered, by thirds of the window.
    let mut thirds = [(0u32, 0u32); 4];
    net.on(Host::Client, || {
        while began.elapsed() < 4 * SECOND {
            let third = (began.elapsed().as_secs() as usize).min(3);
            let first = get(VIP, "/").unwrap() == servers[0].name;
            thirds[third].0 += 1;
            thirds[third].1 += u32::from(first);
        }
    });
    let shares = thirds.map(|(all, first)| f64::from(first) / f64::from(all));
    // Half of the mean of max(10 %, t / 3 s) over each second, and a half after the window.
    for (share, want) in shares.iter().zip([0.092, 0.25, 0.417, 0.5]) {
        assert!((share - want).abs() < 0.08, "{shares:?} of {thirds:?}");
    }
    assert_eq!(fairway.state_of(&addr).unwrap(), "up");
}

/// A server on the servers' host that does `serve` with each connection.
fn server(net: &Net, addr: SocketAddr, serve: impl Fn(TcpStream) + Clone + Send + 'static) {
    let (ready, started) = std::sync::mpsc::channel();
    net.on(Host::Servers, || {
        let listener = TcpListener::bind(addr).unwrap();
        thread::spawn(move || {
            ready.send(()).unwrap();
            for stream in listener.incoming().flatten() {
                let serve = serve.clone();
                thread::spawn(move || serve(stream));
            }
        });
    });
    started.recv().unwrap();
}

#[test]
fn half_closes_and_resets_pass_between_hosts() {
    let Some(net) = Net::new() else { return };
    // The IPv6 address serves as a backend of the IPv4 VIP, too.
    let addr: SocketAddr = "[fd78::2]:9000".parse().unwrap();
    server(&net, addr, |mut stream| {
        let mut text = String::new();
        match stream.read_to_string(&mut text) {
            // Everything was read up to the client's end, and the reply comes after it.
            Ok(_) if text.starts_with("client first") => stream.write_all(b"late").unwrap(),
            _ => {}
        }
    });
    let second: SocketAddr = "[fd78::2]:9001".parse().unwrap();
    let (heard, last_words) = std::sync::mpsc::channel();
    server(&net, second, move |mut stream| {
        stream.write_all(b"early").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        heard.send(text).unwrap();
    });
    let third: SocketAddr = "[fd78::2]:9002".parse().unwrap();
    server(&net, third, |mut stream| {
        stream.read_exact(&mut [0]).unwrap();
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    });
    let service = |n: u16| {
        format!(
            "  - name: s{n}\n    addresses: [{VIP4}]\n    ports: [{{port: {n}, targetPort: {n}}}]\n    \
             backends: [\"fd78::2\"]\n    healthCheck: {{type: none}}\n"
        )
    };
    let text = format!("services:\n{}{}{}", service(9000), service(9001), service(9002));
    let fairway = Fairway::start(&net, &text);
    net.on(Host::Client, || {
        let at = |port| connect(SocketAddr::new(VIP4.into(), port)).unwrap();
        let mut text = String::new();
        let mut client = at(9000);
        client.write_all(b"client first").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        client.read_to_string(&mut text).unwrap();
        assert_eq!(text, "late");

        let mut client = at(9001);
        text.clear();
        client.read_to_string(&mut text).unwrap();
        assert_eq!(text, "early");
        client.write_all(b"after your end").unwrap();
        drop(client);

        let mut client = at(9002);
        client.write_all(b"x").unwrap();
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    });
    assert_eq!(last_words.recv_timeout(10 * SECOND).unwrap(), "after your end");
    let ended = |service: usize, reason: &str| fairway.services()[service]["ends"][reason] == 1;
    wait_for("the ends are counted", || {
        ended(0, "client_closed") && ended(1, "backend_closed") && ended(2, "backend_reset")
    });
}

#[test]
fn killed_backends_cost_no_request() {
    let Some(net) = Net::new() else { return };
    let mut servers = servers(&net, 3);
    let fields = "scheduler: roundRobin\nretry: {on: [connect, resetBeforeReply]}\n\
                  ejection: {failures: 3, baseTime: 500ms}";
    let fairway = Fairway::start(&net, &document(&servers.iter().collect::<Vec<_>>(), fields));
    let most = if all() { 60_000 } else { 20_000 };
    let outcome = Outcome::default();
    thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| net.on(Host::Client, || load(VIP, "/kib", most, &outcome))))
            .collect();
        let mut victim = 0;
        while clients.iter().any(|client| !client.is_finished()) {
            thread::sleep(Duration::from_millis(300));
            servers[victim % 3].kill();
            thread::sleep(Duration::from_millis(300));
            servers[victim % 3].restart();
            victim += 1;
        }
        assert!(victim >= 2, "the load was over before backends were killed");
    });
    assert_eq!(outcome.failed(), 0, "of {} requests", outcome.requests());
    let service = fairway.service();
    assert!(service["retries"].as_object().unwrap().len() > 1, "{service}");
}

#[test]
fn reloads_under_load_cost_no_connection() {
    let Some(net) = Net::new() else { return };
    let servers = servers(&net, 3);
    let every: Vec<&Nginx> = servers.iter().collect();
    let fairway = Fairway::start(&net, &document(&every, ""));
    let outcome = Outcome::default();
    let length = if all() { 60 * SECOND } else { 6 * SECOND };
    let mut reloads = 0;
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                net.on(Host::Client, || load(VIP, "/kib", u64::MAX, &outcome));
            });
        }
        let end = Instant::now() + length;
        while Instant::now() < end {
            // A backend comes and goes, a scheduler changes, another service appears.
            let kept = if reloads % 2 == 0 { &every[..2] } else { &every[..] };
            let scheduler = ["maglev", "roundRobin", "leastConnections"][reloads % 3];
            let mut text = document(kept, &format!("scheduler: {scheduler}"));
            if reloads % 4 > 1 {
                text +=
                    &format!("  - {{name: other, addresses: [{VIP4}], ports: [{{port: 81}}]}}\n");
            }
            fairway.write(&text);
            reloads += 1;
            thread::sleep(Duration::from_millis(100));
        }
        outcome.stop.store(true, Relaxed);
    });
    assert_eq!(outcome.failed(), 0, "of {} requests", outcome.requests());
    assert!(outcome.requests() > 500, "{} requests are no load", outcome.requests());
    let generation = fairway.status().unwrap()["generation"].as_u64().unwrap();
    assert!(generation as usize >= reloads / 4, "{generation} generations of {reloads} reloads");
}

#[test]
fn draining_keeps_the_old_and_takes_nothing_new() {
    let Some(net) = Net::new() else { return };
    let servers = servers(&net, 2);
    let every: Vec<&Nginx> = servers.iter().collect();
    let fields = "scheduler: roundRobin\ndrainTimeout: 2s";
    let fairway = Fairway::start(&net, &document(&every, fields));
    net.on(Host::Client, || {
        let mut streams: Vec<_> = (0..4).map(|_| connect(VIP).unwrap()).collect();
        let names: Vec<_> = streams.iter_mut().map(|s| ask(s, "/").unwrap()).collect();
        assert!(names.contains(&"s1".into()) && names.contains(&"s2".into()));
        assert!(fairway.cli(&["drain", "s1"]).status.success());
        assert_eq!(fairway.state_of(&servers[0].addr.to_string()).unwrap(), "draining");
        for _ in 0..10 {
            assert_eq!(get(VIP, "/").unwrap(), "s2");
        }
        for (stream, name) in streams.iter_mut().zip(&names) {
            assert_eq!(&ask(stream, "/").unwrap(), name, "an open connection went on");
        }
        // Then the drain timeout cuts those of s1 and no other.
        wait_for("the drain timeout cuts", || fairway.count("ends/drain_timeout") > 0);
        for (stream, name) in streams.iter_mut().zip(&names) {
            assert_eq!(ask(stream, "/").is_ok(), name == "s2", "{name}");
        }
        assert!(fairway.cli(&["undrain", "s1"]).status.success());
        wait_for("s1 serves again", || get(VIP, "/").unwrap() == "s1");
    });
    assert!(!fairway.cli(&["drain", "nobody"]).status.success());
}

#[test]
fn a_removed_backend_is_drained_not_cut() {
    let Some(net) = Net::new() else { return };
    let servers = servers(&net, 2);
    let fairway = Fairway::start(&net, &document(&[&servers[0]], ""));
    net.on(Host::Client, || {
        let mut stream = connect(VIP).unwrap();
        assert_eq!(ask(&mut stream, "/").unwrap(), "s1");
        fairway.apply(&document(&[&servers[1]], ""));
        assert_eq!(get(VIP, "/").unwrap(), "s2");
        assert_eq!(ask(&mut stream, "/").unwrap(), "s1", "its connection goes on");
        assert_eq!(fairway.state_of(&servers[0].addr.to_string()).unwrap(), "removed");
        drop(stream);
        wait_for("it is forgotten after its last connection", || {
            fairway.state_of(&servers[0].addr.to_string()).is_none()
        });
    });
}

#[test]
fn all_down_is_a_reset_and_recovers_by_itself() {
    let Some(net) = Net::new() else { return };
    let mut servers = servers(&net, 2);
    let fairway = Fairway::start(&net, &document(&[&servers[0], &servers[1]], ""));
    servers.iter_mut().for_each(Nginx::kill);
    wait_for("checks notice", || fairway.count("backendsUp") == 0);
    let error = net.on(Host::Client, || get(VIP, "/").unwrap_err());
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    assert!(fairway.count("ends/no_backend") > 0);
    let log = fairway.log();
    assert!(
        log.contains("backend is down: connect to 10.78.0.11:8080: connection refused, 2 of 2"),
        "{log}"
    );
    servers[0].restart();
    wait_for("checks notice", || fairway.count("backendsUp") == 1);
    assert_eq!(shares(&net, VIP, 3)["s1"], 3);
}

#[test]
fn backups_serve_when_nobody_else_can() {
    let Some(net) = Net::new() else { return };
    let mut servers = servers(&net, 2);
    let backup = format!("backupBackends: [\"{}\"]\nejection: {{failures: 0}}", servers[1].addr);
    let fairway = Fairway::start(&net, &document(&[&servers[0]], &backup));
    assert_eq!(shares(&net, VIP, 5)["s1"], 5);
    servers[0].kill();
    assert_eq!(shares(&net, VIP, 5)["s2"], 5, "by retry, then by checks");
    wait_for("checks notice", || fairway.count("backendsUp") == 1);
    servers[0].restart();
    wait_for("checks notice", || fairway.count("backendsUp") == 2);
    assert_eq!(shares(&net, VIP, 5)["s1"], 5);
}

#[test]
fn affinity_holds_under_every_scheduler_and_through_reloads() {
    let Some(net) = Net::new() else { return };
    let servers = servers(&net, 3);
    let every: Vec<&Nginx> = servers.iter().collect();
    let fields = |scheduler: &str| {
        format!("scheduler: {scheduler}\nsessionAffinity: ClientIP\nsessionAffinityTimeout: 1h")
    };
    let fairway = Fairway::start(&net, &document(&every, &fields("maglev")));
    let first = shares(&net, VIP, 20);
    assert_eq!(first.len(), 1, "{first:?}");
    for scheduler in ["roundRobin", "random", "powerOfTwo", "leastConnections", "neverQueue"] {
        fairway.apply(&document(&every, &fields(scheduler)));
        let shares = shares(&net, VIP, 20);
        assert_eq!(shares, first, "{scheduler}");
    }
}

#[test]
fn affinity_ends_with_its_timeout() {
    let Some(net) = Net::new() else { return };
    let servers = servers(&net, 2);
    let fields = "scheduler: roundRobin\nsessionAffinity: ClientIP\nsessionAffinityTimeout: 300ms";
    let _fairway = Fairway::start(&net, &document(&[&servers[0], &servers[1]], fields));
    net.on(Host::Client, || {
        let first = get(VIP, "/").unwrap();
        let mut others = 0;
        for _ in 0..6 {
            thread::sleep(Duration::from_millis(350));
            others += u32::from(get(VIP, "/").unwrap() != first);
        }
        assert!(others > 0, "the client stayed on {first} after its time");
    });
}

#[test]
fn limits_and_lists_decide_at_accept() {
    let Some(net) = Net::new() else { return };
    let servers = servers(&net, 1);
    let refused = || net.on(Host::Client, || get(VIP, "/").is_err());
    let fairway =
        Fairway::start(&net, &document(&[&servers[0]], "denySourceRanges: [10.77.0.0/24]"));
    assert!(refused());
    assert_eq!(fairway.count("ends/denied"), 1);
    for (fields, serves) in [
        ("loadBalancerSourceRanges: [192.0.2.0/24, \"2001:db8::/32\"]", false),
        ("loadBalancerSourceRanges: [10.77.0.0/24, \"2001:db8::/32\"]", true),
        ("loadBalancerSourceRanges: [0.0.0.0/0, \"::/0\"]\ndenySourceRanges: [10.77.0.2]", false),
    ] {
        fairway.apply(&document(&[&servers[0]], fields));
        assert_eq!(!refused(), serves, "{fields}");
    }
    for (fields, limit) in [
        ("limits: {clientConnections: 3}", "client"),
        ("limits: {serviceConnections: 3}", "service"),
        ("limits: {backendConnections: 3}", "backend"),
    ] {
        fairway.apply(&document(&[&servers[0]], fields));
        net.on(Host::Client, || {
            let mut held: Vec<_> = (0..3).map(|_| connect(VIP).unwrap()).collect();
            held.iter_mut().for_each(|stream| assert_eq!(ask(stream, "/").unwrap(), "s1"));
            assert!(get(VIP, "/").is_err(), "{limit}");
            assert_eq!(fairway.count(&format!("limitsHit/{limit}")), 1);
            drop(held);
            wait_for("places are free again", || fairway.count("active") == 0);
            assert!(get(VIP, "/").is_ok());
            wait_for("and again", || fairway.count("active") == 0);
        });
    }
    fairway.apply(&document(&[&servers[0]], "limits: {clientConnectionsPerSecond: 5}"));
    let served = net.on(Host::Client, || (0..20).filter(|_| get(VIP, "/").is_ok()).count());
    assert!((5..=8).contains(&served), "{served} of 20 at five a second");
}

#[test]
fn a_listener_that_hangs_or_resets_does_not_reach_the_client() {
    let Some(net) = Net::new() else { return };
    let servers = servers(&net, 1);
    let hole = net.server_address(9);
    // Nobody answers there: packets are dropped, as by a dead host.
    net.exec(Host::Servers, "nft add table inet t");
    net.exec(Host::Servers, "nft add chain inet t in { type filter hook input priority 0 ; }");
    net.exec(Host::Servers, &format!("nft add rule inet t in ip daddr {hole} drop"));
    let fields = "scheduler: roundRobin\ntimeouts: {connect: 200ms}\n\
                  healthCheck: {type: none}\nejection: {failures: 2, baseTime: 5s}";
    let text = document(&[&servers[0]], fields)
        .replace("    backends:\n", &format!("    backends:\n      - {hole}:8080\n"));
    let fairway = Fairway::start(&net, &text);
    assert_eq!(shares(&net, VIP, 12)["s1"], 12);
    wait_for("it is ejected", || {
        fairway.state_of(&format!("{hole}:8080")).as_deref() == Some("ejected")
    });
    assert!(fairway.count("retries/timeout") >= 2);
}

/// A client that takes a place and gives nothing back.
#[derive(Debug, Clone, Copy)]
enum Slow {
    Silent,
    OneByte,
    NeverReads,
}

#[test]
fn slow_clients_do_not_slow_others() {
    let Some(net) = Net::new() else { return };
    // The three hosts share one kernel's TCP memory: the other two are to keep theirs small, so
    // that what counts is Fairway's.
    net.exec(Host::Client, "sysctl -qw net.ipv4.tcp_rmem=4096\t16384\t16384");
    net.exec(Host::Servers, "sysctl -qw net.ipv4.tcp_wmem=4096\t16384\t16384");
    let servers = servers(&net, 2);
    let fairway = Fairway::start(&net, &document(&[&servers[0], &servers[1]], ""));
    let count = if all() { 4000 } else { 400 };
    let quick = || {
        let start = Instant::now();
        for _ in 0..200 {
            get(VIP, "/").unwrap();
        }
        start.elapsed()
    };
    net.on(Host::Client, || {
        for kind in [Slow::Silent, Slow::OneByte, Slow::NeverReads] {
            let before = quick();
            let slow: Vec<TcpStream> = (0..count)
                .map(|_| {
                    let mut stream = connect(VIP).unwrap();
                    match kind {
                        Slow::Silent => {}
                        Slow::OneByte => stream.write_all(b"G").unwrap(),
                        Slow::NeverReads => {
                            stream.write_all(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
                        }
                    }
                    stream
                })
                .collect();
            wait_for("all are connected", || {
                fairway.status().unwrap()["connections"].as_u64().unwrap() >= count
            });
            // Until the buffers on the way have filled, these clients are busy ones.
            let mut held = u64::MAX;
            wait_for("the buffers have filled", || {
                quick();
                // Other tests move some, too.
                let now = tcp_memory_kib();
                now.abs_diff(std::mem::replace(&mut held, now)) < 8 << 10
            });
            let during = quick();
            let memory = resident_kib(&fairway);
            let kernel = tcp_memory_kib();
            println!("{count} {kind:?}: {during:?} beside them, {before:?} before; {memory} KiB resident, {kernel} KiB in the kernel");
            assert!(memory < 600 << 10, "{memory} KiB with {count} slow clients");
            // Only a stall breaks this: a request that waits for a retransmission takes 200 ms.
            assert!(during < before * 10 + SECOND, "{during:?} beside them, {before:?} before");
            drop(slow);
            wait_for("they are gone", || fairway.status().unwrap()["connections"] == 0);
        }
    });
}

/// What the kernel's TCP holds, for all hosts of the test.
fn tcp_memory_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/net/sockstat").unwrap();
    let line = text.lines().find(|line| line.starts_with("TCP:")).unwrap();
    line.split(" mem ").nth(1).unwrap().trim().parse::<u64>().unwrap() * 4
}

fn resident_kib(fairway: &Fairway) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", fairway.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn out_of_descriptors_accepting_pauses_and_resumes() {
    let Some(net) = Net::new() else { return };
    let servers = servers(&net, 1);
    let text = document(&[&servers[0]], "");
    let fairway = Fairway::start_with_descriptors(&net, &text, 600);
    net.on(Host::Client, || {
        let most = fairway.status().unwrap()["budgets"]["mostConnections"].as_u64().unwrap();
        // Hashing decides which worker accepts: more than twice the places fills both.
        let held: Vec<_> = (0..most * 3).map(|_| connect(VIP).unwrap()).collect();
        wait_for("accepting pauses", || {
            let status = fairway.status().unwrap();
            status["workers"].as_array().unwrap().iter().any(|worker| worker["paused"] == true)
        });
        let status = fairway.status().unwrap();
        assert!(status["connections"].as_u64().unwrap() <= most + 2, "{status}");
        let before = cpu_ticks(&fairway);
        thread::sleep(SECOND);
        let spent = cpu_ticks(&fairway) - before;
        assert!(spent < 20, "{spent} of 100 ticks: it spins");
        drop(held);
        wait_for("accepting resumes", || get(VIP, "/").is_ok());
    });
}

/// Hundredths of a second of CPU.
fn cpu_ticks(fairway: &Fairway) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", fairway.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn large_answers_arrive_whole() {
    let Some(net) = Net::new() else { return };
    let servers = servers(&net, 1);
    let fairway = Fairway::start(&net, &document(&[&servers[0]], ""));
    net.on(Host::Client, || {
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let mut stream = connect(VIP).unwrap();
                    stream
                        .write_all(b"GET /big HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                        .unwrap();
                    let mut total = 0;
                    let mut buffer = vec![0; 1 << 16];
                    while let Ok(n @ 1..) = stream.read(&mut buffer) {
                        total += n;
                    }
                    assert!(total > 64 << 20, "{total} bytes");
                });
            }
        });
    });
    assert!(fairway.count("sentBytes") > 3 * (64 << 20));
}

#[test]
fn many_connections_at_once() {
    let Some(net) = Net::new() else { return };
    let servers = servers(&net, 2);
    let fairway = Fairway::start(&net, &document(&[&servers[0], &servers[1]], ""));
    let count = 4000;
    let idle = resident_kib(&fairway);
    net.on(Host::Client, || {
        let mut held: Vec<_> = (0..count).map(|_| connect(VIP).unwrap()).collect();
        for stream in &mut held {
            ask(stream, "/").unwrap();
        }
        let full = resident_kib(&fairway);
        let each = (full - idle) * 1024 / count;
        println!("{count} connections: {each} bytes each in this process, so about {} MiB for 100,000 (extrapolated)", (each * 100_000) >> 20);
        assert!(each < 8192, "{each} bytes a connection");
        assert_eq!(fairway.status().unwrap()["connections"], count);
    });
}
