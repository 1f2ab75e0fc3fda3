use super::*;
use crate::control::memory::BackendMemory;
use crate::control::orders::Since;
use std::path::Path;

use fairway_config::load_text;

const SECOND: u64 = 1000;

fn spec(fields: &str) -> Arc<ServiceSpec> {
    let text = format!(
        "services:\n  - name: web\n    addresses: [192.0.2.1]\n    ports: [{{port: 80}}]\n{fields}"
    );
    let config = load_text(&Path::new("test.yaml").into(), &text).unwrap();
    Arc::clone(config.services.values().next().unwrap())
}

fn backends(list: &str) -> Arc<ServiceSpec> {
    spec(&format!("    backends: [{list}]\n"))
}

fn build(previous: Option<Live>, spec: Arc<ServiceSpec>, ids: &mut Ids) -> Replaced {
    Live::build(ServiceId(0), spec, (previous, None), ids, (2, Tick(0)), |_| None).unwrap()
}

fn admitted(live: &mut Live) -> Vec<String> {
    let service = live.service(None);
    let members = service.backends().filter(|(_, standing)| standing.admits());
    members.map(|(member, _)| member.backend.addr.ip().to_string()).collect()
}

#[test]
fn backends_keep_their_identity_through_changes() {
    let mut ids = Ids::default();
    let first = build(None, backends("10.0.0.2, 10.0.0.1"), &mut ids).live;
    let kept = Arc::clone(&first.backends[1].backend);
    assert_eq!(kept.addr.to_string(), "10.0.0.2:80");
    let _ = kept.try_open(None);
    let Replaced { live, retired, .. } =
        build(Some(first), backends("10.0.0.2, 10.0.0.3"), &mut ids);
    assert!(Arc::ptr_eq(&live.backends[0].backend, &kept), "same object, so same load");
    assert_eq!(retired.len(), 1);
    assert_eq!(retired[0].backend.addr.to_string(), "10.0.0.1:80");
}

#[test]
fn a_pool_that_comes_out_the_same_is_shared() {
    let mut ids = Ids::default();
    let first = build(None, backends("10.0.0.1, 10.0.0.2"), &mut ids).live;
    let pool = Arc::clone(&first.groups[0].pool);
    let other_timeout = "    backends: [10.0.0.1, 10.0.0.2]\n    timeouts: {idle: 5m}\n";
    let second = build(Some(first), spec(other_timeout), &mut ids).live;
    assert!(Arc::ptr_eq(&second.groups[0].pool, &pool), "only a timeout changed");
    let weighted = backends("{address: 10.0.0.1, weight: 2}, 10.0.0.2");
    let third = build(Some(second), weighted, &mut ids).live;
    assert!(!Arc::ptr_eq(&third.groups[0].pool, &pool), "a weight changed");
}

#[test]
fn health_and_drain_change_admission_and_no_table() {
    let mut ids = Ids::default();
    let mut live = build(None, backends("10.0.0.1, 10.0.0.2, 10.0.0.3"), &mut ids).live;
    let pool = Arc::clone(&live.groups[0].pool);
    live.backends[0].down = Some("refused".into());
    live.backends[1].orders.drained = Some(Since { at: Tick(0), until_reload: false });
    assert_eq!(admitted(&mut live), ["10.0.0.3"]);
    assert!(Arc::ptr_eq(&live.service(None).groups[0].pool, &pool));
}

