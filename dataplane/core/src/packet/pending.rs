//! Connections whose backend has not answered yet: their first segment, kept to be sent again, and
//! the backends that they have left.

use alloc::boxed::Box;
use alloc::collections::BinaryHeap;
use alloc::vec::Vec;
use core::cmp::Reverse;

use ahash::RandomState;
use hashbrown::HashMap;

use super::flow::Handle;
use crate::{Tick, Tried};

/// Connections that may wait at a time.
const MOST: usize = 4096;
/// Turns of the clock that may be waited for: a connection that was answered leaves its own behind.
const TURNS: usize = 4 * MOST;
/// Bytes of a first segment that are kept; larger ones are not sent again.
pub(super) const LARGEST: usize = 128;
/// Tuples of abandoned backends that are remembered.
const ABANDONED: usize = 1024;

/// A connection that waits for its backend.
pub(super) struct Waiting {
    pub(super) handle: Handle,
    /// Where its sequence of candidates starts.
    pub(super) start: u64,
    /// Who was tried, the current one included.
    pub(super) tried: Tried,
    /// Who of them has said no; the others were only slow.
    pub(super) refused: Tried,
    /// How often a backend was asked.
    pub(super) attempts: u16,
    /// When it began, for the deadline.
    pub(super) since: Tick,
    /// When its current backend was asked, in microseconds.
    pub(super) asked_us: u64,
    packet: [u8; LARGEST],
    length: usize,
    /// Tells apart connections that held this place one after the other.
    round: u32,
    used: bool,
}

impl Waiting {
    /// The IP packet as the client sent it.
    pub(super) fn packet(&self) -> &[u8] {
        &self.packet[..self.length]
    }
}

/// The connections of a worker that wait. Memory is taken at first use, and bounded.
#[derive(Default)]
pub(super) struct Pending {
    places: Vec<Waiting>,
    free: Vec<u32>,
    by_handle: HashMap<Handle, u32, RandomState>,
    due: BinaryHeap<Reverse<(Tick, u32, u32)>>,
    abandoned: Box<[(u64, Tick)]>,
}

impl Pending {
    /// Keeps the first segment of a connection; none when there is no room for it.
    pub(super) fn begin(
        &mut self,
        handle: Handle,
        start: u64,
        packet: &[u8],
        now: Tick,
        due: Tick,
    ) -> Option<&mut Waiting> {
        // A flow that had this handle before may have ended without a word.
        self.end(handle);
        if packet.len() > LARGEST || self.due.len() >= TURNS {
            return None;
        }
        let place = match self.free.pop() {
            Some(place) => place,
            None if self.places.len() < MOST => {
                self.places.push(Waiting {
                    handle,
                    start,
                    tried: Tried::NONE,
                    refused: Tried::NONE,
                    attempts: 1,
                    since: now,
                    asked_us: 0,
                    packet: [0; LARGEST],
                    length: 0,
                    round: 0,
                    used: false,
                });
                self.places.len() as u32 - 1
            }
            None => return None,
        };
        let waiting = &mut self.places[place as usize];
        waiting.packet[..packet.len()].copy_from_slice(packet);
        waiting.length = packet.len();
        (waiting.handle, waiting.start, waiting.since) = (handle, start, now);
        waiting.round = waiting.round.wrapping_add(1);
        waiting.used = true;
        waiting.tried.clear();
        waiting.refused.clear();
        waiting.attempts = 1;
        self.due.push(Reverse((due, place, waiting.round)));
        self.by_handle.insert(handle, place);
        Some(waiting)
    }

    /// The connection of a flow, if it waits.
    pub(super) fn find(&self, handle: Handle) -> Option<u32> {
        self.by_handle.get(&handle).copied()
    }

    /// The connection in a place.
    pub(super) fn at(&mut self, place: u32) -> &mut Waiting {
        &mut self.places[place as usize]
    }

    /// The flow of a connection has another handle now, and waits until `due`.
    pub(super) fn moved(&mut self, place: u32, handle: Handle, due: Tick) {
        let waiting = &mut self.places[place as usize];
        if self.by_handle.get(&waiting.handle) == Some(&place) {
            self.by_handle.remove(&waiting.handle);
        }
        waiting.handle = handle;
        waiting.round = waiting.round.wrapping_add(1);
        self.due.push(Reverse((due, place, waiting.round)));
        self.by_handle.insert(handle, place);
    }

