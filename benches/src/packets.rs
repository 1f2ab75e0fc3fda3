//! The packet engine alone: frames in memory, bursts of 32, random flows.
//!
//! Frames are made anew each time, outside of what is measured. Wall time: nothing else runs in
//! between, and other processes show as spread.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;
use std::time::{Duration, Instant};

use memmap2::{Advice, MmapMut};

use crate::{Arguments, spread};
use fairway_core::packet::flow::{Flow, FlowTable, FlowView, Shape};
use fairway_core::packet::sample::{icmp, syn, tcp};
use fairway_core::packet::{
    BURST, Context, Engine, Frame, Link, Route, Routes, Steering, Tunnel, Verdict, checksum::Sum,
    tcp_flags,
};
use fairway_core::{
    Backend, BackendAddr, BackendId, Clients, Frontend, Group, Member, Mode, Policy, Pool,
    PortRange, Protocol, Scheduler, Service, ServiceId, ServiceState, Snapshot, SnapshotBuilder,
    SourceAddress, Standing, Tick, Timeouts, Weight,
};

/// Room before a frame.
const ROOM: usize = 64;
/// Bytes of a buffer.
const BUFFER: usize = 192;
const BACKENDS: u32 = 100;
/// Packets that are timed together.
const TOGETHER: usize = 8 * BURST;

/// What is measured: a name, the mode, and whether it is IPv6.
const MODES: [(&str, Mode, bool); 6] = [
    ("nat", Mode::Nat, false),
    ("nat, IPv6", Mode::Nat, true),
    ("fullNat", Mode::FullNat, false),
    ("dsr", Mode::Dsr, false),
    ("ipip", Mode::Tunnel(Tunnel::Ipip), false),
    ("gue", Mode::Tunnel(Tunnel::Gue), false),
];

/// A row of a table: its name, the mode, whether it is IPv6, and how many flows.
pub(crate) type Cell = (&'static str, Mode, bool, u32);

/// The rows that are wanted.
pub(crate) fn cells(Arguments { quick, mode, flows, .. }: &Arguments) -> Vec<Cell> {
    let sizes: &[u32] =
        if *quick { &[1000, 100_000] } else { &[1000, 100_000, 1_000_000, 4_000_000] };
    let sizes = flows.as_ref().map_or(sizes, std::slice::from_ref);
    let modes = MODES.iter().filter(|(name, ..)| mode.as_ref().is_none_or(|mode| mode == name));
    let cells =
        modes.flat_map(|(name, mode, v6)| sizes.iter().map(|flows| (*name, *mode, *v6, *flows)));
    // Four million are shown once a family.
    cells.filter(|(_, mode, _, flows)| *mode == Mode::Nat || *flows <= 1_000_000).collect()
}

pub(crate) fn run(arguments: &Arguments) {
    let quick = arguments.quick;
    let rounds = if quick { 1 } else { 5 };
    let packets = if quick { 200_000 } else { 4_000_000 };
    let ghz = gigahertz();
    println!(
        "\nThe packet engine alone: 64-byte TCP segments in bursts of {BURST}, random flows, \
         {rounds} rounds (min-max); {ghz:.2} GHz"
    );
    println!("{:<34} {:>9}  {:>22}  {:>10}", "", "flows", "ns a packet", "cycles");
    for (name, mode, v6, flows) in cells(arguments) {
        let mut bench = Bench::new(mode, flows, v6);
        bench.open(flows);
        bench.answer();
        let times: Vec<f64> = (0..rounds).map(|_| bench.established(flows, packets)).collect();
        row(name, flows, &times, ghz);
    }
    if arguments.mode.is_some() || arguments.flows.is_some() {
        return;
    }
    let flows = 100_000;
    let times: Vec<f64> = (0..rounds)
        .map(|_| {
            let mut bench = Bench::new(Mode::Nat, flows, false);
            bench.open(flows)
        })
        .collect();
    row("nat, new flows", flows, &times, ghz);
    let mut bench = Bench::new(Mode::Nat, flows, false);
    let times: Vec<f64> = (0..rounds).map(|n| bench.flood(n, packets)).collect();
    row("nat, SYN flood into a full table", flows, &times, ghz);
    let mut bench = Bench::new(Mode::Nat, flows, false);
    bench.open(flows);
    bench.answer();
    let times: Vec<f64> = (0..rounds).map(|_| bench.with_errors(flows, packets)).collect();
    row("nat, a tenth ICMP errors", flows, &times, ghz);
    let shape = |ipv4, ipv6| Shape { ipv4, ipv6 }.bytes() as f64 / 1e6;
    println!(
        "memory of a flow, both directions: {:.0} bytes (IPv4), {:.0} bytes (IPv6)",
        shape(1_000_000, 0),
        shape(0, 1_000_000)
    );
}

pub(crate) fn row(name: &str, flows: u32, times: &[f64], ghz: f64) {
    let (median, least, most) = spread(times);
    println!("{name:<34} {flows:>9}  {median:>8.1} ({least:.1}-{most:.1})  {:>10.0}", median * ghz);
}

/// The clock of the processor, for cycles.
pub(crate) fn gigahertz() -> f64 {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("cpu MHz\t\t: "));
    line.and_then(|mhz| mhz.parse::<f64>().ok()).unwrap_or(1000.0) / 1000.0
}

