//! One service: each of its ports becomes a [`ServiceSpec`].

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use fairway_core::proxy_header::HeaderFormat;
use fairway_core::{
    AcceptHeader, AddrSet, Affinity, Frontend, HashFields, HashPolicy, IpPrefix, Limits, Mode,
    PassiveEjection, Policy, Protocol, ProxyProtocol, Retry, Scheduler, SendHeader, SourceAddress,
    TableSize, Timeouts, Udp,
};

use super::{Findings, backends, health, mode};
use crate::Problems;
use crate::document::{
    AcceptDoc, AffinityDoc, EjectionDoc, FieldsDoc, HeaderVersionDoc, ListenDoc, ModeDoc, PortDoc,
    ProtocolDoc, RetryOnDoc, SchedulerDoc, ServiceDoc,
};
use crate::spec::{Origin, Outliers, ServiceKey, ServiceSpec, SlowStart};
use crate::values::{Address, At, Dialled, Percent, Prefix, Size, Time};

/// Ports of a range that may each have a listener of their own.
const MOST_LISTENED: u32 = 64;

/// What the process has for its services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Means {
    /// How listeners are made; none when nobody is listened to.
    pub(crate) listen: Option<ListenDoc>,
    /// Whether there are interfaces for packets.
    pub(crate) packets: bool,
}

/// The specs of a service, each with the place of its port.
pub(crate) fn service(
    at: &At<ServiceDoc>,
    means: Means,
    findings: &mut Findings<'_>,
) -> Vec<(Arc<ServiceSpec>, Origin)> {
    let doc = &at.value;
    name(&doc.name, findings);
    let mode = mode::mode(doc, means, findings);
    let addresses = addresses(doc, mode, findings);
    let policy = Arc::new(policy(doc, mode, findings));
    source_ranges(doc, &addresses, findings);
    let panic_percent = percent("panicThreshold", doc.panic_threshold, 0, findings);
    let failover_percent = percent("failoverThreshold", doc.failover_threshold, 0, findings);
    let slow_start = slow_start(doc, findings);
    let outliers = outliers(&doc.ejection, findings);
    let check = health::check(doc, &policy, findings);
    let agent = health::agent(doc, findings);
    let ports = &doc.ports.value;
    if ports.is_empty() {
        findings.absent(doc.ports.place, "`ports` is empty; a service needs a port");
    }
    port_labels(ports, findings);
    if let Some(check) = &check {
        ports.iter().for_each(|port| health::check_port(doc, check, &port.value, findings));
    }
    let labels = Arc::new(doc.labels.clone());
    let mut specs = Vec::new();
    for port in ports {
        let Some(protocol) = protocol(&port.value, mode, findings) else {
            continue;
        };
        target(port, means.listen.filter(|_| mode == Mode::Proxy), findings);
        // Each port looks at the backends again; what is found is said once.
        let mut found = Problems::default();
        let mut of_backends =
            Findings { file: findings.file, complete: findings.complete, problems: &mut found };
        let (backends, named) = backends::read(doc, &port.value, &mut of_backends);
        if specs.is_empty() {
            findings.problems.list.append(&mut found.list);
        }
        let label = label(&port.value);
        let origin = Origin { file: Arc::clone(findings.file), place: at.place };
        let spec = ServiceSpec {
            key: ServiceKey(format!("{}/{label}", doc.name.value).into()),
            frontends: addresses
                .iter()
                .map(|net| Frontend { net: *net, ports: port.value.port.value.0, protocol })
                .collect(),
            protocol,
            app_protocol: None,
            labels: Arc::clone(&labels),
            policy: Arc::clone(&policy),
            backends,
            named,
            failover_percent,
            // A TCP connect says nothing of a UDP port; a check that is written is wanted.
            check: check
                .clone()
                .filter(|_| doc.health_check.is_some() || protocol == Protocol::Tcp),
            agent: agent.clone(),
            panic_percent,
            prefer_same_zone: doc.traffic_distribution.is_some(),
            outliers,
            slow_start,
            origin,
        };
        let place = port.value.port.place;
        specs.push((Arc::new(spec), Origin { file: Arc::clone(findings.file), place }));
    }
    specs
}

