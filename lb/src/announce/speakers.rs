//! BGP's sessions with their sockets: connections are made, taken and read here, and nothing is decided.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fairway_config::announce::{BgpPeer, Secret};
use fairway_core::{IpPrefix, Tick};
use fairway_uring::sign;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::bgp::message::{Attributes, Fault, NextHops};
use super::bgp::routes::Wanted;
use super::bgp::session::{Action, Session, Settings, Side};
use super::handing::PeerSession;
use super::run::Event;
use crate::network::AllAddresses;
use crate::secret::{described, read as read_secret};

/// How long a connection may take to be made.
const CONNECTING: Duration = Duration::from_secs(5);
/// How long a peer may take nothing.
const WRITING: Duration = Duration::from_secs(30);
/// Octets of routes that wait for a peer to take them.
const MOST_WAITING: usize = 1 << 16;
/// Routes that a line of the log names.
const MOST_LISTED: usize = 8;
/// Keys of TCP MD5 have so many octets at most.
const LONGEST_KEY: usize = 80;

/// What happens to a peer.
pub(crate) enum PeerEvent {
    /// The connection that was to be made is there.
    Connected(TcpStream),
    /// It could not be made.
    Refused(String),
    /// The peer has made one.
    Accepted(TcpStream),
    /// Octets have come by a connection, which is numbered.
    Received(Side, u64, Box<[u8]>),
    /// So many octets were taken.
    Wrote(Side, u64, usize),
    /// It has ended.
    Closed(Side, u64, String),
}

/// A connection of a peer.
struct Link {
    number: u64,
    writer: mpsc::UnboundedSender<Vec<u8>>,
    /// Octets that were not taken yet.
    waiting: usize,
    stream: Arc<TcpStream>,
    reader: JoinHandle<()>,
}

/// What became of a session.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    Up,
    Down(String),
}

/// A peer.
pub(crate) struct Speaker {
    pub(crate) spec: BgpPeer,
    pub(crate) session: Session,
    ours: Option<Link>,
    theirs: Option<Link>,
    next: u64,
    pub(crate) changes: u64,
    pub(crate) last: Option<(SystemTime, Change)>,
    /// Why no connection could be made last.
    pub(crate) trouble: Option<String>,
    /// The address by which it is reached.
    pub(crate) local: Option<IpAddr>,
    events: mpsc::UnboundedSender<Event>,
    connecting: Option<JoinHandle<()>>,
    /// Nothing is read here.
    paused: bool,
}

impl Speaker {
    /// A peer whose session is stopped.
    pub(crate) fn new(spec: &BgpPeer, events: mpsc::UnboundedSender<Event>) -> Self {
        Self {
            spec: spec.clone(),
            session: Session::new(settings(spec)),
            ours: None,
            theirs: None,
            next: 0,
            changes: 0,
            last: None,
            trouble: None,
            local: None,
            events,
            connecting: None,
            paused: false,
        }
    }

    /// A peer whose session another process of this box has had until now, by its connection.
    pub(crate) fn go_on(
        spec: &BgpPeer,
        (handed, connection): (PeerSession, OwnedFd),
        events: mpsc::UnboundedSender<Event>,
        now: Tick,
    ) -> io::Result<Self> {
        let stream = TcpStream::from_std(std::net::TcpStream::from(connection))?;
        let mut speaker = Self::new(spec, events);
        let (session, side) = Session::go_on(settings(spec), handed.session, now);
        speaker.session = session;
        let up_at = UNIX_EPOCH + Duration::from_secs(handed.up_at);
        (speaker.changes, speaker.last) = (handed.changes, Some((up_at, Change::Up)));
        speaker.link_by(side, stream);
        Ok(speaker)
    }

    /// Reads nothing more, so that another process can.
    pub(crate) fn pause(&mut self) {
        self.paused = true;
        for link in [&self.ours, &self.theirs].into_iter().flatten() {
            link.reader.abort();
        }
    }

