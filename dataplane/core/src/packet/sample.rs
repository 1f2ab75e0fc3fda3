//! Packets for tests and benches, built by name: `udp(client, vip).payload(b"hi").frame()`.
//!
//! Every checksum is computed from scratch, so that what the engine updates can be compared.

use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};

use super::checksum::{Sum, pseudo_header};
use super::parse::{ether, protocol, tcp_flags};
use super::routes::Mac;

/// Where samples come from, unless they say.
pub const CLIENT_MAC: Mac = [2, 0, 0, 0, 0, 1];
/// Where samples go to, unless they say.
pub const OUR_MAC: Mac = [2, 0, 0, 0, 0, 2];

/// A packet that is being built.
#[derive(Debug, Clone)]
pub struct Sample {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    /// From the transport header on, without its checksum.
    transport: Vec<u8>,
    checksum_at: Option<usize>,
    payload: Vec<u8>,
    ttl: u8,
    id: u16,
    /// Offset in bytes, and whether more follow.
    part: Option<(u16, bool)>,
    tags: Vec<u16>,
    macs: (Mac, Mac),
    options: Vec<u8>,
    raw: bool,
    whole: bool,
}

/// A UDP datagram.
#[must_use]
pub fn udp(source: SocketAddr, destination: SocketAddr) -> Sample {
    let mut header = ports(source, destination);
    header.extend([0; 4]);
    Sample::new(source.ip(), destination.ip(), protocol::UDP, header, Some(6))
}

