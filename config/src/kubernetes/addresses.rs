//! What a Service asks of whoever gives it addresses.

use std::net::IpAddr;

use fairway_core::Protocol;

use super::cluster::protocol;
use super::objects::{Labels, Service};
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
    let refuse = |message: String| Finding { reason: "InvalidAddressRequest", message };
    let spec = &service.spec;
    let annotation = |ours: &str, theirs: &str| {
        let annotations = &service.metadata.annotations;
        let metallb = METALLB.iter().map(|prefix| format!("{prefix}{theirs}"));
        let mut keys = std::iter::once(format!("{PREFIX}{ours}")).chain(metallb);
        keys.find_map(|key| annotations.get_key_value(&key))
    };
    let of_annotation = annotation("addresses", "loadBalancerIPs");
    let (origin, texts) = match (of_annotation, spec.load_balancer_ip.as_str()) {
        (Some((key, _)), ip) if !ip.is_empty() => {
            return Err(refuse(format!(
                "annotation `{key}` and `spec.loadBalancerIP` both name addresses; remove one"
            )));
        }
        (Some((key, text)), _) => (format!("annotation `{key}`"), text.as_str()),
        (None, text) => ("`spec.loadBalancerIP`".into(), text),
    };
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
        addresses.push(ip);
    }
    let families: Vec<bool> = spec.ip_families.iter().map(|family| family == "IPv4").collect();
    if let Some(ip) =
        addresses.iter().find(|ip| !families.is_empty() && !families.contains(&ip.is_ipv4()))
    {
        let families = spec.ip_families.join(", ");
        return Err(refuse(format!("{origin}: `{ip}` is of none of its families ({families})")));
    }
    let sharing = annotation("sharingKey", "allow-shared-ip").map(|(_, key)| Sharing {
        key: key.as_str().into(),
        backends: (spec.external_traffic_policy == "Local").then(|| spec.selector.clone()),
    });
    let ports = spec.ports.iter();
    Ok(Wish {
        families,
        needs_all: spec.ip_family_policy == "RequireDualStack",
        addresses,
        pool: annotation("addressPool", "address-pool").map(|(_, pool)| pool.as_str().into()),
        sharing,
        ports: ports.filter_map(|port| Some((protocol(&port.protocol)?, port.port))).collect(),
    })
}
