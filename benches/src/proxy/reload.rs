//! Another configuration while there is load: what clients notice.

use std::fmt::Write as _;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use fairway_tests::{Host, Net, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::core::OTHERS;
use crate::load::{self, Clients, Exchange, Outcome, Plan, ShortPlan};
use crate::rivals::{Backends, Haproxy, Rival};

/// Between two reloads.
const PAUSE: Duration = Duration::from_millis(500);
const SMALL: Exchange = Exchange::new(64, 128);

/// The rows.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ReloadTable {
    rows: Vec<Row>,
}

/// One balancer under one kind of load.
#[derive(Debug, Serialize, Deserialize)]
struct Row {
    rival: String,
    load: String,
    reloads: u64,
    done: u64,
    failed: u64,
    /// Microseconds at 50, 99 and 99.9 %, and the longest.
    latency: [u32; 4],
    /// The same without reloads.
    quiet: [u32; 4],
}

pub(crate) fn run(net: &Net, backends: &Backends, quick: bool) -> ReloadTable {
    let length = Duration::from_secs(if quick { 1 } else { 10 });
    let starts: [(&dyn Fn() -> Rival, Signal); 3] = [
        (&|| Rival::fairway(net, backends), Signal::HUP),
        (&|| Rival::haproxy(net, backends, Haproxy::Master), Signal::USR2),
        (&|| Rival::nginx_with_master(net, backends), Signal::HUP),
    ];
    let mut rows = Vec::new();
    for (start, signal) in starts {
        let rival = start();
        net.on(Host::Client, || {
            load::to_core(OTHERS);
            wait_for(rival.name, || TcpStream::connect(rival.tcp).is_ok());
            for kept in [true, false] {
                let quiet = work(&rival, kept, length);
                let stop = AtomicBool::new(false);
                let reloads = AtomicU64::new(0);
                let outcome = thread::scope(|scope| {
                    scope.spawn(|| reload(&rival, signal, &stop, &reloads));
                    let outcome = work(&rival, kept, length);
                    stop.store(true, Relaxed);
                    outcome
                });
                rows.push(Row {
                    rival: rival.name.into(),
                    load: if kept { "64 kept connections" } else { "short connections, 32" }.into(),
                    reloads: reloads.into_inner(),
                    done: outcome.done,
                    failed: outcome.failed,
                    latency: latency(outcome),
                    quiet: latency(quiet),
                });
            }
        });
    }
    ReloadTable { rows }
}

/// Small requests for `length`, at half of what anybody takes.
fn work(rival: &Rival, kept: bool, length: Duration) -> Outcome {
    if !kept {
        let plan = ShortPlan { clients: 32, exchange: SMALL };
        return load::short(rival.tcp, &plan, length).unwrap();
    }
    let plan = Plan { clients: 64, exchange: SMALL, rate: Some(4000) };
    let outcome = Clients::open(rival.tcp, plan).and_then(|mut clients| clients.run(length));
    // One that ends ends them all: the others would only hide it.
    outcome.unwrap_or(Outcome { failed: 1, ..Outcome::default() })
}

/// Writes the configuration anew, with a comment more, and has it read.
fn reload(rival: &Rival, signal: Signal, stop: &AtomicBool, reloads: &AtomicU64) {
    let (Some(path), Some(process)) = (rival.config(), rival.process()) else { return };
    let text = std::fs::read_to_string(&path).unwrap();
    let mut next = Instant::now() + PAUSE / 2;
    while !stop.load(Relaxed) {
        if Instant::now() < next {
            thread::sleep(Duration::from_millis(10));
            continue;
        }
        next += PAUSE;
        let n = reloads.fetch_add(1, Relaxed);
        std::fs::write(&path, changed(&text, n)).unwrap();
        let process = Pid::from_raw(process as i32).unwrap();
        kill_process(process, signal).unwrap();
    }
}

/// The document with one backend more or less.
fn changed(text: &str, n: u64) -> String {
    if n % 2 == 1 {
        return text.into();
    }
    let last = "10.78.0.18:9000";
    let lines = text.lines().filter_map(|line| match line.trim_start().starts_with("backends:") {
        // Fairway's are in one line, others' in one each.
        true => Some(line.replace(&format!(", {last}"), "")),
        false => (!line.contains(last)).then(|| line.to_owned()),
    });
    lines.fold(String::new(), |text, line| text + &line + "\n")
}

fn latency(outcome: Outcome) -> [u32; 4] {
    let mut times = outcome.times;
    times.sort_unstable();
    let Some(last) = times.len().checked_sub(1) else { return [0; 4] };
    let at = |part: usize| times[(times.len() * part / 1000).min(last)];
    [at(500), at(990), at(999), times[last]]
}

impl ReloadTable {
    pub(crate) fn text(&self) -> String {
        let mut text = String::from(
            "### Reloads under load\n\n| balancer | load | reloads | exchanges | failed | p50 µs | p99 | p99.9 | \
             longest | without reloads |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
        );
        for row in &self.rows {
            let [p50, p99, p999, most] = row.latency;
            let quiet = row.quiet.map(|it| it.to_string()).join(" / ");
            // Writing into a String cannot fail.
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {p50} | {p99} | {p999} | {most} | {quiet} |",
                row.rival, row.load, row.reloads, row.done, row.failed
            );
        }
        text
    }
}
