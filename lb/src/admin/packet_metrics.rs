//! Series of the packet path: by worker, and by interface.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use fairway_core::packet::DropReason;
use fairway_uring::{PacketStats, PortStats};

use super::metrics_text::{family, line};

/// Appends what the packet paths of the workers have counted; nothing when there are none.
pub(super) fn write(out: &mut String, workers: &[Arc<PacketStats>], interfaces: &[String]) {
    if workers.is_empty() {
        return;
    }
    let name = "fairway_packets_total";
    family(out, name, "counter", "Packets by what became of them; drops have series of their own.");
    for (n, stats) in workers.iter().enumerate() {
        let counters = &stats.counters;
        for (verdict, count) in [
            ("sent", counters.sent.get()),
            ("punted", counters.punted.get()),
            ("waited", counters.waited.get()),
            ("passed", counters.passed.get()),
        ] {
            line(out, format_args!("{name}{{worker=\"{n}\",verdict=\"{verdict}\"}} {count}"));
        }
    }
    let name = "fairway_packet_drops_total";
    family(out, name, "counter", "Packets that went no further, by reason.");
    for (n, stats) in workers.iter().enumerate() {
        for (reason, count) in DropReason::ALL.iter().zip(&stats.counters.dropped) {
            if count.get() > 0 {
                let (reason, count) = (reason.label(), count.get());
                line(out, format_args!("{name}{{worker=\"{n}\",reason=\"{reason}\"}} {count}"));
            }
        }
    }
    type Value = fn(&PacketStats) -> u64;
    let single: [(&str, &str, &str, Value); 4] = [
        (
            "fairway_packet_passes_lost_total",
            "counter",
            "Frames of other workers' flows for which those had no room.",
            |s| s.unpassed.get(),
        ),
        ("fairway_packet_flows", "gauge", "Flows in the table.", |s| s.flows.load(Relaxed)),
        (
            "fairway_packet_stateless_total",
            "counter",
            "Packets sent by the choice of a backend alone, as the flow table was full.",
            |s| s.counters.stateless.get(),
        ),
        (
            "fairway_packet_icmp_errors_sent_total",
            "counter",
            "ICMP errors of Fairway's own.",
            |s| s.counters.told.get(),
        ),
    ];
    for (name, kind, help, value) in single {
        family(out, name, kind, help);
        for (n, stats) in workers.iter().enumerate() {
            line(out, format_args!("{name}{{worker=\"{n}\"}} {}", value(stats)));
        }
    }
    type OfPort = fn(&PortStats) -> u64;
    let ports: [(&str, &str, OfPort); 8] = [
        ("received_frames", "Frames that came.", |p| p.received.get()),
        ("sent_frames", "Frames that went out.", |p| p.sent.get()),
        ("lost_frames", "Frames for which the kernel had no slot in the ring.", |p| p.lost.get()),
        ("cut_frames", "Frames too large for their slot, or not to be segmented.", |p| p.cut.get()),
        ("segments", "Segments that super-packets were cut into.", |p| p.segments.get()),
        ("whole_frames", "Super-packets that went out whole, one frame each.", |p| p.whole.get()),
        (
            "send_ring_full",
            "Frames for which the ring to the kernel, or its socket, was full.",
            |p| p.full.get(),
        ),
        ("send_failures", "Times that the kernel refused to send.", |p| p.send_failures.get()),
    ];
    for (word, help, value) in ports {
        let name = format!("fairway_port_{word}_total");
        family(out, &name, "counter", help);
        for (n, stats) in workers.iter().enumerate() {
            for (interface, port) in interfaces.iter().zip(&stats.ports) {
                let value = value(port);
                line(
                    out,
                    format_args!("{name}{{worker=\"{n}\",interface=\"{interface}\"}} {value}"),
                );
            }
        }
    }
}
