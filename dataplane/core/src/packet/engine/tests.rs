use super::*;
use crate::packet::checksum::{Sum, pseudo_header};
use crate::packet::flow::{HeapRegion, Shape};
use crate::packet::held::LINGER;
use crate::packet::parse::{Addresses, parse_ip};
use crate::packet::routes::{Link, Mac, Route};
use crate::packet::sample::{OUR_MAC, Sample, icmp as message, syn, tcp, udp};
use crate::packet::{TransportChecksum, Tunnel};
use crate::select::tests::policy;
use crate::{
    Backend, BackendAddr, BackendId, Frontend, Group, Member, Mode, Policy, Pool, PortRange,
    Protocol, RetryCause, Scheduler, Service, ServiceId, ServiceState, SnapshotBuilder, Standing,
    Weight,
};
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
    routes: Routes,
    clients: Clients,
    now: Tick,
    services: Vec<(Vec<Frontend>, Service)>,
    slots: u32,
}

impl World {
    fn new() -> Self {
        Self {
            snapshot: Snapshot::empty(),
            routes: routes(),
            clients: Clients::new(64),
            now: Tick(1000),
            services: Vec::new(),
            slots: 0,
        }
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
            policy: Arc::new(policy),
            groups: [Group::new(pool, |_| Standing::GOOD)].into(),
            state: ServiceState::new(1),
        };
        let ports = PortRange::single(NonZeroU16::new(vip.port()).unwrap());
        let frontend = Frontend { ip: vip.ip(), ports, protocol };
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
        let mut buffer = alloc::vec![0; 512];
        let mut frame = Frame::new(&mut buffer, 128, 128);
        let cx = Context {
            snapshot: &self.snapshot,
            routes: &self.routes,
            clients: &self.clients,
            now: self.now,
            random: 7,
        };
        let verdict = engine.replay(&mut frame, &cx)?;
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
        let cx = Context {
            snapshot: &self.snapshot,
            routes: &self.routes,
            clients: &self.clients,
            now: self.now,
            random: 7,
        };
        let mut verdicts = [Verdict::Punt];
        engine.process(core::slice::from_mut(&mut frame), &mut verdicts, &cx);
        (verdicts[0], frame.bytes().to_vec())
    }
}

fn with_engine(test: impl FnOnce(&mut World, &mut Engine<'_>)) {
    let mut region = HeapRegion::new(SHAPE.bytes());
    let flows = FlowTable::open(region.bytes(), SHAPE, [1, 2], false).unwrap();
    let mut engine = Engine::new(flows, Arc::default(), 0, 1, 0);
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
    }
}

#[test]
fn nat_rewrites_the_destination_and_replies_come_from_the_vip() {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for (client, vip, backend) in CASES {
            with_engine(|world, engine| {
                world.serve(protocol, vip, Mode::Nat, &[backend], |_| {});
                let (client, vip, backend) = (addr(client), addr(vip), addr(backend));
                let to = packets(protocol, client, vip);
                let want = packets(protocol, client, backend);
                for (sent, want) in to.iter().zip(want) {
                    let (verdict, got) = world.pass(engine, &sent.frame());
                    let want = want.ttl(63).macs(US[1], station(backend.ip())).frame();
                    assert_eq!((verdict, got), (Verdict::Send(1), want));
                }
                let reply = packets(protocol, backend, client)[1].clone();
                let (verdict, got) = world.pass(engine, &reply.frame());
                let want = packets(protocol, vip, client)[1].clone();
                let want = want.ttl(63).macs(US[0], ROUTER).frame();
                assert_eq!((verdict, got), (Verdict::Send(0), want));
                assert_eq!(engine.flows().len(), 1);
            });
        }
    }
}

#[test]
fn full_nat_speaks_for_itself_from_a_port_of_its_own() {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for (client, vip, backend) in CASES {
            with_engine(|world, engine| {
                world.serve(protocol, vip, Mode::FullNat, &[backend], |policy| {
                    policy.source.ports = Some((30_000, 30_003));
                });
                let (client, vip, backend) = (addr(client), addr(vip), addr(backend));
                let own = if client.is_ipv4() { "10.78.0.1" } else { "fd78::1" };
                let (verdict, got) = world.pass(engine, &packets(protocol, client, vip)[0].frame());
                assert_eq!(verdict, Verdict::Send(1));
                verify(&got);
                let Parsed::Ip(packet) = parse(&got).unwrap() else { panic!() };
                let local = SocketAddr::new(ip(own), packet.transport.ports().unwrap().0);
                assert!((30_000..=30_003).contains(&local.port()));
                assert_eq!(packet.addresses.source(), local.ip());
                let reply = packets(protocol, backend, local)[1].clone();
                let (verdict, got) = world.pass(engine, &reply.frame());
                let want = packets(protocol, vip, client)[1].clone();
                assert_eq!(verdict, Verdict::Send(0));
                assert_eq!(got, want.ttl(63).macs(US[0], ROUTER).frame());
                // Four ports are four flows to one backend, and no more.
                let others = (1..=4).map(|n| {
                    let other = SocketAddr::new(client.ip(), 5000 + n);
                    world.pass(engine, &packets(protocol, other, vip)[0].frame()).0
                });
                let sent = others.filter(|verdict| *verdict == Verdict::Send(1)).count();
                assert_eq!(sent, 3);
                assert_eq!(engine.counters.dropped[DropReason::NoPort as usize].get(), 1);
            });
        }
    }
}

