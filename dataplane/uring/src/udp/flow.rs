//! The life of a session: it begins, settles on a backend, moves to another, ends.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use fairway_core::{EndReason, FailureCause, Protocol, Tried, VipAddr};

use super::session::{Session, connect};
use super::{Datagrams, Outlet};
use crate::accept::admit;
use crate::connect::{cause_of, count_failure};
use crate::held::HeldBackend;
use crate::report::{Carried, ConnectionRecord};
use crate::session::{Admitted, Cx, End, FURTHEST, keep_affinity, note_talker};
use crate::token::GENERATIONS;
use crate::wheel::Timer;

impl Datagrams {
    /// Lets a client in and gives it a backend.
    pub(super) fn begin(
        &mut self,
        client: SocketAddr,
        vip: SocketAddr,
        outlet: Option<u32>,
        cx: &mut Cx<'_>,
    ) -> Option<u32> {
        if self.refusing {
            return None;
        }
        let snapshot = cx.snapshot;
        let Some(service) = snapshot.lookup(VipAddr(vip), Protocol::Udp) else {
            cx.stats.no_service.inc();
            return None;
        };
        let (admitted, backend) = admit(service, client, vip, cx)?;
        if self.by_flow.len() >= cx.shared.settings.max_udp_sessions as usize
            && let Some(victim) = self.ages.victim()
        {
            self.finish(victim, EndReason::Evicted, cx);
        }
        let outlet = match outlet {
            Some(outlet) => Some(outlet),
            None => self.own_outlet(vip),
        };
        let Some(outlet) = outlet else {
            backend.close();
            abandon(&admitted, EndReason::LocalError, cx);
            return None;
        };
        if let Outlet::Own { users, .. } = &mut self.outlets[outlet as usize] {
            *users += 1;
        }
        let place = self.place();
        let session = &mut self.sessions[place as usize];
        session.outlet = outlet;
        session.began = cx.now;
        session.owed = 0;
        (session.rx_bytes, session.tx_bytes, session.attempts) = (0, 0, 0);
        session.first_reply = None;
        session.tried = Tried::default();
        self.by_flow.insert((client, vip), place);
        self.ages.insert(place, admitted.service.id);
        session.admitted = Some(admitted);
        session.active_at = cx.now;
        let at = session.deadline()?.min(cx.now.plus(FURTHEST));
        self.wheel.set(Timer { index: place, generation: session.generation, at });
        self.connect(place, backend, cx).then_some(place)
    }

    /// A free place for a session.
    pub(super) fn place(&mut self) -> u32 {
        let place = self.free.pop().unwrap_or_else(|| {
            self.sessions.push(Session::default());
            self.sessions.len() as u32 - 1
        });
        self.sessions[place as usize].used = true;
        place
    }

    /// Gives the session in `place` a socket to `backend`, on which a place is taken; the session
    /// ends when there is none.
    pub(super) fn connect(
        &mut self,
        place: u32,
        backend: Rc<HeldBackend>,
        cx: &mut Cx<'_>,
    ) -> bool {
        let session = &mut self.sessions[place as usize];
        let Some(admitted) = &session.admitted else { return false };
        let (client, port) = (admitted.peer, admitted.dialled.port());
        let source = &admitted.service.policy.source;
        backend.counters.of(cx.worker).connections.inc();
        let socket = connect(backend.addr.target(port), source, client, admitted.start);
        session.attempts += 1;
        session.backend = Some(backend);
        session.checked = cx.snapshot.generation;
        (session.failed, session.heard) = (false, false);
        match socket {
            Ok(socket) => {
                session.end = End::new(socket.into());
                self.receive_replies(place, cx);
                true
            }
            Err(error) => {
                let error = error.raw_os_error().unwrap_or(libc::EINVAL);
                if cause_of(error) == FailureCause::Local {
                    // No descriptor, no port, or no such source: no backend would fare better.
                    cx.stats.unbound.inc();
                    self.finish(place, EndReason::LocalError, cx);
                    return false;
                }
                self.backend_failed(place, error, cx);
                true
            }
        }
    }

