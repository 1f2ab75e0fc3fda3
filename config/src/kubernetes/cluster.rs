//! A cluster as it is known: its objects by name, each reduced to what is asked of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::announcements::Announcements;
use super::gateway::{Gateway, GatewayClass, Gateways, News, Route, RouteKind};
use super::objects::{EndpointSlice, Endpoints, Labels, Name, Object, Service};
use super::pools::{AddressPool, Pool};
use super::reduced::{ClusterNode, Slice};
use serde::{Deserialize, Serialize};

/// A slice names its Service by this label.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Kinds of objects that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Kind {
    Service,
    EndpointSlice,
    Endpoints,
    Node,
    Namespace,
    AddressPool,
    MetallbPool,
    GatewayClass,
    Gateway,
    TcpRoute,
    UdpRoute,
    ReferenceGrant,
    L2Advertisement,
    VrrpGroup,
    BgpPeer,
    BgpAdvertisement,
    BfdProfile,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::Service,
        Self::EndpointSlice,
        Self::Endpoints,
        Self::Node,
        Self::Namespace,
        Self::AddressPool,
        Self::MetallbPool,
        Self::GatewayClass,
        Self::Gateway,
        Self::TcpRoute,
        Self::UdpRoute,
        Self::ReferenceGrant,
        Self::L2Advertisement,
        Self::VrrpGroup,
        Self::BgpPeer,
        Self::BgpAdvertisement,
        Self::BfdProfile,
    ];

    /// As objects name it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Endpoints => "Endpoints",
            Self::Node => "Node",
            Self::Namespace => "Namespace",
            Self::AddressPool => "AddressPool",
            Self::MetallbPool => "IPAddressPool",
            Self::GatewayClass => "GatewayClass",
            Self::Gateway => "Gateway",
            Self::TcpRoute => "TCPRoute",
            Self::UdpRoute => "UDPRoute",
            Self::ReferenceGrant => "ReferenceGrant",
            Self::L2Advertisement => "L2Advertisement",
            Self::VrrpGroup => "VRRPGroup",
            Self::BgpPeer => "BGPPeer",
            Self::BgpAdvertisement => "BGPAdvertisement",
            Self::BfdProfile => "BFDProfile",
        }
    }

    /// Whether it is of the Gateway API, which a cluster may be without.
    #[must_use]
    pub fn is_of_gateways(self) -> bool {
        use Kind::{Gateway, GatewayClass, ReferenceGrant, TcpRoute, UdpRoute};
        matches!(self, GatewayClass | Gateway | TcpRoute | UdpRoute | ReferenceGrant)
    }

    /// Whether it says how addresses are announced.
    #[must_use]
    pub fn is_of_announcements(self) -> bool {
        use Kind::{BfdProfile, BgpAdvertisement, BgpPeer, L2Advertisement, VrrpGroup};
        matches!(self, L2Advertisement | VrrpGroup | BgpPeer | BgpAdvertisement | BfdProfile)
    }

    /// Whether its objects have namespaces, of which some may be chosen.
    #[must_use]
    pub fn is_namespaced(self) -> bool {
        use Kind::{
            EndpointSlice, Endpoints, Gateway, ReferenceGrant, Service, TcpRoute, UdpRoute,
        };
        matches!(
            self,
            Service | EndpointSlice | Endpoints | Gateway | TcpRoute | UdpRoute | ReferenceGrant
        )
    }
}

/// What a change touches.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// These Services themselves.
    pub services: BTreeSet<Name>,
    /// Those that serve these Services.
    pub endpoints: BTreeSet<Name>,
    /// All Services that nodes serve.
    pub nodes: bool,
    /// The pools, or who may have addresses of them.
    pub pools: bool,
    /// How addresses are announced.
    pub announcements: bool,
    /// These of the Gateway API, or what all of them depend on: namespaces.
    pub gateways: BTreeSet<(Kind, Name)>,
    /// Of these the status alone, or the version.
    pub echoes: BTreeSet<(Kind, Name)>,
}

