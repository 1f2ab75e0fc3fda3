//! A service in a snapshot: its groups of backends, who is admitted, and the state that outlives
//! snapshots.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::IpAddr;
use core::sync::atomic::{AtomicBool, AtomicU64};

use crate::backend::Places;
use crate::hash::mixed;
use crate::{
    Admission, Backend, BackendAddr, MaglevTable, Mode, PerWorker, Policy, Protocol, Scheduler,
    ServiceCounters, ServiceId, Share, Standing, TableSize, Tick, Turns, Weight,
};

/// Largest pool.
const MAX_MEMBERS: usize = u16::MAX as usize;

/// Why a pool cannot be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// One address, two entries.
    #[error("backend {addr} is listed twice")]
    Duplicate {
        /// The address.
        addr: BackendAddr,
    },
    /// More backends than a table can name.
    #[error("{count} backends are more than the {MAX_MEMBERS} that a pool can hold")]
    TooMany {
        /// How many there are.
        count: usize,
    },
}

/// A configured backend of a pool.
#[derive(Debug, Clone)]
pub struct Member {
    /// The backend, shared with other snapshots.
    pub backend: Arc<Backend>,
    /// Its share of new flows.
    pub weight: Weight,
}

/// Configured backends and the table built from them. Health never changes a pool.
pub struct Pool {
    members: Vec<Member>,
    layout: Layout,
}

pub(crate) enum Layout {
    /// Slots of a consistent hash; random schedulers draw from it too.
    Table(MaglevTable),
    /// Turns of a round.
    Turns(Turns),
    /// Members are compared one by one.
    List,
}

impl Pool {
    /// Builds the pool of `members`, in any order; an empty pool is a state.
    ///
    /// The table follows from addresses, weights and scheduler alone. Costs what the table costs:
    /// up to some milliseconds, so off the workers.
    pub fn build(mut members: Vec<Member>, scheduler: &Scheduler) -> Result<Self, BuildError> {
        if members.len() > MAX_MEMBERS {
            return Err(BuildError::TooMany { count: members.len() });
        }
        members.sort_by_key(|member| member.backend.addr);
        for pair in members.windows(2) {
            if pair[0].backend.addr == pair[1].backend.addr {
                return Err(BuildError::Duplicate { addr: pair[0].backend.addr });
            }
        }
        members.shrink_to_fit();
        let layout = match scheduler {
            Scheduler::Maglev { table_size, .. } => Layout::Table(table(&members, *table_size)),
            Scheduler::Random | Scheduler::PowerOfTwo => Layout::Table(table(&members, None)),
            Scheduler::RoundRobin => {
                let weights: Vec<_> = members.iter().map(|member| member.weight).collect();
                Layout::Turns(Turns::build(&weights))
            }
            Scheduler::LeastConnections
            | Scheduler::ShortestExpectedDelay
            | Scheduler::NeverQueue => Layout::List,
        };
        Ok(Self { members, layout })
    }

    /// The members, ordered by address.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Slots of the pool's table, or turns of its round; zero when it has neither.
    #[must_use]
    pub fn table_len(&self) -> usize {
        match &self.layout {
            Layout::Table(table) => table.owners().len(),
            Layout::Turns(turns) => turns.len(),
            Layout::List => 0,
        }
    }

    /// The owners of the slots, for a pool with a hash table.
    #[must_use]
    pub fn table(&self) -> Option<&MaglevTable> {
        match &self.layout {
            Layout::Table(table) => Some(table),
            _ => None,
        }
    }

    /// The pool's admission when each member stands as `standing` says.
    #[must_use]
    pub fn admission(&self, standing: impl Fn(&Backend) -> Standing) -> Admission {
        Admission::new(self.members.iter().map(|m| (m.weight.get(), standing(m.backend.as_ref()))))
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }
}

fn table(members: &[Member], size: Option<TableSize>) -> MaglevTable {
    let keys: Vec<_> = members.iter().map(|m| (m.backend.addr, m.weight)).collect();
    let size = size.unwrap_or_else(|| TableSize::for_backends(keys.len()));
    MaglevTable::build(&keys, size)
}

