//! The document as it is written. `fairway schema` prints the JSON Schema of these types.

mod announce;
mod health;
mod packet;
mod service;
mod sources;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::values::{At, Auto, Endpoint, Percent, Size, Socket, Time};

pub use self::announce::*;
pub use self::health::*;
pub use self::packet::*;
pub use self::service::*;
pub use self::sources::*;

/// A Fairway configuration.
#[derive(Debug, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Document {
    /// Workers, buffers, listeners.
    pub dataplane: DataplaneDoc,
    /// Where status and metrics are to be had.
    pub admin: AdminDoc,
    /// What the metrics show.
    pub metrics: MetricsDoc,
    /// What is logged, and how.
    pub log: LogDoc,
    /// How the process stops.
    pub shutdown: ShutdownDoc,
    /// Who is asked for backends that are DNS names.
    pub resolver: ResolverDoc,
    /// Where services come from besides this document.
    pub sources: SourcesDoc,
    /// Where is kept what outlives the process: the addresses of Services. Changes take effect after `fairway upgrade`.
    /// Default: /var/lib/fairway.
    pub state_directory: Option<String>,
    /// Addresses for Services of Kubernetes.
    pub address_pools: Vec<At<AddressPoolDoc>>,
    /// How routers and segments learn of the services' addresses.
    pub announce: AnnounceDoc,
    /// The services.
    pub services: Vec<ServiceDoc>,
}

/// Workers, buffers, listeners. Changes take effect after `fairway upgrade`.
#[derive(Debug, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct DataplaneDoc {
    /// Worker threads; `auto` is one for each core.
    pub workers: Option<At<Auto>>,
    /// Binds each worker to a core of its own. Default: true with `workers: auto` or `cpus`.
    pub pin_cpus: Option<bool>,
    /// The cores of the workers, by the kernel's numbers, in the order of the workers; there are then as
    /// many workers. Default: those that the process may use.
    pub cpus: Vec<At<u32>>,
    /// Where this box stands, in the words of the backends' `zone`. Default: nowhere.
    pub zone: Option<String>,
    /// Seed of the flow hash; equal on boxes that must choose alike. Default: 0.
    pub hash_seed: Option<u64>,
    /// How listeners are made. Default: `perAddress`.
    pub listen: Option<ListenDoc>,
    /// What Fairway does about addresses that are not on this machine.
    pub vip: VipDoc,
    /// Size of a receive buffer. Default: 16KiB.
    pub buffer_size: Option<At<Size>>,
    /// Memory for receive buffers of one worker; taken when used. Default: 256MiB.
    pub buffer_memory: Option<At<Size>>,
    /// Bytes that a direction of a connection may hold. Default: 64KiB.
    pub connection_buffer: Option<At<Size>>,
    /// Connections of the process; `auto` is what the limit of descriptors allows.
    pub max_connections: Option<At<Auto>>,
    /// Sessions of datagrams of the process; `auto` is a sixteenth of the descriptors.
    pub max_udp_sessions: Option<At<Auto>>,
    /// Clients that affinity and client limits remember. Default: 262144.
    pub client_table: Option<At<u32>>,
    /// io_uring.
    pub uring: UringDoc,
    /// The packet path: for services whose `mode` is not `proxy`.
    pub packet: Option<At<PacketDoc>>,
}

/// How listeners are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
pub enum ListenDoc {
    /// A socket for each worker, address and port.
    #[default]
    PerAddress,
    /// A transparent socket for each worker and family, fed by nftables. Needs CAP_NET_ADMIN.
    Tproxy,
}

/// What Fairway does about addresses that are not on this machine.
#[derive(Debug, Clone, Deserialize, JsonSchema, Default, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct VipDoc {
    /// Adds the services' addresses to this interface, tells its segment of them, and takes them away
    /// again. Needs CAP_NET_ADMIN and CAP_NET_RAW. Default: none; a missing address is a warning.
    pub interface: Option<String>,
}

