//! Objects of the Gateway API (gateway.networking.k8s.io), with the fields that are read here and, of
//! their status, all that a status has: others write there, too.

use serde::{Deserialize, Serialize};

use crate::kubernetes::objects::{Meta, or_default};
use crate::kubernetes::selectors::SelectorFields;

/// The group of all of them.
pub(crate) const GROUP: &str = "gateway.networking.k8s.io";

/// Kinds of routes that are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteKind {
    /// `TCPRoute`
    Tcp,
    /// `UDPRoute`
    Udp,
}

impl RouteKind {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    /// As objects name it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Tcp => "TCPRoute",
            Self::Udp => "UDPRoute",
        }
    }

    /// The protocol of its listeners, as objects name it.
    #[must_use]
    pub fn protocol(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

/// A GatewayClass: whose its Gateways are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayClass {
    /// The version in which it was read.
    #[serde(deserialize_with = "or_default")]
    pub api_version: String,
    /// What every object has.
    pub metadata: Meta,
    /// What is wanted.
    #[serde(deserialize_with = "or_default")]
    pub spec: GatewayClassFields,
    /// What is.
    #[serde(deserialize_with = "or_default")]
    pub status: GatewayClassStatus,
}

/// What is wanted of a GatewayClass.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayClassFields {
    /// Who serves it.
    #[serde(deserialize_with = "or_default")]
    pub controller_name: String,
}

/// What is, of a GatewayClass.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GatewayClassStatus {
    /// How it stands.
    #[serde(deserialize_with = "or_default")]
    pub conditions: Vec<Condition>,
}

/// A Gateway: addresses, and ports at which routes may attach.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Gateway {
    /// The version in which it was read.
    #[serde(deserialize_with = "or_default")]
    pub api_version: String,
    /// What every object has.
    pub metadata: Meta,
    /// What is wanted.
    #[serde(deserialize_with = "or_default")]
    pub spec: GatewayFields,
    /// What is.
    #[serde(deserialize_with = "or_default")]
    pub status: GatewayStatus,
}

/// What is wanted of a Gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayFields {
    /// The class, by which it has a controller.
    #[serde(deserialize_with = "or_default")]
    pub gateway_class_name: String,
    /// The ports that clients dial.
    #[serde(deserialize_with = "or_default")]
    pub listeners: Vec<Listener>,
    /// The addresses that are wanted; none is any.
    #[serde(deserialize_with = "or_default")]
    pub addresses: Vec<GatewayAddress>,
}

/// A port of a Gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Listener {
    /// Its name, unique in the Gateway.
    #[serde(deserialize_with = "or_default")]
    pub name: String,
    /// The port that clients dial.
    #[serde(deserialize_with = "or_default")]
    pub port: u16,
    /// `TCP`, `UDP`, and others that are not served here.
    #[serde(deserialize_with = "or_default")]
    pub protocol: String,
    /// Who may attach.
    #[serde(deserialize_with = "or_default")]
    pub allowed_routes: AllowedRoutes,
}

/// Routes that may attach to a listener.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AllowedRoutes {
    /// Of these namespaces.
    #[serde(deserialize_with = "or_default")]
    pub namespaces: RouteNamespaces,
    /// Of these kinds; none is what the protocol allows.
    #[serde(deserialize_with = "or_default")]
    pub kinds: Vec<RouteGroupKind>,
}

/// Namespaces whose routes may attach.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RouteNamespaces {
    /// `Same` when it is empty, `All`, `Selector`, `None`.
    #[serde(deserialize_with = "or_default")]
    pub from: String,
    /// With `Selector`: by their labels.
    #[serde(deserialize_with = "or_default")]
    pub selector: SelectorFields,
}

/// A kind of routes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RouteGroupKind {
    /// Its group, that of the Gateway API when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Its kind.
    #[serde(deserialize_with = "or_default")]
    pub kind: String,
}

/// An address of a Gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GatewayAddress {
    /// `IPAddress` when there is none.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The address; empty is any.
    #[serde(deserialize_with = "or_default")]
    pub value: String,
}

impl GatewayAddress {
    /// Whether it is an address of IP.
    #[must_use]
    pub fn is_ip(&self) -> bool {
        self.kind.as_ref().is_none_or(|kind| kind == "IPAddress")
    }
}

/// What is, of a Gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GatewayStatus {
    /// The addresses that it has.
    #[serde(deserialize_with = "or_default")]
    pub addresses: Vec<GatewayAddress>,
    /// How it stands.
    #[serde(deserialize_with = "or_default")]
    pub conditions: Vec<Condition>,
    /// How its listeners stand.
    #[serde(deserialize_with = "or_default")]
    pub listeners: Vec<ListenerStatus>,
}

