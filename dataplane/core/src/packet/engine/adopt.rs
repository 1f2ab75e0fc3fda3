//! Flows of a process before this one.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;

use super::{Context, Engine};
use crate::packet::flow::{FlowTable, FlowView};
use crate::{Backend, BackendId, Limits, ServiceId};

/// What became of flows that were left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Adopted {
    /// They go on here.
    pub taken: usize,
    /// Their service or backend is not known any more.
    pub dropped: usize,
}

impl Engine<'_> {
    /// Goes on with the flows of `left` that are this worker's, whose services and backends are in the
    /// snapshot under the numbers that they had. Costs a look at each cell, and an insertion a flow.
    pub fn adopt(&mut self, left: &FlowTable<'_>, cx: &Context<'_>) -> Adopted {
        let mut backends: BTreeMap<ServiceId, BTreeMap<BackendId, Arc<Backend>>> = BTreeMap::new();
        let Self { flows, held, steering, .. } = self;
        let mut dropped = 0;
        let wanted = |view: &FlowView| {
            let tuple = view.flow.forward()?;
            if steering.home_of(&tuple, || true) != steering.worker {
                return None;
            }
            let service = cx.snapshot.service(view.flow.service);
            let service = service.filter(|it| it.policy.mode == view.flow.mode);
            let found = service.and_then(|service| {
                let members = || {
                    let members = service.backends();
                    members.map(|(m, _)| (m.backend.id, Arc::clone(&m.backend))).collect()
                };
                let known = backends.entry(service.id).or_insert_with(members);
                Some((Arc::clone(service), Arc::clone(known.get(&view.flow.id)?)))
            });
            dropped += usize::from(found.is_none());
            found
        };
        let taken = flows.import(left, cx.now, wanted, |view, (service, backend)| {
            if view.paid {
                return;
            }
            // Limits were met when it began.
            let _ = service.state.try_open(None);
            let _ = backend.try_open(None);
            if view.flow.tracked {
                let ip = view.flow.client.ip();
                let _ = cx.clients.table.open(service.id, ip, &Limits::default(), cx.now);
            }
            held.begin(&service, &backend);
        });
        Adopted { taken, dropped }
    }
}
