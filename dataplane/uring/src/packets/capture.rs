//! Copies of frames for people, as the workers see and send them.
//!
//! A worker never waits for whoever reads: what finds no room is left out, and counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::SystemTime;

use crossbeam_channel::{Sender, TrySendError};
use fairway_core::IpPrefix;
use fairway_core::packet::{Frame, Parsed, Verdict, VlanTag, parse};

/// Bytes of a frame that are kept.
const KEPT: usize = 2048;

/// Which frames are asked for; what is none does not matter.
#[derive(Debug, Clone, Default)]
pub struct CaptureFilter {
    /// To or from here, as it came or as it left.
    pub net: Option<IpPrefix>,
    /// To or from this port.
    pub port: Option<u16>,
    /// Only those that went no further.
    pub dropped: bool,
}

/// A frame that came or left.
#[derive(Debug)]
pub struct Captured {
    /// When.
    pub at: SystemTime,
    /// Number of its interface, in the order of the configuration.
    pub port: u16,
    /// It left; else it came.
    pub outgoing: bool,
    /// It, or its beginning, with its tag.
    pub bytes: Vec<u8>,
    /// How long it was.
    pub length: usize,
    /// The worker, and what became of it.
    pub comment: String,
}

/// Somebody who wants copies.
#[derive(Debug)]
pub struct Capture {
    /// Of these frames.
    pub filter: CaptureFilter,
    /// Where to; the capture ends when nobody receives any more.
    pub sender: Sender<Captured>,
    /// Frames that found no room.
    pub lost: Arc<AtomicU64>,
}

impl CaptureFilter {
    fn wants(&self, frame: &[u8], verdict: Verdict) -> bool {
        if self.dropped && !matches!(verdict, Verdict::Drop(_)) {
            return false;
        }
        if self.net.is_none() && self.port.is_none() {
            return true;
        }
        let Ok(Parsed::Ip(packet)) = parse(frame) else { return false };
        let (from, to) = (packet.addresses.source(), packet.addresses.destination());
        let ports = packet.transport.ports();
        self.net.is_none_or(|net| net.contains(from) || net.contains(to))
            && self.port.is_none_or(|port| ports.is_some_and(|(a, b)| a == port || b == port))
    }
}

fn words(verdict: Verdict) -> String {
    match verdict {
        Verdict::Send(port) => format!("sent by interface {port}"),
        Verdict::Punt => "left to the kernel".into(),
        Verdict::Drop(reason) => format!("dropped: {}", reason.label()),
        Verdict::Wait => "waits for a neighbour or a fragment".into(),
        Verdict::Pass(worker) => format!("passed to worker {worker}"),
    }
}

/// A frame as it was before it was worked on.
pub(super) struct Before {
    port: u16,
    bytes: Vec<u8>,
    length: usize,
}

impl Before {
    pub(super) fn of(frame: &Frame<'_>) -> Self {
        let (bytes, length) = tagged(frame.bytes(), frame.tag);
        Self { port: frame.port, bytes, length }
    }
}

/// The beginning of a frame with its tag in it, and the length of the whole.
fn tagged(frame: &[u8], tag: Option<VlanTag>) -> (Vec<u8>, usize) {
    let kept = &frame[..frame.len().min(KEPT)];
    match (tag, kept.split_at_checked(12)) {
        (Some(tag), Some((stations, rest))) => {
            ([stations, &tag.bytes(), rest].concat(), frame.len() + VlanTag::LENGTH)
        }
        _ => (kept.into(), frame.len()),
    }
}

/// Offers a frame, as it came and as it left, to those who want it; forgets those who have gone.
/// Frames of our own have not come.
pub(super) fn offer(
    captures: &mut Vec<Capture>,
    worker: u16,
    before: Option<Before>,
    after: &Frame<'_>,
    verdict: Verdict,
) {
    let at = SystemTime::now();
    let comment = format!("worker {worker}: {}", words(verdict));
    let left = match verdict {
        Verdict::Send(port) => Some((port, tagged(after.bytes(), after.tag))),
        _ => None,
    };
    captures.retain(|capture| {
        let came = before.iter().map(|b| (b.port, false, &b.bytes, b.length));
        let left = left.iter().map(|(port, (bytes, length))| (*port, true, bytes, *length));
        let both: Vec<_> = came.chain(left).collect();
        if !both.iter().any(|(_, _, bytes, _)| capture.filter.wants(bytes, verdict)) {
            return true;
        }
        both.into_iter().all(|(port, outgoing, bytes, length)| {
            let comment = comment.clone();
            let captured = Captured { at, port, outgoing, bytes: bytes.clone(), length, comment };
            match capture.sender.try_send(captured) {
                Ok(()) => true,
                Err(TrySendError::Full(_)) => {
                    capture.lost.fetch_add(1, Relaxed);
                    true
                }
                Err(TrySendError::Disconnected(_)) => false,
            }
        })
    });
}
