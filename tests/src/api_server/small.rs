//! A small API server: lists, watches with bookmarks, versions and their conflicts, 410 for versions that
//! are forgotten, patches of objects and of their status, finalizers, tokens, TLS.
//!
//! It answers as a real one does in all that it answers. What it lacks is validation, defaults and
//! controllers.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use kube::config::Kubeconfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::store::{KINDS, Key, Refused, Store, Way, patched, replaced};

/// From one bookmark to the next.
const BOOKMARK: Duration = Duration::from_millis(500);

#[derive(Clone)]
struct Shared {
    store: Arc<Mutex<Store>>,
    changed: watch::Sender<u64>,
}

/// A small API server, at a port of its own.
pub(super) struct Small {
    shared: Shared,
    addr: SocketAddr,
    authority: String,
    _runtime: Runtime,
}

impl Small {
    pub(super) fn start() -> Self {
        // Another crate may have brought another one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let acceptor = certified(folder.path());
        let authority = std::fs::read_to_string(folder.path().join("ca.pem")).unwrap();
        let store = Store {
            tokens: ["of-tests".into(), "secret".into()],
            version: 100,
            ..Store::default()
        };
        let shared = Shared { store: Arc::new(Mutex::new(store)), changed: watch::channel(0).0 };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let addr = listener.local_addr().unwrap();
        let router = axum::Router::new().fallback(answer).with_state(shared.clone());
        runtime.spawn(async move {
            axum::serve(Encrypted { listener, acceptor }, router).await.unwrap();
        });
        Self { shared, addr, authority, _runtime: runtime }
    }

    pub(super) fn forget(&self) {
        let mut store = self.store();
        store.version += 1000;
        store.forgotten = store.version;
        store.history.clear();
        // Watches that wait see it.
        self.shared.changed.send_replace(store.version);
    }

    /// Writes an object as it is, without anybody's request.
    pub(super) fn write(&self, key: Key, object: Value) {
        // It refuses nothing.
        let _ = self.shared.put(key, |_| Ok(object));
    }

    pub(super) fn lacks(&self, plural: &str) {
        self.store().missing.push(plural.into());
    }

    pub(super) fn fail(&self, times: usize) {
        self.store().failures = times;
    }

    pub(super) fn renew_token(&self, token: &str) {
        self.store().tokens[1] = token.into();
    }

    /// Fairway's token.
    pub(super) fn token(&self) -> String {
        self.store().tokens[1].clone()
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.shared.store.lock().unwrap()
    }

    /// How it is reached from where it runs.
    pub(super) fn kubeconfig(&self) -> Kubeconfig {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{ "name": "test", "cluster": {
                "server": format!("https://{}", self.addr),
                "certificate-authority-data": base64(self.authority.as_bytes()),
            } }],
            "users": [{ "name": "test", "user": { "token": self.store().tokens[0] } }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
        });
        serde_json::from_value(config).unwrap()
    }
}

/// RFC 4648, as `certificate-authority-data` has it.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0_u32, |bits, byte| (bits << 8) | u32::from(*byte));
        let bits = bits << (8 * (3 - chunk.len()));
        for n in 0..4 {
            let sextet = (bits >> (18 - 6 * n)) & 63;
            text.push(if n > chunk.len() { '=' } else { char::from(ALPHABET[sextet as usize]) });
        }
    }
    text
}

