//! Everything that a worker reads, in one immutable value.
//!
//! The map of services is sharded: a change copies the shards that it touches and shares the
//! rest with the snapshot before.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;

use ahash::RandomState;
use hashbrown::HashMap;

use crate::packet::Routes;
use crate::{IpPrefix, Mode, PortRange, Protocol, Service, ServiceId, VipAddr};

/// Number of shards: with 10,000 services a change copies about 20 entries, and a reference count a shard.
const SHARDS: usize = 512;

/// Where a service listens: an address and a port or a range of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// The VIP, or a network of them.
    pub net: IpPrefix,
    /// Its ports.
    pub ports: PortRange,
    /// The transport protocol.
    pub protocol: Protocol,
}

impl Frontend {
    /// The VIP, or the first of its network.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        self.net.address()
    }
}

/// As people write it: `192.0.2.10:80`, `[2001:db8::10]:80`, `192.0.2.0/28:8000-8099`.
impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { net, ports, .. } = self;
        match net.is_ipv4() {
            true => write!(f, "{net}:{ports}"),
            false => write!(f, "[{net}]:{ports}"),
        }
    }
}

/// What a look-up by a single port, or by address for ranges, is keyed with.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    Port(IpAddr, u16, Protocol),
    Ranges(IpPrefix, Protocol),
    /// Of packet services: ours to answer for, and ours to dial.
    Answered(IpPrefix),
    Vip(IpPrefix),
    /// Of those to dial, where echo requests are answered.
    Echoed(IpPrefix),
}

#[derive(Clone)]
enum Entry {
    One(Arc<Service>),
    /// Ranges on one address or network, by first port, disjoint.
    Ranges(Vec<(PortRange, Arc<Service>)>),
    /// How many packet services have an address.
    Count(u32),
}

type Shard = HashMap<Key, Entry, RandomState>;
type ById = HashMap<ServiceId, Arc<Service>, RandomState>;

/// Ports on which stations that ask for an address of a packet service are told that it is here: a bit for
/// each. Addresses that are not in it are told of on all.
pub type Told = BTreeMap<IpPrefix, u64>;

/// One state of the world. Workers read it, the control loop makes the next one.
pub struct Snapshot {
    /// Counts up with every published snapshot, from 1; zero is the empty one at the start.
    pub generation: u64,
    shards: Box<[Arc<Shard>]>,
    ids: Box<[Arc<ById>]>,
    hasher: RandomState,
    services: usize,
    has_ranges: bool,
    /// Lengths of networks that services have, the longest first; families apart.
    lengths: Arc<[Vec<u8>; 2]>,
    routes: Arc<Routes>,
    told: Arc<Told>,
}

impl core::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Snapshot({})", self.generation)
    }
}

impl Snapshot {
    /// The snapshot without services.
    #[must_use]
    pub fn empty() -> Self {
        let hasher = RandomState::new();
        let shard = Arc::new(Shard::with_hasher(hasher.clone()));
        let ids = Arc::new(ById::with_hasher(hasher.clone()));
        Self {
            generation: 0,
            shards: (0..SHARDS).map(|_| Arc::clone(&shard)).collect(),
            ids: (0..SHARDS).map(|_| Arc::clone(&ids)).collect(),
            hasher,
            services: 0,
            has_ranges: false,
            lengths: Arc::default(),
            routes: Arc::default(),
            told: Arc::default(),
        }
    }

    /// The service at `vip`; of networks the longest that has one. One hash look-up, two when any
    /// service listens on a range, and one more for each length of networks.
    #[must_use]
    pub fn lookup(&self, vip: VipAddr, protocol: Protocol) -> Option<&Arc<Service>> {
        let (ip, port) = (vip.0.ip().to_canonical(), vip.0.port());
        if let Some(Entry::One(service)) = self.entry(Key::Port(ip, port, protocol)) {
            return Some(service);
        }
        if !self.has_ranges {
            return None;
        }
        self.nets(ip).find_map(|net| match self.entry(Key::Ranges(net, protocol))? {
            Entry::Ranges(ranges) => {
                let after = ranges.partition_point(|(range, _)| range.first() <= port);
                let (range, service) = ranges.get(after.checked_sub(1)?)?;
                range.contains(port).then_some(service)
            }
            Entry::One(_) | Entry::Count(_) => None,
        })
    }

    /// The address itself, and the networks around it of which there may be some, the smallest
    /// first.
    fn nets(&self, ip: IpAddr) -> impl Iterator<Item = IpPrefix> {
        let lengths = &self.lengths[usize::from(ip.is_ipv6())];
        let around = lengths.iter().map(move |length| IpPrefix::containing(ip, *length));
        core::iter::once(IpPrefix::from(ip)).chain(around)
    }

    /// Whether packets to `ip` are ours to answer, as a service of a packet mode is there: the
    /// kernel knows nothing of such addresses.
    #[must_use]
    pub fn answers_for(&self, ip: IpAddr) -> bool {
        self.nets(ip.to_canonical()).any(|net| self.entry(Key::Answered(net)).is_some())
    }

