//! CPU time per packet of the raw port, beside bare bouncers and nftables DNAT.
//!
//! One at a time: a packet socket of one costs the others.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use fairway_tests::{Host, Net, wait_for};
use fairway_uring::bounce::{Side, by_messages, by_rings};

use crate::core::{OTHERS, measured};
use crate::load::{self, Burst, Datagrams, echo};
use crate::proxy::Setting;
use crate::rivals::{Backends, Rival};
use crate::spread;

/// Where the rivals are dialled. Bouncers change no addresses: the server has theirs.
const BOUNCED: &str = "10.99.0.1";
const FAIRWAY: &str = "10.99.0.2";
const PORT: u16 = 9000;

/// Who carries the packets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Fairway,
    Rings,
    Messages,
    Nftables,
}

const ALL: [(Who, &str); 4] = [
    (Who::Fairway, "Fairway nat"),
    (Who::Rings, "bouncer, rings"),
    (Who::Messages, "bouncer, recvmmsg"),
    (Who::Nftables, "nftables DNAT"),
];

pub(crate) fn run(quick: bool) {
    let Some(net) = Net::new() else { return };
    let (rounds, length) = if quick { (1, 300) } else { (5, 2000) };
    let length = Duration::from_millis(length);
    let server: SocketAddr = (net.server_address(1), PORT).into();
    net.exec(Host::Servers, "ip route add default via 10.78.0.1");
    net.exec(Host::Servers, &format!("ip address add {BOUNCED}/32 dev lo"));
    net.on(Host::Servers, || {
        load::to_core(OTHERS);
        echo(server, None);
        echo(SocketAddr::new(BOUNCED.parse().unwrap(), PORT), None);
    });
    // Otherwise forwarding in the kernel would cost the sender.
    Setting::Rps.set(&net);
    println!(
        "The raw port: time of the balancer's core a packet, each answered, 64 bytes, 32 clients, {rounds} \
         rounds in turn"
    );
    print!("{:<24} {:<4}", "", "");
    ALL.iter().for_each(|(_, name)| print!(" {name:>22}"));
    println!(" {:>20} {:>20} {:>20}", "to rings", "to recvmmsg", "to nftables");
    for (name, burst) in [("one by one", 1), ("bursts of 16", 16)] {
        let mut costs: [Vec<f64>; 4] = Default::default();
        for _ in 0..rounds {
            for (rival, costs) in ALL.iter().zip(&mut costs) {
                costs.push(measure(&net, *rival, server, burst, length));
            }
        }
        let cell = |costs: &[f64]| {
            let (median, least, most) = spread(costs);
            format!("{median:.2} ({least:.2}-{most:.2})")
        };
        let ratio = |rival: usize| {
            let pairs = costs[0].iter().zip(&costs[rival]);
            cell(&pairs.map(|(own, rival)| own / rival).collect::<Vec<_>>())
        };
        print!("{name:<24} {:<4}", "us");
        costs.iter().for_each(|costs| print!(" {:>22}", cell(costs)));
        println!(" {:>20} {:>20} {:>20}", ratio(1), ratio(2), ratio(3));
    }
    println!();
}

/// Microseconds of CPU a packet.
fn measure(
    net: &Net,
    (who, name): (Who, &str),
    server: SocketAddr,
    burst: usize,
    length: Duration,
) -> f64 {
    let forwards = u8::from(who == Who::Nftables);
    net.exec(Host::Lb, &format!("sysctl -qw net.ipv4.ip_forward={forwards}"));
    let mut vip = SocketAddr::new(BOUNCED.parse().unwrap(), PORT);
    let rival = match who {
        Who::Fairway => {
            vip = SocketAddr::new(FAIRWAY.parse().unwrap(), PORT);
            Rival::fairway_nat(net, vip, server)
        }
        Who::Rings => bouncer(net, "rings"),
        Who::Messages => bouncer(net, "messages"),
        Who::Nftables => {
            let backends = Backends { tcp: vec![], headed: vec![], udp: vec![server] };
            let kernel = Rival::nftables(net, &backends);
            vip = kernel.udp.unwrap();
            kernel
        }
    };
    // What the packet sockets have seen the kernel need not look at.
    if matches!(who, Who::Rings | Who::Messages) {
        fence(net);
    }
    let work = || {
        load::to_core(OTHERS);
        let open =
            |clients, burst| Datagrams::open(vip, clients, 64, Burst::Single(burst)).unwrap();
        wait_for(name, || open(1, 1).verify().is_ok());
        let mut clients = open(32, burst);
        clients.run(length / 8).unwrap();
        let ours: Vec<u32> = rival.process().into_iter().collect();
        let (cost, outcome) = measured(&ours, || clients.run(length));
        // There and back: two packets.
        cost.busy.as_secs_f64() * 1e6 / (2 * outcome.unwrap().0.max(1)) as f64
    };
    let spent = rival.active(net, || net.on(Host::Client, work));
    drop(rival);
    // What fences of the others were there.
    net.exec(Host::Lb, "nft flush ruleset");
    spent
}

fn fence(net: &Net) {
    net.exec(Host::Lb, "nft add table netdev bounce");
    for device in ["clients", "servers"] {
        let hook = format!("{{ type filter hook ingress device {device} priority 0 ; }}");
        net.exec(Host::Lb, &format!("nft add chain netdev bounce {device} {hook}"));
        net.exec(Host::Lb, &format!("nft add rule netdev bounce {device} ip protocol udp drop"));
    }
}

/// This program again, as a bouncer between the two links.
fn bouncer(net: &Net, how: &str) -> Rival {
    let station = |host: Host, device: &str| {
        net.exec(host, &format!("cat /sys/class/net/{device}/address")).trim().to_owned()
    };
    let text = format!(
        "{how}\nclients {} {}\nservers {} {}\n",
        station(Host::Lb, "clients"),
        station(Host::Client, "lb"),
        station(Host::Lb, "servers"),
        station(Host::Servers, "lb"),
    );
    Rival::bouncer(net, &text)
}

/// Bounces as the file at `path` says, for as long as the process lives.
pub(crate) fn bounce(path: &str) -> ! {
    let text = fs::read_to_string(path).unwrap();
    let mut lines = text.lines();
    let how = lines.next().unwrap();
    let mac = |word: &str| -> [u8; 6] {
        let bytes: Vec<u8> =
            word.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        bytes.try_into().unwrap()
    };
    let sides: Vec<Side> = lines
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            Side { interface: words[0].into(), own: mac(words[1]), peer: mac(words[2]) }
        })
        .collect();
    let sides: [Side; 2] = sides.try_into().unwrap();
    match how {
        "rings" => by_rings(&sides).unwrap(),
        _ => by_messages(&sides).unwrap(),
    }
    unreachable!("bouncers end by a signal")
}