    /// That we are there, when that is due.
    pub(crate) fn repeat(&mut self, now: Tick) {
        // Behind what waits it would be of no use.
        if self.is_flushed()
            && let Some((side, octets)) = self.session.repeat(now)
        {
            self.send(side, octets);
        }
    }

    /// When [`Speaker::repeat`] is due.
    pub(crate) fn repeat_due(&self) -> Option<Tick> {
        self.session.repeat_due().filter(|_| self.is_flushed())
    }

    /// Reads on. When another process `may_have_begun` to speak, a session begins anew.
    pub(crate) fn resume(&mut self, may_have_begun: bool, now: Tick) {
        self.paused = false;
        // Nobody has heard the peer meanwhile.
        let _ = self.session.repeat(now);
        if may_have_begun && self.session.up_since().is_some() {
            let actions = self.session.fail(&Fault::reset(), now);
            self.act(actions);
        }
        for side in [Side::Ours, Side::Theirs] {
            let reader = self.link(side).as_ref().map(|link| (link.number, link.stream.clone()));
            let Some((number, stream)) = reader else { continue };
            let reader = self.read(side, number, stream);
            if let Some(link) = self.link(side) {
                std::mem::replace(&mut link.reader, reader).abort();
            }
        }
    }

    /// Whether all that was sent has been taken.
    pub(crate) fn is_flushed(&self) -> bool {
        [&self.ours, &self.theirs].into_iter().flatten().all(|link| link.waiting == 0)
    }

    /// Its session, if it is up and can be gone on with, and a copy of the connection.
    pub(crate) fn hand_over(&self) -> Option<(PeerSession, OwnedFd)> {
        let session = self.session.keep()?;
        let peer = &self.spec.name;
        if !self.is_flushed() {
            tracing::warn!(peer, "BGP: the peer reads slowly; its session begins anew");
            return None;
        }
        // While a session is up there is no other connection.
        let link = self.ours.as_ref().or(self.theirs.as_ref())?;
        let connection = link.stream.as_fd().try_clone_to_owned();
        let words =
            |error: &io::Error| tracing::warn!(peer, "BGP: the session begins anew: {error}");
        let connection = connection.inspect_err(words).ok()?;
        let up_at = self.last.as_ref().map_or_else(SystemTime::now, |(at, _)| *at);
        let up_at = up_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let (name, spec) = (peer.clone(), told_of(&self.spec)?);
        Some((PeerSession { name, spec, session, changes: self.changes, up_at }, connection))
    }

    /// Does what a session wants; returns what became of it.
    pub(crate) fn act(&mut self, actions: Vec<Action>) -> Option<Change> {
        let mut change = None;
        for action in actions {
            match action {
                Action::Connect => self.connect(),
                Action::Send(side, octets) => self.send(side, octets),
                // What was sent leaves before the end.
                Action::Close(side) => _ = self.link(side).take(),
                Action::Up => {
                    self.trouble = None;
                    change = Some(Change::Up);
                }
                Action::Down(why) => change = Some(Change::Down(why)),
            }
        }
        if let Some(change) = &change {
            let was_up = matches!(self.last, Some((_, Change::Up)));
            match change {
                Change::Up => {
                    let routes = listed(self.session.routes().wanted().keys());
                    let routes = routes.unwrap_or_else(|| "none".into());
                    tracing::info!(peer = self.spec.name, routes, "BGP: the session is up");
                }
                Change::Down(why) if was_up => {
                    tracing::warn!(peer = self.spec.name, "BGP: the session is down: {why}");
                }
                Change::Down(why) if self.trouble.as_ref() != Some(why) => {
                    tracing::warn!(peer = self.spec.name, "BGP: no session: {why}");
                }
                Change::Down(_) => {}
            }
            if let Change::Down(why) = change {
                self.trouble = Some(why.clone());
            }
            self.changes += u64::from(was_up || matches!(change, Change::Up));
            self.last = Some((SystemTime::now(), change.clone()));
        }
        self.tell();
        change
    }

