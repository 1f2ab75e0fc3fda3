//! Counters that one worker writes and anyone reads.
//!
//! Each worker has its own copy, made when it first counts something there and padded to its own
//! cache lines; a scrape sums the copies. Writers never meet on a line, readers never stop them.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use core::time::Duration;

use crossbeam_utils::CachePadded;
use once_cell::race::OnceBox;

/// A number that one thread raises and others read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owning worker may call this: load and store, no locked instruction.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Adds one, as [`Counter::add`].
    pub fn inc(&self) {
        self.add(1);
    }

    /// The value, perhaps a moment old.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// One `T` a worker, made at first use.
#[derive(Debug)]
pub struct PerWorker<T>(Box<[OnceBox<CachePadded<T>>]>);

impl<T: Default> PerWorker<T> {
    /// Room for `workers` copies.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        Self((0..workers).map(|_| OnceBox::new()).collect())
    }

    /// The copy of `worker`. Allocates once for each worker and object, at its first flow.
    ///
    /// A worker beyond the number given at the start shares the last copy: counts may then be
    /// lost, memory is never touched wrongly.
    #[must_use]
    pub fn of(&self, worker: usize) -> &T {
        let cell = &self.0[worker.min(self.0.len() - 1)];
        cell.get_or_init(|| Box::new(CachePadded::new(T::default())))
    }

    /// The copies that exist.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().filter_map(|cell| cell.get().map(|padded| &**padded))
    }
}

macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $label:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant,)* }

        impl $name {
            /// Every reason, in the order of the counters.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Their words in metrics and logs, in the same order.
            pub const LABELS: &[&'static str] = &[$($label,)*];

            /// The word in metrics and logs.
            #[must_use]
            pub fn label(self) -> &'static str {
                Self::LABELS[self as usize]
            }
        }
    };
}

pub(crate) use reasons;

reasons! {
    /// Why a connection ended.
    EndReason {
        /// The client closed first, in order.
        Client = "client_closed",
        /// The backend closed first, in order.
        Backend = "backend_closed",
        /// The client reset the connection.
        ClientReset = "client_reset",
        /// The backend reset the connection.
        BackendReset = "backend_reset",
        /// Nothing moved in either direction for the idle timeout.
        IdleTimeout = "idle_timeout",
        /// One side had closed and the other did not finish in time.
        HalfClosedTimeout = "half_closed_timeout",
        /// No candidate could be reached within attempts and deadline.
        ConnectFailed = "connect_failed",
        /// No backend is admitted, or the pool is empty.
        NoBackend = "no_backend",
        /// The backend's drain timeout ended the connection.
        DrainTimeout = "drain_timeout",
        /// Its service is carried in another way now.
        ModeChanged = "mode_changed",
        /// An allow or deny list refused the client.
        Denied = "denied",
        /// A limit refused the connection.
        Limited = "limited",
        /// No service of the running configuration listens there any more.
        NoService = "no_service",
        /// The process is stopping.
        Shutdown = "shutdown",
        /// The kernel refused us something: a socket, a port, memory.
        LocalError = "local_error",
        /// The header of the PROXY protocol was malformed, late, or from somebody not trusted.
        ProxyHeader = "proxy_header",
        /// A session of datagrams had as many replies as were expected.
        Answered = "answered",
        /// A session of datagrams made room for a newer one.
        Evicted = "evicted",
    }
}

reasons! {
    /// Why an attempt to reach a backend failed.
    FailureCause {
        /// Nobody listens there.
        Refused = "refused",
        /// No route, or an ICMP error.
        Unreachable = "unreachable",
        /// No answer within the connect timeout.
        Timeout = "timeout",
        /// Reset or closed after connecting, before the first byte of a reply.
        ResetBeforeReply = "reset_before_reply",
        /// The kernel of this box refused; says nothing of the backend.
        Local = "local",
    }
}

