//! What a configuration means: values that cannot be nonsense.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fairway_core::proxy_header::HeaderFormat;
use fairway_core::{BackendAddr, Frontend, Policy, Protocol, Weight};

use crate::announce::{Announce, Secret};
use crate::document::{
    ConnectionsDoc, CurveDoc, FormatDoc, KernelEndDoc, LevelDoc, ListenDoc, PerBackendDoc,
    RecordDoc, UringFeature,
};
use crate::kubernetes::{Labels, Manifests, Pool, Rules};
use crate::{File, Place};

/// Everything that a document, with its sources, says.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// What applies to the process.
    pub process: Process,
    /// Its services by key.
    pub services: Desired,
    /// What it says of clusters and their Services.
    pub cluster: ClusterSource,
    /// How its addresses are announced.
    pub announce: Announce,
    /// Every file and folder that was read, to be watched.
    pub files: Vec<PathBuf>,
}

/// What a document says of clusters and their Services.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterSource {
    /// Which Services are ours, and how they are served.
    pub rules: Arc<Rules>,
    /// Objects from files; none when no files are named.
    pub manifests: Option<Manifests>,
    /// Addresses for Services.
    pub pools: Vec<Pool>,
}

/// An API server, and what of it is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiServer {
    /// How it is reached.
    pub access: Access,
    /// Namespaces whose Services are served; none is all.
    pub namespaces: Vec<String>,
    /// Whether MetalLB's pools are ours, too.
    pub metallb_pools: bool,
}

/// How an API server is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// By the service account of the Pod that this runs in.
    InCluster,
    /// By a kubeconfig.
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Which of its contexts; none is the current one.
        context: Option<String>,
    },
}

/// Services by key: what the control loop is to bring about.
pub type Desired = BTreeMap<ServiceKey, Arc<ServiceSpec>>;

/// Names one port of one service: `web/http`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey(pub Arc<str>);

impl ServiceKey {
    /// The service's name, without that of the port.
    #[must_use]
    pub fn service(&self) -> &str {
        self.0.rsplit_once('/').map_or(&*self.0, |(service, _)| service)
    }
}

impl std::fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What applies to the process.
#[derive(Debug, Clone, PartialEq)]
pub struct Process {
    /// Worker threads; none is one for each core.
    pub workers: Option<u32>,
    /// Each worker on a core of its own.
    pub pin_cpus: bool,
    /// Those cores; without any, those that there are.
    pub cpus: Vec<u32>,
    /// Where this box stands.
    pub zone: Option<Box<str>>,
    /// Seed of the flow hash.
    pub hash_seed: u64,
    /// How listeners are made.
    pub listen: ListenDoc,
    /// Interface that gets the services' addresses.
    pub vip_interface: Option<String>,
    /// The packet path; none when no service has packets forwarded.
    pub packet: Option<PacketPath>,
    /// Size of a receive buffer, in bytes.
    pub buffer_bytes: u32,
    /// Receive buffers of a worker.
    pub buffers: u16,
    /// Bytes that a direction of a connection may hold.
    pub credit_bytes: u32,
    /// Connections of the process; none is what descriptors allow.
    pub max_connections: Option<u32>,
    /// Sessions of datagrams of the process; none is what descriptors allow.
    pub max_udp_sessions: Option<u32>,
    /// Clients that affinity and client limits remember.
    pub client_table: u32,
    /// io_uring features that are not to be used.
    pub disabled: Vec<UringFeature>,
    /// Where is kept what outlives the process.
    pub state_directory: PathBuf,
    /// The API server that is watched.
    pub api: Option<ApiServer>,
    /// Unix socket of the admin API.
    pub admin_socket: PathBuf,
    /// By which the page may steer.
    pub admin_token: Option<Secret>,
    /// Address of the metrics.
    pub metrics: SocketAddr,
    /// Series for each backend.
    pub per_backend: PerBackendDoc,
    /// Least level of events.
    pub log_level: LevelDoc,
    /// How events are written.
    pub log_format: FormatDoc,
    /// Which ended connections are logged.
    pub log_connections: ConnectionsDoc,
    /// With `sampled`, the share of connections that ended in order, in hundredths.
    pub log_sample_percent: u32,
    /// Where ended connections are logged; none is among the other events.
    pub log_target: Option<LogTarget>,
    /// How long connections may go on after SIGTERM.
    pub shutdown_drain: Duration,
    /// How long connections may go on in a process that has handed over.
    pub hand_over_timeout: Duration,
    /// DNS servers for backends' names; empty is those of this machine.
    pub resolvers: Vec<SocketAddr>,
    /// How long one of them may take.
    pub resolver_timeout: Duration,
}

