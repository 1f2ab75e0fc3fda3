//! What checks, agents and workers tell the control loop.

use std::collections::BTreeSet;

use fairway_config::ServiceKey;
use fairway_core::{BackendId, Protocol, Tick};
use fairway_uring::Event;

use super::live::{checked_at, followed_at};
use super::{Control, Live, Stop};
use crate::health::agent::AgentState;
use crate::health::{CheckTarget, HealthEvent, News, Transition};

impl Control {
    /// Takes what a check says; not at once that a backend is down, while nothing can come from any.
    pub(super) fn hear_health(&mut self, event: HealthEvent) {
        let deaf = self.is_cut_off() || self.clock.now() < self.unheard.1;
        match &event.news {
            News::Health(Transition::Down { .. }) if deaf => {
                self.unheard.0.insert(event.target.clone(), event);
            }
            News::Health(Transition::Up { .. }) if deaf => {
                self.unheard.0.remove(&event.target);
                self.take_health(event);
            }
            _ => self.take_health(event),
        }
    }

    /// Backends that are still down when everything could have been heard for a while are down.
    pub(super) fn tend_unheard(&mut self, now: Tick) {
        if !self.unheard.0.is_empty() && !self.is_cut_off() && now >= self.unheard.1 {
            for (_, event) in std::mem::take(&mut self.unheard.0) {
                self.take_health(event);
            }
        }
    }

    pub(super) fn take_health(&mut self, event: HealthEvent) {
        // A check that was stopped may still have had something to say.
        let Some(checked) = self.checked.get_mut(&event.target) else { return };
        match event.news {
            News::Health(transition) => self.take_transition(&event.target, &transition),
            News::Agent(report) => {
                let state = checked.agent.get_or_insert_default();
                state.take(&report);
                let (state, users) = (state.clone(), checked.users.clone());
                self.take_agent(&event.target, users, &state);
            }
            News::AgentLost(cause) => tracing::warn!("{cause}; what it said before holds"),
        }
    }

    fn take_transition(&mut self, target: &CheckTarget, transition: &Transition) {
        let Some(checked) = self.checked.get_mut(target) else { return };
        checked.down = match transition {
            Transition::Up { .. } => None,
            Transition::Down { cause, .. } | Transition::StillDown { cause } => {
                Some(cause.to_string().into())
            }
        };
        let users: BTreeSet<_> = checked.users.iter().cloned().collect();
        let (down, now) = (checked.down.clone(), self.clock.now());
        for key in users {
            let Some(live) = self.services.get_mut(&key) else { continue };
            let mut back = Vec::new();
            for backend in checked_at(live, target) {
                backend.down.clone_from(&down);
                if !matches!(transition, Transition::StillDown { .. }) {
                    backend.backend.transitions.inc();
                }
                let (addr, spec) = (backend.backend.addr, &target.spec);
                match transition {
                    Transition::Up { good } => {
                        backend.ejection.lift(now);
                        backend.backend.streak.succeeded();
                        back.push(backend.backend.id);
                        tracing::info!(service = %key, backend = %addr, "backend is back: {good} of {} checks good", spec.rise);
                    }
                    Transition::StillDown { cause } => {
                        tracing::debug!(service = %key, backend = %addr, "backend is still down: {cause}");
                    }
                    Transition::Down { cause, failed } => {
                        tracing::warn!(service = %key, backend = %addr, "backend is down: {cause}, {failed} of {}", spec.fall);
                    }
                }
            }
            live.start_slowly(now, |live| back.contains(&live.backend.id));
            if live.is_starting() {
                self.starting.insert(key.clone());
            }
            // Another cause changes nothing for the workers.
            if !matches!(transition, Transition::StillDown { .. }) {
                self.dirty.insert(key);
            }
        }
    }

    fn take_agent(&mut self, target: &CheckTarget, users: Vec<ServiceKey>, state: &AgentState) {
        let now = self.clock.now();
        for key in users {
            let Some(live) = self.services.get_mut(&key) else { continue };
            let mut back = Vec::new();
            for backend in followed_at(live, target) {
                let before = backend.standing();
                backend.agent.clone_from(state);
                if backend.standing().admits() && !before.admits() {
                    back.push(backend.backend.id);
                }
                let words = state.words().unwrap_or_else(|| "its agent says all is well".into());
                tracing::info!(service = %key, backend = %backend.backend.addr, "{words}");
            }
            live.start_slowly(now, |live| back.contains(&live.backend.id));
            self.starting.extend(live.is_starting().then(|| key.clone()));
            self.dirty.insert(key);
        }
    }

    pub(super) fn take_event(&mut self, event: Event) {
        match event {
            Event::BackendFailed { service, backend, cause, streak } => {
                let Some(key) = self.keys.get(&service) else { return };
                let Some(live) = self.services.get_mut(key) else { return };
                let cause = cause.label();
                let what = match live.spec.protocol {
                    Protocol::Tcp => "connects failed",
                    Protocol::Udp | Protocol::Sctp => "datagrams were refused",
                };
                let cause = format!("{what} {streak} times in a row, the last with `{cause}`");
                let key = key.clone();
                if eject(&key, live, backend, &cause, self.clock.now()) {
                    self.ejected.insert(key.clone());
                    self.dirty.insert(key);
                }
            }
            Event::WorkerEnded { worker, error } => {
                if let Some(error) = error {
                    tracing::error!(worker, "worker ended: {error}");
                    self.failure = Some(format!("worker {worker} ended: {error}"));
                    self.stop = Stop::Done;
                }
            }
            Event::Unresolved(unresolved) => self.find_station(unresolved),
            Event::ConnectionEnded(_) => {}
        }
    }
}

/// Ejects a backend for what its traffic showed; false when it stays.
pub(super) fn eject(
    key: &ServiceKey,
    live: &mut Live,
    id: BackendId,
    cause: &str,
    now: Tick,
) -> bool {
    let Some(length) = live.eject(id, cause, now) else { return false };
    let addr = live.all().find(|live| live.backend.id == id).map(|live| live.backend.addr);
    let backend = addr.map(|addr| addr.to_string()).unwrap_or_default();
    tracing::warn!(service = %key, backend, "backend ejected for {length:?}: {cause}");
    true
}
