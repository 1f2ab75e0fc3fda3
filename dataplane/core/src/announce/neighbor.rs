//! Frames by which a segment learns at which station an address is: told unasked, asked for, answered.
//!
//! Source: RFC 826 and RFC 5227 (ARP, its announcements and probes); RFC 4861, section 7.2 (neighbor
//! solicitations and advertisements).

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
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// What was known before is not true any more.
const OVERRIDE: u8 = 0x20;
/// Somebody has asked.
const SOLICITED: u8 = 0x40;
/// Bytes of the header of Ethernet.
const ETHERNET: usize = 14;
/// Proof that no router was passed.
const NEAR: u8 = 255;
/// Largest frame that is looked at or made here.
pub const LONGEST: usize = 128;

/// What a frame of neighbours says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Heard {
    /// Somebody says that an address is his: the address and his station.
    pub claim: Option<(IpAddr, [u8; 6])>,
    /// Somebody wants to know whose an address is.
    pub question: Option<Question>,
}

/// Somebody wants to know at which station an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// The address.
    pub ip: IpAddr,
    /// Who asks; none while he has no address, or looks whether it is free.
    pub asker: Option<IpAddr>,
    /// His station.
    pub station: [u8; 6],
}

/// Reads a frame; what is of no use, or malformed, says nothing.
#[must_use]
pub fn hear(frame: &[u8]) -> Heard {
    let read = || match [*frame.get(12)?, *frame.get(13)?] {
        ARP => hear_arp(frame.get(ETHERNET..)?.first_chunk()?),
        IPV6 => hear_ndp(frame.first_chunk()?, frame.get(ETHERNET..)?),
        _ => None,
    };
    read().unwrap_or_default()
}

fn hear_arp(arp: &[u8; 28]) -> Option<Heard> {
    let station: [u8; 6] = *arp[8..].first_chunk()?;
    let sender = Ipv4Addr::from(*arp[14..].first_chunk::<4>()?);
    let wanted = Ipv4Addr::from(*arp[24..].first_chunk::<4>()?);
    if arp[..6] != [0, 1, 8, 0, 6, 4] || station[0] & 1 != 0 || !matches!(arp[6..8], [0, 1 | 2]) {
        return None;
    }
    let named = (!sender.is_unspecified()).then_some(IpAddr::V4(sender));
    let asks = arp[7] == 1 && wanted != sender;
    Some(Heard {
        claim: named.map(|ip| (ip, station)),
        question: asks.then_some(Question { ip: wanted.into(), asker: named, station }),
    })
}

fn hear_ndp(ethernet: &[u8; ETHERNET], packet: &[u8]) -> Option<Heard> {
    let (header, body) = packet.split_first_chunk::<40>()?;
    let body = body.get(..usize::from(u16::from_be_bytes([header[4], header[5]])))?;
    let source = Ipv6Addr::from(*header[8..].first_chunk::<16>()?);
    let to = header[24..].first_chunk::<16>()?;
    let target = Ipv6Addr::from(*body.get(8..)?.first_chunk::<16>()?);
    let pseudo = pseudo_header(&source.octets(), to, ICMPV6, body.len() as u32);
    let is_sound = header[6] == ICMPV6
        && header[7] == NEAR
        && body[1] == 0
        && !target.is_multicast()
        && pseudo.bytes(body).checksum() == 0;
    if !is_sound {
        return None;
    }
    let sender: [u8; 6] = *ethernet[6..].first_chunk()?;
    match body[0] {
        SOLICITATION => {
            let asker = (!source.is_unspecified()).then_some(IpAddr::V6(source));
            let question = Question { ip: target.into(), asker, station: sender };
            Some(Heard { claim: None, question: Some(question) })
        }
        ADVERTISEMENT => {
            // Its option, or who has sent the frame.
            let named = body.get(24..32).filter(|option| option[..2] == [2, 1]);
            let station = named.and_then(|option| option[2..].first_chunk().copied());
            Some(Heard { claim: Some((target.into(), station.unwrap_or(sender))), question: None })
        }
        _ => None,
    }
}

/// A whole Ethernet frame that answers: the address that is wanted is at `station`.
#[must_use]
pub fn answer(question: &Question, station: [u8; 6]) -> Vec<u8> {
    match (question.ip, question.asker) {
        (IpAddr::V4(ip), asker) => {
            let asker = match asker {
                Some(IpAddr::V4(asker)) => asker,
                _ => Ipv4Addr::UNSPECIFIED,
            };
            arp(question.station, 2, (ip, station), (asker, question.station))
        }
        // Who has no address yet is told with all others (RFC 4861, section 7.2.4).
        (IpAddr::V6(ip), Some(IpAddr::V6(asker))) => {
            advertisement(ip, station, (asker, question.station), OVERRIDE | SOLICITED)
        }
        (IpAddr::V6(ip), _) => advertisement(ip, station, (ALL_NODES, ALL_NODES_STATION), OVERRIDE),
    }
}

/// A whole Ethernet frame that says to all that `ip` is at `station`.
#[must_use]
pub fn announcement(ip: IpAddr, station: [u8; 6]) -> Vec<u8> {
    match ip {
        // A question, to which everybody learns the answer.
        IpAddr::V4(ip) => arp(BROADCAST, 1, (ip, station), (ip, [0; 6])),
        IpAddr::V6(ip) => advertisement(ip, station, (ALL_NODES, ALL_NODES_STATION), OVERRIDE),
    }
}

