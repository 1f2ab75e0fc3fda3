//! The engine on DPDK, on rings in memory: packets are made and taken away by the same thread, and
//! only receive, engine and send are timed. Beside it, DPDK's own test program on such a ring.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use fairway_core::packet::sample::{syn, tcp};
use fairway_core::packet::{BURST, Engine, Ports, tcp_flags};
use fairway_core::{Mode, Tick};
use fairway_dpdk::{
    Batch, Eal, EalOptions, Memory, Mempool, Port, PortSetup, QueuePair, Queues, ring_ports,
};

use crate::packets::{World, cells, client, engine, gigahertz, next, patched, row};
use crate::{Arguments, spread};

/// Bursts that are timed together.
const BURSTS: usize = 8;
/// Packets in flight, some of each, of DPDK's test program.
const IN_FLIGHT: usize = 4;

pub(crate) fn run(arguments: &Arguments) {
    let quick = arguments.quick;
    let rounds = if quick { 1 } else { 5 };
    let packets = if quick { 200_000 } else { 4_000_000 };
    let ghz = gigahertz();
    let (memory, pages) = match free_huge_pages() {
        128.. => (Memory::Private, "2 MiB pages"),
        _ => (Memory::Ordinary, "ordinary pages"),
    };
    let options = EalOptions {
        memory,
        mebibytes: 128,
        prefix: format!("fwbench{}", std::process::id()),
        pci: Vec::new(),
        devices: Vec::new(),
        more: vec!["--log-level=4".into()],
    };
    println!(
        "\n{}, rings in memory, {pages} for packets: 64-byte TCP segments in bursts of {BURST}, \
         random flows, {rounds} rounds (min-max); {ghz:.2} GHz",
        Eal::version()
    );
    let programs = ["io", "macswap", "5tswap"].map(|mode| {
        let cycles: Vec<f64> = (0..rounds).filter_map(|_| testpmd(mode, &options.memory)).collect();
        (mode, cycles)
    });
    println!("{:<34} {:>9}  {:>22}  {:>10}", "", "flows", "ns a packet", "cycles");
    for (mode, cycles) in &programs {
        if cycles.is_empty() {
            println!(
                "testpmd {mode}: not measured: dpdk-testpmd is not installed, or says nothing"
            );
            continue;
        }
        let (median, least, most) = spread(cycles);
        let name = format!("testpmd {mode}");
        println!("{name:<34} {:>9}  {:>22}  {median:>10.1} ({least:.1}-{most:.1})", "", "");
    }
    let eal = Eal::start(&options).unwrap();
    let pool = Mempool::new(&eal, "packets", 8191, 2048).unwrap();
    let mut bench = Bench::new(&eal, &pool, "one");
    for (name, mode, v6, flows) in cells(arguments) {
        let world = World::new(mode, v6);
        bench.engine = engine(flows, v6);
        bench.open(&world, flows, v6, mode.is_two_way());
        let times: Vec<f64> =
            (0..rounds).map(|_| bench.established(&world, flows, v6, packets)).collect();
        row(name, flows, &times, ghz);
    }
    if arguments.mode.is_some() || arguments.flows.is_some() {
        return;
    }
    let mut second = Bench::new(&eal, &pool, "two");
    for flows in if quick { [1000, 100_000] } else { [1000, 1_000_000] } {
        let run = |_| two_workers(&mut bench, &mut second, flows, packets);
        row("nat, two workers, each", flows, &(0..rounds).map(run).collect::<Vec<_>>(), ghz);
    }
    println!("\nns a packet of a burst of {BURST}, nat, 1000 flows: median, 99.9 %, longest");
    for (name, every) in [("no change", usize::MAX), ("published anew every 1000 bursts", 1000)] {
        let (median, most, longest) = swaps(&mut bench, 1000, packets, every);
        println!("{name:<34} {median:>9.1}  {most:>9.1}  {longest:>9.1}");
    }
}