#[test]
fn direct_return_changes_the_station_alone() {
    for (client, vip, backend) in CASES {
        with_engine(|world, engine| {
            let backend = addr(backend);
            let at = SocketAddr::new(backend.ip(), 443).to_string();
            world.serve(Protocol::Tcp, vip, Mode::Dsr, &[&at], |_| {});
            for sent in packets(Protocol::Tcp, addr(client), addr(vip)) {
                let (verdict, got) = world.pass(engine, &sent.frame());
                let want = sent.ttl(63).macs(US[1], station(backend.ip())).frame();
                assert_eq!((verdict, got), (Verdict::Send(1), want));
            }
        });
    }
}

#[test]
fn tunnels_carry_the_packet_as_it_is() {
    for tunnel in [Tunnel::Ipip, Tunnel::Gue, Tunnel::GueWithHeader] {
        for (client, vip, _) in CASES {
            for (backend, own) in [("10.78.0.11:443", "10.78.0.1"), ("[fd78::11]:443", "fd78::1")] {
                with_engine(|world, engine| {
                    world.serve(Protocol::Tcp, vip, Mode::Tunnel(tunnel), &[backend], |_| {});
                    for sent in packets(Protocol::Tcp, addr(client), addr(vip)) {
                        let (verdict, got) = world.pass(engine, &sent.frame());
                        assert_eq!(verdict, Verdict::Send(1));
                        verify(&got);
                        let Parsed::Ip(outer) = parse(&got).unwrap() else { panic!() };
                        assert_eq!(outer.addresses.source(), ip(own));
                        assert_eq!(outer.addresses.destination(), addr(backend).ip());
                        let skip = match tunnel {
                            Tunnel::Ipip => 0,
                            Tunnel::Gue => 8,
                            Tunnel::GueWithHeader => 12,
                        };
                        assert_eq!(got[usize::from(outer.l4) + skip..], sent.ttl(63).packet());
                    }
                });
            }
        }
    }
}

#[test]
fn two_vips_over_one_backend_never_collide() {
    with_engine(|world, engine| {
        let (client, backend) = (addr("203.0.113.7:4711"), addr("10.78.0.11:8443"));
        let vips = ["192.0.2.10:443", "192.0.2.11:443"];
        for vip in vips {
            world.serve(Protocol::Tcp, vip, Mode::Nat, &["10.78.0.11:8443"], |_| {});
        }
        let mut ports = Vec::new();
        for vip in vips {
            let (_, got) = world.pass(engine, &syn(client, addr(vip)).frame());
            let Parsed::Ip(packet) = parse(&got).unwrap() else { panic!() };
            assert_eq!(packet.addresses.source(), client.ip());
            ports.push(packet.transport.ports().unwrap().0);
        }
        assert_ne!(ports[0], ports[1]);
        for (port, vip) in ports.iter().zip(vips) {
            let local = SocketAddr::new(client.ip(), *port);
            let reply = tcp(backend, local, tcp_flags::SYN | tcp_flags::ACK);
            let (_, got) = world.pass(engine, &reply.frame());
            let want = tcp(addr(vip), client, tcp_flags::SYN | tcp_flags::ACK);
            assert_eq!(got, want.ttl(63).macs(US[0], ROUTER).frame(), "{vip}");
        }
    });
}

