//! BFD's sessions, and the sockets by which they speak.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use ahash::RandomState;
use fairway_config::announce::Bfd as Wanted;
use fairway_core::Tick;
use fairway_core::announce::bfd::{
    Diagnostic, MULTIHOP_PORT, Outcome, PORT, Packet, Session, Settings, State,
};
use fairway_uring::{Told, receive_told, tell_hops};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket as Readable;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::handing::{Inheritance, WatchedWay};
use super::run::{Event, readable};

/// Ports from which sessions speak (RFC 5881, section 4).
const FIRST_PORT: u16 = 49_152;
/// From one try to open a socket to the next.
const AGAIN: std::time::Duration = std::time::Duration::from_secs(1);
/// Hops of packets that have passed no router.
const NEAR: u8 = 255;

/// The way of a session: to whom, from which address if one is set, over one hop or several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Way {
    pub(crate) peer: IpAddr,
    pub(crate) source: Option<IpAddr>,
    pub(crate) multihop: bool,
}

/// A session with the socket that it speaks by.
pub(crate) struct Watched {
    wanted: Wanted,
    session: Session,
    socket: Option<Socket>,
    pub(crate) trouble: Option<String>,
    /// Packets come with fewer hops left than they may: this many, and what is least.
    far: Option<(u8, u8)>,
    pub(crate) changes: u64,
}

impl Watched {
    pub(crate) fn state(&self) -> State {
        self.session.state()
    }

    /// For how long nothing may be heard.
    pub(crate) fn detection(&self) -> std::time::Duration {
        self.session.detection()
    }
}

/// Where packets come.
struct Ear {
    socket: Socket,
    task: JoinHandle<()>,
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// All sessions of this box.
pub(crate) struct Sessions {
    sessions: BTreeMap<Way, Watched>,
    /// By family and number of hops.
    ears: BTreeMap<(bool, bool), Result<Ear, String>>,
    events: mpsc::UnboundedSender<Event>,
    next: u32,
    /// When what could not be opened is tried again.
    again_at: Tick,
    chance: RandomState,
    turns: u64,
}

/// A way is well again, or not, and why.
pub(crate) type News = (Way, Result<(), Diagnostic>);

impl Sessions {
    pub(crate) fn new(events: mpsc::UnboundedSender<Event>) -> Self {
        let (sessions, ears) = (BTreeMap::new(), BTreeMap::new());
        let again_at = Tick(0);
        Self { sessions, ears, events, next: 0, again_at, chance: RandomState::new(), turns: 0 }
    }

    /// The session of a way.
    pub(crate) fn get(&self, way: &Way) -> Option<&Watched> {
        self.sessions.get(way)
    }

    /// Watches these ways from now on, and no others; goes on with what is inherited.
    pub(crate) fn want(
        &mut self,
        wanted: &BTreeMap<Way, Wanted>,
        inheritance: &mut Inheritance,
        now: Tick,
    ) {
        let chance = self.chance();
        for (way, watched) in &mut self.sessions {
            if wanted.get(way) != Some(&watched.wanted) {
                // The other end is not to take it for a failure.
                let outcome = watched.session.administer(false, now, chance);
                watched.send(*way, outcome.send);
            }
        }
        self.sessions.retain(|way, watched| wanted.get(way) == Some(&watched.wanted));
        for (way, bfd) in wanted {
            if self.sessions.contains_key(way) {
                continue;
            }
            if let Some(wanted) = told_of(bfd)
                && let Some(handed) = inheritance.way(way, &wanted)
                && let Some(watched) = Watched::go_on(bfd, handed, now)
            {
                self.sessions.insert(*way, watched);
                continue;
            }
            self.next += 1;
            let settings = settings(bfd);
            // Another process of this box had other numbers.
            let number = (self.chance() & 0xffff_0000) | self.next;
            let opened = speaker(*way, self.next);
            let trouble = opened
                .as_ref()
                .err()
                .map(|error| format!("BFD cannot be spoken with {}: {error}", way.peer));
            if let Some(why) = &trouble {
                tracing::error!("{why}");
            }
            let watched = Watched {
                wanted: *bfd,
                session: Session::new(settings, number, now),
                socket: opened.ok(),
                trouble,
                far: None,
                changes: 0,
            };
            self.sessions.insert(*way, watched);
        }
        let ears: Vec<(bool, bool)> =
            self.sessions.keys().map(|way| (way.peer.is_ipv4(), way.multihop)).collect();
        self.ears.retain(|ear, _| ears.contains(ear));
        for ear in ears {
            let inherited = inheritance.bfd_ear(ear).map(Socket::from);
            self.listen(ear, inherited);
        }
    }

    /// Hears nothing more, so that another process can.
    pub(crate) fn pause(&mut self) {
        self.ears.values().flatten().for_each(|ear| ear.task.abort());
    }

    /// Says that ways are well which were; whether they are is not looked at meanwhile.
    pub(crate) fn repeat(&mut self, now: Tick) {
        let chance = self.chance();
        self.resume(now);
        for (way, watched) in &mut self.sessions {
            if watched.is_up() && watched.session.due() <= now {
                let outcome = watched.session.turn(now, chance);
                watched.send(*way, outcome.send);
            }
        }
    }

