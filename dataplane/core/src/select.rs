//! Selection: a flow has a sequence of candidates, and takes the first that is admitted.
//!
//! Candidate k of a hashing scheduler owns slot `(h + k·step) mod M` of the service's table, with
//! `h` the flow hash and `step = 1 + (h / M) mod (M - 1)`; M is prime, so the walk meets every
//! slot. After [`WALK`] slots the walk ends in the list of the admitted, at place `h`. A failed
//! backend's flows therefore spread over the others, no other flow moves, and a retry (the same
//! walk without the backends tried before) ends where the flow would go once health checking has
//! noticed.

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::hash::mixed;
use crate::service::Layout;
use crate::{
    Admission, Backend, BackendAddr, BackendId, EndReason, Group, Member, Pool, Scheduler, Service,
    Share, Tick,
};

/// Slots that are looked at before the list of the admitted is.
const WALK: u64 = 16;

/// Turns of a round that are looked at before the list of the admitted is: with every backend at
/// its limit, a long round costs no more.
const TURNS: u64 = 64;

/// A selected backend. A place on it has been taken: pay it back with [`Backend::close`].
#[derive(Debug)]
pub struct Pick<'a> {
    /// The backend.
    pub backend: &'a Arc<Backend>,
    /// Number of its group; 0 serves first.
    pub group: usize,
}

/// Backends that a flow has tried, to be passed over.
///
/// Sorted, so that a flow that meets a long row of failing backends stays cheap.
#[derive(Debug, Clone, Default)]
pub struct Tried(Vec<BackendId>);

impl Tried {
    /// Nobody.
    pub const NONE: Self = Self(Vec::new());

    /// Adds a backend.
    pub fn insert(&mut self, id: BackendId) {
        if let Err(place) = self.0.binary_search(&id) {
            self.0.insert(place, id);
        }
    }

    /// Whether `id` was tried.
    #[must_use]
    pub fn contains(&self, id: BackendId) -> bool {
        self.0.binary_search(&id).is_ok()
    }

    /// How many were tried.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none was.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Forgets them, and keeps the memory.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

impl Service {
    /// Where a new flow's sequence of candidates starts; kept with the flow for its retries.
    ///
    /// `hash` is the flow hash, `random` any number without pattern.
    #[must_use]
    pub fn start(&self, hash: u64, random: u64, worker: usize) -> u64 {
        match self.policy.scheduler {
            Scheduler::Maglev { .. } => hash,
            Scheduler::Random | Scheduler::PowerOfTwo => random,
            Scheduler::RoundRobin
            | Scheduler::LeastConnections
            | Scheduler::ShortestExpectedDelay
            | Scheduler::NeverQueue => {
                let cursor = &self.state.counters.of(worker).cursor;
                let turn = cursor.get();
                cursor.inc();
                // Workers start their rounds at different backends.
                turn.wrapping_add((worker as u64).wrapping_mul(0x9e37_79b9))
            }
        }
    }

    /// Takes a place on the first candidate from `start` that is admitted, has a place free and
    /// is not among `tried`.
    ///
    /// Groups are asked in their order, each for its share of the flows; then those that left the
    /// flow to others, and ejected backends when no group has anybody. `Err` says how the flow ends.
    /// Hashing, random and round-robin schedulers look at some slots, those that compare loads at
    /// every member of the pool.
    pub fn select(&self, start: u64, tried: &Tried, worker: usize) -> Result<Pick<'_>, EndReason> {
        if let Some(pick) = self.search(start, tried, Some(worker)) {
            return Ok(pick);
        }
        let admitted: usize = self.groups.iter().map(|group| group.admission.admitted()).sum();
        Err(match (admitted, tried.len()) {
            (0, 0) => EndReason::NoBackend,
            (_, 0) => EndReason::Limited,
            _ => EndReason::ConnectFailed,
        })
    }

