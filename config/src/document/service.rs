//! A service, as it is written.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Visitor};

use super::health::{AgentCheckDoc, HealthCheckDoc};
use crate::kubernetes::Labels;
use crate::values::{Address, At, Auto, Dialled, Endpoint, Percent, Ports, Prefix, Size, Time};

/// A service: addresses and ports that clients dial, and the backends behind them.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ServiceDoc {
    /// Its name: letters, digits, `-`, `_`, `.`, `/`; unique.
    pub name: At<String>,
    /// Labels, by which `announce` may choose it. Default: none.
    #[serde(default)]
    pub labels: Labels,
    /// The addresses that clients dial; in packet modes also networks of them, like
    /// `192.0.2.0/28`.
    pub addresses: At<Vec<At<Dialled>>>,
    /// The ports that clients dial.
    pub ports: At<Vec<At<PortDoc>>>,
    /// How flows are carried. Default: `proxy`.
    #[serde(default)]
    pub mode: Option<At<ModeDoc>>,
    /// With `mode: gue`: variant 1 has the packet right behind the UDP header, variant 0 a header
    /// between them. Default: 1.
    #[serde(default)]
    pub gue_variant: Option<At<u8>>,
    /// In `nat` and `fullNat`: lowers the segments that both ends of a connection offer to take to
    /// so many bytes; `auto` is what the links carry. Default: they are left alone.
    #[serde(default)]
    pub mss_clamp: Option<At<Auto>>,
    /// In packet modes: when echo requests to the addresses are answered. Default: `always`.
    #[serde(default)]
    pub echo: Option<At<EchoDoc>>,
    /// How a backend is chosen. Default: `maglev`.
    #[serde(default)]
    pub scheduler: Option<At<SchedulerDoc>>,
    /// Settings of `scheduler: maglev`.
    #[serde(default)]
    pub maglev: Option<At<MaglevDoc>>,
    /// What identifies a flow to hashing schedulers.
    #[serde(default)]
    pub hash: HashDoc,
    /// `ClientIP` keeps a client on its backend. Default: `None`.
    #[serde(default)]
    pub session_affinity: Option<AffinityDoc>,
    /// How long a client is remembered. Default: 3h.
    #[serde(default)]
    pub session_affinity_timeout: Option<At<Time>>,
    /// Who serves.
    #[serde(default)]
    pub backends: Vec<At<BackendDoc>>,
    /// Who serves when none of `backends` can: the last priority.
    #[serde(default)]
    pub backup_backends: Vec<At<BackendDoc>>,
    /// While fewer than this share of the backends of one priority take flows, what is missing
    /// goes to the next priority. Default: 0%, when none does.
    #[serde(default)]
    pub failover_threshold: Option<At<Percent>>,
    /// How backends are checked. Default: a TCP connect every 2s; on UDP ports, nothing.
    #[serde(default)]
    pub health_check: Option<At<HealthCheckDoc>>,
    /// An agent on each backend says how much it takes (HAProxy's agent-check). Default: none.
    #[serde(default)]
    pub agent_check: Option<At<AgentCheckDoc>>,
    /// Below this share of healthy backends of a priority all of them are used, if nobody of a later
    /// priority can help. Default: 0%, never.
    #[serde(default)]
    pub panic_threshold: Option<At<Percent>>,
    /// Ejection of backends for what their traffic shows.
    #[serde(default)]
    pub ejection: EjectionDoc,
    /// `PreferSameZone` keeps flows in the zone of this box while its backends are well. Default:
    /// all zones alike.
    #[serde(default)]
    pub traffic_distribution: Option<At<DistributionDoc>>,
    /// A new or returning backend takes its flows little by little. Default: all at once.
    #[serde(default)]
    pub slow_start: Option<At<SlowStartDoc>>,
    /// When another backend is tried.
    #[serde(default)]
    pub retry: RetryDoc,
    /// How long a connection may do nothing.
    #[serde(default)]
    pub timeouts: TimeoutsDoc,
    /// Where connections to backends come from: `transparent` for the client's own address, an
    /// address, or a map. Default: the kernel's choice.
    #[serde(default)]
    pub source: Option<At<SourceAddressDoc>>,
    /// Headers of the PROXY protocol, on TCP ports.
    #[serde(default)]
    pub proxy_protocol: Option<At<ProxyProtocolDoc>>,
    /// Sessions of datagrams, on UDP ports.
    #[serde(default)]
    pub udp: UdpDoc,
    /// Upper bounds.
    #[serde(default)]
    pub limits: LimitsDoc,
    /// Clients that may connect. Default: all.
    #[serde(default)]
    pub load_balancer_source_ranges: Vec<At<Prefix>>,
    /// Clients that may not, even when allowed above.
    #[serde(default)]
    pub deny_source_ranges: Vec<At<Prefix>>,
    /// How long connections of a draining or removed backend may go on. Default: 5m.
    #[serde(default)]
    pub drain_timeout: Option<At<Time>>,
}