    /// When [`Sessions::repeat`] is due.
    pub(crate) fn repeat_due(&self) -> Option<Tick> {
        let up = self.sessions.values().filter(|watched| watched.is_up());
        up.map(|watched| watched.session.due()).min()
    }

    /// Hears again.
    pub(crate) fn go_on(&mut self, now: Tick) {
        self.resume(now);
        for (kind, ear) in std::mem::take(&mut self.ears) {
            let socket = ear.ok().and_then(|ear| ear.socket.try_clone().ok());
            self.listen(kind, socket);
        }
    }

    /// The sockets at which packets come, for another process.
    pub(crate) fn ears(&self) -> impl Iterator<Item = ((bool, bool), OwnedFd)> + '_ {
        let copy = |(kind, ear): (&(bool, bool), &Result<Ear, String>)| {
            Some((*kind, ear.as_ref().ok()?.socket.as_fd().try_clone_to_owned().ok()?))
        };
        self.ears.iter().filter_map(copy)
    }

    /// Sessions that are up, for another process, with copies of their sockets.
    pub(crate) fn hand_over(&self) -> impl Iterator<Item = (WatchedWay, OwnedFd)> + '_ {
        self.sessions.iter().filter_map(|(way, watched)| {
            let handed = WatchedWay {
                peer: way.peer,
                source: way.source,
                multihop: way.multihop,
                wanted: told_of(&watched.wanted)?,
                number: watched.session.number(),
                heard: watched.session.heard()?.bytes().into(),
                changes: watched.changes,
            };
            Some((handed, watched.socket.as_ref()?.as_fd().try_clone_to_owned().ok()?))
        })
    }

    /// Listens for packets of a family, over one hop or several, by a socket that is there or a new one.
    fn listen(&mut self, ear: (bool, bool), socket: Option<Socket>) {
        if matches!(self.ears.get(&ear), Some(Ok(_))) {
            return;
        }
        let (is_ipv4, multihop) = ear;
        let events = self.events.clone();
        let socket = socket.map_or_else(|| hearer(is_ipv4, multihop), Ok);
        let heard = socket.and_then(|socket| {
            let task = tokio::spawn(read(readable(socket.try_clone()?)?, multihop, events));
            Ok(Ear { socket, task })
        });
        let heard = heard.map_err(|error| format!("BFD cannot be heard: {error}"));
        if let Err(why) = &heard
            && self.ears.get(&ear).is_none_or(|before| before.as_ref().err() != Some(why))
        {
            tracing::error!("{why}; trying again");
        }
        self.ears.insert(ear, heard);
    }

    /// Tries again to open what could not be opened: an address may have come.
    fn open_again(&mut self) {
        let deaf: Vec<(bool, bool)> =
            self.ears.iter().filter(|(_, ear)| ear.is_err()).map(|(ear, _)| *ear).collect();
        deaf.into_iter().for_each(|ear| self.listen(ear, None));
        for (way, watched) in &mut self.sessions {
            if watched.socket.is_none()
                && let Ok(socket) = speaker(*way, watched.session.number())
            {
                (watched.socket, watched.trouble) = (Some(socket), None);
            }
        }
    }

    /// This box stood still: what has come was not heard yet.
    pub(crate) fn resume(&mut self, now: Tick) {
        self.sessions.values_mut().for_each(|watched| watched.session.resume(now));
    }

    /// When [`Sessions::turn`] is due.
    pub(crate) fn due(&self) -> Option<Tick> {
        self.sessions.values().map(|watched| watched.session.due()).min()
    }

    /// Speaks where that is due, and notices silence.
    pub(crate) fn turn(&mut self, now: Tick) -> Vec<News> {
        let mut news = Vec::new();
        if now >= self.again_at {
            self.again_at = now.plus(AGAIN);
            self.open_again();
        }
        let chance = self.chance();
        for (way, watched) in &mut self.sessions {
            if watched.session.due() <= now {
                let outcome = watched.session.turn(now, chance);
                watched.follow(*way, outcome, &mut news);
            }
        }
        news
    }

    /// A packet has come.
    pub(crate) fn hear(
        &mut self,
        bytes: &[u8],
        told: &Told,
        multihop: bool,
        now: Tick,
    ) -> Vec<News> {
        let mut news = Vec::new();
        let Ok(packet) = Packet::parse(bytes) else { return news };
        let (chance, from) = (self.chance(), told.from.ip());
        let is_meant = |(way, watched): &(&Way, &mut Watched)| {
            let by_number = packet.yours != 0 && watched.session.number() == packet.yours;
            let by_way = packet.yours == 0 && way.source.is_none_or(|own| told.to == Some(own));
            way.peer == from && way.multihop == multihop && (by_number || by_way)
        };
        let found = self.sessions.iter_mut().find(is_meant);
        let Some((way, watched)) = found else { return news };
        let least = if multihop { watched.wanted.minimum_ttl } else { NEAR };
        let hops = told.hops.unwrap_or(0);
        let far = (hops < least).then_some((hops, least));
        if watched.far != far
            && let Some(far) = far
        {
            tracing::warn!("{}", is_far(way.peer, far));
        }
        watched.far = far;
        if far.is_some() {
            return news;
        }
        let outcome = watched.session.hear(&packet, now, chance);
        watched.follow(*way, outcome, &mut news);
        news
    }

    /// What keeps sessions from working.
    pub(crate) fn troubles(&self) -> impl Iterator<Item = String> + '_ {
        let deaf = self.ears.values().filter_map(|ear| ear.as_ref().err().cloned());
        let far = self
            .sessions
            .iter()
            .filter_map(|(way, watched)| watched.far.map(|far| is_far(way.peer, far)));
        deaf.chain(self.sessions.values().filter_map(|watched| watched.trouble.clone())).chain(far)
    }

    fn chance(&mut self) -> u32 {
        self.turns += 1;
        self.chance.hash_one(self.turns) as u32
    }
}

