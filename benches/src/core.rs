//! What a balancer costs: the time for which its core is busy.
//!
//! Threads' own times do not do. A kernel without `CONFIG_IRQ_TIME_ACCOUNTING` charges a softirq to the thread
//! that it interrupts, and once more, by samples, to the core; what interrupts the idle core it charges to
//! nobody. The core's idle time is exact with either kernel, so what is not idle is the cost, less what
//! foreign tasks took. The balancer is alone on core 0.

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;
use rustix::thread::{sched_getaffinity, sched_setaffinity};

use crate::load::to_core;

/// The core of the balancers, and the one of everything else.
pub(crate) const BALANCER: usize = 0;
pub(crate) const OTHERS: usize = 1;
/// More of the time than this taken by what is none of ours, or by the hypervisor, disturbs a run.
const DISTURBED: f64 = 0.02;

/// A run's cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    /// For which the core was busy.
    pub(crate) busy: Duration,
    pub(crate) wall: Duration,
    /// Share of the time that went to others.
    pub(crate) foreign: f64,
}

impl Cost {
    pub(crate) fn is_disturbed(&self) -> bool {
        self.foreign > DISTURBED
    }
}

struct Reading {
    at: Instant,
    idle: Duration,
    stolen: Duration,
    /// Of each process that is not ours.
    foreign: HashMap<u32, Duration>,
}

/// Runs `work` and says what the core of the balancers did meanwhile. `ours` are the processes that are
/// part of it.
pub(crate) fn measured<T>(ours: &[u32], work: impl FnOnce() -> T) -> (Cost, T) {
    let before = Reading::now(ours);
    let made = work();
    let after = Reading::now(ours);
    let wall = after.at - before.at;
    let idle = after.idle.saturating_sub(before.idle);
    // One by one: a sum would lose what those had that have ended.
    let since = |(id, time): (&u32, &Duration)| {
        time.saturating_sub(before.foreign.get(id).copied().unwrap_or_default())
    };
    let others = after.foreign.iter().map(since).sum::<Duration>()
        + after.stolen.saturating_sub(before.stolen);
    let foreign = others.as_secs_f64() / wall.as_secs_f64();
    (Cost { busy: wall.saturating_sub(idle), wall, foreign }, made)
}

impl Reading {
    fn now(ours: &[u32]) -> Self {
        let foreign = foreign(ours);
        let before = sched_getaffinity(None).ok();
        // Only a core that has just been woken has counted all of its idle time.
        to_core(BALANCER);
        let (at, idle) = (Instant::now(), idle());
        if let Some(before) = before {
            // It was allowed before.
            let _ = sched_setaffinity(None, &before);
        }
        Self { at, idle, stolen: stolen(), foreign }
    }
}

/// Idle time of the balancers' core, to the nanosecond.
fn idle() -> Duration {
    let text = fs::read_to_string("/proc/timer_list").unwrap_or_default();
    let core = format!("cpu: {BALANCER}");
    let lines = text.lines().skip_while(|line| line.trim() != core).skip(1);
    let lines = lines.take_while(|line| !line.starts_with("cpu: "));
    let value = |line: &str| -> Option<u64> {
        let (name, value) = line.trim().split_once(':')?;
        let is_idle = matches!(name.trim(), ".idle_sleeptime" | ".iowait_sleeptime");
        is_idle.then(|| value.split_whitespace().next()?.parse().ok())?
    };
    let values: Vec<u64> = lines.filter_map(value).collect();
    assert!(
        !values.is_empty(),
        "no idle times in /proc/timer_list: is this root, with a kernel that has NO_HZ?"
    );
    Duration::from_nanos(values.iter().sum())
}

/// What the hypervisor took of both cores.
fn stolen() -> Duration {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks = text.lines().next().and_then(|line| line.split_whitespace().nth(8)?.parse().ok());
    Duration::from_millis(10 * ticks.unwrap_or(0_u64))
}

/// CPU time so far of processes that are not ours: on any core, as what keeps the other one busy slows the
/// clients. Threads of the kernel are left out: they are there for us.
fn foreign(ours: &[u32]) -> HashMap<u32, Duration> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let own = std::process::id();
    let is_kernel = |id: u32| {
        let maps = fs::read_to_string(format!("/proc/{id}/statm")).unwrap_or_default();
        maps.starts_with("0 ")
    };
    let times = processes.filter(|id| *id != own && !ours.contains(id) && !is_kernel(*id));
    times.map(|id| (id, cpu_of(id))).collect()
}

/// CPU time of a process so far, of threads that have ended, too; nothing once it has ended.
pub(crate) fn cpu_of(process: u32) -> Duration {
    let clock = clock_getcpuclockid(Pid::from_raw(process.cast_signed()));
    clock.and_then(|clock| clock.now()).map_or(Duration::ZERO, Duration::from)
}

/// Memory of a process, by name: `Rss`, `Pss`, `Anonymous`, …, in bytes.
pub(crate) fn memory_of(process: u32) -> HashMap<String, u64> {
    let text = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).unwrap_or_default();
    let entry = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        let kib: u64 = rest.trim().strip_suffix(" kB")?.trim().parse().ok()?;
        Some((name.to_owned(), kib << 10))
    };
    let memory: HashMap<_, _> = text.lines().filter_map(entry).collect();
    assert!(!memory.is_empty(), "process {process} has ended: did it find its port taken?");
    memory
}
