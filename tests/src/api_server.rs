//! A small API server: lists, watches with bookmarks, versions and their conflicts, 410 for versions that
//! are forgotten, merge patches of objects and of their status, finalizers, tokens; and it can go away.
//!
//! It answers as a real one does in all that it answers. What it lacks is validation, defaults and
//! controllers.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::{Host, Net};

/// Changes that a watch may go on from.
const REMEMBERED: usize = 10_000;
/// From one bookmark to the next.
const BOOKMARK: Duration = Duration::from_millis(500);

/// Kinds that it has: plural, API version, kind.
const KINDS: [(&str, &str, &str); 14] = [
    ("services", "v1", "Service"),
    ("endpoints", "v1", "Endpoints"),
    ("nodes", "v1", "Node"),
    ("namespaces", "v1", "Namespace"),
    ("endpointslices", "discovery.k8s.io/v1", "EndpointSlice"),
    ("leases", "coordination.k8s.io/v1", "Lease"),
    ("events", "events.k8s.io/v1", "Event"),
    ("addresspools", "fairway.dev/v1alpha1", "AddressPool"),
    ("ipaddresspools", "metallb.io/v1beta1", "IPAddressPool"),
    ("gatewayclasses", "gateway.networking.k8s.io/v1", "GatewayClass"),
    ("gateways", "gateway.networking.k8s.io/v1", "Gateway"),
    // As before 1.6.
    ("tcproutes", "gateway.networking.k8s.io/v1alpha2", "TCPRoute"),
    ("udproutes", "gateway.networking.k8s.io/v1alpha2", "UDPRoute"),
    ("referencegrants", "gateway.networking.k8s.io/v1beta1", "ReferenceGrant"),
];

/// An object's kind, by its plural, its namespace and its name.
type Key = (String, String, String);

#[derive(Default)]
struct Store {
    objects: BTreeMap<Key, Value>,
    version: u64,
    /// Versions, what happened, and to what.
    history: VecDeque<(u64, &'static str, Key, Value)>,
    /// Watches cannot go on from versions up to this.
    forgotten: u64,
    token: String,
    /// Plurals that it does not have.
    missing: Vec<String>,
    /// Requests by method and path.
    requests: Vec<String>,
}

#[derive(Clone)]
struct Shared {
    store: Arc<Mutex<Store>>,
    changed: watch::Sender<u64>,
}

/// A small API server, on the load balancer's own host.
pub struct ApiServer {
    shared: Shared,
    addr: SocketAddr,
    namespace_of: String,
    running: Option<Runtime>,
}

impl ApiServer {
    pub fn start(net: &Net) -> Self {
        let store = Store { token: "secret".into(), version: 100, ..Store::default() };
        let shared = Shared { store: Arc::new(Mutex::new(store)), changed: watch::channel(0).0 };
        let addr = (Ipv4Addr::LOCALHOST, 6443).into();
        let mut server = Self { shared, addr, namespace_of: net.name(Host::Lb), running: None };
        server.come_back(net);
        server
    }

    /// Ends all connections, and takes no new ones.
    pub fn go_away(&mut self) {
        if let Some(runtime) = self.running.take() {
            runtime.shutdown_background();
        }
    }

