//! Packets through a real Fairway on real interfaces: kernel clients, kernel servers.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use fairway_tests::http::{self, Outcome, connect, get};
use fairway_tests::packets::*;
use fairway_tests::{Fairway, Host, Other, SECOND, TOLD, wait_for};

#[test]
fn nat_and_full_nat_carry_connections_of_both_families() {
    let Some(net) = net() else { return };
    for (v6, vip, own) in FAMILIES {
        let servers = servers(&net, 3, v6);
        let first = document("nat", vip, &addresses(&servers), "");
        let mut fairway = Fairway::start(&net, &first);
        // Replies to addresses of our own come back without a route through us.
        let source = format!("source: {{addresses: [\"{own}\"]}}");
        net.exec(Host::Servers, &format!("ip route replace {own} via {}", gateway(v6)));
        for (document, peer) in [
            (first, client(v6)),
            (document("fullNat", vip, &addresses(&servers), &source), own.parse().unwrap()),
        ] {
            fairway.apply(&document);
            net.on(Host::Client, || {
                let vip = at(vip, 80);
                let names: BTreeSet<String> = (0..40).map(|_| get(vip, "/").unwrap()).collect();
                assert_eq!(names.len(), 3, "{names:?}");
                let seen: IpAddr = get(vip, "/peer").unwrap().parse().unwrap();
                assert_eq!(seen, peer);
                assert_eq!(get(vip, "/big").unwrap().len(), 64 << 20);
            });
        }
        let service = fairway.service();
        assert_eq!(service["connections"], 84, "{service}");
        fairway.signal(rustix::process::Signal::TERM);
        assert!(fairway.wait().success());
        let tables = net.exec(Host::Lb, "nft list tables");
        assert!(!tables.contains("fairway"), "nothing is left behind: {tables}");
    }
}

#[test]
fn data_arrives_whole_in_both_directions() {
    let Some(net) = net() else { return };
    let data: Vec<u8> =
        (0..4_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for (n, (v6, vip, _)) in FAMILIES.into_iter().cycle().take(4).enumerate() {
        set_offloads(&net, n < 2);
        let server: SocketAddr = (server_ip(&net, 1, v6), 8080).into();
        let listener = net.on(Host::Servers, || TcpListener::bind(server).unwrap());
        let fairway =
            Fairway::start(&net, &document("nat", vip, &[server], "healthCheck: {interval: 1h}"));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let echoed = listener.incoming().map(Result::unwrap).any(|mut stream| {
                    let mut bytes = vec![0; data.len()];
                    stream.read_exact(&mut bytes).is_ok() && {
                        stream.write_all(&bytes).unwrap();
                        true
                    }
                });
                assert!(echoed);
            });
            let back = net.on(Host::Client, || {
                let mut stream = connect(at(vip, 80)).unwrap();
                stream.write_all(&data).unwrap();
                let mut back = vec![0; data.len() / 2];
                stream.read_exact(&mut back).unwrap();
                stream.shutdown(std::net::Shutdown::Write).unwrap();
                stream.read_to_end(&mut back).unwrap();
                back
            });
            assert!(back == data, "{} of {} bytes", back.len(), data.len());
        });
        // Kernels leave the cutting to their ports, and so do we.
        for interface in ["clients", "servers"] {
            let whole = whole_frames(&fairway, &net, interface);
            assert_eq!(whole > 20, driver().is_none(), "{whole} went out of {interface} whole");
        }
    }
}

#[test]
fn bursts_of_datagrams_arrive_one_by_one() {
    if driver().is_some() {
        println!("SKIPPED: DPDK's ports here take no super-packets");
        return;
    }
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    if (numbers.next(), numbers.next()) < (Some(6), Some(2)) {
        println!("SKIPPED: packet sockets know no bursts of datagrams before Linux 6.2");
        return;
    }
    let Some(net) = net() else { return };
    let mut script = tempfile::NamedTempFile::new().unwrap();
    script.write_all(include_bytes!("src/bursts.py")).unwrap();
    for (n, (v6, vip, _)) in FAMILIES.into_iter().cycle().take(4).enumerate() {
        set_offloads(&net, n < 2);
        let backend: SocketAddr = (server_ip(&net, 1, v6), 5353).into();
        let _echo = Echo::start(&net, backend, "a");
        let fields = "ports: [{port: 53, protocol: UDP}]\nhealthCheck: {interval: 1h}";
        let fairway = Fairway::start(&net, &document("nat", vip, &[backend], fields));
        let burst = format!("python3 {} {vip} 53", script.path().display());
        net.exec(Host::Client, &burst);
        let whole = whole_frames(&fairway, &net, "servers");
        // The first one establishes the flow.
        assert!(whole >= 19, "{whole} bursts went on whole");
    }
}

