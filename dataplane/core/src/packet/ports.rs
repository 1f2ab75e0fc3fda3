//! Ports that a worker polls, and whose packets leave in the memory that they came in.

use super::engine::Verdict;
use super::frame::Frame;

/// What a port has counted since it was asked last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PortCounts {
    /// Packets that it has taken.
    pub sent: u64,
    /// Packets for which its queue had no room.
    pub full: u64,
    /// Packets that came and were too large, or in more parts than fit into one buffer.
    pub cut: u64,
    /// Packets for other workers that had no room on their way.
    pub unpassed: u64,
    /// Packets that could not be made for want of memory.
    pub without_memory: u64,
}

/// One worker's end of all its ports.
pub trait Ports: Send + core::fmt::Debug {
    /// Called once, on the thread that has it from then on.
    fn enter(&mut self);

    /// Has `work` decide about the packets that have come by the port of that number, a burst at
    /// most, and carries out what it decides: sends, punts to the kernel, and passes to other workers.
    /// Returns how many there were.
    fn burst(&mut self, port: u16, work: &mut dyn FnMut(&mut [Frame<'_>], &mut [Verdict]))
    -> usize;

    /// The same for packets that other workers have passed on.
    fn passed(&mut self, work: &mut dyn FnMut(&mut [Frame<'_>], &mut [Verdict])) -> usize;

    /// Has `fill` write a packet of our own, if there is memory for it, and carries out what it decides
    /// of that.
    fn emit(&mut self, fill: &mut dyn FnMut(&mut Frame<'_>) -> Option<Verdict>);

    /// Sends what the kernel has sent by the ports, some of it. Returns how many packets.
    fn relay(&mut self) -> usize;

    /// Lets go of what is to leave.
    fn flush(&mut self);

    /// Asks that whoever sleeps is woken by the next packet; what has come before is told of by
    /// chance only, so the caller looks once more. False when a port cannot do that: then others may
    /// have been asked already.
    fn arm(&mut self) -> bool;

    /// Ends that, and forgets who has woken it.
    fn disarm(&mut self);

    /// What the port of that number has counted since this was asked last.
    fn counts(&mut self, port: u16) -> PortCounts;
}
