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
mod head;
mod index;
mod key;
mod plain;
mod room;
mod table;

use core::net::SocketAddr;
use core::num::NonZeroU32;

pub(super) use cells::Cell4;
pub use cells::HeapRegion;
pub(super) use head::Expected;
pub use key::Tuple;
pub(super) use plain::{Cell, PlainCell, plain_hash, plain_hash6};
pub(super) use table::{Brief, Guess};
pub use table::{Ended, FlowTable, Found, Handle, RegionError, Shape};

use super::parse::tcp_flags;
use crate::packet::Tunnel;
use crate::{BackendId, Mode, ServiceId, Tick};

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
    /// The backend has answered; of TCP, the handshake is not over.
    Answered = 2,
    /// Both have spoken; of TCP, the handshake is over.
    Established = 3,
    /// The client has finished.
    ClientDone = 4,
    /// The backend has finished.
    BackendDone = 5,
    /// Both have finished.
    Closed = 6,
    /// We have cut it, and tell its ends.
    Cut = 7,
    /// One end has cut it, or somebody who says so: over, unless it goes on.
    Reset = 8,
}

impl State {
    /// How many there are.
    pub(super) const COUNT: usize = 9;

    /// All of them, in the order of their numbers.
    pub(super) const ALL: [Self; Self::COUNT] = [
        Self::Free,
        Self::Opening,
        Self::Answered,
        Self::Established,
        Self::ClientDone,
        Self::BackendDone,
        Self::Closed,
        Self::Cut,
        Self::Reset,
    ];

    /// The word for it.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Opening => "opening",
            Self::Answered => "answered",
            Self::Established => "established",
            Self::ClientDone => "client_done",
            Self::BackendDone => "backend_done",
            Self::Closed => "closed",
            Self::Cut => "cut",
            Self::Reset => "reset",
        }
    }

    fn from_byte(byte: u8) -> Self {
        Self::ALL.get(usize::from(byte)).copied().unwrap_or(Self::Free)
    }

    /// What a TCP segment with `flags` makes of it. Of flows whose replies are not seen, the
    /// client's word alone counts.
    #[must_use]
    pub fn after_tcp(self, flags: u8, direction: Direction, two_way: bool) -> Self {
        use Direction::{Forward, Reply};
        use tcp_flags::{ACK, FIN, RST, SYN};
        if matches!(self, Self::Cut | Self::Closed) {
            return self;
        }
        // Its sequence number is not looked at: anybody may claim to be an end.
        if flags & RST != 0 {
            return Self::Reset;
        }
        let fin = flags & FIN != 0;
        match (self, direction) {
            (Self::Opening, Reply) if flags & (SYN | ACK) == SYN | ACK => Self::Answered,
            (Self::Opening, Forward) if !two_way && flags & SYN == 0 => {
                if fin {
                    Self::ClientDone
                } else {
                    Self::Established
                }
            }
            // From before we were here: now both have spoken.
            (Self::Opening, Reply) if flags & SYN == 0 => {
                if fin {
                    Self::BackendDone
                } else {
                    Self::Established
                }
            }
            (Self::Answered, Forward) if flags & SYN == 0 => {
                if fin {
                    Self::ClientDone
                } else {
                    Self::Established
                }
            }
            (Self::Reset, Forward) if flags & SYN != 0 => Self::Opening,
            (Self::Reset, _) if flags & (SYN | ACK) == ACK && !fin => Self::Established,
            (Self::Established | Self::Reset, Forward) if fin => Self::ClientDone,
            (Self::Established | Self::Reset, Reply) if fin => Self::BackendDone,
            (Self::ClientDone, Reply) | (Self::BackendDone, Forward) if fin => Self::Closed,
            (state, _) => state,
        }
    }

    /// What a datagram makes of it.
    #[must_use]
    pub fn after_datagram(self, direction: Direction) -> Self {
        match direction {
            Direction::Forward => self,
            Direction::Reply => Self::Established,
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
    /// How its packets are carried.
    pub mode: Mode,
    /// Whether its client's place in the table of clients is to be paid back.
    pub tracked: bool,
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
    /// Its places were paid back already.
    pub paid: bool,
}

impl FlowView {
    /// A flow that begins and ends at `now`.
    #[must_use]
    pub fn new(flow: Flow, now: Tick) -> Self {
        Self { flow, state: State::Opening, began: now, expires: now, bytes: 0, paid: false }
    }
}

/// The step of the wheel at `now`.
pub(super) fn step(now: Tick) -> u32 {
    (now.0 * STEPS_A_SECOND / 1000) as u32
}

/// The time at which `step` begins.
pub(super) fn tick(step: u32) -> Tick {
    Tick((u64::from(step) * 1000).div_ceil(STEPS_A_SECOND))
}

const TRACKED: u16 = 1 << 8;
/// Its places were paid back.
const PAID: u16 = 1 << 11;
/// First segments that were seen, up to three.
const SYNS: u16 = 3 << 9;
/// What goes before the client's first byte.
const HEAD: u16 = 3 << 12;
/// The backend has that.
const HEAD_TAKEN: u16 = 1 << 14;

/// The mode in the flags of a cell.
const MODE: u16 = 0xff;
const NAT: u16 = 1;
const FULL_NAT: u16 = 2;
const DSR: u16 = 3;
const IPIP: u16 = 4;
const GUE: u16 = 5;
const GUE_WITH_HEADER: u16 = 6;

/// Mode and tracking in the flags of a cell.
fn flags_of(flow: &Flow) -> u16 {
    let mode = match flow.mode {
        Mode::Proxy => 0,
        Mode::Nat => NAT,
        Mode::FullNat => FULL_NAT,
        Mode::Dsr => DSR,
        Mode::Tunnel(Tunnel::Ipip) => IPIP,
        Mode::Tunnel(Tunnel::Gue) => GUE,
        Mode::Tunnel(Tunnel::GueWithHeader) => GUE_WITH_HEADER,
    };
    mode | if flow.tracked { TRACKED } else { 0 }
}

/// The mode that [`flags_of`] wrote.
fn mode_of(flags: u16) -> Mode {
    match flags & MODE {
        NAT => Mode::Nat,
        FULL_NAT => Mode::FullNat,
        DSR => Mode::Dsr,
        IPIP => Mode::Tunnel(Tunnel::Ipip),
        GUE => Mode::Tunnel(Tunnel::Gue),
        GUE_WITH_HEADER => Mode::Tunnel(Tunnel::GueWithHeader),
        _ => Mode::Proxy,
    }
}

fn backend_id(slot: u32, epoch: u32) -> BackendId {
    // Only ids are written here, and their epochs start at 1.
    BackendId { slot, epoch: NonZeroU32::new(epoch).unwrap_or(NonZeroU32::MIN) }
}

#[cfg(test)]
#[path = "flow_tests.rs"]
mod tests;
