//! What workers share with each other and tell the control plane.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use fairway_core::packet::flow::FlowView;
use fairway_core::packet::{PacketCounters, Unresolved};
use fairway_core::talkers::Talkers;
use fairway_core::{
    AddrSet, BackendAddr, BackendId, Clients, Counter, EndReason, FailureCause, Protocol,
    ServiceId, Tick,
};
use rustix::time::{ClockId, Timespec, clock_gettime};

/// Numbers that apply to every connection of every worker.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Seed of the flow hash; equal on boxes that must agree.
    pub hash_seed: u64,
    /// Size of a receive buffer, in bytes.
    pub buffer_bytes: u32,
    /// Receive buffers of a worker.
    pub buffers: u16,
    /// Bytes that a direction may receive before they are sent on.
    pub credit_bytes: u32,
    /// A direction that has moved this many bytes is spliced.
    pub splice_after_bytes: u64,
    /// Most connections of a worker.
    pub max_connections: u32,
    /// Most sessions of datagrams of a worker; the oldest idle one makes room for another.
    pub max_udp_sessions: u32,
    /// Most spliced directions of a worker; each takes two descriptors.
    pub max_pipes: u32,
    /// Which ended connections are reported.
    pub log: ConnectionLog,
}

/// Which ended connections are reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ConnectionLog {
    /// None.
    #[default]
    Off,
    /// Those that did not end in order.
    Errors,
    /// The same, and this many hundredths of the others, drawn by their hash.
    Sampled(u32),
    /// All.
    All,
}

impl ConnectionLog {
    /// Whether a connection is logged that ended in order or did not; `hash` draws the sample.
    fn wants(self, in_order: bool, hash: u64) -> bool {
        // Turns of a round count up: mixed, they are as good as hashes.
        let draw = || (hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % 100;
        match self {
            Self::Off => false,
            Self::Errors => !in_order,
            Self::Sampled(percent) => !in_order || draw() < u64::from(percent),
            Self::All => true,
        }
    }
}

/// Time for workers, from the start of this machine: a process that goes on where another one ended
/// reads the same.
#[derive(Debug, Clone, Copy, Default)]
pub struct Clock;

impl Clock {
    /// Milliseconds since the machine started, without the time that it slept.
    #[must_use]
    pub fn now(self) -> Tick {
        Tick(self.micros() / 1000)
    }

    /// Microseconds since then.
    #[must_use]
    pub fn micros(self) -> u64 {
        let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::Monotonic);
        tv_sec.unsigned_abs() * 1_000_000 + tv_nsec.unsigned_abs() / 1000
    }
}

/// What a worker tells the control plane.
#[derive(Debug)]
pub enum Event {
    /// A backend failed so often in a row that its service ejects it.
    BackendFailed {
        /// Whose backend.
        service: ServiceId,
        /// Which one.
        backend: BackendId,
        /// The last failure.
        cause: FailureCause,
        /// Failures in a row.
        streak: u32,
    },
    /// A connection ended.
    ConnectionEnded(Box<ConnectionRecord>),
    /// Packets wait for a station that nobody knows.
    Unresolved(Unresolved),
    /// The worker has ended; with an error unless it was told to stop.
    WorkerEnded {
        /// Its number.
        worker: usize,
        /// Why, when it should not have.
        error: Option<String>,
    },
}

/// An ended connection.
#[derive(Debug)]
pub struct ConnectionRecord {
    /// `name/port` of its service.
    pub service: Arc<str>,
    /// Where it came from.
    pub client: SocketAddr,
    /// What it dialled.
    pub vip: SocketAddr,
    /// The backend that served it.
    pub backend: Option<BackendAddr>,
    /// Why it ended.
    pub reason: EndReason,
    /// Candidates that were tried; of packet flows it is not known.
    pub attempts: Option<u32>,
    /// What it has carried.
    pub carried: Carried,
    /// Time that the last connect took; none when none succeeded.
    pub connect: Option<Duration>,
    /// From accept to the first byte of the reply.
    pub first_byte: Option<Duration>,
    /// From accept to close.
    pub duration: Duration,
}

/// Bytes that a connection has carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carried {
    /// Payload by direction.
    Payload {
        /// Bytes that reached the backend.
        rx: u64,
        /// Bytes that reached the client.
        tx: u64,
    },
    /// Bytes of IP packets, both directions together.
    Packets(u64),
}

