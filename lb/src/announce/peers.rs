//! Routers: their sessions, what they are told, and whether the ways to them are well.

use std::collections::BTreeMap;
use std::time::Duration;

use fairway_core::Tick;
use fairway_core::announce::bfd::Diagnostic;

use super::announcer::Announcer;
use super::bfd::{News, Way};
use super::bgp::message::Fault;
use super::ear::Ear;
use super::speakers::{Speaker, told_of};

/// From one try to listen to the next.
const AGAIN: Duration = Duration::from_secs(5);

impl Announcer {
    /// Peers as the document has them.
    pub(super) fn make_peers(&mut self, now: Tick) {
        if !self.begun {
            return;
        }
        let announce = &self.said.announce;
        let here = announce.peers.iter().filter(|peer| {
            let selectors = &peer.node_selectors;
            selectors.is_empty() || selectors.iter().any(|it| it.admits(&announce.node_labels))
        });
        let wanted: BTreeMap<String, _> = here.map(|it| (it.name.clone(), it.clone())).collect();
        self.speakers.retain(|name, speaker| {
            let stays = wanted.get(name) == Some(&speaker.spec);
            if !stays {
                speaker.stop("no longer configured");
            }
            stays
        });
        for (name, spec) in &wanted {
            if self.speakers.contains_key(name) {
                continue;
            }
            let handed = told_of(spec).and_then(|spec| self.inheritance.peer(name, &spec));
            let speaker = match handed {
                Some(handed) => Speaker::go_on(spec, handed, self.events.clone(), now)
                    .inspect_err(|error| tracing::warn!(peer = name, "BGP: begins anew: {error}"))
                    .ok(),
                None => None,
            };
            let speaker = speaker.unwrap_or_else(|| {
                let mut speaker = Speaker::new(spec, self.events.clone());
                let actions = speaker.session.start(now);
                speaker.act(actions);
                speaker
            });
            self.speakers.insert(name.clone(), speaker);
        }
        self.listen(announce.listen_port, now);
        let way = |speaker: &Speaker| {
            let way = way_of(speaker);
            Some((way, speaker.spec.bfd?))
        };
        let ways: BTreeMap<Way, _> = self.speakers.values().filter_map(way).collect();
        self.bfd.want(&ways, &mut self.inheritance, now);
    }

    /// Has peers connect to a port, if there is one.
    fn listen(&mut self, port: Option<u16>, now: Tick) {
        let is_other = !matches!(&self.ear, Ok(ear) if ear.as_ref().map(Ear::port) == port);
        if is_other {
            let before = self.ear.as_ref().err().cloned();
            let inherited = port.map(|port| self.inheritance.ears(port)).unwrap_or_default();
            self.ear = port.map(|port| Ear::open(port, inherited, &self.events)).transpose();
            if let Some(why) = self.ear.as_ref().err().filter(|why| before.as_ref() != Some(why)) {
                tracing::error!("{why}; trying again");
            }
        }
        self.ear_troubles = match &mut self.ear {
            Ok(Some(ear)) => ear.hear(&self.speakers),
            Ok(None) => Vec::new(),
            Err(why) => vec![why.clone()],
        };
        // A key, or the port, may come.
        self.listen_at = (!self.ear_troubles.is_empty()).then(|| now.plus(AGAIN));
    }

    pub(super) fn turn_peers(&mut self, now: Tick) {
        if self.listen_at.is_some_and(|at| at <= now) {
            self.listen(self.said.announce.listen_port, now);
        }
        for speaker in self.speakers.values_mut() {
            if speaker.session.due().is_some_and(|due| due <= now) {
                let actions = speaker.session.turn(now);
                speaker.act(actions);
            }
        }
    }

    /// Ways are well, or not.
    pub(super) fn watched(&mut self, news: Vec<News>, now: Tick) {
        for (way, change) in news {
            let peers = self.speakers.values_mut();
            for speaker in peers.filter(|speaker| way_of(speaker) == way) {
                let peer = &speaker.spec.name;
                match change {
                    Ok(()) => tracing::info!(peer, "BFD: session up"),
                    Err(Diagnostic::AdminDown) => {
                        tracing::info!(peer, "BFD: session switched off");
                    }
                    Err(why) => {
                        let why = match why {
                            Diagnostic::Expired => "nothing is heard",
                            Diagnostic::NeighborDown => {
                                "the peer hears nothing, or says it is down"
                            }
                            _ => "the peer says so",
                        };
                        tracing::warn!(peer, "BFD: session down: {why}");
                        let actions = speaker.session.fail(&Fault::bfd(), now);
                        speaker.act(actions);
                    }
                }
            }
        }
    }

    /// Tells every peer what it is to know; nothing when this box goes for good.
    pub(super) fn tell_routes(&mut self, goes_for_good: bool) {
        let mut told = BTreeMap::new();
        for name in self.speakers.keys() {
            let goes = self.draining.is_some();
            let wanted = match goes_for_good {
                true => BTreeMap::new(),
                false => self.plan.routes(&self.said.announce, name, |net| self.is_here(net), goes),
            };
            told.insert(name.clone(), wanted);
        }
        for (name, wanted) in told {
            if let Some(speaker) = self.speakers.get_mut(&name) {
                speaker.want(wanted);
            }
        }
    }

    /// What keeps peers from being told.
    pub(super) fn peer_troubles(&self) -> Vec<String> {
        let mut troubles: Vec<String> = Vec::new();
        for (name, speaker) in &self.speakers {
            if speaker.session.up_since().is_none()
                && let Some(why) = &speaker.trouble
            {
                troubles.push(format!("BGP peer `{name}`: {why}"));
            }
            for (is_ipv4, family) in [(true, "IPv4"), (false, "IPv6")] {
                let wants = self
                    .plan
                    .vips
                    .keys()
                    .any(|net| net.is_ipv4() == is_ipv4 && self.plan.is_advertised(*net));
                if wants && !speaker.session.reaches(is_ipv4) {
                    troubles.push(format!(
                        "BGP peer `{name}` is told nothing of {family}: it does not take that family, \
                         or there is no next hop; set `nextHop{family}`"
                    ));
                }
            }
        }
        troubles.extend(self.ear_troubles.iter().cloned());
        troubles.extend(self.bfd.troubles());
        troubles
    }
}

/// How a peer is watched.
pub(super) fn way_of(speaker: &Speaker) -> Way {
    let spec = &speaker.spec;
    Way { peer: spec.address, source: spec.source, multihop: spec.multihop }
}
