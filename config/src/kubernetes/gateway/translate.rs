//! From a Gateway and the routes that attach to it to what is to be served. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use fairway_core::{BackendAddr, Weight};

use super::attach::{GatewayState, ListenerState, backend_refs, resolve, service_of};
use super::objects::{Gateway, RouteKind};
use crate::kubernetes::addresses::{Wish, addresses_of, asked_by, refuse, sharing_of};
use crate::kubernetes::backends::{self, Found};
use crate::kubernetes::cluster::Cluster;
use crate::kubernetes::objects::{Name, Service, ServicePort};
use crate::kubernetes::reduced::{Slice, protocol};
use crate::kubernetes::settings::{self, IP_FAMILIES, OF_GATEWAY, PREFIX, Sketch};
use crate::kubernetes::translate::{
    Finding, PortOutcome, Rules, Target, Translation, annotation, at_port, check_of, keeps_address,
    lacks_source, node_check, wanted_target,
};
use crate::spec::{BackendSpec, Origin, ServiceSpec, Serving};

/// What a Gateway asks of whoever gives it addresses.
pub fn gateway_wish(gateway: &Gateway) -> Result<Wish, Finding> {
    let meta = &gateway.metadata;
    let spec = &gateway.spec;
    let mut families = Vec::new();
    for family in annotation(meta, IP_FAMILIES).unwrap_or_default().split(',').map(str::trim) {
        match family {
            "" => {}
            "IPv4" | "IPv6" if families.contains(&(family == "IPv4")) => {}
            "IPv4" | "IPv6" => families.push(family == "IPv4"),
            other => {
                let what = format!("annotation `{PREFIX}{IP_FAMILIES}`: `{other}`");
                return Err(refuse(format!("{what} is neither IPv4 nor IPv6")));
            }
        }
    }
    if let Some(at) = spec.addresses.iter().find(|at| !at.is_ip()) {
        let kind = at.kind.as_deref().unwrap_or_default();
        return Err(refuse(format!("`spec.addresses`: addresses of type `{kind}` are not served")));
    }
    let named = spec.addresses.iter().map(|at| at.value.as_str()).filter(|text| !text.is_empty());
    let named: Vec<&str> = named.collect();
    let (origin, texts) = match (asked_by(meta, "addresses", "loadBalancerIPs"), named.is_empty()) {
        (Some((key, _)), false) => {
            return Err(refuse(format!(
                "annotation `{key}` and `spec.addresses` both name addresses; remove one"
            )));
        }
        (Some((key, text)), true) => (format!("annotation `{key}`"), text.clone()),
        (None, _) => ("`spec.addresses`".into(), named.join(",")),
    };
    let ports = spec.listeners.iter();
    Ok(Wish {
        addresses: addresses_of(&origin, &texts, &families)?,
        needs_all: families.len() > 1,
        families,
        pool: asked_by(meta, "addressPool", "address-pool").map(|(_, pool)| pool.as_str().into()),
        sharing: sharing_of(meta, None),
        ports: ports.filter_map(|at| Some((protocol(&at.protocol)?, at.port))).collect(),
    })
}

