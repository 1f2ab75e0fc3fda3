//! What each mode makes of packets, byte by byte: for tests of the engine alone and of ports.
//!
//! ```text
//! clients ── router ── (side 0) here (side 1) ── backend
//! ```

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use core::num::{NonZeroU16, NonZeroU32};
use core::ops::Range;

use super::frame::VlanTag;
use super::parse::{ETHERNET, protocol, tcp_flags};
use super::routes::{Link, Mac, Route, Routes};
use super::sample::{Sample, icmp, ip_in_ip, sctp, syn, tcp, udp};
use super::tunnel::{GUE_PORT, Tunnel};
use crate::{
    Backend, BackendAddr, BackendId, Frontend, Group, IpPrefix, Member, Mode, Policy, Pool,
    PortRange, Protocol, Scheduler, Service, ServiceId, ServiceState, Snapshot, SnapshotBuilder,
    SourceAddress, Standing, Weight,
};

/// Our stations on the side of clients and on that of backends.
pub const US: [Mac; 2] = [[2, 7, 7, 0, 0, 1], [2, 7, 8, 0, 0, 1]];
/// The router that clients are behind.
pub const ROUTER: Mac = [2, 7, 7, 0, 0, 9];
/// The backend.
pub const BACKEND: Mac = [2, 7, 8, 0, 0, 11];
/// The port of our own addresses.
pub const OWN_PORT: u16 = 20_000;

/// Addresses of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// Whom packets come from.
    pub client: SocketAddr,
    /// What it dials.
    pub vip: IpAddr,
    /// Who serves.
    pub backend: IpAddr,
    /// Ours on the side of clients, and of backends.
    pub links: [IpAddr; 2],
    /// Where `fullNat` comes from.
    pub own: IpAddr,
    /// The router's.
    pub router: IpAddr,
}

/// Those of IPv4.
pub const V4: Addresses = Addresses {
    client: SocketAddr::new(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7)), 4711),
    vip: IpAddr::V4(Ipv4Addr::new(10, 99, 0, 1)),
    backend: IpAddr::V4(Ipv4Addr::new(10, 78, 0, 11)),
    links: [IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1)), IpAddr::V4(Ipv4Addr::new(10, 78, 0, 1))],
    own: IpAddr::V4(Ipv4Addr::new(10, 99, 1, 1)),
    router: IpAddr::V4(Ipv4Addr::new(10, 77, 0, 9)),
};

/// Those of IPv6.
pub const V6: Addresses = Addresses {
    client: SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, 7)), 4711),
    vip: IpAddr::V6(Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 1)),
    backend: IpAddr::V6(Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, 0x11)),
    links: [
        IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1)),
        IpAddr::V6(Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, 1)),
    ],
    own: IpAddr::V6(Ipv6Addr::new(0xfd99, 1, 0, 0, 0, 0, 0, 1)),
    router: IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 9)),
};

/// A service, and what it makes of one connection's packets, in order.
#[derive(Debug, Clone)]
pub struct Golden {
    /// For people.
    pub name: String,
    /// How packets are carried.
    pub mode: Mode,
    /// The transport protocol.
    pub protocol: Protocol,
    /// What clients dial.
    pub vip: SocketAddr,
    /// Who serves.
    pub backend: SocketAddr,
    /// Packets.
    pub steps: Vec<Step>,
}

/// A packet that comes, and what leaves.
#[derive(Debug, Clone)]
pub struct Step {
    /// For people.
    pub name: &'static str,
    /// The side that it comes by; what leaves goes by the other.
    pub side: u16,
    /// The frame as it comes.
    pub sent: Vec<u8>,
    /// The frame as it leaves.
    pub want: Vec<u8>,
    /// Bytes of that which spread flows, and are any.
    pub spread: Vec<Range<usize>>,
}

/// Every mode, family and protocol; each service has a port of its own, so that all can be served
/// at once.
#[must_use]
pub fn all() -> Vec<Golden> {
    let mut all = Vec::new();
    for at in [V4, V6] {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            let port = |all: &Vec<Golden>| 1000 + all.len() as u16;
            all.push(rewritten(Mode::Nat, protocol, &at, port(&all)));
            if protocol != Protocol::Sctp {
                all.push(rewritten(Mode::FullNat, protocol, &at, port(&all)));
            }
            all.push(kept(Mode::Dsr, protocol, &at, &at, port(&all)));
            for tunnel in [Tunnel::Ipip, Tunnel::Gue, Tunnel::GueWithHeader] {
                for outer in [V4, V6] {
                    let mode = Mode::Tunnel(tunnel);
                    all.push(kept(mode, protocol, &at, &outer, port(&all)));
                }
            }
        }
    }
    all
}

