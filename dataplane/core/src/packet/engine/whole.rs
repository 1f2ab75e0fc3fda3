//! Super-packets, which the kernel has joined of segments or means to cut into some. Where nothing but
//! stations, addresses and ports changes, they go on whole, and the port that sends them cuts them.

use super::fast::Burst;
use super::{Context, Engine, Verdict};
use crate::packet::frame::Frame;

impl Engine<'_> {
    /// Sends a super-packet of an established flow on whole: the port that it leaves by, as it stands
    /// then. Its segments have `payload` bytes of payload, the last one at most, and its transport
    /// checksum is partial before and after. Counts as one packet.
    ///
    /// None when it is to be cut (see [`Segments`](crate::packet::Segments)): its flow is new, ends, is not
    /// here, goes into a tunnel, to another family, or is told of its client; it is no plain IP, has no time to
    /// live or no partial checksum; its segments are too large for their way, or its next hop is not known.
    /// Nothing has happened to it then.
    pub fn whole(&mut self, frame: &mut Frame<'_>, payload: u16, cx: &Context<'_>) -> Option<u16> {
        let mut look = self.look(frame);
        if look.hash == 0 {
            return None;
        }
        look.guess = self.flows.guess(look.hash);
        let (burst, segment) = (Burst::of(cx), Some(payload));
        let verdict = match look.is_plain6() {
            true => self.way6(frame, &look, &burst, segment, cx),
            false => self.fast(frame, &look, &burst, segment, cx),
        };
        // Nothing else is said of one.
        let Some(Verdict::Send(port)) = verdict else { return None };
        self.counters.sent.inc();
        Some(port)
    }
}
