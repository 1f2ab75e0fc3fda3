//! Datagrams: sessions by client and dialled address, bounded in number.
//!
//! A datagram finds its session by one look-up; a new one is let in as a connection is. A session
//! never stays on a backend that is dead, drained or removed: when the snapshot has changed, its
//! next datagram asks again, and when the backend's host says that nobody listens (ICMP), its next
//! datagram goes to the next candidate. Datagrams that the kernel has joined (UDP_GRO) are sent as
//! they came (UDP_SEGMENT).

mod ages;
mod carry;
mod flow;
mod handing;
mod session;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use ahash::RandomState;
use fairway_core::{BackendId, EndReason, Tick};
use socket2::Socket;

use self::ages::Ages;
pub use self::handing::HandedSession;
use self::handing::Handing;
use self::session::{Session, prepare};
use crate::ListenerKey;
use crate::listen::open_reply;
use crate::report::OpenConnection;
use crate::session::{Cx, End, FURTHEST};
use crate::sys::Completion;
use crate::token::{GENERATIONS, Op, Token};
use crate::wheel::{Timer, Wheel};

/// A socket that clients' datagrams arrive at.
struct Listener {
    key: ListenerKey,
    end: End,
    /// The address that it is bound to; none when each datagram says whom it was for.
    vip: Option<SocketAddr>,
    outlet: Option<u32>,
    receiving: bool,
    generation: u32,
}

/// A socket that replies leave from, bound to the dialled address.
enum Outlet {
    /// The listener that is bound to it.
    Listener(u32),
    /// A socket of its own, beside a listener for any address.
    Own { socket: Socket, vip: SocketAddr, users: u32 },
    /// A free place.
    Free,
}

/// A worker's datagrams.
pub(crate) struct Datagrams {
    listeners: Vec<Listener>,
    outlets: Vec<Outlet>,
    own_outlets: HashMap<SocketAddr, u32, RandomState>,
    sessions: Vec<Session>,
    free: Vec<u32>,
    by_flow: HashMap<(SocketAddr, SocketAddr), u32, RandomState>,
    ages: Ages,
    pub(crate) wheel: Wheel,
    /// Receives that found no buffer.
    starved: Vec<Token>,
    /// No new sessions: the process is stopping.
    refusing: bool,
    handing: Handing,
}

impl Datagrams {
    pub(crate) fn new(now: Tick) -> Self {
        Self {
            listeners: Vec::new(),
            outlets: Vec::new(),
            own_outlets: HashMap::default(),
            sessions: Vec::new(),
            free: Vec::new(),
            by_flow: HashMap::default(),
            ages: Ages::default(),
            wheel: Wheel::new(now),
            starved: Vec::new(),
            refusing: false,
            handing: Handing::default(),
        }
    }

    /// Sessions.
    pub(crate) fn len(&self) -> usize {
        self.by_flow.len()
    }

    /// Takes the datagrams that arrive at `socket`.
    pub(crate) fn listen(
        &mut self,
        key: ListenerKey,
        socket: Socket,
        vip: Option<SocketAddr>,
        cx: &mut Cx<'_>,
    ) {
        prepare(&socket);
        let vacant = self.listeners.iter().position(|l| l.end.is_free());
        let index = vacant.unwrap_or(self.listeners.len());
        let generation = vacant.map_or(0, |at| (self.listeners[at].generation + 1) % GENERATIONS);
        let outlet = vip.map(|_| self.add_outlet(Outlet::Listener(index as u32)));
        let end = End::new(socket.into());
        let listener = Listener { key, end, vip, outlet, receiving: false, generation };
        if vacant.is_some() {
            self.listeners[index] = listener;
        } else {
            self.listeners.push(listener);
        }
        self.receive_clients(index, cx);
    }

