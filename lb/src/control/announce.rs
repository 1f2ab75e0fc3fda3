//! What the announcing thread is told of services, and what it tells.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use fairway_config::ServiceKey;
use fairway_core::{Mode, Told};

use super::{Control, Live};
use crate::announce::{AnnounceInput, Announced, HandedAnnouncements, Handle, Said, Standing};
use crate::handover::Inherited;

/// How long others have to take over from a box that goes, unless the document says: by VRRP,
const BY_VRRP: Duration = Duration::from_millis(500);
/// by BGP,
const BY_BGP: Duration = Duration::from_secs(2);
/// and by Leases.
const BY_LEASE: Duration = Duration::from_secs(3);

/// Names of descriptors of announcements begin so.
const ANNOUNCEMENTS: &str = "announce-";

/// How long packets come after a route was withdrawn.
const ON_ITS_WAY: Duration = Duration::from_millis(500);

/// The control loop's end of the announcing thread.
pub(super) struct Announcing {
    handle: Handle,
    /// What it was told of each service last.
    told: HashMap<ServiceKey, Standing>,
    /// What announcements go by, if it was not told yet.
    said: Option<Box<Said>>,
    /// Addresses that nothing chooses are another's.
    is_written: bool,
    /// How long others have to take over.
    withdraw: Duration,
    /// What it says that is not published yet.
    news: Option<Arc<Told>>,
    /// What it said last.
    last: Arc<Told>,
    troubles: Vec<String>,
}

impl Announcing {
    pub(super) fn new(handle: Handle) -> Self {
        Self {
            handle,
            told: HashMap::new(),
            said: None,
            is_written: false,
            withdraw: Duration::ZERO,
            news: None,
            last: Arc::default(),
            troubles: Vec::new(),
        }
    }

    /// Whether there is something to publish.
    pub(super) fn has_news(&self) -> bool {
        self.news.is_some()
    }

    /// Another process sees to what is here: nothing is taken back.
    pub(super) fn leave(&self) {
        self.handle.send(AnnounceInput::Abandon);
    }

    /// Gives everything to the next process: nothing new is announced here.
    pub(super) fn hand_over(
        &self,
    ) -> Result<(HandedAnnouncements, Vec<(String, OwnedFd)>), String> {
        self.handle.hand_over()
    }

    /// Nobody has taken over; somebody `may_have_begun` to.
    pub(super) fn go_on(&self, may_have_begun: bool) {
        self.handle.send(AnnounceInput::GoOn { may_have_begun });
    }

    /// Takes back everything.
    pub(super) fn stop(&self) {
        self.handle.stop();
    }

    /// Words of trouble for people.
    pub(super) fn troubles(&self) -> &[String] {
        &self.troubles
    }
}

impl Control {
    /// Goes on with what the process before this one has announced.
    pub(crate) fn inherit_announcements(
        &self,
        handed: HandedAnnouncements,
        inherited: &mut Inherited,
    ) {
        let named = inherited.take_all(ANNOUNCEMENTS);
        self.announcing.handle.send(AnnounceInput::Inherit(Box::new(handed), named));
    }

    /// The thread begins to announce what it has been told.
    pub(super) fn begin_announcing(&self) {
        if let Err(why) = self.announcing.handle.begin() {
            tracing::error!("{why}");
        }
    }

    /// What announcements go by has changed.
    pub(super) fn announce_by(&mut self, said: Said) {
        let announce = &said.announce;
        let by_vrrp = if announce.vrrp.is_empty() { Duration::ZERO } else { BY_VRRP };
        let by_bgp = if announce.peers.is_empty() { Duration::ZERO } else { BY_BGP };
        let leased = announce.layer2.iter().any(|segment| segment.by_lease);
        let by_lease = if leased { BY_LEASE } else { Duration::ZERO };
        let usual = by_vrrp.max(by_bgp).max(by_lease);
        self.announcing.withdraw = announce.withdraw_delay.unwrap_or(usual);
        self.announcing.is_written = announce.is_written;
        // With the services that come with it: what chooses them by their names is not to miss them.
        self.announcing.said = Some(Box::new(said));
    }

    /// On which ports stations are told of addresses, if that is to be published. Of an address that is new
    /// nobody is told until it is known whether it is here: another box may have it.
    pub(super) fn announcing_news(&mut self) -> Option<Arc<Told>> {
        if self.announcing.is_written {
            let new = self.dirty.iter().filter(|key| !self.announcing.told.contains_key(key));
            let new = new.filter_map(|key| self.services.get(key));
            let packets = new.filter(|live| live.spec.policy.mode != Mode::Proxy);
            let nets = packets.flat_map(|live| live.spec.frontends.iter().map(|f| f.net));
            let unknown: Vec<_> =
                nets.filter(|net| !self.announcing.last.contains_key(net)).collect();
            if !unknown.is_empty() {
                let told = Arc::make_mut(&mut self.announcing.last);
                told.extend(unknown.into_iter().map(|net| (net, 0)));
                self.announcing.news = Some(Arc::clone(&self.announcing.last));
            }
        }
        self.announcing.news.take()
    }

    /// What is announced has changed.
    pub(super) fn take_announced(&mut self, announced: Announced) {
        if announced.told != self.announcing.last {
            self.announcing.last = Arc::clone(&announced.told);
            self.announcing.news = Some(Arc::clone(&announced.told));
        }
        self.announcing.troubles.clone_from(&announced.troubles);
        self.listeners.announced(announced);
    }

    /// Has others take over what is announced here; returns how long that may take.
    pub(super) fn withdraw(&self) -> Duration {
        let wait = self.announcing.withdraw;
        if wait.is_zero() {
            return wait;
        }
        self.announcing.handle.send(AnnounceInput::Leave);
        // What is taken back then is on its way for a moment.
        wait + ON_ITS_WAY
    }

    /// Tells of services that were published, and of addresses that connections are accepted at.
    pub(super) fn tell_announcer(&mut self, dirty: &BTreeSet<ServiceKey>, has_removed: bool) {
        let mut changes = Vec::new();
        for key in dirty {
            let Some(live) = self.services.get(key) else { continue };
            let standing = standing(live);
            if self.announcing.told.get(key) != Some(&standing) {
                self.announcing.told.insert(key.clone(), standing.clone());
                changes.push((key.clone(), Some(standing)));
            }
        }
        if has_removed {
            let services = &self.services;
            let gone = self.announcing.told.extract_if(|key, _| !services.contains_key(key));
            changes.extend(gone.map(|(key, _)| (key, None)));
        }
        let said = self.announcing.said.take();
        if !changes.is_empty() || said.is_some() {
            self.announcing.handle.send(AnnounceInput::Services(changes, said));
        }
        let moved = self.listeners.moved();
        if !moved.is_empty() {
            self.announcing.handle.send(AnnounceInput::Local(moved));
            // A document that is applied has its addresses.
            self.announcing.handle.sync();
        }
    }
}

fn standing(live: &Live) -> Standing {
    let spec = &live.spec;
    let mut nets: Vec<_> = spec.frontends.iter().map(|frontend| frontend.net).collect();
    nets.sort();
    nets.dedup();
    Standing {
        nets,
        packets: spec.policy.mode != Mode::Proxy,
        able: live.all().filter(|live| live.standing().admits()).count(),
        labels: Arc::clone(&spec.labels),
    }
}
