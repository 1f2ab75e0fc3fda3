//! Objects of Kubernetes, with the fields that are read here and no others.
//!
//! The same types read manifests and the API server's answers. Words whose list may grow are kept as
//! text: an object with a new word is still an object.

use std::collections::BTreeMap;
use std::fmt;

use super::announcements::Announcement;
use super::cluster::Kind;
use super::gateway::{Gateway, GatewayClass, ReferenceGrant, Route, RouteKind};
use serde::de::Deserializer;
use serde::{Deserialize, Serialize, Serializer};

/// Text by key.
pub type Labels = BTreeMap<String, String>;

/// A namespace and a name; the namespace of what has none is empty.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// The namespace.
    pub namespace: Box<str>,
    /// The name in it.
    pub name: Box<str>,
}

impl Name {
    /// What a Gateway is served as: no Service has such a name.
    #[must_use]
    pub fn gateway(gateway: &Self) -> Self {
        Self::new(&gateway.namespace, &format!("gateway/{}", gateway.name))
    }

    /// The Gateway that is served by this name; none if it is a Service's.
    #[must_use]
    pub fn of_gateway(&self) -> Option<Self> {
        Some(Self::new(&self.namespace, self.name.strip_prefix("gateway/")?))
    }

    /// A name in a namespace.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let (namespace, name) = text.split_once('/').unwrap_or(("", &text));
        Ok(Self::new(namespace, name))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// Null is the same as nothing: a watch that cannot read one object would lose it.
pub(super) fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// What every object has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta {
    /// Its name.
    #[serde(deserialize_with = "or_default")]
    pub name: String,
    /// Its namespace, if it has one.
    #[serde(deserialize_with = "or_default")]
    pub namespace: String,
    /// Who it is, among all that ever had its name; empty in manifests.
    #[serde(deserialize_with = "or_default")]
    pub uid: String,
    /// Its version; empty in manifests.
    #[serde(deserialize_with = "or_default")]
    pub resource_version: String,
    /// Its labels.
    #[serde(deserialize_with = "or_default")]
    pub labels: Labels,
    /// Its annotations.
    #[serde(deserialize_with = "or_default")]
    pub annotations: Labels,
    /// How often what is wanted of it has changed; zero where nobody counts.
    #[serde(deserialize_with = "or_default")]
    pub generation: i64,
    /// When it was made, RFC 3339; empty in manifests.
    #[serde(deserialize_with = "or_default")]
    pub creation_timestamp: String,
    /// When it began to go away.
    pub deletion_timestamp: Option<String>,
    /// Who must agree before it is gone.
    #[serde(deserialize_with = "or_default")]
    pub finalizers: Vec<String>,
}

impl Meta {
    /// Whether another version of it means the same to us.
    pub(super) fn means(&self, other: &Self) -> bool {
        self.uid == other.uid
            && self.labels == other.labels
            && self.annotations == other.annotations
            && self.deletion_timestamp == other.deletion_timestamp
            && self.creation_timestamp == other.creation_timestamp
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> Name {
        Name::new(&self.namespace, &self.name)
    }
}

/// Types of Services.
pub(super) const SERVICE_TYPES: [&str; 4] =
    ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"];

/// A Service of API group "" and version v1.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Service {
    /// What every object has.
    pub metadata: Meta,
    /// What is wanted.
    #[serde(deserialize_with = "or_default")]
    pub spec: ServiceFields,
    /// What is.
    #[serde(deserialize_with = "or_default")]
    pub status: ServiceStatus,
}

/// What is wanted of a Service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceFields {
    /// `ClusterIP` when it is empty.
    #[serde(rename = "type")]
    pub kind: String,
    /// The ports that clients dial.
    #[serde(deserialize_with = "or_default")]
    pub ports: Vec<ServicePort>,
    /// Labels of its Pods.
    #[serde(deserialize_with = "or_default")]
    pub selector: Labels,
    /// Its address in the cluster; `None` is a headless Service.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: String,
    /// `IPv4`, `IPv6`: the first is the one that matters.
    #[serde(deserialize_with = "or_default")]
    pub ip_families: Vec<String>,
    /// `SingleStack`, `PreferDualStack`, `RequireDualStack`.
    pub ip_family_policy: String,
    /// `Cluster` when it is empty, or `Local`.
    pub external_traffic_policy: String,
    /// With `Local`: where nodes say whether they have endpoints.
    pub health_check_node_port: u16,
    /// Who is to serve it.
    pub load_balancer_class: Option<String>,
    /// The address that is wanted (deprecated).
    #[serde(rename = "loadBalancerIP")]
    pub load_balancer_ip: String,
    /// Clients that may connect; none is all.
    #[serde(deserialize_with = "or_default")]
    pub load_balancer_source_ranges: Vec<String>,
    /// `None` when it is empty, or `ClientIP`.
    pub session_affinity: String,
    /// For how long.
    pub session_affinity_config: Option<AffinityConfig>,
    /// Whether Pods that are not ready serve.
    pub publish_not_ready_addresses: bool,
    /// Further addresses that are routed to it (deprecated).
    #[serde(rename = "externalIPs", deserialize_with = "or_default")]
    pub external_ips: Vec<String>,
    /// With `ExternalName`: the DNS name.
    pub external_name: String,
    /// `PreferSameZone`, `PreferSameNode`, `PreferClose`.
    pub traffic_distribution: Option<String>,
}