/// A port that clients dial.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PortDoc {
    /// Its name; needed when there are several. Default: the number.
    #[serde(default)]
    pub name: Option<At<String>>,
    /// Default: `TCP`.
    #[serde(default)]
    pub protocol: Option<At<ProtocolDoc>>,
    /// The port, or a range `8000-8099`.
    pub port: At<Ports>,
    /// The backends' port. Default: the one that was dialled.
    #[serde(default)]
    pub target_port: Option<At<u16>>,
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "the names say it")]
pub enum ProtocolDoc {
    Tcp,
    Udp,
    Sctp,
}

/// When echo requests (ping) are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum EchoDoc {
    /// Whatever happens.
    Always,
    /// While a backend of a service there takes flows.
    WhileHealthy,
}

/// How flows are carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ModeDoc {
    /// Connections are ended here and made anew to the backend.
    Proxy,
    /// Packets: destination rewritten.
    Nat,
    /// Packets: source and destination rewritten.
    FullNat,
    /// Packets: direct server return.
    Dsr,
    /// Packets: tunnelled in IP.
    Ipip,
    /// Packets: tunnelled in UDP.
    Gue,
}

/// How a backend is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum SchedulerDoc {
    /// Consistent hashing (IPVS: mh).
    Maglev,
    /// Smooth weighted round robin (IPVS: rr, wrr).
    RoundRobin,
    /// Weighted random.
    Random,
    /// The less loaded of two random backends (IPVS: twos).
    PowerOfTwo,
    /// The fewest connections for its weight (IPVS: lc, wlc).
    LeastConnections,
    /// The same with the new connection counted (IPVS: sed).
    ShortestExpectedDelay,
    /// An idle backend if there is one, else as before (IPVS: nq).
    NeverQueue,
    /// Consistent hashing of the client's address (IPVS: sh).
    SourceHash,
    /// Consistent hashing of the dialled address and port (IPVS: dh).
    DestinationHash,
}

/// Settings of `scheduler: maglev`.
#[derive(Debug, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct MaglevDoc {
    /// Slots of the table, a prime. Default: the first of 251, 1021, 4093, 16381, 65537, 655373 with
    /// 100 slots for each backend.
    pub table_size: Option<At<u32>>,
    /// A backend above this share of the mean load passes new flows on. Default: no bound.
    pub bounded_load: Option<At<Percent>>,
}

/// What identifies a flow to hashing schedulers.
#[derive(Debug, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct HashDoc {
    /// Default: `fiveTuple`.
    pub fields: Option<At<FieldsDoc>>,
    /// Leading bits of an IPv4 source that count. Default: 32.
    pub ipv4_prefix: Option<At<u8>>,
    /// Leading bits of an IPv6 source that count. Default: 128.
    pub ipv6_prefix: Option<At<u8>>,
}

