//! The session with one peer: RFC 4271, section 8, with one connection of each side at a time.

use std::time::Duration;

pub use fairway_config::announce::PeerAs;
use fairway_core::Tick;

use super::message::{self, Fault, Heard, Manner, NextHops, Opened, Opening, length, read};
use super::routes::{Routes, Wanted};

mod kept;

pub use self::kept::Kept;

/// How long a peer may take to begin (RFC 4271 suggests four minutes, which nobody waits for).
const OPENING: Duration = Duration::from_secs(30);
/// The first time between two tries to connect; it doubles.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// A session that was up for so long counts as good: the next try after it is soon.
const GOOD: Duration = Duration::from_secs(10);

/// What a session is set to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Our number.
    pub own_as: u32,
    /// The peer's.
    pub peer_as: PeerAs,
    /// Our identifier.
    pub id: std::net::Ipv4Addr,
    /// Silence that ends a session; zero is never.
    pub hold: Duration,
    /// How often we speak; none is a third of the hold time.
    pub keepalive: Option<Duration>,
    /// The longest time between two tries to connect.
    pub retry: Duration,
    /// Waits for the peer to connect.
    pub passive: bool,
    /// How long routes are to outlive a session.
    pub restart: Option<Duration>,
}

/// Whose connection it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// We have made it.
    Ours,
    /// The peer has.
    Theirs,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make a connection.
    Connect,
    /// Send octets by one.
    Send(Side, Vec<u8>),
    /// Close one, after what was sent.
    Close(Side),
    /// The session is up.
    Up,
    /// It is down, or did not come up, and why.
    Down(String),
}

/// How a session stands, in the words of RFC 4271.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Stopped.
    Idle,
    /// Between two tries, or waiting for the peer.
    Active,
    /// Connecting.
    Connect,
    /// Waiting for the peer's beginning.
    OpenSent,
    /// Waiting for its consent.
    OpenConfirm,
    /// Routes are told.
    Established,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Opening,
    Confirming,
    Established,
}

#[derive(Debug)]
struct Connection {
    stage: Stage,
    hops: NextHops,
    input: Vec<u8>,
    peer: Option<Opened>,
    /// Silence until then ends it.
    silent_until: Option<Tick>,
    /// When we speak next.
    speak_at: Option<Tick>,
}

/// A session with one peer.
#[derive(Debug)]
pub struct Session {
    settings: Settings,
    routes: Routes,
    ours: Option<Connection>,
    theirs: Option<Connection>,
    connecting: bool,
    /// When the next try is; none while there is one, or nothing is to be tried.
    retry_at: Option<Tick>,
    /// The time before the next try but one.
    backoff: Duration,
    /// Since when it is up.
    up_since: Option<Tick>,
    /// It was up before, or this process is older than what a peer keeps.
    was_up: bool,
    stopped: bool,
}