#[test]
fn datagrams_leave_a_failed_backend_and_connections_stay() {
    for protocol in [Protocol::Udp, Protocol::Tcp] {
        with_engine(|world, engine| {
            let backends = ["10.78.0.11:53", "10.78.0.12:53"];
            world.serve(protocol, "192.0.2.10:53", Mode::Nat, &backends, |_| {});
            let sample = packets(protocol, addr("203.0.113.7:4711"), addr("192.0.2.10:53"));
            let first = destination(&world.pass(engine, &sample[0].frame()).1);
            world.fail(0, &[&first.to_string()]);
            let second = destination(&world.pass(engine, &sample[1].frame()).1);
            assert_eq!(first == second, protocol == Protocol::Tcp);
            assert_eq!(engine.flows().len(), 1);
            world.fail(0, &["10.78.0.11", "10.78.0.12"]);
            let other = packets(protocol, addr("203.0.113.7:4712"), addr("192.0.2.10:53"));
            let (verdict, _) = world.pass(engine, &other[0].frame());
            assert_eq!(verdict, Verdict::Drop(DropReason::NoBackend));
        });
    }
}

#[test]
fn places_are_paid_back_when_flows_end() {
    with_engine(|world, engine| {
        world.serve(Protocol::Tcp, "192.0.2.10:80", Mode::Nat, &["10.78.0.11:80"], |policy| {
            policy.limits.service_connections = Some(2);
            policy.limits.client_connections = Some(1);
        });
        let vip = addr("192.0.2.10:80");
        let from = |n: u8| addr(&alloc::format!("203.0.113.{n}:4711"));
        let again = addr("203.0.113.1:4712");
        let limited = Verdict::Drop(DropReason::Limited);
        for (client, want) in [
            (from(1), Verdict::Send(1)),
            (again, limited),
            (from(2), Verdict::Send(1)),
            (from(3), limited),
        ] {
            assert_eq!(world.pass(engine, &syn(client, vip).frame()).0, want, "{client}");
        }
        let state = Arc::clone(&world.services[0].1.state);
        let backend = Arc::clone(&world.services[0].1.groups[0].pool.members()[0].backend);
        assert_eq!((state.active(), backend.active()), (2, 2));
        // Cut, and over when its time is.
        world.pass(engine, &tcp(from(1), vip, tcp_flags::RST).frame());
        world.now = world.now.plus(LINGER * 8);
        world.pass(engine, &tcp(from(9), addr("192.0.2.99:1"), 0).frame());
        assert_eq!((engine.flows().len(), state.active(), backend.active()), (0, 0, 0));
        assert_eq!(world.pass(engine, &syn(again, vip).frame()).0, Verdict::Send(1));
        let ends = state.counters.totals().ends;
        assert_eq!(ends[EndReason::Client as usize] + ends[EndReason::IdleTimeout as usize], 2);
    });
}

/// Where a frame goes.
fn destination(frame: &[u8]) -> IpAddr {
    match parse(frame).unwrap() {
        Parsed::Ip(packet) => packet.addresses.destination(),
        other => panic!("{other:?}"),
    }
}

/// How the first backend of a connection fails it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Failing {
    Refuses,
    Unreachable,
    Silent,
}

