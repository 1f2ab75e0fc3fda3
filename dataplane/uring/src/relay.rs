//! Moving bytes both ways, by copying first and by splice once a direction is long.
//!
//! A direction receives only while nothing waits to be sent beyond its credit; with the capped
//! receive the end of a credit is also the quiet moment at which it can change to splice.

use std::os::fd::BorrowedFd;

use fairway_core::{EndReason, FailureCause};
use rustix::event::{PollFd, PollFlags, Timespec};
use socket2::SockRef;

use crate::direction::Direction;
use crate::listen::{UNSENT_BYTES, UNSENT_BYTES_SPLICED};
use crate::session::{Cx, End, Phase, Session};
use crate::splice::{Pipe, Stop, set_nonblocking};
use crate::sys::{Chunk, Completion, Ring};
use crate::token::{Leg, Op};

/// A direction of the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the client to the backend.
    Up,
    /// From the backend to the client.
    Down,
}

impl Session {
    pub(crate) fn direction(&mut self, way: Way) -> &mut Direction {
        match way {
            Way::Up => &mut self.up,
            Way::Down => &mut self.down,
        }
    }

    fn source(&mut self, way: Way) -> Option<&mut End> {
        match way {
            Way::Up => Some(&mut self.client),
            Way::Down => self.live.map(|leg| &mut self.legs[leg.index()].end),
        }
    }

    fn sink(&mut self, way: Way) -> Option<&mut End> {
        match way {
            Way::Up => self.live.map(|leg| &mut self.legs[leg.index()].end),
            Way::Down => Some(&mut self.client),
        }
    }

    /// Does what a direction can do now: send, pass the end on, receive again.
    pub(crate) fn pump(&mut self, way: Way, cx: &mut Cx<'_>) {
        match self.phase {
            Phase::Closing => return,
            Phase::Greeting => return self.read_greeting(cx),
            Phase::Connecting | Phase::Relaying => {}
        }
        if self.direction(way).pipe.is_some() {
            return self.run_pipe(way, cx);
        }
        self.send_next(way, cx);
        self.pass_end_on(way, cx);
        if self.phase == Phase::Closing {
            return;
        }
        let direction = self.direction(way);
        if !direction.has_room() {
            if direction.is_waited_for() {
                cx.ring.hurry();
            }
            return;
        }
        let flushed = direction.is_flushed();
        if self.should_splice(way, cx) {
            if !flushed {
                return cx.ring.hurry();
            }
            if self.switch_to_splice(way, cx) {
                return self.run_pipe(way, cx);
            }
        }
        // With few buffers left, a sink that has no room gets none of them.
        let room = std::mem::take(&mut self.direction(way).room);
        if cx.ring.is_low() && !room && !self.direction(way).broken && self.live.is_some() {
            if !flushed {
                return cx.ring.hurry();
            }
            return self.wait_for_sink(way, cx);
        }
        self.receive(way, cx);
    }

    /// Receives from the source of a direction, if that is not under way.
    pub(crate) fn receive(&mut self, way: Way, cx: &mut Cx<'_>) {
        if self.direction(way).receiving {
            return;
        }
        let credit = cx.ring.credit(cx.shared.settings.credit_bytes);
        let op = match way {
            Way::Up => Some(Op::ClientReceive),
            Way::Down => self.live.map(Op::LegReceive),
        };
        let ask = |ring: &mut Ring, fd: BorrowedFd<'_>, token| ring.receive(fd, credit, token);
        self.ask_source(way, op, ask, cx);
    }

    fn send_next(&mut self, way: Way, cx: &mut Cx<'_>) {
        let op = match way {
            Way::Up => self.live.map(Op::LegSend),
            Way::Down => Some(Op::ClientSend),
        };
        let Some(op) = op else { return };
        let token = self.token(op, cx);
        let Self { client, legs, live, up, down, .. } = self;
        let (direction, sink) = match (way, live) {
            (Way::Up, Some(leg)) => (up, &mut legs[leg.index()].end),
            (Way::Down, _) => (down, client),
            (Way::Up, None) => return,
        };
        if direction.sending || sink.failed {
            return;
        }
        let Some(fd) = sink.fd().filter(|_| !direction.is_empty()) else { return };
        direction.send(cx.ring, fd, token);
        sink.asked();
    }

