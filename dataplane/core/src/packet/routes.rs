//! Next hops: through which port, to which station.
//!
//! A value like a snapshot: the control side makes it of the kernel's routes and neighbours, workers
//! read it.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use ahash::RandomState;
use hashbrown::{HashMap, HashSet};

use super::frame::{Frame, VlanTag};
use super::parse::{ETHERNET, ether};
use super::reason::DropReason;
use crate::IpPrefix;
use crate::hash::octets;

/// A MAC address.
pub type Mac = [u8; 6];

/// A network that a port is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Number of the port.
    pub port: u16,
    /// The kernel's number of its interface; zero where the kernel has none.
    pub interface: u32,
    /// The tag of its frames.
    pub tag: Option<VlanTag>,
    /// Our station there.
    pub mac: Mac,
    /// Largest IP packet, in bytes.
    pub mtu: u16,
    /// Our address there, by which we speak for ourselves.
    pub ipv4: Option<Ipv4Addr>,
    /// The same for IPv6.
    pub ipv6: Option<Ipv6Addr>,
}

impl Link {
    /// Our address there of the family of `ip`.
    #[must_use]
    pub fn address_for(&self, ip: IpAddr) -> Option<IpAddr> {
        match ip {
            IpAddr::V4(_) => self.ipv4.map(Into::into),
            IpAddr::V6(_) => self.ipv6.map(Into::into),
        }
    }
}

/// Where the packets of a prefix go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Of these addresses.
    pub prefix: IpPrefix,
    /// To this router; none when they are on the link.
    pub via: Option<IpAddr>,
    /// Index of the link.
    pub link: u16,
}

/// Who takes a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextHop<'r> {
    /// This station.
    Known(&'r Link, Mac),
    /// Nobody knows yet whose station this address of the link is.
    Unresolved(&'r Link, IpAddr),
    /// There is no route.
    None,
}

impl<'r> NextHop<'r> {
    /// The link that it is on; none without a route.
    #[must_use]
    pub fn link(&self) -> Option<&'r Link> {
        match *self {
            Self::Known(link, _) | Self::Unresolved(link, _) => Some(link),
            Self::None => None,
        }
    }
}

/// Routes and neighbours.
#[derive(Default)]
pub struct Routes {
    /// Another one for each value that was ever made, so that answers can be remembered.
    version: u64,
    links: Box<[Link]>,
    /// By prefix length, the longest first; families apart.
    v4: Vec<(u8, Targets)>,
    v6: Vec<(u8, Targets)>,
    neighbours: HashMap<(u16, IpAddr), Mac, RandomState>,
    /// Addresses of this machine.
    own: HashSet<IpAddr, RandomState>,
}

/// The first bits of an address, and where they lead.
type Targets = HashMap<u128, (Option<IpAddr>, u16), RandomState>;

impl Routes {
    /// Routes over `links`; those over other links are left out, and of two for a prefix the first
    /// is kept.
    #[must_use]
    pub fn new(
        links: Vec<Link>,
        routes: impl IntoIterator<Item = Route>,
        neighbours: impl IntoIterator<Item = ((u16, IpAddr), Mac)>,
    ) -> Self {
        static VERSIONS: AtomicU64 = AtomicU64::new(1);
        let version = VERSIONS.fetch_add(1, Relaxed);
        let mut made = Self { version, links: links.into(), ..Self::default() };
        for Route { prefix, via, link } in routes {
            if usize::from(link) >= made.links.len() {
                continue;
            }
            let by_length = if prefix.is_ipv4() { &mut made.v4 } else { &mut made.v6 };
            let length = prefix.length();
            let place = match by_length.binary_search_by(|(at, _)| length.cmp(at)) {
                Ok(place) => place,
                Err(place) => {
                    by_length.insert(place, (length, Targets::default()));
                    place
                }
            };
            let first = first_bits(prefix.address(), length);
            by_length[place].1.entry(first).or_insert((via, link));
        }
        made.neighbours = neighbours.into_iter().collect();
        made
    }

    /// With the addresses of this machine, which belong to no network of VIPs.
    #[must_use]
    pub fn with_own(mut self, own: impl IntoIterator<Item = IpAddr>) -> Self {
        self.own = own.into_iter().collect();
        self
    }

    /// Whether an address is this machine's.
    #[must_use]
    pub fn is_own(&self, ip: IpAddr) -> bool {
        self.own.contains(&ip)
    }

