//! A worker: one thread, one ring, its own listeners and sessions.

mod obey;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::time::Duration;

use crossbeam_channel::Receiver;
use fairway_core::publish::Reader;
use fairway_core::{EndReason, Protocol, Snapshot, Tick, VipAddr};
use socket2::{SockRef, Socket};

use crate::accept::admit;
use crate::command::Command;
use crate::greeting::{Welcome, count_refusal, welcome};
use crate::held::Held;
use crate::packets::{Packets, Turn};
use crate::relay::Way;
use crate::report::{Shared, SharedStats};
use crate::session::{Cx, Heaviest, Session, refuse};
use crate::sys::{Completion, Features, Ring, accepted};
use crate::token::{Op, Token};
use crate::udp::Datagrams;
use crate::wheel::{Timer, Wheel};
use crate::{ListenerKey, SetupError};

/// How long accepting stays paused when nothing closes.
const PAUSE: Duration = Duration::from_millis(100);
/// Places below the limit from which on connections are accepted one by one: a multishot accept
/// takes up to 32 at once before we can stop it.
const NEAR: u32 = 64;
/// How often a worker lets go of what it no longer uses.
const PRUNE: Duration = Duration::from_secs(1);

struct Listener {
    key: ListenerKey,
    socket: Option<Socket>,
    vip: Option<SocketAddr>,
    armed: bool,
    closing: Option<Farewell>,
    generation: u32,
}

/// What becomes of those who wait to be accepted when a listener goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Farewell {
    /// They are taken first.
    Serve,
    /// Another process has the socket, too, and takes them.
    Leave,
}

/// Everything of a worker but its sessions.
struct Parts {
    ring: Ring,
    wheel: Wheel,
    held: Held,
    talkers: Heaviest,
    starved: Vec<u32>,
    /// The kernel refused a session a socket.
    exhausted: bool,
    pipes: u32,
    shared: Arc<Shared>,
    stats: SharedStats,
    worker: usize,
}

pub(crate) struct Worker<'r> {
    parts: Parts,
    datagrams: Datagrams,
    packets: Option<Packets<'r>>,
    commands: Receiver<Command>,
    wake: OwnedFd,
    listeners: Vec<Listener>,
    sessions: Vec<Session>,
    free: Vec<u32>,
    open: u32,
    paused: bool,
    /// Not before then, after the kernel had nothing left.
    resume_at: Tick,
    stopping: bool,
    now: Tick,
    prune_at: Tick,
}

impl<'r> Worker<'r> {
    pub(crate) fn new(
        worker: usize,
        shared: Arc<Shared>,
        stats: SharedStats,
        commands: Receiver<Command>,
        wake: OwnedFd,
        features: Features,
        packets: Option<Packets<'r>>,
    ) -> Result<Self, SetupError> {
        let now = shared.clock.now();
        let settings = &shared.settings;
        let ring = Ring::new(settings.buffers, settings.buffer_bytes, features)?;
        let pipes = settings.max_pipes;
        Ok(Self {
            parts: Parts {
                ring,
                wheel: Wheel::new(now),
                held: Held::default(),
                talkers: Heaviest::default(),
                starved: Vec::new(),
                exhausted: false,
                pipes,
                shared,
                stats,
                worker,
            },
            datagrams: Datagrams::new(now),
            packets,
            commands,
            wake,
            listeners: Vec::new(),
            sessions: Vec::new(),
            free: Vec::new(),
            open: 0,
            paused: false,
            resume_at: now,
            stopping: false,
            now,
            prune_at: now,
        })
    }

