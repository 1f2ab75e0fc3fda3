//! From the kernel's messages to next hops.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use fairway_core::IpPrefix;
use fairway_core::packet::{Link, Mac, NextHop, Route, Routes, VlanTag};
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{
    InfoData, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteNextHop, RouteType, RouteVia,
};

use super::News;

/// A configured interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Device {
    /// The kernel's number of it.
    pub(crate) index: u32,
    /// Whether it is switched on and has a carrier.
    pub(crate) up: bool,
    /// Largest IP packet, in bytes.
    pub(crate) mtu: u16,
}

/// What the kernel knows, as far as it matters here.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Network {
    devices: Vec<Option<Device>>,
    addresses: BTreeSet<IpAddr>,
    links: Vec<Link>,
    routes: Vec<Route>,
    neighbours: BTreeMap<(u16, IpAddr), Mac>,
    /// Those that the operator has set: by interface.
    fixed: BTreeSet<(u32, IpAddr)>,
}

impl Network {
    /// What messages say of the configured interfaces and the VLANs on them.
    pub(super) fn of(
        interfaces: &[String],
        links: &[LinkMessage],
        addresses: &[AddressMessage],
        routes: &[RouteMessage],
        neighbours: &[NeighbourMessage],
    ) -> Self {
        let mut network = Self::default();
        let named = |name: &str| links.iter().find(|link| name_of(link) == Some(name));
        for (port, name) in interfaces.iter().enumerate() {
            let Some(link) = named(name) else {
                network.devices.push(None);
                continue;
            };
            let device = device_of(link);
            if device.up {
                network.add_link(port as u16, link, None);
                for (vlan, tag) in links.iter().filter_map(|link| Some((link, vlan_of(link)?))) {
                    if tag.parent == device.index && device_of(vlan).up {
                        network.add_link(port as u16, vlan, Some(VlanTag(tag.id)));
                    }
                }
            }
            network.devices.push(Some(device));
        }
        for message in addresses {
            network.add_address(message);
        }
        let by_interface: BTreeMap<u32, u16> =
            (0..).zip(&network.links).map(|(n, link)| (link.interface, n)).collect();
        let mut ranked: Vec<(u32, Route)> =
            routes.iter().filter_map(|route| route_of(route, &by_interface)).collect();
        // Of two to the same place the one with the lower metric is the kernel's choice.
        ranked.sort_by_key(|(metric, route)| {
            (route.prefix.address(), route.prefix.length(), *metric, route.link, route.via)
        });
        network.routes = ranked.into_iter().map(|(_, route)| route).collect();
        network.routes.dedup_by_key(|route| route.prefix);
        let known = neighbours.iter().filter_map(|message| neighbour_of(message, &by_interface));
        for (link, ip, mac, is_fixed) in known {
            network.neighbours.insert((link, ip), mac);
            if is_fixed {
                network.fixed.insert((network.links[usize::from(link)].interface, ip));
            }
        }
        network
    }

    /// For the control loop.
    pub(super) fn news(&self) -> News {
        News {
            routes: Arc::new(self.made()),
            devices: self.devices.clone(),
            addresses: self.addresses.clone(),
        }
    }

    fn made(&self) -> Routes {
        let neighbours = self.neighbours.iter().map(|(at, mac)| (*at, *mac));
        let routes = Routes::new(self.links.clone(), self.routes.iter().copied(), neighbours);
        routes.with_own(self.addresses.iter().copied())
    }

    /// Interface and address of the station on the way to each of `ips`.
    pub(super) fn stations(&self, ips: &[IpAddr]) -> BTreeSet<(u32, IpAddr)> {
        // Without neighbours none is known, and each is named.
        let routes = Routes::new(self.links.clone(), self.routes.iter().copied(), []);
        let station = |ip: &IpAddr| match routes.next_hop(*ip) {
            NextHop::Unresolved(link, station) => Some((link.interface, station)),
            NextHop::Known(..) | NextHop::None => None,
        };
        ips.iter().filter_map(station).filter(|(at, ip)| !self.is_fixed(*at, *ip)).collect()
    }

    /// Whether the operator has said whose station an address is: to ask the kernel for it would make
    /// it one that can be forgotten.
    pub(super) fn is_fixed(&self, interface: u32, ip: IpAddr) -> bool {
        self.fixed.contains(&(interface, ip))
    }