fn arp(
    to: [u8; 6],
    operation: u8,
    (ip, station): (Ipv4Addr, [u8; 6]),
    (target, target_station): (Ipv4Addr, [u8; 6]),
) -> Vec<u8> {
    let mut frame = Vec::with_capacity(42);
    frame.extend(to);
    frame.extend(station);
    frame.extend(ARP);
    // Ethernet, IPv4.
    frame.extend([0, 1, 8, 0, 6, 4, 0, operation]);
    frame.extend(station);
    frame.extend(ip.octets());
    frame.extend(target_station);
    frame.extend(target.octets());
    frame
}

fn advertisement(
    ip: Ipv6Addr,
    station: [u8; 6],
    (to, to_station): (Ipv6Addr, [u8; 6]),
    flags: u8,
) -> Vec<u8> {
    let mut body = [0; 32];
    body[0] = ADVERTISEMENT;
    body[4] = flags;
    body[8..24].copy_from_slice(&ip.octets());
    // Its option: the station's address, in units of eight bytes.
    body[24..26].copy_from_slice(&[2, 1]);
    body[26..].copy_from_slice(&station);
    let pseudo = pseudo_header(&ip.octets(), &to.octets(), ICMPV6, body.len() as u32);
    fill(&mut body, 2, pseudo);
    let mut frame = Vec::with_capacity(86);
    frame.extend(to_station);
    frame.extend(station);
    frame.extend(IPV6);
    frame.extend([0x60, 0, 0, 0, 0, body.len() as u8, ICMPV6, NEAR]);
    frame.extend(ip.octets());
    frame.extend(to.octets());
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

    #[test]
    fn what_is_told_is_heard() {
        for ip in ["192.0.2.100", "2001:db8::64"] {
            let ip: IpAddr = ip.parse().unwrap();
            let want = Heard { claim: Some((ip, STATION)), question: None };
            assert_eq!(hear(&announcement(ip, STATION)), want);
        }
    }

    const ASKER: [u8; 6] = [2, 0, 0, 0, 0, 5];

    #[test]
    fn a_question_of_ipv4_is_answered() {
        let mut asked =
            arp(BROADCAST, 1, ([192, 0, 2, 5].into(), ASKER), ([192, 0, 2, 100].into(), [0; 6]));
        let heard = hear(&asked);
        assert_eq!(heard.claim, Some(([192, 0, 2, 5].into(), ASKER)));
        let question = heard.question.unwrap();
        assert_eq!((question.ip, question.station), ([192, 0, 2, 100].into(), ASKER));
        let answered = answer(&question, STATION);
        assert_eq!((&answered[..6], &answered[20..22]), (&ASKER[..], &[0, 2][..]));
        assert_eq!(
            (&answered[28..32], &answered[38..]),
            (&[192, 0, 2, 100][..], &[192, 0, 2, 5][..])
        );
        assert_eq!(hear(&answered).claim, Some(([192, 0, 2, 100].into(), STATION)));
        // Somebody looks whether the address is free (RFC 5227).
        asked[28..32].fill(0);
        let heard = hear(&asked);
        assert_eq!((heard.claim, heard.question.unwrap().asker), (None, None));
        // No Ethernet, no single station, cut off.
        for (at, byte) in [(15, 6), (22, 3), (21, 3)] {
            let mut odd = asked.clone();
            odd[at] = byte;
            assert_eq!(hear(&odd), Heard::default(), "{at}");
        }
        assert_eq!(hear(&asked[..41]), Heard::default());
    }

    fn solicitation(from: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
        let mut frame = advertisement(target, ASKER, (ALL_NODES, ALL_NODES_STATION), 0);
        frame[22..38].copy_from_slice(&from.octets());
        frame[54] = SOLICITATION;
        frame[56..58].fill(0);
        let pseudo = pseudo_header(&from.octets(), &ALL_NODES.octets(), ICMPV6, 32);
        fill(&mut frame[54..], 2, pseudo);
        frame
    }

    #[test]
    fn a_question_of_ipv6_is_answered() {
        let (from, target): (Ipv6Addr, Ipv6Addr) =
            ("2001:db8::5".parse().unwrap(), "2001:db8::64".parse().unwrap());
        let asked = solicitation(from, target);
        let question = hear(&asked).question.unwrap();
        assert_eq!(
            question,
            Question { ip: target.into(), asker: Some(from.into()), station: ASKER }
        );
        let answered = answer(&question, STATION);
        assert_eq!((&answered[..6], answered[58]), (&ASKER[..], OVERRIDE | SOLICITED));
        assert_eq!(answered[38..54], from.octets());
        assert_eq!(hear(&answered).claim, Some((target.into(), STATION)));
        let looked_for = hear(&solicitation(Ipv6Addr::UNSPECIFIED, target)).question.unwrap();
        let answered = answer(&looked_for, STATION);
        assert_eq!((&answered[..6], answered[58]), (&ALL_NODES_STATION[..], OVERRIDE));
        // From afar, or spoiled.
        for at in [21, 60, 18] {
            let mut odd = asked.clone();
            odd[at] ^= 1;
            assert_eq!(hear(&odd), Heard::default(), "{at}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_frame_is_read(bytes: Vec<u8>, six: bool, noise in proptest::prelude::any::<[u8; 8]>()) {
            let _ = hear(&bytes);
            let mut frame = match six {
                true => solicitation(ALL_NODES, ALL_NODES),
                false => announcement([192, 0, 2, 1].into(), STATION),
            };
            for pair in noise.chunks(2) {
                let at = usize::from(pair[0]) % frame.len();
                frame[at] = pair[1];
            }
            if let Some(question) = hear(&frame).question {
                let _ = hear(&answer(&question, STATION));
            }
        }
    }
}
