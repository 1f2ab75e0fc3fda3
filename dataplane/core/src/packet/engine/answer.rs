//! Answers for the addresses of packet services, of which the kernel knows nothing: whose station
//! they are (ARP, NDP), and that somebody is there (echo).

use core::net::{IpAddr, Ipv6Addr};

use super::{Context, Engine, Verdict};
use crate::packet::checksum::{Change, Sum, fill};
use crate::packet::frame::{Frame, VlanTag};
use crate::packet::header::IpHeader;
use crate::packet::icmp::Error;
use crate::packet::parse::{Addresses, ETHERNET, Packet, Transport, protocol, tcp_flags};
use crate::packet::reason::DropReason;
use crate::packet::rewrite::write_reset;
use crate::packet::routes::{Link, Mac, NextHop};

/// Time to live of answers.
const TTL: u8 = 64;
/// Hop limit of NDP: proof that no router was passed (RFC 4861).
const NEAR: u8 = 255;
/// NDP: who is at an address, and who is.
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// All nodes of a link.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

impl Engine<'_> {
    /// Answers an ARP request for one of our addresses, in its place (RFC 826); leaves the rest to
    /// the kernel.
    pub(super) fn arp(&self, frame: &mut Frame<'_>, at: u16, cx: &Context<'_>) -> Verdict {
        // Tags within the frame name a network that is none of our links.
        let Some(link) = self.arrival(frame, cx).filter(|_| usize::from(at) == ETHERNET) else {
            return Verdict::Punt;
        };
        let (port, mac) = (link.port, link.mac);
        let at = usize::from(at);
        let bytes = frame.bytes_mut();
        let Some(arp) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<28>()) else {
            return Verdict::Drop(DropReason::Truncated);
        };
        // A request, over Ethernet, for IPv4.
        if arp[..8] != [0, 1, 8, 0, 6, 4, 0, 1] {
            return Verdict::Punt;
        }
        let wanted = [arp[24], arp[25], arp[26], arp[27]];
        if !cx.snapshot.tells(IpAddr::from(wanted), port) {
            return Verdict::Punt;
        }
        let mut asker = [0; 10];
        asker.copy_from_slice(&arp[8..18]);
        arp[7] = 2;
        arp[8..14].copy_from_slice(&mac);
        arp[14..18].copy_from_slice(&wanted);
        arp[18..].copy_from_slice(&asker);
        bytes[..6].copy_from_slice(&asker[..6]);
        bytes[6..12].copy_from_slice(&mac);
        Verdict::Send(port)
    }

    /// Answers an echo request or a neighbour solicitation for one of our addresses, in its place.
    pub(super) fn answer(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        cx: &Context<'_>,
    ) -> Option<Verdict> {
        let Transport::Icmp { kind, code: 0 } = packet.transport else { return None };
        match (packet.protocol, kind) {
            (protocol::ICMP, 8) | (protocol::ICMPV6, 128) if packet.fragment.is_none() => {
                let to = packet.addresses.destination();
                if !cx.snapshot.answers_for(to) {
                    return None;
                }
                Some(match cx.snapshot.echoes(to) {
                    true => self.echo(frame, packet, cx),
                    false => Verdict::Drop(DropReason::NoBackend),
                })
            }
            (protocol::ICMPV6, SOLICITATION) => self.advertise(frame, packet, cx),
            _ => None,
        }
    }

    fn echo(&mut self, frame: &mut Frame<'_>, packet: &Packet, cx: &Context<'_>) -> Verdict {
        let (l3, l4) = (usize::from(packet.l3), usize::from(packet.l4));
        let to = packet.addresses.source();
        self.deliver(frame, packet, to, cx, |frame| {
            let bytes = &mut frame.bytes_mut()[..usize::from(packet.end)];
            // Turned round, the addresses have the same sum.
            let pseudo = match packet.addresses {
                Addresses::V4(..) => {
                    bytes[l3 + 12..l3 + 20].rotate_left(4);
                    let word = |ttl: u8| u16::from_be_bytes([ttl, packet.protocol]);
                    bytes[l3 + 8] = TTL;
                    Change::NONE.word(word(packet.ttl), word(TTL)).write(bytes, l3 + 10);
                    bytes[l4] = 0;
                    Sum::ZERO
                }
                Addresses::V6(..) => {
                    bytes[l3 + 8..l3 + 40].rotate_left(16);
                    bytes[l3 + 7] = TTL;
                    bytes[l4] = 129;
                    packet.addresses.pseudo_header(protocol::ICMPV6, bytes.len() - l4)
                }
            };
            fill(&mut bytes[l4..], 2, pseudo);
        })
    }

    /// Tells a client that nobody serves, as a host does with no server.
    pub(super) fn nobody(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        cx: &Context<'_>,
    ) -> Verdict {
        let Transport::Tcp { flags, .. } = packet.transport else {
            return self.error(frame, packet, Error::NoPort, cx);
        };
        // A connection that is under way may have its flow at another load balancer.
        let begins = flags & (tcp_flags::SYN | tcp_flags::RST) == tcp_flags::SYN;
        let silent = !begins || packet.fragment.is_some();
        if silent || !write_reset(frame, packet) {
            return Verdict::Drop(DropReason::NoBackend);
        }
        self.counters.dropped[DropReason::NoBackend as usize].inc();
        let hop = self.hops.next_hop(cx.snapshot.routes(), packet.addresses.source());
        self.depart(frame, hop, cx)
    }

    fn advertise(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        cx: &Context<'_>,
    ) -> Option<Verdict> {
        let Addresses::V6(asker, _) = packet.addresses else { return None };
        let l4 = usize::from(packet.l4);
        let body = frame.bytes().get(l4..usize::from(packet.end))?;
        let target = Ipv6Addr::from(*body.get(8..)?.first_chunk::<16>()?);
        if !cx.snapshot.tells(target.into(), frame.port) {
            return None;
        }
        let pseudo = packet.addresses.pseudo_header(protocol::ICMPV6, body.len());
        if packet.ttl != NEAR || pseudo.bytes(body).folded() != 0xffff {
            return Some(Verdict::Drop(DropReason::BadTransport));
        }
        let link = self.arrival(frame, cx).filter(|_| usize::from(packet.l3) == ETHERNET)?;
        let mut station: Mac = [0; 6];
        station.copy_from_slice(frame.bytes().get(6..12)?);
        // Who has no address yet is told with all others (RFC 4861, section 7.2.4).
        let (to, solicited, station) = match asker.is_unspecified() {
            true => (ALL_NODES, 0, [0x33, 0x33, 0, 0, 0, 1]),
            false => (asker, 0x40, station),
        };
        let mut answer = [0; 72];
        let mut header = IpHeader::new(target.into(), to.into(), protocol::ICMPV6);
        header.ttl = NEAR;
        header.write(&mut answer);
        // Override what was known before.
        let body = &mut answer[40..];
        body[..5].copy_from_slice(&[ADVERTISEMENT, 0, 0, 0, 0x20 | solicited]);
        body[8..24].copy_from_slice(&target.octets());
        body[24..26].copy_from_slice(&[2, 1]);
        body[26..].copy_from_slice(&link.mac);
        let addresses = Addresses::V6(target, to);
        fill(body, 2, addresses.pseudo_header(protocol::ICMPV6, body.len()));
        Some(match frame.replace(&answer) {
            true => self.depart(frame, NextHop::Known(link, station), cx),
            false => Verdict::Drop(DropReason::NoRoom),
        })
    }

    /// The link that a frame came by.
    pub(super) fn arrival<'c>(&self, frame: &Frame<'_>, cx: &Context<'c>) -> Option<&'c Link> {
        // Priorities say nothing of the network, and network 0 is none (802.1Q).
        let network = |tag: Option<VlanTag>| tag.map_or(0, |tag| tag.0 & 0xfff);
        let came =
            |link: &&Link| link.port == frame.port && network(link.tag) == network(frame.tag);
        cx.snapshot.routes().links().iter().find(came)
    }
}