/// Hashed fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum FieldsDoc {
    /// Both addresses, both ports, the protocol.
    FiveTuple,
    /// The client's address.
    Source,
    /// The client's address and port.
    SourceAndPort,
}

/// Whether clients stay on their backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum AffinityDoc {
    /// They need not.
    None,
    /// By the client's address.
    ClientIP,
}

/// A backend: `10.0.0.1:8080`, `web.example.com:8080`, or a map.
#[derive(Debug)]
pub struct BackendDoc {
    /// Where it is.
    pub target: TargetDoc,
    /// Its port, when the address has none.
    pub port: Option<At<u16>>,
    /// Its share of new flows, 1 to 1000.
    pub weight: Option<At<u32>>,
    /// Backends of the lowest number serve first.
    pub priority: Option<At<u16>>,
    /// A name for people.
    pub name: Option<String>,
    /// Where it stands.
    pub zone: Option<String>,
}

/// Where a backend is.
#[derive(Debug)]
pub enum TargetDoc {
    /// At an address, or at those of a name.
    Endpoint(At<Endpoint>),
    /// Where the SRV records of a name say.
    Srv(At<String>),
}

/// A backend in full.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(extend("oneOf" = [{ "required": ["address"] }, { "required": ["srv"] }]))]
struct BackendMap {
    /// Its address, or a DNS name whose A and AAAA records are each a backend, with or without
    /// the port.
    #[serde(default)]
    address: Option<At<Endpoint>>,
    /// In place of `address`: a DNS name whose SRV records say addresses, ports, weights and
    /// priorities, like `_http._tcp.example.com`.
    #[serde(default)]
    srv: Option<At<String>>,
    /// Its port, when the address has none. Default: the service's `targetPort`.
    #[serde(default)]
    port: Option<At<u16>>,
    /// Its share of new flows, 1 to 1000. Default: 1, or what an SRV record says.
    #[serde(default)]
    weight: Option<At<u32>>,
    /// Backends of the lowest number serve first; the next ones when those cannot. Default: 0, or
    /// what an SRV record says.
    #[serde(default)]
    priority: Option<At<u16>>,
    /// A name for people. Default: the DNS name, if it has one.
    #[serde(default)]
    name: Option<String>,
    /// Where it stands.
    #[serde(default)]
    zone: Option<String>,
}

impl<'de> Deserialize<'de> for BackendDoc {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = BackendDoc;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an address, a name, or a map with `address` or `srv`")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<BackendDoc, E> {
                let value = Endpoint::parse(text).map_err(E::custom)?;
                let target = TargetDoc::Endpoint(At { place: crate::Place::default(), value });
                let (port, weight, priority, name, zone) = Default::default();
                Ok(BackendDoc { target, port, weight, priority, name, zone })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<BackendDoc, A::Error> {
                let map = BackendMap::deserialize(de::value::MapAccessDeserializer::new(map))?;
                let BackendMap { address, srv, port, weight, priority, name, zone } = map;
                let target = match (address, srv) {
                    (Some(address), None) => TargetDoc::Endpoint(address),
                    (None, Some(srv)) => TargetDoc::Srv(srv),
                    (None, None) => return Err(de::Error::missing_field("address")),
                    (Some(_), Some(_)) => {
                        return Err(de::Error::custom(
                            "a backend has an `address` or an `srv`, not both",
                        ));
                    }
                };
                Ok(BackendDoc { target, port, weight, priority, name, zone })
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl JsonSchema for BackendDoc {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Backend".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let short = generator.subschema_for::<Endpoint>();
        let full = generator.subschema_for::<BackendMap>();
        json_schema!({ "anyOf": [short, full] })
    }
}

/// Ejection of backends for what their traffic shows.
#[derive(Debug, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct EjectionDoc {
    /// Failed connects in a row that eject; 0 ejects nobody. Default: 5.
    pub failures: Option<u32>,
    /// Length of the first ejection; the n-th in a row takes n times as long. Default: 10s.
    pub base_time: Option<At<Time>>,
    /// Longest ejection. Default: 5m.
    pub max_time: Option<At<Time>>,
    /// Most of a pool that may be ejected at a time, and one backend at least. Default: 50%.
    pub max_ejection: Option<At<Percent>>,
    /// Time over which rates and latencies are taken. Default: 10s.
    pub window: Option<At<Time>>,
    /// Connections of a backend within a window from which on it is judged. Default: 20.
    pub min_samples: Option<At<u32>>,
    /// Share of failed connects and early resets that ejects. Default: 50%; 0% is never.
    pub failure_rate: Option<At<Percent>>,
    /// A backend whose share of good connections lies so far below the mean of its pool is ejected,
    /// in hundredths of the standard deviation: 190% is usual. Of pools with five judged backends.
    /// Default: never.
    pub success_rate_deviation: Option<At<Percent>>,
    /// A backend whose connects take this many times the pool's median is ejected. Default: never.
    pub slow_factor: Option<At<u32>>,
    /// Connects below this time are never slow. Default: 5ms.
    pub slow_above: Option<At<Time>>,
}

