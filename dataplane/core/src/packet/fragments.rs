//! Fragments: the first one has the ports and decides, the others follow by what they have in
//! common. Those that come before it wait for it, a few and not for long.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::time::Duration;

use ahash::RandomState;

use super::frame::{Frame, VlanTag};
use super::parse::{Addresses, Packet};
use crate::Tick;

/// Packets whose first fragment is remembered: places by hash.
const KNOWN: usize = 4096;
/// How long it is remembered (RFC 9293 names no time; receivers wait for 15 to 60 seconds).
const REMEMBERED: Duration = Duration::from_secs(15);
/// Fragments that may wait at a time.
const MOST: usize = 256;
/// And of one packet: all of a datagram of 64 KiB over Ethernet.
const EACH: usize = 45;
/// Bytes of a frame that may wait.
pub(super) const PART: usize = 2048;
/// How long one waits for the first of its packet.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the fragments of a packet have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Common {
    addresses: Addresses,
    protocol: u8,
    id: u32,
}

impl Common {
    /// Of a fragment; none when it is a whole packet.
    pub(super) fn of(packet: &Packet) -> Option<Self> {
        let Packet { addresses, protocol, fragment, .. } = *packet;
        Some(Self { addresses, protocol, id: fragment?.id })
    }
}

/// What the first fragment said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum First {
    /// The ports of its packet.
    Ports((u16, u16)),
    /// Its packet is another worker's.
    Elsewhere(u16),
}

/// A frame that waits.
pub(super) struct Parcel {
    of: Common,
    since: Tick,
    bytes: Box<[u8]>,
    length: usize,
    port: u16,
    tag: Option<VlanTag>,
}

impl Parcel {
    /// Writes it into `frame`; false when that has no room.
    pub(super) fn write(&self, frame: &mut Frame<'_>) -> bool {
        let fits = frame.replace(&self.bytes[..self.length]);
        (frame.port, frame.tag) = (self.port, self.tag);
        fits
    }
}

/// The fragments of a worker. Memory is taken at first use, and bounded.
#[derive(Default)]
pub(super) struct Fragments {
    known: Box<[Option<(Common, First, Tick)>]>,
    hasher: RandomState,
    waiting: VecDeque<Parcel>,
    spare: Vec<Box<[u8]>>,
}

impl Fragments {
    fn place(&self, of: &Common) -> usize {
        self.hasher.hash_one(of) as usize % KNOWN
    }

    /// The first fragment of a packet is here.
    pub(super) fn begin(&mut self, of: Common, first: First, now: Tick) {
        if self.known.is_empty() {
            self.known = alloc::vec![None; KNOWN].into();
        }
        let place = self.place(&of);
        self.known[place] = Some((of, first, now.plus(REMEMBERED)));
    }

    /// What the first fragment of a packet has said.
    pub(super) fn find(&self, of: &Common, now: Tick) -> Option<First> {
        let (known, first, until) = self.known.get(self.place(of))?.as_ref()?;
        (known == of && *until >= now).then_some(*first)
    }

    /// Keeps a frame whose packet's first fragment is not here, in place of the oldest when there is
    /// no room; false when its packet has too many here, or it is too large.
    pub(super) fn keep(&mut self, of: Common, frame: &Frame<'_>, now: Tick) -> bool {
        let before = self.waiting.iter().filter(|parcel| parcel.of == of).count();
        let length = frame.len();
        if before >= EACH || length > PART {
            return false;
        }
        if self.waiting.len() >= MOST
            && let Some(oldest) = self.waiting.pop_front()
        {
            self.spare.push(oldest.bytes);
        }
        let mut bytes = self.spare.pop().unwrap_or_else(|| alloc::vec![0; PART].into());
        bytes[..length].copy_from_slice(frame.bytes());
        let (port, tag) = (frame.port, frame.tag);
        self.waiting.push_back(Parcel { of, since: now, bytes, length, port, tag });
        true
    }

    /// A frame that waits no more, and whether that is as its packet's first fragment is here; else
    /// its time is over.
    pub(super) fn take(&mut self, now: Tick) -> Option<(Parcel, bool)> {
        if self.waiting.is_empty() {
            return None;
        }
        let known = |parcel: &Parcel| self.find(&parcel.of, now).is_some();
        if let Some(place) = self.waiting.iter().position(known) {
            return Some((self.waiting.remove(place)?, true));
        }
        let over = self.due().is_some_and(|due| due <= now);
        over.then(|| self.waiting.pop_front()).flatten().map(|parcel| (parcel, false))
    }

    /// When the first of those that wait has waited long enough.
    pub(super) fn due(&self) -> Option<Tick> {
        self.waiting.front().map(|first| first.since.plus(PATIENCE))
    }

    /// Uses the memory of a frame again.
    pub(super) fn recycle(&mut self, parcel: Parcel) {
        self.spare.push(parcel.bytes);
    }
}
