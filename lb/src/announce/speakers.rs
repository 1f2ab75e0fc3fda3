//! BGP's sessions with their sockets: connections are made, taken and read here, and nothing is decided.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use fairway_config::announce::{BgpPeer, Secret};
use fairway_core::{IpPrefix, Tick};
use fairway_uring::sign;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::bgp::message::{Attributes, Fault, NextHops};
use super::bgp::routes::Wanted;
use super::bgp::session::{Action, Session, Settings, Side};
use super::run::Event;
use crate::network::AllAddresses;

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
}

impl Speaker {
    /// A peer whose session is stopped.
    pub(crate) fn new(spec: &BgpPeer, events: mpsc::UnboundedSender<Event>) -> Self {
        let settings = Settings {
            own_as: spec.own_as,
            peer_as: spec.peer_as,
            id: spec.router_id.unwrap_or(Ipv4Addr::UNSPECIFIED),
            hold: spec.hold,
            keepalive: spec.keepalive,
            retry: spec.retry,
            passive: spec.passive,
            restart: spec.restart,
        };
        Self {
            spec: spec.clone(),
            session: Session::new(settings),
            ours: None,
            theirs: None,
            next: 0,
            changes: 0,
            last: None,
            trouble: None,
            local: None,
            events,
            connecting: None,
        }
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
                Change::Up => tracing::info!(peer = self.spec.name, "BGP: the session is up"),
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
        if let Some(routes) = new {
            tracing::info!(peer, routes, "BGP: routes are told");
        }
        if let Some(routes) = gone {
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
                if let Some(link) = self.link(side).as_mut().filter(|link| link.number == number) {
                    link.waiting -= count.min(link.waiting);
                }
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
        self.next += 1;
        let number = self.next;
        let local = stream.local_addr().ok().map(|at| at.ip().to_canonical());
        self.local = local;
        let (mut reading, mut writing) = stream.into_split();
        let (name, events) = (self.spec.name.clone(), self.events.clone());
        let tell = move |event| events.send(Event::Bgp(name.clone(), event)).is_ok();
        let told = tell.clone();
        let reader = tokio::spawn(async move {
            let mut octets = vec![0; 1 << 14];
            let why = loop {
                match reading.read(&mut octets).await {
                    Ok(0) => break "the peer has closed the connection".into(),
                    Ok(count) => {
                        let octets = octets[..count].into();
                        if !told(PeerEvent::Received(side, number, octets)) {
                            return;
                        }
                    }
                    Err(error) => break format!("the connection broke: {error}"),
                }
            };
            told(PeerEvent::Closed(side, number, why));
        });
        let (writer, mut queue) = mpsc::unbounded_channel::<Vec<u8>>();
        tokio::spawn(async move {
            while let Some(octets) = queue.recv().await {
                // The reader has the cause, or the hold time ends it.
                let Ok(Ok(())) = timeout(WRITING, writing.write_all(&octets)).await else { return };
                tell(PeerEvent::Wrote(side, number, octets.len()));
            }
        });
        let link = Link { number, writer, waiting: 0, reader };
        *self.link(side) = Some(link);
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
pub(crate) fn key(secret: &Secret) -> Result<Vec<u8>, String> {
    let path = match secret {
        Secret::File(path) => path.clone(),
        Secret::Credential(name) => {
            let folder = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(|| {
                format!(
                    "credential `{name}` is not there: the unit needs `LoadCredential={name}:…` \
                     ($CREDENTIALS_DIRECTORY is not set)"
                )
            })?;
            PathBuf::from(folder).join(name)
        }
    };
    let text = std::fs::read(&path)
        .map_err(|error| format!("the key in {} cannot be read: {error}", path.display()))?;
    // Editors end a file with a line's end.
    let end = text.iter().rposition(|byte| !b"\r\n".contains(byte)).map_or(0, |last| last + 1);
    let key = &text[..end];
    match key.len() {
        0 => Err(format!("the key in {} is empty", path.display())),
        1..=LONGEST_KEY => Ok(key.into()),
        length => Err(format!(
            "the key in {} has {length} bytes; TCP MD5 takes {LONGEST_KEY} at most",
            path.display()
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

/// Takes connections of peers at a port, for as long as it lives.
pub(crate) struct Ear {
    port: u16,
    peers: Arc<RwLock<BTreeMap<IpAddr, String>>>,
    sockets: Vec<Socket>,
    tasks: Vec<JoinHandle<()>>,
    /// Peers whose segments are signed.
    signed: BTreeSet<IpAddr>,
}

impl Ear {
    /// Listens at a port, for nobody yet.
    pub(crate) fn open(port: u16, events: &mpsc::UnboundedSender<Event>) -> Result<Self, String> {
        let mut ear = Self {
            port,
            peers: Arc::default(),
            sockets: Vec::new(),
            tasks: Vec::new(),
            signed: BTreeSet::new(),
        };
        for any in [IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from(Ipv6Addr::UNSPECIFIED)] {
            let at = SocketAddr::new(any, port);
            let words = |error: io::Error| format!("BGP cannot be taken at {at}: {error}");
            let socket =
                match Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP)) {
                    // A kernel without IPv6 has no peers of it.
                    Err(_) if any.is_ipv6() => continue,
                    socket => socket.map_err(words)?,
                };
            socket.set_nonblocking(true).map_err(words)?;
            socket.set_reuse_address(true).map_err(words)?;
            if any.is_ipv6() {
                socket.set_only_v6(true).map_err(words)?;
            }
            socket.bind(&at.into()).map_err(words)?;
            socket.listen(16).map_err(words)?;
            ear.sockets.push(socket.try_clone().map_err(words)?);
            let listener = TcpListener::from_std(socket.into()).map_err(words)?;
            let accepting = accept(listener, Arc::clone(&ear.peers), events.clone());
            ear.tasks.push(tokio::spawn(accepting));
        }
        Ok(ear)
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Takes connections of these peers from now on, and of no others; returns why some cannot be taken.
    pub(crate) fn hear(&mut self, speakers: &BTreeMap<String, Speaker>) -> Vec<String> {
        let (mut by_address, mut troubles) = (BTreeMap::new(), Vec::new());
        let mut keys: BTreeMap<IpAddr, Vec<u8>> =
            self.signed.iter().map(|address| (*address, Vec::new())).collect();
        for (name, speaker) in speakers {
            let address = speaker.spec.address;
            match speaker.spec.password.as_ref().map(key).transpose() {
                Ok(key) => {
                    if let Some(key) = key {
                        keys.insert(address, key);
                    }
                    by_address.insert(address, name.clone());
                }
                Err(why) => troubles.push(format!("BGP peer `{name}` cannot connect: {why}")),
            }
        }
        self.signed.clear();
        for (address, key) in keys {
            let of_family = |socket: &&Socket| {
                socket.local_addr().is_ok_and(|at| at.is_ipv4() == address.is_ipv4())
            };
            for socket in self.sockets.iter().filter(of_family) {
                match sign(socket, address, &key) {
                    // One that is to go may have gone.
                    Err(error) if !key.is_empty() => {
                        by_address.remove(&address);
                        troubles.push(format!("sessions with {address} cannot be signed: {error}"));
                    }
                    _ => {}
                }
            }
            if !key.is_empty() {
                self.signed.insert(address);
            }
        }
        *self.peers.write().unwrap_or_else(PoisonError::into_inner) = by_address;
        troubles
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn accept(
    listener: TcpListener,
    peers: Arc<RwLock<BTreeMap<IpAddr, String>>>,
    events: mpsc::UnboundedSender<Event>,
) {
    loop {
        let Ok((stream, from)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let from = from.ip().to_canonical();
        let name = peers.read().unwrap_or_else(PoisonError::into_inner).get(&from).cloned();
        // Strangers are closed at once.
        let Some(name) = name else { continue };
        let _ = stream.set_nodelay(true);
        if events.send(Event::Bgp(name, PeerEvent::Accepted(stream))).is_err() {
            return;
        }
    }
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