    /// Adds a neighbour.
    #[cfg(test)]
    pub(super) fn know(&mut self, link: u16, ip: IpAddr, mac: Mac) {
        self.neighbours.insert((link, ip), mac);
    }

    /// The link of the interface and the station of an address on it, if both are known; an error
    /// says that there is no such interface any more.
    pub(super) fn station(
        &self,
        interface: u32,
        ip: IpAddr,
    ) -> Result<Option<(&Link, Mac)>, DropReason> {
        let mut links = self.links.iter().enumerate();
        let found = links.find(|(_, link)| link.interface == interface);
        let (n, link) = found.ok_or(DropReason::NoNeighbour)?;
        Ok(self.neighbours.get(&(n as u16, ip)).map(|mac| (link, *mac)))
    }

    /// Its links.
    #[must_use]
    pub fn links(&self) -> &[Link] {
        &self.links
    }

    /// The router on the way to `ip`; none when it is on a link, or nowhere.
    #[must_use]
    pub fn router(&self, ip: IpAddr) -> Option<IpAddr> {
        self.target(ip)?.0
    }

    fn target(&self, ip: IpAddr) -> Option<&(Option<IpAddr>, u16)> {
        let by_length = if ip.is_ipv4() { &self.v4 } else { &self.v6 };
        by_length.iter().find_map(|(length, of)| of.get(&first_bits(ip, *length)))
    }

    /// Who takes packets to `ip`. Costs a look-up for each length of prefix that there is, and one
    /// among the neighbours.
    #[must_use]
    pub fn next_hop(&self, ip: IpAddr) -> NextHop<'_> {
        let Some((via, link)) = self.target(ip) else { return NextHop::None };
        let station = via.unwrap_or(ip);
        let neighbour = self.neighbours.get(&(*link, station));
        let link = &self.links[usize::from(*link)];
        match neighbour {
            Some(mac) => NextHop::Known(link, *mac),
            None => NextHop::Unresolved(link, station),
        }
    }
}

/// The newest answers of a worker's routes: for backends, nearly all of them.
pub(super) struct HopCache {
    /// Of the routes that they come from.
    version: u64,
    v4: Box<[Remembered<u32>]>,
    v6: Box<[Remembered<u128>]>,
}

#[derive(Clone, Copy)]
struct Remembered<A> {
    ip: A,
    /// [`NO_LINK`] where nothing is remembered.
    link: u16,
    mac: Mac,
}

const NO_LINK: u16 = u16::MAX;
/// Places of the cache for a family: those of IPv4 fit into half of a first-level cache.
const REMEMBERED: usize = 1024;

impl<A: Copy + PartialEq> Remembered<A> {
    fn nothing(ip: A) -> Box<[Self]> {
        alloc::vec![Self { ip, link: NO_LINK, mac: [0; 6] }; REMEMBERED].into()
    }

    #[inline(always)]
    fn hop<'r>(&self, ip: A, routes: &'r Routes) -> Option<NextHop<'r>> {
        let link = routes.links.get(usize::from(self.link))?;
        (self.ip == ip).then_some(NextHop::Known(link, self.mac))
    }

    fn learn(&mut self, ip: A, routes: &Routes, hop: &NextHop<'_>) {
        if let NextHop::Known(link, mac) = *hop
            && let Some(link) = routes.links.iter().position(|other| core::ptr::eq(other, link))
        {
            *self = Self { ip, link: link as u16, mac };
        }
    }
}

impl Default for HopCache {
    fn default() -> Self {
        let (v4, v6) = (Remembered::nothing(0), Remembered::nothing(0));
        Self { version: u64::MAX, v4, v6 }
    }
}

/// The place of an address in the cache.
#[inline]
fn place(bits: u64) -> usize {
    (bits.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54) as usize % REMEMBERED
}

