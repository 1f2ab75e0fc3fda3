//! A service as the control loop knows it: what is configured, how its backends stand, and the
//! [`Service`] that follows. Pure: time is an argument, nothing is sent anywhere.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use fairway_config::{CheckSpec, Priority, ServiceSpec};
use fairway_core::{
    Admission, Backend, BackendAddr, BackendId, BuildError, Group, Member, Mode, Pool, Previous,
    Service, ServiceId, ServiceState, Share, Standing, Tick,
};

use super::backend::LiveBackend;
use super::ids::Ids;
use super::memory::ServiceMemory;
use super::orders::Orders;
use super::outlier::{Sample, Verdict, judge, most_ejected};
use super::ramp::Ramp;
use super::retire::Retired;
use crate::health::CheckTarget;
use crate::health::agent::AgentState;

/// A service that is being served.
pub(crate) struct Live {
    pub(crate) id: ServiceId,
    pub(crate) spec: Arc<ServiceSpec>,
    /// By priority, then address.
    pub(crate) backends: Vec<LiveBackend>,
    /// The backends of each priority; one at least.
    groups: Vec<LiveGroup>,
    pub(crate) state: Arc<ServiceState>,
    /// Too few backends are healthy, so all are used.
    pub(crate) panic: bool,
    /// When its backends are judged by their traffic next.
    window_ends: Tick,
    /// Connections at the last look.
    accepted: u64,
    /// Its tables before the last change.
    previous: Option<Previous>,
    /// Lasting orders for backends that DNS does not name now, and may name again.
    absent: HashMap<BackendAddr, Orders>,
}

/// Backends of one priority.
struct LiveGroup {
    priority: Priority,
    /// Where its backends are among all.
    members: Range<usize>,
    pool: Arc<Pool>,
}

/// Backends of our own zone: how many there are, and how many take flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Near {
    all: usize,
    well: usize,
}

impl Near {
    /// The share of other zones' backends: as much as is missing here. (They keep the least of all
    /// shares, so that they are there when every one of ours is at its limit.)
    fn left_to_others(self) -> Share {
        let missing = (self.all - self.well) as f64 / self.all as f64;
        Share::of(missing)
    }
}

/// What a new spec made of a service.
pub(crate) struct Replaced {
    pub(crate) live: Live,
    /// Backends that are no longer configured, with their names.
    pub(crate) retired: Vec<Retired>,
    /// The table was built anew.
    pub(crate) rebuilt: bool,
}