/// The packet path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PacketPath {
    /// The kernel's interfaces of the links that packets come and go by; one at least.
    pub interfaces: Vec<String>,
    /// IPv4 flows that each worker has room for.
    pub flows: u32,
    /// The same for flows with IPv6 addresses.
    pub flows_ipv6: u32,
    /// Cards that DPDK has for itself, if it brings the packets.
    pub dpdk: Option<Dpdk>,
}

/// Packets by DPDK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dpdk {
    /// One for each interface.
    pub devices: Vec<Device>,
    /// Memory for packets, in MiB.
    pub mebibytes: u32,
    /// Where that comes from.
    pub pages: Pages,
    /// What the kernel's ends of links are.
    pub kernel_end: KernelEndDoc,
    /// Further arguments for the EAL.
    pub arguments: Vec<String>,
}

/// What DPDK brings packets by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// A card's address, or a virtual device as DPDK writes it.
    pub name: String,
    /// The largest IP packet; none is 1500.
    pub mtu: Option<u16>,
}

/// Where DPDK's memory comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pages {
    /// Huge pages without files.
    Huge,
    /// Huge pages from a mounted hugetlbfs.
    Folder(PathBuf),
    /// Ordinary pages.
    Ordinary,
}

/// Where ended connections are logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogTarget {
    /// A file.
    File(PathBuf),
    /// The journal's socket.
    Journal(PathBuf),
    /// syslog's socket.
    Syslog(PathBuf),
    /// syslog by UDP.
    SyslogUdp(SocketAddr),
}

impl Process {
    /// The document's sections in which `other` differs; these take effect after an upgrade.
    #[must_use]
    pub fn sections_changed(&self, other: &Self) -> Vec<&'static str> {
        let dataplane = |p: &Self| Self {
            state_directory: PathBuf::new(),
            api: None,
            admin_socket: PathBuf::new(),
            admin_token: None,
            metrics: SocketAddr::from(([0; 4], 0)),
            per_backend: PerBackendDoc::default(),
            log_level: LevelDoc::default(),
            log_format: FormatDoc::default(),
            log_connections: ConnectionsDoc::default(),
            log_sample_percent: 0,
            log_target: None,
            shutdown_drain: Duration::ZERO,
            hand_over_timeout: Duration::ZERO,
            resolvers: Vec::new(),
            resolver_timeout: Duration::ZERO,
            ..p.clone()
        };
        let admin = |p: &Self| (p.admin_socket.clone(), p.admin_token.clone(), p.metrics);
        let resolver = |p: &Self| (p.resolvers.clone(), p.resolver_timeout);
        let log = |p: &Self| {
            let connections = (p.log_connections, p.log_sample_percent, p.log_target.clone());
            (p.log_level, p.log_format, connections)
        };
        [
            ("dataplane", dataplane(self) != dataplane(other)),
            ("admin", admin(self) != admin(other)),
            ("stateDirectory", self.state_directory != other.state_directory),
            ("sources.kubernetes", self.api != other.api),
            ("metrics", self.per_backend != other.per_backend),
            ("log", log(self) != log(other)),
            ("resolver", resolver(self) != resolver(other)),
            (
                "shutdown",
                (self.shutdown_drain, self.hand_over_timeout)
                    != (other.shutdown_drain, other.hand_over_timeout),
            ),
        ]
        .into_iter()
        .filter_map(|(name, changed)| changed.then_some(name))
        .collect()
    }
}