    /// Closes the listeners that `which` names, and ends their sessions.
    pub(crate) fn unlisten(&mut self, which: impl Fn(ListenerKey) -> bool, cx: &mut Cx<'_>) {
        for index in 0..self.listeners.len() {
            let listener = &mut self.listeners[index];
            if listener.end.is_free() || listener.end.is_closing() || !which(listener.key) {
                continue;
            }
            let outlet = listener.outlet.take();
            listener.end.close(cx.ring, false);
            let Some(outlet) = outlet else { continue };
            self.end(EndReason::NoService, |session| session.outlet == outlet, cx);
            self.outlets[outlet as usize] = Outlet::Free;
        }
    }

    /// Lets nobody new in; the sessions go on until the process stops.
    pub(crate) fn refuse(&mut self) {
        self.refusing = true;
    }

    /// Ends the sessions on `backends`, which are in order.
    pub(crate) fn end_backends(
        &mut self,
        backends: &[BackendId],
        reason: EndReason,
        cx: &mut Cx<'_>,
    ) {
        let on = |session: &Session| {
            session
                .backend
                .as_ref()
                .is_some_and(|backend| backends.binary_search(&backend.id).is_ok())
        };
        self.end(reason, on, cx);
    }

    /// Ends every session.
    pub(crate) fn end_all(&mut self, reason: EndReason, cx: &mut Cx<'_>) {
        self.end(reason, |_| true, cx);
    }

    fn end(&mut self, reason: EndReason, which: impl Fn(&Session) -> bool, cx: &mut Cx<'_>) {
        for index in 0..self.sessions.len() as u32 {
            let session = &self.sessions[index as usize];
            if session.admitted.is_some() && which(session) {
                self.finish(index, reason, cx);
            }
        }
    }

    /// Something that was asked for datagrams has completed.
    pub(crate) fn complete(&mut self, token: Token, done: Completion, cx: &mut Cx<'_>) {
        match token.op {
            Op::DatagramIn => self.heard_clients(token, done, cx),
            Op::DatagramReply => self.heard_backend(token, done, cx),
            Op::DatagramSent => self.sent(token.index, done.result, cx),
            _ => {}
        }
    }

    /// A session's timer fired.
    pub(crate) fn fire(&mut self, timer: Timer, cx: &mut Cx<'_>) {
        let Some(session) = self.sessions.get(timer.index as usize) else { return };
        let Some(deadline) = session.deadline().filter(|_| session.generation == timer.generation)
        else {
            return;
        };
        if deadline <= cx.now {
            self.finish(timer.index, EndReason::IdleTimeout, cx);
        } else {
            self.wheel.set(Timer { at: deadline.min(cx.now.plus(FURTHEST)), ..timer });
        }
    }

    /// Receives that found no buffer try again, once there are some.
    pub(crate) fn feed(&mut self, cx: &mut Cx<'_>) {
        if self.starved.is_empty() || self.handing.is_paused() {
            return;
        }
        if cx.ring.lacks_datagram_buffers() {
            // What is being sent gives its buffers back.
            return cx.ring.hurry();
        }
        for token in std::mem::take(&mut self.starved) {
            let index = token.index as usize;
            match token.op {
                Op::DatagramIn => self.receive_clients(index, cx),
                _ => self.receive_replies(token.index, cx),
            }
        }
    }

    /// Closes sockets for replies that no session uses.
    pub(crate) fn prune(&mut self, cx: &mut Cx<'_>) {
        for outlet in &mut self.outlets {
            if let Outlet::Own { users: 0, vip, .. } = outlet {
                self.own_outlets.remove(vip);
                if let Outlet::Own { socket, .. } = std::mem::replace(outlet, Outlet::Free) {
                    cx.ring.close(socket.into());
                }
            }
        }
    }

    fn receive_clients(&mut self, index: usize, cx: &mut Cx<'_>) {
        let Some(listener) = self.listeners.get_mut(index) else { return };
        if listener.receiving || listener.end.is_closing() || self.handing.is_paused() {
            return;
        }
        let op = Op::DatagramIn;
        let token = Token { op, index: index as u32, generation: listener.generation };
        let Some(fd) = listener.end.fd() else { return };
        cx.ring.receive_datagrams(fd, token.pack());
        listener.end.asked();
        listener.receiving = true;
    }

