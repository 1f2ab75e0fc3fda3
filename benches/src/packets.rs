//! The packet engine alone: frames in memory, bursts of 32, random flows.
//!
//! Frames are made anew each time, outside of what is measured. Wall time: nothing else runs in
//! between, and other processes show as spread.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;
use std::time::{Duration, Instant};

use memmap2::{Advice, MmapMut};

use crate::spread;
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

pub(crate) fn run(quick: bool) {
    let rounds = if quick { 1 } else { 5 };
    let packets = if quick { 200_000 } else { 4_000_000 };
    let ghz = gigahertz();
    println!(
        "\nThe packet engine alone: 64-byte TCP segments in bursts of {BURST}, random flows, \
         {rounds} rounds (min-max); {ghz:.2} GHz"
    );
    println!("{:<34} {:>9}  {:>22}  {:>10}", "", "flows", "ns a packet", "cycles");
    let sizes: &[u32] =
        if quick { &[1000, 100_000] } else { &[1000, 100_000, 1_000_000, 4_000_000] };
    for (name, mode) in [
        ("nat", Mode::Nat),
        ("fullNat", Mode::FullNat),
        ("dsr", Mode::Dsr),
        ("ipip", Mode::Tunnel(Tunnel::Ipip)),
        ("gue", Mode::Tunnel(Tunnel::Gue)),
    ] {
        for flows in sizes.iter().filter(|flows| mode == Mode::Nat || **flows <= 1_000_000) {
            let mut bench = Bench::new(mode, *flows);
            bench.open(*flows);
            bench.answer();
            let times: Vec<f64> = (0..rounds).map(|_| bench.established(*flows, packets)).collect();
            row(name, *flows, &times, ghz);
        }
    }
    let flows = 100_000;
    let times: Vec<f64> = (0..rounds)
        .map(|_| {
            let mut bench = Bench::new(Mode::Nat, flows);
            bench.open(flows)
        })
        .collect();
    row("nat, new flows", flows, &times, ghz);
    let mut bench = Bench::new(Mode::Nat, flows);
    let times: Vec<f64> = (0..rounds).map(|n| bench.flood(n, packets)).collect();
    row("nat, SYN flood into a full table", flows, &times, ghz);
    let mut bench = Bench::new(Mode::Nat, flows);
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

fn row(name: &str, flows: u32, times: &[f64], ghz: f64) {
    let (median, least, most) = spread(times);
    println!("{name:<34} {flows:>9}  {median:>8.1} ({least:.1}-{most:.1})  {:>10.0}", median * ghz);
}

/// The clock of the processor, for cycles.
fn gigahertz() -> f64 {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("cpu MHz\t\t: "));
    line.and_then(|mhz| mhz.parse::<f64>().ok()).unwrap_or(1000.0) / 1000.0
}

struct Bench {
    snapshot: Snapshot,
    clients: Clients,
    engine: Engine<'static>,
    buffers: Vec<[u8; BUFFER]>,
    now: Tick,
    random: u64,
}

const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);

/// Client `n`.
fn client(n: u32) -> SocketAddr {
    let ip = Ipv4Addr::from(0x0a80_0000 | (n >> 4));
    SocketAddr::new(ip.into(), 1024 + (n & 15) as u16 * 3001)
}

