//! The packet path: frames in, verdicts and frames out. Pure: no I/O, no clock, no allocation a
//! packet.
//!
//! ```text
//! frames ─▶ parse ─▶ flow table ─▶ (service, admission, selection: new flows) ─▶ rewrite ─▶ route
//! ```

pub mod checksum;
mod counters;
mod engine;
mod family;
pub mod flow;
mod fragments;
mod frame;
pub mod golden;
mod head;
mod header;
mod held;
mod icmp;
mod parse;
mod pending;
mod ports;
mod prefetch;
mod reason;
mod rewrite;
mod routes;
pub mod sample;
mod segment;
mod steer;
mod toeplitz;
mod tunnel;
mod waiting;

pub use counters::PacketCounters;
pub use engine::{Adopted, BURST, BackendFailure, Context, Engine, Verdict};
pub use frame::{Frame, TransportChecksum, VlanTag};
pub use head::Head;
pub use held::EndedFlow;
pub use parse::{
    Addresses, ETHERNET, Fragment, Packet, Parsed, Transport, ether, parse, parse_ip, protocol,
    tcp_flags,
};
pub use ports::{PortCounts, Ports};
pub use prefetch::prefetch;
pub use reason::DropReason;
pub use routes::{Link, Mac, NextHop, Route, Routes};
pub use segment::Segments;
pub use steer::{FACTORS, Steering};
pub use toeplitz::{KEY, Toeplitz};
pub use tunnel::{GUE_PORT, Tunnel};
pub use waiting::Unresolved;
