//! One owner for each thing of DPDK's. They are not `Clone`, live no longer than what they come
//! from, and let no raw pointer out; their ends are in DPDK's order: packets, queues, ports, packet
//! memory, the EAL. The only unsafe code beside the bindings.
#![allow(unsafe_code, reason = "owners of what DPDK makes")]

mod batch;
mod eal;
mod exchange;
mod mempool;
mod packet;
mod port;
mod rings;
mod waker;

pub use batch::Batch;
pub(crate) use batch::Leaving;
pub use eal::{Eal, EalError, EalOptions, LogLevel, Membership, Memory};
pub use exchange::Exchange;
pub use mempool::{Mempool, MempoolError};
pub(crate) use packet::Place;
pub use port::{Port, PortError, PortSetup, PortStats, RxQueue, TxQueue};
pub use rings::ring_ports;
pub(crate) use waker::Waker;
