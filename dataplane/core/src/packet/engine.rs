//! The route of a packet: parse, find its flow, decide, rewrite. Each stage goes over the whole
//! burst, so that what one packet waits for is fetched while others are worked on.

use alloc::sync::Arc;
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

use super::counters::PacketCounters;
use super::flow::{
    Direction, Ended, Flow, FlowTable, Found, Guess, Handle, State, Tuple, step, tick,
};
use super::frame::Frame;
use super::held::Held;
use super::icmp::{self, Error};
use super::parse::{Packet, Parsed, Transport, parse, protocol, tcp_flags};
use super::reason::DropReason;
use super::rewrite::{self, translate};
use super::routes::{HopCache, NextHop, Routes, address, address_packet};
use super::tunnel::{Tunnel, encapsulate};
use crate::{
    Clients, EndReason, Entrant, Mode, Protocol, Service, ServiceId, Snapshot, Tick, VipAddr, admit,
};

/// Frames that are worked on together.
pub const BURST: usize = 32;

/// Ports that are tried for our side of a flow.
const PORT_TRIES: u64 = 64;
/// Cells of the flow table that are looked at in a burst.
const TURN: usize = 64;
/// ICMP errors of our own in a second.
const ERRORS_A_SECOND: u32 = 1000;

/// What becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes out of this port, as it stands now.
    Send(u16),
    /// It is left to the kernel, and was not touched.
    Punt,
    /// It goes no further.
    Drop(DropReason),
    /// It is an IP packet without an Ethernet header now, and goes out of this port once somebody
    /// knows the station that [`Routes::next_hop`] names for its destination.
    Wait(u16),
}

/// What a burst is decided by.
pub struct Context<'a> {
    /// Services and backends.
    pub snapshot: &'a Snapshot,
    /// Next hops.
    pub routes: &'a Routes,
    /// What is remembered of clients.
    pub clients: &'a Clients,
    /// The time of the burst.
    pub now: Tick,
    /// A number without pattern, another one each burst.
    pub random: u64,
}

/// The packet path of one worker.
pub struct Engine<'r> {
    flows: FlowTable<'r>,
    held: Held,
    hops: HopCache,
    counters: Arc<PacketCounters>,
    worker: usize,
    /// Local ports of this worker are those with this remainder.
    workers: u16,
    seed: u64,
    /// Errors of our own that may still be sent, and since when.
    errors: (u32, Tick),
}

/// A packet between the stages.
#[derive(Clone, Copy)]
enum Job {
    Done(Verdict),
    Ip(Packet),
    /// A packet with ports, the hash of its tuple, and whose it probably is.
    Flow(Packet, Tuple, u64, Option<Guess>),
}

impl<'r> Engine<'r> {
    /// The engine of `worker`, one of `workers`, with its flows; `seed` is that of the flow hash.
    #[must_use]
    pub fn new(
        flows: FlowTable<'r>,
        counters: Arc<PacketCounters>,
        worker: usize,
        workers: usize,
        seed: u64,
    ) -> Self {
        let workers = u16::try_from(workers).unwrap_or(u16::MAX).max(1);
        let errors = (ERRORS_A_SECOND, Tick(0));
        let (held, hops) = (Held::default(), HopCache::default());
        Self { flows, held, hops, counters, worker, workers, seed, errors }
    }

