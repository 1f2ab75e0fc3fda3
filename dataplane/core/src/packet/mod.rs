//! The packet path: frames in, verdicts and frames out. Pure: no I/O, no clock, no allocation a
//! packet.

pub mod checksum;
pub mod flow;
mod frame;
mod parse;
mod prefetch;
mod reason;
pub mod sample;

pub use frame::{Frame, TransportChecksum, VlanTag};
pub use parse::{
    Addresses, ETHERNET, Fragment, Packet, Parsed, Transport, ether, parse, parse_ip, protocol,
    tcp_flags,
};
pub use reason::DropReason;
