//! Two workers at ports of rings with two queues, which divide packets as it happens: what comes by the
//! wrong queue goes to its worker, and leaves once and unharmed.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod common;

use fairway_core::packet::golden::{self, Golden};
use fairway_core::packet::{Context, Frame, Ports, Steering, Verdict, VlanTag};
use fairway_core::{Clients, Mode, Tick};
use fairway_dpdk::{Eal, Exchange, Mempool, Port, PortSetup, Queues, ring_ports};

const WORKERS: u16 = 2;
/// The tag of the servers' side, which rings leave in the bytes.
const TAG: Option<VlanTag> = Some(VlanTag(7));

#[test]
fn packets_reach_the_worker_that_has_their_flow() {
    let eal = Eal::start(&common::options([])).unwrap();
    let pool = Mempool::new(&eal, "packets", 2047, 2048).unwrap();
    let setup = PortSetup { queues: WORKERS, descriptors: 128, mtu: None, helps: true, key: None };
    let ends = Exchange::between(&eal, WORKERS.into()).unwrap().into_iter();
    let mut workers: Vec<_> =
        ends.map(|end| Queues::new(&eal, &pool, Some(end)).unwrap()).collect();
    // What lies on their far sides, each by a queue of its own.
    let mut outside = [0; WORKERS as usize].map(|_| Queues::new(&eal, &pool, None).unwrap());
    for side in ["clients", "servers"] {
        let [near, far] = ring_ports(&eal, side, WORKERS, 128).unwrap();
        let open = |id| Port::open_number(&eal, (id, side), &pool, setup).unwrap().1;
        workers.iter_mut().zip(open(near)).for_each(|(queues, pair)| queues.add(pair, None));
        outside.iter_mut().zip(open(far)).for_each(|(queues, pair)| queues.add(pair, None));
    }

    let all = golden::all();
    let (snapshot, clients) = (golden::snapshot(&all, [None, TAG]), Clients::new(64, [1, 2, 3, 4]));
    let mut regions = [0; WORKERS as usize].map(|_| common::region());
    let engines = (0..)
        .zip(&mut regions)
        .map(|(worker, region)| common::engine(region, Steering::of(worker, WORKERS)));
    let mut engines: Vec<_> = engines.collect();
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
            common::send(&mut outside[queue], step.side, &common::on(step.side, TAG, &step.sent));
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
            let far = outside.iter_mut();
            let got: Vec<_> = far.flat_map(|far| common::received(far, 1 - step.side)).collect();
            let [got] = &got[..] else { panic!("{name}: {}: {} left", step.name, got.len()) };
            assert_eq!(*got, common::wanted(step, TAG, got), "{name}: {}", step.name);
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
