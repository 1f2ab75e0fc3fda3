//! CPU time per unit of work, and latency, beside HAProxy and nginx stream.

use std::net::SocketAddr;
use std::time::Duration;

use fairway_tests::{Host, Net, wait_for};

use crate::rivals::{Rival, softirq};
use crate::{load, spread};

/// One kind of work, and how to count it.
struct Work {
    name: &'static str,
    unit: &'static str,
    /// Units of one run.
    units: f64,
    /// Microseconds a unit, or milliseconds.
    scale: f64,
    run: Box<dyn Fn(SocketAddr) + Sync>,
}

pub(crate) fn run(quick: bool) {
    let Some(net) = Net::new() else { return };
    let (rounds, part) = if quick { (1, 10) } else { (4, 1) };
    // All hosts share one kernel and its tables: with tens of thousands of connections in
    // TIME-WAIT its search for a free port takes longer than any balancer.
    for host in [Host::Client, Host::Lb, Host::Servers] {
        net.exec(host, "sysctl -qw net.ipv4.tcp_max_tw_buckets=0");
    }
    let backends: Vec<SocketAddr> = (1..=8).map(|n| (net.server_address(n), 9000).into()).collect();
    net.on(Host::Servers, || {
        load::to_core_1();
        backends.iter().for_each(|addr| load::serve(*addr));
    });
    let rivals = [
        Rival::fairway(&net, &backends),
        Rival::haproxy(&net, &backends),
        Rival::nginx(&net, &backends),
    ];
    net.on(Host::Client, || {
        load::to_core_1();
        for rival in &rivals {
            wait_for(rival.name, || std::net::TcpStream::connect(rival.vip).is_ok());
            load::short(rival.vip, 4, 200);
        }
        println!(
            "CPU of the balancer (its threads and the softirqs of its core), one core each, {rounds} \
             rounds in turn; ratio above 1: Fairway is cheaper"
        );
        println!(
            "{:<34} {:<7} {:>20} {:>20} {:>20} {:>18} {:>18}",
            "", "", "Fairway", "HAProxy", "nginx stream", "ratio to HAProxy", "ratio to nginx"
        );
        for work in works(part) {
            measure(&work, &rivals, rounds);
        }
        latency(&rivals, rounds, part);
    });
    println!();
}

fn works(part: u64) -> Vec<Work> {
    let gib = 2 << 30;
    let (bulk, small, medium, short) = (gib / part, 60_000 / part, 40_000 / part, 4_000 / part);
    vec![
        Work {
            name: "bulk, 8 flows of 64 MiB",
            unit: "ms/GB",
            units: bulk as f64 / 1e9,
            scale: 1e3,
            run: Box::new(move |vip| load::kept(vip, 8, bulk >> 26, 64 << 20)),
        },
        Work {
            name: "64 B for 64 B, 64 kept",
            unit: "us/req",
            units: small as f64,
            scale: 1e6,
            run: Box::new(move |vip| load::kept(vip, 64, small, 64)),
        },
        Work {
            name: "4 KiB for 64 B, 64 kept",
            unit: "us/req",
            units: medium as f64,
            scale: 1e6,
            run: Box::new(move |vip| load::kept(vip, 64, medium, 4096)),
        },
        Work {
            name: "short connections, 32 at a time",
            unit: "us/conn",
            units: short as f64,
            scale: 1e6,
            run: Box::new(move |vip| load::short(vip, 32, short)),
        },
    ]
}

fn measure(work: &Work, rivals: &[Rival; 3], rounds: usize) {
    let mut costs: [Vec<f64>; 3] = Default::default();
    for _ in 0..rounds {
        for (rival, costs) in rivals.iter().zip(&mut costs) {
            let before = rival.cpu() + softirq();
            (work.run)(rival.vip);
            let spent = (rival.cpu() + softirq()).saturating_sub(before);
            costs.push(spent.as_secs_f64() * work.scale / work.units);
        }
    }
    let cell = |costs: &[f64]| {
        let (median, least, most) = spread(costs);
        format!("{median:.1} ({least:.1}-{most:.1})")
    };
    let ratio = |rival: &[f64]| {
        let ratios: Vec<f64> = rival.iter().zip(&costs[0]).map(|(r, own)| r / own).collect();
        let (median, least, most) = spread(&ratios);
        format!("{median:.2} ({least:.2}-{most:.2})")
    };
    println!(
        "{:<34} {:<7} {:>20} {:>20} {:>20} {:>18} {:>18}",
        work.name,
        work.unit,
        cell(&costs[0]),
        cell(&costs[1]),
        cell(&costs[2]),
        ratio(&costs[1]),
        ratio(&costs[2]),
    );
}

fn latency(rivals: &[Rival; 3], rounds: usize, part: u64) {
    const RATE: u32 = 4000;
    let length = Duration::from_millis(3000 / part.min(3));
    let mut cells: [(Vec<f64>, Vec<f64>); 3] = Default::default();
    for _ in 0..rounds {
        for (rival, (p50, p99)) in rivals.iter().zip(&mut cells) {
            let mut times = load::paced(rival.vip, RATE, length);
            times.sort_unstable();
            let at = |hundredths: usize| times[times.len() * hundredths / 100].as_secs_f64() * 1e6;
            p50.push(at(50));
            p99.push(at(99));
        }
    }
    for (name, pick) in [("p50", 0), ("p99", 1)] {
        let values = |n: usize| if pick == 0 { &cells[n].0 } else { &cells[n].1 };
        let cell = |n: usize| {
            let (median, least, most) = spread(values(n));
            format!("{median:.0} ({least:.0}-{most:.0})")
        };
        println!(
            "{:<34} {:<7} {:>20} {:>20} {:>20}",
            format!("latency {name}, 64 B at {RATE}/s"),
            "us",
            cell(0),
            cell(1),
            cell(2)
        );
    }
}
