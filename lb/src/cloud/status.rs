//! What the API server is to be told of a Service: pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use fairway_config::kubernetes::{
    AddressPool, AddressPoolStatus, Finding, Ingress, IngressPort, LoadBalancerStatus, Meta, Name,
    PREFIX, Pool, Rules, SERVED_BY, Service,
};
use serde_json::{Value, json};

use super::Served;
use super::allocate::Reserved;

/// Whoever has a load balancer for a Service is told before the Service goes, by this. Others use the same
/// one, so an annotation says whose it is.
const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";

/// An object of which something is to be told.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Object {
    /// Group and version.
    pub(crate) api_version: String,
    pub(crate) kind: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) name: Name,
    pub(crate) uid: String,
}

impl Object {
    pub(super) fn new(
        api_version: &str,
        kind: &'static str,
        plural: &'static str,
        meta: &Meta,
    ) -> Self {
        let (api_version, uid) = (api_version.into(), meta.uid.clone());
        Self { api_version, kind, plural, name: meta.name(), uid }
    }
}

/// What is to be told of one object.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Todo {
    /// For people and for us, other than that of any other object.
    pub(crate) name: Name,
    pub(crate) object: Object,
    /// The change of its metadata and status, if any: a merge patch.
    pub(crate) patch: Option<Value>,
    pub(crate) step: Step,
    /// What its owner should know.
    pub(crate) findings: Vec<Finding>,
}

impl Todo {
    /// Nothing is to be said of it any more.
    pub(super) fn nothing_left(name: Name) -> Self {
        let object = Object::new("v1", "Service", "services", &Meta::default());
        Self { name, object, patch: None, step: Step::Nothing, findings: Vec::new() }
    }

    /// A status that is written without a word.
    pub(super) fn quiet(name: Name, object: Object, meta: &Meta, status: Option<Value>) -> Self {
        let patch = status.map(|status| patch(meta, json!({}), Some(status)));
        Self { name, object, patch, step: Step::Nothing, findings: Vec::new() }
    }
}

/// What a patch does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// We are to be told when it goes.
    Hold,
    /// It has, or loses, addresses.
    Status,
    /// Other nodes serve it.
    Updated,
    /// We are done with it.
    Release,
    Nothing,
}

/// Whether somebody is told before a Service goes.
pub(super) fn is_held(service: &Service) -> bool {
    service.metadata.finalizers.iter().any(|finalizer| finalizer == FINALIZER)
}

/// What is to be told of a Service: `served` when it is a load balancer of ours, `moved` when other hosts
/// serve it than before.
pub(super) fn todo(
    service: &Service,
    served: Option<&Served>,
    rules: &Rules,
    moved: bool,
) -> Option<Todo> {
    let marker = format!("{PREFIX}{SERVED_BY}");
    let marked = service.metadata.annotations.get(&marker).is_some_and(|by| **by == *rules.class);
    let (patch, step) = match served {
        Some(_) if !(is_held(service) && marked) => {
            let mut finalizers = service.metadata.finalizers.clone();
            if !is_held(service) {
                finalizers.push(FINALIZER.into());
            }
            let change =
                json!({ "finalizers": finalizers, "annotations": { marker: rules.class } });
            (Some(patch(&service.metadata, change, None)), Step::Hold)
        }
        Some(served) => match wanted(service, served) {
            Some(wanted) => {
                let status = json!({ "loadBalancer": wanted });
                (Some(patch(&service.metadata, json!({}), Some(status))), Step::Status)
            }
            None if moved => (None, Step::Updated),
            None => (None, Step::Nothing),
        },
        None if is_held(service) && marked => {
            let mut finalizers = service.metadata.finalizers.clone();
            finalizers.retain(|finalizer| finalizer != FINALIZER);
            let change = json!({ "finalizers": finalizers, "annotations": { marker: null } });
            // Other types have no status of load balancers; the API server has cleared it.
            let empties = service.spec.kind == "LoadBalancer";
            let status = json!({ "loadBalancer": LoadBalancerStatus::default() });
            let status = empties.then_some(status);
            (Some(patch(&service.metadata, change, status)), Step::Release)
        }
        None => return None,
    };
    let findings = served.map_or_else(Vec::new, |served| served.findings.clone());
    if patch.is_none() && step == Step::Nothing && findings.is_empty() {
        return None;
    }
    let object = Object::new("v1", "Service", "services", &service.metadata);
    Some(Todo { name: service.metadata.name(), object, patch, step, findings })
}

/// A merge patch. Lists are replaced as a whole, so it holds for this version of the object alone.
fn patch(meta: &Meta, mut metadata: Value, status: Option<Value>) -> Value {
    if !meta.resource_version.is_empty() {
        metadata["resourceVersion"] = json!(meta.resource_version);
    }
    metadata["uid"] = json!(meta.uid);
    let mut patch = json!({ "metadata": metadata });
    if let Some(status) = status {
        patch["status"] = status;
    }
    patch
}

/// The status that a Service should have; none when it has it.
fn wanted(service: &Service, served: &Served) -> Option<LoadBalancerStatus> {
    let addresses: &[IpAddr] = match served.assigned.as_ref()? {
        Ok(assigned) => &assigned.addresses,
        Err(_) => &[],
    };
    let ports: Vec<IngressPort> = served
        .ports
        .iter()
        .map(|port| IngressPort {
            port: port.port,
            protocol: port.protocol.to_string(),
            error: port.error.map(Into::into),
        })
        .collect();
    let mode = if served.keeps_address { "VIP" } else { "Proxy" };
    let ingress = addresses.iter().map(|ip| Ingress {
        ip: ip.to_string(),
        ip_mode: Some(mode.into()),
        ports: ports.clone(),
    });
    let wanted = LoadBalancerStatus { ingress: ingress.collect() };
    (wanted != service.status.load_balancer).then_some(wanted)
}

/// What is to be told of a pool: `pool` if it is used, and who has its addresses.
pub(super) fn pool_todo(
    object: &AddressPool,
    pool: Option<&Pool>,
    assigned: &BTreeSet<IpAddr>,
    reserved: &Reserved,
) -> Option<Todo> {
    let count = |is_ipv4: bool| {
        let has = assigned.iter().filter(|ip| ip.is_ipv4() == is_ipv4).count() as u128;
        let ranges = pool.into_iter().flat_map(|pool| &pool.ranges);
        let ranges = ranges.filter(|range| range.is_ipv4() == is_ipv4);
        let usable = |range| pool.map_or(0, |pool| pool.usable(range));
        let all = ranges.fold(0_u128, |sum, range| sum.saturating_add(usable(range)));
        let kept = pool.map_or(0, |pool| reserved.count_of(pool, is_ipv4));
        let number = |count: u128| Some(i64::try_from(count).unwrap_or(i64::MAX));
        (number(has), number(all.saturating_sub(has).saturating_sub(kept)))
    };
    let ((assigned_ipv4, available_ipv4), (assigned_ipv6, available_ipv6)) =
        (count(true), count(false));
    let wanted = AddressPoolStatus { assigned_ipv4, assigned_ipv6, available_ipv4, available_ipv6 };
    if wanted == object.status {
        return None;
    }
    let meta = &object.metadata;
    let target = Object::new("fairway.dev/v1alpha1", "AddressPool", "addresspools", meta);
    let name = Name::new("", &format!("addresspools/{}", meta.name));
    // Nobody else writes it, and it has no lists: it holds for every version.
    let meta = Meta { resource_version: String::new(), ..meta.clone() };
    Some(Todo::quiet(name, target, &meta, Some(json!(wanted))))
}
