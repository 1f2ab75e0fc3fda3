//! Flows: who they are between, where they go, until when.
//!
//! ```text
//! packet's tuple ─hash▶ bucket (7 tags, a cache line) ─tag▶ cell (a cache line; IPv6: two)
//! ```
//!
//! A flow has one cell, and an entry in the buckets for each direction that passes through here.
//! With 32 bytes of buckets a flow, IPv4 costs 96 bytes and IPv6 160, both directions together.
//! Memory is set at the start; nothing here allocates.
//!
//! Cells are in a wheel of 64 seconds and looked at as it turns: a flow that has moved meanwhile
//! goes round again. So a packet that refreshes its flow writes one number.

mod cells;
mod index;
mod key;
mod room;
mod table;

use core::net::SocketAddr;
use core::num::NonZeroU32;

pub use cells::HeapRegion;
pub use key::Tuple;
pub use table::{Ended, FlowTable, Found, Handle, RegionError, Shape};

use crate::{BackendId, ServiceId, Tick};

/// Steps of the wheel in a second.
pub const STEPS_A_SECOND: u64 = 8;

/// What a flow is in the middle of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum State {
    /// Its cell is free.
    Free = 0,
    /// The client has spoken, nobody has answered.
    Opening = 1,
    /// Both have spoken; of TCP: the handshake is over.
    Established = 2,
    /// One side has finished.
    HalfClosed = 3,
    /// Both have finished, or one has cut it.
    Closed = 4,
}

impl State {
    fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::Opening,
            2 => Self::Established,
            3 => Self::HalfClosed,
            4 => Self::Closed,
            _ => Self::Free,
        }
    }
}

/// Which way a packet of a flow goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the client to the backend.
    Forward,
    /// From the backend to the client.
    Reply,
}

/// A flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Who began it.
    pub client: SocketAddr,
    /// What the client dialled.
    pub vip: SocketAddr,
    /// Who serves it.
    pub backend: SocketAddr,
    /// Who the backend believes to talk to; the client, unless its address is not kept.
    pub local: SocketAddr,
    /// The transport protocol's number.
    pub protocol: u8,
    /// Whether replies come through here.
    pub two_way: bool,
    /// Its service.
    pub service: ServiceId,
    /// Its backend.
    pub id: BackendId,
}

impl Flow {
    /// The tuple of the client's packets; None when the families differ, which no packet has.
    #[must_use]
    pub fn forward(&self) -> Option<Tuple> {
        Tuple::new(self.client, self.vip, self.protocol)
    }

    /// The tuple of the backend's packets.
    #[must_use]
    pub fn reply(&self) -> Option<Tuple> {
        Tuple::new(self.backend, self.local, self.protocol)
    }
}

/// A flow in the table, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowView {
    /// Who it is between.
    pub flow: Flow,
    /// What it is in the middle of.
    pub state: State,
    /// When it began.
    pub began: Tick,
    /// When it ends, if nothing moves.
    pub expires: Tick,
    /// Bytes of its IP packets, both directions.
    pub bytes: u64,
}

/// The step of the wheel at `now`.
fn step(now: Tick) -> u32 {
    (now.0 * STEPS_A_SECOND / 1000) as u32
}

/// The time at which `step` begins.
fn tick(step: u32) -> Tick {
    Tick((u64::from(step) * 1000).div_ceil(STEPS_A_SECOND))
}

fn backend_id(slot: u32, epoch: u32) -> BackendId {
    // Only ids are written here, and their epochs start at 1.
    BackendId { slot, epoch: NonZeroU32::new(epoch).unwrap_or(NonZeroU32::MIN) }
}

#[cfg(test)]
#[path = "flow_tests.rs"]
mod tests;
