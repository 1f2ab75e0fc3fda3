//! How announcements stand, for people and for metrics.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::SystemTime;

use fairway_core::announce::bfd;
use fairway_core::{IpPrefix, Tick};
use serde::{Deserialize, Serialize};

use super::announcer::Announcer;
use super::bgp::session::State;
use super::peers::way_of;
use super::plan::Vip;
use super::segment::{Segment, mac};
use super::speakers::{Change, Speaker};
use super::vrrp::{Group, GroupKey};

/// How announcements stand.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AnnounceView {
    /// What is announced is taken back.
    pub(crate) draining: bool,
    pub(crate) addresses: Vec<AddressView>,
    pub(crate) groups: Vec<GroupView>,
    pub(crate) peers: Vec<PeerView>,
    pub(crate) duplicates: Vec<DuplicateView>,
    pub(crate) troubles: Vec<String>,
}

/// An address.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AddressView {
    pub(crate) address: String,
    /// Whether this box has it, where boxes agree on that.
    pub(crate) here: bool,
    /// The group that it is of.
    pub(crate) group: Option<String>,
    /// Interfaces on which stations are told of it.
    pub(crate) interfaces: Vec<String>,
    /// Names of the peers that have been told of it, or of its network.
    pub(crate) peers: Vec<String>,
    pub(crate) services: usize,
    /// Backends that take flows.
    pub(crate) able_backends: usize,
}

/// A virtual router.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct GroupView {
    pub(crate) name: String,
    pub(crate) family: String,
    pub(crate) interface: String,
    pub(crate) virtual_router_id: u8,
    /// `active`, `backup` or `stopped`.
    pub(crate) state: String,
    pub(crate) priority: u8,
    pub(crate) addresses: usize,
    /// Who was heard last as the active one.
    pub(crate) heard: Option<String>,
    pub(crate) changes: u64,
    /// The last change: when, in seconds since 1970, and why.
    pub(crate) last_change: Option<f64>,
    pub(crate) cause: Option<String>,
    /// Advertisements that did not count.
    pub(crate) odd_advertisements: u64,
    pub(crate) trouble: Option<String>,
}

/// A router.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PeerView {
    pub(crate) name: String,
    pub(crate) address: String,
    /// In RFC 4271's words.
    pub(crate) state: String,
    pub(crate) peer_asn: Option<u32>,
    /// Seconds since the session came up.
    pub(crate) up_seconds: Option<f64>,
    /// Routes that it has been told.
    pub(crate) routes: usize,
    pub(crate) changes: u64,
    pub(crate) last_change: Option<f64>,
    /// Why the session went down last, or does not come up.
    pub(crate) cause: Option<String>,
    pub(crate) bfd: Option<BfdView>,
}

/// How a way is watched.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BfdView {
    pub(crate) state: String,
    /// For how long nothing may be heard.
    pub(crate) detection_seconds: f64,
    pub(crate) changes: u64,
}

/// An address of ours that another station says it has.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DuplicateView {
    pub(crate) address: String,
    pub(crate) interface: String,
    pub(crate) station: String,
}

fn seconds(at: SystemTime) -> f64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

impl Announcer {
    /// How everything stands.
    pub(super) fn view(&self, now: Tick) -> AnnounceView {
        let duplicates = self.segments.values().flat_map(|segment| {
            segment.duplicates().iter().map(|(ip, duplicate)| DuplicateView {
                address: ip.to_string(),
                interface: segment.name.clone(),
                station: mac(duplicate.station),
            })
        });
        AnnounceView {
            draining: self.draining.is_some(),
            addresses: self.address_views(),
            groups: self.group_views(),
            peers: self.speakers.values().map(|speaker| self.peer_view(speaker, now)).collect(),
            duplicates: duplicates.collect(),
            troubles: self.troubles(),
        }
    }

