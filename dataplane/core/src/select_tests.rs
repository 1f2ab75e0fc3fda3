use super::*;
use crate::{PassiveEjection, Policy, Protocol, ServiceId, ServiceState, Standing, Weight};
use alloc::collections::BTreeMap;
use core::num::{NonZeroU16, NonZeroU32};
use core::time::Duration;

use proptest::prelude::*;

const MAGLEV: Scheduler = Scheduler::Maglev { table_size: None, bounded_load_percent: None };
const SECOND: Duration = Duration::from_secs(1);

pub(crate) fn policy(scheduler: Scheduler) -> Policy {
    Policy {
        scheduler,
        passive: PassiveEjection { failures: 0, base: SECOND, max: SECOND },
        ..Policy::default()
    }
}

/// Backends of these weights, in slots and at addresses from number `from` of 10.0.0.0 on.
fn group(scheduler: Scheduler, from: usize, weights: &[u32]) -> Group {
    let members = weights.iter().zip(from..).map(|(weight, n)| Member {
        backend: Backend::new(
            BackendId { slot: n as u32, epoch: NonZeroU32::MIN },
            crate::BackendAddr::new([10, 0, (n >> 8) as u8, n as u8].into(), NonZeroU16::new(80)),
            1,
        ),
        weight: Weight::new(*weight).unwrap(),
    });
    let pool = Pool::build(members.collect(), &scheduler).unwrap();
    Group::new(Arc::new(pool), |_| Standing::GOOD)
}

/// A service over 10.0.0.0, 10.0.0.1, … with these weights.
pub(crate) fn service(scheduler: Scheduler, weights: &[u32]) -> Service {
    Service {
        id: ServiceId(0),
        name: "web/http".into(),
        protocol: Protocol::Tcp,
        app_protocol: None,
        policy: Arc::new(policy(scheduler)),
        groups: [group(scheduler, 0, weights)].into(),
        previous: None,
        state: ServiceState::new(1),
    }
}

fn fail(service: &mut Service, failed: &[u32]) {
    service.groups[0].admission = service.groups[0].pool.admission(|backend| Standing {
        failed: failed.contains(&backend.id.slot),
        ..Standing::GOOD
    });
}

/// The candidates of the flow at `start`, in order, as retries would meet them.
fn candidates(service: &Service, start: u64) -> Vec<u32> {
    let (mut tried, mut order) = (Tried::default(), Vec::new());
    while let Ok(pick) = service.select(start, &tried, 0) {
        pick.backend.close();
        assert!(!tried.contains(pick.backend.id), "offered twice");
        tried.insert(pick.backend.id);
        order.push(pick.backend.id.slot);
    }
    order
}

const EVERY: [Scheduler; 8] = [
    MAGLEV,
    Scheduler::Maglev { table_size: None, bounded_load_percent: Some(125) },
    Scheduler::RoundRobin,
    Scheduler::Random,
    Scheduler::PowerOfTwo,
    Scheduler::LeastConnections,
    Scheduler::ShortestExpectedDelay,
    Scheduler::NeverQueue,
];

#[test]
fn every_scheduler_offers_every_backend_once_and_no_other() {
    for scheduler in EVERY {
        let mut service = service(scheduler, &[1; 40]);
        fail(&mut service, &[3, 17]);
        for start in [0, 1, 77, u64::MAX] {
            let mut offered = candidates(&service, start);
            assert_eq!(offered, candidates(&service, start), "{scheduler:?}: not deterministic");
            offered.sort_unstable();
            let want: Vec<_> = (0..40).filter(|n| ![3, 17].contains(n)).collect();
            assert_eq!(offered, want, "{scheduler:?} from {start}");
        }
    }
}

#[test]
fn nobody_to_select_is_a_state() {
    for scheduler in EVERY {
        let empty = service(scheduler, &[]);
        assert_eq!(
            empty.select(1, &Tried::NONE, 0).unwrap_err(),
            EndReason::NoBackend,
            "{scheduler:?}"
        );
        let mut down = service(scheduler, &[1, 1]);
        fail(&mut down, &[0, 1]);
        assert_eq!(
            down.select(1, &Tried::NONE, 0).unwrap_err(),
            EndReason::NoBackend,
            "{scheduler:?}"
        );
    }
}

