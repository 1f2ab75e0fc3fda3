//! The cloud's part: Services of a cluster get addresses, and become services.
//!
//! ```text
//! objects ──▶ Cluster ──▶ demands ──▶ settle ──▶ translate ──▶ changes ──▶ control loop
//!                            ▲           │
//!             what they had ─┘           └──▶ kept in the state file
//! ```
//!
//! [`Cloud`] is pure but for the state file; whoever has it hands it documents and objects, and its
//! changes to the control loop.

mod allocate;
mod run;
mod state;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use fairway_config::kubernetes::{
    Cluster, Finding, Kind, Labels, Name, Object, PREFIX, Pool, PortOutcome, Role, Rules, Service,
    Touched, overlaps, translate, wish,
};
use fairway_config::{ChangeSet, ClusterSource, Config, Desired, Origin, Place, ServiceKey};
use fairway_core::Mode;
use serde::{Deserialize, Serialize};

use self::allocate::{Assigned, Assignments, Demand, settle};
pub(crate) use self::run::{CloudNews, Work, run};
pub(crate) use self::state::StateFile;

/// A cluster's Services, and what they have come to.
pub(crate) struct Cloud {
    rules: Rules,
    /// Pools of the document.
    pools: Vec<Pool>,
    cluster: Cluster,
    /// Where objects of manifests are written.
    origins: BTreeMap<Name, Origin>,
    /// Where other objects come from.
    source: Origin,
    /// Addresses that the document's services have, and for whom.
    reserved: BTreeMap<IpAddr, String>,
    /// Names of the document's services.
    names: BTreeSet<Box<str>>,
    served: BTreeMap<Name, Served>,
    /// Addresses of Services that have not been seen since the start.
    remembered: BTreeMap<Name, Vec<IpAddr>>,
    state: Option<StateFile>,
}

/// A Service of ours.
#[derive(Debug, Default, PartialEq)]
struct Served {
    assigned: Option<Result<Assigned, Finding>>,
    specs: Desired,
    findings: Vec<Finding>,
    ports: Vec<PortOutcome>,
    keeps_address: bool,
}

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
    /// What needs a person.
    pub(crate) troubles: Vec<String>,
}

impl Cloud {
    /// Knows nothing yet, but what is in the state file. Read errors of it are a trouble.
    pub(crate) fn new(config: &Config, state: Option<StateFile>) -> Self {
        let place = Place::default();
        Self {
            rules: config.cluster.rules.clone(),
            pools: Vec::new(),
            cluster: Cluster::default(),
            origins: BTreeMap::new(),
            source: Origin { file: Path::new("cluster").into(), place },
            reserved: BTreeMap::new(),
            names: BTreeSet::new(),
            served: BTreeMap::new(),
            remembered: state.as_ref().map_or_else(BTreeMap::new, StateFile::read),
            state,
        }
    }

    /// Takes a document: its rules, pools and manifests, and what its services have.
    pub(crate) fn document(&mut self, config: &Config) -> ChangeSet {
        let ClusterSource { rules, manifests, pools } = &config.cluster;
        let reserved = reserved(&config.services);
        let of_service = |key: &ServiceKey| key.0.rsplit_once('/').map(|(name, _)| name.into());
        let names: BTreeSet<Box<str>> = config.services.keys().filter_map(of_service).collect();
        let mut touched = Touched::default();
        if (&self.rules, &self.reserved, &self.names) != (rules, &reserved, &names)
            || self.pools != *pools
        {
            touched.pools = true;
            touched.services.extend(self.cluster.services().map(|(name, _)| name.clone()));
        }
        (self.rules, self.reserved, self.names) = (rules.clone(), reserved, names);
        self.pools.clone_from(pools);
        self.origins.clear();
        let mut objects: BTreeMap<Kind, Vec<Object>> =
            Kind::ALL.into_iter().map(|kind| (kind, Vec::new())).collect();
        for (object, origin) in manifests.iter().flat_map(|manifests| &manifests.objects) {
            if let Object::Service(service) = object {
                self.origins.insert(service.metadata.name(), origin.clone());
            }
            objects.entry(object.kind()).or_default().push(object.clone());
        }
        for (kind, objects) in objects {
            touched.add(self.cluster.replace(kind, objects));
        }
        self.change(touched)
    }