/// The state of the world in which golden packets are what they are: one service each, and both
/// sides, whose packets may have tags.
///
/// # Panics
/// Never with what [`all`] returns.
#[must_use]
pub fn snapshot(all: &[Golden], tags: [Option<VlanTag>; 2]) -> Snapshot {
    let mut builder = SnapshotBuilder::from(&Snapshot::empty());
    let scheduler = Scheduler::Maglev { table_size: None, bounded_load_percent: None };
    for (n, Golden { name, mode, protocol, vip, backend, .. }) in all.iter().enumerate() {
        let slot = n as u32;
        let id = BackendId { slot, epoch: NonZeroU32::MIN };
        let addr = BackendAddr::new(backend.ip(), NonZeroU16::new(backend.port()));
        let member = Member { backend: Backend::new(id, addr, 1), weight: Weight::ONE };
        let source = SourceAddress {
            addresses: alloc::vec![V4.own, V6.own],
            ports: Some((OWN_PORT, OWN_PORT)),
            ..SourceAddress::default()
        };
        let policy = Policy { mode: *mode, scheduler, source, ..Policy::default() };
        let pool = Pool::build(alloc::vec![member], &scheduler).expect("one member");
        let service = Service {
            id: ServiceId(slot + 1),
            name: name.as_str().into(),
            protocol: *protocol,
            app_protocol: None,
            policy: Arc::new(policy),
            groups: [Group::new(Arc::new(pool), |_| Standing::GOOD)].into(),
            previous: None,
            state: ServiceState::new(1),
        };
        let port = NonZeroU16::new(vip.port()).expect("golden services have ports");
        let (net, ports) = (vip.ip().into(), PortRange::single(port));
        let frontend = Frontend { net, ports, protocol: *protocol };
        builder.insert(&[frontend], &Arc::new(service));
    }
    builder.set_routes(&Arc::new(routes(tags)));
    builder.finish()
}

fn routes(tags: [Option<VlanTag>; 2]) -> Routes {
    let link = |side: usize| Link {
        port: side as u16,
        interface: side as u32,
        tag: tags[side],
        mac: US[side],
        mtu: 1500,
        ipv4: match V4.links[side] {
            IpAddr::V4(ip) => Some(ip),
            IpAddr::V6(_) => None,
        },
        ipv6: match V6.links[side] {
            IpAddr::V6(ip) => Some(ip),
            IpAddr::V4(_) => None,
        },
    };
    let route = |ip: IpAddr, length, via, link| {
        let prefix = IpPrefix::containing(ip, length);
        Route { prefix, via, link }
    };
    let both = |at: Addresses| {
        let length = if at.vip.is_ipv4() { 24 } else { 64 };
        [route(at.vip, 0, Some(at.router), 0), route(at.backend, length, None, 1)]
    };
    let stations =
        [V4, V6].into_iter().flat_map(|at| [((0, at.router), ROUTER), ((1, at.backend), BACKEND)]);
    Routes::new(alloc::vec![link(0), link(1)], [V4, V6].into_iter().flat_map(both), stations)
}

/// First and later packets of a protocol.
fn packets(protocol: Protocol, from: SocketAddr, to: SocketAddr) -> [Sample; 2] {
    match protocol {
        Protocol::Tcp => [syn(from, to), tcp(from, to, tcp_flags::ACK).payload(b"hello")],
        Protocol::Udp => [udp(from, to).payload(b"question"), udp(from, to).payload(b"again!")],
        Protocol::Sctp => [sctp(from, to), sctp(from, to).payload(b"more")],
    }
}

/// A datagram of 2000 bytes in two parts.
fn parts(from: SocketAddr, to: SocketAddr) -> [Sample; 2] {
    let data: Vec<u8> = (0..2000_u32).map(|n| n as u8).collect();
    let whole = udp(from, to).payload(&data).packet();
    let body = &whole[whole.len() - 2008..];
    let first = udp(from, to).id(77).raw(&body[..1400]).part(0, true);
    [first, udp(from, to).id(77).payload(&body[1400..]).part(1400, false)]
}

