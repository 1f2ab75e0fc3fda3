//! Who has which address: groups, and what follows for segments and for the control loop.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use fairway_core::announce::vrrp::Action;
use fairway_core::{IpPrefix, Tick, Told};

use super::announcer::Announcer;
use super::plan::{OfGroup, Vip};
use super::run::Announced;
use super::segment::{Manner, mac};
use super::vrrp::{Group, GroupKey, words};

impl Announcer {
    /// Virtual routers as the document and the interfaces have them.
    pub(super) fn make_groups(&mut self, now: Tick) {
        let mut wanted: BTreeSet<GroupKey> = BTreeSet::new();
        self.group_troubles.clear();
        for spec in self.said.announce.vrrp.clone() {
            let Some(of) = self.plan.groups.get(&spec.name) else { continue };
            let families: BTreeSet<bool> = of.nets.iter().map(IpPrefix::is_ipv4).collect();
            let segment = self.segments.get(&spec.interface);
            let state = segment.and_then(|segment| segment.state()).cloned();
            for family in families {
                let key = (spec.name.clone(), family);
                let Some(state) = state.clone().filter(|state| state.is_up) else {
                    let why = format!("interface `{}` is down, or not there", spec.interface);
                    self.group_troubles.insert(key, why);
                    continue;
                };
                if let Some(group) = self.groups.get_mut(&key)
                    && group.is_of(&spec, &state)
                {
                    group.adopt(&spec);
                    wanted.insert(key);
                    continue;
                }
                self.drop_group(&key);
                match Group::new(&spec, family, &state, self.events.clone()) {
                    Ok(group) => {
                        self.groups.insert(key.clone(), group);
                        self.go_on_as_active(&key, now);
                        wanted.insert(key);
                    }
                    Err(why) => _ = self.group_troubles.insert(key, why),
                }
            }
        }
        for key in self.groups.keys().cloned().collect::<Vec<_>>() {
            if !wanted.contains(&key) {
                self.drop_group(&key);
            }
        }
        // How long this process may stand still before another box takes over: three intervals, and some of
        // the skew.
        let mut patience: BTreeMap<&String, Duration> = BTreeMap::new();
        for spec in &self.said.announce.vrrp {
            let of_group = spec.interval * 3 + spec.interval / 4;
            let least = patience.entry(&spec.interface).or_insert(of_group);
            *least = (*least).min(of_group);
        }
        for (interface, patience) in patience {
            if let Some(segment) = self.segments.get_mut(interface) {
                segment.set_patience(patience.max(Duration::from_millis(200)));
            }
        }
        self.turn_groups(now);
    }

    fn drop_group(&mut self, key: &GroupKey) {
        if let Some(group) = self.groups.get_mut(key) {
            let actions = group.router().stop();
            self.follow(key, actions);
            self.groups.remove(key);
            self.moved = true;
        }
    }

    pub(super) fn turn_groups(&mut self, now: Tick) {
        let none = OfGroup::default();
        for key in self.groups.keys().cloned().collect::<Vec<_>>() {
            let Some(group) = self.groups.get_mut(&key) else { continue };
            let of = self.plan.groups.get(&key.0).unwrap_or(&none);
            let track = &group.spec.track_interfaces;
            let lost = track.iter().any(|name| self.tracked.get(name) == Some(&false));
            // Nobody takes part before it is known what is to be served.
            let goes = self.draining.is_some() || !self.begun;
            let actions = group.turn(of, lost, goes, now);
            self.follow(&key, actions);
        }
    }

    /// Does what a virtual router wants.
    pub(super) fn follow(&mut self, key: &GroupKey, actions: Vec<Action>) {
        let Some(group) = self.groups.get_mut(key) else { return };
        for action in actions {
            let (name, addresses) = (&key.0, group.addresses.len());
            let family = if key.1 { "IPv4" } else { "IPv6" };
            match action {
                Action::Advertise(priority) => group.advertise(priority),
                Action::Take(cause) | Action::Release(cause) => {
                    let what = match action {
                        Action::Take(_) => "taken over",
                        _ => "given up",
                    };
                    let why = words(cause);
                    tracing::info!(group = name, family, addresses, cause = why, "{what}");
                    group.note(cause);
                    self.moved = true;
                }
            }
        }
    }

    /// Puts addresses where they belong, and takes away those that do not.
    pub(super) async fn place(&mut self, now: Tick) {
        let mut wanted: BTreeMap<String, BTreeMap<IpAddr, Manner>> = BTreeMap::new();
        let mut want = |interface: &str, ip: IpAddr, manner: Manner| {
            wanted.entry(interface.into()).or_default().insert(ip, manner);
        };
        let hosts = self.plan.vips.iter().filter(|(net, _)| net.is_host());
        let mut vips: BTreeMap<IpAddr, Vip> =
            hosts.map(|(net, vip)| (net.address(), *vip)).collect();
        // Listeners may be a word ahead of their services.
        for (ip, _) in self.local.iter().filter(|(_, at)| at.is_none()) {
            vips.entry(*ip).or_default().proxied = true;
        }
        for (ip, vip) in &vips {
            for (interface, manner) in self.places(*ip, vip) {
                want(&interface, *ip, manner);
            }
        }
        for (name, segment) in &mut self.segments {
            let wanted = wanted.remove(name).unwrap_or_default();
            let here: Vec<IpAddr> = segment.addresses().collect();
            for ip in here.iter().filter(|ip| !wanted.contains_key(ip)) {
                // Connections to an address whose service is gone may go on for a while.
                let at = self.local.get(ip).copied().flatten().filter(|at| *at > now);
                segment.release(*ip, at.filter(|_| !vips.contains_key(ip))).await;
            }
            for (ip, manner) in wanted {
                segment.hold(ip, manner, now).await;
            }
        }
    }

