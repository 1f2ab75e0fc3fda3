//! Announcing goes from one process to the next without a word to the outside: groups stay active, sessions
//! of BGP and BFD go on by the same sockets, with the same numbers.
//!
//! From when all is handed over the old process says but what must be repeated: that its groups are active,
//! that its ways are well, that its addresses are here. The next one does the same as soon as it serves; for
//! a moment both say so, and nobody can tell them apart.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime};

use fairway_core::{IpPrefix, Tick};
use fairway_uring::Clock;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::announcer::Announcer;
use super::bfd::Way;
use super::bgp::session::Kept;
use super::run::Event;
use super::segment::Segment;
use super::speakers::Speaker;
use super::vrrp::{Change, Group, GroupKey};

/// How long peers may take to read what they are told before their sessions are handed over.
const FLUSH: Duration = Duration::from_millis(500);

/// What the next process goes on with.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Handed {
    /// Since when what is announced is taken back.
    draining: Option<u64>,
    /// Addresses that Leases say are ours.
    leased: BTreeSet<String>,
    lease_trouble: Option<String>,
    /// Addresses that go when connections to them have had their time, and when that is.
    leaving: Vec<(IpAddr, u64)>,
    /// Groups that are active.
    #[serde(deserialize_with = "understood")]
    groups: Vec<ActiveGroup>,
    /// Where BGP peers connect,
    listen_port: Option<u16>,
    /// and those whose segments are signed there.
    signed: BTreeSet<IpAddr>,
    /// Sessions of BGP that are up.
    #[serde(deserialize_with = "understood")]
    peers: Vec<PeerSession>,
    /// Sessions of BFD that are up, each with its socket.
    #[serde(deserialize_with = "understood")]
    ways: Vec<WatchedWay>,
}

/// What can be read of a list; the rest is another version's, and begins anew.
fn understood<'de, D: Deserializer<'de>, T: DeserializeOwned>(list: D) -> Result<Vec<T>, D::Error> {
    let list = Vec::<serde_json::Value>::deserialize(list)?;
    Ok(list.into_iter().filter_map(|it| serde_json::from_value(it).ok()).collect())
}

/// A group that is active.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ActiveGroup {
    name: String,
    ipv4: bool,
    changes: u64,
}

/// A session of BGP.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PeerSession {
    pub(super) name: String,
    /// What the document said of the peer: with another word the session begins anew.
    pub(super) spec: serde_json::Value,
    pub(super) session: Kept,
    pub(super) changes: u64,
    /// When it came up, seconds since 1970.
    pub(super) up_at: u64,
}

/// A session of BFD.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WatchedWay {
    pub(super) peer: IpAddr,
    pub(super) source: Option<IpAddr>,
    pub(super) multihop: bool,
    /// What the document said of it.
    pub(super) wanted: serde_json::Value,
    /// Our number of it.
    pub(super) number: u32,
    /// The packet in which the other end says what it is.
    pub(super) heard: Vec<u8>,
    pub(super) changes: u64,
}

impl WatchedWay {
    pub(super) fn way(&self) -> Way {
        Way { peer: self.peer, source: self.source, multihop: self.multihop }
    }
}

/// The name of the socket at which peers of a family connect.
fn ear_name(ipv4: bool) -> String {
    format!("announce-bgp-{}", if ipv4 { 4 } else { 6 })
}

fn peer_name(peer: &str) -> String {
    format!("announce-bgp-peer-{peer}")
}

fn bfd_ear_name((ipv4, multihop): (bool, bool)) -> String {
    let (family, hops) = (if ipv4 { 4 } else { 6 }, if multihop { "far" } else { "near" });
    format!("announce-bfd-{family}-{hops}")
}

fn way_name(way: &Way) -> String {
    let source = way.source.map(|ip| ip.to_string()).unwrap_or_default();
    let hops = if way.multihop { "far" } else { "near" };
    format!("announce-bfd-way-{}-{source}-{hops}", way.peer)
}

/// What was handed over, until each part has found its place.
#[derive(Default)]
pub(super) struct Inheritance {
    handed: Handed,
    descriptors: BTreeMap<String, OwnedFd>,
}

impl Inheritance {
    pub(super) fn new(handed: Handed, descriptors: Vec<(String, OwnedFd)>) -> Self {
        Self { handed, descriptors: descriptors.into_iter().collect() }
    }

