//! A session: one client's connection, from accept to close.
//!
//! ```text
//! (Greeting) ──▶ Connecting ──▶ Relaying ──▶ Closing ──▶ (free)
//!     └───────────────┴──────────────┴──────────▲
//! ```
//!
//! `greeting.rs` reads a header of the PROXY protocol where one may come, `connect.rs` brings a
//! session from Connecting to Relaying, `relay.rs` moves its bytes; here it begins, times out and
//! ends. A descriptor is closed only when no request on it is under way.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ahash::RandomState;
use fairway_core::talkers::network_of;
use fairway_core::{BackendId, EndReason, Protocol, ServiceId, Snapshot, Tick, Tried};
use socket2::SockRef;

use crate::direction::Direction;
use crate::greeting::Greeting;
use crate::held::{Held, HeldBackend, HeldService};
use crate::listen::keepalive;
use crate::report::{
    Carried, ConnectionRecord, OpenConnection, ServiceTalkers, Shared, WorkerStats,
};
use crate::sys::Ring;
use crate::token::{Leg, Op, Token};
use crate::wheel::{Timer, Wheel};

/// What a session may use while it handles an event.
pub(crate) struct Cx<'a> {
    pub(crate) ring: &'a mut Ring,
    pub(crate) wheel: &'a mut Wheel,
    pub(crate) held: &'a mut Held,
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) shared: &'a Shared,
    pub(crate) stats: &'a WorkerStats,
    /// Sessions whose receive found no buffer.
    pub(crate) starved: &'a mut Vec<u32>,
    /// To be set when the kernel has no socket left.
    pub(crate) exhausted: &'a mut bool,
    /// The heaviest clients by service.
    pub(crate) talkers: &'a mut Heaviest,
    /// Pipes that may still be made.
    pub(crate) pipes: &'a mut u32,
    pub(crate) now: Tick,
    pub(crate) worker: usize,
    /// The session's own index.
    pub(crate) index: u32,
}

/// Longest timer: a session with a later deadline looks again then.
pub(crate) const FURTHEST: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Not let in yet: a header is to say who the client is.
    Greeting,
    Connecting,
    Relaying,
    Closing,
}

/// A socket and the requests that are under way on it.
#[derive(Default)]
pub(crate) struct End {
    fd: Option<OwnedFd>,
    pending: u16,
    closing: bool,
    /// A send has failed: what is left to receive ends in a reset.
    pub(crate) failed: bool,
}

impl End {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self { fd: Some(fd), ..Self::default() }
    }

    pub(crate) fn is_free(&self) -> bool {
        self.fd.is_none()
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing
    }

    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }

    pub(crate) fn asked(&mut self) {
        self.pending += 1;
    }

    /// A request has completed for good.
    pub(crate) fn answered(&mut self, ring: &mut Ring) {
        self.pending -= 1;
        if self.closing && self.pending == 0 {
            self.close_now(ring);
        }
    }

    /// Closes the socket as soon as nothing is under way on it; with `reset`, by RST.
    pub(crate) fn close(&mut self, ring: &mut Ring, reset: bool) {
        let Some(fd) = &self.fd else { return };
        if reset {
            // A socket that refuses this is closed in order: nothing else can be done.
            let _ = SockRef::from(fd).set_linger(Some(Duration::ZERO));
        }
        if self.closing {
            return;
        }
        self.closing = true;
        if self.pending == 0 {
            self.close_now(ring);
        } else if let Some(fd) = self.fd() {
            ring.cancel(fd);
        }
    }

    fn close_now(&mut self, ring: &mut Ring) {
        if let Some(fd) = self.fd.take() {
            ring.close(fd);
        }
        *self = Self::default();
    }
}

/// A connection to a backend, being opened or open.
#[derive(Default)]
pub(crate) struct LegState {
    pub(crate) end: End,
    /// Set while the place on the backend is taken.
    pub(crate) backend: Option<Rc<HeldBackend>>,
    pub(crate) since: Tick,
    pub(crate) started_us: u64,
    pub(crate) connecting: bool,
}

