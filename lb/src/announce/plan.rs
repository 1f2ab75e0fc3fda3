//! What follows from a document for the addresses that there are: on which segments, by which groups, to
//! which routers. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fairway_config::announce::{Announce, BgpAdvertisement, Chosen, Community, pool_of};
use fairway_config::kubernetes::{Labels, Pool};
use fairway_config::{Desired, ServiceKey, ServiceSpec};
use fairway_core::{IpPrefix, Mode};

use super::bgp::message::Attributes;
use super::bgp::routes::Wanted;

/// Has routers prefer other ways (RFC 8326).
const GRACEFUL_SHUTDOWN: u32 = 0xffff_0000;

/// How a service stands, as far as its addresses go.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Standing {
    /// Its addresses, and networks of them.
    pub(crate) nets: Vec<IpPrefix>,
    /// Its packets are forwarded: the kernel knows nothing of its addresses.
    pub(crate) packets: bool,
    /// Backends that take flows.
    pub(crate) able: usize,
    pub(crate) labels: Arc<Labels>,
}

/// What announcements go by.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Said {
    /// What the document says, and a cluster's objects.
    pub(crate) announce: Announce,
    /// Pools of addresses.
    pub(crate) pools: Vec<Pool>,
}

/// An address, or a network of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Vip {
    pub(crate) services: usize,
    /// Of these, those with a backend that takes flows.
    pub(crate) able_services: usize,
    /// Their backends that take flows.
    pub(crate) able: usize,
    /// Connections to it end here: the kernel is to have it.
    pub(crate) proxied: bool,
    /// Its packets are forwarded.
    pub(crate) packets: bool,
}

/// How an address is answered for on segments.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct OnSegments {
    /// The interfaces, the first one first.
    pub(crate) interfaces: Vec<String>,
    /// It is added to the first one.
    pub(crate) adds: bool,
    /// Boxes agree by Leases.
    pub(crate) by_lease: bool,
}

/// What a group has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct OfGroup {
    pub(crate) nets: BTreeSet<IpPrefix>,
    pub(crate) services: usize,
    /// Services without a backend that takes flows.
    pub(crate) failed: usize,
}

/// What is to be announced, and how.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Plan {
    pub(crate) vips: BTreeMap<IpPrefix, Vip>,
    /// Addresses that this box answers for, unless boxes agree otherwise.
    pub(crate) segments: BTreeMap<IpPrefix, OnSegments>,
    /// By the names of groups.
    pub(crate) groups: BTreeMap<String, OfGroup>,
    /// Addresses by group.
    pub(crate) grouped: BTreeMap<IpPrefix, String>,
    /// What is said of each address, by the names of advertisements.
    advertised: BTreeMap<IpPrefix, Vec<usize>>,
    /// What needs a person.
    pub(crate) troubles: Vec<String>,
}

/// What a document's announcements miss, or have twice, of these services.
pub(crate) fn troubles(said: &Said, services: &Desired) -> Vec<String> {
    let standing = |spec: &Arc<ServiceSpec>| Standing {
        nets: spec.frontends.iter().map(|frontend| frontend.net).collect(),
        packets: spec.policy.mode != Mode::Proxy,
        able: spec.backends.len(),
        labels: Arc::clone(&spec.labels),
    };
    let services = services.iter().map(|(key, spec)| (key.clone(), standing(spec))).collect();
    Plan::new(said, &services).troubles
}

