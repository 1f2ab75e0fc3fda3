//! Datagrams on their way: to the backend, to the client, and what became of each.

use std::net::SocketAddr;

use fairway_core::{DatagramDrop, EndReason, Snapshot};

use super::Datagrams;
use crate::session::Cx;
use crate::sys::{Chunk, Datagram, Parcel};
use crate::token::{Op, Token};

impl Datagrams {
    /// Passes a client's datagram on.
    pub(super) fn forward(
        &mut self,
        datagram: Datagram,
        vip: Option<SocketAddr>,
        outlet: Option<u32>,
        cx: &mut Cx<'_>,
    ) {
        let Datagram { chunk, from, to, segment, truncated } = datagram;
        let (Some(client), Some(vip)) = (from, vip.or(to)) else {
            return cx.ring.release_datagram(chunk);
        };
        let index = match self.by_flow.get(&(client, vip)) {
            Some(index) => Some(*index),
            None => self.begin(client, vip, outlet, cx),
        };
        let Some(index) = index.and_then(|index| self.settle(index, cx)) else {
            return cx.ring.release_datagram(chunk);
        };
        let session = &mut self.sessions[index as usize];
        let Some(admitted) = &session.admitted else { return cx.ring.release_datagram(chunk) };
        let counters = admitted.service.state.counters.of(cx.worker);
        let count = datagrams(chunk.len(), segment);
        counters.rx_bytes.add(u64::from(chunk.len()));
        counters.rx_datagrams.add(count);
        if truncated {
            counters.datagram_drops[DatagramDrop::Truncated as usize].inc();
            return cx.ring.release_datagram(chunk);
        }
        if let Some(responses) = admitted.service.policy.udp.responses {
            session.owed += count * u64::from(responses);
        }
        self.touch(index, cx);
        self.send_up(index, chunk, segment, cx);
    }

    pub(super) fn touch(&mut self, index: u32, cx: &Cx<'_>) {
        let session = &mut self.sessions[index as usize];
        if session.active_at != cx.now {
            session.active_at = cx.now;
            self.ages.touch(index);
        }
    }

    pub(super) fn send_up(
        &mut self,
        index: u32,
        chunk: Chunk,
        segment: Option<u16>,
        cx: &mut Cx<'_>,
    ) {
        let session = &mut self.sessions[index as usize];
        let Some(fd) = session.end.fd() else {
            if let Some(admitted) = &session.admitted {
                let counters = admitted.service.state.counters.of(cx.worker);
                let count = datagrams(chunk.len(), segment);
                counters.datagram_drops[DatagramDrop::Unreachable as usize].add(count);
            }
            return cx.ring.release_datagram(chunk);
        };
        let parcel = Parcel { chunk, to: None, segment, session: (index, session.generation) };
        cx.ring.send_datagram(fd, parcel, sent_token);
        session.end.asked();
    }

    /// Passes a backend's datagram on to the client.
    pub(super) fn reply(&mut self, index: u32, datagram: Datagram, cx: &mut Cx<'_>) {
        let Datagram { chunk, segment, truncated, .. } = datagram;
        let session = &mut self.sessions[index as usize];
        let (Some(admitted), Some(backend)) = (&session.admitted, &session.backend) else {
            return cx.ring.release_datagram(chunk);
        };
        let (count, bytes) = (datagrams(chunk.len(), segment), u64::from(chunk.len()));
        backend.counters.of(cx.worker).rx_bytes.add(bytes);
        session.first_reply.get_or_insert(cx.now);
        if !session.heard {
            session.heard = true;
            session.tried.clear();
            backend.streak.succeeded();
        }
        let client = admitted.peer;
        if truncated {
            let counters = admitted.service.state.counters.of(cx.worker);
            counters.datagram_drops[DatagramDrop::Truncated as usize].inc();
            return cx.ring.release_datagram(chunk);
        }
        session.owed = session.owed.saturating_sub(count);
        let (to, generation, outlet) = (Some(client), session.generation, session.outlet);
        self.touch(index, cx);
        match self.outlet_fd(outlet) {
            Some(fd) => {
                let parcel = Parcel { chunk, to, segment, session: (index, generation) };
                cx.ring.send_datagram(fd, parcel, sent_token);
            }
            None => cx.ring.release_datagram(chunk),
        }
    }