    /// Makes sure that session `index` is on a backend that may have its next datagram; returns
    /// where the session is then, if it still is.
    pub(super) fn settle(&mut self, index: u32, cx: &mut Cx<'_>) -> Option<u32> {
        let session = &mut self.sessions[index as usize];
        if !session.failed && session.checked == cx.snapshot.generation {
            return Some(index);
        }
        let (client, vip) = session.flow()?;
        let snapshot = cx.snapshot;
        let admitted = session.admitted.as_mut()?;
        let service = snapshot.lookup(VipAddr(vip), Protocol::Udp);
        let Some(service) = service.filter(|service| service.id == admitted.service.id) else {
            let outlet = session.outlet;
            self.finish(index, EndReason::NoService, cx);
            return self.begin(client, vip, Some(outlet), cx);
        };
        admitted.service = cx.held.service(service);
        session.checked = snapshot.generation;
        let backend = session.backend.as_ref()?;
        if !session.failed && service.keeps(backend.id, backend.addr) {
            return Some(index);
        }
        if !session.failed {
            // It was taken out of service: nothing speaks against it once it is back.
            session.tried.clear();
        }
        let pick = service.select(admitted.start, &session.tried, cx.worker).or_else(|_| {
            // Everyone has failed it: whoever fails now may be back.
            session.tried.clear();
            service.select(admitted.start, &session.tried, cx.worker)
        });
        match pick {
            // An ejected backend may be all there is: it keeps its socket, and its port.
            Ok(pick) if pick.backend.id == backend.id && !session.end.is_free() => {
                pick.backend.close();
                session.failed = false;
                self.receive_replies(index, cx);
                Some(index)
            }
            Ok(pick) => {
                let backend = cx.held.backend(pick.backend);
                Some(self.rehome(index, backend, cx)?)
            }
            Err(reason) => {
                self.finish(index, reason, cx);
                None
            }
        }
    }

    /// Moves a session to another backend: a new place, while the old socket is on its way out.
    pub(super) fn rehome(
        &mut self,
        index: u32,
        backend: Rc<HeldBackend>,
        cx: &mut Cx<'_>,
    ) -> Option<u32> {
        let place = self.place();
        let old = &mut self.sessions[index as usize];
        let flow = old.flow()?;
        let moved = Session {
            admitted: old.admitted.take(),
            tried: std::mem::take(&mut old.tried),
            end: End::default(),
            generation: 0,
            backend: None,
            receiving: false,
            failed: false,
            heard: false,
            ..*old
        };
        old.leave_backend(cx.ring);
        let generation = self.sessions[place as usize].generation;
        self.sessions[place as usize] = Session { generation, ..moved };
        self.by_flow.insert(flow, place);
        self.ages.remove(index);
        let session = &self.sessions[place as usize];
        if let Some(admitted) = &session.admitted {
            self.ages.insert(place, admitted.service.id);
            keep_affinity(cx, admitted, backend.id);
        }
        if let Some(at) = session.deadline() {
            let at = at.min(cx.now.plus(FURTHEST));
            self.wheel.set(Timer { index: place, generation, at });
        }
        self.free_if_over(index);
        self.connect(place, backend, cx).then_some(place)
    }

    pub(super) fn backend_failed(&mut self, index: u32, error: i32, cx: &mut Cx<'_>) {
        let session = &mut self.sessions[index as usize];
        let (Some(backend), Some(admitted)) = (&session.backend, &session.admitted) else { return };
        session.failed = true;
        session.tried.insert(backend.id);
        count_failure(backend, &admitted.service, cause_of(error), cx.shared, cx.worker);
    }

    pub(super) fn finish(&mut self, index: u32, reason: EndReason, cx: &mut Cx<'_>) {
        let session = &mut self.sessions[index as usize];
        let Some(admitted) = session.admitted.take() else { return };
        self.by_flow.remove(&(admitted.peer, admitted.dialled));
        self.ages.remove(index);
        if let Outlet::Own { users, .. } = &mut self.outlets[session.outlet as usize] {
            *users -= 1;
        }
        let carried = Carried::Payload { rx: session.rx_bytes, tx: session.tx_bytes };
        let record = |backend| ConnectionRecord {
            service: Arc::clone(&admitted.service.name),
            client: admitted.peer,
            vip: admitted.dialled,
            backend,
            reason,
            attempts: Some(session.attempts),
            carried,
            connect: None,
            first_byte: session.first_reply.map(|at| at.since(session.began)),
            duration: cx.now.since(session.began),
        };
        note_talker(cx.talkers, admitted.service.id, admitted.peer, carried.bytes());
        let backend = session.backend.as_ref().map(|backend| backend.addr);
        let in_order = Session::is_in_order(reason);
        cx.shared.connection_ended(in_order, admitted.start, || record(backend));
        abandon(&admitted, reason, cx);
        session.leave_backend(cx.ring);
        self.free_if_over(index);
    }

    pub(super) fn free_if_over(&mut self, index: u32) {
        let Some(session) = self.sessions.get_mut(index as usize) else { return };
        if !session.is_over() || !session.used {
            return;
        }
        session.used = false;
        session.generation = (session.generation + 1) % GENERATIONS;
        self.free.push(index);
    }
}

/// Counts the end of a client that was let in, and pays back what it took of its service.
fn abandon(admitted: &Admitted, reason: EndReason, cx: &Cx<'_>) {
    let service = &admitted.service;
    service.state.close();
    service.state.counters.of(cx.worker).ends[reason as usize].inc();
    if admitted.tracked {
        cx.shared.clients.table.close(service.id, admitted.peer.ip());
    }
}