#[test]
fn a_connection_whose_backend_fails_it_goes_to_the_next() {
    for failing in [Failing::Refuses, Failing::Unreachable, Failing::Silent] {
        for (case, mode) in [(0, Mode::Nat), (0, Mode::FullNat), (1, Mode::Nat)] {
            with_engine(|world, engine| {
                let (client, vip, _) = CASES[case];
                let backends = match case {
                    0 => ["10.78.0.11:8443", "10.78.0.12:8443"],
                    _ => ["[fd78::11]:8443", "[fd78::12]:8443"],
                };
                world.serve(Protocol::Tcp, vip, mode, &backends, |policy| {
                    policy.retry.syn_timeout = Duration::from_millis(20);
                    policy.retry.deadline = Duration::from_secs(10);
                    policy.passive.failures = 1;
                });
                let (client, vip) = (addr(client), addr(vip));
                let (_, got) = world.pass(engine, &syn(client, vip).frame());
                let first = SocketAddr::new(destination(&got), 8443);
                let Parsed::Ip(sent) = parse(&got).unwrap() else { panic!() };
                let local =
                    SocketAddr::new(sent.addresses.source(), sent.transport.ports().unwrap().0);
                let (verdict, got) = match failing {
                    Failing::Refuses => {
                        let flags = tcp_flags::RST | tcp_flags::ACK;
                        let stranger = tcp(first, local, flags).numbers(0, 77).frame();
                        let (verdict, _) = world.pass(engine, &stranger);
                        assert_eq!(verdict, Verdict::Drop(DropReason::NoFlow), "a guess");
                        world.pass(engine, &tcp(first, local, flags).numbers(0, 1001).frame())
                    }
                    Failing::Unreachable => {
                        let kind = if client.is_ipv4() { (3, 1) } else { (1, 3) };
                        let error = message(first.ip(), local.ip(), kind.0, kind.1, [0; 4]);
                        let about = syn(local, first).packet();
                        world.pass(engine, &error.payload(&about).frame())
                    }
                    Failing::Silent => {
                        assert_eq!(world.replay(engine), None, "not yet");
                        world.now = world.now.plus(Duration::from_millis(20));
                        world.replay(engine).unwrap()
                    }
                };
                assert_eq!(verdict, Verdict::Send(1), "{failing:?} {mode:?}");
                verify(&got);
                let second = SocketAddr::new(destination(&got), 8443);
                assert_ne!(second, first, "{failing:?}");
                let Parsed::Ip(sent) = parse(&got).unwrap() else { panic!() };
                let ours =
                    SocketAddr::new(sent.addresses.source(), sent.transport.ports().unwrap().0);
                let want = syn(ours, second).ttl(63).macs(US[1], station(second.ip())).frame();
                assert_eq!(got, want, "the client's own segment");

                // The first one answers after all: it is reset, and the client hears nothing.
                let both = tcp_flags::SYN | tcp_flags::ACK;
                let late = tcp(first, local, both).numbers(7000, 1001).frame();
                let (verdict, got) = world.pass(engine, &late);
                let Parsed::Ip(reset) = parse(&got).unwrap() else { panic!() };
                assert_eq!(verdict, Verdict::Send(1));
                verify(&got);
                let Transport::Tcp { ports, flags, .. } = reset.transport else { panic!() };
                assert_eq!((ports, flags), ((local.port(), first.port()), tcp_flags::RST));
                let at = usize::from(reset.l4) + 4;
                assert_eq!(got[at..at + 4], 1001_u32.to_be_bytes(), "where the first one is");
                assert_eq!(destination(&got), first.ip());

                // The second one answers, and the client sees the VIP.
                let (verdict, got) = world.pass(engine, &tcp(second, ours, both).frame());
                let want = tcp(vip, client, both).ttl(63).macs(US[0], ROUTER).frame();
                assert_eq!((verdict, got), (Verdict::Send(0), want));
                world.now = world.now.plus(Duration::from_secs(1));
                assert_eq!(world.replay(engine), None, "nothing waits any more");

                let service = &world.services[0].1;
                let retries: u64 = service.state.counters.totals().retries.iter().sum();
                assert_eq!(retries, 1);
                let active = |at: SocketAddr| {
                    let members = service.groups[0].pool.members().iter();
                    let mut found = members.filter(|m| m.backend.addr.ip() == at.ip());
                    found.next().unwrap().backend.active()
                };
                assert_eq!((active(first), active(second)), (0, 1));
                let failures: Vec<_> = engine.failures().collect();
                assert_eq!(failures.len(), 1);
            });
        }
    }
}

#[test]
fn a_connection_that_nobody_takes_hears_of_it_in_the_end() {
    with_engine(|world, engine| {
        let backends = ["10.78.0.11:80", "10.78.0.12:80"];
        world.serve(Protocol::Tcp, "192.0.2.10:80", Mode::Nat, &backends, |policy| {
            policy.retry.deadline = Duration::from_secs(10);
        });
        let (client, vip) = (addr("203.0.113.7:4711"), addr("192.0.2.10:80"));
        let refuse = |got: &[u8]| {
            let from = SocketAddr::new(destination(got), 80);
            tcp(from, client, tcp_flags::RST | tcp_flags::ACK).numbers(0, 1001).frame()
        };
        let (_, first) = world.pass(engine, &syn(client, vip).frame());
        let (verdict, second) = world.pass(engine, &refuse(&first));
        assert_eq!(verdict, Verdict::Send(1));
        let (verdict, last) = world.pass(engine, &refuse(&second));
        let want = tcp(vip, client, tcp_flags::RST | tcp_flags::ACK).numbers(0, 1001);
        assert_eq!((verdict, last), (Verdict::Send(0), want.ttl(63).macs(US[0], ROUTER).frame()));
        let totals = world.services[0].1.state.counters.totals();
        assert_eq!(totals.retries[RetryCause::Refused as usize], 1);
    });
}

#[test]
fn a_third_first_segment_moves_a_connection_that_is_answered_past_us() {
    for mode in [Mode::Dsr, Mode::Tunnel(Tunnel::Ipip)] {
        with_engine(|world, engine| {
            let backends = ["10.78.0.11:80", "10.78.0.12:80"];
            world.serve(Protocol::Tcp, "192.0.2.10:80", mode, &backends, |_| {});
            let (client, vip) = (addr("203.0.113.7:4711"), addr("192.0.2.10:80"));
            let mut backend = |frame: Vec<u8>| {
                let (verdict, got) = world.pass(engine, &frame);
                assert_eq!(verdict, Verdict::Send(1));
                got[5]
            };
            let asks: Vec<u8> = (0..3).map(|_| backend(syn(client, vip).frame())).collect();
            assert!(asks[0] == asks[1] && asks[1] != asks[2], "{asks:?}");
            let later = tcp(client, vip, tcp_flags::ACK).frame();
            assert_eq!(backend(later), asks[2], "and there it stays");
            let state = &world.services[0].1.state;
            assert_eq!(state.counters.totals().retries[RetryCause::Timeout as usize], 1);
            assert_eq!((engine.flows().len(), state.active()), (1, 1));
        });
    }
}

