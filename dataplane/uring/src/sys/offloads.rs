//! What stands before a frame of a packet socket: what is left to the port to do to it
//! (linux/virtio_net.h, `struct virtio_net_hdr`, whose words are in this machine's order).

use fairway_core::packet::{Parsed, Transport, parse, protocol, tcp_flags};

/// Bytes of it.
pub(super) const OFFLOADS: usize = 10;
/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the transport checksum is partial.
const NEEDS_CHECKSUM: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_TCPV4`, `_TCPV6`, `_UDP_L4`; none is zero.
const TCP_V4: u8 = 1;
const TCP_V6: u8 = 4;
const DATAGRAMS: u8 = 5;
/// `VIRTIO_NET_HDR_GSO_ECN`: the first segment alone says that its sender has slowed down.
const ECN: u8 = 0x80;

/// Of the kernel's words the few at which we look.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Offloads {
    /// The transport checksum is that of the pseudo-header alone.
    pub(super) partial: bool,
    /// Payload of the segments that the frame is to be cut into.
    pub(super) segment: Option<u16>,
}

impl Offloads {
    /// Reads them.
    pub(super) fn of(bytes: [u8; OFFLOADS]) -> Self {
        let segment = u16::from_ne_bytes([bytes[4], bytes[5]]);
        let partial = bytes[0] & NEEDS_CHECKSUM != 0;
        Self { partial, segment: (bytes[1] != 0).then_some(segment) }
    }

    /// Those that have a frame, whose transport checksum is partial, cut into segments with `payload` bytes of
    /// payload; none when it is no TCP or UDP packet. So many bytes as a tag has come into it yet.
    pub(super) fn to_cut(frame: &[u8], payload: u16, tag: usize) -> Option<[u8; OFFLOADS]> {
        let Ok(Parsed::Ip(packet)) = parse(frame) else { return None };
        let (kind, header, checksum) = match packet.transport {
            Transport::Tcp { header, flags, .. } => {
                let kind = if packet.addresses.source().is_ipv4() { TCP_V4 } else { TCP_V6 };
                let ecn = if flags & tcp_flags::CWR != 0 { ECN } else { 0 };
                (kind | ecn, u16::from(header), 16_u16)
            }
            Transport::Datagram { .. } if packet.protocol == protocol::UDP => (DATAGRAMS, 8, 6),
            _ => return None,
        };
        let start = packet.l4 + tag as u16;
        // Bytes of all headers, payload of a segment, where the sum begins, and where it stands there.
        let words = [start + header, payload, start, checksum].map(u16::to_ne_bytes);
        let mut bytes = [0; OFFLOADS];
        (bytes[0], bytes[1]) = (NEEDS_CHECKSUM, kind);
        bytes[2..].copy_from_slice(words.as_flattened());
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fairway_core::packet::sample::{icmp, tcp, udp};
    use std::net::SocketAddr;

    #[test]
    fn a_port_is_told_how_to_cut_a_frame() {
        let ends = ["10.7.0.2:4711", "10.8.0.1:80", "[fd77::2]:4711", "[fd70::1]:80"];
        let [from, to, from6, to6] = ends.map(|end| end.parse::<SocketAddr>().unwrap());
        let stamps = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
        let slow = tcp_flags::ACK | tcp_flags::CWR;
        let cases = [
            (tcp(from, to, tcp_flags::ACK), 0, TCP_V4, [54, 1448, 34, 16]),
            (tcp(from6, to6, tcp_flags::ACK), 4, TCP_V6, [78, 1448, 58, 16]),
            (tcp(from, to, slow).tcp_options(&stamps), 0, TCP_V4 | ECN, [66, 1448, 34, 16]),
            (udp(from, to), 0, DATAGRAMS, [42, 1448, 34, 6]),
        ];
        for (sample, tag, kind, words) in cases {
            let bytes = Offloads::to_cut(&sample.payload(&[7; 4000]).frame(), 1448, tag).unwrap();
            assert_eq!(bytes[..2], [NEEDS_CHECKSUM, kind]);
            assert_eq!(&bytes[2..], words.map(u16::to_ne_bytes).as_flattened());
            assert_eq!(Offloads::of(bytes), Offloads { partial: true, segment: Some(1448) });
        }
        let echo = icmp(from.ip(), to.ip(), 8, 0, [0; 4]).frame();
        assert_eq!(Offloads::to_cut(&echo, 1448, 0), None);
        assert_eq!(Offloads::to_cut(&echo[..20], 1448, 0), None);
    }
}