/// A part of a whole, in hundredths.
fn percent(name: &str, at: Option<At<Percent>>, default: u32, findings: &mut Findings<'_>) -> u32 {
    if let Some(at) = at.filter(|at| at.value.0 > 100) {
        findings.add(at.place, format!("`{name}` is {}%; it is 0% to 100%", at.value.0));
    }
    at.map_or(default, |at| at.value.0)
}

fn name(name: &At<String>, findings: &mut Findings<'_>) {
    let text = &name.value;
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    if text.is_empty() || text.len() > 253 || !text.chars().all(fits) {
        findings.add(
            name.place,
            format!("`{text}` is no name: letters, digits, `-`, `_`, `.`, `/`, at most 253"),
        );
    }
}

fn addresses(doc: &ServiceDoc, mode: Mode, findings: &mut Findings<'_>) -> Vec<IpPrefix> {
    let mut addresses = Vec::new();
    if doc.addresses.value.is_empty() {
        findings.absent(doc.addresses.place, "`addresses` is empty; clients need one to dial");
    }
    for At { place, value: Dialled(net) } in &doc.addresses.value {
        let net = if net.is_host() { net.address().to_canonical().into() } else { *net };
        let ip = net.address();
        if net.is_host() && ip.is_unspecified() || ip.is_multicast() {
            findings.add(*place, format!("`{ip}` cannot be dialled; name the address itself"));
        } else if addresses.contains(&net) {
            findings.add(*place, format!("`{net}` is listed twice; remove one"));
        } else if !net.is_host() && mode == Mode::Proxy {
            findings.add(
                *place,
                format!(
                    "`{net}`: mode `proxy` listens on single addresses; packet modes take networks"
                ),
            );
        } else {
            addresses.push(net);
        }
    }
    addresses
}

fn label(port: &PortDoc) -> String {
    match &port.name {
        Some(name) => name.value.clone(),
        None => port.port.value.0.to_string(),
    }
}

fn port_labels(ports: &[At<PortDoc>], findings: &mut Findings<'_>) {
    let mut seen = HashSet::new();
    for port in ports {
        if let Some(name) = &port.value.name {
            self::name(name, findings);
            if name.value.contains('/') {
                findings.add(name.place, format!("`{}`: no `/` in the name of a port", name.value));
            }
        }
        let label = label(&port.value);
        if !seen.insert(label.clone()) {
            let place = port.value.name.as_ref().map_or(port.place, |name| name.place);
            findings.add(place, format!("port `{label}` is here twice; give each a `name`"));
        }
    }
}

fn protocol(port: &PortDoc, mode: Mode, findings: &mut Findings<'_>) -> Option<Protocol> {
    match port.protocol {
        None | Some(At { value: ProtocolDoc::Tcp, .. }) => Some(Protocol::Tcp),
        Some(At { value: ProtocolDoc::Udp, .. }) => Some(Protocol::Udp),
        Some(At { value: ProtocolDoc::Sctp, .. }) if mode != Mode::Proxy => Some(Protocol::Sctp),
        Some(At { place, value: ProtocolDoc::Sctp }) => {
            findings.add(
                place,
                "`SCTP` is not carried by mode `proxy`, but by the packet modes, like `nat`",
            );
            None
        }
    }
}

fn target(port: &At<PortDoc>, listen: Option<ListenDoc>, findings: &mut Findings<'_>) {
    let ports = port.value.port.value.0;
    if let Some(target) = port.value.target_port.as_ref().filter(|target| target.value == 0) {
        findings.add(target.place, "`targetPort` is 0; ports are 1 to 65535");
    }
    if ports.len() > MOST_LISTENED && listen == Some(ListenDoc::PerAddress) {
        findings.add(
            port.value.port.place,
            format!(
                "a range of {} ports needs `dataplane.listen: tproxy`; with `perAddress` a range \
                 has at most {MOST_LISTENED}",
                ports.len()
            ),
        );
    }
}

