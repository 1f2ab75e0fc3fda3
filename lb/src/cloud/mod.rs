//! The cloud's part: Services of a cluster get addresses, and become services.
//!
//! ```text
//! objects ──▶ Cluster ──▶ demands ──▶ settle ──▶ translate ──▶ changes ──▶ control loop
//!                            ▲           │
//!             what they had ─┘           └──▶ kept in the state file
//! ```
//!
//! [`Cloud`] is pure but for the state file and the kernel's routes; whoever has it hands it documents and objects, its changes
//! to the control loop, and what the API server is to be told to the controller.
//!
//! Of several boxes at one cluster one leads: it gives addresses, and writes them into the Services'
//! status, which the others serve. With manifests each box is alone, and leads.

mod allocate;
mod controller;
mod lease;
mod routes;
mod run;
mod start;
mod state;
mod status;
#[cfg(test)]
mod tests;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use fairway_config::kubernetes::client::{ClusterEvent, needed};
use fairway_config::kubernetes::{
    Cluster, Finding, Kind, Labels, Name, Object, PREFIX, Pool, PortOutcome, Role, Rules, Service,
    Touched, Translation, Wish, overlaps, translate, wish,
};
use fairway_config::{
    ApiServer, ChangeSet, ClusterSource, Config, Desired, Origin, Place, ServiceKey,
};
use fairway_core::{Frontend, Mode};

use self::allocate::{Assigned, Assignments, Demand, Reserved, settle};
pub(crate) use self::routes::Routes;
pub(crate) use self::run::{CloudNews, Work};
pub(crate) use self::start::{Begun, start};
pub(crate) use self::state::StateFile;
use self::status::{Todo, is_held};
pub(crate) use self::view::{CloudServiceView, CloudView, PoolView};

/// Pods are out of reach.
const NO_ROUTE: &str = "NoRouteToPods";

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
    reserved: Reserved,
    /// Names of the document's services.
    names: BTreeSet<Box<str>>,
    served: BTreeMap<Name, Served>,
    /// Addresses of Services that have not been seen since the start.
    remembered: BTreeMap<Name, Vec<IpAddr>>,
    state: Option<StateFile>,
    api: Option<ApiServer>,
    /// Kinds that the API server has not told of yet; until then nothing changes.
    awaited: BTreeSet<(Kind, Option<String>)>,
    /// What has changed meanwhile.
    held: Touched,
    /// Whether there is news of the cluster to be written down.
    unsaved: bool,
    /// Whether it began with what was known before the start.
    recalled: bool,
    /// Why kinds cannot be watched.
    unwatched: BTreeMap<Kind, String>,
    leads: bool,
    /// The way to Pods; none when nobody asks.
    routes: Option<Routes>,
    /// Numbers of objects when the state was shown last; none when something else is news.
    shown: Option<[usize; Kind::ALL.len()]>,
}