impl Touched {
    /// Whether nothing is touched.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn service(name: &Name) -> Self {
        Self { services: [name.clone()].into(), ..Self::default() }
    }

    fn endpoints(name: &Name) -> Self {
        Self { endpoints: [name.clone()].into(), ..Self::default() }
    }

    fn namespace(changed: bool, name: Name) -> Self {
        let gateways = changed.then_some((Kind::Namespace, name)).into_iter().collect();
        Self { pools: changed, gateways, ..Self::default() }
    }

    /// Adds what another change touches.
    pub fn add(&mut self, other: Self) {
        self.services.extend(other.services);
        self.endpoints.extend(other.endpoints);
        self.nodes |= other.nodes;
        self.pools |= other.pools;
        self.announcements |= other.announcements;
        self.gateways.extend(other.gateways);
        self.echoes.extend(other.echoes);
    }
}

/// A cluster as it is known. Written down and read again it is the same.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct Cluster {
    services: BTreeMap<Name, Arc<Service>>,
    /// Slices of each Service, by their own names.
    slices: HashMap<Name, BTreeMap<Box<str>, Arc<Slice>>>,
    /// Whose each slice is.
    owners: HashMap<Name, Name>,
    endpoints: HashMap<Name, Vec<Slice>>,
    nodes: BTreeMap<Box<str>, ClusterNode>,
    namespaces: BTreeMap<Box<str>, Labels>,
    pools: BTreeMap<Kind, BTreeMap<Box<str>, Result<Pool, String>>>,
    /// Pools of ours as objects, whose status is written.
    pool_objects: BTreeMap<Box<str>, AddressPool>,
    pub(super) gateways: Gateways,
    pub(super) announcements: Announcements,
}

impl Cluster {
    /// Takes an object in the place of what it was.
    pub fn apply(&mut self, object: Object) -> Touched {
        match object {
            Object::Service(service) => self.apply_service(*service),
            Object::EndpointSlice(slice) => self.apply_slice(*slice),
            Object::Endpoints(endpoints) => self.apply_endpoints(*endpoints),
            Object::Node(node) => {
                let (name, node) = (node.metadata.name.as_str().into(), ClusterNode::of(&node));
                Touched { nodes: replaced(&mut self.nodes, name, node), ..Touched::default() }
            }
            Object::Namespace(namespace) => {
                let meta = namespace.metadata;
                let name = Name::new("", &meta.name);
                let changed = replaced(&mut self.namespaces, meta.name.into(), meta.labels);
                Touched::namespace(changed, name)
            }
            Object::AddressPool(pool) => {
                let name = pool.metadata.name.clone();
                let read = pool.pool();
                self.pool_objects.insert(name.as_str().into(), *pool);
                let mut touched = self.apply_pool(Kind::AddressPool, &name, read);
                touched.echoes.insert((Kind::AddressPool, Name::new("", &name)));
                touched
            }
            Object::MetallbPool(pool) => {
                self.apply_pool(Kind::MetallbPool, &pool.metadata.name, pool.pool())
            }
            Object::Announcement(kind, object) => {
                let of_kind = self.announcements.entry(kind).or_default();
                let name = object.metadata.name.as_str().into();
                let announcements = replaced(of_kind, name, object.spec);
                Touched { announcements, ..Touched::default() }
            }
            object => {
                let key = (object.kind(), object.name());
                let mut touched = Touched::default();
                match self.gateways.apply(object) {
                    News::Nothing => {}
                    News::Status => _ = touched.echoes.insert(key),
                    News::Object => _ = touched.gateways.insert(key),
                }
                touched
            }
        }
    }

