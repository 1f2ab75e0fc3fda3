//! Measurements of Fairway beside what users would pick instead. `benches/run` builds and runs it.
#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on panics")]

mod changes;
mod checks;
mod core;
#[cfg(feature = "dpdk")]
mod dpdk;
mod failover;
mod load;
mod packets;
mod ports;
mod proxy;
mod rivals;
mod scale;
mod tables;

use clap::Parser;
use clap::builder::PossibleValuesParser;

/// Measures Fairway; prints tables.
#[derive(Debug, Parser)]
pub(crate) struct Arguments {
    /// Fewer rounds and less work: to see that it runs, not to quote
    #[arg(long)]
    quick: bool,
    /// Rounds of the proxy path's workloads, in turn with the rivals'
    #[arg(long, value_name = "NUMBER", default_value_t = 5)]
    rounds: usize,
    /// Also write what the proxy path's workloads measured to this file
    #[arg(long, value_name = "FILE")]
    json: Option<std::path::PathBuf>,
    /// Measure nothing: make a picture of what was written by `--json`, on the standard output
    #[arg(long, value_name = "FILE")]
    plot: Option<std::path::PathBuf>,
    /// Of `packets` and `dpdk` this mode alone, as their tables call it
    #[arg(long, value_name = "NAME")]
    mode: Option<String>,
    /// Of `packets` and `dpdk` this number of flows alone
    #[arg(long, value_name = "NUMBER")]
    flows: Option<u32>,
    /// Carry packets as this file says: one of the rivals of `ports`
    #[arg(long, hide = true)]
    bounce: Option<String>,
    /// Only these: a part, or workloads of the part `proxy`
    #[arg(value_name = "NAME", value_parser = names())]
    only: Vec<String>,
}

/// The parts beside that of the proxy path.
const PARTS: [&str; 9] =
    ["tables", "packets", "dpdk", "ports", "floor", "scale", "changes", "checks", "failover"];

fn names() -> PossibleValuesParser {
    let proxy = proxy::WORKS.iter().map(|work| work.key).chain(["idle", "reload"]);
    PossibleValuesParser::new(PARTS.into_iter().chain(["proxy"]).chain(proxy))
}

impl Arguments {
    /// Whether a workload of the proxy path is asked for.
    fn wants(&self, key: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == key || only == "proxy")
    }
}

fn main() {
    let arguments = Arguments::parse();
    if let Some(path) = &arguments.bounce {
        ports::bounce(path);
    }
    if let Some(path) = &arguments.plot {
        let text = std::fs::read_to_string(path).unwrap();
        let report: proxy::Report = serde_json::from_str(&text).unwrap();
        return print!("{}", report.svg());
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
    if wanted("floor") {
        proxy::floor::run(arguments.quick);
    }
    if wanted("scale") {
        scale::run(arguments.quick);
    }
    if wanted("changes") {
        changes::run(arguments.quick);
    }
    if wanted("checks") {
        checks::run(arguments.quick);
    }
    if wanted("failover") {
        failover::run(arguments.quick);
    }
    let is_proxy = |only: &String| !PARTS.contains(&only.as_str());
    if arguments.only.is_empty() || arguments.only.iter().any(is_proxy) {
        let mut report = proxy::Report { machine: machine(), ..proxy::Report::default() };
        proxy::run(&arguments, &mut report);
        if let Some(path) = &arguments.json {
            std::fs::write(path, serde_json::to_string_pretty(&report).unwrap()).unwrap();
        }
    }
}

/// What it ran on.
fn machine() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name\t: ")).unwrap_or("CPU");
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let control = "/proc/sys/net/ipv4/tcp_congestion_control";
    let control = std::fs::read_to_string(control).unwrap_or_default();
    format!("{cores} cores of {model}, Linux {}, TCP {}", kernel.trim(), control.trim())
}

/// The value in the middle, the smallest and the largest.
pub(crate) fn spread(values: &[f64]) -> (f64, f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    (sorted[sorted.len() / 2], sorted[0], sorted[sorted.len() - 1])
}