#[test]
fn with_a_full_table_direct_return_goes_on_and_nat_does_not() {
    for (mode, want) in
        [(Mode::Dsr, Verdict::Send(1)), (Mode::Nat, Verdict::Drop(DropReason::NoFlow))]
    {
        with_engine(|world, engine| {
            world.serve(Protocol::Tcp, "192.0.2.10:80", mode, &["10.78.0.11:80"], |_| {});
            let vip = addr("192.0.2.10:80");
            let mut last = Verdict::Punt;
            for n in 0..=SHAPE.ipv4 {
                let client = SocketAddr::new(ip("203.0.113.7"), 2000 + n as u16);
                last = world.pass(engine, &tcp(client, vip, tcp_flags::ACK).frame()).0;
                // Both have spoken, so that it makes no room.
                let reply = tcp(addr("10.78.0.11:80"), client, tcp_flags::ACK).frame();
                if mode == Mode::Nat && n < SHAPE.ipv4 {
                    assert_eq!(world.pass(engine, &reply).0, Verdict::Send(0));
                }
            }
            assert_eq!(last, want);
            assert_eq!(engine.flows().len(), SHAPE.ipv4 as usize);
            assert_eq!(world.services[0].1.state.active(), SHAPE.ipv4);
            assert_eq!(engine.counters.stateless.get(), u64::from(mode == Mode::Dsr));
        });
    }
}

#[test]
fn places_and_flows_agree_when_a_full_table_stops_a_move() {
    with_engine(|world, engine| {
        let backends = ["10.78.0.11:80", "10.78.0.12:80"];
        world.serve(Protocol::Tcp, "192.0.2.10:80", Mode::Dsr, &backends, |_| {});
        let vip = addr("192.0.2.10:80");
        let from = |n: u32| SocketAddr::new(ip("203.0.113.7"), 2000 + n as u16);
        for n in 0..SHAPE.ipv4 {
            world.pass(engine, &syn(from(n), vip).frame());
            if n % 20 != 0 {
                world.pass(engine, &tcp(from(n), vip, tcp_flags::ACK).frame());
            }
        }
        for n in (0..SHAPE.ipv4).step_by(20) {
            for _ in 0..4 {
                world.pass(engine, &syn(from(n), vip).frame());
                let state = &world.services[0].1.state;
                assert_eq!(engine.flows().len(), state.active() as usize, "client {n}");
            }
        }
        world.now = world.now.plus(Duration::from_secs(100_000));
        for _ in 0..100 {
            world.pass(engine, &udp(from(0), addr("192.0.2.99:1")).frame());
        }
        let service = &world.services[0].1;
        let active = service.groups[0].pool.members().iter().map(|m| m.backend.active());
        assert_eq!((engine.flows().len(), service.state.active()), (0, 0));
        assert_eq!(active.sum::<u32>(), 0);
    });
}

#[test]
fn a_client_that_begins_anew_leaves_a_failed_backend() {
    with_engine(|world, engine| {
        let backends = ["10.78.0.11:80", "10.78.0.12:80"];
        world.serve(Protocol::Tcp, "192.0.2.10:80", Mode::Nat, &backends, |_| {});
        let (client, vip) = (addr("203.0.113.7:4711"), addr("192.0.2.10:80"));
        let first = destination(&world.pass(engine, &syn(client, vip).frame()).1);
        let both = tcp_flags::SYN | tcp_flags::ACK;
        world.pass(engine, &tcp(SocketAddr::new(first, 80), client, both).frame());
        world.pass(engine, &tcp(client, vip, tcp_flags::ACK).frame());
        let again = destination(&world.pass(engine, &syn(client, vip).frame()).1);
        assert_eq!(again, first, "while that is well");
        world.fail(0, &[&first.to_string()]);
        let later = destination(&world.pass(engine, &tcp(client, vip, 0).frame()).1);
        assert_eq!(later, first, "a connection goes on while its ends wish");
        let anew = destination(&world.pass(engine, &syn(client, vip).frame()).1);
        assert_ne!(anew, first);
    });
}

