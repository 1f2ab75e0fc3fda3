//! Who serves a port of a Service.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU16;

use fairway_core::{BackendAddr, Weight};

use super::cluster::Cluster;
use super::objects::{Service, ServicePort};
use super::reduced::{Endpoint, EndpointHost, EndpointState, Slice, SlicePort, protocol};
use super::translate::Rules;
use crate::document::NodeAddressDoc;
use crate::spec::{BackendSpec, NamedBackends, Priority, Query, Serving};
use crate::values::dns_name;

/// Backends of a pool: as many as a table can name.
const MOST: usize = u16::MAX as usize;

/// Who serves a port.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) backends: Vec<BackendSpec>,
    pub(super) named: Vec<NamedBackends>,
    /// How many more there are than a pool holds.
    pub(super) more: usize,
}

impl Found {
    /// Of backends by address.
    fn of(backends: impl ExactSizeIterator<Item = BackendSpec>) -> Self {
        let more = backends.len().saturating_sub(MOST);
        Self { backends: backends.take(MOST).collect(), named: Vec::new(), more }
    }
}

/// The Pods, or whatever has its addresses in slices. An endpoint in several slices is there once, as
/// well as it is anywhere. One that is not ready stays, and takes no new clients. When none is ready,
/// those that go and still answer serve on (KEP-1669).
pub(super) fn pods(
    slices: &[&Slice],
    service: &Service,
    port: &ServicePort,
    is_ipv4: bool,
    rules: &Rules,
) -> Found {
    let mut best: BTreeMap<BackendAddr, (EndpointState, &Endpoint)> = BTreeMap::new();
    let mut named = Vec::new();
    for (slice, number) in with_port(slices, port) {
        for endpoint in &slice.endpoints {
            let state = match endpoint.state {
                EndpointState::NotReady if service.spec.publish_not_ready_addresses => {
                    EndpointState::Ready
                }
                state => state,
            };
            match &endpoint.host {
                EndpointHost::Ip(ip) if ip.is_ipv4() == is_ipv4 => {
                    let here = best.entry(BackendAddr::new(*ip, number));
                    let known = here.or_insert((state, endpoint));
                    if state < known.0 {
                        *known = (state, endpoint);
                    }
                }
                EndpointHost::Name(name) if state == EndpointState::Ready => {
                    named.extend(named_backend(name, number));
                }
                EndpointHost::Ip(_) | EndpointHost::Name(_) => {}
            }
        }
    }
    let any_ready = best.values().any(|(state, _)| *state == EndpointState::Ready);
    let spec = |(addr, (state, endpoint)): (BackendAddr, (EndpointState, &Endpoint))| {
        let serving = match state {
            EndpointState::Ready => Serving::Yes,
            EndpointState::Leaving if !any_ready => Serving::Yes,
            EndpointState::Leaving | EndpointState::Gone => Serving::Leaving,
            EndpointState::NotReady => Serving::NotReady,
        };
        let zone = zone(endpoint, rules.zone.as_deref());
        BackendSpec { serving, zone: zone.map(Into::into), ..backend(addr, Weight::ONE) }
    };
    named.dedup();
    Found { named, ..Found::of(best.into_iter().map(spec)) }
}

/// The zone whose boxes are to use an endpoint: ours if it is meant for ours.
fn zone<'e>(endpoint: &'e Endpoint, ours: Option<&str>) -> Option<&'e str> {
    let for_us = endpoint.for_zones.iter().find(|zone| Some(&***zone) == ours);
    for_us.or(endpoint.for_zones.first()).or(endpoint.zone.as_ref()).map(|zone| &**zone)
}

/// The slices that have a port of a Service, and the number that it has there.
fn with_port<'s>(
    slices: &'s [&Slice],
    port: &'s ServicePort,
) -> impl Iterator<Item = (&'s Slice, Option<NonZeroU16>)> {
    slices.iter().flat_map(move |slice| {
        let wanted = protocol(&port.protocol);
        let fits = move |at: &&SlicePort| *at.name == *port.name && at.protocol == wanted;
        let ports = slice.ports.iter().filter(fits);
        ports.map(move |at| (*slice, at.number.and_then(NonZeroU16::new)))
    })
}

