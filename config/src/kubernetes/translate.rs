//! From a Service and what serves it to what is to be served. Pure: the same objects give the same.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use fairway_core::{AddrSet, Frontend, IpPrefix, Mode, Policy, PortRange, Protocol};

use super::backends::{self, Found};
use super::cluster::Cluster;
use super::objects::{Meta, Name, Service, ServicePort};
use super::reduced::protocol;
use super::settings::{self, OF_SERVICE, PREFIX, Setting, Sketch};
use crate::check::Means;
use crate::document::NodeAddressDoc;
use crate::spec::{CheckSpec, Origin, ServiceKey, ServiceSpec};

/// Where kube-proxy says whether a node carries traffic from outside.
const HEALTHZ_PORT: u16 = 10256;
/// For how long clients are remembered when nobody says so, as the API server has it.
const AFFINITY: Duration = Duration::from_secs(10_800);
/// Older than `trafficDistribution`, and with the same meaning here.
const TOPOLOGY_MODE: &str = "service.kubernetes.io/topology-mode";

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
#[derive(Debug, Default)]
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

/// What a Service that is ours comes to at these addresses.
#[must_use]
pub fn translate(
    cluster: &Cluster,
    service: &Service,
    rules: &Rules,
    addresses: &[IpAddr],
    origin: &Origin,
) -> Translation {
    let mut out = Translation::default();
    let name = service.metadata.name();
    let addresses = with_external(service, rules, addresses, &mut out);
    let Some(allow) = source_ranges(service, &mut out) else { return out };
    let target = target(service, rules, &mut out);
    let mut settings = Vec::new();
    settings.extend(node_check(service).filter(|_| target == Target::Node));
    settings.extend(rules.defaults.iter().cloned());
    settings.extend(settings::of_annotations(
        service.metadata.annotations.iter(),
        &OF_SERVICE,
        |why| {
            out.find("InvalidAnnotation", why);
        },
    ));
    settings.extend(of_service(service));
    let mut ports = ports(service, &settings, &mut out);
    if ports.is_empty() || addresses.is_empty() {
        return out;
    }
    let mut made = made(&name, &addresses, &ports, &settings, (rules, origin), &mut out);
    // The packet mode that they need was refused.
    if made.is_none() && ports.iter().any(|(_, port)| is_sctp(port)) {
        for (n, _) in ports.extract_if(.., |(_, port)| is_sctp(port)) {
            out.ports[n].error = Some("fairway.dev/NeedsPacketMode");
        }
        made = self::made(&name, &addresses, &ports, &settings, (rules, origin), &mut out);
    }
    let Some(settings::Made { specs, is_checked }) = made else { return out };
    let Some(mode) = specs.first().map(|spec| spec.policy.mode) else { return out };
    out.keeps_address = keeps_address(mode);
    let slices = cluster.endpoints(&name);
    for stray in slices.iter().flat_map(|slice| &slice.strays) {
        out.find("InvalidEndpoint", format!("endpoint `{stray}` is no IP address"));
    }
    let labels = Arc::new(service.metadata.labels.clone());
    for ((n, port), spec) in ports.into_iter().zip(specs) {
        let to_pods = target == Target::Pod || port.node_port == 0;
        let spec = ServiceSpec {
            policy: Arc::new(Policy { allow: allow.clone(), ..(*spec.policy).clone() }),
            check: check_of(&spec, is_checked, to_pods),
            app_protocol: port.app_protocol.as_deref().map(Into::into),
            labels: Arc::clone(&labels),
            origin: origin.clone(),
            ..spec
        };
        let answers = annotation(&service.metadata, "podsAnswerForVip") == Some("true");
        if to_pods && out.keeps_address && !answers {
            out.ports[n].error = Some("fairway.dev/PodsDoNotAnswer");
            out.find(
                "PodsDoNotAnswer",
                format!(
                    "mode `{mode}` leaves the address that clients dialled in packets, and Pods answer \
                     for theirs alone: `fairway.dev/target: node`, or \
                     `fairway.dev/podsAnswerForVip: \"true\"` when they have the address"
                ),
            );
            continue;
        }
        let at = (port.port, &*addresses);
        let before = out.specs.len();
        at_port(&mut out, &spec, at, to_pods, |is_ipv4| match to_pods {
            true if service.spec.kind == "ExternalName" => {
                backends::of_name(&service.spec.external_name, port.port)
            }
            true => backends::pods(&slices, service, port, is_ipv4, rules),
            false => backends::nodes(cluster, &slices, service, port, is_ipv4, rules),
        });
        let idle = |spec: &&Arc<ServiceSpec>| spec.backends.is_empty() && spec.named.is_empty();
        let idle = out.specs[before..].iter().filter(idle).map(|spec| {
            let is_ipv4 = spec.frontends.first().is_some_and(|at| at.ip().is_ipv4());
            let who = (to_pods, is_ipv4);
            let message = backends::why_nobody(cluster, &slices, service, port, who);
            Finding { reason: "NoBackends", message }
        });
        out.idle.extend(idle.collect::<Vec<_>>());
    }
    lacks_source(&mut out);
    out
}

