//! Packets whose next hop nobody knows yet: a few are kept until it is found out.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::net::IpAddr;
use core::time::Duration;

use super::reason::DropReason;
use super::routes::{Link, Mac, Routes};
use crate::Tick;

/// Packets that may wait at a time.
const MOST: usize = 256;
/// And for one station.
const EACH: usize = 8;
/// Bytes of a packet that may wait.
const LARGEST: usize = 2048;
/// How long one waits: the kernel asks three times, a second apart.
const PATIENCE: Duration = Duration::from_secs(3);

/// A station that somebody is to look for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unresolved {
    /// The kernel's number of the interface.
    pub interface: u32,
    /// The station's address.
    pub station: IpAddr,
}

/// An IP packet that waits.
pub(super) struct Parcel {
    of: Unresolved,
    since: Tick,
    bytes: Box<[u8]>,
    length: usize,
}

impl Parcel {
    pub(super) fn packet(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// Who it is for: none when nobody knows yet, and an error when nobody will.
    pub(super) fn station<'r>(
        &self,
        routes: &'r Routes,
    ) -> Result<Option<(&'r Link, Mac)>, DropReason> {
        routes.station(self.of.interface, self.of.station)
    }
}

/// The packets of a worker that wait. Memory is taken at first use, and bounded.
#[derive(Default)]
pub(super) struct Waiting {
    parcels: VecDeque<Parcel>,
    spare: Vec<Box<[u8]>>,
    asked: Vec<Unresolved>,
}

impl Waiting {
    /// Keeps a packet; false when there is no room for it. Its station is asked for all the same.
    pub(super) fn keep(&mut self, packet: &[u8], of: Unresolved, now: Tick) -> bool {
        let before = self.parcels.iter().filter(|parcel| parcel.of == of).count();
        if before == 0 && self.asked.len() < MOST && !self.asked.contains(&of) {
            self.asked.push(of);
        }
        if before >= EACH || self.parcels.len() >= MOST || packet.len() > LARGEST {
            return false;
        }
        let mut bytes = self.spare.pop().unwrap_or_else(|| alloc::vec![0; LARGEST].into());
        bytes[..packet.len()].copy_from_slice(packet);
        self.parcels.push_back(Parcel { of, since: now, bytes, length: packet.len() });
        true
    }

    /// A packet that waits no more, as its station is known or its time is over.
    pub(super) fn take(&mut self, routes: &Routes, now: Tick) -> Option<Parcel> {
        let over = |parcel: &Parcel| {
            now.since(parcel.since) >= PATIENCE || !matches!(parcel.station(routes), Ok(None))
        };
        let place = self.parcels.iter().position(over)?;
        self.parcels.remove(place)
    }

    /// Uses the memory of a packet again.
    pub(super) fn recycle(&mut self, parcel: Parcel) {
        self.spare.push(parcel.bytes);
    }

    /// When the first one's time is over.
    pub(super) fn due(&self) -> Option<Tick> {
        self.parcels.front().map(|first| first.since.plus(PATIENCE))
    }

    /// Stations that are to be looked for, since this was asked last.
    pub(super) fn asked(&mut self) -> impl Iterator<Item = Unresolved> + '_ {
        self.asked.drain(..)
    }
}
