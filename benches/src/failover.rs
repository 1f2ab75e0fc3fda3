//! How long clients go without an answer when something happens to a box, and what becomes of their
//! connections: two boxes on one segment (VRRP), and two behind a router (BGP with BFD, ECMP).

use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fairway_tests::http::{ask, connect};
use fairway_tests::rack::{FAR, NEAR, Peer, Rack};
use fairway_tests::{Fairway, in_namespace, wait_at_most};
use rustix::process::Signal;

/// Connections that are open when it happens.
const OPEN: usize = 50;
const PATIENCE: Duration = Duration::from_secs(30);

/// How boxes share an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Vrrp,
    /// As RFC 9568 has it by default.
    SlowVrrp,
    Bgp,
}

impl Way {
    fn words(self) -> &'static str {
        match self {
            Self::Vrrp => "VRRP, 200 ms",
            Self::SlowVrrp => "VRRP, 1 s",
            Self::Bgp => "BGP, BFD 100 ms × 3",
        }
    }
}

/// What happens to box a, and how it is undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Happens {
    Killed,
    Frozen,
    Drained,
    WithoutBackends,
    WithoutRouter,
    Back,
}

const ALL: [(Happens, &str); 6] = [
    (Happens::Killed, "killed"),
    (Happens::Frozen, "frozen"),
    (Happens::Drained, "drained"),
    (Happens::WithoutBackends, "cut off from the backends"),
    (Happens::WithoutRouter, "cut off from the router"),
    (Happens::Back, "back again, after it was killed"),
];

/// Measures, and prints a table.
pub(crate) fn run(quick: bool) {
    let rounds = if quick { 1 } else { 3 };
    println!("## Failover: two boxes, something happens to the one that is used\n");
    println!(
        "A client dials every few milliseconds and gives each dial 100 ms; {OPEN} connections are open \
         beside. Checks of backends every 200 ms, 2 failures; {rounds} rounds, medians (smallest to largest).\n"
    );
    println!(
        "| boxes share by | mode | box a is | without an answer, ms | both have it, ms | none has it, ms | of {OPEN} \
         connections, ended |\n| --- | --- | --- | --- | --- | --- | --- |"
    );
    for (way, modes, cases) in [
        (Way::Vrrp, &["proxy", "dsr"][..], &ALL[..]),
        (Way::SlowVrrp, &["proxy"], &ALL[..1]),
        (Way::Bgp, &["proxy", "dsr"], &ALL[..]),
    ] {
        for mode in modes {
            for (happens, words) in cases.iter().copied() {
                let measured: Vec<Measured> =
                    (0..rounds).filter_map(|_| measure(way, mode, happens)).collect();
                if measured.is_empty() {
                    return;
                }
                let by = way.words();
                let held = |value: fn(&Measured) -> f64| match (way, *mode) {
                    (Way::Vrrp | Way::SlowVrrp, "proxy") => cell(&measured, value),
                    _ => "–".into(),
                };
                println!(
                    "| {by} | {mode} | {words} | {} | {} | {} | {} |",
                    cell(&measured, |it| it.outage),
                    held(|it| it.both),
                    held(|it| it.none),
                    cell(&measured, |it| it.ended),
                );
            }
        }
    }
    for (happens, words) in [(Happens::Killed, "killed"), (Happens::Back, "back again")] {
        let outages: Vec<f64> =
            (0..rounds).filter_map(|_| measure_keepalived(happens == Happens::Back)).collect();
        let (middle, least, most) = crate::spread(&outages);
        println!(
            "| keepalived, VRRP 200 ms, with nginx | proxy | {words} | {middle:.0} ({least:.0}–{most:.0}) | – | – | – |"
        );
    }
    println!();
}

struct Measured {
    outage: f64,
    both: f64,
    none: f64,
    ended: f64,
}

fn cell(measured: &[Measured], value: fn(&Measured) -> f64) -> String {
    let values: Vec<f64> = measured.iter().map(value).collect();
    let (middle, least, most) = crate::spread(&values);
    format!("{middle:.0} ({least:.0}–{most:.0})")
}

