//! An interface that has addresses, or answers for them: what is added to it, who is told.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv6Addr, UdpSocket};
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};
use std::time::Duration;

use fairway_core::Tick;
use fairway_core::announce::neighbor::{self, LONGEST, announcement, answer, hear};
use fairway_uring::{Neighbors, neighbors, receive_frame, send_frames};
use tokio::io::Interest;
use tokio::net::UdpSocket as Readable;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::guard::Guard;
use super::run::{Event, readable};
use crate::network::{Added, InterfaceState, Interfaces};

/// After the first word of a new address, the times until the next ones: a frame may be lost.
const ANNOUNCE: [Duration; 3] =
    [Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2)];
/// From one try to the next, of what could not be done.
const AGAIN: Duration = Duration::from_secs(1);
/// After an address was taken, how long another station that names it is the one that had it before.
const HANDOVER: Duration = Duration::from_secs(4);
/// How long it is told that another station has one of our addresses.
const TOLD: Duration = Duration::from_secs(60);
/// How often addresses are looked for that somebody else may have taken away.
const VERIFY: Duration = Duration::from_secs(5);

/// How an address is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Manner {
    /// Somebody else answers for it; the segment is told that it is here.
    Tell,
    /// Stations that ask for it are answered.
    Answer,
    /// It is added to the interface.
    Add,
    /// The same; it goes with this process, however that ends.
    AddGuarded,
}

impl Manner {
    fn adds(self) -> bool {
        matches!(self, Self::Add | Self::AddGuarded)
    }
}

/// An address that is here.
#[derive(Debug, Clone, Copy)]
struct Held {
    manner: Manner,
    since: Tick,
    /// How often the segment was told, and when it is again; none when that was enough.
    told: Option<(usize, Tick)>,
}

/// Another station that says it has one of our addresses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Duplicate {
    pub(crate) station: [u8; 6],
    until: Tick,
}

/// An interface.
pub(crate) struct Segment {
    pub(crate) name: String,
    kernel: Interfaces,
    state: Result<InterfaceState, String>,
    held: BTreeMap<IpAddr, Held>,
    /// Those that were added here; an address that was there before is left there.
    added: BTreeSet<IpAddr>,
    /// Those that a process before this one has left behind: of no use to anybody else.
    left: BTreeSet<IpAddr>,
    /// Those that the kernel refused, and what it said.
    failed: BTreeMap<IpAddr, String>,
    /// Those that are to be taken away, and the kernel has not done it.
    stuck: BTreeSet<IpAddr>,
    /// The interface has come anew, or carries again.
    renewed: bool,
    /// Those that nobody wants any more, and until when connections to them may go on.
    leaving: BTreeMap<IpAddr, Tick>,
    /// Why the segment could not be told last.
    untold: Option<String>,
    duplicates: BTreeMap<IpAddr, Duplicate>,
    sockets: Vec<(Arc<Readable>, JoinHandle<()>)>,
    /// Addresses that are here, for those who read: what is of others is not worth an event.
    known: Arc<RwLock<BTreeSet<IpAddr>>>,
    events: mpsc::UnboundedSender<Event>,
    /// By which groups of IPv6 are heard that answered addresses are asked for in.
    groups: Option<UdpSocket>,
    guard: Option<Guard>,
    /// How long this process may stand still before guarded addresses go.
    patience: Duration,
    again_at: Tick,
    verify_at: Tick,
}

impl Segment {
    /// An interface, which need not be there yet.
    pub(crate) async fn new(
        name: &str,
        kernel: Interfaces,
        events: mpsc::UnboundedSender<Event>,
    ) -> Self {
        let state = kernel.look(name).await;
        let left = state.as_ref().map(|state| state.ours.clone()).unwrap_or_default();
        Self {
            name: name.into(),
            kernel,
            state,
            held: BTreeMap::new(),
            added: BTreeSet::new(),
            left,
            failed: BTreeMap::new(),
            stuck: BTreeSet::new(),
            renewed: false,
            leaving: BTreeMap::new(),
            untold: None,
            duplicates: BTreeMap::new(),
            sockets: Vec::new(),
            known: Arc::default(),
            events,
            groups: None,
            guard: None,
            patience: Duration::from_secs(2),
            again_at: Tick(0),
            verify_at: Tick(0),
        }
    }

