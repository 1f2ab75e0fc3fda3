//! What a document, or a cluster's objects, say of announcements.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use super::Findings;
use super::process::secret;
use crate::announce::{
    Announce, Bfd, BgpAdvertisement, BgpPeer, Chosen, Layer2, PeerAs, VrrpGroup,
};
use crate::document::{
    AnnounceDoc, BfdProfileDoc, BgpAdvertisementDoc, BgpDoc, BgpPeerDoc, Choice, ElectionDoc,
    Layer2Doc, ListenDoc, VrrpGroupDoc,
};
use crate::spec::Process;
use crate::values::{Address, At, Time};

/// The longest interval of VRRP: 4095 hundredths of a second.
const LONGEST_ADVERT: Duration = Duration::from_millis(40_950);
/// A second without a word is taken for silence at the least (RFC 4271).
const SHORTEST_HOLD: Duration = Duration::from_secs(3);

/// What entries go by, beside themselves.
#[derive(Clone, Copy)]
pub(crate) struct Around<'a> {
    pub(crate) process: &'a Process,
    /// The folder of the document.
    pub(crate) base: &'a Path,
    /// Names that entries may use: pools, when all of them are known.
    pub(crate) pools: Option<&'a BTreeSet<&'a str>>,
    /// The same of services.
    pub(crate) services: Option<&'a BTreeSet<&'a str>>,
}

/// All that a document says.
pub(crate) fn announce(
    doc: &AnnounceDoc,
    around: Around<'_>,
    findings: &mut Findings<'_>,
) -> Announce {
    let AnnounceDoc { layer2: segments, vrrp, bgp, bfd_profiles, .. } = doc;
    let is_written = !segments.is_empty()
        || !vrrp.is_empty()
        || !bgp.peers.is_empty()
        || !bgp.advertisements.is_empty();
    unique("segment", segments.iter().map(|at| &at.value.name), findings);
    unique("group", vrrp.iter().map(|at| &at.value.name), findings);
    unique("peer", bgp.peers.iter().map(|at| &at.value.name), findings);
    let names = bgp.advertisements.iter().map(|at| &at.value.name);
    unique("advertisement", names, findings);
    unique("profile", bfd_profiles.iter().map(|at| &at.value.name), findings);
    let profiles: Vec<(String, Bfd)> =
        bfd_profiles.iter().map(|at| profile(&at.value, findings)).collect();
    let groups: Vec<VrrpGroup> =
        vrrp.iter().filter_map(|at| vrrp_group(at, around, findings)).collect();
    for (n, at) in vrrp.iter().enumerate() {
        let same = |other: &&At<VrrpGroupDoc>| {
            let of = |doc: &VrrpGroupDoc| {
                let interface = doc.interface.as_ref().map(|at| at.value.clone());
                (interface, doc.virtual_router_id.map(|at| at.value))
            };
            at.value.virtual_router_id.is_some() && of(&other.value) == of(&at.value)
        };
        if let Some(other) = vrrp[..n].iter().find(same) {
            let (mine, other) = (&at.value.name, &other.value.name.value);
            findings.add(
                mine.place,
                format!("groups `{}` and `{other}` have one number on one segment", mine.value),
            );
        }
    }
    let peers: Vec<BgpPeer> = bgp
        .peers
        .iter()
        .filter_map(|at| bgp_peer(&at.value, bgp, &profiles, around, findings))
        .collect();
    for (n, at) in bgp.peers.iter().enumerate() {
        let address = &at.value.peer_address;
        if bgp.peers[..n].iter().any(|it| it.value.peer_address.value == address.value) {
            let message = format!("{} is a peer already; one session is enough", address.value.0);
            findings.add(address.place, message);
        }
    }
    let names: BTreeSet<&str> = bgp.peers.iter().map(|at| at.value.name.value.as_str()).collect();
    let advertisements = bgp.advertisements.iter();
    let advertisements =
        advertisements.map(|at| advertisement(&at.value, Some(&names), around, findings)).collect();
    if let Some(at) = bgp.peers.first().filter(|_| bgp.advertisements.is_empty()) {
        findings.absent(at.place, "the peers are told nothing: add `advertisements`");
    }
    Announce {
        is_written,
        node_name: doc.node_name.as_ref().map(|at| at.value.clone()),
        node_labels: doc.node_labels.clone(),
        withdraw_delay: doc.withdraw_delay.map(|at| at.value.0),
        layer2: segments.iter().map(|at| layer2(at, around, findings)).collect(),
        vrrp: groups,
        peers,
        advertisements,
        own_as: bgp.my_asn.map(|at| at.value),
        router_id: bgp.router_id.and_then(|at| match at.value.0 {
            IpAddr::V4(ip) => Some(ip),
            IpAddr::V6(_) => None,
        }),
        profiles,
        listen_port: bgp.listen_port.map(|at| at.value).filter(|port| *port > 0),
    }
}

