use super::*;
use crate::select::tests::service;
use crate::{Scheduler, VipAddr};
use core::num::NonZeroU16;

fn ports(first: u16, last: u16) -> PortRange {
    PortRange::new(NonZeroU16::new(first).unwrap(), NonZeroU16::new(last).unwrap()).unwrap()
}

fn front(ip: &str, first: u16, last: u16) -> Frontend {
    Frontend { net: ip.parse().unwrap(), ports: ports(first, last), protocol: Protocol::Tcp }
}

fn named(id: u32) -> Arc<Service> {
    let mut service = service(Scheduler::RoundRobin, &[]);
    service.id = ServiceId(id);
    Arc::new(service)
}

fn at(snapshot: &Snapshot, vip: &str) -> Option<u32> {
    let vip = VipAddr(vip.parse().unwrap());
    snapshot.lookup(vip, Protocol::Tcp).map(|service| service.id.0)
}

#[test]
fn ports_and_ranges_are_found() {
    let mut builder = SnapshotBuilder::from(&Snapshot::empty());
    builder.insert(&[front("192.0.2.1", 80, 80), front("2001:db8::1", 80, 80)], &named(1));
    builder.insert(&[front("192.0.2.1", 1000, 1999)], &named(2));
    builder.insert(&[front("192.0.2.1", 3000, 3009)], &named(3));
    let snapshot = builder.finish();
    for (vip, want) in [
        ("192.0.2.1:80", Some(1)),
        ("[2001:db8::1]:80", Some(1)),
        ("[::ffff:192.0.2.1]:80", Some(1)),
        ("192.0.2.1:81", None),
        ("192.0.2.1:999", None),
        ("192.0.2.1:1000", Some(2)),
        ("192.0.2.1:1999", Some(2)),
        ("192.0.2.1:2000", None),
        ("192.0.2.1:3005", Some(3)),
        ("192.0.2.2:1000", None),
    ] {
        assert_eq!(at(&snapshot, vip), want, "{vip}");
    }
    assert_eq!((snapshot.len(), snapshot.generation), (3, 1));
    let udp = snapshot.lookup(VipAddr("192.0.2.1:80".parse().unwrap()), Protocol::Udp);
    assert!(udp.is_none(), "another protocol");
}

#[test]
fn removal_leaves_a_successor_alone() {
    let front = [front("192.0.2.1", 80, 80)];
    let mut builder = SnapshotBuilder::from(&Snapshot::empty());
    builder.insert(&front, &named(1));
    let first = builder.finish();
    let mut builder = SnapshotBuilder::from(&first);
    builder.insert(&front, &named(2));
    builder.remove(&front, ServiceId(1));
    let second = builder.finish();
    assert_eq!(at(&first, "192.0.2.1:80"), Some(1), "older snapshots do not change");
    assert_eq!(at(&second, "192.0.2.1:80"), Some(2));
    assert_eq!((first.len(), second.len()), (1, 1));
    assert!(second.service(ServiceId(1)).is_none());
}

#[test]
fn a_change_copies_one_shard() {
    let mut builder = SnapshotBuilder::from(&Snapshot::empty());
    for n in 0..2000 {
        builder.insert(&[front("192.0.2.1", n + 1, n + 1)], &named(u32::from(n)));
    }
    let first = builder.finish();
    let mut builder = SnapshotBuilder::from(&first);
    builder.insert(&[front("192.0.2.1", 7, 7)], &named(6));
    let second = builder.finish();
    let copied =
        first.shards.iter().zip(&second.shards).filter(|(a, b)| !Arc::ptr_eq(a, b)).count();
    assert_eq!(copied, 1);
}

#[test]
fn addresses_of_packet_services_are_known_as_long_as_one_is_there() {
    let packets = |id| {
        let mut service = Service::clone(&named(id));
        let mut policy = crate::Policy::clone(&service.policy);
        policy.mode = Mode::Nat;
        service.policy = Arc::new(policy);
        Arc::new(service)
    };
    let vip = "192.0.2.1".parse().unwrap();
    let (one, range) = (front("192.0.2.1", 80, 80), front("192.0.2.1", 1000, 1999));
    let mut snapshot = Snapshot::empty();
    let mut after = |change: &dyn Fn(&mut SnapshotBuilder)| {
        let mut builder = SnapshotBuilder::from(&snapshot);
        change(&mut builder);
        snapshot = builder.finish();
        snapshot.answers_for(vip)
    };
    assert!(!after(&|builder| builder.insert(&[one], &named(1))), "it is proxied");
    assert!(after(&|builder| builder.insert(&[one], &packets(1))));
    assert!(after(&|builder| builder.insert(&[one], &packets(1))), "published again");
    assert!(after(&|builder| builder.insert(&[range], &packets(2))));
    assert!(after(&|builder| builder.insert(&[range], &packets(2))));
    assert!(after(&|builder| builder.remove(&[one], ServiceId(1))), "the range is left");
    assert!(!after(&|builder| builder.insert(&[range], &named(2))), "and then proxied");
    assert!(after(&|builder| builder.insert(&[range], &packets(2))));
    assert!(!after(&|builder| builder.remove(&[range], ServiceId(2))));
}

#[test]
fn of_networks_the_longest_that_has_the_port_serves() {
    let mut builder = SnapshotBuilder::from(&Snapshot::empty());
    let packet = |id: u32| {
        let mut service = service(Scheduler::RoundRobin, &[]);
        service.id = ServiceId(id);
        Arc::make_mut(&mut service.policy).mode = Mode::Nat;
        Arc::new(service)
    };
    let fronts = [
        front("192.0.2.0/24", 1, 65535),
        front("192.0.2.0/28", 80, 80),
        front("192.0.2.7", 80, 80),
        front("2001:db8::/64", 1, 65535),
        front("0.0.0.0/0", 53, 53),
    ];
    for (id, front) in (1..).zip(&fronts) {
        builder.insert(&[*front], &packet(id));
    }
    let mut snapshot = builder.finish();
    let found = |snapshot: &Snapshot, ip: &str, port: u16| {
        let vip = VipAddr((ip.parse::<core::net::IpAddr>().unwrap(), port).into());
        snapshot.lookup(vip, Protocol::Tcp).map(|service| service.id.0)
    };
    for (ip, port, want) in [
        ("192.0.2.7", 80, Some(3)),
        ("192.0.2.8", 80, Some(2)),
        ("192.0.2.7", 81, Some(1)),
        ("192.0.2.99", 80, Some(1)),
        ("192.0.3.1", 80, None),
        ("192.0.3.1", 53, Some(5)),
        ("2001:db8::1", 9, Some(4)),
        ("2001:db8:1::1", 9, None),
    ] {
        assert_eq!(found(&snapshot, ip, port), want, "{ip} {port}");
    }
    let v6: core::net::IpAddr = "2001:db8::77".parse().unwrap();
    assert!(snapshot.answers_for(v6) && snapshot.is_vip(v6));
    for (id, gone) in (1..).zip(&fronts) {
        let mut builder = SnapshotBuilder::from(&snapshot);
        builder.remove(&[*gone], ServiceId(id));
        snapshot = builder.finish();
    }
    assert!(!snapshot.answers_for(v6) && found(&snapshot, "192.0.2.7", 80).is_none());
    assert!(!snapshot.is_vip("192.0.3.1".parse().unwrap()) && snapshot.is_empty());
}
