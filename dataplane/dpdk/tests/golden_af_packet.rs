//! Golden packets through cards that put tags on and take them off: DPDK's packet sockets over pairs
//! of virtual links, whose far ends are ports that do not.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fairway_core::packet::flow::{FlowTable, HeapRegion, Shape};
use fairway_core::packet::golden::{self, Golden, Step};
use fairway_core::packet::{Context, Engine, Ports, Steering, Verdict, VlanTag};
use fairway_core::{Clients, Tick};
use fairway_dpdk::{Eal, EalOptions, Memory, Mempool, Port, PortSetup, Queues};

/// The tag of the servers' side.
const TAG: VlanTag = VlanTag(0x6009);
const PATIENCE: Duration = Duration::from_secs(10);

/// Pairs of links; gone with this.
struct Links([[String; 2]; 2]);

impl Links {
    /// None where this may not make links.
    fn new() -> Option<Self> {
        let id = std::process::id();
        let links = Self([0, 1].map(|side| ["in", "out"].map(|end| format!("fw{id}{end}{side}"))));
        for [near, far] in &links.0 {
            ip(&format!("link add {near} type veth peer name {far}")).then_some(())?;
            for name in [near, far] {
                // The kernel says nothing on them.
                let quiet = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
                std::fs::write(quiet, "1").unwrap();
                assert!(ip(&format!("link set {name} arp off up")));
            }
        }
        Some(links)
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.0.iter().for_each(|[near, _]| _ = ip(&format!("link delete {near}")));
    }
}

fn ip(words: &str) -> bool {
    Command::new("ip").args(words.split(' ')).output().is_ok_and(|output| output.status.success())
}

/// A frame as it is on a side.
fn on(side: u16, frame: &[u8]) -> Vec<u8> {
    let tag: &[u8] = if side == 1 { &TAG.bytes() } else { &[] };
    [&frame[..12], tag, &frame[12..]].concat()
}

#[test]
fn cards_that_see_to_tags_make_the_same_of_packets() {
    let Some(links) = Links::new() else {
        println!("SKIPPED: making links needs root and the `ip` command");
        return;
    };
    let all = golden::all();
    let names = ["net_af_packet0", "net_af_packet1", "net_af_packet2", "net_af_packet3"];
    let ends = links.0.iter().flatten();
    let device = |(name, end)| {
        format!("{name},iface={end},framesz=2048,blocksz=65536,framecnt=128,qdisc_bypass=1")
    };
    let options = EalOptions {
        memory: Memory::Ordinary,
        mebibytes: 64,
        prefix: format!("fw{}", std::process::id()),
        pci: Vec::new(),
        devices: names.iter().zip(ends).map(device).collect(),
        more: vec!["--log-level=4".into()],
    };
    let eal = Eal::start(&options).unwrap();
    let pool = Mempool::new(&eal, "packets", 2047, 2048).unwrap();
    let mut near = Queues::new(&eal, &pool, None).unwrap();
    let mut far = Queues::new(&eal, &pool, None).unwrap();
    for (n, name) in names.iter().enumerate() {
        let is_near = n % 2 == 0;
        let setup = PortSetup { queues: 1, descriptors: 128, mtu: None, helps: is_near, key: None };
        let (_, mut pairs) = Port::open(&eal, name, &pool, setup).unwrap();
        let queues = if is_near { &mut near } else { &mut far };
        queues.add(pairs.remove(0), None);
    }
    let snapshot = golden::snapshot(&all, [None, Some(TAG)]);
    let clients = Clients::new(64);
    let shape = Shape { ipv4: 256, ipv6: 256 };
    let mut region = HeapRegion::new(shape.bytes());
    let flows = FlowTable::open(region.bytes(), shape, [1, 2], false).unwrap();
    let mut engine = Engine::new(flows, Arc::default(), Steering::ALONE, 0);
    let now = Tick(1000);
    let cx = Context { snapshot: &snapshot, clients: &clients, now, micros: 0, random: 1 };
    // This driver has the kernel join fragments.
    let whole = |golden: &&Golden| golden.steps.iter().all(|step| !step.name.contains("fragment"));
    let steps = all.iter().filter(whole);
    let mut count = 0;
    for (name, Step { name: step, side, sent, want, spread }) in
        steps.flat_map(|Golden { name, steps, .. }| steps.iter().map(move |s| (name, s)))
    {
        far.emit(&mut |frame| {
            assert!(frame.replace(&on(*side, sent)));
            frame.port = *side;
            Some(Verdict::Send(*side))
        });
        far.flush();
        let mut tagged = None;
        let mut got = Vec::new();
        let end = Instant::now() + PATIENCE;
        while got.is_empty() && Instant::now() < end {
            near.burst(*side, &mut |frames, verdicts| {
                tagged = frames[0].tag;
                engine.process(frames, verdicts, &cx);
            });
            near.flush();
            far.burst(1 - *side, &mut |frames, verdicts| {
                assert!(got.is_empty() && frames.len() == 1, "{name}: {step}");
                let mut frame = frames[0].bytes().to_vec();
                if let Some(tag) = frames[0].tag {
                    frame.splice(12..12, tag.bytes());
                }
                got = frame;
                verdicts.fill(Verdict::Punt);
            });
        }
        assert_eq!(tagged, (*side == 1).then_some(TAG), "{name}: {step}: taken off");
        let mut want = on(1 - *side, want);
        assert_eq!(got.len(), want.len(), "{name}: {step}");
        let shift = if *side == 0 { VlanTag::LENGTH } else { 0 };
        for bytes in spread {
            let bytes = bytes.start + shift..bytes.end + shift;
            want[bytes.clone()].copy_from_slice(&got[bytes]);
        }
        assert_eq!(got, want, "{name}: {step}");
        count += 1;
    }
    println!("{count} packets, with tags on one side, by {}", Eal::version());
}