#[test]
fn without_routes_nothing_is_sent_and_nothing_breaks() {
    with_engine(|world, engine| {
        world.serve(Protocol::Tcp, "192.0.2.10:80", Mode::Nat, &["10.78.0.11:80"], |_| {});
        world.routes = Routes::default();
        let echo = message(ip("0.0.0.0"), ip("192.0.2.10"), 8, 0, [0; 4]);
        let first = syn(addr("203.0.113.7:4711"), addr("192.0.2.10:80"));
        for frame in [echo.frame(), first.frame()] {
            let (verdict, _) = world.pass(engine, &frame);
            assert_eq!(verdict, Verdict::Drop(DropReason::NoNeighbour));
        }
    });
}

#[test]
fn errors_reach_the_end_that_they_are_for() {
    for (client, vip, backend) in CASES {
        with_engine(|world, engine| {
            world.serve(Protocol::Udp, vip, Mode::Nat, &[backend], |_| {});
            let (client, vip, backend) = (addr(client), addr(vip), addr(backend));
            world.pass(engine, &udp(client, vip).payload(b"x").frame());
            let (kind, code) = if client.is_ipv4() { (3, 4) } else { (2, 0) };
            let router = ip(if client.is_ipv4() { "10.78.0.254" } else { "fd78::254" });
            let about = |from, to| udp(from, to).payload(b"x").ttl(50).packet();
            let rest = 1280_u32.to_be_bytes();
            // A router behind us about a packet to the backend: the client hears of its own.
            for (sender, from) in [(router, router), (backend.ip(), vip.ip())] {
                let error = message(sender, client.ip(), kind, code, rest);
                let sent = error.payload(&about(client, backend)).frame();
                let (verdict, got) = world.pass(engine, &sent);
                let want = message(from, client.ip(), kind, code, rest);
                let want = want.payload(&about(client, vip)).ttl(63).macs(US[0], ROUTER);
                assert_eq!((verdict, got), (Verdict::Send(0), want.frame()), "from {sender}");
            }
            // A router before us about a reply: the backend hears of its own.
            let error = message(router, vip.ip(), kind, code, rest);
            let sent = error.payload(&about(vip, client)).frame();
            let (verdict, got) = world.pass(engine, &sent);
            let want = message(router, backend.ip(), kind, code, rest);
            let want = want.payload(&about(backend, client)).ttl(63);
            let want = want.macs(US[1], station(backend.ip())).frame();
            assert_eq!((verdict, got), (Verdict::Send(1), want));
            let stranger = message(router, vip.ip(), kind, code, rest);
            let sent = stranger.payload(&about(vip, addr("203.0.113.99:1"))).frame();
            if client.is_ipv4() {
                assert_eq!(world.pass(engine, &sent).0, Verdict::Punt);
            }
        });
    }
}

#[test]
fn senders_are_told_of_packets_that_cannot_go_on() {
    for (client, vip, backend) in CASES {
        with_engine(|world, engine| {
            let tunnel = Mode::Tunnel(Tunnel::Ipip);
            let at = SocketAddr::new(addr(backend).ip(), 443).to_string();
            world.serve(Protocol::Tcp, vip, tunnel, &[&at], |_| {});
            let (client, vip) = (addr(client), addr(vip));
            let own = ip(if client.is_ipv4() { "10.77.0.1" } else { "fd77::1" });
            let (outer, header) = if client.is_ipv4() { (20, 20) } else { (40, 40) };
            let large = tcp(client, vip, 0).payload(&[7; 1500 - 20 - 20]);
            let large = large.payload(&alloc::vec![7; 1500 - header - 20]);
            let short = tcp(client, vip, 0).ttl(1);
            let big = if client.is_ipv4() { (3, 4) } else { (2, 0) };
            let late = if client.is_ipv4() { (11, 0) } else { (3, 0) };
            for (sent, (kind, code), rest) in [(large, big, 1500 - outer), (short, late, 0_u32)] {
                let (verdict, got) = world.pass(engine, &sent.frame());
                let most = if client.is_ipv4() { 548 } else { 1232 };
                let quote = sent.packet();
                let want = message(own, client.ip(), kind, code, rest.to_be_bytes());
                let want = want.payload(&quote[..quote.len().min(most)]).macs(US[0], ROUTER);
                let mut want = want.frame();
                if client.is_ipv4() {
                    // Our own header has no id, and may not be fragmented.
                    want[18..22].copy_from_slice(&[0, 0, 0x40, 0]);
                    want[24..26].fill(0);
                    let checksum = Sum::ZERO.bytes(&want[14..34]).checksum().to_be_bytes();
                    want[24..26].copy_from_slice(&checksum);
                }
                assert_eq!((verdict, got), (Verdict::Send(0), want));
            }
            assert_eq!(engine.counters.told.get(), 2);
        });
    }
}