#[test]
fn direct_return_and_tunnels_carry_what_is_answered_past_us() {
    let Some(net) = net() else { return };
    direct(&net);
    let decap = Other::start(&net, Host::Servers, include_str!("src/decap.py"), "python3", &[]);
    wait_for("the tunnels' end", || {
        net.exec(Host::Servers, "ip -o link show up").contains("decap")
    });
    let _servers = FAMILIES.map(|(_, vip, _)| summing(&net, at(vip, 80)));
    let quiet = "healthCheck: {interval: 1h}";
    let mut fairway = None;
    for (v6, vip, _) in FAMILIES {
        for (mode, more) in [("dsr", ""), ("ipip", ""), ("gue", ""), ("gue", "\ngueVariant: 0")] {
            for outer_v6 in [v6, !v6] {
                if mode == "dsr" && outer_v6 != v6 {
                    continue;
                }
                let backend: SocketAddr = (server_ip(&net, 1, outer_v6), 80).into();
                let document = document(mode, vip, &[backend], &format!("{quiet}{more}"));
                let fairway = fairway.get_or_insert_with(|| Fairway::start(&net, &document));
                fairway.apply(&document);
                println!("{mode}{more} {vip} in {backend}");
                net.on(Host::Client, || upload(at(vip, 80), 300_000));
                // What the client has learned of the way is another way's.
                net.exec(Host::Client, "ip route flush cache");
                net.exec(Host::Client, "ip -6 route flush cache");
            }
        }
    }
    drop(decap);
}

#[test]
fn datagrams_go_to_one_backend_and_leave_it_when_it_dies() {
    let Some(net) = net() else { return };
    for (v6, vip, own) in FAMILIES {
        let backends: Vec<SocketAddr> =
            (1..=2).map(|n| (server_ip(&net, n, v6), 5353).into()).collect();
        net.exec(Host::Servers, &format!("ip route replace {own} via {}", gateway(v6)));
        let source = format!("\nsource: {{addresses: [\"{own}\"]}}");
        for (mode, more) in [("nat", ""), ("fullNat", source.as_str())] {
            let mut echoes: Vec<_> = backends
                .iter()
                .zip(["a", "b"])
                .map(|(addr, name)| (name, Some(Echo::start(&net, *addr, name))))
                .collect();
            // A datagram to a port where nobody is comes back as an error.
            let fields = format!(
                "ports: [{{port: 53, protocol: UDP}}]{more}\n\
                 healthCheck: {{type: udp, send: hi, interval: 200ms, timeout: 190ms, fall: 2, rise: 1}}"
            );
            let fairway = Fairway::start(&net, &document(mode, vip, &backends, &fields));
            wait_for("both are well", || {
                fairway.backends().as_array().unwrap().iter().all(|b| b["state"] == "up")
            });
            net.on(Host::Client, || {
                let sockets: Vec<_> = (0..20).map(|_| client_socket(at(vip, 53))).collect();
                let first: Vec<_> = sockets.iter().map(|s| ask(s, b"one").unwrap()).collect();
                assert!(
                    first.iter().any(|name| name == "a") && first.iter().any(|name| name == "b")
                );
                for (socket, name) in sockets.iter().zip(&first) {
                    assert_eq!(ask(socket, b"two").unwrap(), *name, "{mode}");
                }
                // In parts, both ways, whichever worker they come to.
                let large: Vec<u8> = (0..8000_u32).map(|n| b'a' + (n % 23) as u8).collect();
                // DPDK's packet sockets have the kernel join them, and lose what is too large then.
                let whole = driver().is_some_and(|driver| driver == "af_packet");
                for (socket, name) in sockets.iter().zip(&first).filter(|_| !whole) {
                    assert_eq!(ask(socket, &large).unwrap(), *name, "{mode} {vip}");
                }
                echoes[0].1 = None;
                wait_for("the dead one is out", || {
                    fairway.state_of(&backends[0].to_string()).unwrap() == "down"
                });
                wait_for("workers know it", || {
                    let status = fairway.status().unwrap();
                    status["generationInUse"] == status["generation"]
                });
                for socket in &sockets {
                    assert_eq!(ask(socket, b"three").unwrap(), "b", "{mode} {vip}");
                }
            });
            drop(echoes);
        }
    }
}