impl LegState {
    /// Gives the place on the backend back and closes the socket.
    pub(crate) fn close(&mut self, ring: &mut Ring, reset: bool) {
        self.connecting = false;
        if let Some(backend) = self.backend.take() {
            backend.close();
        }
        self.end.close(ring, reset);
    }
}

/// A client that was let in, with the first candidate already chosen.
pub(crate) struct Admitted {
    pub(crate) peer: SocketAddr,
    pub(crate) dialled: SocketAddr,
    pub(crate) service: Rc<HeldService>,
    pub(crate) start: u64,
    /// The client table counts this connection.
    pub(crate) tracked: bool,
    /// What the client dialled at the proxy before us, as a header says.
    pub(crate) destination: Option<SocketAddr>,
    /// The id that a header gave it.
    pub(crate) unique_id: Option<Box<[u8]>>,
}

pub(crate) struct Session {
    pub(crate) generation: u32,
    pub(crate) phase: Phase,
    pub(crate) client: End,
    pub(crate) legs: [LegState; 2],
    /// The leg that won.
    pub(crate) live: Option<Leg>,
    pub(crate) admitted: Option<Admitted>,
    /// Set until the client's header is read.
    pub(crate) greeting: Option<Box<Greeting>>,
    /// Not among the free places.
    pub(crate) used: bool,
    /// Candidates that were started.
    pub(crate) tried: Tried,
    /// The backend of the last leg that won, for the log.
    pub(crate) backend: Option<Rc<HeldBackend>>,
    pub(crate) up: Direction,
    pub(crate) down: Direction,
    /// What goes up is kept for a replay.
    pub(crate) replayable: bool,
    /// The backend's socket is kept alive, as the client's has been from the start.
    kept_alive: bool,
    /// Little may wait unsent in the backend's socket, as in the client's from the start.
    pub(crate) bounded: bool,
    /// The sockets do not block, because one direction is spliced.
    pub(crate) nonblocking: bool,
    pub(crate) hedge_at: Option<Tick>,
    /// Who closed first.
    pub(crate) first_end: Option<EndReason>,
    pub(crate) active_at: Tick,
    began: Tick,
    /// Time that the last good connect took, in microseconds.
    pub(crate) connect_us: Option<u64>,
    /// When the reply began.
    pub(crate) first_byte: Option<Tick>,
    /// Since when a backend is being looked for.
    pub(crate) searching_since: Tick,
    timer_at: Tick,
}

impl Session {
    pub(crate) fn free(generation: u32) -> Self {
        Self {
            generation,
            phase: Phase::Closing,
            client: End::default(),
            legs: Default::default(),
            live: None,
            admitted: None,
            greeting: None,
            used: false,
            tried: Tried::default(),
            backend: None,
            up: Direction::default(),
            down: Direction::default(),
            replayable: false,
            kept_alive: false,
            bounded: false,
            nonblocking: false,
            hedge_at: None,
            first_end: None,
            active_at: Tick(0),
            began: Tick(0),
            connect_us: None,
            first_byte: None,
            searching_since: Tick(0),
            timer_at: Tick(u64::MAX),
        }
    }

    /// Counts the session's times from `now` on.
    pub(crate) fn began_at(&mut self, now: Tick) {
        (self.began, self.searching_since, self.active_at) = (now, now, now);
    }

    /// Takes over the socket of a client that was let in.
    pub(crate) fn open(
        &mut self,
        client: OwnedFd,
        admitted: Admitted,
        backend: Rc<HeldBackend>,
        cx: &mut Cx<'_>,
    ) {
        self.client = End::new(client);
        self.began_at(cx.now);
        self.begin(admitted, backend, cx);
    }