impl Live {
    /// Brings `spec` about, keeping of `previous` every backend whose address stands.
    ///
    /// The pools are shared when they would come out the same. `health` tells how an address
    /// stands that is checked already; a backend whose check is new keeps the standing that it
    /// had, and a new one has that of its check's `initialState`, or what another process remembers of
    /// it. The last of the `copies` of each counter is the control loop's. Costs the building of the
    /// tables.
    pub(crate) fn build(
        id: ServiceId,
        spec: Arc<ServiceSpec>,
        (previous, memory): (Option<Self>, Option<&ServiceMemory>),
        ids: &mut Ids,
        (copies, now): (usize, Tick),
        health: impl Fn(&CheckTarget) -> Option<Option<Box<str>>>,
    ) -> Result<Replaced, BuildError> {
        let panic = previous.as_ref().is_some_and(|live| live.panic);
        let window_ends = previous.as_ref().map_or(Tick(0), |live| live.window_ends);
        let accepted = previous.as_ref().map_or(0, |live| live.accepted);
        let mut before = None;
        let mut absent = HashMap::new();
        let mut old: Vec<Option<LiveBackend>> = Vec::new();
        let mut places: HashMap<BackendAddr, usize, ahash::RandomState> = HashMap::default();
        let (state, pools) = match previous {
            Some(live) => {
                places.extend(live.backends.iter().map(|live| live.backend.addr).zip(0..));
                old.extend(live.backends.into_iter().map(Some));
                absent = live.absent;
                before = live.previous;
                // A pool of another scheduler is of no use.
                let same = live.spec.policy.scheduler == spec.policy.scheduler;
                (live.state, if same { live.groups } else { Vec::new() })
            }
            None => (ServiceState::new(copies), Vec::new()),
        };
        let waits = spec.check.as_ref().is_some_and(|check| !check.initially_up);
        let unchecked: Option<Box<str>> = waits.then(|| "not checked yet".into());
        let protocol = spec.protocol;
        let mut known = |at: &BackendAddr| places.get(at).and_then(|place| old[*place].take());
        let backends = spec.backends.iter().map(|spec| match known(&spec.addr) {
            Some(live) => live.described_by(spec),
            None => {
                let known = memory.and_then(|memory| memory.backend(spec.addr));
                let backend = match known {
                    Some(known) => Backend::new(known.id(), spec.addr, copies),
                    None => ids.create(spec.addr, copies),
                };
                let mut live = LiveBackend::new(spec, backend, protocol);
                live.down.clone_from(&unchecked);
                live.orders = absent.remove(&spec.addr).unwrap_or_default();
                known.iter().for_each(|known| known.bring_back(&mut live, copies - 1));
                live
            }
        });
        let mut backends: Vec<LiveBackend> = backends.collect();
        for live in &mut backends {
            if spec.agent.is_none() {
                live.agent = AgentState::default();
            }
            live.down = match target(&spec, &live.backend) {
                None => None,
                Some(target) => health(&target).unwrap_or_else(|| live.down.take()),
            };
        }
        let started = Instant::now();
        let (groups, rebuilt) = groups(&spec, &backends, &pools)?;
        // Connections are remembered by their sockets, packets by the table that they came by.
        if rebuilt && spec.policy.mode != Mode::Proxy && !pools.is_empty() {
            let linger = spec.policy.drain_timeout.unwrap_or(spec.policy.timeouts.idle);
            let pools = pools.iter().map(|group| Arc::clone(&group.pool)).collect();
            before = Some(Previous { pools, until: now.plus(linger) });
        }
        if rebuilt {
            let took = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
            state.table_build_us.store(took, Relaxed);
        }
        if spec.named.is_empty() {
            absent.clear();
        } else {
            let left = old.iter().flatten();
            let ordered = left.filter(|live| live.orders != Orders::default());
            absent.extend(ordered.map(|live| (live.backend.addr, live.orders)));
        }
        let retired = |live: LiveBackend| Retired { backend: live.backend, name: live.name };
        let retired = old.into_iter().flatten().map(retired).collect();
        let live = Self {
            id,
            spec,
            backends,
            groups,
            state,
            panic,
            window_ends,
            accepted,
            previous: before,
            absent,
        };
        Ok(Replaced { live, retired, rebuilt })
    }

    /// The service as workers in `zone` are to see it now.
    pub(crate) fn service(&mut self, zone: Option<&str>) -> Service {
        let panics = self.panics();
        self.panic = panics.contains(&true);
        self.state.panic.store(self.panic, Relaxed);
        for live in self.all() {
            let Standing { failed, ejected, draining, .. } = live.standing();
            live.backend.failed.store(failed || ejected, Relaxed);
            live.backend.draining.store(draining, Relaxed);
        }
        let zone = zone.filter(|_| self.spec.prefer_same_zone);
        let count = self.groups.len();
        let groups = self.groups.iter().zip(panics).zip(1..).map(|((group, panic), n)| {
            let members = &self.backends[group.members.clone()];
            let near = zone.filter(|_| !panic).and_then(|zone| near(members, zone));
            let standing = |live: &LiveBackend| {
                let standing = live.standing_in(panic);
                match near.filter(|_| live.zone.as_deref() != zone) {
                    Some(near) if standing.share > Share::NONE => {
                        let share = standing.share.times(near.left_to_others()).max(Share::LEAST);
                        Standing { share, ..standing }
                    }
                    _ => standing,
                }
            };
            let admission = Admission::new(members.iter().map(|m| (m.weight, standing(m))));
            let wanted = members.len() as f64 * f64::from(self.spec.failover_percent) / 100.0;
            let well = admission.admitted() as f64;
            // The last group has nobody to leave flows to.
            let share = if n == count || well >= wanted { 1.0 } else { well / wanted };
            Group { pool: Arc::clone(&group.pool), admission, share: Share::of(share) }
        });
        Service {
            id: self.id,
            name: Arc::clone(&self.spec.key.0),
            protocol: self.spec.protocol,
            app_protocol: self.spec.app_protocol.clone(),
            policy: Arc::clone(&self.spec.policy),
            groups: groups.collect(),
            previous: self.previous.clone(),
            state: Arc::clone(&self.state),
        }
    }

