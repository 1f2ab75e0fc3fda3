//! What stands before a frame of a packet socket: what is left to the port to do to it
//! (linux/virtio_net.h, `struct virtio_net_hdr`, whose words are in this machine's order).

use fairway_core::packet::{ETHERNET, ether, protocol};

/// Bytes of it.
pub(super) const OFFLOADS: usize = 10;
/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the transport checksum is partial.
const NEEDS_CHECKSUM: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_TCPV4`, `_TCPV6`, `_UDP_L4`; none is zero.
const TCP_V4: u8 = 1;
const TCP_V6: u8 = 4;
const DATAGRAMS: u8 = 5;
/// `VIRTIO_NET_HDR_GSO_ECN`, which may stand beside: how congestion marks are divided.
const ECN: u8 = 0x80;

/// The kernel's words about a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Offloads([u8; OFFLOADS]);

impl Offloads {
    pub(super) fn of(bytes: [u8; OFFLOADS]) -> Self {
        Self(bytes)
    }

    fn word(self, at: usize) -> u16 {
        u16::from_ne_bytes([self.0[at], self.0[at + 1]])
    }

    /// Its transport checksum is that of the pseudo-header alone.
    pub(crate) fn is_partial(self) -> bool {
        self.0[0] & NEEDS_CHECKSUM != 0
    }

    /// Payload of the segments that the frame was, or is to be, cut into; none when it is one packet.
    pub(crate) fn segment(self) -> Option<u16> {
        (self.0[1] != 0).then(|| self.word(4))
    }

    /// Whether they are about the packet of `frame` itself, plain TCP or UDP without options before it, and
    /// not about one inside it.
    pub(crate) fn are_of(self, frame: &[u8]) -> bool {
        let Some(&[a, b]) = frame.get(ETHERNET - 2..ETHERNET) else { return false };
        let kind = u16::from_be_bytes([a, b]);
        // Where the protocol stands, and where its header.
        let (at, l4, tcp) = match kind {
            ether::IPV4 => (ETHERNET + 9, ETHERNET + 20, TCP_V4),
            ether::IPV6 => (ETHERNET + 6, ETHERNET + 40, TCP_V6),
            _ => return false,
        };
        let (number, sum) = match self.0[1] & !ECN {
            kind if kind == tcp => (protocol::TCP, 16),
            DATAGRAMS => (protocol::UDP, 6),
            _ => return false,
        };
        self.is_partial()
            && frame.get(at) == Some(&number)
            && usize::from(self.word(6)) == l4
            && self.word(8) == sum
    }

    /// The same for the frame when only stations, addresses and ports have changed, and so many bytes of a
    /// tag are put in behind the stations. They are of it; none when it is too short.
    pub(super) fn to_send(self, frame: &[u8], tag: usize) -> Option<[u8; OFFLOADS]> {
        let l4 = self.word(6);
        let header = match self.0[1] & !ECN {
            DATAGRAMS => 8,
            _ => u16::from(frame.get(usize::from(l4) + 12)? >> 4) * 4,
        };
        let start = l4.checked_add(tag as u16)?;
        // How much is to be in one piece: all headers. The kernel that we have it of says any length.
        let length = start.checked_add(header)?;
        let mut bytes = self.0;
        bytes[2..4].copy_from_slice(&length.to_ne_bytes());
        bytes[6..8].copy_from_slice(&start.to_ne_bytes());
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fairway_core::packet::sample::{icmp, tcp, udp};
    use fairway_core::packet::tcp_flags::ACK;
    use std::net::SocketAddr;

    fn offloads(kind: u8, words: [u16; 4]) -> [u8; OFFLOADS] {
        let mut bytes = [0; OFFLOADS];
        (bytes[0], bytes[1]) = (NEEDS_CHECKSUM, kind);
        bytes[2..].copy_from_slice(words.map(u16::to_ne_bytes).as_flattened());
        bytes
    }

    #[test]
    fn a_port_is_told_what_we_were_told() {
        let ends = ["10.7.0.2:4711", "10.8.0.1:80", "[fd77::2]:4711", "[fd70::1]:80"];
        let [from, to, from6, to6] = ends.map(|end| end.parse::<SocketAddr>().unwrap());
        let stamps = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
        let cases = [
            (tcp(from, to, ACK), TCP_V4, 34, 16, 54),
            (tcp(from6, to6, ACK), TCP_V6, 54, 16, 74),
            (tcp(from, to, ACK).tcp_options(&stamps), TCP_V4 | ECN, 34, 16, 66),
            (udp(from, to), DATAGRAMS, 34, 6, 42),
            (udp(from6, to6), DATAGRAMS, 54, 6, 62),
        ];
        for (sample, kind, start, sum, headers) in cases {
            let frame = sample.payload(&[7; 4000]).frame();
            let came = Offloads::of(offloads(kind, [200, 1448, start, sum]));
            assert!(came.is_partial() && came.are_of(&frame), "{came:?}");
            assert_eq!(came.segment(), Some(1448));
            for tag in [0, 4] {
                let want = offloads(kind, [headers + tag, 1448, start + tag, sum]);
                assert_eq!(came.to_send(&frame, tag.into()), Some(want));
            }
            // Of a packet inside it, of another kind, or with a whole checksum.
            for other in [
                offloads(kind, [200, 1448, start + 50, sum]),
                offloads(kind, [200, 1448, start, sum + 1]),
                offloads(kind ^ 3, [200, 1448, start, sum]),
                offloads(kind & ECN, [200, 1448, start, sum]),
            ] {
                assert!(!Offloads::of(other).are_of(&frame), "{other:?}");
            }
            let mut whole = offloads(kind, [200, 1448, start, sum]);
            whole[0] = 0;
            assert!(!Offloads::of(whole).are_of(&frame));
            assert!(!came.are_of(&frame[..15]));
        }
        let echo = icmp(from.ip(), to.ip(), 8, 0, [0; 4]).frame();
        assert!(!Offloads::of(offloads(TCP_V4, [0, 1448, 34, 16])).are_of(&echo));
        assert_eq!(Offloads::of(offloads(TCP_V4, [0, 1448, 34, 16])).to_send(&echo[..40], 0), None);
        assert_eq!(Offloads::of([0; OFFLOADS]).segment(), None);
    }
}
