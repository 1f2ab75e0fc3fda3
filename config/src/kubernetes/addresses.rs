//! What a Service asks of whoever gives it addresses.

use std::net::IpAddr;

use fairway_core::Protocol;

use super::objects::{Labels, Meta, Service};
use super::reduced::protocol;
use super::settings::PREFIX;
use super::translate::Finding;

/// Prefixes of MetalLB's annotations, the newest first.
const METALLB: [&str; 2] = ["metallb.io/", "metallb.universe.tf/"];

/// What a Service asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// Families of addresses, IPv4 is true, the one that matters first; none is what there is, IPv4
    /// first.
    pub families: Vec<bool>,
    /// Whether it must have an address of each family.
    pub needs_all: bool,
    /// These addresses and no others; none is any.
    pub addresses: Vec<IpAddr>,
    /// Addresses of this pool.
    pub pool: Option<Box<str>>,
    /// With whom it may share addresses.
    pub sharing: Option<Sharing>,
    /// What it has of an address.
    pub ports: Vec<(Protocol, u16)>,
}

/// With whom a Service may share addresses: with others of which this is the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sharing {
    /// The key, as it is written.
    pub key: Box<str>,
    /// With the policy `Local`: whom it selects. Such Services share only with those of the same Pods,
    /// which are on the same nodes.
    pub backends: Option<Labels>,
}

/// What a Service asks for.
pub fn wish(service: &Service) -> Result<Wish, Finding> {
    let (meta, spec) = (&service.metadata, &service.spec);
    let of_annotation = asked_by(meta, "addresses", "loadBalancerIPs");
    let (origin, texts) = match (of_annotation, spec.load_balancer_ip.as_str()) {
        (Some((key, _)), ip) if !ip.is_empty() => {
            return Err(refuse(format!(
                "annotation `{key}` and `spec.loadBalancerIP` both name addresses; remove one"
            )));
        }
        (Some((key, text)), _) => (format!("annotation `{key}`"), text.as_str()),
        (None, text) => ("`spec.loadBalancerIP`".into(), text),
    };
    let families: Vec<bool> = spec.ip_families.iter().map(|family| family == "IPv4").collect();
    let local = (spec.external_traffic_policy == "Local").then(|| spec.selector.clone());
    let ports = spec.ports.iter();
    Ok(Wish {
        addresses: addresses_of(&origin, texts, &families)?,
        families,
        needs_all: spec.ip_family_policy == "RequireDualStack",
        pool: asked_by(meta, "addressPool", "address-pool").map(|(_, pool)| pool.as_str().into()),
        sharing: sharing_of(meta, local),
        ports: ports.filter_map(|port| Some((protocol(&port.protocol)?, port.port))).collect(),
    })
}

/// One of our annotations, or what MetalLB's users write for it, with its key.
pub(super) fn asked_by<'m>(
    meta: &'m Meta,
    ours: &str,
    theirs: &str,
) -> Option<(&'m String, &'m String)> {
    let metallb = METALLB.iter().map(|prefix| format!("{prefix}{theirs}"));
    let mut keys = std::iter::once(format!("{PREFIX}{ours}")).chain(metallb);
    keys.find_map(|key| meta.annotations.get_key_value(&key))
}

/// With whom addresses may be shared; `backends` is there with the policy `Local`.
pub(super) fn sharing_of(meta: &Meta, backends: Option<Labels>) -> Option<Sharing> {
    let (_, key) = asked_by(meta, "sharingKey", "allow-shared-ip")?;
    Some(Sharing { key: key.as_str().into(), backends })
}

/// Addresses as they are written, with commas between; `origin` says where.
pub(super) fn addresses_of(
    origin: &str,
    texts: &str,
    families: &[bool],
) -> Result<Vec<IpAddr>, Finding> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for text in texts.split(',').map(str::trim).filter(|text| !text.is_empty()) {
        let ip = text.parse::<IpAddr>();
        let ip = ip.map_err(|_| refuse(format!("{origin}: `{text}` is no IP address")))?;
        if ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() {
            return Err(refuse(format!("{origin}: `{ip}` cannot be dialled from outside")));
        }
        if addresses.contains(&ip) {
            return Err(refuse(format!("{origin}: `{ip}` is there twice")));
        }
        if !families.is_empty() && !families.contains(&ip.is_ipv4()) {
            let words = families.iter().map(|is_ipv4| if *is_ipv4 { "IPv4" } else { "IPv6" });
            let words = words.collect::<Vec<_>>().join(", ");
            return Err(refuse(format!("{origin}: `{ip}` is of none of its families ({words})")));
        }
        addresses.push(ip);
    }
    Ok(addresses)
}

pub(super) fn refuse(message: String) -> Finding {
    Finding { reason: "InvalidAddressRequest", message }
}