    /// What there is of it.
    pub(crate) fn state(&self) -> Option<&InterfaceState> {
        self.state.as_ref().ok()
    }

    /// How long this process may stand still before guarded addresses go.
    pub(crate) fn set_patience(&mut self, patience: Duration) {
        if std::mem::replace(&mut self.patience, patience) != patience {
            self.guard = None;
        }
    }

    /// Whether an address is here.
    pub(crate) fn has(&self, ip: IpAddr) -> bool {
        self.held.contains_key(&ip)
    }

    /// Addresses that are here.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.held.keys().copied()
    }

    /// What the kernel refused, and what it said.
    pub(crate) fn failed(&self) -> &BTreeMap<IpAddr, String> {
        &self.failed
    }

    /// Other stations that have our addresses.
    pub(crate) fn duplicates(&self) -> &BTreeMap<IpAddr, Duplicate> {
        &self.duplicates
    }

    /// What keeps it from being of use, in words.
    pub(crate) fn trouble(&self) -> Option<String> {
        match &self.state {
            Err(why) => Some(why.clone()),
            Ok(state) if !state.is_up => Some(format!("interface `{}` is down", self.name)),
            Ok(_) => {
                self.untold.as_ref().map(|why| format!("`{}` cannot be told: {why}", self.name))
            }
        }
    }

    /// Has an address from now on, in this manner.
    pub(crate) async fn hold(&mut self, ip: IpAddr, manner: Manner, now: Tick) {
        let before = self.held.get(&ip).map(|held| held.manner);
        self.leaving.remove(&ip);
        if before == Some(manner) {
            return;
        }
        if before.is_some_and(|before| before.adds() != manner.adds()) {
            self.take_away(ip).await;
        }
        // The segment is told when the address is there.
        self.held.insert(ip, Held { manner, since: now, told: Some((0, now)) });
        self.stuck.remove(&ip);
        self.known().insert(ip);
        if manner.adds() {
            self.add(ip).await;
        } else if self.left.remove(&ip) {
            self.added.insert(ip);
            self.take_away(ip).await;
        }
        if manner == Manner::Answer {
            self.join(ip);
        }
    }

    /// Has it no longer: at once, or from a time on until which connections to it may go on.
    pub(crate) async fn release(&mut self, ip: IpAddr, at: Option<Tick>) {
        match at {
            Some(at) if self.held.contains_key(&ip) => _ = self.leaving.insert(ip, at),
            _ => self.forget(ip).await,
        }
    }

    async fn forget(&mut self, ip: IpAddr) {
        self.leaving.remove(&ip);
        self.failed.remove(&ip);
        self.duplicates.remove(&ip);
        self.known().remove(&ip);
        if self.held.remove(&ip).is_some() {
            self.take_away(ip).await;
        }
    }

    fn known(&self) -> RwLockWriteGuard<'_, BTreeSet<IpAddr>> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }

    async fn add(&mut self, ip: IpAddr) {
        let Some(number) = self.state().map(|state| state.number) else {
            self.failed.insert(ip, self.trouble().unwrap_or_default());
            return;
        };
        let again = self.failed.remove(&ip).is_some();
        let interface = &self.name;
        match self.kernel.add(number, ip).await {
            Ok(Added::New) => {
                self.added.insert(ip);
                tracing::info!(%ip, interface, "address added");
            }
            // By a process before this one,
            Ok(Added::There) if self.left.remove(&ip) => _ = self.added.insert(ip),
            Ok(Added::There) => {
                // or by us with an answer that was late.
                let marked = self.kernel.look(interface).await;
                if marked.is_ok_and(|state| state.ours.contains(&ip)) {
                    self.added.insert(ip);
                }
            }
            Err(why) => {
                if !again {
                    tracing::error!(%ip, interface, "cannot add address: {why}; trying again");
                }
                self.failed.insert(ip, why);
            }
        }
        self.guard(ip, number);
    }

    /// Has an address that was added here go with this process, if it is to.
    fn guard(&mut self, ip: IpAddr, number: u32) {
        let is_guarded = self.held.get(&ip).is_some_and(|it| it.manner == Manner::AddGuarded);
        if !is_guarded || !self.added.contains(&ip) {
            return;
        }
        let interface = &self.name;
        let guard = self.guard.take().or_else(|| {
            let started = Guard::start(number, self.patience);
            let words = |error: &io::Error| {
                tracing::warn!(interface, "addresses are not guarded: {error}");
            };
            started.inspect_err(words).ok()
        });
        self.guard = guard.and_then(|guard| guard.hold(ip));
    }

    async fn take_away(&mut self, ip: IpAddr) {
        self.guard = self.guard.take().and_then(|guard| guard.release(ip));
        if !self.added.remove(&ip) {
            return;
        }
        let interface = &self.name;
        let Some(number) = self.state().map(|state| state.number) else { return };
        match self.kernel.remove(number, ip).await {
            Ok(()) => tracing::info!(%ip, interface, "address removed"),
            Err(why) => {
                tracing::warn!(%ip, interface, "cannot remove address: {why}; trying again");
                self.stuck.insert(ip);
            }
        }
    }

    /// Looks at the interface again: it may have come, gone, or changed.
    pub(crate) async fn look(&mut self) {
        let state = self.kernel.look(&self.name).await;
        let is_another = |a: &InterfaceState, b: &InterfaceState| a.number != b.number;
        let comes = match (&self.state, &state) {
            (Ok(before), Ok(after)) => is_another(before, after),
            (Err(_), Ok(_)) => true,
            _ => false,
        };
        let carries =
            |state: &Result<InterfaceState, String>| state.as_ref().is_ok_and(|state| state.is_up);
        self.renewed |= comes || (!carries(&self.state) && carries(&state));
        if comes {
            self.sockets.iter().for_each(|(_, task)| task.abort());
            self.sockets.clear();
            (self.groups, self.guard) = (None, None);
            // What was on it went with it.
            self.added.clear();
            self.stuck.clear();
        }
        self.state = state;
    }

    /// Takes away what a process before this one has left behind and nobody wants, once connections to it
    /// have had their time.
    pub(crate) async fn take_over(&mut self, ends: &BTreeMap<IpAddr, Option<Tick>>, now: Tick) {
        for ip in std::mem::take(&mut self.left) {
            if self.held.contains_key(&ip) {
                continue;
            }
            self.added.insert(ip);
            match ends.get(&ip).copied().flatten().filter(|at| *at > now) {
                Some(at) => {
                    self.held.insert(ip, Held { manner: Manner::Add, since: now, told: None });
                    self.leaving.insert(ip, at);
                }
                None => self.take_away(ip).await,
            }
        }
    }

    /// Does what is due; returns when it is again.
    pub(crate) async fn tend(&mut self, now: Tick) -> Option<Tick> {
        if now >= self.verify_at {
            self.verify_at = now.plus(VERIFY);
            self.look().await;
            self.find_lost().await;
        }
        if std::mem::take(&mut self.renewed) {
            self.renew(now).await;
        }
        if now >= self.again_at {
            self.again_at = now.plus(AGAIN);
            if !self.failed.is_empty() {
                self.look().await;
            }
            for ip in self.failed.keys().copied().collect::<Vec<_>>() {
                self.add(ip).await;
            }
            for ip in std::mem::take(&mut self.stuck) {
                self.added.insert(ip);
                self.take_away(ip).await;
            }
            self.listen();
        }
        let due = self.leaving.iter().filter(|(_, at)| **at <= now).map(|(ip, _)| *ip);
        for ip in due.collect::<Vec<_>>() {
            self.forget(ip).await;
        }
        self.duplicates.retain(|_, duplicate| duplicate.until > now);
        self.tell(now);
        let beat_at = self.beat(now);
        let told = self.held.values().filter_map(|held| Some(held.told?.1));
        let waits = !self.failed.is_empty() || !self.stuck.is_empty() || self.renewed;
        let waits = waits.then_some(self.again_at);
        let leaving = self.leaving.values().copied();
        told.chain(leaving).chain(waits).chain(beat_at).chain([self.verify_at]).min()
    }

    /// Tells the guard that all is well, when that is due; returns when it is again.
    pub(crate) fn beat(&mut self, now: Tick) -> Option<Tick> {
        if let Some(guard) = self.guard.take() {
            self.guard = guard.beat(now);
            if self.guard.is_none() {
                tracing::warn!(interface = self.name, "the guard of addresses has ended");
            }
        }
        if self.guard.is_none() {
            self.guard_again();
        }
        self.beat_due()
    }

    /// When the guard is to hear of us.
    pub(crate) fn beat_due(&self) -> Option<Tick> {
        self.guard.as_ref().map(Guard::due)
    }

    /// The interface has come, or carries again: it is to have, and to know, all anew.
    async fn renew(&mut self, now: Tick) {
        for held in self.held.values_mut() {
            held.told = Some((0, now));
        }
        let there = self.state().map(|state| state.ours.clone()).unwrap_or_default();
        for (ip, held) in self.held.clone() {
            match held.manner {
                Manner::Answer => self.join(ip),
                manner if manner.adds() && !there.contains(&ip) => self.add(ip).await,
                _ => {}
            }
        }
        self.again_at = now;
    }

    /// Addresses may go while they are in use.
    pub(crate) async fn find_lost(&mut self) {
        let Some(state) = self.state() else { return };
        let there = state.ours.clone();
        let lost = self.added.iter().filter(|ip| !there.contains(ip)).copied();
        for ip in lost.collect::<Vec<_>>() {
            tracing::warn!(%ip, interface = self.name, "somebody has removed the address");
            self.added.remove(&ip);
            if self.held.get(&ip).is_some_and(|held| held.manner.adds()) {
                self.add(ip).await;
            }
        }
    }

    fn guard_again(&mut self) {
        let guarded =
            |(ip, held): (&IpAddr, &Held)| (held.manner == Manner::AddGuarded).then_some(*ip);
        let Some(number) = self.state().map(|state| state.number) else { return };
        for ip in self.held.iter().filter_map(guarded).collect::<Vec<_>>() {
            self.guard(ip, number);
        }
    }

    /// Listens for neighbours while there is something to answer, or to watch.
    fn listen(&mut self) {
        let Some(state) = self.state() else { return };
        let is_wanted = state.station.is_some() && !self.held.is_empty();
        if self.sockets.is_empty() != is_wanted {
            return;
        }
        if !is_wanted {
            self.sockets.iter().for_each(|(_, task)| task.abort());
            return self.sockets.clear();
        }
        for which in [Neighbors::Arp, Neighbors::Ndp] {
            match neighbors(&self.name, which).and_then(readable) {
                Ok(socket) => {
                    let socket = Arc::new(socket);
                    let (name, events) = (self.name.clone(), self.events.clone());
                    let known = Arc::clone(&self.known);
                    let task = tokio::spawn(read(Arc::clone(&socket), (name, known), events));
                    self.sockets.push((socket, task));
                }
                Err(error) => self.untold = Some(format!("no socket for neighbours: {error}")),
            }
        }
    }

    /// Hears in which group of IPv6 an address is asked for.
    fn join(&mut self, ip: IpAddr) {
        let (IpAddr::V6(ip), Some(state)) = (ip, self.state()) else { return };
        let number = state.number;
        if self.groups.is_none() {
            self.groups = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).ok();
        }
        let [.., a, b, c] = ip.octets();
        let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]);
        if let Some(socket) = &self.groups {
            // It may be a member already; leaving is for the end of the socket.
            let _ = socket.join_multicast_v6(&group, number);
        }
    }

    /// A frame of neighbours has come.
    pub(crate) fn heard(&mut self, frame: &[u8], now: Tick) {
        let Some(station) = self.state().and_then(|state| state.station) else { return };
        let neighbor::Heard { claim, question } = hear(frame);
        let answers = |ip: &IpAddr| {
            let held = self.held.get(ip).filter(|held| held.manner == Manner::Answer);
            held.is_some() && !self.leaving.contains_key(ip)
        };
        if let Some(question) = question.filter(|question| answers(&question.ip)) {
            let frame = answer(&question, station);
            if let Some((socket, _)) = self.sockets.first() {
                // Who gets no answer asks again.
                let _ = rustix::io::write(socket, &frame);
            }
        }
        let Some((ip, theirs)) = claim.filter(|(_, theirs)| *theirs != station) else { return };
        let Some(held) = self.held.get(&ip) else { return };
        if now.since(held.since) < HANDOVER || self.leaving.contains_key(&ip) {
            return;
        }
        let duplicate = Duplicate { station: theirs, until: now.plus(TOLD) };
        if self.duplicates.insert(ip, duplicate).is_none() {
            let (interface, theirs) = (&self.name, mac(theirs));
            tracing::error!(%ip, interface, station = theirs, "another station has our address, too");
            // Whoever has just heard of the other one is to know of us.
            if let Some(held) = self.held.get_mut(&ip) {
                held.told = Some((0, now));
            }
        }
    }

    /// Tells the segment of new addresses: whoever knows another station for one of them is wrong.
    fn tell(&mut self, now: Tick) {
        let is_due = |(ip, held): (&IpAddr, &Held)| {
            let due = held.told.is_some_and(|(_, at)| at <= now);
            (due && !self.failed.contains_key(ip)).then_some(*ip)
        };
        let due: Vec<IpAddr> = self.held.iter().filter_map(is_due).collect();
        if due.is_empty() {
            return;
        }
        let told = match self.state() {
            // Nobody else hears what is said there.
            Some(InterfaceState { station: None, .. }) => Ok(()),
            Some(InterfaceState { station: Some(station), is_up: true, .. }) => {
                let frames: Vec<_> = due.iter().map(|ip| announcement(*ip, *station)).collect();
                send_frames(&self.name, &frames).map_err(|error| error.to_string())
            }
            _ => Err("it is down".into()),
        };
        let failed = told.err();
        if let Some(why) = failed.as_ref().filter(|why| self.untold.as_ref() != Some(why)) {
            let (interface, addresses) = (&self.name, due.len());
            tracing::warn!(interface, addresses, "cannot tell the segment of new addresses: {why}");
        }
        for ip in due {
            let Some(held) = self.held.get_mut(&ip) else { continue };
            let times = held.told.map_or(0, |(times, _)| times);
            held.told = match ANNOUNCE.get(times) {
                // The interface may not be up yet.
                _ if failed.is_some() => Some((times, now.plus(AGAIN))),
                Some(wait) => Some((times + 1, now.plus(*wait))),
                None => None,
            };
        }
        self.untold = failed;
    }

    /// Takes away what is here.
    pub(crate) async fn clean_up(&mut self) {
        for ip in self.held.keys().copied().collect::<Vec<_>>() {
            self.forget(ip).await;
        }
        self.sockets.iter().for_each(|(_, task)| task.abort());
    }
}

