//! Watching a cluster's API server.
//!
//! One watch for each kind (and namespace, where some are named), each a task of its own that lists,
//! watches, and lists again after 410; what it sees goes to one channel. Reconnecting is `kube`'s.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::config::KubeConfigOptions;
use kube::runtime::WatchStreamExt;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Config, Resource};
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer};
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinHandle;

use super::cluster::Kind;
use super::objects::{EndpointSlice, Meta, Name, Namespace, Node, Object, Service};
use super::pools::{AddressPool, MetallbPool};
use crate::spec::{Access, ApiServer};

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(3);
/// Seconds after which a watch is asked for anew: a connection that died without a word is noticed
/// five seconds later.
const WATCH: u32 = 30;
/// Shortest and longest time until the next try.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(2500));
/// The same for kinds that the cluster need not have.
const OPTIONAL: Duration = Duration::from_secs(30);

/// What a watch has seen.
#[derive(Debug)]
pub enum ClusterEvent {
    /// An object is new, or has changed.
    Apply(Object),
    /// An object is gone.
    Delete(Kind, Name),
    /// All objects of a kind, in one namespace or in all: others are gone.
    All(Kind, Option<String>, Vec<Object>),
    /// Why a kind cannot be watched now; none when it can again.
    Trouble(Kind, Option<String>),
}

/// A client of the API server, and its address. Fails when the kubeconfig cannot be read, or there is
/// no cluster around this process.
pub async fn connect(api: &ApiServer) -> Result<(Client, String), String> {
    let mut config = match &api.access {
        Access::InCluster => Config::incluster()
            .map_err(|error| format!("`inCluster` finds no service account of a Pod: {error}"))?,
        Access::Kubeconfig { path, context } => {
            let unreadable = |error: kube::config::KubeconfigError| {
                format!("kubeconfig {}: {}", path.display(), chain(&error))
            };
            let file = kube::config::Kubeconfig::read_from(path).map_err(unreadable)?;
            let options = KubeConfigOptions { context: context.clone(), ..Default::default() };
            Config::from_custom_kubeconfig(file, &options).await.map_err(unreadable)?
        }
    };
    config.connect_timeout = Some(CONNECT);
    let url = config.cluster_url.to_string();
    let client = Client::try_from(config).map_err(|error| chain(&error))?;
    Ok((client, url))
}

/// An error with all its causes.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = cause.source();
    }
    text
}

/// What must have been listed before anything can be said of a cluster.
#[must_use]
pub fn needed(api: &ApiServer) -> BTreeSet<(Kind, Option<String>)> {
    let namespaces = || match api.namespaces.is_empty() {
        true => vec![None],
        false => api.namespaces.iter().cloned().map(Some).collect(),
    };
    let in_each = |kind: Kind| namespaces().into_iter().map(move |namespace| (kind, namespace));
    let mut needed: BTreeSet<_> =
        in_each(Kind::Service).chain(in_each(Kind::EndpointSlice)).collect();
    needed.extend([(Kind::Node, None), (Kind::Namespace, None), (Kind::AddressPool, None)]);
    needed.extend(api.metallb_pools.then_some((Kind::MetallbPool, None)));
    needed
}

/// Starts the watches; they end when nobody listens any more, or with their handles.
pub fn watch(
    client: &Client,
    api: &ApiServer,
    sender: &UnboundedSender<ClusterEvent>,
) -> Vec<JoinHandle<()>> {
    let mut tasks = Vec::new();
    for (kind, namespace) in needed(api) {
        let (client, sender) = (client.clone(), sender.clone());
        tasks.push(match kind {
            Kind::Service => tokio::spawn(follow::<Service>(client, namespace, sender)),
            Kind::EndpointSlice => tokio::spawn(follow::<EndpointSlice>(client, namespace, sender)),
            Kind::Node => tokio::spawn(follow::<Node>(client, None, sender)),
            Kind::AddressPool => tokio::spawn(follow::<AddressPool>(client, None, sender)),
            Kind::MetallbPool => tokio::spawn(follow::<MetallbPool>(client, None, sender)),
            Kind::Namespace | Kind::Endpoints => {
                tokio::spawn(follow::<Namespace>(client, None, sender))
            }
        });
    }
    tasks
}

/// A kind of objects, as the API server has it.
trait Watched: DeserializeOwned + Clone + Debug + Send + Sync + 'static {
    const KIND: Kind;
    const WORD: &'static str;
    const GROUP: &'static str;
    const VERSION: &'static str;
    const PLURAL: &'static str;
    /// Whether a cluster may be without it.
    const IS_OPTIONAL: bool = false;

    fn metadata(&self) -> &Meta;

    fn object(self) -> Object;
}

