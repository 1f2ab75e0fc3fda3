//! The operator's tools on a running Fairway, each followed by what really happens.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::process::Output;

use serde_json::Value;

use fairway_tests::http::{ask, connect, get};
use fairway_tests::{Fairway, Host, Net, Nginx, SECOND, VIP4, wait_for};

const VIP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(VIP4), 80);

fn document(backends: &[&Nginx], fields: &str) -> String {
    let backends: Vec<_> = backends.iter().map(|server| server.addr.to_string()).collect();
    format!(
        "services:\n  - name: web\n    addresses: [{VIP4}]\n    ports: [{{port: 80}}]\n    \
         backends: [{}]\n    healthCheck: {{interval: 100ms, timeout: 90ms, fall: 1, rise: 1}}\n{fields}",
        backends.join(", ")
    )
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
}

/// Which server answers a client from this port.
fn from_port(port: u16) -> String {
    use std::io::{Read, Write};
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    // A port that was used a moment ago may be used again.
    socket.set_linger(Some(std::time::Duration::ZERO)).unwrap();
    socket.bind(&SocketAddr::from(([10, 77, 0, 2], port)).into()).unwrap();
    socket.connect(&VIP.into()).unwrap();
    let mut stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(10 * SECOND)).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.lines().last().unwrap().to_owned()
}

#[test]
fn explain_says_where_connections_go() {
    let Some(net) = Net::new() else { return };
    let servers: Vec<Nginx> = (1..=4).map(|n| Nginx::start(&net, n)).collect();
    let all: Vec<&Nginx> = servers.iter().collect();
    let fairway = Fairway::start(&net, &document(&all, "    denySourceRanges: [192.0.2.0/24]\n"));
    let explain = |client: &str| {
        let vip = format!("{VIP}/tcp");
        json(&fairway.cli(&["explain", client, &vip, "--output", "json"]))
    };
    let predicted = |port: u16| {
        let explanation = explain(&format!("10.77.0.2:{port}"));
        let first = explanation["candidates"][0]["backend"].as_str().unwrap().to_owned();
        servers.iter().find(|server| server.addr.to_string() == first).unwrap().name.clone()
    };
    let ports = 20_000..20_030;
    for port in ports.clone() {
        let name = predicted(port);
        assert_eq!(net.on(Host::Client, || from_port(port)), name, "from port {port}");
    }
    // With one of them ejected, its flows go to their second candidates.
    let second = explain("10.77.0.2:20000")["candidates"][1]["backend"].clone();
    let first = explain("10.77.0.2:20000")["candidates"][0]["backend"].clone();
    assert!(fairway.cli(&["eject", first.as_str().unwrap()]).status.success());
    let explanation = explain("10.77.0.2:20000");
    assert_eq!(explanation["candidates"][0]["backend"], second);
    assert_eq!(explanation["passedOver"][0]["backend"], first);
    assert_eq!(explanation["passedOver"][0]["state"], "ejected");
    for port in ports {
        let name = predicted(port);
        assert_eq!(net.on(Host::Client, || from_port(port)), name, "from port {port}");
    }
    assert_eq!(explain("192.0.2.1:1")["allowed"], false);
    let nobody = fairway.cli(&["explain", "10.77.0.2:1 -> 10.77.0.100:81/udp"]);
    let text = String::from_utf8_lossy(&nobody.stderr);
    assert!(!nobody.status.success() && text.contains("no service has"), "{text}");
    assert_eq!(fairway.cli(&["explain", "nonsense"]).status.code(), Some(2));
    let arrow = fairway.cli(&["explain", "10.77.0.2:1", "->", "10.77.0.100:80/tcp"]);
    assert!(arrow.status.success(), "{}", String::from_utf8_lossy(&arrow.stderr));
}