    /// Tells it these routes from now on.
    pub(crate) fn want(&mut self, wanted: Wanted) {
        let before = self.session.routes().wanted();
        let is_new = |(net, _): &(&IpPrefix, &Arc<Attributes>)| !before.contains_key(*net);
        let (peer, new) =
            (&self.spec.name, listed(wanted.iter().filter(is_new).map(|(net, _)| net)));
        let gone = listed(before.keys().filter(|net| !wanted.contains_key(*net)));
        // A session that is not up has been told nothing; what it is told once it is, that says.
        let up = self.session.up_since().is_some();
        if let Some(routes) = new.filter(|_| up) {
            tracing::info!(peer, routes, "BGP: routes are told");
        }
        if let Some(routes) = gone.filter(|_| up) {
            tracing::info!(peer, routes, "BGP: routes are withdrawn");
        }
        self.session.want(wanted);
        self.tell();
    }

    /// Whether it has all that it is to have.
    pub(crate) fn is_settled(&self) -> bool {
        let waits = [&self.ours, &self.theirs].into_iter().flatten().any(|link| link.waiting > 0);
        !waits && (self.session.up_since().is_none() || self.session.routes().is_settled())
    }

    /// Something has happened to it.
    pub(crate) fn take(
        &mut self,
        event: PeerEvent,
        addresses: &AllAddresses,
        now: Tick,
    ) -> Option<Change> {
        let actions = match event {
            PeerEvent::Connected(stream) => {
                self.connecting = None;
                let hops = self.open(Side::Ours, stream, addresses);
                self.session.connected(hops, now)
            }
            PeerEvent::Refused(why) => {
                self.connecting = None;
                if self.trouble.as_ref() != Some(&why) {
                    tracing::warn!(peer = self.spec.name, "BGP: {why}; trying again");
                }
                self.trouble = Some(why);
                self.session.refused(now);
                return None;
            }
            PeerEvent::Accepted(stream) => {
                if self.theirs.is_some() {
                    return None;
                }
                let hops = self.open(Side::Theirs, stream, addresses);
                self.session.accepted(hops, now)
            }
            PeerEvent::Received(side, number, octets) => match self.is_current(side, number) {
                true => self.session.received(side, &octets, now),
                false => return None,
            },
            PeerEvent::Wrote(side, number, count) => {
                self.wrote(side, number, count);
                self.tell();
                return None;
            }
            PeerEvent::Closed(side, number, why) => match self.is_current(side, number) {
                true => {
                    *self.link(side) = None;
                    self.session.closed(side, &why, now)
                }
                false => return None,
            },
        };
        self.act(actions)
    }

    /// So many octets were taken.
    pub(crate) fn wrote(&mut self, side: Side, number: u64, count: usize) {
        if let Some(link) = self.link(side).as_mut().filter(|link| link.number == number) {
            link.waiting -= count.min(link.waiting);
        }
    }

    /// Ends its session; what was sent leaves before.
    pub(crate) fn stop(&mut self, words: &str) {
        let actions = self.session.stop(&Fault::shutdown(words));
        self.act(actions);
    }

    fn is_current(&mut self, side: Side, number: u64) -> bool {
        self.link(side).as_ref().is_some_and(|link| link.number == number)
    }

    fn link(&mut self, side: Side) -> &mut Option<Link> {
        match side {
            Side::Ours => &mut self.ours,
            Side::Theirs => &mut self.theirs,
        }
    }

    fn send(&mut self, side: Side, octets: Vec<u8>) {
        if let Some(link) = self.link(side) {
            link.waiting += octets.len();
            // A writer that has ended says so.
            let _ = link.writer.send(octets);
        }
    }

    /// Tells routes for as long as the peer takes them.
    fn tell(&mut self) {
        loop {
            let full = [&self.ours, &self.theirs]
                .into_iter()
                .flatten()
                .any(|link| link.waiting >= MOST_WAITING);
            if full {
                return;
            }
            let Some((side, octets)) = self.session.next_update() else { return };
            self.send(side, octets);
        }
    }