    /// Begins with a client that was let in and its first candidate.
    pub(crate) fn begin(&mut self, admitted: Admitted, backend: Rc<HeldBackend>, cx: &mut Cx<'_>) {
        let retry = admitted.service.policy.retry;
        self.phase = Phase::Connecting;
        self.replayable = retry.on_reset_before_reply;
        self.searching_since = cx.now;
        self.admitted = Some(admitted);
        self.hedge_at = retry.hedge_after.map(|after| cx.now.plus(after));
        self.pump(crate::relay::Way::Up, cx);
        self.start_leg(backend, cx);
        self.set_timer(cx);
    }

    /// Whether every socket is closed and the session's place may be used again.
    pub(crate) fn is_over(&self) -> bool {
        self.phase == Phase::Closing
            && self.client.is_free()
            && self.legs.iter().all(|leg| leg.end.is_free())
    }

    /// Makes the place free for the next session.
    pub(crate) fn recycle(&mut self, cx: &mut Cx<'_>) {
        for direction in [&mut self.up, &mut self.down] {
            *cx.pipes += u32::from(direction.pipe.is_some());
            direction.reset(cx.ring);
        }
        self.generation = (self.generation + 1) % crate::token::GENERATIONS;
        self.live = None;
        self.used = false;
        self.admitted = None;
        self.greeting = None;
        self.backend = None;
        self.tried.clear();
        (self.kept_alive, self.bounded, self.nonblocking) = (false, false, false);
        self.first_end = None;
        (self.connect_us, self.first_byte) = (None, None);
        self.timer_at = Tick(u64::MAX);
    }

    pub(crate) fn token(&self, op: Op, cx: &Cx<'_>) -> u64 {
        Token { op, index: cx.index, generation: self.generation }.pack()
    }

    /// Whether a leg is on one of `backends`, which are in order.
    pub(crate) fn is_on(&self, backends: &[BackendId]) -> bool {
        self.legs
            .iter()
            .filter_map(|leg| leg.backend.as_ref())
            .any(|backend| backends.binary_search(&backend.id).is_ok())
    }

    /// How it is shown to people; none once it is closing.
    pub(crate) fn listed(&self, now: Tick) -> Option<OpenConnection> {
        let (service, client, vip) = match (&self.admitted, &self.greeting) {
            (Some(admitted), _) if self.phase != Phase::Closing => {
                (Some(Arc::clone(&admitted.service.name)), admitted.peer, admitted.dialled)
            }
            (_, Some(greeting)) => (None, greeting.via, greeting.dialled),
            _ => return None,
        };
        Some(OpenConnection {
            service,
            protocol: Protocol::Tcp,
            client,
            vip,
            backend: self.live.and(self.backend.as_ref()).map(|backend| backend.addr),
            attempts: self.tried.len() as u32,
            rx_bytes: self.up.bytes,
            tx_bytes: self.down.bytes,
            age: now.since(self.began),
            idle: now.since(self.active_at),
        })
    }

    /// A timer fired: is it the one that counts, and what is due?
    pub(crate) fn timer(&mut self, at: Tick, cx: &mut Cx<'_>) {
        if at != self.timer_at {
            return;
        }
        self.timer_at = Tick(u64::MAX);
        match self.phase {
            Phase::Closing => return,
            Phase::Greeting => self.greeting_timer(cx),
            Phase::Connecting => self.connecting_timer(cx),
            Phase::Relaying => {
                if self.relay_deadline().is_some_and(|deadline| deadline <= cx.now) {
                    let reason = if self.is_half_closed() {
                        EndReason::HalfClosedTimeout
                    } else {
                        EndReason::IdleTimeout
                    };
                    self.finish(reason, true, cx);
                } else {
                    self.keep_alive();
                }
            }
        }
        self.set_timer(cx);
    }

    /// Has the wheel wake the session for its next deadline, if it does not do so sooner.
    pub(crate) fn set_timer(&mut self, cx: &mut Cx<'_>) {
        let deadline = match self.phase {
            Phase::Greeting => self.greeting_deadline(),
            Phase::Connecting => self.connecting_deadline(),
            Phase::Relaying => self.relay_deadline(),
            Phase::Closing => None,
        };
        // Timers are never taken out of the wheel; a near one does not outlive its session long.
        let deadline = deadline.map(|at| at.min(cx.now.plus(FURTHEST)));
        let Some(at) = deadline.filter(|at| *at < self.timer_at) else { return };
        self.timer_at = at;
        cx.wheel.set(Timer { index: cx.index, generation: self.generation, at });
    }

