//! ICMP errors that pass: to the end that each is for.

use core::net::{IpAddr, SocketAddr};

use super::{Context, Engine, Verdict};
use crate::packet::family::cross_error;
use crate::packet::flow::{Direction, Found, State};
use crate::packet::frame::Frame;
use crate::packet::icmp::{self, Error, Quoted};
use crate::packet::parse::{Addresses, Packet};
use crate::packet::reason::DropReason;
use crate::packet::rewrite::Ends;
use crate::{FailureCause, Mode};

impl Engine<'_> {
    /// ICMP, and what has no ports.
    pub(super) fn icmp(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        cx: &Context<'_>,
    ) -> Verdict {
        if packet.fragment.is_some_and(|fragment| !fragment.is_first()) {
            return Verdict::Punt;
        }
        if !icmp::is_error(packet) {
            return self.answer(frame, packet, cx).unwrap_or(Verdict::Punt);
        }
        // The flow of the packet that it is about, seen from where that was to arrive.
        let quoted = icmp::quoted(frame.bytes(), packet);
        let of_flow = quoted.map(|quoted| {
            let back = quoted.tuple.reversed();
            (quoted, self.flows.find(&back, self.flows.hash(&back)).ok_or(back))
        });
        let (quoted, found) = match of_flow {
            Some((quoted, Ok(found))) => (quoted, found),
            Some((_, Err(back))) if icmp::carried(frame.bytes(), packet).is_none() => {
                return self.elsewhere(&back, cx).map_or(Verdict::Punt, Verdict::Pass);
            }
            _ => return self.of_tunnel(frame, packet, cx),
        };
        if packet.ttl <= 1 {
            return Verdict::Drop(DropReason::TtlExceeded);
        }
        let flow = self.flows.flow(found.handle);
        let sender = packet.addresses.source();
        match (found.direction, flow.mode.is_two_way()) {
            // About a packet to the client: the backend sent it, and is to hear of it.
            (Direction::Forward, true) => {
                // The backend's answers come through us, and so does its word.
                let owns = flow.local.ip() != flow.client.ip();
                let from = if owns { flow.local.ip() } else { sender };
                let inner = (flow.backend, flow.local);
                self.tell(frame, packet, &quoted, inner, (from, flow.backend.ip()), cx)
            }
            // The same for a backend that answers past us: as it stands, the way of its packets.
            (Direction::Forward, false) => self.forward(frame, packet, found, cx),
            // About a packet to the backend: the client sent it. Whoever speaks, the client knows
            // the VIP and no backend.
            (Direction::Reply, _) => {
                if icmp::is_unreachable(packet)
                    && self.flows.brief(found.handle).state == State::Opening
                    && self.is_about(found.handle, frame.bytes(), quoted.l4 + 4, 0)
                    && let Some(verdict) =
                        self.refused(found.handle, frame, FailureCause::Unreachable, cx)
                {
                    return verdict;
                }
                self.quote_client(frame, &quoted, found.handle);
                let from = if sender == flow.backend.ip() { flow.vip.ip() } else { sender };
                let inner = (flow.client, flow.vip);
                self.tell(frame, packet, &quoted, inner, (from, flow.client.ip()), cx)
            }
        }
    }

    /// An error about a packet in a tunnel of ours: the client that sent what is in it is told.
    fn of_tunnel(&mut self, frame: &mut Frame<'_>, packet: &Packet, cx: &Context<'_>) -> Verdict {
        let Some(carried) = icmp::carried(frame.bytes(), packet) else { return Verdict::Punt };
        let found = self.flows.find(&carried.tuple, self.flows.hash(&carried.tuple));
        if found.is_none()
            && let Some(home) = self.elsewhere(&carried.tuple, cx)
        {
            return Verdict::Pass(home);
        }
        let tunnelled =
            |found: &Found| matches!(self.flows.brief(found.handle).mode, Mode::Tunnel(_));
        if !found.as_ref().is_some_and(tunnelled) {
            return Verdict::Punt;
        }
        let client = carried.tuple.addresses.source();
        let hop = self.hops.next_hop(cx.snapshot.routes(), client);
        let from = hop.link().and_then(|link| link.address_for(client));
        let Some(from) = from.filter(|_| self.may_tell(carried.error, cx.now)) else {
            return Verdict::Drop(match carried.error {
                Error::TooBig(_) => DropReason::TooBig,
                _ => DropReason::NoNeighbour,
            });
        };
        frame.narrow(carried.l3, packet.end);
        if !icmp::write_about(frame, from, client, carried.error) {
            return Verdict::Drop(DropReason::NoRoom);
        }
        self.counters.told.inc();
        self.depart(frame, hop, cx)
    }

    /// Passes an error on, from `from` to `to`, as one about a packet between the two of `inner`.
    fn tell(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        quoted: &Quoted,
        inner: (SocketAddr, SocketAddr),
        (from, to): (IpAddr, IpAddr),
        cx: &Context<'_>,
    ) -> Verdict {
        let sent = (SocketAddr::new(from, 0), SocketAddr::new(to, 0));
        let Some(inner) = Ends::of(inner.0, inner.1) else {
            return Verdict::Drop(DropReason::Untranslatable);
        };
        let is_v4 = matches!(packet.addresses, Addresses::V4(..));
        if inner.is_v4() != is_v4 {
            let hop = self.hops.next_hop(cx.snapshot.routes(), to);
            // Who speaks may have no address in the other family: then we speak for it.
            let own = || hop.link()?.address_for(to);
            let from = if from.is_ipv4() == to.is_ipv4() { Some(from) } else { own() };
            let outer = from.and_then(|from| Ends::of(SocketAddr::new(from, 0), sent.1));
            let crossed =
                outer.is_some_and(|outer| cross_error(frame, packet, quoted, &inner, &outer));
            return match crossed {
                true => self.depart(frame, hop, cx),
                false => Verdict::Drop(DropReason::Untranslatable),
            };
        }
        let Some(outer) = Ends::of(sent.0, sent.1) else {
            return Verdict::Drop(DropReason::Untranslatable);
        };
        self.deliver(frame, packet, to, cx, |frame| {
            icmp::translate_error(frame, packet, quoted, &inner, &outer);
        })
    }
}
