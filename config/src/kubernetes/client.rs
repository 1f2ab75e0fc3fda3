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
use kube::runtime::utils::{Backoff, ResetTimerBackoff};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Config, Resource};
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer};
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::announcements::Announcement;
use super::cluster::Kind;
use super::gateway::{GROUP as GATEWAYS, Gateway, GatewayClass, ReferenceGrant, Route, RouteKind};
use super::objects::{EndpointSlice, Meta, Name, Namespace, Node, Object, Service};
use super::pools::{AddressPool, MetallbPool};
use crate::spec::{Access, ApiServer};

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(3);
/// Seconds after which a watch is asked for anew: a connection that died without a word is noticed
/// five seconds later.
const WATCH: u32 = 30;
/// How long an answer may take: longer than a watch lasts that has nothing to say.
const SILENCE: Duration = Duration::from_secs(40);
/// After so long without an error a watch is well, though nothing was seen: one that goes on where it ended
/// says nothing until something happens. Longer than an answer may take.
const WELL: Duration = Duration::from_secs(45);
/// After so long without an error the time until the next try is the shortest again.
const QUIET: Duration = Duration::from_secs(10);
/// Shortest and longest time until the next try.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(2500));
/// Time until the next look for a kind that the cluster does not have.
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
    /// We may not see a kind, in one namespace or in all.
    Denied(Kind, Option<String>),
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
            let config =
                Config::from_custom_kubeconfig(file, &options).await.map_err(unreadable)?;
            let user = &config.auth_info;
            let file = user.token_file.as_ref().filter(|_| user.token.is_none());
            if let Some(why) = file.and_then(odd_token) {
                return Err(why);
            }
            config
        }
    };
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    // Tries are ours to time, and to tell of.
    config.default_retry = false;
    let url = config.cluster_url.to_string();
    let client = Client::try_from(config).map_err(|error| chain(&error))?;
    Ok((client, url))
}

/// Why a token cannot be sent as its file has it: it goes into a header as a whole.
fn odd_token(path: &String) -> Option<String> {
    let token = std::fs::read_to_string(path).ok()?;
    token.ends_with(char::is_whitespace).then(|| {
        format!(
            "token file {path}: it ends with a line break or a space; write it as `printf %s` does"
        )
    })
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
    let all = Kind::ALL.into_iter().filter(|kind| match kind {
        // Slices have all that they say.
        Kind::Endpoints => false,
        Kind::MetallbPool => api.metallb_pools,
        _ => true,
    });
    let places = |kind: Kind| match api.namespaces.as_slice() {
        named if kind.is_namespaced() && !named.is_empty() => {
            named.iter().cloned().map(|namespace| (kind, Some(namespace))).collect()
        }
        _ => vec![(kind, None)],
    };
    all.flat_map(places).collect()
}

/// Starts the watches; they end when nobody listens any more, or with their handles.
pub fn watch(
    client: &Client,
    api: &ApiServer,
    sender: &UnboundedSender<ClusterEvent>,
) -> Vec<JoinHandle<()>> {
    let mut tasks = Vec::new();
    for (kind, place) in needed(api) {
        let (client, sender) = (client.clone(), sender.clone());
        tasks.push(match kind {
            Kind::Service => tokio::spawn(follow::<Service>(client, place, sender)),
            Kind::EndpointSlice => tokio::spawn(follow::<EndpointSlice>(client, place, sender)),
            Kind::Node => tokio::spawn(follow::<Node>(client, place, sender)),
            Kind::AddressPool => tokio::spawn(follow::<AddressPool>(client, place, sender)),
            Kind::MetallbPool => tokio::spawn(follow::<MetallbPool>(client, place, sender)),
            Kind::GatewayClass => tokio::spawn(follow::<GatewayClass>(client, place, sender)),
            Kind::Gateway => tokio::spawn(follow::<Gateway>(client, place, sender)),
            Kind::TcpRoute => tokio::spawn(follow::<TcpRoute>(client, place, sender)),
            Kind::UdpRoute => tokio::spawn(follow::<UdpRoute>(client, place, sender)),
            Kind::ReferenceGrant => tokio::spawn(follow::<ReferenceGrant>(client, place, sender)),
            Kind::L2Advertisement => tokio::spawn(follow::<L2Advertisement>(client, place, sender)),
            Kind::VrrpGroup => tokio::spawn(follow::<VrrpGroup>(client, place, sender)),
            Kind::BgpPeer => tokio::spawn(follow::<BgpPeer>(client, place, sender)),
            Kind::BgpAdvertisement => {
                tokio::spawn(follow::<BgpAdvertisement>(client, place, sender))
            }
            Kind::BfdProfile => tokio::spawn(follow::<BfdProfile>(client, place, sender)),
            Kind::Namespace | Kind::Endpoints => {
                tokio::spawn(follow::<Namespace>(client, place, sender))
            }
        });
    }
    tasks
}

