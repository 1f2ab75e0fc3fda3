//! A session goes from one process to the next.

use fairway_core::Tick;
use serde::{Deserialize, Serialize};

use super::super::message::{self, NextHops, Opened};
use super::super::routes::{Routes, Told};
use super::{Connection, Session, Settings, Side, Stage};

/// A session that is up, for another process to go on with.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Kept {
    /// Whether we have made the connection.
    ours: bool,
    id: std::net::Ipv4Addr,
    peer: Opened,
    hops: NextHops,
    /// The beginning of a message.
    input: Vec<u8>,
    routes: Told,
    up_since: u64,
}

impl Session {
    /// What another process needs to go on with it; none while it is not up.
    #[must_use]
    pub fn keep(&self) -> Option<Kept> {
        let side = self.established()?;
        let connection = self.connection(side)?;
        Some(Kept {
            ours: side == Side::Ours,
            id: self.settings.id,
            peer: connection.peer.clone()?,
            hops: connection.hops,
            input: connection.input.clone(),
            routes: self.routes.keep(),
            up_since: self.up_since?.0,
        })
    }

    /// Goes on with one that is up; it speaks at once. Returns by whose connection.
    #[must_use]
    pub fn go_on(settings: Settings, kept: Kept, now: Tick) -> (Self, Side) {
        let side = if kept.ours { Side::Ours } else { Side::Theirs };
        let mut session = Self::new(Settings { id: kept.id, ..settings });
        *session.place(side) = Some(Connection {
            stage: Stage::Established,
            hops: kept.hops,
            input: kept.input,
            peer: Some(kept.peer),
            silent_until: None,
            speak_at: None,
        });
        session.routes = Routes::go_on(kept.routes);
        (session.up_since, session.was_up, session.stopped) =
            (Some(Tick(kept.up_since)), true, false);
        session.heard(side, now);
        if session.hold(side).is_some()
            && let Some(connection) = session.connection_mut(side)
        {
            connection.speak_at = Some(now);
        }
        (session, side)
    }

    /// That we are there, when that is due; whether the peer is, is not looked at: another process may hear
    /// it.
    pub fn repeat(&mut self, now: Tick) -> Option<(Side, Vec<u8>)> {
        let side = self.established()?;
        self.heard(side, now);
        self.repeat_due().filter(|due| *due <= now)?;
        self.schedule(side, now);
        Some((side, message::keepalive()))
    }

    /// When [`Session::repeat`] is due.
    #[must_use]
    pub fn repeat_due(&self) -> Option<Tick> {
        self.connection(self.established()?)?.speak_at
    }
}
