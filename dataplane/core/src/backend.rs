//! A backend as the workers meet it: identity, load, failures in a row.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use crossbeam_utils::CachePadded;

use crate::{BackendAddr, BackendCounters, BackendId, Counter, FailureCause, PerWorker, Standing};

/// A backend of one service: one object for as long as its address stands in the service.
///
/// Shared by every snapshot that knows it, so its load and counters outlive changes around it.
#[derive(Debug)]
pub struct Backend {
    /// Which one.
    pub id: BackendId,
    /// Where it is.
    pub addr: BackendAddr,
    /// A hash of its address, the same on every box: draws the flows of its share.
    pub key: u64,
    /// Each worker's counts.
    pub counters: PerWorker<BackendCounters>,
    /// Connections that are open or being opened, over all workers.
    places: Places,
    /// Failed connects since the last good one.
    pub streak: FailureStreak,
    /// Failed or ejected, as the control loop sees it; for people. Workers go by the snapshot's
    /// admission, which may use a failed backend all the same.
    pub failed: AtomicBool,
    /// Draining, likewise.
    pub draining: AtomicBool,
    /// How often it came or went by checks or ejection; the control loop counts.
    pub transitions: Counter,
}

impl Backend {
    /// A backend without load, for `workers` workers.
    #[must_use]
    pub fn new(id: BackendId, addr: BackendAddr, workers: usize) -> Arc<Self> {
        Arc::new(Self {
            id,
            addr,
            key: addr.key(),
            counters: PerWorker::new(workers),
            places: Places::default(),
            streak: FailureStreak::default(),
            failed: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            transitions: Counter::default(),
        })
    }

    /// Connections that are open or being opened.
    #[must_use]
    pub fn active(&self) -> u32 {
        self.places.taken()
    }

    /// How it stands, as the control loop sees it.
    #[must_use]
    pub fn standing(&self) -> Standing {
        Standing {
            failed: self.failed.load(Relaxed),
            ejected: false,
            draining: self.draining.load(Relaxed),
            ..Standing::GOOD
        }
    }

    /// Takes a place among at most `max` connections; false when there is none.
    ///
    /// One atomic add. Each success is paid back by one [`Backend::close`].
    #[must_use]
    pub fn try_open(&self, max: Option<u32>) -> bool {
        self.places.take(max)
    }

    /// Gives a place back.
    pub fn close(&self) {
        self.places.give_back();
    }

    /// Counts an attempt to reach it that failed; returns the length of the streak when that is
    /// `limit` long now, or a multiple of it. Errors of this box, and of connections that were
    /// made, are no part of a streak.
    pub fn count_failure(&self, worker: usize, cause: FailureCause, limit: u32) -> Option<u32> {
        self.counters.of(worker).failures[cause as usize].inc();
        let of_backend = !matches!(cause, FailureCause::Local | FailureCause::ResetBeforeReply);
        (of_backend && self.streak.failed(limit)).then(|| self.streak.len())
    }
}

/// How many of something are in use, over all workers, on a cache line of its own.
#[derive(Debug, Default)]
pub(crate) struct Places(CachePadded<AtomicU32>);

impl Places {
    pub(crate) fn taken(&self) -> u32 {
        self.0.load(Relaxed)
    }

    /// Takes one of at most `max`; one atomic add.
    pub(crate) fn take(&self, max: Option<u32>) -> bool {
        let before = self.0.fetch_add(1, Relaxed);
        if max.is_some_and(|max| before >= max) {
            self.0.fetch_sub(1, Relaxed);
            return false;
        }
        true
    }

    pub(crate) fn give_back(&self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Failures in a row, counted over all workers.
#[derive(Debug, Default)]
pub struct FailureStreak(AtomicU32);

impl FailureStreak {
    /// Counts a failure; true when it is the one that makes `limit` in a row, and at every
    /// further `limit` of them.
    #[must_use]
    pub fn failed(&self, limit: u32) -> bool {
        let now = self.0.fetch_add(1, Relaxed).wrapping_add(1);
        limit > 0 && now.is_multiple_of(limit)
    }

    /// Ends the streak. A read, and a write only when there was one.
    pub fn succeeded(&self) {
        if self.0.load(Relaxed) != 0 {
            self.0.store(0, Relaxed);
        }
    }

    /// Failures since the last success.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.0.load(Relaxed)
    }

    /// Whether the last attempt succeeded, or none was made.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::num::NonZeroU32;

    #[test]
    fn places_are_bounded_and_returned() {
        let addr = BackendAddr::new([10, 0, 0, 1].into(), None);
        let backend = Backend::new(BackendId { slot: 0, epoch: NonZeroU32::MIN }, addr, 1);
        assert!(backend.try_open(Some(2)) && backend.try_open(Some(2)));
        assert!(!backend.try_open(Some(2)), "full");
        backend.close();
        assert!(backend.try_open(Some(2)), "a place came back");
        assert!(backend.try_open(None), "no limit");
        assert_eq!(backend.active(), 3);
    }

    #[test]
    fn a_streak_is_in_a_row() {
        let streak = FailureStreak::default();
        assert!(!streak.failed(3) && !streak.failed(3));
        streak.succeeded();
        assert!(!streak.failed(3) && !streak.failed(3));
        assert!(streak.failed(3));
    }
}
