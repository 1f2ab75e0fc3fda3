//! Packet services beside the machine's own stack, and beside services of mode `proxy`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::io::ErrorKind;
use std::net::TcpStream;
use std::process::Command;

use fairway_tests::http::{self, connect, get};
use fairway_tests::packets::*;
use fairway_tests::{Fairway, Host, Net, SECOND, wait_at_most, wait_for};
use rustix::process::{Pid, Signal, kill_process};

/// The table that keeps the kernel from answering, if it is there.
fn table(net: &Net) -> Option<String> {
    let tables = net.exec(Host::Lb, "nft list tables");
    tables.contains("netdev fairway").then(|| net.exec(Host::Lb, "nft list ruleset"))
}

#[test]
fn the_fence_stands_as_long_as_fairway_does() {
    if driver().is_some() {
        println!("SKIPPED: the kernel has no part in cards of DPDK, and needs no fence");
        return;
    }
    let Some(net) = net() else { return };
    let servers = servers(&net, 1, false);
    let document = document("nat", VIP4, &addresses(&servers), "");
    let mut fairway = Fairway::start(&net, &document);
    assert!(table(&net).unwrap().contains(VIP4));
    // Nobody else takes it away, not even another Fairway.
    let namespace = net.name(Host::Lb);
    let refused = Command::new("ip")
        .args(["netns", "exec", &namespace, "nft", "delete", "table", "netdev", "fairway"])
        .output()
        .unwrap();
    assert!(!refused.status.success());
    let socket = fairway.folder().join("second.sock").display().to_string();
    let second = format!("admin: {{socket: {socket}, metrics: \"127.0.0.1:9181\"}}\n{document}");
    let second = Fairway::spawn(&net, &second, &[]);
    wait_for("a second one says so", || second.log().contains("is another Fairway serving here?"));
    drop(second);
    // It goes with the program that holds it, and comes back.
    let holder = || -> Option<Pid> {
        let found = Command::new("pgrep").args(["-P", &fairway.pid().to_string(), "nft"]).output();
        Pid::from_raw(String::from_utf8(found.unwrap().stdout).unwrap().trim().parse().ok()?)
    };
    let first = holder().unwrap();
    kill_process(first, Signal::KILL).unwrap();
    wait_for("another holds it", || holder().is_some_and(|pid| pid != first));
    wait_for("the fence stands again", || table(&net).is_some());
    net.on(Host::Client, || assert_eq!(get(at(VIP4, 80), "/").unwrap(), "s1"));
    // However Fairway ends, its table does too.
    fairway.signal(Signal::KILL);
    fairway.wait();
    wait_for("the fence has gone", || table(&net).is_none());
}

#[test]
fn without_backends_clients_are_told_at_once() {
    let Some(net) = net() else { return };
    for (v6, vip, _) in FAMILIES {
        let backend = server_ip(&net, 1, v6);
        let fields = "ports: [{port: 80}, {port: 53, protocol: UDP}]\n\
                      healthCheck: {type: tcp, port: 9, interval: 50ms, fall: 1}";
        let text = document("nat", vip, &[], fields);
        let text = text.replace("backends: []", &format!("backends: [\"{backend}\"]"));
        let fairway = Fairway::start(&net, &text);
        wait_for("nobody serves", || {
            let services = fairway.services();
            services.as_array().unwrap().iter().all(|s| s["backendsUp"] == 0)
        });
        net.on(Host::Client, || {
            let refused = TcpStream::connect_timeout(&at(vip, 80), SECOND).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{vip}");
            let refused = ask(&client_socket(at(vip, 53)), b"x").unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{vip}");
        });
    }
}

#[test]
fn a_service_that_changes_its_mode_leaves_no_ghosts() {
    let Some(net) = net() else { return };
    let servers = servers(&net, 1, false);
    let of = |mode: &str| document(mode, "10.77.0.100", &addresses(&servers), "");
    let fairway = Fairway::start(&net, &of("proxy"));
    let vip = at("10.77.0.100", 80);
    for (mode, open) in [("nat", 1), ("proxy", 1), ("nat", 1)] {
        let mut held = net.on(Host::Client, || connect(vip).unwrap());
        assert_eq!(http::ask(&mut held, "/").unwrap(), "s1");
        assert_eq!(fairway.count("active"), open);
        fairway.apply(&of(mode));
        let ended = http::ask(&mut held, "/").unwrap_err();
        assert_eq!(ended.kind(), ErrorKind::ConnectionReset, "to {mode}");
        net.on(Host::Client, || assert_eq!(get(vip, "/").unwrap(), "s1", "{mode}"));
        // A flow that is reset is over after ten seconds: anybody may send resets.
        wait_at_most(20 * SECOND, "none is left", || fairway.count("active") == 0);
    }
    assert!(fairway.log().contains("mode proxy → nat: cutting connections"));
}