/// What follows from a change.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) change: ChangeSet,
    /// What the API server is to be told.
    pub(crate) todos: Vec<Todo>,
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
            reserved: Reserved::default(),
            names: BTreeSet::new(),
            served: BTreeMap::new(),
            remembered: state.as_ref().map_or_else(BTreeMap::new, StateFile::read),
            state,
            api: config.process.api.clone(),
            awaited: config.process.api.as_ref().map_or_else(BTreeSet::new, needed),
            held: Touched::default(),
            unsaved: false,
            recalled: false,
            unwatched: BTreeMap::new(),
            leads: config.process.api.is_none(),
            routes: None,
            shown: None,
        }
    }

    /// Begins with a cluster as it was known before the start.
    pub(crate) fn recall(&mut self, mut cluster: Cluster) {
        // What nobody watches any more would stay for ever.
        if let Some(api) = &self.api {
            cluster.keep(&api.namespaces);
            if !api.metallb_pools {
                cluster.replace(Kind::MetallbPool, None, Vec::new());
            }
        }
        let services = cluster.services().map(|(name, _)| name.clone()).collect();
        self.held = Touched { services, pools: true, ..Touched::default() };
        self.cluster = cluster;
        self.recalled = true;
    }

    /// Has the way to Pods looked at from now on.
    pub(crate) fn look_at_routes(&mut self, routes: Routes) {
        self.routes = Some(routes);
    }

    /// Looks again at the way to Pods to which there was none.
    pub(crate) fn look_again(&mut self) -> Outcome {
        let astray = |served: &Served| served.findings.iter().any(|f| f.reason == NO_ROUTE);
        let found = self.served.iter().filter(|(_, served)| astray(served));
        let endpoints: BTreeSet<Name> = found.map(|(name, _)| name.clone()).collect();
        match endpoints.is_empty() || !self.awaited.is_empty() {
            true => Outcome::default(),
            false => self.change(Touched { endpoints, ..Touched::default() }),
        }
    }

    /// Whether the cluster is known as a whole, and has changed since it was written down.
    pub(crate) fn is_unsaved(&self) -> bool {
        self.unsaved && self.awaited.is_empty()
    }

    /// The cluster, to be known after the next start.
    pub(crate) fn saved(&mut self) -> &Cluster {
        self.unsaved = false;
        &self.cluster
    }

    /// Takes a document: its rules, pools and manifests, and what its services have.
    pub(crate) fn document(&mut self, config: &Config) -> Outcome {
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
        if self.api.is_some() {
            touched.add(std::mem::take(&mut self.held));
            if !self.awaited.is_empty() && !self.recalled {
                self.held = touched;
                return Outcome::default();
            }
            return self.change(touched);
        }
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
            touched.add(self.cluster.replace(kind, None, objects));
        }
        self.change(touched)
    }

    /// Takes what the API server has told.
    pub(crate) fn events(&mut self, events: impl Iterator<Item = ClusterEvent>) -> Outcome {
        let mut touched = Touched::default();
        for event in events {
            touched.add(match event {
                ClusterEvent::Apply(object) => self.cluster.apply(object),
                ClusterEvent::Delete(kind, name) => self.cluster.delete(kind, &name),
                ClusterEvent::All(kind, namespace, objects) => {
                    let touched = self.cluster.replace(kind, namespace.as_deref(), objects);
                    self.awaited.remove(&(kind, namespace));
                    touched
                }
                ClusterEvent::Trouble(kind, Some(why)) => {
                    self.shown = None;
                    self.unwatched.insert(kind, why);
                    Touched::default()
                }
                ClusterEvent::Trouble(kind, None) => {
                    self.shown = None;
                    self.unwatched.remove(&kind);
                    Touched::default()
                }
            });
        }
        self.unsaved |= !touched.is_empty();
        self.held.add(touched);
        if !self.awaited.is_empty() {
            return Outcome::default();
        }
        let touched = std::mem::take(&mut self.held);
        self.change(touched)
    }

    /// Leads from now on, or no longer.
    pub(crate) fn lead(&mut self, leads: bool) -> Outcome {
        self.leads = leads;
        let services = self.cluster.services().map(|(name, _)| name.clone()).collect();
        let touched = Touched { services, pools: true, ..Touched::default() };
        if !self.awaited.is_empty() {
            self.held.add(touched);
            return Outcome::default();
        }
        self.change(touched)
    }

    /// What a change of objects comes to.
    fn change(&mut self, touched: Touched) -> Outcome {
        let Touched { services, endpoints, nodes, pools } = touched;
        let mut anew = endpoints;
        let settles = pools || !services.is_empty();
        if settles {
            anew.extend(self.settle());
            self.shown = None;
        }
        anew.extend(services);
        if nodes {
            anew.extend(self.served.keys().cloned());
        }
        // Who has an external address depends on who else asks for it.
        if self.rules.external_ips && (pools || !anew.is_empty()) {
            let asks = |service: &Service| !service.spec.external_ips.is_empty();
            let asking = self.cluster.services().filter(|(_, service)| asks(service));
            anew.extend(asking.map(|(name, _)| name.clone()));
        }
        let Outcome { mut change, mut todos } = Outcome::default();
        for name in anew {
            let served = self.serve(&name);
            let nothing = Served::default();
            let before = self.served.get(&name).unwrap_or(&nothing);
            let after = served.as_ref().unwrap_or(&nothing);
            let more = ChangeSet::between(&before.specs, &after.specs);
            change.upserts.extend(more.upserts);
            change.removals.extend(more.removals);
            if (&before.findings, &before.assigned) != (&after.findings, &after.assigned) {
                self.shown = None;
            }
            match served {
                Some(served) => _ = self.served.insert(name.clone(), served),
                None => _ = self.served.remove(&name),
            }
            if self.api.is_some() && self.leads && self.awaited.is_empty() {
                todos.extend(self.todo(&name));
            }
        }
        if let Some(state) = self.state.as_mut().filter(|_| settles) {
            let addresses = |(name, served): (&Name, &Served)| {
                let assigned = served.assigned.as_ref()?.as_ref().ok()?;
                Some((name.clone(), assigned.addresses.clone()))
            };
            state.write(self.served.iter().filter_map(addresses).collect());
        }
        Outcome { change, todos }
    }

    /// What the API server is to be told of a Service.
    fn todo(&self, name: &Name) -> Option<Todo> {
        let service = self.cluster.service(name)?;
        let served = self.served.get(name).filter(|_| self.is_load_balancer(service));
        status::todo(service, served, &self.rules)
    }

    /// Gives addresses; returns whose have changed.
    fn settle(&mut self) -> Vec<Name> {
        let (pools, _) = self.all_pools();
        let nobody = Labels::new();
        let ours = self.cluster.services().filter(|(_, service)| self.is_ours(service));
        let demands = ours.map(|(name, service)| Demand {
            meta: &service.metadata,
            namespace: self.cluster.namespace(&name.namespace).unwrap_or(&nobody),
            wish: self.wish(service),
            current: self.current(name, service),
            is_exposed: self.rules.role(service) == Role::Exposed,
        });
        let demands: Vec<Demand<'_>> = demands.collect();
        let assignments: Assignments = match self.leads {
            true => settle(&pools, &self.reserved, &demands),
            false => {
                let followed = |demand| followed(&pools, &self.reserved, demand);
                demands.iter().map(followed).collect()
            }
        };
        let mut changed = Vec::new();
        for (name, assigned) in assignments {
            let served = self.served.entry(name.clone()).or_default();
            if assigned.is_ok() {
                self.remembered.remove(&name);
            }
            if served.assigned.as_ref() != Some(&assigned) {
                served.assigned = Some(assigned);
                changed.push(name);
            }
        }
        changed
    }

    /// The document's pools and those among the objects, and why others are not used.
    fn all_pools(&self) -> (Vec<Pool>, Vec<String>) {
        let (mut pools, mut unused) = (self.pools.clone(), Vec::new());
        for (name, pool) in self.cluster.pools() {
            let why = match pool {
                Err(why) => why.clone(),
                Ok(pool) if pools.iter().any(|other| other.name == pool.name) => {
                    "another has its name".into()
                }
                Ok(pool) => {
                    pools.push(pool.clone());
                    let Some((_, earlier, range)) = overlaps(&pools).pop() else { continue };
                    let why = format!("{range} is in pool `{}` already", earlier.name);
                    pools.pop();
                    why
                }
            };
            unused.push(format!("pool `{name}` is not used: {why}"));
        }
        (pools, unused)
    }

    /// What a Service asks for. One without a status must name its addresses: nobody could be told of
    /// others.
    fn wish(&self, service: &Service) -> Result<Wish, Finding> {
        let wish = wish(service)?;
        if self.rules.role(service) == Role::Exposed && wish.addresses.is_empty() {
            let message =
                format!("`{PREFIX}expose` needs an address: name it by `{PREFIX}addresses`");
            return Err(Finding { reason: "AddressPending", message });
        }
        Ok(wish)
    }

    fn is_load_balancer(&self, service: &Service) -> bool {
        self.is_ours(service) && self.rules.role(service) == Role::LoadBalancer
    }

    fn is_ours(&self, service: &Service) -> bool {
        service.metadata.deletion_timestamp.is_none() && self.rules.role(service) != Role::Foreign
    }

    /// The addresses that a Service has: by what is known here, by its status, by the state file.
    fn current(&self, name: &Name, service: &Service) -> Vec<IpAddr> {
        if self.leads
            && let Some(Some(Ok(assigned))) = self.served.get(name).map(|served| &served.assigned)
        {
            return assigned.addresses.clone();
        }
        let ingress = service.status.load_balancer.ingress.iter();
        let status: Vec<IpAddr> = ingress.filter_map(|at| at.ip.parse().ok()).collect();
        if !status.is_empty() || !self.leads {
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
        // Whoever is to clean up after it has said so first.
        if self.api.is_some() && self.is_load_balancer(service) && !is_held(service) {
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
        let mut done = translate(&self.cluster, service, &self.rules, &addresses, origin);
        if !service.spec.external_ips.is_empty() {
            self.leave_to_others(name, &addresses, &mut done);
        }
        if let Some(why) = done.pod.and_then(|pod| self.routes.as_ref()?.trouble(pod)) {
            done.findings.push(Finding { reason: NO_ROUTE, message: why });
        }
        served.specs = done.specs.into_iter().map(|spec| (spec.key.clone(), spec)).collect();
        served.findings.extend(done.findings);
        (served.ports, served.keeps_address) = (done.ports, done.keeps_address);
        Some(served)
    }

    /// Takes out of a Service's external addresses those that others have: by the document, by a pool,
    /// or because their names come first.
    fn leave_to_others(&self, name: &Name, own: &[IpAddr], done: &mut Translation) {
        let who = |frontend: &Frontend| -> Option<String> {
            let ip = frontend.ip();
            if own.contains(&ip) {
                return None;
            }
            if let Some(who) = self.reserved.holder(ip) {
                return Some(who.into());
            }
            let has = |(other, served): &(&Name, &Served)| {
                let assigned = served.assigned.as_ref().and_then(|assigned| assigned.as_ref().ok());
                let by_pool = assigned.is_some_and(|assigned| assigned.addresses.contains(&ip));
                let mut frontends = served.specs.values().flat_map(|spec| &spec.frontends);
                *other != name && (by_pool || (*other < name && frontends.any(|f| f == frontend)))
            };
            let (other, _) = self.served.iter().find(has)?;
            Some(format!("Service `{other}`"))
        };
        let mut taken = Vec::new();
        for spec in &mut done.specs {
            Arc::make_mut(spec).frontends.retain(|frontend| match who(frontend) {
                Some(who) => {
                    taken.push(format!("`externalIPs`: {frontend} is taken by {who}"));
                    false
                }
                None => true,
            });
        }
        done.specs.retain(|spec| !spec.frontends.is_empty());
        let finding = |message| Finding { reason: "AddressTaken", message };
        done.findings.extend(taken.into_iter().map(finding));
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
}

/// What a box that does not lead serves a Service at: what the leader has written, or what the Service
/// names when it has no status.
fn followed(
    pools: &[Pool],
    reserved: &Reserved,
    demand: &Demand<'_>,
) -> (Name, Result<Assigned, Finding>) {
    let refuse = |reason, message: &str| Err(Finding { reason, message: message.into() });
    let addresses = match &demand.wish {
        Ok(wish) if demand.is_exposed => &wish.addresses,
        Err(finding) if demand.is_exposed => return (demand.meta.name(), Err(finding.clone())),
        _ => &demand.current,
    };
    let pool = pools.iter().find(|pool| addresses.iter().any(|ip| pool.offers(*ip)));
    let taken =
        addresses.iter().find_map(|ip| Some(format!("{ip} is taken by {}", reserved.holder(*ip)?)));
    let assigned = match (addresses.as_slice(), pool, taken) {
        ([], ..) => refuse("AddressPending", "the box that leads has given it no address yet"),
        (_, _, Some(taken)) => refuse("AddressUnavailable", &taken),
        (_, None, _) => refuse("AddressUnavailable", "no pool has the addresses that it was given"),
        (addresses, Some(pool), None) => {
            Ok(Assigned { addresses: addresses.to_vec(), pool: pool.name.clone() })
        }
    };
    (demand.meta.name(), assigned)
}

/// The addresses of the document's services, and for whom: what clients dial, and where packets come
/// from.
fn reserved(services: &Desired) -> Reserved {
    let mut reserved = Reserved::default();
    for (key, spec) in services {
        let who = format!("service `{key}` of the document");
        spec.frontends.iter().for_each(|frontend| reserved.add(frontend.net, &who));
        let sources = spec.policy.source.addresses.iter().copied();
        let sources = sources.filter(|_| spec.policy.mode != Mode::Proxy);
        sources.for_each(|ip| reserved.add(ip.into(), &who));
    }
    reserved
}
