//! Brings changes of services about, up to publishing.

use std::collections::HashSet;
use std::sync::Arc;

use fairway_config::{ChangeSet, ServiceKey, ServiceSpec};
use fairway_core::{BackendId, EndReason, Frontend, Mode, ServiceId};
use fairway_uring::Command;

use super::live::{Replaced, followed_at};
use super::memory::ServiceMemory;
use super::retire::Retired;
use super::{Answers, Checked, Control, Live, LiveBackend, Relisten};
use crate::health::CheckTarget;

impl Control {
    /// Brings a change of services about, up to publishing; `names` is what DNS said of new names.
    pub(crate) fn apply(&mut self, change: ChangeSet, names: &Answers) {
        let names_change = change.upserts.iter().any(|spec| !spec.named.is_empty());
        // New names first and old ones last: what is known of a name outlives its change of hands.
        change.upserts.iter().for_each(|spec| self.follow_names(spec, names));
        let touched = change.removals.iter().chain(change.upserts.iter().map(|spec| &spec.key));
        let before = touched.filter_map(|key| Some(&self.services.get(key)?.spec));
        let before: Vec<_> = before.filter(|spec| !spec.named.is_empty()).cloned().collect();
        for key in change.removals {
            self.services.remove(&key).into_iter().for_each(|live| self.end(live));
        }
        for spec in change.upserts {
            self.upsert(&spec);
        }
        before.iter().for_each(|spec| self.release_names(spec));
        if names_change || !before.is_empty() {
            self.count_failing();
        }
    }

    /// Puts a service, whose names are followed already, in the place of what it was.
    pub(super) fn upsert(&mut self, spec: &Arc<ServiceSpec>) {
        let key = spec.key.clone();
        let mut previous = self.services.remove(&key);
        if let Some(live) = previous.take_if(|live| parts(live.spec.policy.mode, spec.policy.mode))
        {
            self.leave_mode(live, spec.policy.mode);
        }
        let mut spec = self.resolved(spec);
        // Names of which nothing is known yet leave a service with what it has.
        if let Some(previous) = &previous
            && spec.backends.is_empty()
            && !spec.named.is_empty()
        {
            let backends = previous.spec.backends.clone();
            spec = Arc::new(ServiceSpec { backends, ..ServiceSpec::clone(&spec) });
        }
        // Only a service that is new here is one of before.
        let memory = if previous.is_none() { self.memory.take(&key) } else { None };
        let known = previous.as_ref().map(|live| live.id);
        let id = known.or(memory.as_ref().map(ServiceMemory::id)).unwrap_or_else(|| {
            self.next_service += 1;
            ServiceId(self.next_service)
        });
        let old_targets: Vec<_> = previous.iter().flat_map(Live::targets).collect();
        let old_listened =
            previous.as_ref().map_or_else(Vec::new, |live| listened(&live.spec).to_vec());
        let old_frontends =
            previous.as_ref().map_or_else(Vec::new, |live| live.spec.frontends.clone());
        let listens_alike = previous.as_ref().is_some_and(|live| {
            let transparent = live.spec.policy.source.transparent;
            listened(&live.spec) == listened(&spec) && transparent == spec.policy.source.transparent
        });
        let known_ids: HashSet<BackendId> =
            previous.iter().flat_map(Live::all).map(|live| live.backend.id).collect();
        let (drain, now) = (spec.policy.drain_timeout, self.clock.now());
        let (ids, checked) = (&mut self.ids, &self.checked);
        let health = |target: &CheckTarget| checked.get(target).map(|checked| checked.down.clone());
        let copies = self.workers.len() + 1;
        let before = (previous, memory.as_ref());
        let built = Live::build(id, Arc::clone(&spec), before, ids, (copies, now), health);
        let Replaced { mut live, retired, rebuilt } = match built {
            Ok(replaced) => replaced,
            // `config` has refused both kinds of it.
            Err(error) => {
                tracing::error!(service = %key, "cannot be served: {error}");
                return;
            }
        };
        if let Some(log) = &mut self.id_log {
            let new = live.all().map(|live| &live.backend).filter(|it| !known_ids.contains(&it.id));
            log.note(&key, id, new.map(|backend| (backend.addr, backend.id)));
        }
        if let Some(memory) = &memory {
            self.recall(&key, &mut live, memory);
        }
        // Who joins others begins slowly; a service that is new has nobody else to serve.
        if !known_ids.is_empty() {
            live.start_slowly(now, |live| {
                !known_ids.contains(&live.backend.id) && live.down.is_none()
            });
        }
        if live.is_starting() {
            self.starting.insert(key.clone());
        }
        self.retiring.add(&key, retired, drain, now);
        self.recheck(&key, &old_targets, live.standing_of_targets().collect());
        if !listens_alike {
            let (old, new) = (old_listened, listened(&spec).to_vec());
            self.relisten.push(Relisten { old, new, linger: drain });
        }
        let gone: Vec<_> =
            old_frontends.into_iter().filter(|old| !spec.frontends.contains(old)).collect();
        if !gone.is_empty() {
            self.vacated.push((gone, id));
        }
        // An agent that others ask already has said what it has to say.
        for target in live.agents() {
            let known = self.checked.get(&target).and_then(|checked| checked.agent.clone());
            let Some(known) = known else { continue };
            followed_at(&mut live, &target).for_each(|live| live.agent.clone_from(&known));
        }
        self.keys.insert(id, key.clone());
        self.services.insert(key.clone(), live);
        if rebuilt {
            self.rebuilt.insert(key.clone());
        }
        self.dirty.insert(key);
    }

