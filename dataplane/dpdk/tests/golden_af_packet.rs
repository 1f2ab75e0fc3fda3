//! Golden packets through cards that put tags on and take them off: DPDK's packet sockets over pairs
//! of virtual links, whose far ends are ports that do not.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod common;

use std::process::Command;
use std::time::{Duration, Instant};

use fairway_core::packet::golden::{self, Golden};
use fairway_core::packet::{Context, Ports, Steering, VlanTag};
use fairway_core::{Clients, Tick};
use fairway_dpdk::{Eal, Mempool, Port, PortSetup, Queues};

/// The tag of the servers' side.
const TAG: Option<VlanTag> = Some(VlanTag(0x6009));
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
    let devices = names.iter().zip(ends).map(device);
    let eal = Eal::start(&common::options(devices)).unwrap();
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
    let snapshot = golden::snapshot(&all, [None, TAG]);
    let clients = Clients::new(64, [1, 2, 3, 4]);
    let mut region = common::region();
    let mut engine = common::engine(&mut region, Steering::ALONE);
    let now = Tick(1000);
    let cx = Context { snapshot: &snapshot, clients: &clients, now, micros: 0, random: 1 };
    // This driver has the kernel join fragments.
    let whole = |golden: &&Golden| golden.steps.iter().all(|step| !step.name.contains("fragment"));
    let steps = all.iter().filter(whole);
    let mut count = 0;
    for (name, step) in
        steps.flat_map(|Golden { name, steps, .. }| steps.iter().map(move |step| (name, step)))
    {
        let side = step.side;
        common::send(&mut far, side, &common::on(side, TAG, &step.sent));
        let (mut tag, mut got) = (None, Vec::new());
        let end = Instant::now() + PATIENCE;
        while got.is_empty() && Instant::now() < end {
            near.burst(side, &mut |frames, verdicts| {
                tag = frames[0].tag;
                engine.process(frames, verdicts, &cx);
            });
            near.flush();
            got = common::received(&mut far, 1 - side);
        }
        assert_eq!(tag, TAG.filter(|_| side == 1), "{name}: {}: taken off", step.name);
        let [got] = &got[..] else { panic!("{name}: {}: {} came", step.name, got.len()) };
        assert_eq!(*got, common::wanted(step, TAG, got), "{name}: {}", step.name);
        count += 1;
    }
    println!("{count} packets, with tags on one side, by {}", Eal::version());
}
