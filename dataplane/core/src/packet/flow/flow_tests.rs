use super::*;
use crate::packet::Addresses;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use proptest::prelude::*;

const SHAPE: Shape = Shape { ipv4: 64, ipv6: 16 };
const SEEDS: [u64; 2] = [0x1234_5678_9abc_def0, 0x0fed_cba9_8765_4321];
const SECOND: u64 = 1000;

fn flow(n: u32, wide: bool) -> Flow {
    let ip = |net: u8, n: u32| -> IpAddr {
        if wide {
            Ipv6Addr::new(0x2001, 0xdb8, net.into(), 0, 0, 0, (n >> 16) as u16, n as u16).into()
        } else {
            Ipv4Addr::new(net, 0, (n >> 8) as u8, n as u8).into()
        }
    };
    let client = SocketAddr::new(ip(10, n), 1024 + n as u16);
    Flow {
        client,
        vip: SocketAddr::new(ip(192, 1), 443),
        backend: SocketAddr::new(ip(172, n % 7), 8443),
        local: client,
        protocol: 6,
        mode: Mode::Nat,
        tracked: n.is_multiple_of(4),
        service: ServiceId(n % 3),
        id: backend_id(n % 7, 1 + n),
    }
}

fn find(table: &FlowTable<'_>, tuple: Option<Tuple>) -> Option<Found> {
    let tuple = tuple.unwrap();
    table.find(&tuple, table.hash(&tuple))
}

fn never(view: &FlowView, ended: Ended) {
    panic!("{ended:?} {view:?}");
}

fn put(table: &mut FlowTable<'_>, n: u32, now: Tick, seconds: u64) -> Option<Handle> {
    table.insert(&flow(n, n.is_multiple_of(5)), now, Tick(now.0 + seconds * SECOND), |_, _| {})
}

#[test]
fn flows_are_found_from_both_sides_and_forgotten() {
    let mut region = HeapRegion::new(SHAPE.bytes());
    let mut table = FlowTable::open(region.bytes(), SHAPE, SEEDS, false).unwrap();
    for n in 0..20 {
        let handle = put(&mut table, n, Tick(0), 60).unwrap();
        assert_eq!(table.flow(handle), flow(n, n.is_multiple_of(5)));
    }
    assert_eq!(table.len(), 20);
    for n in 0..20 {
        let flow = flow(n, n.is_multiple_of(5));
        let there = find(&table, flow.forward()).unwrap();
        let back = find(&table, flow.reply()).unwrap();
        assert_eq!((there.direction, back.direction), (Direction::Forward, Direction::Reply));
        assert_eq!(there.handle, back.handle);
        assert!(put(&mut table, n, Tick(0), 60).is_none(), "it is there already");
        table.remove(there.handle);
        assert!(find(&table, flow.forward()).is_none() && find(&table, flow.reply()).is_none());
        assert!(put(&mut table, n, Tick(0), 60).is_some(), "and can come again");
    }
}

#[test]
fn one_way_flows_leave_replies_alone_and_families_may_mix() {
    let mut region = HeapRegion::new(SHAPE.bytes());
    let mut table = FlowTable::open(region.bytes(), SHAPE, SEEDS, false).unwrap();
    let one_way = Flow { mode: Mode::Dsr, ..flow(1, false) };
    table.insert(&one_way, Tick(0), Tick(SECOND), never).unwrap();
    assert!(find(&table, one_way.forward()).is_some());
    assert!(find(&table, one_way.reply()).is_none());
    // NAT64: the client's side is IPv6, the backend's IPv4.
    let four = flow(2, false);
    let mixed = Flow { backend: four.backend, local: four.local, ..flow(2, true) };
    let handle = table.insert(&mixed, Tick(0), Tick(SECOND), never).unwrap();
    assert_eq!(table.flow(handle), mixed);
    assert_eq!(find(&table, mixed.reply()).unwrap().direction, Direction::Reply);
    assert!(matches!(mixed.reply().unwrap().addresses, Addresses::V4(..)));
}