/// What a service keeps from snapshot to snapshot.
#[derive(Debug)]
pub struct ServiceState {
    /// Each worker's counts.
    pub counters: PerWorker<ServiceCounters>,
    /// The generation with which its table was last built; the control loop writes it.
    pub table_generation: AtomicU64,
    /// How long that took, in microseconds.
    pub table_build_us: AtomicU64,
    /// Too few backends are healthy, so all are used; the control loop writes it.
    pub panic: AtomicBool,
    active: Places,
}

impl ServiceState {
    /// The state of a service without load, for `workers` workers.
    #[must_use]
    pub fn new(workers: usize) -> Arc<Self> {
        Arc::new(Self {
            counters: PerWorker::new(workers),
            table_generation: AtomicU64::new(0),
            table_build_us: AtomicU64::new(0),
            panic: AtomicBool::new(false),
            active: Places::default(),
        })
    }

    /// Open connections.
    #[must_use]
    pub fn active(&self) -> u32 {
        self.active.taken()
    }

    /// Takes a place among at most `max`; each success is paid back by one [`Self::close`].
    #[must_use]
    pub fn try_open(&self, max: Option<u32>) -> bool {
        self.active.take(max)
    }

    /// Gives a place back.
    pub fn close(&self) {
        self.active.give_back();
    }
}

/// A service as one snapshot shows it. Cheap to copy with another admission.
#[derive(Clone)]
pub struct Service {
    /// Which one.
    pub id: ServiceId,
    /// `name/port` as the configuration has it; in metrics and logs.
    pub name: Arc<str>,
    /// Its transport protocol.
    pub protocol: Protocol,
    /// What is spoken over it, as its owner says; in metrics.
    pub app_protocol: Option<Arc<str>>,
    /// How it treats flows.
    pub policy: Arc<Policy>,
    /// Its backends, those that serve first at the front; most services have one group, with
    /// everybody.
    pub groups: Box<[Group]>,
    /// Its tables before the last change, while flows of that time may come without state.
    pub previous: Option<Previous>,
    /// Counters and load.
    pub state: Arc<ServiceState>,
}

/// The tables that a service had.
#[derive(Clone)]
pub struct Previous {
    /// Those who served first at the front.
    pub pools: Box<[Arc<Pool>]>,
    /// How long flows may remember them.
    pub until: Tick,
}

/// Backends of one priority.
#[derive(Clone)]
pub struct Group {
    /// Who they are.
    pub pool: Arc<Pool>,
    /// Who of them is admitted.
    pub admission: Admission,
    /// The part of the flows that come this far which it takes; the rest goes on to the group
    /// after it.
    pub share: Share,
}

impl Group {
    /// The group of `pool` whose members stand as `standing` says, and which takes everything.
    #[must_use]
    pub fn new(pool: Arc<Pool>, standing: impl Fn(&Backend) -> Standing) -> Self {
        Self { admission: pool.admission(standing), pool, share: Share::FULL }
    }

    /// Whether it takes the flow that starts at `flow` and has come this far. As its share shrinks
    /// flows leave it, and as the share grows the same ones come back.
    pub(crate) fn takes(&self, flow: u64) -> bool {
        self.share == Share::FULL || self.share.has(mixed(flow ^ GROUP))
    }

    /// Whether it leaves nothing to the groups after it, limits aside.
    pub(crate) fn is_whole(&self) -> bool {
        self.share == Share::FULL && self.admission.admitted() > 0
    }
}

/// Draws of groups are others than those of backends and slots.
const GROUP: u64 = 0x6a09_e667_f3bc_c908;

impl Service {
    /// The addresses by which it speaks to its backends and that are ours alone: those of packets
    /// whose source is rewritten.
    pub fn local_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let rewrites = matches!(self.policy.mode, Mode::Nat | Mode::FullNat);
        self.policy.source.addresses.iter().filter(move |_| rewrites).copied()
    }

    /// Every backend with its standing, by group.
    pub fn backends(&self) -> impl Iterator<Item = (&Member, Standing)> {
        self.groups.iter().flat_map(|group| {
            let members = group.pool.members.iter().enumerate();
            members.map(move |(n, member)| (member, group.admission.standing(n as u16)))
        })
    }
}