    /// Its flows.
    #[must_use]
    pub fn flows(&self) -> &FlowTable<'r> {
        &self.flows
    }

    /// Decides what becomes of each of `frames`, and changes them accordingly; `verdicts` has a
    /// place for each. Ends flows whose time is over, a few each burst.
    pub fn process(
        &mut self,
        frames: &mut [Frame<'_>],
        verdicts: &mut [Verdict],
        cx: &Context<'_>,
    ) {
        for (frames, verdicts) in frames.chunks_mut(BURST).zip(verdicts.chunks_mut(BURST)) {
            self.burst(frames, verdicts, cx);
        }
        self.turn(cx);
    }

    fn burst(&mut self, frames: &mut [Frame<'_>], verdicts: &mut [Verdict], cx: &Context<'_>) {
        let mut jobs = [Job::Done(Verdict::Punt); BURST];
        for (frame, job) in frames.iter().zip(&mut jobs) {
            *job = self.read(frame);
            if let Job::Flow(_, _, hash, _) = job {
                self.flows.prefetch(*hash);
            }
        }
        for job in &mut jobs[..frames.len()] {
            if let Job::Flow(_, _, hash, guess) = job {
                *guess = self.flows.guess(*hash);
            }
        }
        for ((frame, job), verdict) in frames.iter_mut().zip(&jobs).zip(verdicts) {
            *verdict = match job {
                Job::Done(verdict) => *verdict,
                Job::Ip(packet) => self.icmp(frame, packet, cx),
                Job::Flow(packet, tuple, hash, guess) => {
                    let found = self.flows.confirm(*guess, tuple, *hash);
                    self.flow(frame, packet, tuple, found, cx)
                }
            };
            self.counters.count(*verdict);
        }
    }

    fn read(&self, frame: &Frame<'_>) -> Job {
        match parse(frame.bytes()) {
            Err(reason) => Job::Done(Verdict::Drop(reason)),
            Ok(Parsed::Arp(_) | Parsed::Other(_)) => Job::Done(Verdict::Punt),
            Ok(Parsed::Ip(packet)) => match packet.transport.ports() {
                Some(ports) => {
                    let Packet { addresses, protocol, .. } = packet;
                    let tuple = Tuple { addresses, ports, protocol };
                    Job::Flow(packet, tuple, self.flows.hash(&tuple), None)
                }
                None => Job::Ip(packet),
            },
        }
    }

    fn flow(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        tuple: &Tuple,
        found: Option<Found>,
        cx: &Context<'_>,
    ) -> Verdict {
        if let Some(found) = found {
            if self.goes_on(found, packet, cx) {
                return self.forward(frame, packet, found, cx);
            }
            self.end(found.handle, EndReason::Client, cx);
        }
        match self.begin(packet, tuple, cx) {
            Ok(handle) => {
                let found = Found { handle, direction: Direction::Forward };
                self.forward(frame, packet, found, cx)
            }
            Err(verdict) => verdict,
        }
    }

    /// Whether a packet still belongs to the flow that has its addresses.
    fn goes_on(&mut self, found: Found, packet: &Packet, cx: &Context<'_>) -> bool {
        let Found { handle, direction } = found;
        let brief = self.flows.brief(handle);
        if brief.expires < step(cx.now) {
            return false;
        }
        if direction == Direction::Reply {
            return true;
        }
        if let Transport::Tcp { flags, .. } = packet.transport {
            // The client uses its port again.
            let begins = flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN;
            if begins && brief.state == State::Closed {
                return false;
            }
        }
        let generation = cx.snapshot.generation as u32;
        if brief.generation == generation {
            return true;
        }
        self.flows.set_generation(handle, generation);
        let flow = self.flows.flow(handle);
        let stays = || {
            let service = cx.snapshot.service(flow.service)?;
            let backend = self.held.backend(flow.id)?;
            Some(service.keeps(flow.id, backend.addr))
        };
        // A connection is its two ends': it goes on while they wish. Datagrams move at once.
        packet.protocol == protocol::TCP || stays() == Some(true)
    }

    /// A new flow for a packet, or what becomes of the packet without one.
    fn begin(
        &mut self,
        packet: &Packet,
        tuple: &Tuple,
        cx: &Context<'_>,
    ) -> Result<Handle, Verdict> {
        let protocol = match tuple.protocol {
            protocol::TCP => Protocol::Tcp,
            protocol::UDP => Protocol::Udp,
            _ => return Err(Verdict::Punt),
        };
        let client = SocketAddr::new(tuple.addresses.source(), tuple.ports.0);
        let vip = SocketAddr::new(tuple.addresses.destination(), tuple.ports.1);
        let service = cx.snapshot.lookup(VipAddr(vip), protocol);
        let Some(service) = service.filter(|service| service.policy.mode != Mode::Proxy) else {
            return Err(Verdict::Punt);
        };
        let counters = service.state.counters.of(self.worker);
        counters.accepted.inc();
        let entrant = Entrant {
            client,
            dialled: vip,
            seed: self.seed,
            random: cx.random,
            worker: self.worker,
            now: cx.now,
        };
        let admitted = admit(service, &entrant, cx.clients).map_err(|reason| {
            counters.ends[reason as usize].inc();
            Verdict::Drop(match reason {
                EndReason::Denied => DropReason::Denied,
                EndReason::Limited => DropReason::Limited,
                _ => DropReason::NoBackend,
            })
        })?;
        let backend = Arc::clone(admitted.pick.backend);
        let mut flow = Flow {
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
        self.held.begin(service, &backend);
        backend.counters.of(self.worker).connections.inc();
        let entered = self.our_side(&mut flow, service, admitted.start).and_then(|()| {
            let expires = self.expires(service.id, State::Opening, cx.now);
            let (held, clients, worker) = (&mut self.held, cx.clients, self.worker);
            let evicted = |view: &super::flow::FlowView, _: Ended| {
                held.end(view, EndReason::Evicted, clients, worker);
            };
            self.flows.insert(&flow, cx.now, tick(expires), evicted).ok_or(DropReason::NoFlow)
        });
        match entered {
            Ok(handle) => {
                self.flows.set_generation(handle, cx.snapshot.generation as u32);
                if let Transport::Tcp { flags, .. } = packet.transport
                    && flags & tcp_flags::SYN == 0
                {
                    // From before we were here: its handshake is over.
                    let expires = self.expires(service.id, State::Established, cx.now);
                    self.flows.note_step(handle, State::Established, expires, 0);
                }
                Ok(handle)
            }
            Err(reason) => {
                let view = super::flow::FlowView::new(flow, cx.now);
                self.held.end(&view, EndReason::LocalError, cx.clients, self.worker);
                Err(Verdict::Drop(reason))
            }
        }
    }

    /// Finds the address and port by which the backend is to know the flow: one whose replies are
    /// nobody else's.
    fn our_side(&self, flow: &mut Flow, service: &Service, start: u64) -> Result<(), DropReason> {
        let free = |flow: &Flow| {
            let reply = flow.reply()?;
            Some(self.flows.find(&reply, self.flows.hash(&reply)).is_none())
        };
        let source = &service.policy.source;
        let (first, last) = source.ports.unwrap_or((1024, 65_535));
        let (ip, kept) = match flow.mode {
            Mode::Nat => (flow.client.ip(), true),
            Mode::FullNat => {
                let fits = |ip: &&IpAddr| ip.is_ipv4() == flow.backend.is_ipv4();
                let all = || source.addresses.iter().filter(fits);
                let count = all().count();
                let own = all().nth(start as usize % count.max(1)).ok_or(DropReason::NoPort)?;
                (*own, false)
            }
            Mode::Proxy | Mode::Dsr | Mode::Tunnel(_) => return Ok(()),
        };
        // The client's own port, if nobody has it: two VIPs over one backend would collide.
        flow.local = SocketAddr::new(ip, flow.client.port());
        if kept && free(flow) == Some(true) {
            return Ok(());
        }
        let range = u64::from(last - first) / u64::from(self.workers) + 1;
        let offset = (u64::from(self.workers) + self.worker as u64
            - u64::from(first) % u64::from(self.workers))
            % u64::from(self.workers);
        for n in 0..PORT_TRIES.min(range) {
            let turn = (start >> 16).wrapping_add(n) % range;
            let port = u64::from(first) + offset + turn * u64::from(self.workers);
            let Some(port) = u16::try_from(port).ok().filter(|port| *port <= last) else {
                continue;
            };
            flow.local.set_port(port);
            if free(flow) == Some(true) {
                return Ok(());
            }
        }
        Err(DropReason::NoPort)
    }

    /// Sends a packet the way of its flow.
    fn forward(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        found: Found,
        cx: &Context<'_>,
    ) -> Verdict {
        let Found { handle, direction } = found;
        if packet.ttl <= 1 {
            return self.error(frame, packet, Error::TimeExceeded, cx);
        }
        let brief = self.flows.brief(handle);
        let two_way = brief.mode.is_two_way();
        let state = match packet.transport {
            Transport::Tcp { flags, .. } => brief.state.after_tcp(flags, direction, two_way),
            _ => brief.state.after_datagram(direction),
        };
        let expires = self.expires(brief.service, state, cx.now);
        let bytes = u64::from(packet.end - packet.l3);
        self.flows.note_step(handle, state, expires, bytes);
        if two_way {
            let ends = self.flows.ends(handle, direction);
            return self.deliver(frame, packet, ends.destination(), cx, |frame| {
                translate(frame, packet, &ends);
            });
        }
        let to = self.flows.ends(handle, Direction::Forward).destination().to_canonical();
        match brief.mode {
            Mode::Tunnel(tunnel) => {
                let hash = self.flows.flow(handle).forward().map_or(0, |t| self.flows.hash(&t));
                self.carry(frame, packet, tunnel, to, hash, cx)
            }
            _ => self.deliver(frame, packet, to, cx, |frame| {
                rewrite::complete(frame, packet);
                rewrite::lower_ttl(frame.bytes_mut(), packet);
            }),
        }
    }

    /// When a flow of a service that is in `state` now ends, in steps of the wheel.
    #[inline]
    fn expires(&self, service: ServiceId, state: State, now: Tick) -> u32 {
        // Flows hold their service.
        let timeout = self.held.service(service).map_or(0, |held| held.timeouts[state as usize]);
        step(now) + timeout
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
        let hop = self.hops.next_hop(cx.routes, to);
        let link = match hop {
            NextHop::Known(link, _) => link,
            NextHop::Unresolved(link, _) => &cx.routes.links()[usize::from(link)],
            NextHop::None => return Verdict::Drop(DropReason::NoNeighbour),
        };
        let length = usize::from(packet.end - packet.l3) + tunnel.overhead(to);
        if length > usize::from(link.mtu) {
            let mtu = usize::from(link.mtu).saturating_sub(tunnel.overhead(to)) as u16;
            return self.error(frame, packet, Error::TooBig(mtu), cx);
        }
        let Some(from) = link.address_for(to) else {
            return Verdict::Drop(DropReason::NoNeighbour);
        };
        if !encapsulate(frame, packet, tunnel, from, to, hash) {
            return Verdict::Drop(DropReason::NoRoom);
        }
        match hop {
            NextHop::Known(link, mac) if address_packet(frame, link, mac) => {
                Verdict::Send(link.port)
            }
            NextHop::Known(..) => Verdict::Drop(DropReason::NoRoom),
            _ => self.waits(to, cx),
        }
    }

    /// Changes a packet and sends it towards `to`; its sender is told when it is too big for that.
    fn deliver(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        to: IpAddr,
        cx: &Context<'_>,
        change: impl FnOnce(&mut Frame<'_>),
    ) -> Verdict {
        let hop = self.hops.next_hop(cx.routes, to);
        let link = match hop {
            NextHop::Known(link, _) => link,
            NextHop::Unresolved(link, _) => &cx.routes.links()[usize::from(link)],
            NextHop::None => return Verdict::Drop(DropReason::NoNeighbour),
        };
        if packet.end - packet.l3 > link.mtu {
            return self.error(frame, packet, Error::TooBig(link.mtu), cx);
        }
        change(frame);
        match hop {
            NextHop::Known(link, mac) => match address(frame, packet.l3, packet.end, link, mac) {
                true => Verdict::Send(link.port),
                false => Verdict::Drop(DropReason::NoRoom),
            },
            _ => {
                frame.truncate(usize::from(packet.end));
                frame.shrink_front(usize::from(packet.l3));
                self.waits(to, cx)
            }
        }
    }

    /// What becomes of the IP packet to `to` that stands in a frame, whose station is not known.
    fn waits(&self, to: IpAddr, cx: &Context<'_>) -> Verdict {
        match cx.routes.next_hop(to) {
            NextHop::Unresolved(link, _) => {
                Verdict::Wait(cx.routes.links()[usize::from(link)].port)
            }
            _ => Verdict::Drop(DropReason::NoNeighbour),
        }
    }

    /// Tells the sender of a packet why it goes no further, in its place.
    fn error(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        error: Error,
        cx: &Context<'_>,
    ) -> Verdict {
        let reason = match error {
            Error::TooBig(_) => DropReason::TooBig,
            Error::TimeExceeded => DropReason::TtlExceeded,
        };
        if !self.may_tell(cx.now) {
            return Verdict::Drop(reason);
        }
        let to = packet.addresses.source();
        let NextHop::Known(link, mac) = cx.routes.next_hop(to) else {
            return Verdict::Drop(reason);
        };
        let Some(from) = link.address_for(to) else { return Verdict::Drop(reason) };
        if !icmp::write_error(frame, packet, from, error) || !address_packet(frame, link, mac) {
            return Verdict::Drop(DropReason::NoRoom);
        }
        self.counters.told.inc();
        self.counters.dropped[reason as usize].inc();
        Verdict::Send(link.port)
    }

    /// Whether an error of our own may be sent now: nobody is to drown others by our hand.
    fn may_tell(&mut self, now: Tick) -> bool {
        let (left, since) = &mut self.errors;
        if now.since(*since) >= Duration::from_secs(1) {
            (*left, *since) = (ERRORS_A_SECOND, now);
        }
        let may = *left > 0;
        *left = left.saturating_sub(1);
        may
    }

    /// ICMP, and what has no ports.
    fn icmp(&mut self, frame: &mut Frame<'_>, packet: &Packet, cx: &Context<'_>) -> Verdict {
        if packet.fragment.is_some_and(|fragment| !fragment.is_first()) {
            return Verdict::Punt;
        }
        if !icmp::is_error(packet) {
            return Verdict::Punt;
        }
        let Some(quoted) = icmp::quoted(frame.bytes(), packet) else { return Verdict::Punt };
        // The flow of the packet that it is about, seen from where that was to arrive.
        let back = quoted.tuple.reversed();
        let Some(found) = self.flows.find(&back, self.flows.hash(&back)) else {
            return Verdict::Punt;
        };
        if packet.ttl <= 1 {
            return Verdict::Drop(DropReason::TtlExceeded);
        }
        let flow = self.flows.flow(found.handle);
        let sender = packet.addresses.source();
        match (found.direction, flow.mode.is_two_way()) {
            // About a packet to the client: the backend sent it, and is to hear of it.
            (Direction::Forward, true) => {
                let inner = (flow.backend, flow.local);
                // The backend's answers come through us, and so does its word.
                let outer = match flow.mode {
                    Mode::FullNat => (flow.local.ip(), flow.backend.ip()),
                    _ => (sender, flow.backend.ip()),
                };
                self.deliver(frame, packet, flow.backend.ip(), cx, |frame| {
                    icmp::translate_error(frame, packet, &quoted, inner, outer);
                })
            }
            // The same for a backend that answers past us: as it stands, the way of its packets.
            (Direction::Forward, false) => self.forward(frame, packet, found, cx),
            // About a packet to the backend: the client sent it. Whoever speaks, the client knows
            // the VIP and no backend.
            (Direction::Reply, _) => {
                let inner = (flow.client, flow.vip);
                let from = if sender == flow.backend.ip() { flow.vip.ip() } else { sender };
                let outer = (from, flow.client.ip());
                self.deliver(frame, packet, flow.client.ip(), cx, |frame| {
                    icmp::translate_error(frame, packet, &quoted, inner, outer);
                })
            }
        }
    }

    fn end(&mut self, handle: Handle, reason: EndReason, cx: &Context<'_>) {
        let view = self.flows.view(handle);
        self.held.end(&view, reason, cx.clients, self.worker);
        self.flows.remove(handle);
    }

    /// Ends flows whose time is over.
    fn turn(&mut self, cx: &Context<'_>) {
        let (held, clients, worker) = (&mut self.held, cx.clients, self.worker);
        self.flows.turn(cx.now, TURN, |view, _| {
            let reason = match view.state {
                State::Closed => EndReason::Client,
                State::ClientDone | State::BackendDone => EndReason::HalfClosedTimeout,
                _ => EndReason::IdleTimeout,
            };
            held.end(view, reason, clients, worker);
        });
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
