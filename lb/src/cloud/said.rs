//! What announcements go by: the document's words, a cluster's, and the labels of this box.

use super::Cloud;
use super::start::node_name;
use crate::announce::Said;

impl Cloud {
    /// What announcements go by, if that is news.
    pub(crate) fn said(&mut self) -> Option<Said> {
        if !std::mem::take(&mut self.said_stale) {
            return None;
        }
        let (mut announce, troubles) = self.cluster.announce(&self.announce, &self.process);
        if self.announce_troubles != troubles {
            self.announce_troubles = troubles;
            // They are shown with the cluster's.
            self.shown = None;
        }
        let name = announce.node_name.get_or_insert_with(node_name);
        // What the document says of this box goes before what its Node does.
        for (key, value) in self.cluster.node_labels(name).into_iter().flatten() {
            announce.node_labels.entry(key.clone()).or_insert_with(|| value.clone());
        }
        let (pools, _) = self.all_pools();
        let said = Said { announce, pools };
        (self.said != said).then(|| {
            self.said = said.clone();
            said
        })
    }
}