    /// The candidates of the flow at `start` in the order in which it and its retries would try
    /// them now. Takes no place and turns no round: for people who ask why.
    #[must_use]
    pub fn candidates(&self, start: u64) -> Vec<Pick<'_>> {
        let (mut tried, mut order) = (Tried::default(), Vec::new());
        while let Some(pick) = self.search(start, &tried, None) {
            tried.insert(pick.backend.id);
            order.push(pick);
        }
        order
    }

    /// The slots that a hashing scheduler looks at in group number `group` for the flow at `start`,
    /// and who owns each; empty for other schedulers.
    #[must_use]
    pub fn slots(&self, start: u64, group: usize) -> Vec<(u64, u16)> {
        let table = self.groups.get(group).and_then(|group| group.pool.table());
        match (&self.policy.scheduler, table) {
            (Scheduler::Maglev { .. }, Some(table)) => {
                let size = u64::from(table.size());
                let owned = |slot| Some((slot, table.owner(slot)?));
                walk_of(start, size).take(WALK as usize).filter_map(owned).collect()
            }
            _ => Vec::new(),
        }
    }

    fn search(&self, start: u64, tried: &Tried, worker: Option<usize>) -> Option<Pick<'_>> {
        let limit = self.policy.limits.backend_connections;
        let groups = || {
            self.groups.iter().enumerate().map(|(n, group)| {
                let Group { pool, admission, .. } = group;
                (n, group, Search { service: self, pool, admission, tried, limit, worker, start })
            })
        };
        let find = |takes: &dyn Fn(&Group) -> bool| {
            groups()
                .filter(|(_, group, _)| takes(group))
                .find_map(|(n, _, search)| Some(Pick { backend: search.run()?, group: n }))
        };
        let last_resort = || {
            groups()
                .find_map(|(n, _, search)| Some(Pick { backend: search.last_resort()?, group: n }))
        };
        find(&|group| group.takes(start))
            .or_else(|| find(&|group| !group.takes(start)))
            .or_else(last_resort)
    }

    /// Takes a place for the flow at `start` that began elsewhere or before, and whose state is not
    /// here: on the candidate that it had, which needs to be alone what it was then, "not failed".
    /// The tables before the last change are asked first. None when no table says.
    #[must_use]
    pub fn select_existing(&self, start: u64, now: Tick) -> Option<Pick<'_>> {
        let previous = self.previous.iter().filter(|previous| previous.until >= now);
        let previous = previous.flat_map(|previous| previous.pools.iter().enumerate());
        let takes = |(_, group): &(usize, &Group)| group.takes(start);
        let groups = self.groups.iter().enumerate().filter(takes);
        let current = groups.map(|(n, group)| (n, &group.pool));
        let pools = previous.chain(current);
        let hashes = matches!(self.policy.scheduler, Scheduler::Maglev { .. });
        let found = pools.filter(|_| hashes).find_map(|(group, pool)| {
            let table = pool.table()?;
            let slots = walk_of(start, u64::from(table.size())).take(WALK as usize);
            let owners = slots.filter_map(|slot| table.owner(slot));
            let backends = owners.map(|owner| &pool.members()[usize::from(owner)].backend);
            let backend = backends.into_iter().find(|backend| !backend.standing().failed)?;
            Some(Pick { backend, group })
        })?;
        // No limit turns away what has been let in.
        let _ = found.backend.try_open(None);
        Some(found)
    }

    /// Takes a place on the backend `id` if it is here, admitted and has one free.
    #[must_use]
    pub fn select_known(&self, id: BackendId) -> Option<Pick<'_>> {
        let place = self.groups.iter().enumerate().find_map(|(n, group)| {
            let member = group.pool.members().iter().position(|m| m.backend.id == id)?;
            Some((n, member))
        });
        let (n, member) = place?;
        let group = &self.groups[n];
        if !group.admission.admits(member as u16) || self.spares(n) {
            return None;
        }
        let backend = &group.pool.members()[member].backend;
        let limit = self.policy.limits.backend_connections;
        backend.try_open(limit).then_some(Pick { backend, group: n })
    }

    /// Whether a flow that is on the backend `id` at `addr` may stay there: it is here, admitted,
    /// and no backup that the groups before it can do without. Costs a binary search a group.
    #[must_use]
    pub fn keeps(&self, id: BackendId, addr: BackendAddr) -> bool {
        let find = |group: &Group| {
            let members = group.pool.members();
            let place = members.binary_search_by_key(&addr, |m| m.backend.addr).ok()?;
            (members[place].backend.id == id).then_some(place as u16)
        };
        let mut groups = self.groups.iter().enumerate();
        groups
            .find_map(|(n, group)| Some((n, group, find(group)?)))
            .is_some_and(|(n, group, place)| group.admission.admits(place) && !self.spares(n))
    }

    /// Whether a group before number `n` takes every flow, so that `n` is not needed.
    fn spares(&self, n: usize) -> bool {
        self.groups[..n].iter().any(Group::is_whole)
    }
}

struct Search<'a, 't> {
    service: &'a Service,
    pool: &'a Pool,
    admission: &'a Admission,
    tried: &'t Tried,
    limit: Option<u32>,
    /// Who asks; nobody takes a place.
    worker: Option<usize>,
    /// Where the flow's sequence of candidates starts.
    start: u64,
}