/// The nodes, at their port for the Service. With the policy `Local` those that have endpoints, each by
/// how many: so that every endpoint has the same share.
pub(super) fn nodes(
    cluster: &Cluster,
    slices: &[&Slice],
    service: &Service,
    port: &ServicePort,
    is_ipv4: bool,
    rules: &Rules,
) -> Found {
    let counts = match service.spec.external_traffic_policy.as_str() {
        // Where nothing is known of endpoints, nodes are asked.
        "Local" if !slices.is_empty() => Some(local(slices, service, port, is_ipv4)),
        _ => None,
    };
    let any_ready = counts.iter().flatten().any(|(_, count)| count.ready > 0);
    let mut backends = BTreeMap::new();
    for (name, node) in cluster.nodes() {
        let of_family = |ips: &[IpAddr]| ips.iter().copied().find(|ip| ip.is_ipv4() == is_ipv4);
        let ip = match rules.node_address {
            NodeAddressDoc::InternalIp => {
                of_family(&node.internal).or_else(|| of_family(&node.external))
            }
            NodeAddressDoc::ExternalIp => {
                of_family(&node.external).or_else(|| of_family(&node.internal))
            }
        };
        let Some(ip) = ip else { continue };
        let (count, serves) = match &counts {
            None => (1, true),
            Some(counts) => match counts.get(name).copied().unwrap_or_default() {
                Local { ready, .. } if ready > 0 => (ready, true),
                // When none is ready anywhere, those that go and still answer serve on (KEP-1669).
                Local { leaving, .. } if leaving > 0 => (leaving, !any_ready),
                Local { gone, .. } if gone > 0 => (gone, false),
                Local { .. } => continue,
            },
        };
        let weight = Weight::new(count.clamp(1, u32::from(Weight::MAX))).unwrap_or(Weight::ONE);
        let addr = BackendAddr::new(ip, NonZeroU16::new(port.node_port));
        let spec = BackendSpec {
            serving: if serves && !node.leaves { Serving::Yes } else { Serving::Leaving },
            name: Some(name.into()),
            zone: node.zone.clone(),
            ..backend(addr, weight)
        };
        backends.insert(addr, spec);
    }
    Found::of(backends.into_values())
}

/// Endpoints of one node.
#[derive(Debug, Default, Clone, Copy)]
struct Local {
    ready: u32,
    /// Those that go and still answer.
    leaving: u32,
    /// Those that go, and answer no more.
    gone: u32,
}

fn local<'s>(
    slices: &'s [&Slice],
    service: &Service,
    port: &'s ServicePort,
    is_ipv4: bool,
) -> BTreeMap<&'s str, Local> {
    let mut best: BTreeMap<(&str, IpAddr), EndpointState> = BTreeMap::new();
    for (slice, _) in with_port(slices, port) {
        for endpoint in &slice.endpoints {
            let (EndpointHost::Ip(ip), Some(node)) = (&endpoint.host, &endpoint.node) else {
                continue;
            };
            if ip.is_ipv4() != is_ipv4 {
                continue;
            }
            let known = best.entry((&**node, *ip)).or_insert(endpoint.state);
            *known = endpoint.state.min(*known);
        }
    }
    let mut counts: BTreeMap<&str, Local> = BTreeMap::new();
    for ((node, _), state) in best {
        let count = counts.entry(node).or_default();
        match state {
            EndpointState::Ready => count.ready += 1,
            EndpointState::NotReady if service.spec.publish_not_ready_addresses => count.ready += 1,
            EndpointState::Leaving => count.leaving += 1,
            EndpointState::Gone => count.gone += 1,
            EndpointState::NotReady => {}
        }
    }
    counts
}

/// Why nobody serves a port, for its owner.
pub(super) fn why_nobody(
    cluster: &Cluster,
    slices: &[&Slice],
    service: &Service,
    port: &ServicePort,
    (to_pods, is_ipv4): (bool, bool),
) -> String {
    let family = if is_ipv4 { "IPv4" } else { "IPv6" };
    let named =
        |name: &str| if name.is_empty() { "without a name".into() } else { format!("`{name}`") };
    let number = port.port;
    let why = match to_pods {
        true if slices.is_empty() && port.node_port == 0 => {
            "it has no `nodePort`, by which nodes would serve it, and the Service no EndpointSlice by \
             which its Pods would"
                .into()
        }
        true if slices.is_empty() => "the Service has no EndpointSlice".into(),
        true if with_port(slices, port).next().is_none() => {
            let there = slices.iter().flat_map(|slice| &slice.ports);
            let there: Vec<String> = there.map(|port| named(&port.name)).collect();
            format!(
                "its EndpointSlices have no port {} of its protocol; they have {}",
                named(&port.name),
                there.join(", ")
            )
        }
        true => format!("no endpoint has an address of {family}"),
        false if cluster.nodes().next().is_none() => "there are no Nodes".into(),
        false if service.spec.external_traffic_policy == "Local" => {
            format!("no node with an address of {family} has an endpoint of it")
        }
        false => format!("no node has an address of {family}"),
    };
    format!("nobody serves port {number}: {why}")
}

/// What a name stands for.
pub(super) fn of_name(name: &str, port: u16) -> Found {
    let named = named_backend(name, NonZeroU16::new(port)).into_iter().collect();
    Found { named, ..Found::default() }
}

fn named_backend(name: &str, port: Option<NonZeroU16>) -> Option<NamedBackends> {
    let name = dns_name(name)?;
    Some(NamedBackends {
        query: Query::Host(name.clone()),
        port,
        weight: None,
        priority: None,
        backup: false,
        name,
        zone: None,
    })
}

fn backend(addr: BackendAddr, weight: Weight) -> BackendSpec {
    BackendSpec {
        addr,
        weight,
        priority: Priority::Given(0),
        serving: Serving::Yes,
        name: None,
        zone: None,
    }
}

/// The same backends, at the port that clients dialled.
pub(super) fn at_the_dialled_port(backends: Vec<BackendSpec>) -> Vec<BackendSpec> {
    let at = |spec: BackendSpec| {
        let addr = BackendAddr::new(spec.addr.ip(), None);
        (addr, BackendSpec { addr, ..spec })
    };
    // Several ports of one address are one backend.
    backends.into_iter().map(at).collect::<BTreeMap<_, _>>().into_values().collect()
}
