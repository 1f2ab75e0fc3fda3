//! A group of VRRP: its virtual routers, one for each family, and what they speak by.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::SystemTime;

use fairway_config::announce::VrrpGroup;
use fairway_config::document::TrackServicesDoc;
use fairway_core::Tick;
use fairway_core::announce::vrrp::{Action, Advertisement, Cause, PROTOCOL, Router, Settings, TTL};
use fairway_uring::{Told, receive_told, tell_hops};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, SockAddr, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket as Readable;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::plan::OfGroup;
use super::run::{Event, readable};
use crate::network::InterfaceState;

/// All virtual routers of a segment (RFC 9568, section 5.1).
const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 18);
const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x12);
/// Largest advertisement: that of 255 addresses of IPv6.
const LARGEST: usize = 8192;
/// Addresses of an advertisement that a frame of 1500 bytes carries, the header of IP taken off.
const FIT_V4: usize = 255;
const FIT_V6: usize = 90;

/// Reasons for which advertisements do not count that are told apart.
const MOST_ODD: usize = 16;

/// Of which family, by the name of its group: a virtual router.
pub(crate) type GroupKey = (String, bool);

/// The last change of a virtual router.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) at: SystemTime,
    pub(crate) words: &'static str,
}

/// A virtual router of this box.
pub(crate) struct Group {
    pub(crate) spec: VrrpGroup,
    is_ipv4: bool,
    router: Router,
    own: IpAddr,
    speaker: Socket,
    reader: JoinHandle<()>,
    number: u32,
    /// What it is active for.
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// Who was heard last as the active one, with which priority.
    pub(crate) heard: Option<(IpAddr, u8)>,
    pub(crate) changes: u64,
    pub(crate) last: Option<Change>,
    /// Advertisements that did not count, by why.
    pub(crate) odd: BTreeMap<String, u64>,
    /// Why it cannot be heard, if it cannot.
    pub(crate) trouble: Option<String>,
}

impl Group {
    /// A virtual router of one family, which begins when it is started; an error says what it lacks.
    pub(crate) fn new(
        spec: &VrrpGroup,
        is_ipv4: bool,
        interface: &InterfaceState,
        events: mpsc::UnboundedSender<Event>,
    ) -> Result<Self, String> {
        let own = match (spec.source, is_ipv4) {
            (Some(source), _) if source.is_ipv4() == is_ipv4 => Some(source),
            (_, true) => interface.ipv4.map(IpAddr::V4),
            (_, false) => interface.link_local.map(IpAddr::V6),
        };
        let name = &spec.interface;
        let family = if is_ipv4 { "IPv4" } else { "IPv6" };
        if !spec.peers.is_empty() && !spec.peers.iter().any(|ip| ip.is_ipv4() == is_ipv4) {
            return Err(format!(
                "its {family} addresses are on no box: `unicastPeers` has no {family} address of another"
            ));
        }
        let own = own.ok_or_else(|| match is_ipv4 {
            true => format!("interface `{name}` has no IPv4 address to speak from"),
            false => format!("interface `{name}` has no link-local address to speak from"),
        })?;
        let number = interface.number;
        let words = |error: io::Error| {
            let remedy = match error.kind() {
                io::ErrorKind::PermissionDenied => "; it needs CAP_NET_RAW",
                _ => "",
            };
            format!("VRRP cannot be spoken on `{name}` from {own}: {error}{remedy}")
        };
        let speaker = speaker(spec, own, number).map_err(words)?;
        let socket = open(spec, is_ipv4, number).and_then(readable).map_err(words)?;
        let key = (spec.name.clone(), is_ipv4);
        let reader = tokio::spawn(read(socket, key, events));
        Ok(Self {
            spec: spec.clone(),
            is_ipv4,
            router: Router::new(settings(spec), own),
            own,
            speaker,
            reader,
            number,
            addresses: BTreeSet::new(),
            heard: None,
            changes: 0,
            last: None,
            odd: BTreeMap::new(),
            trouble: None,
        })
    }

    /// Whether it is still what the document and the interface say.
    pub(crate) fn is_of(&self, spec: &VrrpGroup, interface: &InterfaceState) -> bool {
        let own_is_there = match (self.spec.source, self.own) {
            (Some(source), own) if source == own => true,
            (_, IpAddr::V4(own)) => interface.ipv4 == Some(own),
            (_, IpAddr::V6(own)) => interface.link_local == Some(own),
        };
        let place = |spec: &VrrpGroup| {
            (spec.interface.clone(), spec.id, spec.source, spec.peers.is_empty(), spec.interval)
        };
        place(&self.spec) == place(spec) && self.number == interface.number && own_is_there
    }

