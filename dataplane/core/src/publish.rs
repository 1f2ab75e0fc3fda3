//! Hands snapshots from the control loop to the workers: one pointer, swapped atomically.
//!
//! A worker never frees a snapshot: the publisher keeps each retired one until every worker has
//! said that it uses a later one.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use arc_swap::{ArcSwap, Cache};
use crossbeam_utils::CachePadded;

use crate::Snapshot;

/// A worker that has ended uses no snapshot.
const GONE: u64 = u64::MAX;

/// The writing end. There is one, in the control loop.
pub struct Publisher {
    current: Arc<ArcSwap<Snapshot>>,
    seen: Vec<Arc<CachePadded<AtomicU64>>>,
    retired: VecDeque<Arc<Snapshot>>,
}

impl Publisher {
    /// Starts with the empty snapshot.
    #[must_use]
    pub fn new() -> Self {
        Self {
            current: Arc::new(ArcSwap::from_pointee(Snapshot::empty())),
            seen: Vec::new(),
            retired: VecDeque::new(),
        }
    }

    /// A reading end for one worker.
    #[must_use]
    pub fn reader(&mut self) -> Reader {
        let seen = Arc::new(CachePadded::new(AtomicU64::new(0)));
        self.seen.push(Arc::clone(&seen));
        Reader { cache: Cache::new(Arc::clone(&self.current)), seen }
    }

    /// A view for status and metrics: it loads the current snapshot when asked.
    #[must_use]
    pub fn view(&self) -> View {
        View(Arc::clone(&self.current))
    }

    /// The published snapshot.
    #[must_use]
    pub fn current(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Publishes `next` and frees the retired snapshots that no worker can hold any more.
    pub fn publish(&mut self, next: Snapshot) -> Arc<Snapshot> {
        let next = Arc::new(next);
        self.retired.push_back(self.current.swap(Arc::clone(&next)));
        self.collect();
        next
    }

    /// Frees retired snapshots that no worker can hold any more; returns how many are left.
    pub fn collect(&mut self) -> usize {
        let oldest = self.oldest_seen();
        while self.retired.front().is_some_and(|old| old.generation < oldest) {
            self.retired.pop_front();
        }
        self.retired.len()
    }

    /// The oldest generation that a worker may be using.
    #[must_use]
    pub fn oldest_seen(&self) -> u64 {
        self.seen.iter().map(|seen| seen.load(Ordering::Acquire)).min().unwrap_or(GONE)
    }
}

impl Default for Publisher {
    fn default() -> Self {
        Self::new()
    }
}

/// The reading end of one worker.
pub struct Reader {
    cache: Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>,
    seen: Arc<CachePadded<AtomicU64>>,
}

impl Reader {
    /// The current snapshot; call it once a batch. An atomic load when nothing changed.
    pub fn load(&mut self) -> &Arc<Snapshot> {
        let snapshot = self.cache.load();
        if self.seen.load(Ordering::Relaxed) != snapshot.generation {
            self.seen.store(snapshot.generation, Ordering::Release);
        }
        snapshot
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.seen.store(GONE, Ordering::Release);
    }
}

/// Loads the current snapshot, for readers that are no workers.
#[derive(Clone)]
pub struct View(Arc<ArcSwap<Snapshot>>);

impl View {
    /// The current snapshot.
    #[must_use]
    pub fn load(&self) -> Arc<Snapshot> {
        self.0.load_full()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SnapshotBuilder;

    fn next(publisher: &Publisher) -> Snapshot {
        SnapshotBuilder::from(&publisher.current()).finish()
    }

    #[test]
    fn retired_snapshots_wait_for_the_slowest_worker() {
        let mut publisher = Publisher::new();
        let (mut quick, mut slow) = (publisher.reader(), publisher.reader());
        quick.load();
        slow.load();
        let first = Arc::downgrade(&publisher.current());
        let snapshot = next(&publisher);
        publisher.publish(snapshot);
        assert_eq!(quick.load().generation, 1);
        assert_eq!(publisher.collect(), 1, "the slow worker may still read generation 0");
        assert!(first.upgrade().is_some());
        assert_eq!(slow.load().generation, 1);
        assert_eq!(publisher.collect(), 0);
        assert!(first.upgrade().is_none(), "freed by the publisher");
        let snapshot = next(&publisher);
        publisher.publish(snapshot);
        drop((quick, slow));
        assert_eq!(publisher.collect(), 0, "ended workers hold nothing");
    }
}
