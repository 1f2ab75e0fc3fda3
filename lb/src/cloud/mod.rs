//! The cloud's part: Services of a cluster get addresses, and become services.
//!
//! ```text
//! objects ──▶ Cluster ──▶ demands ──▶ settle ──▶ translate ──▶ changes ──▶ control loop
//!                            ▲           │
//!             what they had ─┘           └──▶ kept in the state file
//! ```
//!
//! [`Cloud`] is pure but for the state file and the kernel's routes; whoever has it hands it documents and
//! objects, its changes to the control loop, and what the API server is to be told to the controller.
//!
//! Of several boxes at one cluster one leads: it gives addresses, and writes them into the Services'
//! status, which the others serve. With manifests each box is alone, and leads.

mod allocate;
mod controller;
mod gateways;
mod lease;
mod routes;
mod run;
mod said;
mod save;
mod serve;
mod shares;
mod start;
mod state;
mod status;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod told_tests;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use fairway_config::announce::Announce;
use fairway_config::kubernetes::client::{ClusterEvent, needed};
use fairway_config::kubernetes::{
    AddressPool, Attachments, Cluster, Draft, Finding, Kind, Name, Object, Pool, PortOutcome,
    RouteKind, Rules, Service, Touched, overlaps,
};
use fairway_config::{
    ApiServer, ChangeSet, ClusterSource, Config, Desired, Origin, Place, Process, ServiceKey,
};
use fairway_core::Mode;

use self::allocate::{Assigned, Reserved};
pub(crate) use self::routes::Routes;
pub(crate) use self::run::{CloudNews, Work};
pub(crate) use self::start::{Begun, identity, start};
pub(crate) use self::state::StateFile;
use self::status::Todo;
pub(crate) use self::view::{CloudServiceView, CloudView, PoolView};
use crate::announce::Said;

/// Pods are out of reach.
const NO_ROUTE: &str = "NoRouteToPods";

/// A cluster's Services, and what they have come to.
pub(crate) struct Cloud {
    rules: Arc<Rules>,
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
    names: BTreeSet<Name>,
    served: BTreeMap<Name, Served>,
    /// What the Gateway API's objects come to.
    attachments: Attachments,
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
    /// What the document says of announcements.
    announce: Announce,
    /// What applies to the process, which announcements go by as well.
    process: Process,
    /// What is wrong with objects that say how addresses are announced.
    announce_troubles: Vec<String>,
    /// What announcements were said to go by last, and whether that may be another thing now.
    said: Said,
    said_stale: bool,
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
#[derive(Debug, Default, Clone)]
struct Served {
    /// What it comes to but for its endpoints, if it was served.
    draft: Option<Arc<Draft>>,
    assigned: Option<Result<Assigned, Finding>>,
    specs: Desired,
    findings: Vec<Finding>,
    ports: Vec<PortOutcome>,
    keeps_address: bool,
}

impl Served {
    /// Whether its owner is told the same.
    fn is_told_as(&self, other: &Self) -> bool {
        (&self.assigned, &self.findings, &self.ports, self.keeps_address)
            == (&other.assigned, &other.findings, &other.ports, other.keeps_address)
    }

