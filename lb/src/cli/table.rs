//! Tables for people: columns as wide as they must be, numbers to the right.

use std::fmt::Write;
use std::time::{Duration, UNIX_EPOCH};

use super::status_line;
use crate::admin::explain::Explanation;
use crate::admin::views::{
    BackendView, BeforeView, ConnectionView, FlowView, PlanView, ServiceView, Status, TalkerView,
};
use crate::cloud::{CloudServiceView, CloudView, PoolView};
use crate::control::Applied;

/// Lines up `rows` under `head`; columns whose head ends in `#` are numbers.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let titles: Vec<&str> = head.iter().map(|title| title.trim_end_matches('#')).collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([titles[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut out = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for ((cell, width), title) in cells.zip(&widths).zip(head) {
            // Writing into a String cannot fail.
            let _ = if title.ends_with('#') {
                write!(text, "{cell:>width$}  ")
            } else {
                write!(text, "{cell:<width$}  ")
            };
        }
        out.push_str(text.trim_end());
        out.push('\n');
    };
    line(&mut titles.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
    out
}

/// The cluster's Services, and the pools of their addresses.
pub(crate) fn cluster(view: &CloudView) -> String {
    let dash = |text: String| if text.is_empty() { "-".into() } else { text };
    let service = |view: &CloudServiceView| {
        let addresses: Vec<String> = view.addresses.iter().map(ToString::to_string).collect();
        vec![
            view.service.clone(),
            dash(addresses.join(" ")),
            view.pool.as_deref().unwrap_or("-").into(),
            match view.findings.as_slice() {
                [] => "-".into(),
                [only] => only.clone(),
                [first, rest @ ..] => format!("{first} (and {} more)", rest.len()),
            },
        ]
    };
    let services: Vec<_> = view.services.iter().map(service).collect();
    let mut out = table(&["service", "addresses", "pool", "trouble"], &services);
    let pool =
        |pool: &PoolView| vec![pool.name.to_string(), pool.assigned.to_string(), pool.size.clone()];
    let pools: Vec<_> = view.pools.iter().map(pool).collect();
    if !pools.is_empty() {
        out.push('\n');
        out += &table(&["pool", "assigned#", "addresses#"], &pools);
    }
    // What has no row, or not enough room there.
    let in_a_row = |trouble: &&String| {
        let of =
            |view: &CloudServiceView| view.findings.first().is_some_and(|f| trouble.ends_with(f));
        view.services.iter().any(of)
    };
    let others: Vec<&String> = view.troubles.iter().filter(|trouble| !in_a_row(trouble)).collect();
    if !others.is_empty() {
        out.push('\n');
        others.iter().for_each(|trouble| out += &format!("{trouble}\n"));
    }
    out
}

/// A number of bytes in the unit that fits.
pub(crate) fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", units[unit]) }
}

