//! Clients and servers of the measurements: a thread with an epoll each, on core 1, so that they take little
//! beside what they measure and thousands of connections cost no thread.
//!
//! A request is [`HEADER`] bytes that say how long the reply is and how many bytes follow, then these. What
//! is sent, either way, is [`pattern`]; a request may ask for the SHA-256 of what followed it.

use std::sync::OnceLock;

use rustix::thread::{CpuSet, sched_setaffinity};

mod client;
mod datagrams;
mod server;

pub(crate) use client::{Clients, Outcome, Plan, ShortPlan, short};
pub(crate) use datagrams::{Burst, Datagrams, echo};
pub(crate) use server::serve;

/// Bytes of a request that say what is wanted: the reply's length, then how many bytes follow.
const HEADER: usize = 16;
/// In the second number: the reply is to begin with the SHA-256 of what follows.
const HASHED: u64 = 1 << 63;
/// Length of a SHA-256.
const DIGEST: usize = 32;
/// The pattern repeats after this many bytes.
const PERIOD: usize = 1 << 20;
/// The longest piece of it.
const PIECE: usize = 256 << 10;

/// One request and its reply, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Exchange {
    /// At least [`HEADER`].
    pub(crate) request: u64,
    pub(crate) reply: u64,
}

impl Exchange {
    pub(crate) const fn new(request: u64, reply: u64) -> Self {
        Self { request, reply }
    }

    fn header(self, hashed: bool) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        let follows = self.request - HEADER as u64;
        header[..8].copy_from_slice(&self.reply.to_be_bytes());
        header[8..].copy_from_slice(&(follows | if hashed { HASHED } else { 0 }).to_be_bytes());
        header
    }
}

/// What is sent from byte `at` of a request or a reply on, at most `most` bytes of it.
fn pattern(at: u64, most: u64) -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    let bytes = BYTES.get_or_init(|| {
        // Xorshift: nothing that a shifted or repeated piece would equal.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let next = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        let mut bytes: Vec<u8> = (0..PERIOD).map(next).collect();
        bytes.extend_from_within(..PIECE);
        bytes
    });
    let start = (at % PERIOD as u64) as usize;
    &bytes[start..start + most.min(PIECE as u64) as usize]
}

/// Moves this thread, and those that it will start, to a core.
pub(crate) fn to_core(core: usize) {
    let mut set = CpuSet::new();
    set.set(core);
    // On a machine with one core everything shares it, and the figures say so.
    let _ = sched_setaffinity(None, &set);
}