macro_rules! watched {
    ($($type:ident, $group:literal, $version:literal, $word:literal, $plural:literal, $optional:literal;)*) => {$(
        impl Watched for $type {
            const KIND: Kind = Kind::$type;
            const WORD: &'static str = $word;
            const GROUP: &'static str = $group;
            const VERSION: &'static str = $version;
            const PLURAL: &'static str = $plural;
            const IS_OPTIONAL: bool = $optional;

            fn metadata(&self) -> &Meta {
                &self.metadata
            }

            fn object(self) -> Object {
                Object::$type(Box::new(self))
            }
        }
    )*};
}

watched! {
    Service, "", "v1", "Service", "services", false;
    EndpointSlice, "discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", false;
    Node, "", "v1", "Node", "nodes", false;
    Namespace, "", "v1", "Namespace", "namespaces", false;
    AddressPool, "fairway.dev", "v1alpha1", "AddressPool", "addresspools", true;
    MetallbPool, "metallb.io", "v1beta1", "IPAddressPool", "ipaddresspools", true;
}

/// An object on its way here: the fields that are read, and the version that a watch goes on from.
#[derive(Debug, Clone)]
struct Seen<K> {
    meta: ObjectMeta,
    object: K,
}

impl<'de, K: Watched> Deserialize<'de> for Seen<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let object = K::deserialize(deserializer)?;
        let Meta { name, namespace, resource_version, .. } = object.metadata();
        let meta = ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(namespace.clone()).filter(|namespace| !namespace.is_empty()),
            resource_version: Some(resource_version.clone()),
            ..ObjectMeta::default()
        };
        Ok(Self { meta, object })
    }
}

impl<K: Watched> Resource for Seen<K> {
    type DynamicType = ();
    type Scope = kube::core::NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        K::WORD.into()
    }

    fn group((): &()) -> Cow<'_, str> {
        K::GROUP.into()
    }

    fn version((): &()) -> Cow<'_, str> {
        K::VERSION.into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::PLURAL.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

/// Says to `sender` what becomes of the objects of a kind.
async fn follow<K: Watched>(
    client: Client,
    namespace: Option<String>,
    sender: UnboundedSender<ClusterEvent>,
) {
    let api: Api<Seen<K>> = match &namespace {
        Some(namespace) => Api::namespaced(client, namespace),
        None => Api::all(client),
    };
    let longest = if K::IS_OPTIONAL { OPTIONAL } else { BACKOFF.1 };
    let stream = watcher(api, watcher::Config::default().timeout(WATCH));
    let mut stream = std::pin::pin!(stream.backoff(Doubling { next: BACKOFF.0, longest }));
    let (mut listed, mut troubled) = (Vec::new(), false);
    while let Some(event) = stream.next().await {
        let said = match event {
            Ok(Event::Init) => {
                listed.clear();
                continue;
            }
            Ok(Event::InitApply(seen)) => {
                listed.push(seen.object.object());
                continue;
            }
            Ok(Event::InitDone) => {
                ClusterEvent::All(K::KIND, namespace.clone(), std::mem::take(&mut listed))
            }
            Ok(Event::Apply(seen)) => ClusterEvent::Apply(seen.object.object()),
            Ok(Event::Delete(seen)) => ClusterEvent::Delete(K::KIND, seen.object.object().name()),
            // A kind that is not there has no objects.
            Err(error) if K::IS_OPTIONAL && is_missing(&error) => {
                ClusterEvent::All(K::KIND, namespace.clone(), Vec::new())
            }
            Err(error) => {
                troubled = true;
                ClusterEvent::Trouble(K::KIND, Some(chain(&error)))
            }
        };
        let well = !matches!(said, ClusterEvent::Trouble(..));
        if sender.send(said).is_err() {
            return;
        }
        if well && std::mem::take(&mut troubled) {
            // As above.
            let _ = sender.send(ClusterEvent::Trouble(K::KIND, None));
        }
    }
}

/// Whether the API server has no such kind.
fn is_missing(error: &watcher::Error) -> bool {
    use watcher::Error::{InitialListFailed, WatchStartFailed};
    match error {
        InitialListFailed(kube::Error::Api(status))
        | WatchStartFailed(kube::Error::Api(status)) => status.code == 404,
        _ => false,
    }
}

/// Twice as long each time, and a part of that by chance: so that all boxes do not come at once.
struct Doubling {
    next: Duration,
    longest: Duration,
}

impl Iterator for Doubling {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = self.next;
        self.next = (wait * 2).min(self.longest);
        let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let chance = f64::from(nanos.map_or(0, |since| since.subsec_nanos()) % 1000) / 1000.0;
        Some(wait.mul_f64(0.75 + chance / 4.0))
    }
}

impl Backoff for Doubling {
    fn reset(&mut self) {
        self.next = BACKOFF.0;
    }
}