pub(crate) fn status(status: &Status) -> String {
    let mut out = String::new();
    let mut row = |name: &str, value: String| {
        // Writing into a String cannot fail.
        let _ = writeln!(out, "{name:<13} {value}");
    };
    let uptime = humantime::format_duration(Duration::from_secs(status.uptime_seconds));
    row(
        "fairway",
        format!("{}, {}, pid {}, up {uptime}", status.version, status_line(status), status.pid),
    );
    let in_use = if status.generation_in_use < status.generation {
        format!(" (a worker still uses {})", status.generation_in_use)
    } else {
        String::new()
    };
    row("snapshot", format!("{}{in_use}", status.generation));
    row("config", status.config.path.clone());
    for BeforeView { pid, connections } in &status.before {
        row("before", format!("process {pid} has {connections} connections that go on there"));
    }
    row("services", status.services.to_string());
    if let Some(cluster) = &status.cluster {
        let of = |(kind, count): (&String, &usize)| format!("{count} of {kind}");
        let objects: Vec<String> = cluster.objects.iter().map(of).collect();
        row("cluster", format!("{} Services are ours; {}", cluster.services, objects.join(", ")));
    }
    row("backends", format!("{}, {} down", status.backends, status.backends_down));
    row("checks", status.checks.to_string());
    let budgets = &status.budgets;
    row("connections", format!("{} of {}", status.connections, budgets.most_connections));
    row("udp sessions", format!("{} of {}", status.udp_sessions, budgets.for_udp));
    row(
        "listeners",
        format!("{} descriptors, of sockets and for the next process", budgets.listeners_open),
    );
    row(
        "descriptors",
        format!(
            "at most {}: {} for control, {} for listeners, {} for pipes, {} for UDP sessions, {} \
             for connections (2 each, 3 while connecting)",
            budgets.descriptors,
            budgets.for_control,
            budgets.for_listeners,
            budgets.for_pipes,
            budgets.for_udp,
            budgets.for_connections
        ),
    );
    row("io_uring", status.uring_features.join(", "));
    row(
        "series",
        if status.per_backend_metrics { "for each backend" } else { "backends summed" }.into(),
    );
    let workers: Vec<_> = status
        .workers
        .iter()
        .map(|worker| {
            vec![
                worker.worker.to_string(),
                worker.connections.to_string(),
                worker.listeners.to_string(),
                if worker.paused { "paused" } else { "yes" }.into(),
                worker.accept_pauses.to_string(),
                worker.buffers_used.to_string(),
                worker.starved_receives.to_string(),
            ]
        })
        .collect();
    let head =
        ["worker", "connections#", "listeners#", "accepts", "pauses#", "buffers used#", "starved#"];
    out.push('\n');
    out += &table(&head, &workers);
    let packets = status.workers.iter().filter_map(|w| Some((w.worker, w.packets.as_ref()?)));
    let packets: Vec<_> = packets
        .map(|(worker, packets)| {
            let dropped: u64 = packets.dropped.values().sum();
            let counts = [packets.flows, packets.sent, dropped, packets.stateless, packets.lost];
            let counts = counts.iter().map(ToString::to_string);
            std::iter::once(worker.to_string()).chain(counts).collect()
        })
        .collect();
    if !packets.is_empty() {
        let head = ["worker", "flows#", "packets sent#", "dropped#", "stateless#", "lost#"];
        out.push('\n');
        out += &table(&head, &packets);
    }
    let interfaces = status.interfaces.iter().map(|view| {
        let state = match (view.carries, &view.trouble) {
            (true, None) => "carries packets",
            (_, Some(trouble)) => trouble,
            (false, None) => "down",
        };
        let mtu = view.mtu.map_or_else(|| "-".into(), |mtu| mtu.to_string());
        vec![view.name.clone(), mtu, state.into()]
    });
    let interfaces: Vec<_> = interfaces.collect();
    if !interfaces.is_empty() {
        out.push('\n');
        out += &table(&["interface", "mtu#", "state"], &interfaces);
    }
    if !status.config.problems.is_empty() {
        out += "\nThe newest configuration was not applied:\n";
        status.config.problems.iter().for_each(|problem| out = format!("{out}  {problem}\n"));
    }
    if !status.orders.is_empty() {
        out += "\nDifferent from the file, by order of the operator:\n";
        status.orders.iter().for_each(|order| out = format!("{out}  {order}\n"));
    }
    if !status.troubles.is_empty() {
        out += "\nTroubles:\n";
        status.troubles.iter().for_each(|trouble| out = format!("{out}  {trouble}\n"));
    }
    out
}