#[test]
fn ended_flows_are_logged_and_counted_by_client() {
    let Some(net) = net() else { return };
    let servers = servers(&net, 1, false);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("connections.log");
    let text = format!("log: {{connections: all, to: file, path: {}}}\n", path.display());
    let text = text + &document("nat", VIP4, &addresses(&servers), "");
    let fairway = Fairway::start(&net, &text);
    let vip = at(VIP4, 80);
    net.on(Host::Client, || (0..3).for_each(|_| assert_eq!(get(vip, "/").unwrap(), "s1")));
    let lines = || std::fs::read_to_string(&path).unwrap_or_default();
    wait_for("three lines", || lines().lines().count() >= 3);
    let line: serde_json::Value = serde_json::from_str(lines().lines().next().unwrap()).unwrap();
    assert_eq!(
        (&line["service"], &line["vip"], &line["backend"]),
        (&"web/80".into(), &vip.to_string().into(), &servers[0].addr.to_string().into())
    );
    // Lengths are those of packets, headers and all, and not known by direction.
    assert!(line["bytes"].as_u64() > Some(300) && line["rx_bytes"].is_null(), "{line}");
    assert!(line["duration_ms"].is_number() && line["reason"] == "client_closed", "{line}");
    let list = fairway.cli(&["talkers", "web", "--output", "json"]).stdout;
    let list: serde_json::Value = serde_json::from_slice(&list).unwrap();
    assert_eq!((&list[0]["client"], &list[0]["connections"]), (&"10.77.0.2".into(), &3.into()));
}

#[test]
fn packets_of_vlans_come_and_go_with_their_tags() {
    let Some(net) = net() else { return };
    let namespace = net.name(Host::Lb);
    let probe = "link add probe link servers type vlan id 9".split(' ');
    let probe = Command::new("ip").args(["-n", &namespace]).args(probe).output().unwrap();
    if !probe.status.success() {
        let why = String::from_utf8_lossy(&probe.stderr);
        println!("SKIPPED: this kernel makes no VLAN devices: {}", why.trim());
        return;
    }
    for (host, device) in [(Host::Lb, "servers"), (Host::Servers, "lb")] {
        for command in [
            format!("ip link add vlan10 link {device} type vlan id 10"),
            "ip link set vlan10 up".into(),
            format!("ip address flush dev {device}"),
        ] {
            net.exec(host, &command);
        }
    }
    for (host, v4, v6) in
        [(Host::Lb, "10.78.0.1/24", "fd78::1/64"), (Host::Servers, "10.78.0.11/24", "fd78::11/64")]
    {
        net.exec(host, &format!("ip address add {v4} dev vlan10"));
        net.exec(host, &format!("ip -6 address add {v6} dev vlan10 nodad"));
    }
    net.exec(Host::Servers, "ip route replace default via 10.78.0.1");
    net.exec(Host::Servers, "ip -6 route replace default via fd78::1");
    let families = [(VIP4, "10.78.0.11"), (VIP6, "fd78::11")];
    for (n, (vip, ip)) in families.into_iter().cycle().take(4).enumerate() {
        set_offloads(&net, n < 2);
        let server = summing(&net, at(ip, 8080));
        // Nothing is on the link without a tag.
        let fields = "healthCheck: {interval: 200ms, fall: 2}";
        let fairway = Fairway::start(&net, &document("nat", vip, &[at(ip, 8080)], fields));
        net.on(Host::Client, || upload(at(vip, 80), 2_000_000));
        let whole = whole_frames(&fairway, &net, "servers");
        assert_eq!(whole > 20, driver().is_none(), "{whole} super-packets went on whole");
        assert_eq!(fairway.state_of(&at(ip, 8080).to_string()).unwrap(), "up");
        drop(server);
    }
}

#[test]
fn traceroute_sees_the_way_through() {
    let Some(net) = net() else { return };
    for (v6, vip, _) in FAMILIES {
        let servers = servers(&net, 1, v6);
        let _fairway = Fairway::start(&net, &document("nat", vip, &addresses(&servers), ""));
        // Hops that are asked by a SYN: the box, then the backend, which answers as the VIP.
        let hop = if v6 { "fd77::1" } else { "10.77.0.1" };
        let said = net.exec(Host::Client, &format!("traceroute -n -T -p 80 -q 1 -w 2 {vip}"));
        let lines: Vec<&str> = said.lines().skip(1).map(str::trim).collect();
        assert_eq!(lines.len(), 2, "{said}");
        assert!(lines[0].starts_with(&format!("1  {hop} ")), "{said}");
        assert!(lines[1].starts_with(&format!("2  {vip} ")), "{said}");
    }
}
