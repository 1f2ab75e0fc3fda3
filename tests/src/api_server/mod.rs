//! An API server: a small one of our own, or the one that `FAIRWAY_TEST_KUBECONFIG` names.
//!
//! ```text
//! test ── client ──────────────┐
//!                              ├──▶ API server (TLS, tokens), in the namespace of the test
//! Fairway, on its host ── relay ┘
//! ```
//!
//! Tests do what they do by its API, and Fairway reaches it through a relay, which can go away: so that
//! the same test runs against both. What only the small one can do says whether it was done.

mod small;
mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Mutex;

use axum::http::{Method, Request};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use crate::rack::Rack;
use crate::{Host, Net, in_namespace, wait_for};
use small::Small;
use store::{KINDS, Key, kind_of};

/// Where Fairway finds it, on its own host.
const RELAY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 6443);

/// An API server, to which Fairway has a way.
pub struct ApiServer<'n> {
    /// Where Fairways have a way to it.
    namespaces: Vec<String>,
    /// They are there as long as it is.
    _hosts: PhantomData<&'n ()>,
    kubeconfig: Kubeconfig,
    /// Where it is.
    addr: SocketAddr,
    client: Client,
    runtime: Runtime,
    relay: Option<Runtime>,
    /// Ours, if it is not the one that was named.
    small: Option<Small>,
    /// What was applied last, as `kubectl` remembers it.
    applied: Mutex<BTreeMap<Key, Value>>,
}

impl<'n> ApiServer<'n> {
    pub fn start(net: &'n Net) -> Self {
        Self::start_in(vec![net.name(Host::Lb)])
    }

    /// The same for the boxes of a rack.
    pub fn of_rack(rack: &'n Rack, boxes: &[&str]) -> Self {
        Self::start_in(boxes.iter().map(|host| rack.name(host)).collect())
    }