pub(crate) fn services(views: &[ServiceView]) -> String {
    let rows: Vec<_> = views
        .iter()
        .map(|view| {
            let retries: u64 = view.retries.values().sum();
            let trouble = if view.panic {
                "panic mode".into()
            } else {
                view.troubles.first().cloned().unwrap_or_default()
            };
            vec![
                view.name.clone(),
                view.protocol.clone(),
                view.addresses.join(" "),
                format!("{}/{}", view.backends_up, view.backends),
                view.active.to_string(),
                view.connections.to_string(),
                retries.to_string(),
                bytes(view.received_bytes),
                bytes(view.sent_bytes),
                trouble,
            ]
        })
        .collect();
    let head = [
        "service",
        "protocol",
        "addresses",
        "up#",
        "active#",
        "connections#",
        "retries#",
        "received#",
        "sent#",
        "trouble",
    ];
    table(&head, &rows)
}

pub(crate) fn backends(views: &[BackendView]) -> String {
    let rows: Vec<_> = views
        .iter()
        .map(|view| {
            let failures: u64 = view.failures.values().sum();
            vec![
                view.service.clone(),
                view.address.clone(),
                view.name.clone().unwrap_or_else(|| "-".into()),
                format!("{}{}", view.state, backup(view.group)),
                view.weight.to_string(),
                view.active.to_string(),
                view.connections.to_string(),
                failures.to_string(),
                bytes(view.received_bytes),
                bytes(view.sent_bytes),
                view.cause.clone().unwrap_or_default(),
            ]
        })
        .collect();
    let head = [
        "service",
        "backend",
        "name",
        "state",
        "weight#",
        "active#",
        "connections#",
        "failures#",
        "received#",
        "sent#",
        "cause",
    ];
    table(&head, &rows)
}

/// Whole seconds, for people.
fn seconds(seconds: f64) -> String {
    humantime::format_duration(Duration::from_secs(seconds as u64)).to_string()
}

pub(crate) fn flows(views: &[FlowView]) -> String {
    let rows: Vec<_> = views
        .iter()
        .map(|view| {
            vec![
                view.service.clone().unwrap_or_else(|| "-".into()),
                view.protocol.clone(),
                view.client.clone(),
                view.vip.clone(),
                view.backend.clone(),
                view.local.clone().unwrap_or_else(|| "-".into()),
                view.state.clone(),
                bytes(view.bytes),
                seconds(view.age_seconds),
                seconds(view.expires_seconds),
            ]
        })
        .collect();
    let head = [
        "service",
        "protocol",
        "client",
        "vip",
        "backend",
        "our side",
        "state",
        "bytes#",
        "age#",
        "expires in#",
    ];
    table(&head, &rows)
}

pub(crate) fn connections(views: &[ConnectionView]) -> String {
    let rows: Vec<_> = views
        .iter()
        .map(|view| {
            vec![
                view.service.clone().unwrap_or_else(|| "-".into()),
                view.protocol.clone(),
                view.client.clone(),
                view.vip.clone(),
                view.backend.clone().unwrap_or_else(|| "-".into()),
                view.attempts.to_string(),
                bytes(view.received_bytes),
                bytes(view.sent_bytes),
                seconds(view.age_seconds),
                seconds(view.idle_seconds),
            ]
        })
        .collect();
    let head = [
        "service",
        "protocol",
        "client",
        "vip",
        "backend",
        "tried#",
        "received#",
        "sent#",
        "age#",
        "idle#",
    ];
    table(&head, &rows)
}

pub(crate) fn talkers(views: &[&TalkerView]) -> String {
    let exact = |count: Option<u64>, error: u64, show: &dyn Fn(u64) -> String| match count {
        None => "-".into(),
        Some(count) if error == 0 => show(count),
        Some(count) => format!("{} to {}", show(count.saturating_sub(error)), show(count)),
    };
    let rows: Vec<_> = views
        .iter()
        .map(|view| {
            vec![
                view.service.clone(),
                view.client.clone(),
                exact(view.connections, view.connections_error, &|n| n.to_string()),
                exact(view.bytes, view.bytes_error, &bytes),
            ]
        })
        .collect();
    table(&["service", "client", "connections#", "bytes#"], &rows)
}