#[test]
fn flows_expire_when_nothing_moves_and_not_before() {
    let mut region = HeapRegion::new(SHAPE.bytes());
    let mut table = FlowTable::open(region.bytes(), SHAPE, SEEDS, false).unwrap();
    let short = put(&mut table, 1, Tick(0), 5).unwrap();
    let long = put(&mut table, 2, Tick(0), 1000).unwrap();
    let mut gone = Vec::new();
    let mut turn = |table: &mut FlowTable<'_>, seconds: u64| {
        let all = table.turn(Tick(seconds * SECOND), 100, |view, ended| {
            assert_eq!(ended, Ended::Expired);
            gone.push((seconds, view.flow.service.0));
        });
        assert!(all);
        gone.len()
    };
    assert_eq!(turn(&mut table, 4), 0);
    table.note(short, State::Established, Tick(9 * SECOND), 100);
    assert_eq!(turn(&mut table, 8), 0, "it has moved meanwhile");
    assert!(table.brief(short).expires > step(Tick(8 * SECOND)));
    assert_eq!(turn(&mut table, 10), 1);
    assert_eq!(table.len(), 1);
    for seconds in (20..1000).step_by(7) {
        assert_eq!(turn(&mut table, seconds), 1);
    }
    assert_eq!(table.view(long).expires, Tick(1000 * SECOND));
    // A long rest: the wheel turns round once and not through every step.
    assert_eq!(turn(&mut table, 1_000_000), 2);
    assert!(table.is_empty());
}

#[test]
fn turning_takes_no_more_than_its_budget() {
    let mut region = HeapRegion::new(SHAPE.bytes());
    let mut table = FlowTable::open(region.bytes(), SHAPE, SEEDS, false).unwrap();
    (1..=40).filter(|n| *n % 5 > 0).for_each(|n| assert!(put(&mut table, n, Tick(0), 1).is_some()));
    let (mut turns, mut gone) = (1, 0);
    while !table.turn(Tick(9 * SECOND), 10, |_, _| gone += 1) {
        turns += 1;
        assert_eq!(gone, 10 * (turns - 1));
    }
    assert_eq!((gone, turns, table.len()), (32, 4, 0));
}

#[test]
fn a_flood_of_half_open_flows_displaces_itself_alone() {
    let shape = Shape { ipv4: 256, ipv6: 0 };
    let mut region = HeapRegion::new(shape.bytes());
    let mut table = FlowTable::open(region.bytes(), shape, SEEDS, false).unwrap();
    let narrow = |n: u32| flow(n, false);
    let mut kept = Vec::new();
    for n in 0..200 {
        let handle = table.insert(&narrow(n), Tick(0), Tick(SECOND), never).unwrap();
        table.note(handle, State::Established, Tick(3600 * SECOND), 1);
        kept.push(n);
    }
    let (mut evicted, mut refused) = (0, 0);
    for n in 1000..5000 {
        let entered = table.insert(&narrow(n), Tick(0), Tick(SECOND), |view, ended| {
            assert_eq!((view.state, ended), (State::Opening, Ended::Evicted));
            evicted += 1;
        });
        refused += u32::from(entered.is_none());
    }
    assert!(evicted > 1000, "{evicted} of 4000");
    // The established fill most places that are looked at: some newcomers stay without a flow.
    assert_eq!(evicted + refused, 4000 - 56);
    assert!(kept.iter().all(|n| find(&table, narrow(*n).forward()).is_some()));
}

