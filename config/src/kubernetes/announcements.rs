//! Objects that say how addresses are announced: the document's own entries, as objects of a cluster.

use std::collections::BTreeMap;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::cluster::{Cluster, Kind};
use super::objects::Meta;
use crate::announce::Announce;
use crate::check::{self, Around, Findings};
use crate::document::BgpDoc;
use crate::spec::Process;
use crate::tree::{Key, Node, Value};
use crate::values::{Address, At};
use crate::{File, Place, Problems};

/// An object of ours, fairway.dev/v1alpha1, that says how addresses are announced.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Announcement {
    /// What every object has.
    pub metadata: Meta,
    /// The fields of an entry of the document, but its name.
    pub spec: serde_json::Value,
}

/// What is wanted by objects of each kind, by their names.
pub(super) type Announcements = BTreeMap<Kind, BTreeMap<Box<str>, serde_json::Value>>;

impl Cluster {
    /// Adds what a cluster's objects say to what the document does; what is wrong with them is in words.
    #[must_use]
    pub fn announce(&self, document: &Announce, process: &Process) -> (Announce, Vec<String>) {
        let mut reader = Reader { process, troubles: Vec::new() };
        let mut announce = document.clone();
        let of = |kind: Kind| self.announcements.get(&kind).into_iter().flatten();
        let at = |value| At { place: Place::default(), value };
        let bgp = BgpDoc {
            my_asn: announce.own_as.map(at),
            router_id: announce
                .router_id
                .map(|id| At { place: Place::default(), value: Address(id.into()) }),
            // One that is not there is for the document to mend.
            listen_port: announce.listen_port.map(|value| At { place: Place::default(), value }),
            ..BgpDoc::default()
        };
        for (name, spec) in of(Kind::BfdProfile) {
            let read = reader.read(Kind::BfdProfile, name, spec, |doc, _, findings| {
                Some(check::profile(&doc.value, findings))
            });
            announce.profiles.extend(read);
        }
        for (name, spec) in of(Kind::L2Advertisement) {
            let read = reader.read(Kind::L2Advertisement, name, spec, |doc, around, findings| {
                Some(check::layer2(&doc, around, findings))
            });
            announce.layer2.extend(read);
        }
        for (name, spec) in of(Kind::VrrpGroup) {
            let read = reader.read(Kind::VrrpGroup, name, spec, |doc, around, findings| {
                check::vrrp_group(&doc, around, findings)
            });
            announce.vrrp.extend(read);
        }
        let profiles = announce.profiles.clone();
        for (name, spec) in of(Kind::BgpPeer) {
            let read = reader.read(Kind::BgpPeer, name, spec, |doc, around, findings| {
                check::bgp_peer(&doc.value, &bgp, &profiles, around, findings)
            });
            announce.peers.extend(read);
        }
        for (name, spec) in of(Kind::BgpAdvertisement) {
            let read = reader.read(Kind::BgpAdvertisement, name, spec, |doc, around, findings| {
                Some(check::advertisement(&doc.value, None, around, findings))
            });
            announce.advertisements.extend(read);
        }
        let mut names: BTreeMap<(Kind, &str), usize> = BTreeMap::new();
        let all = announce.layer2.iter().map(|it| (Kind::L2Advertisement, it.name.as_str()));
        let all = all.chain(announce.vrrp.iter().map(|it| (Kind::VrrpGroup, it.name.as_str())));
        for key in all.chain(announce.peers.iter().map(|it| (Kind::BgpPeer, it.name.as_str()))) {
            *names.entry(key).or_default() += 1;
        }
        for ((kind, name), _) in names.into_iter().filter(|(_, count)| *count > 1) {
            let word = kind.word();
            reader.troubles.push(format!("{word} `{name}` is in the document, too; rename one"));
        }
        announce.is_written |= self
            .announcements
            .iter()
            .any(|(kind, objects)| *kind != Kind::BfdProfile && !objects.is_empty());
        (announce, reader.troubles)
    }
}

struct Reader<'a> {
    process: &'a Process,
    troubles: Vec<String>,
}

impl Reader<'_> {
    /// Reads an object as the entry of a document that it would be; one that is wrong is left out.
    fn read<D: DeserializeOwned, T>(
        &mut self,
        kind: Kind,
        name: &str,
        spec: &serde_json::Value,
        check: impl FnOnce(At<D>, Around<'_>, &mut Findings<'_>) -> Option<T>,
    ) -> Option<T> {
        let mut fields = spec.clone();
        if let serde_json::Value::Object(fields) = &mut fields {
            fields.insert("name".into(), name.into());
        }
        let file: File = Path::new(kind.word()).into();
        let mut problems = Problems::default();
        let read_entry = || {
            let root = node(&fields, &mut 0);
            let mut complete = true;
            let doc: Option<At<D>> = crate::de::read(&root, &[], |place, message| {
                complete = false;
                problems.push(&file, place, message);
            });
            let mut findings = Findings { file: &file, complete, problems: &mut problems };
            // Files of secrets are where they are on each box.
            let base = Path::new("/");
            let around = Around { process: self.process, base, pools: None, services: None };
            check(doc?, around, &mut findings)
        };
        let read = read_entry();
        let words = problems.list.iter();
        let words = words.map(|problem| format!("{} `{name}`: {}", kind.word(), problem.message));
        self.troubles.extend(words);
        read.filter(|_| problems.is_empty())
    }
}

/// As a document has it, whose words are read by what they are for: manifests have numbers as words.
fn node(value: &serde_json::Value, next: &mut u32) -> Node {
    *next += 1;
    let id = *next;
    let value = match value {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Array(items) => {
            Value::List(items.iter().map(|item| node(item, next)).collect())
        }
        serde_json::Value::Object(fields) => {
            let entry = |(key, value): (&String, &serde_json::Value)| {
                (Key { text: key.as_str().into(), place: Place::default() }, node(value, next))
            };
            Value::Map(fields.iter().map(entry).collect())
        }
        serde_json::Value::String(text) => {
            Value::Scalar { text: text.as_str().into(), quoted: false }
        }
        other => Value::Scalar { text: other.to_string().into(), quoted: false },
    };
    Node { id, place: Place::default(), value }
}