#[test]
fn errors_of_the_way_and_of_backends_reach_the_client() {
    let Some(net) = net() else { return };
    for (v6, vip, _) in FAMILIES {
        let backend: SocketAddr = (server_ip(&net, 1, v6), 5353).into();
        let fields = "ports: [{port: 53, protocol: UDP}]\nhealthCheck: {interval: 1h}";
        let fairway = Fairway::start(&net, &document("nat", vip, &[backend], fields));
        net.on(Host::Client, || {
            // Nobody is at the backend's port: its host says so, and the socket hears it.
            let socket = client_socket(at(vip, 53));
            let refused = ask(&socket, b"x").unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{refused}");
            // The first hop names itself when the time to live is over.
            let (domain, protocol) = if v6 {
                (socket2::Domain::IPV6, socket2::Protocol::ICMPV6)
            } else {
                (socket2::Domain::IPV4, socket2::Protocol::ICMPV4)
            };
            let raw = socket2::Socket::new(domain, socket2::Type::RAW, Some(protocol)).unwrap();
            raw.set_read_timeout(Some(SECOND)).unwrap();
            let tracer = client_socket(at(vip, 53));
            if v6 {
                socket2::SockRef::from(&tracer).set_unicast_hops_v6(1).unwrap();
            } else {
                tracer.set_ttl(1).unwrap();
            }
            let hop: IpAddr = if v6 { "fd77::1" } else { "10.77.0.1" }.parse().unwrap();
            let kind = if v6 { 3 } else { 11 };
            let end = Instant::now() + 5 * SECOND;
            loop {
                assert!(Instant::now() < end, "no word of the first hop");
                // The word may come before we have heard of our own addresses, which nobody repeats. The
                // error that came for the last one is not this one's.
                let _ = tracer.send(b"far");
                let mut buffer = [0; 2048];
                let flags = rustix::net::RecvFlags::empty();
                let Ok((_, _, from)) = rustix::net::recvfrom(&raw, &mut buffer, flags) else {
                    continue;
                };
                let from: Option<SocketAddr> = from.and_then(|from| from.try_into().ok());
                let bytes = buffer;
                let message = if v6 { &bytes[..] } else { &bytes[20..] };
                if message[0] == kind && from.unwrap().ip() == hop {
                    break;
                }
            }
        });
        drop(fairway);
    }
}

#[test]
fn path_mtu_is_discovered_through_nat() {
    let Some(net) = net() else { return };
    let narrow = || _ = net.exec(Host::Lb, "ip link set servers mtu 1400");
    // The kernel's end of a card comes with Fairway.
    let late = driver().is_some();
    if !late {
        narrow();
    }
    for (v6, vip, _) in FAMILIES {
        let backend: SocketAddr = (server_ip(&net, 1, v6), 8080).into();
        let _server = summing(&net, backend);
        let document = document("nat", vip, &[backend], "healthCheck: {interval: 1h}");
        let fairway = Fairway::start(&net, &document);
        if late {
            narrow();
            wait_for("it is known", || {
                fairway.status().unwrap()["interfaces"].to_string().contains("1400")
            });
        }
        net.on(Host::Client, || upload(at(vip, 80), 300_000));
        drop(fairway);
    }
}

