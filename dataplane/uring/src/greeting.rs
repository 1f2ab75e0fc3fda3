//! The PROXY protocol on a connection: its header is read before the client is let in, because
//! lists, limits, hash and affinity go by whom it names, and one is written to the backend.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use fairway_core::proxy_header::{self, MOST_BYTES, Opening};
use fairway_core::{EndReason, Service, Tick};

use crate::accept::{admit, not_admitted, random};
use crate::held::HeldService;
use crate::relay::Way;
use crate::session::{Admitted, Cx, End, Phase, Session};
use crate::token::Leg;

/// Somebody who is trusted to say who the client is, and has not said it yet.
pub(crate) struct Greeting {
    /// Where the connection comes from.
    pub(crate) via: SocketAddr,
    pub(crate) dialled: SocketAddr,
    service: Rc<HeldService>,
    until: Tick,
}

/// What is to become of a new connection to a service.
pub(crate) enum Welcome {
    /// It is let in as what it seems.
    AsItSeems,
    /// Its header is read first.
    ByHeader,
    /// Only others are let in.
    Refused,
}

/// How a connection from `via` to `service` begins.
pub(crate) fn welcome(service: &Service, via: SocketAddr) -> Welcome {
    match &service.policy.proxy_protocol.accept {
        None => Welcome::AsItSeems,
        Some(accept) if accept.trusted.contains(via.ip()) => Welcome::ByHeader,
        Some(accept) if accept.required => Welcome::Refused,
        Some(_) => Welcome::AsItSeems,
    }
}

/// Counts a connection from `flow.0` to `flow.1` that is refused because a header was to come from
/// somebody else.
pub(crate) fn count_refusal(service: &Service, flow: (SocketAddr, SocketAddr), cx: &Cx<'_>) {
    let counters = service.state.counters.of(cx.worker);
    counters.accepted.inc();
    not_admitted(&service.name, counters, flow, EndReason::ProxyHeader, cx);
}

impl Session {
    /// Waits for the header of a connection from `via`.
    pub(crate) fn greet(
        &mut self,
        client: OwnedFd,
        (via, dialled): (SocketAddr, SocketAddr),
        service: &Service,
        cx: &mut Cx<'_>,
    ) {
        let accept = service.policy.proxy_protocol.accept.as_ref();
        let until = accept.map_or(cx.now, |accept| cx.now.plus(accept.timeout));
        let service = cx.held.service(service);
        self.phase = Phase::Greeting;
        self.client = End::new(client);
        self.greeting = Some(Box::new(Greeting { via, dialled, service, until }));
        self.began_at(cx.now);
        self.pump(Way::Up, cx);
        self.set_timer(cx);
    }

    pub(crate) fn greeting_deadline(&self) -> Option<Tick> {
        self.greeting.as_ref().map(|greeting| greeting.until)
    }

    /// Looks whether the header is there by now.
    pub(crate) fn read_greeting(&mut self, cx: &mut Cx<'_>) {
        let bytes = self.up.peek(cx.ring, MOST_BYTES);
        match proxy_header::read(&bytes) {
            Ok(Opening::Partial) if self.up.ended => {
                // A port scan or a check of the proxy's: it said nothing and went.
                let silent = bytes.is_empty();
                let reason = if silent { EndReason::Client } else { EndReason::ProxyHeader };
                self.turn_away(reason, !silent, cx);
            }
            Ok(Opening::Partial) => self.receive(Way::Up, cx),
            Ok(Opening::Plain) => self.enter_plain(cx),
            Ok(Opening::Header(header, len)) => {
                self.up.skip(cx.ring, len as u32);
                self.enter(header.addresses, header.unique_id, cx);
            }
            Err(_) => self.turn_away(EndReason::ProxyHeader, true, cx),
        }
    }

    /// The time for the header is over.
    pub(crate) fn greeting_timer(&mut self, cx: &mut Cx<'_>) {
        if self.greeting_deadline().is_some_and(|until| until <= cx.now) {
            // Who waits for the server to speak first sends no header and nothing else.
            if self.up.is_empty() {
                self.enter_plain(cx);
            } else {
                self.turn_away(EndReason::ProxyHeader, true, cx);
            }
        }
    }

    /// Goes on without a header, where that may be.
    fn enter_plain(&mut self, cx: &mut Cx<'_>) {
        let required = self.greeting.as_ref().is_some_and(|greeting| {
            let accept = greeting.service.policy.proxy_protocol.accept.as_ref();
            accept.is_some_and(|accept| accept.required)
        });
        if required {
            self.turn_away(EndReason::ProxyHeader, true, cx);
        } else {
            self.enter(None, None, cx);
        }
    }

    /// Lets the client in: whom the header names, with what it dialled there, or whoever connected
    /// when it names nobody.
    fn enter(
        &mut self,
        named: Option<(SocketAddr, SocketAddr)>,
        unique_id: Option<Box<[u8]>>,
        cx: &mut Cx<'_>,
    ) {
        let Some(Greeting { via, dialled, service, .. }) = self.greeting.as_deref() else { return };
        let snapshot = cx.snapshot;
        // It may have gone while the header was on its way.
        let Some(service) = snapshot.service(service.id) else {
            return self.turn_away(EndReason::NoService, true, cx);
        };
        let client = named.map_or(*via, |(client, _)| client);
        match admit(service, client, *dialled, cx) {
            Some((admitted, backend)) => {
                let destination = named.map(|(_, destination)| destination);
                let admitted = Admitted { unique_id, destination, ..admitted };
                self.greeting = None;
                // What came with the header was received before there was anyone to count it.
                let counters = admitted.service.state.counters.of(cx.worker);
                counters.rx_bytes.add(self.up.waiting());
                self.begin(admitted, backend, cx);
            }
            None => self.close_unadmitted(true, cx),
        }
    }

    /// Ends a connection that was not let in, for a reason of its header.
    pub(crate) fn turn_away(&mut self, reason: EndReason, reset: bool, cx: &mut Cx<'_>) {
        if let Some(greeting) = &self.greeting {
            let counters = greeting.service.state.counters.of(cx.worker);
            counters.accepted.inc();
            let ends = (greeting.via, greeting.dialled);
            not_admitted(&greeting.service.name, counters, ends, reason, cx);
        }
        self.close_unadmitted(reset, cx);
    }

    fn close_unadmitted(&mut self, reset: bool, cx: &mut Cx<'_>) {
        self.greeting = None;
        self.phase = Phase::Closing;
        self.client.close(cx.ring, reset);
    }

    /// Tells the backend of `leg` who the client is, when the service wants that; false when the
    /// socket did not take it.
    pub(crate) fn announce(&self, leg: Leg, cx: &Cx<'_>) -> bool {
        let Some(admitted) = &self.admitted else { return true };
        let Some(send) = admitted.service.policy.proxy_protocol.send else { return true };
        let fresh;
        let id = match (&admitted.unique_id, send.unique_id) {
            (_, false) => None,
            (Some(id), true) => Some(&**id),
            (None, true) => {
                fresh = format!("{:016x}{:016x}", random(cx), admitted.start);
                Some(fresh.as_bytes())
            }
        };
        let addresses = Some((admitted.peer, admitted.destination.unwrap_or(admitted.dialled)));
        let header = proxy_header::write(send.format, addresses, id);
        let Some(fd) = self.legs[leg.index()].end.fd() else { return false };
        // A new connection has room for it, so this never waits.
        let flags = rustix::net::SendFlags::NOSIGNAL | rustix::net::SendFlags::DONTWAIT;
        rustix::net::send(fd, &header, flags).is_ok_and(|sent| sent == header.len())
    }
}
