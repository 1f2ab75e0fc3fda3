//! Backends that take no new flows and whose connections may go on for a while.
//!
//! A backend that was removed from the configuration is kept until its last connection has ended;
//! one that the operator drains stays configured. Both are cut when their drain timeout is over.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use fairway_config::ServiceKey;
use fairway_core::{Backend, BackendId, Tick};

use super::ids::Ids;

#[derive(Default)]
pub(crate) struct Retiring(HashMap<BackendId, Entry>);

/// A backend that goes.
pub(crate) struct Retired {
    pub(crate) backend: Arc<Backend>,
    /// For people.
    pub(crate) name: Option<Box<str>>,
}

struct Entry {
    service: ServiceKey,
    backend: Arc<Backend>,
    /// For people.
    name: Option<Box<str>>,
    /// Gone from the configuration.
    removed: bool,
    /// When its connections are cut; none when never, or when they were.
    cut_at: Option<Tick>,
}

impl Retiring {
    /// Backends of `service` that are no longer configured.
    pub(crate) fn add(
        &mut self,
        service: &ServiceKey,
        backends: Vec<Retired>,
        timeout: Option<Duration>,
        now: Tick,
    ) {
        self.enter(service, backends, true, timeout.map(|timeout| now.plus(timeout)));
    }

    /// Backends of `service` that the operator drains.
    pub(crate) fn drain(
        &mut self,
        service: &ServiceKey,
        backends: Vec<Arc<Backend>>,
        timeout: Option<Duration>,
        now: Tick,
    ) {
        let nameless = |backend| Retired { backend, name: None };
        let nameless = backends.into_iter().map(nameless).collect();
        self.enter(service, nameless, false, timeout.map(|timeout| now.plus(timeout)));
    }

    /// An earlier drain of a backend goes on with its own time.
    fn enter(
        &mut self,
        service: &ServiceKey,
        backends: Vec<Retired>,
        removed: bool,
        cut_at: Option<Tick>,
    ) {
        for Retired { backend, name } in backends {
            let entry = self.0.entry(backend.id).or_insert_with(|| Entry {
                service: service.clone(),
                backend,
                name: None,
                removed,
                cut_at,
            });
            entry.removed |= removed;
            entry.name = name.or_else(|| entry.name.take());
        }
    }

    /// The operator wants them back.
    pub(crate) fn undrain(&mut self, backends: &[Arc<Backend>]) {
        for backend in backends {
            if self.0.get(&backend.id).is_some_and(|entry| !entry.removed) {
                self.0.remove(&backend.id);
            }
        }
    }

    /// Backends whose time is over, in order; each is named once.
    pub(crate) fn due(&mut self, now: Tick) -> Vec<BackendId> {
        let mut due = Vec::new();
        for entry in self.0.values_mut() {
            if entry.cut_at.is_some_and(|at| at <= now) {
                entry.cut_at = None;
                if entry.backend.active() > 0 {
                    let (backend, left) = (entry.backend.addr, entry.backend.active());
                    tracing::info!(service = %entry.service, %backend, connections = left, "drain timeout: cutting connections");
                    due.push(entry.backend.id);
                }
            }
        }
        due.sort_unstable();
        due
    }

    /// Forgets removed backends that nobody uses any more, and gives their ids back.
    pub(crate) fn collect(&mut self, ids: &mut Ids) {
        let unused = |entry: &Entry| entry.removed && Arc::strong_count(&entry.backend) == 1;
        let done: Vec<_> = self.0.extract_if(|_, entry| unused(entry)).collect();
        for (id, entry) in done {
            let Entry { service, backend, name, removed, cut_at } = entry;
            // Nobody else can have it: the count was one, and it was ours.
            if let Err(backend) = ids.release(backend) {
                self.0.insert(id, Entry { service, backend, name, removed, cut_at });
            }
        }
    }

    /// Whether a removed backend has no connections any more.
    pub(crate) fn has_idle(&self) -> bool {
        self.0.values().any(|entry| entry.removed && entry.backend.active() == 0)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Removed backends that are still in use: service, name, backend.
    pub(crate) fn removed(
        &self,
    ) -> impl Iterator<Item = (&ServiceKey, Option<&str>, &Arc<Backend>)> {
        let entries = self.0.values().filter(|entry| entry.removed);
        entries.map(|entry| (&entry.service, entry.name.as_deref(), &entry.backend))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fairway_core::BackendAddr;

    #[test]
    fn removed_backends_are_cut_once_and_forgotten_when_unused() {
        let mut ids = Ids::default();
        let key = ServiceKey("web/80".into());
        let backend = ids.create(BackendAddr::new([10, 0, 0, 1].into(), None), 1);
        assert!(backend.try_open(None));
        let session = Arc::clone(&backend);
        let mut retiring = Retiring::default();
        let id = backend.id;
        retiring.add(
            &key,
            vec![Retired { backend, name: None }],
            Some(Duration::from_secs(1)),
            Tick(0),
        );
        assert!(retiring.due(Tick(999)).is_empty());
        assert_eq!(retiring.due(Tick(1000)), [id]);
        assert!(retiring.due(Tick(2000)).is_empty(), "named once");
        retiring.collect(&mut ids);
        assert!(!retiring.is_empty(), "a session still counts on it");
        session.close();
        drop(session);
        retiring.collect(&mut ids);
        assert!(retiring.is_empty());
    }

    #[test]
    fn an_operators_drain_can_be_taken_back() {
        let mut ids = Ids::default();
        let key = ServiceKey("web/80".into());
        let backend = ids.create(BackendAddr::new([10, 0, 0, 1].into(), None), 1);
        assert!(backend.try_open(None));
        let mut retiring = Retiring::default();
        let second = Some(Duration::from_secs(1));
        retiring.drain(&key, vec![Arc::clone(&backend)], second, Tick(0));
        retiring.undrain(std::slice::from_ref(&backend));
        assert!(retiring.is_empty() && retiring.due(Tick(5000)).is_empty());
    }
}
