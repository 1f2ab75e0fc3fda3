//! What a worker can be told.

use std::net::SocketAddr;
use std::sync::Arc;

use crossbeam_channel::Sender;
use fairway_core::packet::{Adopted, Toeplitz};
use fairway_core::{BackendId, EndReason, Protocol, ServiceId, Snapshot};
use socket2::Socket;

use crate::ListenerKey;
use crate::packets::{Capture, LeftFlows, PacketPort, Polled};
use crate::report::{ConnectionFilter, OpenConnection, OpenFlow, ServiceTalkers};
use crate::udp::HandedSession;

/// What the control plane asks of a worker.
#[derive(Debug)]
pub enum Command {
    /// Accept on this socket, or take its datagrams. Its `vip` is the address that clients
    /// dialled, none when each connection must be asked (transparent sockets).
    Listen {
        /// Names the listener.
        key: ListenerKey,
        /// A listening socket.
        socket: Socket,
        /// What it speaks.
        protocol: Protocol,
        /// The address it listens on.
        vip: Option<SocketAddr>,
    },
    /// Accept what has come and close the listener.
    Unlisten {
        /// Names the listener.
        key: ListenerKey,
    },
    /// End the connections on these backends.
    EndBackends {
        /// The backends, in order.
        backends: Vec<BackendId>,
        /// The reason in counters and logs.
        reason: EndReason,
    },
    /// Say which connections are open.
    List {
        /// Which of them.
        filter: ConnectionFilter,
        /// Where to; the worker sends one list.
        reply: Sender<Vec<OpenConnection>>,
    },
    /// Say which flows the packet path has.
    Flows {
        /// Which of them.
        filter: ConnectionFilter,
        /// Where to; the worker sends one list.
        reply: Sender<Vec<OpenFlow>>,
    },
    /// Copy frames of the packet path.
    Capture(Capture),
    /// Say who the heaviest clients of a service are.
    Talkers {
        /// The service.
        service: ServiceId,
        /// Where to; the worker sends one answer.
        reply: Sender<ServiceTalkers>,
    },
    /// Carry packets of this interface.
    Attach(PacketPort),
    /// Let go of the interface with this number.
    Detach(u16),
    /// Poll these ports; with how they divide packets among workers, if they do.
    AttachCards(Polled, Option<Arc<Toeplitz>>),
    /// Let go of the ports that are polled; say when that is done.
    ReleaseCards {
        /// Where to.
        reply: Sender<()>,
    },
    /// Have packets wait until [`Command::CarryPackets`].
    HoldPackets,
    /// Carry packets, and first take over flows that were left.
    CarryPackets {
        /// The flows.
        left: Option<LeftFlows>,
        /// Where to say what became of them.
        reply: Sender<Adopted>,
    },
    /// Carry the packets that came before a time, nanoseconds since 1970, and no others; say when that is
    /// done.
    EndPackets {
        /// The time.
        until: u64,
        /// Others have ended, too: nothing more is passed on by them.
        last: bool,
        /// Where to.
        reply: Sender<()>,
    },
    /// Carry packets again.
    ResumePackets,
    /// Close all listeners; connections go on.
    StopAccepting,
    /// Take no datagrams, and say which sessions there are once nothing is under way: another process
    /// goes on with them, or [`Command::ResumeDatagrams`] does. What comes waits in the sockets.
    PauseDatagrams {
        /// Where to; the worker sends one list.
        reply: Sender<Vec<HandedSession>>,
    },
    /// Go on with sessions of datagrams of a process before this one, whose listeners are here.
    AdoptDatagrams {
        /// The sessions.
        sessions: Vec<HandedSession>,
        /// Where their services and backends are: the worker may not have seen them yet.
        snapshot: Arc<Snapshot>,
    },
    /// Take datagrams again.
    ResumeDatagrams,
    /// Look for connections that wait: another process has stopped to accept on the same sockets, and the
    /// kernel may have told it alone of the last ones.
    LookForClients,
    /// Another process has the listeners and the sessions of datagrams: let go of them. What waits to be
    /// accepted is its own; connections go on here.
    Leave,
    /// End every connection and the worker.
    Stop,
}
