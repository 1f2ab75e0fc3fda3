//! The rules by which Services are served, and what they come to. Pure: the same objects give the same.

use std::net::IpAddr;
use std::sync::Arc;

use fairway_core::{Frontend, IpPrefix, Mode, PortRange, Protocol};

use super::backends::{self, Found};
use super::objects::{Meta, Service};
use super::settings::{PREFIX, Setting};
use crate::check::Means;
use crate::document::NodeAddressDoc;
use crate::spec::{CheckSpec, ServiceKey, ServiceSpec};

/// Where kube-proxy says whether a node carries traffic from outside.
const HEALTHZ_PORT: u16 = 10256;

/// Which Services are ours, and how they are served when they do not say.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// The class of our Services.
    pub class: Box<str>,
    /// Whether Services without a class are ours.
    pub is_default: bool,
    /// Who serves them.
    pub target: Target,
    /// Which addresses of nodes are dialled.
    pub node_address: NodeAddressDoc,
    /// Whether `externalIPs` are served.
    pub external_ips: bool,
    /// Where this box stands.
    pub zone: Option<Box<str>>,
    /// Settings of all Services that have none of their own.
    pub(crate) defaults: Vec<Setting>,
    pub(crate) means: Means,
}

/// Who serves a Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Nodes, at their ports for it.
    Node,
    /// Its Pods.
    Pod,
}

/// What a Service is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It is to have addresses, and to be served.
    LoadBalancer,
    /// It is of another type, and its annotation asks that it be served at an address that it names.
    Exposed,
    /// Nothing.
    Foreign,
}

impl Rules {
    /// What a Service is to us.
    #[must_use]
    pub fn role(&self, service: &Service) -> Role {
        let exposed = || annotation(&service.metadata, "expose") == Some("true");
        match (service.spec.kind.as_str(), &service.spec.load_balancer_class) {
            ("LoadBalancer", Some(class)) if **class == *self.class => Role::LoadBalancer,
            ("LoadBalancer", None) if self.is_default => Role::LoadBalancer,
            ("LoadBalancer", _) => Role::Foreign,
            _ if exposed() => Role::Exposed,
            _ => Role::Foreign,
        }
    }
}

/// One of our annotations.
pub(super) fn annotation<'m>(meta: &'m Meta, word: &str) -> Option<&'m str> {
    let of_ours = |(key, _): &(&String, &String)| key.strip_prefix(PREFIX) == Some(word);
    let mut annotations = meta.annotations.iter();
    annotations.find(of_ours).map(|(_, value)| value.as_str())
}

/// Something about a Service that its owner should know.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// A word for programs, like `InvalidAnnotation`.
    pub reason: &'static str,
    /// For people: what was found, and what to do.
    pub message: String,
}

/// A port of a Service, as its status tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortOutcome {
    /// Its number.
    pub port: u16,
    /// Its protocol.
    pub protocol: Box<str>,
    /// Why it is not served.
    pub error: Option<&'static str>,
}

/// What a Service comes to.
#[derive(Debug, Default, Clone)]
pub struct Translation {
    /// What is to be served.
    pub specs: Vec<Arc<ServiceSpec>>,
    /// What its owner should know.
    pub findings: Vec<Finding>,
    /// Each of its ports.
    pub ports: Vec<PortOutcome>,
    /// Whether packets reach their servers with the address that clients dialled.
    pub keeps_address: bool,
    /// One of the Pods that serve, if Pods do.
    pub pod: Option<IpAddr>,
    /// Ports that nobody serves, and why: of a new Service that is no news.
    pub idle: Vec<Finding>,
}

impl Translation {
    pub(super) fn find(&mut self, reason: &'static str, message: impl Into<String>) {
        let finding = Finding { reason, message: message.into() };
        if !self.findings.contains(&finding) {
            self.findings.push(finding);
        }
    }
}