impl Bench {
    fn new(mode: Mode, flows: u32) -> Self {
        let shape = Shape { ipv4: flows, ipv6: 16 };
        // One for the life of the process: it goes when the measurement ends.
        let region = MmapMut::map_anon(shape.bytes()).unwrap();
        region.advise(Advice::HugePage).unwrap();
        let flows =
            FlowTable::open(&mut Box::leak(Box::new(region))[..], shape, [1, 2], false).unwrap();
        let backend = |n: u32| IpAddr::from(Ipv4Addr::from(0x0a4e_0000 | (n + 1)));
        let members = (0..BACKENDS).map(|n| {
            let id = BackendId { slot: n, epoch: NonZeroU32::MIN };
            // Tunnels and direct return keep the port.
            let addr = BackendAddr::new(backend(n), NonZeroU16::new(443));
            Member { backend: Backend::new(id, addr, 1), weight: Weight::ONE }
        });
        let scheduler = Scheduler::Maglev { table_size: None, bounded_load_percent: None };
        let pool = Pool::build(members.collect(), &scheduler).unwrap();
        let service = Service {
            id: ServiceId(1),
            name: "bench/443".into(),
            protocol: Protocol::Tcp,
            policy: Arc::new(policy(mode, scheduler)),
            groups: [Group::new(Arc::new(pool), |_| Standing::GOOD)].into(),
            previous: None,
            state: ServiceState::new(1),
        };
        let mut builder = SnapshotBuilder::from(&Snapshot::empty());
        let ports = PortRange::single(NonZeroU16::new(443).unwrap());
        let frontend = Frontend { net: IpAddr::from(VIP).into(), ports, protocol: Protocol::Tcp };
        builder.insert(&[frontend], &Arc::new(service));
        let link = Link {
            port: 0,
            interface: 0,
            tag: None,
            mac: [2; 6],
            mtu: 1500,
            ipv4: Some([10, 78, 0, 1].into()),
            ipv6: None,
        };
        let route = |prefix: &str, via: Option<[u8; 4]>| Route {
            prefix: prefix.parse().unwrap(),
            via: via.map(Into::into),
            link: 0,
        };
        let stations = (0..BACKENDS).map(|n| ((0, backend(n)), [3; 6]));
        let router = [((0, IpAddr::from([10, 1, 0, 9])), [9; 6])];
        let routes = [route("0.0.0.0/0", Some([10, 1, 0, 9])), route("10.78.0.0/16", None)];
        builder.set_routes(&Arc::new(Routes::new(vec![link], routes, stations.chain(router))));
        Self {
            snapshot: builder.finish(),
            clients: Clients::new(64),
            engine: Engine::new(flows, Arc::default(), Steering::ALONE, 0),
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
            let cx = Context {
                snapshot: &self.snapshot,
                clients: &self.clients,
                now: self.now,
                micros: self.now.0 * 1000,
                random: self.random,
            };
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
        let first = syn(client(0), (VIP, 443).into()).frame();
        self.measure(flows, |n, _| patched(&first, client(n % flows)))
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
        let cx = Context {
            snapshot: &self.snapshot,
            clients: &self.clients,
            now: self.now,
            micros: self.now.0 * 1000,
            random: self.random,
        };
        self.engine.process(std::slice::from_mut(&mut frame), &mut verdicts, &cx);
        assert_eq!(verdicts, [Verdict::Send(0)]);
    }

    fn established(&mut self, flows: u32, packets: u32) -> f64 {
        let first = tcp(client(0), (VIP, 443).into(), tcp_flags::ACK).payload(&[0; 10]).frame();
        self.measure(packets, |_, random| patched(&first, client(next(random) % flows)))
    }

    /// Every packet is another flow's first.
    fn flood(&mut self, round: u32, packets: u32) -> f64 {
        let first = syn(client(0), (VIP, 443).into()).frame();
        self.measure(packets, |n, _| patched(&first, client((round * packets + n) & 0x0fff_ffff)))
    }

    fn with_errors(&mut self, flows: u32, packets: u32) -> f64 {
        let first = tcp(client(0), (VIP, 443).into(), tcp_flags::ACK).payload(&[0; 10]).frame();
        self.measure(packets, |n, random| {
            let client = client(next(random) % flows);
            if n % 10 != 0 {
                return patched(&first, client);
            }
            let about = tcp((VIP, 443).into(), client, tcp_flags::ACK).packet();
            icmp([10, 1, 0, 9].into(), VIP.into(), 3, 1, [0; 4]).payload(&about).frame()
        })
    }
}

fn next(random: &mut u64) -> u32 {
    *random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
    (*random >> 33) as u32
}

/// `frame`, from `client`. The transport checksum is not looked at, and stays wrong.
fn patched(frame: &[u8], client: SocketAddr) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if let IpAddr::V4(ip) = client.ip() {
        frame[26..30].copy_from_slice(&ip.octets());
    }
    frame[34..36].copy_from_slice(&client.port().to_be_bytes());
    frame[24..26].fill(0);
    let checksum = Sum::ZERO.bytes(&frame[14..34]).checksum().to_be_bytes();
    frame[24..26].copy_from_slice(&checksum);
    frame
}

fn policy(mode: Mode, scheduler: Scheduler) -> Policy {
    // What is not measured is not to end.
    let hour = Duration::from_secs(3600);
    Policy {
        mode,
        scheduler,
        timeouts: Timeouts { connect: hour, idle: hour, half_closed: hour },
        source: SourceAddress {
            addresses: (0..4_u32).map(|n| Ipv4Addr::from(0x0a4e_ff00 | n).into()).collect(),
            ..SourceAddress::default()
        },
        ..Policy::default()
    }
}