/// What a Gateway that is ours comes to at these addresses.
#[must_use]
pub fn translate_gateway(
    cluster: &Cluster,
    gateway: &Gateway,
    state: &GatewayState,
    rules: &Rules,
    addresses: &[IpAddr],
    origin: &Origin,
) -> Translation {
    let mut out = Translation::default();
    let name = Name::gateway(&gateway.metadata.name());
    if addresses.is_empty() {
        return out;
    }
    for listener in &state.listeners {
        let Some((kind, route)) = listener.served() else { continue };
        let Some(object) = cluster.gateways.routes(kind).get(route) else { continue };
        let mut ways = Vec::new();
        for to in backend_refs(object) {
            let share = to.weight.unwrap_or(1);
            if let (Ok(port), true) = (resolve(cluster, kind, route, to), share > 0) {
                ways.push(Way::new(cluster, &service_of(route, to), port, share));
            }
        }
        let ways: Vec<Way<'_>> = ways.into_iter().flatten().collect();
        let answers = [&object.metadata, &gateway.metadata]
            .iter()
            .any(|meta| annotation(meta, "podsAnswerForVip") == Some("true"));
        // Nodes serve all of it, or none.
        let has_nodes = !ways.is_empty() && ways.iter().all(|way| way.port.node_port != 0);
        let wanted = match annotation(&object.metadata, "target") {
            Some(_) => wanted_target(&object.metadata, rules, &mut out),
            None => wanted_target(&gateway.metadata, rules, &mut out),
        };
        let to_pods = wanted == Target::Pod || !has_nodes;
        let mut outcome = PortOutcome {
            port: listener.port,
            protocol: kind.protocol().into(),
            error: Some("fairway.dev/Invalid"),
        };
        let mut settings = Vec::new();
        settings.extend((!to_pods).then(|| node_check_of(&ways)).flatten());
        settings.extend(rules.defaults.iter().cloned());
        let whose = format!("{} `{route}`: ", kind.word());
        for (meta, whose) in [(&gateway.metadata, ""), (&object.metadata, &*whose)] {
            let read = settings::of_annotations(meta.annotations.iter(), &OF_GATEWAY, |why| {
                out.find("InvalidAnnotation", format!("{whose}{why}"));
            });
            settings.extend(read.into_iter().map(|setting| setting.of(whose)));
        }
        let sketch = Sketch {
            name: &name.to_string(),
            addresses: addresses.iter().map(|ip| ip.to_string().into()).collect(),
            ports: vec![(listener.name.as_str().into(), kind.protocol(), listener.port)],
        };
        let made = settings::specs(&sketch, settings, rules.means, &origin.file, |_, why| {
            out.find("InvalidAnnotation", why);
        });
        let Some(settings::Made { specs, is_checked }) = made else {
            out.ports.push(outcome);
            continue;
        };
        for spec in specs {
            out.keeps_address |= keeps_address(spec.policy.mode);
            let spec = ServiceSpec {
                check: check_of(&spec, is_checked, to_pods),
                app_protocol: ways
                    .iter()
                    .find_map(|way| way.port.app_protocol.as_deref().map(Into::into)),
                labels: Arc::new(gateway.metadata.labels.clone()),
                origin: origin.clone(),
                ..spec
            };
            let mode = spec.policy.mode;
            if keeps_address(mode) && !answers {
                out.find(
                    "PodsDoNotAnswer",
                    format!(
                        "mode `{mode}` leaves the address that clients dialled in packets, and nobody \
                         behind a Gateway answers for it: another mode, or \
                         `fairway.dev/podsAnswerForVip: \"true\"` when they have the address"
                    ),
                );
                outcome.error = Some("fairway.dev/PodsDoNotAnswer");
                continue;
            }
            outcome.error = None;
            at_port(&mut out, &spec, (listener.port, addresses), to_pods, |is_ipv4| {
                let found = |way: &Way<'_>| way.found(cluster, rules, to_pods, is_ipv4);
                shared(ways.iter().map(|way| (way.share, found(way))).collect())
            });
        }
        out.ports.push(outcome);
    }
    lacks_source(&mut out);
    out
}

impl ListenerState {
    /// The route that is served here.
    #[must_use]
    pub fn served(&self) -> Option<(RouteKind, &Name)> {
        self.kind.zip(self.route.as_ref()).filter(|_| self.is_valid)
    }
}

/// A port of a Service, as part of a whole.
struct Way<'c> {
    service: &'c Service,
    slices: Vec<&'c Slice>,
    port: &'c ServicePort,
    share: u32,
}

impl<'c> Way<'c> {
    fn new(cluster: &'c Cluster, name: &Name, port: &'c ServicePort, share: u32) -> Option<Self> {
        let service = cluster.service(name)?;
        Some(Self { service, slices: cluster.endpoints(name), port, share })
    }

    fn found(&self, cluster: &Cluster, rules: &Rules, to_pods: bool, is_ipv4: bool) -> Found {
        let Self { service, slices, port, .. } = self;
        match to_pods {
            true => backends::pods(slices, service, port, is_ipv4, rules),
            false => backends::nodes(cluster, slices, service, port, is_ipv4, rules),
        }
    }
}