/// What the document would make of some ports of a Service.
fn made(
    name: &Name,
    addresses: &[IpAddr],
    ports: &[(usize, &ServicePort)],
    settings: &[Setting],
    (rules, origin): (&Rules, &Origin),
    out: &mut Translation,
) -> Option<settings::Made> {
    let port = |(_, port): &(usize, &ServicePort)| (&*port.name).into();
    let sketch = Sketch {
        name: &name.to_string(),
        addresses: addresses.iter().map(|ip| ip.to_string().into()).collect(),
        ports: ports.iter().map(|at| (port(at), word(at.1), at.1.port)).collect(),
    };
    settings::specs(&sketch, settings.to_vec(), rules.means, &origin.file, |_, why| {
        out.find("InvalidAnnotation", why);
    })
}

fn is_sctp(port: &ServicePort) -> bool {
    protocol(&port.protocol) == Some(Protocol::Sctp)
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

/// The addresses that it has, and those that are routed to it besides.
fn with_external(
    service: &Service,
    rules: &Rules,
    addresses: &[IpAddr],
    out: &mut Translation,
) -> Vec<IpAddr> {
    let mut all = addresses.to_vec();
    for text in service.spec.external_ips.iter().filter(|_| rules.external_ips) {
        match text.parse::<IpAddr>() {
            Ok(ip) if all.contains(&ip) => {}
            Ok(ip) => all.push(ip),
            Err(_) => {
                out.find("InvalidService", format!("`externalIPs`: `{text}` is no IP address"))
            }
        }
    }
    all
}

/// Clients that may connect; none when all that is written is nonsense, which is not everybody.
fn source_ranges(service: &Service, out: &mut Translation) -> Option<AddrSet> {
    let written = &service.spec.load_balancer_source_ranges;
    let mut ranges: Vec<IpPrefix> = Vec::new();
    for text in written {
        // As the API server takes them: with spaces, and with bits behind the prefix.
        let (ip, length) = text.trim().split_once('/').unwrap_or((text.trim(), ""));
        match (ip.parse::<IpAddr>(), length.parse::<u8>()) {
            (Ok(ip), Ok(length)) if length <= if ip.is_ipv4() { 32 } else { 128 } => {
                ranges.push(IpPrefix::containing(ip, length));
            }
            _ => out.find(
                "InvalidService",
                format!("`loadBalancerSourceRanges`: `{text}` is no prefix, like 192.0.2.0/24"),
            ),
        }
    }
    if ranges.is_empty() && !written.is_empty() {
        out.find("InvalidService", "no client may connect, and nothing is served");
        return None;
    }
    Some(ranges.into_iter().collect())
}

fn target(service: &Service, rules: &Rules, out: &mut Translation) -> Target {
    let headless = service.spec.cluster_ip == "None";
    match service.spec.kind.as_str() {
        "LoadBalancer" | "NodePort" if !headless => wanted_target(&service.metadata, rules, out),
        _ => Target::Pod,
    }
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

/// What the Service itself says, in the document's words.
fn of_service(service: &Service) -> Vec<Setting> {
    let spec = &service.spec;
    let mut settings = Vec::new();
    if spec.session_affinity == "ClientIP" {
        let config = spec.session_affinity_config.as_ref();
        let timeout = config.and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
        let seconds = timeout.map_or(AFFINITY.as_secs(), Into::into);
        settings.extend(Setting::usual("sessionAffinity", "ClientIP"));
        settings.extend(Setting::usual("sessionAffinityTimeout", &format!("{seconds}s")));
    }
    let hinted = service.metadata.annotations.get(TOPOLOGY_MODE).is_some_and(|mode| mode == "Auto");
    if spec.traffic_distribution.is_some() || hinted {
        settings.extend(Setting::usual("trafficDistribution", "PreferSameZone"));
    }
    settings
}

/// The ports that can be served, with their places among all.
fn ports<'s>(
    service: &'s Service,
    settings: &[Setting],
    out: &mut Translation,
) -> Vec<(usize, &'s ServicePort)> {
    let mode = settings.iter().rev().find(|setting| &*setting.field == "mode");
    let is_proxied = mode.is_none_or(|mode| mode.value.kind() == "`proxy`");
    let mut served = Vec::new();
    if service.spec.ports.is_empty() {
        out.find("InvalidService", "it has no ports; `spec.ports` names those that clients dial");
    }
    for (n, port) in service.spec.ports.iter().enumerate() {
        let word = if port.protocol.is_empty() { "TCP" } else { &port.protocol };
        let error = match protocol(&port.protocol) {
            _ if port.port == 0 => {
                out.find("InvalidService", "a port has no `port`: the number that clients dial");
                Some("fairway.dev/NoPort")
            }
            None => {
                out.find("UnsupportedProtocol", format!("`{word}` is not served"));
                Some("fairway.dev/UnsupportedProtocol")
            }
            Some(Protocol::Sctp) if is_proxied => {
                out.find(
                    "UnsupportedProtocol",
                    "SCTP is not carried by mode `proxy`, but by the packet modes, like \
                     `fairway.dev/mode: nat`",
                );
                Some("fairway.dev/NeedsPacketMode")
            }
            Some(_) => None,
        };
        if error.is_none() {
            served.push((n, port));
        }
        out.ports.push(PortOutcome { port: port.port, protocol: word.into(), error });
    }
    served
}

fn word(port: &ServicePort) -> &'static str {
    match protocol(&port.protocol) {
        Some(Protocol::Udp) => "UDP",
        Some(Protocol::Sctp) => "SCTP",
        Some(Protocol::Tcp) | None => "TCP",
    }
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
