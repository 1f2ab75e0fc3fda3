//! What flows hold of services and backends, so that places are paid back when they end.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use super::flow::{Direction, Flow, FlowView, State, step};
use crate::{
    Backend, BackendAddr, BackendId, Clients, EndReason, Policy, Protocol, Service, ServiceId,
    ServiceState, Tick,
};

/// Ended flows that are kept for the log at a time.
const MOST_ENDED: usize = 1024;

/// A flow that has ended, for the log.
#[derive(Debug, Clone)]
pub struct EndedFlow {
    /// Who it was between, and what it has carried.
    pub view: FlowView,
    /// `name/port` of its service.
    pub service: Arc<str>,
    /// Its backend.
    pub backend: BackendAddr,
    /// Why it ended.
    pub reason: EndReason,
}

/// A service with flows.
pub(super) struct HeldService {
    name: Arc<str>,
    pub(super) policy: Arc<Policy>,
    pub(super) state: Arc<ServiceState>,
    /// How long its flows live without a packet, by state, in steps of the wheel.
    pub(super) timeouts: [u32; State::COUNT],
    flows: u32,
}

/// What was counted since it was last shown: memory of the worker's own, as each packet touches it.
#[derive(Default)]
struct Traffic {
    /// Of IP packets, by direction.
    bytes: [u64; 2],
    packets: [u64; 2],
}

/// How long a TCP flow lives whose handshake does not go on.
const HANDSHAKE: Duration = Duration::from_secs(30);
/// How long a flow that is over keeps its addresses: its last packets may still be on their way,
/// and its ports are not given to another flow.
pub(super) const LINGER: Duration = Duration::from_secs(10);

/// How long a flow that was cut is remembered: its ends speak within that time, or much later.
const CUT: Duration = Duration::from_secs(60);

/// Longest time without a packet.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);

/// How long flows of a service live without a packet, by state, in steps of the wheel.
fn timeouts(policy: &Policy, protocol: Protocol) -> [u32; State::COUNT] {
    State::ALL.map(|state| {
        let timeout = match (protocol, state) {
            (_, State::Closed | State::Reset) => LINGER,
            (_, State::Cut) => CUT,
            (Protocol::Tcp, State::Opening | State::Answered) => HANDSHAKE,
            (Protocol::Tcp, State::ClientDone | State::BackendDone) => policy.timeouts.half_closed,
            (Protocol::Tcp | Protocol::Sctp, _) => policy.timeouts.idle,
            (Protocol::Udp, _) => policy.udp.idle,
        };
        // Longer than any connection, and far from where steps end.
        step(Tick(0).plus(timeout.min(LONGEST))).max(1)
    })
}

/// A backend with flows: all that most of their packets touch beside the flow itself.
struct HeldBackend {
    traffic: Traffic,
    /// How long an established flow lives without a packet, in steps of the wheel.
    lives: u32,
    flows: u32,
    backend: Arc<Backend>,
    /// Of its service.
    state: Arc<ServiceState>,
}

impl Traffic {
    #[inline]
    fn add(&mut self, direction: Direction, bytes: u64) {
        self.bytes[direction as usize] += bytes;
        self.packets[direction as usize] += 1;
    }
}

impl HeldBackend {
    fn show(&mut self, worker: usize) {
        let Traffic { bytes: [forward, reply], packets: [from, to] } =
            core::mem::take(&mut self.traffic);
        if from + to > 0 {
            let counters = self.backend.counters.of(worker);
            counters.tx_bytes.add(forward);
            counters.rx_bytes.add(reply);
            let counters = self.state.counters.of(worker);
            counters.rx_bytes.add(forward);
            counters.tx_bytes.add(reply);
            counters.rx_packets.add(from);
            counters.tx_packets.add(to);
        }
    }
}

/// The objects that a worker's flows hold, by the numbers that flows know them by.
#[derive(Default)]
pub(super) struct Held {
    services: Vec<Option<HeldService>>,
    backends: Vec<Option<HeldBackend>>,
    /// Flows that hold places.
    pub(super) flows: u64,
    /// Those that have ended since they were asked for.
    pub(super) ended: Vec<EndedFlow>,
}