impl Session {
    /// One that is stopped.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            routes: Routes::default(),
            ours: None,
            theirs: None,
            connecting: false,
            retry_at: None,
            backoff: FIRST_RETRY,
            up_since: None,
            was_up: false,
            stopped: true,
        }
    }

    /// Our identifier, where none was set.
    pub fn set_id(&mut self, id: std::net::Ipv4Addr) {
        self.settings.id = id;
    }

    /// How it stands.
    #[must_use]
    pub fn state(&self) -> State {
        let stages = [&self.ours, &self.theirs].into_iter().flatten().map(|it| it.stage);
        let furthest = stages.max_by_key(|stage| *stage as u8);
        match furthest {
            Some(Stage::Established) => State::Established,
            Some(Stage::Confirming) => State::OpenConfirm,
            Some(Stage::Opening) => State::OpenSent,
            None if self.stopped => State::Idle,
            None if self.connecting => State::Connect,
            None => State::Active,
        }
    }

    /// Since when it is up, if it is.
    #[must_use]
    pub fn up_since(&self) -> Option<Tick> {
        self.up_since
    }

    /// What the peer has said of itself, while it is up.
    #[must_use]
    pub fn peer(&self) -> Option<&Opened> {
        self.established().and_then(|side| self.connection(side)?.peer.as_ref())
    }

    /// The routes.
    #[must_use]
    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// Whether routes of a family (IPv4?) can be told now; true also while it is down.
    #[must_use]
    pub fn reaches(&self, ipv4: bool) -> bool {
        let Some(side) = self.established() else { return true };
        let takes = self.peer().is_some_and(|peer| if ipv4 { peer.ipv4 } else { peer.ipv6 });
        takes && self.manner(side).is_some_and(|manner| manner.reaches(ipv4))
    }

    /// When [`Session::turn`] is due.
    #[must_use]
    pub fn due(&self) -> Option<Tick> {
        let connections = [&self.ours, &self.theirs].into_iter().flatten();
        let timers = connections.flat_map(|it| [it.silent_until, it.speak_at]);
        timers.chain([self.retry_at]).flatten().min()
    }

    /// Begins, now.
    pub fn start(&mut self, now: Tick) -> Vec<Action> {
        self.stopped = false;
        self.backoff = FIRST_RETRY;
        self.retry_at = Some(now);
        self.turn(now)
    }

    /// Ends, until it is started again.
    pub fn stop(&mut self, fault: &Fault) -> Vec<Action> {
        self.stopped = true;
        (self.retry_at, self.connecting) = (None, false);
        let mut actions = Vec::new();
        for side in [Side::Ours, Side::Theirs] {
            if self.connection(side).is_some() {
                self.end(side, Some(fault), &fault.why, Tick(0), &mut actions);
            }
        }
        self.retry_at = None;
        actions
    }

    /// Ends what there is and tries again, as after any other failure.
    pub fn fail(&mut self, fault: &Fault, now: Tick) -> Vec<Action> {
        let mut actions = Vec::new();
        for side in [Side::Ours, Side::Theirs] {
            if self.connection(side).is_some() {
                self.end(side, Some(fault), &fault.why, now, &mut actions);
            }
        }
        actions
    }

    /// What is to be told from now on; [`Session::next_update`] says how.
    pub fn want(&mut self, wanted: Wanted) {
        self.routes.want(wanted);
    }

    /// The next message with routes, if there is one: asked for as long as the connection takes more.
    pub fn next_update(&mut self) -> Option<(Side, Vec<u8>)> {
        let side = self.established()?;
        let manner = self.manner(side)?;
        let peer = self.peer()?;
        let (ipv4, ipv6) = (peer.ipv4, peer.ipv6);
        let octets = self.routes.next(&manner, |is_ipv4| if is_ipv4 { ipv4 } else { ipv6 })?;
        Some((side, octets))
    }

    /// The connection that was to be made is there; `hops` are where the peer reaches us.
    pub fn connected(&mut self, hops: NextHops, now: Tick) -> Vec<Action> {
        let wanted = std::mem::take(&mut self.connecting);
        if !wanted || self.stopped || self.established().is_some() {
            return vec![Action::Close(Side::Ours)];
        }
        self.open(Side::Ours, hops, now)
    }

    /// It could not be made.
    pub fn refused(&mut self, now: Tick) {
        self.connecting = false;
        // The peer's own connection may have come meanwhile.
        if self.established().is_none() {
            self.try_later(now);
        }
    }

    /// The peer has made one.
    pub fn accepted(&mut self, hops: NextHops, now: Tick) -> Vec<Action> {
        // One whose peer has started again without a word is the peer's to replace, if it keeps routes
        // meanwhile (RFC 4724, section 5); any other ends by its hold time.
        let mut actions = Vec::new();
        if self.established().is_some() {
            let replaces =
                self.settings.restart.is_some() && self.peer().is_some_and(|peer| peer.restarts);
            if !replaces {
                return vec![
                    Action::Send(Side::Theirs, Fault::collision().octets()),
                    Action::Close(Side::Theirs),
                ];
            }
            self.end_all("the peer begins anew", now, &mut actions);
        }
        if self.stopped || self.theirs.is_some() {
            return vec![Action::Close(Side::Theirs)];
        }
        actions.extend(self.open(Side::Theirs, hops, now));
        actions
    }

    /// The peer has closed a connection, or it broke.
    pub fn closed(&mut self, side: Side, why: &str, now: Tick) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.connection(side).is_some() {
            self.end(side, None, why, now, &mut actions);
        }
        actions
    }

    /// Octets have come by a connection.
    pub fn received(&mut self, side: Side, octets: &[u8], now: Tick) -> Vec<Action> {
        let mut actions = Vec::new();
        let Some(connection) = self.connection_mut(side) else { return actions };
        connection.input.extend(octets);
        let mut input = std::mem::take(&mut connection.input);
        let mut at = 0;
        while self.connection(side).is_some() {
            let heard = match length(&input[at..]) {
                Ok(Some(length)) if input.len() - at >= length => {
                    let message = &input[at..at + length];
                    at += length;
                    read(message)
                }
                Ok(_) => break,
                Err(fault) => Err(fault),
            };
            match heard {
                Ok(heard) => self.hear(side, heard, now, &mut actions),
                Err(fault) => self.end(side, Some(&fault), &fault.why, now, &mut actions),
            }
        }
        if let Some(connection) = self.connection_mut(side) {
            // What is left is the beginning of a message: less than the longest has.
            input.drain(..at);
            connection.input = input;
        }
        actions
    }

    /// Does what is due.
    pub fn turn(&mut self, now: Tick) -> Vec<Action> {
        let mut actions = Vec::new();
        for side in [Side::Ours, Side::Theirs] {
            let is_due = |at: Option<Tick>| at.is_some_and(|at| at <= now);
            let Some(connection) = self.connection(side) else { continue };
            if is_due(connection.silent_until) {
                let fault = Fault::silence();
                self.end(side, Some(&fault), &fault.why, now, &mut actions);
            } else if is_due(connection.speak_at) {
                actions.push(Action::Send(side, message::keepalive()));
                self.schedule(side, now);
            }
        }
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            if !self.stopped && !self.settings.passive && self.ours.is_none() && !self.connecting {
                self.connecting = true;
                actions.push(Action::Connect);
            }
        }
        actions
    }

    fn hear(&mut self, side: Side, heard: Heard, now: Tick, actions: &mut Vec<Action>) {
        let Some(connection) = self.connection_mut(side) else { return };
        let stage = connection.stage;
        match (stage, heard) {
            (_, Heard::Notification(words)) => {
                self.end(side, None, &format!("the peer ends it: {words}"), now, actions);
            }
            (Stage::Opening, Heard::Open(peer)) => self.opened(side, peer, now, actions),
            (Stage::Confirming, Heard::Keepalive) => self.establish(side, now, actions),
            (Stage::Established, heard) if !matches!(heard, Heard::Open(_)) => {
                if heard == Heard::Refresh {
                    self.routes.tell_again();
                }
                self.heard(side, now);
            }
            (_, heard) => {
                let what = match heard {
                    Heard::Open(_) => "an OPEN",
                    Heard::Keepalive => "a KEEPALIVE",
                    _ => "an UPDATE",
                };
                let fault = Fault::out_of_place(what);
                self.end(side, Some(&fault), &fault.why, now, actions);
            }
        }
    }

    fn opened(&mut self, side: Side, peer: Opened, now: Tick, actions: &mut Vec<Action>) {
        let Settings { own_as, peer_as, id, .. } = self.settings;
        let fault = match peer_as {
            PeerAs::Number(number) if peer.number != number => Some(number.to_string()),
            PeerAs::External if peer.number == own_as => Some("another than ours".into()),
            PeerAs::Internal if peer.number != own_as => Some(format!("ours, {own_as}")),
            _ => None,
        };
        let fault = fault.map(|wanted| Fault::wrong_number(peer.number, &wanted));
        // Two of one system are told apart by it (RFC 6286).
        let same = peer.id == id && peer.number == own_as;
        if let Some(fault) = fault.or_else(|| same.then(|| Fault::same_id(id))) {
            return self.end(side, Some(&fault), &fault.why, now, actions);
        }
        // Of two connections that of the higher identifier stays (RFC 4271, section 6.8). Whose it is,
        // is known of both as soon as one has begun: waiting until both have would leave time for either
        // end to settle on another one.
        let other = if side == Side::Ours { Side::Theirs } else { Side::Ours };
        if self.connection(other).is_some() {
            let we_are_higher = (id, own_as) > (peer.id, peer.number);
            let stays = if we_are_higher { Side::Ours } else { Side::Theirs };
            let goes = if stays == Side::Ours { Side::Theirs } else { Side::Ours };
            self.drop_quietly(goes, actions);
            if goes == side {
                return;
            }
        }
        let Some(connection) = self.connection_mut(side) else { return };
        connection.stage = Stage::Confirming;
        connection.peer = Some(peer);
        actions.push(Action::Send(side, message::keepalive()));
        self.heard(side, now);
        self.schedule(side, now);
    }

    fn establish(&mut self, side: Side, now: Tick, actions: &mut Vec<Action>) {
        let other = if side == Side::Ours { Side::Theirs } else { Side::Ours };
        if self.connection(other).is_some() {
            self.drop_quietly(other, actions);
        }
        let Some(connection) = self.connection_mut(side) else { return };
        connection.stage = Stage::Established;
        let families = connection.peer.as_ref().map(|peer| (peer.ipv4, peer.ipv6));
        let (ipv4, ipv6) = families.unwrap_or_default();
        self.routes.begin(ipv4, ipv6);
        (self.up_since, self.was_up) = (Some(now), true);
        (self.retry_at, self.connecting) = (None, false);
        self.heard(side, now);
        actions.push(Action::Up);
    }

    fn open(&mut self, side: Side, hops: NextHops, now: Tick) -> Vec<Action> {
        let seconds = |time: Duration| u16::try_from(time.as_secs()).unwrap_or(u16::MAX);
        let opening = Opening {
            own_as: self.settings.own_as,
            id: self.settings.id,
            hold_seconds: seconds(self.settings.hold),
            // The field has twelve bits.
            restart_seconds: self.settings.restart.map(|time| seconds(time).min(4095)),
            restarts: !self.was_up,
        };
        let connection = Connection {
            stage: Stage::Opening,
            hops,
            input: Vec::new(),
            peer: None,
            silent_until: Some(now.plus(OPENING)),
            speak_at: None,
        };
        *self.place(side) = Some(connection);
        vec![Action::Send(side, message::open(&opening))]
    }

    /// Ends a connection; with a fault the peer is told of it.
    fn end(
        &mut self,
        side: Side,
        fault: Option<&Fault>,
        why: &str,
        now: Tick,
        actions: &mut Vec<Action>,
    ) {
        let Some(connection) = self.place(side).take() else { return };
        if let Some(fault) = fault {
            actions.push(Action::Send(side, fault.octets()));
        }
        actions.push(Action::Close(side));
        if connection.stage == Stage::Established
            && let Some(since) = self.up_since.take()
            && now.since(since) >= GOOD
        {
            self.backoff = FIRST_RETRY;
        }
        // While another connection goes on, nothing is lost.
        if self.ours.is_none() && self.theirs.is_none() {
            actions.push(Action::Down(why.into()));
            self.try_later(now);
        }
    }

    fn end_all(&mut self, why: &str, now: Tick, actions: &mut Vec<Action>) {
        for side in [Side::Ours, Side::Theirs] {
            self.end(side, None, why, now, actions);
        }
    }

    fn drop_quietly(&mut self, side: Side, actions: &mut Vec<Action>) {
        *self.place(side) = None;
        actions.push(Action::Send(side, Fault::collision().octets()));
        actions.push(Action::Close(side));
    }

    fn try_later(&mut self, now: Tick) {
        if !self.stopped {
            self.retry_at = Some(now.plus(self.backoff.min(self.settings.retry)));
            self.backoff = (self.backoff * 2).min(self.settings.retry);
        }
    }

    /// Something was heard: silence begins anew.
    fn heard(&mut self, side: Side, now: Tick) {
        let hold = self.hold(side);
        if let Some(connection) = self.connection_mut(side) {
            connection.silent_until = hold.map(|hold| now.plus(hold));
        }
    }

    fn schedule(&mut self, side: Side, now: Tick) {
        let hold = self.hold(side);
        let own = self.settings.keepalive;
        let every = hold.map(|hold| own.map_or(hold / 3, |own| own.min(hold / 3)));
        if let Some(connection) = self.connection_mut(side) {
            connection.speak_at = every.map(|every| now.plus(every));
        }
    }

    /// The hold time of both: the shorter one; none when either has none.
    fn hold(&self, side: Side) -> Option<Duration> {
        let peer = self.connection(side)?.peer.as_ref()?;
        let theirs = Duration::from_secs(peer.hold_seconds.into());
        let hold = theirs.min(self.settings.hold);
        (!hold.is_zero()).then_some(hold)
    }

    fn manner(&self, side: Side) -> Option<Manner> {
        let Connection { peer: Some(peer), hops, .. } = self.connection(side)? else { return None };
        Some(Manner {
            own_as: self.settings.own_as,
            internal: peer.number == self.settings.own_as,
            four_octets: peer.four_octets,
            ipv4_over_ipv6: peer.ipv4_over_ipv6,
            hops: *hops,
        })
    }

    fn established(&self) -> Option<Side> {
        [Side::Ours, Side::Theirs]
            .into_iter()
            .find(|side| self.connection(*side).is_some_and(|it| it.stage == Stage::Established))
    }

    fn connection(&self, side: Side) -> Option<&Connection> {
        match side {
            Side::Ours => self.ours.as_ref(),
            Side::Theirs => self.theirs.as_ref(),
        }
    }

    fn connection_mut(&mut self, side: Side) -> Option<&mut Connection> {
        self.place(side).as_mut()
    }

    fn place(&mut self, side: Side) -> &mut Option<Connection> {
        match side {
            Side::Ours => &mut self.ours,
            Side::Theirs => &mut self.theirs,
        }
    }
}
