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
    /// When it began, for the deadline.
    pub(super) since: Tick,
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
    /// Keeps the first segment of a connection; false when there is no room for it.
    pub(super) fn begin(
        &mut self,
        handle: Handle,
        start: u64,
        packet: &[u8],
        now: Tick,
        due: Tick,
    ) -> bool {
        if packet.len() > LARGEST || self.due.len() >= TURNS {
            return false;
        }
        let place = match self.free.pop() {
            Some(place) => place,
            None if self.places.len() < MOST => {
                self.places.push(Waiting {
                    handle,
                    start,
                    tried: Tried::NONE,
                    since: now,
                    packet: [0; LARGEST],
                    length: 0,
                    round: 0,
                    used: false,
                });
                self.places.len() as u32 - 1
            }
            None => return false,
        };
        let waiting = &mut self.places[place as usize];
        waiting.packet[..packet.len()].copy_from_slice(packet);
        waiting.length = packet.len();
        (waiting.handle, waiting.start, waiting.since) = (handle, start, now);
        waiting.round = waiting.round.wrapping_add(1);
        waiting.used = true;
        waiting.tried.clear();
        self.due.push(Reverse((due, place, waiting.round)));
        self.by_handle.insert(handle, place);
        true
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
        self.by_handle.remove(&waiting.handle);
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
            self.places[place as usize].used = false;
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
