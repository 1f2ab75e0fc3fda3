//! Buckets: from a tuple's hash to a cell.

use super::cells::NONE;
use super::key::{Tuple, mapped};
use super::table::{FlowTable, REPLY, WIDE, index_of, tag_of};
use crate::packet::parse::Addresses::{V4, V6};

/// Buckets in a row that an entry may lie in.
pub(super) const REACH: usize = 16;

impl FlowTable<'_> {
    #[inline]
    pub(super) fn home(&self, hash: u64) -> usize {
        (((hash & 0xffff_ffff) * self.buckets.len() as u64) >> 32) as usize
    }

    #[inline]
    pub(super) fn after(&self, bucket: usize) -> usize {
        if bucket + 1 == self.buckets.len() { 0 } else { bucket + 1 }
    }

    #[inline]
    pub(super) fn matches(&self, place: u32, tuple: &Tuple) -> bool {
        // Source and destination: client and VIP, or backend and our side.
        let (source, destination) = if place & REPLY == 0 { (0, 1) } else { (2, 3) };
        let common = self.common(place);
        if (common.ports[source], common.ports[destination]) != tuple.ports
            || common.protocol != tuple.protocol
        {
            return false;
        }
        match (place & WIDE, tuple.addresses) {
            (0, V4(from, to)) => {
                let sides = &self.cells4[index_of(place)].addresses;
                sides[source] == from.octets() && sides[destination] == to.octets()
            }
            (0, V6(..)) => false,
            (_, V6(from, to)) => {
                let sides = &self.cells6[index_of(place)].addresses;
                sides[source] == from.octets() && sides[destination] == to.octets()
            }
            (_, V4(from, to)) => {
                let sides = &self.cells6[index_of(place)].addresses;
                sides[source] == mapped(from.into()) && sides[destination] == mapped(to.into())
            }
        }
    }

    /// Adds an entry; false when no bucket in reach has room.
    pub(super) fn enter(&mut self, hash: u64, place: u32) -> bool {
        let mut at = self.home(hash);
        for passed in 0..REACH {
            let bucket = &mut self.buckets[at];
            if let Some(way) = bucket.tags.iter().position(|tag| *tag == 0) {
                bucket.tags[way] = tag_of(hash);
                bucket.places[way] = place;
                // Those before it are passed on the way to it.
                let mut before = self.home(hash);
                for _ in 0..passed {
                    self.buckets[before].overflowed += 1;
                    before = self.after(before);
                }
                return true;
            }
            at = self.after(at);
        }
        false
    }

    /// Takes an entry away.
    pub(super) fn leave(&mut self, hash: u64, place: u32) {
        let mut at = self.home(hash);
        for passed in 0..REACH {
            let bucket = &mut self.buckets[at];
            let mut ways = bucket.tags.iter().zip(&bucket.places);
            if let Some(way) = ways.position(|(tag, at)| *tag != 0 && *at == place) {
                bucket.tags[way] = 0;
                bucket.places[way] = NONE;
                let mut before = self.home(hash);
                for _ in 0..passed {
                    self.buckets[before].overflowed -= 1;
                    before = self.after(before);
                }
                return;
            }
            at = self.after(at);
        }
    }
}
