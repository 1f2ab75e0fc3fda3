//! Keeps the kernel's own stack from answering for what the packet path carries.
//!
//! Packet sockets see copies: the kernel gets each frame as well. An nftables table of our own drops
//! its copies where they enter, of packets to the addresses of packet services and of replies whose
//! destination is to be rewritten: forwarded as they are, they would end their connections.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::IpAddr;
use std::os::fd::{BorrowedFd, OwnedFd};

use fairway_config::ServiceSpec;
use fairway_core::{Frontend, IpPrefix, Mode, PortRange, Protocol, Tick};

use super::nft::Nft;

/// Name of the nftables table, of the family `netdev`.
const TABLE: &str = "fairway";
/// From one try after a failure to the next.
const AGAIN_MS: u64 = 5000;

/// Ports by address or network, and protocol.
type Places = BTreeMap<(IpPrefix, Protocol), Vec<PortRange>>;

/// Ports from here on are the kernel's for connections that it makes, unless it was told otherwise.
const EPHEMERAL: u16 = 32_768;

/// An interface, by its name and the kernel's number of it.
pub(super) type Interface = (String, u32);

/// What the kernel is not to see.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Hidden {
    /// Addresses and networks that are ours alone.
    addresses: BTreeSet<IpPrefix>,
    /// Parts of addresses that the kernel has, too.
    hosts: Places,
    /// Parts of networks in which the kernel has addresses; those themselves are not meant.
    nets: Places,
    /// Where replies come from, unless they are for this machine itself.
    replies: Places,
    /// Addresses of this machine.
    local: BTreeSet<IpAddr>,
    /// Interfaces that are there.
    interfaces: Vec<Interface>,
    /// What cannot be hidden without harm, in words.
    pub(super) troubles: Vec<String>,
}

