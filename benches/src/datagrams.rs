//! CPU time per datagram, beside nginx stream and nftables DNAT.

use std::net::{SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use fairway_tests::{Host, Net, VIP4, wait_for};

use crate::rivals::{Rival, softirq};
use crate::{load, spread};

/// Ports of the rivals on the VIP.
pub(crate) const PORTS: [u16; 3] = [91, 93, 94];
/// Clients at a time.
const CLIENTS: usize = 32;

pub(crate) fn run(quick: bool) {
    let Some(net) = Net::new() else { return };
    let (rounds, count) = if quick { (1, 4_000) } else { (4, 60_000) };
    let backends: Vec<SocketAddr> = (1..=2).map(|n| (net.server_address(n), 9000).into()).collect();
    net.on(Host::Servers, || {
        load::to_core_1();
        backends.iter().for_each(|addr| echo(*addr));
    });
    to_core_0(&net);
    dnat(&net, &backends);
    let fairway = Rival::fairway_udp(&net, &backends, PORTS[0]);
    let nginx = Rival::nginx_udp(&net, &backends, PORTS[1]);
    println!(
        "UDP: CPU of the balancer (its threads and the softirqs of its core) a datagram, each answered, \
         {rounds} rounds in turn"
    );
    println!(
        "{:<34} {:<7} {:>20} {:>20} {:>20} {:>18} {:>18}",
        "", "", "Fairway", "nginx stream", "nftables DNAT", "ratio to nginx", "ratio to nftables"
    );
    net.on(Host::Client, || {
        load::to_core_1();
        for port in PORTS {
            let vip = SocketAddr::new(VIP4.into(), port);
            wait_for("the rival answers", || ask(&client(vip), &[0; 64]).is_some());
        }
        let cpu = |rival: usize| match rival {
            0 => fairway.cpu(),
            1 => nginx.cpu(),
            _ => Duration::ZERO,
        };
        for (name, size, burst) in [
            ("64 B, one by one", 64, 1),
            ("1200 B, one by one", 1200, 1),
            ("1200 B, bursts of 16", 1200, 16),
        ] {
            let mut costs: [Vec<f64>; 3] = Default::default();
            for _ in 0..rounds {
                for (rival, costs) in costs.iter_mut().enumerate() {
                    let vip = SocketAddr::new(VIP4.into(), PORTS[rival]);
                    let before = cpu(rival) + softirq();
                    let answered = exchange(vip, size, burst, count);
                    let spent = (cpu(rival) + softirq()).saturating_sub(before);
                    // There and back: two datagrams.
                    costs.push(spent.as_secs_f64() * 1e6 / (2 * answered.max(1)) as f64);
                }
            }
            let cell = |costs: &[f64]| {
                let (median, least, most) = spread(costs);
                format!("{median:.2} ({least:.2}-{most:.2})")
            };
            let ratio = |rival: &[f64]| {
                let ratios: Vec<f64> =
                    rival.iter().zip(&costs[0]).map(|(r, own)| r / own).collect();
                cell(&ratios)
            };
            println!(
                "{name:<34} {:<7} {:>20} {:>20} {:>20} {:>18} {:>18}",
                "us",
                cell(&costs[0]),
                cell(&costs[1]),
                cell(&costs[2]),
                ratio(&costs[1]),
                ratio(&costs[2]),
            );
        }
    });
    println!();
}

/// Has what the balancer's host receives processed on its core, whoever sent it: otherwise forwarding
/// in the kernel would cost the sender.
pub(crate) fn to_core_0(net: &Net) {
    for device in ["clients", "servers"] {
        let path = format!("/sys/class/net/{device}/queues/rx-0/rps_cpus");
        let echo = format!("echo 1 > {path}");
        let name = net.name(Host::Lb);
        let done = Command::new("ip").args(["netns", "exec", &name, "sh", "-c", &echo]).status();
        assert!(done.is_ok_and(|status| status.success()), "{path}");
    }
}

pub(crate) fn echo(addr: SocketAddr) {
    let socket = UdpSocket::bind(addr).unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..n], from);
        }
    });
}

pub(crate) fn client(vip: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect(vip).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    socket
}

pub(crate) fn ask(socket: &UdpSocket, text: &[u8]) -> Option<usize> {
    socket.send(text).ok()?;
    socket.recv(&mut [0; 2048]).ok()
}

/// `count` datagrams of `size` bytes over some clients, `burst` at a time; how many came back.
pub(crate) fn exchange(vip: SocketAddr, size: usize, burst: usize, count: usize) -> usize {
    let each = count / CLIENTS;
    let talk = || {
        let socket = client(vip);
        let (text, mut buffer) = (vec![7; size], [0; 2048]);
        let (mut answered, end) = (0, Instant::now() + Duration::from_secs(30));
        for _ in 0..each / burst {
            let sent = (0..burst).filter(|_| socket.send(&text).is_ok()).count();
            answered += (0..sent).take_while(|_| socket.recv(&mut buffer).is_ok()).count();
            if Instant::now() > end {
                break;
            }
        }
        answered
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(talk)).collect();
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    })
}

/// The same balancing in the kernel: a random backend, replies through the balancer.
pub(crate) fn dnat(net: &Net, backends: &[SocketAddr]) {
    use std::io::Write;
    net.exec(Host::Lb, "sysctl -qw net.ipv4.ip_forward=1");
    let targets: Vec<String> = backends
        .iter()
        .enumerate()
        .map(|(n, addr)| format!("{n} : {} . {}", addr.ip(), addr.port()))
        .collect();
    let rules = format!(
        "table ip lb {{
  chain pre {{
    type nat hook prerouting priority dstnat;
    ip daddr {VIP4} udp dport {} dnat ip addr . port to numgen random mod {} map {{ {} }}
  }}
  chain post {{
    type nat hook postrouting priority srcnat;
    oifname \"servers\" masquerade
  }}
}}
",
        PORTS[2],
        backends.len(),
        targets.join(", ")
    );
    let mut child = Command::new("ip")
        .args(["netns", "exec", &net.name(Host::Lb), "nft", "-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "nft");
}
