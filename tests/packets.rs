//! Packets through a real Fairway on real interfaces: kernel clients, kernel servers.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use fairway_tests::http::{self, Outcome, connect, get};
use fairway_tests::{Fairway, Host, Net, Nginx, Other, SECOND, wait_for};

/// Where packet services are: no address of any machine.
const VIP4: &str = "10.99.0.1";
const VIP6: &str = "fd99::1";

/// Servers answer through the load balancer.
fn net() -> Option<Net> {
    let net = Net::new()?;
    net.exec(Host::Servers, "ip route add default via 10.78.0.1");
    net.exec(Host::Servers, "ip -6 route add default via fd78::1");
    // The first solicitation on a new link is lost and asked again a second later.
    for (host, router) in [(Host::Client, "fd77::1"), (Host::Servers, "fd78::1")] {
        net.on(host, || TcpStream::connect(at(router, 9)).unwrap_err());
    }
    Some(net)
}

/// A service at `vip`, port 80, with further `fields`.
fn document(mode: &str, vip: &str, backends: &[SocketAddr], fields: &str) -> String {
    let list: Vec<String> = backends.iter().map(|at| format!("\"{at}\"")).collect();
    let mut text = format!(
        "dataplane: {{workers: 2, pinCpus: false, packet: {{interfaces: [clients, servers]}}}}\n\
         services:\n  - name: web\n    mode: {mode}\n    addresses: [\"{vip}\"]\n    \
         backends: [{}]\n",
        list.join(", ")
    );
    if !fields.contains("ports:") {
        text += "    ports: [{port: 80}]\n";
    }
    if !fields.contains("healthCheck") {
        text += "    healthCheck: {interval: 200ms, timeout: 150ms, fall: 2, rise: 1}\n";
    }
    for field in fields.lines() {
        text += &format!("    {field}\n");
    }
    text
}

fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

/// Address `n` of the servers in a family, made if need be.
fn server_ip(net: &Net, n: u8, v6: bool) -> IpAddr {
    let v4 = net.server_address(n);
    if !v6 {
        return v4;
    }
    let ip = format!("fd78::1{n}");
    net.exec(Host::Servers, &format!("ip -6 address replace {ip}/64 dev lb nodad"));
    ip.parse().unwrap()
}

fn servers(net: &Net, count: u8, v6: bool) -> Vec<Nginx> {
    let start = |n| Nginx::start_at(net, (server_ip(net, n, v6), 8080).into(), &format!("s{n}"));
    (1..=count).map(start).collect()
}

fn addresses(servers: &[Nginx]) -> Vec<SocketAddr> {
    servers.iter().map(|server| server.addr).collect()
}

/// Both families of VIPs, and the addresses that `fullNat` comes from.
const FAMILIES: [(bool, &str, &str); 2] = [(false, VIP4, "10.99.1.1"), (true, VIP6, "fd99:1::1")];

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
        assert_eq!(net.exec(Host::Lb, "nft list tables"), "", "nothing is left behind");
    }
}

fn client(v6: bool) -> IpAddr {
    if v6 { "fd77::2" } else { "10.77.0.2" }.parse().unwrap()
}

fn gateway(v6: bool) -> &'static str {
    if v6 { "fd78::1" } else { "10.78.0.1" }
}

#[test]
fn data_arrives_whole_in_both_directions() {
    let Some(net) = net() else { return };
    let data: Vec<u8> =
        (0..4_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for (v6, vip, _) in FAMILIES {
        let server: SocketAddr = (server_ip(&net, 1, v6), 8080).into();
        let listener = net.on(Host::Servers, || TcpListener::bind(server).unwrap());
        let _fairway =
            Fairway::start(&net, &document("nat", vip, &[server], "healthCheck: {interval: 1h}"));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let echoed = listener.incoming().map(Result::unwrap).any(|mut stream| {
                    let mut bytes = Vec::new();
                    stream.read_to_end(&mut bytes).is_ok() && !bytes.is_empty() && {
                        stream.write_all(&bytes).unwrap();
                        true
                    }
                });
                assert!(echoed);
            });
            let back = net.on(Host::Client, || {
                let mut stream = connect(at(vip, 80)).unwrap();
                stream.write_all(&data).unwrap();
                stream.shutdown(std::net::Shutdown::Write).unwrap();
                let mut back = Vec::new();
                stream.read_to_end(&mut back).unwrap();
                back
            });
            assert!(back == data, "{} of {} bytes", back.len(), data.len());
        });
    }
}

/// Servers answer past the load balancer, by a link of their own to the client; they have the VIPs.
fn direct(net: &Net) {
    let (client, servers) = (net.name(Host::Client), net.name(Host::Servers));
    let link = format!("link add direct netns {client} type veth peer name direct netns {servers}");
    fairway_tests::run("ip", &link.split(' ').collect::<Vec<_>>());
    for (host, v4, v6, to4, to6) in [
        (Host::Client, "10.79.0.2/24", "fd79::2/64", None, None),
        (Host::Servers, "10.79.0.1/24", "fd79::1/64", Some("10.79.0.2"), Some("fd79::2")),
    ] {
        net.exec(host, &format!("ip address add {v4} dev direct"));
        net.exec(host, &format!("ip -6 address add {v6} dev direct nodad"));
        net.exec(host, "ip link set direct up");
        if let (Some(to4), Some(to6)) = (to4, to6) {
            net.exec(host, &format!("ip route replace 10.77.0.0/24 via {to4}"));
            net.exec(host, &format!("ip -6 route replace fd77::/64 via {to6}"));
        }
    }
    net.exec(Host::Servers, &format!("ip address add {VIP4}/32 dev lo"));
    net.exec(Host::Servers, &format!("ip -6 address add {VIP6}/128 dev lo nodad"));
}