impl Plan {
    /// The plan of a document for services.
    pub(crate) fn new(said: &Said, services: &BTreeMap<ServiceKey, Standing>) -> Self {
        let Said { announce, pools } = said;
        let mut plan = Self::default();
        for (key, standing) in services {
            for net in &standing.nets {
                plan.add(announce, pools, key.service(), *net, standing);
            }
        }
        let unknown = |net: &&IpPrefix| announce.is_written && !plan.is_announced(**net);
        let unknown: Vec<String> =
            plan.vips.keys().filter(unknown).map(ToString::to_string).collect();
        if let Some(first) = unknown.first() {
            let more = match unknown.len() - 1 {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            plan.troubles.push(format!("nothing of `announce` chooses {first}{more}"));
        }
        plan
    }

    fn add(
        &mut self,
        announce: &Announce,
        pools: &[Pool],
        service: &str,
        net: IpPrefix,
        standing: &Standing,
    ) {
        let is_able = standing.able > 0;
        let vip = self.vips.entry(net).or_default();
        vip.services += 1;
        vip.able_services += usize::from(is_able);
        vip.able += standing.able;
        vip.proxied |= !standing.packets;
        vip.packets |= standing.packets;
        let pool = pool_of(pools, net);
        let chooses = |chosen: &Chosen| {
            chosen.holds_on(&announce.node_labels)
                && chosen.admits(net, service, &standing.labels, pool)
        };
        let mut groups = announce.vrrp.iter().filter(|group| chooses(&group.chosen));
        if let Some(group) = groups.next() {
            if let Some(other) = groups.next() {
                let (first, second) = (&group.name, &other.name);
                let why =
                    format!("groups `{first}` and `{second}` both claim {net}; `{first}` has it");
                // Said once, however many ports the address has.
                if !self.troubles.contains(&why) {
                    self.troubles.push(why);
                }
            }
            self.grouped.entry(net).or_insert_with(|| group.name.clone());
        }
        if let Some(group) = self.grouped.get(&net) {
            let group = self.groups.entry(group.clone()).or_default();
            group.nets.insert(net);
            group.services += 1;
            group.failed += usize::from(!is_able);
        } else {
            for segment in announce.layer2.iter().filter(|segment| chooses(&segment.chosen)) {
                let on = self.segments.entry(net).or_default();
                let new = segment.interfaces.iter().filter(|name| !on.interfaces.contains(name));
                let new: Vec<String> = new.cloned().collect();
                on.interfaces.extend(new);
                on.adds |= segment.adds;
                on.by_lease |= segment.by_lease;
            }
        }
        let told = self.advertised.entry(net).or_default();
        for (n, advertisement) in announce.advertisements.iter().enumerate() {
            if chooses(&advertisement.chosen) && !told.contains(&n) {
                told.push(n);
            }
        }
    }

    /// Whether anything chooses an address.
    pub(crate) fn is_announced(&self, net: IpPrefix) -> bool {
        self.grouped.contains_key(&net)
            || self.segments.contains_key(&net)
            || self.is_advertised(net)
    }

    /// Whether routers are told of an address, while all is well.
    pub(crate) fn is_advertised(&self, net: IpPrefix) -> bool {
        self.advertised.get(&net).is_some_and(|told| !told.is_empty())
    }

    /// What a peer is told: of addresses that are here, as far as `is_here` goes; when this box is about to
    /// go, that others are to be preferred.
    pub(crate) fn routes(
        &self,
        announce: &Announce,
        peer: &str,
        is_here: impl Fn(IpPrefix) -> bool,
        goes: bool,
    ) -> Wanted {
        let mut wanted: BTreeMap<IpPrefix, Attributes> = BTreeMap::new();
        for (net, told) in &self.advertised {
            let is_able = self.vips.get(net).is_some_and(|vip| vip.able > 0);
            let entries = told.iter().filter_map(|n| announce.advertisements.get(*n));
            let entries = entries
                .filter(|it| it.peers.is_empty() || it.peers.iter().any(|name| name == peer))
                .filter(|it| is_able || it.without_backends);
            for entry in entries.filter(|_| is_here(*net)) {
                join(wanted.entry(aggregate(*net, entry)).or_default(), entry);
            }
        }
        if goes {
            for attributes in wanted.values_mut() {
                attributes.communities.insert(GRACEFUL_SHUTDOWN);
                attributes.local_pref = Some(0);
            }
        }
        wanted.into_iter().map(|(net, attributes)| (net, Arc::new(attributes))).collect()
    }
}

/// The network that is told of.
fn aggregate(net: IpPrefix, entry: &BgpAdvertisement) -> IpPrefix {
    let length = if net.is_ipv4() { entry.length_v4 } else { entry.length_v6 };
    IpPrefix::containing(net.address(), length.min(net.length()))
}

/// Several entries for one network say all that each says; of what can be said once the one that
/// prefers it most counts.
fn join(attributes: &mut Attributes, entry: &BgpAdvertisement) {
    for community in &entry.communities {
        match community {
            Community::Plain(value) => _ = attributes.communities.insert(*value),
            Community::Large(value) => _ = attributes.large_communities.insert(*value),
        }
    }
    attributes.local_pref = attributes.local_pref.max(entry.local_pref);
    attributes.med = match (attributes.med, entry.med) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(announce: &str) -> Said {
        let text = format!(
            "addressPools: [{{name: inner, addresses: [192.0.2.0/28]}}]\nservices: []\nannounce:\n{announce}"
        );
        let file = std::path::Path::new("f.yaml").into();
        // Services are given by hand.
        let config = fairway_config::load_text(&file, &text).unwrap_or_else(|p| panic!("{p}"));
        Said { announce: config.announce, pools: config.cluster.pools }
    }

    fn services(of: &[(&str, &str, usize)]) -> BTreeMap<ServiceKey, Standing> {
        let standing = |net: &str, able| Standing {
            nets: vec![net.parse().unwrap()],
            packets: false,
            able,
            labels: Arc::new([("net".to_owned(), net.to_owned())].into()),
        };
        let of =
            of.iter().map(|(key, net, able)| (ServiceKey((*key).into()), standing(net, *able)));
        of.collect()
    }

    fn told(plan: &Plan, said: &Said, peer: &str, goes: bool) -> Vec<String> {
        let routes = plan.routes(&said.announce, peer, |_| true, goes);
        let word = |(net, it): (IpPrefix, Arc<Attributes>)| {
            let communities: Vec<_> = it.communities.iter().map(|c| format!("{c:x}")).collect();
            format!("{net} {:?} {:?} {}", it.local_pref, it.med, communities.join(","))
        };
        routes.into_iter().map(word).collect()
    }

    #[test]
    fn routers_are_told_of_what_has_backends() {
        let said = said(
            "  bgp:\n    myASN: 1\n    peers: [{name: a, peerAddress: 10.0.0.1, peerASN: 2}, {name: b, \
             peerAddress: 10.0.0.2, peerASN: 1}]\n    advertisements:\n      - {name: all, communities: \
             [\"1:2\"], localPref: 200, med: 9}\n      - {name: wide, peers: [b], addressPools: [inner], \
             aggregationLength: 28, communities: [no-export]}\n      - {name: more, med: 5, localPref: 150, \
             addresses: [192.0.2.1], communities: [\"1:3\"]}\n      - {name: idle, addresses: [192.0.2.3], \
             withoutBackends: true, aggregationLength: 30}\n",
        );
        let services = services(&[
            ("one/80", "192.0.2.1/32", 2),
            ("one/443", "192.0.2.1/32", 0),
            ("two/80", "192.0.2.2/32", 0),
            ("three/80", "192.0.2.3/32", 0),
            ("six/80", "2001:db8::1/128", 1),
        ]);
        let plan = Plan::new(&said, &services);
        assert_eq!(
            told(&plan, &said, "a", false),
            [
                "192.0.2.0/30 None None ",
                "192.0.2.1 Some(200) Some(5) 10002,10003",
                "2001:db8::1 Some(200) Some(9) 10002"
            ]
        );
        assert_eq!(told(&plan, &said, "b", false)[0], "192.0.2.0/28 None None ffffff01");
        assert_eq!(
            told(&plan, &said, "a", true)[1],
            "192.0.2.1 Some(0) Some(5) 10002,10003,ffff0000"
        );
        assert!(plan.troubles.is_empty());
        let vip = plan.vips[&"192.0.2.1/32".parse().unwrap()];
        assert_eq!((vip.services, vip.able_services, vip.able), (2, 1, 2));
        let none = plan.routes(&said.announce, "a", |_| false, false);
        assert!(none.is_empty(), "what is on another box is its to tell");
    }

    #[test]
    fn groups_come_before_segments() {
        let said = said(
            "  nodeLabels: {rack: a}\n  layer2:\n    - {name: lan, interfaces: [eth0, eth1]}\n    - {name: far, \
             interfaces: [eth2, eth0], serviceSelectors: [{matchLabels: {net: 192.0.2.2/32}}]}\n    - {name: \
             elsewhere, interfaces: [eth9], nodeSelectors: [{matchLabels: {rack: b}}]}\n  vrrp:\n    - {name: v, \
             interface: eth0, virtualRouterId: 1, addresses: [192.0.2.1, 192.0.2.64/30]}\n    - {name: w, \
             interface: eth0, virtualRouterId: 2, addresses: [192.0.2.1]}\n",
        );
        let services = services(&[
            ("one/80", "192.0.2.1/32", 2),
            ("one/443", "192.0.2.1/32", 0),
            ("two/80", "192.0.2.2/32", 1),
            ("net/80", "192.0.2.64/30", 1),
        ]);
        let plan = Plan::new(&said, &services);
        let group = &plan.groups["v"];
        assert_eq!((group.nets.len(), group.services, group.failed), (2, 3, 1));
        let two = &plan.segments[&"192.0.2.2/32".parse().unwrap()];
        assert_eq!(
            (&two.interfaces[..], two.adds),
            (&["eth0", "eth1", "eth2"].map(String::from)[..], true)
        );
        assert_eq!(plan.segments.len(), 1);
        let claims = plan.troubles.iter().filter(|why| why.contains("both claim"));
        assert_eq!(claims.count(), 1, "{:?}", plan.troubles);
        assert_eq!(plan.troubles[0], "groups `v` and `w` both claim 192.0.2.1; `v` has it");
    }

    #[test]
    fn what_nothing_chooses_is_said() {
        let said = said("  layer2: [{name: lan, interfaces: [eth0], addresses: [192.0.2.1]}]\n");
        let all = services(&[("one/80", "192.0.2.1/32", 2), ("two/80", "192.0.2.2/32", 1)]);
        let plan = Plan::new(&said, &all);
        assert_eq!(plan.troubles, ["nothing of `announce` chooses 192.0.2.2"]);
        // Without a word of announcements nobody misses them.
        assert!(Plan::new(&Said::default(), &all).troubles.is_empty());
    }
}
