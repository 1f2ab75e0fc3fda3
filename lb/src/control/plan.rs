//! What a configuration would change, before it is applied.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use fairway_config::{BackendSpec, Desired, Priority, ServiceKey, ServiceSpec};
use fairway_core::{Backend, BackendAddr, BackendId, Member, Mode, Pool, Scheduler, TableSize};
use serde::{Deserialize, Serialize};

use super::Live;

/// What happens to one service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Change {
    pub(crate) service: String,
    /// `added`, `removed` or `changed`.
    pub(crate) kind: String,
    /// What differs, in the words of the document.
    pub(crate) differences: Vec<String>,
    /// Share of the table's slots that get another owner, 0 to 1; none where there is no table to
    /// compare. Of a session of datagrams and of a new connection it is the chance to land
    /// elsewhere.
    pub(crate) slots_moved: Option<f64>,
    /// Open connections of backends that go; they drain.
    pub(crate) connections_drained: u64,
}

/// Compares what runs with `desired`; services that stay as they are do not appear. `resolved` puts
/// addresses in the place of names, as far as they are known.
pub(crate) fn plan<'l>(
    live: impl Fn(&ServiceKey) -> Option<&'l Live>,
    resolved: impl Fn(&Arc<ServiceSpec>) -> Arc<ServiceSpec>,
    running: &Desired,
    desired: &Desired,
) -> Vec<Change> {
    let mut changes = BTreeMap::new();
    for (key, spec) in desired {
        let change = match running.get(key) {
            None => Change {
                service: key.to_string(),
                kind: "added".into(),
                differences: vec![format!("{} backends", resolved(spec).backends.len())],
                slots_moved: None,
                connections_drained: 0,
            },
            Some(old) if old.same_meaning(spec) => continue,
            Some(old) => changed(&resolved(old), &resolved(spec), live(key)),
        };
        changes.insert(key, change);
    }
    for key in running.keys().filter(|key| !desired.contains_key(*key)) {
        let open = live(key)
            .map_or(0, |live| live.all().map(|live| u64::from(live.backend.active())).sum());
        let change = Change {
            service: key.to_string(),
            kind: "removed".into(),
            differences: Vec::new(),
            slots_moved: None,
            connections_drained: open,
        };
        changes.insert(key, change);
    }
    changes.into_values().collect()
}

fn changed(old: &ServiceSpec, new: &ServiceSpec, live: Option<&Live>) -> Change {
    let mut differences = Vec::new();
    let mut differs = |what: &str, same: bool| {
        if !same {
            differences.push(what.to_owned());
        }
    };
    let (before, after) = (&old.policy, &new.policy);
    if before.mode != after.mode {
        let cuts = match before.mode == Mode::Proxy || after.mode == Mode::Proxy {
            true => ": open connections are cut",
            false => "",
        };
        differs(&format!("mode {} → {}{cuts}", before.mode, after.mode), false);
    }
    differs(
        &format!("addresses or ports {} → {}", listed(old), listed(new)),
        old.frontends == new.frontends,
    );
    differs("scheduler", before.scheduler == after.scheduler);
    differs("hash", before.hash == after.hash);
    differs("sessionAffinity", before.affinity == after.affinity);
    differs("retry", before.retry == after.retry);
    differs("timeouts", before.timeouts == after.timeouts);
    differs("source", before.source == after.source);
    differs("agentCheck", old.agent == new.agent);
    differs("trafficDistribution", old.prefer_same_zone == new.prefer_same_zone);
    differs("proxyProtocol", before.proxy_protocol == after.proxy_protocol);
    differs("mssClamp", before.mss_clamp == after.mss_clamp);
    differs("echo", before.echo_while_healthy == after.echo_while_healthy);
    differs("udp", before.udp == after.udp);
    differs("limits", before.limits == after.limits);
    differs("source ranges", (&before.allow, &before.deny) == (&after.allow, &after.deny));
    differs("ejection", (before.passive, old.outliers) == (after.passive, new.outliers));
    differs("healthCheck", old.check == new.check);
    differs("panicThreshold", old.panic_percent == new.panic_percent);
    differs("failoverThreshold", old.failover_percent == new.failover_percent);
    differs("slowStart", old.slow_start == new.slow_start);
    differs("drainTimeout", before.drain_timeout == after.drain_timeout);
    if let (Some(before), Some(after)) = (table_slots(old), table_slots(new))
        && before != after
    {
        differences.push(format!(
            "table {before} → {after} slots, so that most flows move; `maglev.tableSize` pins it"
        ));
    }
    backends(&old.backends, &new.backends, &mut differences);
    for named in new.named.iter().filter(|named| !old.named.contains(named)) {
        differences.push(format!("backends of {} added or changed", named.query));
    }
    for named in &old.named {
        if !new.named.iter().any(|other| other.query == named.query) {
            differences.push(format!("backends of {} removed", named.query));
        }
    }
    let stays = |addr: BackendAddr| new.backends.iter().any(|spec| spec.addr == addr);
    let gone = live.into_iter().flat_map(Live::all).filter(|live| !stays(live.backend.addr));
    Change {
        service: new.key.to_string(),
        kind: "changed".into(),
        differences,
        slots_moved: slots_moved(old, new),
        connections_drained: gone.map(|live| u64::from(live.backend.active())).sum(),
    }
}

