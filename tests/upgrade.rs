//! From one process to the next under traffic: `fairway upgrade`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use fairway_tests::http::{Outcome, ask, connect, get, load};
use fairway_tests::{Fairway, Host, Net, Nginx, SECOND, VIP4, VIP6, wait_at_most, wait_for};

const VIP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(VIP4), 80);
const DATAGRAMS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(VIP4), 4000);

fn document(servers: &[&Nginx], fields: &str) -> String {
    let backends: Vec<_> = servers.iter().map(|server| server.addr.to_string()).collect();
    format!(
        "services:\n  - name: web\n    addresses: [{VIP4}, \"{VIP6}\"]\n    ports: [{{port: 80}}]\n    \
         backends: [{}]\n{fields}",
        backends.join(", ")
    )
}

/// Upgrades under load, `count` times in a row; not a request may fail.
fn upgrades_under_load(net: &Net, fairway: &mut Fairway, count: usize) {
    let outcome = Outcome::default();
    let sixth = SocketAddr::new(VIP6.into(), 80);
    std::thread::scope(|scope| {
        let _stop = outcome.stopper();
        for vip in [VIP, VIP, VIP, sixth] {
            let outcome = &outcome;
            scope.spawn(move || net.on(Host::Client, || load(vip, "/kib", 1_000_000, outcome)));
        }
        for n in 0..count {
            let before = outcome.requests();
            fairway.upgrade();
            wait_for("some requests more", || outcome.requests() > before + 50);
            assert_eq!(outcome.failed(), 0, "at upgrade {n}");
        }
    });
    assert_eq!(outcome.failed(), 0, "of {} requests", outcome.requests());
    let made = outcome.requests() - 4;
    wait_at_most(20 * SECOND, "every connection is counted", || {
        fairway.count("connections") >= made
    });
}

#[test]
fn twenty_upgrades_in_a_row_cost_no_connection() {
    let Some(net) = Net::new() else { return };
    let (one, two) = (Nginx::start(&net, 1), Nginx::start(&net, 2));
    let mut fairway = Fairway::start(&net, &document(&[&one, &two], ""));
    let first = fairway.pid();
    let mut open = net.on(Host::Client, || connect(VIP).unwrap());
    ask(&mut open, "/kib").unwrap();
    upgrades_under_load(&net, &mut fairway, 20);

    // Whoever was connected before the first of them still is.
    let body = ask(&mut open, "/kib").unwrap();
    assert!(body.starts_with('s'), "{body}");
    let before = || fairway.status().unwrap()["before"].clone();
    wait_for("one process is left, with one connection", || {
        before() == serde_json::json!([{"pid": first, "connections": 1}])
    });
    let metrics = fairway.metrics(&net);
    assert!(metrics.contains("fairway_processes_draining 1"), "{metrics}");
    assert!(metrics.contains("fairway_connections_draining 1"), "{metrics}");
    drop(open);
    wait_for("nothing is left of those before", || before() == serde_json::json!([]));
    assert!(fairway.wait().success(), "the first process has ended in order");
    assert!(fairway.log().contains("took over from the process before"));
    assert!(net.on(Host::Client, || get(VIP, "/").is_ok()));
}

#[test]
fn transparent_listeners_go_on() {
    let Some(net) = Net::new() else { return };
    let one = Nginx::start(&net, 1);
    let document =
        document(&[&one], "").replace("services:", "dataplane: {listen: tproxy}\nservices:");
    let mut fairway = Fairway::start(&net, &document);
    upgrades_under_load(&net, &mut fairway, 3);
    wait_for("the first process has ended", || fairway.ended().is_some());
    net.on(Host::Client, || get(VIP, "/").unwrap());
}

/// Answers each datagram with the number of the port that it came from, until told to stop.
fn port_server(socket: &UdpSocket, stop: &AtomicBool) {
    let mut bytes = [0; 64];
    while !stop.load(Relaxed) {
        let Ok((len, from)) = socket.recv_from(&mut bytes) else { continue };
        let mut answer = bytes[..len].to_vec();
        answer.extend(from.port().to_be_bytes());
        let _ = socket.send_to(&answer, from);
    }
}