    /// When a source has ended and all its bytes are out, tells the sink; when both have, ends.
    fn pass_end_on(&mut self, way: Way, cx: &mut Cx<'_>) {
        let direction = self.direction(way);
        if !direction.is_done() || direction.told {
            return;
        }
        if way == Way::Down && self.source(way).is_some_and(|end| end.failed) {
            return self.finish(EndReason::BackendReset, true, cx);
        }
        if self.up.is_done() && self.down.is_done() {
            let reason = self.first_end.unwrap_or(EndReason::Client);
            return self.finish(reason, false, cx);
        }
        if let Some(fd) = self.sink(way).filter(|end| !end.failed).and_then(|end| end.fd()) {
            // The system call, because the ring would send this to a kernel thread. A peer that is
            // gone shows in the other requests.
            let _ = rustix::net::shutdown(fd, rustix::net::Shutdown::Write);
            self.direction(way).told = true;
            self.set_timer(cx);
        }
    }

    /// A receive has completed, perhaps not for the last time.
    pub(crate) fn received(
        &mut self,
        way: Way,
        leg: Option<Leg>,
        done: Completion,
        cx: &mut Cx<'_>,
    ) {
        let Completion { result, more, chunk, .. } = done;
        let closing = {
            let end = match leg {
                Some(leg) => &mut self.legs[leg.index()].end,
                None => &mut self.client,
            };
            let closing = end.is_closing();
            if !more {
                end.answered(cx.ring);
            }
            closing
        };
        if closing || self.phase == Phase::Closing {
            chunk.into_iter().for_each(|chunk| cx.ring.buffers().release(chunk));
            return;
        }
        if !more {
            self.direction(way).receiving = false;
        }
        match result {
            Ok(0) => {
                chunk.into_iter().for_each(|chunk| cx.ring.buffers().release(chunk));
                self.source_ended(way, cx);
            }
            Ok(bytes) => {
                self.active_at = cx.now;
                self.count_received(way, u64::from(bytes), cx);
                let room = cx.shared.settings.buffer_bytes;
                self.direction(way).note_receive(bytes, room);
                if let Some(chunk) = chunk {
                    self.keep_or_drop(way, chunk, cx);
                }
                self.pump(way, cx);
            }
            Err(error) => {
                chunk.into_iter().for_each(|chunk| cx.ring.buffers().release(chunk));
                match error {
                    libc::ENOBUFS => cx.starved.push(cx.index),
                    libc::EAGAIN => self.wait_for_source(way, cx),
                    libc::EINTR | libc::ECANCELED => self.pump(way, cx),
                    _ => self.source_failed(way, cx),
                }
            }
        }
    }

    fn keep_or_drop(&mut self, way: Way, chunk: Chunk, cx: &mut Cx<'_>) {
        if way == Way::Down {
            self.first_byte.get_or_insert(cx.now);
        }
        if way == Way::Down && self.replayable {
            // The first byte of a reply: from here on there is no other candidate.
            self.replayable = false;
            self.up.forget(cx.ring);
            if self.sink(Way::Up).is_some_and(|end| end.failed) {
                self.break_up(cx);
            }
        }
        self.direction(way).push(cx.ring, chunk);
    }

    fn count_received(&self, way: Way, bytes: u64, cx: &Cx<'_>) {
        let Some(admitted) = &self.admitted else {
            return;
        };
        let service = admitted.service.state.counters.of(cx.worker);
        match way {
            Way::Up => service.rx_bytes.add(bytes),
            Way::Down => {
                if let Some(backend) = &self.backend {
                    backend.counters.of(cx.worker).rx_bytes.add(bytes);
                }
            }
        }
    }

    fn count_sent(&self, way: Way, bytes: u64, cx: &Cx<'_>) {
        let Some(admitted) = &self.admitted else {
            return;
        };
        match way {
            Way::Up => {
                if let Some(backend) = &self.backend {
                    backend.counters.of(cx.worker).tx_bytes.add(bytes);
                }
            }
            Way::Down => admitted.service.state.counters.of(cx.worker).tx_bytes.add(bytes),
        }
    }

    /// The source will send nothing more.
    fn source_ended(&mut self, way: Way, cx: &mut Cx<'_>) {
        self.active_at = cx.now;
        // A send that is under way may have been told of a reset, and then the receive reads as
        // an end; the socket's state knows better.
        let sending = match way {
            Way::Up => self.down.sending,
            Way::Down => self.up.sending,
        };
        if sending && self.source(way).and_then(|end| end.fd()).is_some_and(is_closed) {
            return self.source_failed(way, cx);
        }
        if way == Way::Down {
            let failed = self.source(way).is_some_and(|end| end.failed);
            if let Some(leg) = self.live {
                if self.can_replay() && (failed || self.up.has_sent()) {
                    return self.replay(leg, cx);
                }
                if self.replace_silent(leg, cx) {
                    return;
                }
            }
        }
        self.direction(way).ended = true;
        let reason = if way == Way::Up { EndReason::Client } else { EndReason::Backend };
        self.first_end.get_or_insert(reason);
        self.pump(way, cx);
        self.set_timer(cx);
    }