    /// Runs until told to stop.
    pub(crate) fn run(mut self, mut reader: Reader) -> io::Result<()> {
        let (mut sent, mut batch) = (Vec::with_capacity(1024), Vec::with_capacity(1024));
        let mut due = Vec::new();
        self.arm_wake();
        loop {
            let wheels = [&self.parts.wheel, &self.datagrams.wheel];
            let sleep = wheels.into_iter().filter_map(|wheel| wheel.sleep(self.now)).min();
            let packets = self.packets.as_ref().and_then(|packets| packets.sleep(self.now));
            let sleep = sleep.into_iter().chain(packets).min();
            let sleep = if self.paused { Some(sleep.unwrap_or(PAUSE).min(PAUSE)) } else { sleep };
            self.parts.ring.wait(sleep)?;
            self.now = self.parts.shared.clock.now();
            let snapshot = reader.load();
            self.parts.ring.completions(&mut batch);
            self.parts.ring.settled(&mut sent);
            for completion in sent.drain(..).chain(batch.drain(..)) {
                self.complete(completion, snapshot);
            }
            self.parts.wheel.advance(self.now, &mut due);
            for timer in due.drain(..) {
                self.fire(timer, snapshot);
            }
            self.datagrams.wheel.advance(self.now, &mut due);
            for timer in due.drain(..) {
                self.datagrams.fire(timer, &mut self.parts.cx(0, self.now, snapshot));
            }
            self.feed_starved(snapshot);
            self.datagrams.feed(&mut self.parts.cx(0, self.now, snapshot));
            self.datagrams.hand_over();
            if let Some(packets) = &mut self.packets {
                let Parts { ring, shared, talkers, .. } = &mut self.parts;
                packets.turn(Turn { ring, snapshot, shared, talkers, now: self.now });
            }
            if std::mem::take(&mut self.parts.exhausted) {
                self.resume_at = self.now.plus(PAUSE);
                self.pause_accepting();
            }
            self.resume_accepting();
            self.show();
            if self.now >= self.prune_at {
                self.prune_at = self.now.plus(PRUNE);
                self.datagrams.prune(&mut self.parts.cx(0, self.now, snapshot));
                self.packets.iter_mut().for_each(Packets::gather);
                self.parts.held.prune(snapshot);
                self.parts.talkers.retain(|id, _| snapshot.service(*id).is_some());
            }
            if self.stopping && self.open == 0 && self.datagrams.is_over() {
                return Ok(());
            }
        }
    }

    fn complete(&mut self, completion: Completion, snapshot: &Snapshot) {
        let Some(token) = Token::unpack(completion.token) else {
            return;
        };
        match token.op {
            Op::Accept => self.accept_done(token, completion, snapshot),
            Op::Wake => self.obey(snapshot),
            Op::DatagramIn | Op::DatagramReply | Op::DatagramSent => {
                let cx = &mut self.parts.cx(token.index, self.now, snapshot);
                self.datagrams.complete(token, completion, cx);
            }
            Op::FramesReady | Op::FramesSent | Op::FramesPassed | Op::PortsReady => {
                if let Some(packets) = &mut self.packets {
                    packets.complete(token, completion.result.is_err());
                }
            }
            _ => self.session_event(token, completion, snapshot),
        }
    }

    fn session_event(&mut self, token: Token, completion: Completion, snapshot: &Snapshot) {
        let alive = |session: &Session| session.generation == token.generation;
        let Some(session) = self.sessions.get_mut(token.index as usize).filter(|s| alive(s)) else {
            // Sessions are freed after their last completion: this one belongs to nobody.
            if let Some(chunk) = completion.chunk {
                self.parts.ring.buffers().release(chunk);
            }
            return;
        };
        let mut cx = self.parts.cx(token.index, self.now, snapshot);
        match token.op {
            Op::ClientReceive => session.received(Way::Up, None, completion, &mut cx),
            Op::LegReceive(leg) => session.received(Way::Down, Some(leg), completion, &mut cx),
            Op::ClientSend => session.sent(Way::Down, None, completion.result, &mut cx),
            Op::LegSend(leg) => session.sent(Way::Up, Some(leg), completion.result, &mut cx),
            Op::ClientReadable => session.ready(Way::Up, None, true, &mut cx),
            Op::ClientWritable => session.ready(Way::Down, None, false, &mut cx),
            Op::LegReadable(leg) => session.ready(Way::Down, Some(leg), true, &mut cx),
            Op::LegWritable(leg) => session.ready(Way::Up, Some(leg), false, &mut cx),
            Op::Connect(leg) => session.connected(leg, completion.result, &mut cx),
            _ => {}
        }
        self.free_if_over(token.index, snapshot);
    }

    fn fire(&mut self, timer: Timer, snapshot: &Snapshot) {
        let Some(session) = self.sessions.get_mut(timer.index as usize) else {
            return;
        };
        if session.generation != timer.generation {
            return;
        }
        session.timer(timer.at, &mut self.parts.cx(timer.index, self.now, snapshot));
        self.free_if_over(timer.index, snapshot);
    }

    fn free_if_over(&mut self, index: u32, snapshot: &Snapshot) {
        let Some(session) = self.sessions.get_mut(index as usize) else {
            return;
        };
        if session.is_over() && session.used {
            session.recycle(&mut self.parts.cx(index, self.now, snapshot));
            self.free.push(index);
            self.open -= 1;
        }
    }