    fn connect(&mut self) {
        let (spec, events) = (self.spec.clone(), self.events.clone());
        self.connecting = Some(tokio::spawn(async move {
            let made = match timeout(CONNECTING, connect(&spec)).await {
                Ok(made) => made,
                Err(_) => Err(format!("{}:{} does not answer", spec.address, spec.port)),
            };
            let event = match made {
                Ok(stream) => PeerEvent::Connected(stream),
                Err(why) => PeerEvent::Refused(why),
            };
            // The receiver goes with the process.
            let _ = events.send(Event::Bgp(spec.name, event));
        }));
    }

    /// Reads and writes a connection from now on; where the peer reaches us by it.
    fn open(&mut self, side: Side, stream: TcpStream, addresses: &AllAddresses) -> NextHops {
        self.link_by(side, stream);
        let local = self.local;
        if let (None, Some(IpAddr::V4(ip))) = (self.spec.router_id, local) {
            self.session.set_id(ip);
        }
        let (ipv4, ipv6) = match local {
            Some(IpAddr::V4(ip)) => (Some(ip), None),
            Some(IpAddr::V6(ip)) => (None, Some(ip)),
            None => (None, None),
        };
        let (other_v4, other_v6) = local.map_or((None, None), |ip| addresses.beside(ip));
        NextHops {
            ipv4: self.spec.next_hop_v4.or(ipv4).or(other_v4),
            ipv6: self.spec.next_hop_v6.or(ipv6).or(other_v6),
        }
    }

    /// Reads and writes a connection from now on.
    fn link_by(&mut self, side: Side, stream: TcpStream) {
        self.next += 1;
        let number = self.next;
        self.local = stream.local_addr().ok().map(|at| at.ip().to_canonical());
        let stream = Arc::new(stream);
        let reader = self.read(side, number, Arc::clone(&stream));
        let (writer, mut queue) = mpsc::unbounded_channel::<Vec<u8>>();
        let (tell, out) = (self.teller(), Arc::clone(&stream));
        tokio::spawn(async move {
            while let Some(octets) = queue.recv().await {
                // The reader has the cause, or the hold time ends it.
                let Ok(Ok(())) = timeout(WRITING, write_all(&out, &octets)).await else { return };
                tell(PeerEvent::Wrote(side, number, octets.len()));
            }
        });
        *self.link(side) = Some(Link { number, writer, waiting: 0, stream, reader });
    }

