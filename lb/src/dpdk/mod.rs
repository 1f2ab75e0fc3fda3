//! DPDK, where this build has it: its start, its cards, and their way to the next process.

mod ends;
#[cfg_attr(not(feature = "dpdk"), path = "without.rs")]
mod with;

use std::sync::Arc;

use fairway_core::packet::Toeplitz;
use fairway_uring::Polled;

pub(crate) use self::ends::KernelEnds;
pub(crate) use self::with::Cards;

/// Cards that are open.
pub(crate) struct Opened {
    /// The queues of each worker.
    pub(crate) polled: Vec<Polled>,
    /// How all cards divide packets among workers; none when one does not as we want.
    pub(crate) toeplitz: Option<Arc<Toeplitz>>,
}