    /// Sessions whose receive found no buffer try again, once a batch, when there are some.
    fn feed_starved(&mut self, snapshot: &Snapshot) {
        if self.parts.starved.is_empty() {
            return;
        }
        if self.parts.ring.buffers().is_starved() {
            // What is being sent gives its buffers back.
            return self.parts.ring.hurry();
        }
        self.parts.stats.starved.add(self.parts.starved.len() as u64);
        for index in std::mem::take(&mut self.parts.starved) {
            if let Some(session) = self.sessions.get_mut(index as usize) {
                session.starved_again(&mut self.parts.cx(index, self.now, snapshot));
            }
            self.free_if_over(index, snapshot);
        }
    }

    fn accept_done(&mut self, token: Token, completion: Completion, snapshot: &Snapshot) {
        let socket = completion.result.map(accepted);
        let index = token.index as usize;
        let known = |l: &Listener| l.generation == token.generation;
        let Some(listener) = self.listeners.get_mut(index).filter(|l| known(l)) else {
            return;
        };
        if !completion.more {
            listener.armed = false;
        }
        let vip = listener.vip;
        match socket {
            Ok(socket) => self.accepted(socket, vip, snapshot),
            Err(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                self.resume_at = self.now.plus(PAUSE);
                self.pause_accepting();
            }
            // The rest concerns a connection that is gone already, or our own cancelling.
            Err(_) => {}
        }
        let Some(listener) = self.listeners.get_mut(index) else {
            return;
        };
        if listener.closing.is_some() && !listener.armed {
            return self.close_listener(index, snapshot);
        }
        if !listener.armed && !self.paused {
            self.arm_listener(index);
        }
    }

    fn accepted(&mut self, socket: OwnedFd, vip: Option<SocketAddr>, snapshot: &Snapshot) {
        if self.stopping {
            return refuse(socket);
        }
        // A peer that is gone already has no address; nothing is lost with it.
        let Ok(peer) = peer_addr(socket.as_fd()) else {
            return;
        };
        let Some(vip) = vip.or_else(|| local_addr(socket.as_fd())) else {
            return;
        };
        let index = self.free.last().copied().unwrap_or(self.sessions.len() as u32);
        let Some(service) = snapshot.lookup(VipAddr(vip), Protocol::Tcp) else {
            self.parts.stats.no_service.inc();
            return refuse(socket);
        };
        let mut cx = self.parts.cx(index, self.now, snapshot);
        let admitted = match welcome(service, peer) {
            Welcome::ByHeader => None,
            Welcome::AsItSeems => match admit(service, peer, vip, &mut cx) {
                Some(admitted) => Some(admitted),
                None => return refuse(socket),
            },
            Welcome::Refused => {
                count_refusal(service, (peer, vip), &cx);
                return refuse(socket);
            }
        };
        if self.free.pop().is_none() {
            self.sessions.push(Session::free(0));
        }
        self.open += 1;
        let session = &mut self.sessions[index as usize];
        session.used = true;
        match admitted {
            Some((admitted, backend)) => session.open(socket, admitted, backend, &mut cx),
            None => session.greet(socket, (peer, vip), service, &mut cx),
        }
        self.free_if_over(index, snapshot);
        let most = self.parts.shared.settings.max_connections;
        if self.open >= most {
            self.pause_accepting();
        } else if self.open == most.saturating_sub(NEAR) {
            // From here on one at a time; the listeners are armed again as that.
            self.disarm_listeners();
        }
    }

    /// Stops accepting until connections have ended; new ones wait in the kernel's queues.
    fn pause_accepting(&mut self) {
        if self.paused {
            return;
        }
        self.paused = true;
        self.parts.stats.pauses.inc();
        self.disarm_listeners();
    }

    fn disarm_listeners(&mut self) {
        for listener in self.listeners.iter().filter(|listener| listener.armed) {
            if let Some(socket) = &listener.socket {
                self.parts.ring.cancel(socket.as_fd());
            }
        }
    }

    /// Accepts again once a sixteenth of the places is free.
    fn resume_accepting(&mut self) {
        let most = self.parts.shared.settings.max_connections;
        if !self.paused || self.now < self.resume_at || self.open > most - most.div_ceil(16) {
            return;
        }
        self.paused = false;
        for index in 0..self.listeners.len() {
            if !self.listeners[index].armed {
                self.arm_listener(index);
            }
        }
    }