/// One port of a service.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceSpec {
    /// Its key.
    pub key: ServiceKey,
    /// Where it listens.
    pub frontends: Vec<Frontend>,
    /// Its transport protocol.
    pub protocol: Protocol,
    /// What is spoken over it, for people.
    pub app_protocol: Option<Arc<str>>,
    /// By which announcements may choose it.
    pub labels: Arc<Labels>,
    /// How it treats flows.
    pub policy: Arc<Policy>,
    /// Who serves, by priority, then address; addresses are unique.
    pub backends: Vec<BackendSpec>,
    /// Who serves as well: those behind names.
    pub named: Vec<NamedBackends>,
    /// Below this share of backends that take flows, in hundredths, the next priority helps.
    pub failover_percent: u32,
    /// How backends are checked.
    pub check: Option<Arc<CheckSpec>>,
    /// How agents on the backends are asked.
    pub agent: Option<Arc<CheckSpec>>,
    /// Below this share of healthy backends, in hundredths, all are used.
    pub panic_percent: u32,
    /// Whether backends of this box's own zone are preferred.
    pub prefer_same_zone: bool,
    /// How backends are judged by their traffic.
    pub outliers: Outliers,
    /// How new and returning backends begin; none is with everything at once.
    pub slow_start: Option<SlowStart>,
    /// Where it is written; two specs that differ only here are equal to the control loop.
    pub origin: Origin,
}

impl ServiceSpec {
    /// Whether the two mean the same, wherever they are written.
    #[must_use]
    pub fn same_meaning(&self, other: &Self) -> bool {
        self.frontends == other.frontends
            && self.protocol == other.protocol
            && self.app_protocol == other.app_protocol
            && self.labels == other.labels
            && self.policy == other.policy
            && self.backends == other.backends
            && self.named == other.named
            && self.failover_percent == other.failover_percent
            && self.check == other.check
            && self.agent == other.agent
            && self.panic_percent == other.panic_percent
            && self.slow_start == other.slow_start
            && self.outliers == other.outliers
            && self.prefer_same_zone == other.prefer_same_zone
    }
}

/// How backends are judged by their traffic, beside failed connects in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outliers {
    /// Most of a pool that may be ejected at a time, in hundredths, and one backend at least.
    pub max_ejected_percent: u32,
    /// Time over which rates and latencies are taken.
    pub window: Duration,
    /// Connections of a backend within a window from which on it is judged.
    pub min_samples: u32,
    /// Share of failures that ejects, in hundredths; none is never.
    pub failure_percent: Option<u32>,
    /// Hundredths of the standard deviation below the pool's mean share of good connections that
    /// eject; none is never.
    pub deviation_percent: Option<u32>,
    /// Multiple of the pool's median connect time that ejects; none is never.
    pub slow_factor: Option<u32>,
    /// Connects below this time are never slow.
    pub slow_above: Duration,
}

/// How a new or returning backend takes its flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlowStart {
    /// Time until it takes all; above zero.
    pub window: Duration,
    /// How its share grows.
    pub curve: CurveDoc,
    /// Part that it takes at once, in hundredths; 1 to 100.
    pub from_percent: u32,
}

/// Where something is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The file.
    pub file: File,
    /// The place in it.
    pub place: Place,
}

/// A configured backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendSpec {
    /// Where it is.
    pub addr: BackendAddr,
    /// Its share of new flows.
    pub weight: Weight,
    /// The lowest serves first.
    pub priority: Priority,
    /// Whether it takes new flows, by its source.
    pub serving: Serving,
    /// A name for people.
    pub name: Option<Box<str>>,
    /// Where it stands.
    pub zone: Option<Box<str>>,
}

/// Whether a backend takes new flows, by the source that names it; its checks are another matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Serving {
    /// It does.
    #[default]
    Yes,
    /// It is about to go: it keeps the flows that it has.
    Leaving,
    /// Not now, and perhaps later: it keeps the flows that it has.
    NotReady,
}

/// The order in which backends serve, lowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// As the document or an SRV record says.
    Given(u16),
    /// After all others, and among each other as an SRV record says.
    Backup(u16),
}

/// Backends whose addresses DNS knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedBackends {
    /// What is asked.
    pub query: Query,
    /// Their port; none is what an SRV record says, or the one that was dialled.
    pub port: Option<NonZeroU16>,
    /// Their share of new flows; none is what an SRV record says, or 1.
    pub weight: Option<Weight>,
    /// When they serve; none is what an SRV record says, or first.
    pub priority: Option<u16>,
    /// Whether they are backups.
    pub backup: bool,
    /// A name for people.
    pub name: Box<str>,
    /// Where they stand.
    pub zone: Option<Box<str>>,
}

/// A question to DNS.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Query {
    /// Addresses of a name: A and AAAA.
    Host(Box<str>),
    /// Servers of a service, and their addresses.
    Srv(Box<str>),
}