impl<'a> Search<'a, '_> {
    fn run(&self) -> Option<&'a Arc<Backend>> {
        if self.admission.admitted() == 0 {
            return None;
        }
        match (&self.service.policy.scheduler, self.pool.layout()) {
            (Scheduler::Maglev { bounded_load_percent: Some(percent), .. }, Layout::Table(_)) => {
                // With every candidate above its bound (others were tried before), any will do.
                self.walk(|member| self.within_bound(member, *percent))
                    .or_else(|| self.walk(|_| true))
            }
            (Scheduler::PowerOfTwo, Layout::Table(_)) => self.lighter_of_two(),
            (Scheduler::Random, Layout::Table(_)) => self.draw(),
            (_, Layout::Table(_)) => self.walk(|_| true),
            (_, Layout::Turns(_)) => self.next_turn(),
            (scheduler, Layout::List) => self.least(*scheduler),
        }
    }

    /// Someone who is ejected, from place `start` on. Looks at every member, and only when nobody
    /// admits the flow.
    fn last_resort(&self) -> Option<&'a Arc<Backend>> {
        let Admission::Some { standing, .. } = self.admission else { return None };
        let members = self.pool.members();
        let from = (self.start % members.len().max(1) as u64) as usize;
        (from..members.len())
            .chain(0..from)
            .filter(|place| standing[*place].is_last_resort())
            .map(|place| &members[place])
            .filter(|member| !self.tried.contains(member.backend.id))
            .find_map(|member| self.open(member))
    }

    /// The member if it may be offered this flow and its share of the flows has it; no place is
    /// taken yet.
    fn eligible(&self, index: u16) -> Option<&'a Member> {
        let member = &self.pool.members()[usize::from(index)];
        let fits = self.admission.takes(index, member.backend.key, self.start)
            && !self.tried.contains(member.backend.id)
            && self.limit.is_none_or(|limit| member.backend.active() < limit);
        fits.then_some(member)
    }

    fn open(&self, member: &'a Member) -> Option<&'a Arc<Backend>> {
        let taken = match self.worker {
            Some(_) => member.backend.try_open(self.limit),
            None => self.limit.is_none_or(|limit| member.backend.active() < limit),
        };
        taken.then_some(&member.backend)
    }

    fn walk(&self, accept: impl Fn(&Member) -> bool) -> Option<&'a Arc<Backend>> {
        let table = self.pool.table()?;
        for slot in walk_of(self.start, u64::from(table.size())).take(WALK as usize) {
            let candidate = table.owner(slot).and_then(|owner| self.eligible(owner));
            if let Some(backend) = candidate.filter(|m| accept(m)).and_then(|m| self.open(m)) {
                return Some(backend);
            }
        }
        self.listed(self.start, accept)
    }

    /// The admitted that were not tried, one after the other from place `from` on: first those
    /// whose share of the flows has this one. Counting without the tried makes a retry agree with
    /// the failover that follows it.
    ///
    /// Looks at every admitted member: the walk ends here only when most of the pool is down.
    fn listed(&self, from: u64, accept: impl Fn(&Member) -> bool) -> Option<&'a Arc<Backend>> {
        let untried = || {
            let admitted = self.admission.admitted() as u64;
            (0..admitted)
                .filter_map(|n| self.admission.nth(n))
                .map(|index| (index, &self.pool.members()[usize::from(index)]))
                .filter(|(_, member)| !self.tried.contains(member.backend.id))
        };
        let count = untried().count();
        if count == 0 {
            return None;
        }
        let from = (from % count as u64) as usize;
        let in_order = || {
            let members = untried().skip(from).chain(untried().take(from));
            members.filter(|(_, member)| accept(member))
        };
        in_order()
            .filter(|(index, member)| self.admission.takes(*index, member.backend.key, self.start))
            .find_map(|(_, member)| self.open(member))
            .or_else(|| in_order().find_map(|(_, member)| self.open(member)))
    }

    /// Bounded load (Mirrokni et al., "Consistent Hashing with Bounded Loads", 2018): at most
    /// `percent` hundredths of the fair share of all connections, this one counted, rounded up.
    fn within_bound(&self, member: &Member, percent: u32) -> bool {
        let total = u64::from(self.service.state.active().max(1));
        let weight = u64::from(self.admission.weight().max(1));
        let share = total * u64::from(member.weight.get()) * u64::from(percent);
        u64::from(member.backend.active()) < share.div_ceil(weight * 100).max(1)
    }

    /// Members drawn by the table's weights, and the shares that they take.
    fn drawn(&self) -> impl Iterator<Item = (&'a Member, Share)> {
        let (table, random) = (self.pool.table(), self.start);
        (0..WALK).filter_map(move |n| {
            let owner = table?.owner(mixed(random.wrapping_add(n)))?;
            Some((self.eligible(owner)?, self.admission.standing(owner).share))
        })
    }

    fn draw(&self) -> Option<&'a Arc<Backend>> {
        self.drawn()
            .find_map(|(member, _)| self.open(member))
            .or_else(|| self.listed(mixed(self.start), |_| true))
    }

    fn lighter_of_two(&self) -> Option<&'a Arc<Backend>> {
        let mut drawn = self.drawn();
        let first = drawn.next();
        let second = first.and_then(|(a, _)| drawn.find(|(b, _)| b.backend.id != a.backend.id));
        let (first, second) = match (first, second) {
            (Some(a), Some(b)) if heavier(a, b, 0) => (Some(b), Some(a)),
            pair => pair,
        };
        first
            .and_then(|(member, _)| self.open(member))
            .or_else(|| second.and_then(|(member, _)| self.open(member)))
            .or_else(|| self.listed(mixed(self.start), |_| true))
    }

    /// The turn at the flow's start or the next one whose backend is eligible. Turns that were
    /// passed over are used up, so that a failed backend's turns are shared by all others.
    fn next_turn(&self) -> Option<&'a Arc<Backend>> {
        let Layout::Turns(turns) = self.pool.layout() else {
            return None;
        };
        let round = turns.len() as u64;
        let mut used_up = 0;
        for passed in 0..round.min(TURNS) {
            let Some(index) = turns.at(self.start % round + passed) else { continue };
            let member = self.eligible(index);
            if let Some(backend) = member.and_then(|member| self.open(member)) {
                if let Some(worker) = self.worker.filter(|_| self.tried.is_empty()) {
                    self.service.state.counters.of(worker).cursor.add(used_up);
                }
                return Some(backend);
            }
            // A turn that a starting backend leaves to the next costs the next no turn of its own.
            let key = self.pool.members()[usize::from(index)].backend.key;
            let left =
                self.admission.admits(index) && !self.admission.takes(index, key, self.start);
            used_up += u64::from(!left);
        }
        self.listed(self.start, |_| true)
    }

    fn least(&self, scheduler: Scheduler) -> Option<&'a Arc<Backend>> {
        // A member that filled up between comparing and opening is passed over the next time,
        // as its load then reads as full.
        for _ in 0..4 {
            let Some(member) = self.lightest(scheduler) else { break };
            if let Some(backend) = self.open(member) {
                return Some(backend);
            }
        }
        self.listed(self.start, |_| true)
    }

    /// The member with the least load for its weight, of which a member with a smaller share has
    /// that share only.
    fn lightest(&self, scheduler: Scheduler) -> Option<&'a Member> {
        let counted = match scheduler {
            Scheduler::LeastConnections => 0,
            _ => 1,
        };
        let count = self.admission.admitted() as u64;
        let mut best: Option<(&Member, Share)> = None;
        for n in 0..count {
            let Some(index) = self.admission.nth((self.start % count) + n) else {
                continue;
            };
            // While all are idle there is nothing to compare: the share alone holds it back then.
            let Some(member) = self.eligible(index) else {
                continue;
            };
            let share = self.admission.standing(index).share;
            if scheduler == Scheduler::NeverQueue && member.backend.active() == 0 {
                return Some(member);
            }
            if best.is_none_or(|best| heavier(best, (member, share), counted)) {
                best = Some((member, share));
            }
        }
        best.map(|(member, _)| member)
    }
}

/// The slots of a table of `size` that the flow with `hash` looks at, in order.
fn walk_of(hash: u64, size: u64) -> impl Iterator<Item = u64> {
    let step = 1 + (hash / size) % (size - 1);
    core::iter::successors(Some(hash % size), move |slot| Some((slot + step) % size))
}

/// Whether `a` carries more for its part of its weight than `b`, with `counted` connections added
/// to each.
fn heavier(a: (&Member, Share), b: (&Member, Share), counted: u64) -> bool {
    let load = |m: &Member| u64::from(m.backend.active()) + counted;
    // 32 bits of load, 10 of weight, 17 of share.
    let weight = |(m, share): (&Member, Share)| u64::from(m.weight.get()) * share.parts();
    load(a.0) * weight(b) > load(b.0) * weight(a)
}

#[cfg(test)]
#[path = "select_tests.rs"]
pub(crate) mod tests;