    fn start_in(namespaces: Vec<String>) -> Self {
        let (kubeconfig, small) = match std::env::var_os("FAIRWAY_TEST_KUBECONFIG") {
            Some(path) => (Kubeconfig::read_from(path).unwrap(), None),
            None => {
                let small = Small::start();
                (small.kubeconfig(), Some(small))
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (client, addr) = runtime.block_on(async {
            let options = KubeConfigOptions::default();
            let config = Config::from_custom_kubeconfig(kubeconfig.clone(), &options).await;
            let config = config.unwrap();
            let url = config.cluster_url.clone();
            let at = (url.host().unwrap(), url.port_u16().unwrap_or(443));
            let mut found = tokio::net::lookup_host(at).await.unwrap();
            let addr = found.next().unwrap();
            (Client::try_from(config).unwrap(), addr)
        });
        let applied = Mutex::default();
        let (_hosts, relay) = (PhantomData, None);
        let mut server =
            Self { namespaces, _hosts, kubeconfig, addr, client, runtime, relay, small, applied };
        // One that was used before has a leader, of whom nothing is heard any more.
        server.delete("leases", "kube-system", crate::cluster::LEASE);
        server.come_back();
        server
    }

    /// Ends all of Fairway's connections, and takes no new ones.
    pub fn go_away(&mut self) {
        if let Some(relay) = self.relay.take() {
            relay.shutdown_background();
        }
    }

    /// Answers again.
    pub fn come_back(&mut self) {
        let relay = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let addr = self.addr;
        for namespace in &self.namespaces {
            let mut bound = None;
            // The port of those who were cut off is free in a moment.
            wait_for("the relay's port is free", || {
                bound = in_namespace(namespace, || TcpListener::bind(RELAY)).ok();
                bound.is_some()
            });
            let listener = bound.unwrap();
            listener.set_nonblocking(true).unwrap();
            relay.spawn(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                while let Ok((mut from, _)) = listener.accept().await {
                    tokio::spawn(async move {
                        if let Ok(mut to) = TcpStream::connect(addr).await {
                            // Either end may go at any time.
                            let _ = copy_bidirectional(&mut from, &mut to).await;
                        }
                    });
                }
            });
        }
        self.relay = Some(relay);
    }

    /// Forgets all changes: watches must list again.
    pub fn forget(&self) -> bool {
        self.small.as_ref().map(Small::forget).is_some()
    }

    /// Writes an object as it is, at a rate that requests would not reach.
    pub fn write(&self, plural: &str, name: &str, object: Value) -> bool {
        let key = (plural.into(), "default".into(), name.into());
        self.small.as_ref().map(|small| small.write(key, object)).is_some()
    }

    /// A kind that is not installed.
    pub fn lacks(&self, plural: &str) -> bool {
        self.small.as_ref().map(|small| small.lacks(plural)).is_some()
    }

    /// Whether a kind is installed.
    pub fn has(&self, plural: &str) -> bool {
        self.try_ask(Method::GET, &path(plural, "", ""), "", Value::Null).is_ok()
    }

    /// Fails to write a status so many times.
    pub fn fail(&self, times: usize) -> bool {
        self.small.as_ref().map(|small| small.fail(times)).is_some()
    }

    /// Takes another token from now on, and no longer the one before.
    pub fn renew_token(&self, token: &str) -> bool {
        self.small.as_ref().map(|small| small.renew_token(token)).is_some()
    }

    /// Puts the objects of manifests there, as `kubectl apply` does: what is no longer written goes, and
    /// what others have written stays.
    pub fn apply(&self, manifests: &str) {
        for text in manifests.split("---\n").filter(|text| !text.trim().is_empty()) {
            let object = fairway_config::to_json(text).unwrap();
            let (plural, ..) = kind_of(object["kind"].as_str().unwrap());
            let meta = &object["metadata"];
            let is_ours = object["apiVersion"] == "fairway.dev/v1alpha1";
            let is_namespaced =
                !is_ours && !matches!(plural, "nodes" | "namespaces" | "gatewayclasses");
            let namespace = match (is_namespaced, meta["namespace"].as_str()) {
                (false, _) => "",
                (true, namespace) => namespace.unwrap_or("default"),
            };
            let name = meta["name"].as_str().unwrap();
            self.apply_one((plural.into(), namespace.into(), name.into()), object);
        }
    }

    fn apply_one(&self, key: Key, mut object: Value) {
        let status = object.as_object_mut().unwrap().remove("status");
        let (plural, namespace, name) = &key;
        let at = path(plural, namespace, name);
        let merge = "application/merge-patch+json";
        if self.get(plural, namespace, name).is_some() {
            let mut applied = self.applied.lock().unwrap();
            let before = applied.get(&key).cloned().unwrap_or_default();
            self.ask(Method::PATCH, &at, merge, difference(&before, &object));
            applied.insert(key.clone(), object);
        } else {
            self.ask(
                Method::POST,
                &path(plural, namespace, ""),
                "application/json",
                object.clone(),
            );
            self.applied.lock().unwrap().insert(key.clone(), object);
        }
        if let Some(status) = status {
            self.ask(Method::PATCH, &format!("{at}/status"), merge, json!({ "status": status }));
        }
    }

    /// Deletes an object, as far as its finalizers let it go.
    pub fn delete(&self, plural: &str, namespace: &str, name: &str) {
        // One that is not there is gone.
        let _ = self.try_ask(Method::DELETE, &path(plural, namespace, name), "", Value::Null);
        self.applied.lock().unwrap().remove(&(plural.into(), namespace.into(), name.into()));
    }

    pub fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        self.try_ask(Method::GET, &path(plural, namespace, name), "", Value::Null).ok()
    }

    /// All objects of a kind.
    pub fn all(&self, plural: &str) -> Vec<Value> {
        let list = self.ask(Method::GET, &path(plural, "", ""), "", Value::Null);
        list["items"].as_array().cloned().unwrap_or_default()
    }

