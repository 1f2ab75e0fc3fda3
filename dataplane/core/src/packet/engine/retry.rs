//! A connection whose backend refuses it, or does not answer, goes to its next candidate: the
//! client's first segment is sent again there, and the client sees a slower answer and no failure.
//!
//! Of the modes whose replies come through here. A backend that was left and answers after all gets
//! a reset, so that it keeps no half of a connection.

use alloc::sync::Arc;
use core::time::Duration;

use super::{Context, Engine, Verdict};
use crate::packet::flow::{Direction, Flow, FlowView, Found, Handle, State, Tuple, tick};
use crate::packet::frame::Frame;
use crate::packet::held::LINGER;
use crate::packet::parse::{Packet, Transport, parse_ip, protocol, tcp_flags};
use crate::packet::pending::LARGEST;
use crate::packet::reason::DropReason;
use crate::packet::rewrite::{is_summed, write_reset};
use crate::{
    Backend, BackendId, EndReason, FailureCause, FlowKey, Mode, RetryCause, Service, ServiceId,
    Tried,
};

/// How many times longer a backend may take that is asked again.
const SECOND_CHANCE: u32 = 8;
/// Failures that are kept for the control loop at a time.
const MOST_FAILURES: usize = 64;

/// A backend that failed so often in a row that the control loop is to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackendFailure {
    /// Whose.
    pub service: ServiceId,
    /// Which one.
    pub backend: BackendId,
    /// How it failed last.
    pub cause: FailureCause,
    /// Failures in a row.
    pub streak: u32,
}

