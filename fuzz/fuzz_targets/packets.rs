//! Any bytes on the wire, after each other, leave the engine standing and its frames in bounds.
#![no_main]

use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;

use fairway_core::packet::flow::{FlowTable, HeapRegion, Shape};
use fairway_core::packet::{Context, Engine, Frame, Link, Route, Routes, Steering, Verdict};
use fairway_core::packet::{TransportChecksum, Tunnel};
use fairway_core::{
    Backend, BackendAddr, BackendId, Clients, Frontend, Group, Member, Mode, Policy, Pool,
    PortRange, Protocol, Scheduler, Service, ServiceId, ServiceState, Snapshot, SnapshotBuilder,
    SourceAddress, Standing, Tick, Weight,
};
use libfuzzer_sys::fuzz_target;

const SHAPE: Shape = Shape { ipv4: 32, ipv6: 32 };
/// Room before and behind a frame.
const ROOM: usize = 128;

fn policy(mode: Mode) -> Policy {
    Policy {
        mode,
        scheduler: Scheduler::Random,
        source: SourceAddress {
            addresses: vec![ip("10.0.0.1"), ip("fd00::1")],
            ..SourceAddress::default()
        },
        ..Policy::default()
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Ports 1 to 5 of both VIPs in each mode, over backends of both families where that can be.
fn snapshot() -> Snapshot {
    let mut builder = SnapshotBuilder::from(&Snapshot::empty());
    builder.set_routes(&Arc::new(routes()));
    let modes = [
        Mode::Nat,
        Mode::FullNat,
        Mode::Dsr,
        Mode::Tunnel(Tunnel::Ipip),
        Mode::Tunnel(Tunnel::GueWithHeader),
    ];
    let mut id = 0;
    for (port, mode) in (1..).zip(modes) {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for (vip, backend) in [("10.1.0.1", "10.0.0.2"), ("fd01::1", "fd00::2")] {
                id += 1;
                let addr = BackendAddr::new(ip(backend), NonZeroU16::new(port));
                let name = BackendId { slot: id, epoch: NonZeroU32::MIN };
                let member = Member { backend: Backend::new(name, addr, 1), weight: Weight::ONE };
                let pool = Pool::build(vec![member], &Scheduler::Random).unwrap();
                let service = Service {
                    id: ServiceId(id),
                    name: "fuzz/1".into(),
                    protocol,
                    app_protocol: None,
                    policy: Arc::new(policy(mode)),
                    groups: [Group::new(Arc::new(pool), |_| Standing::GOOD)].into(),
                    previous: None,
                    state: ServiceState::new(1),
                };
                let ports = PortRange::single(NonZeroU16::new(port).unwrap());
                let frontend = Frontend { net: ip(vip).into(), ports, protocol };
                builder.insert(&[frontend], &Arc::new(service));
            }
        }
    }
    builder.finish()
}

fn routes() -> Routes {
    let link = Link {
        port: 0,
        interface: 0,
        tag: None,
        mac: [2; 6],
        mtu: 200,
        ipv4: Some([10, 0, 0, 1].into()),
        ipv6: Some("fd00::1".parse().unwrap()),
    };
    let via = |prefix: &str, router: &str| Route {
        prefix: prefix.parse().unwrap(),
        via: Some(ip(router)),
        link: 0,
    };
    let on_link = |prefix: &str| Route { prefix: prefix.parse().unwrap(), via: None, link: 0 };
    let routes = [via("0.0.0.0/0", "10.0.0.9"), via("::/0", "fd00::9"), on_link("fd00::/64")];
    let stations = ["10.0.0.9", "fd00::9"].map(|at| ((0, ip(at)), [9; 6]));
    Routes::new(vec![link], routes, stations)
}

// Frames, each after a byte that says how long it is.
fuzz_target!(|bytes: &[u8]| {
    let (snapshot, clients) = (snapshot(), Clients::new(16, [1, 2, 3, 4]));
    let mut region = HeapRegion::new(SHAPE.bytes());
    let flows = FlowTable::open(region.bytes(), SHAPE, [1, 2], false).unwrap();
    let mut engine = Engine::new(flows, Arc::default(), Steering::ALONE, 0);
    let mut rest = bytes;
    let mut now = Tick(0);
    while let Some((length, after)) = rest.split_first() {
        let length = usize::from(*length).min(after.len());
        let (frame, after) = after.split_at(length);
        rest = after;
        let mut buffer = vec![0; ROOM];
        buffer.extend(frame);
        buffer.extend([0; 16]);
        let mut frame = Frame::new(&mut buffer, ROOM, ROOM + length);
        if length % 7 == 0 {
            frame.checksum = TransportChecksum::Partial;
        }
        now = Tick(now.0 + 100);
        let cx = Context { snapshot: &snapshot, clients: &clients, now, micros: 0, random: now.0 };
        let mut verdicts = [Verdict::Punt];
        engine.process(std::slice::from_mut(&mut frame), &mut verdicts, &cx);
        assert!(frame.len() <= length + ROOM);
        for flow in engine.flows().iter() {
            let ends: [SocketAddr; 2] = [flow.flow.client, flow.flow.backend];
            assert!(ends.iter().all(|end| !end.ip().is_multicast()));
        }
    }
});
