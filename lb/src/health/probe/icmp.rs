//! ICMP echo, over the kernel's ping sockets or, where these are not allowed, raw ones.

use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use super::plain;
use crate::health::state::{ProbeError, ProbeResult};

const V4: (u8, u8) = (8, 0);
const V6: (u8, u8) = (128, 129);

/// Sends an echo request to `ip` and waits for its reply.
pub(super) async fn echo(ip: IpAddr, source: Option<IpAddr>) -> ProbeResult {
    let failed = |error: io::Error| ProbeError(format!("ICMP to {ip}: {}", plain(&error)));
    let socket = open(ip, source).map_err(|error| {
        let remedy = match error.kind() {
            io::ErrorKind::PermissionDenied => {
                "; allow it with net.ipv4.ping_group_range or CAP_NET_RAW"
            }
            _ => "",
        };
        ProbeError(format!("ICMP to {ip}: {}{remedy}", plain(&error)))
    })?;
    // A ping socket has an identifier of its own; over a raw one this tells our reply apart.
    let token = socket.local_addr().map_or(0, |addr| addr.port()) ^ std::process::id() as u16;
    let (request, reply) = if ip.is_ipv4() { V4 } else { V6 };
    let message = message(request, token);
    socket.send(&message).await.map_err(failed)?;
    let mut buffer = [0; 256];
    loop {
        let n = socket.recv(&mut buffer).await.map_err(failed)?;
        if is_reply(&buffer[..n], reply, &message) {
            return Ok(());
        }
    }
}

fn open(ip: IpAddr, source: Option<IpAddr>) -> io::Result<UdpSocket> {
    let (domain, protocol) = match ip {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(protocol))
        .or_else(|_| Socket::new(domain, Type::RAW, Some(protocol)))?;
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    socket.connect(&SocketAddr::new(ip, 0).into())?;
    socket.set_nonblocking(true)?;
    // To the runtime a socket that sends and receives messages is a socket, whatever it speaks.
    UdpSocket::from_std(socket.into())
}

/// An echo request: type, code, checksum, identifier, sequence number, and text of ours.
fn message(kind: u8, token: u16) -> Vec<u8> {
    let [high, low] = token.to_be_bytes();
    let mut bytes = vec![kind, 0, 0, 0, high, low, 0, 1];
    bytes.extend_from_slice(b"fairway health check");
    bytes.extend_from_slice(&token.to_be_bytes());
    // The kernel fills it in for IPv6, and for ping sockets.
    let sum = checksum(&bytes);
    bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Whether `packet`, with or without its IPv4 header, is the reply to `request`.
fn is_reply(packet: &[u8], reply: u8, request: &[u8]) -> bool {
    let icmp = match packet.first() {
        // Raw IPv4 sockets bring the header, 4 bytes for each unit of its length.
        Some(first) if first >> 4 == 4 && first & 15 >= 5 => {
            packet.get(usize::from(first & 15) * 4..).unwrap_or_default()
        }
        _ => packet,
    };
    // The identifier is the kernel's on a ping socket: our text says whose it is.
    icmp.first() == Some(&reply) && icmp.get(8..) == request.get(8..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_add_up() {
        let message = message(8, 0x1234);
        assert_eq!(checksum(&message), 0, "a message with its checksum sums to nothing");
        assert_eq!(checksum(&[0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2, "RFC 1071, 3");
    }

    #[test]
    fn replies_are_told_from_other_messages() {
        let request = message(8, 7);
        let mut answer = request.clone();
        assert!(!is_reply(&answer, 0, &request), "our own request, looped back");
        answer[0] = 0;
        assert!(is_reply(&answer, 0, &request));
        let mut raw = vec![0x45];
        raw.extend_from_slice(&[0; 19]);
        raw.extend_from_slice(&answer);
        assert!(is_reply(&raw, 0, &request), "with an IPv4 header");
        answer[20] ^= 1;
        assert!(!is_reply(&answer, 0, &request), "somebody else's");
        for len in 0..answer.len() {
            assert!(!is_reply(&answer[..len], 0, &request));
        }
    }

    #[tokio::test]
    async fn loopback_answers() {
        for ip in ["127.0.0.1", "::1"] {
            let result = echo(ip.parse().unwrap(), None).await;
            // Without the permission it must say what to do.
            let remedied = |error: &ProbeError| error.to_string().contains("ping_group_range");
            assert!(result.as_ref().err().is_none_or(remedied), "{result:?}");
        }
    }
}
