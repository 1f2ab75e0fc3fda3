//! The unsafe room of this crate: the ring, the buffers that the kernel fills, and their owners.
//!
//! What leaves this module is safe: descriptors are owned, memory that the kernel may touch lives
//! as long as the ring, and a received buffer ([`Chunk`]) has one owner.
#![allow(unsafe_code)]

mod buffers;
mod datagram;
mod link;
mod memory;
#[cfg(feature = "bench")]
mod messages;
mod offloads;
mod options;
mod packet;
mod passed;
mod probe;
mod ring;
mod slice;
mod tap;

pub(crate) use buffers::Chunk;
pub(crate) use datagram::{Datagram, Parcel};
pub use link::{Neighbors, Told, neighbors, receive_frame, receive_told, sign, tell_hops};
pub(crate) use memory::Region;
pub use memory::flow_memory;
#[cfg(feature = "bench")]
pub(crate) use messages::Messages;
pub(crate) use offloads::Offloads;
pub(crate) use options::{join_datagrams, late_port, port_range, tell_destination};
pub(crate) use packet::{
    After, Divider, HEADROOM, Receiver, Sender, Span, interface_number, packet_sender,
};
pub use passed::{keep_descriptors, passed_descriptors};
pub use probe::{Feature, Features, SetupError};
pub(crate) use ring::{Completion, DATAGRAM_TOKEN, Ring, accepted};
pub(crate) use slice::short_slice;
pub use tap::keep_tap;
