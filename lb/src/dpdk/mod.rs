//! DPDK at the start of the process, where this build has it.

#[cfg_attr(not(feature = "dpdk"), path = "without.rs")]
mod with;

use std::sync::Arc;

use fairway_core::packet::Toeplitz;
use fairway_uring::Polled;

pub(crate) use with::{Cards, start};

/// DPDK, started; nothing when it is not wanted.
#[derive(Default)]
pub(crate) struct Started {
    /// The queues of each worker.
    pub(crate) polled: Vec<Polled>,
    pub(crate) cards: Cards,
    /// How all cards divide packets among workers; none when one does not as we want.
    pub(crate) toeplitz: Option<Arc<Toeplitz>>,
}