    /// Answers again.
    pub fn come_back(&mut self, net: &Net) {
        assert_eq!(net.name(Host::Lb), self.namespace_of);
        let mut bound = None;
        // The port of those who were cut off is free in a moment.
        crate::wait_for("the API server's port is free", || {
            bound = net.on(Host::Lb, || TcpListener::bind(self.addr)).ok();
            bound.is_some()
        });
        let listener = bound.unwrap();
        listener.set_nonblocking(true).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let shared = self.shared.clone();
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let router = axum::Router::new().fallback(answer).with_state(shared);
            axum::serve(listener, router).await.unwrap();
        });
        self.running = Some(runtime);
    }

    /// Forgets all changes: watches must list again.
    pub fn forget(&self) {
        let mut store = self.store();
        store.version += 1000;
        store.forgotten = store.version;
        store.history.clear();
    }

    /// A kind that is not installed.
    pub fn lacks(&self, plural: &str) {
        self.store().missing.push(plural.into());
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.shared.store.lock().unwrap()
    }

    /// Puts the objects of manifests there, as `kubectl apply` does: status and what controllers have set
    /// stay.
    pub fn apply(&self, manifests: &str) {
        for text in manifests.split("---\n").filter(|text| !text.trim().is_empty()) {
            let object = fairway_config::to_json(text).unwrap();
            let kind = object["kind"].as_str().unwrap();
            let (plural, ..) = KINDS.iter().find(|(.., known)| *known == kind).unwrap();
            let meta = &object["metadata"];
            let is_namespaced = !matches!(*plural, "nodes" | "namespaces");
            let namespace = match (is_namespaced, meta["namespace"].as_str()) {
                (false, _) => "",
                (true, namespace) => namespace.unwrap_or("default"),
            };
            let key = ((*plural).into(), namespace.into(), meta["name"].as_str().unwrap().into());
            self.shared
                .put(key, |old| {
                    let mut new = object.clone();
                    if let Some(old) = old {
                        for field in ["finalizers", "uid", "creationTimestamp", "deletionTimestamp"]
                        {
                            if !old["metadata"][field].is_null() {
                                new["metadata"][field] = old["metadata"][field].clone();
                            }
                        }
                        let mut annotations = old["metadata"]["annotations"].clone();
                        merge(&mut annotations, &new["metadata"]["annotations"]);
                        new["metadata"]["annotations"] = annotations;
                        if new["status"].is_null() {
                            new["status"] = old["status"].clone();
                        }
                    }
                    Ok(new)
                })
                .unwrap();
        }
    }

    /// Deletes an object, as far as its finalizers let it go.
    pub fn delete(&self, plural: &str, namespace: &str, name: &str) {
        self.shared.delete(&(plural.into(), namespace.into(), name.into()));
    }

    pub fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        self.store().objects.get(&(plural.into(), namespace.into(), name.into())).cloned()
    }

    /// All objects of a kind.
    pub fn all(&self, plural: &str) -> Vec<Value> {
        let store = self.store();
        let of_kind = store.objects.iter().filter(|(key, _)| key.0 == plural);
        of_kind.map(|(_, object)| object.clone()).collect()
    }

    /// The addresses that the status of a Service has.
    pub fn addresses(&self, name: &str) -> Vec<String> {
        let service = self.get("services", "default", name).unwrap_or_default();
        let ingress = service["status"]["loadBalancer"]["ingress"].as_array().cloned();
        let ip = |at: &Value| at["ip"].as_str().unwrap().to_owned();
        ingress.unwrap_or_default().iter().map(ip).collect()
    }

    /// Requests that have come, by method and path, and forgets them.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.store().requests)
    }

    /// Writes a kubeconfig for it, whose token is in a file beside it.
    pub fn kubeconfig(&self, folder: &Path) {
        let token = folder.join("token");
        std::fs::write(&token, &self.store().token).unwrap();
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
             clusters: [{{name: test, cluster: {{server: \"http://{}\"}}}}]\n\
             users: [{{name: test, user: {{tokenFile: {}}}}}]\n\
             contexts: [{{name: test, context: {{cluster: test, user: test}}}}]\n",
            self.addr,
            token.display()
        );
        std::fs::write(folder.join("kubeconfig"), text).unwrap();
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.go_away();
    }
}

impl Shared {
    /// Changes an object, or makes it.
    fn put(
        &self,
        key: Key,
        change: impl FnOnce(Option<&Value>) -> Result<Value, Refused>,
    ) -> Result<Value, Refused> {
        let mut store = self.store.lock().unwrap();
        let old = store.objects.get(&key);
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
        } else {
            new["metadata"]["uid"] = json!(format!("{}-{}-{}", key.0, key.2, store.version));
            new["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        let happened = if old.is_some() { "MODIFIED" } else { "ADDED" };
        let finalizers = new["metadata"]["finalizers"].as_array().map_or(0, Vec::len);
        let goes = !new["metadata"]["deletionTimestamp"].is_null() && finalizers == 0;
        store.happen(if goes { "DELETED" } else { happened }, key, &mut new);
        self.changed.send_replace(store.version);
        Ok(new)
    }

    fn delete(&self, key: &Key) -> Option<Value> {
        let mut object = self.store.lock().unwrap().objects.get(key)?.clone();
        let held = object["metadata"]["finalizers"].as_array().is_some_and(|held| !held.is_empty());
        if held {
            let going = |old: Option<&Value>| {
                let mut new = old.cloned().unwrap_or_default();
                new["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:01Z");
                Ok(new)
            };
            return self.put(key.clone(), going).ok();
        }
        let mut store = self.store.lock().unwrap();
        store.happen("DELETED", key.clone(), &mut object);
        self.changed.send_replace(store.version);
        Some(object)
    }
}

impl Store {
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

/// RFC 7396.
fn merge(target: &mut Value, patch: &Value) {
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
        match change {
            Value::Null => _ = target.as_object_mut().unwrap().remove(key),
            _ => merge(&mut target[key], change),
        }
    }
}

/// A status, and the reason for it.
type Refused = (StatusCode, &'static str);

fn refuse(code: StatusCode, reason: &str) -> Response {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason,
        "message": reason, "code": code.as_u16(),
    });
    (code, axum::Json(status)).into_response()
}

/// What a request is about.
struct Asked {
    plural: String,
    namespace: String,
    name: Option<String>,
    is_status: bool,
    query: BTreeMap<String, String>,
}

fn asked(uri: &Uri) -> Option<Asked> {
    let words: Vec<&str> = uri.path().trim_matches('/').split('/').collect();
    let rest = match words.as_slice() {
        ["api", "v1", rest @ ..] => rest,
        ["apis", _, _, rest @ ..] => rest,
        _ => return None,
    };
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
        rest => ("", rest),
    };
    let pairs = uri.query().unwrap_or("").split('&').filter_map(|pair| pair.split_once('='));
    Some(Asked {
        plural: (*rest.first()?).into(),
        namespace: namespace.into(),
        name: rest.get(1).map(|name| (*name).into()),
        is_status: rest.get(2) == Some(&"status"),
        query: pairs.map(|(key, value)| (key.into(), value.into())).collect(),
    })
}

async fn answer(
    State(shared): State<Shared>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let Some(asked) = asked(&uri) else { return refuse(StatusCode::NOT_FOUND, "NotFound") };
    {
        let mut store = shared.store.lock().unwrap();
        let token = format!("Bearer {}", store.token);
        if headers.get(header::AUTHORIZATION).is_none_or(|given| *given != *token) {
            return refuse(StatusCode::UNAUTHORIZED, "Unauthorized");
        }
        let is_known = KINDS.iter().any(|(plural, ..)| *plural == asked.plural);
        if !is_known || store.missing.contains(&asked.plural) {
            return refuse(StatusCode::NOT_FOUND, "NotFound");
        }
        store.requests.push(format!("{method} {}", uri.path()));
    }
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let done = |result: Result<Value, Refused>, code: StatusCode| match result {
        Ok(object) => (code, axum::Json(object)).into_response(),
        Err((code, reason)) => refuse(code, reason),
    };
    let name = asked.name.clone().or_else(|| body["metadata"]["name"].as_str().map(Into::into));
    let key = (asked.plural.clone(), asked.namespace.clone(), name.unwrap_or_default());
    match (method, &asked.name) {
        (Method::GET, None) if asked.query.get("watch").is_some_and(|watch| watch == "true") => {
            watch_stream(&shared, &asked)
        }
        (Method::GET, None) => {
            let store = shared.store.lock().unwrap();
            let meant = |key: &&Key| {
                key.0 == asked.plural && (asked.namespace.is_empty() || key.1 == asked.namespace)
            };
            let items: Vec<&Value> =
                store.objects.iter().filter(|(key, _)| meant(key)).map(|(_, o)| o).collect();
            let version = store.version.to_string();
            axum::Json(json!({ "metadata": { "resourceVersion": version }, "items": items }))
                .into_response()
        }
        (Method::GET, Some(_)) => match shared.store.lock().unwrap().objects.get(&key) {
            Some(object) => axum::Json(object).into_response(),
            None => refuse(StatusCode::NOT_FOUND, "NotFound"),
        },
        (Method::POST, None) => {
            let made = shared.put(key, |old| match old {
                Some(_) => Err((StatusCode::CONFLICT, "AlreadyExists")),
                None => Ok(body),
            });
            done(made, StatusCode::CREATED)
        }
        (Method::PUT, Some(_)) => done(shared.put(key, |old| replaced(old, body)), StatusCode::OK),
        (Method::PATCH, Some(_)) => {
            let patched = shared.put(key, |old| patched(old, &body, asked.is_status));
            done(patched, StatusCode::OK)
        }
        (Method::DELETE, Some(_)) => match shared.delete(&key) {
            Some(object) => axum::Json(object).into_response(),
            None => refuse(StatusCode::NOT_FOUND, "NotFound"),
        },
        _ => refuse(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
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

fn replaced(old: Option<&Value>, new: Value) -> Result<Value, Refused> {
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

fn patched(old: Option<&Value>, patch: &Value, is_status: bool) -> Result<Value, Refused> {
    let old = old.ok_or((StatusCode::NOT_FOUND, "NotFound"))?;
    agrees(old, patch)?;
    let mut new = old.clone();
    merge(&mut new, patch);
    if is_status {
        new["spec"] = old["spec"].clone();
    } else {
        new["status"] = old["status"].clone();
    }
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

fn watch_stream(shared: &Shared, asked: &Asked) -> Response {
    let from: u64 = asked.query.get("resourceVersion").map_or(0, |text| text.parse().unwrap_or(0));
    if from < shared.store.lock().unwrap().forgotten {
        let gone = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired",
            "message": "too old resource version", "code": 410,
        });
        return axum::Json(json!({ "type": "ERROR", "object": gone })).into_response();
    }
    let seconds = asked.query.get("timeoutSeconds").and_then(|text| text.parse().ok());
    let end = tokio::time::Instant::now() + Duration::from_secs(seconds.unwrap_or(60));
    let bookmarks = asked.query.get("allowWatchBookmarks").is_some_and(|wanted| wanted == "true");
    let (plural, namespace) = (asked.plural.clone(), asked.namespace.clone());
    let (_, version, kind) = *KINDS.iter().find(|(known, ..)| *known == plural).unwrap();
    let shared = shared.clone();
    let changed = shared.changed.subscribe();
    let state = (shared, changed, from);
    let lines = stream::unfold(state, move |(shared, mut changed, mut from)| {
        let (plural, namespace) = (plural.clone(), namespace.clone());
        async move {
            loop {
                changed.mark_unchanged();
                let mut text = String::new();
                {
                    let store = shared.store.lock().unwrap();
                    if from < store.forgotten {
                        return None;
                    }
                    let news = store.history.iter().filter(|(at, ..)| *at > from);
                    for (_, what, key, object) in news {
                        let meant = namespace.is_empty() || key.1 == namespace;
                        if key.0 == plural && meant {
                            text += &json!({ "type": what, "object": object }).to_string();
                            text.push('\n');
                        }
                    }
                    from = store.version;
                }
                if text.is_empty() && tokio::time::Instant::now() < end {
                    let waited = tokio::time::timeout(BOOKMARK, changed.changed()).await;
                    if waited.is_ok() || !bookmarks {
                        continue;
                    }
                    let meta = json!({ "resourceVersion": from.to_string() });
                    let object = json!({ "kind": kind, "apiVersion": version, "metadata": meta });
                    text = json!({ "type": "BOOKMARK", "object": object }).to_string() + "\n";
                }
                if text.is_empty() {
                    return None;
                }
                let part = Ok::<_, Infallible>(Bytes::from(text));
                return Some((part, (shared, changed, from)));
            }
        }
    });
    ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(lines)).into_response()
}