impl Hidden {
    /// What services of packet modes want hidden, where this machine has the addresses `local`, and
    /// forwards packets of IPv4 and of IPv6 by itself or not.
    pub(super) fn of<'s>(
        services: impl Iterator<Item = &'s ServiceSpec> + Clone,
        local: &BTreeSet<IpAddr>,
        interfaces: Vec<Interface>,
        forwards: [bool; 2],
    ) -> Self {
        let mut hidden = Self { local: local.clone(), interfaces, ..Self::default() };
        let packets = services.clone().filter(|spec| spec.policy.mode != Mode::Proxy);
        let proxied: BTreeSet<IpAddr> = services
            .filter(|spec| spec.policy.mode == Mode::Proxy)
            .flat_map(|spec| spec.frontends.iter().map(Frontend::ip))
            .collect();
        for spec in packets {
            for Frontend { net, ports, protocol } in &spec.frontends {
                let shared = proxied.iter().chain(local).any(|ip| net.contains(*ip));
                match (shared, net.is_host()) {
                    (false, _) => _ = hidden.addresses.insert(*net),
                    (true, true) => add(&mut hidden.hosts, *net, *protocol, *ports),
                    (true, false) => add(&mut hidden.nets, *net, *protocol, *ports),
                }
            }
            if matches!(spec.policy.mode, Mode::Nat | Mode::FullNat) {
                hidden.add_sources(spec);
            }
            if spec.policy.mode == Mode::Nat {
                hidden.add_replies(spec, forwards);
            }
        }
        hidden
    }

    /// Addresses of our own towards backends.
    fn add_sources(&mut self, spec: &ServiceSpec) {
        let source = &spec.policy.source;
        for ip in &source.addresses {
            let ports = source.ports.and_then(|(first, last)| {
                let (first, last) = (first.try_into().ok()?, last.try_into().ok()?);
                PortRange::new(first, last).ok()
            });
            match (self.local.contains(ip), ports) {
                (false, _) => _ = self.addresses.insert((*ip).into()),
                (true, Some(ports)) => {
                    add(&mut self.hosts, (*ip).into(), spec.protocol, ports);
                }
                // Everything that this machine does itself comes back to these ports.
                (true, None) => self.troubles.push(format!(
                    "service {}: source {ip} is an address of this machine, whose kernel resets the \
                     replies to it; name `source.ports` outside net.ipv4.ip_local_port_range, or an \
                     address that no machine has",
                    spec.key
                )),
            }
        }
    }

    /// Replies that the kernel would forward as they are.
    fn add_replies(&mut self, spec: &ServiceSpec, forwards: [bool; 2]) {
        for backend in &spec.backends {
            let (ip, port) = (backend.addr.ip(), backend.addr.port());
            if !forwards[usize::from(ip.is_ipv6())] {
                continue;
            }
            let dialled = spec.frontends.iter().map(|frontend| frontend.ports);
            let own = port.map(PortRange::single).into_iter();
            for ports in own.chain(dialled.filter(|_| port.is_none())) {
                if ports.len() > 1 && ports.last() >= EPHEMERAL {
                    self.troubles.push(format!(
                        "service {}: this machine forwards packets, and replies from {ip} ports \
                         {ports} are kept from it: what {ip} dials through this machine from these \
                         ports gets no answer; switch forwarding off, or name a `targetPort`",
                        spec.key
                    ));
                }
                add(&mut self.replies, ip.into(), spec.protocol, ports);
            }
        }
    }

    /// The table in nftables' words.
    fn text(&self) -> String {
        let owned = format!("table netdev {TABLE} {{\n  flags owner;\n");
        let mut text = format!("{owned}}}\ndelete table netdev {TABLE}\n");
        if self.interfaces.is_empty() {
            return text;
        }
        let devices: Vec<String> =
            self.interfaces.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        text += &owned;
        for (suffix, kind, is_v4) in [("4", "ipv4_addr", true), ("6", "ipv6_addr", false)] {
            let ours = |net: &IpPrefix| net.is_ipv4() == is_v4;
            let nets = |nets: Vec<IpPrefix>| -> Vec<String> {
                nets.iter().filter(|net| ours(net)).map(ToString::to_string).collect()
            };
            let places = |places: &Places| -> Vec<String> {
                let apart = disjoint(places).into_iter().filter(|((net, _), _)| ours(net));
                let words = |((net, protocol), ports): ((IpPrefix, Protocol), Vec<PortRange>)| {
                    let protocol = protocol.to_string().to_lowercase();
                    ports.into_iter().map(move |ports| format!("{net} . {protocol} . {ports}"))
                };
                apart.flat_map(words).collect()
            };
            let (addresses, local) = (
                self.addresses.iter().copied().collect(),
                self.local.iter().map(|ip| (*ip).into()).collect(),
            );
            let place = format!("{kind} . inet_proto . inet_service");
            for (name, kind, flags, elements) in [
                ("addresses", kind, "flags interval; auto-merge; ", nets(addresses)),
                ("local", kind, "flags interval; ", nets(local)),
                ("hosts", place.as_str(), "flags interval; ", places(&self.hosts)),
                ("nets", place.as_str(), "flags interval; ", places(&self.nets)),
                ("replies", place.as_str(), "flags interval; ", places(&self.replies)),
            ] {
                let elements = match elements.is_empty() {
                    true => String::new(),
                    false => format!("elements = {{ {} }}; ", elements.join(", ")),
                };
                let _ = writeln!(text, "  set {name}{suffix} {{ type {kind}; {flags}{elements}}}");
            }
        }
        let _ = writeln!(
            text,
            "  chain ingress {{\n    type filter hook ingress devices = {{ {} }} priority 0; policy accept;",
            devices.join(", ")
        );
        for (family, suffix) in [("ip", "4"), ("ip6", "6")] {
            let place = |end: &str| format!("{family} {end}addr . meta l4proto . th {end}port");
            let (to, from) = (place("d"), place("s"));
            let _ = writeln!(
                text,
                "    {family} daddr @addresses{suffix} drop\n    {to} @hosts{suffix} drop\n    \
                 {family} daddr != @local{suffix} {to} @nets{suffix} drop\n    \
                 {family} daddr != @local{suffix} {from} @replies{suffix} drop"
            );
        }
        text + "  }\n}\n"
    }
}

fn add(places: &mut Places, net: IpPrefix, protocol: Protocol, ports: PortRange) {
    places.entry((net, protocol)).or_default().push(ports);
}

/// The same places without those that lie in others: nftables takes no elements that overlap.
fn disjoint(places: &Places) -> Places {
    let mut apart = Places::new();
    for ((net, protocol), ports) in places {
        let around = places.iter().filter(|((other, of), _)| {
            of == protocol
                && other != net
                && other.length() < net.length()
                && other.contains(net.address())
        });
        let covered: Vec<PortRange> = around.flat_map(|(_, ports)| ports.iter().copied()).collect();
        let mut free = Vec::new();
        let (mut at, mut inside) = (None, false);
        for port in 1..=u16::MAX {
            let has = |ranges: &[PortRange]| ranges.iter().any(|range| range.contains(port));
            let here = has(ports) && !has(&covered);
            if here && !inside {
                at = std::num::NonZeroU16::new(port);
            }
            let last = here.then(|| std::num::NonZeroU16::new(port)).flatten();
            inside = here;
            if let (Some(from), Some(to)) = (at, last) {
                match free.last_mut() {
                    Some((first, end)) if *first == from => *end = to,
                    _ => free.push((from, to)),
                }
            }
        }
        let ranges = free.into_iter().filter_map(|(from, to)| PortRange::new(from, to).ok());
        apart.insert((*net, *protocol), ranges.collect());
    }
    apart
}

