//! What the thread knows and does: from what is wanted and what happens to who has which address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use fairway_config::ServiceKey;
use fairway_core::{IpPrefix, Tick};
use fairway_uring::Clock;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::bfd::Sessions;
use super::plan::{Plan, Said, Standing};
use super::run::{Event, Fixed, Input};
use super::segment::Segment;
use super::sharing::Shares;
use super::speakers::{Ear, Speaker};
use super::vrrp::{Group, GroupKey};
use crate::network::{AllAddresses, Interfaces};

/// The least time between two looks at interfaces.
const LINKS: Duration = Duration::from_millis(50);
/// How long routers are told to prefer other ways before they are told nothing, unless the document says.
const GRACEFUL: Duration = Duration::from_secs(2);
/// Whoever stood still for so long may have lost its Leases.
const LEASED: Duration = Duration::from_secs(4);
/// How long the end waits for peers to take what they are told.
const PARTING: Duration = Duration::from_millis(500);

/// All that is announced by this box.
pub(crate) struct Announcer {
    pub(super) fixed: Fixed,
    pub(super) kernel: Interfaces,
    pub(super) events: mpsc::UnboundedSender<Event>,
    pub(super) said: Said,
    services: BTreeMap<ServiceKey, Standing>,
    pub(super) plan: Plan,
    /// Addresses that connections are accepted at, and from when on no longer.
    pub(super) local: BTreeMap<IpAddr, Option<Tick>>,
    pub(super) segments: BTreeMap<String, Segment>,
    pub(super) groups: BTreeMap<GroupKey, Group>,
    /// Why virtual routers do not take part.
    pub(super) group_troubles: BTreeMap<GroupKey, String>,
    /// Whether interfaces that groups track are up.
    pub(super) tracked: BTreeMap<String, bool>,
    pub(super) speakers: BTreeMap<String, Speaker>,
    /// Where peers may connect, or why they cannot.
    pub(super) ear: Result<Option<Ear>, String>,
    pub(super) bfd: Sessions,
    pub(super) addresses: AllAddresses,
    /// Shared addresses that Leases say are ours.
    leased: BTreeSet<IpPrefix>,
    /// Since when what is announced is taken back.
    pub(super) draining: Option<Tick>,
    /// The first of all has come.
    pub(super) begun: bool,
    /// The plan is to be made anew.
    stale: bool,
    /// Interfaces have changed, and when they are looked at.
    links_at: Option<Tick>,
    looked_at: Tick,
    /// Who has which address is to be settled anew.
    pub(super) moved: bool,
    last: Tick,
    /// When segments are due.
    segments_due: Option<Tick>,
}

impl Announcer {
    pub(super) fn new(
        fixed: Fixed,
        kernel: Interfaces,
        events: mpsc::UnboundedSender<Event>,
    ) -> Self {
        Self {
            fixed,
            kernel,
            bfd: Sessions::new(events.clone()),
            events,
            said: Said::default(),
            services: BTreeMap::new(),
            plan: Plan::default(),
            local: BTreeMap::new(),
            segments: BTreeMap::new(),
            groups: BTreeMap::new(),
            group_troubles: BTreeMap::new(),
            tracked: BTreeMap::new(),
            speakers: BTreeMap::new(),
            ear: Ok(None),
            addresses: AllAddresses::default(),
            leased: BTreeSet::new(),
            draining: None,
            begun: false,
            stale: true,
            links_at: Some(Tick(0)),
            looked_at: Tick(0),
            moved: true,
            last: Tick(u64::MAX),
            segments_due: None,
        }
    }

