//! New flows: letting them in, and the address by which their backend knows them.

use alloc::sync::Arc;
use core::net::{IpAddr, SocketAddr};

use super::{Context, Engine, Verdict};
use crate::packet::flow::{Ended, Flow, FlowView, Handle, State, Tuple, tick};
use crate::packet::frame::Frame;
use crate::packet::parse::{Packet, Transport, protocol, tcp_flags};
use crate::packet::reason::DropReason;
use crate::{EndReason, Entrant, Mode, Protocol, Service, VipAddr, admit};

/// Ports that are tried for our side of a flow.
const PORT_TRIES: usize = 64;

/// Why a packet has no flow.
pub(super) enum Without {
    /// It is decided what becomes of it.
    Verdict(Verdict),
    /// The table is full. Where nothing is rewritten the choice of a backend is enough: this one.
    Stateless(Mode, IpAddr),
}

impl Engine<'_> {
    /// A new flow for a packet, or what becomes of the packet without one.
    pub(super) fn begin(
        &mut self,
        frame: &Frame<'_>,
        packet: &Packet,
        (tuple, hash): (&Tuple, u64),
        cx: &Context<'_>,
    ) -> Result<Handle, Without> {
        let protocol = match tuple.protocol {
            protocol::TCP => Protocol::Tcp,
            protocol::UDP => Protocol::Udp,
            protocol::SCTP => Protocol::Sctp,
            _ => return Err(Without::Verdict(Verdict::Punt)),
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
            return Err(Without::Verdict(Verdict::Punt));
        }
        let Some(service) = service.filter(|service| service.policy.mode != Mode::Proxy) else {
            return Err(Without::Verdict(Verdict::Punt));
        };
        if self.refusing && begins {
            return Err(Without::Verdict(Verdict::Drop(DropReason::Stopping)));
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
            Without::Verdict(Verdict::Drop(match reason {
                EndReason::Denied => DropReason::Denied,
                EndReason::Limited => DropReason::Limited,
                _ => DropReason::NoBackend,
            }))
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
        self.count_begun(&backend, flow.protocol, flow.mode);
        let entered = self.our_side(&mut flow, service, admitted.start).and_then(|reply| {
            let expires = self.expires(service.id, State::Opening, cx.now);
            let (held, clients, worker) = (&mut self.held, cx.clients, self.worker);
            let evicted = |view: &FlowView, _: Ended| {
                held.end(view, EndReason::Evicted, clients, worker);
            };
            let entered =
                self.flows.insert_new(&flow, (hash, reply), cx.now, tick(expires), evicted);
            entered.ok_or(DropReason::NoFlow)
        });
        match entered {
            Ok(handle) => {
                self.flows.set_generation(handle, cx.snapshot.generation as u32);
                self.keep(frame, packet, handle, (service, admitted.start), cx);
                Ok(handle)
            }
            Err(reason) => {
                let view = FlowView::new(flow, cx.now);
                self.held.end(&view, EndReason::LocalError, cx.clients, self.worker);
                match flow.mode {
                    Mode::Dsr | Mode::Tunnel(_) => {
                        Err(Without::Stateless(flow.mode, flow.backend.ip()))
                    }
                    _ => Err(Without::Verdict(Verdict::Drop(reason))),
                }
            }
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
        let free = |flow: &Flow| {
            let reply = flow.reply()?;
            let hash = self.flows.hash(&reply);
            self.flows.find(&reply, hash).is_none().then_some(hash)
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
        let ours = self.steering.is_home(ip, flow.client.port());
        if let Some(hash) = (kept && ours).then(|| free(flow)).flatten() {
            return Ok(Some(hash));
        }
        let range = u64::from(last - first) + 1;
        // Starts of rounds count up, and those of clients' hashes are alike.
        let from = flow.forward().map_or(start, |tuple| start ^ self.flows.hash(&tuple)) >> 16;
        // Ports whose replies come to another worker are passed over at no cost.
        let ours = (0..range)
            .map(|n| first + (from.wrapping_add(n) % range) as u16)
            .filter(|port| self.steering.is_home(ip, *port));
        for port in ours.take(PORT_TRIES) {
            flow.local.set_port(port);
            if let Some(hash) = free(flow) {
                return Ok(Some(hash));
            }
        }
        Err(DropReason::NoPort)
    }
}
