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
use super::ear::Ear;
use super::handing::Inheritance;
use super::plan::{OnSegments, Plan, Said, Standing};
use super::run::{Event, Fixed, Input};
use super::segment::Segment;
use super::sharing::Shares;
use super::speakers::{PeerEvent, Speaker};
use super::vrrp::{Group, GroupKey};
use crate::network::{AllAddresses, Interfaces};

/// The least time between two looks at interfaces.
const LINKS: Duration = Duration::from_millis(50);
/// How long routers are told to prefer other ways before they are told nothing, unless the document says.
const GRACEFUL: Duration = Duration::from_secs(2);
/// Whoever stood still for so long has not heard what came.
const LISTENS: Duration = Duration::from_millis(50);
/// Whoever stood still for so long may have lost its Leases.
const LEASED: Duration = Duration::from_secs(4);
/// The least time between two plans: of ten thousand services one takes milliseconds.
const PLAN: Duration = Duration::from_millis(10);
/// How long the end waits for peers to take what they are told.
const PARTING: Duration = Duration::from_millis(500);

/// All that is announced by this box.
pub(crate) struct Announcer {
    pub(super) fixed: Fixed,
    pub(super) kernel: Interfaces,
    pub(super) events: mpsc::UnboundedSender<Event>,
    pub(super) said: Said,
    pub(super) services: BTreeMap<ServiceKey, Standing>,
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
    /// Peers that cannot, and when it is tried again.
    pub(super) ear_troubles: Vec<String>,
    pub(super) listen_at: Option<Tick>,
    pub(super) bfd: Sessions,
    pub(super) addresses: AllAddresses,
    /// Shared addresses that Leases say are ours.
    pub(super) leased: BTreeSet<IpPrefix>,
    /// Why boxes cannot agree on them.
    pub(super) lease_trouble: Option<String>,
    /// Since when what is announced is taken back.
    pub(super) draining: Option<Tick>,
    /// The first of all has come.
    pub(super) begun: bool,
    /// The plan is to be made anew, and when it may be.
    pub(super) stale: bool,
    plan_at: Tick,
    /// Interfaces have changed, and when they are looked at.
    pub(super) links_at: Option<Tick>,
    looked_at: Tick,
    /// Who has which address is to be settled anew.
    pub(super) moved: bool,
    last: Tick,
    /// The process is about to end,
    pub(super) leaves: bool,
    /// or ends.
    ends: bool,
    /// When segments are due.
    segments_due: Option<Tick>,
    /// What the process before this one has handed over.
    pub(super) inheritance: Inheritance,
    /// Groups that were active in the process before, with the number of their changes, and until when they
    /// still are.
    pub(super) active_before: BTreeMap<GroupKey, (u64, Tick)>,
    /// Another process takes over.
    pub(super) hands_over: bool,
    /// What has happened to peers since.
    pub(super) kept_back: Vec<(String, PeerEvent)>,
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
            ear_troubles: Vec::new(),
            listen_at: None,
            addresses: AllAddresses::default(),
            leased: BTreeSet::new(),
            lease_trouble: None,
            draining: None,
            begun: false,
            stale: true,
            plan_at: Tick(0),
            links_at: Some(Tick(0)),
            looked_at: Tick(0),
            moved: true,
            last: Tick(0),
            leaves: false,
            ends: false,
            segments_due: None,
            inheritance: Inheritance::default(),
            active_before: BTreeMap::new(),
            hands_over: false,
            kept_back: Vec::new(),
        }
    }

    /// Takes what it is told.
    pub(super) async fn hear(&mut self, input: Input, now: Tick) {
        match input {
            Input::Services(changes, said) => {
                if let Some(said) = said.filter(|said| self.said != **said) {
                    self.said = *said;
                    self.stale = true;
                    // Segments and peers may be new.
                    self.links_at.get_or_insert(now);
                }
                for (key, standing) in changes {
                    let before = match standing.clone() {
                        Some(standing) => self.services.insert(key, standing),
                        None => self.services.remove(&key),
                    };
                    self.stale |= match (before, standing) {
                        // How many backends take flows is of use to announcements alone.
                        (Some(before), Some(after)) if !self.said.announce.is_written => {
                            before != Standing { able: before.able, ..after }
                        }
                        (before, after) => before != after,
                    };
                }
            }
            Input::Local(changes) => {
                for (ip, at) in changes {
                    self.local.insert(ip, at);
                }
                self.moved = true;
            }
            Input::Begun => {
                self.settle(now, true).await;
                self.begun = true;
                self.go_on_active(now);
                self.stale = true;
                self.settle(now, true).await;
                self.drop_inheritance();
                for segment in self.segments.values_mut() {
                    segment.take_over(&self.local, now).await;
                }
            }
            Input::Inherit(handed, descriptors) => self.inherit(*handed, descriptors),
            Input::GoOn { may_have_begun } => self.go_on(may_have_begun, now).await,
            Input::Leased(leased, trouble) => {
                self.lease_trouble = trouble;
                if let Some(leased) = leased {
                    self.moved |= self.leased != leased;
                    self.leased = leased;
                }
            }
            Input::Drain(drains) => {
                if drains != self.draining.is_some() && !self.leaves {
                    let what = if drains { "taken back" } else { "announced again" };
                    tracing::info!("addresses are {what}");
                    self.draining = drains.then_some(now);
                    self.moved = true;
                }
            }
            Input::Leave => {
                self.leaves = true;
                self.draining.get_or_insert(now);
                self.moved = true;
            }
            Input::Sync(_)
            | Input::View(_)
            | Input::HandOver(_)
            | Input::Abandon
            | Input::Stop(_) => {}
        }
    }

    /// Takes what has happened outside.
    pub(super) async fn take(&mut self, event: Event, now: Tick) {
        let event = match event {
            Event::Bgp(name, PeerEvent::Wrote(side, number, count)) if self.hands_over => {
                if let Some(speaker) = self.speakers.get_mut(&name) {
                    speaker.wrote(side, number, count);
                }
                return;
            }
            Event::Bgp(name, event) if self.hands_over => {
                self.kept_back.push((name, event));
                return;
            }
            // Another process may have heard it, too.
            Event::Vrrp(..) | Event::Bfd(..) if self.hands_over => return,
            event => event,
        };
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

    /// This process was to go on `late` ago: others may have taken over, and what has come meanwhile was not
    /// heard yet.
    pub(super) fn stood_still(&mut self, late: Duration, now: Tick) {
        if self.hands_over {
            return;
        }
        if late >= LEASED && !self.leased.is_empty() {
            tracing::warn!(?late, "this box stood still: shared addresses are asked for anew");
            self.leased.clear();
            self.moved = true;
        }
        if late >= LISTENS {
            self.bfd.resume(now);
        }
        let keys: Vec<GroupKey> = self.groups.keys().cloned().collect();
        for key in keys {
            let Some(group) = self.groups.get_mut(&key) else { continue };
            let is_lost = group.is_active() && late > group.router().patience();
            if is_lost {
                tracing::warn!(group = key.0, ?late, "this box stood still");
            }
            // Who waits for another one's silence must have listened.
            if is_lost || (!group.is_active() && late >= LISTENS) {
                let actions = group.router().resume(now);
                self.follow(&key, actions);
            }
        }
    }

    /// Whether the document says anything of announcements.
    pub(super) fn is_written(&self) -> bool {
        self.said.announce.is_written
    }

    /// Whether this box shares addresses by Leases.
    pub(super) fn has_leases(&self) -> bool {
        self.plan.segments.values().any(|on| on.by_lease)
    }

    /// Whether others may take over when this process stands still.
    pub(super) fn is_shared(&self) -> bool {
        !self.leased.is_empty() || !self.groups.is_empty()
    }

    /// Brings everything to what follows from what is known.
    pub(super) async fn settle(&mut self, now: Tick, at_once: bool) {
        if self.hands_over {
            return self.repeat(now);
        }
        let before = std::mem::replace(&mut self.last, now);
        if self.stale && (at_once || now >= self.plan_at) {
            self.stale = false;
            self.plan_at = now.plus(PLAN);
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
        let goes_at = self.draining.map(|since| since.plus(delay)).filter(|at| *at <= now);
        // Once it is gone, it is gone: nothing is placed anew for that.
        if std::mem::take(&mut self.moved) || goes_at.is_some_and(|at| at > before) {
            self.place(now).await;
            self.tell_routes(goes_at.is_some());
            self.segments_due = Some(now);
        }
        if self.segments_due.is_some_and(|at| at <= now) {
            let mut due = Vec::new();
            for segment in self.segments.values_mut() {
                due.extend(segment.tend(now).await);
            }
            let leaving = self.local.values().filter_map(|at| *at);
            self.segments_due = due.into_iter().chain(leaving).min();
            let count = self.local.len();
            self.local.retain(|_, at| at.is_none_or(|at| at > now));
            self.moved |= self.local.len() < count;
        }
    }

    /// When [`Announcer::settle`] is due.
    pub(super) fn due(&self) -> Option<Tick> {
        if self.hands_over {
            return self.repeat_due();
        }
        let delay = self.said.announce.withdraw_delay.unwrap_or(GRACEFUL);
        let goes = self.draining.map(|since| since.plus(delay)).filter(|at| *at > self.last);
        let groups = self.groups.values().filter_map(Group::due);
        let peers = self.speakers.values().filter_map(|speaker| speaker.session.due());
        let now = self.moved.then_some(self.last).or(self.stale.then_some(self.plan_at));
        let others = [self.links_at, self.bfd.due(), self.segments_due, self.listen_at, goes, now];
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
            (None, None) => self.is_local(net),
        }
    }

    /// Whether packets for an address are taken here, as far as that is for others to see to.
    pub(super) fn is_local(&self, net: IpPrefix) -> bool {
        let proxied = self.plan.vips.get(&net).is_some_and(|vip| vip.proxied);
        let fixed = &self.fixed;
        !proxied
            || fixed.is_transparent
            || fixed.vip_interface.is_some()
            || self.addresses.has(net.address())
    }

    /// What this box shares with others by Leases.
    pub(super) fn shares(&self) -> Shares {
        // Nobody reaches an address by an interface that is down, or that refuses it.
        let works = |net: IpPrefix, on: &OnSegments| {
            let segment = on.interfaces.first().and_then(|name| self.segments.get(name));
            segment.is_some_and(|segment| {
                let is_up = segment.state().is_some_and(|state| state.is_up);
                is_up && !segment.failed().contains_key(&net.address())
            })
        };
        let by_lease = self.plan.segments.iter().filter(|(_, on)| on.by_lease);
        let well = by_lease.filter(|(net, on)| works(**net, on));
        let able = well.filter_map(|(net, _)| Some((*net, self.plan.vips.get(net)?.able)));
        Shares { able: able.collect(), drains: self.draining.is_some(), ends: self.ends }
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
        self.ends = true;
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
        self.bfd.want(&BTreeMap::new(), &mut self.inheritance, clock.now());
    }
}
