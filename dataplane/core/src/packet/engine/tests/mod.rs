//! The engine between a router's clients and two backends.

mod cards;
mod differential;
mod families;
mod flows;
mod golden;
mod headed;
mod messages;
mod modes;
mod parts;
mod retry;
mod whole;

use super::*;
use crate::packet::checksum::{Sum, pseudo_header};
use crate::packet::flow::{HeapRegion, Shape};
use crate::packet::held::LINGER;
use crate::packet::parse::{Addresses, parse_ip};
use crate::packet::routes::{Link, Mac, Route, Routes};
use crate::packet::sample::{OUR_MAC, Sample, icmp as message, sctp, syn, tcp, udp};
use crate::packet::{TransportChecksum, Tunnel, Unresolved};
use crate::select::tests::policy;
use crate::{
    Backend, BackendAddr, BackendId, Frontend, Group, Member, Mode, MssClamp, Policy, Pool,
    PortRange, Protocol, RetryCause, Scheduler, Service, ServiceId, ServiceState, SnapshotBuilder,
    Standing, Told, Weight,
};
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};
use core::num::{NonZeroU16, NonZeroU32};
use core::time::Duration;
use proptest::prelude::*;

const SHAPE: Shape = Shape { ipv4: 64, ipv6: 64 };
const ROUTER: Mac = [2, 7, 7, 0, 0, 9];
const US: [Mac; 2] = [[2, 7, 7, 0, 0, 1], [2, 7, 8, 0, 0, 1]];

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The station of a backend's address.
fn station(ip: IpAddr) -> Mac {
    let last = match ip {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(ip) => ip.octets()[15],
    };
    [2, 7, 8, 0, 0, last]
}

/// Clients behind a router on link 0, backends on link 1.
fn routes() -> Routes {
    let link = |port: u16, v4: &str, v6: &str| Link {
        port,
        interface: port.into(),
        tag: None,
        mac: US[usize::from(port)],
        mtu: 1500,
        ipv4: Some(v4.parse().unwrap()),
        ipv6: Some(v6.parse().unwrap()),
    };
    let route = |prefix: &str, via: Option<&str>, link| Route {
        prefix: prefix.parse().unwrap(),
        via: via.map(ip),
        link,
    };
    let routes = [
        route("0.0.0.0/0", Some("10.77.0.9"), 0),
        route("::/0", Some("fd77::9"), 0),
        route("10.78.0.0/24", None, 1),
        route("fd78::/64", None, 1),
    ];
    let backends = ["10.78.0.11", "10.78.0.12", "fd78::11", "fd78::12"].map(ip);
    let backends = backends.map(|ip| ((1, ip), station(ip)));
    let routers = [((0, ip("10.77.0.9")), ROUTER), ((0, ip("fd77::9")), ROUTER)];
    let links = alloc::vec![link(0, "10.77.0.1", "fd77::1"), link(1, "10.78.0.1", "fd78::1")];
    Routes::new(links, routes, backends.into_iter().chain(routers))
}

struct World {
    snapshot: Snapshot,
    clients: Clients,
    now: Tick,
    services: Vec<(Vec<Frontend>, Service)>,
    slots: u32,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            snapshot: Snapshot::empty(),
            clients: Clients::new(64, [1, 2, 3, 4]),
            now: Tick(1000),
            services: Vec::new(),
            slots: 0,
        };
        world.route(routes());
        world
    }

    /// Adds a service at `vip` over `backends`.
    fn serve(
        &mut self,
        protocol: Protocol,
        vip: &str,
        mode: Mode,
        backends: &[&str],
        change: impl FnOnce(&mut Policy),
    ) -> &Service {
        let vip = addr(vip);
        let scheduler = Scheduler::Maglev { table_size: None, bounded_load_percent: None };
        let mut policy = Policy { mode, ..policy(scheduler) };
        policy.timeouts.idle = Duration::from_secs(600);
        policy.udp.idle = Duration::from_secs(30);
        policy.source.addresses = alloc::vec![ip("10.78.0.1"), ip("fd78::1")];
        change(&mut policy);
        let members = backends.iter().map(|at| {
            self.slots += 1;
            let id = BackendId { slot: self.slots, epoch: NonZeroU32::MIN };
            let at = addr(at);
            let at = BackendAddr::new(at.ip(), NonZeroU16::new(at.port()));
            Member { backend: Backend::new(id, at, 1), weight: Weight::ONE }
        });
        let pool = Arc::new(Pool::build(members.collect(), &scheduler).unwrap());
        let service = Service {
            id: ServiceId(self.services.len() as u32 + 1),
            name: "web/80".into(),
            protocol,
            app_protocol: None,
            policy: Arc::new(policy),
            groups: [Group::new(pool, |_| Standing::GOOD)].into(),
            previous: None,
            state: ServiceState::new(1),
        };
        let ports = PortRange::single(NonZeroU16::new(vip.port()).unwrap());
        let frontend = Frontend { net: vip.ip().into(), ports, protocol };
        self.services.push((alloc::vec![frontend], service));
        self.publish();
        &self.services.last().unwrap().1
    }

    fn publish(&mut self) {
        let mut builder = SnapshotBuilder::from(&self.snapshot);
        for (frontends, service) in &self.services {
            builder.insert(frontends, &Arc::new(service.clone()));
        }
        self.snapshot = builder.finish();
    }

    fn route(&mut self, routes: Routes) {
        let mut builder = SnapshotBuilder::from(&self.snapshot);
        builder.set_routes(&Arc::new(routes));
        self.snapshot = builder.finish();
    }

    /// On which ports stations are told of addresses.
    fn tell<const N: usize>(&mut self, told: [(&str, u64); N]) {
        let told: Told = told.map(|(net, ports)| (net.parse().unwrap(), ports)).into();
        let mut builder = SnapshotBuilder::from(&self.snapshot);
        builder.set_told(&Arc::new(told));
        self.snapshot = builder.finish();
    }

    /// Fails the backends of service `n` at these addresses.
    fn fail(&mut self, n: usize, failed: &[&str]) {
        let failed: Vec<_> = failed.iter().map(|at| ip(at)).collect();
        let group = &mut self.services[n].1.groups[0];
        group.admission = group.pool.admission(|backend| Standing {
            failed: failed.contains(&backend.addr.ip()),
            ..Standing::GOOD
        });
        self.publish();
    }

    fn replay(&mut self, engine: &mut Engine<'_>) -> Option<(Verdict, Vec<u8>)> {
        let mut buffer = alloc::vec![0; 4096];
        let mut frame = Frame::new(&mut buffer, 128, 128);
        let cx = context(&self.snapshot, &self.clients, self.now);
        let verdict = engine.due(&mut frame, &cx)?;
        Some((verdict, frame.bytes().to_vec()))
    }

    fn pass(&mut self, engine: &mut Engine<'_>, bytes: &[u8]) -> (Verdict, Vec<u8>) {
        self.pass_as(engine, bytes, TransportChecksum::Present)
    }

    fn pass_as(
        &mut self,
        engine: &mut Engine<'_>,
        bytes: &[u8],
        checksum: TransportChecksum,
    ) -> (Verdict, Vec<u8>) {
        let mut buffer = alloc::vec![0xee; 128];
        buffer.extend(bytes);
        let end = buffer.len();
        buffer.extend([0xdd; 64]);
        let mut frame = Frame::new(&mut buffer, 128, end);
        frame.checksum = checksum;
        let cx = context(&self.snapshot, &self.clients, self.now);
        let mut verdicts = [Verdict::Punt];
        engine.process(core::slice::from_mut(&mut frame), &mut verdicts, &cx);
        (verdicts[0], frame.bytes().to_vec())
    }
}