fn outliers(doc: &EjectionDoc, findings: &mut Findings<'_>) -> Outliers {
    let max_ejected_percent = percent("maxEjection", doc.max_ejection, 50, findings);
    let failure_percent = percent("failureRate", doc.failure_rate, 50, findings);
    if let Some(at) = doc.slow_factor.filter(|at| at.value < 2) {
        findings.add(at.place, format!("`slowFactor` is {}; it is 2 or more", at.value));
    }
    if let Some(at) = doc.success_rate_deviation.filter(|at| at.value.0 == 0) {
        findings.add(
            at.place,
            "`successRateDeviation` is 0% and would eject half of all; 190% is usual",
        );
    }
    if let Some(at) = doc.min_samples.filter(|at| at.value == 0) {
        findings.add(at.place, "`minSamples` is 0; at least 1 connection says something");
    }
    Outliers {
        max_ejected_percent,
        window: findings.time("window", doc.window.as_ref(), "10s"),
        min_samples: doc.min_samples.map_or(20, |at| at.value.max(1)),
        failure_percent: (failure_percent > 0).then_some(failure_percent),
        deviation_percent: doc.success_rate_deviation.map(|at| at.value.0),
        slow_factor: doc.slow_factor.map(|at| at.value),
        slow_above: findings.time("slowAbove", doc.slow_above.as_ref(), "5ms"),
    }
}

fn slow_start(doc: &ServiceDoc, findings: &mut Findings<'_>) -> Option<SlowStart> {
    let At { value: slow, .. } = doc.slow_start.as_ref()?;
    let from_percent = slow.from.map_or(10, |at| at.value.0);
    if let Some(at) = slow.from.filter(|at| !(1..=100).contains(&at.value.0)) {
        findings.add(at.place, format!("`from` is {}%; it is 1% to 100%", at.value.0));
    }
    let window = findings.time("window", Some(&slow.window), "30s");
    Some(SlowStart { window, curve: slow.curve, from_percent })
}

fn source_ranges(doc: &ServiceDoc, addresses: &[IpPrefix], findings: &mut Findings<'_>) {
    let ranges = &doc.load_balancer_source_ranges;
    let Some(first) = ranges.first() else { return };
    for (is_v4, family, other) in [(true, "IPv4", "IPv6"), (false, "IPv6", "IPv4")] {
        let served = addresses.iter().any(|ip| ip.is_ipv4() == is_v4);
        let allowed = ranges.iter().any(|range| range.value.0.is_ipv4() == is_v4);
        if served && !allowed {
            findings.add(
                first.place,
                format!(
                    "only {other} clients are allowed here, and they cannot reach the {family} \
                     address of the service; add {family} ranges, or remove that address"
                ),
            );
        }
    }
}

