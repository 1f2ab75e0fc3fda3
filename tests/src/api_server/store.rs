//! What the small API server knows: objects, their versions, what happened to them, and patches.

use std::collections::{BTreeMap, VecDeque};

use axum::http::StatusCode;
use serde_json::{Value, json};

/// Changes that a watch may go on from.
const REMEMBERED: usize = 10_000;

/// Kinds that it has: plural, API version, kind.
pub(super) const KINDS: [(&str, &str, &str); 19] = [
    ("services", "v1", "Service"),
    ("endpoints", "v1", "Endpoints"),
    ("nodes", "v1", "Node"),
    ("namespaces", "v1", "Namespace"),
    ("endpointslices", "discovery.k8s.io/v1", "EndpointSlice"),
    ("leases", "coordination.k8s.io/v1", "Lease"),
    ("events", "events.k8s.io/v1", "Event"),
    ("addresspools", "fairway.dev/v1alpha1", "AddressPool"),
    ("l2advertisements", "fairway.dev/v1alpha1", "L2Advertisement"),
    ("vrrpgroups", "fairway.dev/v1alpha1", "VRRPGroup"),
    ("bgppeers", "fairway.dev/v1alpha1", "BGPPeer"),
    ("bgpadvertisements", "fairway.dev/v1alpha1", "BGPAdvertisement"),
    ("bfdprofiles", "fairway.dev/v1alpha1", "BFDProfile"),
    ("ipaddresspools", "metallb.io/v1beta1", "IPAddressPool"),
    ("gatewayclasses", "gateway.networking.k8s.io/v1", "GatewayClass"),
    ("gateways", "gateway.networking.k8s.io/v1", "Gateway"),
    // As before 1.6 of the Gateway API.
    ("tcproutes", "gateway.networking.k8s.io/v1alpha2", "TCPRoute"),
    ("udproutes", "gateway.networking.k8s.io/v1alpha2", "UDPRoute"),
    ("referencegrants", "gateway.networking.k8s.io/v1beta1", "ReferenceGrant"),
];

pub(super) fn kind_of(kind: &str) -> (&'static str, &'static str, &'static str) {
    *KINDS.iter().find(|(.., known)| *known == kind).unwrap()
}

/// An object's kind, by its plural, its namespace and its name.
pub(super) type Key = (String, String, String);

/// A status, and the reason for it.
pub(super) type Refused = (StatusCode, &'static str);

#[derive(Default)]
pub(super) struct Store {
    pub(super) objects: BTreeMap<Key, Value>,
    pub(super) version: u64,
    /// Versions, what happened, and to what.
    pub(super) history: VecDeque<(u64, &'static str, Key, Value)>,
    /// Watches cannot go on from versions up to this.
    pub(super) forgotten: u64,
    /// Those of tests and of Fairway.
    pub(super) tokens: [String; 2],
    /// Plurals that it does not have.
    pub(super) missing: Vec<String>,
    /// Patches of a status that it fails to write.
    pub(super) failures: usize,
}

impl Store {
    /// Changes an object, or makes it.
    pub(super) fn put(
        &mut self,
        key: Key,
        change: impl FnOnce(Option<&Value>) -> Result<Value, Refused>,
    ) -> Result<Value, Refused> {
        let old = self.objects.get(&key);
        let mut new = change(old)?;
        let (_, version, kind) = KINDS.iter().find(|(plural, ..)| **plural == *key.0).unwrap();
        // Nothing is written of what is not there.
        without_nulls(&mut new);
        new["apiVersion"] = json!(version);
        new["kind"] = json!(kind);
        new["metadata"]["name"] = json!(key.2);
        if !key.1.is_empty() {
            new["metadata"]["namespace"] = json!(key.1);
        }
        if let Some(old) = old {
            // What changes nothing is no change.
            new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
            if new == *old {
                return Ok(new);
            }
            let counts = !old["metadata"]["generation"].is_null();
            if counts && new["spec"] != old["spec"] {
                let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
                new["metadata"]["generation"] = json!(generation);
            }
        } else {
            new["metadata"]["uid"] = json!(format!("{}-{}-{}", key.0, key.2, self.version));
            new["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
            // Of built-in kinds, those here have none.
            if version.contains('.') && !version.contains(".k8s.io") || kind.contains("Gateway") {
                new["metadata"]["generation"] = json!(1);
            }
        }
        let happened = if old.is_some() { "MODIFIED" } else { "ADDED" };
        let finalizers = new["metadata"]["finalizers"].as_array().map_or(0, Vec::len);
        let goes = !new["metadata"]["deletionTimestamp"].is_null() && finalizers == 0;
        self.happen(if goes { "DELETED" } else { happened }, key, &mut new);
        Ok(new)
    }

    pub(super) fn delete(&mut self, key: &Key) -> Option<Value> {
        let mut object = self.objects.get(key)?.clone();
        let held = object["metadata"]["finalizers"].as_array().is_some_and(|held| !held.is_empty());
        if held {
            let going = |old: Option<&Value>| {
                let mut new = old.cloned().unwrap_or_default();
                new["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:01Z");
                Ok(new)
            };
            return self.put(key.clone(), going).ok();
        }
        self.happen("DELETED", key.clone(), &mut object);
        Some(object)
    }

    fn happen(&mut self, what: &'static str, key: Key, object: &mut Value) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        match what {
            "DELETED" => _ = self.objects.remove(&key),
            _ => _ = self.objects.insert(key.clone(), object.clone()),
        }
        self.history.push_back((self.version, what, key, object.clone()));
        if self.history.len() > REMEMBERED
            && let Some((version, ..)) = self.history.pop_front()
        {
            self.forgotten = version;
        }
    }
}

fn without_nulls(object: &mut Value) {
    if let Some(fields) = object.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
        fields.values_mut().for_each(without_nulls);
    }
}

/// What a patch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// RFC 7396.
    Merge,
    /// Kubernetes' own: lists whose items have a key are merged by it.
    Strategic,
}