#[test]
fn sessions_of_datagrams_keep_their_ports_and_lose_nothing() {
    for listen in ["perAddress", "tproxy"] {
        let Some(net) = Net::new() else { return };
        let server = SocketAddr::new(net.server_address(1), 4000);
        let document = format!(
            "dataplane: {{workers: 2, listen: {listen}}}\nservices:\n  - name: echo\n    addresses: \
             [{VIP4}]\n    ports: [{{port: 4000, protocol: UDP}}]\n    backends: [{}]\n",
            server.ip()
        );
        let mut fairway = Fairway::start(&net, &document);
        let stop = AtomicBool::new(false);
        let (sent, heard) = (AtomicU64::new(0), AtomicU64::new(0));
        let ports = Mutex::new(Vec::new());
        let over = AtomicBool::new(false);
        std::thread::scope(|servers| {
            // It answers until the last client has heard.
            let _over = Stopper(&over);
            let echo = net.on(Host::Servers, || UdpSocket::bind(server).unwrap());
            echo.set_read_timeout(Some(SECOND / 10)).unwrap();
            let over = &over;
            servers.spawn(move || port_server(&echo, over));
            std::thread::scope(|scope| {
                let _stop = Stopper(&stop);
                for _ in 0..4 {
                    scope.spawn(|| {
                        let mut seen = BTreeSet::new();
                        let socket = net.on(Host::Client, || UdpSocket::bind("0.0.0.0:0").unwrap());
                        socket.connect(DATAGRAMS).unwrap();
                        socket.set_read_timeout(Some(SECOND * 5)).unwrap();
                        while !stop.load(Relaxed) {
                            let n = sent.fetch_add(1, Relaxed);
                            socket.send(&n.to_be_bytes()).unwrap();
                            let mut answer = [0; 64];
                            let len = socket.recv(&mut answer).unwrap();
                            assert_eq!((len, &answer[..8]), (10, &n.to_be_bytes()[..]));
                            seen.insert(u16::from_be_bytes([answer[8], answer[9]]));
                            heard.fetch_add(1, Relaxed);
                            std::thread::sleep(SECOND / 1000);
                        }
                        ports.lock().unwrap().push(seen);
                    });
                }
                for _ in 0..5 {
                    let before = heard.load(Relaxed);
                    fairway.upgrade();
                    wait_for("some answers more", || heard.load(Relaxed) > before + 50);
                }
            });
        });
        assert_eq!(sent.load(Relaxed), heard.load(Relaxed), "{listen}: nothing is lost");
        let ports = ports.into_inner().unwrap();
        assert!(ports.iter().all(|seen| seen.len() == 1), "{listen}: {ports:?}");
        assert_eq!(fairway.count("connections"), 4, "{listen}: no session began anew");
        assert_eq!(fairway.count("active"), 4);
        assert_eq!(fairway.count("receivedDatagrams"), sent.load(Relaxed));
    }
}

struct Stopper<'s>(&'s AtomicBool);

impl Drop for Stopper<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

#[test]
fn what_is_known_of_backends_and_clients_goes_along() {
    let Some(net) = Net::new() else { return };
    let servers = [1, 2, 3].map(|n| Nginx::start(&net, n));
    let [one, two, three] = &servers;
    let fields = "    scheduler: random\n    sessionAffinity: ClientIP\n    healthCheck: {interval: 100ms, \
                  fall: 1, initialState: down}\n";
    let text = document(&[one, two, three], fields);
    let mut fairway = Fairway::start(&net, &text);
    wait_for("all are well", || {
        servers.iter().all(|it| fairway.state_of(&it.addr.to_string()).as_deref() == Some("up"))
    });
    let mine = net.on(Host::Client, || get(VIP, "/").unwrap());
    let other = servers.iter().find(|server| server.name != mine).unwrap();
    assert!(fairway.cli(&["drain", &other.addr.to_string()]).status.success());
    let generation = fairway.status().unwrap()["generation"].as_u64().unwrap();
    fairway.upgrade();
    // At once: nobody has to be checked anew, no order to be given again.
    assert_eq!(fairway.state_of(&other.addr.to_string()).as_deref(), Some("draining"));
    for server in servers.iter().filter(|server| server.name != other.name) {
        assert_eq!(fairway.state_of(&server.addr.to_string()).as_deref(), Some("up"));
    }
    for _ in 0..20 {
        let answer = net.on(Host::Client, || get(VIP, "/").unwrap());
        assert_eq!(answer, mine, "the client stays with its backend");
    }
    assert!(fairway.status().unwrap()["generation"].as_u64().unwrap() > generation);
    assert!(fairway.cli(&["undrain", &other.addr.to_string()]).status.success());
    assert_eq!(fairway.count("connections"), 21);
}

