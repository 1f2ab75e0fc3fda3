//! UDP through a real Fairway: real DNS servers, iperf3, floods, reloads.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fairway_tests::{Fairway, Host, Net, Other, SECOND, VIP4, VIP6, wait_for};

/// A real DNS server that answers every A query with its own last byte.
struct Dns {
    addr: SocketAddr,
    server: Option<Other>,
}

impl Dns {
    fn start(net: &Net, n: u8) -> Self {
        let server = Other::dnsmasq(net, n, &[&format!("--address=/#/192.0.2.{n}")]);
        let dns = Self { addr: (net.server_address(n), 53).into(), server: Some(server) };
        net.on(Host::Servers, || {
            wait_for("dnsmasq answers", || ask(&socket(dns.addr), 1).is_some());
        });
        dns
    }

    fn kill(&mut self) {
        self.server = None;
    }
}

/// A client's socket that hears `addr` alone.
fn socket(addr: SocketAddr) -> UdpSocket {
    let any = if addr.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).unwrap();
    socket.connect(addr).unwrap();
    socket.set_read_timeout(Some(SECOND / 2)).unwrap();
    socket
}

/// Asks for the address of `a.example`; the last byte of the answer.
fn ask(socket: &UdpSocket, id: u16) -> Option<u8> {
    let mut query = id.to_be_bytes().to_vec();
    query.extend_from_slice(b"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00");
    query.extend_from_slice(b"\x01a\x07example\x00\x00\x01\x00\x01");
    socket.send(&query).ok()?;
    let mut answer = [0; 512];
    loop {
        match socket.recv(&mut answer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return None,
            Ok(n) if answer[..2] == id.to_be_bytes() => return Some(answer[n - 1]),
            Ok(_) => {}
        }
    }
}

fn document(backends: &[&Dns], fields: &str) -> String {
    let backends: Vec<String> = backends.iter().map(|dns| dns.addr.ip().to_string()).collect();
    format!(
        "services:\n  - name: dns\n    addresses: [{VIP4}, \"{VIP6}\"]\n    ports: [{{port: 53, \
         protocol: UDP}}]\n    scheduler: roundRobin\n    backends: [{}]\n{fields}",
        backends.join(", ")
    )
}

const VIP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(VIP4), 53);

/// Who answers `count` clients; each asks up to twice.
fn shares(net: &Net, vip: SocketAddr, count: u16) -> BTreeMap<u8, u32> {
    net.on(Host::Client, || {
        // Neighbours on a new link may take a second to find each other.
        wait_for("the VIP answers", || ask(&socket(vip), 0).is_some());
        let mut shares = BTreeMap::new();
        for id in 0..count {
            let socket = socket(vip);
            let answer = ask(&socket, id).or_else(|| ask(&socket, id));
            let answer = answer.unwrap_or_else(|| panic!("no answer from {vip} to client {id}"));
            *shares.entry(answer).or_default() += 1;
        }
        shares
    })
}

#[test]
fn dns_is_balanced_and_a_killed_server_costs_one_try() {
    let Some(net) = Net::new() else { return };
    let mut servers = [Dns::start(&net, 1), Dns::start(&net, 2)];
    let fields = "    udp: {responses: 1}\n    ejection: {failures: 2, baseTime: 60s}\n";
    let fairway = Fairway::start(&net, &document(&[&servers[0], &servers[1]], fields));
    for vip in [VIP, SocketAddr::new(VIP6.into(), 53)] {
        let shares = shares(&net, vip, 40);
        assert!(shares[&1] >= 16 && shares[&2] >= 16, "{vip}: {shares:?}");
    }
    wait_for("sessions end with their answers", || fairway.count("active") == 0);
    assert!(fairway.count("ends/answered") >= 80);
    assert!(fairway.count("sentDatagrams") >= 80, "every reply is counted");
    servers[0].kill();
    assert_eq!(shares(&net, VIP, 40), BTreeMap::from([(2, 40)]));
    assert_eq!(fairway.state_of("10.78.0.11:53").unwrap(), "ejected");
    assert!(fairway.metrics(&net).contains("fairway_service_sent_datagrams_total"));
}

#[test]
fn a_session_moves_when_its_backend_drains_or_goes() {
    let Some(net) = Net::new() else { return };
    let servers = [Dns::start(&net, 1), Dns::start(&net, 2), Dns::start(&net, 3)];
    let all = [&servers[0], &servers[1], &servers[2]];
    let fairway = Fairway::start(&net, &document(&all, "    udp: {idleTimeout: 10m}\n"));
    net.on(Host::Client, || {
        let socket = socket(VIP);
        let first = ask(&socket, 1).unwrap();
        assert_eq!(ask(&socket, 2), Some(first), "a client keeps its backend");
        assert!(fairway.cli(&["drain", &format!("10.78.0.1{first}")]).status.success());
        let second = ask(&socket, 3).unwrap();
        assert_ne!(second, first, "drained");
        let last = (1..=3u8).find(|n| ![first, second].contains(n)).unwrap();
        let last = [all[usize::from(last) - 1]];
        fairway.apply(&document(&last, "    udp: {idleTimeout: 10m}\n"));
        let third = ask(&socket, 4).unwrap();
        assert_ne!(third, second, "removed");
    });
    assert_eq!(fairway.count("connections"), 1, "one session all the while");
}

