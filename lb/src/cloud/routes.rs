//! Whether this machine knows the way to Pods: by its routes, as the kernel tells them (rtnetlink).

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use fairway_core::IpPrefix;
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteType,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::io::Errno;

/// How long an answer holds.
pub(super) const HOLDS: Duration = Duration::from_secs(30);

/// What was found out, by the prefix of about a node's Pods.
#[derive(Default)]
pub(crate) struct Routes(Mutex<HashMap<IpPrefix, (Instant, Option<String>)>>);

impl Routes {
    /// What is wrong with the way to an address. Asks the kernel, and remembers the answer for a while.
    pub(super) fn trouble(&self, ip: IpAddr) -> Option<String> {
        let prefix = IpPrefix::containing(ip, if ip.is_ipv4() { 24 } else { 64 });
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, trouble)) = known.get(&prefix)
            && at.elapsed() < HOLDS
        {
            return trouble.clone();
        }
        // Of what the kernel does not tell, nothing is known.
        let trouble = way_to(ip).ok();
        let trouble = trouble.and_then(|way| judge(ip, &way));
        known.insert(prefix, (Instant::now(), trouble.clone()));
        trouble
    }
}

/// The route that an address has.
enum Way {
    /// Its kind, and the length of its prefix.
    Route(RouteType, u8),
    /// Why there is none.
    None(io::Error),
}

/// The entry of the routing table that `ip` meets.
fn way_to(ip: IpAddr) -> io::Result<Way> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut question = RouteMessage::default();
    let (family, bits, address) = match ip {
        IpAddr::V4(ip) => (AddressFamily::Inet, 32, RouteAddress::Inet(ip)),
        IpAddr::V6(ip) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(ip)),
    };
    question.header.address_family = family;
    question.header.destination_prefix_length = bits;
    question.header.flags = RouteFlags::FibMatch;
    question.attributes.push(RouteAttribute::Destination(address));
    let mut message = NetlinkMessage::from(RouteNetlinkMessage::GetRoute(question));
    message.header.flags = NLM_F_REQUEST;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let (bytes, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes);
    match answer.map_err(io::Error::other)?.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => {
            Ok(Way::Route(route.header.kind, route.header.destination_prefix_length))
        }
        NetlinkPayload::Error(error) => Ok(Way::None(error.to_io())),
        _ => Err(io::Error::other("an answer to something else")),
    }
}

fn judge(ip: IpAddr, way: &Way) -> Option<String> {
    let remedy = "a static route by its node, or the CNI's BGP, or `fairway.dev/target: node`";
    match way {
        Way::Route(RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit, _) => {
            Some(format!("Pod {ip} is routed nowhere: {remedy}"))
        }
        Way::Route(_, 0) => {
            Some(format!("Pod {ip} is reached by the default route alone: {remedy}"))
        }
        Way::Route(..) => None,
        // So the kernel says of a black hole.
        Way::None(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
            Some(format!("Pod {ip} is routed nowhere: {remedy}"))
        }
        Way::None(error) => Some(format!("Pod {ip} has no route from here ({error}): {remedy}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_route_of_its_own_is_good() {
        let ip = IpAddr::from([10, 244, 0, 5]);
        let said = |way: &Way| judge(ip, way).unwrap_or_default();
        assert_eq!(said(&Way::Route(RouteType::Unicast, 24)), "");
        assert_eq!(said(&Way::Route(RouteType::Local, 32)), "");
        assert!(said(&Way::Route(RouteType::Unicast, 0)).contains("default"));
        assert!(said(&Way::Route(RouteType::BlackHole, 16)).contains("nowhere"));
        let none = |error: Errno| said(&Way::None(error.into()));
        assert!(none(Errno::INVAL).contains("nowhere"));
        assert!(none(Errno::NETUNREACH).contains("no route from here (Network is unreachable"));
    }

    #[test]
    fn the_kernel_answers() {
        for loopback in [IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 1, 2, 3])] {
            let way = way_to(loopback).unwrap();
            assert!(matches!(way, Way::Route(RouteType::Local, 8 | 32)));
        }
    }
}
