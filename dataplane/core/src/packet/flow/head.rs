//! Flows with something before the client's first byte, for the backend to read: how far that is.
//!
//! The number of that byte has the upper half of what the flow has carried, for as long as the
//! backend has not acknowledged it: no connection has carried so much by then.

use super::cells::Common;
use super::table::{FlowTable, Handle};
use super::{HEAD, HEAD_TAKEN};
use crate::packet::head::Head;

const LOWER: u64 = 0xffff_ffff;

/// What goes before the client's first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::packet) struct Expected {
    pub(in crate::packet) head: Head,
    /// The sequence number of the client's first byte; none when the backend has the head.
    pub(in crate::packet) first: Option<u32>,
}

impl Common {
    fn awaits(&self) -> bool {
        self.flags & HEAD != 0 && self.flags & HEAD_TAKEN == 0
    }

    /// Bytes in both directions.
    pub(super) fn counted(&self) -> u64 {
        if self.awaits() { self.bytes & LOWER } else { self.bytes }
    }
}

impl FlowTable<'_> {
    /// `head` is to go before the client's first byte, whose number is `first`.
    pub(in crate::packet) fn expect(&mut self, handle: Handle, head: Head, first: u32) {
        let common = self.common_mut(handle.0);
        let bytes = common.counted() & LOWER;
        common.flags = (common.flags & !(HEAD | HEAD_TAKEN)) | bits(head);
        common.bytes = u64::from(first) << 32 | bytes;
    }

    /// What goes before the client's first byte.
    pub(in crate::packet) fn expected(&self, handle: Handle) -> Option<Expected> {
        let common = self.common(handle.0);
        let head = match (common.flags & HEAD) >> HEAD.trailing_zeros() {
            0 => return None,
            1 => Head::Proxy { crc32c: false },
            2 => Head::Proxy { crc32c: true },
            _ => Head::Toa,
        };
        Some(Expected { head, first: common.awaits().then_some((common.bytes >> 32) as u32) })
    }

    /// The backend has what goes before the client's first byte.
    pub(in crate::packet) fn head_taken(&mut self, handle: Handle) {
        let common = self.common_mut(handle.0);
        common.bytes = common.counted();
        common.flags |= HEAD_TAKEN;
    }
}

fn bits(head: Head) -> u16 {
    let number = match head {
        Head::Proxy { crc32c: false } => 1,
        Head::Proxy { crc32c: true } => 2,
        Head::Toa => 3,
    };
    number << HEAD.trailing_zeros()
}