impl std::fmt::Display for Query {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Host(name) => write!(f, "`{name}`"),
            Self::Srv(name) => write!(f, "`{name}` (SRV)"),
        }
    }
}

/// How backends are checked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CheckSpec {
    /// What a check does.
    pub probe: Probe,
    /// Port to check; none is the backend's.
    pub port: Option<u16>,
    /// From one check to the next.
    pub interval: Duration,
    /// The same while results change.
    pub fast_interval: Duration,
    /// Address that checks come from; none is the kernel's choice.
    pub source: Option<IpAddr>,
    /// By how much intervals vary, in hundredths.
    pub jitter_percent: u32,
    /// For one check.
    pub timeout: Duration,
    /// Good checks in a row that bring a backend back.
    pub rise: u32,
    /// Failed checks in a row that take it out.
    pub fall: u32,
    /// Whether a backend serves before its first checks.
    pub initially_up: bool,
    /// Header of the PROXY protocol that begins a check, by which we speak for ourselves.
    pub header: Option<HeaderFormat>,
}

/// What a check does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Probe {
    /// Makes a TCP connection, and talks over it when there is something to say or to hear.
    Tcp(Exchange),
    /// Makes an HTTP/1.1 GET, over TLS when that is set.
    Http(Http, Option<Tls>),
    /// Makes a TLS handshake.
    Tls(Tls),
    /// Asks the gRPC health service for this service; the empty name is the server.
    Grpc(Box<str>, Option<Tls>),
    /// Asks a DNS server.
    Dns {
        /// The name.
        query: Box<str>,
        /// The type of record.
        record: RecordDoc,
    },
    /// Sends a datagram; any answer is good when nothing is expected.
    Udp(Exchange),
    /// Sends an ICMP echo request.
    Icmp,
    /// Runs a program: its path and its arguments.
    Exec(Vec<Box<str>>),
    /// Asks an agent how much the backend takes, after sending this.
    Agent(Box<[u8]>),
}

impl Probe {
    /// Its type, in the word of the document.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Tcp(_) => "tcp",
            Self::Http(_, None) => "http",
            Self::Http(_, Some(_)) => "https",
            Self::Tls(_) => "tls",
            Self::Grpc(..) => "grpc",
            Self::Dns { .. } => "dns",
            Self::Udp(_) => "udp",
            Self::Icmp => "icmp",
            Self::Exec(_) => "exec",
            Self::Agent(_) => "agent",
        }
    }
}

/// What is sent and what must come back.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Exchange {
    /// Sent first; may be empty.
    pub send: Box<[u8]>,
    /// Must be in the answer; may be empty.
    pub expect: Box<[u8]>,
}

/// An HTTP/1.1 GET.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Http {
    /// The path.
    pub path: Box<str>,
    /// The Host header; none is the backend's address.
    pub host: Option<Box<str>>,
    /// Further headers.
    pub headers: Vec<(Box<str>, Box<str>)>,
    /// Good statuses, both ends included.
    pub statuses: Vec<(u16, u16)>,
}

/// How a server proves who it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tls {
    /// Whether its certificate must be good.
    pub verify: bool,
    /// The name in its certificate and in the handshake; none is its address.
    pub server_name: Option<Box<str>>,
    /// File of the certificates that sign its own; none is those of this machine.
    pub ca_file: Option<PathBuf>,
}

/// What changed from one set of services to the next.
#[derive(Debug, Default, Clone)]
pub struct ChangeSet {
    /// New or different services.
    pub upserts: Vec<Arc<ServiceSpec>>,
    /// Services that are gone.
    pub removals: Vec<ServiceKey>,
}

impl ChangeSet {
    /// The change that leads from `old` to `new`. Compares meanings, one service at a time.
    #[must_use]
    pub fn between(old: &Desired, new: &Desired) -> Self {
        let upserts = new
            .iter()
            .filter(|(key, spec)| {
                old.get(*key)
                    .is_none_or(|before| !Arc::ptr_eq(before, spec) && !before.same_meaning(spec))
            })
            .map(|(_, spec)| Arc::clone(spec))
            .collect();
        let removals = old.keys().filter(|key| !new.contains_key(*key)).cloned().collect();
        Self { upserts, removals }
    }

    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.upserts.is_empty() && self.removals.is_empty()
    }
}
