//! The proxy path beside HAProxy, nginx stream and DNAT in the kernel: what a unit of work costs, and how long
//! clients wait.
//!
//! Every balancer is one thread on core 0, clients and servers are on core 1. *Inline* is the kernel as it
//! comes: a sender's core does the receiver's work, too, as links between namespaces have no interrupts of
//! their own. *RPS* gives each host's receive work to that host's core, as with cards between them.

pub(crate) mod floor;
mod idle;
mod plot;
mod reload;
mod report;
mod shift;
mod works;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use fairway_tests::{Host, Net, wait_for};

use crate::Arguments;
use crate::core::{OTHERS, measured};
use crate::load::{self, Clients, Datagrams, Outcome};
use crate::rivals::{Backends, Haproxy, Rival};

pub(crate) use report::Report;
use report::{Measured, Round, Series};
pub(crate) use works::WORKS;
use works::{Load, Work};

/// Backends behind each balancer.
const SERVERS: u8 = 8;
/// A disturbed run is repeated as often.
const AGAIN: usize = 4;

/// Whose core does what a host receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Setting {
    Inline,
    Rps,
}

impl Setting {
    const ALL: [Self; 2] = [Self::Inline, Self::Rps];

    fn name(self) -> &'static str {
        match self {
            Self::Inline => "inline",
            Self::Rps => "RPS",
        }
    }

    pub(crate) fn set(self, net: &Net) {
        let devices = [
            (Host::Client, "lb", 2),
            (Host::Servers, "lb", 2),
            (Host::Lb, "clients", 1),
            (Host::Lb, "servers", 1),
        ];
        for (host, device, core) in devices {
            let mask = if self == Self::Rps { core } else { 0 };
            let write = format!(
                "for queue in /sys/class/net/{device}/queues/rx-*; do echo {mask} > $queue/rps_cpus; done"
            );
            let name = net.name(host);
            let done = std::process::Command::new("ip")
                .args(["netns", "exec", &name, "sh", "-c", &write])
                .status();
            assert!(done.is_ok_and(|status| status.success()), "RPS of {device}");
        }
    }
}

/// Measures, and prints tables.
pub(crate) fn run(arguments: &Arguments, report: &mut Report) {
    let Some((net, backends)) = hosts() else { return };
    let rivals = [
        Rival::fairway(&net, &backends),
        Rival::haproxy(&net, &backends, Haproxy::Default),
        Rival::haproxy(&net, &backends, Haproxy::Splice),
        Rival::haproxy(&net, &backends, Haproxy::LargeBuffers),
        Rival::nginx(&net, &backends),
        Rival::nftables(&net, &backends),
    ];
    let (rounds, length) = match arguments.quick {
        true => (2, Duration::from_millis(300)),
        false => (arguments.rounds, Duration::from_secs(2)),
    };
    net.on(Host::Client, || {
        load::to_core(OTHERS);
        for rival in &rivals {
            rival.active(&net, || {
                wait_for(rival.name, || std::net::TcpStream::connect(rival.tcp).is_ok());
            });
        }
        for setting in Setting::ALL {
            setting.set(&net);
            let chosen = WORKS.iter().filter(|work| arguments.wants(work.key));
            for work in chosen {
                let measured = measure(&net, work, &rivals, (rounds, length), setting);
                eprintln!("{}", measured.line(setting.name()));
                report.add(setting.name(), measured);
            }
        }
        Setting::Inline.set(&net);
    });
    print!("{}", report.tables());
    // What follows starts its own, at the same addresses.
    drop(rivals);
    if arguments.wants("idle") {
        let table = idle::run(&net, &backends, arguments.quick);
        println!("{}", table.text());
        report.idle = Some(table);
    }
    if arguments.wants("reload") {
        let table = reload::run(&net, &backends, arguments.quick);
        println!("{}", table.text());
        report.reload = Some(table);
    }
}

/// The hosts, and servers that answer.
pub(crate) fn hosts() -> Option<(Net, Backends)> {
    let net = Net::new()?;
    // All hosts share one kernel and its tables: with tens of thousands of connections in TIME-WAIT its
    // search for a free port takes longer than any balancer.
    for host in [Host::Client, Host::Lb, Host::Servers] {
        net.exec(host, "sysctl -qw net.ipv4.tcp_max_tw_buckets=0");
    }
    net.exec(Host::Servers, "ip route replace default via 10.78.0.1");
    let at = |port: u16| -> Vec<SocketAddr> {
        (1..=SERVERS).map(|n| (net.server_address(n), port).into()).collect()
    };
    let backends = Backends { tcp: at(9000), headed: at(9001), udp: at(9000) };
    net.on(Host::Servers, || {
        load::to_core(OTHERS);
        load::serve(&backends.tcp, &backends.headed);
        backends.udp.iter().for_each(|addr| load::echo(*addr, Some(1200)));
    });
    Some((net, backends))
}

