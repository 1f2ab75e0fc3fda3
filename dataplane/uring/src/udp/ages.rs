//! Who goes when the table is full: the session that has been idle longest, of the service that
//! holds the most. A flood of one service therefore costs its own sessions and no other's.
//!
//! A list for each service, oldest first, linked through the sessions' indices: constant time a
//! datagram, a search tree of the services' sizes at a session's begin and end.

use std::collections::{BTreeSet, HashMap};

use ahash::RandomState;
use fairway_core::ServiceId;

/// No session.
const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Link {
    list: u32,
    older: u32,
    newer: u32,
}

#[derive(Debug, Clone, Copy)]
struct List {
    service: ServiceId,
    oldest: u32,
    newest: u32,
    len: u32,
}

/// Sessions by service and age.
#[derive(Debug, Default)]
pub(crate) struct Ages {
    links: Vec<Option<Link>>,
    lists: Vec<List>,
    free: Vec<u32>,
    by_service: HashMap<ServiceId, u32, RandomState>,
    sizes: BTreeSet<(u32, u32)>,
}

impl Ages {
    /// Adds session `index` of `service` as its youngest.
    pub(crate) fn insert(&mut self, index: u32, service: ServiceId) {
        let list = self.list_of(service);
        if self.links.len() <= index as usize {
            self.links.resize(index as usize + 1, None);
        }
        self.links[index as usize] = Some(Link { list, older: NONE, newer: NONE });
        self.append(index);
        self.resize(list, 1);
    }

    /// Session `index` had a datagram: it is the youngest of its service.
    pub(crate) fn touch(&mut self, index: u32) {
        if self.links.get(index as usize).is_some_and(Option::is_some) {
            self.unlink(index);
            self.append(index);
        }
    }

    /// Takes session `index` out.
    pub(crate) fn remove(&mut self, index: u32) {
        if let Some(Link { list, .. }) = self.links.get(index as usize).copied().flatten() {
            self.unlink(index);
            self.links[index as usize] = None;
            self.resize(list, -1);
        }
    }

    /// The session to give up for another.
    pub(crate) fn victim(&self) -> Option<u32> {
        let (_, list) = self.sizes.last()?;
        Some(self.lists[*list as usize].oldest)
    }

    fn list_of(&mut self, service: ServiceId) -> u32 {
        if let Some(list) = self.by_service.get(&service) {
            return *list;
        }
        let empty = List { service, oldest: NONE, newest: NONE, len: 0 };
        let list = match self.free.pop() {
            Some(list) => {
                self.lists[list as usize] = empty;
                list
            }
            None => {
                self.lists.push(empty);
                self.lists.len() as u32 - 1
            }
        };
        self.by_service.insert(service, list);
        self.sizes.insert((0, list));
        list
    }

    fn resize(&mut self, list: u32, by: i32) {
        let entry = &mut self.lists[list as usize];
        self.sizes.remove(&(entry.len, list));
        entry.len = entry.len.saturating_add_signed(by);
        if entry.len > 0 {
            self.sizes.insert((entry.len, list));
        } else {
            self.by_service.remove(&entry.service);
            self.free.push(list);
        }
    }

    fn link(&mut self, index: u32) -> Option<&mut Link> {
        self.links.get_mut(index as usize)?.as_mut()
    }

    fn append(&mut self, index: u32) {
        let Some(list) = self.link(index).map(|link| link.list) else { return };
        let newest = std::mem::replace(&mut self.lists[list as usize].newest, index);
        match self.link(newest) {
            Some(link) => link.newer = index,
            None => self.lists[list as usize].oldest = index,
        }
        if let Some(link) = self.link(index) {
            (link.older, link.newer) = (newest, NONE);
        }
    }

    fn unlink(&mut self, index: u32) {
        let Some(Link { list, older, newer }) = self.link(index).copied() else { return };
        match self.link(older) {
            Some(link) => link.newer = newer,
            None => self.lists[list as usize].oldest = newer,
        }
        match self.link(newer) {
            Some(link) => link.older = older,
            None => self.lists[list as usize].newest = older,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_largest_service_gives_its_oldest() {
        let mut ages = Ages::default();
        assert_eq!(ages.victim(), None);
        for (index, service) in [(0, 1), (1, 1), (2, 2), (3, 1)] {
            ages.insert(index, ServiceId(service));
        }
        assert_eq!(ages.victim(), Some(0));
        ages.touch(0);
        assert_eq!(ages.victim(), Some(1));
        for index in [1, 3, 0] {
            ages.remove(index);
        }
        assert_eq!(ages.victim(), Some(2), "the only one left");
        ages.remove(2);
        ages.remove(2);
        assert_eq!(ages.victim(), None);
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Insert(u32, u32),
        Touch(u32),
        Remove(u32),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0u32..20, 0u32..4).prop_map(|(index, service)| Step::Insert(index, service)),
            (0u32..20).prop_map(Step::Touch),
            (0u32..20).prop_map(Step::Remove),
        ];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        #[test]
        fn as_a_plain_list_would(steps in steps()) {
            let mut ages = Ages::default();
            // Sessions with their services, oldest first.
            let mut plain: Vec<(u32, u32)> = Vec::new();
            for step in steps {
                match step {
                    Step::Insert(index, service) if plain.iter().all(|(i, _)| *i != index) => {
                        ages.insert(index, ServiceId(service));
                        plain.push((index, service));
                    }
                    Step::Insert(..) => {}
                    Step::Touch(index) => {
                        ages.touch(index);
                        if let Some(place) = plain.iter().position(|(i, _)| *i == index) {
                            let session = plain.remove(place);
                            plain.push(session);
                        }
                    }
                    Step::Remove(index) => {
                        ages.remove(index);
                        plain.retain(|(i, _)| *i != index);
                    }
                }
                let size = |service: u32| plain.iter().filter(|(_, s)| *s == service).count();
                let largest = plain.iter().map(|(_, service)| size(*service)).max();
                match ages.victim() {
                    None => prop_assert!(plain.is_empty()),
                    Some(victim) => {
                        let service = plain.iter().find(|(i, _)| *i == victim).unwrap().1;
                        prop_assert_eq!(Some(size(service)), largest);
                        let oldest = plain.iter().find(|(_, s)| *s == service).unwrap().0;
                        prop_assert_eq!(victim, oldest);
                    }
                }
            }
        }
    }
}