    /// The addresses that the status of a Service has.
    pub fn addresses(&self, name: &str) -> Vec<String> {
        let service = self.get("services", "default", name).unwrap_or_default();
        let ingress = service["status"]["loadBalancer"]["ingress"].as_array().cloned();
        let ip = |at: &Value| at["ip"].as_str().unwrap().to_owned();
        ingress.unwrap_or_default().iter().map(ip).collect()
    }

    /// The version of a Service, which changes when anybody writes it.
    pub fn version(&self, name: &str) -> String {
        let service = self.get("services", "default", name).unwrap();
        service["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
    }

    /// What it says to a request; the code when it refuses.
    pub fn try_ask(
        &self,
        method: Method,
        path: &str,
        content: &str,
        body: Value,
    ) -> Result<Value, u16> {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let mut request = Request::builder().method(method).uri(path);
        if !content.is_empty() {
            request = request.header("content-type", content);
        }
        let request = request.body(body).unwrap();
        match self.runtime.block_on(self.client.request::<Value>(request)) {
            Ok(object) => Ok(object),
            Err(kube::Error::Api(status)) => Err(status.code),
            Err(error) => panic!("{path}: {error}"),
        }
    }

    fn ask(&self, method: Method, path: &str, content: &str, body: Value) -> Value {
        let said = self.try_ask(method.clone(), path, content, body.clone());
        said.unwrap_or_else(|code| panic!("{method} {path}: {code} to {body}"))
    }

    /// Writes a kubeconfig by which Fairway finds it, whose token is in a file beside it, if it has one.
    pub fn kubeconfig(&self, folder: &Path) {
        let mut config = self.kubeconfig.clone();
        for cluster in config.clusters.iter_mut().filter_map(|named| named.cluster.as_mut()) {
            let server: axum::http::Uri = cluster.server.as_ref().unwrap().parse().unwrap();
            // The certificate is that of the server behind.
            cluster.tls_server_name.get_or_insert(server.host().unwrap().to_owned());
            cluster.server = Some(format!("https://{RELAY}"));
        }
        if let Some(small) = &self.small {
            std::fs::write(folder.join("token"), small.token()).unwrap();
            for user in config.auth_infos.iter_mut().filter_map(|named| named.auth_info.as_mut()) {
                user.token = None;
                user.token_file = Some("token".into());
            }
        }
        let text = serde_json::to_string(&config).unwrap();
        std::fs::write(folder.join("kubeconfig"), text).unwrap();
    }
}

impl Drop for ApiServer<'_> {
    fn drop(&mut self) {
        self.go_away();
        if self.small.is_some() {
            return;
        }
        // Another test finds it as this one did.
        let keys: BTreeSet<Key> = self.applied.lock().unwrap().keys().cloned().collect();
        for (plural, namespace, name) in keys {
            let at = path(&plural, &namespace, &name);
            let free = json!({ "metadata": { "finalizers": null } });
            let _ = self.try_ask(Method::PATCH, &at, "application/merge-patch+json", free);
            self.delete(&plural, &namespace, &name);
        }
    }
}

/// The path of an object, or of all: in a namespace, or everywhere.
pub fn path(plural: &str, namespace: &str, name: &str) -> String {
    let (_, version, _) = KINDS.iter().find(|(known, ..)| *known == plural).unwrap();
    let mut path =
        if version.contains('/') { format!("/apis/{version}") } else { "/api/v1".into() };
    for word in if namespace.is_empty() { vec![] } else { vec!["namespaces", namespace] } {
        path = format!("{path}/{word}");
    }
    path = format!("{path}/{plural}");
    if name.is_empty() { path } else { format!("{path}/{name}") }
}

/// A merge patch that makes of `before` what `after` is, and leaves what neither has.
fn difference(before: &Value, after: &Value) -> Value {
    let (Some(old), Some(new)) = (before.as_object(), after.as_object()) else {
        return after.clone();
    };
    let mut patch = serde_json::Map::new();
    for (key, value) in new {
        patch.insert(key.clone(), difference(old.get(key).unwrap_or(&Value::Null), value));
    }
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    Value::Object(patch)
}