    /// Takes what it is told.
    pub(super) async fn hear(&mut self, input: Input, now: Tick) {
        match input {
            Input::Said(said) => {
                if self.said != *said {
                    self.said = *said;
                    self.stale = true;
                    // Segments and peers may be new.
                    self.links_at.get_or_insert(now);
                }
            }
            Input::Services(changes) => {
                for (key, standing) in changes {
                    match standing {
                        Some(standing) => _ = self.services.insert(key, standing),
                        None => _ = self.services.remove(&key),
                    }
                }
                self.stale = true;
            }
            Input::Local(changes) => {
                for (ip, at) in changes {
                    self.local.insert(ip, at);
                }
                self.moved = true;
            }
            Input::Begun => {
                self.settle(now).await;
                self.begun = true;
                for segment in self.segments.values_mut() {
                    segment.take_over().await;
                }
                self.stale = true;
            }
            Input::Leased(leased) => {
                self.leased = leased;
                self.moved = true;
            }
            Input::Drain(drains) => {
                if drains != self.draining.is_some() {
                    let what = if drains { "taken back" } else { "announced again" };
                    tracing::info!("addresses are {what}");
                    self.draining = drains.then_some(now);
                    self.moved = true;
                }
            }
            Input::Sync(_) | Input::View(_) | Input::Stop(_) => {}
        }
    }

    /// Takes what has happened outside.
    pub(super) async fn take(&mut self, event: Event, now: Tick) {
        match event {
            Event::Frame(interface, frame) => {
                if let Some(segment) = self.segments.get_mut(&interface) {
                    segment.heard(&frame, now);
                    self.segments_due = Some(now);
                }
            }
            Event::Vrrp(key, bytes, told) => {
                if let Some(group) = self.groups.get_mut(&key) {
                    let actions = group.hear(&bytes, &told, now);
                    self.follow(&key, actions);
                }
            }
            Event::Bfd(bytes, told, multihop) => {
                let news = self.bfd.hear(&bytes, &told, multihop, now);
                self.watched(news, now);
            }
            Event::Bgp(name, event) => {
                if let Some(speaker) = self.speakers.get_mut(&name) {
                    speaker.take(event, &self.addresses, now);
                }
            }
            Event::Links => _ = self.links_at.get_or_insert(self.looked_at.plus(LINKS).max(now)),
        }
    }

    /// Looks whether this process stood still for so long that others have taken over.
    pub(super) fn wake(&mut self, now: Tick) {
        let still = now.since(self.last);
        self.last = now;
        if still >= LEASED && !self.leased.is_empty() {
            tracing::warn!(?still, "this box stood still: shared addresses are asked for anew");
            self.leased.clear();
            self.moved = true;
        }
        let keys: Vec<GroupKey> = self.groups.keys().cloned().collect();
        for key in keys {
            let Some(group) = self.groups.get_mut(&key) else { continue };
            if group.is_active() && still > group.router().patience() {
                tracing::warn!(group = key.0, ?still, "this box stood still");
                let actions = group.router().resume(now);
                self.follow(&key, actions);
            }
        }
    }

    /// Brings everything to what follows from what is known.
    pub(super) async fn settle(&mut self, now: Tick) {
        if std::mem::take(&mut self.stale) {
            self.plan = Plan::new(&self.said, &self.services);
            self.moved = true;
            self.make_segments().await;
            self.make_peers(now);
        }
        if self.links_at.is_some_and(|at| at <= now) {
            (self.links_at, self.looked_at) = (None, now);
            self.look_at_links().await;
            self.moved = true;
        }
        if self.moved {
            self.make_groups(now);
        }
        self.turn_groups(now);
        let news = self.bfd.turn(now);
        self.watched(news, now);
        self.turn_peers(now);
        let delay = self.said.announce.withdraw_delay.unwrap_or(GRACEFUL);
        let goes_for_good = self.draining.map(|since| since.plus(delay));
        if std::mem::take(&mut self.moved) || goes_for_good.is_some_and(|at| at <= now) {
            self.place(now).await;
            self.tell_routes(goes_for_good.is_some_and(|at| at <= now));
            self.segments_due = Some(now);
        }
        if self.segments_due.is_some_and(|at| at <= now) {
            let mut due = Vec::new();
            for segment in self.segments.values_mut() {
                due.extend(segment.tend(now).await);
            }
            let leaving = self.local.values().filter_map(|at| *at);
            self.segments_due = due.into_iter().chain(leaving).min();
            let gone = self.local.extract_if(.., |_, at| at.is_some_and(|at| at <= now));
            if gone.count() > 0 {
                self.moved = true;
            }
        }
    }

