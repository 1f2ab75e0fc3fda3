//! Endpoints and nodes, reduced to what is asked of them.

use std::net::IpAddr;

use fairway_core::Protocol;
use serde::{Deserialize, Serialize};

use super::objects::{Conditions, EndpointPort, EndpointSlice, Endpoints, Labels, Node};

/// A node with this label takes no traffic from outside; only the value `false` means nothing.
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// A node with this taint is about to be deleted.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";
/// A node names its zone by this label.
const ZONE: &str = "topology.kubernetes.io/zone";

/// Endpoints with the same ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Slice {
    pub(super) ports: Vec<SlicePort>,
    pub(super) endpoints: Vec<Endpoint>,
    /// What is no address.
    pub(super) strays: Vec<Box<str>>,
}

/// A port of endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SlicePort {
    /// As the Service calls it.
    pub(super) name: Box<str>,
    #[serde(with = "protocol_word")]
    pub(super) protocol: Option<Protocol>,
    /// None is every port.
    pub(super) number: Option<u16>,
}

/// An endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Endpoint {
    pub(super) host: EndpointHost,
    pub(super) state: EndpointState,
    pub(super) node: Option<Box<str>>,
    pub(super) zone: Option<Box<str>>,
    /// Zones that are to use it.
    pub(super) for_zones: Vec<Box<str>>,
}

/// Where an endpoint is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum EndpointHost {
    Ip(IpAddr),
    /// A DNS name.
    Name(Box<str>),
}

/// How an endpoint stands; the best is the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum EndpointState {
    Ready,
    /// It goes, and still answers.
    Leaving,
    /// It goes, and answers no more.
    Gone,
    NotReady,
}

impl EndpointState {
    fn of(conditions: Conditions) -> Self {
        let ready = conditions.ready.unwrap_or(true);
        match conditions.terminating.unwrap_or(false) {
            true if conditions.serving.unwrap_or(ready) => Self::Leaving,
            true => Self::Gone,
            false if ready => Self::Ready,
            false => Self::NotReady,
        }
    }
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ClusterNode {
    pub(super) internal: Vec<IpAddr>,
    pub(super) external: Vec<IpAddr>,
    pub(super) zone: Option<Box<str>>,
    /// It is to take no more traffic from outside.
    pub(super) leaves: bool,
    #[serde(default)]
    pub(super) labels: Labels,
}

/// A protocol by its word; none is one that is not served.
pub(super) fn protocol(word: &str) -> Option<Protocol> {
    match word {
        "" | "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        _ => None,
    }
}

/// A protocol as its word.
mod protocol_word {
    use fairway_core::Protocol;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(
        protocol: &Option<Protocol>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        protocol.map(|protocol| protocol.to_string()).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Protocol>, D::Error> {
        Ok(Option::<String>::deserialize(deserializer)?.and_then(|word| super::protocol(&word)))
    }
}

impl Slice {
    pub(super) fn of(slice: EndpointSlice) -> Self {
        let names = slice.address_type == "FQDN";
        let mut strays = Vec::new();
        let endpoints = slice.endpoints.into_iter().flatten().filter_map(|endpoint| {
            let first = endpoint.addresses.first()?;
            let host = match names {
                true => EndpointHost::Name(first.as_str().into()),
                false => match first.parse::<IpAddr>() {
                    Ok(ip) => EndpointHost::Ip(ip.to_canonical()),
                    Err(_) => {
                        strays.push(first.as_str().into());
                        return None;
                    }
                },
            };
            let hints = endpoint.hints.into_iter().flat_map(|hints| hints.for_zones);
            Some(Endpoint {
                host,
                state: EndpointState::of(endpoint.conditions),
                node: endpoint.node_name.map(Into::into),
                zone: endpoint.zone.map(Into::into),
                for_zones: hints.map(|zone| zone.name.into()).collect(),
            })
        });
        let endpoints = endpoints.collect();
        Self { ports: ports(slice.ports.unwrap_or_default()), endpoints, strays }
    }

    pub(super) fn of_endpoints(endpoints: Endpoints) -> Vec<Self> {
        let subset = |subset: super::objects::Subset| {
            let mut strays = Vec::new();
            let ready = subset.addresses.into_iter().map(|at| (at, EndpointState::Ready));
            let others = subset.not_ready_addresses.into_iter();
            let all = ready.chain(others.map(|at| (at, EndpointState::NotReady)));
            let endpoints = all.filter_map(|(at, state)| match at.ip.parse::<IpAddr>() {
                Ok(ip) => Some(Endpoint {
                    host: EndpointHost::Ip(ip.to_canonical()),
                    state,
                    node: at.node_name.map(Into::into),
                    zone: None,
                    for_zones: Vec::new(),
                }),
                Err(_) => {
                    strays.push(at.ip.into());
                    None
                }
            });
            let endpoints = endpoints.collect();
            Self { ports: ports(subset.ports), endpoints, strays }
        };
        endpoints.subsets.into_iter().map(subset).collect()
    }
}

fn ports(ports: Vec<EndpointPort>) -> Vec<SlicePort> {
    let port = |port: EndpointPort| SlicePort {
        name: port.name.unwrap_or_default().into(),
        protocol: protocol(port.protocol.as_deref().unwrap_or_default()),
        number: port.port.and_then(|number| u16::try_from(number).ok()),
    };
    ports.into_iter().map(port).collect()
}

impl ClusterNode {
    pub(super) fn of(node: &Node) -> Self {
        let of_kind = |kind: &str| {
            let addresses = node.status.addresses.iter().filter(|at| at.kind == kind);
            addresses.filter_map(|at| at.address.parse().ok()).collect()
        };
        let labels = &node.metadata.labels;
        let excluded = labels.get(EXCLUDED).is_some_and(|value| value != "false");
        let doomed = node.spec.taints.iter().any(|taint| taint.key == TO_BE_DELETED);
        Self {
            internal: of_kind("InternalIP"),
            external: of_kind("ExternalIP"),
            zone: labels.get(ZONE).map(|zone| zone.as_str().into()),
            leaves: excluded || doomed || node.metadata.deletion_timestamp.is_some(),
            labels: node.metadata.labels.clone(),
        }
    }
}
