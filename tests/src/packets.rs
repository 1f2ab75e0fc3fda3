//! Packet services between the hosts: their documents, and who speaks through them.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use crate::http::connect;
use crate::{Fairway, Host, Net, Nginx, SECOND, run};

/// Where packet services are: no address of any machine.
pub const VIP4: &str = "10.99.0.1";
pub const VIP6: &str = "fd99::1";

/// The driver of DPDK by which packets come, where that is wanted: `af_packet`, `af_xdp` or `tap`.
pub fn driver() -> Option<String> {
    std::env::var("FAIRWAY_TESTS_DPDK").ok()
}

/// Servers answer through the load balancer.
pub fn net() -> Option<Net> {
    let net = Net::new()?;
    if let Some(driver) = driver() {
        give_to_dpdk(&net, &driver);
    }
    net.exec(Host::Servers, "ip route add default via 10.78.0.1");
    net.exec(Host::Servers, "ip -6 route add default via fd78::1");
    if driver().is_some() {
        return Some(net);
    }
    // The first solicitation on a new link is lost and asked again a second later.
    for (host, router) in [(Host::Client, "fd77::1"), (Host::Servers, "fd78::1")] {
        net.on(host, || TcpStream::connect(at(router, 9)).unwrap_err());
    }
    Some(net)
}

/// The load balancer's ends of both links, and its addresses there.
const LINKS: [(&str, Host, [&str; 2]); 2] = [
    ("clients", Host::Client, ["10.77.0.1/24", "fd77::1/64"]),
    ("servers", Host::Servers, ["10.78.0.1/24", "fd78::1/64"]),
];

/// The links are cards that DPDK has: the kernel is kept from them, and they have no addresses.
fn give_to_dpdk(net: &Net, driver: &str) {
    for (name, host, _) in LINKS {
        let card = format!("card-{name}");
        for command in [
            format!("ip link set {name} down"),
            format!("ip link set {name} name {card}"),
            format!("ip address flush dev {card}"),
            format!("sysctl -qw net.ipv6.conf.{card}.disable_ipv6=1"),
            // Checksums that a card would fill in later are none here.
            format!("ethtool -K {card} tx off"),
            format!("ip link set {card} up"),
        ] {
            net.exec(Host::Lb, &command);
        }
        net.exec(host, "ethtool -K lb tx off");
        if driver == "af_packet" {
            net.exec(Host::Lb, &format!("nft add table netdev {card}"));
            net.exec(
                Host::Lb,
                &format!(
                    "nft add chain netdev {card} in {{ type filter hook ingress device {card} \
                     priority 0 ; policy drop ; }}"
                ),
            );
        }
    }
}

/// Gives the kernel's ends of cards their addresses, as far as they are there.
pub fn address_kernel_ends(namespace: &str) {
    for (name, _, [v4, v6]) in LINKS {
        for words in [
            format!("address replace {v4} dev {name}"),
            format!("-6 address replace {v6} dev {name} nodad"),
        ] {
            let words = format!("netns exec {namespace} ip {words}");
            let mut command = std::process::Command::new("ip");
            command.args(words.split(' ')).output().unwrap();
        }
    }
}

/// How packets come, in the document's words.
fn packet_path() -> String {
    let Some(driver) = driver() else { return "interfaces: [clients, servers]".into() };
    let ports: Vec<String> = LINKS
        .iter()
        .map(|(name, ..)| {
            let more = match driver.as_str() {
                "af_packet" => {
                    ",qpairs=2,framesz=2048,blocksz=1048576,framecnt=4096,qdisc_bypass=1"
                }
                _ => "",
            };
            format!(
                "{{device: \"net_{driver}_{name},iface=card-{name}{more}\", interface: {name}}}"
            )
        })
        .collect();
    format!("driver: dpdk, ports: [{}], dpdk: {{noHuge: true, memory: 128MiB}}", ports.join(", "))
}