    /// Forgets an object.
    pub fn delete(&mut self, kind: Kind, name: &Name) -> Touched {
        let own = &name.name;
        match kind {
            Kind::Service if self.services.remove(name).is_some() => Touched::service(name),
            Kind::EndpointSlice => self.drop_slice(name),
            Kind::Endpoints if self.endpoints.remove(name).is_some() => Touched::endpoints(name),
            Kind::Node => Touched { nodes: self.nodes.remove(own).is_some(), ..Touched::default() },
            Kind::Namespace => {
                Touched::namespace(self.namespaces.remove(own).is_some(), name.clone())
            }
            Kind::AddressPool | Kind::MetallbPool => {
                if kind == Kind::AddressPool {
                    self.pool_objects.remove(own);
                }
                let of_kind = self.pools.get_mut(&kind);
                let known = of_kind.and_then(|pools| pools.remove(own)).is_some();
                Touched { pools: known, ..Touched::default() }
            }
            Kind::Service | Kind::Endpoints => Touched::default(),
            kind if kind.is_of_announcements() => {
                let of_kind = self.announcements.get_mut(&kind);
                let announcements = of_kind.and_then(|objects| objects.remove(own)).is_some();
                Touched { announcements, ..Touched::default() }
            }
            kind => {
                let mut touched = Touched::default();
                if self.gateways.delete(kind, name) {
                    touched.gateways.insert((kind, name.clone()));
                }
                touched
            }
        }
    }

    /// Takes all objects of a kind, in one namespace or in all: those that are not among them are gone.
    pub fn replace(&mut self, kind: Kind, of: Option<&str>, objects: Vec<Object>) -> Touched {
        let mut touched = Touched::default();
        let present: BTreeSet<Name> = objects.iter().map(Object::name).collect();
        for name in self.names(kind) {
            let meant = of.is_none_or(|namespace| *name.namespace == *namespace);
            if meant && !present.contains(&name) {
                touched.add(self.delete(kind, &name));
            }
        }
        for object in objects {
            touched.add(self.apply(object));
        }
        touched
    }

    /// Forgets objects of other namespaces; none named is all.
    pub fn keep(&mut self, namespaces: &[String]) {
        for kind in Kind::ALL.into_iter().filter(|kind| kind.is_namespaced()) {
            for name in self.names(kind) {
                if !namespaces.is_empty() && !namespaces.iter().any(|of| **of == *name.namespace) {
                    self.delete(kind, &name);
                }
            }
        }
    }

    fn names(&self, kind: Kind) -> Vec<Name> {
        let plain = |name: &str| Name::new("", name);
        match kind {
            Kind::Service => self.services.keys().cloned().collect(),
            Kind::EndpointSlice => self.owners.keys().cloned().collect(),
            Kind::Endpoints => self.endpoints.keys().cloned().collect(),
            Kind::Node => self.nodes.keys().map(|name| plain(name)).collect(),
            Kind::Namespace => self.namespaces.keys().map(|name| plain(name)).collect(),
            Kind::AddressPool | Kind::MetallbPool => {
                let of_kind = self.pools.get(&kind).into_iter().flat_map(BTreeMap::keys);
                of_kind.map(|name| plain(name)).collect()
            }
            kind if kind.is_of_announcements() => {
                let of_kind = self.announcements.get(&kind).into_iter().flat_map(BTreeMap::keys);
                of_kind.map(|name| plain(name)).collect()
            }
            kind => self.gateways.names(kind),
        }
    }

    fn apply_service(&mut self, service: Service) -> Touched {
        let name = service.metadata.name();
        if self.services.get(&name).is_some_and(|before| **before == service) {
            return Touched::default();
        }
        let touched = Touched::service(&name);
        self.services.insert(name, Arc::new(service));
        touched
    }

    fn apply_slice(&mut self, slice: EndpointSlice) -> Touched {
        let name = slice.metadata.name();
        let Some(service) = slice.metadata.labels.get(SERVICE_NAME) else {
            return self.drop_slice(&name);
        };
        let owner = Name::new(&name.namespace, service);
        let mut touched = Touched::default();
        let before = self.owners.get(&name);
        let is_known = before == Some(&owner);
        if before.is_some() && !is_known {
            touched = self.drop_slice(&name);
        }
        let slice = Arc::new(Slice::of(slice));
        if let Some(of_owner) = self.slices.get_mut(&owner) {
            if !replaced(of_owner, name.name.clone(), slice) {
                return touched;
            }
        } else {
            self.slices.insert(owner.clone(), [(name.name.clone(), slice)].into());
        }
        touched.endpoints.insert(owner.clone());
        if !is_known {
            self.owners.insert(name, owner);
        }
        touched
    }

