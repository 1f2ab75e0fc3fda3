//! Words of objects that somebody has mistyped: without an API server nobody else would say so.

use super::objects::SERVICE_TYPES;
use crate::de::nearest;
use crate::tree::{Node, Value};

/// Fields of every object.
const OBJECT: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];
/// Of metadata, those that people write.
const META: [&str; 8] = [
    "name",
    "namespace",
    "labels",
    "annotations",
    "finalizers",
    "generateName",
    "ownerReferences",
    "creationTimestamp",
];
/// Of a Service of Kubernetes 1.36.
const SERVICE: [&str; 20] = [
    "type",
    "ports",
    "selector",
    "clusterIP",
    "clusterIPs",
    "ipFamilies",
    "ipFamilyPolicy",
    "externalTrafficPolicy",
    "internalTrafficPolicy",
    "healthCheckNodePort",
    "loadBalancerClass",
    "loadBalancerIP",
    "loadBalancerSourceRanges",
    "allocateLoadBalancerNodePorts",
    "sessionAffinity",
    "sessionAffinityConfig",
    "publishNotReadyAddresses",
    "externalIPs",
    "externalName",
    "trafficDistribution",
];
const SERVICE_PORT: [&str; 6] =
    ["name", "protocol", "appProtocol", "port", "targetPort", "nodePort"];
const ADDRESS_POOL: [&str; 7] = [
    "addresses",
    "autoAssign",
    "avoidBuggyIPs",
    "priority",
    "namespaces",
    "namespaceSelectors",
    "serviceSelectors",
];
const GATEWAY: [&str; 8] = [
    "gatewayClassName",
    "listeners",
    "addresses",
    "infrastructure",
    "allowedListeners",
    "defaultScope",
    "tls",
    "backendTLS",
];
const ROUTE: [&str; 3] = ["parentRefs", "rules", "useDefaultGateways"];

/// What nobody knows in an object of a kind, each with its node and what is said of it.
pub(super) fn unknown<'n>(kind: &str, object: &'n Node) -> Vec<(&'n Node, String)> {
    let mut found = Vec::new();
    // Slices and Endpoints have no `spec`; what they have is read as a whole.
    let of_spec: &[&str] = match kind {
        "Service" => &SERVICE,
        "AddressPool" => &ADDRESS_POOL,
        "Gateway" => &GATEWAY,
        "TCPRoute" | "UDPRoute" => &ROUTE,
        _ => return found,
    };
    look(object, &format!("a {kind}"), &OBJECT, &mut found);
    if let Some(meta) = object.get("metadata") {
        // An API server writes more there.
        let odd = |entry: &(&Node, String)| entry.1.contains("did you mean");
        let mut of_meta = Vec::new();
        look(meta, "`metadata`", &META, &mut of_meta);
        found.extend(of_meta.into_iter().filter(odd));
    }
    let Some(spec) = object.get("spec") else { return found };
    look(spec, &format!("`spec` of a {kind}"), of_spec, &mut found);
    if kind != "Service" {
        return found;
    }
    if let Some(Value::List(ports)) = spec.get("ports").map(|ports| &ports.value) {
        ports.iter().for_each(|port| look(port, "a port", &SERVICE_PORT, &mut found));
    }
    if let Some(node) = spec.get("type")
        && let Value::Scalar { text, .. } = &node.value
        && !SERVICE_TYPES.contains(&&**text)
    {
        let types = SERVICE_TYPES.join(", ");
        found.push((node, format!("`type` is `{text}`, and no type of Services: {types}")));
    }
    found
}

fn look<'n>(
    node: &'n Node,
    what: &str,
    known: &'static [&'static str],
    found: &mut Vec<(&'n Node, String)>,
) {
    let Value::Map(entries) = &node.value else { return };
    for (key, value) in entries.iter().filter(|(key, _)| !known.contains(&&*key.text)) {
        let near = nearest(&key.text, known);
        let hint = near.map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
        found.push((value, format!("{what} has no field `{}`{hint}", key.text)));
    }
}
