//! What announcements go by: the document's words, a cluster's, and the labels of this box.

use fairway_config::Process;
use fairway_config::announce::Announce;

use super::Cloud;
use super::start::node_name;
use crate::announce::Said;

impl Cloud {
    /// What announcements go by, if that is news.
    pub(crate) fn said(&mut self) -> Option<Said> {
        if !std::mem::take(&mut self.said_stale) {
            return None;
        }
        let (announce, troubles) = self.announce_by(&self.announce, &self.process);
        if self.announce_troubles != troubles {
            self.announce_troubles = troubles;
            // They are shown with the cluster's.
            self.shown = None;
        }
        let (pools, _) = self.all_pools();
        let said = Said { announce, pools };
        (self.said != said).then(|| {
            self.said = said.clone();
            said
        })
    }

    /// What another document would change of announcements, in words.
    pub(super) fn would_say(&self, announce: &Announce, process: &Process) -> Vec<String> {
        let (before, after) = (&self.said.announce, self.announce_by(announce, process).0);
        let mut words = Vec::new();
        differ("segment", &before.layer2, &after.layer2, |it| &it.name, &mut words);
        differ("VRRP group", &before.vrrp, &after.vrrp, |it| &it.name, &mut words);
        differ("BGP peer", &before.peers, &after.peers, |it| &it.name, &mut words);
        let (advertised, advertises) = (&before.advertisements, &after.advertisements);
        differ("BGP advertisement", advertised, advertises, |it| &it.name, &mut words);
        if words.is_empty() && *before != after {
            words.push("other fields of `announce` change".into());
        }
        words
    }

    /// A document's words with a cluster's, and what is wrong with the latter.
    fn announce_by(&self, announce: &Announce, process: &Process) -> (Announce, Vec<String>) {
        let (mut announce, troubles) = self.cluster.announce(announce, process);
        let name = announce.node_name.get_or_insert_with(node_name);
        // What the document says of this box goes before what its Node does.
        for (key, value) in self.cluster.node_labels(name).into_iter().flatten() {
            announce.node_labels.entry(key.clone()).or_insert_with(|| value.clone());
        }
        (announce, troubles)
    }
}

/// Says which entries come, go and change, by their names.
fn differ<T: PartialEq>(
    what: &str,
    before: &[T],
    after: &[T],
    name: impl Fn(&T) -> &String,
    words: &mut Vec<String>,
) {
    for entry in after {
        let name_of = name(entry);
        match before.iter().find(|other| name(other) == name_of) {
            None => words.push(format!("{what} `{name_of}` is new")),
            Some(other) if other != entry => words.push(format!("{what} `{name_of}` changes")),
            Some(_) => {}
        }
    }
    let gone = before.iter().filter(|entry| !after.iter().any(|other| name(other) == name(entry)));
    words.extend(gone.map(|entry| format!("{what} `{}` is gone", name(entry))));
}
