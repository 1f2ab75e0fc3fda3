//! New flows: letting them in, and the address by which their backend knows them.

use core::net::{IpAddr, SocketAddr};

use super::fast::Look;
use super::{Context, Engine, Verdict, is_odd};
use crate::hash::mixed;
use crate::packet::flow::{Direction, Ended, Flow, FlowView, Found, Guess, State, Tuple, tick};
use crate::packet::frame::Frame;
use crate::packet::icmp::Error;
use crate::packet::parse::{Packet, Parsed, Transport, parse, protocol, tcp_flags};
use crate::packet::reason::DropReason;
use crate::packet::rewrite::complete;
use crate::{EndReason, Entrant, Mode, Protocol, Service, VipAddr, admit};

/// Ports that are tried for our side of a flow.
const PORT_TRIES: usize = 64;

/// A flow that was let in, and where it goes. It holds a place on its service and on its backend.
struct Chosen<'s> {
    service: &'s Service,
    flow: Flow,
    /// Where its sequence of candidates starts.
    start: u64,
}

/// A packet of no flow, for which one was chosen or refused.
pub(super) struct Newcomer<'s> {
    packet: Packet,
    pub(super) hash: u64,
    chosen: Result<Chosen<'s>, Verdict>,
}

impl Engine<'_> {
    /// The first half of what becomes of a packet that begins a flow, if this one does: the memory
    /// that the second half waits for is fetched meanwhile. `look` has not found a flow.
    pub(super) fn arrive<'s>(
        &mut self,
        frame: &Frame<'_>,
        look: &Look,
        cx: &Context<'s>,
    ) -> Option<Newcomer<'s>> {
        if look.hash == 0 || look.guess != Guess::NONE {
            return None;
        }
        let Ok(Parsed::Ip(packet)) = parse(frame.bytes()) else { return None };
        let tells = tcp_flags::SYN | tcp_flags::ACK | tcp_flags::RST | tcp_flags::FIN;
        let begins = match packet.transport {
            Transport::Tcp { flags, .. } => flags & tells == tcp_flags::SYN,
            _ => packet.protocol == protocol::UDP,
        };
        if !begins || is_odd(&packet) {
            return None;
        }
        let (tuple, hash) = (Tuple::of(&packet)?, look.hash);
        if self.flows.find(&tuple, hash).is_some()
            || self.pending.is_abandoned(hash, cx.now)
            || self.elsewhere(&tuple, cx).is_some()
        {
            return None;
        }
        Some(self.newcomer(packet, &tuple, hash, cx))
    }

    /// Chooses for a packet of no flow.
    pub(super) fn newcomer<'s>(
        &mut self,
        packet: Packet,
        tuple: &Tuple,
        hash: u64,
        cx: &Context<'s>,
    ) -> Newcomer<'s> {
        let chosen = self.choose(&packet, tuple, hash, cx);
        if let Ok(chosen) = &chosen
            && let Some(reply) = chosen.flow.reply()
        {
            // Where its replies are looked for, most likely.
            self.flows.prefetch(self.flows.hash(&reply));
        }
        Newcomer { packet, hash, chosen }
    }

    /// Lets a flow in to the service of its first packet.
    fn choose<'s>(
        &mut self,
        packet: &Packet,
        tuple: &Tuple,
        hash: u64,
        cx: &Context<'s>,
    ) -> Result<Chosen<'s>, Verdict> {
        let protocol = match tuple.protocol {
            protocol::TCP => Protocol::Tcp,
            protocol::UDP => Protocol::Udp,
            protocol::SCTP => Protocol::Sctp,
            _ => return Err(Verdict::Punt),
        };
        let begins = match packet.transport {
            Transport::Tcp { flags, .. } => flags & tcp_flags::SYN != 0,
            _ => true,
        };
        let client = SocketAddr::new(tuple.addresses.source(), tuple.ports.0);
        let vip = SocketAddr::new(tuple.addresses.destination(), tuple.ports.1);
        let service = cx.snapshot.lookup(VipAddr(vip), protocol);
        // An address of this machine is no part of a network of VIPs.
        if cx.snapshot.routes().is_own(vip.ip()) && !cx.snapshot.is_host_vip(vip.ip()) {
            return Err(Verdict::Punt);
        }
        let Some(service) = service.filter(|service| service.policy.mode != Mode::Proxy) else {
            return Err(Verdict::Punt);
        };
        if self.refusing && begins {
            return Err(Verdict::Drop(DropReason::Stopping));
        }
        let counters = service.state.counters.of(self.worker);
        counters.accepted.inc();
        let entrant = Entrant {
            client,
            dialled: vip,
            seed: self.seed,
            // One number a burst, and another one each flow.
            random: cx.random ^ hash,
            worker: self.worker,
            now: cx.now,
            begins,
        };
        let admitted = admit(service, &entrant, cx.clients).map_err(|reason| {
            counters.ends[reason as usize].inc();
            Verdict::Drop(match reason {
                EndReason::Denied => DropReason::Denied,
                EndReason::Limited => DropReason::Limited,
                _ => DropReason::NoBackend,
            })
        })?;
        let backend = admitted.pick.backend;
        let flow = Flow {
            client,
            vip,
            backend: backend.addr.target(vip.port()),
            local: client,
            protocol: tuple.protocol,
            mode: service.policy.mode,
            tracked: admitted.tracked,
            service: service.id,
            id: backend.id,
        };
        // From here on its places are held, and paid back by `Held::end` alone.
        self.held.begin(service, backend);
        self.count_begun(backend, flow.protocol, flow.mode);
        Ok(Chosen { service, flow, start: admitted.start })
    }

    /// The second half: the flow is put into the table, and its packet on its way.
    pub(super) fn settle(
        &mut self,
        frame: &mut Frame<'_>,
        newcomer: &Newcomer<'_>,
        cx: &Context<'_>,
    ) -> Verdict {
        let Newcomer { packet, hash, chosen } = newcomer;
        // What is kept of it is whole.
        complete(frame, packet);
        let (service, mut flow, start) = match chosen {
            Ok(Chosen { service, flow, start }) => (*service, *flow, *start),
            Err(Verdict::Drop(DropReason::NoBackend)) => return self.nobody(frame, packet, cx),
            Err(verdict) => return *verdict,
        };
        let entered = self.our_side(&mut flow, service, start).and_then(|reply| {
            let expires = self.expires(service.id, State::Opening, cx.now);
            let (held, clients, worker) = (&mut self.held, cx.clients, self.worker);
            let evicted = |view: &FlowView, _: Ended| {
                held.end(view, EndReason::Evicted, clients, worker);
            };
            let entered =
                self.flows.insert_new(&flow, (*hash, reply), cx.now, tick(expires), evicted);
            entered.ok_or(DropReason::TableFull)
        });
        let reason = match entered {
            Ok(handle) => {
                self.flows.set_generation(handle, cx.snapshot.generation as u32);
                self.keep(frame, packet, handle, (service, start), cx);
                let found = Found { handle, direction: Direction::Forward };
                return self.forward(frame, packet, found, cx);
            }
            Err(reason) => reason,
        };
        let view = FlowView::new(flow, cx.now);
        self.held.end(&view, EndReason::LocalError, cx.clients, self.worker);
        if flow.mode.is_two_way() {
            return Verdict::Drop(reason);
        }
        // Where nothing is rewritten the choice of a backend is enough.
        self.counters.stateless.inc();
        match packet.ttl {
            0 | 1 => self.error(frame, packet, Error::TimeExceeded, cx),
            _ => self.one_way(frame, packet, flow.mode, flow.backend.ip(), *hash, cx),
        }
    }

    /// Finds the address and port by which the backend is to know the flow: one whose replies are
    /// nobody else's. Returns the hash of those, if they come through here.
    pub(super) fn our_side(
        &self,
        flow: &mut Flow,
        service: &Service,
        start: u64,
    ) -> Result<Option<u64>, DropReason> {
        let free = |reply: &Tuple| {
            let hash = self.flows.hash(reply);
            self.flows.find(reply, hash).is_none().then_some(hash)
        };
        let source = &service.policy.source;
        let (first, last) = source.ports.unwrap_or((1024, 65_535));
        let same_family = flow.client.is_ipv4() == flow.backend.is_ipv4();
        let (ip, kept) = match flow.mode {
            Mode::Nat if same_family => (flow.client.ip(), true),
            Mode::Nat | Mode::FullNat => {
                let fits = |ip: &&IpAddr| ip.is_ipv4() == flow.backend.is_ipv4();
                let all = || source.addresses.iter().filter(fits);
                let count = all().count();
                let own = all().nth(start as usize % count.max(1)).ok_or(DropReason::NoPort)?;
                (*own, false)
            }
            Mode::Proxy | Mode::Dsr | Mode::Tunnel(_) => return Ok(None),
        };
        // The client's own port, if nobody has it: two VIPs over one backend would collide.
        flow.local = SocketAddr::new(ip, flow.client.port());
        let reply = flow.reply().ok_or(DropReason::NoPort)?;
        // Ports whose replies come to another worker are passed over.
        let home = self.steering.local_ports(&reply);
        let own = kept && home.come_home(flow.client.port());
        if let Some(hash) = own.then(|| free(&reply)).flatten() {
            return Ok(Some(hash));
        }
        let range = u64::from(last - first) + 1;
        let from = match kept {
            // The same after a restart, and spread: a client's ports follow each other.
            true => mixed(flow.client.port().into()),
            // Starts of rounds count up, and those of clients' hashes are alike.
            false => flow.forward().map_or(start, |tuple| start ^ self.flows.hash(&tuple)) >> 16,
        };
        let mut tries = 0;
        for port in (0..range).map(|n| first + (from.wrapping_add(n) % range) as u16) {
            if !home.come_home(port) {
                continue;
            }
            if let Some(hash) = free(&Tuple { ports: (reply.ports.0, port), ..reply }) {
                flow.local.set_port(port);
                return Ok(Some(hash));
            }
            tries += 1;
            if tries == PORT_TRIES {
                break;
            }
        }
        Err(DropReason::NoPort)
    }
}