    /// The sockets at which peers connect to this port, by family (IPv4?), and whose segments are signed
    /// there.
    pub(super) fn ears(&mut self, port: u16) -> (Vec<(bool, OwnedFd)>, BTreeSet<IpAddr>) {
        if self.handed.listen_port != Some(port) {
            return Default::default();
        }
        let found = |ipv4| Some((ipv4, self.descriptors.remove(&ear_name(ipv4))?));
        let sockets = [true, false].into_iter().filter_map(found).collect();
        (sockets, std::mem::take(&mut self.handed.signed))
    }

    /// The session of a peer of which the document says this, and its connection.
    pub(super) fn peer(
        &mut self,
        name: &str,
        spec: &serde_json::Value,
    ) -> Option<(PeerSession, OwnedFd)> {
        let peers = &mut self.handed.peers;
        let at = peers.iter().position(|it| it.name == name && it.spec == *spec)?;
        Some((peers.swap_remove(at), self.descriptors.remove(&peer_name(name))?))
    }

    /// Where packets of BFD of a family (IPv4?) come over one hop, or several.
    pub(super) fn bfd_ear(&mut self, ear: (bool, bool)) -> Option<OwnedFd> {
        self.descriptors.remove(&bfd_ear_name(ear))
    }

    /// The session of a way of which the document says this, and its socket.
    pub(super) fn way(
        &mut self,
        way: &Way,
        wanted: &serde_json::Value,
    ) -> Option<(WatchedWay, OwnedFd)> {
        let ways = &mut self.handed.ways;
        let at = ways.iter().position(|it| it.way() == *way && it.wanted == *wanted)?;
        Some((ways.swap_remove(at), self.descriptors.remove(&way_name(way))?))
    }
}

impl Announcer {
    /// What the process before this one has handed over; before anything begins.
    pub(super) fn inherit(&mut self, handed: Handed, descriptors: Vec<(String, OwnedFd)>) {
        self.draining = handed.draining.map(Tick);
        self.leased = handed.leased.iter().filter_map(|net| net.parse().ok()).collect();
        self.lease_trouble.clone_from(&handed.lease_trouble);
        self.local.extend(handed.leaving.iter().map(|(ip, at)| (*ip, Some(Tick(*at)))));
        self.inheritance = Inheritance::new(handed, descriptors);
    }

    /// Goes on as active where this box was, with the groups that there are. Others may come soon, as long as
    /// nobody else can have taken over.
    pub(super) fn go_on_active(&mut self, now: Tick) {
        let before = std::mem::take(&mut self.inheritance.handed.groups);
        for ActiveGroup { name, ipv4, changes } in before {
            let key: GroupKey = (name, ipv4);
            let spec = self.said.announce.vrrp.iter().find(|spec| spec.name == key.0);
            let Some(patience) = spec.map(|spec| spec.interval * 3) else { continue };
            self.active_before.insert(key, (changes, now.plus(patience)));
        }
        for key in self.groups.keys().cloned().collect::<Vec<_>>() {
            self.go_on_as_active(&key, now);
        }
    }

    /// Goes on as the active one of a group, if this box was that a moment ago.
    pub(super) fn go_on_as_active(&mut self, key: &GroupKey, now: Tick) {
        if !self.begun {
            return;
        }
        let Some((changes, until)) = self.active_before.remove(key) else { return };
        // A box that is drained has given them up already.
        let goes_on = now <= until && self.draining.is_none();
        let Some(group) = self.groups.get_mut(key).filter(|_| goes_on) else { return };
        let actions = group.router().go_on(now);
        group.changes = changes;
        let words = "it was, before the process was replaced";
        group.last = Some(Change { at: SystemTime::now(), words });
        self.follow(key, actions);
        self.moved = true;
    }

    /// What nobody has taken is not of use any more.
    pub(super) fn drop_inheritance(&mut self) {
        for PeerSession { name, .. } in &self.inheritance.handed.peers {
            tracing::info!(peer = name, "BGP: the session before is not gone on with");
        }
        self.inheritance = Inheritance::default();
    }

