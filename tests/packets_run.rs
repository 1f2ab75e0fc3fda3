//! Packet services in operation: what is shown of them, what changes under them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{self, TryRecvError};

use fairway_tests::http::{self, connect, get};
use fairway_tests::packets::*;
use fairway_tests::{Fairway, Host, SECOND, wait_for};

#[test]
fn flows_counters_and_drains_are_as_in_proxy_mode() {
    let Some(net) = net() else { return };
    let servers = servers(&net, 2, false);
    let text = document("nat", VIP4, &addresses(&servers), "drainTimeout: 300ms");
    let mut fairway = Fairway::start(&net, &text);
    let vip = at(VIP4, 80);
    let mut kept: Vec<TcpStream> =
        net.on(Host::Client, || (0..10).map(|_| connect(vip).unwrap()).collect());
    let names: Vec<String> =
        kept.iter_mut().map(|stream| http::ask(stream, "/").unwrap()).collect();
    let flows = |arguments: &[&str]| -> serde_json::Value {
        let arguments = [&["flows", "--output", "json"], arguments].concat();
        serde_json::from_slice(&fairway.cli(&arguments).stdout).unwrap()
    };
    let all = flows(&[]);
    let all = all.as_array().unwrap();
    assert_eq!(all.len(), 10, "{all:?}");
    assert!(all.iter().all(|flow| flow["state"] == "established" && flow["vip"] == "10.99.0.1:80"));
    assert!(all.iter().all(|flow| flow["bytes"].as_u64().unwrap() > 200), "{all:?}");
    let first = servers[0].addr.to_string();
    let on_first = names.iter().filter(|name| **name == "s1").count();
    assert_eq!(flows(&["--backend", &first]).as_array().unwrap().len(), on_first);
    assert_eq!(flows(&["--client", "10.77.0.9"]).as_array().unwrap().len(), 0);
    let table = String::from_utf8(fairway.cli(&["flows", "web"]).stdout).unwrap();
    assert!(table.starts_with("service  protocol  client"), "{table}");

    wait_for("counters are shown", || fairway.service()["receivedPackets"].as_u64() >= Some(30));
    let service = fairway.service();
    assert_eq!((&service["connections"], &service["active"]), (&10.into(), &10.into()));
    assert!(service["sentBytes"].as_u64() > Some(2000), "{service}");
    let metrics = fairway.metrics(&net);
    for line in [
        "fairway_packets_total{worker=\"0\",verdict=\"sent\"}",
        "fairway_port_received_frames_total{worker=\"1\",interface=\"clients\"}",
        "fairway_service_received_packets_total{service=\"web/80\"}",
        "fairway_service_connect_duration_seconds_count{service=\"web/80\"} 10",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }

    // A removed backend's flows may go on for a while, and are cut then.
    fairway.apply(&document("nat", VIP4, &[servers[1].addr], "drainTimeout: 300ms"));
    wait_for("the drained backend's flows are over", || {
        let all = flows(&[]);
        let mut of_first = all.as_array().unwrap().iter().filter(|f| f["backend"] == *first);
        of_first.all(|flow| flow["state"] == "cut")
    });
    for (stream, name) in kept.iter_mut().zip(&names) {
        let answer = http::ask(stream, "/");
        match name.as_str() {
            "s1" => assert_eq!(answer.unwrap_err().kind(), ErrorKind::ConnectionReset),
            _ => assert_eq!(answer.unwrap(), "s2"),
        }
    }
    assert_eq!(fairway.count("ends/drain_timeout"), on_first as u64);

    // An interface that goes and comes back carries packets again.
    net.exec(Host::Lb, "ip link set servers down");
    wait_for("it is told", || {
        fairway.status().unwrap()["troubles"].to_string().contains("interface `servers` is down")
    });
    net.exec(Host::Lb, "ip link set servers up");
    wait_for("it is up", || fairway.status().unwrap()["troubles"].as_array().unwrap().is_empty());
    // Checks that found no link may still end badly.
    let mut open = None;
    net.on(Host::Client, || {
        wait_for("packets pass", || {
            open = connect(vip).ok();
            open.as_mut().is_some_and(|stream| http::ask(stream, "/").is_ok())
        });
    });
    // Open connections may go on after SIGTERM, and new ones are not let in.
    let mut open = open.unwrap();
    drop(kept);
    fairway.signal(rustix::process::Signal::TERM);
    wait_for("it drains", || fairway.log().contains("stopping: no new connections"));
    assert_eq!(http::ask(&mut open, "/").unwrap(), "s2");
    let refused = || net.on(Host::Client, || TcpStream::connect_timeout(&vip, SECOND / 4));
    wait_for("new ones are not let in", || refused().is_err());
    assert_eq!(http::ask(&mut open, "/").unwrap(), "s2");
    drop(open);
    assert!(fairway.wait().success());
}