reasons! {
    /// Why a further candidate was tried.
    RetryCause {
        /// Nobody listened at the one before.
        Refused = "refused",
        /// The one before had no route.
        Unreachable = "unreachable",
        /// The one before did not answer in time.
        Timeout = "timeout",
        /// The one before ended the connection before its first byte.
        ResetBeforeReply = "reset_before_reply",
        /// The one before ended a young connection on which nothing had been said.
        Closed = "closed",
        /// The kernel of this box refused the one before.
        Local = "local",
        /// The one before took longer than `hedgeAfter`; it was not given up.
        Hedge = "hedge",
    }
}

impl From<FailureCause> for RetryCause {
    fn from(cause: FailureCause) -> Self {
        match cause {
            FailureCause::Refused => Self::Refused,
            FailureCause::Unreachable => Self::Unreachable,
            FailureCause::Timeout => Self::Timeout,
            FailureCause::ResetBeforeReply => Self::ResetBeforeReply,
            FailureCause::Local => Self::Local,
        }
    }
}

reasons! {
    /// Why a datagram was dropped.
    DatagramDrop {
        /// The socket to its receiver was full.
        SocketFull = "socket_full",
        /// It was longer than a datagram can be.
        Truncated = "truncated",
        /// No backend took it.
        Unreachable = "unreachable",
    }
}

reasons! {
    /// Which limit refused a connection or passed it on.
    LimitKind {
        /// Connections of the service.
        Service = "service",
        /// Connections of one client address.
        Client = "client",
        /// New connections a second of one client address.
        ClientRate = "client_rate",
        /// Connections of every backend of the pool.
        Backend = "backend",
    }
}

/// Distribution of durations: upper bounds in milliseconds, as Prometheus counts them.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [Counter; Self::BOUNDS_MS.len()],
    over: Counter,
    sum_us: Counter,
}

impl Histogram {
    /// Upper bounds of the buckets, in milliseconds; a further bucket holds the rest.
    pub const BOUNDS_MS: [f64; 13] =
        [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 1000.0, 3000.0];

    /// The same as words.
    const BOUND_LABELS: [&'static str; 13] =
        ["0.1", "0.25", "0.5", "1", "2.5", "5", "10", "25", "50", "100", "250", "1000", "3000"];

    /// Counts `value`.
    pub fn record(&self, value: Duration) {
        let millis = value.as_secs_f64() * 1e3;
        let bucket = Self::BOUNDS_MS.iter().position(|bound| millis <= *bound);
        bucket.map_or(&self.over, |bucket| &self.buckets[bucket]).inc();
        self.sum_us.add(u64::try_from(value.as_micros()).unwrap_or(u64::MAX));
    }

    fn add_to(&self, counts: &mut [u64; Self::BOUNDS_MS.len() + 1], sum_us: &mut u64) {
        for (total, counter) in counts.iter_mut().zip(self.buckets.iter().chain([&self.over])) {
            *total += counter.get();
        }
        *sum_us += self.sum_us.get();
    }
}

/// What one worker counts of a backend.
#[derive(Debug, Default)]
pub struct BackendCounters {
    /// Connections established to it.
    pub connections: Counter,
    /// Bytes received from it.
    pub rx_bytes: Counter,
    /// Bytes sent to it.
    pub tx_bytes: Counter,
    /// Sum of the times that connecting took, in microseconds.
    pub connect_us: Counter,
    /// Failed attempts, by [`FailureCause`].
    pub failures: [Counter; FailureCause::ALL.len()],
}

/// A backend's counters, summed over workers.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct BackendTotals {
    /// Connections established to it.
    pub connections: u64,
    /// Bytes received from it.
    pub rx_bytes: u64,
    /// Bytes sent to it.
    pub tx_bytes: u64,
    /// Sum of the times that connecting took, in microseconds.
    pub connect_us: u64,
    /// Failed attempts, by [`FailureCause`].
    pub failures: [u64; FailureCause::ALL.len()],
}

impl BackendTotals {
    /// Adds another backend's.
    pub fn add(&mut self, other: &Self) {
        self.connections += other.connections;
        self.rx_bytes += other.rx_bytes;
        self.tx_bytes += other.tx_bytes;
        self.connect_us += other.connect_us;
        for (sum, count) in self.failures.iter_mut().zip(other.failures) {
            *sum += count;
        }
    }
}