    /// Of each group whether all its backends are used: too few of them are well, and nobody in the
    /// groups behind it can help.
    fn panics(&self) -> Vec<bool> {
        let mut helped = false;
        let mut panics: Vec<bool> = Vec::with_capacity(self.groups.len());
        for group in self.groups.iter().rev() {
            let members = &self.backends[group.members.clone()];
            let out = |live: &&LiveBackend| live.is_down() || live.ejection.until.is_some();
            let (total, out) = (members.len(), members.iter().filter(out).count());
            let few = (total - out) * 100 < self.spec.panic_percent as usize * total;
            panics.push(out > 0 && few && !helped);
            helped |= members.iter().any(|live| live.standing().admits());
        }
        panics.reverse();
        panics
    }

    /// Forgets the tables before the last change when no flow can remember them; true when it did.
    pub(crate) fn forget_previous(&mut self, now: Tick) -> bool {
        self.previous.take_if(|previous| previous.until < now).is_some()
    }

    /// Has the backends that `which` names begin slowly, when the service wants that.
    pub(crate) fn start_slowly(&mut self, now: Tick, which: impl Fn(&LiveBackend) -> bool) {
        let Some(rule) = self.spec.slow_start else { return };
        for live in self.all_mut().filter(|live| which(live)) {
            let ramp = Ramp { since: now };
            live.ramp = Some(ramp);
            live.share = ramp.share(&rule, now).unwrap_or(Share::FULL);
        }
    }

    /// Brings the shares of starting backends up to `now`; true when one has changed.
    pub(crate) fn grow(&mut self, now: Tick) -> bool {
        let rule = self.spec.slow_start;
        let mut changed = false;
        for live in self.all_mut() {
            let Some(ramp) = live.ramp else { continue };
            let share = rule.and_then(|rule| ramp.share(&rule, now));
            if share.is_none() {
                live.ramp = None;
            }
            let share = share.unwrap_or(Share::FULL);
            changed |= live.share != share;
            live.share = share;
        }
        changed
    }

    /// Ends orders that were to last until now, of backends that are not here.
    pub(crate) fn end_absent_orders(&mut self) {
        self.absent.retain(|_, orders| {
            orders.end_with_reload();
            *orders != Orders::default()
        });
    }

    /// Whether a backend is in slow start.
    pub(crate) fn is_starting(&self) -> bool {
        self.all().any(|live| live.ramp.is_some())
    }

