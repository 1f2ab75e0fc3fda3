//! What a cluster's Services change.

use super::Control;
use crate::cloud::{CloudNews, CloudView};

impl Control {
    /// Brings it about, up to publishing.
    pub(super) fn take_cluster(&mut self, news: CloudNews) {
        let CloudNews { change, names, view } = news;
        self.say_troubles(&view);
        self.cloud = view;
        if change.is_empty() {
            return;
        }
        let (changed, removed) = (change.upserts.len(), change.removals.len());
        self.apply(change, &names);
        let services = self.services.len();
        tracing::info!(services, changed, removed, "the cluster's Services changed");
    }

    /// Says what is new of what needs a person.
    fn say_troubles(&self, view: &CloudView) {
        let known = &self.cloud.troubles;
        for trouble in view.troubles.iter().filter(|trouble| !known.contains(trouble)) {
            tracing::warn!("{trouble}");
        }
    }
}
