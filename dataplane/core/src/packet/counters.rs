//! What one packet worker counts.

use super::engine::Verdict;
use super::reason::DropReason;
use crate::Counter;

/// Packets by what became of them. One worker writes, anyone reads.
#[derive(Debug)]
pub struct PacketCounters {
    /// Sent on.
    pub sent: Counter,
    /// Left to the kernel.
    pub punted: Counter,
    /// Waited for a neighbour, or for a fragment.
    pub waited: Counter,
    /// Passed on to another worker.
    pub passed: Counter,
    /// Sent on by the choice of a backend alone, as the flow table was full.
    pub stateless: Counter,
    /// ICMP errors of our own; their packets are dropped, too.
    pub told: Counter,
    /// Dropped, by reason.
    pub dropped: [Counter; DropReason::ALL.len()],
}

impl Default for PacketCounters {
    fn default() -> Self {
        Self {
            sent: Counter::default(),
            punted: Counter::default(),
            waited: Counter::default(),
            passed: Counter::default(),
            stateless: Counter::default(),
            told: Counter::default(),
            dropped: core::array::from_fn(|_| Counter::default()),
        }
    }
}

impl PacketCounters {
    pub(super) fn count(&self, verdict: Verdict) {
        match verdict {
            Verdict::Send(_) => self.sent.inc(),
            Verdict::Punt => self.punted.inc(),
            Verdict::Wait => self.waited.inc(),
            Verdict::Pass(_) => self.passed.inc(),
            Verdict::Drop(reason) => self.dropped[reason as usize].inc(),
        }
    }
}