#[test]
fn a_network_of_addresses_and_every_port_is_one_service() {
    let Some(net) = net() else { return };
    for (v6, network, inside, outside) in [
        (false, "10.99.0.0/24", "10.99.0.77", "10.99.1.77"),
        (true, "fd99::/64", "fd99::77", "fd99:0:0:1::77"),
    ] {
        let server = servers(&net, 1, v6);
        let text = document("nat", network, &[], "ports: [{port: 1-65535, targetPort: 8080}]");
        let text = text.replace("backends: []", &format!("backends: [\"{}\"]", server[0].ip()));
        let _fairway = Fairway::start(&net, &text);
        net.on(Host::Client, || {
            for port in [1, 80, 8080, 65535] {
                assert_eq!(get(at(inside, port), "/").unwrap(), "s1");
            }
            let nobody = std::net::TcpStream::connect_timeout(&at(outside, 80), SECOND / 4);
            assert!(nobody.is_err());
        });
    }
}

#[test]
fn ports_that_run_out_are_told_of() {
    let Some(net) = net() else { return };
    let servers = servers(&net, 1, false);
    net.exec(Host::Servers, &format!("ip route replace 10.99.1.1 via {}", gateway(false)));
    // One port is enough for one connection, at the worker whose it is.
    let fields = "ports: [{port: 80, targetPort: 8080}]\n\
                  source: {addresses: [10.99.1.1], ports: 20000-20000}";
    let fairway = Fairway::start(&net, &document("fullNat", VIP4, &addresses(&servers), fields));
    let troubles = || fairway.status().unwrap()["troubles"].to_string();
    assert!(!troubles().contains("no port of ours"), "{}", troubles());
    net.on(Host::Client, || {
        let connect = || TcpStream::connect_timeout(&at(VIP4, 80), SECOND / 10);
        let connects: Vec<_> = (0..8).map(|_| connect()).collect();
        assert!(connects.iter().any(Result::is_err), "more than one connection has a port");
    });
    wait_for("it is told", || troubles().contains("new flows find no port of ours free"));
    assert!(fairway.log().contains("new flows find no port of ours free"));
    assert!(fairway.metrics(&net).contains("no_local_port"));
}

#[test]
fn tables_that_are_full_are_told_of() {
    let Some(net) = net() else { return };
    let servers = servers(&net, 1, false);
    let text = document("nat", VIP4, &addresses(&servers), "");
    let fairway = Fairway::start(&net, &text.replace("packet: {", "packet: {flows: 64, "));
    let troubles = || fairway.status().unwrap()["troubles"].to_string();
    let words = "table of flows is full";
    assert!(!troubles().contains(words), "{}", troubles());
    net.on(Host::Client, || {
        let connect = |_| TcpStream::connect_timeout(&at(VIP4, 80), SECOND / 2).ok();
        // Who is in the table stays in it.
        let mut held: Vec<TcpStream> = (0..129).map_while(connect).collect();
        assert!((64..=128).contains(&held.len()), "{}", held.len());
        assert!(held.iter_mut().all(|stream| http::ask(stream, "/").unwrap() == "s1"));
    });
    wait_for("it is told", || troubles().contains(words));
    assert!(fairway.log().contains(words));
    assert!(fairway.metrics(&net).contains("flow_table_full"));
}

#[test]
fn clients_of_one_family_reach_backends_of_the_other() {
    let Some(net) = net() else { return };
    for (v6, vip, own) in [(true, VIP6, "10.99.1.1"), (false, VIP4, "fd99:1::1")] {
        let servers = servers(&net, 2, !v6);
        let source = format!("source: {{addresses: [\"{own}\"]}}");
        net.exec(Host::Servers, &format!("ip route replace {own} via {}", gateway(!v6)));
        for mode in ["nat", "fullNat"] {
            let text = document(mode, vip, &addresses(&servers), &source);
            let _fairway = Fairway::start(&net, &text);
            net.on(Host::Client, || {
                let vip = at(vip, 80);
                for _ in 0..10 {
                    assert!(get(vip, "/").unwrap().starts_with('s'));
                }
                assert_eq!(get(vip, "/peer").unwrap(), own);
                assert_eq!(get(vip, "/big").unwrap().len(), 64 << 20);
            });
        }
        let backend: SocketAddr = (server_ip(&net, 3, !v6), 8080).into();
        let _server = summing(&net, backend);
        let fields = format!("{source}\nhealthCheck: {{interval: 1h}}");
        let _fairway = Fairway::start(&net, &document("nat", vip, &[backend], &fields));
        net.on(Host::Client, || upload(at(vip, 80), 300_000));
    }
}