impl Held {
    /// A flow of `service` on `backend` has begun, whose places are taken.
    pub(super) fn begin(&mut self, service: &Service, backend: &Arc<Backend>) {
        let place = place(&mut self.services, service.id.0 as usize);
        let held = place.get_or_insert_with(|| HeldService {
            name: Arc::clone(&service.name),
            policy: Arc::clone(&service.policy),
            state: Arc::clone(&service.state),
            timeouts: timeouts(&service.policy, service.protocol),
            flows: 0,
        });
        if !Arc::ptr_eq(&held.policy, &service.policy) {
            held.policy = Arc::clone(&service.policy);
            held.timeouts = timeouts(&service.policy, service.protocol);
        }
        held.flows += 1;
        self.flows += 1;
        let lives = held.timeouts[State::Established as usize];
        self.join(backend, service, lives);
    }

    /// A flow has ended: its places are paid back.
    pub(super) fn end(
        &mut self,
        view: &FlowView,
        reason: EndReason,
        clients: &Clients,
        worker: usize,
    ) {
        if view.paid {
            return;
        }
        self.flows -= 1;
        let Flow { service, id, client, tracked, .. } = view.flow;
        // A flood of what never came about makes room for itself, and is counted.
        let flood = reason == EndReason::Evicted && view.state == State::Opening;
        if !flood
            && self.ended.len() < MOST_ENDED
            && let (Some(held), Some(backend)) = (self.service(service), self.backend(id))
        {
            let (view, name, backend) = (*view, Arc::clone(&held.name), backend.addr);
            self.ended.push(EndedFlow { view, service: name, backend, reason });
        }
        if tracked {
            clients.table.close(service, client.ip());
        }
        if let Some(place) = self.services.get_mut(service.0 as usize)
            && let Some(held) = place
        {
            held.state.counters.of(worker).ends[reason as usize].inc();
            held.state.close();
            held.flows -= 1;
            if held.flows == 0 {
                *place = None;
            }
        }
        self.leave(id, worker);
    }

    /// A flow goes from the backend `old` to another one of its service, on which a place is taken.
    pub(super) fn rebind(
        &mut self,
        old: BackendId,
        service: &Service,
        backend: &Arc<Backend>,
        worker: usize,
    ) {
        self.leave(old, worker);
        let lives = self.lives(service.id, State::Established);
        self.join(backend, service, lives);
    }

    fn join(&mut self, backend: &Arc<Backend>, service: &Service, lives: u32) {
        let place = place(&mut self.backends, backend.id.slot as usize);
        match place {
            Some(held) if held.backend.id == backend.id => {
                held.flows += 1;
                held.lives = lives;
            }
            _ => {
                let (backend, state) = (Arc::clone(backend), Arc::clone(&service.state));
                let traffic = Traffic::default();
                *place = Some(HeldBackend { traffic, lives, flows: 1, backend, state });
            }
        }
    }

    /// A slot is given to another backend only when nobody holds the one before.
    fn leave(&mut self, id: BackendId, worker: usize) {
        if let Some(place) = self.backends.get_mut(id.slot as usize)
            && let Some(held) = place
            && held.backend.id == id
        {
            held.backend.close();
            held.flows -= 1;
            if held.flows == 0 {
                held.show(worker);
                *place = None;
            }
        }
    }

    /// Counts a packet of an established flow on the backend in `slot`; returns how long the flow
    /// lives without another one, in steps of the wheel. None when nobody holds that backend.
    #[inline(always)]
    pub(super) fn count(&mut self, slot: u32, direction: Direction, bytes: u64) -> Option<u32> {
        let held = self.backends.get_mut(slot as usize)?.as_mut()?;
        held.traffic.add(direction, bytes);
        Some(held.lives)
    }

    /// How long a flow of a service lives in `state` without a packet, in steps of the wheel.
    pub(super) fn lives(&self, service: ServiceId, state: State) -> u32 {
        // Flows hold their service until they are over.
        self.service(service).map_or_else(linger, |held| held.timeouts[state as usize])
    }

    /// Shows what was counted.
    pub(super) fn show(&mut self, worker: usize) {
        self.backends.iter_mut().flatten().for_each(|held| held.show(worker));
    }

    /// The service of a flow.
    pub(super) fn service(&self, id: ServiceId) -> Option<&HeldService> {
        self.services.get(id.0 as usize)?.as_ref()
    }

    /// The backend of a flow.
    pub(super) fn backend(&self, id: BackendId) -> Option<&Arc<Backend>> {
        let held = self.backends.get(id.slot as usize)?.as_ref()?;
        (held.backend.id == id).then_some(&held.backend)
    }
}

/// [`LINGER`] in steps of the wheel.
fn linger() -> u32 {
    step(Tick(0).plus(LINGER))
}

fn place<T>(places: &mut Vec<Option<T>>, index: usize) -> &mut Option<T> {
    if index >= places.len() {
        places.resize_with(index + 1, || None);
    }
    &mut places[index]
}
