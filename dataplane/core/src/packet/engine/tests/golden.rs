//! Every mode on golden packets; ports are tried with the same ones.

use super::*;
use crate::packet::golden::{self, Golden, Step};

#[test]
fn every_mode_makes_of_packets_what_it_is_to_make() {
    let all = golden::all();
    let (snapshot, clients) = (golden::snapshot(&all, [None; 2]), Clients::new(64, [1, 2, 3, 4]));
    let shape = Shape { ipv4: 256, ipv6: 256 };
    let mut region = HeapRegion::new(shape.bytes());
    let flows = FlowTable::open(region.bytes(), shape, [1, 2], false).unwrap();
    let mut engine = Engine::new(flows, Arc::default(), Steering::ALONE, 0);
    let cx = context(&snapshot, &clients, Tick(1000));
    for Golden { name, steps, .. } in all {
        for Step { name: step, side, sent, mut want, spread } in steps {
            let mut buffer = alloc::vec![0; 128];
            buffer.extend(&sent);
            let end = buffer.len();
            let mut frame = Frame::new(&mut buffer, 128, end);
            frame.port = side;
            let mut verdicts = [Verdict::Punt];
            engine.process(core::slice::from_mut(&mut frame), &mut verdicts, &cx);
            assert_eq!(verdicts[0], Verdict::Send(1 - side), "{name}: {step}");
            for bytes in spread {
                want[bytes.clone()].copy_from_slice(&frame.bytes()[bytes]);
            }
            assert_eq!(frame.bytes(), want, "{name}: {step}");
        }
    }
}
