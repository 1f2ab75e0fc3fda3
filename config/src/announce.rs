//! What a document says of announcements: which addresses, to whom, and how.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use fairway_core::IpPrefix;
use serde::Serialize;

use crate::document::TrackServicesDoc;
use crate::kubernetes::{LabelSelector, Labels, Pool};

/// How routers and segments learn of the services' addresses.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Announce {
    /// Something of it is written: addresses that nothing chooses are not announced.
    pub is_written: bool,
    /// The name of this box; none is its host name.
    pub node_name: Option<String>,
    /// Its labels.
    pub node_labels: Labels,
    /// How long it serves after it has taken back what it announced; none is as long as it takes.
    pub withdraw_delay: Option<Duration>,
    /// Segments on which this box answers.
    pub layer2: Vec<Layer2>,
    /// Addresses that one of several boxes has.
    pub vrrp: Vec<VrrpGroup>,
    /// Routers.
    pub peers: Vec<BgpPeer>,
    /// What they are told.
    pub advertisements: Vec<BgpAdvertisement>,
    /// Our AS number, for peers that name none,
    pub own_as: Option<u32>,
    /// and our identifier.
    pub router_id: Option<Ipv4Addr>,
    /// How ways are watched, by name.
    pub profiles: Vec<(String, Bfd)>,
    /// Where routers may connect to us.
    pub listen_port: Option<u16>,
}

impl Announce {
    /// The groups that claim an address; more than one is a mistake.
    pub fn groups(
        &self,
        net: IpPrefix,
        service: &str,
        labels: &Labels,
        pool: Option<&str>,
    ) -> impl Iterator<Item = &VrrpGroup> {
        let claims = move |group: &&VrrpGroup| group.chosen.admits(net, service, labels, pool);
        let here = |group: &&VrrpGroup| group.chosen.holds_on(&self.node_labels);
        self.vrrp.iter().filter(here).filter(claims)
    }
}

/// The pool that an address is of.
#[must_use]
pub fn pool_of(pools: &[Pool], net: IpPrefix) -> Option<&str> {
    let has = |pool: &&Pool| pool.ranges.iter().any(|range| range.contains(net.address()));
    pools.iter().find(has).map(|pool| &*pool.name)
}

/// Which addresses an entry is for, and on which boxes it holds. What is empty chooses all.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Chosen {
    /// Addresses, and networks of them.
    pub addresses: Vec<IpPrefix>,
    /// Names of pools.
    pub pools: Vec<String>,
    /// Names of services.
    pub services: Vec<String>,
    /// Labels of services.
    pub service_selectors: Vec<LabelSelector>,
    /// Labels of boxes.
    pub node_selectors: Vec<LabelSelector>,
}

impl Chosen {
    /// Whether it holds on a box with these labels.
    #[must_use]
    pub fn holds_on(&self, node: &Labels) -> bool {
        self.node_selectors.is_empty() || self.node_selectors.iter().any(|it| it.admits(node))
    }

    /// Whether it chooses an address of a service: by the service's name and labels, and the pool that the
    /// address is of.
    #[must_use]
    pub fn admits(
        &self,
        net: IpPrefix,
        service: &str,
        labels: &Labels,
        pool: Option<&str>,
    ) -> bool {
        let within = |of: &IpPrefix| of.length() <= net.length() && of.contains(net.address());
        (self.addresses.is_empty() || self.addresses.iter().any(within))
            && (self.pools.is_empty()
                || pool.is_some_and(|pool| self.pools.iter().any(|it| it == pool)))
            && (self.services.is_empty() || self.services.iter().any(|name| service == name))
            && (self.service_selectors.is_empty()
                || self.service_selectors.iter().any(|it| it.admits(labels)))
    }
}

/// Segments on which a box answers for addresses.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer2 {
    /// Its name.
    pub name: String,
    /// Which addresses.
    pub chosen: Chosen,
    /// The interfaces.
    pub interfaces: Vec<String>,
    /// Addresses of proxied services are added to the first one.
    pub adds: bool,
    /// Boxes agree by Leases on who answers.
    pub by_lease: bool,
}