#[test]
fn echo_requests_to_a_vip_are_answered() {
    for (client, vip, backend) in CASES {
        with_engine(|world, engine| {
            world.serve(Protocol::Tcp, vip, Mode::Nat, &[backend], |_| {});
            let (client, vip) = (addr(client).ip(), addr(vip).ip());
            let (asks, answers) = if client.is_ipv4() { (8, 0) } else { (128, 129) };
            let rest = [0, 7, 0, 1];
            let zeros = message(client, vip, asks, 0, [0; 4]);
            verify(&world.pass(engine, &zeros.frame()).1);
            let request = message(client, vip, asks, 0, rest).payload(b"there?").ttl(3);
            let (verdict, got) = world.pass(engine, &request.frame());
            let want = message(vip, client, answers, 0, rest).payload(b"there?");
            assert_eq!((verdict, got), (Verdict::Send(0), want.macs(US[0], ROUTER).frame()));
            let stranger = if client.is_ipv4() { "192.0.2.99" } else { "2001:db8::99" };
            let other = message(client, ip(stranger), asks, 0, rest);
            assert_eq!(world.pass(engine, &other.frame()).0, Verdict::Punt);
        });
    }
}

#[test]
fn stations_of_vips_are_told() {
    with_engine(|world, engine| {
        world.serve(Protocol::Tcp, CASES[0].1, Mode::Nat, &["10.78.0.11:80"], |_| {});
        world.serve(Protocol::Tcp, CASES[1].1, Mode::Nat, &["[fd78::11]:80"], |_| {});
        world.serve(Protocol::Tcp, "192.0.2.77:80", Mode::Proxy, &["10.78.0.11:80"], |_| {});
        let arp = |asked: [u8; 4]| {
            let head = [&[0xff; 6][..], &ROUTER, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &ROUTER].concat();
            [&head[..], &[10, 77, 0, 9], &[0; 6], &asked].concat()
        };
        let (verdict, got) = world.pass(engine, &arp([192, 0, 2, 10]));
        let head = [&ROUTER[..], &US[0], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2], &US[0]].concat();
        let want = [&head[..], &[192, 0, 2, 10], &ROUTER, &[10, 77, 0, 9]].concat();
        assert_eq!((verdict, got), (Verdict::Send(0), want));
        for other in [[192, 0, 2, 11], [192, 0, 2, 77], [10, 77, 0, 1]] {
            assert_eq!(world.pass(engine, &arp(other)).0, Verdict::Punt, "{other:?}");
        }
        let vip: core::net::Ipv6Addr = "2001:db8::10".parse().unwrap();
        let ask = |from: &str, target: core::net::Ipv6Addr, ttl: u8| {
            let group = ip("ff02::1:ff00:10");
            let body = [&target.octets()[..], &[1, 1], &ROUTER].concat();
            let ask = message(ip(from), group, 135, 0, [0; 4]).payload(&body).ttl(ttl);
            ask.macs(ROUTER, [0x33, 0x33, 0xff, 0, 0, 0x10]).frame()
        };
        let told = [&vip.octets()[..], &[2, 1], &US[0]].concat();
        for (from, to, flags, station) in [
            ("fd77::9", "fd77::9", 0x60, ROUTER),
            ("::", "ff02::1", 0x20, [0x33, 0x33, 0, 0, 0, 1]),
        ] {
            let (verdict, got) = world.pass(engine, &ask(from, vip, 255));
            let want = message(vip.into(), ip(to), 136, 0, [flags, 0, 0, 0]).payload(&told);
            let want = want.ttl(255).macs(US[0], station).frame();
            assert_eq!((verdict, got), (Verdict::Send(0), want), "{from}");
        }
        let far = world.pass(engine, &ask("fd77::9", vip, 254)).0;
        assert_eq!(far, Verdict::Drop(DropReason::BadTransport), "it has passed a router");
        let stranger = "2001:db8::99".parse().unwrap();
        assert_eq!(world.pass(engine, &ask("fd77::9", stranger, 255)).0, Verdict::Punt);
    });
}

