//! Ids of backends: dense, and not used again while anyone may still count on them.

use std::num::NonZeroU32;
use std::sync::Arc;

use fairway_core::{Backend, BackendAddr, BackendId};

/// Gives out slots and takes them back.
#[derive(Debug, Default)]
pub(crate) struct Ids {
    next: u32,
    /// Slots that are free again, with the epoch of their next backend.
    free: Vec<(u32, NonZeroU32)>,
}

impl Ids {
    /// Never gives out these ids: others know them.
    pub(crate) fn reserve(&mut self, ids: impl Iterator<Item = BackendId>) {
        self.next = ids.map(|id| id.slot + 1).fold(self.next, u32::max);
    }

    /// A new backend under a new id.
    pub(crate) fn create(&mut self, addr: BackendAddr, workers: usize) -> Arc<Backend> {
        let (slot, epoch) = self.free.pop().unwrap_or_else(|| {
            self.next += 1;
            (self.next - 1, NonZeroU32::MIN)
        });
        Backend::new(BackendId { slot, epoch }, addr, workers)
    }

    /// Takes the id of `backend` back when the caller holds the last reference to it; otherwise
    /// gives `backend` back.
    pub(crate) fn release(&mut self, backend: Arc<Backend>) -> Result<(), Arc<Backend>> {
        let backend = Arc::try_unwrap(backend)?;
        let epoch = backend.id.epoch.checked_add(1).unwrap_or(NonZeroU32::MIN);
        self.free.push((backend.id.slot, epoch));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_come_back_with_another_epoch() {
        let mut ids = Ids::default();
        let addr = BackendAddr::new([10, 0, 0, 1].into(), None);
        let (first, second) = (ids.create(addr, 1), ids.create(addr, 1));
        let (id, held) = (first.id, Arc::clone(&first));
        let first = ids.release(first).unwrap_err();
        assert_eq!(ids.create(addr, 1).id.slot, 2, "still held elsewhere");
        drop(held);
        ids.release(first).unwrap();
        let again = ids.create(addr, 1);
        assert_eq!(again.id.slot, id.slot);
        assert_ne!(again.id, id);
        assert_ne!(again.id.slot, second.id.slot);
    }
}