/// Addresses that one of several boxes has at a time.
#[derive(Debug, Clone, PartialEq)]
pub struct VrrpGroup {
    /// Its name.
    pub name: String,
    /// Which addresses.
    pub chosen: Chosen,
    /// The interface.
    pub interface: String,
    /// Number of the virtual router.
    pub id: u8,
    /// 1 to 255.
    pub priority: u8,
    /// How often the active one speaks.
    pub interval: Duration,
    /// Takes the addresses from a lower priority,
    pub preempts: bool,
    /// but not so soon after its start.
    pub preempt_delay: Duration,
    /// The other boxes; none is by multicast.
    pub peers: BTreeSet<IpAddr>,
    /// From which address it speaks.
    pub source: Option<IpAddr>,
    /// What lowers the priority,
    pub track_services: TrackServicesDoc,
    /// interfaces that are down, too,
    pub track_interfaces: Vec<String>,
    /// and by how much.
    pub weight: u8,
    /// Addresses of proxied services are added to the interface.
    pub adds: bool,
}

/// Which AS number a router may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum PeerAs {
    /// This one.
    Number(u32),
    /// Any but ours.
    External,
    /// Ours.
    Internal,
}

/// Where a secret is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Secret {
    /// In a file.
    File(PathBuf),
    /// Among systemd's credentials.
    Credential(String),
}

/// A router.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BgpPeer {
    /// Its name.
    pub name: String,
    /// Its address,
    pub address: IpAddr,
    /// and port.
    pub port: u16,
    /// Its AS number.
    pub peer_as: PeerAs,
    /// Ours.
    pub own_as: u32,
    /// Our address.
    pub source: Option<IpAddr>,
    /// Our identifier.
    pub router_id: Option<Ipv4Addr>,
    /// Silence that ends the session; zero is never.
    pub hold: Duration,
    /// How often we speak.
    pub keepalive: Option<Duration>,
    /// The longest time between two tries to connect.
    pub retry: Duration,
    /// It may be several hops away.
    pub multihop: bool,
    /// It is on a link of ours, or it is not meant: one of another AS that is not several hops away.
    pub direct: bool,
    /// The key that signs the session.
    pub password: Option<Secret>,
    /// How the way to it is watched.
    pub bfd: Option<Bfd>,
    /// How long it keeps our routes.
    pub restart: Option<Duration>,
    /// It connects to us.
    pub passive: bool,
    /// Where it is to send what is for IPv4,
    pub next_hop_v4: Option<Ipv4Addr>,
    /// and for IPv6.
    pub next_hop_v6: Option<Ipv6Addr>,
    /// On which boxes it is a peer.
    pub node_selectors: Vec<LabelSelector>,
}

/// How a way is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Bfd {
    /// How often we can hear.
    pub receive: Duration,
    /// How often we speak.
    pub transmit: Duration,
    /// So many missed are silence.
    pub multiplier: u8,
    /// With several hops, the least time to live.
    pub minimum_ttl: u8,
}

/// A community.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Community {
    /// RFC 1997.
    Plain(u32),
    /// RFC 8092.
    Large([u32; 3]),
}

/// What routers are told.
#[derive(Debug, Clone, PartialEq)]
pub struct BgpAdvertisement {
    /// Its name.
    pub name: String,
    /// Which addresses.
    pub chosen: Chosen,
    /// Names of peers; none is all.
    pub peers: Vec<String>,
    /// Communities.
    pub communities: BTreeSet<Community>,
    /// How much routers of our own AS prefer it.
    pub local_pref: Option<u32>,
    /// How little others do.
    pub med: Option<u32>,
    /// Length of the networks of IPv4 that are told,
    pub length_v4: u8,
    /// and of IPv6.
    pub length_v6: u8,
    /// Also addresses without a backend.
    pub without_backends: bool,
}