    /// What a change of objects comes to.
    fn change(&mut self, touched: Touched) -> ChangeSet {
        let Touched { services, endpoints, nodes, pools } = touched;
        let mut anew = endpoints;
        if pools || !services.is_empty() {
            anew.extend(self.settle());
        }
        anew.extend(services);
        if nodes {
            anew.extend(self.served.keys().cloned());
        }
        let mut change = ChangeSet::default();
        for name in anew {
            let served = self.serve(&name);
            let nothing = Served::default();
            let before = self.served.get(&name).unwrap_or(&nothing);
            let after = served.as_ref().unwrap_or(&nothing);
            let more = ChangeSet::between(&before.specs, &after.specs);
            change.upserts.extend(more.upserts);
            change.removals.extend(more.removals);
            match served {
                Some(served) => _ = self.served.insert(name, served),
                None => _ = self.served.remove(&name),
            }
        }
        if let Some(state) = &mut self.state {
            let addresses = |(name, served): (&Name, &Served)| {
                let assigned = served.assigned.as_ref()?.as_ref().ok()?;
                Some((name.clone(), assigned.addresses.clone()))
            };
            state.write(self.served.iter().filter_map(addresses).collect());
        }
        change
    }

    /// Gives addresses; returns whose have changed.
    fn settle(&mut self) -> Vec<Name> {
        let pools = self.all_pools();
        let nobody = Labels::new();
        let ours = self.cluster.services().filter(|(_, service)| self.is_ours(service));
        let demands = ours.map(|(name, service)| Demand {
            meta: &service.metadata,
            namespace: self.cluster.namespace(&name.namespace).unwrap_or(&nobody),
            wish: wish(service),
            current: self.current(name, service),
        });
        let demands: Vec<Demand<'_>> = demands.collect();
        let assignments: Assignments = settle(&pools, &self.reserved, &demands);
        let mut changed = Vec::new();
        for (name, assigned) in assignments {
            let served = self.served.entry(name.clone()).or_default();
            if served.assigned.as_ref() != Some(&assigned) {
                served.assigned = Some(assigned);
                changed.push(name);
            }
        }
        changed
    }

    /// The document's pools and those among the objects; an object that cannot be read, or has
    /// addresses of an earlier pool, gives none.
    fn all_pools(&self) -> Vec<Pool> {
        let mut pools = self.pools.clone();
        for (_, pool) in self.cluster.pools() {
            let Ok(pool) = pool else { continue };
            pools.push(pool.clone());
            let twice = pools[..pools.len() - 1].iter().any(|other| other.name == pool.name);
            if twice || overlaps(&pools).iter().any(|(later, ..)| later.name == pool.name) {
                pools.pop();
            }
        }
        pools
    }

    fn is_ours(&self, service: &Service) -> bool {
        service.metadata.deletion_timestamp.is_none()
            && match self.rules.role(service) {
                Role::LoadBalancer | Role::Exposed => true,
                Role::Foreign => false,
            }
    }

    /// The addresses that a Service has: by what is known here, by its status, by the state file.
    fn current(&self, name: &Name, service: &Service) -> Vec<IpAddr> {
        if let Some(Some(Ok(assigned))) = self.served.get(name).map(|served| &served.assigned) {
            return assigned.addresses.clone();
        }
        let ingress = service.status.load_balancer.ingress.iter();
        let status: Vec<IpAddr> = ingress.filter_map(|at| at.ip.parse().ok()).collect();
        if !status.is_empty() {
            return status;
        }
        self.remembered.get(name).cloned().unwrap_or_default()
    }

