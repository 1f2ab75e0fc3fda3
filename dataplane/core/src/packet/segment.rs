//! Super-packets, which the kernel joins of many or means to cut into many: cut into what fits a
//! wire.
//!
//! As hardware does it: the headers are repeated, lengths, sequence numbers and flags adjusted.

use super::checksum::{Sum, fill};
use super::frame::{Frame, TransportChecksum};
use super::parse::{Addresses, Packet, Parsed, Transport, parse, protocol, tcp_flags};
use super::rewrite::complete;

/// TCP flags of the last segment alone, and of the first alone.
const LAST: u8 = tcp_flags::FIN | tcp_flags::PSH;
const FIRST: u8 = tcp_flags::CWR;

/// A frame that is being cut. Checksums of the transport are left partial.
#[derive(Debug)]
pub struct Segments<'f> {
    frame: &'f [u8],
    packet: Packet,
    /// Bytes before the payload.
    headers: usize,
    size: usize,
    /// Payload that is out already.
    done: usize,
    count: u16,
}

impl<'f> Segments<'f> {
    /// Cuts `frame` into segments with `size` bytes of payload; none when it is no TCP or UDP
    /// packet, or broken.
    #[must_use]
    pub fn of(frame: &'f [u8], size: u16) -> Option<Self> {
        let Ok(Parsed::Ip(packet)) = parse(frame) else { return None };
        let header = match (packet.transport, packet.protocol, packet.fragment) {
            (Transport::Tcp { header, .. }, _, None) => header.into(),
            (Transport::Datagram { .. }, protocol::UDP, None) => 8,
            _ => return None,
        };
        let headers = usize::from(packet.l4) + header;
        let size = usize::from(size);
        (size > 0).then_some(Self { frame, packet, headers, size, done: 0, count: 0 })
    }

    /// Writes the next segment to the front of `out`, and returns its length; none at the end, or
    /// when there is no room for it. Its transport checksum is that of the pseudo-header alone.
    pub fn next(&mut self, out: &mut [u8]) -> Option<usize> {
        let Self { frame, packet, headers, .. } = *self;
        let payload = &frame[headers..usize::from(packet.end)];
        let rest = payload.get(self.done..).filter(|rest| !rest.is_empty())?;
        let part = &rest[..rest.len().min(self.size)];
        let last = part.len() == rest.len();
        let length = headers + part.len();
        let out = out.get_mut(..length)?;
        out[..headers].copy_from_slice(&frame[..headers]);
        out[headers..].copy_from_slice(part);
        let (l3, l4) = (usize::from(packet.l3), usize::from(packet.l4));
        match packet.addresses {
            Addresses::V4(..) => {
                let id = u16::from_be_bytes([frame[l3 + 4], frame[l3 + 5]]);
                out[l3 + 2..l3 + 4].copy_from_slice(&((length - l3) as u16).to_be_bytes());
                let id = id.wrapping_add(self.count).to_be_bytes();
                out[l3 + 4..l3 + 6].copy_from_slice(&id);
                fill(&mut out[l3..l4], 10, Sum::ZERO);
            }
            Addresses::V6(..) => {
                out[l3 + 4..l3 + 6].copy_from_slice(&((length - l3 - 40) as u16).to_be_bytes());
            }
        }
        let transport = &mut out[l4..];
        let bytes = transport.len();
        let field = if packet.protocol == protocol::TCP {
            let sequence =
                u32::from_be_bytes([transport[4], transport[5], transport[6], transport[7]]);
            let sequence = sequence.wrapping_add(self.done as u32);
            transport[4..8].copy_from_slice(&sequence.to_be_bytes());
            transport[13] &=
                !(if last { 0 } else { LAST } | if self.count > 0 { FIRST } else { 0 });
            16
        } else {
            transport[4..6].copy_from_slice(&(bytes as u16).to_be_bytes());
            6
        };
        let pseudo = packet.addresses.pseudo_header(packet.protocol, bytes).folded();
        transport[field..field + 2].copy_from_slice(&pseudo.to_be_bytes());
        self.done += part.len();
        self.count = self.count.wrapping_add(1);
        Some(length)
    }

