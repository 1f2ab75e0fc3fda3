//! Which backend a client had: a bounded table, shared by the workers, touched once a connection.
//!
//! Set-associative: a client's bucket has seven places; a new client takes a free, an expired or
//! the longest unused one. So memory is fixed, nothing is allocated and no look-up is long.

use alloc::boxed::Box;
use core::net::IpAddr;
use core::num::NonZeroU32;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use core::time::Duration;

use ahash::RandomState;
use zerocopy::FromZeros;

use crate::spin::{SpinLock, empty_buckets};
use crate::{BackendId, Counter, ServiceId, Tick};

const PLACES: usize = 7;

/// Clients and their backends.
pub struct AffinityTable {
    buckets: Box<[Bucket]>,
    seeds: [u64; 4],
    hasher: RandomState,
    evicted: Counter,
}

/// What a table remembers of one client, for a table with the same seeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remembered {
    /// Hash of service and client.
    pub client: u64,
    /// The backend that it had.
    pub backend: BackendId,
    /// When it had it last.
    pub used: Tick,
}

#[derive(FromZeros)]
struct Bucket {
    lock: SpinLock,
    places: [Place; PLACES],
}

#[derive(FromZeros)]
struct Place {
    /// Hash of service and client under the table's seeds; zero is a free place.
    client: AtomicU64,
    slot: AtomicU32,
    epoch: AtomicU32,
    /// Last use, milliseconds.
    used: AtomicU64,
}

impl AffinityTable {
    /// A table for at least `clients` clients, about 32 bytes each, keyed by four random numbers.
    #[must_use]
    pub fn new(clients: usize, seeds: [u64; 4]) -> Self {
        let buckets = clients.div_ceil(PLACES).next_power_of_two();
        let [a, b, c, d] = seeds;
        Self {
            buckets: empty_buckets(buckets),
            seeds,
            hasher: RandomState::with_seeds(a, b, c, d),
            evicted: Counter::default(),
        }
    }

    /// What it is keyed by.
    #[must_use]
    pub fn seeds(&self) -> [u64; 4] {
        self.seeds
    }

    /// Everything that it remembers. What workers add meanwhile may be missing.
    pub fn remembered(&self) -> impl Iterator<Item = Remembered> {
        self.buckets.iter().flat_map(|bucket| {
            let of = |place: &Place| {
                let epoch = NonZeroU32::new(place.epoch.load(Relaxed))?;
                let backend = BackendId { slot: place.slot.load(Relaxed), epoch };
                let used = Tick(place.used.load(Relaxed));
                Some(Remembered { client: place.client.load(Relaxed), backend, used })
            };
            bucket.lock.with(|| bucket.places.each_ref().map(of)).into_iter().flatten()
        })
    }

    /// Remembers what a table with the same seeds did.
    pub fn remember(&self, remembered: Remembered) {
        let Remembered { client, backend, used } = remembered;
        if client != 0 {
            self.put(self.bucket_of(client), client, backend, used);
        }
    }

    /// The backend of `client`, if it was used within `timeout` of `now`.
    #[must_use]
    pub fn find(
        &self,
        service: ServiceId,
        client: IpAddr,
        timeout: Duration,
        now: Tick,
    ) -> Option<BackendId> {
        let (bucket, key) = self.place_of(service, client);
        bucket.lock.with(|| {
            let place = bucket.places.iter().find(|place| place.client.load(Relaxed) == key)?;
            let fresh = now.since(Tick(place.used.load(Relaxed))) <= timeout;
            let epoch = NonZeroU32::new(place.epoch.load(Relaxed))?;
            fresh.then(|| BackendId { slot: place.slot.load(Relaxed), epoch })
        })
    }

    /// Remembers that `client` was given `backend` at `now`.
    pub fn keep(&self, service: ServiceId, client: IpAddr, backend: BackendId, now: Tick) {
        let (bucket, key) = self.place_of(service, client);
        self.put(bucket, key, backend, now);
    }

    fn put(&self, bucket: &Bucket, key: u64, backend: BackendId, now: Tick) {
        bucket.lock.with(|| {
            let known = bucket.places.iter().find(|place| place.client.load(Relaxed) == key);
            let oldest = || bucket.places.iter().min_by_key(|place| place.used.load(Relaxed));
            let Some(place) = known.or_else(oldest) else {
                return;
            };
            let before = place.client.load(Relaxed);
            if before != 0 && before != key {
                self.evicted.inc();
            }
            place.client.store(key, Relaxed);
            place.slot.store(backend.slot, Relaxed);
            place.epoch.store(backend.epoch.get(), Relaxed);
            place.used.store(now.0, Relaxed);
        });
    }

    /// Clients that were forgotten for others, about.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        self.evicted.get()
    }

    /// Most clients that the table can hold.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.buckets.len() * PLACES
    }

    fn place_of(&self, service: ServiceId, client: IpAddr) -> (&Bucket, u64) {
        let key = self.hasher.hash_one((service, client.to_canonical())).max(1);
        (self.bucket_of(key), key)
    }

    fn bucket_of(&self, key: u64) -> &Bucket {
        &self.buckets[(key >> 32) as usize & (self.buckets.len() - 1)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: ServiceId = ServiceId(1);
    const SEEDS: [u64; 4] = [1, 2, 3, 4];

    fn backend(slot: u32) -> BackendId {
        BackendId { slot, epoch: NonZeroU32::MIN }
    }

    fn client(n: u32) -> IpAddr {
        IpAddr::V4(n.into())
    }

    #[test]
    fn clients_keep_their_backend_until_the_timeout() {
        let table = AffinityTable::new(100, SEEDS);
        let timeout = Duration::from_secs(10);
        table.keep(SERVICE, client(1), backend(5), Tick(1000));
        let at = |service, n, now| table.find(service, client(n), timeout, Tick(now));
        assert_eq!(at(SERVICE, 1, 1000), Some(backend(5)));
        assert_eq!(at(SERVICE, 1, 11_000), Some(backend(5)));
        assert_eq!(at(SERVICE, 1, 11_001), None, "expired");
        assert_eq!(at(ServiceId(2), 1, 1000), None, "another service");
        assert_eq!(at(SERVICE, 2, 1000), None, "another client");
        table.keep(SERVICE, client(1), backend(6), Tick(12_000));
        assert_eq!(at(SERVICE, 1, 12_000), Some(backend(6)), "moved");
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_go() {
        let table = AffinityTable::new(PLACES, SEEDS);
        for n in 1..=PLACES as u32 + 1 {
            table.keep(SERVICE, client(n), backend(n), Tick(u64::from(n)));
        }
        let timeout = Duration::from_secs(10);
        assert_eq!(table.find(SERVICE, client(1), timeout, Tick(9)), None, "the oldest went");
        assert_eq!(table.find(SERVICE, client(2), timeout, Tick(9)), Some(backend(2)));
        assert_eq!(table.evicted(), 1);
    }

    #[test]
    fn another_table_goes_on_with_what_was_remembered() {
        let table = AffinityTable::new(100, SEEDS);
        for n in 0..50 {
            table.keep(SERVICE, client(n), backend(n), Tick(u64::from(n)));
        }
        let next = AffinityTable::new(200, SEEDS);
        table.remembered().for_each(|it| next.remember(it));
        let timeout = Duration::from_secs(10);
        for n in 0..50 {
            let there = table.find(SERVICE, client(n), timeout, Tick(50));
            assert_eq!(next.find(SERVICE, client(n), timeout, Tick(50)), there, "{n}");
        }
        assert_eq!(next.remembered().count(), table.remembered().count());
    }
}