#[test]
fn a_client_stays_on_its_backend_with_affinity() {
    let Some(net) = Net::new() else { return };
    let servers = [Dns::start(&net, 1), Dns::start(&net, 2)];
    let fields = "    sessionAffinity: ClientIP\n    udp: {responses: 1}\n";
    let _fairway = Fairway::start(&net, &document(&[&servers[0], &servers[1]], fields));
    for vip in [VIP, SocketAddr::new(VIP6.into(), 53)] {
        assert_eq!(shares(&net, vip, 20).len(), 1, "{vip}: under round robin");
    }
}

#[test]
fn transparent_listening_carries_datagrams() {
    let Some(net) = Net::new() else { return };
    let server = Dns::start(&net, 1);
    let text = document(&[&server], "    healthCheck: {type: none}\n");
    let text = text.replace("port: 53,", "port: 50-60, targetPort: 53,");
    // Nobody has these addresses: packets to them only pass through.
    let text = text.replace(&VIP4.to_string(), "10.99.0.1").replace(&VIP6.to_string(), "fd99::1");
    let _fairway = Fairway::start(&net, &format!("dataplane: {{listen: tproxy}}\n{text}"));
    for vip in ["10.99.0.1:53", "10.99.0.1:60", "[fd99::1]:50"] {
        // The client's socket hears nobody but the address that it dialled.
        assert_eq!(shares(&net, vip.parse().unwrap(), 5), BTreeMap::from([(1, 5)]), "{vip}");
    }
}

#[test]
fn a_flood_of_one_service_leaves_the_others_their_sessions() {
    let Some(net) = Net::new() else { return };
    let server = Dns::start(&net, 1);
    let quiet = document(&[&server], "    udp: {idleTimeout: 10m}\n");
    let flooded = "  - name: flooded\n    addresses: [10.77.0.100]\n    ports: [{port: 5353, protocol: \
                   UDP, targetPort: 53}]\n    backends: [10.78.0.11]\n    udp: {idleTimeout: 10m}\n";
    let text = format!("dataplane: {{maxUdpSessions: 400, workers: 1}}\n{quiet}{flooded}");
    let fairway = Fairway::start(&net, &text);
    net.on(Host::Client, || {
        let sockets: Vec<UdpSocket> = (0..20).map(|_| socket(VIP)).collect();
        for (id, socket) in sockets.iter().enumerate() {
            assert!(ask(socket, id as u16).is_some());
        }
        let flood: SocketAddr = (VIP4, 5353).into();
        for port in 10_000..13_000 {
            // A source port each, as a spoofer would.
            let socket = UdpSocket::bind(("0.0.0.0", port)).unwrap();
            socket.send_to(b"not a query", flood).unwrap();
        }
        // A full socket may have dropped some.
        wait_for("the flood has come in", || {
            fairway.services()[1]["connections"].as_u64().unwrap() >= 2000
        });
        let start = Instant::now();
        for (id, socket) in sockets.iter().enumerate() {
            assert!(ask(socket, 100 + id as u16).is_some());
        }
        assert!(start.elapsed() < Duration::from_secs(5));
    });
    let services = fairway.services();
    assert_eq!(services[0]["connections"], 20, "no session of theirs was given up");
    let status = fairway.status().unwrap();
    assert!(status["udpSessions"].as_u64().unwrap() <= 400, "{status}");
    assert!(services[1]["ends"]["evicted"].as_u64().unwrap() >= 1600, "{services}");
}

#[test]
fn iperf3_measures_a_stream_of_datagrams() {
    let Some(net) = Net::new() else { return };
    let ip = net.server_address(1);
    let mut server = Command::new("ip")
        .args(["netns", "exec", &net.name(Host::Servers), "iperf3", "--server", "--bind"])
        .arg(ip.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let text = format!(
        "services:\n  - name: iperf\n    addresses: [{VIP4}]\n    ports:\n      - {{name: control, \
         port: 5201}}\n      - {{name: data, port: 5201, protocol: UDP}}\n    backends: [{ip}]\n"
    );
    let fairway = Fairway::start(&net, &text);
    let client = net.name(Host::Client);
    let vip = VIP4.to_string();
    let output = Command::new("ip")
        .args(["netns", "exec", &client, "iperf3", "--client", &vip, "--udp", "--json"])
        .args(["--bitrate", "200M", "--length", "1200", "--time", "2"])
        .output()
        .unwrap();
    server.kill().unwrap();
    server.wait().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    let sum = &report["end"]["sum"];
    let (packets, lost) = (sum["packets"].as_f64().unwrap(), sum["lost_packets"].as_f64().unwrap());
    assert!(packets > 20_000.0 && lost / packets < 0.05, "{packets} packets, {lost} lost");
    let data = fairway.services()[1].clone();
    assert!(data["receivedDatagrams"].as_f64().unwrap() >= packets * 0.95, "{data}");
}
