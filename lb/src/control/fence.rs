//! Keeps the kernel's own stack from answering for what the packet path carries.
//!
//! Packet sockets see copies: the kernel gets each frame as well. An nftables table of our own drops
//! its copies where they enter, of packets to the addresses of packet services and of replies whose
//! destination is to be rewritten: forwarded as they are, they would end their connections.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::IpAddr;

use fairway_config::ServiceSpec;
use fairway_core::{Frontend, IpPrefix, Mode, PortRange, Protocol, Tick};

use super::vip::run;

/// Name of the nftables table, of the family `netdev`.
const TABLE: &str = "fairway";
/// From one look whether our table is still there, or one try after a failure, to the next.
const VERIFY_MS: u64 = 5000;

/// An address, protocol and ports.
type Place = (IpPrefix, Protocol, PortRange);

/// What the kernel is not to see.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Hidden {
    /// Addresses that are ours alone.
    addresses: BTreeSet<IpPrefix>,
    /// Parts of addresses that the kernel has, too.
    places: BTreeSet<Place>,
    /// Where replies come from, unless they are for this machine itself.
    replies: BTreeSet<Place>,
    /// Addresses of this machine.
    local: BTreeSet<IpAddr>,
    /// Interfaces that are there.
    interfaces: Vec<String>,
}

impl Hidden {
    /// What services of packet modes want hidden, where this machine has the addresses `local`.
    pub(super) fn of<'s>(
        services: impl Iterator<Item = &'s ServiceSpec> + Clone,
        local: &BTreeSet<IpAddr>,
        interfaces: Vec<String>,
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
                match shared {
                    true => _ = hidden.places.insert((*net, *protocol, *ports)),
                    false => _ = hidden.addresses.insert(*net),
                }
            }
            match spec.policy.mode {
                Mode::FullNat => hidden.add_sources(spec),
                Mode::Nat => {
                    for backend in &spec.backends {
                        let (ip, port) = (backend.addr.ip(), backend.addr.port());
                        let dialled = spec.frontends.iter().map(|frontend| frontend.ports);
                        let own = port.map(PortRange::single).into_iter();
                        let ports = own.chain(dialled.filter(|_| port.is_none()));
                        hidden.replies.extend(ports.map(|ports| (ip.into(), spec.protocol, ports)));
                    }
                }
                Mode::Proxy | Mode::Dsr | Mode::Tunnel(_) => {}
            }
        }
        hidden
    }

    fn add_sources(&mut self, spec: &ServiceSpec) {
        let source = &spec.policy.source;
        for ip in &source.addresses {
            let ports = source.ports.and_then(|(first, last)| {
                let (first, last) = (first.try_into().ok()?, last.try_into().ok()?);
                PortRange::new(first, last).ok()
            });
            match ports.filter(|_| self.local.contains(ip)) {
                Some(ports) => _ = self.places.insert(((*ip).into(), spec.protocol, ports)),
                None => _ = self.addresses.insert((*ip).into()),
            }
        }
    }

    /// The table in nftables' words.
    fn text(&self) -> String {
        let mut text = format!("table netdev {TABLE} {{}}\ndelete table netdev {TABLE}\n");
        if self.interfaces.is_empty() {
            return text;
        }
        let devices: Vec<String> =
            self.interfaces.iter().map(|name| format!("\"{name}\"")).collect();
        let _ = writeln!(text, "table netdev {TABLE} {{");
        for (suffix, kind, is_v4) in [("4", "ipv4_addr", true), ("6", "ipv6_addr", false)] {
            let ours = |net: &IpPrefix| net.is_ipv4() == is_v4;
            let nets = |nets: Vec<IpPrefix>| -> Vec<String> {
                nets.iter().filter(|net| ours(net)).map(ToString::to_string).collect()
            };
            let places = |places: &BTreeSet<Place>| -> Vec<String> {
                let words = |(net, protocol, ports): &Place| {
                    format!("{net} . {} . {ports}", protocol.to_string().to_lowercase())
                };
                places.iter().filter(|(net, ..)| ours(net)).map(words).collect()
            };
            let (addresses, local) = (
                self.addresses.iter().copied().collect(),
                self.local.iter().map(|ip| (*ip).into()).collect(),
            );
            let place = format!("{kind} . inet_proto . inet_service");
            for (name, kind, flags, elements) in [
                ("addresses", kind, "flags interval; auto-merge; ", nets(addresses)),
                ("local", kind, "flags interval; ", nets(local)),
                ("places", place.as_str(), "flags interval; ", places(&self.places)),
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
                "    {family} daddr @addresses{suffix} drop\n    {to} @places{suffix} drop\n    \
                 {family} daddr != @local{suffix} {from} @replies{suffix} drop"
            );
        }
        text + "  }\n}\n"
    }
}

/// The table in the kernel.
#[derive(Default)]
pub(super) struct Fence {
    wanted: Hidden,
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
        if now < self.look_at || self.wanted.interfaces.is_empty() {
            return;
        }
        self.look_at = Tick(now.0 + VERIFY_MS);
        if self.stands && run("nft", &["-t", "list", "table", "netdev", TABLE], "").is_err() {
            tracing::warn!("our nftables table `netdev {TABLE}` is gone; making it again");
            self.stands = false;
        }
        if !self.stands {
            self.build(now);
        }
    }

    fn build(&mut self, now: Tick) {
        self.look_at = Tick(now.0 + VERIFY_MS);
        match run("nft", &["-f", "-"], &self.wanted.text()) {
            Ok(_) => (self.stands, self.trouble) = (true, None),
            Err(why) => {
                let why = format!(
                    "the kernel's own stack is not kept from answering for packet services, and \
                     may cut their connections: nftables refused our table: {why}"
                );
                if self.trouble.is_none() {
                    tracing::error!("{why}; trying again");
                }
                (self.stands, self.trouble) = (false, Some(why));
            }
        }
    }

    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Takes the table away.
    pub(super) fn clean_up(&mut self) {
        let _ = run("nft", &["delete", "table", "netdev", TABLE], "");
    }
}