fn unique<'d>(
    what: &str,
    names: impl Iterator<Item = &'d At<String>>,
    findings: &mut Findings<'_>,
) {
    let mut seen = BTreeSet::new();
    for At { place, value } in names {
        if value.is_empty() {
            findings.add(*place, format!("a {what} has a name"));
        } else if !seen.insert(value) {
            findings.add(*place, format!("{what} `{value}` is here twice; rename one"));
        }
    }
}

fn chosen(choice: Choice<'_>, around: Around<'_>, findings: &mut Findings<'_>) -> Chosen {
    let known = |names: &[At<String>], all: Option<&BTreeSet<&str>>, what: &str| {
        let all = all?;
        let odd = names.iter().find(|at| !all.contains(at.value.as_str()))?;
        Some((odd.place, format!("there is no {what} `{}`", odd.value)))
    };
    let odd = [
        known(choice.address_pools, around.pools, "pool"),
        known(choice.services, around.services, "service"),
    ];
    odd.into_iter().flatten().for_each(|(place, message)| findings.add(place, message));
    let texts = |names: &[At<String>]| names.iter().map(|at| at.value.clone()).collect();
    Chosen {
        addresses: choice.addresses.iter().map(|at| at.value.0).collect(),
        pools: texts(choice.address_pools),
        services: texts(choice.services),
        service_selectors: choice.service_selectors.to_vec(),
        node_selectors: choice.node_selectors.to_vec(),
    }
}

fn interface(At { place, value }: &At<String>, findings: &mut Findings<'_>) {
    if value.is_empty() || value.len() > 15 {
        findings.add(*place, "an interface has a name of 1 to 15 bytes");
    }
}

/// Whether addresses of proxied services are added to an interface.
fn adds(written: Option<At<bool>>, process: &Process) -> bool {
    written.map_or(process.listen == ListenDoc::PerAddress, |at| at.value)
}

pub(crate) fn layer2(
    At { place, value: doc }: &At<Layer2Doc>,
    around: Around<'_>,
    findings: &mut Findings<'_>,
) -> Layer2 {
    let Around { process, .. } = around;
    doc.interfaces.iter().for_each(|at| interface(at, findings));
    let mut interfaces: Vec<String> = doc.interfaces.iter().map(|at| at.value.clone()).collect();
    if interfaces.is_empty() {
        // The loopback is no segment.
        interfaces.extend(process.vip_interface.clone().filter(|name| name != "lo"));
        let packets = process.packet.iter().flat_map(|packet| packet.interfaces.clone());
        interfaces.extend(packets);
        interfaces.dedup();
    }
    if interfaces.is_empty() {
        findings.absent(*place, "on which segment? Name its `interfaces`");
    }
    let by_lease = match doc.election {
        None => process.api.is_some(),
        Some(At { value: ElectionDoc::None, .. }) => false,
        Some(At { place, value: ElectionDoc::Lease }) => {
            if process.api.is_none() {
                findings.add(
                    place,
                    "Leases are objects of an API server: name it in `sources.kubernetes`, or use \
                     `vrrp`",
                );
            }
            true
        }
    };
    Layer2 {
        name: doc.name.value.clone(),
        chosen: chosen(doc.choice(), around, findings),
        interfaces,
        adds: adds(doc.add_addresses, process),
        by_lease,
    }
}