#[test]
fn captures_show_frames_and_what_became_of_them() {
    let Some(net) = net() else { return };
    let servers = servers(&net, 1, false);
    let fields = "denySourceRanges: [10.77.0.77]";
    let fairway = Fairway::start(&net, &document("nat", VIP4, &addresses(&servers), fields));
    let vip = at(VIP4, 80);
    let file = fairway.folder().join("capture.pcapng");
    let path = file.display().to_string();
    let capture = |more: &[&str]| {
        let words = ["capture", "--write", &path, "--for", "8s"];
        let arguments = [&words[..], more].concat();
        std::thread::scope(|scope| {
            let capture = scope.spawn(|| fairway.cli(&arguments));
            net.on(Host::Client, || {
                while !capture.is_finished() {
                    get(vip, "/").unwrap();
                    // Nobody is let in from there.
                    let denied =
                        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
                    let denied = denied.unwrap();
                    denied.set_nonblocking(true).unwrap();
                    denied.bind(&at("10.77.0.77", 0).into()).unwrap();
                    let _ = denied.connect(&vip.into());
                }
            });
            let output = capture.join().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        });
        std::fs::read(&file).unwrap()
    };
    net.exec(Host::Client, "ip address add 10.77.0.77/24 dev lb");
    let has = |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|w| w == text.as_bytes());
    let all = capture(&["--port", "8080", "--count", "60"]);
    assert_eq!(all[..4], [0x0a, 0x0d, 0x0d, 0x0a]);
    assert!(has(&all, "clients") && has(&all, "sent by interface 1"), "both directions");
    assert!(has(&all, "GET / HTTP/1.1") || has(&all, "HTTP/1.1 200"));
    let dropped = capture(&["--dropped", "--net", "10.77.0.77", "--count", "3"]);
    assert!(has(&dropped, "dropped: denied") && !has(&dropped, "sent by"));
    let none = fairway.cli(&["capture", "-w", &path, "--net", "nonsense"]);
    assert_eq!(none.status.code(), Some(2), "{}", String::from_utf8_lossy(&none.stderr));
}

#[test]
fn reloads_lose_no_packet_and_send_none_elsewhere() {
    let Some(net) = &net() else { return };
    let backends: Vec<SocketAddr> =
        (1..=3).map(|n| (server_ip(net, n, false), 5353).into()).collect();
    let _echoes: Vec<Echo> =
        backends.iter().map(|at| Echo::start(net, *at, &at.ip().to_string())).collect();
    let own = "source: {addresses: [10.99.1.1]}\n";
    net.exec(Host::Servers, "ip route replace 10.99.1.1 via 10.78.0.1");
    for (mode, source) in [("nat", ""), ("fullNat", own)] {
        let fields =
            format!("{source}ports: [{{port: 53, protocol: UDP}}]\nhealthCheck: {{interval: 1h}}");
        let of = |count: usize| document(mode, VIP4, &backends[..count], &fields);
        let fairway = Fairway::start(net, &of(2));
        let (begun, begins) = mpsc::channel();
        let (reloading, reloads) = mpsc::channel::<()>();
        let asked = std::thread::scope(|scope| {
            let traffic = scope.spawn(move || {
                net.on(Host::Client, move || {
                    wait_for("packets pass", || {
                        ask(&client_socket(at(VIP4, 53)), b"first").is_ok()
                    });
                    let sockets: Vec<_> = (0..24).map(|_| client_socket(at(VIP4, 53))).collect();
                    let of = |socket| ask(socket, b"a datagram").expect("no packet is lost");
                    let first: Vec<String> = sockets.iter().map(of).collect();
                    begun.send(()).unwrap();
                    let mut count = 0;
                    while reloads.try_recv() == Err(TryRecvError::Empty) {
                        let now: Vec<String> = sockets.iter().map(of).collect();
                        assert_eq!(now, first, "{mode}: flows stay where they are");
                        count += now.len();
                    }
                    count
                })
            });
            // A flow that begins while there are three would move when the third goes.
            begins.recv().expect("traffic begins");
            for count in [3, 2].into_iter().cycle().take(20) {
                fairway.apply(&of(count));
            }
            drop(reloading);
            traffic.join().unwrap()
        });
        assert!(asked >= 24, "{mode}: {asked} datagrams");
        let third = backends[2].ip().to_string();
        net.on(Host::Client, || {
            for _ in 0..24 {
                let name = ask(&client_socket(at(VIP4, 53)), b"a new flow").unwrap();
                assert_ne!(name, third, "{mode}: a backend that is gone");
            }
        });
    }
}