#[test]
fn a_plan_foretells_what_moves_and_a_rollback_brings_it_back() {
    let Some(net) = Net::new() else { return };
    let servers: Vec<Nginx> = (1..=4).map(|n| Nginx::start(&net, n)).collect();
    let all: Vec<&Nginx> = servers.iter().collect();
    let before = document(&all, "");
    let fairway = Fairway::start(&net, &before);
    let mut held: Vec<TcpStream> =
        net.on(Host::Client, || (0..40).map(|_| connect(VIP).unwrap()).collect());
    let mut on_fourth = 0;
    for stream in &mut held {
        on_fourth += u64::from(ask(stream, "/").unwrap() == "s4");
    }
    let new = fairway.folder().join("new.yaml");
    let after = document(&all[..3], "    timeouts: {idle: 5m}\n");
    std::fs::write(&new, fairway.whole(&after)).unwrap();
    let output = fairway.cli(&["plan", new.to_str().unwrap(), "--output", "json"]);
    assert_eq!(output.status.code(), Some(4), "it would change something");
    let plan = json(&output);
    let change = &plan["changes"][0];
    assert_eq!((&change["service"], &change["kind"]), (&"web/80".into(), &"changed".into()));
    assert_eq!(change["differences"][0], "timeouts");
    assert_eq!(change["connectionsDrained"], on_fourth);
    assert!(on_fourth > 0, "some of 40 connections");
    let foretold = change["slotsMoved"].as_f64().unwrap();
    // What the same clients meet before and after: each connection is a draw from the slots.
    let ports: Vec<u16> = (21_000..21_400).collect();
    let answers = || -> BTreeMap<u16, String> {
        net.on(Host::Client, || ports.iter().map(|port| (*port, from_port(*port))).collect())
    };
    let first = answers();
    fairway.apply(&after);
    let second = answers();
    let moved = ports.iter().filter(|port| first[port] != second[port]).count();
    let seen = moved as f64 / ports.len() as f64;
    assert!((seen - foretold).abs() < 0.08, "foretold {foretold}, seen {seen}");
    // However long it is.
    let long = fairway.whole(&after) + &format!("# {}\n", "long ".repeat(9)).repeat(100_000);
    std::fs::write(&new, long).unwrap();
    let same = fairway.cli(&["plan", new.to_str().unwrap()]);
    assert_eq!(same.status.code(), Some(0), "{}", String::from_utf8_lossy(&same.stdout));

    let history = json(&fairway.cli(&["history", "--output", "json"]));
    assert_eq!(history.as_array().unwrap().len(), 2);
    assert!(fairway.cli(&["rollback"]).status.success());
    assert_eq!(answers(), first, "every client is back where it was");
    let status = fairway.status().unwrap();
    assert!(status["orders"][0].as_str().unwrap().contains("rolled back to configuration 1"));
    assert!(!fairway.cli(&["rollback", "77"]).status.success());
    fairway.apply(&after);
    assert_eq!(fairway.status().unwrap()["orders"].as_array().unwrap().len(), 0);
    assert_eq!(answers(), second);
}

