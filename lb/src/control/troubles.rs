//! What needs a person, in words.

use std::sync::atomic::Ordering::Relaxed;

use fairway_core::{BackendTotals, FailureCause, Mode};

use super::{Control, Live, LiveBackend, waiting_text};

/// Most words of trouble that a status shows.
const MOST: usize = 50;
/// Connects without an answer that are more than chance.
const UNANSWERED: u64 = 5;

impl Control {
    /// What is wrong with everything.
    pub(crate) fn troubles(&self) -> Vec<String> {
        let mut troubles: Vec<String> = Vec::new();
        if !self.config.waiting.is_empty() {
            troubles.push(waiting_text(&self.config.waiting));
        }
        // What does not serve at all before what serves by half.
        let of = |looks: fn(&Self, &Live) -> Vec<String>| {
            self.services.iter().flat_map(move |(key, live)| {
                let own = looks(self, live).into_iter();
                own.map(move |trouble| format!("service {key}: {trouble}"))
            })
        };
        let mut services = of(Self::troubles_of).chain(of(Self::half_down));
        troubles.extend(services.by_ref().take(MOST));
        troubles.extend(services.next().map(|_| "…".into()));
        let unbound: u64 = self.workers.iter().map(|worker| worker.stats.unbound.get()).sum();
        if unbound > 0 {
            troubles.push(format!(
                "{unbound} sockets to backends could not be given the `source` of their service: \
                 the address must be on this machine, `transparent` and `interface` need \
                 CAP_NET_ADMIN, `ports` needs Linux 6.3"
            ));
        }
        let cloud = &self.cloud.troubles;
        troubles.extend(cloud.iter().take(MOST).cloned());
        if cloud.len() > MOST {
            troubles.push(format!("{} more of the cluster", cloud.len() - MOST));
        }
        troubles.extend(self.routing_trouble());
        troubles.extend(self.packet_troubles());
        troubles.extend(self.announcing.troubles().iter().take(MOST).cloned());
        let names = self.name_troubles();
        let more = names.len().saturating_sub(MOST);
        troubles.extend(names.into_iter().take(MOST));
        if more > 0 {
            troubles.push(format!("{more} more names cannot be resolved"));
        }
        troubles
    }

    /// What is wrong with a service.
    pub(crate) fn troubles_of(&self, live: &Live) -> Vec<String> {
        let serving = live.grouped().find(|(_, live)| live.standing().admits());
        let pool = match serving {
            _ if live.panic => Some("panic mode: too few healthy backends, so all are used"),
            None if live.all().next().is_none() => Some("no backends"),
            None => Some("no backend takes new connections"),
            Some((0, _)) => None,
            Some(_) => Some("no backend of the first priority takes connections; others serve"),
        };
        let way = match live.spec.policy.mode {
            Mode::Proxy => self.listeners.troubles(&live.spec.frontends),
            mode => self.way_troubles(live, mode),
        };
        pool.map(Into::into).into_iter().chain(way).collect()
    }

    /// That so many backends of the first priority have failed that the rest may not carry all. Those that leave, or
    /// that somebody took out, have not.
    fn half_down(&self, live: &Live) -> Vec<String> {
        let first = || live.grouped().filter(|(group, _)| *group == 0).map(|(_, live)| live);
        let ejected =
            |live: &&LiveBackend| live.standing().ejected && live.orders.ejected.is_none();
        let all = first().count();
        let down = first().filter(|live| live.down.is_some() || ejected(live)).count();
        let is_half =
            down > 0 && 2 * down >= all && live.grouped().any(|(_, live)| live.standing().admits());
        is_half.then(|| format!("{down} of {all} backends are down")).into_iter().collect()
    }

    /// What keeps packets from their backends, or answers from coming back.
    fn way_troubles(&self, live: &Live, mode: Mode) -> Vec<String> {
        let mut troubles = Vec::new();
        if !self.carries_packets() {
            troubles.push("no interface of `dataplane.packet` carries packets".into());
        }
        let snapshot = self.publisher.current();
        if mode == Mode::Dsr {
            for live in live.all() {
                let ip = live.backend.addr.ip();
                if let Some(router) = snapshot.routes().router(ip) {
                    troubles.push(format!(
                        "backend {ip} is behind the router {router}, which knows nothing of direct \
                         return: `dsr` reaches backends on its own links; use `ipip` or `gue`"
                    ));
                }
            }
        }
        let mut totals = BackendTotals::default();
        live.all().for_each(|live| totals.add(&live.backend.counters.totals()));
        let unanswered = totals.failures[FailureCause::Timeout as usize];
        let well = live.all().any(|live| live.down.is_none());
        let tcp = live.spec.protocol == fairway_core::Protocol::Tcp;
        if mode.is_two_way() && tcp && well && totals.connections == 0 && unanswered >= UNANSWERED {
            let checked = if live.spec.check.is_some() { ", and checks are good" } else { "" };
            let to = match mode {
                Mode::Nat => "clients",
                _ => "the addresses of `source`",
            };
            troubles.push(format!(
                "no backend has answered a connection here, of {unanswered} that were asked\
                 {checked}: their route to {to} must lead through this machine"
            ));
        }
        troubles
    }

    /// The state of what keeps packets going, as gauges.
    pub(super) fn show_packets(&self) {
        let Some(packets) = &self.packets else { return };
        for view in packets.views() {
            let up = if view.carries { 1.0 } else { 0.0 };
            metrics::gauge!("fairway_port_up", "interface" => view.name).set(up);
        }
        let stands = if packets.is_guarded() { 1.0 } else { 0.0 };
        metrics::gauge!("fairway_packet_guard_up").set(stands);
        let flows = self.workers.iter().filter_map(|worker| worker.packets.as_ref());
        let room: u64 = flows.map(|stats| stats.room.load(Relaxed)).sum();
        metrics::gauge!("fairway_packet_flows_limit").set(room as f64);
    }
}
