//! How ports divide packets among queues: those that can are given our key and table.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod common;

use fairway_core::packet::Toeplitz;
use fairway_dpdk::{Eal, Mempool, Port, PortSetup};

#[test]
fn ports_that_divide_packets_do_so_by_our_key() {
    let devices = ["net_null0", "net_null1", "net_null2", "net_ring0"].map(String::from);
    let eal = Eal::start(&common::options(devices)).unwrap();
    assert!(eal.survive_removals(), "cards may be pulled out");
    let pool = Mempool::new(&eal, "packets", 4095, 2048).unwrap();
    let key = Some(Toeplitz::key(7));
    let usual = PortSetup { queues: 4, descriptors: 128, mtu: None, helps: true, key };
    for (name, setup, divides) in [
        ("net_null0", usual, true),
        ("net_null1", PortSetup { key: None, ..usual }, false),
        ("net_null2", PortSetup { queues: 1, ..usual }, false),
        // It has no such thing.
        ("net_ring0", PortSetup { queues: 1, ..usual }, false),
    ] {
        let (port, queues) = Port::open(&eal, name, &pool, setup).unwrap();
        assert_eq!((port.divides(), queues.len()), (divides, setup.queues.into()), "{name}");
    }
}