#[test]
fn no_connect_fails_while_backends_die() {
    let Some(net) = net() else { return };
    for (v6, vip, _) in FAMILIES {
        let mut servers = servers(&net, 3, v6);
        let fields = "retry: {synTimeout: 30ms}\nhealthCheck: {interval: 1h}";
        let fairway = Fairway::start(&net, &document("nat", vip, &addresses(&servers), fields));
        let outcome = Outcome::default();
        let vip = at(vip, 80);
        let connects = || {
            while !outcome.stop.load(Relaxed) {
                outcome.requests.fetch_add(1, Relaxed);
                // A reset is of a connection that was made, to a server that died just then.
                let made = |error: &std::io::Error| error.kind() == ErrorKind::ConnectionReset;
                if let Some(error) = connect(vip).err().filter(|error| !made(error)) {
                    eprintln!("connect failed: {error}");
                    outcome.failed.fetch_add(1, Relaxed);
                }
            }
        };
        net.on(Host::Client, || {
            std::thread::scope(|scope| {
                let _stopper = outcome.stopper();
                scope.spawn(connects);
                scope.spawn(connects);
                let passed = |more: u64| {
                    let from = outcome.requests();
                    wait_for("connects go on", || outcome.requests() >= from + more);
                };
                passed(200);
                // One refuses, one says nothing.
                servers[0].kill();
                passed(200);
                let family = if v6 { "ip6" } else { "ip" };
                net.exec(Host::Servers, "nft add table inet silent");
                net.exec(
                    Host::Servers,
                    "nft add chain inet silent in { type filter hook input priority 0 ; }",
                );
                let ip = servers[1].ip();
                net.exec(
                    Host::Servers,
                    &format!("nft add rule inet silent in {family} daddr {ip} drop"),
                );
                passed(200);
            });
        });
        assert_eq!(outcome.failed(), 0, "of {}", outcome.requests());
        let retries = fairway.service()["retries"].clone();
        assert!(
            retries["refused"].as_u64() > Some(0) && retries["timeout"].as_u64() > Some(0),
            "{retries}"
        );
        net.exec(Host::Servers, "nft delete table inet silent");
        drop(fairway);
    }
}

#[test]
fn backends_of_full_nat_are_told_of_their_clients() {
    let Some(net) = net() else { return };
    for (v6, vip, own) in FAMILIES {
        let servers = servers(&net, 2, v6);
        let told: Vec<SocketAddr> =
            servers.iter().map(|server| SocketAddr::new(server.ip(), TOLD)).collect();
        net.exec(Host::Servers, &format!("ip route replace {own} via {}", gateway(v6)));
        let source = format!("source: {{addresses: [\"{own}\"]}}\nhealthCheck: {{interval: 1h}}\n");
        let header = format!("{source}proxyProtocol: {{send: v2, crc32c: true}}");
        let fairway = Fairway::start(&net, &document("fullNat", vip, &told, &header));
        net.on(Host::Client, || {
            for _ in 0..10 {
                let mut stream = connect(at(vip, 80)).unwrap();
                let client = stream.local_addr().unwrap();
                let port = client.port();
                let want = format!("{}:{port} {vip}", client.ip());
                // The header moves all that follows, in either direction.
                for _ in 0..3 {
                    assert_eq!(http::ask(&mut stream, "/").unwrap(), want);
                }
            }
            assert_eq!(get(at(vip, 80), "/big").unwrap().len(), 64 << 20);
        });
        // Uploads: nothing of them is lost where the header goes in between.
        let backend: SocketAddr = (server_ip(&net, 3, v6), 8080).into();
        let server = Summing::headed(&net, backend);
        fairway.apply(&document("fullNat", vip, &[backend], &header));
        net.on(Host::Client, || (0..5).for_each(|_| upload(at(vip, 80), 2_000_000)));
        drop(server);
        // An option that nobody there knows changes nothing.
        let toa = source.replace("]}", "], toa: true}");
        fairway.apply(&document("fullNat", vip, &addresses(&servers), &toa));
        net.on(Host::Client, || {
            for _ in 0..10 {
                assert_eq!(get(at(vip, 80), "/peer").unwrap(), own);
            }
            assert_eq!(get(at(vip, 80), "/big").unwrap().len(), 64 << 20);
        });
    }
}