    /// Ends a service that is about to be carried in another way: sockets know nothing of flows, and
    /// flows nothing of sockets.
    fn leave_mode(&mut self, live: Live, to: Mode) {
        let (key, from) = (live.spec.key.clone(), live.spec.policy.mode);
        let open = live.state.active();
        tracing::warn!(service = %key, connections = open, "mode {from} → {to}: cutting connections");
        let cut: Vec<BackendId> = live.all().map(|live| live.backend.id).collect();
        self.end(live);
        for worker in &self.workers {
            let (mut backends, reason) = (cut.clone(), EndReason::ModeChanged);
            backends.sort_unstable();
            worker.send(Command::EndBackends { backends, reason });
        }
    }

    /// Ends a service that is served no longer.
    fn end(&mut self, live: Live) {
        let key = &live.spec.key;
        let targets: Vec<_> = live.targets().collect();
        self.recheck(key, &targets, Vec::new());
        let retired = |live: &LiveBackend| Retired {
            backend: Arc::clone(&live.backend),
            name: live.name.clone(),
        };
        let backends = live.all().map(retired).collect();
        let drain = live.spec.policy.drain_timeout;
        let old = listened(&live.spec).to_vec();
        self.relisten.push(Relisten { old, new: Vec::new(), linger: drain });
        self.retiring.add(key, backends, drain, self.clock.now());
        self.keys.remove(&live.id);
        self.ejected.remove(key);
        self.starting.remove(key);
        self.dirty.remove(key);
        self.rebuilt.remove(key);
        self.removed.push((live.spec.frontends.clone(), live.id));
        tracing::info!(service = %key, "service removed");
    }

    /// Moves the checks of a service from `old` targets to `new` ones, which start with the
    /// standing that comes with them.
    fn recheck(
        &mut self,
        key: &ServiceKey,
        old: &[CheckTarget],
        new: Vec<(CheckTarget, Option<Box<str>>)>,
    ) {
        for (target, down) in new {
            self.checker.add(&target, down.is_none());
            let fresh = || Checked { down, ..Checked::default() };
            self.checked.entry(target).or_insert_with(fresh).users.push(key.clone());
        }
        for target in old {
            self.checker.remove(target);
            let Some(checked) = self.checked.get_mut(target) else { continue };
            if let Some(place) = checked.users.iter().position(|user| user == key) {
                checked.users.swap_remove(place);
            }
            if checked.users.is_empty() {
                self.checked.remove(target);
            }
        }
    }
}

/// Whether flows of one mode cannot go on in the other.
fn parts(from: Mode, to: Mode) -> bool {
    from != to && (from == Mode::Proxy || to == Mode::Proxy)
}

/// Where the kernel's sockets listen for a service: packets need none.
fn listened(spec: &ServiceSpec) -> &[Frontend] {
    match spec.policy.mode {
        Mode::Proxy => &spec.frontends,
        _ => &[],
    }
}
