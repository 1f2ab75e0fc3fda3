//! IPv4 packets that are too large for their way and may be fragmented (RFC 791): the first part
//! goes on in place, the others wait behind it as if they had come as fragments.

use super::{Context, Engine, Verdict};
use crate::packet::checksum::{Sum, fill};
use crate::packet::fragments::{Common, PART};
use crate::packet::frame::Frame;
use crate::packet::icmp::Error;
use crate::packet::parse::{Addresses, Fragment, Packet};
use crate::packet::reason::DropReason;
use crate::packet::rewrite::complete;

/// Bits of the word with the offset: do not fragment, more fragments.
const KEEP_WHOLE: u16 = 0x4000;
const MORE: u16 = 0x2000;

impl Engine<'_> {
    /// Sends a packet of which at most `mtu` bytes fit in parts, or tells its sender.
    pub(super) fn too_big(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        mtu: u16,
        cx: &Context<'_>,
    ) -> Verdict {
        if !may_fragment(frame, packet) {
            return self.error(frame, packet, Error::TooBig(mtu), cx);
        }
        let l3 = usize::from(packet.l3);
        let word = |at: usize| u16::from_be_bytes([frame.bytes()[at], frame.bytes()[at + 1]]);
        let (bits, id) = (word(l3 + 6), word(l3 + 4).into());
        complete(frame, packet);
        let header = usize::from(packet.l4) - l3;
        let end = usize::from(packet.end);
        // Offsets count in units of eight bytes.
        let room = usize::from(mtu).saturating_sub(header) & !7;
        let start = usize::from((bits & 0x1fff) << 3);
        let whole =
            Packet { fragment: Some(Fragment { id, offset: start as u16, more: true }), ..*packet };
        let Some(common) = Common::of(&whole).filter(|_| room > 0) else {
            return Verdict::Drop(DropReason::TooBig);
        };
        let body = &frame.bytes()[usize::from(packet.l4)..end];
        for (n, part) in body.chunks(room).enumerate().skip(1) {
            let mut buffer = [0; PART];
            let length = usize::from(packet.l4) + part.len();
            let Some(out) = buffer.get_mut(..length) else {
                return Verdict::Drop(DropReason::TooBig);
            };
            let (head, tail) = out.split_at_mut(packet.l4.into());
            head.copy_from_slice(&frame.bytes()[..packet.l4.into()]);
            tail.copy_from_slice(part);
            let last = (n + 1) * room >= body.len();
            let offset = ((start + n * room) >> 3) as u16;
            mark(&mut out[l3..], header, offset | if last { bits & MORE } else { MORE });
            let mut out = Frame::new(out, 0, length);
            (out.port, out.tag) = (frame.port, frame.tag);
            if !self.fragments.keep(common, &out, cx.now) {
                return Verdict::Drop(DropReason::Fragment);
            }
        }
        frame.truncate(usize::from(packet.l4) + room);
        mark(&mut frame.bytes_mut()[l3..], header, (bits & 0x1fff) | MORE);
        self.one(frame, cx)
    }
}

/// Whether routers may fragment a packet.
pub(super) fn may_fragment(frame: &Frame<'_>, packet: &Packet) -> bool {
    let flags = usize::from(packet.l3) + 6;
    matches!(packet.addresses, Addresses::V4(..))
        && frame.bytes().get(flags).is_some_and(|flags| u16::from(*flags) << 8 & KEEP_WHOLE == 0)
}

/// Writes the length of a part and its place.
fn mark(packet: &mut [u8], header: usize, place: u16) {
    let length = (packet.len() as u16).to_be_bytes();
    packet[2..4].copy_from_slice(&length);
    packet[6..8].copy_from_slice(&place.to_be_bytes());
    fill(&mut packet[..header], 10, Sum::ZERO);
}
