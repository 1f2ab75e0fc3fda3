//! What happens to a flow, decided without I/O and without a clock.
//!
//! `core` holds the tables, the selection of backends, the limits and the counters that proxy and
//! packet workers share. Time is an argument ([`Tick`]), randomness is an argument, and nothing
//! here blocks. The crate is `no_std` + `alloc`; only [`publish`] needs `std`.

#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

mod acl;
mod addr;
mod admission;
mod admit;
mod affinity;
pub mod agent_line;
pub mod announce;
mod backend;
mod clients;
mod counters;
mod hash;
mod maglev;
pub mod packet;
mod policy;
pub mod proxy_header;
#[cfg(feature = "std")]
pub mod publish;
mod select;
mod service;
mod snapshot;
mod spin;
pub mod talkers;
mod tick;
mod turns;

pub use acl::{AddrSet, IpPrefix, PrefixError};
pub use addr::{
    BackendAddr, BackendId, PortRange, PortRangeError, Protocol, ServiceId, VipAddr, Weight,
    WeightError,
};
pub use admission::{Admission, Share, Standing};
pub use admit::{Admitted, Clients, Entrant, admit};
pub use affinity::{AffinityTable, Remembered};
pub use backend::{Backend, FailureStreak};
pub use clients::{ClientTable, Refusal};
pub use counters::{
    BackendCounters, BackendTotals, Counter, DatagramDrop, EndReason, FailureCause, Histogram,
    LimitKind, PerWorker, RetryCause, ServiceCounters, ServiceTotals,
};
pub use hash::{FlowKey, HashFields, HashPolicy};
pub use maglev::{MaglevTable, TABLE_SIZES, TableSize, TableSizeError};
pub use policy::{
    AcceptHeader, Affinity, Limits, Mode, MssClamp, PassiveEjection, Policy, ProxyProtocol, Retry,
    Scheduler, SendHeader, SourceAddress, Timeouts, Udp,
};
pub use select::{Pick, Tried};
pub use service::{BuildError, Group, Member, Pool, Previous, Service, ServiceState};
pub use snapshot::{Frontend, Snapshot, SnapshotBuilder, Told};
pub use tick::Tick;
pub use turns::Turns;
