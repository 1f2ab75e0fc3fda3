//! What sessions hold of services and backends, counted within the worker.
//!
//! A session outlives snapshots. Cloning an `Arc` for each would have all workers write to one
//! cache line; so a worker holds each object once and its sessions share that by `Rc`.

use std::collections::HashMap;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

use ahash::RandomState;
use fairway_core::{Backend, Policy, Service, ServiceId, ServiceState, Snapshot};

/// What a session needs of its service, as it was when the session began.
pub(crate) struct HeldService {
    pub(crate) id: ServiceId,
    pub(crate) name: Arc<str>,
    pub(crate) policy: Arc<Policy>,
    pub(crate) state: Arc<ServiceState>,
}

/// A backend, shared by the worker's sessions.
pub(crate) struct HeldBackend(Arc<Backend>);

impl Deref for HeldBackend {
    type Target = Backend;

    fn deref(&self) -> &Backend {
        &self.0
    }
}

/// The objects that a worker holds.
#[derive(Default)]
pub(crate) struct Held {
    services: HashMap<ServiceId, Rc<HeldService>, RandomState>,
    backends: Vec<Option<Rc<HeldBackend>>>,
}

impl Held {
    pub(crate) fn service(&mut self, service: &Service) -> Rc<HeldService> {
        if let Some(held) = self.services.get(&service.id)
            && Arc::ptr_eq(&held.policy, &service.policy)
            && Arc::ptr_eq(&held.state, &service.state)
        {
            return Rc::clone(held);
        }
        let held = Rc::new(HeldService {
            id: service.id,
            name: Arc::clone(&service.name),
            policy: Arc::clone(&service.policy),
            state: Arc::clone(&service.state),
        });
        self.services.insert(service.id, Rc::clone(&held));
        held
    }

    pub(crate) fn backend(&mut self, backend: &Arc<Backend>) -> Rc<HeldBackend> {
        let slot = backend.id.slot as usize;
        if slot >= self.backends.len() {
            self.backends.resize(slot + 1, None);
        }
        match &mut self.backends[slot] {
            Some(held) if held.id == backend.id => Rc::clone(held),
            place => Rc::clone(place.insert(Rc::new(HeldBackend(Arc::clone(backend))))),
        }
    }

    /// Lets go of what no session uses and `snapshot` no longer has. For quiet moments: looks at
    /// everything held.
    pub(crate) fn prune(&mut self, snapshot: &Snapshot) {
        self.services
            .retain(|id, held| Rc::strong_count(held) > 1 || snapshot.service(*id).is_some());
        for place in &mut self.backends {
            if place.as_ref().is_some_and(|held| Rc::strong_count(held) == 1) {
                *place = None;
            }
        }
    }
}