    /// Where an address belongs on this box, and how.
    fn places(&self, ip: IpAddr, vip: &Vip) -> Vec<(String, Manner)> {
        let net = IpPrefix::from(ip);
        let by_engine = |interface: &String| {
            vip.packets && !vip.proxied && self.fixed.packet_interfaces.contains(interface)
        };
        if let Some(group) = self.plan.grouped.get(&net) {
            let spec = self.said.announce.vrrp.iter().find(|spec| spec.name == *group);
            let Some(spec) = spec.filter(|_| self.is_here(net)) else { return Vec::new() };
            let manner = match vip.proxied && spec.adds {
                true => Manner::AddGuarded,
                false if by_engine(&spec.interface) => Manner::Tell,
                false => Manner::Answer,
            };
            return vec![(spec.interface.clone(), manner)];
        }
        if let Some(on) = self.plan.segments.get(&net) {
            if !self.is_here(net) {
                return Vec::new();
            }
            let adds = on.adds && vip.proxied;
            let manner = |(n, interface): (usize, &String)| match (adds && n == 0, on.by_lease) {
                (true, true) => Manner::AddGuarded,
                (true, false) => Manner::Add,
                (false, _) if by_engine(interface) => Manner::Tell,
                (false, _) => Manner::Answer,
            };
            let all = on.interfaces.iter().enumerate();
            return all.map(|(n, interface)| (interface.clone(), manner((n, interface)))).collect();
        }
        match &self.fixed.vip_interface {
            Some(interface) if vip.proxied => vec![(interface.clone(), Manner::Add)],
            _ => Vec::new(),
        }
    }

    /// What the control loop is to know.
    pub(super) fn announced(&self) -> Announced {
        let mut announced = Announced::default();
        for (net, vip) in &self.plan.vips {
            let group = self.plan.grouped.get(net);
            let on = self.plan.segments.get(net);
            let spec = group
                .and_then(|group| self.said.announce.vrrp.iter().find(|spec| spec.name == *group));
            let is_added = match (spec, on) {
                (Some(spec), _) => spec.adds,
                (None, Some(on)) => on.adds,
                (None, None) => self.fixed.vip_interface.is_some(),
            };
            if vip.proxied && is_added && net.is_host() {
                announced.governed.insert(net.address());
            }
        }
        if self.fixed.vip_interface.is_some() {
            announced.governed.extend(self.local.keys());
        }
        if !self.stale {
            announced.known.extend(self.local.keys());
        }
        announced.told = Arc::new(self.told());
        for segment in self.segments.values() {
            announced.failed.extend(segment.failed().clone());
        }
        announced.troubles = self.troubles();
        announced
    }

    /// On which ports of the packet path stations are told of addresses.
    fn told(&self) -> Told {
        let bit = |interface: &String| {
            let n = self.fixed.packet_interfaces.iter().position(|name| name == interface);
            n.and_then(|n| 1_u64.checked_shl(n as u32)).unwrap_or(0)
        };
        let mut told = Told::new();
        for (net, _) in self.plan.vips.iter().filter(|(_, vip)| vip.packets) {
            if !self.plan.is_announced(*net) {
                continue;
            }
            let spec =
                self.plan.grouped.get(net).and_then(|group| {
                    self.said.announce.vrrp.iter().find(|spec| spec.name == *group)
                });
            let ports = match (spec, self.plan.segments.get(net)) {
                (Some(spec), _) => bit(&spec.interface),
                (None, Some(on)) => on.interfaces.iter().map(bit).fold(0, |all, bit| all | bit),
                // Routers send it here, and ask for us.
                (None, None) => 0,
            };
            told.insert(*net, if self.is_here(*net) { ports } else { 0 });
        }
        told
    }

    /// What needs a person.
    pub(super) fn troubles(&self) -> Vec<String> {
        let mut troubles = self.plan.troubles.clone();
        troubles.extend(self.segments.values().filter_map(|segment| segment.trouble()));
        for segment in self.segments.values() {
            troubles.extend(segment.duplicates().iter().map(|(ip, duplicate)| {
                let (name, station) = (&segment.name, mac(duplicate.station));
                format!("{ip} is on another station of `{name}`, too: {station}")
            }));
        }
        for (key, why) in &self.group_troubles {
            let family = if key.1 { "IPv4" } else { "IPv6" };
            troubles.push(format!("group `{}`, {family}: {why}", key.0));
        }
        let astray = self.plan.vips.keys().filter(|net| {
            let elsewhere =
                self.plan.grouped.contains_key(net) || self.plan.segments.contains_key(net);
            self.plan.is_advertised(**net) && !elsewhere && !self.is_local(**net)
        });
        troubles.extend(astray.map(|net| {
            format!(
                "{net} is not told to routers, for it is not an address of this machine: add it to `lo`, or \
                 have `dataplane.vip.interface: lo` do so"
            )
        }));
        for (key, group) in &self.groups {
            troubles.extend(group.trouble.iter().map(|why| format!("group `{}`: {why}", key.0)));
        }
        troubles.extend(self.peer_troubles());
        troubles.extend(self.lease_trouble.clone());
        if self.draining.is_some() && !self.leaves {
            troubles.push(
                "what is announced was taken back; `fairway announce undrain` announces it again"
                    .into(),
            );
        }
        troubles
    }
}