fn listed(spec: &ServiceSpec) -> String {
    let one = ToString::to_string;
    spec.frontends.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// The backends that serve while all are well: those of the first priority.
fn first(spec: &ServiceSpec) -> &[BackendSpec] {
    spec.backends.chunk_by(|a, b| a.priority == b.priority).next().unwrap_or_default()
}

/// Slots of the table of a hashing scheduler.
fn table_slots(spec: &ServiceSpec) -> Option<u32> {
    let Scheduler::Maglev { table_size, .. } = spec.policy.scheduler else { return None };
    let size = table_size.unwrap_or_else(|| TableSize::for_backends(first(spec).len()));
    Some(size.get())
}

fn backends(old: &[BackendSpec], new: &[BackendSpec], out: &mut Vec<String>) {
    let word = |spec: &BackendSpec| match spec.priority {
        Priority::Given(_) => "backend",
        Priority::Backup(_) => "backup",
    };
    let by_addr = |specs: &'_ [BackendSpec]| -> HashMap<BackendAddr, BackendSpec> {
        specs.iter().map(|spec| (spec.addr, spec.clone())).collect()
    };
    let (before, after) = (by_addr(old), by_addr(new));
    for spec in new {
        let what = word(spec);
        let Some(old) = before.get(&spec.addr) else {
            out.push(format!("{what} {} added", spec.addr));
            continue;
        };
        if old.weight != spec.weight {
            let (old, new) = (old.weight.get(), spec.weight.get());
            out.push(format!("{what} {} weight {old} → {new}", spec.addr));
        }
        if old.priority != spec.priority {
            out.push(format!("{what} {} has another priority", spec.addr));
        }
        if (&old.name, &old.zone) != (&spec.name, &spec.zone) {
            out.push(format!("{what} {} has another name or zone", spec.addr));
        }
    }
    for spec in old.iter().filter(|spec| !after.contains_key(&spec.addr)) {
        out.push(format!("{} {} removed", word(spec), spec.addr));
    }
}

/// Share of hashes that find another owner: slot by slot where the tables have one size, else by
/// the owners that evenly spread hashes meet in both.
fn slots_moved(old: &ServiceSpec, new: &ServiceSpec) -> Option<f64> {
    let hashing = |spec: &ServiceSpec| matches!(spec.policy.scheduler, Scheduler::Maglev { .. });
    if !hashing(old) || !hashing(new) {
        return None;
    }
    let (before, after) = (pool(old)?, pool(new)?);
    let (before_table, after_table) = (before.table()?, after.table()?);
    let owner = |pool: &Pool, hash: u64| {
        let owner = pool.table().and_then(|table| table.owner(hash))?;
        Some(pool.members()[usize::from(owner)].backend.addr)
    };
    let sizes = (u64::from(before_table.size()), u64::from(after_table.size()));
    let hashes = if sizes.0 == sizes.1 { sizes.0 } else { sizes.0 * sizes.1.min(97) };
    let moved = (0..hashes).filter(|n| owner(&before, *n) != owner(&after, *n)).count();
    Some(moved as f64 / hashes as f64)
}

