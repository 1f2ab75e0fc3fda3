//! What the tests of ports share. Each has a process of its own: there is one DPDK in it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
#![allow(dead_code, reason = "each test needs its part")]

use std::sync::Arc;

use fairway_core::packet::flow::{FlowTable, HeapRegion, Shape};
use fairway_core::packet::golden::Step;
use fairway_core::packet::{Engine, Ports as _, Steering, Verdict, VlanTag};
use fairway_dpdk::{EalOptions, Memory, Queues};

const SHAPE: Shape = Shape { ipv4: 256, ipv6: 256 };

/// What runs anywhere.
pub(crate) fn options(devices: impl IntoIterator<Item = String>) -> EalOptions {
    EalOptions {
        memory: Memory::Ordinary,
        mebibytes: 64,
        prefix: format!("fw{}", std::process::id()),
        pci: Vec::new(),
        devices: devices.into_iter().collect(),
        more: vec!["--log-level=4".into()],
    }
}

/// Memory for the flows of an engine.
pub(crate) fn region() -> HeapRegion {
    HeapRegion::new(SHAPE.bytes())
}

/// An engine with a small table.
pub(crate) fn engine(region: &mut HeapRegion, steering: Steering) -> Engine<'_> {
    let flows = FlowTable::open(region.bytes(), SHAPE, [1, 2], false).unwrap();
    Engine::new(flows, Arc::default(), steering, 0)
}

/// A frame as it is on a side: the servers' may have a tag.
pub(crate) fn on(side: u16, tag: Option<VlanTag>, frame: &[u8]) -> Vec<u8> {
    let tag = tag.filter(|_| side == 1).map(VlanTag::bytes);
    [&frame[..12], tag.as_ref().map_or(&[], |tag| &tag[..]), &frame[12..]].concat()
}

/// What is to come of a step by its other side, when `got` has come: bytes that may be anything are as
/// they are there.
pub(crate) fn wanted(step: &Step, tag: Option<VlanTag>, got: &[u8]) -> Vec<u8> {
    let mut want = on(1 - step.side, tag, &step.want);
    assert_eq!(got.len(), want.len(), "{}", step.name);
    let shift = want.len() - step.want.len();
    for bytes in &step.spread {
        let bytes = bytes.start + shift..bytes.end + shift;
        want[bytes.clone()].copy_from_slice(&got[bytes]);
    }
    want
}

/// Sends a frame by a port.
pub(crate) fn send(queues: &mut Queues<'_>, port: u16, bytes: &[u8]) {
    queues.emit(&mut |frame| {
        assert!(frame.replace(bytes));
        frame.port = port;
        Some(Verdict::Send(port))
    });
    queues.flush();
}

/// The frames that have come by a port, with their tags in them.
pub(crate) fn received(queues: &mut Queues<'_>, port: u16) -> Vec<Vec<u8>> {
    let mut got = Vec::new();
    queues.burst(port, &mut |frames, verdicts| {
        got.extend(frames.iter().map(|frame| {
            let mut bytes = frame.bytes().to_vec();
            if let Some(tag) = frame.tag {
                bytes.splice(12..12, tag.bytes());
            }
            bytes
        }));
        verdicts.fill(Verdict::Punt);
    });
    got
}
