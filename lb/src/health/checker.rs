//! Runs the checks: a task for each address and definition.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fairway_config::{CheckSpec, Probe};
use fairway_core::agent_line::AgentReport;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use super::agent;
use super::probe::{TlsConfigs, probe};
use super::state::{HealthState, ProbeError, Transition};

/// Most checks that may be under way at once.
const AT_ONCE: usize = 1024;

/// What is checked, and how. Equal targets are one check.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct CheckTarget {
    /// The address and port.
    pub(crate) addr: SocketAddr,
    /// How.
    pub(crate) spec: Arc<CheckSpec>,
}

/// News of a target.
#[derive(Debug)]
pub(crate) struct HealthEvent {
    /// Which one.
    pub(crate) target: CheckTarget,
    /// What is new.
    pub(crate) news: News,
}

/// What is new of a target.
#[derive(Debug)]
pub(crate) enum News {
    /// Its checks changed its health.
    Health(Transition),
    /// Its agent says something else than before.
    Agent(AgentReport),
    /// Its agent has said nothing that could be understood for a while; what it said holds.
    AgentLost(ProbeError),
}

/// The running checks.
pub(crate) struct Checker {
    runtime: Handle,
    running: HashMap<CheckTarget, (AbortHandle, usize)>,
    tools: Arc<Tools>,
    spread: RandomState,
}

/// What all checks share.
struct Tools {
    at_once: Semaphore,
    tls: TlsConfigs,
    report: Box<dyn Fn(HealthEvent) + Send + Sync>,
}

impl Checker {
    /// Checks run on `runtime`, as many at once as `descriptors` allow; transitions go to `report`,
    /// which must not block.
    pub(crate) fn new(
        runtime: Handle,
        descriptors: usize,
        report: impl Fn(HealthEvent) + Send + Sync + 'static,
    ) -> Self {
        Self {
            runtime,
            running: HashMap::new(),
            tools: Arc::new(Tools {
                at_once: Semaphore::new(descriptors.clamp(1, AT_ONCE)),
                tls: TlsConfigs::default(),
                report: Box::new(report),
            }),
            spread: RandomState::new(),
        }
    }

    /// Adds a user of `target`; the first one starts the check, from the state `up`.
    pub(crate) fn add(&mut self, target: &CheckTarget, up: bool) {
        if let Some((_, users)) = self.running.get_mut(target) {
            *users += 1;
            return;
        }
        let random = self.spread.hash_one(target);
        let tools = Arc::clone(&self.tools);
        let task = match &target.spec.probe {
            Probe::Agent(_) => self.runtime.spawn(follow(target.clone(), tools, random)),
            _ => self.runtime.spawn(check(target.clone(), up, tools, random)),
        };
        let abort = task.abort_handle();
        self.running.insert(target.clone(), (abort, 1));
    }

    /// Takes a user of `target` away; the last one stops the check.
    pub(crate) fn remove(&mut self, target: &CheckTarget) {
        let Some((abort, users)) = self.running.get_mut(target) else { return };
        *users -= 1;
        if *users == 0 {
            abort.abort();
            self.running.remove(target);
        }
    }

    /// Ends all checks: another process makes them.
    pub(crate) fn stop(&mut self) {
        self.running.drain().for_each(|(_, (abort, _))| abort.abort());
    }

    /// Number of different checks.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.running.len()
    }
}

async fn check(target: CheckTarget, up: bool, tools: Arc<Tools>, mut random: u64) {
    let spec = Arc::clone(&target.spec);
    let mut state = HealthState::new(&spec, up);
    // First checks are spread over the interval, later ones by their jitter.
    tokio::time::sleep(fraction(spec.interval, random)).await;
    loop {
        let result = {
            // The semaphore is never closed.
            let _permit = tools.at_once.acquire().await;
            probe(target.addr, &spec, &tools.tls).await
        };
        count(&spec.probe, result.is_ok());
        if let Some(transition) = state.on_result(&result) {
            let news = News::Health(transition);
            (tools.report)(HealthEvent { target: target.clone(), news });
        }
        random = next(random);
        let interval = if state.is_changing() { spec.fast_interval } else { spec.interval };
        tokio::time::sleep(jittered(interval, spec.jitter_percent, random)).await;
    }
}

/// Asks an agent again and again, and tells what changes.
async fn follow(target: CheckTarget, tools: Arc<Tools>, mut random: u64) {
    let spec = Arc::clone(&target.spec);
    let Probe::Agent(send) = &spec.probe else { return };
    let (mut last, mut failed) = (None, 0);
    tokio::time::sleep(fraction(spec.interval, random)).await;
    loop {
        let answer = {
            // The semaphore is never closed.
            let _permit = tools.at_once.acquire().await;
            tokio::time::timeout(spec.timeout, agent::ask(target.addr, send)).await
        };
        count(&spec.probe, matches!(answer, Ok(Ok(_))));
        let late = |_| Err(format!("agent {}: no line in {:?}", target.addr, spec.timeout));
        let news = match answer.unwrap_or_else(late) {
            Ok(report) => {
                failed = 0;
                (last.as_ref() != Some(&report)).then(|| {
                    last = Some(report.clone());
                    News::Agent(report)
                })
            }
            Err(cause) => {
                metrics::counter!("fairway_agent_failures_total").increment(1);
                failed += 1;
                (failed == spec.fall).then(|| {
                    // Whatever it says next is news.
                    last = None;
                    News::AgentLost(ProbeError(cause))
                })
            }
        };
        if let Some(news) = news {
            (tools.report)(HealthEvent { target: target.clone(), news });
        }
        random = next(random);
        tokio::time::sleep(jittered(spec.interval, spec.jitter_percent, random)).await;
    }
}

fn count(probe: &Probe, good: bool) {
    let result = if good { "success" } else { "failure" };
    metrics::counter!("fairway_health_checks_total", "type" => probe.word(), "result" => result)
        .increment(1);
}

/// The next number of a row without pattern.
fn next(random: u64) -> u64 {
    random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f)
}

/// A part of `whole`, by the upper bits of `random`.
fn fraction(whole: Duration, random: u64) -> Duration {
    whole.mul_f64((random >> 32) as f64 / f64::from(u32::MAX))
}

/// `interval`, longer or shorter by up to `percent` hundredths.
fn jittered(interval: Duration, percent: u32, random: u64) -> Duration {
    let range = interval * percent / 100;
    (interval + fraction(range * 2, random)).saturating_sub(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_in_its_range() {
        let second = Duration::from_secs(1);
        for random in [0, 1 << 40, u64::MAX / 3, u64::MAX] {
            let interval = jittered(second, 10, random);
            assert!(interval >= second * 9 / 10 && interval <= second * 11 / 10, "{interval:?}");
            assert!(fraction(second, random) <= second);
        }
        assert_eq!(jittered(second, 0, 12345), second);
    }
}
