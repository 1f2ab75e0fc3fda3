//! Limits of one client address: open connections, and new ones a second.
//!
//! A bounded table as [`crate::AffinityTable`] is: seven clients a bucket, no allocation. A place
//! with open connections is never given away; when all seven are taken, a further client is let
//! in uncounted, and that is counted.

use alloc::boxed::Box;
use core::net::IpAddr;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use ahash::RandomState;
use zerocopy::FromZeros;

use crate::spin::{SpinLock, empty_buckets};
use crate::{Counter, LimitKind, Limits, ServiceId, Tick};

const PLACES: usize = 7;
/// A connection is worth this many tokens, so that a millisecond gives whole tokens.
const TOKENS: u64 = 1000;

/// Clients and what they use.
pub struct ClientTable {
    buckets: Box<[Bucket]>,
    hasher: RandomState,
    untracked: Counter,
}

#[derive(FromZeros)]
struct Bucket {
    lock: SpinLock,
    places: [Place; PLACES],
}

#[derive(FromZeros)]
struct Place {
    /// Hash of service and client under a key of this process; zero is a free place.
    client: AtomicU64,
    open: AtomicU32,
    /// Tokens at `at`; a new connection takes [`TOKENS`].
    tokens: AtomicU64,
    at: AtomicU64,
}

/// A client that may not connect now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal(pub LimitKind);

impl ClientTable {
    /// A table for at least `clients` clients, about 32 bytes each.
    #[must_use]
    pub fn new(clients: usize) -> Self {
        let buckets = clients.div_ceil(PLACES).next_power_of_two();
        Self {
            buckets: empty_buckets(buckets),
            hasher: RandomState::new(),
            untracked: Counter::default(),
        }
    }

    /// Counts a new connection of `client`, or says which limit forbids it.
    ///
    /// `Ok(true)` is paid back by one [`Self::close`]; `Ok(false)` was not tracked, because the
    /// client's bucket is full of others with open connections.
    pub fn open(
        &self,
        service: ServiceId,
        client: IpAddr,
        limits: &Limits,
        now: Tick,
    ) -> Result<bool, Refusal> {
        let (bucket, key) = self.place_of(service, client);
        bucket.lock.with(|| {
            let Some(place) = bucket.find(key, now) else {
                self.untracked.inc();
                return Ok(false);
            };
            place.admit(limits, now)
        })
    }

    /// Takes a connection of `client` off the count.
    pub fn close(&self, service: ServiceId, client: IpAddr) {
        let (bucket, key) = self.place_of(service, client);
        bucket.lock.with(|| {
            if let Some(place) = bucket.places.iter().find(|p| p.client.load(Relaxed) == key) {
                place.open.store(place.open.load(Relaxed).saturating_sub(1), Relaxed);
            }
        });
    }

    /// Connections that were let in uncounted, about.
    #[must_use]
    pub fn untracked(&self) -> u64 {
        self.untracked.get()
    }

    fn place_of(&self, service: ServiceId, client: IpAddr) -> (&Bucket, u64) {
        let key = self.hasher.hash_one((service, client.to_canonical())).max(1);
        (&self.buckets[(key >> 32) as usize & (self.buckets.len() - 1)], key)
    }
}

impl Bucket {
    /// The client's place, or one made for it: the longest unused without open connections.
    fn find(&self, key: u64, now: Tick) -> Option<&Place> {
        if let Some(place) = self.places.iter().find(|p| p.client.load(Relaxed) == key) {
            return Some(place);
        }
        let unused = self.places.iter().filter(|place| place.open.load(Relaxed) == 0);
        let place = unused.min_by_key(|place| place.at.load(Relaxed))?;
        place.client.store(key, Relaxed);
        // A full bucket, whatever rate comes to apply: it is cut to size when it is used.
        place.tokens.store(u64::MAX, Relaxed);
        place.at.store(now.0, Relaxed);
        Some(place)
    }
}

impl Place {
    fn admit(&self, limits: &Limits, now: Tick) -> Result<bool, Refusal> {
        let open = self.open.load(Relaxed);
        if limits.client_connections.is_some_and(|max| open >= max) {
            return Err(Refusal(LimitKind::Client));
        }
        if let Some(rate) = limits.client_rate.map(u64::from) {
            let passed = now.0.saturating_sub(self.at.load(Relaxed));
            let filled = self.tokens.load(Relaxed).saturating_add(passed.saturating_mul(rate));
            let tokens = filled.min(rate * TOKENS);
            if tokens < TOKENS {
                return Err(Refusal(LimitKind::ClientRate));
            }
            self.tokens.store(tokens - TOKENS, Relaxed);
        }
        self.at.store(now.0, Relaxed);
        self.open.store(open + 1, Relaxed);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: ServiceId = ServiceId(1);

    fn client(n: u32) -> IpAddr {
        IpAddr::V4(n.into())
    }

    #[test]
    fn open_connections_are_limited() {
        let table = ClientTable::new(100);
        let limits = Limits { client_connections: Some(2), ..Limits::default() };
        let open = |n| table.open(SERVICE, client(n), &limits, Tick(0));
        assert_eq!((open(1), open(1)), (Ok(true), Ok(true)));
        assert_eq!(open(1), Err(Refusal(LimitKind::Client)));
        assert_eq!(open(2), Ok(true), "another client");
        table.close(SERVICE, client(1));
        assert_eq!(open(1), Ok(true), "one was closed");
    }

    #[test]
    fn the_rate_is_a_token_bucket() {
        let table = ClientTable::new(100);
        let limits = Limits { client_rate: Some(2), ..Limits::default() };
        let open = |now| table.open(SERVICE, client(1), &limits, Tick(now));
        assert_eq!((open(0), open(0)), (Ok(true), Ok(true)), "a second's worth at once");
        assert_eq!(open(0), Err(Refusal(LimitKind::ClientRate)));
        assert_eq!(open(499), Err(Refusal(LimitKind::ClientRate)));
        assert_eq!(open(500), Ok(true), "half a second gives one at two a second");
        assert_eq!(open(500), Err(Refusal(LimitKind::ClientRate)));
        assert_eq!(open(60_000), Ok(true), "a long pause...");
        assert_eq!(open(60_000), Ok(true));
        assert_eq!(
            open(60_000),
            Err(Refusal(LimitKind::ClientRate)),
            "...gives one second's worth"
        );
    }

    #[test]
    fn busy_clients_are_never_forgotten() {
        let table = ClientTable::new(PLACES);
        let limits = Limits { client_connections: Some(1), ..Limits::default() };
        let open = |n| table.open(SERVICE, client(n), &limits, Tick(0));
        for n in 1..=PLACES as u32 {
            assert_eq!(open(n), Ok(true));
        }
        assert_eq!(open(100), Ok(false), "let in, uncounted");
        assert_eq!(table.untracked(), 1);
        assert_eq!(open(1), Err(Refusal(LimitKind::Client)), "still known");
        table.close(SERVICE, client(2));
        assert_eq!(open(100), Ok(true), "takes the idle place");
    }
}