    /// From the first timer on, which is long before a probe would be due.
    fn keep_alive(&mut self) {
        let fd = self.live.and_then(|leg| self.legs[leg.index()].end.fd());
        if let Some(fd) = fd.filter(|_| !self.kept_alive) {
            // It only finds out earlier that a backend is gone.
            let _ = SockRef::from(&fd).set_tcp_keepalive(&keepalive());
            self.kept_alive = true;
        }
    }

    fn is_half_closed(&self) -> bool {
        self.up.ended || self.down.ended
    }

    fn relay_deadline(&self) -> Option<Tick> {
        let timeouts = &self.admitted.as_ref()?.service.policy.timeouts;
        let after = if self.is_half_closed() { timeouts.half_closed } else { timeouts.idle };
        Some(self.active_at.plus(after))
    }

    pub(crate) fn retry_deadline(&self) -> Option<Tick> {
        Some(self.searching_since.plus(self.admitted.as_ref()?.service.policy.retry.deadline))
    }

    /// Ends the session; with `reset`, both peers get RST.
    pub(crate) fn finish(&mut self, reason: EndReason, reset: bool, cx: &mut Cx<'_>) {
        if self.phase == Phase::Closing {
            return;
        }
        if self.phase == Phase::Greeting {
            return self.turn_away(reason, reset, cx);
        }
        self.phase = Phase::Closing;
        self.client.close(cx.ring, reset);
        for leg in &mut self.legs {
            leg.close(cx.ring, reset);
        }
        let Some(admitted) = &self.admitted else {
            return;
        };
        let service = &admitted.service;
        service.state.close();
        service.state.counters.of(cx.worker).ends[reason as usize].inc();
        if admitted.tracked {
            cx.shared.clients.table.close(service.id, admitted.peer.ip());
        }
        let carried = Carried::Payload { rx: self.up.bytes, tx: self.down.bytes };
        note_talker(cx.talkers, service.id, admitted.peer, carried.bytes());
        let in_order = matches!(reason, EndReason::Client | EndReason::Backend);
        cx.shared.connection_ended(in_order, admitted.start, || ConnectionRecord {
            service: Arc::clone(&service.name),
            client: admitted.peer,
            vip: admitted.dialled,
            backend: self.backend.as_ref().map(|backend| backend.addr),
            reason,
            attempts: Some(self.tried.len() as u32),
            carried,
            connect: self.connect_us.map(Duration::from_micros),
            first_byte: self.first_byte.map(|at| at.since(self.began)),
            duration: cx.now.since(self.began),
        });
    }
}

/// The heaviest clients by service.
pub(crate) type Heaviest = HashMap<ServiceId, ServiceTalkers, RandomState>;

/// Counts an ended connection or session of `client`.
pub(crate) fn note_talker(
    talkers: &mut Heaviest,
    service: ServiceId,
    client: SocketAddr,
    bytes: u64,
) {
    let client = network_of(client.ip());
    let talkers = talkers.entry(service).or_default();
    talkers.by_connections.add(client, 1);
    talkers.by_bytes.add(client, bytes);
}

/// Refuses a client before a session exists: closes its socket by RST.
pub(crate) fn refuse(client: OwnedFd) {
    let _ = SockRef::from(&client).set_linger(Some(Duration::ZERO));
}

/// Remembers the backend of a client, under affinity.
pub(crate) fn keep_affinity(cx: &Cx<'_>, admitted: &Admitted, backend: BackendId) {
    if admitted.service.policy.affinity.is_some() {
        let client = admitted.peer.ip();
        cx.shared.clients.affinity.keep(admitted.service.id, client, backend, cx.now);
    }
}