/// Routes, each kind as one of its own.
#[derive(Debug, Clone, Deserialize)]
#[serde(transparent)]
struct TcpRoute(Box<Route>);

#[derive(Debug, Clone, Deserialize)]
#[serde(transparent)]
struct UdpRoute(Box<Route>);

/// How addresses are announced, each kind as one of its own.
macro_rules! announcements {
    ($($type:ident),*) => {$(
        #[derive(Debug, Clone, Deserialize)]
        #[serde(transparent)]
        struct $type(Box<Announcement>);
    )*};
}

announcements!(L2Advertisement, VrrpGroup, BgpPeer, BgpAdvertisement, BfdProfile);

/// A kind of objects, as the API server has it.
trait Watched: DeserializeOwned + Clone + Debug + Send + Sync + 'static {
    const KIND: Kind;
    const GROUP: &'static str;
    /// Versions of it, the best first.
    const VERSIONS: &'static [&'static str];
    const PLURAL: &'static str;

    fn metadata(&self) -> &Meta;

    fn object(self) -> Object;
}

macro_rules! watched {
    ($($type:ident, $group:expr, $versions:expr, $plural:literal, |$it:ident| $meta:expr, $object:expr;)*) => {$(
        impl Watched for $type {
            const KIND: Kind = Kind::$type;
            const GROUP: &'static str = $group;
            const VERSIONS: &'static [&'static str] = &$versions;
            const PLURAL: &'static str = $plural;

            fn metadata(&self) -> &Meta {
                let $it = self;
                &$meta
            }

            fn object(self) -> Object {
                let $it = self;
                $object
            }
        }
    )*};
}

watched! {
    Service, "", ["v1"], "services", |it| it.metadata, Object::Service(Box::new(it));
    EndpointSlice, "discovery.k8s.io", ["v1"], "endpointslices", |it| it.metadata,
        Object::EndpointSlice(Box::new(it));
    Node, "", ["v1"], "nodes", |it| it.metadata, Object::Node(Box::new(it));
    Namespace, "", ["v1"], "namespaces", |it| it.metadata, Object::Namespace(Box::new(it));
    AddressPool, "fairway.dev", ["v1alpha1"], "addresspools", |it| it.metadata,
        Object::AddressPool(Box::new(it));
    MetallbPool, "metallb.io", ["v1beta1"], "ipaddresspools", |it| it.metadata,
        Object::MetallbPool(Box::new(it));
    GatewayClass, GATEWAYS, ["v1", "v1beta1"], "gatewayclasses", |it| it.metadata,
        Object::GatewayClass(Box::new(it));
    Gateway, GATEWAYS, ["v1", "v1beta1"], "gateways", |it| it.metadata,
        Object::Gateway(Box::new(it));
    TcpRoute, GATEWAYS, ["v1", "v1alpha2"], "tcproutes", |it| it.0.metadata,
        Object::Route(RouteKind::Tcp, it.0);
    UdpRoute, GATEWAYS, ["v1", "v1alpha2"], "udproutes", |it| it.0.metadata,
        Object::Route(RouteKind::Udp, it.0);
    ReferenceGrant, GATEWAYS, ["v1", "v1beta1"], "referencegrants", |it| it.metadata,
        Object::ReferenceGrant(Box::new(it));
    L2Advertisement, "fairway.dev", ["v1alpha1"], "l2advertisements", |it| it.0.metadata,
        Object::Announcement(Kind::L2Advertisement, it.0);
    VrrpGroup, "fairway.dev", ["v1alpha1"], "vrrpgroups", |it| it.0.metadata,
        Object::Announcement(Kind::VrrpGroup, it.0);
    BgpPeer, "fairway.dev", ["v1alpha1"], "bgppeers", |it| it.0.metadata,
        Object::Announcement(Kind::BgpPeer, it.0);
    BgpAdvertisement, "fairway.dev", ["v1alpha1"], "bgpadvertisements", |it| it.0.metadata,
        Object::Announcement(Kind::BgpAdvertisement, it.0);
    BfdProfile, "fairway.dev", ["v1alpha1"], "bfdprofiles", |it| it.0.metadata,
        Object::Announcement(Kind::BfdProfile, it.0);
}