/// What the engine decides by: one service over many backends of a family.
pub(crate) struct World {
    pub(crate) snapshot: Snapshot,
    pub(crate) clients: Clients,
    pub(crate) vip: SocketAddr,
}

/// Client `n`.
pub(crate) fn client(n: u32, v6: bool) -> SocketAddr {
    let port = 1024 + (n & 15) as u16 * 3001;
    let ip: IpAddr = match v6 {
        false => Ipv4Addr::from(0x0a80_0000 | (n >> 4)).into(),
        true => Ipv6Addr::from(0x2001_0db8_u128 << 96 | u128::from(n >> 4)).into(),
    };
    SocketAddr::new(ip, port)
}

/// Memory of a flow table with room for so many flows of a family, and the engine over it. One for
/// the life of the process.
pub(crate) fn engine(flows: u32, v6: bool) -> Engine<'static> {
    let shape = match v6 {
        false => Shape { ipv4: flows, ipv6: 16 },
        true => Shape { ipv4: 16, ipv6: flows },
    };
    let region = MmapMut::map_anon(shape.bytes()).unwrap();
    region.advise(Advice::HugePage).unwrap();
    let region = &mut Box::leak(Box::new(region))[..];
    let flows = FlowTable::open(region, shape, [1, 2], false).unwrap();
    Engine::new(flows, Arc::default(), Steering::ALONE, 0)
}

