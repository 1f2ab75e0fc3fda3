//! Series of services, backends and workers, written from the workers' counters at scrape.
//!
//! Series that are zero are left out, but for states and totals that alerts compare.

use std::fmt::Write;
use std::sync::atomic::Ordering::Relaxed;

use fairway_core::{
    BackendTotals, DatagramDrop, EndReason, FailureCause, Histogram, LimitKind, Member, RetryCause,
    Service, ServiceTotals, Snapshot, Standing,
};
use fairway_uring::{Shared, SharedStats, WorkerStats};

type OfService<'s> = (&'s Service, ServiceTotals);
/// A backend, or the sum of a service's.
struct OfBackend {
    /// `service="…"` with or without `backend="…"`.
    labels: String,
    up: u64,
    active: u64,
    transitions: u64,
    totals: BackendTotals,
}

/// Appends everything that is counted per service, backend and worker.
pub(crate) fn write(
    out: &mut String,
    snapshot: &Snapshot,
    workers: &[SharedStats],
    shared: &Shared,
    per_backend: bool,
) {
    let mut services: Vec<OfService<'_>> =
        snapshot.services().map(|s| (&**s, s.state.counters.totals())).collect();
    services.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    write_services(out, &services);
    write_states(out, &services);
    let backends: Vec<OfBackend> = if per_backend {
        services.iter().flat_map(|(service, _)| each_backend(service)).collect()
    } else {
        services.iter().map(|(service, _)| all_backends(service)).collect()
    };
    write_backends(out, &backends);
    write_workers(out, workers, shared);
    family(out, "fairway_services", "gauge", "Services being served.");
    line(out, format_args!("fairway_services {}", services.len()));
}

fn each_backend(service: &Service) -> impl Iterator<Item = OfBackend> {
    service.backends().map(|(Member { backend, .. }, ..)| OfBackend {
        labels: format!("service=\"{}\",backend=\"{}\"", service.name, backend.addr),
        up: u64::from(!backend.standing().failed),
        active: u64::from(backend.active()),
        transitions: backend.transitions.get(),
        totals: backend.counters.totals(),
    })
}

fn all_backends(service: &Service) -> OfBackend {
    let labels = format!("service=\"{}\"", service.name);
    let none =
        OfBackend { labels, up: 0, active: 0, transitions: 0, totals: BackendTotals::default() };
    each_backend(service).fold(none, |mut sum, one| {
        sum.up += one.up;
        sum.active += one.active;
        sum.transitions += one.transitions;
        sum.totals.add(&one.totals);
        sum
    })
}

pub(super) fn family(out: &mut String, name: &str, kind: &str, help: &str) {
    line(out, format_args!("# HELP {name} {help}"));
    line(out, format_args!("# TYPE {name} {kind}"));
}

pub(super) fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing into a String cannot fail.
    let _ = out.write_fmt(text);
    out.push('\n');
}