    /// Is set as the document has it now; what [`Group::is_of`] asks is the same. Who is active stays so.
    pub(crate) fn adopt(&mut self, spec: &VrrpGroup) {
        if self.spec != *spec {
            self.router.configure(&settings(spec));
            self.spec = spec.clone();
        }
    }

    /// The virtual router.
    pub(crate) fn router(&mut self) -> &mut Router {
        &mut self.router
    }

    /// Whether the addresses are here.
    pub(crate) fn is_active(&self) -> bool {
        self.router.is_active()
    }

    /// Its priority now.
    pub(crate) fn priority(&self) -> u8 {
        self.router.priority()
    }

    /// When it is due.
    pub(crate) fn due(&self) -> Option<Tick> {
        self.router.due()
    }

    /// Does what is due, and what follows from how things stand: `lost` interfaces are down.
    pub(crate) fn turn(&mut self, of: &OfGroup, lost: bool, goes: bool, now: Tick) -> Vec<Action> {
        let is_ours = |ip: &IpAddr| ip.is_ipv4() == self.is_ipv4;
        let hosts = of.nets.iter().filter(|net| net.is_host()).map(|net| net.address());
        self.addresses = hosts.filter(is_ours).collect();
        let mut actions = Vec::new();
        if goes {
            return self.router.stop();
        }
        let (priority, why) = self.judged(of, lost);
        if priority != self.router.priority() {
            let (group, before) = (&self.spec.name, self.router.priority());
            tracing::info!(group, before, priority, "priority changed: {why}");
        }
        actions.extend(self.router.set_priority(priority, now));
        actions.extend(self.router.start(now));
        actions.extend(self.router.turn(now));
        actions
    }

    /// Its priority, by what it tracks, and why.
    fn judged(&self, of: &OfGroup, lost: bool) -> (u8, &'static str) {
        let (all, any) = (of.failed == of.services, of.failed > 0);
        let why = match self.spec.track_services {
            _ if lost => "a tracked interface is down",
            TrackServicesDoc::All if all => "no service has a backend that takes flows",
            TrackServicesDoc::Any if any => "a service has no backend that takes flows",
            _ => return (self.spec.priority, "all that is tracked is well"),
        };
        (self.spec.priority.saturating_sub(self.spec.weight).max(1), why)
    }

    /// Takes note of a change; in words for people.
    pub(crate) fn note(&mut self, cause: Cause) {
        self.changes += 1;
        self.last = Some(Change { at: SystemTime::now(), words: words(cause) });
    }

    /// Something has come for the virtual routers of the segment.
    pub(crate) fn hear(&mut self, bytes: &[u8], told: &Told, now: Tick) -> Vec<Action> {
        let from = told.from.ip();
        let Some(to) = told.to else { return Vec::new() };
        let bytes = match self.is_ipv4 {
            // Raw sockets of IPv4 have the header, too.
            true => bytes.get(usize::from(bytes.first().map_or(0, |it| it & 0x0f)) * 4..),
            false => Some(bytes),
        };
        // Others of the segment, and ourselves.
        let is_ours = |bytes: &&[u8]| bytes.get(1) == Some(&self.spec.id) && from != self.own;
        let Some(bytes) = bytes.filter(is_ours) else { return Vec::new() };
        if !self.spec.peers.is_empty() && !self.spec.peers.contains(&from) {
            self.note_odd("it is of no peer", from);
            return Vec::new();
        }
        // By unicast it may come through routers.
        let hops = if self.spec.peers.is_empty() { told.hops.unwrap_or(0) } else { TTL };
        match Advertisement::parse(bytes, (from, to), hops) {
            Ok(heard) => {
                // keepalived does not hear a box that has others, and says so; nobody else would.
                let theirs: BTreeSet<IpAddr> = heard.addresses.iter().copied().collect();
                if theirs != self.addresses && self.addresses.len() <= FIT_V6 {
                    self.note_odd("its addresses are not those of this group here", from);
                }
                if heard.priority > 0 {
                    self.heard = Some((from, heard.priority));
                }
                self.router.hear(&heard, from, now)
            }
            Err(why) => {
                self.note_odd(&why.to_string(), from);
                Vec::new()
            }
        }
    }

    /// Counts what does not count; a stranger may send any number of it.
    fn note_odd(&mut self, why: &str, from: IpAddr) {
        if !self.odd.contains_key(why) && self.odd.len() < MOST_ODD {
            let group = &self.spec.name;
            tracing::warn!(group, %from, "an advertisement of VRRP is odd: {why}");
            self.odd.insert(why.into(), 0);
        }
        let place = if self.odd.contains_key(why) { why } else { "other" };
        *self.odd.entry(place.into()).or_default() += 1;
    }