/// How a new or returning backend takes its flows. They move to it alone, under every scheduler.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct SlowStartDoc {
    /// Time until it takes all.
    pub window: At<Time>,
    /// Default: `linear`.
    #[serde(default)]
    pub curve: CurveDoc,
    /// Part that it takes at once. Default: 10%.
    #[serde(default)]
    pub from: Option<At<Percent>>,
}

/// Which backends are preferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum DistributionDoc {
    /// Those of this box's own zone. As many flows as its backends are missing go to the others,
    /// and those that find every one of its own at its limit.
    PreferSameZone,
}

/// How a share grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
pub enum CurveDoc {
    /// Evenly.
    #[default]
    Linear,
    /// Slowly, then faster: with the square of the time.
    Quadratic,
}

/// When another backend is tried.
#[derive(Debug, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct RetryDoc {
    /// Default: `[connect]`.
    pub on: Option<Vec<RetryOnDoc>>,
    /// Backends that one connection may try, the first included. Default: all.
    pub attempts: Option<At<u16>>,
    /// From accepting a connection to its last chance. Default: 10s.
    pub deadline: Option<At<Time>>,
    /// In `nat` and `fullNat`: a backend that has not answered a connection's first segment after
    /// this time is left for the next. Default: 50ms.
    pub syn_timeout: Option<At<Time>>,
    /// Starts the next backend beside one that takes longer than this. Default: never.
    pub hedge_after: Option<At<Time>>,
    /// Bytes of the client that are kept for `resetBeforeReply`. Default: 16KiB.
    pub replay_buffer: Option<At<Size>>,
}

/// A reason to try another backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum RetryOnDoc {
    /// The connect failed, or the backend closed before anything was said: nothing was delivered,
    /// so this is always safe.
    Connect,
    /// The backend ended the connection before the first byte of its reply. What the client had
    /// sent was delivered and may run twice: for idempotent requests only.
    ResetBeforeReply,
}

/// How long a connection may do nothing.
#[derive(Debug, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct TimeoutsDoc {
    /// For one connect to a backend. Default: 3s.
    pub connect: Option<At<Time>>,
    /// With both directions open. Default: 1h.
    pub idle: Option<At<Time>>,
    /// With one direction closed. Default: 1m.
    pub half_closed: Option<At<Time>>,
}

/// Where connections to backends come from: a word, an address, or a map.
#[derive(Debug, Default)]
pub struct SourceAddressDoc {
    /// From the client's own address.
    pub transparent: bool,
    /// From one of these addresses, in turn.
    pub addresses: Vec<At<Address>>,
    /// From these ports.
    pub ports: Option<At<Ports>>,
    /// Through this interface.
    pub interface: Option<At<String>>,
    /// With the client's address in a TCP option.
    pub toa: Option<At<bool>>,
}