    /// Those that take part, and those that cannot.
    fn group_views(&self) -> Vec<GroupView> {
        let mut views: Vec<GroupView> =
            self.groups.iter().map(|(key, group)| group_view(key, group)).collect();
        for (key, why) in &self.group_troubles {
            let specs = &self.said.announce.vrrp;
            let Some(spec) = specs.iter().find(|spec| spec.name == key.0) else { continue };
            views.push(GroupView {
                name: key.0.clone(),
                family: if key.1 { "IPv4" } else { "IPv6" }.into(),
                interface: spec.interface.clone(),
                virtual_router_id: spec.id,
                state: "stopped".into(),
                priority: spec.priority,
                addresses: 0,
                heard: None,
                changes: 0,
                last_change: None,
                cause: Some(why.clone()),
                odd_advertisements: 0,
                trouble: Some(why.clone()),
            });
        }
        views
    }

    fn address_views(&self) -> Vec<AddressView> {
        // The plan is as old as its last use; without announcements that may be long.
        let mut able: BTreeMap<IpPrefix, usize> = BTreeMap::new();
        for standing in self.services.values() {
            standing.nets.iter().for_each(|net| *able.entry(*net).or_default() += standing.able);
        }
        let view = |(net, vip): (&IpPrefix, &Vip)| {
            let at = |segment: &&Segment| net.is_host() && segment.has(net.address());
            let tells = |speaker: &&Speaker| {
                let told = speaker.session.routes().told();
                speaker.session.state() == State::Established
                    && self.plan.is_advertised(*net)
                    && (0..=net.length()).rev().any(|length| {
                        told.contains_key(&IpPrefix::containing(net.address(), length))
                    })
            };
            AddressView {
                address: net.to_string(),
                here: self.is_here(*net),
                group: self.plan.grouped.get(net).cloned(),
                interfaces: self.segments.values().filter(at).map(|it| it.name.clone()).collect(),
                peers: self
                    .speakers
                    .values()
                    .filter(tells)
                    .map(|it| it.spec.name.clone())
                    .collect(),
                services: vip.services,
                able_backends: able.get(net).copied().unwrap_or_default(),
            }
        };
        self.plan.vips.iter().map(view).collect()
    }

    fn peer_view(&self, speaker: &Speaker, now: Tick) -> PeerView {
        let session = &speaker.session;
        let is_up = session.up_since().is_some();
        let watched = self.bfd.get(&way_of(speaker));
        let cause = match &speaker.last {
            Some((_, Change::Down(why))) => Some(why.clone()),
            _ => None,
        };
        PeerView {
            name: speaker.spec.name.clone(),
            address: speaker.spec.address.to_string(),
            state: format!("{:?}", session.state()),
            peer_asn: session.peer().map(|peer| peer.number),
            up_seconds: session.up_since().map(|since| now.since(since).as_secs_f64()),
            routes: if is_up { session.routes().told().len() } else { 0 },
            changes: speaker.changes,
            last_change: speaker.last.as_ref().map(|(at, _)| seconds(*at)),
            cause: speaker.trouble.clone().filter(|_| !is_up).or(cause),
            bfd: watched.map(|watched| BfdView {
                state: match watched.state() {
                    bfd::State::AdminDown => "adminDown",
                    bfd::State::Down => "down",
                    bfd::State::Init => "init",
                    bfd::State::Up => "up",
                }
                .into(),
                detection_seconds: watched.detection().as_secs_f64(),
                changes: watched.changes,
            }),
        }
    }
}

fn group_view(key: &GroupKey, group: &Group) -> GroupView {
    let state = match (group.is_active(), group.due()) {
        (true, _) => "active",
        (false, Some(_)) => "backup",
        (false, None) => "stopped",
    };
    GroupView {
        name: key.0.clone(),
        family: if key.1 { "IPv4" } else { "IPv6" }.into(),
        interface: group.spec.interface.clone(),
        virtual_router_id: group.spec.id,
        state: state.into(),
        priority: group.priority(),
        addresses: group.addresses.len(),
        heard: group.heard.map(|(ip, priority)| format!("{ip} with priority {priority}")),
        changes: group.changes,
        last_change: group.last.as_ref().map(|change| seconds(change.at)),
        cause: group.last.as_ref().map(|change| change.words.into()),
        odd_advertisements: group.odd.values().sum(),
        trouble: group.trouble.clone(),
    }
}

