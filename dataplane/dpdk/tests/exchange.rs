//! Two workers at ports of rings with two queues, which divide packets as it happens: what comes by the
//! wrong queue goes to its worker, and leaves once and unharmed.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::sync::Arc;

use fairway_core::packet::flow::{FlowTable, HeapRegion, Shape};
use fairway_core::packet::golden::{self, Golden};
use fairway_core::packet::{Context, Engine, Frame, Ports, Steering, Verdict, VlanTag};
use fairway_core::{Clients, Mode, Tick};
use fairway_dpdk::{
    Batch, Eal, EalOptions, Exchange, Memory, Mempool, Port, PortSetup, QueuePair, Queues,
    ring_ports,
};

const WORKERS: u16 = 2;
/// The tag of the servers' side, which rings leave in the bytes.
const TAG: VlanTag = VlanTag(7);

/// A frame as it is on a side.
fn on(side: u16, frame: &[u8]) -> Vec<u8> {
    let tag: &[u8] = if side == 1 { &TAG.bytes() } else { &[] };
    [&frame[..12], tag, &frame[12..]].concat()
}

#[test]
fn packets_reach_the_worker_that_has_their_flow() {
    let options = EalOptions {
        memory: Memory::Ordinary,
        mebibytes: 64,
        prefix: format!("fw{}", std::process::id()),
        pci: Vec::new(),
        devices: Vec::new(),
        more: vec!["--log-level=4".into()],
    };
    let eal = Eal::start(&options).unwrap();
    let pool = Mempool::new(&eal, "packets", 2047, 2048).unwrap();
    let setup = PortSetup { queues: WORKERS, descriptors: 128, mtu: None, helps: true, key: None };
    let ends = Exchange::between(&eal, WORKERS.into()).unwrap().into_iter();
    let mut workers: Vec<_> =
        ends.map(|end| Queues::new(&eal, &pool, Some(end)).unwrap()).collect();
    let mut outside: Vec<Vec<QueuePair<'_>>> = Vec::new();
    for side in ["clients", "servers"] {
        let [near, far] = ring_ports(&eal, side, WORKERS, 128).unwrap();
        let open = |id| Port::open_number(&eal, (id, side), &pool, setup).unwrap().1;
        workers.iter_mut().zip(open(near)).for_each(|(queues, pair)| queues.add(pair, None));
        outside.push(open(far));
    }

    let all = golden::all();
    let (snapshot, clients) = (golden::snapshot(&all, [None, Some(TAG)]), Clients::new(64));
    let shape = Shape { ipv4: 256, ipv6: 256 };
    let mut regions: Vec<_> = (0..WORKERS).map(|_| HeapRegion::new(shape.bytes())).collect();
    let mut engines: Vec<_> = (0..)
        .zip(&mut regions)
        .map(|(worker, region)| {
            let flows = FlowTable::open(region.bytes(), shape, [1, 2], false).unwrap();
            Engine::new(flows, Arc::default(), Steering::of(worker, WORKERS), 0)
        })
        .collect();
    let now = Tick(1000);
    let cx = Context { snapshot: &snapshot, clients: &clients, now, micros: 0, random: 1 };
    // Those with one local port alone belong to one worker.
    let any_worker = |golden: &&Golden| {
        (golden.mode != Mode::FullNat && golden.vip.is_ipv4() == golden.backend.is_ipv4())
            && golden.steps.iter().all(|step| !step.name.contains("fragment"))
    };
    let (mut count, mut passed) = (0, 0);
    for Golden { name, steps, .. } in all.iter().filter(any_worker) {
        for step in steps {
            let queue = count % usize::from(WORKERS);
            let mut batch = pool.take(1);
            assert!(batch.write(0, &on(step.side, &step.sent)));
            outside[usize::from(step.side)][queue].1.send(&mut batch);
            let mut turn = |at: usize, foreign: bool| {
                let mut work = |frames: &mut [Frame<'_>], verdicts: &mut [Verdict]| {
                    engines[at].process(frames, verdicts, &cx);
                    let on = |verdict: &&Verdict| matches!(verdict, Verdict::Pass(_));
                    passed += verdicts.iter().filter(on).count();
                };
                let done = match foreign {
                    true => workers[at].passed(&mut work),
                    false => workers[at].burst(step.side, &mut work),
                };
                workers[at].flush();
                done
            };
            assert_eq!(turn(queue, false), 1, "{name}: {}", step.name);
            let came: usize = (0..usize::from(WORKERS)).map(|at| turn(at, true)).sum();
            assert!(came <= 1);
            let mut got = Batch::new();
            for (rx, _) in &mut outside[usize::from(1 - step.side)] {
                rx.receive(&mut got, 32);
            }
            assert_eq!(got.len(), 1, "{name}: {}", step.name);
            let mut want = on(1 - step.side, &step.want);
            let bytes = got.bytes(0).unwrap();
            let shift = if step.side == 0 { VlanTag::LENGTH } else { 0 };
            for spread in &step.spread {
                let spread = spread.start + shift..spread.end + shift;
                want[spread.clone()].copy_from_slice(&bytes[spread]);
            }
            assert_eq!(bytes, want, "{name}: {}", step.name);
            count += 1;
        }
    }
    assert!(passed > count / 4, "{passed} of {count} went by a ring");
    for port in 0..2 {
        for queues in &mut workers {
            let counts = queues.counts(port);
            assert_eq!((counts.full, counts.unpassed, counts.cut), (0, 0, 0));
        }
    }
    drop((workers, outside));
    assert_eq!(pool.available(), pool.size(), "no packet is lost");
}