/// Settings of affinity.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AffinityConfig {
    /// Of clients' addresses.
    #[serde(rename = "clientIP")]
    pub client_ip: Option<ClientIpConfig>,
}

/// Settings of affinity by address.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientIpConfig {
    /// How long a client is remembered.
    pub timeout_seconds: Option<u32>,
}

/// A port of a Service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    /// Its name; empty when it is the only one.
    pub name: String,
    /// `TCP` when it is empty, `UDP`, `SCTP`.
    pub protocol: String,
    /// The port that clients dial.
    pub port: u16,
    /// The nodes' port; zero is none.
    pub node_port: u16,
    /// What is spoken there, for people.
    pub app_protocol: Option<String>,
}

/// What is, of a Service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceStatus {
    /// Of its addresses outside.
    #[serde(deserialize_with = "or_default")]
    pub load_balancer: LoadBalancerStatus,
}

/// The addresses of a Service outside.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoadBalancerStatus {
    /// Each of them.
    #[serde(deserialize_with = "or_default")]
    pub ingress: Vec<Ingress>,
}

/// An address of a Service outside.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Ingress {
    /// The address.
    pub ip: String,
    /// Whether the cluster's own traffic to it may take a short cut: `VIP` or `Proxy`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_mode: Option<String>,
    /// Its ports.
    #[serde(deserialize_with = "or_default")]
    pub ports: Vec<IngressPort>,
}

/// A port of a Service outside.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IngressPort {
    /// Its number.
    pub port: u16,
    /// Its protocol.
    pub protocol: String,
    /// Why it is not served, in the form of a reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// An EndpointSlice of discovery.k8s.io/v1.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSlice {
    /// What every object has.
    pub metadata: Meta,
    /// `IPv4`, `IPv6`, `FQDN`.
    pub address_type: String,
    /// Its endpoints; null in what newer servers say of none.
    pub endpoints: Option<Vec<SliceEndpoint>>,
    /// The ports of all of them.
    pub ports: Option<Vec<EndpointPort>>,
}

/// An endpoint of a slice.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SliceEndpoint {
    /// One, in practice: the first is it.
    #[serde(deserialize_with = "or_default")]
    pub addresses: Vec<String>,
    /// Whether it serves.
    #[serde(deserialize_with = "or_default")]
    pub conditions: Conditions,
    /// Its node.
    pub node_name: Option<String>,
    /// Its zone.
    pub zone: Option<String>,
    /// Who is to use it.
    pub hints: Option<Hints>,
}

/// Whether an endpoint serves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Conditions {
    /// It takes new clients; unknown is yes.
    pub ready: Option<bool>,
    /// It answers; unknown is as `ready`.
    pub serving: Option<bool>,
    /// It is about to go.
    pub terminating: Option<bool>,
}

/// Who is to use an endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hints {
    /// Those of these zones.
    #[serde(deserialize_with = "or_default")]
    pub for_zones: Vec<ForZone>,
}

/// A zone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ForZone {
    /// Its name.
    pub name: String,
}

/// A port of endpoints.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct EndpointPort {
    /// The name that the Service gives it.
    pub name: Option<String>,
    /// The number.
    pub port: Option<i64>,
    /// `TCP` when it is empty.
    pub protocol: Option<String>,
}

/// Endpoints of API group "" and version v1.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Endpoints {
    /// What every object has; the name is that of the Service.
    pub metadata: Meta,
    /// Addresses with the same ports.
    #[serde(deserialize_with = "or_default")]
    pub subsets: Vec<Subset>,
}

