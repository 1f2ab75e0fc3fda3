//! The packet path on DPDK: owners of its objects, and a worker's queues of ports, by
//! which bursts of packets come, are decided about by the engine of `core`, and leave.

mod owners;
mod queues;

pub use owners::{
    Batch, Eal, EalError, EalOptions, Exchange, LogLevel, Membership, Memory, Mempool,
    MempoolError, Port, PortError, PortSetup, PortStats, RxQueue, TxQueue, ring_ports,
};
pub use queues::{QueuePair, Queues};
