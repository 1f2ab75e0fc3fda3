//! What the API server is to be told of Gateways, of routes, and of their classes.

use std::collections::BTreeSet;
use std::net::IpAddr;

use fairway_config::kubernetes::{
    Attachments, Condition, GatewayAddress, GatewayState, GatewayStatus, Kind, ListenerState,
    ListenerStatus, Meta, Name, Parent, ParentStatus, RouteGroupKind, RouteKind, Verdict,
    gateway_wish,
};
use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use super::status::{Object, Todo};
use super::{Cloud, Served};

/// Conditions that are ours to say; what others say is kept.
const OURS: [&str; 5] =
    ["Accepted", "Programmed", "ResolvedRefs", "PartiallyInvalid", "Conflicted"];

impl Cloud {
    /// Attaches routes anew, after these have changed.
    pub(super) fn attach(&mut self, changed: &BTreeSet<(Kind, Name)>) -> Anew {
        let after = Attachments::of(&self.cluster, &self.rules);
        let before = std::mem::replace(&mut self.attachments, after);
        let after = &self.attachments;
        // A namespace, a class or a grant may matter to all.
        let all = changed.iter().any(|(kind, _)| {
            matches!(kind, Kind::Namespace | Kind::GatewayClass | Kind::ReferenceGrant)
        });
        let has_changed = |name: &Name, state: &GatewayState| {
            let own = changed.contains(&(Kind::Gateway, name.clone()));
            let served = state.listeners.iter().filter_map(|listener| listener.served());
            let mut routes = served.map(|(kind, route)| (kind_of(kind), route.clone()));
            own || routes.any(|route| changed.contains(&route))
        };
        let anew = after.gateways.iter().filter(|(name, state)| {
            all || before.gateways.get(*name) != Some(state) || has_changed(name, state)
        });
        let gone = before.gateways.keys().filter(|name| !after.gateways.contains_key(*name));
        let gateways = anew.map(|(name, _)| name).chain(gone).map(Name::gateway).collect();
        let other = after.routes.iter().filter(|(key, parents)| {
            let own = changed.contains(&(kind_of(key.0), key.1.clone()));
            own || before.routes.get(*key) != Some(parents)
        });
        let gone = before.routes.keys().filter(|key| !after.routes.contains_key(*key));
        let mut routes: BTreeSet<_> = other.map(|(key, _)| key).chain(gone).cloned().collect();
        if all {
            // What was written before this process began may be there no longer.
            for kind in RouteKind::ALL {
                routes.extend(self.cluster.routes(kind).map(|name| (kind, name.clone())));
            }
        }
        Anew { gateways, routes }
    }

    /// What the API server is to be told of a Gateway, by the name that it is served as.
    pub(super) fn gateway_todo(&self, name: &Name) -> Option<Todo> {
        let gateway = self.cluster.gateway(&name.of_gateway()?)?;
        let state = self.attachments.gateways.get(&gateway.metadata.name())?;
        let nothing = Served::default();
        let served = self.served.get(name).unwrap_or(&nothing);
        let asks = gateway_wish(gateway).is_ok_and(|wish| !wish.addresses.is_empty());
        let meta = &gateway.metadata;
        let wanted = status(meta, &gateway.status, state, (served, asks), &now());
        let patch = (wanted != gateway.status).then(|| json!(wanted));
        if patch.is_none() && served.findings.is_empty() {
            return None;
        }
        let object = Object::new(&gateway.api_version, "Gateway", "gateways", &gateway.metadata);
        let findings = served.findings.clone();
        Some(Todo { findings, ..Todo::quiet(name.clone(), object, &gateway.metadata, patch) })
    }