/// Shares of `flows` new flows that all stay open.
fn shares(service: &Service, flows: u64) -> BTreeMap<u32, u32> {
    let mut shares = BTreeMap::new();
    for n in 0..flows {
        assert!(service.state.try_open(None));
        let start = service.start(mixed(n), mixed(!n), 0);
        let pick = service.select(start, &Tried::NONE, 0).unwrap();
        *shares.entry(pick.backend.id.slot).or_default() += 1;
    }
    shares
}

#[test]
fn weights_are_shares_under_every_scheduler() {
    for (scheduler, tolerance) in [
        // Of who goes by chance, three standard deviations of the least share, and a turn of the table.
        (MAGLEV, 0.032),
        (Scheduler::RoundRobin, 0.001),
        (Scheduler::Random, 0.032),
        (Scheduler::LeastConnections, 0.001),
        (Scheduler::ShortestExpectedDelay, 0.001),
        (Scheduler::NeverQueue, 0.001),
    ] {
        let shares = shares(&service(scheduler, &[1, 2, 5]), 80_000);
        for (backend, weight) in [(0, 1.0), (1, 2.0), (2, 5.0)] {
            let share = f64::from(shares[&backend]) / (10_000.0 * weight);
            assert!((share - 1.0).abs() <= tolerance, "{scheduler:?}: {shares:?}");
        }
    }
}

#[test]
fn two_choices_stay_closer_than_one() {
    let spread = |scheduler| {
        let shares = shares(&service(scheduler, &[1; 20]), 2000);
        shares.values().max().unwrap() - shares.values().min().unwrap()
    };
    assert!(spread(Scheduler::PowerOfTwo) <= 8, "{}", spread(Scheduler::PowerOfTwo));
    assert!(spread(Scheduler::PowerOfTwo) < spread(Scheduler::Random));
}

#[test]
fn round_robin_shares_the_turns_of_a_failed_backend() {
    let mut service = service(Scheduler::RoundRobin, &[1; 4]);
    fail(&mut service, &[1]);
    let shares = shares(&service, 3000);
    assert_eq!(shares.into_iter().collect::<Vec<_>>(), [(0, 1000), (2, 1000), (3, 1000)]);
}

#[test]
fn never_queue_takes_an_idle_one_first() {
    let service = service(Scheduler::NeverQueue, &[1, 100]);
    let pick = |start| service.select(start, &Tried::NONE, 0).unwrap().backend.id.slot;
    let mut first = [pick(0), pick(0)];
    first.sort_unstable();
    assert_eq!(first, [0, 1], "both were idle");
    assert_eq!(pick(0), 1, "then the one with the shorter expected delay");
}

#[test]
fn limits_pass_a_flow_on_and_then_refuse() {
    for scheduler in EVERY {
        let mut service = service(scheduler, &[1, 1]);
        let mut policy = policy(scheduler);
        policy.limits.backend_connections = Some(2);
        service.policy = Arc::new(policy);
        for _ in 0..4 {
            assert!(service.select(5, &Tried::NONE, 0).is_ok(), "{scheduler:?}");
        }
        assert_eq!(
            service.select(5, &Tried::NONE, 0).unwrap_err(),
            EndReason::Limited,
            "{scheduler:?}"
        );
        service.groups[0].pool.members()[1].backend.close();
        assert_eq!(service.select(5, &Tried::NONE, 0).unwrap().backend.id.slot, 1, "{scheduler:?}");
    }
}

#[test]
fn bounded_load_bounds() {
    let percent = 125;
    let scheduler = Scheduler::Maglev { table_size: None, bounded_load_percent: Some(percent) };
    let service = service(scheduler, &[1; 10]);
    for n in 0..1000 {
        assert!(service.state.try_open(None));
        // Four clients make all the load: plain hashing would use four backends.
        let _ = service.select(mixed(n % 4), &Tried::NONE, 0).unwrap();
    }
    for member in service.groups[0].pool.members() {
        assert!(member.backend.active() <= 125, "{}", member.backend.active());
    }
}

/// Two backends of 10.0.0.0, and behind them as many groups more, of three each.
fn grouped(further: usize) -> Service {
    let mut service = service(MAGLEV, &[1, 1]);
    let others = (1..=further).map(|n| group(MAGLEV, 10 * n, &[1, 1, 1]));
    service.groups = service.groups.iter().cloned().chain(others).collect();
    service
}

fn group_of(service: &Service, start: u64) -> usize {
    let pick = service.select(start, &Tried::NONE, 0).unwrap();
    pick.backend.close();
    pick.group
}