#[test]
fn what_is_not_ours_is_left_alone() {
    with_engine(|world, engine| {
        let allowed = |policy: &mut Policy| {
            policy.deny = ["203.0.113.0/28".parse().unwrap()].into_iter().collect();
        };
        world.serve(Protocol::Tcp, "192.0.2.10:80", Mode::Nat, &["10.78.0.11:80"], allowed);
        world.serve(Protocol::Tcp, "192.0.2.10:81", Mode::Proxy, &["10.78.0.11:80"], |_| {});
        let client = addr("203.0.113.99:4711");
        for (name, frame, want) in [
            ("another port", syn(client, addr("192.0.2.10:82")).frame(), Verdict::Punt),
            ("a proxied service", syn(client, addr("192.0.2.10:81")).frame(), Verdict::Punt),
            ("another protocol", udp(client, addr("192.0.2.10:80")).frame(), Verdict::Punt),
            (
                "a client who may not",
                syn(addr("203.0.113.1:1"), addr("192.0.2.10:80")).frame(),
                Verdict::Drop(DropReason::Denied),
            ),
            ("too short", alloc::vec![0; 20], Verdict::Punt),
            ("cut off", alloc::vec![8; 14], Verdict::Punt),
        ] {
            let (verdict, got) = world.pass(engine, &frame);
            assert_eq!((verdict, got), (want, frame), "{name}");
        }
        assert!(engine.flows().is_empty());
    });
}

#[test]
fn sums_that_a_sender_left_to_its_port_are_filled_in() {
    for (client, vip, backend) in CASES {
        with_engine(|world, engine| {
            world.serve(Protocol::Tcp, vip, Mode::Nat, &[backend], |_| {});
            let (client, vip, backend) = (addr(client), addr(vip), addr(backend));
            let mut frame = syn(client, vip).payload(b"hello").frame();
            let field = frame.len() - 5 - 24 + 16;
            frame[field..field + 2].copy_from_slice(&[0x12, 0x34]);
            let (verdict, got) = world.pass_as(engine, &frame, TransportChecksum::Partial);
            let want = syn(client, backend).payload(b"hello").ttl(63);
            let want = want.macs(US[1], station(backend.ip())).frame();
            assert_eq!((verdict, got), (Verdict::Send(1), want));
        });
    }
}

proptest! {
    #[test]
    fn there_and_back_is_the_same_packet(
        port in 1024u16.., payload in prop::collection::vec(any::<u8>(), 0..200),
        v6 in any::<bool>(), datagram in any::<bool>(), full in any::<bool>(),
    ) {
        let (client, vip, backend) = CASES[usize::from(v6)];
        let protocol = if datagram { Protocol::Udp } else { Protocol::Tcp };
        let mode = if full { Mode::FullNat } else { Mode::Nat };
        with_engine(|world, engine| {
            world.serve(protocol, vip, mode, &[backend], |_| {});
            let (client, vip) = (SocketAddr::new(addr(client).ip(), port), addr(vip));
            let sample = |from, to| match protocol {
                Protocol::Tcp => tcp(from, to, tcp_flags::ACK).payload(&payload),
                Protocol::Udp => udp(from, to).payload(&payload),
            };
            let (_, there) = world.pass(engine, &sample(client, vip).frame());
            verify(&there);
            let Parsed::Ip(packet) = parse(&there).unwrap() else { panic!() };
            // A server that sends back what it gets.
            let ports = packet.transport.ports().unwrap();
            let from = SocketAddr::new(packet.addresses.destination(), ports.1);
            let to = SocketAddr::new(packet.addresses.source(), ports.0);
            let (_, back) = world.pass(engine, &sample(from, to).macs([9; 6], OUR_MAC).frame());
            let want = sample(vip, client).ttl(63).macs(US[0], ROUTER).frame();
            assert_eq!(back, want);
        });
    }

    #[test]
    fn no_bytes_make_it_panic_and_frames_stay_within_bounds(
        at in 0usize..120, bytes in prop::collection::vec(any::<u8>(), 0..60),
        v6 in any::<bool>(), quotes in any::<bool>(),
    ) {
        let (client, vip, backend) = CASES[usize::from(v6)];
        with_engine(|world, engine| {
            world.serve(Protocol::Udp, vip, Mode::Nat, &[backend], |_| {});
            let (client, vip, backend) = (addr(client), addr(vip), addr(backend));
            let first = udp(client, vip).payload(&[1; 40]);
            world.pass(engine, &first.frame());
            let about = udp(client, backend).payload(&[1; 40]).packet();
            let kind = if v6 { 1 } else { 3 };
            let mut frame = match quotes {
                true => message(backend.ip(), client.ip(), kind, 1, [0; 4]).payload(&about).frame(),
                false => first.frame(),
            };
            let end = frame.len().min(at + bytes.len());
            if at < end {
                frame[at..end].copy_from_slice(&bytes[..end - at]);
            }
            let (_, got) = world.pass(engine, &frame);
            assert!(got.len() <= frame.len() + 100);
        });
    }
}
