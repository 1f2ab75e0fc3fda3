//! How a service treats its flows: plain values, filled by the configuration.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;
use core::time::Duration;

use crate::packet::{Head, Tunnel};
use crate::proxy_header::HeaderFormat;
use crate::{AddrSet, HashPolicy, TableSize};

/// How flows are carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Mode {
    /// Connections are ended here and made anew to the backend.
    #[default]
    Proxy,
    /// Packets: the destination is rewritten.
    Nat,
    /// Packets: source and destination are rewritten.
    FullNat,
    /// Packets: sent to the backend's station as they are, and answered past us.
    Dsr,
    /// Packets: in a tunnel to the backend, and answered past us.
    Tunnel(Tunnel),
}

impl Mode {
    /// Whether replies come through here.
    #[must_use]
    pub fn is_two_way(self) -> bool {
        matches!(self, Self::Proxy | Self::Nat | Self::FullNat)
    }
}

/// The word of the document.
impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Proxy => "proxy",
            Self::Nat => "nat",
            Self::FullNat => "fullNat",
            Self::Dsr => "dsr",
            Self::Tunnel(Tunnel::Ipip) => "ipip",
            Self::Tunnel(Tunnel::Gue | Tunnel::GueWithHeader) => "gue",
        })
    }
}

/// How the sequence of candidates of a flow is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheduler {
    /// Consistent hashing over a Maglev table.
    Maglev {
        /// Size of the table; none takes the rung for the number of backends.
        table_size: Option<TableSize>,
        /// A candidate above this many hundredths of its fair load passes the flow on.
        bounded_load_percent: Option<u32>,
    },
    /// Smooth weighted round robin, a round for each worker.
    RoundRobin,
    /// Weighted random.
    Random,
    /// The less loaded of two random ones.
    PowerOfTwo,
    /// The fewest connections for its weight.
    LeastConnections,
    /// The fewest connections for its weight, the new one counted.
    ShortestExpectedDelay,
    /// An idle backend if there is one, else the shortest expected delay.
    NeverQueue,
}

/// Clients that come back to the backend that they had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Affinity {
    /// How long after a client's last new connection its backend is kept.
    pub timeout: Duration,
}

/// When another candidate is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// After a failed connect: nothing was delivered.
    pub on_connect: bool,
    /// After a reset before the first byte of a reply: bytes were delivered and may run twice.
    pub on_reset_before_reply: bool,
    /// Most candidates a connection may try, the first included; none means every candidate.
    pub attempts: Option<u16>,
    /// From accepting, or from the failure of a backend that had been reached, to the last chance
    /// of a candidate.
    pub deadline: Duration,
    /// After this long, the next candidate is started beside the slow one.
    pub hedge_after: Option<Duration>,
    /// Bytes of the client that are kept for a replay.
    pub replay_bytes: u32,
    /// In packet modes: how long a backend may take to answer a connection's first segment, before
    /// that is sent to the next candidate.
    pub syn_timeout: Duration,
}

/// How long a connection may do nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For one connect.
    pub connect: Duration,
    /// With both directions open and nothing moving.
    pub idle: Duration,
    /// With one direction closed and nothing moving in the other.
    pub half_closed: Duration,
}

/// Where connections to backends come from; the kernel's choice by default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SourceAddress {
    /// From the client's own address.
    pub transparent: bool,
    /// From one of these, in turn, if one is of the backend's family.
    pub addresses: Vec<IpAddr>,
    /// From these ports, both ends included.
    pub ports: Option<(u16, u16)>,
    /// Through this interface.
    pub interface: Option<Box<str>>,
    /// In packet modes: the client's address goes with it in a TCP option.
    pub toa: bool,
}

/// Headers of the PROXY protocol on TCP connections.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProxyProtocol {
    /// Which clients begin with a header; none do by default.
    pub accept: Option<AcceptHeader>,
    /// What backends are told.
    pub send: Option<SendHeader>,
}

/// Who says by a header who the client is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcceptHeader {
    /// A connection without a header is refused, and so is one of somebody else.
    pub required: bool,
    /// Proxies whose word is taken.
    pub trusted: AddrSet,
    /// How long the header may take.
    pub timeout: Duration,
}

