//! Measurements of Fairway beside what users would pick instead. `benches/run` builds and runs it.
#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on panics")]

mod checks;
mod datagrams;
#[cfg(feature = "dpdk")]
mod dpdk;
mod failover;
mod load;
mod packets;
mod ports;
mod rivals;
mod scale;
mod tables;
mod traffic;

use clap::Parser;

/// Measures Fairway; prints tables.
#[derive(Debug, Parser)]
pub(crate) struct Arguments {
    /// Fewer rounds and less work: to see that it runs, not to quote
    #[arg(long)]
    quick: bool,
    /// Of `packets` and `dpdk` this mode alone, as their tables call it
    #[arg(long, value_name = "NAME")]
    mode: Option<String>,
    /// Of `packets` and `dpdk` this number of flows alone
    #[arg(long, value_name = "NUMBER")]
    flows: Option<u32>,
    /// Carry packets as this file says: one of the rivals of `ports`
    #[arg(long, hide = true)]
    bounce: Option<String>,
    /// Only these: tables, packets, dpdk, ports, scale, traffic, datagrams, checks,
    /// failover
    only: Vec<String>,
}

fn main() {
    let arguments = Arguments::parse();
    if let Some(path) = &arguments.bounce {
        ports::bounce(path);
    }
    let wanted =
        |name: &str| arguments.only.is_empty() || arguments.only.iter().any(|only| only == name);
    println!("{}\n", machine());
    if wanted("tables") {
        tables::run(arguments.quick);
    }
    if wanted("packets") {
        packets::run(&arguments);
    }
    #[cfg(feature = "dpdk")]
    if wanted("dpdk") {
        dpdk::run(&arguments);
    }
    if wanted("ports") {
        ports::run(arguments.quick);
    }
    if wanted("scale") {
        scale::run(arguments.quick);
    }
    if wanted("traffic") {
        traffic::run(arguments.quick);
    }
    if wanted("datagrams") {
        datagrams::run(arguments.quick);
    }
    if wanted("checks") {
        checks::run(arguments.quick);
    }
    if wanted("failover") {
        failover::run(arguments.quick);
    }
}

/// What it ran on.
fn machine() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name\t: ")).unwrap_or("CPU");
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{cores} cores of {model}, Linux {}", kernel.trim())
}

/// The value in the middle, the smallest and the largest.
pub(crate) fn spread(values: &[f64]) -> (f64, f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    (sorted[sorted.len() / 2], sorted[0], sorted[sorted.len() - 1])
}