pub(crate) fn history(kept: &[Applied]) -> String {
    let rows: Vec<_> = kept
        .iter()
        .map(|applied| {
            let at = UNIX_EPOCH + Duration::from_secs(applied.applied_at);
            vec![
                format!("{}{}", applied.number, if applied.current { " *" } else { "" }),
                humantime::format_rfc3339_seconds(at).to_string(),
                applied.services.to_string(),
                applied.changed.to_string(),
                applied.origin.clone(),
            ]
        })
        .collect();
    table(&["configuration", "applied", "services#", "changed#", "from"], &rows)
}

pub(crate) fn plan(plan: &PlanView) -> String {
    let mut out = String::new();
    for change in &plan.changes {
        let mark = match &*change.kind {
            "added" => '+',
            "removed" => '-',
            _ => '~',
        };
        // Writing into a String cannot fail.
        let _ = writeln!(out, "{mark} {}", change.service);
        for difference in &change.differences {
            let _ = writeln!(out, "    {difference}");
        }
        if let Some(share) = change.slots_moved.filter(|share| *share > 0.0) {
            let _ = writeln!(out, "    {:.1}% of new flows would go elsewhere", share * 100.0);
        }
        if change.connections_drained > 0 {
            let _ =
                writeln!(out, "    {} open connections would drain", change.connections_drained);
        }
    }
    plan.announcements.iter().for_each(|words| _ = writeln!(out, "~ {words}"));
    if !plan.restart.is_empty() {
        let _ = writeln!(out, "! takes `fairway upgrade`: {}", plan.restart.join(", "));
    }
    if out.is_empty() {
        out += "nothing would change\n";
    }
    out
}

pub(crate) fn explanation(explanation: &Explanation) -> String {
    let mut out = String::new();
    let mut row = |name: &str, value: String| {
        // Writing into a String cannot fail.
        let _ = writeln!(out, "{name:<11} {value}");
    };
    row("service", format!("{}, snapshot {}", explanation.service, explanation.generation));
    let verdict = if explanation.allowed { "let in" } else { "refused" };
    row("client", format!("{verdict}: {}", explanation.lists));
    let slots = match explanation.table_slots {
        0 => String::new(),
        slots => format!(", {slots} slots"),
    };
    row("scheduler", format!("{}{slots}, hash {}", explanation.scheduler, explanation.hash));
    if let Some(backend) = &explanation.affinity {
        row("affinity", format!("this client goes to {backend} while that takes flows; else:"));
    }
    for slot in &explanation.slots {
        let taken = if slot.taken { " takes it" } else { " does not" };
        row("slot", format!("{} of {}{taken}", slot.slot, slot.backend));
    }
    if let Some(note) = &explanation.note {
        row("note", note.clone());
    }
    let rows = explanation.candidates.iter().enumerate().map(|(n, candidate)| {
        let backup = backup(candidate.group);
        vec![
            (n + 1).to_string(),
            candidate.backend.clone(),
            format!("{}{backup}", candidate.state),
            candidate.active.to_string(),
            candidate.why.clone().unwrap_or_default(),
        ]
    });
    let passed = explanation.passed_over.iter().map(|passed| {
        let why = passed.why.clone().unwrap_or_default();
        vec!["-".into(), passed.backend.clone(), passed.state.clone(), String::new(), why]
    });
    let rows: Vec<_> = rows.chain(passed).collect();
    out.push('\n');
    out + &table(&["try#", "backend", "state", "active#", "why"], &rows)
}

/// How a backend is marked that does not serve first.
fn backup(group: usize) -> String {
    match group {
        0 => String::new(),
        1 => " (backup)".into(),
        n => format!(" (backup {n})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [vec!["web".into(), "5".into()], vec!["a-longer-name".into(), "1000".into()]];
        assert_eq!(
            table(&["service", "active#"], &rows),
            "service        active\nweb                 5\na-longer-name    1000\n"
        );
    }

    #[test]
    fn bytes_take_the_unit_that_fits() {
        for (count, want) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB")]
        {
            assert_eq!(bytes(count), want);
        }
    }
}