fn policy(doc: &ServiceDoc, mode: Mode, findings: &mut Findings<'_>) -> Policy {
    let (scheduler, fields) = scheduler(doc, findings);
    let set = |ranges: &[At<Prefix>]| -> AddrSet { ranges.iter().map(|at| at.value.0).collect() };
    let timeouts = Timeouts {
        connect: findings.time("connect", doc.timeouts.connect.as_ref(), "3s"),
        idle: findings.time("idle", doc.timeouts.idle.as_ref(), "1h"),
        half_closed: findings.time("halfClosed", doc.timeouts.half_closed.as_ref(), "1m"),
    };
    let affinity_timeout =
        findings.time("sessionAffinityTimeout", doc.session_affinity_timeout.as_ref(), "3h");
    let affinity = (doc.session_affinity == Some(AffinityDoc::ClientIP))
        .then_some(Affinity { timeout: affinity_timeout });
    Policy {
        mode,
        scheduler,
        hash: hash(doc, fields, findings),
        affinity,
        retry: retry(doc, timeouts.connect, findings),
        timeouts,
        source: source_address(doc, findings),
        proxy_protocol: proxy_protocol(doc, findings),
        mss_clamp: mode::mss_clamp(doc, mode, findings),
        echo_while_healthy: mode::echo(doc, mode, findings),
        udp: udp(doc, findings),
        limits: limits(doc, findings),
        passive: PassiveEjection {
            failures: doc.ejection.failures.unwrap_or(5),
            base: findings.time("baseTime", doc.ejection.base_time.as_ref(), "10s"),
            max: findings.time("maxTime", doc.ejection.max_time.as_ref(), "5m"),
        },
        allow: set(&doc.load_balancer_source_ranges),
        deny: set(&doc.deny_source_ranges) as AddrSet,
        drain_timeout: Some(findings.time("drainTimeout", doc.drain_timeout.as_ref(), "5m")),
    }
}

fn source_address(doc: &ServiceDoc, findings: &mut Findings<'_>) -> SourceAddress {
    let Some(At { place, value: source }) = &doc.source else {
        return SourceAddress::default();
    };
    let backends = || doc.backends.iter().chain(&doc.backup_backends);
    if source.transparent {
        let is_v4 = |ip: IpAddr| ip.to_canonical().is_ipv4();
        let vips: HashSet<bool> =
            doc.addresses.value.iter().map(|at| is_v4(at.value.0.address())).collect();
        for backend in backends() {
            // Of a name's addresses only those of the right family are taken.
            let Some(ip) = backends::literal(&backend.value) else { continue };
            let family = is_v4(ip);
            if vips.iter().any(|vip| *vip != family) {
                findings.add(
                    backend.place,
                    "with `source: transparent` a backend is of the family of every address: an \
                     IPv4 client has no IPv6 address to come from, and the other way round",
                );
            }
        }
    }
    for At { place, value: Address(ip) } in &source.addresses {
        if ip.is_unspecified() || ip.is_multicast() {
            let place = if place.line == 0 { &doc.name.place } else { place };
            findings.add(*place, format!("`{ip}` is no address to come from"));
        }
    }
    let ports = source.ports.as_ref().map(|at| (at.value.0.first(), at.value.0.last()));
    if source.interface.as_ref().is_some_and(|at| at.value.is_empty() || at.value.len() > 15) {
        findings.add(*place, "an interface has a name of 1 to 15 bytes");
    }
    if let Some(toa) = source.toa.filter(|at| at.value) {
        let packets = doc.mode.is_some_and(|mode| mode.value != ModeDoc::Proxy);
        if !packets {
            findings.add(
                toa.place,
                "`toa` goes with `fullNat`, or `nat` between families; in mode `proxy`, \
                 `proxyProtocol` tells backends of the client, or `source: transparent`",
            );
        } else if doc.proxy_protocol.is_some() {
            findings.add(toa.place, "`toa` or `proxyProtocol`: one of them tells of the client");
        }
    }
    SourceAddress {
        transparent: source.transparent,
        addresses: source.addresses.iter().map(|at| at.value.0.to_canonical()).collect(),
        ports,
        interface: source.interface.as_ref().map(|at| at.value.as_str().into()),
        toa: source.toa.is_some_and(|at| at.value),
    }
}