    /// When [`Announcer::settle`] is due.
    pub(super) fn due(&self) -> Option<Tick> {
        let delay = self.said.announce.withdraw_delay.unwrap_or(GRACEFUL);
        let goes = self.draining.map(|since| since.plus(delay)).filter(|at| *at > self.last);
        let groups = self.groups.values().filter_map(Group::due);
        let peers = self.speakers.values().filter_map(|speaker| speaker.session.due());
        let now = self.moved.then_some(self.last);
        let others = [self.links_at, self.bfd.due(), self.segments_due, goes, now];
        groups.chain(peers).chain(others.into_iter().flatten()).min()
    }

    /// Whether an address that boxes agree on, if they do, is here.
    pub(super) fn is_here(&self, net: IpPrefix) -> bool {
        match (self.plan.grouped.get(&net), self.plan.segments.get(&net)) {
            (Some(group), _) => {
                let key = (group.clone(), net.is_ipv4());
                self.groups.get(&key).is_some_and(Group::is_active)
            }
            (None, Some(on)) => !on.by_lease || self.leased.contains(&net),
            (None, None) => true,
        }
    }

    /// What this box shares with others by Leases.
    pub(super) fn shares(&self) -> Shares {
        let by_lease = self.plan.segments.iter().filter(|(_, on)| on.by_lease);
        let able = by_lease.filter_map(|(net, _)| Some((*net, self.plan.vips.get(net)?.able)));
        Shares { able: able.collect(), drains: self.draining.is_some() }
    }

    /// Interfaces that have, or may have, addresses of ours.
    async fn make_segments(&mut self) {
        let mut wanted: BTreeSet<String> = self.fixed.vip_interface.iter().cloned().collect();
        let announce = &self.said.announce;
        let groups = announce.vrrp.iter().filter(|it| self.plan.groups.contains_key(&it.name));
        wanted.extend(groups.map(|group| group.interface.clone()));
        wanted.extend(self.plan.segments.values().flat_map(|on| on.interfaces.iter().cloned()));
        for name in self.segments.keys().cloned().collect::<Vec<_>>() {
            if !wanted.contains(&name)
                && let Some(mut segment) = self.segments.remove(&name)
            {
                segment.clean_up().await;
            }
        }
        for name in wanted {
            if !self.segments.contains_key(&name) {
                let segment = Segment::new(&name, self.kernel.clone(), self.events.clone()).await;
                self.segments.insert(name, segment);
            }
        }
        let tracked = announce.vrrp.iter().flat_map(|group| group.track_interfaces.clone());
        self.tracked = tracked.map(|name| (name, true)).collect();
        self.links_at = Some(Tick(0));
    }

    async fn look_at_links(&mut self) {
        for segment in self.segments.values_mut() {
            segment.look().await;
            segment.find_lost().await;
        }
        for (name, is_up) in &mut self.tracked {
            *is_up = self.kernel.look(name).await.is_ok_and(|state| state.is_up);
        }
        match self.kernel.all().await {
            Ok(addresses) => self.addresses = addresses,
            Err(why) => tracing::warn!("addresses of this machine are not known: {why}"),
        }
    }

    /// Takes back everything: others are told before this process goes.
    pub(super) async fn end(
        &mut self,
        clock: &Clock,
        happened: &mut mpsc::UnboundedReceiver<Event>,
    ) {
        let now = clock.now();
        self.draining.get_or_insert(now);
        self.turn_groups(now);
        self.tell_routes(true);
        let end = now.plus(PARTING);
        while self.speakers.values().any(|speaker| !speaker.is_settled()) {
            let now = clock.now();
            let rest = end.since(now);
            match timeout(rest, happened.recv()).await {
                Ok(Some(event)) if !rest.is_zero() => self.take(event, now).await,
                _ => break,
            }
        }
        for speaker in self.speakers.values_mut() {
            speaker.stop("shutting down");
        }
        for segment in self.segments.values_mut() {
            segment.clean_up().await;
        }
        // Writers have a moment for their last words; then BFD has its own, which some take for a failure.
        tokio::time::sleep(Duration::from_millis(50)).await;
        self.bfd.want(&BTreeMap::new(), clock.now());
    }
}