    /// A datagram is out, or was not to be had out.
    pub(super) fn sent(&mut self, number: u32, result: Result<u32, i32>, cx: &mut Cx<'_>) {
        let Some(parcel) = cx.ring.sent_datagram(number) else { return };
        let (index, generation) = parcel.session;
        let Some(session) = self.sessions.get_mut(index as usize) else {
            return cx.ring.release_datagram(parcel.chunk);
        };
        let to_backend = parcel.to.is_none();
        if to_backend {
            // Such a parcel keeps the place from being used again.
            session.end.answered(cx.ring);
        }
        let current = session.generation == generation && session.admitted.is_some();
        match result {
            Err(libc::EIO | libc::EINVAL | libc::EMSGSIZE)
                if parcel.segment.is_some() && current =>
            {
                self.send_apart(index, &parcel, cx);
            }
            Err(error) if to_backend && current && is_icmp(error) => {
                return self.send_elsewhere(index, error, parcel, cx);
            }
            _ if current => self.count_sent(index, &parcel, result.is_ok(), cx),
            _ => {}
        }
        cx.ring.release_datagram(parcel.chunk);
        if current && !to_backend {
            self.finish_if_answered(index, cx);
        }
        self.free_if_over(index);
    }

    /// Ends a session whose client has all the replies that were to be expected.
    fn finish_if_answered(&mut self, index: u32, cx: &mut Cx<'_>) {
        let session = &self.sessions[index as usize];
        let responses = session.admitted.as_ref().and_then(|a| a.service.policy.udp.responses);
        if responses.is_some() && session.owed == 0 && session.first_reply.is_some() {
            self.finish(index, EndReason::Answered, cx);
        }
    }

    pub(super) fn count_sent(&mut self, index: u32, parcel: &Parcel, sent: bool, cx: &Cx<'_>) {
        let session = &mut self.sessions[index as usize];
        let Some(admitted) = &session.admitted else { return };
        let counters = admitted.service.state.counters.of(cx.worker);
        let (bytes, count) =
            (u64::from(parcel.chunk.len()), datagrams(parcel.chunk.len(), parcel.segment));
        match (parcel.to.is_none(), sent) {
            (_, false) => {
                counters.datagram_drops[DatagramDrop::SocketFull as usize].add(count);
            }
            (true, true) => {
                session.rx_bytes += bytes;
                if let Some(backend) = &session.backend {
                    backend.counters.of(cx.worker).tx_bytes.add(bytes);
                }
            }
            (false, true) => {
                session.tx_bytes += bytes;
                counters.tx_bytes.add(bytes);
                counters.tx_datagrams.add(count);
            }
        }
    }

    /// The kernel does not take joined datagrams for this path: one by one, at once.
    pub(super) fn send_apart(&mut self, index: u32, parcel: &Parcel, cx: &mut Cx<'_>) {
        let session = &self.sessions[index as usize];
        let fd = match parcel.to {
            None => session.end.fd(),
            Some(_) => self.outlet_fd(session.outlet),
        };
        let (Some(fd), Some(segment)) = (fd, parcel.segment) else { return };
        let flags = rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL;
        let bytes = cx.ring.datagram_bytes(&parcel.chunk);
        let all = bytes.chunks(usize::from(segment)).all(|one| match parcel.to {
            None => rustix::net::send(fd, one, flags).is_ok(),
            Some(to) => rustix::net::sendto(fd, one, flags, &to).is_ok(),
        });
        self.count_sent(index, parcel, all, cx);
    }

    /// An earlier datagram met a closed port, and this one was not sent for it: it goes to the
    /// next candidate.
    pub(super) fn send_elsewhere(
        &mut self,
        index: u32,
        error: i32,
        parcel: Parcel,
        cx: &mut Cx<'_>,
    ) {
        let Parcel { chunk, segment, .. } = parcel;
        if !self.sessions[index as usize].failed {
            self.backend_failed(index, error, cx);
        }
        let untried = self.has_untried(index, cx.snapshot);
        let count = datagrams(chunk.len(), segment);
        match untried.then(|| self.settle(index, cx)).flatten() {
            Some(index) => self.send_up(index, chunk, segment, cx),
            None => {
                if let Some(admitted) = &self.sessions[index as usize].admitted {
                    let counters = admitted.service.state.counters.of(cx.worker);
                    counters.datagram_drops[DatagramDrop::Unreachable as usize].add(count);
                }
                cx.ring.release_datagram(chunk);
            }
        }
    }

    /// Whether a backend is left that session `index` has not tried; one datagram does not go
    /// round for ever.
    pub(super) fn has_untried(&self, index: u32, snapshot: &Snapshot) -> bool {
        let session = &self.sessions[index as usize];
        let Some(admitted) = &session.admitted else { return false };
        let service = snapshot.service(admitted.service.id);
        service.is_some_and(|service| {
            service.backends().any(|(member, ..)| !session.tried.contains(member.backend.id))
        })
    }
}

/// How many datagrams lie in `bytes` that came in pieces of `segment`.
fn datagrams(bytes: u32, segment: Option<u16>) -> u64 {
    segment.map_or(1, |segment| u64::from(bytes.div_ceil(u32::from(segment.max(1)))))
}

fn sent_token(number: u32) -> u64 {
    Token { op: Op::DatagramSent, index: number, generation: 0 }.pack()
}

/// Whether an error stands for an ICMP message about an earlier datagram.
fn is_icmp(error: i32) -> bool {
    matches!(error, libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EHOSTDOWN)
}