#[test]
fn a_group_serves_when_those_before_it_have_nobody() {
    let mut service = grouped(2);
    assert_eq!(group_of(&service, 9), 0);
    let first = service.groups[0].pool.members()[0].backend.id;
    fail(&mut service, &[0, 1]);
    assert_eq!(group_of(&service, 9), 1);
    assert!(service.select_known(first).is_none(), "a failed backend keeps no affinity");
    let backup = Arc::clone(&service.groups[1].pool.members()[0].backend);
    assert!(service.keeps(backup.id, backup.addr), "while it is needed");
    let nobody = |group: &Group| {
        let failed = Standing { failed: true, ..Standing::GOOD };
        Group::new(Arc::clone(&group.pool), |_| failed)
    };
    service.groups[1] = nobody(&service.groups[1]);
    assert_eq!(group_of(&service, 9), 2);
    service.groups[2] = nobody(&service.groups[2]);
    assert_eq!(service.select(9, &Tried::NONE, 0).unwrap_err(), EndReason::NoBackend);
}

#[test]
fn a_group_leaves_to_the_next_what_is_above_its_share() {
    let mut service = grouped(1);
    let mut at = |part: f64| -> Vec<usize> {
        service.groups[0].share = Share::of(part);
        (0..10_000).map(|n| group_of(&service, mixed(n))).collect()
    };
    let (all, most, half) = (at(1.0), at(0.8), at(0.5));
    let left = |groups: &[usize]| groups.iter().sum::<usize>();
    assert_eq!(left(&all), 0);
    assert!((1800..2200).contains(&left(&most)), "{}", left(&most));
    assert!((4800..5200).contains(&left(&half)), "{}", left(&half));
    assert!(most.iter().zip(&half).all(|(a, b)| a <= b), "a flow came back as the share shrank");
    let backup = Arc::clone(&service.groups[1].pool.members()[0].backend);
    assert!(service.keeps(backup.id, backup.addr), "the others are not whole");
    // Nobody is there for the rest: the first group takes it all the same.
    let failed = Standing { failed: true, ..Standing::GOOD };
    service.groups[1] = Group::new(Arc::clone(&service.groups[1].pool), |_| failed);
    assert!((0..1000).all(|n| group_of(&service, mixed(n)) == 0));
}

#[test]
fn ejected_backends_are_a_last_resort() {
    for scheduler in EVERY {
        let mut service = service(scheduler, &[1; 4]);
        service.groups[0].admission = service.groups[0].pool.admission(|backend| Standing {
            failed: backend.id.slot == 0,
            ejected: backend.id.slot < 3,
            ..Standing::GOOD
        });
        let mut offered = candidates(&service, 9);
        assert_eq!(offered.remove(0), 3, "{scheduler:?}: the good one first");
        offered.sort_unstable();
        assert_eq!(offered, [1, 2], "{scheduler:?}: then the ejected, never the failed");
    }
}

proptest! {
    /// A failed check moves the flows of that backend and no other; a retry goes where failover
    /// goes; and they come back to it alone.
    #[test]
    fn only_a_failed_backends_flows_move(
        backends in 2u32..60,
        gone in 0u32..60,
        flows in proptest::collection::vec(any::<u64>(), 200),
    ) {
        let gone = gone % backends;
        let mut service = service(MAGLEV, &alloc::vec![1; backends as usize]);
        let before: Vec<_> = flows.iter().map(|flow| candidates(&service, *flow)).collect();
        fail(&mut service, &[gone]);
        for (flow, before) in flows.iter().zip(&before) {
            let after = candidates(&service, *flow);
            if before[0] == gone {
                prop_assert_eq!(after[0], before[1], "failover is not where a retry goes");
            } else {
                prop_assert_eq!(after[0], before[0], "another backend's flow moved");
            }
        }
        fail(&mut service, &[]);
        for (flow, before) in flows.iter().zip(&before) {
            prop_assert_eq!(&candidates(&service, *flow), before);
        }
    }

    /// With most of the pool down, the flows still spread over what is left.
    #[test]
    fn the_walk_ends_in_the_list_of_the_admitted(seed in any::<u64>()) {
        let mut service = service(MAGLEV, &[1; 100]);
        fail(&mut service, &(4..100).collect::<Vec<_>>());
        let mut shares = [0u32; 4];
        for n in 0..4000u64 {
            let pick = service.select(mixed(seed.wrapping_add(n)), &Tried::NONE, 0).unwrap();
            shares[pick.backend.id.slot as usize] += 1;
        }
        prop_assert!(shares.iter().all(|share| (800..1200).contains(share)), "{:?}", shares);
    }
}