fn rewritten(mode: Mode, protocol: Protocol, at: &Addresses, port: u16) -> Golden {
    let (client, vip) = (at.client, SocketAddr::new(at.vip, port));
    // The checksum of SCTP is not of addresses.
    let backend = SocketAddr::new(at.backend, if protocol == Protocol::Sctp { port } else { 8443 });
    let local = match mode {
        Mode::FullNat => SocketAddr::new(at.own, OWN_PORT),
        _ => client,
    };
    let mut steps = Vec::new();
    let mut step = |name, side: u16, sent: Sample, want: Sample| {
        let (far, near) = [(ROUTER, BACKEND), (BACKEND, ROUTER)][usize::from(side)];
        let [come, go] = [US[usize::from(side)], US[usize::from(1 - side)]];
        let (sent, want) = (sent.macs(far, come).frame(), want.ttl(63).macs(go, near).frame());
        steps.push(Step { name, side, sent, want, spread: Vec::new() });
    };
    let names = ["first", "later"];
    let there = packets(protocol, client, vip).into_iter().zip(packets(protocol, local, backend));
    for ((sent, want), name) in there.zip(names) {
        step(name, 0, sent, want);
    }
    let [_, sent] = packets(protocol, backend, local);
    let [_, want] = packets(protocol, vip, client);
    step("reply", 1, sent, want);
    if protocol == Protocol::Udp {
        let both = parts(client, vip).into_iter().zip(parts(local, backend));
        for ((sent, want), name) in both.zip(["first fragment", "later fragment"]) {
            step(name, 0, sent, want);
        }
        let both = parts(backend, local).into_iter().zip(parts(vip, client));
        for ((sent, want), name) in both.zip(["first fragment back", "later fragment back"]) {
            step(name, 1, sent, want);
        }
    }
    if protocol != Protocol::Sctp {
        // The backend says that it takes no more than 1280 bytes.
        let (kind, code) = if client.is_ipv4() { (3, 4) } else { (2, 0) };
        let error = |from, to, about: Sample| {
            let rest = 1280_u32.to_be_bytes();
            icmp(from, to, kind, code, rest).payload(&about.ttl(63).packet())
        };
        let [_, sent] = packets(protocol, local, backend);
        let [_, want] = packets(protocol, client, vip);
        let (sent, want) =
            (error(backend.ip(), local.ip(), sent), error(vip.ip(), client.ip(), want));
        step("error to the client", 1, sent, want);
        // And the client's router of the answer.
        let [_, sent] = packets(protocol, vip, client);
        let [_, want] = packets(protocol, backend, local);
        let from = if mode == Mode::FullNat { local.ip() } else { at.router };
        let (sent, want) = (error(at.router, vip.ip(), sent), error(from, backend.ip(), want));
        step("error to the backend", 0, sent, want);
    }
    let name = format!("{mode} {protocol} {vip}");
    Golden { name, mode, protocol, vip, backend, steps }
}

fn kept(mode: Mode, protocol: Protocol, at: &Addresses, outer: &Addresses, port: u16) -> Golden {
    let (client, vip) = (at.client, SocketAddr::new(at.vip, port));
    let backend = SocketAddr::new(outer.backend, port);
    let mut steps = Vec::new();
    let mut step = |name, sent: Sample| {
        let inner = sent.clone().ttl(63);
        let (want, spread) = match mode {
            Mode::Tunnel(tunnel) => carried(&inner, tunnel, outer),
            _ => (inner.macs(US[1], BACKEND).frame(), Vec::new()),
        };
        let sent = sent.macs(ROUTER, US[0]).frame();
        steps.push(Step { name, side: 0, sent, want, spread });
    };
    let [first, later] = packets(protocol, client, vip);
    step("first", first);
    step("later", later);
    if protocol == Protocol::Udp {
        let [first, later] = parts(client, vip);
        step("first fragment", first);
        step("later fragment", later);
    }
    let name = format!("{mode} {protocol} {vip} by {}", outer.backend);
    Golden { name, mode, protocol, vip, backend, steps }
}

/// A packet in a tunnel, and the bytes that spread flows.
fn carried(inner: &Sample, tunnel: Tunnel, outer: &Addresses) -> (Vec<u8>, Vec<Range<usize>>) {
    let (from, to) = (outer.links[1], outer.backend);
    let packet = inner.packet();
    let number = if packet[0] >> 4 == 4 { protocol::IPIP } else { protocol::IPV6 };
    let id = if packet[0] >> 4 == 4 { u16::from_be_bytes([packet[4], packet[5]]) } else { 0 };
    let mut sample = match tunnel {
        Tunnel::Ipip => ip_in_ip(from, to, number, &packet),
        Tunnel::Gue | Tunnel::GueWithHeader => {
            let header: &[u8] = match tunnel {
                Tunnel::GueWithHeader => &[0, number, 0, 0],
                _ => &[],
            };
            let (from, to) = (SocketAddr::new(from, 0), SocketAddr::new(to, GUE_PORT));
            udp(from, to).payload(&[header, &packet].concat())
        }
    };
    sample = sample.id(id).macs(US[1], BACKEND);
    // Of IPv6 nothing may be fragmented on its way.
    if packet[0] >> 4 == 6 {
        sample = sample.whole();
    }
    let mut want = sample.frame();
    let mut spread = Vec::new();
    let l4 = if to.is_ipv4() {
        ETHERNET + 20
    } else {
        spread.push(ETHERNET + 1..ETHERNET + 4);
        ETHERNET + 40
    };
    if tunnel != Tunnel::Ipip {
        spread.push(l4..l4 + 2);
        match to {
            // None is needed.
            IpAddr::V4(_) => want[l4 + 6..l4 + 8].fill(0),
            IpAddr::V6(_) => spread.push(l4 + 6..l4 + 8),
        }
    }
    (want, spread)
}
