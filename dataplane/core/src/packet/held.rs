//! What flows hold of services and backends, so that places are paid back when they end.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use super::flow::{Flow, FlowView, State, step};
use crate::{
    Backend, BackendId, Clients, EndReason, Policy, Protocol, Service, ServiceId, ServiceState,
    Tick,
};

/// A service with flows.
pub(super) struct HeldService {
    pub(super) policy: Arc<Policy>,
    pub(super) state: Arc<ServiceState>,
    /// How long its flows live without a packet, by state, in steps of the wheel.
    pub(super) timeouts: [u32; State::COUNT],
    flows: u32,
}

/// How long a TCP flow lives whose handshake does not go on.
const HANDSHAKE: Duration = Duration::from_secs(30);
/// How long a flow that is over keeps its addresses: its last packets may still be on their way,
/// and its ports are not given to another flow.
pub(super) const LINGER: Duration = Duration::from_secs(10);

/// Longest time without a packet.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);

/// How long flows of a service live without a packet, by state, in steps of the wheel.
fn timeouts(policy: &Policy, protocol: Protocol) -> [u32; State::COUNT] {
    State::ALL.map(|state| {
        let timeout = match (protocol, state) {
            (_, State::Closed) => LINGER,
            (Protocol::Tcp, State::Opening | State::Answered) => HANDSHAKE,
            (Protocol::Tcp, State::ClientDone | State::BackendDone) => policy.timeouts.half_closed,
            (Protocol::Tcp, _) => policy.timeouts.idle,
            (Protocol::Udp, _) => policy.udp.idle,
        };
        // Longer than any connection, and far from where steps end.
        step(Tick(0).plus(timeout.min(LONGEST))).max(1)
    })
}

/// A backend with flows.
struct HeldBackend {
    backend: Arc<Backend>,
    flows: u32,
}

/// The objects that a worker's flows hold, by the numbers that flows know them by.
#[derive(Default)]
pub(super) struct Held {
    services: Vec<Option<HeldService>>,
    backends: Vec<Option<HeldBackend>>,
}

impl Held {
    /// A flow of `service` on `backend` has begun, whose places are taken.
    pub(super) fn begin(&mut self, service: &Service, backend: &Arc<Backend>) {
        let place = place(&mut self.services, service.id.0 as usize);
        let held = place.get_or_insert_with(|| HeldService {
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
        self.join(backend);
    }

    /// A flow has ended: its places are paid back.
    pub(super) fn end(
        &mut self,
        view: &FlowView,
        reason: EndReason,
        clients: &Clients,
        worker: usize,
    ) {
        let Flow { service, id, client, tracked, .. } = view.flow;
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
        self.leave(id);
    }

    /// A flow goes from the backend `old` to another one, on which a place is taken.
    pub(super) fn rebind(&mut self, old: BackendId, backend: &Arc<Backend>) {
        self.leave(old);
        self.join(backend);
    }

    fn join(&mut self, backend: &Arc<Backend>) {
        let place = place(&mut self.backends, backend.id.slot as usize);
        match place {
            Some(held) if held.backend.id == backend.id => held.flows += 1,
            _ => *place = Some(HeldBackend { backend: Arc::clone(backend), flows: 1 }),
        }
    }

    /// A slot is given to another backend only when nobody holds the one before.
    fn leave(&mut self, id: BackendId) {
        if let Some(place) = self.backends.get_mut(id.slot as usize)
            && let Some(held) = place
            && held.backend.id == id
        {
            held.backend.close();
            held.flows -= 1;
            if held.flows == 0 {
                *place = None;
            }
        }
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

fn place<T>(places: &mut Vec<Option<T>>, index: usize) -> &mut Option<T> {
    if index >= places.len() {
        places.resize_with(index + 1, || None);
    }
    &mut places[index]
}