pub(crate) fn vrrp_group(
    At { place, value: doc }: &At<VrrpGroupDoc>,
    around: Around<'_>,
    findings: &mut Findings<'_>,
) -> Option<VrrpGroup> {
    let mut number = |name: &str, at: Option<At<u16>>, range: std::ops::RangeInclusive<u16>| {
        let At { place, value } = at?;
        if !range.contains(&value) {
            let (least, most) = (range.start(), range.end());
            findings.add(place, format!("`{name}` is {value}; it is {least} to {most}"));
        }
        u8::try_from(value).ok()
    };
    let id = number("virtualRouterId", doc.virtual_router_id, 1..=255);
    let priority = number("priority", doc.priority, 1..=255).unwrap_or(100);
    let weight = number("weight", doc.track.weight, 1..=254).unwrap_or(100);
    let interval = findings.time("advertInterval", doc.advert_interval.as_ref(), "200ms");
    if let Some(At { place, .. }) = doc
        .advert_interval
        .filter(|_| interval > LONGEST_ADVERT || !interval.as_nanos().is_multiple_of(10_000_000))
    {
        findings.add(place, "`advertInterval` is 10ms to 40950ms, in steps of 10ms");
    }
    doc.interface.iter().chain(&doc.track.interfaces).for_each(|at| interface(at, findings));
    if doc.interface.is_none() {
        findings.absent(*place, "`interface` is missing; add the one that has the addresses");
    }
    if doc.virtual_router_id.is_none() {
        findings.absent(
            *place,
            "`virtualRouterId` is missing; add a number that the segment does not use yet",
        );
    }
    Some(VrrpGroup {
        name: doc.name.value.clone(),
        chosen: chosen(doc.choice(), around, findings),
        interface: doc.interface.as_ref()?.value.clone(),
        id: id?,
        priority,
        interval,
        preempts: doc.preempt.unwrap_or(true),
        preempt_delay: doc.preempt_delay.map_or(Duration::ZERO, |at| at.value.0),
        peers: doc.unicast_peers.iter().map(|at| at.value.0).collect(),
        source: doc.source_address.map(|at| at.value.0),
        track_services: doc.track.services.unwrap_or_default(),
        track_interfaces: doc.track.interfaces.iter().map(|at| at.value.clone()).collect(),
        weight,
        adds: adds(doc.add_addresses, around.process),
    })
}

pub(crate) fn profile(doc: &BfdProfileDoc, findings: &mut Findings<'_>) -> (String, Bfd) {
    let mut time = |name: &str, at: Option<&At<Time>>| {
        let time = findings.time(name, at, "300ms");
        if let Some(at) = at.filter(|_| time < Duration::from_millis(10)) {
            findings.add(at.place, format!("`{name}` is {time:?}; it is 10ms at least"));
        }
        time
    };
    let receive = time("receiveInterval", doc.receive_interval.as_ref());
    let transmit = time("transmitInterval", doc.transmit_interval.as_ref());
    let multiplier = doc.detect_multiplier.map_or(3, |at| at.value);
    if let Some(at) = doc.detect_multiplier.filter(|at| at.value == 0) {
        findings.add(at.place, "`detectMultiplier` is 0; it is 1 to 255");
    }
    let minimum_ttl = doc.minimum_ttl.map_or(254, |at| at.value);
    (doc.name.value.clone(), Bfd { receive, transmit, multiplier, minimum_ttl })
}