/// Where connections to backends come from.
#[derive(Debug, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct SourceAddressMap {
    /// From one of these addresses, in turn: each gives as many connections to one backend as
    /// there are ports.
    addresses: Vec<At<Address>>,
    /// From these ports, like `20000-60999` (Linux 6.3). Default: the kernel's range.
    ports: Option<At<Ports>>,
    /// Through this interface.
    interface: Option<At<String>>,
    /// In packet modes: with the client's address and port in the TCP option 254, which backends read
    /// with the kernel module `toa`. Default: false.
    toa: Option<At<bool>>,
}

impl<'de> Deserialize<'de> for SourceAddressDoc {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = SourceAddressDoc;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("`transparent`, an address, or a map with `addresses`")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<SourceAddressDoc, E> {
                if text == "transparent" {
                    return Ok(SourceAddressDoc { transparent: true, ..Default::default() });
                }
                let ip = text.parse().map_err(|_| {
                    E::custom(format_args!("`{text}` is neither `transparent` nor an IP address"))
                })?;
                let address = At { place: crate::Place::default(), value: Address(ip) };
                Ok(SourceAddressDoc { addresses: vec![address], ..Default::default() })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<SourceAddressDoc, A::Error> {
                let map =
                    SourceAddressMap::deserialize(de::value::MapAccessDeserializer::new(map))?;
                let SourceAddressMap { addresses, ports, interface, toa } = map;
                Ok(SourceAddressDoc { transparent: false, addresses, ports, interface, toa })
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl JsonSchema for SourceAddressDoc {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "SourceAddress".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let address = generator.subschema_for::<Address>();
        let map = generator.subschema_for::<SourceAddressMap>();
        json_schema!({ "anyOf": [{ "const": "transparent" }, address, map] })
    }
}

/// Headers of the PROXY protocol, which say who the client is.
#[derive(Debug, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ProxyProtocolDoc {
    /// Whether clients may or must begin with a header, of either version. Default: they do not.
    pub accept: Option<At<AcceptDoc>>,
    /// Proxies whose headers are believed; needed with `accept`.
    pub trusted_sources: Vec<At<Prefix>>,
    /// How long a header may take. Default: 3s.
    pub timeout: Option<At<Time>>,
    /// Version of the header that backends are sent. Default: none.
    pub send: Option<At<HeaderVersionDoc>>,
    /// Version 2 with a checksum. Default: false.
    pub crc32c: Option<At<bool>>,
    /// Version 2 with an id of the connection. Default: false.
    pub unique_id: Option<At<bool>>,
}

/// Whether a header must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum AcceptDoc {
    /// Trusted sources may begin with one; others are what they seem.
    Optional,
    /// Connections without one are closed, and those of others too.
    Required,
}

/// A version of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum HeaderVersionDoc {
    /// A line of text.
    V1,
    /// Bytes.
    V2,
}

/// Sessions of datagrams: a client's address and port, and what it addressed.
#[derive(Debug, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct UdpDoc {
    /// How long a session lasts without a datagram. Default: 30s.
    pub idle_timeout: Option<At<Time>>,
    /// Replies to each of a client's datagrams after which its session ends: 1 for DNS. Default:
    /// any number; the session ends by its timeout.
    pub responses: Option<At<u32>>,
}

/// Upper bounds. Default: none.
#[derive(Debug, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct LimitsDoc {
    /// Open connections of one backend, for each port of the service by itself.
    pub backend_connections: Option<At<u32>>,
    /// Open connections of the service, for each of its ports by itself.
    pub service_connections: Option<At<u32>>,
    /// Open connections of one client address.
    pub client_connections: Option<At<u32>>,
    /// New connections a second of one client address.
    pub client_connections_per_second: Option<At<u32>>,
}