impl Carried {
    /// Both directions together.
    #[must_use]
    pub fn bytes(self) -> u64 {
        match self {
            Self::Payload { rx, tx } => rx + tx,
            Self::Packets(bytes) => bytes,
        }
    }
}

/// An open connection or session of datagrams, for people.
#[derive(Debug, Clone)]
pub struct OpenConnection {
    /// `name/port` of its service; none until its header is read.
    pub service: Option<Arc<str>>,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Where it comes from.
    pub client: SocketAddr,
    /// What it dialled.
    pub vip: SocketAddr,
    /// The backend that serves it; none while one is being looked for.
    pub backend: Option<BackendAddr>,
    /// Candidates that were tried.
    pub attempts: u32,
    /// Bytes that reached the backend.
    pub rx_bytes: u64,
    /// Bytes that reached the client.
    pub tx_bytes: u64,
    /// Since it was accepted.
    pub age: Duration,
    /// Since something moved.
    pub idle: Duration,
}

/// A flow of the packet path, for people.
#[derive(Debug, Clone)]
pub struct OpenFlow {
    /// `name/port` of its service, while there is that.
    pub service: Option<Arc<str>>,
    /// The backend that serves it; none when its place there was paid back.
    pub backend: Option<BackendAddr>,
    /// Since it began.
    pub age: Duration,
    /// Until it ends, if nothing moves.
    pub left: Duration,
    /// Who it is between, and how it stands.
    pub view: FlowView,
}

/// The heaviest clients of a service, as one worker has seen them since it started.
#[derive(Debug, Clone, Default)]
pub struct ServiceTalkers {
    /// By connections and sessions that have ended.
    pub by_connections: Talkers,
    /// By bytes both ways of those.
    pub by_bytes: Talkers,
}

/// Which open connections are asked for; what is none does not matter.
#[derive(Debug, Clone, Default)]
pub struct ConnectionFilter {
    /// Of services whose `name/port` is this, or whose name is.
    pub service: Option<String>,
    /// From these addresses; empty means all.
    pub client: AddrSet,
    /// On one of these backends.
    pub backends: Option<Vec<BackendAddr>>,
    /// At least this old.
    pub older_than: Duration,
    /// At most so many of each worker.
    pub most: usize,
}

impl ConnectionFilter {
    /// Whether `connection` is asked for.
    #[must_use]
    pub fn wants(&self, connection: &OpenConnection) -> bool {
        let OpenConnection { service, client, backend, age, .. } = connection;
        self.fits(service.as_deref(), client.ip(), *backend) && *age >= self.older_than
    }

    /// Whether `flow` is asked for.
    #[must_use]
    pub fn wants_flow(&self, flow: &OpenFlow) -> bool {
        let OpenFlow { service, backend, age, view, .. } = flow;
        self.fits(service.as_deref(), view.flow.client.ip(), *backend) && *age >= self.older_than
    }

    fn fits(&self, service: Option<&str>, client: IpAddr, backend: Option<BackendAddr>) -> bool {
        let of_service = |wanted: &String| {
            service.is_some_and(|key| {
                key == wanted || key.rsplit_once('/').is_some_and(|(name, _)| name == wanted)
            })
        };
        self.service.as_ref().is_none_or(of_service)
            && (self.client.is_empty() || self.client.contains(client))
            && self
                .backends
                .as_ref()
                .is_none_or(|these| backend.is_some_and(|backend| these.contains(&backend)))
    }
}

/// Where events go. It must not block: a worker calls it. False means that it was lost.
pub type Sink = Box<dyn Fn(Event) -> bool + Send + Sync>;

/// What all workers share.
pub struct Shared {
    /// Numbers that apply to every connection.
    pub settings: Settings,
    /// Their clock.
    pub clock: Clock,
    /// What is remembered of clients.
    pub clients: Clients,
    /// Events that the control plane had no room for.
    pub lost_events: AtomicU64,
    /// Ended connections that the log had no room for.
    pub lost_log_lines: AtomicU64,
    sink: Sink,
}