    fn arm_listener(&mut self, index: usize) {
        let listener = &mut self.listeners[index];
        let Some(socket) = listener.socket.as_ref().filter(|_| listener.closing.is_none()) else {
            return;
        };
        let token = Token { op: Op::Accept, index: index as u32, generation: listener.generation };
        let most = self.parts.shared.settings.max_connections;
        let near = self.open + NEAR >= most;
        self.parts.ring.accept(socket.as_fd(), !near, token.pack());
        listener.armed = true;
    }

    fn arm_wake(&mut self) {
        let token = Token { op: Op::Wake, index: 0, generation: 0 };
        self.parts.ring.poll(self.wake.as_fd(), libc::POLLIN, token.pack());
    }

    fn listen(&mut self, key: ListenerKey, socket: Socket, vip: Option<SocketAddr>) {
        let vacant = self.listeners.iter().position(|l| l.socket.is_none() && !l.armed);
        let index = vacant.unwrap_or(self.listeners.len());
        let generation = vacant.map_or(0, |index| self.listeners[index].generation + 1);
        let socket = Some(socket);
        let listener = Listener { key, socket, vip, armed: false, closing: None, generation };
        self.parts.stats.listeners.fetch_add(1, Relaxed);
        if vacant.is_some() {
            self.listeners[index] = listener;
        } else {
            self.listeners.push(listener);
        }
        if !self.paused {
            self.arm_listener(index);
        }
    }

    fn unlisten(
        &mut self,
        farewell: Farewell,
        which: impl Fn(&Listener) -> bool,
        snapshot: &Snapshot,
    ) {
        for index in 0..self.listeners.len() {
            let listener = &mut self.listeners[index];
            if listener.closing.is_some() || !which(listener) {
                continue;
            }
            let Some(socket) = &listener.socket else {
                continue;
            };
            listener.closing = Some(farewell);
            if listener.armed {
                self.parts.ring.cancel(socket.as_fd());
            } else {
                self.close_listener(index, snapshot);
            }
        }
    }

    /// Takes what waits in the listener's queue, unless another process does, then closes it: whoever
    /// had connected is served while the service is there, and refused when it is gone.
    fn close_listener(&mut self, index: usize, snapshot: &Snapshot) {
        let listener = &mut self.listeners[index];
        let vip = listener.vip;
        let serves = listener.closing != Some(Farewell::Leave);
        let Some(socket) = listener.socket.take() else { return };
        // Of a socket that stays with another process, this would be its mode, too.
        if serves && socket.set_nonblocking(true).is_ok() {
            while let Ok((client, _)) = socket.accept() {
                self.accepted(client.into(), vip, snapshot);
            }
        }
        // Whoever sees one listener less also sees the connections that it still brought.
        self.parts.stats.connections.store(u64::from(self.open), Relaxed);
        self.parts.stats.listeners.fetch_sub(1, Release);
    }

    fn end(&mut self, reason: EndReason, snapshot: &Snapshot, which: impl Fn(&Session) -> bool) {
        for index in 0..self.sessions.len() as u32 {
            let session = &mut self.sessions[index as usize];
            if session.used && which(session) {
                session.finish(reason, true, &mut self.parts.cx(index, self.now, snapshot));
                self.free_if_over(index, snapshot);
            }
        }
    }

    fn show(&mut self) {
        let stats = &self.parts.stats;
        let buffers = self.parts.ring.buffers();
        stats.batches.inc();
        stats.connections.store(u64::from(self.open), Relaxed);
        stats.udp_sessions.store(self.datagrams.len() as u64, Relaxed);
        stats.buffers_used.store((buffers.count() - buffers.free()) as u64, Relaxed);
        stats.paused.store(self.paused, Relaxed);
    }
}

impl Parts {
    fn cx<'a>(&'a mut self, index: u32, now: Tick, snapshot: &'a Snapshot) -> Cx<'a> {
        Cx {
            ring: &mut self.ring,
            wheel: &mut self.wheel,
            held: &mut self.held,
            talkers: &mut self.talkers,
            snapshot,
            shared: &self.shared,
            stats: &self.stats,
            starved: &mut self.starved,
            exhausted: &mut self.exhausted,
            pipes: &mut self.pipes,
            now,
            worker: self.worker,
            index,
        }
    }
}

fn peer_addr(socket: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    let addr = SockRef::from(&socket).peer_addr()?;
    addr.as_socket().ok_or_else(|| io::Error::other("not an IP socket"))
}

fn local_addr(socket: BorrowedFd<'_>) -> Option<SocketAddr> {
    SockRef::from(&socket).local_addr().ok()?.as_socket()
}