fn proxy_protocol(doc: &ServiceDoc, findings: &mut Findings<'_>) -> ProxyProtocol {
    let Some(At { place, value: doc_value }) = &doc.proxy_protocol else {
        return ProxyProtocol::default();
    };
    let is_udp = |port: &At<PortDoc>| {
        port.value.protocol.is_some_and(|protocol| protocol.value == ProtocolDoc::Udp)
    };
    if doc.ports.value.iter().all(is_udp) {
        findings.add(*place, "`proxyProtocol` is for TCP ports, and there are none; remove it");
    }
    let timeout = findings.time("timeout", doc_value.timeout.as_ref(), "3s");
    let trusted = &doc_value.trusted_sources;
    if let (Some(accept), []) = (doc_value.accept, trusted.as_slice()) {
        findings.add(
            accept.place,
            "whose headers are believed? Name the proxies in `trustedSources`, like 10.0.0.0/8",
        );
    }
    if let (None, [first, ..]) = (doc_value.accept, trusted.as_slice()) {
        findings.add(first.place, "`trustedSources` goes with `accept: optional` or `required`");
    }
    let v2 = doc_value.send.is_some_and(|send| send.value == HeaderVersionDoc::V2);
    for (name, at) in [("crc32c", doc_value.crc32c), ("uniqueId", doc_value.unique_id)] {
        if let Some(at) = at.filter(|at| at.value && !v2) {
            findings.add(at.place, format!("`{name}` goes with `send: v2`"));
        }
    }
    let is_on = |at: Option<At<bool>>| at.is_some_and(|at| at.value);
    ProxyProtocol {
        accept: doc_value.accept.map(|accept| AcceptHeader {
            required: accept.value == AcceptDoc::Required,
            trusted: trusted.iter().map(|at| at.value.0).collect(),
            timeout,
        }),
        send: doc_value.send.map(|send| SendHeader {
            format: match send.value {
                HeaderVersionDoc::V1 => HeaderFormat::V1,
                HeaderVersionDoc::V2 => HeaderFormat::V2 { crc32c: is_on(doc_value.crc32c) },
            },
            unique_id: is_on(doc_value.unique_id),
        }),
    }
}

fn udp(doc: &ServiceDoc, findings: &mut Findings<'_>) -> Udp {
    let responses = doc.udp.responses;
    if let Some(at) = responses.filter(|at| at.value == 0) {
        findings.add(at.place, "`responses` is 0; it is at least 1, or absent for any number");
    }
    Udp {
        idle: findings.time("idleTimeout", doc.udp.idle_timeout.as_ref(), "30s"),
        responses: responses.map(|at| at.value),
    }
}

fn scheduler(doc: &ServiceDoc, findings: &mut Findings<'_>) -> (Scheduler, HashFields) {
    let kind = doc.scheduler.as_ref().map_or(SchedulerDoc::Maglev, |at| at.value);
    let hashing = matches!(
        kind,
        SchedulerDoc::Maglev | SchedulerDoc::SourceHash | SchedulerDoc::DestinationHash
    );
    if let Some(at) = doc.maglev.as_ref().filter(|_| !hashing) {
        findings.add(at.place, "`maglev` only goes with a hashing scheduler; remove it");
    }
    let settings = doc.maglev.as_ref().map(|at| &at.value);
    let table_size = settings.and_then(|s| s.table_size.as_ref()).and_then(|at| {
        let size = TableSize::new(at.value);
        size.map_err(|error| findings.add(at.place, error.to_string())).ok()
    });
    let bound = settings.and_then(|s| s.bounded_load.as_ref());
    if let Some(at) = bound.filter(|at| !(101..=10_000).contains(&at.value.0)) {
        findings.add(
            at.place,
            format!("`boundedLoad` is {}%; it is above 100% of the mean, like 125%", at.value.0),
        );
    }
    let maglev = Scheduler::Maglev { table_size, bounded_load_percent: bound.map(|at| at.value.0) };
    match kind {
        SchedulerDoc::Maglev => (maglev, HashFields::FiveTuple),
        SchedulerDoc::SourceHash => (maglev, HashFields::Source),
        SchedulerDoc::DestinationHash => (maglev, HashFields::Destination),
        SchedulerDoc::RoundRobin => (Scheduler::RoundRobin, HashFields::FiveTuple),
        SchedulerDoc::Random => (Scheduler::Random, HashFields::FiveTuple),
        SchedulerDoc::PowerOfTwo => (Scheduler::PowerOfTwo, HashFields::FiveTuple),
        SchedulerDoc::LeastConnections => (Scheduler::LeastConnections, HashFields::FiveTuple),
        SchedulerDoc::ShortestExpectedDelay => {
            (Scheduler::ShortestExpectedDelay, HashFields::FiveTuple)
        }
        SchedulerDoc::NeverQueue => (Scheduler::NeverQueue, HashFields::FiveTuple),
    }
}