/// A TCP segment with these flags, sequence number 1000 and acknowledgement number 2000.
#[must_use]
pub fn tcp(source: SocketAddr, destination: SocketAddr, flags: u8) -> Sample {
    let mut header = ports(source, destination);
    header.extend(1000_u32.to_be_bytes());
    header.extend(2000_u32.to_be_bytes());
    header.extend([5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    Sample::new(source.ip(), destination.ip(), protocol::TCP, header, Some(16))
}

/// The first segment of a TCP connection, which offers an MSS of 1460.
#[must_use]
pub fn syn(source: SocketAddr, destination: SocketAddr) -> Sample {
    tcp(source, destination, tcp_flags::SYN).tcp_options(&[2, 4, 0x05, 0xb4])
}

/// An SCTP packet with one INIT chunk's worth of zeros; its CRC32c is not filled in.
#[must_use]
pub fn sctp(source: SocketAddr, destination: SocketAddr) -> Sample {
    let mut header = ports(source, destination);
    header.extend([0; 8]);
    Sample::new(source.ip(), destination.ip(), protocol::SCTP, header, None)
}

/// A packet in an IP packet of this protocol number.
#[must_use]
pub fn ip_in_ip(source: IpAddr, destination: IpAddr, number: u8, packet: &[u8]) -> Sample {
    Sample::new(source, destination, number, packet.to_vec(), None)
}

/// An ICMP or ICMPv6 message: type, code, and the four bytes after the checksum.
#[must_use]
pub fn icmp(source: IpAddr, destination: IpAddr, kind: u8, code: u8, rest: [u8; 4]) -> Sample {
    let mut header = alloc::vec![kind, code, 0, 0];
    header.extend(rest);
    let number = if source.is_ipv4() { protocol::ICMP } else { protocol::ICMPV6 };
    Sample::new(source, destination, number, header, Some(2))
}

fn ports(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat()
}

impl Sample {
    fn new(
        source: IpAddr,
        destination: IpAddr,
        protocol: u8,
        transport: Vec<u8>,
        checksum_at: Option<usize>,
    ) -> Self {
        Self {
            source,
            destination,
            protocol,
            transport,
            checksum_at,
            payload: Vec::new(),
            ttl: 64,
            id: 0x1234,
            part: None,
            tags: Vec::new(),
            macs: (CLIENT_MAC, OUR_MAC),
            options: Vec::new(),
            raw: false,
            whole: false,
        }
    }

    /// Carries these bytes.
    #[must_use]
    pub fn payload(mut self, bytes: &[u8]) -> Self {
        self.payload = bytes.to_vec();
        self
    }

    /// Is these bytes behind the IP header, transport header and all.
    #[must_use]
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.transport = bytes.to_vec();
        self.checksum_at = None;
        self.raw = true;
        self
    }

    /// Is not to be fragmented (IPv4).
    #[must_use]
    pub fn whole(mut self) -> Self {
        self.whole = true;
        self
    }

    /// With this time to live.
    #[must_use]
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// With VLAN tags, the outer one first.
    #[must_use]
    pub fn tags(mut self, tags: &[u16]) -> Self {
        self.tags = tags.to_vec();
        self
    }

    /// With this identification, which fragments of a packet share.
    #[must_use]
    pub fn id(mut self, id: u16) -> Self {
        self.id = id;
        self
    }

    /// Between other stations.
    #[must_use]
    pub fn macs(mut self, source: Mac, destination: Mac) -> Self {
        self.macs = (source, destination);
        self
    }

    /// With TCP sequence and acknowledgement numbers.
    #[must_use]
    pub fn numbers(mut self, sequence: u32, acknowledgement: u32) -> Self {
        self.transport[4..8].copy_from_slice(&sequence.to_be_bytes());
        self.transport[8..12].copy_from_slice(&acknowledgement.to_be_bytes());
        self
    }

    /// With TCP options, a multiple of four bytes.
    #[must_use]
    pub fn tcp_options(mut self, options: &[u8]) -> Self {
        self.transport.extend(options);
        self.transport[12] = (self.transport.len() as u8 / 4) << 4;
        self
    }

    /// With IPv4 options, or IPv6 extension headers as they stand; a multiple of 4 or 8 bytes.
    /// The last extension header names the transport protocol itself.
    #[must_use]
    pub fn options(mut self, bytes: &[u8]) -> Self {
        self.options = bytes.to_vec();
        self
    }

    /// A part of a packet: the payload stands as it is, at `offset`, and others may follow. Only
    /// the first part has the transport header.
    #[must_use]
    pub fn part(mut self, offset: u16, more: bool) -> Self {
        self.part = Some((offset, more));
        if offset > 0 {
            self.transport.clear();
            self.checksum_at = None;
        }
        self
    }

    /// The transport header and its payload, with the checksum.
    fn body(&self) -> Vec<u8> {
        let mut body = self.transport.clone();
        body.extend(&self.payload);
        if self.protocol == protocol::UDP && !self.transport.is_empty() && !self.raw {
            let length = (body.len() as u16).to_be_bytes();
            body[4..6].copy_from_slice(&length);
        }
        if let Some(at) = self.checksum_at {
            let sum = if self.protocol == protocol::ICMP {
                Sum::ZERO
            } else {
                let (source, destination) = (octets(self.source), octets(self.destination));
                pseudo_header(&source, &destination, self.protocol, body.len() as u32)
            };
            let checksum = match (sum.bytes(&body).checksum(), self.protocol) {
                (0, protocol::UDP) => 0xffff,
                (checksum, _) => checksum,
            };
            body[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        }
        body
    }

    /// The IP packet.
    #[must_use]
    pub fn packet(&self) -> Vec<u8> {
        let body = self.body();
        let mut packet = Vec::new();
        if self.source.is_ipv4() {
            let header = 20 + self.options.len();
            let (offset, more) = self.part.unwrap_or((0, false));
            let flags = if more { 0x2000 } else { 0 } | if self.whole { 0x4000 } else { 0 };
            let bits = offset >> 3 | flags;
            packet.extend([0x40 | (header / 4) as u8, 0]);
            packet.extend(((header + body.len()) as u16).to_be_bytes());
            packet.extend(self.id.to_be_bytes());
            packet.extend(bits.to_be_bytes());
            packet.extend([self.ttl, self.protocol, 0, 0]);
            packet.extend(octets(self.source));
            packet.extend(octets(self.destination));
            packet.extend(&self.options);
            let checksum = Sum::ZERO.bytes(&packet).checksum().to_be_bytes();
            packet[10..12].copy_from_slice(&checksum);
        } else {
            let mut extensions = self.options.clone();
            let mut next = self.protocol;
            if let Some((offset, more)) = self.part {
                let bits = offset | u16::from(more);
                extensions.extend([next, 0]);
                extensions.extend(bits.to_be_bytes());
                extensions.extend(u32::from(self.id).to_be_bytes());
                next = protocol::FRAGMENT;
            } else if !self.options.is_empty() {
                next = protocol::HOP_BY_HOP;
            }
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(((extensions.len() + body.len()) as u16).to_be_bytes());
            packet.extend([next, self.ttl]);
            packet.extend(octets(self.source));
            packet.extend(octets(self.destination));
            packet.extend(extensions);
        }
        packet.extend(body);
        packet
    }

    /// The Ethernet frame, without padding.
    #[must_use]
    pub fn frame(&self) -> Vec<u8> {
        let mut frame = [self.macs.1, self.macs.0].concat();
        for (n, tag) in self.tags.iter().enumerate() {
            let last = n + 1 == self.tags.len();
            let kind = if last { ether::VLAN } else { ether::SERVICE_VLAN };
            frame.extend(kind.to_be_bytes());
            frame.extend(tag.to_be_bytes());
        }
        let kind = if self.source.is_ipv4() { ether::IPV4 } else { ether::IPV6 };
        frame.extend(kind.to_be_bytes());
        frame.extend(self.packet());
        frame
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}
