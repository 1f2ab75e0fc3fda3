//! The routes of a session: those that are to be told, and those that were.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fairway_core::IpPrefix;
use serde::{Deserialize, Serialize};

use super::message::{Attributes, Manner, update, withdrawal};

/// Prefixes of a message: with their attributes they fit into 4096 octets.
const AT_ONCE: usize = 150;

/// Prefixes, and what each is told with.
pub type Wanted = BTreeMap<IpPrefix, Arc<Attributes>>;

/// What a peer is told, in the order in which it is: first what is gone, then what is new, in the end that
/// this was all.
#[derive(Debug, Default)]
pub struct Routes {
    wanted: Wanted,
    /// What the peer has.
    told: Wanted,
    /// Where the two may differ.
    changed: BTreeSet<IpPrefix>,
    /// What the peer has and is to be told all the same.
    again: BTreeSet<IpPrefix>,
    /// Families whose end is to be told.
    ends: BTreeSet<bool>,
}

/// What a peer has been told, for another process to go on with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Told {
    /// Prefixes by what they were told with.
    routes: Vec<(Attributes, Vec<String>)>,
    /// All is to be told once more.
    again: bool,
    /// Families (IPv4?) whose end is to be told.
    ends: BTreeSet<bool>,
}

impl Routes {
    /// What the peer has.
    #[must_use]
    pub fn keep(&self) -> Told {
        let mut routes: BTreeMap<&Attributes, Vec<String>> = BTreeMap::new();
        for (prefix, attributes) in &self.told {
            routes.entry(attributes).or_default().push(prefix.to_string());
        }
        let routes = routes.into_iter().map(|(attributes, nets)| (attributes.clone(), nets));
        Told { routes: routes.collect(), again: !self.again.is_empty(), ends: self.ends.clone() }
    }

    /// A peer that has this: what is wanted otherwise is told.
    #[must_use]
    pub fn go_on(told: Told) -> Self {
        let mut routes = Self { ends: told.ends, ..Self::default() };
        for (attributes, prefixes) in told.routes {
            let attributes = Arc::new(attributes);
            let prefixes = prefixes.iter().filter_map(|prefix| prefix.parse().ok());
            routes.told.extend(prefixes.map(|prefix| (prefix, Arc::clone(&attributes))));
        }
        routes.wanted = routes.told.clone();
        if told.again {
            routes.tell_again();
        }
        routes
    }

    /// What is to be told from now on.
    pub fn want(&mut self, wanted: Wanted) {
        let all = self.wanted.keys().chain(wanted.keys());
        let differs = |prefix: &&IpPrefix| self.wanted.get(*prefix) != wanted.get(*prefix);
        let differing: Vec<IpPrefix> = all.filter(differs).copied().collect();
        self.changed.extend(differing);
        self.wanted = wanted;
    }

    /// A peer that has nothing yet, and takes these families: all is to be told.
    pub fn begin(&mut self, ipv4: bool, ipv6: bool) {
        self.told.clear();
        self.again.clear();
        self.changed = self.wanted.keys().copied().collect();
        self.ends = [(ipv4, true), (ipv6, false)]
            .into_iter()
            .filter_map(|(takes, family)| takes.then_some(family))
            .collect();
    }

    /// The peer wants all once more.
    pub fn tell_again(&mut self) {
        self.again = self.told.keys().copied().collect();
        self.changed.extend(self.wanted.keys());
    }

    /// Prefixes that are to be told.
    #[must_use]
    pub fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    /// Prefixes that the peer has been told.
    #[must_use]
    pub fn told(&self) -> &Wanted {
        &self.told
    }

    /// Whether the peer has what it is to have.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.changed.is_empty()
    }

    /// The next message, if there is anything to tell; `takes` says which families (of IPv4?) the peer
    /// takes. What it does not take, or what has no next hop, is passed over.
    pub fn next(&mut self, manner: &Manner, takes: impl Fn(bool) -> bool) -> Option<Vec<u8>> {
        let mut gone: Vec<IpPrefix> = Vec::new();
        for prefix in &self.changed {
            let same_family = gone.first().is_none_or(|one| one.is_ipv4() == prefix.is_ipv4());
            if same_family && self.told.contains_key(prefix) && !self.wanted.contains_key(prefix) {
                gone.push(*prefix);
                if gone.len() == AT_ONCE {
                    break;
                }
            }
        }
        if let Some(one) = gone.first() {
            for prefix in &gone {
                self.told.remove(prefix);
                self.changed.remove(prefix);
            }
            return Some(withdrawal(one.is_ipv4(), &gone));
        }
        while let Some(first) = self.changed.first().copied() {
            let family = first.is_ipv4();
            let Some(attributes) = self.wanted.get(&first).cloned() else {
                self.changed.remove(&first);
                continue;
            };
            let alike = |prefix: &&IpPrefix| {
                prefix.is_ipv4() == family && self.wanted.get(*prefix) == Some(&attributes)
            };
            let group: Vec<IpPrefix> =
                self.changed.iter().filter(alike).take(AT_ONCE).copied().collect();
            let is_new = |prefix: &IpPrefix| {
                self.told.get(prefix) != Some(&attributes) || self.again.contains(prefix)
            };
            let (new, same): (Vec<_>, Vec<_>) = group.into_iter().partition(is_new);
            for prefix in new.iter().chain(&same) {
                self.changed.remove(prefix);
                self.again.remove(prefix);
            }
            if new.is_empty() || !takes(family) {
                continue;
            }
            let Some(octets) = update(&new, &attributes, manner) else { continue };
            self.told.extend(new.into_iter().map(|prefix| (prefix, Arc::clone(&attributes))));
            return Some(octets);
        }
        self.ends.pop_last().map(|family| withdrawal(family, &[]))
    }
}