/// A family with one series for each service, if it is above zero or `always`.
fn by_service(
    out: &mut String,
    (name, kind, help): (&str, &str, &str),
    services: &[OfService<'_>],
    always: bool,
    value: impl Fn(&OfService<'_>) -> u64,
) {
    family(out, name, kind, help);
    for of in services {
        let value = value(of);
        if always || value > 0 {
            line(out, format_args!("{name}{{service=\"{}\"}} {value}", of.0.name));
        }
    }
}

/// A family with a series for each service and each of `labels` that is above zero.
fn by_label(
    out: &mut String,
    (name, label, help): (&str, &str, &str),
    services: &[OfService<'_>],
    labels: &[&'static str],
    values: impl for<'a> Fn(&'a ServiceTotals) -> &'a [u64],
) {
    family(out, name, "counter", help);
    for (service, totals) in services {
        for (word, value) in labels.iter().zip(values(totals)).filter(|(_, value)| **value > 0) {
            let service = &service.name;
            line(out, format_args!("{name}{{service=\"{service}\",{label}=\"{word}\"}} {value}"));
        }
    }
}

fn write_services(out: &mut String, services: &[OfService<'_>]) {
    let name = "fairway_service_info";
    family(out, name, "gauge", "How a service is carried, and what its owner says of it.");
    for (service, _) in services {
        let (mode, protocol) = (service.policy.mode, service.protocol);
        let spoken = service.app_protocol.as_deref().unwrap_or_default();
        let service = &service.name;
        line(
            out,
            format_args!(
                "{name}{{service=\"{service}\",mode=\"{mode}\",protocol=\"{protocol}\",\
                 app_protocol=\"{}\"}} 1",
                escaped(spoken)
            ),
        );
    }
    let counter = |out: &mut String, name, help, value: fn(&OfService<'_>) -> u64| {
        by_service(out, (name, "counter", help), services, false, value);
    };
    counter(out, "fairway_service_connections_total", "Connections accepted.", |s| s.1.accepted);
    counter(out, "fairway_service_received_bytes_total", "Bytes received from clients.", |s| {
        s.1.rx_bytes
    });
    counter(out, "fairway_service_sent_bytes_total", "Bytes sent to clients.", |s| s.1.tx_bytes);
    counter(
        out,
        "fairway_service_backup_connections_total",
        "Connections that went to the backup pool.",
        |s| s.1.backup,
    );
    let active = ("fairway_service_connections_active", "gauge", "Open connections.");
    by_service(out, active, services, false, |s| u64::from(s.0.state.active()));
    by_label(
        out,
        ("fairway_service_connection_ends_total", "reason", "Ended connections."),
        services,
        EndReason::LABELS,
        |totals| &totals.ends,
    );
    by_label(
        out,
        ("fairway_service_retries_total", "cause", "Further backends tried."),
        services,
        RetryCause::LABELS,
        |totals| &totals.retries,
    );
    by_label(
        out,
        ("fairway_service_limits_hit_total", "limit", "Connections refused by a limit."),
        services,
        LimitKind::LABELS,
        |totals| &totals.limits,
    );
    counter(
        out,
        "fairway_service_received_packets_total",
        "Packets received from clients, in packet modes.",
        |s| s.1.rx_packets,
    );
    counter(
        out,
        "fairway_service_sent_packets_total",
        "Packets sent to clients, in packet modes that see them.",
        |s| s.1.tx_packets,
    );
    counter(
        out,
        "fairway_service_received_datagrams_total",
        "Datagrams received from clients.",
        |s| s.1.rx_datagrams,
    );
    counter(out, "fairway_service_sent_datagrams_total", "Datagrams sent to clients.", |s| {
        s.1.tx_datagrams
    });
    by_label(
        out,
        ("fairway_service_dropped_datagrams_total", "reason", "Datagrams that went nowhere."),
        services,
        DatagramDrop::LABELS,
        |totals| &totals.datagram_drops,
    );
    write_connect_times(out, services);
}

fn write_connect_times(out: &mut String, services: &[OfService<'_>]) {
    let name = "fairway_service_connect_duration_seconds";
    family(out, name, "histogram", "Time to connect to a backend.");
    for (service, totals) in services {
        let count: u64 = totals.connect_buckets.iter().sum();
        if count == 0 {
            continue;
        }
        let service = &service.name;
        let mut sum = 0;
        for (bound, bucket) in Histogram::BOUNDS_MS.iter().zip(totals.connect_buckets) {
            sum += bucket;
            let le = bound / 1e3;
            line(out, format_args!("{name}_bucket{{service=\"{service}\",le=\"{le}\"}} {sum}"));
        }
        line(out, format_args!("{name}_bucket{{service=\"{service}\",le=\"+Inf\"}} {count}"));
        let seconds = totals.connect_sum_us as f64 / 1e6;
        line(out, format_args!("{name}_sum{{service=\"{service}\"}} {seconds}"));
        line(out, format_args!("{name}_count{{service=\"{service}\"}} {count}"));
    }
}

/// A label's value as the text format has it.
pub(super) fn escaped(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

fn write_states(out: &mut String, services: &[OfService<'_>]) {
    let name = "fairway_service_backends";
    family(out, name, "gauge", "Backends by state.");
    for (service, _) in services {
        let mut counts = [0u32; 3];
        for (member, ..) in service.backends() {
            counts[state(member.backend.standing())] += 1;
        }
        for (word, count) in STATES.iter().zip(counts) {
            if count > 0 || *word == "up" {
                let service = &service.name;
                line(out, format_args!("{name}{{service=\"{service}\",state=\"{word}\"}} {count}"));
            }
        }
    }
    let panic = (
        "fairway_service_panic",
        "gauge",
        "Whether too few backends are healthy, so that all are used.",
    );
    by_service(out, panic, services, false, |s| u64::from(s.0.state.panic.load(Relaxed)));
    let generation = (
        "fairway_service_table_generation",
        "gauge",
        "Snapshot generation with which the table was last built.",
    );
    by_service(out, generation, services, false, |s| s.0.state.table_generation.load(Relaxed));
    let name = "fairway_service_table_build_seconds";
    family(out, name, "gauge", "Time that the last building of the table took.");
    for (service, _) in services {
        let seconds = service.state.table_build_us.load(Relaxed) as f64 / 1e6;
        line(out, format_args!("{name}{{service=\"{}\"}} {seconds}", service.name));
    }
}

const STATES: [&str; 3] = ["up", "down", "draining"];

fn state(standing: Standing) -> usize {
    match (standing.failed, standing.draining) {
        (true, _) => 1,
        (false, true) => 2,
        (false, false) => 0,
    }
}

/// The same families whether each backend has its series or a service's are summed.
fn write_backends(out: &mut String, backends: &[OfBackend]) {
    let mut write = |name: &str, kind, help, always, value: fn(&OfBackend) -> u64| {
        family(out, name, kind, help);
        for backend in backends {
            let value = value(backend);
            if always || value > 0 {
                line(out, format_args!("{name}{{{}}} {value}", backend.labels));
            }
        }
    };
    write("fairway_backend_up", "gauge", "Whether checks and ejection let it serve.", true, |b| {
        b.up
    });
    let help = "Connections established to the backend.";
    write("fairway_backend_connections_total", "counter", help, false, |b| b.totals.connections);
    let help = "Connections open or being opened.";
    write("fairway_backend_connections_active", "gauge", help, false, |b| b.active);
    let help = "Bytes received from the backend.";
    write("fairway_backend_received_bytes_total", "counter", help, false, |b| b.totals.rx_bytes);
    let help = "Bytes sent to the backend.";
    write("fairway_backend_sent_bytes_total", "counter", help, false, |b| b.totals.tx_bytes);
    let help = "Times that checks or ejection took the backend out or brought it back.";
    write("fairway_backend_transitions_total", "counter", help, false, |b| b.transitions);
    let name = "fairway_backend_failures_total";
    family(out, name, "counter", "Failed attempts to reach the backend.");
    for backend in backends {
        for (cause, count) in FailureCause::ALL.iter().zip(backend.totals.failures) {
            if count > 0 {
                let (labels, cause) = (&backend.labels, cause.label());
                line(out, format_args!("{name}{{{labels},cause=\"{cause}\"}} {count}"));
            }
        }
    }
}

fn write_workers(out: &mut String, workers: &[SharedStats], shared: &Shared) {
    let mut write = |name: &str, kind, help, value: fn(&WorkerStats) -> u64| {
        family(out, name, kind, help);
        for (worker, stats) in workers.iter().enumerate() {
            line(out, format_args!("{name}{{worker=\"{worker}\"}} {}", value(stats)));
        }
    };
    write("fairway_worker_connections", "gauge", "Open connections.", |w| {
        w.connections.load(Relaxed)
    });
    write("fairway_worker_udp_sessions", "gauge", "Sessions of datagrams.", |w| {
        w.udp_sessions.load(Relaxed)
    });
    write("fairway_worker_listeners", "gauge", "Listening sockets.", |w| w.listeners.load(Relaxed));
    write("fairway_worker_accepting", "gauge", "Whether the worker accepts.", |w| {
        u64::from(!w.paused.load(Relaxed))
    });
    write(
        "fairway_worker_accept_pauses_total",
        "counter",
        "Times that accepting paused for want of descriptors or places.",
        |w| w.pauses.get(),
    );
    write("fairway_worker_starved_receives_total", "counter", "Receives without a buffer.", |w| {
        w.starved.get()
    });
    write("fairway_worker_buffers_used", "gauge", "Receive buffers in use.", |w| {
        w.buffers_used.load(Relaxed)
    });
    write("fairway_worker_batches_total", "counter", "Batches of completions.", |w| {
        w.batches.get()
    });
    write(
        "fairway_worker_no_service_total",
        "counter",
        "Connections reset because no service listens there any more.",
        |w| w.no_service.get(),
    );
    write(
        "fairway_worker_source_refused_total",
        "counter",
        "Sockets that could not be given the source that their service wants.",
        |w| w.unbound.get(),
    );
    for (name, help, value) in [
        (
            "fairway_affinity_evictions_total",
            "Clients forgotten for want of room.",
            shared.clients.affinity.evicted(),
        ),
        (
            "fairway_client_limits_untracked_total",
            "Connections let in uncounted for want of room.",
            shared.clients.table.untracked(),
        ),
        (
            "fairway_connection_log_dropped_lines_total",
            "Ended connections that the log had no room for.",
            shared.lost_log_lines.load(Relaxed),
        ),
        (
            "fairway_lost_events_total",
            "Events of workers that found no room.",
            shared.lost_events.load(Relaxed),
        ),
    ] {
        family(out, name, "counter", help);
        line(out, format_args!("{name} {value}"));
    }
}