    /// The source has reset the connection, or is lost.
    fn source_failed(&mut self, way: Way, cx: &mut Cx<'_>) {
        match (way, self.live) {
            (Way::Down, Some(leg)) if self.can_replay() => self.replay(leg, cx),
            (Way::Down, live) => {
                if let Some(leg) = live.filter(|_| !self.down.has_moved()) {
                    self.count_failure(leg, FailureCause::ResetBeforeReply, cx);
                    if self.replace_silent(leg, cx) {
                        return;
                    }
                }
                if let Some(end) = self.source(way) {
                    end.failed = true;
                }
                // What came before the reset still reaches the client.
                self.down.ended = true;
                self.pump(way, cx);
            }
            (Way::Up, _) if self.phase == Phase::Greeting => {
                self.turn_away(EndReason::ClientReset, true, cx);
            }
            (Way::Up, _) => self.finish(EndReason::ClientReset, true, cx),
        }
    }

    /// A send has completed.
    pub(crate) fn sent(
        &mut self,
        way: Way,
        leg: Option<Leg>,
        result: Result<u32, i32>,
        cx: &mut Cx<'_>,
    ) {
        let end = match leg {
            Some(leg) => &mut self.legs[leg.index()].end,
            None => &mut self.client,
        };
        let closing = end.is_closing();
        end.answered(cx.ring);
        if closing || self.phase == Phase::Closing {
            return;
        }
        self.direction(way).sending = false;
        match result {
            Ok(bytes) => {
                if self.direction(way).was_patient() {
                    // One that was not was out as soon as it was received.
                    self.active_at = cx.now;
                }
                self.count_sent(way, u64::from(bytes), cx);
                let keep = (way == Way::Up && self.replayable).then(|| {
                    self.admitted.as_ref().map_or(0, |a| a.service.policy.retry.replay_bytes)
                });
                if !self.direction(way).sent(cx.ring, bytes, keep) {
                    self.replayable = false;
                }
                if self.direction(way).is_patient() {
                    self.bound_unsent();
                }
                self.pump(way, cx);
            }
            // A socket that is spliced from or to does not block, whatever a send would.
            Err(libc::EAGAIN) if self.direction(way).gets_patient() && !self.nonblocking => {
                self.bound_unsent();
                self.pump(way, cx);
            }
            Err(libc::EAGAIN) => self.wait_for_sink(way, cx),
            Err(libc::EINTR) => self.pump(way, cx),
            Err(_) => self.sink_failed(way, cx),
        }
    }

    /// A socket was full: from now on less may wait in the backend's.
    fn bound_unsent(&mut self) {
        let fd = self.live.and_then(|leg| self.legs[leg.index()].end.fd());
        if let Some(fd) = fd.filter(|_| !self.bounded) {
            // It only tunes.
            let _ = SockRef::from(&fd).set_tcp_notsent_lowat(UNSENT_BYTES);
            self.bounded = true;
        }
    }

    /// The sink takes no more.
    fn sink_failed(&mut self, way: Way, cx: &mut Cx<'_>) {
        if way == Way::Down {
            return self.finish(EndReason::ClientReset, true, cx);
        }
        if self.down.ended {
            // Nothing more is to come from the backend that could say so.
            return self.finish(EndReason::BackendReset, true, cx);
        }
        // The backend may still have a reply for us; its end or reset decides.
        if let Some(end) = self.sink(way) {
            end.failed = true;
        }
        if !self.can_replay() {
            self.break_up(cx);
            self.pump(way, cx);
        }
    }

    /// Stops sending up: what the client still sends is read and thrown away.
    fn break_up(&mut self, cx: &mut Cx<'_>) {
        self.up.broken = true;
        self.up.discard(cx.ring);
        *cx.pipes += u32::from(self.up.pipe.take().is_some());
    }

    /// A receive that found no buffer may find one now.
    pub(crate) fn starved_again(&mut self, cx: &mut Cx<'_>) {
        self.pump(Way::Up, cx);
        if self.live.is_some() {
            self.pump(Way::Down, cx);
        }
    }

    fn should_splice(&mut self, way: Way, cx: &Cx<'_>) -> bool {
        let replayable = self.replayable;
        let direction = self.direction(way);
        direction.is_bulk(cx.shared.settings.splice_after_bytes)
            && !direction.broken
            // What is kept for a replay cannot pass through a pipe.
            && !(way == Way::Up && replayable)
            && self.phase == Phase::Relaying
            && *cx.pipes > 0
            && cx.ring.features().splice
    }