/// How nodes are asked: by one Service's own port alone if there is but one.
fn node_check_of(ways: &[Way<'_>]) -> Option<settings::Setting> {
    match ways {
        [only] => node_check(only.service),
        ways => {
            let is_local = |way: &Way<'_>| way.service.spec.external_traffic_policy == "Local";
            match ways.iter().any(is_local) {
                true => settings::Setting::usual("healthCheck", "{type: tcp}"),
                false => node_check(ways.first()?.service),
            }
        }
    }
}

/// Puts together what several Services have, so that each gets its share, however many serve it.
fn shared(mut parts: Vec<(u32, Found)>) -> Found {
    if parts.len() == 1 {
        return parts.pop().map(|(_, found)| found).unwrap_or_default();
    }
    let mut weighed: BTreeMap<BackendAddr, (f64, BackendSpec)> = BTreeMap::new();
    let mut all = Found::default();
    for (share, found) in parts {
        all.more += found.more;
        all.named.extend(found.named);
        let weight = |backend: &BackendSpec| f64::from(backend.weight.get());
        // One that is not ready keeps its share, so that readiness that comes and goes moves no other.
        let counts = |backend: &&BackendSpec| backend.serving != Serving::Leaving;
        let whole: f64 = found.backends.iter().filter(counts).map(weight).sum();
        for backend in found.backends {
            // Those that leave keep what they would have as one of them.
            let part = f64::from(share) * weight(&backend) / whole.max(weight(&backend));
            let known = weighed.entry(backend.addr).or_insert((0.0, backend.clone()));
            known.0 += part;
            if backend.serving == Serving::Yes {
                known.1.serving = Serving::Yes;
            }
        }
    }
    let most = weighed.values().map(|(part, _)| *part).fold(f64::MIN_POSITIVE, f64::max);
    let least = weighed.values().map(|(part, _)| *part).fold(f64::MAX, f64::min);
    // As small as they may be, since tables cost with the heaviest, and true to one part in a hundred.
    let scale = (100.0 / least).min(f64::from(Weight::MAX) / most);
    let weight = |part: f64| Weight::new((part * scale).round().max(1.0) as u32);
    let backends = weighed.into_values().map(|(part, backend)| BackendSpec {
        weight: weight(part).unwrap_or(Weight::ONE),
        ..backend
    });
    all.backends = reduced(backends.collect());
    all
}

/// The same proportions in the smallest numbers.
fn reduced(mut backends: Vec<BackendSpec>) -> Vec<BackendSpec> {
    let gcd = |a: u16, b: u16| {
        let (mut a, mut b) = (a, b);
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let divisor = backends.iter().map(|backend| backend.weight.get()).reduce(gcd).unwrap_or(1);
    for backend in &mut backends {
        let weight = u32::from(backend.weight.get() / divisor);
        backend.weight = Weight::new(weight).unwrap_or(Weight::ONE);
    }
    backends
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Priority;

    fn part(share: u32, n: u8, weights: &[u32]) -> (u32, Found) {
        let backend = |(weight, i): (&u32, u8)| BackendSpec {
            addr: BackendAddr::new(IpAddr::from([10, 0, n, i]), std::num::NonZeroU16::new(80)),
            weight: Weight::new(*weight).unwrap(),
            priority: Priority::Given(0),
            serving: Serving::Yes,
            name: None,
            zone: None,
        };
        let backends = weights.iter().zip(1..).map(backend).collect();
        (share, Found { backends, ..Found::default() })
    }

    #[test]
    fn each_service_gets_its_share() {
        for (parts, want) in [
            (vec![part(1, 0, &[3, 1])], vec![3, 1]),
            (vec![part(70, 0, &[1]), part(30, 1, &[1])], vec![7, 3]),
            // However many serve it.
            (vec![part(1, 0, &[1, 1, 1, 1]), part(1, 1, &[1])], vec![1, 1, 1, 1, 4]),
            (vec![part(9, 0, &[1, 1, 1]), part(1, 1, &[2, 1])], vec![450, 450, 450, 100, 50]),
            (vec![part(1_000_000, 0, &[1]), part(1, 1, &[1])], vec![1000, 1]),
            (vec![part(1, 0, &[1]), part(1, 0, &[1])], vec![1]),
            (vec![part(1, 0, &[]), part(5, 1, &[1])], vec![1]),
        ] {
            let found = shared(parts);
            let got: Vec<u16> = found.backends.iter().map(|b| b.weight.get()).collect();
            let part = |weights: &[u16], n: usize| {
                f64::from(weights[n]) / weights.iter().map(|w| f64::from(*w)).sum::<f64>()
            };
            let off = (0..want.len()).map(|n| (part(&got, n) - part(&want, n)).abs());
            assert_eq!(got.len(), want.len());
            assert!(off.fold(0.0, f64::max) < 0.01, "{got:?} and not {want:?}");
        }
    }
}