/// Adds what one port comes to: a service at its addresses of each family, with whoever serves that.
pub(super) fn at_port(
    out: &mut Translation,
    spec: &ServiceSpec,
    (port, addresses): (u16, &[IpAddr]),
    to_pods: bool,
    serve: impl Fn(bool) -> Found,
) {
    let mode = spec.policy.mode;
    for (family, is_ipv4) in families(addresses).into_iter().enumerate() {
        let Found { mut backends, named, more } = serve(is_ipv4);
        if more > 0 {
            out.find("TooManyEndpoints", format!("{more} endpoints are more than a pool holds"));
        }
        if to_pods {
            out.pod = out.pod.or(backends.first().map(|backend| backend.addr.ip()));
        }
        if keeps_address(mode) {
            backends = backends::at_the_dialled_port(backends);
        }
        let own = addresses.iter().filter(|ip| ip.is_ipv4() == is_ipv4);
        out.specs.push(Arc::new(ServiceSpec {
            key: key(&spec.key, family, is_ipv4),
            frontends: own.map(|ip| frontend(*ip, port, spec.protocol)).collect(),
            backends,
            named,
            ..spec.clone()
        }));
    }
}

/// Whether packets reach their servers with the address that clients dialled.
pub(super) fn keeps_address(mode: Mode) -> bool {
    matches!(mode, Mode::Dsr | Mode::Tunnel(_))
}

/// The families of addresses, IPv4 is true; the first is that of the first address.
fn families(addresses: &[IpAddr]) -> Vec<bool> {
    let mut families: Vec<bool> = addresses.iter().map(IpAddr::is_ipv4).collect();
    let first = families.first().copied();
    families.sort_by_key(|family| Some(*family) != first);
    families.dedup();
    families
}

/// Of two families the second has a key of its own; no port or listener has a colon in its name.
fn key(key: &ServiceKey, family: usize, is_ipv4: bool) -> ServiceKey {
    match (family, is_ipv4) {
        (0, _) => key.clone(),
        (_, true) => ServiceKey(format!("{key}:ipv4").into()),
        (_, false) => ServiceKey(format!("{key}:ipv6").into()),
    }
}

fn frontend(ip: IpAddr, port: u16, protocol: Protocol) -> Frontend {
    let ports = std::num::NonZeroU16::new(port).unwrap_or(std::num::NonZeroU16::MIN);
    Frontend { net: IpPrefix::from(ip), ports: PortRange::single(ports), protocol }
}

/// Who is to be dialled, where there is a choice.
pub(super) fn wanted_target(meta: &Meta, rules: &Rules, out: &mut Translation) -> Target {
    match annotation(meta, "target") {
        None => rules.target,
        Some("node") => Target::Node,
        Some("pod") => Target::Pod,
        Some(other) => {
            let why = format!("annotation `{PREFIX}target` is `{other}`; it is `node` or `pod`");
            out.find("InvalidAnnotation", why);
            rules.target
        }
    }
}

/// How nodes are asked whether they carry this Service.
pub(super) fn node_check(service: &Service) -> Option<Setting> {
    let is_local = service.spec.external_traffic_policy == "Local";
    let port = match (is_local, service.spec.health_check_node_port) {
        // A node drops connections for which it has no endpoint.
        (true, 0) => return Setting::usual("healthCheck", "{type: tcp}"),
        (true, port) => port,
        (false, _) => HEALTHZ_PORT,
    };
    Setting::usual("healthCheck", &format!("{{type: http, path: /healthz, port: {port}}}"))
}

/// The checks of a port's backends: kubelets check Pods, and kube-proxy speaks for nodes, not in the
/// words of the Service.
pub(super) fn check_of(
    spec: &ServiceSpec,
    is_written: bool,
    to_pods: bool,
) -> Option<Arc<CheckSpec>> {
    let check = spec.check.as_ref()?;
    match (is_written, to_pods) {
        (true, _) => Some(Arc::clone(check)),
        (false, true) => None,
        (false, false) if check.header.is_none() => Some(Arc::clone(check)),
        (false, false) => Some(Arc::new(CheckSpec { header: None, ..(**check).clone() })),
    }
}

/// `fullNat` comes from an address of each backend's family.
pub(super) fn lacks_source(out: &mut Translation) {
    let lacks = |spec: &&Arc<ServiceSpec>| {
        let sources = &spec.policy.source.addresses;
        let has = |is_ipv4: bool| sources.iter().any(|ip| ip.is_ipv4() == is_ipv4);
        spec.policy.mode == Mode::FullNat
            && spec.backends.iter().any(|backend| !has(backend.addr.ip().is_ipv4()))
    };
    if let Some(spec) = out.specs.iter().find(lacks) {
        let key = spec.key.clone();
        out.find(
            "NoSourceAddress",
            format!("{key}: `source` has no address of its backends' family to come from"),
        );
    }
}