pub(crate) fn bgp_peer(
    doc: &BgpPeerDoc,
    bgp: &BgpDoc,
    profiles: &[(String, Bfd)],
    around: Around<'_>,
    findings: &mut Findings<'_>,
) -> Option<BgpPeer> {
    let name = &doc.name.value;
    let own_as = doc.my_asn.or(bgp.my_asn);
    if own_as.is_none() {
        findings.absent(
            doc.name.place,
            "which AS number is ours? Set `myASN`, here or for all under `bgp`",
        );
    }
    if let Some(At { place, .. }) = own_as.filter(|at| at.value == 0) {
        findings.add(place, "`myASN` is 0; it is 1 to 4294967295");
    }
    let address = doc.peer_address.value.0;
    let mut four = |name: &str, at: Option<At<Address>>| match at {
        Some(At { value: Address(IpAddr::V4(ip)), .. }) => Some(ip),
        Some(At { place, .. }) => {
            findings.add(place, format!("`{name}` is an IPv4 address"));
            None
        }
        None => None,
    };
    let router_id = four("routerID", doc.router_id.or(bgp.router_id));
    let next_hop_v4 = four("nextHopIPv4", doc.next_hop_ipv4);
    let next_hop_v6 = match doc.next_hop_ipv6 {
        Some(At { value: Address(IpAddr::V6(ip)), .. }) => Some(ip),
        Some(At { place, .. }) => {
            findings.add(place, "`nextHopIPv6` is an IPv6 address");
            None
        }
        None => None,
    };
    if let Some(At { place, value: Address(source) }) = doc.source_address
        && source.is_ipv4() != address.is_ipv4()
    {
        findings.add(place, format!("{address} cannot be reached from {source}"));
    }
    // Nobody can be asked for an identifier that a peer over IPv6 does not show.
    if address.is_ipv6() && router_id.is_none() {
        findings.absent(
            doc.name.place,
            "a peer with an IPv6 address needs our `routerID`, here or for all under `bgp`",
        );
    }
    let hold = doc.hold_time.map_or(Duration::from_secs(90), |at| at.value.0);
    let is_odd = hold.subsec_nanos() != 0 || hold.as_secs() > u16::MAX.into();
    if let Some(at) = doc.hold_time.filter(|_| !hold.is_zero() && (hold < SHORTEST_HOLD || is_odd))
    {
        findings.add(at.place, "`holdTime` is whole seconds, 3s to 65535s, or 0s for never");
    }
    let written = (doc.password_file.as_ref(), doc.password_credential.as_ref());
    let password = secret(["passwordFile", "passwordCredential"], written, around.base, findings);
    let bfd = doc.bfd_profile.as_ref().and_then(|at| {
        let found = profiles.iter().find(|(name, _)| *name == at.value);
        if found.is_none() {
            findings.add(at.place, format!("there is no BFD profile `{}`", at.value));
        }
        found.map(|(_, bfd)| *bfd)
    });
    let restart = findings.time("restartTime", doc.restart_time.as_ref(), "120s");
    if let Some(at) = doc.restart_time.filter(|_| restart > Duration::from_secs(4095)) {
        findings.add(at.place, "`restartTime` is 4095s at most");
    }
    if let Some(at) = doc.passive.filter(|at| at.value && bgp.listen_port.is_none()) {
        findings.add(at.place, "a `passive` session needs `listenPort` of `bgp`, like 179");
    }
    let internal = match doc.peer_asn.value.0 {
        PeerAs::Number(number) => own_as.is_some_and(|own| own.value == number),
        PeerAs::Internal => true,
        PeerAs::External => false,
    };
    let multihop = doc.ebgp_multi_hop.unwrap_or(false);
    Some(BgpPeer {
        name: name.clone(),
        address,
        port: doc.peer_port.map_or(179, |at| at.value),
        peer_as: doc.peer_asn.value.0,
        own_as: own_as?.value,
        source: doc.source_address.map(|at| at.value.0),
        router_id,
        hold,
        keepalive: doc.keepalive_time.map(|at| at.value.0),
        retry: findings.time("connectTime", doc.connect_time.as_ref(), "10s"),
        multihop,
        direct: !internal && !multihop,
        password,
        bfd,
        restart: doc.enable_graceful_restart.unwrap_or(false).then_some(restart),
        passive: doc.passive.is_some_and(|at| at.value),
        next_hop_v4,
        next_hop_v6,
        node_selectors: doc.node_selectors.clone(),
    })
}

pub(crate) fn advertisement(
    doc: &BgpAdvertisementDoc,
    peers: Option<&BTreeSet<&str>>,
    around: Around<'_>,
    findings: &mut Findings<'_>,
) -> BgpAdvertisement {
    let unknown = |at: &&At<String>| peers.is_some_and(|all| !all.contains(at.value.as_str()));
    if let Some(at) = doc.peers.iter().find(unknown) {
        findings.add(at.place, format!("there is no peer `{}`", at.value));
    }
    let mut length = |name: &str, at: Option<At<u8>>, range: std::ops::RangeInclusive<u8>| {
        let most = *range.end();
        let Some(At { place, value }) = at else { return most };
        if !range.contains(&value) {
            findings.add(place, format!("`{name}` is {value}; it is {} to {most}", range.start()));
        }
        value.min(most)
    };
    // Wider networks are no load balancer's to tell.
    let length_v4 = length("aggregationLength", doc.aggregation_length, 8..=32);
    let length_v6 = length("aggregationLengthV6", doc.aggregation_length_v6, 16..=128);
    BgpAdvertisement {
        name: doc.name.value.clone(),
        chosen: chosen(doc.choice(), around, findings),
        peers: doc.peers.iter().map(|at| at.value.clone()).collect(),
        communities: doc.communities.iter().map(|at| at.value.0).collect(),
        local_pref: doc.local_pref,
        med: doc.med,
        length_v4,
        length_v6,
        without_backends: doc.without_backends.unwrap_or(false),
    }
}