impl BackendCounters {
    /// Every counter with its name and the word for its kind, empty when there is but one: what one
    /// process tells the next.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, &'static str, &Counter)> {
        let single = [
            ("connections", "", &self.connections),
            ("rxBytes", "", &self.rx_bytes),
            ("txBytes", "", &self.tx_bytes),
            ("connectMicros", "", &self.connect_us),
        ];
        single.into_iter().chain(by_label("failures", FailureCause::LABELS, &self.failures))
    }
}

impl PerWorker<BackendCounters> {
    /// Sums the workers' copies.
    #[must_use]
    pub fn totals(&self) -> BackendTotals {
        self.iter().fold(BackendTotals::default(), |mut sum, own| {
            sum.connections += own.connections.get();
            sum.rx_bytes += own.rx_bytes.get();
            sum.tx_bytes += own.tx_bytes.get();
            sum.connect_us += own.connect_us.get();
            add_each(&mut sum.failures, &own.failures);
            sum
        })
    }
}

/// What one worker counts of a service.
#[derive(Debug, Default)]
pub struct ServiceCounters {
    /// Connections accepted, sessions of datagrams begun.
    pub accepted: Counter,
    /// Bytes received from clients.
    pub rx_bytes: Counter,
    /// Bytes sent to clients.
    pub tx_bytes: Counter,
    /// Ended connections, by [`EndReason`].
    pub ends: [Counter; EndReason::ALL.len()],
    /// Further candidates tried, by [`RetryCause`].
    pub retries: [Counter; RetryCause::ALL.len()],
    /// Limits hit, by [`LimitKind`].
    pub limits: [Counter; LimitKind::ALL.len()],
    /// Connections that went to a backup pool.
    pub backup: Counter,
    /// Packets received from clients, in packet modes.
    pub rx_packets: Counter,
    /// Packets sent to clients, in packet modes that see them.
    pub tx_packets: Counter,
    /// Datagrams received from clients.
    pub rx_datagrams: Counter,
    /// Datagrams sent to clients.
    pub tx_datagrams: Counter,
    /// Dropped datagrams, by [`DatagramDrop`].
    pub datagram_drops: [Counter; DatagramDrop::ALL.len()],
    /// Time from starting a connect to its success.
    pub connect_time: Histogram,
    /// Position in the round of round robin; not a statistic.
    pub cursor: Counter,
}

/// A service's counters, summed over workers.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct ServiceTotals {
    /// Connections accepted.
    pub accepted: u64,
    /// Bytes received from clients.
    pub rx_bytes: u64,
    /// Bytes sent to clients.
    pub tx_bytes: u64,
    /// Ended connections, by [`EndReason`].
    pub ends: [u64; EndReason::ALL.len()],
    /// Further candidates tried, by [`RetryCause`].
    pub retries: [u64; RetryCause::ALL.len()],
    /// Limits hit, by [`LimitKind`].
    pub limits: [u64; LimitKind::ALL.len()],
    /// Connections that went to a backup pool.
    pub backup: u64,
    /// Packets received from clients, in packet modes.
    pub rx_packets: u64,
    /// Packets sent to clients, in packet modes that see them.
    pub tx_packets: u64,
    /// Datagrams received from clients.
    pub rx_datagrams: u64,
    /// Datagrams sent to clients.
    pub tx_datagrams: u64,
    /// Dropped datagrams, by [`DatagramDrop`].
    pub datagram_drops: [u64; DatagramDrop::ALL.len()],
    /// Connects by duration, a count for each bound of [`Histogram::BOUNDS_MS`] and the rest.
    pub connect_buckets: [u64; Histogram::BOUNDS_MS.len() + 1],
    /// Sum of connect times, in microseconds.
    pub connect_sum_us: u64,
}