    /// Who serves it.
    fn hosts(&self) -> BTreeSet<IpAddr> {
        let backends = self.specs.values().flat_map(|spec| &spec.backends);
        backends.map(|backend| backend.addr.ip()).collect()
    }
}

impl Cloud {
    /// Knows nothing yet, but what is in the state file. Read errors of it are a trouble.
    pub(crate) fn new(config: &Config, state: Option<StateFile>) -> Self {
        let place = Place::default();
        Self {
            rules: Arc::clone(&config.cluster.rules),
            pools: Vec::new(),
            cluster: Cluster::default(),
            origins: BTreeMap::new(),
            source: Origin { file: Path::new("cluster").into(), place },
            reserved: Reserved::default(),
            names: BTreeSet::new(),
            served: BTreeMap::new(),
            attachments: Attachments::default(),
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
            announce: Announce::default(),
            process: config.process.clone(),
            announce_troubles: Vec::new(),
            said: Said::default(),
            said_stale: true,
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
        let gateways = everything();
        self.held = Touched { services, pools: true, gateways, ..Touched::default() };
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
        // Those of another form than a Service's take nobody's name.
        let of_service = |key: &ServiceKey| {
            let (namespace, name) = key.0.rsplit_once('/')?.0.split_once('/')?;
            Some(Name::new(namespace, name))
        };
        let names: BTreeSet<Name> = config.services.keys().filter_map(of_service).collect();
        let mut touched = Touched::default();
        if (&self.rules, &self.reserved, &self.names) != (rules, &reserved, &names)
            || self.pools != *pools
        {
            touched.pools = true;
            touched.gateways.extend(everything());
            touched.services.extend(self.cluster.services().map(|(name, _)| name.clone()));
            (self.reserved, self.names) = (reserved, names);
            self.pools.clone_from(pools);
        }
        // What was read by rules that are the same is read by these.
        if self.rules != *rules {
            self.rules = Arc::clone(rules);
        }
        self.announce.clone_from(&config.announce);
        self.process.clone_from(&config.process);
        self.said_stale = true;
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
                    if self.unwatched.get(&kind) != Some(&why) {
                        self.shown = None;
                        self.unwatched.insert(kind, why);
                    }
                    Touched::default()
                }
                // Services do not wait for Gateways that a cluster does not let us see.
                ClusterEvent::Denied(kind, namespace) => {
                    if kind.is_of_gateways() || kind.is_of_announcements() {
                        self.awaited.remove(&(kind, namespace));
                    }
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
        let gateways = everything();
        let touched = Touched { services, pools: true, gateways, ..Touched::default() };
        if !self.awaited.is_empty() {
            self.held.add(touched);
            return Outcome::default();
        }
        self.change(touched)
    }

    /// All that would be served by another document. Costs all that is known, once more.
    pub(crate) fn would_serve(&self, config: &Config) -> Desired {
        let mut other = Self {
            rules: Arc::clone(&self.rules),
            pools: self.pools.clone(),
            cluster: self.cluster.clone(),
            origins: self.origins.clone(),
            source: self.source.clone(),
            reserved: self.reserved.clone(),
            names: self.names.clone(),
            served: self.served.clone(),
            attachments: Attachments::of(&self.cluster, &self.rules),
            remembered: self.remembered.clone(),
            api: self.api.clone(),
            awaited: self.awaited.clone(),
            held: Touched::default(),
            recalled: self.recalled,
            leads: self.leads,
            // Nothing is written, looked up, or shown.
            state: None,
            routes: None,
            unwatched: BTreeMap::new(),
            unsaved: false,
            announce: Announce::default(),
            process: config.process.clone(),
            announce_troubles: Vec::new(),
            said: Said::default(),
            said_stale: true,
            shown: None,
        };
        other.document(config);
        other.desired()
    }

    /// What a change of objects comes to.
    fn change(&mut self, touched: Touched) -> Outcome {
        let Touched { services, endpoints, nodes, pools, announcements, gateways, echoes } =
            touched;
        self.said_stale |= nodes || pools || announcements;
        let Outcome { mut change, mut todos } = Outcome::default();
        let mut anew = endpoints.clone();
        // Routes lead to Services: to their ports, and to whoever serves these.
        let leading = services.iter().chain(&anew);
        let leading = leading.filter_map(|name| self.attachments.led_to.get(name)).flatten();
        let leading: Vec<Name> = leading.map(Name::gateway).collect();
        let led_to = |name: &Name| self.attachments.led_to.contains_key(name);
        let attaches = !gateways.is_empty() || services.iter().any(led_to);
        anew.extend(leading);
        let mut routes = BTreeSet::new();
        if attaches {
            let attached = self.attach(&gateways);
            anew.extend(attached.gateways);
            routes = attached.routes;
        }
        // Who follows has the addresses of a Gateway by its status.
        let follows = !self.leads && echoes.iter().any(|(kind, _)| *kind == Kind::Gateway);
        let settles = pools || follows || !gateways.is_empty() || !services.is_empty();
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
        let tells = self.api.is_some() && self.leads && self.awaited.is_empty();
        let nothing = Served::default();
        for name in anew {
            let before = self.served.remove(&name).unwrap_or_default();
            let served = self.serve(&name, &before);
            let after = served.as_ref().unwrap_or(&nothing);
            let more = ChangeSet::between(&before.specs, &after.specs);
            change.upserts.extend(more.upserts);
            change.removals.extend(more.removals);
            if (&before.findings, &before.assigned) != (&after.findings, &after.assigned) {
                self.shown = None;
            }
            // What was said of it is to be said again, when it comes up again.
            if tells && !before.findings.is_empty() && after.findings.is_empty() {
                todos.push(Todo::nothing_left(name.clone()));
            }
            let moved = nodes && !before.specs.is_empty() && before.hosts() != after.hosts();
            // Endpoints alone, which come and go all the time, seldom change what an owner is told.
            let alone = !settles && !nodes && endpoints.contains(&name);
            let told = alone && before.is_told_as(after);
            if let Some(served) = served {
                self.served.insert(name.clone(), served);
            }
            if tells && !told {
                todos.extend(self.todo(&name, moved));
            }
        }
        if tells {
            // What we, or others, have written may have been overtaken.
            for (kind, name) in &echoes {
                match kind {
                    Kind::Gateway => todos.extend(self.todo(&Name::gateway(name), false)),
                    Kind::TcpRoute => _ = routes.insert((RouteKind::Tcp, name.clone())),
                    Kind::UdpRoute => _ = routes.insert((RouteKind::Udp, name.clone())),
                    _ => {}
                }
            }
            todos.extend(routes.iter().filter_map(|(kind, name)| self.route_todo(*kind, name)));
            if attaches || echoes.iter().any(|(kind, _)| *kind == Kind::GatewayClass) {
                todos.extend(self.class_todos());
            }
            if settles || echoes.iter().any(|(kind, _)| *kind == Kind::AddressPool) {
                todos.extend(self.pool_todos());
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

    /// What the API server is to be told of a Service or of a Gateway; `moved` when other hosts serve it.
    fn todo(&self, name: &Name, moved: bool) -> Option<Todo> {
        if name.of_gateway().is_some() {
            return self.gateway_todo(name);
        }
        let service = self.cluster.service(name)?;
        let served = self.served.get(name).filter(|_| self.is_load_balancer(service));
        status::todo(service, served, &self.rules, moved)
    }

    /// What the API server is to be told of our pools.
    fn pool_todos(&self) -> Vec<Todo> {
        let (used, _) = self.all_pools();
        let todo = |object| {
            let pool = self.pool_of(object, &used);
            let assigned = self.served.values().filter_map(|served| {
                let assigned = served.assigned.as_ref()?.as_ref().ok()?;
                (pool?.name == assigned.pool).then_some(&assigned.addresses)
            });
            status::pool_todo(object, pool, &assigned.flatten().copied().collect(), &self.reserved)
        };
        self.cluster.pool_objects().filter_map(todo).collect()
    }

    /// The pool that an object is, if it is used: another may have its name.
    fn pool_of<'p>(&self, object: &AddressPool, used: &'p [Pool]) -> Option<&'p Pool> {
        let name = &*object.metadata.name;
        let of_document = self.pools.iter().any(|pool| *pool.name == *name);
        used.iter().find(|pool| *pool.name == *name && !of_document)
    }

    /// The document's pools and those among the objects, and why others are not used.
    fn all_pools(&self) -> (Vec<Pool>, Vec<String>) {
        let (mut pools, mut unused) = (self.pools.clone(), Vec::new());
        // Of two that overlap, the one that somebody has addresses of stays.
        let mut known: Vec<_> = self.cluster.pools().collect();
        if known.len() > 1 {
            let subjects = self.subjects();
            let current: BTreeSet<IpAddr> =
                subjects.flat_map(|(name, subject)| self.current(&name, subject)).collect();
            let assigned = self.served.values();
            let assigned = assigned.filter_map(|served| served.assigned.as_ref()?.as_ref().ok());
            let used: BTreeSet<&str> = assigned.map(|assigned| &*assigned.pool).collect();
            known.sort_by_cached_key(|(name, pool)| {
                let offers = |pool: &Pool| current.iter().any(|ip| pool.offers(*ip));
                (!used.contains(name), !pool.as_ref().is_ok_and(offers))
            });
        }
        for (name, pool) in known {
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

    /// All that is to be served.
    pub(crate) fn desired(&self) -> Desired {
        let specs = self.served.values().flat_map(|served| &served.specs);
        specs.map(|(key, spec)| (key.clone(), Arc::clone(spec))).collect()
    }
}

/// As if all of the Gateway API's objects had changed.
fn everything() -> BTreeSet<(Kind, Name)> {
    [(Kind::ReferenceGrant, Name::new("", "*"))].into()
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