/// A station's address as people write it.
pub(crate) fn mac(station: [u8; 6]) -> String {
    station.map(|byte| format!("{byte:02x}")).join(":")
}

/// Reads frames for as long as somebody hears of them.
async fn read(
    socket: Arc<Readable>,
    (interface, known): (String, Arc<RwLock<BTreeSet<IpAddr>>>),
    events: mpsc::UnboundedSender<Event>,
) {
    let mut frame = [0; LONGEST];
    loop {
        if socket.readable().await.is_err() {
            return;
        }
        match socket.try_io(Interest::READABLE, || receive_frame(&*socket, &mut frame)) {
            Ok(length) => {
                let neighbor::Heard { claim, question } = hear(&frame[..length]);
                let named = [claim.map(|(ip, _)| ip), question.map(|question| question.ip)];
                let known = known.read().unwrap_or_else(PoisonError::into_inner);
                let concerns_us = named.iter().flatten().any(|ip| known.contains(ip));
                drop(known);
                if !concerns_us {
                    continue;
                }
                let event = Event::Frame(interface.clone(), frame[..length].into());
                if events.send(event).is_err() {
                    return;
                }
            }
            // The interface is down; it may come again.
            Err(error) if error.kind() == io::ErrorKind::NetworkDown => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::debug!(interface, "neighbours are not heard: {error}");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}