impl ServiceCounters {
    /// As [`BackendCounters::named`].
    pub fn named(&self) -> impl Iterator<Item = (&'static str, &'static str, &Counter)> {
        let single = [
            ("accepted", "", &self.accepted),
            ("rxBytes", "", &self.rx_bytes),
            ("txBytes", "", &self.tx_bytes),
            ("backup", "", &self.backup),
            ("rxPackets", "", &self.rx_packets),
            ("txPackets", "", &self.tx_packets),
            ("rxDatagrams", "", &self.rx_datagrams),
            ("txDatagrams", "", &self.tx_datagrams),
            ("connectMicros", "", &self.connect_time.sum_us),
            ("connectTime", "over", &self.connect_time.over),
        ];
        let buckets = Histogram::BOUND_LABELS.iter().zip(&self.connect_time.buckets);
        single
            .into_iter()
            .chain(buckets.map(|(label, counter)| ("connectTime", *label, counter)))
            .chain(by_label("ends", EndReason::LABELS, &self.ends))
            .chain(by_label("retries", RetryCause::LABELS, &self.retries))
            .chain(by_label("limits", LimitKind::LABELS, &self.limits))
            .chain(by_label("datagramDrops", DatagramDrop::LABELS, &self.datagram_drops))
    }
}

fn by_label<'c>(
    name: &'static str,
    labels: &'static [&'static str],
    counters: &'c [Counter],
) -> impl Iterator<Item = (&'static str, &'static str, &'c Counter)> {
    labels.iter().zip(counters).map(move |(label, counter)| (name, *label, counter))
}

impl PerWorker<ServiceCounters> {
    /// Sums the workers' copies.
    #[must_use]
    pub fn totals(&self) -> ServiceTotals {
        self.iter().fold(ServiceTotals::default(), |mut sum, own| {
            sum.accepted += own.accepted.get();
            sum.rx_bytes += own.rx_bytes.get();
            sum.tx_bytes += own.tx_bytes.get();
            sum.backup += own.backup.get();
            add_each(&mut sum.ends, &own.ends);
            add_each(&mut sum.retries, &own.retries);
            add_each(&mut sum.limits, &own.limits);
            sum.rx_packets += own.rx_packets.get();
            sum.tx_packets += own.tx_packets.get();
            sum.rx_datagrams += own.rx_datagrams.get();
            sum.tx_datagrams += own.tx_datagrams.get();
            add_each(&mut sum.datagram_drops, &own.datagram_drops);
            own.connect_time.add_to(&mut sum.connect_buckets, &mut sum.connect_sum_us);
            sum
        })
    }
}

fn add_each(sums: &mut [u64], counters: &[Counter]) {
    for (sum, counter) in sums.iter_mut().zip(counters) {
        *sum += counter.get();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_sum_workers() {
        let counters = PerWorker::<BackendCounters>::new(3);
        counters.of(0).connections.inc();
        counters.of(2).connections.add(4);
        counters.of(2).failures[FailureCause::Timeout as usize].inc();
        let totals = counters.totals();
        assert_eq!(totals.connections, 5);
        assert_eq!(totals.failures[FailureCause::Timeout as usize], 1);
        assert_eq!(counters.iter().count(), 2, "a worker that counted nothing has no copy");
    }

    #[test]
    fn every_counter_has_a_name_of_its_own() {
        let counters = ServiceCounters::default();
        let names: alloc::collections::BTreeSet<_> =
            counters.named().map(|(name, label, _)| (name, label)).collect();
        assert_eq!(names.len(), counters.named().count());
        // All but the cursor, which is no count.
        assert_eq!(size_of::<ServiceCounters>() / size_of::<Counter>(), names.len() + 1);
        let counters = BackendCounters::default();
        assert_eq!(size_of::<BackendCounters>() / size_of::<Counter>(), counters.named().count());
        let bounds = Histogram::BOUND_LABELS.iter().map(|label| label.parse::<f64>().unwrap());
        assert!(bounds.eq(Histogram::BOUNDS_MS));
    }

    #[test]
    fn histogram_buckets() {
        let counters = PerWorker::<ServiceCounters>::new(1);
        for micros in [50, 100, 101, 3_000_000, 3_000_001] {
            counters.of(0).connect_time.record(Duration::from_micros(micros));
        }
        let totals = counters.totals();
        assert_eq!(totals.connect_buckets[0], 2);
        assert_eq!(totals.connect_buckets[1], 1);
        assert_eq!(totals.connect_buckets[12..], [1, 1]);
        assert_eq!(totals.connect_sum_us, 6_000_252);
    }
}