/// Two workers at once, each with a port, a table and half of the flows.
fn two_workers<'p>(bench: &mut Bench<'p>, second: &mut Bench<'p>, flows: u32, packets: u32) -> f64 {
    let worlds = [World::new(Mode::Nat, false), World::new(Mode::Nat, false)];
    let begin = Barrier::new(2);
    let times = std::thread::scope(|scope| {
        let threads: Vec<_> = [bench, second]
            .into_iter()
            .zip(&worlds)
            .map(|(bench, world)| {
                let begin = &begin;
                scope.spawn(move || {
                    bench.engine = engine(flows / 2, false);
                    bench.open(world, flows / 2, false, true);
                    begin.wait();
                    bench.established(world, flows / 2, false, packets)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    times.iter().sum::<f64>() / 2.0
}

/// The median and the longest of bursts, ns a packet, while the configuration is published anew after
/// each so many bursts.
fn swaps(bench: &mut Bench<'_>, flows: u32, packets: u32, every: usize) -> (f64, f64, f64) {
    let mut world = World::new(Mode::Nat, false);
    bench.engine = engine(flows, false);
    bench.open(&world, flows, false, true);
    let mut times = Vec::new();
    let each = (BURSTS * BURST) as u32;
    for group in 1..=(packets / each) as usize {
        if group.is_multiple_of((every / BURSTS).max(1)) {
            world.publish();
        }
        bench.established(&world, flows, false, each);
        times.extend(bench.bursts.iter().map(|time| time.as_nanos() as f64 / BURST as f64));
    }
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    (at(0.5), at(0.999), at(1.0))
}

fn free_huge_pages() -> u32 {
    let path = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// Cycles a packet of DPDK's test program.
fn testpmd(mode: &str, memory: &Memory) -> Option<f64> {
    let pages: &[&str] = match memory {
        Memory::Private => &["--in-memory"],
        _ => &["--no-huge"],
    };
    let mut child = Command::new("dpdk-testpmd")
        .args(["-l", "0,1", "-m", "128", "--no-pci", "--no-telemetry", "--vdev", "net_ring0"])
        .args(["--file-prefix", &format!("fwtestpmd{}", std::process::id())])
        .args(pages)
        .args(["--", "-i", "--record-core-cycles", "--total-num-mbufs=8191"])
        .arg(format!("--forward-mode={mode}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let mut stdin = child.stdin.take()?;
    writeln!(stdin, "start tx_first {IN_FLIGHT}").ok()?;
    // It forwards until it is told to stop: this long is what is measured.
    std::thread::sleep(Duration::from_secs(2));
    writeln!(stdin, "stop\nquit").ok()?;
    let output = child.wait_with_output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (_, rest) = text.split_once("CPU cycles/packet=")?;
    rest.split_whitespace().next()?.parse().ok()
}

struct Bench<'p> {
    engine: Engine<'static>,
    inside: Queues<'p>,
    outside: QueuePair<'p>,
    pool: &'p Mempool<'p>,
    random: u64,
    /// How long each burst took.
    bursts: Vec<Duration>,
}

impl<'p> Bench<'p> {
    fn new(eal: &'p Eal, pool: &'p Mempool<'p>, name: &str) -> Self {
        let [inside, outside] = ring_ports(eal, name, 1, 1024).unwrap();
        let setup = PortSetup { queues: 1, descriptors: 512, mtu: None, helps: true, key: None };
        let open = |id: u16, name: &str| {
            let (_, mut queues) = Port::open_number(eal, (id, name), pool, setup).unwrap();
            queues.remove(0)
        };
        let (inside, outside) = (open(inside, "inside"), open(outside, "outside"));
        let mut queues = Queues::new(eal, pool, None).unwrap();
        queues.add(inside, None);
        let bursts = Vec::new();
        Self { engine: engine(16, false), inside: queues, outside, pool, random: 1, bursts }
    }

    /// Packets made by `frame` of a number, counted up; ns a packet.
    fn measure(
        &mut self,
        world: &World,
        packets: u32,
        mut frame: impl FnMut(u32, &mut u64) -> Vec<u8>,
    ) -> f64 {
        let (mut total, mut count) = (Duration::ZERO, 0);
        let (rx, tx) = &mut self.outside;
        while count < packets {
            for _ in 0..BURSTS {
                let mut batch = self.pool.take(BURST);
                for n in 0..BURST {
                    assert!(batch.write(n, &frame(count, &mut self.random)));
                    count += 1;
                }
                tx.send(&mut batch);
                assert!(batch.is_empty(), "the ring is full");
            }
            let cx = world.context(Tick(1000), self.random);
            self.bursts.clear();
            let mut start = Instant::now();
            for _ in 0..BURSTS {
                self.inside.burst(0, &mut |frames, verdicts| {
                    self.engine.process(frames, verdicts, &cx);
                });
                self.inside.flush();
                let end = Instant::now();
                self.bursts.push(end - start);
                total += end - start;
                start = end;
            }
            for _ in 0..BURSTS {
                let mut batch = Batch::new();
                rx.receive(&mut batch, BURST);
                assert!(batch.is_full(), "a packet is lost: {:?}", self.inside.counts(0));
            }
        }
        total.as_nanos() as f64 / f64::from(count)
    }

    /// Begins all flows, and has the backends answer.
    fn open(&mut self, world: &World, flows: u32, v6: bool, two_way: bool) {
        let first = syn(client(0, v6), world.vip).frame();
        let count = flows.next_multiple_of((BURSTS * BURST) as u32);
        self.measure(world, count, |n, _| patched(&first, client(n % flows, v6)));
        let ends: Vec<_> = self.engine.flows().iter().map(|view| view.flow).collect();
        let flags = tcp_flags::SYN | tcp_flags::ACK;
        let at = |n: u32| &ends[n as usize % ends.len()];
        if two_way {
            self.measure(world, count, |n, _| tcp(at(n).backend, at(n).local, flags).frame());
        }
        self.measure(world, count, |n, _| tcp(at(n).client, at(n).vip, tcp_flags::ACK).frame());
    }

    fn established(&mut self, world: &World, flows: u32, v6: bool, packets: u32) -> f64 {
        let first = tcp(client(0, v6), world.vip, tcp_flags::ACK).payload(&[0; 10]).frame();
        self.measure(world, packets, |_, random| patched(&first, client(next(random) % flows, v6)))
    }
}
