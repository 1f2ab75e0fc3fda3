//! Flows that are cut on purpose: their places are paid back at once, and each end is told by a
//! reset when it speaks next, as only then its sequence number is known.

use alloc::vec::Vec;

use super::{Context, Engine, Verdict};
use crate::packet::flow::{Handle, State};
use crate::packet::frame::Frame;
use crate::packet::parse::{Packet, Transport, tcp_flags};
use crate::packet::reason::DropReason;
use crate::packet::rewrite::{complete, write_reset};
use crate::{BackendId, EndReason, Tick};

/// Cells that are looked at in a burst.
const LOOKS: u32 = 1024;

/// Backends whose flows are being cut.
pub(super) struct Cutting {
    /// In order.
    backends: Vec<BackendId>,
    reason: EndReason,
    /// The next cell to be looked at.
    next: u32,
    /// Flows that begin later are not meant.
    ordered: Option<Tick>,
}

impl Engine<'_> {
    /// Cuts the flows on `backends`, some with each burst. Flows of datagrams are forgotten: the
    /// next datagram goes elsewhere.
    pub fn cut(&mut self, mut backends: Vec<BackendId>, reason: EndReason) {
        backends.sort_unstable();
        self.cutting.push(Cutting { backends, reason, next: 0, ordered: None });
    }

    pub(super) fn cut_some(&mut self, cx: &Context<'_>) {
        let Some(cutting) = self.cutting.pop() else { return };
        let Cutting { backends, reason, next, ordered } = cutting;
        let ordered = ordered.unwrap_or(cx.now);
        let end = self.flows.cells().min(next.saturating_add(LOOKS));
        for cell in next..end {
            let Some(handle) = self.flows.at(cell) else { continue };
            let view = self.flows.view(handle);
            // What is over has nobody to be told.
            let open = !view.paid && view.began <= ordered;
            if open && backends.binary_search(&view.flow.id).is_ok() {
                self.cut_flow(handle, reason, cx);
            }
        }
        if end < self.flows.cells() {
            let ordered = Some(ordered);
            self.cutting.push(Cutting { backends, reason, next: end, ordered });
        }
    }

    fn cut_flow(&mut self, handle: Handle, reason: EndReason, cx: &Context<'_>) {
        let flow = self.flows.flow(handle);
        self.pending.end(handle);
        if flow.protocol != crate::packet::protocol::TCP {
            return self.end(handle, reason, cx);
        }
        let expires = self.expires(flow.service, State::Cut, cx.now);
        self.pay(handle, reason, cx);
        self.flows.note_step(handle, State::Cut, expires, 0);
    }

    /// Pays the places of a flow back that stays in the table for a while.
    pub(super) fn pay(&mut self, handle: Handle, reason: EndReason, cx: &Context<'_>) {
        let view = self.flows.view(handle);
        self.held.end(&view, reason, cx.clients, self.worker);
        self.flows.set_paid(handle);
    }

    /// Answers a packet of a flow that was cut.
    pub(super) fn of_cut(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        cx: &Context<'_>,
    ) -> Verdict {
        complete(frame, packet);
        let Transport::Tcp { flags, .. } = packet.transport else {
            return Verdict::Drop(DropReason::Cut);
        };
        let told = flags & tcp_flags::RST == 0 && flags & tcp_flags::ACK != 0;
        if !told || !write_reset(frame, packet) {
            return Verdict::Drop(DropReason::Cut);
        }
        self.counters.dropped[DropReason::Cut as usize].inc();
        let hop = self.hops.next_hop(cx.snapshot.routes(), packet.addresses.source());
        self.depart(frame, hop, cx)
    }
}
