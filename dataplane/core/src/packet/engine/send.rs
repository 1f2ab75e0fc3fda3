//! Packets on their way out: rewritten, in a tunnel, or answered with an error.

use core::net::IpAddr;
use core::time::Duration;

use super::split::may_fragment;
use super::{Context, ERRORS_A_SECOND, Engine, Verdict, over};
use crate::packet::family;
use crate::packet::flow::{Direction, Found, State, step};
use crate::packet::frame::Frame;
use crate::packet::head;
use crate::packet::icmp::{self, Error};
use crate::packet::parse::{Addresses, Packet, Transport, protocol, tcp_flags};
use crate::packet::reason::DropReason;
use crate::packet::rewrite::{self, Ends, translate};
use crate::packet::routes::{Link, NextHop, address};
use crate::packet::tunnel::{Tunnel, encapsulate};
use crate::packet::waiting::Unresolved;
use crate::{Mode, MssClamp, ServiceId, Tick};

impl Engine<'_> {
    /// Sends a packet the way of its flow.
    pub(super) fn forward(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        found: Found,
        cx: &Context<'_>,
    ) -> Verdict {
        let Found { mut handle, direction } = found;
        if packet.ttl <= 1 {
            return self.error(frame, packet, Error::TimeExceeded, cx);
        }
        let brief = self.flows.brief(handle);
        let two_way = brief.mode.is_two_way();
        if !two_way
            && brief.state == State::Opening
            && let Transport::Tcp { flags, .. } = packet.transport
            && flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN
            && self.flows.count_syn(handle) > 2
        {
            match self.unanswered(handle, cx) {
                Some(moved) => handle = moved,
                None => return Verdict::Drop(DropReason::NoFlow),
            }
        }
        let with_head;
        let packet = match self.headed(frame, packet, (handle, direction), &brief) {
            Ok(None) => packet,
            Ok(Some(changed)) => {
                with_head = changed;
                &with_head
            }
            Err(reason) => return Verdict::Drop(reason),
        };
        let state = match packet.transport {
            Transport::Tcp { flags, .. } => brief.state.after_tcp(flags, direction, two_way),
            // What follows the first fragment of a segment says nothing more.
            Transport::Unseen if packet.protocol == protocol::TCP => brief.state,
            _ => brief.state.after_datagram(direction),
        };
        let bytes = u64::from(packet.end - packet.l3);
        self.held.count(brief.backend_slot, direction, bytes);
        let expires = self.expires(brief.service, state, cx.now);
        self.flows.note_step(handle, state, expires, bytes);
        if state == State::Closed && brief.state != State::Closed {
            self.pay(handle, over(state), cx);
        }
        if two_way {
            let ends = self.flows.ends(handle, direction);
            if let Transport::Tcp { flags, .. } = packet.transport
                && flags & tcp_flags::SYN != 0
            {
                self.clamp(frame, packet, brief.service, &ends, cx);
            }
            if ends.is_v4() != matches!(packet.addresses, Addresses::V4(..)) {
                return self.cross(frame, packet, &ends, cx);
            }
            return self.deliver(frame, packet, ends.destination(), cx, |frame| {
                translate(frame, packet, &ends);
            });
        }
        let to = self.flows.ends(handle, Direction::Forward).destination().to_canonical();
        let hash = match brief.mode {
            Mode::Tunnel(_) => {
                self.flows.flow(handle).forward().map_or(0, |tuple| self.flows.hash(&tuple))
            }
            _ => 0,
        };
        self.one_way(frame, packet, brief.mode, to, hash, cx)
    }

    /// Lowers the segments that a first segment offers to take, when its service wants that.
    fn clamp(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        service: ServiceId,
        ends: &Ends,
        cx: &Context<'_>,
    ) {
        let clamp = self.held.service(service).and_then(|held| held.policy.mss_clamp);
        let most = match clamp {
            None => return,
            Some(MssClamp::To(most)) => most,
            Some(MssClamp::Auto) => {
                // IP header and TCP header, without options.
                let fits = |link: &Link, is_v4: bool| {
                    link.mtu.saturating_sub(if is_v4 { 20 } else { 40 } + 20)
                };
                let is_v4 = matches!(packet.addresses, Addresses::V4(..));
                let come = self.arrival(frame, cx).map(|link| fits(link, is_v4));
                let hop = self.hops.next_hop(cx.snapshot.routes(), ends.destination());
                let go = hop.link().map(|link| fits(link, ends.is_v4()));
                match come.into_iter().chain(go).min() {
                    Some(most) => most,
                    None => return,
                }
            }
        };
        head::change_mss(frame, packet, |offered| offered.min(most));
    }

    /// Sends a packet on in the other family.
    fn cross(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        ends: &Ends,
        cx: &Context<'_>,
    ) -> Verdict {
        let hop = self.hops.next_hop(cx.snapshot.routes(), ends.destination());
        let Some(link) = hop.link() else { return Verdict::Drop(DropReason::NoNeighbour) };
        let body = usize::from(packet.end - packet.l4);
        let header = family::header_after(packet);
        if body + header > usize::from(link.mtu) {
            // What fits, with the header that the sender's packets have.
            let before = if ends.is_v4() { 40 } else { 20 };
            // Its parts have another header each.
            let parts = packet.fragment.is_none() && may_fragment(frame, packet);
            let header = header + if parts { family::FRAGMENT } else { 0 };
            let mtu = usize::from(link.mtu).saturating_sub(header) + before;
            return self.too_big(frame, packet, mtu as u16, cx);
        }
        match family::cross(frame, packet, ends) {
            true => self.depart(frame, hop, cx),
            false => Verdict::Drop(DropReason::Untranslatable),
        }
    }

    /// Sends a packet as it is to the backend at `to`, which answers past us; `hash` spreads
    /// tunnels.
    pub(super) fn one_way(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        mode: Mode,
        to: IpAddr,
        hash: u64,
        cx: &Context<'_>,
    ) -> Verdict {
        match mode {
            Mode::Tunnel(tunnel) => self.carry(frame, packet, tunnel, to, hash, cx),
            _ => self.deliver(frame, packet, to, cx, |frame| {
                rewrite::complete(frame, packet);
                rewrite::lower_ttl(frame.bytes_mut(), packet);
            }),
        }
    }

    /// When a flow of a service that is in `state` now ends, in steps of the wheel.
    #[inline]
    pub(super) fn expires(&self, service: ServiceId, state: State, now: Tick) -> u32 {
        step(now) + self.held.lives(service, state)
    }

    /// Sends a packet to the backend at `to` in a tunnel.
    fn carry(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        tunnel: Tunnel,
        to: IpAddr,
        hash: u64,
        cx: &Context<'_>,
    ) -> Verdict {
        let hop = self.hops.next_hop(cx.snapshot.routes(), to);
        let Some(link) = hop.link() else { return Verdict::Drop(DropReason::NoNeighbour) };
        let length = usize::from(packet.end - packet.l3) + tunnel.overhead(to);
        if length > usize::from(link.mtu) {
            let mtu = usize::from(link.mtu).saturating_sub(tunnel.overhead(to)) as u16;
            return self.too_big(frame, packet, mtu, cx);
        }
        let Some(from) = link.address_for(to) else {
            return Verdict::Drop(DropReason::NoNeighbour);
        };
        if !encapsulate(frame, packet, tunnel, from, to, hash) {
            return Verdict::Drop(DropReason::NoRoom);
        }
        self.depart(frame, hop, cx)
    }

    /// Changes a packet and sends it towards `to`; its sender is told when it is too big for that.
    pub(super) fn deliver(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        to: IpAddr,
        cx: &Context<'_>,
        change: impl FnOnce(&mut Frame<'_>),
    ) -> Verdict {
        let hop = self.hops.next_hop(cx.snapshot.routes(), to);
        let Some(link) = hop.link() else { return Verdict::Drop(DropReason::NoNeighbour) };
        if packet.end - packet.l3 > link.mtu {
            return self.too_big(frame, packet, link.mtu, cx);
        }
        change(frame);
        frame.narrow(packet.l3, packet.end);
        self.depart(frame, hop, cx)
    }

    /// Tells the sender of a packet why it goes no further, in its place.
    pub(super) fn error(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        error: Error,
        cx: &Context<'_>,
    ) -> Verdict {
        let reason = match error {
            Error::TooBig(_) => DropReason::TooBig,
            Error::TimeExceeded => DropReason::TtlExceeded,
            Error::NoPort => DropReason::NoBackend,
            Error::NoHost => DropReason::NoNeighbour,
        };
        // Errors are not told of errors (RFC 1122, section 3.2.2).
        let later = packet.fragment.is_some_and(|fragment| !fragment.is_first());
        let nobody = packet.addresses.source().is_unspecified();
        if icmp::is_error(packet) || later || nobody || !self.may_tell(error, cx.now) {
            return Verdict::Drop(reason);
        }
        let to = packet.addresses.source();
        let hop = cx.snapshot.routes().next_hop(to);
        let Some(link) = hop.link() else { return Verdict::Drop(reason) };
        let from = match error {
            // Of its own ports the VIP itself speaks.
            Error::NoPort => Some(packet.addresses.destination()),
            _ => link.address_for(to),
        };
        let Some(from) = from else { return Verdict::Drop(reason) };
        if !icmp::write_error(frame, packet, from, error) {
            return Verdict::Drop(DropReason::NoRoom);
        }
        self.counters.told.inc();
        self.counters.dropped[reason as usize].inc();
        self.depart(frame, hop, cx)
    }

    /// Whether an error of our own may be sent now: nobody is to drown others by our hand.
    /// Each kind has its own share.
    pub(super) fn may_tell(&mut self, error: Error, now: Tick) -> bool {
        let (left, since) = match error {
            Error::TooBig(_) => &mut self.errors[0],
            Error::TimeExceeded => &mut self.errors[1],
            Error::NoPort | Error::NoHost => &mut self.errors[2],
        };
        if now.since(*since) >= Duration::from_secs(1) {
            (*left, *since) = (ERRORS_A_SECOND, now);
        }
        let may = *left > 0;
        *left = left.saturating_sub(1);
        may
    }

    /// Sends a frame that is an IP packet alone to its next hop, or keeps it until that is known.
    pub(super) fn depart(
        &mut self,
        frame: &mut Frame<'_>,
        hop: NextHop<'_>,
        cx: &Context<'_>,
    ) -> Verdict {
        match hop {
            NextHop::Known(link, mac) if address(frame, link, mac) => Verdict::Send(link.port),
            NextHop::Known(..) => Verdict::Drop(DropReason::NoRoom),
            NextHop::Unresolved(link, station) => {
                let of = Unresolved { interface: link.interface, station };
                match self.waiting.keep(frame.bytes(), of, cx.now) {
                    true => Verdict::Wait,
                    false => Verdict::Drop(DropReason::NeighbourQueue),
                }
            }
            NextHop::None => Verdict::Drop(DropReason::NoNeighbour),
        }
    }
}