/// What is, of a listener.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ListenerStatus {
    /// Its name.
    #[serde(deserialize_with = "or_default")]
    pub name: String,
    /// Routes that may attach.
    #[serde(deserialize_with = "or_default")]
    pub supported_kinds: Vec<RouteGroupKind>,
    /// Number of routes that have attached.
    pub attached_routes: i32,
    /// How it stands.
    #[serde(deserialize_with = "or_default")]
    pub conditions: Vec<Condition>,
}

/// How an object stands, as all of Kubernetes has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    /// Of what.
    #[serde(rename = "type", deserialize_with = "or_default")]
    pub kind: String,
    /// `True`, `False`, `Unknown`.
    #[serde(deserialize_with = "or_default")]
    pub status: String,
    /// Why, for programs.
    #[serde(deserialize_with = "or_default")]
    pub reason: String,
    /// Why, for people.
    #[serde(deserialize_with = "or_default")]
    pub message: String,
    /// Since when the status is what it is, RFC 3339.
    #[serde(deserialize_with = "or_default")]
    pub last_transition_time: String,
    /// The generation of the object of which that is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// A TCPRoute or UDPRoute: what comes to listeners goes to Services.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Route {
    /// The version in which it was read.
    #[serde(deserialize_with = "or_default")]
    pub api_version: String,
    /// What every object has.
    pub metadata: Meta,
    /// What is wanted.
    #[serde(deserialize_with = "or_default")]
    pub spec: RouteFields,
    /// What is.
    #[serde(deserialize_with = "or_default")]
    pub status: RouteStatus,
}

/// What is wanted of a route.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteFields {
    /// Where it would attach.
    #[serde(deserialize_with = "or_default")]
    pub parent_refs: Vec<ParentRef>,
    /// Where it leads: the first counts, there is nothing to choose others by.
    #[serde(deserialize_with = "or_default")]
    pub rules: Vec<RouteRule>,
}

/// Where a route would attach.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ParentRef {
    /// The group, that of the Gateway API when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The kind, `Gateway` when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The namespace, that of the route when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The name.
    #[serde(deserialize_with = "or_default")]
    pub name: String,
    /// The listener; none is all that fit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
    /// The port; none is all that fit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<i32>,
}

/// Where a route leads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteRule {
    /// To these, by weight.
    #[serde(deserialize_with = "or_default")]
    pub backend_refs: Vec<BackendRef>,
}

/// A port of a Service, to which a route leads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BackendRef {
    /// The group, that of Services when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The kind, `Service` when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The namespace, that of the route when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The name.
    #[serde(deserialize_with = "or_default")]
    pub name: String,
    /// The Service's port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Its share, as part of the sum; one when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
}

/// What is, of a route.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RouteStatus {
    /// How it stands with those to which it would attach, each by its controller.
    #[serde(deserialize_with = "or_default")]
    pub parents: Vec<ParentStatus>,
}

/// How a route stands with one to which it would attach.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ParentStatus {
    /// With whom.
    #[serde(deserialize_with = "or_default")]
    pub parent_ref: ParentRef,
    /// Who says so.
    #[serde(deserialize_with = "or_default")]
    pub controller_name: String,
    /// How it stands.
    #[serde(deserialize_with = "or_default")]
    pub conditions: Vec<Condition>,
}

/// A ReferenceGrant: a namespace lets routes of others lead to its Services.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReferenceGrant {
    /// What every object has.
    pub metadata: Meta,
    /// What is wanted.
    #[serde(deserialize_with = "or_default")]
    pub spec: ReferenceGrantFields,
}

/// Who may lead where.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReferenceGrantFields {
    /// These may,
    #[serde(deserialize_with = "or_default")]
    pub from: Vec<GrantFrom>,
    /// to these.
    #[serde(deserialize_with = "or_default")]
    pub to: Vec<GrantTo>,
}

/// Who may lead here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GrantFrom {
    /// Objects of this group,
    #[serde(deserialize_with = "or_default")]
    pub group: String,
    /// of this kind,
    #[serde(deserialize_with = "or_default")]
    pub kind: String,
    /// in this namespace.
    #[serde(deserialize_with = "or_default")]
    pub namespace: String,
}

/// Where others may lead.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GrantTo {
    /// To objects of this group,
    #[serde(deserialize_with = "or_default")]
    pub group: String,
    /// of this kind,
    #[serde(deserialize_with = "or_default")]
    pub kind: String,
    /// of this name; none is all.
    pub name: Option<String>,
}