impl Shared {
    /// What workers with `settings` share, with room for so many clients under a key of four random
    /// numbers; events go to `sink`.
    #[must_use]
    pub fn new(
        settings: Settings,
        clock: Clock,
        (clients, seeds): (usize, [u64; 4]),
        sink: Sink,
    ) -> Self {
        Self {
            settings,
            clock,
            clients: Clients::new(clients, seeds),
            lost_events: AtomicU64::new(0),
            lost_log_lines: AtomicU64::new(0),
            sink,
        }
    }

    pub(crate) fn send(&self, event: Event) {
        if !(self.sink)(event) {
            self.lost_events.fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn backend_failed(
        &self,
        service: ServiceId,
        backend: BackendId,
        cause: FailureCause,
        streak: u32,
    ) {
        self.send(Event::BackendFailed { service, backend, cause, streak });
    }

    pub(crate) fn connection_ended(
        &self,
        in_order: bool,
        hash: u64,
        record: impl FnOnce() -> ConnectionRecord,
    ) {
        if self.settings.log.wants(in_order, hash)
            && !(self.sink)(Event::ConnectionEnded(Box::new(record())))
        {
            self.lost_log_lines.fetch_add(1, Relaxed);
        }
    }
}

/// What one worker shows of its packet path.
#[derive(Debug)]
pub struct PacketStats {
    /// Packets by what became of them.
    pub counters: Arc<PacketCounters>,
    /// Flows in its table.
    pub flows: AtomicU64,
    /// Those of them that are open.
    pub open: AtomicU64,
    /// Flows that it has room for.
    pub room: AtomicU64,
    /// Frames that the worker that has their flow had no room for.
    pub unpassed: Counter,
    /// Its interfaces, in the order of the configuration.
    pub ports: Box<[PortStats]>,
}

impl PacketStats {
    /// For so many interfaces.
    #[must_use]
    pub fn new(ports: usize) -> Self {
        let ports = (0..ports).map(|_| PortStats::default()).collect();
        let [flows, open, room] = [0; 3].map(AtomicU64::new);
        Self { counters: Arc::default(), flows, open, room, unpassed: Counter::default(), ports }
    }
}

/// What a worker has counted of an interface.
#[derive(Debug, Default)]
pub struct PortStats {
    /// Frames that came.
    pub received: Counter,
    /// Frames that went out.
    pub sent: Counter,
    /// Frames for which the kernel had no slot.
    pub lost: Counter,
    /// Frames that neither slot nor queue held whole, or that could not be cut into segments.
    pub cut: Counter,
    /// Segments that super-packets were cut into.
    pub segments: Counter,
    /// Super-packets that went out whole.
    pub whole: Counter,
    /// Frames for which the ring to the kernel was full, or that were too large for it, or for which the
    /// socket had no room.
    pub full: Counter,
    /// Times that the kernel refused to send.
    pub send_failures: Counter,
}

/// What one worker shows of itself, on cache lines of its own.
pub type SharedStats = std::sync::Arc<crossbeam_utils::CachePadded<WorkerStats>>;

/// What one worker shows of itself.
#[derive(Debug, Default)]
pub struct WorkerStats {
    /// Open connections.
    pub connections: AtomicU64,
    /// Sessions of datagrams.
    pub udp_sessions: AtomicU64,
    /// Listeners that accept.
    pub listeners: AtomicU64,
    /// Whether accepting is paused.
    pub paused: AtomicBool,
    /// How often accepting was paused for want of descriptors or places.
    pub pauses: Counter,
    /// Receives that found no buffer.
    pub starved: Counter,
    /// Receive buffers that hold data.
    pub buffers_used: AtomicU64,
    /// Batches of completions.
    pub batches: Counter,
    /// Sockets that could not be given the source that their service wants.
    pub unbound: Counter,
    /// Connections refused because no service listens there any more.
    pub no_service: Counter,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_went_wrong_is_always_logged_and_a_share_of_the_rest() {
        use ConnectionLog::{All, Errors, Off, Sampled};
        for (log, bad, good) in
            [(Off, 0, 0), (Errors, 10_000, 0), (Sampled(5), 10_000, 500), (All, 10_000, 10_000)]
        {
            let logged = |in_order| (0..10_000).filter(|n| log.wants(in_order, *n)).count();
            assert_eq!(logged(false), bad, "{log:?}");
            assert!(logged(true).abs_diff(good) <= good / 10, "{log:?}: {}", logged(true));
        }
    }
}