    fn drop_slice(&mut self, name: &Name) -> Touched {
        let Some(owner) = self.owners.remove(name) else { return Touched::default() };
        if let Some(slices) = self.slices.get_mut(&owner) {
            slices.remove(&name.name);
            if slices.is_empty() {
                self.slices.remove(&owner);
            }
        }
        Touched::endpoints(&owner)
    }

    fn apply_endpoints(&mut self, endpoints: Endpoints) -> Touched {
        let name = endpoints.metadata.name();
        let slices = Slice::of_endpoints(endpoints);
        if self.endpoints.get(&name) == Some(&slices) {
            return Touched::default();
        }
        self.endpoints.insert(name.clone(), slices);
        Touched::endpoints(&name)
    }

    fn apply_pool(&mut self, kind: Kind, name: &str, pool: Result<Pool, String>) -> Touched {
        let changed = replaced(self.pools.entry(kind).or_default(), name.into(), pool);
        Touched { pools: changed, ..Touched::default() }
    }

    /// The Services, by name.
    pub fn services(&self) -> impl Iterator<Item = (&Name, &Arc<Service>)> {
        self.services.iter()
    }

    /// A Service.
    #[must_use]
    pub fn service(&self, name: &Name) -> Option<&Arc<Service>> {
        self.services.get(name)
    }

    /// The labels of a namespace; none when nothing is known of it.
    #[must_use]
    pub fn namespace(&self, name: &str) -> Option<&Labels> {
        self.namespaces.get(name)
    }

    /// The pools among the objects, by name; an error says what to mend.
    pub fn pools(&self) -> impl Iterator<Item = (&str, &Result<Pool, String>)> {
        self.pools.values().flatten().map(|(name, pool)| (&**name, pool))
    }

    /// Pools of ours as objects.
    pub fn pool_objects(&self) -> impl Iterator<Item = &AddressPool> {
        self.pool_objects.values()
    }

    /// The Gateways, by name.
    pub fn gateways(&self) -> impl Iterator<Item = &Gateway> {
        self.gateways.gateways.values().map(|gateway| &**gateway)
    }

    /// A Gateway.
    #[must_use]
    pub fn gateway(&self, name: &Name) -> Option<&Arc<Gateway>> {
        self.gateways.gateways.get(name)
    }

    /// A route.
    #[must_use]
    pub fn route(&self, kind: RouteKind, name: &Name) -> Option<&Arc<Route>> {
        self.gateways.routes(kind).get(name)
    }

    /// The names of the routes of a kind.
    pub fn routes(&self, kind: RouteKind) -> impl Iterator<Item = &Name> {
        self.gateways.routes(kind).keys()
    }

    /// A GatewayClass.
    #[must_use]
    pub fn gateway_class(&self, name: &Name) -> Option<&GatewayClass> {
        self.gateways.classes.get(name)
    }

    /// Number of objects of a kind.
    #[must_use]
    pub fn count(&self, kind: Kind) -> usize {
        match kind {
            Kind::Service => self.services.len(),
            Kind::EndpointSlice => self.owners.len(),
            Kind::Endpoints => self.endpoints.len(),
            Kind::Node => self.nodes.len(),
            Kind::Namespace => self.namespaces.len(),
            kind => self.names(kind).len(),
        }
    }

    /// The endpoints of a Service. Slices come first: whoever has some has all that Endpoints say.
    pub(super) fn endpoints(&self, service: &Name) -> Vec<&Slice> {
        match self.slices.get(service) {
            Some(slices) => slices.values().map(|slice| &**slice).collect(),
            None => self.endpoints.get(service).into_iter().flatten().collect(),
        }
    }

    /// The labels of a Node.
    #[must_use]
    pub fn node_labels(&self, name: &str) -> Option<&Labels> {
        self.nodes.get(name).map(|node| &node.labels)
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = (&str, &ClusterNode)> {
        self.nodes.iter().map(|(name, node)| (&**name, node))
    }
}

/// Puts a value into a map; whether that changed anything.
pub(super) fn replaced<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, key: K, value: V) -> bool {
    match map.get_mut(&key) {
        Some(before) if *before == value => false,
        Some(before) => {
            *before = value;
            true
        }
        None => {
            map.insert(key, value);
            true
        }
    }
}