    fn switch_to_splice(&mut self, way: Way, cx: &mut Cx<'_>) -> bool {
        let Some(leg) = self.live else { return false };
        let Ok(pipe) = Pipe::new() else {
            // Copying goes on; as many bytes later it is tried again.
            self.direction(way).no_bulk();
            return false;
        };
        if !self.nonblocking {
            let ends = [self.client.fd(), self.legs[leg.index()].end.fd()];
            for fd in ends.into_iter().flatten() {
                if set_nonblocking(fd).is_err() {
                    return false;
                }
                // It only tunes.
                let _ = SockRef::from(&fd).set_tcp_notsent_lowat(UNSENT_BYTES_SPLICED);
            }
            (self.nonblocking, self.bounded) = (true, true);
        }
        self.direction(way).pipe = Some(pipe);
        *cx.pipes -= 1;
        true
    }

    fn run_pipe(&mut self, way: Way, cx: &mut Cx<'_>) {
        let direction = self.direction(way);
        if direction.receiving || direction.sending || direction.told {
            return;
        }
        if direction.ended && direction.is_flushed() {
            return self.pass_end_on(way, cx);
        }
        let Some(leg) = self.live else { return };
        let Self { client, legs, up, down, .. } = self;
        let leg_end = &legs[leg.index()].end;
        let (Some(client), Some(backend)) = (client.fd(), leg_end.fd()) else {
            return;
        };
        let (direction, source, sink): (_, BorrowedFd<'_>, BorrowedFd<'_>) = match way {
            Way::Up => (up, client, backend),
            Way::Down => (down, backend, client),
        };
        let Some(pipe) = &mut direction.pipe else {
            return;
        };
        let (moved, stop) = pipe.run(source, sink);
        direction.bytes += moved;
        if moved > 0 {
            self.active_at = cx.now;
            self.count_received(way, moved, cx);
            self.count_sent(way, moved, cx);
        }
        match stop {
            Stop::SourceEmpty | Stop::Yield => self.wait_for_source(way, cx),
            Stop::SinkFull => self.wait_for_sink(way, cx),
            Stop::Ended => self.source_ended(way, cx),
            Stop::SourceFailed(_) => self.source_failed(way, cx),
            Stop::SinkFailed(_) => self.sink_failed(way, cx),
        }
    }

    /// Asks to be told when the source of a direction has something to say.
    fn wait_for_source(&mut self, way: Way, cx: &mut Cx<'_>) {
        let op = match way {
            Way::Up => Some(Op::ClientReadable),
            Way::Down => self.live.map(Op::LegReadable),
        };
        let ask = |ring: &mut Ring, fd: BorrowedFd<'_>, token| {
            ring.poll(fd, libc::POLLIN | libc::POLLRDHUP, token);
        };
        self.ask_source(way, op, ask, cx);
    }

    /// Has the ring do something with the source of a direction that counts as receiving.
    fn ask_source(
        &mut self,
        way: Way,
        op: Option<Op>,
        ask: impl FnOnce(&mut Ring, BorrowedFd<'_>, u64),
        cx: &mut Cx<'_>,
    ) {
        let Some(op) = op else { return };
        let token = self.token(op, cx);
        let Some(end) = self.source(way) else { return };
        let Some(fd) = end.fd() else { return };
        ask(cx.ring, fd, token);
        end.asked();
        self.direction(way).receiving = true;
    }

    /// Asks to be told when the sink of a direction has room.
    fn wait_for_sink(&mut self, way: Way, cx: &mut Cx<'_>) {
        let op = match way {
            Way::Up => self.live.map(Op::LegWritable),
            Way::Down => Some(Op::ClientWritable),
        };
        let Some(op) = op else { return };
        let token = self.token(op, cx);
        let Some(end) = self.sink(way) else { return };
        let Some(fd) = end.fd() else { return };
        cx.ring.poll(fd, libc::POLLOUT, token);
        end.asked();
        self.direction(way).waits_for_room();
    }

    /// A socket that was waited for is ready.
    pub(crate) fn ready(&mut self, way: Way, leg: Option<Leg>, source: bool, cx: &mut Cx<'_>) {
        let end = match leg {
            Some(leg) => &mut self.legs[leg.index()].end,
            None => &mut self.client,
        };
        let closing = end.is_closing();
        end.answered(cx.ring);
        if closing || self.phase == Phase::Closing {
            return;
        }
        if source {
            self.direction(way).receiving = false;
        } else {
            self.direction(way).sending = false;
            self.direction(way).room = true;
        }
        self.pump(way, cx);
    }
}

/// Whether both ways of a socket are closed, although we have not closed ours: it was reset.
fn is_closed(socket: BorrowedFd<'_>) -> bool {
    let mut poll = [PollFd::from_borrowed_fd(socket, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut poll, Some(&now)).is_ok() && poll[0].revents().contains(PollFlags::HUP)
}