impl AnnounceView {
    /// As Prometheus reads it.
    pub(crate) fn write_metrics(&self, out: &mut String) {
        let mut family = |name: &str, kind: &str, help: &str, samples: Vec<(String, f64)>| {
            if samples.is_empty() {
                return;
            }
            // Writing into a String cannot fail.
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in samples {
                let _ = writeln!(out, "{name}{{{labels}}} {value}");
            }
        };
        let flag = |is_so: bool| if is_so { 1.0 } else { 0.0 };
        let addresses = |value: fn(&AddressView) -> f64| -> Vec<(String, f64)> {
            let label = |it: &AddressView| (format!("address=\"{}\"", it.address), value(it));
            self.addresses.iter().map(label).collect()
        };
        family(
            "fairway_announce_address_here",
            "gauge",
            "Whether this box has an address, where boxes agree on that.",
            addresses(|it| if it.here { 1.0 } else { 0.0 }),
        );
        family(
            "fairway_announce_address_interfaces",
            "gauge",
            "Interfaces on which stations are told of an address.",
            addresses(|it| it.interfaces.len() as f64),
        );
        family(
            "fairway_announce_address_peers",
            "gauge",
            "BGP peers that have been told of an address.",
            addresses(|it| it.peers.len() as f64),
        );
        let groups = |value: fn(&GroupView) -> f64| -> Vec<(String, f64)> {
            let label = |it: &GroupView| {
                (format!("group=\"{}\",family=\"{}\"", escaped(&it.name), it.family), value(it))
            };
            self.groups.iter().map(label).collect()
        };
        family(
            "fairway_vrrp_active",
            "gauge",
            "Whether this box is active in a VRRP group.",
            groups(|it| if it.state == "active" { 1.0 } else { 0.0 }),
        );
        family(
            "fairway_vrrp_priority",
            "gauge",
            "Priority in a VRRP group now, by what it tracks.",
            groups(|it| it.priority.into()),
        );
        family(
            "fairway_vrrp_changes_total",
            "counter",
            "Takeovers and releases of a VRRP group.",
            groups(|it| it.changes as f64),
        );
        family(
            "fairway_vrrp_odd_advertisements_total",
            "counter",
            "Advertisements of VRRP that did not count.",
            groups(|it| it.odd_advertisements as f64),
        );
        let peers = |value: fn(&PeerView) -> f64| -> Vec<(String, f64)> {
            let label = |it: &PeerView| (format!("peer=\"{}\"", escaped(&it.name)), value(it));
            self.peers.iter().map(label).collect()
        };
        family(
            "fairway_bgp_session_up",
            "gauge",
            "Whether the session with a BGP peer is established.",
            peers(|it| if it.state == "Established" { 1.0 } else { 0.0 }),
        );
        family(
            "fairway_bgp_session_changes_total",
            "counter",
            "Times that the session with a BGP peer came up or went down.",
            peers(|it| it.changes as f64),
        );
        family(
            "fairway_bgp_routes",
            "gauge",
            "Routes that a BGP peer has been told.",
            peers(|it| it.routes as f64),
        );
        let watched = |value: fn(&BfdView) -> f64| -> Vec<(String, f64)> {
            let label = |it: &PeerView| {
                Some((format!("peer=\"{}\"", escaped(&it.name)), value(it.bfd.as_ref()?)))
            };
            self.peers.iter().filter_map(label).collect()
        };
        family(
            "fairway_bfd_session_up",
            "gauge",
            "Whether BFD hears a BGP peer, and is heard.",
            watched(|it| if it.state == "up" { 1.0 } else { 0.0 }),
        );
        family(
            "fairway_bfd_session_changes_total",
            "counter",
            "Times that a BFD session came up or went down.",
            watched(|it| it.changes as f64),
        );
        let is_used = !self.addresses.is_empty();
        let whole = |value: f64| if is_used { vec![(String::new(), value)] } else { Vec::new() };
        family(
            "fairway_announce_draining",
            "gauge",
            "Whether what is announced is taken back.",
            whole(flag(self.draining)),
        );
        family(
            "fairway_announce_duplicate_addresses",
            "gauge",
            "Addresses of ours that another station says it has.",
            whole(self.duplicates.len() as f64),
        );
    }
}

/// A label's value, as Prometheus reads it.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