fn context<'a>(snapshot: &'a Snapshot, clients: &'a Clients, now: Tick) -> Context<'a> {
    Context { snapshot, clients, now, micros: now.0 * 1000, random: 7 }
}

fn with_engine(test: impl FnOnce(&mut World, &mut Engine<'_>)) {
    let mut region = HeapRegion::new(SHAPE.bytes());
    let flows = FlowTable::open(region.bytes(), SHAPE, [1, 2], false).unwrap();
    let mut engine = Engine::new(flows, Arc::default(), Steering::ALONE, 0);
    test(&mut World::new(), &mut engine);
}

/// Asserts that every checksum of a frame, and of what it carries, is right.
fn verify(frame: &[u8]) {
    let Parsed::Ip(packet) = parse(frame).unwrap() else { panic!("no IP packet") };
    verify_packet(frame, &packet);
}

fn verify_packet(frame: &[u8], packet: &Packet) {
    let body = &frame[usize::from(packet.l4)..usize::from(packet.end)];
    let sum = |protocol: u8| match (packet.addresses, protocol) {
        (_, protocol::ICMP) => Sum::ZERO,
        (Addresses::V4(from, to), _) => {
            pseudo_header(&from.octets(), &to.octets(), protocol, body.len() as u32)
        }
        (Addresses::V6(from, to), _) => {
            pseudo_header(&from.octets(), &to.octets(), protocol, body.len() as u32)
        }
    };
    match packet.protocol {
        protocol::IPIP | protocol::IPV6 => {
            let inner = parse_ip(frame, packet.l4.into()).unwrap();
            verify_packet(frame, &inner);
        }
        protocol::UDP if body[6..8] == [0, 0] => {
            assert!(matches!(packet.addresses, Addresses::V4(..)));
            if packet.transport.ports().unwrap().1 == 6080 {
                let skip = if body[8] >> 4 == 0 { 12 } else { 8 };
                let inner = parse_ip(frame, usize::from(packet.l4) + skip).unwrap();
                verify_packet(frame, &inner);
            }
        }
        protocol::TCP | protocol::UDP | protocol::ICMP | protocol::ICMPV6 => {
            assert_eq!(sum(packet.protocol).bytes(body).folded(), 0xffff, "{packet:?}");
        }
        _ => {}
    }
}

const CASES: [(&str, &str, &str); 2] = [
    ("203.0.113.7:4711", "192.0.2.10:443", "10.78.0.11:8443"),
    ("[2001:db8:7::7]:4711", "[2001:db8::10]:443", "[fd78::11]:8443"),
];

/// First and later packets of TCP and of UDP.
fn packets(protocol: Protocol, from: SocketAddr, to: SocketAddr) -> [Sample; 2] {
    match protocol {
        Protocol::Tcp => [syn(from, to), tcp(from, to, tcp_flags::ACK).payload(b"hello")],
        Protocol::Udp => [udp(from, to).payload(b"question"), udp(from, to).payload(b"again")],
        Protocol::Sctp => [sctp(from, to), sctp(from, to)],
    }
}

/// Where a frame goes.
fn destination(frame: &[u8]) -> IpAddr {
    match parse(frame).unwrap() {
        Parsed::Ip(packet) => packet.addresses.destination(),
        other => panic!("{other:?}"),
    }
}