/// A certificate for this host, by an authority that is made for it.
fn certified(folder: &Path) -> TlsAcceptor {
    let openssl = |arguments: &str| {
        let arguments = arguments.split(' ');
        let output = Command::new("openssl").args(arguments).current_dir(folder).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let names = "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n";
    std::fs::write(folder.join("names"), names).unwrap();
    let curve = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!("req -x509 {curve} -days 2 -subj /CN=authority -keyout ca.key -out ca.pem"));
    openssl(&format!("req {curve} -subj /CN=api -keyout api.key -out api.csr"));
    openssl(
        "x509 -req -in api.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names \
         -out api.pem",
    );
    let certificate = CertificateDer::from_pem_file(folder.join("api.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(folder.join("api.key")).unwrap();
    let config = rustls::ServerConfig::builder().with_no_client_auth();
    let config = config.with_single_cert(vec![certificate], key).unwrap();
    TlsAcceptor::from(Arc::new(config))
}

struct Encrypted {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl axum::serve::Listener for Encrypted {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            // Whoever does not shake hands is not served.
            let Ok((stream, from)) = self.listener.accept().await else { continue };
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, from);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl Shared {
    fn put(
        &self,
        key: Key,
        change: impl FnOnce(Option<&Value>) -> Result<Value, Refused>,
    ) -> Result<Value, Refused> {
        let mut store = self.store.lock().unwrap();
        let done = store.put(key, change);
        self.changed.send_replace(store.version);
        done
    }

    /// Whether this time it fails.
    fn fails(&self) -> bool {
        let mut store = self.store.lock().unwrap();
        let fails = store.failures > 0;
        store.failures = store.failures.saturating_sub(1);
        fails
    }

    fn delete(&self, key: &Key) -> Option<Value> {
        let mut store = self.store.lock().unwrap();
        let done = store.delete(key);
        self.changed.send_replace(store.version);
        done
    }
}

fn refuse(code: StatusCode, reason: &str) -> Response {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason,
        "message": reason, "code": code.as_u16(),
    });
    (code, axum::Json(status)).into_response()
}

/// What a request is about.
struct Asked {
    /// Group and version.
    version: String,
    plural: String,
    namespace: String,
    name: Option<String>,
    is_status: bool,
    query: BTreeMap<String, String>,
}

fn asked(uri: &Uri) -> Option<Asked> {
    let words: Vec<&str> = uri.path().trim_matches('/').split('/').collect();
    let (version, rest) = match words.as_slice() {
        ["api", "v1", rest @ ..] => ("v1".to_owned(), rest),
        ["apis", group, version, rest @ ..] => (format!("{group}/{version}"), rest),
        _ => return None,
    };
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
        rest => ("", rest),
    };
    let pairs = uri.query().unwrap_or("").split('&').filter_map(|pair| pair.split_once('='));
    Some(Asked {
        version,
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
        let store = shared.store.lock().unwrap();
        let is_known = |given: &HeaderValue| {
            store.tokens.iter().any(|token| *given == *format!("Bearer {token}"))
        };
        if !headers.get(header::AUTHORIZATION).is_some_and(is_known) {
            return refuse(StatusCode::UNAUTHORIZED, "Unauthorized");
        }
        let is_known = KINDS
            .iter()
            .any(|(plural, version, _)| *plural == asked.plural && *version == asked.version);
        if !is_known || store.missing.contains(&asked.plural) {
            return refuse(StatusCode::NOT_FOUND, "NotFound");
        }
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
        (Method::PATCH, Some(_)) if asked.is_status && shared.fails() => {
            refuse(StatusCode::INTERNAL_SERVER_ERROR, "InternalError")
        }
        (Method::PATCH, Some(_)) => {
            let content = headers.get(header::CONTENT_TYPE).and_then(|text| text.to_str().ok());
            let Some(way) = Way::of(content.unwrap_or(""), &asked.version) else {
                return refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType");
            };
            let patched = shared.put(key, |old| patched(old, &body, way, asked.is_status));
            done(patched, StatusCode::OK)
        }
        (Method::DELETE, Some(_)) => match shared.delete(&key) {
            Some(object) => axum::Json(object).into_response(),
            None => refuse(StatusCode::NOT_FOUND, "NotFound"),
        },
        _ => refuse(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
    }
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
                    let known = store.history.partition_point(|(at, ..)| *at <= from);
                    for (_, what, key, object) in store.history.range(known..) {
                        let meant = namespace.is_empty() || key.1 == namespace;
                        if key.0 == plural && meant {
                            // In the order of a real one, which lets readers go on as they read.
                            text += &format!("{{\"type\":\"{what}\",\"object\":{object}}}\n");
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