/// A service at `vip`, port 80, with further `fields`.
pub fn document(mode: &str, vip: &str, backends: &[SocketAddr], fields: &str) -> String {
    let list: Vec<String> = backends.iter().map(|at| format!("\"{at}\"")).collect();
    let mut text = format!(
        "dataplane: {{workers: {}, pinCpus: false, packet: {{{}}}}}\n\
         services:\n  - name: web\n    mode: {mode}\n    addresses: [\"{vip}\"]\n    \
         backends: [{}]\n",
        // A socket of XDP is for one queue, and a link has one.
        if driver().is_some_and(|driver| driver == "af_xdp") { 1 } else { 2 },
        packet_path(),
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

pub fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

/// Address `n` of the servers in a family, made if need be.
pub fn server_ip(net: &Net, n: u8, v6: bool) -> IpAddr {
    let v4 = net.server_address(n);
    if !v6 {
        return v4;
    }
    let ip = format!("fd78::1{n}");
    net.exec(Host::Servers, &format!("ip -6 address replace {ip}/64 dev lb nodad"));
    ip.parse().unwrap()
}

pub fn servers(net: &Net, count: u8, v6: bool) -> Vec<Nginx> {
    let start = |n| Nginx::start_at(net, (server_ip(net, n, v6), 8080).into(), &format!("s{n}"));
    (1..=count).map(start).collect()
}

pub fn addresses(servers: &[Nginx]) -> Vec<SocketAddr> {
    servers.iter().map(|server| server.addr).collect()
}

/// Both families of VIPs, and the addresses that `fullNat` comes from.
pub const FAMILIES: [(bool, &str, &str); 2] =
    [(false, VIP4, "10.99.1.1"), (true, VIP6, "fd99:1::1")];

pub fn client(v6: bool) -> IpAddr {
    if v6 { "fd77::2" } else { "10.77.0.2" }.parse().unwrap()
}

pub fn gateway(v6: bool) -> &'static str {
    if v6 { "fd78::1" } else { "10.78.0.1" }
}

/// Servers answer past the load balancer, by a link of their own to the client; they have the VIPs.
pub fn direct(net: &Net) {
    let (client, servers) = (net.name(Host::Client), net.name(Host::Servers));
    let link = format!("link add direct netns {client} type veth peer name direct netns {servers}");
    run("ip", &link.split(' ').collect::<Vec<_>>());
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

/// Super-packets that have left whole by an interface so far. DPDK's ports have none.
pub fn whole_frames(fairway: &Fairway, net: &Net, interface: &str) -> u64 {
    let metrics = fairway.metrics(net);
    let of = format!("interface=\"{interface}\"}}");
    let lines = metrics.lines().filter_map(|line| {
        let (labels, value) = line.split_once("} ")?;
        let is_it = labels.starts_with("fairway_port_whole_frames_total{");
        (is_it && line.contains(&of)).then(|| value.parse::<u64>().unwrap())
    });
    lines.sum()
}

/// Has the load balancer's interfaces fill in checksums and cut super-packets, or the kernel in their place:
/// then whoever receives looks at each sum.
pub fn set_offloads(net: &Net, on: bool) {
    for (name, ..) in LINKS.iter().filter(|_| driver().is_none()) {
        net.exec(Host::Lb, &format!("ethtool -K {name} tx {}", if on { "on" } else { "off" }));
    }
}

/// Sends `count` bytes and expects their sum back: long enough for path MTU discovery.
pub fn upload(vip: SocketAddr, count: usize) {
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
pub fn summing(net: &Net, addr: SocketAddr) -> Summing {
    Summing::behind(net, addr, |_| true)
}

pub struct Summing {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Summing {
    /// The same behind a header of the PROXY protocol with IPv4 or IPv6 addresses and a checksum.
    pub fn headed(net: &Net, addr: SocketAddr) -> Self {
        Self::behind(net, addr, move |stream| {
            let mut header = vec![0; if addr.is_ipv4() { 16 + 12 + 7 } else { 16 + 36 + 7 }];
            stream.read_exact(&mut header).is_ok() && header.starts_with(b"\r\n\r\n\0\r\nQUIT\n")
        })
    }

    fn behind(
        net: &Net,
        addr: SocketAddr,
        begins: impl Fn(&mut TcpStream) -> bool + Copy + Send + 'static,
    ) -> Self {
        let listener = net.on(Host::Servers, || TcpListener::bind(addr).unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        listener.set_nonblocking(true).unwrap();
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Relaxed) {
                let Ok((mut stream, _)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                };
                stream.set_nonblocking(false).unwrap();
                std::thread::spawn(move || {
                    let mut bytes = Vec::new();
                    if begins(&mut stream) && stream.read_to_end(&mut bytes).is_ok() {
                        let sum: u64 = bytes.iter().map(|byte| u64::from(*byte)).sum();
                        let _ = write!(stream, "{} {sum}", bytes.len());
                    }
                });
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Summing {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

/// Answers datagrams with `name`, until dropped.
pub struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Echo {
    pub fn start(net: &Net, addr: SocketAddr, name: &str) -> Self {
        let socket = net.on(Host::Servers, || UdpSocket::bind(addr).unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, name) = (Arc::clone(&stop), name.to_owned());
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

pub fn client_socket(vip: SocketAddr) -> UdpSocket {
    let any = if vip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).unwrap();
    socket.connect(vip).unwrap();
    socket.set_read_timeout(Some(SECOND / 2)).unwrap();
    socket
}

/// Sends `text` and hears who answers; an error is the kernel's.
pub fn ask(socket: &UdpSocket, text: &[u8]) -> std::io::Result<String> {
    socket.send(text)?;
    let mut buffer = vec![0; 65536];
    let n = socket.recv(&mut buffer)?;
    let answer = String::from_utf8_lossy(&buffer[..n]).into_owned();
    let (name, rest) = answer.split_once(' ').unwrap();
    assert_eq!(rest.as_bytes(), text);
    Ok(name.to_owned())
}