    /// Whether a station that asks on a port at which station `ip` is, is told that it is here.
    #[must_use]
    pub fn tells(&self, ip: IpAddr, port: u16) -> bool {
        let told = |net: IpPrefix| self.told.get(&net).copied();
        let ports = match self.told.is_empty() {
            true => None,
            false => self.nets(ip.to_canonical()).find_map(told),
        };
        let here = 1_u64.checked_shl(port.into()).unwrap_or(0);
        ports.is_none_or(|ports| ports & here != 0) && self.answers_for(ip)
    }

    /// Whether echo requests to `ip`, which is ours to answer for, are answered: to a VIP, unless all
    /// its services are without backends and say that it is silent then.
    #[must_use]
    pub fn echoes(&self, ip: IpAddr) -> bool {
        let mut nets = self.nets(ip.to_canonical());
        nets.any(|net| self.entry(Key::Echoed(net)).is_some()) || !self.is_vip(ip)
    }

    /// Whether `ip` is dialled by clients of a service of a packet mode.
    #[must_use]
    pub fn is_vip(&self, ip: IpAddr) -> bool {
        self.nets(ip.to_canonical()).any(|net| self.entry(Key::Vip(net)).is_some())
    }

    /// The same for the address itself, not for a network that it is in.
    #[must_use]
    pub fn is_host_vip(&self, ip: IpAddr) -> bool {
        self.entry(Key::Vip(ip.to_canonical().into())).is_some()
    }

    /// The service `id`.
    #[must_use]
    pub fn service(&self, id: ServiceId) -> Option<&Arc<Service>> {
        self.ids[id.0 as usize % SHARDS].get(&id)
    }

    /// Next hops of packets.
    #[must_use]
    pub fn routes(&self) -> &Arc<Routes> {
        &self.routes
    }

    /// Every service, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.ids.iter().flat_map(|shard| shard.values())
    }

    /// Number of services.
    #[must_use]
    pub fn len(&self) -> usize {
        self.services
    }

    /// Whether there is no service.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.services == 0
    }

    fn entry(&self, key: Key) -> Option<&Entry> {
        // Shards hash as the whole does: once is enough.
        let hash = self.hasher.hash_one(key);
        let found = self.shards[shard_of(hash)].raw_entry().from_key_hashed_nocheck(hash, &key);
        found.map(|(_, entry)| entry)
    }
}

/// Makes the next snapshot out of the last one: only touched shards are copied.
pub struct SnapshotBuilder {
    next: Snapshot,
}

impl SnapshotBuilder {
    /// Starts from `last`. Costs one reference count a shard.
    #[must_use]
    pub fn from(last: &Snapshot) -> Self {
        Self {
            next: Snapshot {
                generation: last.generation + 1,
                shards: last.shards.clone(),
                ids: last.ids.clone(),
                hasher: last.hasher.clone(),
                services: last.services,
                has_ranges: last.has_ranges,
                lengths: Arc::clone(&last.lengths),
                routes: Arc::clone(&last.routes),
                told: Arc::clone(&last.told),
            },
        }
    }

    /// Packets find their next hops by `routes` from now on.
    pub fn set_routes(&mut self, routes: &Arc<Routes>) {
        self.next.routes = Arc::clone(routes);
    }

    /// Stations that ask for addresses are answered by this from now on.
    pub fn set_told(&mut self, told: &Arc<Told>) {
        self.next.told = Arc::clone(told);
    }

    /// Puts `service` at its frontends, in place of what was there.
    pub fn insert(&mut self, frontends: &[Frontend], service: &Arc<Service>) {
        for frontend in frontends {
            let net = canonical(frontend.net);
            if let Some(key) = single(frontend) {
                let before = self.shard(&key).insert(key, Entry::One(Arc::clone(service)));
                let before = match before {
                    Some(Entry::One(before)) => Some(before),
                    _ => None,
                };
                self.dial(net, before.as_slice(), Some(service));
                continue;
            }
            self.next.has_ranges = true;
            self.know_length(net);
            let key = Key::Ranges(net, frontend.protocol);
            let entry = self.shard(&key).entry(key).or_insert_with(|| Entry::Ranges(Vec::new()));
            let mut before = Vec::new();
            if let Entry::Ranges(ranges) = entry {
                let there = ranges.extract_if(.., |(range, _)| range.overlaps(&frontend.ports));
                before.extend(there.map(|(_, there)| there));
                let place = ranges.partition_point(|(range, _)| *range < frontend.ports);
                ranges.insert(place, (frontend.ports, Arc::clone(service)));
            }
            self.dial(net, &before, Some(service));
        }
        let ids = Arc::make_mut(&mut self.next.ids[service.id.0 as usize % SHARDS]);
        let before = ids.insert(service.id, Arc::clone(service));
        self.next.services += usize::from(before.is_none());
        self.own(before.as_deref(), Some(service));
    }

