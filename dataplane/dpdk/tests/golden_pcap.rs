//! Golden packets through DPDK's port over pcap files: byte for byte what the engine alone makes of
//! them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod common;

use std::path::Path;

use fairway_core::packet::golden::{self, Golden, Step};
use fairway_core::packet::{Context, Ports, Steering};
use fairway_core::{Clients, Tick};
use fairway_dpdk::{Eal, Mempool, Port, PortSetup, Queues};

/// A pcap file of Ethernet frames.
fn pcap<'f>(frames: impl Iterator<Item = &'f [u8]>) -> Vec<u8> {
    let words = |words: &[u32]| words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
    // Magic, version 2.4, time zone, accuracy, longest frame, Ethernet.
    let mut file = words(&[0xa1b2_c3d4, 0x0004_0002, 0, 0, 65_535, 1]);
    for frame in frames {
        let length = frame.len() as u32;
        file.extend(words(&[0, 0, length, length]));
        file.extend(frame);
    }
    file
}

fn frames(file: &Path) -> Vec<Vec<u8>> {
    let bytes = std::fs::read(file).unwrap();
    let mut rest = &bytes[24..];
    let mut frames = Vec::new();
    while let Some((head, body)) = rest.split_first_chunk::<16>() {
        let length = u32::from_le_bytes(*head[8..12].first_chunk().unwrap()) as usize;
        frames.push(body[..length].to_vec());
        rest = &body[length..];
    }
    frames
}

#[test]
fn a_port_makes_of_packets_what_the_engine_does() {
    let all = golden::all();
    let steps =
        || all.iter().flat_map(|Golden { name, steps, .. }| steps.iter().map(move |s| (name, s)));
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let devices = [0, 1].map(|side: u16| {
        let (rx, tx) = (file(&format!("rx{side}")), file(&format!("tx{side}")));
        let sent = steps().filter(|(_, step)| step.side == side).map(|(_, step)| &step.sent[..]);
        std::fs::write(&rx, pcap(sent)).unwrap();
        format!("net_pcap{side},rx_pcap={},tx_pcap={}", rx.display(), tx.display())
    });
    let eal = Eal::start(&common::options(devices)).unwrap();
    let pool = Mempool::new(&eal, "packets", 1023, 2048).unwrap();
    let setup = PortSetup { queues: 1, descriptors: 256, mtu: None, helps: true, key: None };
    let mut queues = Queues::new(&eal, &pool, None).unwrap();
    for name in ["net_pcap0", "net_pcap1"] {
        let (_, mut pairs) = Port::open(&eal, name, &pool, setup).unwrap();
        queues.add(pairs.remove(0), None);
    }

    let (snapshot, clients) = (golden::snapshot(&all, [None; 2]), Clients::new(64, [1, 2, 3, 4]));
    let mut region = common::region();
    let mut engine = common::engine(&mut region, Steering::ALONE);
    let now = Tick(1000);
    let cx = Context { snapshot: &snapshot, clients: &clients, now, micros: 0, random: 1 };
    for (name, Step { name: step, side, .. }) in steps() {
        let count = queues.burst_of(*side, 1, &mut |frames, verdicts| {
            engine.process(frames, verdicts, &cx);
        });
        assert_eq!(count, 1, "{name}: {step}");
        queues.flush();
    }
    let counts = [0, 1].map(|port| queues.counts(port));
    let sent: u64 = counts.iter().map(|counts| counts.sent).sum();
    assert_eq!(sent, steps().count() as u64, "{counts:?}");
    // Its files are whole when the ports are closed.
    drop(queues);
    assert_eq!(pool.available(), pool.size(), "no packet is lost");
    let mut got = [0, 1].map(|side| frames(&file(&format!("tx{side}"))).into_iter());
    for (name, step) in steps() {
        let got = got[usize::from(1 - step.side)].next().unwrap();
        assert_eq!(got, common::wanted(step, None, &got), "{name}: {}", step.name);
    }
    assert!(got.iter_mut().all(|rest| rest.next().is_none()));
    println!("{sent} packets by {}", Eal::version());
}
