//! What a cluster's Services change.

use std::collections::{BTreeMap, HashSet};

use super::Control;
use crate::cloud::{CloudNews, CloudView};

/// Most new troubles that the log has at a time.
const SAID: usize = 20;

impl Control {
    /// Brings it about, up to publishing.
    pub(super) fn take_cluster(&mut self, news: CloudNews) {
        let CloudNews { mut change, names, view, said, since } = news;
        // The document has a service of that name now, which is there already.
        change.removals.retain(|key| !self.desired.contains_key(key));
        if let Some(view) = view {
            self.say_troubles(&view);
            show(&self.cloud, &view);
            self.cloud = view;
        }
        if let Some(said) = said {
            self.announce_by(*said);
        }
        if change.is_empty() {
            return;
        }
        self.cluster_news_since = self.cluster_news_since.or(since);
        let (changed, removed) = (change.upserts.len(), change.removals.len());
        let before = self.services.len();
        self.apply(change, &names);
        let services = self.services.len();
        let words = "the cluster's Services changed";
        match removed > 0 || services != before {
            true => tracing::info!(services, changed, removed, "{words}"),
            // Endpoints come and go all the time.
            false => tracing::debug!(services, changed, "{words}"),
        }
    }

    /// Says what is new of what needs a person.
    fn say_troubles(&self, view: &CloudView) {
        let known: HashSet<&String> = self.cloud.troubles.iter().collect();
        let new = || view.troubles.iter().filter(|trouble| !known.contains(trouble));
        for trouble in new().take(SAID) {
            tracing::warn!("{trouble}");
        }
        let more = new().count().saturating_sub(SAID);
        if more > 0 {
            tracing::warn!("and {more} more like these: `fairway cluster` has them all");
        }
    }
}

/// The state of a cluster as gauges; what was there `before` and is not any more is zero.
fn show(before: &CloudView, now: &CloudView) {
    let gone: BTreeMap<_, _> = before.objects.keys().map(|kind| (kind, &0)).collect();
    for (kind, count) in gone.into_iter().chain(&now.objects) {
        metrics::gauge!("fairway_cluster_objects", "kind" => kind.clone()).set(*count as f64);
    }
    for kind in before.unwatched.iter().chain(&now.unwatched) {
        let up = if now.unwatched.contains(kind) { 0.0 } else { 1.0 };
        metrics::gauge!("fairway_cluster_watch_up", "kind" => kind.clone()).set(up);
    }
    metrics::gauge!("fairway_cluster_services").set(now.services.len() as f64);
    let waiting = now.services.iter().filter(|service| service.addresses.is_empty()).count();
    metrics::gauge!("fairway_cluster_services_without_address").set(waiting as f64);
    let gone = before.pools.iter().map(|pool| (&pool.name, 0, 0.0));
    let pools = now.pools.iter().map(|pool| {
        let size = pool.size.parse::<f64>().unwrap_or_default();
        (&pool.name, pool.assigned, size)
    });
    for (name, assigned, size) in gone.chain(pools) {
        let labels = [("pool", name.to_string())];
        metrics::gauge!("fairway_address_pool_assigned", &labels).set(assigned as f64);
        metrics::gauge!("fairway_address_pool_size", &labels).set(size);
    }
}