fn pool(spec: &ServiceSpec) -> Option<Pool> {
    let members = first(spec).iter().enumerate().map(|(n, backend)| Member {
        backend: Backend::new(
            BackendId { slot: n as u32, epoch: std::num::NonZeroU32::MIN },
            backend.addr,
            0,
        ),
        weight: backend.weight,
    });
    // What `config` has let through can be built.
    Pool::build(members.collect(), &spec.policy.scheduler).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use fairway_config::load_text;
    use std::path::Path;

    fn desired(services: &str) -> Desired {
        let text = format!("services:\n{services}");
        load_text(&Path::new("plan.yaml").into(), &text).unwrap().services
    }

    fn service(name: &str, port: u16, backends: &str, fields: &str) -> String {
        format!(
            "  - name: {name}\n    addresses: [192.0.2.1]\n    ports: [{{port: {port}}}]\n    \
             backends: [{backends}]\n{fields}"
        )
    }

    #[test]
    fn every_kind_of_change_is_named() {
        let old = desired(
            &(service("same", 1, "10.0.0.1", "")
                + &service("gone", 2, "10.0.0.1", "")
                + &service("web", 3, "10.0.0.1, 10.0.0.2, 10.0.0.3", "")),
        );
        let timeouts = "    timeouts: {idle: 5m}\n";
        let new = desired(
            &(service("same", 1, "10.0.0.1", "")
                + &service("fresh", 2, "10.0.0.1", "")
                + &service(
                    "web",
                    3,
                    "10.0.0.1, {address: 10.0.0.2, weight: 2}, 10.0.0.4",
                    timeouts,
                )),
        );
        let changes = plan(|_| None, Arc::clone, &old, &new);
        let kinds: Vec<_> = changes.iter().map(|c| (&*c.service, &*c.kind)).collect();
        assert_eq!(kinds, [("fresh/2", "added"), ("gone/2", "removed"), ("web/3", "changed")]);
        assert_eq!(
            changes[2].differences,
            [
                "timeouts",
                "backend 10.0.0.2:3 weight 1 → 2",
                "backend 10.0.0.4:3 added",
                "backend 10.0.0.3:3 removed"
            ]
        );
        assert!(plan(|_| None, Arc::clone, &old, &old).is_empty());
    }

    #[test]
    fn moved_slots_are_counted_in_tables_of_any_size() {
        let moved = |before: &str, after: &str| {
            let (old, new) =
                (desired(&service("web", 1, before, "")), desired(&service("web", 1, after, "")));
            plan(|_| None, Arc::clone, &old, &new)[0].slots_moved
        };
        let three = "10.0.0.1, 10.0.0.2, 10.0.0.3";
        let share = moved(&format!("{three}, 10.0.0.4"), three).unwrap();
        assert!((0.24..0.30).contains(&share), "a quarter, and a little for rebuilding: {share}");
        let share = moved(three, "10.0.0.1, 10.0.0.2").unwrap();
        assert!((0.6..0.72).contains(&share), "a smaller table is another one: {share}");
        let all = moved("10.0.0.1", "10.0.0.2").unwrap();
        assert!((all - 1.0).abs() < 1e-9);
        let sized = |size: u32| {
            let fields = format!("    maglev: {{tableSize: {size}}}\n");
            desired(&service("web", 1, three, &fields))
        };
        let share = plan(|_| None, Arc::clone, &sized(251), &sized(4093))[0].slots_moved.unwrap();
        assert!((0.6..0.72).contains(&share), "two of three hashes: {share}");
        let fields = "    scheduler: random\n";
        let random = desired(&service("web", 1, three, fields));
        assert_eq!(plan(|_| None, Arc::clone, &sized(251), &random)[0].slots_moved, None);
    }
}