    fn read(&self, side: Side, number: u64, stream: Arc<TcpStream>) -> JoinHandle<()> {
        let (tell, paused) = (self.teller(), self.paused);
        tokio::spawn(async move {
            if paused {
                return;
            }
            let mut octets = vec![0; 1 << 14];
            let why = loop {
                let ready = stream.readable().await;
                // What has been read is told: nothing is lost when this task ends between two turns.
                match ready.and_then(|()| stream.try_read(&mut octets)) {
                    Ok(0) => break "the peer has closed the connection".into(),
                    Ok(count) => {
                        let octets = octets[..count].into();
                        if !tell(PeerEvent::Received(side, number, octets)) {
                            return;
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => break format!("the connection broke: {error}"),
                }
            };
            tell(PeerEvent::Closed(side, number, why));
        })
    }

    /// Tells what happens to this peer; false when nobody hears of it any more.
    fn teller(&self) -> impl Fn(PeerEvent) -> bool + Send + use<> {
        let (name, events) = (self.spec.name.clone(), self.events.clone());
        move |event| events.send(Event::Bgp(name.clone(), event)).is_ok()
    }
}

/// Writes all of it, when it is taken.
async fn write_all(stream: &TcpStream, mut octets: &[u8]) -> io::Result<()> {
    while !octets.is_empty() {
        stream.writable().await?;
        match stream.try_write(octets) {
            Ok(count) => octets = &octets[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn settings(spec: &BgpPeer) -> Settings {
    Settings {
        own_as: spec.own_as,
        peer_as: spec.peer_as,
        id: spec.router_id.unwrap_or(Ipv4Addr::UNSPECIFIED),
        hold: spec.hold,
        keepalive: spec.keepalive,
        retry: spec.retry,
        passive: spec.passive,
        restart: spec.restart,
    }
}

/// What the document says of a peer, for comparing.
pub(crate) fn told_of(spec: &BgpPeer) -> Option<serde_json::Value> {
    serde_json::to_value(spec).ok()
}

impl Drop for Link {
    fn drop(&mut self) {
        // The writer ends when it has written what is queued.
        self.reader.abort();
    }
}

impl Drop for Speaker {
    fn drop(&mut self) {
        if let Some(connecting) = &self.connecting {
            connecting.abort();
        }
    }
}

/// The first of some prefixes, and how many more there are; none when there are none.
fn listed<'p>(nets: impl Iterator<Item = &'p IpPrefix>) -> Option<String> {
    let nets: Vec<String> = nets.map(ToString::to_string).collect();
    let more = nets.len().saturating_sub(MOST_LISTED);
    let first = nets[..nets.len() - more].join(" ");
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!nets.is_empty()).then(|| first + &more)
}

/// The key that signs a session.
pub(super) fn key(secret: &Secret) -> Result<Vec<u8>, String> {
    let key = read_secret(secret)?;
    match key.len() {
        0..=LONGEST_KEY => Ok(key),
        length => Err(format!(
            "{} has {length} bytes; TCP MD5 takes {LONGEST_KEY} at most",
            described(secret)
        )),
    }
}

async fn connect(spec: &BgpPeer) -> Result<TcpStream, String> {
    let to = SocketAddr::new(spec.address, spec.port);
    let words = |error: io::Error| format!("{to} cannot be reached: {error}");
    let socket = match spec.address {
        IpAddr::V4(_) => TcpSocket::new_v4(),
        IpAddr::V6(_) => TcpSocket::new_v6(),
    };
    let socket = socket.map_err(words)?;
    if let Some(secret) = &spec.password {
        sign(&socket, spec.address, &key(secret)?)
            .map_err(|error| format!("the session with {to} cannot be signed: {error}"))?;
    }
    let lower = socket2::SockRef::from(&socket);
    // Of another system's router: it is on this link.
    match (spec.direct, spec.address) {
        (false, _) => {}
        (true, IpAddr::V4(_)) => lower.set_ttl_v4(1).map_err(words)?,
        (true, IpAddr::V6(_)) => lower.set_unicast_hops_v6(1).map_err(words)?,
    }
    lower.set_tcp_nodelay(true).map_err(words)?;
    if let Some(source) = spec.source {
        socket.bind(SocketAddr::new(source, 0)).map_err(|error| {
            format!("{source} cannot be spoken from: {error}; is it on this machine?")
        })?;
    }
    socket.connect(to).await.map_err(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_from_files_without_the_end_of_their_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let secret = Secret::File(file.path().into());
        for (text, want) in [
            ("hush\n", Ok("hush")),
            ("hush\r\n", Ok("hush")),
            (" two words ", Ok(" two words ")),
            ("\n", Err("is empty")),
            (&"x".repeat(81), Err("has 81 bytes; TCP MD5 takes 80 at most")),
        ] {
            std::fs::write(file.path(), text).unwrap();
            match (key(&secret), want) {
                (Ok(key), Ok(want)) => assert_eq!(key, want.as_bytes()),
                (Err(why), Err(want)) => assert!(why.ends_with(want), "{why}"),
                (got, want) => panic!("{text}: {got:?}, not {want:?}"),
            }
        }
        let missing = key(&Secret::File("/no/such/key".into())).unwrap_err();
        assert!(missing.contains("cannot be read"), "{missing}");
        let credential = key(&Secret::Credential("tor.key".into())).unwrap_err();
        assert!(credential.contains("`LoadCredential=tor.key:"), "{credential}");
    }
}