    /// Says that it is active, with a priority.
    pub(crate) fn advertise(&mut self, priority: u8) {
        let most = if self.is_ipv4 { FIT_V4 } else { FIT_V6 };
        let mut addresses: Vec<IpAddr> = self.addresses.iter().copied().take(most).collect();
        // The first of IPv6 is of the link, if there is one (RFC 9568, section 5.2.9).
        addresses.sort_by_key(|ip| match ip {
            IpAddr::V6(ip) => (!ip.is_unicast_link_local(), IpAddr::V6(*ip)),
            ip => (false, *ip),
        });
        let said =
            Advertisement { id: self.spec.id, priority, interval: self.spec.interval, addresses };
        let all = match self.is_ipv4 {
            true => IpAddr::V4(GROUP_V4),
            false => IpAddr::V6(GROUP_V6),
        };
        let peers = self.spec.peers.iter().filter(|ip| ip.is_ipv4() == self.is_ipv4).copied();
        let mut to: Vec<IpAddr> = peers.collect();
        if self.spec.peers.is_empty() {
            to.push(all);
        }
        let mut trouble = None;
        for to in to {
            let bytes = said.bytes(self.own, to);
            let at = match to {
                IpAddr::V6(ip) => SocketAddrV6::new(ip, 0, 0, self.number).into(),
                ip => SocketAddr::new(ip, 0),
            };
            if let Err(error) = self.speaker.send_to(&bytes, &SockAddr::from(at)) {
                trouble = Some(format!("{to} is not told: {error}"));
            }
        }
        if let Some(why) = trouble.as_ref().filter(|_| self.trouble != trouble) {
            tracing::warn!(group = self.spec.name, "{why}");
        }
        self.trouble = trouble;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

fn settings(spec: &VrrpGroup) -> Settings {
    Settings {
        priority: spec.priority,
        interval: spec.interval,
        preempts: spec.preempts,
        preempt_delay: spec.preempt_delay,
    }
}

/// A cause for people.
pub(crate) fn words(cause: Cause) -> &'static str {
    match cause {
        Cause::Silence => "nothing was heard of an active box",
        Cause::Left => "the active box has left",
        Cause::Preempted => "the active box was of lower priority",
        Cause::Owner => "it is the owner",
        Cause::Outranked => "a box of higher priority is active",
        Cause::Stopped => "it takes no part any more: drained, stopped, or configured otherwise",
        Cause::Stalled => "this box stood still",
    }
}

fn raw(spec: &VrrpGroup, is_ipv4: bool) -> io::Result<Socket> {
    let domain = if is_ipv4 { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(i32::from(PROTOCOL))))?;
    socket.set_nonblocking(true)?;
    socket.bind_device(Some(spec.interface.as_bytes()))?;
    Ok(socket)
}

/// Hears what is for the virtual routers of a segment, or for this box.
fn open(spec: &VrrpGroup, is_ipv4: bool, number: u32) -> io::Result<Socket> {
    let socket = raw(spec, is_ipv4)?;
    tell_hops(&socket, !is_ipv4)?;
    match (spec.peers.is_empty(), is_ipv4) {
        (false, _) => {}
        (true, true) => {
            socket.join_multicast_v4_n(&GROUP_V4, &InterfaceIndexOrAddress::Index(number))?;
        }
        (true, false) => socket.join_multicast_v6(&GROUP_V6, number)?,
    }
    Ok(socket)
}

/// Speaks from `own`. A socket of its own: one that has an address hears no groups.
fn speaker(spec: &VrrpGroup, own: IpAddr, number: u32) -> io::Result<Socket> {
    let socket = raw(spec, own.is_ipv4())?;
    // What comes there is not read.
    socket.set_recv_buffer_size(0)?;
    match own {
        IpAddr::V4(_) => {
            socket.set_ttl_v4(TTL.into())?;
            socket.set_multicast_ttl_v4(TTL.into())?;
            socket.set_multicast_loop_v4(false)?;
            socket.bind(&SocketAddr::new(own, 0).into())?;
        }
        IpAddr::V6(own) => {
            socket.set_unicast_hops_v6(TTL.into())?;
            socket.set_multicast_hops_v6(TTL.into())?;
            socket.set_multicast_loop_v6(false)?;
            socket.set_multicast_if_v6(number)?;
            socket.bind(&SocketAddr::from(SocketAddrV6::new(own, 0, 0, number)).into())?;
        }
    }
    Ok(socket)
}

async fn read(socket: Readable, key: GroupKey, events: mpsc::UnboundedSender<Event>) {
    let mut bytes = vec![0; LARGEST];
    loop {
        if socket.readable().await.is_err() {
            return;
        }
        match socket.try_io(Interest::READABLE, || receive_told(&socket, &mut bytes)) {
            Ok(told) => {
                let event = Event::Vrrp(key.clone(), bytes[..told.length].into(), told);
                if events.send(event).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                tracing::debug!(group = key.0, "VRRP is not heard: {error}");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
            Err(_) => {}
        }
    }
}