impl Way {
    /// By the type of a patch's content; custom kinds have no strategic one.
    pub(super) fn of(content: &str, version: &str) -> Option<Self> {
        match content {
            "application/merge-patch+json" => Some(Self::Merge),
            "application/strategic-merge-patch+json" if !version.contains(".dev/") => {
                Some(Self::Strategic)
            }
            _ => None,
        }
    }

    fn merge(self, field: &str, target: &mut Value, patch: &Value) {
        if let (Self::Strategic, Value::Array(items)) = (self, patch) {
            return merge_list(field, target, items);
        }
        let Value::Object(changes) = patch else {
            if !patch.is_null() {
                *target = patch.clone();
            }
            return;
        };
        if !target.is_object() {
            *target = json!({});
        }
        for (key, change) in changes {
            if let (Self::Strategic, Some(field)) =
                (self, key.strip_prefix("$deleteFromPrimitiveList/"))
            {
                let gone = change.as_array().cloned().unwrap_or_default();
                if let Some(list) = target[field].as_array_mut() {
                    list.retain(|item| !gone.contains(item));
                }
                continue;
            }
            match change {
                Value::Null => _ = target.as_object_mut().unwrap().remove(key),
                _ => self.merge(key, &mut target[key], change),
            }
        }
    }
}

/// Lists of plain values are united where they are sets; others are merged by their key, if they have one.
fn merge_list(field: &str, target: &mut Value, items: &[Value]) {
    let key = match field {
        "finalizers" => None,
        "ports" => Some("port"),
        "conditions" | "addresses" => Some("type"),
        _ => {
            *target = json!(items);
            return;
        }
    };
    if !target.is_array() {
        *target = json!([]);
    }
    let list = target.as_array_mut().unwrap();
    for item in items {
        let same = |known: &&mut Value| match key {
            None => **known == *item,
            Some(key) => known[key] == item[key],
        };
        match list.iter_mut().find(same) {
            Some(known) => Way::Strategic.merge("", known, item),
            None => list.push(item.clone()),
        }
    }
}

/// Whether a write is about the version and the object that are there.
fn agrees(old: &Value, new: &Value) -> Result<(), Refused> {
    for field in ["resourceVersion", "uid"] {
        let meant = &new["metadata"][field];
        if !meant.is_null() && *meant != "" && *meant != old["metadata"][field] {
            return Err((StatusCode::CONFLICT, "Conflict"));
        }
    }
    Ok(())
}

pub(super) fn replaced(old: Option<&Value>, new: Value) -> Result<Value, Refused> {
    let old = old.ok_or((StatusCode::NOT_FOUND, "NotFound"))?;
    agrees(old, &new)?;
    let mut whole = new;
    for field in ["uid", "creationTimestamp", "deletionTimestamp"] {
        if !old["metadata"][field].is_null() {
            whole["metadata"][field] = old["metadata"][field].clone();
        }
    }
    Ok(whole)
}

pub(super) fn patched(
    old: Option<&Value>,
    patch: &Value,
    way: Way,
    is_status: bool,
) -> Result<Value, Refused> {
    let old = old.ok_or((StatusCode::NOT_FOUND, "NotFound"))?;
    agrees(old, patch)?;
    let mut new = old.clone();
    way.merge("", &mut new, patch);
    let kept = if is_status { "spec" } else { "status" };
    new[kept] = old[kept].clone();
    if new["kind"] == "Service" {
        let ingress = new["status"]["loadBalancer"]["ingress"].as_array().cloned();
        for at in ingress.unwrap_or_default() {
            let is_other = new["spec"]["type"] != "LoadBalancer";
            if is_other || (at["ip"].is_null() && !at["ipMode"].is_null()) {
                return Err((StatusCode::UNPROCESSABLE_ENTITY, "Invalid"));
            }
        }
    }
    Ok(new)
}