    fn receive_replies(&mut self, index: u32, cx: &mut Cx<'_>) {
        let Some(session) = self.sessions.get_mut(index as usize) else { return };
        if session.receiving
            || session.failed
            || session.end.is_closing()
            || self.handing.is_paused()
        {
            return;
        }
        let token = Token { op: Op::DatagramReply, index, generation: session.generation };
        let Some(fd) = session.end.fd() else { return };
        cx.ring.receive_datagrams(fd, token.pack());
        session.end.asked();
        session.receiving = true;
    }

    fn heard_clients(&mut self, token: Token, done: Completion, cx: &mut Cx<'_>) {
        let index = token.index as usize;
        let known = |l: &&mut Listener| l.generation == token.generation;
        let Some(listener) = self.listeners.get_mut(index).filter(known) else {
            return done.datagram.into_iter().for_each(|d| cx.ring.release_datagram(d.chunk));
        };
        let (vip, outlet) = (listener.vip, listener.outlet);
        let closing = listener.end.is_closing();
        if !done.more {
            listener.receiving = false;
            listener.end.answered(cx.ring);
        }
        if let Some(datagram) = done.datagram {
            if closing {
                cx.ring.release_datagram(datagram.chunk);
            } else {
                self.forward(datagram, vip, outlet, cx);
            }
        }
        if !done.more && !closing {
            if done.result == Err(libc::ENOBUFS) {
                self.starved.push(token);
            } else {
                self.receive_clients(index, cx);
            }
        }
    }

    fn heard_backend(&mut self, token: Token, done: Completion, cx: &mut Cx<'_>) {
        let known = |s: &&mut Session| s.generation == token.generation;
        let Some(session) = self.sessions.get_mut(token.index as usize).filter(known) else {
            return done.datagram.into_iter().for_each(|d| cx.ring.release_datagram(d.chunk));
        };
        if !done.more {
            session.receiving = false;
            session.end.answered(cx.ring);
        }
        match (done.datagram, done.result) {
            (Some(datagram), _) => self.reply(token.index, datagram, cx),
            (None, Err(libc::ENOBUFS)) => {
                self.starved.push(token);
                return self.free_if_over(token.index);
            }
            (None, Err(libc::ECANCELED)) => {}
            (None, Err(error)) if !session.end.is_closing() => {
                self.backend_failed(token.index, error, cx);
            }
            (None, _) => {}
        }
        if !done.more {
            self.receive_replies(token.index, cx);
        }
        self.free_if_over(token.index);
    }

    fn add_outlet(&mut self, outlet: Outlet) -> u32 {
        let free = self.outlets.iter().position(|outlet| matches!(outlet, Outlet::Free));
        match free {
            Some(place) => {
                self.outlets[place] = outlet;
                place as u32
            }
            None => {
                self.outlets.push(outlet);
                self.outlets.len() as u32 - 1
            }
        }
    }

    /// The socket for replies from `vip`, made when there is none.
    fn own_outlet(&mut self, vip: SocketAddr) -> Option<u32> {
        if let Some(outlet) = self.own_outlets.get(&vip) {
            return Some(*outlet);
        }
        let socket = open_reply(vip).ok()?;
        let outlet = self.add_outlet(Outlet::Own { socket, vip, users: 0 });
        self.own_outlets.insert(vip, outlet);
        Some(outlet)
    }

    fn outlet_fd(&self, outlet: u32) -> Option<BorrowedFd<'_>> {
        match self.outlets.get(outlet as usize)? {
            Outlet::Listener(index) => self.listeners.get(*index as usize)?.end.fd(),
            Outlet::Own { socket, .. } => Some(socket.as_fd()),
            Outlet::Free => None,
        }
    }

    /// The sessions, as they are shown to people.
    pub(crate) fn listed(&self, now: Tick) -> impl Iterator<Item = OpenConnection> {
        self.sessions.iter().filter_map(move |session| session.listed(now))
    }

    /// Whether every socket is closed.
    pub(crate) fn is_over(&self) -> bool {
        self.listeners.iter().all(|listener| listener.end.is_free())
            && self.sessions.iter().all(Session::is_over)
    }
}
