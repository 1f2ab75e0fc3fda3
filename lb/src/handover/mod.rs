//! From one process to the next, without a lost connection: `fairway upgrade`.
//!
//! ```text
//! old process                                   new process
//! starts it, with a socket as its input ──────▶ reads and checks the document, starts workers
//!                                       ◀────── Ready, or Failed: then all goes on as before
//! pauses datagrams, packets, announcements
//! Estate: sockets, sessions, memory     ──────▶ listens, adopts, publishes
//!                                       ◀────── Serving, or silence: then the old one goes on
//! makes it the service's main process
//! Yours                                 ──────▶ tells the service manager
//! accepts nothing, drains; Left         ──────▶ counts what is still counted there
//! ends with its last connection
//! ```
//!
//! Listening sockets are the same ones in both, so that nobody is refused; connections stay with the
//! process that accepted them. What a version does not understand of the other begins anew.

mod channel;
mod gate;
mod give;
mod inherited;
mod launch;
mod take;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use fairway_core::{BackendId, ServiceId, Tick};
use fairway_uring::HandedSession;
use serde::{Deserialize, Serialize};

pub(crate) use self::channel::Channel;
pub(crate) use self::gate::Gate;
pub(crate) use self::give::{Giver, Handed};
pub(crate) use self::inherited::{Inherited, listener_name};
pub(crate) use self::launch::launch;
pub(crate) use self::take::{Before, Followers, Heir};
use crate::announce::HandedAnnouncements;
use crate::control::{LateCounts, Memory};

/// What the old process says first: what the new one cannot begin without.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Greeting {
    /// Its version, for people.
    pub(crate) version: String,
    /// What its table of clients' backends is keyed by.
    pub(crate) affinity_seeds: Option<[u64; 4]>,
    /// Who this box is at an API server.
    pub(crate) identity: Option<String>,
}

/// What the new process says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Answer {
    /// It would serve; it waits for the estate.
    Ready {
        /// Its version, for people.
        version: String,
    },
    /// It serves.
    Serving,
    /// It will not, and why.
    Failed(String),
}

/// What the old process says afterwards.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum News {
    /// Everything that it had. The descriptors are those of `names`, then of `sessions`.
    Estate(Box<Estate>),
    /// The new process is the service's main one.
    Yours,
    /// What is left of it.
    Left(Left),
}

/// The name of channels to processes before.
pub(crate) const BEFORE: &str = "before";

/// What goes from one process to the next.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Estate {
    /// Names of the descriptors that come along.
    pub(crate) names: Vec<String>,
    /// Sessions of datagrams, by worker.
    pub(crate) sessions: Vec<Vec<Session>>,
    pub(crate) memory: Memory,
    /// Clients and their backends: hash, slot, epoch, last use.
    pub(crate) affinity: Vec<(u64, u32, NonZeroU32, u64)>,
    /// The number of the snapshot that was served last.
    pub(crate) generation: u64,
    /// Until when packets were carried there, nanoseconds since 1970.
    pub(crate) packets_until: u64,
    /// What transparent listening has nftables hold.
    pub(crate) nftables: Vec<String>,
    pub(crate) announcements: HandedAnnouncements,
    /// The socket's file is ours to remove.
    pub(crate) owns_socket: bool,
}

/// What is left of a process that handed over.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Left {
    /// Its number.
    pub(crate) pid: u32,
    /// Connections that are still open in it.
    pub(crate) connections: u64,
    /// It accepts no more.
    pub(crate) quiet: bool,
    /// What it has counted since it was last said.
    pub(crate) counts: BTreeMap<String, LateCounts>,
}

/// A session of datagrams, but for its socket.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Session {
    client: SocketAddr,
    vip: SocketAddr,
    service: u32,
    slot: u32,
    epoch: NonZeroU32,
    start: u64,
    tracked: bool,
    attempts: u32,
    owed: u64,
    began: u64,
    first_reply: Option<u64>,
    active_at: u64,
    rx_bytes: u64,
    tx_bytes: u64,
}

impl Session {
    /// A session as it is told of, and its socket.
    fn split(handed: &HandedSession) -> (Self, BorrowedFd<'_>) {
        let session = Self {
            client: handed.client,
            vip: handed.vip,
            service: handed.service.0,
            slot: handed.backend.slot,
            epoch: handed.backend.epoch,
            start: handed.start,
            tracked: handed.tracked,
            attempts: handed.attempts,
            owed: handed.owed,
            began: handed.began.0,
            first_reply: handed.first_reply.map(|at| at.0),
            active_at: handed.active_at.0,
            rx_bytes: handed.rx_bytes,
            tx_bytes: handed.tx_bytes,
        };
        (session, handed.socket.as_fd())
    }

    /// The session with its socket.
    fn join(self, socket: OwnedFd) -> HandedSession {
        HandedSession {
            client: self.client,
            vip: self.vip,
            service: ServiceId(self.service),
            backend: BackendId { slot: self.slot, epoch: self.epoch },
            socket,
            start: self.start,
            tracked: self.tracked,
            attempts: self.attempts,
            owed: self.owed,
            began: Tick(self.began),
            first_reply: self.first_reply.map(Tick),
            active_at: Tick(self.active_at),
            rx_bytes: self.rx_bytes,
            tx_bytes: self.tx_bytes,
        }
    }
}