#[test]
fn another_process_goes_on_with_what_is_there() {
    let mut region = HeapRegion::new(SHAPE.bytes());
    let mut table = FlowTable::open(region.bytes(), SHAPE, SEEDS, false).unwrap();
    assert!(put(&mut table, 3, Tick(0), 60).is_some());
    let table = FlowTable::open(region.bytes(), SHAPE, [7, 7], true).unwrap();
    assert!(find(&table, flow(3, false).forward()).is_some(), "with the seeds that it was made by");
    let other = Shape { ipv4: 63, ipv6: 16 };
    let table = FlowTable::open(region.bytes(), other, SEEDS, true).unwrap();
    assert!(table.is_empty(), "another shape");
    let small = FlowTable::open(&mut region.bytes()[..100], SHAPE, SEEDS, false).err();
    assert_eq!(small, Some(RegionError::TooSmall(SHAPE.bytes())));
    let mut region = HeapRegion::new(SHAPE.bytes() + 64);
    let astray = FlowTable::open(&mut region.bytes()[1..], SHAPE, SEEDS, false).err();
    assert_eq!(astray, Some(RegionError::Misaligned));
}

#[test]
fn flows_go_into_a_table_of_another_shape() {
    let mut region = HeapRegion::new(SHAPE.bytes());
    let mut table = FlowTable::open(region.bytes(), SHAPE, SEEDS, false).unwrap();
    for n in 0..40 {
        let handle = put(&mut table, n, Tick(0), 10 + u64::from(n)).unwrap();
        table.note(handle, State::Established, Tick((10 + u64::from(n)) * SECOND), u64::from(n));
    }
    let left = FlowTable::left(region.bytes()).unwrap();
    let shape = Shape { ipv4: 100, ipv6: 50 };
    let mut other = HeapRegion::new(shape.bytes());
    let mut next = FlowTable::open(other.bytes(), shape, [5, 6], false).unwrap();
    let now = Tick(20 * SECOND);
    let mut told = 0;
    let wanted = |view: &FlowView| (view.flow.service != ServiceId(0)).then_some(());
    let count = next.import(&left, now, wanted, |_, ()| told += 1);
    for n in 0..40 {
        let flow = flow(n, n.is_multiple_of(5));
        let there = n > 10 && n % 3 != 0;
        let found = find(&next, flow.forward());
        assert_eq!(found.is_some(), there, "{n}");
        assert_eq!(find(&next, flow.reply()).is_some(), there, "{n}");
        if let Some(found) = found {
            let view = next.view(found.handle);
            assert_eq!((view.flow, view.bytes), (flow, u64::from(n)));
            assert_eq!(view.state, State::Established);
        }
    }
    assert_eq!((next.len(), told), (count, count));
    // They expire where they are now.
    assert!(next.turn(Tick(200 * SECOND), usize::MAX, |_, _| {}) && next.is_empty());
}

#[test]
fn nothing_of_what_was_left_is_trusted() {
    assert!(FlowTable::left(&mut [0; 100]).is_none());
    let mut region = HeapRegion::new(SHAPE.bytes());
    assert!(FlowTable::left(region.bytes()).is_none(), "nothing is there");
    let mut table = FlowTable::open(region.bytes(), SHAPE, SEEDS, false).unwrap();
    put(&mut table, 1, Tick(0), 60).unwrap();
    region.bytes()[8] += 1;
    assert!(FlowTable::left(region.bytes()).is_none(), "another version");
    region.bytes()[8] -= 1;
    assert!(FlowTable::left(region.bytes()).is_some());
    assert!(
        FlowTable::left(&mut region.bytes()[..SHAPE.bytes() - 64]).is_none(),
        "a part is missing"
    );
}