fn settings(bfd: &Wanted) -> Settings {
    Settings { min_tx: bfd.transmit, min_rx: bfd.receive, multiplier: bfd.multiplier }
}

/// What the document says of a session, for comparing.
fn told_of(bfd: &Wanted) -> Option<serde_json::Value> {
    serde_json::to_value(bfd).ok()
}

impl Watched {
    /// A session that another process of this box has had until now.
    fn go_on(bfd: &Wanted, (handed, socket): (WatchedWay, OwnedFd), now: Tick) -> Option<Self> {
        let heard = Packet::parse(&handed.heard).ok()?;
        Some(Self {
            wanted: *bfd,
            session: Session::go_on(settings(bfd), handed.number, &heard, now),
            socket: Some(socket.into()),
            trouble: None,
            far: None,
            changes: handed.changes,
        })
    }

    fn is_up(&self) -> bool {
        self.state() == State::Up
    }

    fn follow(&mut self, way: Way, outcome: Outcome, news: &mut Vec<News>) {
        self.send(way, outcome.send);
        if let Some(change) = outcome.change {
            self.changes += 1;
            news.push((way, change));
        }
    }

    fn send(&mut self, way: Way, packet: Option<Packet>) {
        let (Some(socket), Some(packet)) = (&self.socket, packet) else { return };
        let port = if way.multihop { MULTIHOP_PORT } else { PORT };
        let to = SocketAddr::new(way.peer, port);
        // What is not sent is missed at the other end, which is what the protocol is for.
        let sent = socket.send_to(&packet.bytes(), &to.into());
        self.trouble =
            sent.err().map(|error| format!("BFD cannot be spoken with {}: {error}", way.peer));
    }
}

fn is_far(peer: IpAddr, (hops, least): (u8, u8)) -> String {
    format!(
        "BFD packets of {peer} do not count: they come with a TTL of {hops}, and {least} is least{}",
        if least == NEAR {
            ""
        } else {
            "; set minimumTTL of the BFD profile to what its way leaves"
        }
    )
}

fn speaker(way: Way, number: u32) -> io::Result<Socket> {
    let socket = udp(way.peer.is_ipv4())?;
    let any: IpAddr = match way.peer {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let from = way.source.unwrap_or(any);
    // Each session has a port of its own; one that is taken is passed over.
    let mut last = Err(io::ErrorKind::AddrInUse.into());
    for n in 0..64 {
        let port = FIRST_PORT + ((number + n) % u32::from(u16::MAX - FIRST_PORT)) as u16;
        last = socket.bind(&SocketAddr::new(from, port).into());
        if last.is_ok() {
            return Ok(socket);
        }
    }
    last.map(|()| socket)
}

fn hearer(is_ipv4: bool, multihop: bool) -> io::Result<Socket> {
    let socket = udp(is_ipv4)?;
    tell_hops(&socket, !is_ipv4)?;
    let any: IpAddr = match is_ipv4 {
        true => Ipv4Addr::UNSPECIFIED.into(),
        false => Ipv6Addr::UNSPECIFIED.into(),
    };
    let port = if multihop { MULTIHOP_PORT } else { PORT };
    socket.bind(&SocketAddr::new(any, port).into())?;
    Ok(socket)
}

fn udp(is_ipv4: bool) -> io::Result<Socket> {
    let domain = if is_ipv4 { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    match is_ipv4 {
        true => socket.set_ttl_v4(NEAR.into())?,
        false => {
            socket.set_only_v6(true)?;
            socket.set_unicast_hops_v6(NEAR.into())?;
        }
    }
    Ok(socket)
}

async fn read(socket: Readable, multihop: bool, events: mpsc::UnboundedSender<Event>) {
    let mut bytes = [0; 256];
    loop {
        if socket.readable().await.is_err() {
            return;
        }
        // A port that nobody listens on is told of by an error, which says nothing here.
        let told = socket.try_io(Interest::READABLE, || receive_told(&socket, &mut bytes));
        if let Ok(told) = told {
            let event = Event::Bfd(bytes[..told.length].into(), told, multihop);
            if events.send(event).is_err() {
                return;
            }
        }
    }
}