impl World {
    pub(crate) fn new(mode: Mode, v6: bool) -> Self {
        let ip = |v4: [u8; 4], low: u128| match v6 {
            false => IpAddr::from(v4),
            true => Ipv6Addr::from(0xfd78_u128 << 112 | low).into(),
        };
        let backend = |n: u32| ip([10, 78, ((n + 1) >> 8) as u8, (n + 1) as u8], u128::from(n + 1));
        let members = (0..BACKENDS).map(|n| {
            let id = BackendId { slot: n, epoch: NonZeroU32::MIN };
            // Tunnels and direct return keep the port.
            let addr = BackendAddr::new(backend(n), NonZeroU16::new(443));
            Member { backend: Backend::new(id, addr, 1), weight: Weight::ONE }
        });
        let scheduler = Scheduler::Maglev { table_size: None, bounded_load_percent: None };
        let pool = Pool::build(members.collect(), &scheduler).unwrap();
        let own = (0..4).map(|n: u8| ip([10, 78, 255, n], 0xff00 | u128::from(n)));
        let service = Service {
            id: ServiceId(1),
            name: "bench/443".into(),
            protocol: Protocol::Tcp,
            app_protocol: None,
            policy: Arc::new(policy(mode, scheduler, own.collect())),
            groups: [Group::new(Arc::new(pool), |_| Standing::GOOD)].into(),
            previous: None,
            state: ServiceState::new(1),
        };
        let mut builder = SnapshotBuilder::from(&Snapshot::empty());
        let ports = PortRange::single(NonZeroU16::new(443).unwrap());
        let vip = ip([192, 0, 2, 10], 0x1_0000);
        let frontend = Frontend { net: vip.into(), ports, protocol: Protocol::Tcp };
        builder.insert(&[frontend], &Arc::new(service));
        let link = Link {
            port: 0,
            interface: 0,
            tag: None,
            mac: [2; 6],
            mtu: 1500,
            ipv4: Some([10, 78, 0, 1].into()),
            ipv6: Some("fd78::ffff:1".parse().unwrap()),
        };
        let route = |prefix: &str, via: Option<IpAddr>| Route {
            prefix: prefix.parse().unwrap(),
            via,
            link: 0,
        };
        let stations = (0..BACKENDS).map(|n| ((0, backend(n)), [3; 6]));
        let next = ip([10, 1, 0, 9], 0x2_0000);
        let router = [((0, next), [9; 6])];
        let routes = match v6 {
            false => [route("0.0.0.0/0", Some(next)), route("10.78.0.0/16", None)],
            true => [route("::/0", Some(next)), route("fd78::/64", None)],
        };
        builder.set_routes(&Arc::new(Routes::new(vec![link], routes, stations.chain(router))));
        let vip = SocketAddr::new(vip, 443);
        Self { snapshot: builder.finish(), clients: Clients::new(64, [1, 2, 3, 4]), vip }
    }

    /// The same configuration published anew, as after a change elsewhere.
    #[cfg(feature = "dpdk")]
    pub(crate) fn publish(&mut self) {
        self.snapshot = SnapshotBuilder::from(&self.snapshot).finish();
    }

    /// The state of the world for a burst.
    pub(crate) fn context(&self, now: Tick, random: u64) -> Context<'_> {
        let Self { snapshot, clients, .. } = self;
        Context { snapshot, clients, now, micros: now.0 * 1000, random }
    }
}

struct Bench {
    world: World,
    v6: bool,
    engine: Engine<'static>,
    buffers: Vec<[u8; BUFFER]>,
    now: Tick,
    random: u64,
}

impl Bench {
    fn new(mode: Mode, flows: u32, v6: bool) -> Self {
        Self {
            world: World::new(mode, v6),
            v6,
            engine: engine(flows, v6),
            buffers: vec![[0; BUFFER]; TOGETHER],
            now: Tick(1000),
            random: 1,
        }
    }

    /// Packets made by `frame` of a number, counted up; ns a packet. Some bursts are timed
    /// together, so that reading the clock costs next to nothing.
    fn measure(&mut self, packets: u32, mut frame: impl FnMut(u32, &mut u64) -> Vec<u8>) -> f64 {
        let (mut total, mut count) = (Duration::ZERO, 0);
        while count < packets {
            let mut bound = Vec::with_capacity(TOGETHER);
            for (n, buffer) in (count..).zip(&mut self.buffers) {
                let frame = frame(n, &mut self.random);
                buffer[ROOM..ROOM + frame.len()].copy_from_slice(&frame);
                bound.push(Frame::new(buffer, ROOM, ROOM + frame.len()));
            }
            let mut verdicts = [Verdict::Punt; TOGETHER];
            let cx = self.world.context(self.now, self.random);
            let start = Instant::now();
            for (frames, verdicts) in bound.chunks_mut(BURST).zip(verdicts.chunks_mut(BURST)) {
                self.engine.process(frames, verdicts, &cx);
            }
            total += start.elapsed();
            assert!(verdicts.iter().all(|verdict| *verdict == Verdict::Send(0)), "{verdicts:?}");
            count += TOGETHER as u32;
        }
        total.as_nanos() as f64 / f64::from(count)
    }

