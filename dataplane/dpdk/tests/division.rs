//! How ports divide packets among queues: those that can are given our key and table.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use fairway_core::packet::Toeplitz;
use fairway_dpdk::{Eal, EalOptions, Memory, Mempool, Port, PortSetup};

#[test]
fn ports_that_divide_packets_do_so_by_our_key() {
    let options = EalOptions {
        memory: Memory::Ordinary,
        mebibytes: 64,
        prefix: format!("fw{}", std::process::id()),
        pci: Vec::new(),
        devices: ["net_null0", "net_null1", "net_null2", "net_ring0"].map(Into::into).into(),
        more: vec!["--log-level=4".into()],
    };
    let eal = Eal::start(&options).unwrap();
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
