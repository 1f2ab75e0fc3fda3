//! What the API server is to be told of Gateways, of routes, and of their classes.

use std::net::IpAddr;

use fairway_config::kubernetes::{
    Attachments, Condition, Gateway, GatewayAddress, GatewayState, GatewayStatus, ListenerState,
    ListenerStatus, Meta, Name, Parent, ParentStatus, RouteGroupKind, RouteKind, Verdict,
};
use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use super::status::{Object, Todo};
use super::{Cloud, Served};

/// Conditions that are ours to say; what others say is kept.
const OURS: [&str; 5] =
    ["Accepted", "Programmed", "ResolvedRefs", "PartiallyInvalid", "Conflicted"];

impl Cloud {
    /// Attaches routes anew; returns who may be served otherwise now.
    pub(super) fn attach(&mut self) -> Vec<Name> {
        let after = Attachments::of(&self.cluster, &self.rules);
        let before = std::mem::replace(&mut self.attachments, after);
        let names = before.gateways.keys().chain(self.attachments.gateways.keys());
        let served = |gateway: &Name| served_as(gateway);
        names.map(served).collect()
    }

    /// What the API server is to be told of a Gateway, by the name that it is served as.
    pub(super) fn gateway_todo(&self, name: &Name) -> Option<Todo> {
        let gateway = self.cluster.gateway(&name.of_gateway()?)?;
        let state = self.attachments.gateways.get(&gateway.metadata.name())?;
        let nothing = Served::default();
        let served = self.served.get(name).unwrap_or(&nothing);
        let wanted = status(&gateway.metadata, &gateway.status, state, served, &now());
        let patch = (wanted != gateway.status).then(|| json!(wanted));
        if patch.is_none() && served.findings.is_empty() {
            return None;
        }
        let object = Object::new(&gateway.api_version, "Gateway", "gateways", &gateway.metadata);
        let findings = served.findings.clone();
        Some(Todo { findings, ..Todo::quiet(name.clone(), object, &gateway.metadata, patch) })
    }

    /// What it is to be told of routes and of classes.
    pub(super) fn route_todos(&self) -> Vec<Todo> {
        let mut todos = Vec::new();
        for kind in RouteKind::ALL {
            for name in self.cluster.routes(kind) {
                let parents = self.attachments.routes.get(&(kind, name.clone()));
                let parents = parents.map_or(&[][..], Vec::as_slice);
                todos.extend(self.route_todo(kind, name, parents));
            }
        }
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

    /// Gateways in manifests without the class that makes them somebody's.
    pub(super) fn classless(&self) -> Vec<String> {
        let names = self.cluster.gateways().filter(|_| self.api.is_none());
        let lacks = |gateway: &&Gateway| {
            let class = Name::new("", &gateway.spec.gateway_class_name);
            self.cluster.gateway_class(&class).is_none()
        };
        let trouble = |gateway: &Gateway| {
            let (name, class) = (gateway.metadata.name(), &gateway.spec.gateway_class_name);
            format!("Gateway {name} is not served: there is no GatewayClass `{class}`")
        };
        names.filter(lacks).map(trouble).collect()
    }

    fn route_todo(&self, kind: RouteKind, name: &Name, parents: &[Parent]) -> Option<Todo> {
        let route = self.cluster.route(kind, name)?;
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

/// What a Gateway is served as.
pub(super) fn served_as(gateway: &Name) -> Name {
    let Name { namespace, name } = gateway;
    let (name, namespace) = (name.to_string(), namespace.to_string());
    Name::gateway(&Meta { name, namespace, ..Meta::default() })
}

/// The status that a Gateway should have.
fn status(
    meta: &Meta,
    before: &GatewayStatus,
    state: &GatewayState,
    served: &Served,
    now: &str,
) -> GatewayStatus {
    let addresses: &[IpAddr] = match &served.assigned {
        Some(Ok(assigned)) => &assigned.addresses,
        _ => &[],
    };
    let has_address = match &served.assigned {
        Some(Ok(_)) => Verdict::yes("Programmed", "Programmed"),
        Some(Err(finding)) => {
            let asked = finding.reason == "InvalidAddressRequest";
            let reason = if asked { "AddressNotUsable" } else { "AddressNotAssigned" };
            Verdict::no("Programmed", reason, finding.message.clone())
        }
        None => Verdict::no("Programmed", "Pending", "it has no address yet"),
    };
    let mut verdicts: Vec<Verdict> = state.accepted.iter().cloned().collect();
    let refused = verdicts.iter().any(|verdict| !verdict.holds);
    verdicts.push(match refused {
        true => Verdict::no("Programmed", "Invalid", "it is not accepted"),
        false => has_address.clone(),
    });
    let listener = |listener: &ListenerState| {
        let mut verdicts = listener.verdicts.clone();
        verdicts.push(match listener.kind {
            Some(_) => has_address.clone(),
            None => Verdict::no("Programmed", "Invalid", "it cannot be served"),
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