    /// Takes the service `id` away from `frontends` and from the list of services.
    pub fn remove(&mut self, frontends: &[Frontend], id: ServiceId) {
        self.vacate(frontends, id);
        let gone = Arc::make_mut(&mut self.next.ids[id.0 as usize % SHARDS]).remove(&id);
        self.next.services -= usize::from(gone.is_some());
        self.own(gone.as_deref(), None);
    }

    /// The addresses by which `new` speaks to its backends are ours to answer for, in place of
    /// those of `old`.
    fn own(&mut self, old: Option<&Service>, new: Option<&Service>) {
        for ip in old.into_iter().flat_map(Service::local_addresses) {
            self.count(Key::Answered(ip.to_canonical().into()), 1, 0);
        }
        for ip in new.into_iter().flat_map(Service::local_addresses) {
            self.count(Key::Answered(ip.to_canonical().into()), 0, 1);
        }
    }

    /// Takes the service `id` away from `frontends`, where it still is there.
    pub fn vacate(&mut self, frontends: &[Frontend], id: ServiceId) {
        for frontend in frontends {
            let net = canonical(frontend.net);
            if let Some(key) = single(frontend) {
                let shard = self.shard(&key);
                if matches!(shard.get(&key), Some(Entry::One(here)) if here.id == id)
                    && let Some(Entry::One(gone)) = shard.remove(&key)
                {
                    self.dial(net, &[gone], None);
                }
                continue;
            }
            let key = Key::Ranges(net, frontend.protocol);
            let shard = self.shard(&key);
            let Some(Entry::Ranges(ranges)) = shard.get_mut(&key) else {
                continue;
            };
            let goes = |(range, here): &mut (PortRange, Arc<Service>)| {
                *range == frontend.ports && here.id == id
            };
            let gone: Vec<_> = ranges.extract_if(.., goes).map(|(_, gone)| gone).collect();
            if ranges.is_empty() {
                shard.remove(&key);
            }
            self.dial(net, &gone, None);
        }
    }

    /// The frontends of `gone` have left `net`, and that of `come` is there.
    fn dial(&mut self, net: IpPrefix, gone: &[Arc<Service>], come: Option<&Arc<Service>>) {
        type Counts = fn(&Service) -> bool;
        let (answered, echoed): (Counts, Counts) = (is_answered, is_echoed);
        let keys = [Key::Vip(net), Key::Answered(net), Key::Echoed(net)];
        for (key, counts) in keys.into_iter().zip([answered, answered, echoed]) {
            let gone = gone.iter().filter(|service| counts(service)).count() as u32;
            self.count(key, gone, u32::from(come.is_some_and(|service| counts(service))));
        }
    }

    /// There may be networks of this length from now on.
    fn know_length(&mut self, net: IpPrefix) {
        let family = usize::from(!net.is_ipv4());
        if !net.is_host() && !self.next.lengths[family].contains(&net.length()) {
            let lengths = &mut Arc::make_mut(&mut self.next.lengths)[family];
            lengths.push(net.length());
            lengths.sort_unstable_by(|a, b| b.cmp(a));
        }
    }

    fn count(&mut self, key: Key, gone: u32, come: u32) {
        if gone == come {
            return;
        }
        let shard = self.shard(&key);
        let before = match shard.get(&key) {
            Some(Entry::Count(count)) => *count,
            _ => 0,
        };
        match (before + come).saturating_sub(gone) {
            0 => shard.remove(&key),
            count => shard.insert(key, Entry::Count(count)),
        };
    }

    /// The finished snapshot.
    #[must_use]
    pub fn finish(self) -> Snapshot {
        self.next
    }

    fn shard(&mut self, key: &Key) -> &mut Shard {
        let shard = shard_of(self.next.hasher.hash_one(key));
        Arc::make_mut(&mut self.next.shards[shard])
    }
}

/// The shard of keys with this hash.
fn shard_of(hash: u64) -> usize {
    (hash >> 48) as usize % SHARDS
}

/// An address in its own family.
fn canonical(net: IpPrefix) -> IpPrefix {
    if net.is_host() { net.address().to_canonical().into() } else { net }
}

/// The key of a frontend with one address and port.
fn single(frontend: &Frontend) -> Option<Key> {
    let Frontend { net, ports, protocol } = *frontend;
    let one = net.is_host() && ports.len() == 1;
    one.then(|| Key::Port(canonical(net).address(), ports.first(), protocol))
}

/// Whether a service's addresses are for us to answer for.
fn is_answered(service: &Service) -> bool {
    service.policy.mode != Mode::Proxy
}

/// Whether a service has its addresses answer echo requests.
fn is_echoed(service: &Service) -> bool {
    let well = || service.groups.iter().any(|group| group.admission.admitted() > 0);
    is_answered(service) && (!service.policy.echo_while_healthy || well())
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;