    /// Number of slots of its table, or turns of its round.
    pub(crate) fn table_len(&self) -> usize {
        self.groups[0].pool.table_len()
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &LiveBackend> {
        self.backends.iter()
    }

    /// The backends with the number of the group that each belongs to; group 0 serves first.
    pub(crate) fn grouped(&self) -> impl Iterator<Item = (usize, &LiveBackend)> {
        let groups = self.groups.iter().enumerate();
        groups.flat_map(|(n, group)| {
            self.backends[group.members.clone()].iter().map(move |live| (n, live))
        })
    }

    pub(crate) fn all_mut(&mut self) -> impl Iterator<Item = &mut LiveBackend> {
        self.backends.iter_mut()
    }

    /// Ejects the backend `id`; returns for how long. While nobody else is left, it serves all
    /// the same.
    ///
    /// None when it is out already, when too many others are, or when nobody is ever ejected.
    pub(crate) fn eject(&mut self, id: BackendId, cause: &str, now: Tick) -> Option<Duration> {
        let rule = self.spec.policy.passive;
        let place = self.backends.iter().position(|live| live.backend.id == id)?;
        let group = self.groups.iter().find(|group| group.members.contains(&place))?;
        let pool = &mut self.backends[group.members.clone()];
        let out = pool.iter().filter(|live| live.ejection.until.is_some()).count();
        if out >= most_ejected(&self.spec.outliers, pool.len()) {
            return None;
        }
        let live = pool.iter_mut().find(|live| live.backend.id == id)?;
        let length = live.ejection.begin(&rule, now)?;
        live.ejection.cause = Some(cause.into());
        live.backend.transitions.inc();
        Some(length)
    }

    /// What its counters say now is no traffic of this window.
    pub(super) fn count_from_here(&mut self) {
        self.accepted = self.state.counters.totals().accepted;
    }

    /// Judges the backends by the window that ends now, when one does: who is an outlier, and why.
    pub(crate) fn look(&mut self, now: Tick) -> Vec<(BackendId, Verdict)> {
        let rule = self.spec.outliers;
        if self.window_ends > now {
            return Vec::new();
        }
        self.window_ends = now.plus(rule.window);
        // Most services have had no connection since the last look.
        let accepted = self.state.counters.totals().accepted;
        if std::mem::replace(&mut self.accepted, accepted) == accepted {
            return Vec::new();
        }
        let mut found = Vec::new();
        for group in &self.groups {
            let pool = &mut self.backends[group.members.clone()];
            let samples: Vec<Sample> = pool
                .iter_mut()
                .map(|live| {
                    let totals = live.backend.counters.totals();
                    let before = std::mem::replace(&mut live.seen, totals);
                    Sample::between(&before, &totals)
                })
                .collect();
            let verdicts = judge(&rule, &samples);
            let outliers = pool.iter().zip(verdicts);
            found.extend(outliers.filter_map(|(live, verdict)| Some((live.backend.id, verdict?))));
        }
        found
    }

    /// Ends ejections that are over; returns the backends that come back.
    pub(crate) fn expire(&mut self, now: Tick) -> Vec<BackendAddr> {
        let over = self.all_mut().filter_map(|live| {
            let expired = live.ejection.expire(now);
            if expired {
                live.backend.streak.succeeded();
                live.backend.transitions.inc();
            }
            expired.then_some(live.backend.addr)
        });
        let over: Vec<_> = over.collect();
        self.start_slowly(now, |live| over.contains(&live.backend.addr));
        over
    }

    /// What is checked of its backends, and how each stands.
    pub(crate) fn standing_of_targets(
        &self,
    ) -> impl Iterator<Item = (CheckTarget, Option<Box<str>>)> {
        let checks = self.all().filter_map(|live| {
            target(&self.spec, &live.backend).map(|target| (target, live.down.clone()))
        });
        let agents = self.all().filter_map(|live| agent_of(&self.spec, &live.backend));
        checks.chain(agents.map(|target| (target, None)))
    }

    /// Where its backends' agents are asked.
    pub(crate) fn agents(&self) -> Vec<CheckTarget> {
        self.all().filter_map(|live| agent_of(&self.spec, &live.backend)).collect()
    }

    /// What is checked of its backends.
    pub(crate) fn targets(&self) -> impl Iterator<Item = CheckTarget> {
        let of = |live: &LiveBackend| {
            [target(&self.spec, &live.backend), agent_of(&self.spec, &live.backend)]
        };
        self.all().flat_map(of).flatten()
    }
}

/// The groups of `backends`, and whether one was built anew: pools of `before`, which have the
/// same scheduler, are shared when they would come out the same.
fn groups(
    spec: &ServiceSpec,
    backends: &[LiveBackend],
    before: &[LiveGroup],
) -> Result<(Vec<LiveGroup>, bool), BuildError> {
    let mut groups = Vec::new();
    let mut start = 0;
    for specs in spec.backends.chunk_by(|a, b| a.priority == b.priority) {
        let members = start..start + specs.len();
        start = members.end;
        groups.push((specs[0].priority, members));
    }
    if groups.is_empty() {
        groups.push((Priority::Given(0), 0..0));
    }
    let mut rebuilt = before.len() != groups.len();
    let mut build = |(priority, members): (Priority, Range<usize>)| {
        let (backends, specs) = (&backends[members.clone()], &spec.backends[members.clone()]);
        let same = |pool: &Arc<Pool>| {
            let old = pool.members().iter();
            pool.members().len() == backends.len()
                && old.zip(backends.iter().zip(specs)).all(|(m, (live, spec))| {
                    m.backend.id == live.backend.id && m.weight == spec.weight
                })
        };
        let old = before.iter().find(|group| group.priority == priority).map(|group| &group.pool);
        let pool = if let Some(pool) = old.filter(|pool| same(pool)) {
            Arc::clone(pool)
        } else {
            rebuilt = true;
            let members = backends.iter().zip(specs).map(|(live, spec)| Member {
                backend: Arc::clone(&live.backend),
                weight: spec.weight,
            });
            Arc::new(Pool::build(members.collect(), &spec.policy.scheduler)?)
        };
        Ok(LiveGroup { priority, members, pool })
    };
    let groups = groups.into_iter().map(&mut build).collect::<Result<_, _>>()?;
    Ok((groups, rebuilt))
}

/// How the backends of `zone` stand; none when there are none.
fn near(members: &[LiveBackend], zone: &str) -> Option<Near> {
    let own = || members.iter().filter(|live| live.zone.as_deref() == Some(zone));
    let all = own().count();
    let well = own().filter(|live| live.standing().admits()).count();
    (all > 0).then_some(Near { all, well })
}

/// What is checked of `backend`; nothing when the service has no checks, or the port is open.
fn target(spec: &ServiceSpec, backend: &Backend) -> Option<CheckTarget> {
    let check: &Arc<CheckSpec> = spec.check.as_ref()?;
    let port = check.port.or_else(|| backend.addr.port().map(Into::into))?;
    Some(CheckTarget { addr: SocketAddr::new(backend.addr.ip(), port), spec: Arc::clone(check) })
}

/// Where the agent of `backend` is asked.
fn agent_of(spec: &ServiceSpec, backend: &Backend) -> Option<CheckTarget> {
    let agent = spec.agent.as_ref()?;
    Some(CheckTarget {
        addr: SocketAddr::new(backend.addr.ip(), agent.port?),
        spec: Arc::clone(agent),
    })
}

/// Finds the backends of a service whose agent is asked at `target`.
pub(crate) fn followed_at<'l>(
    live: &'l mut Live,
    target: &CheckTarget,
) -> impl Iterator<Item = &'l mut LiveBackend> {
    let spec = Arc::clone(&live.spec);
    let wanted = target.clone();
    live.all_mut().filter(move |live| agent_of(&spec, &live.backend).as_ref() == Some(&wanted))
}

/// Finds the backends of a service that are checked at `target`.
pub(crate) fn checked_at<'l>(
    live: &'l mut Live,
    target: &CheckTarget,
) -> impl Iterator<Item = &'l mut LiveBackend> {
    let spec = Arc::clone(&live.spec);
    let wanted = target.clone();
    live.all_mut().filter(move |live| self::target(&spec, &live.backend).as_ref() == Some(&wanted))
}

#[cfg(test)]
#[path = "live_tests.rs"]
mod tests;