/// Addresses with the same ports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Subset {
    /// Those that are ready.
    pub addresses: Vec<EndpointAddress>,
    /// Those that are not.
    pub not_ready_addresses: Vec<EndpointAddress>,
    /// The ports.
    pub ports: Vec<EndpointPort>,
}

/// An address of Endpoints.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointAddress {
    /// The address.
    pub ip: String,
    /// Its node.
    pub node_name: Option<String>,
}

/// A Node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Node {
    /// What every object has.
    pub metadata: Meta,
    /// What is wanted.
    #[serde(deserialize_with = "or_default")]
    pub spec: NodeFields,
    /// What is.
    #[serde(deserialize_with = "or_default")]
    pub status: NodeStatus,
}

/// What is wanted of a Node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NodeFields {
    /// What keeps Pods from it.
    #[serde(deserialize_with = "or_default")]
    pub taints: Vec<Taint>,
}

/// What keeps Pods from a Node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Taint {
    /// Which taint.
    pub key: String,
}

/// What is, of a Node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// Its addresses.
    #[serde(deserialize_with = "or_default")]
    pub addresses: Vec<NodeAddress>,
}

/// An address of a Node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NodeAddress {
    /// `InternalIP`, `ExternalIP`, `Hostname`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The address.
    pub address: String,
}

/// A Namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Namespace {
    /// What every object has.
    pub metadata: Meta,
}

/// An object that Fairway reads.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Object {
    Service(Box<Service>),
    EndpointSlice(Box<EndpointSlice>),
    Endpoints(Box<Endpoints>),
    Node(Box<Node>),
    Namespace(Box<Namespace>),
    AddressPool(Box<super::pools::AddressPool>),
    MetallbPool(Box<super::pools::MetallbPool>),
    GatewayClass(Box<GatewayClass>),
    Gateway(Box<Gateway>),
    Route(RouteKind, Box<Route>),
    ReferenceGrant(Box<ReferenceGrant>),
    Announcement(Kind, Box<Announcement>),
}

impl Object {
    /// What it is called.
    #[must_use]
    pub fn name(&self) -> Name {
        let plain = |meta: &Meta| Name::new("", &meta.name);
        match self {
            // Pools have namespaces in MetalLB, which means nothing there.
            Self::AddressPool(object) => plain(&object.metadata),
            Self::MetallbPool(object) => plain(&object.metadata),
            Self::Announcement(_, object) => plain(&object.metadata),
            Self::GatewayClass(object) => plain(&object.metadata),
            Self::Node(object) => plain(&object.metadata),
            Self::Namespace(object) => plain(&object.metadata),
            Self::Service(object) => object.metadata.name(),
            Self::EndpointSlice(object) => object.metadata.name(),
            Self::Endpoints(object) => object.metadata.name(),
            Self::Gateway(object) => object.metadata.name(),
            Self::Route(_, object) => object.metadata.name(),
            Self::ReferenceGrant(object) => object.metadata.name(),
        }
    }

    /// Of what kind it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::Endpoints(_) => Kind::Endpoints,
            Self::Node(_) => Kind::Node,
            Self::Namespace(_) => Kind::Namespace,
            Self::AddressPool(_) => Kind::AddressPool,
            Self::MetallbPool(_) => Kind::MetallbPool,
            Self::GatewayClass(_) => Kind::GatewayClass,
            Self::Gateway(_) => Kind::Gateway,
            Self::Route(RouteKind::Tcp, _) => Kind::TcpRoute,
            Self::Route(RouteKind::Udp, _) => Kind::UdpRoute,
            Self::ReferenceGrant(_) => Kind::ReferenceGrant,
            Self::Announcement(kind, _) => *kind,
        }
    }

    /// What every object has.
    pub(super) fn meta_mut(&mut self) -> &mut Meta {
        match self {
            Self::Service(object) => &mut object.metadata,
            Self::Announcement(_, object) => &mut object.metadata,
            Self::EndpointSlice(object) => &mut object.metadata,
            Self::Endpoints(object) => &mut object.metadata,
            Self::Node(object) => &mut object.metadata,
            Self::Namespace(object) => &mut object.metadata,
            Self::AddressPool(object) => &mut object.metadata,
            Self::MetallbPool(object) => &mut object.metadata,
            Self::GatewayClass(object) => &mut object.metadata,
            Self::Gateway(object) => &mut object.metadata,
            Self::Route(_, object) => &mut object.metadata,
            Self::ReferenceGrant(object) => &mut object.metadata,
        }
    }
}