fn hash(doc: &ServiceDoc, implied: HashFields, findings: &mut Findings<'_>) -> HashPolicy {
    let mut fields = implied;
    if let Some(At { place, value }) = doc.hash.fields {
        if implied != HashFields::FiveTuple {
            findings.add(place, "this scheduler fixes what is hashed; remove `fields`");
        }
        fields = match value {
            FieldsDoc::FiveTuple => HashFields::FiveTuple,
            FieldsDoc::Source => HashFields::Source,
            FieldsDoc::SourceAndPort => HashFields::SourcePort,
        };
    }
    let mut prefix = |name: &str, written: Option<At<u8>>, longest: u8| {
        let Some(At { place, value }) = written else {
            return longest;
        };
        if value > longest {
            findings.add(place, format!("`{name}` is {value}; it is 0 to {longest}"));
        }
        value.min(longest)
    };
    HashPolicy {
        fields,
        ipv4_prefix: prefix("ipv4Prefix", doc.hash.ipv4_prefix, 32),
        ipv6_prefix: prefix("ipv6Prefix", doc.hash.ipv6_prefix, 128),
    }
}

fn retry(doc: &ServiceDoc, connect: Duration, findings: &mut Findings<'_>) -> Retry {
    let retry = &doc.retry;
    let on = retry.on.as_deref().unwrap_or(&[RetryOnDoc::Connect]);
    if let Some(at) = retry.attempts.as_ref().filter(|at| at.value == 0) {
        findings.add(at.place, "`attempts` is 0; 1 tries one backend, `on: []` never retries");
    }
    if let Some(At { place, value: Time(hedge) }) = retry.hedge_after
        && hedge >= connect
    {
        findings.add(
            place,
            format!("`hedgeAfter` must be shorter than the connect timeout of {connect:?}"),
        );
    }
    let replay = retry.replay_buffer.as_ref();
    if let Some(at) = replay.filter(|at| at.value.0 > 1 << 20) {
        findings.add(at.place, "`replayBuffer` is held by every connection; at most 1MiB");
    }
    Retry {
        on_connect: on.contains(&RetryOnDoc::Connect),
        on_reset_before_reply: on.contains(&RetryOnDoc::ResetBeforeReply),
        attempts: retry.attempts.map(|at| at.value),
        deadline: findings.time("deadline", retry.deadline.as_ref(), "10s"),
        hedge_after: retry.hedge_after.map(|at| at.value.0),
        replay_bytes: replay.map_or(16 << 10, |At { value: Size(bytes), .. }| *bytes as u32),
        syn_timeout: findings.time("synTimeout", retry.syn_timeout.as_ref(), "50ms"),
    }
}

fn limits(doc: &ServiceDoc, findings: &mut Findings<'_>) -> Limits {
    let mut limit = |name: &str, written: Option<At<u32>>| {
        let At { place, value } = written?;
        if value == 0 {
            findings.add(place, format!("`{name}` is 0 and would refuse everyone; remove it"));
        }
        Some(value)
    };
    let limits = &doc.limits;
    Limits {
        backend_connections: limit("backendConnections", limits.backend_connections),
        service_connections: limit("serviceConnections", limits.service_connections),
        client_connections: limit("clientConnections", limits.client_connections),
        client_rate: limit("clientConnectionsPerSecond", limits.client_connections_per_second),
    }
}