/// io_uring.
#[derive(Debug, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct UringDoc {
    /// Optional features that are not to be used.
    pub disable: Vec<UringFeature>,
}

/// An optional feature of io_uring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum UringFeature {
    /// One request accepts any number of connections.
    MultishotAccept,
    /// One request receives up to a number of bytes.
    CappedReceive,
    /// Long transfers are spliced.
    Splice,
}

/// Where status and metrics are to be had. Changes take effect after `fairway upgrade`.
#[derive(Debug, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct AdminDoc {
    /// Unix socket of the admin API. Default: /run/fairway/admin.sock.
    pub socket: Option<String>,
    /// Address of the page, /metrics, /healthz and /readyz. Default: 127.0.0.1:9180.
    pub metrics: Option<At<Socket>>,
    /// A file with the token by which the page may drain backends and set their weights, 16 bytes at least.
    /// Default: the page changes nothing.
    pub token_file: Option<At<String>>,
    /// The same as a credential of systemd (`LoadCredential=`).
    pub token_credential: Option<At<String>>,
}

/// What the metrics show.
#[derive(Debug, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct MetricsDoc {
    /// Series for each backend. Default: `auto`, up to 20,000 backends.
    pub per_backend: Option<PerBackendDoc>,
}

/// Whether each backend has series of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
pub enum PerBackendDoc {
    /// Up to 20,000 backends.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never: backends are summed for each service.
    Off,
}

/// What is logged, and how.
#[derive(Debug, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct LogDoc {
    /// Least level of events. Default: `info`.
    pub level: Option<LevelDoc>,
    /// Default: `text`.
    pub format: Option<FormatDoc>,
    /// Which ended connections are logged. Default: `off`.
    pub connections: Option<ConnectionsDoc>,
    /// With `sampled`: share of the connections that ended in order. Default: 1%.
    pub sample: Option<At<Percent>>,
    /// Where they are logged. Default: among the other events.
    pub to: Option<At<LogTargetDoc>>,
    /// The file, or the socket of the journal or of syslog. Default: that of the system.
    pub path: Option<At<String>>,
    /// syslog: send to this address by UDP instead.
    pub address: Option<At<Socket>>,
}

/// Where ended connections are logged, a JSON object each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum LogTargetDoc {
    /// A file; opened again when it is moved away.
    File,
    /// systemd's journal, with the values as fields.
    Journal,
    /// syslog, RFC 5424.
    Syslog,
}

/// Least level of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum LevelDoc {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
}

/// How events are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
pub enum FormatDoc {
    /// For people.
    #[default]
    Text,
    /// For programs: an object a line.
    Json,
}

/// Which ended connections are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
pub enum ConnectionsDoc {
    /// None.
    #[default]
    Off,
    /// Those that did not end in order.
    Errors,
    /// The same, and a share of the others.
    Sampled,
    /// All.
    All,
}

/// How the process stops.
#[derive(Debug, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ShutdownDoc {
    /// How long connections may go on after SIGTERM. Default: 30s.
    pub drain_timeout: Option<At<Time>>,
    /// How long connections may go on in a process that has handed over to another one, as by `fairway
    /// upgrade`. Default: 24h.
    pub hand_over_timeout: Option<At<Time>>,
}

/// Who is asked for backends that are DNS names. Changes take effect after `fairway upgrade`.
#[derive(Debug, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ResolverDoc {
    /// Addresses of DNS servers, with port 53 unless they have another. Default: those of
    /// /etc/resolv.conf, with its search domains. /etc/hosts comes first either way.
    pub servers: Vec<At<Endpoint>>,
    /// How long a server may take to answer. Default: 2s.
    pub timeout: Option<At<Time>>,
}

/// The JSON Schema of [`Document`].
#[must_use]
pub fn schema() -> serde_json::Value {
    let mut schema = schemars::schema_for!(Document);
    schema.insert("title".into(), "Fairway configuration".into());
    schema.to_value()
}