    /// What it is to be told of our classes.
    pub(super) fn class_todos(&self) -> Vec<Todo> {
        let mut todos = Vec::new();
        for name in &self.attachments.classes {
            let Some(class) = self.cluster.gateway_class(name) else { continue };
            let verdicts = [Verdict::yes("Accepted", "Accepted")];
            let before = &class.status.conditions;
            let wanted = conditions(before, &verdicts, &class.metadata, &now());
            if wanted != *before {
                let patch = json!({ "conditions": wanted });
                let (kind, plural) = ("GatewayClass", "gatewayclasses");
                let object = Object::new(&class.api_version, kind, plural, &class.metadata);
                let name = Name::new("", &format!("{plural}/{}", name.name));
                todos.push(Todo::quiet(name, object, &class.metadata, Some(patch)));
            }
        }
        todos
    }

    /// What does not stand well, for people: conditions are in an API server alone.
    pub(super) fn gateway_troubles(&self) -> Vec<String> {
        let mut troubles = Vec::new();
        for gateway in self.cluster.gateways().filter(|_| self.api.is_none()) {
            let (name, class) = (gateway.metadata.name(), &gateway.spec.gateway_class_name);
            if self.cluster.gateway_class(&Name::new("", class)).is_none() {
                troubles.push(match class.is_empty() {
                    true => format!("Gateway {name} is not served: `gatewayClassName` is missing"),
                    false => {
                        format!("Gateway {name} is not served: there is no GatewayClass `{class}`")
                    }
                });
            }
        }
        for (name, state) in &self.attachments.gateways {
            for listener in &state.listeners {
                let what = format!("Gateway {name}, listener {}", listener.name);
                troubles.extend(listener.verdicts.iter().filter_map(|v| trouble(&what, v)));
            }
        }
        for kind in RouteKind::ALL {
            for name in self.cluster.routes(kind) {
                let what = format!("{} {name}", kind.word());
                match self.attachments.routes.get(&(kind, name.clone())) {
                    Some(parents) => {
                        let verdicts = parents.iter().flat_map(|parent| &parent.verdicts);
                        troubles.extend(verdicts.filter_map(|v| trouble(&what, v)));
                    }
                    None if self.api.is_none() => troubles
                        .push(format!("{what}: no `parentRefs` of it name a Gateway that is ours")),
                    None => {}
                }
            }
        }
        troubles.dedup();
        troubles
    }

    /// What it is to be told of a route.
    pub(super) fn route_todo(&self, kind: RouteKind, name: &Name) -> Option<Todo> {
        let route = self.cluster.route(kind, name)?;
        let parents = self.attachments.routes.get(&(kind, name.clone()));
        let parents = parents.map_or(&[][..], Vec::as_slice);
        let before = &route.status.parents;
        let (ours, others): (Vec<_>, Vec<_>) =
            before.iter().partition(|parent| *parent.controller_name == *self.rules.class);
        let mut wanted: Vec<ParentStatus> = others.into_iter().cloned().collect();
        for Parent { at, verdicts } in parents {
            let known = ours.iter().find(|known| known.parent_ref == *at);
            let known = known.map_or(&[][..], |known| &known.conditions);
            wanted.push(ParentStatus {
                parent_ref: at.clone(),
                controller_name: self.rules.class.to_string(),
                conditions: conditions(known, verdicts, &route.metadata, &now()),
            });
        }
        let same = wanted.len() == before.len() && wanted.iter().all(|one| before.contains(one));
        if same {
            return None;
        }
        let plural = if kind == RouteKind::Tcp { "tcproutes" } else { "udproutes" };
        let object = Object::new(&route.api_version, kind.word(), plural, &route.metadata);
        let name = Name::new(&name.namespace, &format!("{plural}/{}", name.name));
        let patch = json!({ "parents": wanted });
        Some(Todo::quiet(name, object, &route.metadata, Some(patch)))
    }
}

/// Who may be served, and told of, otherwise than before.
pub(super) struct Anew {
    /// Gateways, as they are served.
    pub(super) gateways: Vec<Name>,
    pub(super) routes: BTreeSet<(RouteKind, Name)>,
}

fn kind_of(kind: RouteKind) -> Kind {
    match kind {
        RouteKind::Tcp => Kind::TcpRoute,
        RouteKind::Udp => Kind::UdpRoute,
    }
}

