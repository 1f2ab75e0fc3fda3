//! Frames that tell a segment at which station an address is, unasked.
//!
//! Source: RFC 5227, section 2.3 (an ARP announcement); RFC 4861, section 7.2.6 (an unsolicited neighbor
//! advertisement).

use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::packet::checksum::{fill, pseudo_header};

/// All stations of a segment.
const BROADCAST: [u8; 6] = [0xff; 6];
/// All stations of IPv6.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_STATION: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const ARP: [u8; 2] = [0x08, 0x06];
const IPV6: [u8; 2] = [0x86, 0xdd];
const ICMPV6: u8 = 58;
const ADVERTISEMENT: u8 = 136;
/// What was known before is not true any more.
const OVERRIDE: u8 = 0x20;

/// A whole Ethernet frame that says to all that `ip` is at `station`.
#[must_use]
pub fn announcement(ip: IpAddr, station: [u8; 6]) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => arp(ip, station),
        IpAddr::V6(ip) => advertisement(ip, station),
    }
}

fn arp(ip: Ipv4Addr, station: [u8; 6]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(42);
    frame.extend(BROADCAST);
    frame.extend(station);
    frame.extend(ARP);
    // Ethernet, IPv4, a question: one to which everybody learns the answer.
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(station);
    frame.extend(ip.octets());
    frame.extend([0; 6]);
    frame.extend(ip.octets());
    frame
}

fn advertisement(ip: Ipv6Addr, station: [u8; 6]) -> Vec<u8> {
    let mut body = [0; 32];
    body[0] = ADVERTISEMENT;
    body[4] = OVERRIDE;
    body[8..24].copy_from_slice(&ip.octets());
    // Its option: the station's address, in units of eight bytes.
    body[24..26].copy_from_slice(&[2, 1]);
    body[26..].copy_from_slice(&station);
    let pseudo = pseudo_header(&ip.octets(), &ALL_NODES.octets(), ICMPV6, body.len() as u32);
    fill(&mut body, 2, pseudo);
    let mut frame = Vec::with_capacity(86);
    frame.extend(ALL_NODES_STATION);
    frame.extend(station);
    frame.extend(IPV6);
    frame.extend([0x60, 0, 0, 0, 0, body.len() as u8, ICMPV6, 255]);
    frame.extend(ip.octets());
    frame.extend(ALL_NODES.octets());
    frame.extend(body);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATION: [u8; 6] = [2, 0, 0, 0, 0, 9];

    #[test]
    fn an_address_of_ipv4_is_asked_for_by_its_owner() {
        let want = "ffffffffffff 020000000009 0806 0001 0800 06 04 0001 020000000009 c0000264 \
                    000000000000 c0000264";
        let digits: Vec<u32> = want.chars().filter_map(|c| c.to_digit(16)).collect();
        let want: Vec<u8> = digits.chunks(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect();
        assert_eq!(announcement(Ipv4Addr::new(192, 0, 2, 100).into(), STATION), want);
    }

    #[test]
    fn an_address_of_ipv6_is_advertised() {
        let ip: Ipv6Addr = "2001:db8::64".parse().unwrap();
        let frame = announcement(ip.into(), STATION);
        assert_eq!(frame.len(), 14 + 40 + 32);
        assert_eq!((&frame[..6], frame[54], frame[58]), (&ALL_NODES_STATION[..], 136, 0x20));
        assert_eq!((frame[21], &frame[62..78]), (255, &ip.octets()[..]));
        assert_eq!(frame[78..], [2, 1, 2, 0, 0, 0, 0, 9]);
        let pseudo = pseudo_header(&ip.octets(), &ALL_NODES.octets(), 58, 32);
        assert_eq!(pseudo.bytes(&frame[54..]).checksum(), 0);
    }
}
