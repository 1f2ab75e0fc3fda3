//! The document: what may be written, what it means, where it comes from.
//!
//! ```text
//! text ──▶ tree (places) ──▶ document (types) ──▶ checks ──▶ Config { process, services }
//! ```
//!
//! Nothing here knows the workers. Every error names file, line and column, what was found and
//! what to write instead, and all of them are reported at once; only broken syntax stops a file.

pub mod announce;
mod check;
mod de;
pub mod document;
pub mod kubernetes;
mod load;
mod problem;
mod spec;
mod tree;
mod values;
mod watch;

pub use document::schema;
pub use load::{load, load_text, to_json};
pub use problem::{File, Place, Problem, Problems};
pub use spec::{
    Access, ApiServer, BackendSpec, ChangeSet, CheckSpec, ClusterSource, Config, Desired, Device,
    Dpdk, Exchange, Http, LogTarget, NamedBackends, Origin, Outliers, PacketPath, Pages, Priority,
    Probe, Process, Query, ServiceKey, ServiceSpec, Serving, SlowStart, Tls,
};
pub use values::{
    Address, At, Auto, Endpoint, Host, Percent, Ports, Prefix, Range, Size, Socket, Statuses, Time,
};
pub use watch::{WatchError, Watcher};
