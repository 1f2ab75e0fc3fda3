//! From what has changed to a snapshot that workers see, and to those who hear of it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use fairway_core::{Service, SnapshotBuilder};
use tokio::sync::oneshot;

use super::{Control, GAP};

impl Control {
    /// Whether services have changed since the last publication.
    pub(super) fn has_changed(&self) -> bool {
        !(self.dirty.is_empty() && self.removed.is_empty() && self.vacated.is_empty())
    }

    /// Whether there is something to publish.
    pub(super) fn is_unpublished(&self) -> bool {
        self.has_changed() || self.has_new_routes() || self.announcing.has_news()
    }

    /// Says to `sender` when what has changed so far is published.
    pub(crate) fn tell_published(&mut self, sender: oneshot::Sender<()>) {
        match self.is_unpublished() {
            true => self.awaiting.push(sender),
            // Nobody waits any more when the cloud's part has gone; so below.
            false => _ = sender.send(()),
        }
    }

    /// All that has changed is published.
    fn answer_awaiting(&mut self) {
        self.awaiting.drain(..).for_each(|awaiting| _ = awaiting.send(()));
    }

    /// Publishes what has changed, if anything has.
    pub(crate) fn publish(&mut self) {
        let unchanged = !self.has_changed();
        if !self.is_unpublished() {
            // What they wait for may have gone without a publication.
            self.answer_awaiting();
            return self.tell_announcer(&BTreeSet::new(), false);
        }
        let started = Instant::now();
        self.publish_at = started + GAP;
        let current = self.publisher.current();
        let mut builder = SnapshotBuilder::from(&current);
        if let Some(routes) = self.new_routes() {
            builder.set_routes(&routes);
        }
        if let Some(told) = self.announcing_news() {
            builder.set_told(&told);
        }
        let has_removed = !self.removed.is_empty();
        for (frontends, id) in self.removed.drain(..) {
            builder.remove(&frontends, id);
        }
        for (frontends, id) in self.vacated.drain(..) {
            builder.vacate(&frontends, id);
        }
        let dirty = std::mem::take(&mut self.dirty);
        for key in &dirty {
            let Some(live) = self.services.get_mut(key) else { continue };
            let before = live.panic;
            let service: Arc<Service> = Arc::new(live.service(self.process.zone.as_deref()));
            if live.panic != before {
                let state = if live.panic { "on: too few healthy backends" } else { "off" };
                tracing::warn!(service = %key, "panic mode {state}");
            }
            builder.insert(&live.spec.frontends, &service);
            if self.rebuilt.remove(key) {
                live.state.table_generation.store(current.generation + 1, Relaxed);
            }
        }
        if !self.relisten.is_empty() {
            self.look_at_routing();
        }
        // The kernel is kept from new addresses, and their packets are divided, before anybody serves
        // them.
        if !unchanged {
            self.packets_changed();
            self.tend_packets(self.clock.now());
        }
        let snapshot = self.publisher.publish(builder.finish());
        metrics::histogram!("fairway_publish_seconds").record(started.elapsed().as_secs_f64());
        if let Some(since) = self.cluster_news_since.take() {
            let lag = since.elapsed().as_secs_f64();
            metrics::histogram!("fairway_cluster_lag_seconds").record(lag);
        }
        metrics::gauge!("fairway_snapshot_generation").set(snapshot.generation as f64);
        for worker in &self.workers {
            worker.wake();
        }
        // Closed before opened: an address and port may have moved between services.
        let changes = std::mem::take(&mut self.relisten);
        self.listeners.change(&changes, self.clock.now(), &self.workers);
        self.tell_announcer(&dirty, has_removed);
        self.answer_awaiting();
        tracing::debug!(generation = snapshot.generation, "published");
    }
}