/// What backends are told of the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendHeader {
    /// How it is written.
    pub format: HeaderFormat,
    /// With an id of the connection: the one that came with it, or a new one.
    pub unique_id: bool,
}

/// Upper bound of the segments that both ends of a connection offer to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MssClamp {
    /// What the links that it comes and goes by carry.
    Auto,
    /// This many bytes.
    To(u16),
}

/// Sessions of datagrams: a client's address and port, and what it addressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Udp {
    /// How long a session lasts without a datagram.
    pub idle: Duration,
    /// Replies to each of the client's datagrams after which the session ends; none means any
    /// number.
    pub responses: Option<u32>,
}

/// Upper bounds; none means unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Open connections of one backend.
    pub backend_connections: Option<u32>,
    /// Open connections of the service.
    pub service_connections: Option<u32>,
    /// Open connections of one client address.
    pub client_connections: Option<u32>,
    /// New connections a second of one client address; as many may come at once.
    pub client_rate: Option<u32>,
}

/// Ejection by failed connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassiveEjection {
    /// Failed connects in a row that eject; zero ejects nobody.
    pub failures: u32,
    /// Length of the first ejection; the n-th in a row takes n times as long.
    pub base: Duration,
    /// Longest ejection.
    pub max: Duration,
}

/// Everything that a worker needs to treat a flow of a service, apart from its backends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// How flows are carried.
    pub mode: Mode,
    /// How candidates are found.
    pub scheduler: Scheduler,
    /// What identifies a flow to a hashing scheduler.
    pub hash: HashPolicy,
    /// Whether clients stay on their backend.
    pub affinity: Option<Affinity>,
    /// When another candidate is tried.
    pub retry: Retry,
    /// How long a connection may do nothing.
    pub timeouts: Timeouts,
    /// Where connections to backends come from.
    pub source: SourceAddress,
    /// Headers of the PROXY protocol.
    pub proxy_protocol: ProxyProtocol,
    /// Bound of segments, in packet modes; none leaves them.
    pub mss_clamp: Option<MssClamp>,
    /// In packet modes: echo requests are answered only while a backend is admitted.
    pub echo_while_healthy: bool,
    /// Sessions of datagrams.
    pub udp: Udp,
    /// Upper bounds.
    pub limits: Limits,
    /// Ejection by failed connects.
    pub passive: PassiveEjection,
    /// Clients that may come in; empty means everyone.
    pub allow: AddrSet,
    /// Clients that may not, even when allowed.
    pub deny: AddrSet,
    /// How long connections of a draining backend may go on; none means as long as they like.
    pub drain_timeout: Option<Duration>,
}

impl Policy {
    /// How backends of a packet service whose sources are ours are told of the client.
    #[must_use]
    pub fn head(&self) -> Option<Head> {
        match self.proxy_protocol.send {
            Some(SendHeader { format: HeaderFormat::V2 { crc32c }, .. }) => {
                Some(Head::Proxy { crc32c })
            }
            _ => self.source.toa.then_some(Head::Toa),
        }
    }
}

/// What a document says that says nothing.
impl Default for Policy {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            mode: Mode::Proxy,
            scheduler: Scheduler::Maglev { table_size: None, bounded_load_percent: None },
            hash: HashPolicy::default(),
            affinity: None,
            retry: Retry {
                on_connect: true,
                on_reset_before_reply: false,
                attempts: None,
                deadline: seconds(10),
                hedge_after: None,
                replay_bytes: 16 << 10,
                // Backends of a local network answer within a fraction of it.
                syn_timeout: Duration::from_millis(50),
            },
            timeouts: Timeouts {
                connect: seconds(3),
                idle: seconds(3600),
                half_closed: seconds(60),
            },
            source: SourceAddress::default(),
            proxy_protocol: ProxyProtocol::default(),
            mss_clamp: None,
            echo_while_healthy: false,
            udp: Udp { idle: seconds(30), responses: None },
            limits: Limits::default(),
            passive: PassiveEjection { failures: 5, base: seconds(10), max: seconds(300) },
            allow: AddrSet::default(),
            deny: AddrSet::default(),
            drain_timeout: Some(seconds(300)),
        }
    }
}
