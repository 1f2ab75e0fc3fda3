//! The packet path on DPDK: owners of its objects, and workers that carry bursts of packets from
//! ports through the engine of `core` and out again.

mod owners;
mod worker;

pub use owners::{
    Batch, Eal, EalError, EalOptions, LinkState, Member, Memory, Mempool, MempoolError, Port,
    PortError, PortSetup, PortStats, RxQueue, TxQueue, ring_ports,
};
pub use worker::{Worker, WorkerStats};
