//! What the API server is to be told of a Service: pure.

use std::net::IpAddr;

use fairway_config::kubernetes::{
    Finding, Ingress, IngressPort, LoadBalancerStatus, Name, PREFIX, Rules, SERVED_BY, Service,
};
use serde_json::{Value, json};

use super::Served;

/// Whoever has a load balancer for a Service is told before the Service goes, by this. Others use the same
/// one, so an annotation says whose it is.
const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";

/// What is to be told of one Service, and who it was then.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Todo {
    pub(crate) name: Name,
    pub(crate) uid: String,
    /// The change of its metadata and status, if any: a merge patch.
    pub(crate) patch: Option<Value>,
    pub(crate) step: Step,
    /// What its owner should know.
    pub(crate) findings: Vec<Finding>,
}

/// What a patch does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// We are to be told when it goes.
    Hold,
    /// It has, or loses, addresses.
    Status,
    /// We are done with it.
    Release,
    Nothing,
}

/// Whether somebody is told before a Service goes.
pub(super) fn is_held(service: &Service) -> bool {
    service.metadata.finalizers.iter().any(|finalizer| finalizer == FINALIZER)
}

/// What is to be told of a Service: `served` when it is a load balancer of ours.
pub(super) fn todo(service: &Service, served: Option<&Served>, rules: &Rules) -> Option<Todo> {
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
            (Some(patch(service, change, None)), Step::Hold)
        }
        Some(served) => match wanted(service, served) {
            Some(wanted) => (Some(patch(service, json!({}), Some(wanted))), Step::Status),
            None => (None, Step::Nothing),
        },
        None if is_held(service) && marked => {
            let mut finalizers = service.metadata.finalizers.clone();
            finalizers.retain(|finalizer| finalizer != FINALIZER);
            let change = json!({ "finalizers": finalizers, "annotations": { marker: null } });
            // Other types have no status of load balancers; the API server has cleared it.
            let empties = service.spec.kind == "LoadBalancer";
            let status = empties.then(LoadBalancerStatus::default);
            (Some(patch(service, change, status)), Step::Release)
        }
        None => return None,
    };
    let findings = served.map_or_else(Vec::new, |served| served.findings.clone());
    if patch.is_none() && findings.is_empty() {
        return None;
    }
    let uid = service.metadata.uid.clone();
    Some(Todo { name: service.metadata.name(), uid, patch, step, findings })
}

/// A merge patch. Lists are replaced as a whole, so it holds for this version of the object alone.
fn patch(service: &Service, mut metadata: Value, status: Option<LoadBalancerStatus>) -> Value {
    metadata["resourceVersion"] = json!(service.metadata.resource_version);
    metadata["uid"] = json!(service.metadata.uid);
    let mut patch = json!({ "metadata": metadata });
    if let Some(status) = status {
        patch["status"] = json!({ "loadBalancer": status });
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