    /// The same, with the whole checksum.
    pub fn next_summed(&mut self, out: &mut [u8]) -> Option<usize> {
        let length = self.next(out)?;
        let mut frame = Frame::new(out, 0, length);
        frame.checksum = TransportChecksum::Partial;
        complete(&mut frame, &Packet { end: length as u16, ..self.packet });
        Some(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::sample::{syn, tcp, udp};
    use alloc::vec::Vec;

    fn cut(frame: &[u8], size: u16) -> Vec<Vec<u8>> {
        let mut segments = Segments::of(frame, size).unwrap();
        let mut out = [0; 2048];
        core::iter::from_fn(|| segments.next(&mut out).map(|n| out[..n].to_vec())).collect()
    }

    fn addresses(v6: bool) -> (core::net::SocketAddr, core::net::SocketAddr) {
        let text =
            if v6 { ("[fd77::2]:4711", "[fd70::1]:80") } else { ("10.7.0.2:4711", "10.8.0.1:80") };
        (text.0.parse().unwrap(), text.1.parse().unwrap())
    }

    #[test]
    fn tcp_is_cut_into_what_its_sender_would_have_sent() {
        for v6 in [false, true] {
            let (from, to) = addresses(v6);
            let data: Vec<u8> = (0..250_u8).cycle().take(3100).collect();
            let flags = tcp_flags::ACK | LAST | FIRST;
            let whole = tcp(from, to, flags).tcp_options(&[1, 1, 1, 0]).payload(&data).tags(&[7]);
            let got = cut(&whole.frame(), 1448);
            assert_eq!(got.len(), 3);
            let (super_packet, mut out) = (whole.frame(), [0; 2048]);
            let mut summed = Segments::of(&super_packet, 1448).unwrap();
            for (n, segment) in got.iter().enumerate() {
                let Ok(Parsed::Ip(packet)) = parse(segment) else { panic!("{n}") };
                assert_eq!(usize::from(packet.end), segment.len());
                let part = &data[n * 1448..data.len().min((n + 1) * 1448)];
                let want = match n {
                    0 => tcp_flags::ACK | FIRST,
                    1 => tcp_flags::ACK,
                    _ => tcp_flags::ACK | LAST,
                };
                let expected = tcp(from, to, want)
                    .tcp_options(&[1, 1, 1, 0])
                    .numbers(1000 + 1448 * n as u32, 2000)
                    .payload(part)
                    .tags(&[7])
                    .id(0x1234 + n as u16)
                    .frame();
                let field = usize::from(packet.l4) + 16;
                // All but the transport checksum, which is left to do.
                assert_eq!(segment[..field], expected[..field], "{v6} {n}");
                assert_eq!(segment[field + 2..], expected[field + 2..], "{v6} {n}");
                assert_eq!(summed.next_summed(&mut out).map(|n| &out[..n]), Some(&expected[..]));
            }
            assert_eq!(summed.next_summed(&mut out), None);
        }
    }

    #[test]
    fn datagrams_are_cut_into_datagrams_and_others_are_not_cut() {
        let (from, to) = addresses(false);
        let got = cut(&udp(from, to).payload(&[7; 250]).frame(), 100);
        let lengths: Vec<_> = got.iter().map(Vec::len).collect();
        assert_eq!(lengths, [142, 142, 92]);
        assert!(Segments::of(&syn(from, to).frame(), 0).is_none());
        assert!(Segments::of(&[0; 60], 100).is_none());
        let mut small = [0; 100];
        let frame = udp(from, to).payload(&[7; 250]).frame();
        assert!(Segments::of(&frame, 100).unwrap().next(&mut small).is_none());
    }
}
