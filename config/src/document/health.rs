//! How backends are checked, as it is written.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::values::{Address, At, Percent, Statuses, Time};

/// How backends are checked.
#[derive(Debug, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct HealthCheckDoc {
    /// Default: `tcp`.
    #[serde(rename = "type")]
    pub kind: Option<At<CheckTypeDoc>>,
    /// Port to check. Default: the backend's.
    pub port: Option<At<u16>>,
    /// From one check to the next. Default: 2s.
    pub interval: Option<At<Time>>,
    /// By how much intervals vary. Default: 10%.
    pub jitter: Option<At<Percent>>,
    /// For one check. Default: 1s.
    pub timeout: Option<At<Time>>,
    /// Good checks in a row that bring a backend back. Default: 2.
    pub rise: Option<At<u32>>,
    /// Failed checks in a row that take it out. Default: 3.
    pub fall: Option<At<u32>>,
    /// How a new backend starts. Default: `up`.
    pub initial_state: Option<InitialDoc>,
    /// While the results of checks change: from one to the next. Default: as `interval`.
    pub fast_interval: Option<At<Time>>,
    /// Address that checks come from. Default: the kernel's choice.
    pub source: Option<At<Address>>,
    /// http, https: the path. Default: `/`.
    pub path: Option<At<String>>,
    /// http, https: the Host header. Default: the backend's address.
    pub host: Option<At<String>>,
    /// http, https: further headers.
    pub headers: Option<At<BTreeMap<String, String>>>,
    /// http, https: statuses that are good. Default: 200-399.
    pub expect_status: Option<At<Vec<At<Statuses>>>>,
    /// https, tls, grpc: how the backend proves who it is. With `grpc`, its absence means
    /// plain text.
    pub tls: Option<At<TlsDoc>>,
    /// tcp, udp: text that is sent first.
    pub send: Option<At<String>>,
    /// tcp, udp: bytes that are sent first, two hexadecimal digits each.
    pub send_hex: Option<At<String>>,
    /// tcp, udp: text that must be in the first 4 KiB of the answer.
    pub expect: Option<At<String>>,
    /// tcp, udp: the same as bytes, two hexadecimal digits each.
    pub expect_hex: Option<At<String>>,
    /// grpc: the service that is asked for. Default: the server as a whole.
    pub service: Option<At<String>>,
    /// dns: the name that is asked for.
    pub query: Option<At<String>>,
    /// dns: the type of record. Default: `A`.
    pub record: Option<At<RecordDoc>>,
    /// exec: a program and its arguments; no shell. It is told of the backend by
    /// FAIRWAY_ADDRESS and FAIRWAY_PORT, and is good when it exits with 0.
    pub command: Option<At<Vec<String>>>,
}

/// An agent on each backend: a TCP connection is answered with a line like `75%`, `drain` or
/// `down #disk full`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AgentCheckDoc {
    /// The agent's port.
    pub port: At<u16>,
    /// Text that is sent first. Default: nothing.
    #[serde(default)]
    pub send: Option<At<String>>,
    /// From one question to the next. Default: 2s.
    #[serde(default)]
    pub interval: Option<At<Time>>,
    /// For one answer. Default: 1s.
    #[serde(default)]
    pub timeout: Option<At<Time>>,
}

/// How a backend proves who it is.
#[derive(Debug, Clone, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct TlsDoc {
    /// Whether its certificate must be good. Default: true.
    pub verify: Option<bool>,
    /// The name in its certificate, and in the handshake (SNI). Default: its address.
    pub server_name: Option<At<String>>,
    /// Certificates (PEM) that sign its certificate. Default: those of this machine.
    pub ca_file: Option<At<String>>,
}

/// A type of DNS record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "the names say it")]
pub enum RecordDoc {
    #[default]
    A,
    Aaaa,
    Ns,
    Soa,
    Srv,
    Txt,
}

/// A kind of check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum CheckTypeDoc {
    /// No checks.
    None,
    /// A TCP connection can be made and, with `expect`, answers.
    Tcp,
    /// An HTTP/1.1 GET is answered with a good status.
    Http,
    /// The same over TLS.
    Https,
    /// A TLS handshake succeeds.
    Tls,
    /// The gRPC health service says SERVING.
    Grpc,
    /// A DNS query is answered without an error.
    Dns,
    /// A datagram is answered.
    Udp,
    /// An ICMP echo is answered.
    Icmp,
    /// A program ends well.
    Exec,
}

/// How a new backend starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
pub enum InitialDoc {
    /// Serving until its checks fail.
    #[default]
    Up,
    /// Not serving until its checks are good.
    Down,
}