/// The table in the kernel.
#[derive(Default)]
pub(super) struct Fence {
    wanted: Hidden,
    /// Who owns the table.
    nft: Option<Nft>,
    /// The kernel has what is wanted.
    stands: bool,
    trouble: Option<String>,
    look_at: Tick,
}

impl Fence {
    /// Hides something else from now on.
    pub(super) fn hide(&mut self, hidden: Hidden, now: Tick) {
        if hidden != self.wanted {
            self.wanted = hidden;
            self.build(now);
        }
    }

    /// Looks whether the table is still there, and makes it anew if not.
    pub(super) fn tend(&mut self, now: Tick) {
        if self.nft.as_mut().is_some_and(Nft::is_gone) {
            tracing::warn!(
                "`nft` has ended, and our table `netdev {TABLE}` with it; making it again"
            );
            (self.nft, self.stands, self.look_at) = (None, false, now);
        }
        if !self.stands && now >= self.look_at && !self.wanted.interfaces.is_empty() {
            self.build(now);
        }
    }

    fn build(&mut self, now: Tick) {
        self.look_at = Tick(now.0 + AGAIN_MS);
        match self.apply() {
            Ok(()) => (self.stands, self.trouble) = (true, None),
            Err(why) => {
                let other = match why.contains("Operation not permitted") {
                    true => "; is another Fairway serving here?",
                    false => "",
                };
                let why = format!(
                    "the kernel's own stack is not kept from answering for packet services, and \
                     may cut their connections: nftables refused our table: {why}{other}"
                );
                if self.trouble.is_none() {
                    tracing::error!("{why}; trying again");
                }
                (self.nft, self.stands, self.trouble) = (None, false, Some(why));
            }
        }
    }

    fn apply(&mut self) -> Result<(), String> {
        let nft = match &mut self.nft {
            Some(nft) => nft,
            None => self.nft.insert(Nft::start()?),
        };
        nft.apply(&self.wanted.text())
    }

    /// Whether the kernel has what is wanted.
    pub(super) fn stands(&self) -> bool {
        self.stands
    }

    /// What is wrong, in words.
    pub(super) fn troubles(&self) -> impl Iterator<Item = String> + '_ {
        self.trouble.iter().chain(&self.wanted.troubles).cloned()
    }

    /// Goes on with the `nft` of a process before this one, and its table.
    pub(super) fn inherit(&mut self, mut pipes: Vec<OwnedFd>) {
        if let (Some(stdout), Some(stdin)) = (pipes.pop(), pipes.pop()) {
            self.nft = Some(Nft::of(stdin, stdout));
        }
    }

    /// The pipes of its `nft`, for the next process.
    pub(super) fn pipes(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.nft.iter().flat_map(Nft::pipes)
    }

    /// Another process may have changed the table in vain: it is made anew.
    pub(super) fn restore(&mut self, now: Tick) {
        if !self.wanted.interfaces.is_empty() {
            self.build(now);
        }
    }

    /// Leaves the table to the next process.
    pub(super) fn leave(&mut self) {
        self.nft.take().into_iter().for_each(Nft::leave);
    }

    /// Takes the table away.
    pub(super) fn clean_up(&mut self) {
        (self.nft, self.stands) = (None, false);
    }
}

/// Whether this machine forwards packets of IPv4, and of IPv6, by itself.
pub(super) fn forwards() -> [bool; 2] {
    ["ipv4/ip_forward", "ipv6/conf/all/forwarding"].map(|switch| {
        let text = std::fs::read_to_string(format!("/proc/sys/net/{switch}"));
        text.is_ok_and(|text| text.trim() != "0")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU16;

    #[test]
    fn places_that_lie_in_others_are_left_out() {
        let port = |n| NonZeroU16::new(n).unwrap();
        let range = |first, last| PortRange::new(port(first), port(last)).unwrap();
        let mut places = Places::new();
        let net = |text: &str| text.parse::<IpPrefix>().unwrap();
        for (at, first, last) in [
            ("10.0.0.1", 8000, 8999),
            ("10.0.0.1", 8080, 8080),
            ("10.0.0.1", 9000, 9000),
            ("10.0.0.0/24", 8500, 8600),
            ("10.0.0.0/24", 1, 10),
            ("10.0.1.0/24", 1, 65535),
        ] {
            add(&mut places, net(at), Protocol::Tcp, range(first, last));
        }
        let apart = disjoint(&places);
        let of = |at: &str| apart[&(net(at), Protocol::Tcp)].clone();
        assert_eq!(of("10.0.0.1"), [range(8000, 8499), range(8601, 9000)]);
        assert_eq!(of("10.0.0.0/24"), [range(1, 10), range(8500, 8600)]);
        assert_eq!(of("10.0.1.0/24"), [range(1, 65535)]);
    }
}