    /// What a Service comes to; none when it is not ours.
    fn serve(&self, name: &Name) -> Option<Served> {
        let service = self.cluster.service(name).filter(|service| self.is_ours(service))?;
        let assigned = self.served.get(name).and_then(|served| served.assigned.clone());
        let mut served = Served { assigned, ..Served::default() };
        if self.names.contains(&*name.to_string()) {
            served.findings.push(Finding {
                reason: "NameTaken",
                message: "the document has a service of this name, which is served in its place"
                    .into(),
            });
            return Some(served);
        }
        let addresses = match &served.assigned {
            Some(Ok(assigned)) => assigned.addresses.clone(),
            Some(Err(finding)) => {
                served.findings.push(finding.clone());
                return Some(served);
            }
            None => Vec::new(),
        };
        let origin = self.origins.get(name).unwrap_or(&self.source);
        let done = translate(&self.cluster, service, &self.rules, &addresses, origin);
        served.specs = done.specs.into_iter().map(|spec| (spec.key.clone(), spec)).collect();
        served.findings.extend(done.findings);
        (served.ports, served.keeps_address) = (done.ports, done.keeps_address);
        Some(served)
    }

    /// All that is to be served.
    pub(crate) fn desired(&self) -> Desired {
        let specs = self.served.values().flat_map(|served| &served.specs);
        specs.map(|(key, spec)| (key.clone(), Arc::clone(spec))).collect()
    }

    /// What Services have that were given addresses of no choice of theirs: another box would give
    /// others.
    pub(crate) fn local_addresses(&self) -> Option<String> {
        let given = |(name, served): &(&Name, &Served)| {
            let wish = self.cluster.service(name).map(|service| wish(service));
            matches!((&served.assigned, wish), (Some(Ok(_)), Some(Ok(wish))) if wish.addresses.is_empty())
        };
        let (first, _) = self.served.iter().find(given)?;
        let count = self.served.iter().filter(given).count();
        Some(format!(
            "{count} Services name no address, like {first}: this box chooses, and another would choose \
             by itself; with several boxes, name addresses by the annotation `{PREFIX}addresses`"
        ))
    }

    /// The state, for people and programs.
    pub(crate) fn view(&self) -> CloudView {
        let counted = Kind::ALL.into_iter().map(|kind| (kind, self.cluster.count(kind)));
        let objects = counted.filter(|(_, count)| *count > 0);
        let mut troubles: Vec<String> = Vec::new();
        for (name, pool) in self.cluster.pools() {
            if let Err(why) = pool {
                troubles.push(format!("pool `{name}` is not used: {why}"));
            }
        }
        let pools = self.all_pools();
        for (name, pool) in self.cluster.pools() {
            if pool.is_ok() && !pools.iter().any(|known| *known.name == *name) {
                troubles.push(format!(
                    "pool `{name}` is not used: another has its name or some of its addresses"
                ));
            }
        }
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
            let of = |finding: &String| format!("Service {}: {finding}", view.service);
            troubles.extend(view.findings.iter().map(of));
        }
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
        let objects = objects.map(|(kind, count)| (format!("{kind:?}"), count)).collect();
        CloudView { objects, services, pools, troubles }
    }
}

/// The addresses of the document's services, and for whom: what clients dial, and where packets come
/// from.
fn reserved(services: &Desired) -> BTreeMap<IpAddr, String> {
    let mut reserved = BTreeMap::new();
    for (key, spec) in services {
        let who = format!("service `{key}` of the document");
        let dialled = spec.frontends.iter().map(fairway_core::Frontend::ip);
        let sources = spec.policy.source.addresses.iter().copied();
        let sources = sources.filter(|_| spec.policy.mode != Mode::Proxy);
        for ip in dialled.chain(sources) {
            reserved.entry(ip).or_insert_with(|| who.clone());
        }
    }
    reserved
}