fn document(way: Way, mode: &str, n: u8) -> String {
    let (vip, announce) = match way {
        Way::Vrrp | Way::SlowVrrp => {
            let priority = 250 - 50 * n;
            let interval = if way == Way::Vrrp { "200ms" } else { "1s" };
            (
                NEAR,
                format!(
                    "  vrrp: [{{name: v, interface: front, virtualRouterId: 51, priority: {priority}, \
                     advertInterval: {interval}}}]\n"
                ),
            )
        }
        Way::Bgp => (
            FAR,
            format!(
                "  bfdProfiles: [{{name: quick, receiveInterval: 100ms, transmitInterval: 100ms}}]\n  bgp:\n    \
                 myASN: 6451{n}\n    peers: [{{name: r, peerAddress: 10.81.0.254, peerASN: 64500, bfdProfile: \
                 quick, connectTime: 1s}}]\n    advertisements: [{{name: all, med: {n}}}]\n"
            ),
        ),
    };
    let (dataplane, port) = match mode {
        "proxy" => ("vip: {interface: lo}", "port: 80, targetPort: 8080"),
        _ => ("packet: {interfaces: [front, back]}", "port: 80"),
    };
    format!(
        "dataplane: {{{dataplane}, workers: 1}}\nshutdown: {{drainTimeout: 1s}}\nannounce:\n{announce}services:\n  - name: \
         web\n    mode: {mode}\n    addresses: [{vip}]\n    ports: [{{{port}}}]\n    backends: [10.82.0.11, \
         10.82.0.12]\n    healthCheck: {{type: tcp, interval: 200ms, timeout: 200ms, fall: 2, rise: 1}}\n"
    )
}

fn measure(way: Way, mode: &str, happens: Happens) -> Option<Measured> {
    let rack = Rack::new(&["a", "b"])?;
    let vip = if way == Way::Bgp { FAR } else { NEAR };
    let direct = mode == "dsr";
    let _servers = match direct {
        false => vec![rack.server(1), rack.server(2)],
        true => {
            // Backends that have the address, and answer past the boxes.
            rack.plug_router_back();
            rack.exec("servers", "ip route add default via 10.82.0.253");
            rack.exec(
                "servers",
                "sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.rp_filter=0",
            );
            rack.exec("router", "sysctl -qw net.ipv4.conf.all.rp_filter=0");
            rack.exec("servers", &format!("ip address add {vip}/32 dev lo"));
            vec![rack.server_at_80()]
        }
    };
    let _bird = (way == Way::Bgp).then(|| {
        let session = |n: u8| {
            format!(
                "protocol bgp box{n} {{ local 10.81.0.254 as 64500; neighbor 10.81.0.{n} as 6451{n}; bfd on; \
                 error wait time 1, 1;\nipv4 {{ import all; export none; }}; }}\n"
            )
        };
        let bfd = "protocol bfd { interface \"front\" { min rx interval 100 ms; min tx interval 100 ms; }; }\n";
        Peer::bird(&rack, "router", &format!("{bfd}{}{}", session(1), session(2)))
    });
    let mut a = rack.fairway("a", &document(way, mode, 1));
    let b = rack.fairway("b", &document(way, mode, 2));
    let uses = |host: &'static str| match way {
        Way::Vrrp | Way::SlowVrrp => {
            let group = |fairway: &Fairway| fairway.announced()["groups"][0]["state"] == "active";
            rack.at(NEAR) == Some(host) || (host == "b" && group(&b))
        }
        Way::Bgp => {
            let next = if host == "a" { "via 10.81.0.1" } else { "via 10.81.0.2" };
            rack.exec("router", &format!("ip route show {FAR}")).contains(next)
        }
    };
    let is_well = |a: &Fairway| {
        let watched = |fairway: &Fairway| {
            way != Way::Bgp || fairway.announced()["peers"][0]["bfd"]["state"] == "up"
        };
        rack.answers(vip) && uses("a") && watched(a) && watched(&b)
    };
    wait_at_most(PATIENCE, "all is well", || is_well(&a));
    if happens == Happens::Back {
        a.kill();
        wait_at_most(PATIENCE, "b serves", || uses("b") && rack.answers(vip));
        std::thread::sleep(Duration::from_millis(500));
    }
    let open = connections(&rack, vip);
    let holders = Holders::watch(&rack, NEAR.parse().unwrap());
    let outage = rack.watch(vip);
    std::thread::sleep(Duration::from_millis(300));
    match happens {
        Happens::Killed => a.kill(),
        Happens::Frozen => a.signal(Signal::STOP),
        Happens::Drained => assert!(a.cli(&["announce", "drain"]).status.success()),
        Happens::WithoutBackends => _ = rack.exec("switch", "ip link set ba down"),
        Happens::WithoutRouter => _ = rack.exec("switch", "ip link set fa down"),
        Happens::Back => a.start_again(),
    }
    let then = if happens == Happens::Back { "a" } else { "b" };
    // A router with two ways uses both.
    let left = || way != Way::Bgp || happens == Happens::Back || !uses("a");
    wait_at_most(PATIENCE, "the other serves", || left() && uses(then) && rack.answers(vip));
    std::thread::sleep(Duration::from_millis(1500));
    let (longest, _) = outage.end();
    let (both, none) = holders.end();
    let ended = still_open(&rack, open);
    if happens == Happens::Frozen {
        a.signal(Signal::CONT);
    }
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    Some(Measured { outage: ms(longest), both: ms(both), none: ms(none), ended: ended as f64 })
}

