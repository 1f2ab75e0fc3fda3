//! The state of a cluster and of its Services, for people and programs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fairway_config::kubernetes::{Kind, Name, Pool};
use serde::{Deserialize, Serialize};

use super::{Cloud, Served, StateFile};

/// A Service of ours, for people and programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CloudServiceView {
    /// Its namespace and name.
    pub(crate) service: String,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) pool: Option<Box<str>>,
    /// What needs its owner.
    pub(crate) findings: Vec<String>,
}

/// A pool, for people and programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PoolView {
    pub(crate) name: Box<str>,
    /// Addresses that Services have.
    pub(crate) assigned: usize,
    /// Addresses of it; with those of IPv6, the number may be as large as text can hold.
    pub(crate) size: String,
}

/// The state of a cluster, for people and programs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CloudView {
    /// Number of objects by kind.
    pub(crate) objects: BTreeMap<String, usize>,
    pub(crate) services: Vec<CloudServiceView>,
    pub(crate) pools: Vec<PoolView>,
    /// Kinds of objects that cannot be watched now.
    #[serde(default)]
    pub(crate) unwatched: Vec<String>,
    /// What needs a person.
    pub(crate) troubles: Vec<String>,
}

impl Cloud {
    /// The state, if it is news. Costs all Services then.
    pub(crate) fn news(&mut self) -> Option<CloudView> {
        let counts = Kind::ALL.map(|kind| self.cluster.count(kind));
        let is_news = self.shown != Some(counts);
        self.shown = Some(counts);
        is_news.then(|| self.view())
    }

    /// The state, for people and programs.
    pub(crate) fn view(&self) -> CloudView {
        let counted = Kind::ALL.into_iter().map(|kind| (kind, self.cluster.count(kind)));
        let objects = counted.filter(|(_, count)| *count > 0);
        let (pools, mut troubles) = self.all_pools();
        let view = |(name, served): (&Name, &Served)| {
            let assigned = served.assigned.as_ref().and_then(|assigned| assigned.as_ref().ok());
            CloudServiceView {
                service: name.to_string(),
                addresses: assigned.map_or_else(Vec::new, |assigned| assigned.addresses.clone()),
                pool: assigned.map(|assigned| assigned.pool.clone()),
                findings: served.findings.iter().map(|f| f.message.clone()).collect(),
            }
        };
        let services: Vec<_> = self.served.iter().map(view).collect();
        for view in &services {
            let of = |finding: &String| match view.service.split_once("/gateway/") {
                Some((namespace, name)) => format!("Gateway {namespace}/{name}: {finding}"),
                None => format!("Service {}: {finding}", view.service),
            };
            troubles.extend(view.findings.iter().map(of));
        }
        for (kind, why) in &self.unwatched {
            troubles.push(format!(
                "{} objects cannot be watched, what is known of them is served: {why}",
                kind.word()
            ));
        }
        troubles.extend(self.gateway_troubles());
        troubles.extend(self.announce_troubles.iter().cloned());
        troubles.extend(self.state.as_ref().and_then(StateFile::trouble));
        let pool = |pool: &Pool| {
            let has = |view: &&CloudServiceView| view.pool.as_ref() == Some(&pool.name);
            let addresses = services.iter().filter(has).flat_map(|view| &view.addresses);
            let assigned: BTreeSet<_> = addresses.collect();
            let size =
                pool.ranges.iter().fold(0_u128, |sum, range| sum.saturating_add(range.count()));
            PoolView { name: pool.name.clone(), assigned: assigned.len(), size: size.to_string() }
        };
        let pools = pools.iter().map(pool).collect();
        let objects = objects.map(|(kind, count)| (kind.word().to_owned(), count)).collect();
        let unwatched = self.unwatched.keys().map(|kind| kind.word().to_owned()).collect();
        CloudView { objects, services, pools, unwatched, troubles }
    }
}