    /// A flow waits no more: it was answered, or has ended.
    pub(super) fn end(&mut self, handle: Handle) {
        if self.by_handle.is_empty() {
            return;
        }
        if let Some(place) = self.by_handle.remove(&handle) {
            self.free(place);
        }
    }

    /// The connection in a place waits no more. Its flow may have ended long ago, and its handle be
    /// another's.
    pub(super) fn end_at(&mut self, place: u32) {
        let handle = self.places[place as usize].handle;
        if self.by_handle.get(&handle) == Some(&place) {
            self.by_handle.remove(&handle);
        }
        self.free(place);
    }

    fn free(&mut self, place: u32) {
        let waiting = &mut self.places[place as usize];
        if core::mem::take(&mut waiting.used) {
            self.free.push(place);
        }
    }

    /// A connection that has waited long enough at `now`.
    pub(super) fn due(&mut self, now: Tick) -> Option<u32> {
        while let Some(Reverse((due, place, round))) = self.due.peek().copied() {
            if due > now {
                return None;
            }
            self.due.pop();
            let waiting = &self.places[place as usize];
            if waiting.used && waiting.round == round {
                return Some(place);
            }
        }
        None
    }

    /// When the next one has waited long enough, or earlier.
    pub(super) fn next(&self) -> Option<Tick> {
        self.due.peek().map(|Reverse((due, ..))| *due)
    }

    /// Remembers until `until` that packets with `tuple` come from a backend that was left.
    pub(super) fn abandon(&mut self, hash: u64, until: Tick) {
        if self.abandoned.is_empty() {
            self.abandoned = alloc::vec![(0, Tick(0)); ABANDONED].into();
        }
        self.abandoned[hash as usize % ABANDONED] = (hash, until);
    }

    /// Whether packets with this hash of a tuple come from a backend that was left.
    pub(super) fn is_abandoned(&self, hash: u64, now: Tick) -> bool {
        let known = self.abandoned.get(hash as usize % ABANDONED);
        known.is_some_and(|(of, until)| *of == hash && *until >= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::flow::Handle;

    #[test]
    fn connections_wait_in_turn_and_handles_are_used_again() {
        let mut pending = Pending::default();
        let handle = Handle::of_number;
        let begin = |pending: &mut Pending, n: u32, at: u64| {
            assert!(
                pending.begin(handle(n), u64::from(n), &[n as u8], Tick(0), Tick(at)).is_some()
            );
            pending.find(handle(n)).unwrap()
        };
        let (first, second) = (begin(&mut pending, 1, 30), begin(&mut pending, 2, 20));
        assert_eq!(pending.due(Tick(19)), None);
        assert_eq!(pending.due(Tick(20)), Some(second));
        pending.moved(second, handle(9), Tick(40));
        assert_eq!((pending.find(handle(2)), pending.find(handle(9))), (None, Some(second)));
        // The flow of the first ends without a word, and its handle is another's.
        let other = begin(&mut pending, 1, 50);
        assert_eq!(pending.due(Tick(35)), None, "its turn is over");
        assert_eq!(other, first, "and its place");
        pending.end_at(second);
        assert_eq!(pending.due(Tick(45)), None);
        assert_eq!(pending.due(Tick(50)), Some(other));
        assert_eq!(pending.at(other).packet(), [1]);
        pending.end(handle(1));
        assert_eq!(pending.find(handle(1)), None);
        let large = pending.begin(handle(3), 0, &[0; LARGEST + 1], Tick(0), Tick(0));
        assert!(large.is_none());
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut pending = Pending::default();
        let kept = (0..10_000)
            .filter(|n| pending.begin(Handle::of_number(*n), 0, b"x", Tick(0), Tick(10)).is_some());
        assert_eq!(kept.count(), MOST);
        while let Some(place) = pending.due(Tick(10)) {
            pending.end_at(place);
        }
        assert!(pending.begin(Handle::of_number(77), 0, b"x", Tick(10), Tick(20)).is_some());
    }

    #[test]
    fn abandoned_backends_are_known_for_a_while() {
        let mut pending = Pending::default();
        assert!(!pending.is_abandoned(5, Tick(0)));
        pending.abandon(5, Tick(10));
        assert!(pending.is_abandoned(5, Tick(10)) && !pending.is_abandoned(5, Tick(11)));
        assert!(!pending.is_abandoned(5 + ABANDONED as u64, Tick(0)), "another in its place");
    }
}