/// The same of keepalived, with nginx on each box.
fn measure_keepalived(back: bool) -> Option<f64> {
    let rack = Rack::new(&["a", "b"])?;
    let config = |priority: u8| {
        format!(
            "vrrp_instance v {{\n  state BACKUP\n  interface front\n  virtual_router_id 51\n  priority {priority}\n  \
             advert_int 0.2\n  virtual_ipaddress {{\n    {NEAR}/32\n  }}\n}}\n"
        )
    };
    let _servers = ["a", "b"].map(|host| rack.server_on(host));
    let mut a = Some(Peer::keepalived(&rack, "a", &config(200)));
    let _b = Peer::keepalived(&rack, "b", &config(150));
    let uses = |host| rack.with_address(NEAR).contains(&host) && rack.at(NEAR) == Some(host);
    wait_at_most(PATIENCE, "all is well", || rack.answers(NEAR) && uses("a"));
    if back {
        drop(a.take());
        wait_at_most(PATIENCE, "b serves", || rack.answers(NEAR) && uses("b"));
    }
    let outage = rack.watch(NEAR);
    std::thread::sleep(Duration::from_millis(300));
    match back {
        true => a = Some(Peer::keepalived(&rack, "a", &config(200))),
        false => {
            // A machine that dies takes its addresses along; a process that dies leaves them.
            if let Some(a) = &mut a {
                a.kill_at_once();
            }
            rack.exec("a", &format!("ip address del {NEAR}/32 dev front"));
        }
    }
    let then = if back { "a" } else { "b" };
    wait_at_most(PATIENCE, "the other serves", || rack.answers(NEAR) && uses(then));
    std::thread::sleep(Duration::from_millis(500));
    drop(a);
    Some(outage.end().0.as_secs_f64() * 1e3)
}

/// Connections of the client, each asked once.
fn connections(rack: &Rack, vip: &str) -> Vec<TcpStream> {
    let at = SocketAddr::new(vip.parse().unwrap(), 80);
    rack.on("client", || {
        let open = |_| {
            let mut stream = connect(at).unwrap();
            ask(&mut stream, "/").unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            stream
        };
        (0..OPEN).map(open).collect()
    })
}

/// How many of them have ended: asked once more, all at a time.
fn still_open(rack: &Rack, open: Vec<TcpStream>) -> usize {
    let name = rack.name("client");
    let asked: Vec<JoinHandle<bool>> = open
        .into_iter()
        .map(|mut stream| {
            let name = name.clone();
            std::thread::spawn(move || in_namespace(&name, || ask(&mut stream, "/").is_err()))
        })
        .collect();
    asked.into_iter().filter_map(|thread| thread.join().ok()).filter(|ended| *ended).count()
}

/// Watches on which boxes the kernel has an address.
struct Holders {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    sampler: JoinHandle<(Duration, Duration)>,
}

impl Holders {
    fn watch(rack: &Rack, ip: IpAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let has = ["a", "b"].map(|_| Arc::new(AtomicBool::new(false)));
        let mut threads = Vec::new();
        for (host, has) in ["a", "b"].into_iter().zip(&has) {
            let (name, has, stop) = (rack.name(host), Arc::clone(has), Arc::clone(&stop));
            threads.push(std::thread::spawn(move || {
                in_namespace(&name, || {
                    while !stop.load(Ordering::Relaxed) {
                        // An address that is here can be bound.
                        has.store(UdpSocket::bind((ip, 0)).is_ok(), Ordering::Relaxed);
                        std::thread::sleep(Duration::from_millis(1));
                    }
                });
            }));
        }
        let stopped = Arc::clone(&stop);
        let sampler = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            let (mut both, mut none) = (Duration::ZERO, Duration::ZERO);
            let mut last = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
                let since = last.elapsed();
                last = Instant::now();
                match has.each_ref().map(|has| has.load(Ordering::Relaxed)) {
                    [true, true] => both += since,
                    [false, false] => none += since,
                    _ => {}
                }
            }
            (both, none)
        });
        Self { stop, threads, sampler }
    }

    /// How long both have had it, and how long none.
    fn end(self) -> (Duration, Duration) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| drop(thread.join()));
        self.sampler.join().unwrap_or_default()
    }
}