/// The service with backend 0 taking `part` of its flows.
fn starting(service: &mut Service, part: f64) {
    service.groups[0].admission = service.groups[0].pool.admission(|backend| Standing {
        share: if backend.id.slot == 0 { Share::of(part) } else { Share::FULL },
        ..Standing::GOOD
    });
}

/// The backend that each of some flows would be given.
fn choices(service: &Service, flows: u64) -> Vec<u32> {
    let pick = |n: u64| {
        let pick = service.select(mixed(n), &Tried::NONE, 0).unwrap();
        pick.backend.close();
        pick.backend.id.slot
    };
    (0..flows).map(pick).collect()
}

#[test]
fn a_starting_backend_takes_its_share_and_no_other_flow_moves() {
    for weights in [&[1; 2][..], &[1; 10], &[4, 1, 1, 2]] {
        let mut service = service(MAGLEV, weights);
        let fair = f64::from(weights[0]) / f64::from(weights.iter().sum::<u32>());
        let flows = 20_000;
        let mut before: Option<Vec<u32>> = None;
        for part in [0.05, 0.1, 0.3, 0.6, 0.9, 1.0] {
            starting(&mut service, part);
            let now = choices(&service, flows);
            let share = now.iter().filter(|slot| **slot == 0).count() as f64 / flows as f64;
            let want = fair * part;
            assert!((share - want).abs() < 0.015, "{weights:?} at {part}: {share}, not {want}");
            if let Some(before) = before {
                for (old, new) in before.iter().zip(&now).filter(|(old, new)| old != new) {
                    assert_eq!(*new, 0, "a flow moved from {old} to {new} at {part}");
                }
            }
            before = Some(now);
        }
    }
}

#[test]
fn a_starting_backend_is_spared_by_every_scheduler_and_still_a_last_candidate() {
    for scheduler in EVERY {
        let mut service = service(scheduler, &[1; 4]);
        starting(&mut service, 0.1);
        let mut counts = [0u32; 4];
        // Connections stay open, so that schedulers that compare loads see them.
        for n in 0..4000 {
            let start = service.start(mixed(n), mixed(n ^ 7), 0);
            let pick = service.select(start, &Tried::NONE, 0).unwrap();
            counts[pick.backend.id.slot as usize] += 1;
        }
        assert!((60..160).contains(&counts[0]), "{scheduler:?}: {counts:?}");
        let mut order = candidates(&service, 5);
        order.sort_unstable();
        assert_eq!(order, [0, 1, 2, 3], "{scheduler:?}: a retry may go there");
    }
}

#[test]
fn an_idle_pool_spares_a_starting_backend_too() {
    for scheduler in EVERY {
        let mut service = service(scheduler, &[1; 2]);
        starting(&mut service, 0.1);
        let taken = (0..4000u64).filter(|n| {
            let start = service.start(mixed(*n), mixed(n ^ 7), 0);
            let pick = service.select(start, &Tried::NONE, 0).unwrap();
            pick.backend.close();
            pick.backend.id.slot == 0
        });
        let taken = taken.count();
        // By expected delay, a tenth of a backend is slower than a whole idle one.
        let least = if matches!(scheduler, Scheduler::ShortestExpectedDelay) { 0 } else { 100 };
        assert!((least..320).contains(&taken), "{scheduler:?}: {taken} of 4000");
    }
}

#[test]
fn what_is_explained_is_what_happens() {
    for scheduler in EVERY {
        let mut service = service(scheduler, &[1, 2, 3, 4, 5]);
        fail(&mut service, &[2]);
        for start in [0, 3, 77, u64::MAX / 3] {
            let explained: Vec<_> =
                service.candidates(start).iter().map(|pick| pick.backend.id.slot).collect();
            assert_eq!(explained, candidates(&service, start), "{scheduler:?} from {start}");
            assert!(service.groups[0].pool.members().iter().all(|m| m.backend.active() == 0));
        }
    }
    let service = service(MAGLEV, &[1; 5]);
    let (_, owner) = service.slots(1234, 0)[0];
    let first = service.candidates(1234)[0].backend.id;
    assert_eq!(service.groups[0].pool.members()[usize::from(owner)].backend.id, first);
}
