//! What is known of a Service before anybody knows who serves it. Pure.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use fairway_core::{AddrSet, IpPrefix, Policy, Protocol};

use super::backends;
use super::cluster::Cluster;
use super::objects::{Name, Service, ServicePort};
use super::reduced::protocol;
use super::settings::{self, OF_SERVICE, Setting, Sketch};
use super::translate::{
    Finding, PortOutcome, Rules, Target, Translation, annotation, at_port, check_of, keeps_address,
    lacks_source, node_check, wanted_target,
};
use crate::spec::{Origin, ServiceSpec};

/// For how long clients are remembered when nobody says so, as the API server has it.
const AFFINITY: Duration = Duration::from_secs(10_800);
/// Older than `trafficDistribution`, and with the same meaning here.
const TOPOLOGY_MODE: &str = "service.kubernetes.io/topology-mode";

/// What a Service that is ours comes to at its addresses, but for who serves it: all that its fields, its annotations
/// and the rules say. Endpoints come and go far more often than these change.
#[derive(Debug)]
pub struct Draft {
    service: Arc<Service>,
    rules: Arc<Rules>,
    given: Vec<IpAddr>,
    origin: Origin,
    /// Those that it was given, and those that are routed to it besides.
    addresses: Vec<IpAddr>,
    /// Findings, and what becomes of each port.
    known: Translation,
    ports: Vec<PortDraft>,
}

/// A port that is served.
#[derive(Debug)]
struct PortDraft {
    /// Its place among the Service's ports.
    place: usize,
    /// What is served there, without backends.
    spec: ServiceSpec,
    to_pods: bool,
}

impl Draft {
    /// What follows for a Service at the addresses that it was given.
    #[must_use]
    pub fn new(
        service: &Arc<Service>,
        rules: &Arc<Rules>,
        given: &[IpAddr],
        origin: &Origin,
    ) -> Self {
        let mut known = Translation::default();
        let addresses = with_external(service, rules, given, &mut known);
        let ports = drafts(service, rules, &addresses, origin, &mut known);
        Self {
            service: Arc::clone(service),
            rules: Arc::clone(rules),
            given: given.to_vec(),
            origin: origin.clone(),
            addresses,
            known,
            ports: ports.unwrap_or_default(),
        }
    }

    /// Whether it would come out the same. Costs a few comparisons.
    #[must_use]
    pub fn is_of(
        &self,
        service: &Arc<Service>,
        rules: &Arc<Rules>,
        given: &[IpAddr],
        origin: &Origin,
    ) -> bool {
        Arc::ptr_eq(&self.service, service)
            && Arc::ptr_eq(&self.rules, rules)
            && self.given == given
            && self.origin == *origin
    }

    /// The whole, with those who serve the Service in `cluster`.
    #[must_use]
    pub fn served_in(&self, cluster: &Cluster) -> Translation {
        let Self { service, rules, addresses, .. } = self;
        let mut out = self.known.clone();
        let slices = cluster.endpoints(&service.metadata.name());
        for stray in slices.iter().flat_map(|slice| &slice.strays) {
            out.find("InvalidEndpoint", format!("endpoint `{stray}` is no IP address"));
        }
        for PortDraft { place, spec, to_pods } in &self.ports {
            let port = &service.spec.ports[*place];
            let at = (port.port, &**addresses);
            let before = out.specs.len();
            at_port(&mut out, spec, at, *to_pods, |is_ipv4| match to_pods {
                true if service.spec.kind == "ExternalName" => {
                    backends::of_name(&service.spec.external_name, port.port)
                }
                true => backends::pods(&slices, service, port, is_ipv4, rules),
                false => backends::nodes(cluster, &slices, service, port, is_ipv4, rules),
            });
            let idle = |spec: &&Arc<ServiceSpec>| spec.backends.is_empty() && spec.named.is_empty();
            let idle = out.specs[before..].iter().filter(idle).map(|spec| {
                let is_ipv4 = spec.frontends.first().is_some_and(|at| at.ip().is_ipv4());
                let who = (*to_pods, is_ipv4);
                let message = backends::why_nobody(cluster, &slices, service, port, who);
                Finding { reason: "NoBackends", message }
            });
            out.idle.extend(idle.collect::<Vec<_>>());
        }
        lacks_source(&mut out);
        out
    }
}

/// The ports that are served; none when something is missing without which nothing is.
fn drafts(
    service: &Service,
    rules: &Rules,
    addresses: &[IpAddr],
    origin: &Origin,
    out: &mut Translation,
) -> Option<Vec<PortDraft>> {
    let name = service.metadata.name();
    let allow = source_ranges(service, out)?;
    let target = target(service, rules, out);
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
    let mut ports = ports(service, &settings, out);
    if ports.is_empty() || addresses.is_empty() {
        return None;
    }
    let mut made = made(&name, addresses, &ports, &settings, (rules, origin), out);
    // The packet mode that they need was refused.
    if made.is_none() && ports.iter().any(|(_, port)| is_sctp(port)) {
        for (n, _) in ports.extract_if(.., |(_, port)| is_sctp(port)) {
            out.ports[n].error = Some("fairway.dev/NeedsPacketMode");
        }
        made = self::made(&name, addresses, &ports, &settings, (rules, origin), out);
    }
    let settings::Made { specs, is_checked } = made?;
    let mode = specs.first()?.policy.mode;
    out.keeps_address = keeps_address(mode);
    let labels = Arc::new(service.metadata.labels.clone());
    let mut drafts = Vec::with_capacity(specs.len());
    for ((place, port), spec) in ports.into_iter().zip(specs) {
        let to_pods = target == Target::Pod || port.node_port == 0;
        let answers = annotation(&service.metadata, "podsAnswerForVip") == Some("true");
        if to_pods && out.keeps_address && !answers {
            out.ports[place].error = Some("fairway.dev/PodsDoNotAnswer");
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
        let spec = ServiceSpec {
            policy: Arc::new(Policy { allow: allow.clone(), ..(*spec.policy).clone() }),
            check: check_of(&spec, is_checked, to_pods),
            app_protocol: port.app_protocol.as_deref().map(Into::into),
            labels: Arc::clone(&labels),
            origin: origin.clone(),
            ..spec
        };
        drafts.push(PortDraft { place, spec, to_pods });
    }
    Some(drafts)
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
