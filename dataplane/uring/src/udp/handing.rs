//! Sessions that go from one process to the next, with their sockets: clients and backends go on seeing
//! the ports that they know.
//!
//! While they are handed over nobody receives: what comes waits in the sockets, for milliseconds.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crossbeam_channel::Sender;
use fairway_core::{
    Backend, BackendId, EndReason, Limits, Protocol, Service, ServiceId, Tick, VipAddr,
};

use super::{Datagrams, Outlet};
use crate::session::{Admitted, Cx, End, FURTHEST};
use crate::wheel::Timer;

/// A session that another process goes on with.
#[derive(Debug)]
pub struct HandedSession {
    /// Who dialled,
    pub client: SocketAddr,
    /// and what.
    pub vip: SocketAddr,
    /// Its service.
    pub service: ServiceId,
    /// Its backend.
    pub backend: BackendId,
    /// The socket to the backend, connected.
    pub socket: OwnedFd,
    /// Where its sequence of candidates starts.
    pub start: u64,
    /// Whether its client's place in the table of clients is to be paid back.
    pub tracked: bool,
    /// Number of candidates that it was given.
    pub attempts: u32,
    /// Replies that are still expected.
    pub owed: u64,
    /// When it began.
    pub began: Tick,
    /// When the first reply came.
    pub first_reply: Option<Tick>,
    /// When its last datagram came.
    pub active_at: Tick,
    /// Bytes that reached the backend.
    pub rx_bytes: u64,
    /// Bytes that reached the client.
    pub tx_bytes: u64,
}

/// Where a worker is with that.
#[derive(Default)]
pub(super) enum Handing {
    /// Nowhere: datagrams are carried.
    #[default]
    Not,
    /// Waits for requests that are under way, and tells then.
    Ending(Sender<Vec<HandedSession>>),
    /// Has told.
    Told,
}

impl Handing {
    pub(super) fn is_paused(&self) -> bool {
        !matches!(self, Self::Not)
    }
}

impl Datagrams {
    /// Takes no datagrams from now on; `reply` gets the sessions when nothing is under way.
    pub(crate) fn pause(&mut self, reply: Sender<Vec<HandedSession>>, cx: &mut Cx<'_>) {
        self.handing = Handing::Ending(reply);
        let listeners = self.listeners.iter().filter(|it| it.receiving).map(|it| &it.end);
        let sessions = self.sessions.iter().filter(|it| it.receiving).map(|it| &it.end);
        for end in listeners.chain(sessions) {
            if let Some(fd) = end.fd() {
                cx.ring.cancel(fd);
            }
        }
    }

    /// Gives the sessions away once nothing is under way. Their sockets stay open here, until
    /// [`Self::leave`].
    pub(crate) fn hand_over(&mut self) {
        let Handing::Ending(reply) = &self.handing else { return };
        let receives = self.listeners.iter().any(|it| it.receiving)
            || self.sessions.iter().any(|it| it.receiving);
        if receives {
            return;
        }
        let handed = self.sessions.iter().filter_map(|session| {
            let (admitted, backend) = (session.admitted.as_ref()?, session.backend.as_ref()?);
            // One that failed has a socket of no use, one without a descriptor to spare begins anew.
            let socket = session.end.fd().filter(|_| !session.failed)?;
            Some(HandedSession {
                client: admitted.peer,
                vip: admitted.dialled,
                service: admitted.service.id,
                backend: backend.id,
                socket: socket.try_clone_to_owned().ok()?,
                start: admitted.start,
                tracked: admitted.tracked,
                attempts: session.attempts,
                owed: session.owed,
                began: session.began,
                first_reply: session.first_reply,
                active_at: session.active_at,
                rx_bytes: session.rx_bytes,
                tx_bytes: session.tx_bytes,
            })
        });
        // Nobody waits any more when it took too long: then all goes on here.
        let _ = reply.send(handed.collect());
        self.handing = Handing::Told;
    }

    /// Takes datagrams again.
    pub(crate) fn resume(&mut self, cx: &mut Cx<'_>) {
        self.handing = Handing::Not;
        for index in 0..self.listeners.len() {
            self.receive_clients(index, cx);
        }
        for index in 0..self.sessions.len() as u32 {
            self.receive_replies(index, cx);
        }
    }

