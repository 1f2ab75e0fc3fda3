//! Protocols by which a box says which addresses are its own: bytes in, bytes out, time as an argument.
//! Sockets stand apart.

pub mod bfd;
pub mod neighbor;
pub mod vrrp;
