//! Where services come from besides the document, as it is written.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny};

use crate::kubernetes::LabelSelector;
use crate::values::{At, Range};

/// Where services come from besides this document.
#[derive(Debug, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct SourcesDoc {
    /// Files, and folders whose `*.yaml` and `*.yml` files are read in the order of their names. Each
    /// file holds a map with `services:`. Relative to this document.
    pub files: Vec<At<String>>,
    /// The same, with Kubernetes' objects as `kubectl apply` takes them: Services, EndpointSlices,
    /// Endpoints, Nodes, Namespaces, AddressPools; folders also with their `*.json` files.
    pub manifests: Vec<At<String>>,
    /// Which of a cluster's Services are served, and how.
    pub kubernetes: Option<At<KubernetesDoc>>,
}

/// Which of a cluster's Services are served, and how.
#[derive(Debug, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct KubernetesDoc {
    /// The kubeconfig by which the cluster's API server is reached; in place of `manifests`.
    pub kubeconfig: Option<At<String>>,
    /// One of its contexts. Default: its current one.
    pub context: Option<At<String>>,
    /// Reaches the API server by the service account of the Pod that this runs in. Default: false.
    pub in_cluster: Option<At<bool>>,
    /// Namespaces whose Services are served. Default: all.
    pub namespaces: Vec<String>,
    /// Whether MetalLB's IPAddressPool objects are pools here, too. Default: true with `manifests`, false
    /// with an API server.
    pub read_metallb_pools: Option<bool>,
    /// The `loadBalancerClass` of Services that are ours. Default: `fairway.dev/fairway`.
    pub class: Option<At<String>>,
    /// Whether Services of type LoadBalancer without a class are ours. Default: true with `manifests`,
    /// false with an API server, where others may serve them.
    pub default_class: Option<bool>,
    /// Who is dialled: nodes at their ports for the Service, or its Pods, which need routes. Default:
    /// `node`.
    pub target: Option<TargetKindDoc>,
    /// Which address of a node is dialled, if it has it. Default: `InternalIP`.
    pub node_address: Option<NodeAddressDoc>,
    /// Whether the `externalIPs` of our Services are served. Default: false.
    #[serde(rename = "externalIPs")]
    pub external_ips: Option<bool>,
    /// Fields of a service that apply to all that come from there, unless an annotation
    /// `fairway.dev/<field>` says otherwise. Default: none.
    pub defaults: Option<Fields>,
}

/// Who is dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum TargetKindDoc {
    /// Nodes, at their ports for a Service.
    Node,
    /// Pods.
    Pod,
}

/// An address of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub enum NodeAddressDoc {
    /// Within the cluster.
    #[default]
    #[serde(rename = "InternalIP")]
    InternalIp,
    /// From outside.
    #[serde(rename = "ExternalIP")]
    ExternalIp,
}

/// Fields of a service, read one by one; here so that they are known.
#[derive(Debug, Clone, Copy)]
pub struct Fields;

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

impl JsonSchema for Fields {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ServiceFields".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "object", "description": "Fields of a service." })
    }
}

/// Addresses that Services may have.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AddressPoolDoc {
    /// Its name, unique.
    pub name: At<String>,
    /// Prefixes, and ranges like `192.0.2.10-192.0.2.20`, of either family.
    pub addresses: At<Vec<At<Range>>>,
    /// Whether Services that ask for no address and no pool may have one of them. Default: true.
    #[serde(default)]
    pub auto_assign: Option<bool>,
    /// Leaves out IPv4 addresses that end in .0 and .255, which some equipment takes for broadcasts.
    /// Default: false.
    #[serde(default, rename = "avoidBuggyIPs")]
    pub avoid_buggy_ips: Option<bool>,
    /// The lowest serves first. Default: after all others.
    #[serde(default)]
    pub priority: Option<u32>,
    /// Namespaces whose Services may have them. Default: all.
    #[serde(default)]
    pub namespaces: Vec<String>,
    /// The same by the labels of namespaces.
    #[serde(default)]
    pub namespace_selectors: Vec<LabelSelector>,
    /// Of these Services, those with such labels. Default: all.
    #[serde(default)]
    pub service_selectors: Vec<LabelSelector>,
}