impl Engine<'_> {
    /// Failures since this was asked last.
    pub fn failures(&mut self) -> impl Iterator<Item = BackendFailure> + '_ {
        self.failures.drain(..)
    }

    /// Writes the next segment that is to be sent again now into `frame`, whatever is in it; none
    /// when nothing is due.
    pub(super) fn replay(&mut self, frame: &mut Frame<'_>, cx: &Context<'_>) -> Option<Verdict> {
        while let Some(place) = self.pending.due(cx.now) {
            let verdict = self.again(place, frame, FailureCause::Timeout, cx);
            if verdict.is_some() {
                return verdict;
            }
        }
        None
    }

    /// Keeps the first segment of a new connection, before it is changed.
    pub(super) fn keep(
        &mut self,
        frame: &Frame<'_>,
        packet: &Packet,
        handle: Handle,
        (service, start): (&Service, u64),
        cx: &Context<'_>,
    ) {
        let Transport::Tcp { flags, .. } = packet.transport else { return };
        // What no backend would answer says nothing of those that do not.
        let ends = tcp_flags::ACK | tcp_flags::FIN | tcp_flags::RST;
        let begins = flags & (tcp_flags::SYN | ends) == tcp_flags::SYN;
        let retry = &service.policy.retry;
        if !begins || packet.ttl <= 1 || !retry.on_connect || !service.policy.mode.is_two_way() {
            return;
        }
        let segment = &frame.bytes()[usize::from(packet.l3)..usize::from(packet.end)];
        if segment.len() > LARGEST || !is_summed(frame, packet) {
            return;
        }
        let due = cx.now.plus(retry.syn_timeout);
        let id = self.flows.flow(handle).id;
        if let Some(waiting) = self.pending.begin(handle, start, segment, cx.now, due) {
            waiting.tried.insert(id);
            waiting.asked_us = cx.micros;
        }
    }

    /// The backend of a connection that waits has refused it by the packet in `frame`, which then
    /// holds what goes to the next candidate. None when it goes nowhere else.
    pub(super) fn refused(
        &mut self,
        handle: Handle,
        frame: &mut Frame<'_>,
        cause: FailureCause,
        cx: &Context<'_>,
    ) -> Option<Verdict> {
        let place = self.pending.find(handle)?;
        self.again(place, frame, cause, cx)
    }

    /// Whether the number at `at` of a packet is the first segment's sequence number, and `more`,
    /// of a connection that waits; so too when none does.
    pub(super) fn is_about(&mut self, handle: Handle, bytes: &[u8], at: usize, more: u32) -> bool {
        let Some(place) = self.pending.find(handle) else { return true };
        let kept = self.pending.at(place).packet();
        let Ok(first) = parse_ip(kept, 0) else { return true };
        let number = |bytes: &[u8], at: usize| {
            bytes.get(at..)?.first_chunk::<4>().map(|number| u32::from_be_bytes(*number))
        };
        let sequence = number(kept, usize::from(first.l4) + 4);
        number(bytes, at) == sequence.map(|sequence| sequence.wrapping_add(more))
    }

    fn again(
        &mut self,
        place: u32,
        frame: &mut Frame<'_>,
        cause: FailureCause,
        cx: &Context<'_>,
    ) -> Option<Verdict> {
        let waiting = self.pending.at(place);
        let handle = waiting.handle;
        let (start, since) = (waiting.start, waiting.since);
        // The flow may have ended, and its handle be another's.
        let packet = parse_ip(waiting.packet(), 0).ok()?;
        let tuple = Tuple::of(&packet)?;
        let found = self.flows.find(&tuple, self.flows.hash(&tuple));
        let opening = found.is_some_and(|found| found.handle == handle)
            && self.flows.brief(handle).state == State::Opening;
        if !opening {
            self.pending.end_at(place);
            return None;
        }
        let flow = self.flows.flow(handle);
        self.count_failure(&flow, cause);
        let retry = self.held.service(flow.service)?.policy.retry;
        let waiting = self.pending.at(place);
        let attempts_left = retry.attempts.is_none_or(|most| waiting.attempts < most);
        let said_no = cause != FailureCause::Timeout;
        if said_no {
            waiting.refused.insert(flow.id);
        }
        let (worker, mut patience) = (self.worker, 1);
        let service = cx.snapshot.service(flow.service);
        let next = service
            .filter(|_| attempts_left && cx.now.since(since) < retry.deadline)
            .and_then(|service| {
                if let Ok(pick) = service.select(start, &waiting.tried, worker) {
                    return Some((service, pick));
                }
                // Before the client hears a no, those that were only slow are asked once more.
                if !said_no || waiting.refused.len() == waiting.tried.len() {
                    return None;
                }
                waiting.tried.clone_from(&waiting.refused);
                patience = SECOND_CHANCE;
                Some((service, service.select(start, &waiting.tried, worker).ok()?))
            });
        let Some((service, pick)) = next else {
            // It stays where it is, and hears no more from us.
            self.pending.end_at(place);
            return None;
        };
        if let Some(reply) = flow.reply() {
            self.pending.abandon(self.flows.hash(&reply), cx.now.plus(LINGER));
        }
        let backend = Arc::clone(pick.backend);
        let (handle, next) = match self.rebind(handle, service, &backend, start, cause, cx) {
            Ok(moved) => moved,
            Err(reason) => {
                self.pending.end_at(place);
                return Some(Verdict::Drop(reason));
            }
        };
        self.pending.moved(place, handle, cx.now.plus(retry.syn_timeout * patience));
        let waiting = self.pending.at(place);
        waiting.asked_us = cx.micros;
        waiting.attempts = waiting.attempts.saturating_add(1);
        waiting.tried.insert(next);
        if !frame.replace(waiting.packet()) {
            return Some(Verdict::Drop(DropReason::NoRoom));
        }
        let found = Found { handle, direction: Direction::Forward };
        Some(self.forward(frame, &packet, found, cx))
    }

    /// Moves a flow to another backend, on which a place is taken; returns it as it is then. An
    /// error says why there is none any more.
    fn rebind(
        &mut self,
        handle: Handle,
        service: &Service,
        backend: &Arc<Backend>,
        start: u64,
        cause: FailureCause,
        cx: &Context<'_>,
    ) -> Result<(Handle, BackendId), DropReason> {
        let counters = service.state.counters.of(self.worker);
        counters.retries[RetryCause::from(cause) as usize].inc();
        let flow = self.flows.flow(handle);
        self.count_begun(backend, flow.protocol, flow.mode);
        self.flows.remove(handle);
        self.held.rebind(flow.id, service, backend, self.worker);
        let mut next =
            Flow { backend: backend.addr.target(flow.vip.port()), id: backend.id, ..flow };
        let expires = tick(self.expires(flow.service, State::Opening, cx.now));
        let entered = self.our_side(&mut next, service, start).and_then(|reply| {
            let (held, clients, worker) = (&mut self.held, cx.clients, self.worker);
            let evicted = |view: &FlowView, _| held.end(view, EndReason::Evicted, clients, worker);
            let forward = next.forward().ok_or(DropReason::NoFlow)?;
            let hashes = (self.flows.hash(&forward), reply);
            let entered = self.flows.insert_new(&next, hashes, cx.now, expires, evicted);
            entered.ok_or(DropReason::TableFull)
        });
        match entered {
            Ok(handle) => {
                self.flows.set_generation(handle, cx.snapshot.generation as u32);
                if service.policy.affinity.is_some() {
                    cx.clients.affinity.keep(service.id, next.client.ip(), next.id, cx.now);
                }
                Ok((handle, next.id))
            }
            Err(reason) => {
                let view = FlowView::new(next, cx.now);
                self.held.end(&view, EndReason::LocalError, cx.clients, self.worker);
                Err(reason)
            }
        }
    }

    /// Moves a connection that is answered past us, and whose client has sent its first segment
    /// for the third time, to its next candidate; it stays when there is none. None when its flow
    /// has gone, as there is no room for it any more.
    ///
    /// The backend's streak is left alone: nothing that ends it is seen here, and three segments are
    /// easily forged.
    pub(super) fn unanswered(&mut self, handle: Handle, cx: &Context<'_>) -> Option<Handle> {
        let flow = self.flows.flow(handle);
        let Some(service) = cx.snapshot.service(flow.service) else { return Some(handle) };
        if !service.policy.retry.on_connect {
            return Some(handle);
        }
        if let Some(backend) = self.held.backend(flow.id) {
            let failures = &backend.counters.of(self.worker).failures;
            failures[FailureCause::Timeout as usize].inc();
        }
        let key =
            FlowKey { source: flow.client, destination: flow.vip, protocol: service.protocol };
        let hash = key.hash(&service.policy.hash, self.seed);
        let start = service.start(hash, cx.random, self.worker);
        let mut tried = Tried::NONE;
        tried.insert(flow.id);
        let Ok(pick) = service.select(start, &tried, self.worker) else { return Some(handle) };
        let backend = Arc::clone(pick.backend);
        let moved = self.rebind(handle, service, &backend, start, FailureCause::Timeout, cx);
        moved.ok().map(|(handle, _)| handle)
    }

    fn count_failure(&mut self, flow: &Flow, cause: FailureCause) {
        let Some(backend) = self.held.backend(flow.id) else { return };
        let limit = self.held.service(flow.service).map_or(0, |s| s.policy.passive.failures);
        if let Some(streak) = backend.count_failure(self.worker, cause, limit)
            && self.failures.len() < MOST_FAILURES
        {
            let (service, backend) = (flow.service, flow.id);
            self.failures.push(BackendFailure { service, backend, cause, streak });
        }
    }

    /// The backend of a connection has answered it.
    pub(super) fn answered(&mut self, handle: Handle, cx: &Context<'_>) {
        let asked = self.pending.find(handle).map(|place| self.pending.at(place).asked_us);
        self.pending.end(handle);
        let flow = self.flows.flow(handle);
        let Some(backend) = self.held.backend(flow.id) else { return };
        backend.streak.succeeded();
        let counters = backend.counters.of(self.worker);
        counters.connections.inc();
        let Some((asked, service)) = asked.zip(self.held.service(flow.service)) else { return };
        let took = cx.micros.saturating_sub(asked);
        counters.connect_us.add(took);
        let times = &service.state.counters.of(self.worker).connect_time;
        times.record(Duration::from_micros(took));
    }

    /// Counts a flow on a backend at its beginning, where no answer will tell of it.
    pub(super) fn count_begun(&self, backend: &Backend, protocol: u8, mode: Mode) {
        if protocol != protocol::TCP || !mode.is_two_way() {
            backend.counters.of(self.worker).connections.inc();
        }
    }

    /// What becomes of a packet that no flow has: a backend that was left is told so.
    pub(super) fn of_abandoned(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        hash: u64,
        cx: &Context<'_>,
    ) -> Option<Verdict> {
        let Transport::Tcp { flags, .. } = packet.transport else { return None };
        if !self.pending.is_abandoned(hash, cx.now) {
            return None;
        }
        let answers = flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN | tcp_flags::ACK;
        if !answers || !write_reset(frame, packet) {
            return Some(Verdict::Drop(DropReason::Abandoned));
        }
        self.counters.dropped[DropReason::Abandoned as usize].inc();
        let hop = self.hops.next_hop(cx.snapshot.routes(), packet.addresses.source());
        Some(self.depart(frame, hop, cx))
    }
}