    /// Goes on with `sessions`, whose services, backends and listeners are here; whose are not, those
    /// begin anew with their next datagram.
    pub(crate) fn adopt(&mut self, sessions: Vec<HandedSession>, cx: &mut Cx<'_>) {
        let mut known: HashMap<ServiceId, HashMap<BackendId, Arc<Backend>>> = HashMap::new();
        let backends = |service: &Service| {
            let members = service.backends();
            members.map(|(member, _)| (member.backend.id, Arc::clone(&member.backend))).collect()
        };
        for session in sessions {
            let service = cx.snapshot.lookup(VipAddr(session.vip), Protocol::Udp);
            let Some(service) = service.filter(|it| it.id == session.service) else { continue };
            let known = known.entry(service.id).or_insert_with(|| backends(service));
            if let Some(backend) = known.get(&session.backend) {
                self.adopt_one(session, service, backend, cx);
            }
        }
    }

    fn adopt_one(
        &mut self,
        handed: HandedSession,
        service: &Service,
        backend: &Arc<Backend>,
        cx: &mut Cx<'_>,
    ) {
        let flow = (handed.client, handed.vip);
        let bound = self.listeners.iter().find(|it| it.vip == Some(handed.vip));
        let outlet = bound.and_then(|it| it.outlet).or_else(|| self.own_outlet(handed.vip));
        let Some(outlet) = outlet.filter(|_| !self.by_flow.contains_key(&flow)) else { return };
        if let Outlet::Own { users, .. } = &mut self.outlets[outlet as usize] {
            *users += 1;
        }
        // Limits were met when it began.
        let _ = service.state.try_open(None);
        let _ = backend.try_open(None);
        let table = &cx.shared.clients.table;
        let tracked = handed.tracked
            && table.open(service.id, handed.client.ip(), &Limits::default(), cx.now) == Ok(true);
        let place = self.place();
        let session = &mut self.sessions[place as usize];
        session.outlet = outlet;
        session.began = handed.began;
        session.active_at = handed.active_at;
        session.first_reply = handed.first_reply;
        session.heard = handed.first_reply.is_some();
        session.failed = false;
        session.owed = handed.owed;
        session.attempts = handed.attempts;
        (session.rx_bytes, session.tx_bytes) = (handed.rx_bytes, handed.tx_bytes);
        session.tried.clear();
        // Its next datagram asks whether it may stay.
        session.checked = 0;
        session.backend = Some(cx.held.backend(backend));
        session.end = End::new(handed.socket);
        session.admitted = Some(Admitted {
            peer: handed.client,
            dialled: handed.vip,
            service: cx.held.service(service),
            start: handed.start,
            tracked,
            destination: None,
            unique_id: None,
        });
        self.by_flow.insert(flow, place);
        self.ages.insert(place, service.id);
        if let Some(at) = session.deadline() {
            let at = at.max(cx.now).min(cx.now.plus(FURTHEST));
            self.wheel.set(Timer { index: place, generation: session.generation, at });
        }
        self.receive_replies(place, cx);
    }

    /// Lets go of listeners and sessions, which another process has: they have not ended.
    pub(crate) fn leave(&mut self, cx: &mut Cx<'_>) {
        self.refusing = true;
        for listener in &mut self.listeners {
            listener.end.close(cx.ring, false);
        }
        for index in 0..self.sessions.len() as u32 {
            let session = &mut self.sessions[index as usize];
            if session.failed {
                // It was not handed over.
                self.finish(index, EndReason::Shutdown, cx);
                continue;
            }
            let Some(admitted) = session.admitted.take() else { continue };
            if let Outlet::Own { users, .. } = &mut self.outlets[session.outlet as usize] {
                *users -= 1;
            }
            admitted.service.state.close();
            session.leave_backend(cx.ring);
            self.by_flow.remove(&(admitted.peer, admitted.dialled));
            self.ages.remove(index);
            self.free_if_over(index);
        }
        self.handing = Handing::Not;
    }
}