#[test]
fn below_the_panic_threshold_all_are_used_but_the_draining() {
    let mut ids = Ids::default();
    let text = "    backends: [10.0.0.1, 10.0.0.2, 10.0.0.3, 10.0.0.4]\n    panicThreshold: 50%\n";
    let mut live = build(None, spec(text), &mut ids).live;
    for n in 0..2 {
        live.backends[n].down = Some("refused".into());
    }
    assert_eq!(admitted(&mut live).len(), 2, "half is not below half");
    assert!(!live.panic);
    live.backends[2].down = Some("refused".into());
    live.backends[3].orders.drained = Some(Since { at: Tick(0), until_reload: false });
    assert_eq!(admitted(&mut live), ["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
    assert!(live.panic);
}

#[test]
fn ejection_grows_with_repetition_and_ends() {
    let mut ids = Ids::default();
    let text = "    backends: [10.0.0.1, 10.0.0.2]\n    ejection: {failures: 3, baseTime: 10s, maxTime: 25s}\n";
    let mut live = build(None, spec(text), &mut ids).live;
    let id = live.backends[0].backend.id;
    let mut now = Tick(0);
    for want in [10, 20, 25, 25] {
        assert_eq!(live.eject(id, "refused", now), Some(Duration::from_secs(want)));
        assert_eq!(live.eject(id, "refused", now), None, "it is out already");
        assert_eq!(admitted(&mut live), ["10.0.0.2"]);
        now = Tick(now.0 + want * SECOND - 1);
        assert!(live.expire(now).is_empty(), "a moment too early");
        now = Tick(now.0 + 1);
        assert_eq!(live.expire(now).len(), 1);
        assert_eq!(admitted(&mut live).len(), 2);
    }
    now = Tick(now.0 + 26 * SECOND);
    assert_eq!(live.eject(id, "refused", now), Some(Duration::from_secs(10)), "a clean slate");
}

#[test]
fn a_backend_that_moves_to_the_backups_keeps_its_identity() {
    let mut ids = Ids::default();
    let first = build(None, backends("10.0.0.1, 10.0.0.2"), &mut ids).live;
    let moved = Arc::clone(&first.backends[1].backend);
    let text = "    backends: [10.0.0.1]\n    backupBackends: [10.0.0.2]\n";
    let Replaced { live, retired, .. } = build(Some(first), spec(text), &mut ids);
    assert!(Arc::ptr_eq(&live.backends[1].backend, &moved) && retired.is_empty());
}

#[test]
fn new_and_returning_backends_begin_slowly() {
    let mut ids = Ids::default();
    let text = "    backends: [10.0.0.1, 10.0.0.2]\n    slowStart: {window: 64s, from: 25%}\n";
    let mut live = build(None, spec(text), &mut ids).live;
    assert!(!live.is_starting(), "a new service serves with all it has");
    let share = |live: &mut Live| {
        let service = live.service(None);
        let standing: Vec<_> = service.backends().map(|(_, s)| s.share.part()).collect();
        standing[0]
    };
    let id = live.backends[0].backend.id;
    live.eject(id, "refused", Tick(0));
    assert_eq!(live.expire(Tick(10 * SECOND)).len(), 1);
    assert_eq!(share(&mut live), 0.25, "it is back");
    assert!(live.is_starting() && !live.grow(Tick(11 * SECOND)), "still a quarter");
    assert!(live.grow(Tick(42 * SECOND)), "half of the time is over");
    assert_eq!(share(&mut live), 0.5);
    live.backends[1].down = Some("refused".into());
    assert_eq!(share(&mut live), 1.0, "nobody else is there to take the rest");
    live.backends[1].down = None;
    assert!(live.grow(Tick(74 * SECOND)) && !live.is_starting());
    assert_eq!(share(&mut live), 1.0);
}

#[test]
fn a_backup_below_its_primaries_keeps_its_identity() {
    let mut ids = Ids::default();
    let text = "    backends: [10.0.0.5, 10.0.0.9]\n    backupBackends: [10.0.0.1, 10.0.0.7]\n";
    let first = build(None, spec(text), &mut ids).live;
    let ids_of = |live: &Live| live.all().map(|live| live.backend.id).collect::<Vec<_>>();
    let before = ids_of(&first);
    let text = format!("{text}    timeouts: {{idle: 5m}}\n");
    let Replaced { live, retired, rebuilt } = build(Some(first), spec(&text), &mut ids);
    assert_eq!(ids_of(&live), before);
    assert!(retired.is_empty() && !rebuilt);
}

#[test]
fn flows_stay_in_the_zone_while_it_is_well() {
    let mut ids = Ids::default();
    let text = "    backends:\n      - {address: 10.0.0.1, zone: a}\n      - {address: 10.0.0.2, zone: a}\n      \
                - {address: 10.0.0.3, zone: b}\n    trafficDistribution: PreferSameZone\n";
    let mut live = build(None, spec(text), &mut ids).live;
    let shares = |live: &mut Live, zone: Option<&str>| -> Vec<f64> {
        let service = live.service(zone);
        service.backends().map(|(_, s)| (s.share.part() * 100.0).round() / 100.0).collect()
    };
    assert_eq!(shares(&mut live, Some("a")), [1.0, 1.0, 0.0]);
    assert!(
        live.service(Some("a")).groups[0].admission.admits(2),
        "there when the others are full"
    );
    assert_eq!(shares(&mut live, Some("b")), [0.0, 0.0, 1.0]);
    assert_eq!(shares(&mut live, None), [1.0, 1.0, 1.0], "a box that stands nowhere");
    assert_eq!(shares(&mut live, Some("c")), [1.0, 1.0, 1.0], "a zone without backends");
    live.backends[2].agent.percent = Some(30);
    assert!(
        live.service(Some("a")).groups[0].admission.admits(2),
        "a part of the least is not nothing"
    );
    live.backends[2].agent.percent = None;
    live.backends[0].down = Some("refused".into());
    assert_eq!(shares(&mut live, Some("a"))[2], 0.5, "half of ours is missing");
    live.backends[1].down = Some("refused".into());
    assert_eq!(shares(&mut live, Some("a"))[2], 1.0, "all of it");
}

#[test]
fn neither_panic_nor_checks_overrule_the_operator() {
    let mut ids = Ids::default();
    let text = "    backends: [10.0.0.1, 10.0.0.2, 10.0.0.3]\n    panicThreshold: 90%\n";
    let mut live = build(None, spec(text), &mut ids).live;
    let now = Some(Since { at: Tick(0), until_reload: false });
    live.backends[0].orders.ejected = now;
    live.backends[1].down = Some("refused".into());
    assert_eq!(admitted(&mut live), ["10.0.0.2", "10.0.0.3"], "panic brings back what checks say");
    assert!(live.panic);
    live.backends[2].agent.maintenance = true;
    assert_eq!(admitted(&mut live), ["10.0.0.2"], "and no backend that is being worked on");
    live.backends[2].agent.drain = true;
    live.backends[2].agent.percent = Some(0);
    live.backends[2].orders.admitted = now;
    assert_eq!(admitted(&mut live), ["10.0.0.2", "10.0.0.3"], "whatever its agent says");
}

#[test]
fn priorities_serve_one_after_the_other_and_help_by_the_threshold() {
    let mut ids = Ids::default();
    let text = "    backends:\n      - {address: 10.0.0.1, priority: 5}\n      - 10.0.0.2\n      - 10.0.0.3\n      \
                - 10.0.0.4\n      - 10.0.0.5\n    backupBackends: [10.0.0.6]\n    failoverThreshold: 75%\n";
    let mut live = build(None, spec(text), &mut ids).live;
    let order: Vec<_> =
        live.grouped().map(|(n, live)| (n, live.backend.addr.ip().to_string())).collect();
    assert_eq!(order.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [0, 0, 0, 0, 1, 2]);
    assert_eq!(order[4].1, "10.0.0.1");
    let shares = |live: &mut Live| -> Vec<f64> {
        let groups = live.service(None).groups;
        groups.iter().map(|group| (group.share.part() * 100.0).round()).collect()
    };
    assert_eq!(shares(&mut live), [100.0; 3]);
    live.backends[0].down = Some("refused".into());
    assert_eq!(shares(&mut live), [100.0; 3], "three of four are enough");
    live.backends[1].orders.drained = Some(Since { at: Tick(0), until_reload: false });
    assert_eq!(shares(&mut live), [67.0, 100.0, 100.0], "two of the three that are wanted");
    live.backends[4].down = Some("refused".into());
    assert_eq!(shares(&mut live), [67.0, 0.0, 100.0], "the last one takes everything");

    let pools = |live: &Live| -> Vec<Arc<Pool>> {
        live.groups.iter().map(|group| Arc::clone(&group.pool)).collect()
    };
    let before = pools(&live);
    let text = text.replace("      - 10.0.0.5\n", "");
    let Replaced { live, rebuilt, .. } = build(Some(live), spec(&text), &mut ids);
    let after = pools(&live);
    assert!(rebuilt && !Arc::ptr_eq(&before[0], &after[0]));
    assert!(Arc::ptr_eq(&before[1], &after[1]) && Arc::ptr_eq(&before[2], &after[2]));
}

#[test]
fn panic_is_for_groups_that_nobody_can_help() {
    let mut ids = Ids::default();
    let text = "    backends: [10.0.0.1, 10.0.0.2, 10.0.0.3, {address: 10.0.0.4, priority: 1}]\n    \
                backupBackends: [10.0.0.5, 10.0.0.6]\n    panicThreshold: 60%\n";
    let mut live = build(None, spec(text), &mut ids).live;
    let fail = |live: &mut Live, which: &[usize]| {
        for n in 0..6 {
            live.backends[n].down = which.contains(&n).then(|| "refused".into());
        }
        admitted(live)
    };
    assert_eq!(fail(&mut live, &[0, 1, 2]).len(), 3, "the next priority serves, and no dead one");
    assert_eq!(fail(&mut live, &[0, 1, 2, 3]), ["10.0.0.5", "10.0.0.6"], "and then the backups");
    assert!(!live.panic);
    let last = ["10.0.0.5", "10.0.0.6"];
    assert_eq!(fail(&mut live, &[0, 1, 2, 3, 4]), last, "half of the backups is too few");
    assert!(live.panic);
    assert_eq!(fail(&mut live, &[0, 1, 2, 3, 4, 5]).len(), 6, "nobody is well");
}

#[test]
fn lasting_orders_outlive_a_gap_in_what_dns_says() {
    let mut ids = Ids::default();
    let named = |addresses: &str| {
        let spec = spec(&format!("    backends: [web.test, {addresses}]\n"));
        assert!(!spec.named.is_empty());
        spec
    };
    let mut live = build(None, named("10.0.0.1, 10.0.0.2"), &mut ids).live;
    let lasting = Since { at: Tick(0), until_reload: false };
    live.backends[0].orders.ejected = Some(lasting);
    live.backends[1].orders.drained = Some(Since { until_reload: true, ..lasting });
    let mut live = build(Some(live), named("10.0.0.3"), &mut ids).live;
    live.end_absent_orders();
    let live = build(Some(live), named("10.0.0.1, 10.0.0.2"), &mut ids).live;
    assert!(live.backends[0].orders.ejected.is_some());
    assert!(live.backends[1].orders.drained.is_none(), "until the reload that was meanwhile");
    let live = build(Some(live), backends("10.0.0.2"), &mut ids).live;
    let live = build(Some(live), backends("10.0.0.1"), &mut ids).live;
    assert!(live.backends[0].orders.ejected.is_none(), "the document took it out");
}

#[test]
fn what_another_process_knew_holds() {
    let mut ids = Ids::default();
    let live = build(None, backends("10.0.0.1, 10.0.0.2"), &mut ids).live;
    let (id, addr) = (live.backends[0].backend.id, live.backends[0].backend.addr);
    let memory = serde_json::json!({
        "id": 7,
        "counts": {"accepted ": 5, "ends client_closed": 4, "of another version": 3},
        "backends": [{
            "ip": addr.ip(), "port": addr.port(), "slot": 40, "epoch": 3,
            "counts": {"connections ": 2}, "down": "refused", "streak": 2,
            "ejection": {"until": 9000, "cause": "failures", "times": 2, "ended": 10},
            "orders": {"drained": [5, true], "percent": [30, [6, false]]},
        }, {"ip": "10.0.0.9", "port": null, "slot": 41, "epoch": 1}],
    });
    let memory: ServiceMemory = serde_json::from_value(memory).unwrap();
    let mut ids = Ids::default();
    ids.reserve(memory.backends.iter().map(BackendMemory::id));
    let before = (None, Some(&memory));
    let built = Live::build(
        memory.id(),
        backends("10.0.0.1, 10.0.0.2"),
        before,
        &mut ids,
        (2, Tick(0)),
        |_| None,
    );
    let live = built.unwrap().live;
    let (known, new) = (&live.backends[0], &live.backends[1]);
    assert_ne!(known.backend.id, id, "it has the number that it had there");
    assert_eq!((known.backend.id.slot, known.backend.id.epoch.get()), (40, 3));
    assert_eq!(new.backend.id.slot, 42, "nobody else has a number that was known");
    assert_eq!(known.backend.counters.totals().connections, 2);
    assert_eq!((known.ejection.until, known.backend.streak.len()), (Some(Tick(9000)), 2));
    assert_eq!(known.orders.percent.map(|(percent, _)| percent), Some(30));
    assert!(known.standing().draining && known.standing().ejected && !new.standing().draining);
}