    fn add_link(&mut self, port: u16, link: &LinkMessage, tag: Option<VlanTag>) {
        let mac = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Address(bytes) => Mac::try_from(bytes.as_slice()).ok(),
            _ => None,
        });
        // Links without Ethernet addresses carry no frames.
        let Some(mac) = mac else { return };
        let Device { index, mtu, .. } = device_of(link);
        let (ipv4, ipv6) = (None, None);
        self.links.push(Link { port, interface: index, tag, mac, mtu, ipv4, ipv6 });
    }

    fn add_address(&mut self, message: &AddressMessage) {
        let attributes = &message.attributes;
        let local = attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(ip) => Some(*ip),
            _ => None,
        });
        // IPv6 has no word for "local".
        let address = || {
            attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(ip) => Some(*ip),
                _ => None,
            })
        };
        let Some(ip) = local.or_else(address) else { return };
        self.addresses.insert(ip);
        let index = message.header.index;
        for link in self.links.iter_mut().filter(|link| link.interface == index) {
            match ip {
                IpAddr::V4(ip) => _ = link.ipv4.get_or_insert(ip),
                IpAddr::V6(ip) if !ip.is_unicast_link_local() => _ = link.ipv6.get_or_insert(ip),
                IpAddr::V6(_) => {}
            }
        }
    }
}

fn name_of(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

fn device_of(link: &LinkMessage) -> Device {
    let mtu = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    Device {
        index: link.header.index,
        up: link.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        mtu: u16::try_from(mtu.unwrap_or(1500)).unwrap_or(u16::MAX),
    }
}

/// A VLAN, and the interface that it is on.
struct Vlan {
    parent: u32,
    id: u16,
}

fn vlan_of(link: &LinkMessage) -> Option<Vlan> {
    let attributes = &link.attributes;
    let parent = attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Link(index) => Some(*index),
        _ => None,
    })?;
    let infos = attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    })?;
    infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vlan(vlan)) => vlan.iter().find_map(|word| match word {
            InfoVlan::Id(id) => Some(Vlan { parent, id: *id }),
            _ => None,
        }),
        _ => None,
    })
}

/// A unicast route of the main table over one of our links, and its metric.
fn route_of(message: &RouteMessage, links: &BTreeMap<u32, u16>) -> Option<(u32, Route)> {
    let RouteMessage { header, attributes, .. } = message;
    if header.table != RouteHeader::RT_TABLE_MAIN || header.kind != RouteType::Unicast {
        return None;
    }
    let mut hop = Hop::of(attributes);
    let (mut metric, mut to) = (0, None);
    for attribute in attributes {
        match attribute {
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Destination(address) => to = ip_of(address),
            // Of several ways the first one over our links.
            RouteAttribute::MultiPath(hops) => {
                let ours = |hop: &&RouteNextHop| links.contains_key(&hop.interface_index);
                let first = hops.iter().find(ours)?;
                hop = Hop { interface: Some(first.interface_index), ..Hop::of(&first.attributes) };
            }
            _ => {}
        }
    }
    let link = *links.get(&hop.interface?)?;
    let everywhere: IpAddr = match header.address_family {
        rtnetlink::packet_route::AddressFamily::Inet => std::net::Ipv4Addr::UNSPECIFIED.into(),
        _ => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let address = to.unwrap_or(everywhere);
    let prefix = format!("{address}/{}", header.destination_prefix_length);
    let prefix: IpPrefix = prefix.parse().ok()?;
    Some((metric, Route { prefix, via: hop.via, link }))
}

/// Where a route leads.
struct Hop {
    interface: Option<u32>,
    via: Option<IpAddr>,
}

impl Hop {
    fn of(attributes: &[RouteAttribute]) -> Self {
        let mut hop = Self { interface: None, via: None };
        for attribute in attributes {
            match attribute {
                RouteAttribute::Oif(index) => hop.interface = Some(*index),
                RouteAttribute::Gateway(address) => hop.via = ip_of(address),
                RouteAttribute::Via(RouteVia::Inet(ip)) => hop.via = Some((*ip).into()),
                RouteAttribute::Via(RouteVia::Inet6(ip)) => hop.via = Some((*ip).into()),
                _ => {}
            }
        }
        hop
    }
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

/// A neighbour whose station is known, also when that is to be asked again: its link, address and
/// station, and whether it was set by hand.
fn neighbour_of(
    message: &NeighbourMessage,
    links: &BTreeMap<u32, u16>,
) -> Option<(u16, IpAddr, Mac, bool)> {
    let link = *links.get(&message.header.ifindex)?;
    use NeighbourState::{Delay, Noarp, Permanent, Probe, Reachable, Stale};
    if !matches!(message.header.state, Reachable | Stale | Delay | Probe | Permanent | Noarp) {
        return None;
    }
    let (mut ip, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(to)) => {
                ip = Some(IpAddr::V4(*to));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(to)) => {
                ip = Some(IpAddr::V6(*to));
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = Mac::try_from(bytes.as_slice()).ok();
            }
            _ => {}
        }
    }
    let ip = ip.filter(|ip| !ip.is_multicast())?;
    Some((link, ip, mac?, matches!(message.header.state, Permanent | Noarp)))
}