fn measure(
    net: &Net,
    work: &Work,
    rivals: &[Rival],
    (rounds, length): (usize, Duration),
    setting: Setting,
) -> Measured {
    let rivals: Vec<(&Rival, SocketAddr)> =
        rivals.iter().filter_map(|rival| Some((rival, work.load.at(rival)?))).collect();
    for (rival, vip) in &rivals {
        let verified = rival.active(net, || work.load.verify(*vip));
        verified.unwrap_or_else(|error| panic!("{}, {}: {error}", rival.name, work.name));
    }
    let mut series: Vec<Series> = rivals.iter().map(|(rival, _)| Series::new(rival.name)).collect();
    for _ in 0..rounds {
        for ((rival, vip), series) in rivals.iter().zip(&mut series) {
            let mut best: Option<Round> = None;
            for _ in 0..AGAIN {
                let round = rival.active(net, || work.load.round(*vip, rival.process(), length));
                let round = round.unwrap_or_else(|error| {
                    panic!("{}, {}, {}: {error}", rival.name, work.name, setting.name())
                });
                let is_better = best.as_ref().is_none_or(|best| round.foreign < best.foreign);
                let is_good = !round.disturbed;
                if is_better {
                    best = Some(round);
                }
                if is_good {
                    break;
                }
                series.repeated += 1;
            }
            series.rounds.extend(best);
        }
    }
    Measured {
        key: work.key.into(),
        name: work.name.into(),
        unit: work.load.unit().into(),
        wanted: work.wanted,
        series,
    }
}

impl Load {
    /// Where a rival takes it.
    fn at(&self, rival: &Rival) -> Option<SocketAddr> {
        match self {
            Self::Kept(_) | Self::Short { headed: false, .. } => Some(rival.tcp),
            Self::Short { headed: true, .. } => rival.headed,
            Self::Datagrams { .. } => rival.udp,
        }
    }

    fn unit(&self) -> &'static str {
        match self {
            Self::Kept(plan) if is_bulk(plan) => "ms/GB",
            Self::Kept(_) => "µs/request",
            Self::Short { .. } => "µs/connection",
            Self::Datagrams { .. } => "µs/datagram",
        }
    }

    /// Whether what goes through comes whole.
    fn verify(&self, vip: SocketAddr) -> io::Result<()> {
        match self {
            Self::Kept(plan) => Clients::verify(vip, plan.exchange),
            Self::Short { plan, .. } => Clients::verify(vip, plan.exchange),
            Self::Datagrams { size, burst, .. } => Datagrams::open(vip, 1, *size, *burst)?.verify(),
        }
    }

    /// One run.
    fn round(&self, vip: SocketAddr, process: Option<u32>, length: Duration) -> io::Result<Round> {
        let ours: Vec<u32> = process.into_iter().collect();
        // Buffers grow and tables fill before it counts.
        let warm = length / 8;
        let (cost, outcome) = match self {
            Self::Kept(plan) => {
                let mut clients = Clients::open(vip, *plan)?;
                clients.run(warm)?;
                measured(&ours, || clients.run(length))
            }
            Self::Short { plan, .. } => {
                load::short(vip, plan, warm)?;
                measured(&ours, || load::short(vip, plan, length))
            }
            Self::Datagrams { clients, size, burst } => {
                let mut clients = Datagrams::open(vip, *clients, *size, *burst)?;
                clients.run(warm)?;
                let (cost, outcome) = measured(&ours, || clients.run(length));
                let (answered, lost) = outcome?;
                // There and back: two.
                let outcome = Outcome { done: 2 * answered, failed: lost, ..Outcome::default() };
                (cost, Ok(outcome))
            }
        };
        let outcome = outcome?;
        let (units, scale) = match self {
            Self::Kept(plan) if is_bulk(plan) => (outcome.bytes as f64 / 1e9, 1e3),
            _ => (outcome.done as f64, 1e6),
        };
        Ok(Round::new(cost, outcome, units, scale))
    }
}

fn is_bulk(plan: &load::Plan) -> bool {
    plan.exchange.request.max(plan.exchange.reply) > 1 << 20
}