proptest! {
    #[test]
    fn a_table_in_any_state_is_imported_without_harm(
        noise in prop::collection::vec((0_usize..1 << 20, any::<u8>()), 0..2000),
    ) {
        let mut region = HeapRegion::new(SHAPE.bytes());
        let mut table = FlowTable::open(region.bytes(), SHAPE, SEEDS, false).unwrap();
        for n in 0..60 {
            put(&mut table, n, Tick(0), 60);
        }
        // Everything but the header may be anything.
        let bytes = region.bytes();
        for (at, byte) in noise {
            let at = 64 + at % (SHAPE.bytes() - 64);
            bytes[at] = byte;
        }
        let left = FlowTable::left(bytes).unwrap();
        let shape = Shape { ipv4: 80, ipv6: 80 };
        let mut other = HeapRegion::new(shape.bytes());
        let mut next = FlowTable::open(other.bytes(), shape, [5, 6], false).unwrap();
        let count = next.import(&left, Tick(SECOND), |_| Some(()), |_, ()| {});
        prop_assert_eq!(next.len(), count);
        next.turn(Tick(100 * SECOND), usize::MAX, |_, _| {});
        next.turn(Tick(1_000_000 * SECOND), usize::MAX, |_, _| {});
    }
}

/// What may be done with a table.
#[derive(Debug, Clone)]
enum Act {
    Insert(u32, u64),
    Remove(u32),
    Establish(u32, u64),
    Turn(u64),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let n = 0_u32..60;
    let act = prop_oneof![
        4 => (n.clone(), 1_u64..200).prop_map(|(n, seconds)| Act::Insert(n, seconds)),
        1 => n.clone().prop_map(Act::Remove),
        2 => (n, 1_u64..200).prop_map(|(n, seconds)| Act::Establish(n, seconds)),
        2 => (0_u64..100).prop_map(Act::Turn),
    ];
    prop::collection::vec(act, 0..200)
}

proptest! {
    #[test]
    fn the_table_is_what_a_simple_map_is(acts in acts()) {
        // Room for all: what a full table does has a test of its own.
        let mut region = HeapRegion::new(SHAPE.bytes());
        let mut table = FlowTable::open(region.bytes(), SHAPE, SEEDS, false).unwrap();
        // Flow, and the step at which it ends.
        let mut model: BTreeMap<u32, u32> = BTreeMap::new();
        let mut now = Tick(0);
        let handle = |table: &FlowTable<'_>, n: u32| {
            find(table, flow(n, n.is_multiple_of(5)).forward()).map(|found| found.handle)
        };
        for act in acts {
            match act {
                Act::Insert(n, seconds) => {
                    let entered = put(&mut table, n, now, seconds).is_some();
                    prop_assert_eq!(entered, !model.contains_key(&n));
                    model.entry(n).or_insert(step(Tick(now.0 + seconds * SECOND)));
                }
                Act::Remove(n) => {
                    let found = handle(&table, n);
                    prop_assert_eq!(found.is_some(), model.remove(&n).is_some());
                    found.into_iter().for_each(|handle| table.remove(handle));
                }
                Act::Establish(n, seconds) => {
                    if let Some(handle) = handle(&table, n) {
                        let expires = Tick(now.0 + seconds * SECOND);
                        table.note(handle, State::Established, expires, 1);
                        model.insert(n, step(expires));
                    }
                }
                Act::Turn(seconds) => {
                    now = Tick(now.0 + seconds * SECOND);
                    let whole = table.turn(now, usize::MAX, |view, _| {
                        assert!(step(view.expires) <= step(now), "{view:?} at {now:?}");
                    });
                    prop_assert!(whole);
                    // The wheel may come late to a flow whose time was cut short, never early.
                    for n in model.keys().copied().collect::<Vec<_>>() {
                        let over = model[&n] <= step(now);
                        match handle(&table, n) {
                            None => {
                                prop_assert!(over, "{} ended early", n);
                                model.remove(&n);
                            }
                            Some(handle) if over => table.remove(handle),
                            Some(_) => {}
                        }
                        if over {
                            model.remove(&n);
                        }
                    }
                }
            }
            prop_assert_eq!(table.len(), model.len());
            prop_assert_eq!(table.iter().count(), model.len());
            for n in model.keys() {
                prop_assert!(find(&table, flow(*n, n.is_multiple_of(5)).reply()).is_some());
            }
        }
    }
}