impl HopCache {
    /// As [`Routes::next_hop`].
    #[inline]
    pub(super) fn next_hop<'r>(&mut self, routes: &'r Routes, ip: IpAddr) -> NextHop<'r> {
        match ip {
            IpAddr::V4(ip) => self.next_hop4(routes, ip.into()),
            IpAddr::V6(ip) => self.next_hop6(routes, ip.into()),
        }
    }

    /// The same for an IPv4 address in a word.
    #[inline(always)]
    pub(super) fn next_hop4<'r>(&mut self, routes: &'r Routes, ip: u32) -> NextHop<'r> {
        let place = place(ip.into());
        match self.v4[place].hop(ip, routes) {
            Some(hop) if self.version == routes.version => hop,
            _ => self.learn(routes, Ipv4Addr::from(ip).into(), place),
        }
    }

    /// The same for an IPv6 address in a word.
    #[inline(always)]
    pub(super) fn next_hop6<'r>(&mut self, routes: &'r Routes, ip: u128) -> NextHop<'r> {
        let place = place(ip as u64 ^ (ip >> 64) as u64);
        match self.v6[place].hop(ip, routes) {
            Some(hop) if self.version == routes.version => hop,
            _ => self.learn(routes, Ipv6Addr::from(ip).into(), place),
        }
    }

    #[cold]
    fn learn<'r>(&mut self, routes: &'r Routes, ip: IpAddr, place: usize) -> NextHop<'r> {
        if self.version != routes.version {
            self.v4.iter_mut().for_each(|known| known.link = NO_LINK);
            self.v6.iter_mut().for_each(|known| known.link = NO_LINK);
            self.version = routes.version;
        }
        let hop = routes.next_hop(ip);
        match ip {
            IpAddr::V4(ip) => self.v4[place].learn(ip.into(), routes, &hop),
            IpAddr::V6(ip) => self.v6[place].learn(ip.into(), routes, &hop),
        }
        hop
    }
}

/// The first `length` bits of an address, at the upper end.
fn first_bits(ip: IpAddr, length: u8) -> u128 {
    let (bits, width) = match ip {
        IpAddr::V4(ip) => (u128::from(u32::from(ip)), 32),
        IpAddr::V6(_) => (u128::from_be_bytes(octets(ip)), 128),
    };
    let rest = u32::from(width - length.min(width));
    bits.checked_shr(rest).unwrap_or(0)
}

/// Addresses a frame that is an IP packet alone to a station. False when its buffer has no room.
pub(super) fn address(frame: &mut Frame<'_>, link: &Link, to: Mac) -> bool {
    let is_v4 = frame.bytes().first().is_some_and(|first| first >> 4 == 4);
    if !frame.grow_front(ETHERNET) {
        return false;
    }
    let kind = if is_v4 { ether::IPV4 } else { ether::IPV6 };
    let bytes = frame.bytes_mut();
    bytes[..6].copy_from_slice(&to);
    bytes[6..12].copy_from_slice(&link.mac);
    bytes[12..14].copy_from_slice(&kind.to_be_bytes());
    frame.tag = link.tag;
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_longest_prefix_leads_to_its_link_and_router() {
        let link = |port| Link {
            port,
            interface: 0,
            tag: None,
            mac: [2, 0, 0, 0, 0, port as u8],
            mtu: 1500,
            ipv4: None,
            ipv6: None,
        };
        let route = |prefix: &str, via: Option<&str>, link| Route {
            prefix: prefix.parse().unwrap(),
            via: via.map(ip),
            link,
        };
        let routes = [
            route("0.0.0.0/0", Some("10.0.0.1"), 0),
            route("10.0.0.0/24", None, 0),
            route("10.0.1.0/24", None, 1),
            route("10.0.1.9/32", Some("10.0.0.9"), 0),
            route("::/0", Some("2001:db8::1"), 1),
            route("172.16.0.0/12", None, 9),
        ];
        let neighbours = [
            ((0, ip("10.0.0.1")), [1; 6]),
            ((0, ip("10.0.0.9")), [9; 6]),
            ((1, ip("10.0.1.2")), [2; 6]),
            ((1, ip("2001:db8::1")), [6; 6]),
        ];
        let routes = Routes::new(alloc::vec![link(0), link(1)], routes, neighbours);
        let known = |port, mac: u8| (Some((port, [mac; 6])), None);
        for (to, want) in [
            ("192.0.2.1", known(0, 1)),
            ("172.16.0.1", known(0, 1)),
            ("10.0.1.2", known(1, 2)),
            ("10.0.1.9", known(0, 9)),
            ("10.0.1.3", (None, Some((1, ip("10.0.1.3"))))),
            ("2001:db8:7::7", known(1, 6)),
        ] {
            let found = match routes.next_hop(ip(to)) {
                NextHop::Known(link, mac) => (Some((link.port, mac)), None),
                NextHop::Unresolved(link, station) => (None, Some((link.port, station))),
                NextHop::None => (None, None),
            };
            assert_eq!(found, want, "{to}");
        }
        assert_eq!(Routes::default().next_hop(ip("10.0.0.1")), NextHop::None);
    }
}