/// Whether a cluster may be without a kind.
fn is_optional(kind: Kind) -> bool {
    matches!(kind, Kind::AddressPool | Kind::MetallbPool)
        || kind.is_of_gateways()
        || kind.is_of_announcements()
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

/// A version of a kind's API.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Version(&'static str);

impl<K: Watched> Resource for Seen<K> {
    type DynamicType = Version;
    type Scope = kube::core::DynamicResourceScope;

    fn kind(_: &Version) -> Cow<'_, str> {
        K::KIND.word().into()
    }

    fn group(_: &Version) -> Cow<'_, str> {
        K::GROUP.into()
    }

    fn version(version: &Version) -> Cow<'_, str> {
        version.0.into()
    }

    fn plural(_: &Version) -> Cow<'_, str> {
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
    loop {
        let mut listed = false;
        for version in K::VERSIONS {
            let version = Version(version);
            let api: Api<Seen<K>> = match &namespace {
                Some(namespace) => Api::namespaced_with(client.clone(), namespace, &version),
                None => Api::all_with(client.clone(), &version),
            };
            match follow_version(api, &namespace, &sender).await {
                End::Deaf => return,
                // It may have gone for a better one.
                End::Missing { listed: true } => {
                    listed = true;
                    break;
                }
                End::Missing { listed: false } => {}
            }
        }
        if listed {
            continue;
        }
        // A kind that is not there in any version has no objects.
        if sender.send(ClusterEvent::All(K::KIND, namespace.clone(), Vec::new())).is_err() {
            return;
        }
        tokio::time::sleep(OPTIONAL).await;
    }
}

/// How a watch ended.
enum End {
    /// Nobody listens any more.
    Deaf,
    /// The cluster has no such version, or no longer.
    Missing { listed: bool },
}

/// The same in one version, until the cluster has it no more.
async fn follow_version<K: Watched>(
    api: Api<Seen<K>>,
    namespace: &Option<String>,
    sender: &UnboundedSender<ClusterEvent>,
) -> End {
    let stream = watcher(api, watcher::Config::default().timeout(WATCH));
    let backoff = ResetTimerBackoff::new(Doubling { next: BACKOFF.0 }, QUIET);
    let mut stream = std::pin::pin!(stream.backoff(backoff));
    let (mut list, mut listed) = (Vec::new(), false);
    // Since when there has been no error, after one.
    let mut troubled: Option<Instant> = None;
    loop {
        let quiet = troubled.map_or_else(Instant::now, |since| since + WELL);
        let event = tokio::select! {
            event = stream.next() => match event {
                Some(event) => event,
                // It does not end; if it did, that would say nothing of the objects.
                None => return End::Missing { listed: true },
            },
            () = sleep_until(quiet), if troubled.is_some() => {
                troubled = None;
                if sender.send(ClusterEvent::Trouble(K::KIND, None)).is_err() {
                    return End::Deaf;
                }
                continue;
            }
        };
        let said = match event {
            Ok(Event::Init) => {
                list.clear();
                continue;
            }
            Ok(Event::InitApply(seen)) => {
                list.push(seen.object.object());
                continue;
            }
            Ok(Event::InitDone) => {
                listed = true;
                ClusterEvent::All(K::KIND, namespace.clone(), std::mem::take(&mut list))
            }
            Ok(Event::Apply(seen)) => ClusterEvent::Apply(seen.object.object()),
            Ok(Event::Delete(seen)) => ClusterEvent::Delete(K::KIND, seen.object.object().name()),
            Err(error) if is_optional(K::KIND) && code(&error) == Some(404) => {
                let well = ClusterEvent::Trouble(K::KIND, None);
                return match troubled.is_some() && sender.send(well).is_err() {
                    true => End::Deaf,
                    false => End::Missing { listed },
                };
            }
            Err(error) => {
                troubled = Some(Instant::now());
                let denied = ClusterEvent::Denied(K::KIND, namespace.clone());
                if code(&error) == Some(403) && sender.send(denied).is_err() {
                    return End::Deaf;
                }
                ClusterEvent::Trouble(K::KIND, Some(chain(&error)))
            }
        };
        let well = !matches!(said, ClusterEvent::Trouble(..));
        if sender.send(said).is_err() {
            return End::Deaf;
        }
        if well && troubled.take().is_some() {
            // As above.
            let _ = sender.send(ClusterEvent::Trouble(K::KIND, None));
        }
    }
}

/// With which code the API server has refused.
fn code(error: &watcher::Error) -> Option<u16> {
    use watcher::Error::{InitialListFailed, WatchError, WatchFailed, WatchStartFailed};
    match error {
        InitialListFailed(kube::Error::Api(status))
        | WatchStartFailed(kube::Error::Api(status))
        | WatchFailed(kube::Error::Api(status)) => Some(status.code),
        WatchError(status) => Some(status.code),
        _ => None,
    }
}

/// Twice as long each time, and a part of that by chance: so that all boxes do not come at once.
struct Doubling {
    next: Duration,
}

impl Iterator for Doubling {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = self.next;
        self.next = (wait * 2).min(BACKOFF.1);
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
