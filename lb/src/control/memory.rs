//! What one process tells the next of its services: their numbers, which flows and tables go by, their
//! counters, and how their backends stand. Times are since the start of the machine.
//!
//! Everything is optional for the reader: what it does not know, or what is missing, begins anew.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;

use fairway_config::ServiceKey;
use fairway_core::{
    BackendAddr, BackendCounters, BackendId, Counter, ServiceCounters, ServiceId, Snapshot, Tick,
};
use serde::{Deserialize, Serialize};

use super::backend::Ejection;
use super::live::Live;
use super::orders::{Orders, Since};
use super::ramp::Ramp;
use super::{Control, LiveBackend};
use crate::health::agent::AgentState;

/// Counts by name, and by the word for their kind.
pub(crate) type Counts = BTreeMap<String, u64>;

/// What is known of services.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Memory {
    /// By `name/port`.
    pub(crate) services: BTreeMap<String, ServiceMemory>,
}

/// What is known of a service.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ServiceMemory {
    pub(crate) id: u32,
    pub(crate) counts: Counts,
    pub(crate) backends: Vec<BackendMemory>,
}

/// What is known of a backend.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BackendMemory {
    ip: IpAddr,
    port: Option<NonZeroU16>,
    slot: u32,
    epoch: NonZeroU32,
    #[serde(default)]
    counts: Counts,
    /// How often it came or went.
    #[serde(default)]
    transitions: u64,
    /// Failures in a row.
    #[serde(default)]
    streak: u32,
    /// Why its checks took it out.
    down: Option<Box<str>>,
    #[serde(default)]
    agent: AgentState,
    #[serde(default)]
    ejection: EjectionMemory,
    #[serde(default)]
    orders: OrdersMemory,
    /// When it came, of one that begins slowly.
    since: Option<u64>,
    /// How it stands is not known.
    #[serde(default)]
    numbers_only: bool,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct OrdersMemory {
    drained: Option<(u64, bool)>,
    ejected: Option<(u64, bool)>,
    admitted: Option<(u64, bool)>,
    percent: Option<(u32, (u64, bool))>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct EjectionMemory {
    until: Option<u64>,
    cause: Option<Box<str>>,
    times: u32,
    ended: u64,
}

impl Memory {
    /// Takes out what is known of a service.
    pub(super) fn take(&mut self, key: &ServiceKey) -> Option<ServiceMemory> {
        self.services.remove(&*key.0)
    }

    /// What it says that was counted.
    pub(super) fn counted(&self) -> BTreeMap<String, LateCounts> {
        let of = |service: &ServiceMemory| {
            let backends = service.backends.iter().map(|backend| {
                (BackendAddr::new(backend.ip, backend.port).to_string(), backend.counts.clone())
            });
            LateCounts { service: service.counts.clone(), backends: backends.collect() }
        };
        self.services.iter().map(|(key, service)| (key.clone(), of(service))).collect()
    }

    /// The numbers of all backends.
    pub(super) fn backends(&self) -> impl Iterator<Item = BackendId> {
        self.services.values().flat_map(|it| &it.backends).map(BackendMemory::id)
    }

    /// The largest number of a service.
    pub(super) fn last_service(&self) -> u32 {
        self.services.values().map(|it| it.id).max().unwrap_or(0)
    }
}

impl ServiceMemory {
    pub(super) fn id(&self) -> ServiceId {
        ServiceId(self.id)
    }

    /// Knows the number of a backend, and nothing else of it.
    pub(super) fn know(&mut self, addr: BackendAddr, id: BackendId) {
        self.backends.push(BackendMemory {
            ip: addr.ip(),
            port: addr.port(),
            slot: id.slot,
            epoch: id.epoch,
            counts: Counts::new(),
            transitions: 0,
            streak: 0,
            down: None,
            agent: AgentState::default(),
            ejection: EjectionMemory::default(),
            orders: OrdersMemory::default(),
            since: None,
            numbers_only: true,
        });
    }

    pub(super) fn backend(&self, addr: BackendAddr) -> Option<&BackendMemory> {
        self.backends.iter().find(|it| (it.ip, it.port) == (addr.ip(), addr.port()))
    }
}

impl BackendMemory {
    pub(super) fn id(&self) -> BackendId {
        BackendId { slot: self.slot, epoch: self.epoch }
    }

    /// Has a backend that was made anew stand as it did; `worker` is the control loop's own copy of the
    /// counters.
    pub(super) fn bring_back(&self, live: &mut LiveBackend, worker: usize) {
        add(live.backend.counters.of(worker).named(), &self.counts);
        live.seen = live.backend.counters.totals();
        live.backend.transitions.add(self.transitions);
        if self.numbers_only {
            return;
        }
        live.down.clone_from(&self.down);
        live.agent.clone_from(&self.agent);
        live.ejection = (&self.ejection).into();
        live.orders = (&self.orders).into();
        live.ramp = self.since.map(|since| Ramp { since: Tick(since) });
        for _ in 0..self.streak {
            // What follows from it has followed already.
            let _ = live.backend.streak.failed(0);
        }
    }

    fn of(live: &LiveBackend) -> Self {
        let backend = &live.backend;
        Self {
            ip: backend.addr.ip(),
            port: backend.addr.port(),
            slot: backend.id.slot,
            epoch: backend.id.epoch,
            counts: sum(backend.counters.iter().flat_map(BackendCounters::named)),
            transitions: backend.transitions.get(),
            streak: backend.streak.len(),
            down: live.down.clone(),
            agent: live.agent.clone(),
            ejection: (&live.ejection).into(),
            orders: (&live.orders).into(),
            since: live.ramp.map(|ramp| ramp.since.0),
            numbers_only: false,
        }
    }
}

/// The sums of counters by their names; what was never counted is left out.
pub(crate) fn sum<'c>(
    named: impl Iterator<Item = (&'static str, &'static str, &'c Counter)>,
) -> Counts {
    let mut counts = Counts::new();
    for (name, label, counter) in named {
        if counter.get() > 0 {
            *counts.entry(format!("{name} {label}")).or_default() += counter.get();
        }
    }
    counts
}

/// Adds counts to the counters of those names; names that are not known are of another version.
pub(crate) fn add<'c>(
    named: impl Iterator<Item = (&'static str, &'static str, &'c Counter)>,
    counts: &Counts,
) {
    for (name, label, counter) in named {
        if let Some(count) = counts.get(&format!("{name} {label}")) {
            counter.add(*count);
        }
    }
}

impl From<&Orders> for OrdersMemory {
    fn from(orders: &Orders) -> Self {
        let plain = |since: Since| (since.at.0, since.until_reload);
        Self {
            drained: orders.drained.map(plain),
            ejected: orders.ejected.map(plain),
            admitted: orders.admitted.map(plain),
            percent: orders.percent.map(|(percent, since)| (percent, plain(since))),
        }
    }
}

impl From<&OrdersMemory> for Orders {
    fn from(memory: &OrdersMemory) -> Self {
        let since = |(at, until_reload)| Since { at: Tick(at), until_reload };
        Self {
            drained: memory.drained.map(since),
            ejected: memory.ejected.map(since),
            admitted: memory.admitted.map(since),
            percent: memory.percent.map(|(percent, at)| (percent, since(at))),
        }
    }
}

impl From<&Ejection> for EjectionMemory {
    fn from(ejection: &Ejection) -> Self {
        let Ejection { until, cause, times, ended } = ejection.clone();
        Self { until: until.map(|at| at.0), cause, times, ended: ended.0 }
    }
}

impl From<&EjectionMemory> for Ejection {
    fn from(memory: &EjectionMemory) -> Self {
        let EjectionMemory { until, cause, times, ended } = memory.clone();
        Self { until: until.map(Tick), cause, times, ended: Tick(ended) }
    }
}

impl Control {
    /// The copy of each counter that is ours: of what processes before this one counted.
    pub(super) fn own_copy(&self) -> usize {
        self.workers.len()
    }

    /// What the next process is to know of the services.
    pub(crate) fn memory(&self) -> Memory {
        let of = |live: &Live| ServiceMemory {
            id: live.id.0,
            counts: sum(live.state.counters.iter().flat_map(ServiceCounters::named)),
            backends: live.all().map(BackendMemory::of).collect(),
        };
        let services = self.services.iter().map(|(key, live)| (key.0.to_string(), of(live)));
        Memory { services: services.collect() }
    }

    /// Goes by what a process before this one knew, whose last snapshot had this number: its services keep
    /// their numbers, counters and the standing of their backends. Before anything is served.
    pub(crate) fn remember(&mut self, memory: Memory, generation: u64) {
        let mut empty = Snapshot::empty();
        empty.generation = generation;
        self.publisher.publish(empty);
        self.ids.reserve(memory.backends());
        self.next_service = self.next_service.max(memory.last_service());
        self.memory = memory;
    }

    /// Has a service that was built with what is remembered of it go on by that.
    pub(super) fn recall(&mut self, key: &ServiceKey, live: &mut Live, memory: &ServiceMemory) {
        add(live.state.counters.of(self.own_copy()).named(), &memory.counts);
        live.count_from_here();
        live.grow(self.clock.now());
        if live.all().any(|it| it.ejection.until.is_some()) {
            self.ejected.insert(key.clone());
        }
        let drained = live.all().filter(|it| it.orders.drained.is_some());
        let drained: Vec<_> = drained.map(|it| Arc::clone(&it.backend)).collect();
        self.retiring.drain(key, drained, live.spec.policy.drain_timeout, self.clock.now());
    }

    /// Adds what a process before this one has counted since.
    pub(crate) fn count_late(&mut self, counts: &BTreeMap<String, LateCounts>) {
        let own = self.own_copy();
        for (key, late) in counts {
            let Some(live) = self.services.get(&ServiceKey(key.as_str().into())) else { continue };
            add(live.state.counters.of(own).named(), &late.service);
            for (addr, counts) in &late.backends {
                if let Some(live) = live.all().find(|it| it.backend.addr.to_string() == *addr) {
                    add(live.backend.counters.of(own).named(), counts);
                }
            }
        }
    }

    /// What was counted since `before`, which it brings up to date.
    pub(crate) fn late_counts(
        &self,
        before: &mut BTreeMap<String, LateCounts>,
    ) -> BTreeMap<String, LateCounts> {
        let mut news = BTreeMap::new();
        for (key, live) in &self.services {
            let backends = live.all().map(|it| {
                let counts = sum(it.backend.counters.iter().flat_map(BackendCounters::named));
                (it.backend.addr.to_string(), counts)
            });
            let now = LateCounts {
                service: sum(live.state.counters.iter().flat_map(ServiceCounters::named)),
                backends: backends.collect(),
            };
            let before = before.entry(key.0.to_string()).or_default();
            if *before != now {
                news.insert(key.0.to_string(), now.since(before));
                *before = now;
            }
        }
        news
    }
}

/// What a service's counters say.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct LateCounts {
    service: Counts,
    /// By address.
    backends: BTreeMap<String, Counts>,
}

impl LateCounts {
    fn since(&self, before: &Self) -> Self {
        let less = |now: &Counts, before: Option<&Counts>| -> Counts {
            let before = |name: &str| before.and_then(|it| it.get(name)).copied().unwrap_or(0);
            now.iter().map(|(name, n)| (name.clone(), n.saturating_sub(before(name)))).collect()
        };
        let backends = self.backends.iter();
        Self {
            service: less(&self.service, Some(&before.service)),
            backends: backends
                .map(|(addr, now)| (addr.clone(), less(now, before.backends.get(addr))))
                .collect(),
        }
    }
}
