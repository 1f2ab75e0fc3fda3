//! A session of datagrams: a client's address and port, the address that it dials, and a connected
//! socket to the backend that it is given.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use fairway_core::{EndReason, SourceAddress, Tick, Tried};
use socket2::{Domain, Protocol, Socket, Type};

use crate::held::HeldBackend;
use crate::report::OpenConnection;
use crate::session::{Admitted, End};
use crate::source;
use crate::sys::{Ring, join_datagrams};

/// Bytes that the kernel may hold for us on a socket: bursts come faster than we read.
pub(super) const SOCKET_BYTES: usize = 4 << 20;

/// A place for a session; it is free when it has neither client nor socket.
#[derive(Default)]
pub(super) struct Session {
    pub(super) generation: u32,
    /// Not among the free places.
    pub(super) used: bool,
    /// The client and its service; none when the session has ended or moved.
    pub(super) admitted: Option<Admitted>,
    /// Set while the place on it is taken.
    pub(super) backend: Option<Rc<HeldBackend>>,
    /// The socket to the backend.
    pub(super) end: End,
    /// A receive is under way.
    pub(super) receiving: bool,
    /// The backend refused a datagram: the next one goes elsewhere.
    pub(super) failed: bool,
    /// Has replied at least once.
    pub(super) heard: bool,
    /// Backends that failed it since the last good one.
    pub(super) tried: Tried,
    /// Number of candidates that it was given.
    pub(super) attempts: u32,
    /// Generation of the snapshot under which its backend was last found good.
    pub(super) checked: u64,
    /// The socket that replies leave from.
    pub(super) outlet: u32,
    /// Replies that are still expected.
    pub(super) owed: u64,
    pub(super) began: Tick,
    /// When the first reply came.
    pub(super) first_reply: Option<Tick>,
    pub(super) active_at: Tick,
    pub(super) rx_bytes: u64,
    pub(super) tx_bytes: u64,
}

impl Session {
    /// Client and dialled address, while it lives.
    pub(super) fn flow(&self) -> Option<(SocketAddr, SocketAddr)> {
        self.admitted.as_ref().map(|admitted| (admitted.peer, admitted.dialled))
    }

    /// How it is shown to people; none once it has ended.
    pub(super) fn listed(&self, now: Tick) -> Option<OpenConnection> {
        let admitted = self.admitted.as_ref()?;
        Some(OpenConnection {
            service: Some(Arc::clone(&admitted.service.name)),
            protocol: fairway_core::Protocol::Udp,
            client: admitted.peer,
            vip: admitted.dialled,
            backend: self.backend.as_ref().map(|backend| backend.addr),
            attempts: self.attempts,
            rx_bytes: self.rx_bytes,
            tx_bytes: self.tx_bytes,
            age: now.since(self.began),
            idle: now.since(self.active_at),
        })
    }

    /// Whether its place may be used again.
    pub(super) fn is_over(&self) -> bool {
        self.admitted.is_none() && self.end.is_free()
    }

    /// Gives the place on the backend back and closes the socket.
    pub(super) fn leave_backend(&mut self, ring: &mut Ring) {
        if let Some(backend) = self.backend.take() {
            backend.close();
        }
        self.end.close(ring, false);
    }

    /// How long it lasts from `now` on if nothing happens; none once it has ended.
    pub(super) fn deadline(&self) -> Option<Tick> {
        let idle = self.admitted.as_ref()?.service.policy.udp.idle;
        Some(self.active_at.plus(idle))
    }

    /// Whether an end for this reason is in the nature of datagrams.
    pub(super) fn is_in_order(reason: EndReason) -> bool {
        matches!(reason, EndReason::Answered | EndReason::IdleTimeout)
    }
}

/// A socket that talks with `to` alone, for `client`, and hears its ICMP errors.
pub(super) fn connect(
    to: SocketAddr,
    source: &SourceAddress,
    client: SocketAddr,
    hash: u64,
) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), Type::DGRAM, Some(Protocol::UDP))?;
    prepare(&socket);
    source::bind(&socket, source, client, to, hash)?;
    socket.connect(&to.into())?;
    Ok(socket)
}

/// Has the kernel join datagrams of one flow, and hold as many as it lets us.
pub(super) fn prepare(socket: &Socket) {
    // Both only tune: a kernel that refuses them still carries datagrams.
    let _ = socket.set_recv_buffer_size(SOCKET_BYTES);
    let _ = join_datagrams(socket);
}