#[test]
fn orders_hold_as_long_as_they_are_meant_to() {
    let Some(net) = Net::new() else { return };
    let mut servers: Vec<Nginx> = (1..=2).map(|n| Nginx::start(&net, n)).collect();
    let text = document(&[&servers[0], &servers[1]], "");
    let fairway = Fairway::start(&net, &text);
    let (one, two) = (servers[0].addr.to_string(), servers[1].addr.to_string());
    let shares = || -> BTreeMap<String, u32> {
        net.on(Host::Client, || {
            let mut shares = BTreeMap::new();
            // From the same ports each time: what falls to whom is then no matter of luck.
            (22_000..22_200).for_each(|port| *shares.entry(from_port(port)).or_default() += 1);
            shares
        })
    };
    let good = |arguments: &[&str]| {
        let output = fairway.cli(arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    good(&["eject", &one]);
    assert_eq!(shares(), BTreeMap::from([("s2".into(), 200)]));
    fairway.apply(&format!("{text}    timeouts: {{idle: 5m}}\n"));
    assert_eq!(fairway.state_of(&one).unwrap(), "ejected", "a lasting order outlives reloads");
    assert!(fairway.status().unwrap()["orders"][0].as_str().unwrap().contains("ejected"));
    good(&["reset", &one]);
    good(&["weight", &one, "20%", "--until-reload"]);
    // A fifth of a half, over all.
    let share = f64::from(shares()["s1"]) / 200.0;
    assert!((0.04..0.20).contains(&share), "{share}");
    fairway.apply(&text);
    assert_eq!(fairway.status().unwrap()["orders"].as_array().unwrap().len(), 0);
    assert!(shares()["s1"] > 60, "until the reload");

    // A check that lies: the operator knows better.
    let lying =
        text.replace("interval: 100ms", "type: exec, command: [/bin/false], interval: 100ms");
    fairway.apply(&lying);
    wait_for("all are down", || fairway.state_of(&one).unwrap() == "down");
    wait_for("and nobody serves", || net.on(Host::Client, || get(VIP, "/").is_err()));
    good(&["admit", &two]);
    assert_eq!(shares(), BTreeMap::from([("s2".into(), 200)]));
    fairway.apply(&text);
    good(&["reset", &two]);
    for addr in [&one, &two] {
        wait_for("the new check is good", || fairway.state_of(addr).unwrap() == "up");
    }

    // Draining waits for the last connection.
    let mut open = net.on(Host::Client, || connect(VIP)).unwrap();
    let server = ask(&mut open, "/").unwrap();
    let addr = if server == "s1" { &one } else { &two };
    let early = fairway.cli(&["drain", addr, "--wait", "--timeout", "300ms"]);
    assert_eq!(early.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&early.stderr).contains("still has 1 connection"));
    drop(open);
    good(&["drain", addr, "--wait", "--timeout", "20s"]);
    servers[0].kill();
}

#[test]
fn open_connections_are_listed_and_filtered() {
    let Some(net) = Net::new() else { return };
    let server = Nginx::start(&net, 1);
    let fairway = Fairway::start(&net, &document(&[&server], ""));
    let mut held: Vec<TcpStream> =
        net.on(Host::Client, || (0..5).map(|_| connect(VIP).unwrap()).collect());
    for stream in &mut held {
        ask(stream, "/").unwrap();
    }
    let list = |filter: &[&str]| {
        let arguments: Vec<&str> =
            ["connections", "--output", "json"].into_iter().chain(filter.iter().copied()).collect();
        json(&fairway.cli(&arguments)).as_array().unwrap().clone()
    };
    let all = list(&[]);
    assert_eq!(all.len(), 5);
    let mut clients: Vec<String> =
        held.iter().map(|stream| stream.local_addr().unwrap().to_string()).collect();
    let mut listed: Vec<String> =
        all.iter().map(|view| view["client"].as_str().unwrap().to_owned()).collect();
    clients.sort();
    listed.sort();
    assert_eq!(listed, clients);
    assert_eq!(all[0]["backend"], server.addr.to_string());
    assert!(all[0]["receivedBytes"].as_u64().unwrap() > 0);
    for (filter, want) in [
        (&["web"][..], 5),
        (&["web/80"], 5),
        (&["--client", "10.77.0.0/24"], 5),
        (&["--client", "10.99.0.0/24"], 0),
        (&["--backend", "10.78.0.11"], 5),
        (&["--older-than", "1h"], 0),
    ] {
        assert_eq!(list(filter).len(), want, "{filter:?}");
    }
    assert_eq!(list(&["--most", "2"]).len(), 2);
    for wrong in [&["nope"][..], &["--backend", "10.78.0.12"]] {
        assert!(!fairway.cli(&[&["connections"], wrong].concat()).status.success(), "{wrong:?}");
    }
    assert!(!fairway.cli(&["connections", "--client", "x"]).status.success());
}

#[test]
fn connections_are_listed_again_and_again() {
    let Some(net) = Net::new() else { return };
    let server = Nginx::start(&net, 1);
    let fairway = Fairway::start(&net, &document(&[&server], ""));
    let mut held = net.on(Host::Client, || connect(VIP).unwrap());
    ask(&mut held, "/").unwrap();
    let client = held.local_addr().unwrap().to_string();
    let mut watch = std::process::Command::new(fairway_tests::program())
        .args(["connections", "--watch=200ms", "--socket"])
        .arg(fairway.folder().join("admin.sock"))
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(lines.by_ref().filter(|line| line.contains(&client)).take(3).count(), 3);
    drop(held);
    // A table without it is a heading alone.
    let mut row_since_heading = true;
    let gone = lines.any(|line| {
        let heading = line.starts_with("SERVICE") || line.starts_with("service");
        let empty = heading && !std::mem::replace(&mut row_since_heading, false);
        row_since_heading |= line.contains(&client);
        empty || line.contains("no ")
    });
    watch.kill().unwrap();
    watch.wait().unwrap();
    assert!(gone);
}

#[test]
fn the_heaviest_clients_are_named() {
    let Some(net) = Net::new() else { return };
    let server = Nginx::start(&net, 1);
    let fairway = Fairway::start(&net, &document(&[&server], ""));
    net.exec(Host::Client, "ip address add 10.77.0.3/24 dev lb");
    let from = |ip: [u8; 4], path: &str| {
        use std::io::{Read, Write};
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((ip, 0)).into()).unwrap();
        socket.connect(&VIP.into()).unwrap();
        let mut stream: TcpStream = socket.into();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
    };
    net.on(Host::Client, || {
        (0..20).for_each(|_| from([10, 77, 0, 2], "/"));
        (0..3).for_each(|_| from([10, 77, 0, 3], "/big"));
    });
    wait_for("all have ended", || fairway.count("active") == 0);
    let first = |by: &str| {
        let list = json(&fairway.cli(&["talkers", "web", "--by", by, "--output", "json"]));
        (list[0]["client"].as_str().unwrap().to_owned(), list[0][by].as_u64().unwrap())
    };
    assert_eq!(first("connections"), ("10.77.0.2".into(), 20));
    let (client, bytes) = first("bytes");
    assert!(client == "10.77.0.3" && bytes > 3 * (64 << 20), "{client} {bytes}");
}
