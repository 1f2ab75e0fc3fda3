//! Where frames leave to.

use std::io;
use std::sync::Arc;

use fairway_core::packet::{BURST, Context, Engine, Frame, Ports, Segments, Verdict};

use super::capture::{Before, Capture, offer};
use super::passing::Inboxes;
use crate::report::PacketStats;
use crate::sys::{Offloads, Sender};

/// Where frames leave to.
pub(super) struct Way {
    /// Ports that are polled, which take all that leaves. Out while they are.
    pub(super) polled: Option<Box<dyn Ports>>,
    /// By the number of the port.
    pub(super) senders: Vec<Option<Sender>>,
    pub(super) inboxes: Arc<Inboxes>,
    pub(super) stats: Arc<PacketStats>,
    /// Who wants copies; nearly always nobody.
    pub(super) captures: Vec<Capture>,
    pub(super) worker: u16,
}

/// A burst through the engine and on.
pub(super) fn pass(
    engine: &mut Engine<'_>,
    way: &mut Way,
    frames: &mut [Frame<'_>],
    cx: &Context<'_>,
) {
    let mut verdicts = [Verdict::Punt; BURST];
    way.decide(engine, frames, &mut verdicts, cx);
    for (frame, verdict) in frames.iter().zip(verdicts) {
        way.carry_out(frame, verdict);
    }
}

impl Way {
    /// A burst through the engine.
    pub(super) fn decide(
        &mut self,
        engine: &mut Engine<'_>,
        frames: &mut [Frame<'_>],
        verdicts: &mut [Verdict],
        cx: &Context<'_>,
    ) {
        let copies = match self.captures.is_empty() {
            true => Vec::new(),
            false => frames.iter().map(Before::of).collect(),
        };
        engine.process(frames, verdicts, cx);
        let mut copies = copies.into_iter();
        for (frame, verdict) in frames.iter().zip(verdicts) {
            self.copy(copies.next(), frame, *verdict);
        }
    }

    /// A super-packet through the engine, whole: where it is to leave by, or none when it is to be cut. Nothing
    /// has happened to it then.
    pub(super) fn decide_whole(
        &mut self,
        engine: &mut Engine<'_>,
        frame: &mut Frame<'_>,
        payload: u16,
        cx: &Context<'_>,
    ) -> Option<usize> {
        let before = (!self.captures.is_empty()).then(|| Before::of(frame));
        let port = engine.whole(frame, payload, cx)?;
        self.copy(before, frame, Verdict::Send(port));
        Some(port.into())
    }

    /// Sends one by a port that was told what to send before, whole if the kernel takes it so; else it is cut
    /// into `place`.
    pub(super) fn send_whole(
        &mut self,
        port: usize,
        frame: &Frame<'_>,
        offloads: Offloads,
        place: &mut [u8],
    ) {
        let Some(stats) = self.stats.ports.get(port) else { return };
        let Some(Some(sender)) = self.senders.get_mut(port) else { return stats.full.inc() };
        // What is left in the ring came before it.
        if !sender.cuts && !sender.is_behind() {
            match sender.send_large(frame.bytes(), offloads, frame.tag) {
                Ok(()) => {
                    stats.sent.inc();
                    return stats.whole.inc();
                }
                // Not what it cannot do at all; else every one would be lost.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => sender.cuts = true,
                // More is on its way than the socket may have.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return stats.full.inc(),
                Err(_) => return stats.send_failures.inc(),
            }
        }
        let segments = offloads.segment().and_then(|size| Segments::of(frame.bytes(), size));
        let Some(mut segments) = segments else { return stats.cut.inc() };
        while let Some(length) = segments.next_summed(place) {
            stats.segments.inc();
            if !sender.put(&place[..length], frame.tag) {
                stats.full.inc();
            }
        }
    }

    /// Gives a frame to the worker whose it is.
    pub(super) fn pass_on(&self, frame: &Frame<'_>, verdict: Verdict) {
        if let Verdict::Pass(worker) = verdict
            && !self.inboxes.pass(worker, frame)
        {
            self.stats.unpassed.inc();
        }
    }

    /// Copies a frame for those who want it.
    pub(super) fn copy(&mut self, before: Option<Before>, frame: &Frame<'_>, verdict: Verdict) {
        if !self.captures.is_empty() {
            offer(&mut self.captures, self.worker, before, frame, verdict);
        }
    }

    /// Sends what is to leave. What is punted the kernel has already where it shares its interfaces: a
    /// packet socket sees copies.
    pub(super) fn carry_out(&mut self, frame: &Frame<'_>, verdict: Verdict) {
        self.pass_on(frame, verdict);
        let (Verdict::Send(port), None) = (verdict, &self.polled) else {
            return self.emit(frame, verdict);
        };
        let place = usize::from(port);
        let sender = self.senders.get_mut(place).and_then(Option::as_mut);
        let sent = sender.is_some_and(|sender| sender.put(frame.bytes(), frame.tag));
        if let Some(stats) = self.stats.ports.get(place).filter(|_| !sent) {
            stats.full.inc();
        }
    }

    /// The same by polled ports, for a frame that is not in their memory.
    fn emit(&mut self, frame: &Frame<'_>, verdict: Verdict) {
        if let (Some(ports), Verdict::Send(_) | Verdict::Punt) = (&mut self.polled, verdict) {
            let place = usize::from(frame.port);
            ports.emit(&mut |out| {
                let written = out.replace(frame.bytes());
                (out.port, out.tag) = (frame.port, frame.tag);
                if let Some(stats) = self.stats.ports.get(place).filter(|_| !written) {
                    stats.full.inc();
                }
                written.then_some(verdict)
            });
        }
    }
}
