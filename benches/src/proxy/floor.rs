//! What a proxied connection could cost if it were handed to the packet path once it is set up: the same work
//! through the proxy, through `nat` on the raw port, and through DNAT in the kernel.
//!
//! A handed-over connection would be a flow of `nat` whose sequence numbers, timestamps and windows are changed,
//! too: it costs at least as much. Each is there alone while it is measured, as a packet socket costs the others.

use std::net::SocketAddr;
use std::time::Duration;

use fairway_tests::{Host, Net, wait_for};

use super::works::WORKS;
use super::{Setting, hosts};
use crate::core::OTHERS;
use crate::load;
use crate::rivals::Rival;
use crate::spread;

/// Kinds of work that are compared.
const CHOSEN: [&str; 5] = ["kept-1", "kept-64", "reply-16k", "short", "down-8"];
/// An address of no machine, which packets are answered at.
const VIP: &str = "10.99.0.2";

pub(crate) fn run(quick: bool) {
    let Some((net, backends)) = hosts() else { return };
    let (rounds, length) = if quick { (1, 300) } else { (5, 2000) };
    let length = Duration::from_millis(length);
    let vip: SocketAddr = (VIP.parse::<std::net::Ipv4Addr>().unwrap(), 80).into();
    println!("The way down to the floor: cost of a unit of work, {rounds} rounds in turn\n");
    println!("| | | proxy | `nat` on the raw port | DNAT | proxy ÷ `nat` | proxy ÷ DNAT |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for setting in Setting::ALL {
        setting.set(&net);
        for work in WORKS.iter().filter(|work| CHOSEN.contains(&work.key)) {
            let mut costs: [Vec<f64>; 3] = Default::default();
            for _ in 0..rounds {
                for (way, costs) in costs.iter_mut().enumerate() {
                    // With DNAT's connection tracking, the others pay for it.
                    net.exec(
                        Host::Lb,
                        &format!("sysctl -qw net.ipv4.ip_forward={}", u8::from(way == 2)),
                    );
                    let rival = match way {
                        0 => Rival::fairway(&net, &backends),
                        1 => Rival::fairway_nat_tcp(&net, vip, &backends),
                        _ => Rival::nftables(&net, &backends),
                    };
                    costs.push(cost(&net, &rival, work, length));
                }
            }
            let cell = |values: &[f64]| {
                let (median, least, most) = spread(values);
                format!("{median:.1} ({least:.1}–{most:.1})")
            };
            let ratio = |other: usize| {
                let pairs = costs[0].iter().zip(&costs[other]);
                let ratios: Vec<f64> = pairs.map(|(own, other)| own / other).collect();
                let (median, least, most) = spread(&ratios);
                format!("{median:.2} ({least:.2}–{most:.2})")
            };
            println!(
                "| {} | {} | {} | {} | {} | {} | {} |",
                work.name,
                setting.name(),
                cell(&costs[0]),
                cell(&costs[1]),
                cell(&costs[2]),
                ratio(1),
                ratio(2)
            );
        }
    }
    Setting::Inline.set(&net);
    super::shift::run(quick);
    println!();
}

fn cost(net: &Net, rival: &Rival, work: &super::works::Work, length: Duration) -> f64 {
    net.on(Host::Client, || {
        load::to_core(OTHERS);
        rival.active(net, || {
            wait_for(rival.name, || std::net::TcpStream::connect(rival.tcp).is_ok());
            work.load.verify(rival.tcp).unwrap();
            work.load.round(rival.tcp, rival.process(), length).unwrap().cost
        })
    })
}