#[test]
fn a_new_process_that_cannot_serve_changes_nothing() {
    let Some(net) = Net::new() else { return };
    let one = Nginx::start(&net, 1);
    let text = document(&[&one], "");
    let mut fairway = Fairway::start(&net, &text);
    let pid = fairway.pid();
    // Its document has an error: said where.
    fairway.write(&text.replace("backends", "bakends"));
    let output = fairway.cli(&["upgrade"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("unknown field `bakends`; did you mean `backends`?"), "{said}");
    assert!(said.contains("serves on"), "{said}");
    // What it would listen on is another's.
    let taken = net.on(Host::Lb, || std::net::TcpListener::bind("127.0.0.1:9199").unwrap());
    let other = fairway.whole(&text).replace("127.0.0.1:9180", "127.0.0.1:9199");
    std::fs::write(fairway.config_path(), other).unwrap();
    let output = fairway.cli(&["upgrade"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("metrics address 127.0.0.1:9199"), "{said}");
    drop(taken);
    assert_eq!(net.on(Host::Client, || get(VIP, "/").unwrap()), "s1");
    assert!(fairway.ended().is_none());
    // And now it can, with what wanted a restart.
    fairway.upgrade();
    assert_ne!(fairway.pid(), pid);
    assert!(net.on(Host::Lb, || get(([127, 0, 0, 1], 9199).into(), "/readyz")).is_ok());
    assert_eq!(net.on(Host::Client, || get(VIP, "/").unwrap()), "s1");
}

#[test]
fn a_killed_process_leaves_its_listeners_to_the_next() {
    let Some(net) = Net::new() else { return };
    let one = Nginx::start(&net, 1);
    let mut text = document(&[&one], "");
    for n in 1..100 {
        text += &format!(
            "  - {{name: more{n}, addresses: [{VIP4}], ports: [{{port: {}}}], backends: [\"{}\"]}}\n",
            2000 + n,
            one.addr
        );
    }
    let mut fairway = Fairway::start_managed(&net, &text);
    // Each worker's sockets of a hundred services and two addresses of one of them.
    let workers = fairway.status().unwrap()["workers"].as_array().unwrap().len();
    wait_for("all sockets are kept", || {
        fairway.told().contains(&format!("KEPT {}\n", 101 * workers))
    });
    let outcome = Outcome::default();
    let refused = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let _stop = outcome.stopper();
        for _ in 0..4 {
            let (outcome, refused) = (&outcome, &refused);
            let client = move || {
                while !outcome.stop.load(Relaxed) {
                    outcome.requests.fetch_add(1, Relaxed);
                    match get(VIP, "/kib") {
                        Ok(_) => {}
                        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                            refused.fetch_add(1, Relaxed);
                        }
                        // It was in the hands of the process that was killed.
                        Err(_) => _ = outcome.failed.fetch_add(1, Relaxed),
                    }
                }
            };
            let net = &net;
            scope.spawn(move || net.on(Host::Client, client));
        }
        for n in 1..=5 {
            let before = outcome.requests();
            wait_for("some requests more", || outcome.requests() > before + 50);
            let (pid, killed) = (fairway.pid(), std::time::Instant::now());
            fairway.signal(rustix::process::Signal::KILL);
            wait_for("it is ready again", || fairway.told().matches("READY").count() > n);
            println!("ready again after {:?}", killed.elapsed());
            assert_ne!(fairway.pid(), pid);
        }
    });
    assert_eq!(refused.load(Relaxed), 0, "of {} requests", outcome.requests());
    assert!(outcome.failed() <= 5 * 4, "{} failed", outcome.failed());

    // What goes with a reload is kept no longer; the next process is the main one, and is told of.
    fairway.apply(&document(&[&one], ""));
    wait_for("the rest is let go", || {
        let told = fairway.told();
        let last = told.lines().rev().find(|line| line.starts_with("KEPT"));
        last == Some(&format!("KEPT {}", 2 * workers))
    });
    fairway.signal(rustix::process::Signal::HUP);
    wait_for("a reload has a beginning and an end", || {
        let told = fairway.told();
        told.rfind("RELOADING").is_some_and(|at| told[at..].contains("READY"))
    });
    let pid = fairway.pid();
    fairway.upgrade();
    assert_ne!(fairway.pid(), pid);
    let main = format!("MAINPID {}\n", fairway.pid());
    wait_for("the next process speaks", || {
        let told = fairway.told();
        told.rfind(&main).is_some_and(|at| told[at..].contains("READY"))
    });
    wait_for("it says that it is alive", || {
        let told = fairway.told();
        told.rfind("MAINPID").is_some_and(|at| told[at..].contains("WATCHDOG"))
    });
    assert_eq!(net.on(Host::Client, || get(VIP, "/").unwrap()), "s1");
}

#[test]
fn who_comes_while_it_drains_is_refused_at_once() {
    for managed in [false, true] {
        let Some(net) = Net::new() else { return };
        let one = Nginx::start(&net, 1);
        let text = document(&[&one], "");
        let fairway =
            if managed { Fairway::start_managed(&net, &text) } else { Fairway::start(&net, &text) };
        let mut open = net.on(Host::Client, || connect(VIP).unwrap());
        ask(&mut open, "/kib").unwrap();
        fairway.signal(rustix::process::Signal::TERM);
        let refused = || {
            let came = net.on(Host::Client, || connect(VIP));
            came.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
        };
        wait_for("nobody listens any more", refused);
        net.on(Host::Client, || ask(&mut open, "/kib").unwrap());
    }
}
