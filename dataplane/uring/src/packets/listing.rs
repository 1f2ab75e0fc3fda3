//! Lists of flows for people, made a part at a time so that packets do not wait for them.

use std::sync::Arc;

use crossbeam_channel::Sender;
use fairway_core::packet::Engine;
use fairway_core::{Snapshot, Tick};

use crate::report::{ConnectionFilter, OpenFlow};

/// Cells that are looked at between two turns.
const LOOKS: u32 = 4096;

/// A list that is being made.
pub(super) struct Listing {
    filter: ConnectionFilter,
    reply: Sender<Vec<OpenFlow>>,
    flows: Vec<OpenFlow>,
    next: u32,
}

impl Listing {
    pub(super) fn new(filter: ConnectionFilter, reply: Sender<Vec<OpenFlow>>) -> Self {
        Self { filter, reply, flows: Vec::new(), next: 0 }
    }

    /// Looks at some more flows; true when it has seen all, and has answered.
    pub(super) fn go_on(&mut self, engine: &Engine<'_>, snapshot: &Snapshot, now: Tick) -> bool {
        let table = engine.flows();
        let end = table.cells().min(self.next + LOOKS);
        for handle in (self.next..end).filter_map(|cell| table.at(cell)) {
            let view = table.view(handle);
            let flow = OpenFlow {
                service: snapshot.service(view.flow.service).map(|s| Arc::clone(&s.name)),
                backend: engine.backend_of(handle),
                age: now.since(view.began),
                left: view.expires.since(now),
                view,
            };
            if self.filter.wants_flow(&flow) {
                self.flows.push(flow);
            }
        }
        self.next = end;
        // The oldest of them.
        let most = self.filter.most;
        let all = end == table.cells();
        if all || self.flows.len() > 2 * most {
            self.flows.sort_unstable_by_key(|flow| std::cmp::Reverse(flow.age));
            self.flows.truncate(most);
        }
        if all {
            // Nobody waits any more when the caller has gone.
            let _ = self.reply.send(std::mem::take(&mut self.flows));
        }
        all
    }
}