/// What a verdict means for people, if it is no good one.
fn trouble(what: &str, verdict: &Verdict) -> Option<String> {
    let is_good = match verdict.of {
        "Conflicted" | "PartiallyInvalid" => !verdict.holds,
        _ => verdict.holds,
    };
    (!is_good).then(|| format!("{what}: {}", verdict.message))
}

/// The status that a Gateway should have; `asks` when it names addresses.
fn status(
    meta: &Meta,
    before: &GatewayStatus,
    state: &GatewayState,
    (served, asks): (&Served, bool),
    now: &str,
) -> GatewayStatus {
    let addresses: &[IpAddr] = match &served.assigned {
        Some(Ok(assigned)) => &assigned.addresses,
        _ => &[],
    };
    let has_address = match &served.assigned {
        Some(Ok(_)) => Verdict::yes("Programmed", "Programmed"),
        Some(Err(finding)) => {
            let odd = finding.reason == "InvalidAddressRequest";
            let reason = if asks || odd { "AddressNotUsable" } else { "AddressNotAssigned" };
            Verdict::no("Programmed", reason, finding.message.clone())
        }
        None => Verdict::no("Programmed", "Pending", "it has no address yet"),
    };
    let mut verdicts: Vec<Verdict> = state.accepted.iter().cloned().collect();
    // The document's service of its name is served in its place.
    let is_taken = served.findings.iter().any(|finding| finding.reason == "NameTaken");
    let refused = is_taken || verdicts.iter().any(|verdict| !verdict.holds);
    verdicts.push(match refused {
        true => Verdict::no("Programmed", "Invalid", "it cannot be served"),
        false => has_address.clone(),
    });
    let listener = |listener: &ListenerState| {
        let mut verdicts = listener.verdicts.clone();
        let word = listener.kind.map_or("", RouteKind::protocol);
        let refused = served.ports.iter().any(|outcome| {
            outcome.port == listener.port && *outcome.protocol == *word && outcome.error.is_some()
        });
        verdicts.push(match listener.is_valid && !refused && !is_taken {
            true => has_address.clone(),
            false => Verdict::no("Programmed", "Invalid", "it cannot be served"),
        });
        let known = before.listeners.iter().find(|known| known.name == listener.name);
        let known = known.map_or(&[][..], |known| &known.conditions);
        let kinds = listener.kind.map(|kind| RouteGroupKind {
            group: Some("gateway.networking.k8s.io".into()),
            kind: kind.word().into(),
        });
        ListenerStatus {
            name: listener.name.clone(),
            supported_kinds: kinds.into_iter().collect(),
            attached_routes: listener.attached,
            conditions: conditions(known, &verdicts, meta, now),
        }
    };
    let address =
        |ip: &IpAddr| GatewayAddress { kind: Some("IPAddress".into()), value: ip.to_string() };
    GatewayStatus {
        addresses: addresses.iter().map(address).collect(),
        conditions: conditions(&before.conditions, &verdicts, meta, now),
        listeners: state.listeners.iter().map(listener).collect(),
    }
}

/// Verdicts as conditions: since `now` where that is news, and beside what others say.
fn conditions(
    before: &[Condition],
    verdicts: &[Verdict],
    meta: &Meta,
    now: &str,
) -> Vec<Condition> {
    let ours = verdicts.iter().map(|verdict| {
        let status = if verdict.holds { "True" } else { "False" };
        let known = before.iter().find(|known| known.kind == verdict.of && known.status == status);
        Condition {
            kind: verdict.of.into(),
            status: status.into(),
            reason: verdict.reason.into(),
            message: verdict.message.clone(),
            last_transition_time: known.map_or(now, |known| &known.last_transition_time).into(),
            observed_generation: (meta.generation > 0).then_some(meta.generation),
        }
    });
    let others = before.iter().filter(|known| !OURS.contains(&&*known.kind)).cloned();
    ours.chain(others).collect()
}

/// As Kubernetes writes it, in seconds.
fn now() -> String {
    Timestamp::now().strftime("%FT%TZ").to_string()
}