    /// Begins all flows; ns a flow.
    fn open(&mut self, flows: u32) -> f64 {
        let (v6, first) = (self.v6, syn(client(0, self.v6), self.world.vip).frame());
        self.measure(flows, |n, _| patched(&first, client(n % flows, v6)))
    }

    /// Has the backends answer all flows, and the clients go on.
    fn answer(&mut self) {
        let views: Vec<_> = self.engine.flows().iter().collect();
        let two_way = |view: &&FlowView| view.flow.mode.is_two_way();
        for view in views.iter().filter(two_way) {
            let Flow { client, vip, backend, local, .. } = view.flow;
            let answer = tcp(backend, local, tcp_flags::SYN | tcp_flags::ACK).frame();
            for frame in [answer, tcp(client, vip, tcp_flags::ACK).frame()] {
                self.pass(&frame);
            }
        }
    }

    fn pass(&mut self, bytes: &[u8]) {
        let buffer = &mut self.buffers[0];
        buffer[ROOM..ROOM + bytes.len()].copy_from_slice(bytes);
        let mut frame = Frame::new(buffer, ROOM, ROOM + bytes.len());
        let mut verdicts = [Verdict::Punt];
        let cx = self.world.context(self.now, self.random);
        self.engine.process(std::slice::from_mut(&mut frame), &mut verdicts, &cx);
        assert_eq!(verdicts, [Verdict::Send(0)]);
    }

    fn established(&mut self, flows: u32, packets: u32) -> f64 {
        let v6 = self.v6;
        let first = tcp(client(0, v6), self.world.vip, tcp_flags::ACK).payload(&[0; 10]).frame();
        self.measure(packets, |_, random| patched(&first, client(next(random) % flows, v6)))
    }

    /// Every packet is another flow's first.
    fn flood(&mut self, round: u32, packets: u32) -> f64 {
        let first = syn(client(0, false), self.world.vip).frame();
        let number = |n| (round * packets + n) & 0x0fff_ffff;
        self.measure(packets, |n, _| patched(&first, client(number(n), false)))
    }

    fn with_errors(&mut self, flows: u32, packets: u32) -> f64 {
        let vip = self.world.vip;
        let first = tcp(client(0, false), vip, tcp_flags::ACK).payload(&[0; 10]).frame();
        self.measure(packets, |n, random| {
            let client = client(next(random) % flows, false);
            if n % 10 != 0 {
                return patched(&first, client);
            }
            let about = tcp(vip, client, tcp_flags::ACK).packet();
            icmp([10, 1, 0, 9].into(), vip.ip(), 3, 1, [0; 4]).payload(&about).frame()
        })
    }
}

pub(crate) fn next(random: &mut u64) -> u32 {
    *random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
    (*random >> 33) as u32
}

/// `frame`, from `client`. The transport checksum is not looked at, and stays wrong.
pub(crate) fn patched(frame: &[u8], client: SocketAddr) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let l4 = match client.ip() {
        IpAddr::V4(ip) => {
            frame[26..30].copy_from_slice(&ip.octets());
            frame[24..26].fill(0);
            let checksum = Sum::ZERO.bytes(&frame[14..34]).checksum().to_be_bytes();
            frame[24..26].copy_from_slice(&checksum);
            34
        }
        IpAddr::V6(ip) => {
            frame[22..38].copy_from_slice(&ip.octets());
            54
        }
    };
    frame[l4..l4 + 2].copy_from_slice(&client.port().to_be_bytes());
    frame
}

fn policy(mode: Mode, scheduler: Scheduler, own: Vec<IpAddr>) -> Policy {
    // What is not measured is not to end.
    let hour = Duration::from_secs(3600);
    Policy {
        mode,
        scheduler,
        timeouts: Timeouts { connect: hour, idle: hour, half_closed: hour },
        source: SourceAddress { addresses: own, ..SourceAddress::default() },
        ..Policy::default()
    }
}
