//! Reaching a backend: candidates, hedging, retry, replay.
//!
//! A failed connect moves to the next candidate at once. With `hedgeAfter`, a slow one gets a
//! rival and the first to complete wins. A backend that closes a young connection before anything
//! was said on it has not been reached either. With `resetBeforeReply`, a backend that ends the
//! connection before the first byte of its reply is replaced too, and what the client had sent is
//! sent again.

use std::rc::Rc;

use fairway_core::{EndReason, FailureCause, Pick, RetryCause, Tick};
use socket2::{Domain, Socket, Type};

use crate::held::{HeldBackend, HeldService};
use crate::relay::Way;
use crate::report::Shared;
use crate::session::{Cx, End, Phase, Session, keep_affinity};
use crate::source;
use crate::token::{Leg, Op};

impl Session {
    /// Starts connecting to `backend`, on which a place has been taken.
    pub(crate) fn start_leg(&mut self, backend: Rc<HeldBackend>, cx: &mut Cx<'_>) {
        let free = Leg::BOTH.into_iter().find(|leg| self.legs[leg.index()].end.is_free());
        let (Some(leg), Some(admitted)) = (free, &self.admitted) else {
            // Both sockets are on their way out; the completion of one asks again.
            backend.close();
            return;
        };
        self.tried.insert(backend.id);
        let target = backend.addr.target(admitted.dialled.port());
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, None);
        let state = &mut self.legs[leg.index()];
        state.backend = Some(backend);
        state.since = cx.now;
        state.started_us = cx.shared.clock.micros();
        let Ok(socket) = socket else {
            *cx.exhausted = true;
            return self.no_socket(leg, cx);
        };
        let source = &admitted.service.policy.source;
        if source::bind(&socket, source, admitted.peer, target, admitted.start).is_err() {
            cx.stats.unbound.inc();
            return self.no_socket(leg, cx);
        }
        // It only tunes: a kernel that refuses it still connects. What else there is to set is for connections
        // that need it: most are over before.
        let _ = socket.set_tcp_nodelay(true);
        state.end = End::new(socket.into());
        state.connecting = true;
        state.end.asked();
        let token = self.token(Op::Connect(leg), cx);
        if let Some(fd) = self.legs[leg.index()].end.fd() {
            cx.ring.connect(fd, target, token);
        }
    }

    /// This box has no socket for it: no candidate is to blame, and no other would fare better.
    fn no_socket(&mut self, leg: Leg, cx: &mut Cx<'_>) {
        self.count_failure(leg, FailureCause::Local, cx);
        self.legs[leg.index()].close(cx.ring, true);
        if !self.legs.iter().any(|leg| leg.connecting) {
            self.finish(EndReason::LocalError, true, cx);
        }
    }

    /// The kernel has finished a connect.
    pub(crate) fn connected(&mut self, leg: Leg, result: Result<u32, i32>, cx: &mut Cx<'_>) {
        let state = &mut self.legs[leg.index()];
        let given_up = state.end.is_closing();
        state.end.answered(cx.ring);
        if given_up || self.phase != Phase::Connecting {
            return self.resume_connecting(cx);
        }
        match result {
            Ok(_) => self.leg_won(leg, cx),
            Err(error) => self.leg_failed(leg, cause_of(error), cx),
        }
    }

    fn leg_won(&mut self, leg: Leg, cx: &mut Cx<'_>) {
        if !self.announce(leg, cx) {
            return self.leg_failed(leg, FailureCause::Refused, cx);
        }
        for other in Leg::BOTH.into_iter().filter(|other| *other != leg) {
            self.legs[other.index()].close(cx.ring, true);
        }
        let state = &mut self.legs[leg.index()];
        state.connecting = false;
        let (Some(admitted), Some(backend)) = (&self.admitted, &state.backend) else {
            return;
        };
        backend.streak.succeeded();
        backend.counters.of(cx.worker).connections.inc();
        let took = cx.shared.clock.micros().saturating_sub(state.started_us);
        let counters = admitted.service.state.counters.of(cx.worker);
        counters.connect_time.record(std::time::Duration::from_micros(took));
        backend.counters.of(cx.worker).connect_us.add(took);
        if self.tried.len() > 1 {
            keep_affinity(cx, admitted, backend.id);
        }
        self.connect_us = Some(took);
        self.backend = Some(Rc::clone(backend));
        self.live = Some(leg);
        self.phase = Phase::Relaying;
        self.hedge_at = None;
        self.active_at = cx.now;
        self.pump(Way::Down, cx);
        self.pump(Way::Up, cx);
        self.set_timer(cx);
    }

    /// A candidate could not be reached: count it and go on to the next.
    fn leg_failed(&mut self, leg: Leg, cause: FailureCause, cx: &mut Cx<'_>) {
        self.count_failure(leg, cause, cx);
        self.legs[leg.index()].close(cx.ring, true);
        if self.legs.iter().any(|leg| leg.connecting) {
            return;
        }
        self.next_candidate(cause.into(), cx);
    }

    pub(crate) fn count_failure(&self, leg: Leg, cause: FailureCause, cx: &Cx<'_>) {
        if let (Some(backend), Some(admitted)) = (&self.legs[leg.index()].backend, &self.admitted) {
            count_failure(backend, &admitted.service, cause, cx.shared, cx.worker);
        }
    }

    fn next_candidate(&mut self, cause: RetryCause, cx: &mut Cx<'_>) {
        match self.candidate(cause, cx) {
            Ok(pick) => self.go_to(pick, cause, cx),
            Err(reason) => self.finish(reason, true, cx),
        }
    }

    /// Another backend, on which a place is taken, if the policy allows one.
    fn candidate<'a>(&self, cause: RetryCause, cx: &Cx<'a>) -> Result<Pick<'a>, EndReason> {
        let admitted = self.admitted.as_ref().ok_or(EndReason::NoService)?;
        let retry = &admitted.service.policy.retry;
        let allowed = match cause {
            RetryCause::ResetBeforeReply => retry.on_reset_before_reply,
            _ => retry.on_connect,
        };
        let attempts_left = retry.attempts.is_none_or(|most| self.tried.len() < usize::from(most));
        let time_left = self.retry_deadline().is_some_and(|deadline| cx.now < deadline);
        if !(allowed && attempts_left && time_left) {
            return Err(EndReason::ConnectFailed);
        }
        let service = cx.snapshot.service(admitted.service.id).ok_or(EndReason::NoService)?;
        service.select(admitted.start, &self.tried, cx.worker)
    }

    fn go_to(&mut self, pick: Pick<'_>, cause: RetryCause, cx: &mut Cx<'_>) {
        if let Some(admitted) = &self.admitted {
            admitted.service.state.counters.of(cx.worker).retries[cause as usize].inc();
        }
        let backend = cx.held.backend(pick.backend);
        self.start_leg(backend, cx);
        self.set_timer(cx);
    }

    /// Asks again when the last candidate could not be started for want of a free leg.
    fn resume_connecting(&mut self, cx: &mut Cx<'_>) {
        let idle = self.phase == Phase::Connecting && !self.legs.iter().any(|leg| leg.connecting);
        if idle && self.legs.iter().any(|leg| leg.end.is_free()) {
            self.next_candidate(RetryCause::Timeout, cx);
        }
    }

    /// Whether the backend may be replaced although bytes were delivered to it.
    pub(crate) fn can_replay(&self) -> bool {
        self.replayable && self.down.bytes == 0 && self.phase == Phase::Relaying
    }

    /// The backend ended the connection before its first byte: the next candidate gets everything
    /// from the start.
    pub(crate) fn replay(&mut self, leg: Leg, cx: &mut Cx<'_>) {
        self.count_failure(leg, FailureCause::ResetBeforeReply, cx);
        // The time for another candidate counts from the failure: the connection may be old.
        self.searching_since = cx.now;
        self.leave(leg, cx);
        self.next_candidate(RetryCause::ResetBeforeReply, cx);
    }

    /// The backend ended a young connection on which nothing had been said: a process that is
    /// stopped closes what it has just accepted. Nothing was delivered, so this is a connect that
    /// failed late, and the next candidate is safe. A clean end is no failure of the backend: idle
    /// clients could bring those about. False when the end has to stand: the client
    /// has ended too, the connection is older than a connect may take (a server tired of an idle
    /// client), or nobody is left.
    pub(crate) fn replace_silent(&mut self, leg: Leg, cx: &mut Cx<'_>) -> bool {
        let Some(admitted) = &self.admitted else { return false };
        let timeout = admitted.service.policy.timeouts.connect;
        let young = cx.now < self.legs[leg.index()].since.plus(timeout);
        let silent = !self.up.has_sent() && !self.down.has_moved() && !self.up.ended;
        if self.phase != Phase::Relaying || !young || !silent {
            return false;
        }
        let Ok(pick) = self.candidate(RetryCause::Closed, cx) else { return false };
        self.leave(leg, cx);
        self.go_to(pick, RetryCause::Closed, cx);
        true
    }

    /// Back to where no backend was connected, with everything that the client sent.
    fn leave(&mut self, leg: Leg, cx: &mut Cx<'_>) {
        self.legs[leg.index()].close(cx.ring, true);
        self.live = None;
        self.phase = Phase::Connecting;
        self.up.replay();
        self.down.ended = false;
        self.down.receiving = false;
        self.first_end = None;
    }

    /// The next moment at which a connecting session has something to do.
    pub(crate) fn connecting_deadline(&self) -> Option<Tick> {
        let timeout = self.admitted.as_ref()?.service.policy.timeouts.connect;
        let connects =
            self.legs.iter().filter(|leg| leg.connecting).map(|leg| leg.since.plus(timeout));
        connects.chain(self.hedge_at).chain(self.retry_deadline()).min()
    }

    pub(crate) fn connecting_timer(&mut self, cx: &mut Cx<'_>) {
        if self.retry_deadline().is_some_and(|deadline| deadline <= cx.now) {
            for leg in Leg::BOTH {
                if self.legs[leg.index()].connecting {
                    self.count_failure(leg, FailureCause::Timeout, cx);
                }
            }
            return self.finish(EndReason::ConnectFailed, true, cx);
        }
        let Some(admitted) = &self.admitted else {
            return;
        };
        let timeout = admitted.service.policy.timeouts.connect;
        for leg in Leg::BOTH {
            let state = &self.legs[leg.index()];
            if state.connecting && state.since.plus(timeout) <= cx.now {
                self.leg_failed(leg, FailureCause::Timeout, cx);
            }
        }
        if self.hedge_at.is_some_and(|at| at <= cx.now) {
            self.hedge_at = None;
            self.hedge(cx);
        }
    }

    /// Starts the next candidate beside a slow one.
    fn hedge(&mut self, cx: &mut Cx<'_>) {
        if self.phase != Phase::Connecting {
            return;
        }
        let Some(admitted) = &self.admitted else {
            return;
        };
        let policy = &admitted.service.policy;
        let attempts = policy.retry.attempts.map_or(usize::MAX, usize::from);
        let one = self.legs.iter().filter(|leg| leg.connecting).count() == 1;
        let free = self.legs.iter().any(|leg| leg.end.is_free());
        if !(one && free && self.tried.len() < attempts) {
            return;
        }
        let snapshot = cx.snapshot;
        let Some(service) = snapshot.service(admitted.service.id) else {
            return;
        };
        let Ok(pick) = service.select(admitted.start, &self.tried, cx.worker) else {
            return;
        };
        admitted.service.state.counters.of(cx.worker).retries[RetryCause::Hedge as usize].inc();
        let backend = cx.held.backend(pick.backend);
        self.start_leg(backend, cx);
    }
}

/// Counts a failed attempt to reach `backend`, and tells the control plane when it was one too
/// many.
pub(crate) fn count_failure(
    backend: &HeldBackend,
    service: &HeldService,
    cause: FailureCause,
    shared: &Shared,
    worker: usize,
) {
    if let Some(streak) = backend.count_failure(worker, cause, service.policy.passive.failures) {
        shared.backend_failed(service.id, backend.id, cause, streak);
    }
}

/// What a failed connect says of the backend. Errors of this box say nothing of it.
pub(crate) fn cause_of(error: i32) -> FailureCause {
    match error {
        libc::ECONNREFUSED | libc::ECONNRESET => FailureCause::Refused,
        libc::ETIMEDOUT => FailureCause::Timeout,
        libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EHOSTDOWN | libc::ENETDOWN => {
            FailureCause::Unreachable
        }
        _ => FailureCause::Local,
    }
}