    /// Gives everything away, and stands still but for what must be repeated.
    pub(super) async fn hand_over(
        &mut self,
        clock: &Clock,
        happened: &mut mpsc::UnboundedReceiver<Event>,
    ) -> (Handed, Vec<(String, OwnedFd)>) {
        if let Ok(Some(ear)) = &mut self.ear {
            ear.pause();
        }
        self.bfd.pause();
        self.speakers.values_mut().for_each(Speaker::pause);
        // Readers end, and what they have read counts.
        tokio::task::yield_now().await;
        let end = clock.now().plus(FLUSH);
        loop {
            let now = clock.now();
            self.repeat(now);
            while let Ok(event) = happened.try_recv() {
                self.take(event, now).await;
            }
            let waits = self.speakers.values().any(|speaker| !speaker.is_flushed());
            if !waits || now >= end {
                break;
            }
            let wait = self.repeat_due().map_or(end, |due| due.min(end)).since(now);
            if let Ok(Some(event)) = timeout(wait, happened.recv()).await {
                self.take(event, now).await;
            }
        }
        self.hands_over = true;
        let mut handed = Handed {
            draining: self.draining.map(|since| since.0),
            leased: self.leased.iter().map(IpPrefix::to_string).collect(),
            lease_trouble: self.lease_trouble.clone(),
            leaving: self.local.iter().filter_map(|(ip, at)| Some((*ip, (*at)?.0))).collect(),
            ..Handed::default()
        };
        let mut named = Vec::new();
        for (key, group) in self.groups.iter().filter(|(_, group)| group.is_active()) {
            let (name, ipv4) = key.clone();
            handed.groups.push(ActiveGroup { name, ipv4, changes: group.changes });
        }
        if let Ok(Some(ear)) = &self.ear {
            handed.listen_port = Some(ear.port());
            handed.signed = ear.signed().clone();
            named.extend(ear.copies().map(|(ipv4, socket)| (ear_name(ipv4), socket)));
        }
        for (name, speaker) in &self.speakers {
            if let Some((session, connection)) = speaker.hand_over() {
                named.push((peer_name(name), connection));
                handed.peers.push(session);
            }
        }
        named.extend(self.bfd.ears().map(|(ear, socket)| (bfd_ear_name(ear), socket)));
        for (watched, socket) in self.bfd.hand_over() {
            named.push((way_name(&watched.way()), socket));
            handed.ways.push(watched);
        }
        (handed, named)
    }

    /// Repeats what must be repeated while another process takes over.
    pub(super) fn repeat(&mut self, now: Tick) {
        let active = self.groups.iter().filter(|(_, group)| group.is_active());
        for key in active.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            let Some(group) = self.groups.get_mut(&key) else { continue };
            let actions = group.router().turn(now);
            self.follow(&key, actions);
        }
        self.bfd.repeat(now);
        self.speakers.values_mut().for_each(|speaker| speaker.repeat(now));
        self.segments.values_mut().for_each(|segment| _ = segment.beat(now));
    }

    /// When [`Announcer::repeat`] is due.
    pub(super) fn repeat_due(&self) -> Option<Tick> {
        let groups = self.groups.values().filter(|group| group.is_active());
        let guards = self.segments.values().filter_map(Segment::beat_due);
        let peers = self.speakers.values().filter_map(Speaker::repeat_due);
        let others = guards.chain(peers).chain(self.bfd.repeat_due());
        groups.filter_map(Group::due).chain(others).min()
    }

    /// Nobody has taken over: goes on as before. The other process `may_have_begun` to speak: what it has
    /// told peers is not known then.
    pub(super) async fn go_on(&mut self, may_have_begun: bool, now: Tick) {
        if !std::mem::take(&mut self.hands_over) {
            return;
        }
        if let Ok(Some(ear)) = &mut self.ear {
            ear.resume(&self.events);
        }
        self.bfd.go_on(now);
        self.speakers.values_mut().for_each(|speaker| speaker.resume(may_have_begun, now));
        // Who waits for another one's silence has not listened.
        for group in self.groups.values_mut().filter(|group| !group.is_active()) {
            group.router().resume(now);
        }
        for (name, event) in std::mem::take(&mut self.kept_back) {
            self.take(Event::Bgp(name, event), now).await;
        }
        (self.stale, self.moved) = (true, true);
        self.links_at = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_version_says_otherwise_begins_anew() {
        let text = r#"{"leased": ["192.0.2.1/32"], "news": 7, "groups": [{"name": "a", "ipv4": true, "changes": 3},
            {"name": "b", "family": 4}], "peers": [{"name": "router"}]}"#;
        let handed: Handed = serde_json::from_str(text).unwrap();
        assert_eq!(handed.leased.len(), 1);
        assert_eq!(handed.groups.iter().map(|it| &*it.name).collect::<Vec<_>>(), ["a"]);
        assert!(handed.peers.is_empty());
    }
}