/// Sends `count` bytes and expects their sum back: long enough for path MTU discovery.
fn upload(vip: SocketAddr, count: usize) {
    let mut stream = connect(vip).unwrap();
    let data: Vec<u8> = (0..count).map(|n| (n / 7) as u8).collect();
    stream.write_all(&data).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let sum: u64 = data.iter().map(|byte| u64::from(*byte)).sum();
    assert_eq!(answer, format!("{count} {sum}"));
}

/// Answers each connection with the number and sum of the bytes that it brought, until dropped.
fn summing(net: &Net, addr: SocketAddr) -> Summing {
    let listener = net.on(Host::Servers, || TcpListener::bind(addr).unwrap());
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    listener.set_nonblocking(true).unwrap();
    let stopped = std::sync::Arc::clone(&stop);
    let thread = std::thread::spawn(move || {
        while !stopped.load(Relaxed) {
            let Ok((mut stream, _)) = listener.accept() else {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            };
            stream.set_nonblocking(false).unwrap();
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                if stream.read_to_end(&mut bytes).is_ok() {
                    let sum: u64 = bytes.iter().map(|byte| u64::from(*byte)).sum();
                    let _ = write!(stream, "{} {sum}", bytes.len());
                }
            });
        }
    });
    Summing { stop, thread: Some(thread) }
}

struct Summing {
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Summing {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
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

/// Answers datagrams with `name`, until dropped.
struct Echo {
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Echo {
    fn start(net: &Net, addr: SocketAddr, name: &str) -> Self {
        let socket = net.on(Host::Servers, || UdpSocket::bind(addr).unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (stopped, name) = (std::sync::Arc::clone(&stop), name.to_owned());
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 65536];
            while !stopped.load(Relaxed) {
                let Ok((n, from)) = socket.recv_from(&mut buffer) else { continue };
                let answer = [name.as_bytes(), b" ", &buffer[..n]].concat();
                let _ = socket.send_to(&answer[..answer.len().min(65000)], from);
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

fn client_socket(vip: SocketAddr) -> UdpSocket {
    let any = if vip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).unwrap();
    socket.connect(vip).unwrap();
    socket.set_read_timeout(Some(SECOND / 2)).unwrap();
    socket
}

/// Sends `text` and hears who answers; an error is the kernel's.
fn ask(socket: &UdpSocket, text: &[u8]) -> std::io::Result<String> {
    socket.send(text)?;
    let mut buffer = vec![0; 65536];
    let n = socket.recv(&mut buffer)?;
    let answer = String::from_utf8_lossy(&buffer[..n]).into_owned();
    let (name, rest) = answer.split_once(' ').unwrap();
    assert_eq!(rest.as_bytes(), text);
    Ok(name.to_owned())
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
                 healthCheck: {{type: udp, send: hi, interval: 100ms, timeout: 80ms, fall: 1, rise: 1}}"
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
                for (socket, name) in sockets.iter().zip(&first) {
                    assert_eq!(ask(socket, &large).unwrap(), *name, "{mode} {vip}");
                }
                echoes[0].1 = None;
                wait_for("the dead one is out", || {
                    fairway.state_of(&backends[0].to_string()).unwrap() == "down"
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
            tracer.send(b"far").unwrap();
            let hop: IpAddr = if v6 { "fd77::1" } else { "10.77.0.1" }.parse().unwrap();
            let kind = if v6 { 3 } else { 11 };
            let end = Instant::now() + 5 * SECOND;
            loop {
                assert!(Instant::now() < end, "no word of the first hop");
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
    net.exec(Host::Lb, "ip link set servers mtu 1400");
    for (v6, vip, _) in FAMILIES {
        let backend: SocketAddr = (server_ip(&net, 1, v6), 8080).into();
        let _server = summing(&net, backend);
        let document = document("nat", vip, &[backend], "healthCheck: {interval: 1h}");
        let fairway = Fairway::start(&net, &document);
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
                outcome.stop.store(true, Relaxed);
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

    let ruleset = net.exec(Host::Lb, "nft list table netdev fairway");
    assert!(ruleset.contains(VIP4), "{ruleset}");
    // Whoever takes the fence away, it comes back.
    net.exec(Host::Lb, "nft delete table netdev fairway");
    wait_for("the fence stands again", || net.exec(Host::Lb, "nft list tables").contains("netdev"));
    // And an interface that goes and comes back carries packets again.
    net.exec(Host::Lb, "ip link set servers down");
    wait_for("it is told", || {
        fairway.status().unwrap()["troubles"].to_string().contains("interface `servers` is down")
    });
    net.exec(Host::Lb, "ip link set servers up");
    wait_for("it is up", || fairway.status().unwrap()["troubles"].as_array().unwrap().is_empty());
    net.on(Host::Client, || wait_for("packets pass", || get(vip, "/").is_ok()));
    // Open connections may go on after SIGTERM, and new ones are not let in.
    let mut open = net.on(Host::Client, || connect(vip).unwrap());
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
    let all = capture(&["--port", "8080", "--count", "12"]);
    assert_eq!(all[..4], [0x0a, 0x0d, 0x0d, 0x0a]);
    assert!(has(&all, "clients") && has(&all, "sent by interface 1"), "both directions");
    assert!(has(&all, "GET / HTTP/1.1") || has(&all, "HTTP/1.1 200"));
    let dropped = capture(&["--dropped", "--net", "10.77.0.77", "--count", "3"]);
    assert!(has(&dropped, "dropped: denied") && !has(&dropped, "sent by"));
    let none = fairway.cli(&["capture", "-w", &path, "--net", "nonsense"]);
    assert_eq!(none.status.code(), Some(2), "{}", String::from_utf8_lossy(&none.stderr));
}
