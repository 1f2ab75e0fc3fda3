//! What the admin API shows: plain values, the same for programs and for tables.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, UNIX_EPOCH};

use axum::http::StatusCode;
use fairway_config::{ServiceKey, Serving};
use fairway_core::packet::{DropReason, protocol};
use fairway_core::{
    Counter, DatagramDrop, EndReason, FailureCause, IpPrefix, LimitKind, RetryCause, Share,
};
use fairway_uring::{
    ConnectionFilter, Features, OpenConnection, OpenFlow, PacketStats, PortStats, ServiceTalkers,
};
use serde::{Deserialize, Serialize};

use crate::control::{Change, Control, InterfaceView, Live, LiveBackend, is_backend, names};

/// The state of the process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Status {
    pub(crate) version: String,
    pub(crate) pid: u32,
    pub(crate) uptime_seconds: u64,
    pub(crate) ready: bool,
    pub(crate) stopping: bool,
    pub(crate) generation: u64,
    /// The oldest generation that a worker still uses.
    pub(crate) generation_in_use: u64,
    pub(crate) config: ConfigView,
    pub(crate) services: usize,
    /// The cluster whose Services are served, if there is one.
    #[serde(default)]
    pub(crate) cluster: Option<ClusterView>,
    pub(crate) backends: usize,
    pub(crate) backends_down: usize,
    pub(crate) checks: usize,
    pub(crate) connections: u64,
    pub(crate) udp_sessions: u64,
    pub(crate) budgets: Budgets,
    pub(crate) per_backend_metrics: bool,
    pub(crate) uring_features: Vec<String>,
    pub(crate) workers: Vec<WorkerView>,
    /// Those of the packet path.
    #[serde(default)]
    pub(crate) interfaces: Vec<InterfaceView>,
    /// Processes that have handed over to this one and still have connections.
    #[serde(default)]
    pub(crate) before: Vec<BeforeView>,
    /// What the operator's orders make different from the file, in words.
    #[serde(default)]
    pub(crate) orders: Vec<String>,
    /// What needs a person, in words.
    pub(crate) troubles: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ConfigView {
    pub(crate) path: String,
    /// Seconds since 1970.
    pub(crate) loaded_at: u64,
    /// What is wrong with the newest document; empty when it runs.
    pub(crate) problems: Vec<String>,
    /// Sections that changed and take effect after an upgrade.
    #[serde(default)]
    pub(crate) waiting_for_restart: Vec<String>,
}

/// A process that has handed over.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BeforeView {
    pub(crate) pid: u32,
    pub(crate) connections: u64,
}

/// A cluster, in short.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ClusterView {
    /// Number of objects, by kind.
    pub(crate) objects: BTreeMap<String, usize>,
    /// Its Services that are ours.
    pub(crate) services: usize,
}

/// Descriptors, by what they are for.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Budgets {
    pub(crate) descriptors: u64,
    pub(crate) for_control: u64,
    pub(crate) for_listeners: u64,
    pub(crate) for_pipes: u64,
    pub(crate) for_udp: u64,
    pub(crate) for_connections: u64,
    pub(crate) most_connections: u64,
    pub(crate) listeners_open: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WorkerView {
    pub(crate) worker: usize,
    pub(crate) connections: u64,
    pub(crate) listeners: u64,
    pub(crate) paused: bool,
    pub(crate) accept_pauses: u64,
    pub(crate) starved_receives: u64,
    pub(crate) buffers_used: u64,
    pub(crate) no_service: u64,
    /// Its packet path, if it has one.
    #[serde(default)]
    pub(crate) packets: Option<PacketView>,
}

/// The packet path of a worker.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PacketView {
    pub(crate) flows: u64,
    pub(crate) sent: u64,
    pub(crate) punted: u64,
    /// By reason.
    pub(crate) dropped: BTreeMap<String, u64>,
    /// Sent by the choice of a backend alone, as the flow table was full.
    pub(crate) stateless: u64,
    /// Frames that the interfaces lost.
    pub(crate) lost: u64,
}

impl PacketView {
    fn of(stats: &PacketStats) -> Self {
        let counters = &stats.counters;
        let dropped: Vec<u64> = counters.dropped.iter().map(Counter::get).collect();
        let lost = |port: &PortStats| port.lost.get() + port.cut.get() + port.full.get();
        Self {
            flows: stats.flows.load(Relaxed),
            sent: counters.sent.get(),
            punted: counters.punted.get(),
            dropped: above_zero(&dropped, DropReason::LABELS),
            stateless: counters.stateless.get(),
            lost: stats.ports.iter().map(lost).sum(),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServiceView {
    pub(crate) name: String,
    pub(crate) addresses: Vec<String>,
    pub(crate) protocol: String,
    /// What is spoken over it, as its owner says.
    #[serde(default)]
    pub(crate) app_protocol: Option<String>,
    pub(crate) backends: usize,
    pub(crate) backends_up: usize,
    pub(crate) table_slots: usize,
    pub(crate) table_generation: u64,
    pub(crate) table_build_microseconds: u64,
    pub(crate) panic: bool,
    pub(crate) active: u32,
    pub(crate) connections: u64,
    pub(crate) received_bytes: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) ends: BTreeMap<String, u64>,
    pub(crate) retries: BTreeMap<String, u64>,
    pub(crate) limits_hit: BTreeMap<String, u64>,
    #[serde(default)]
    pub(crate) received_packets: u64,
    #[serde(default)]
    pub(crate) sent_packets: u64,
    pub(crate) received_datagrams: u64,
    pub(crate) sent_datagrams: u64,
    pub(crate) dropped_datagrams: BTreeMap<String, u64>,
    pub(crate) written_at: String,
    pub(crate) troubles: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BackendView {
    pub(crate) service: String,
    pub(crate) address: String,
    pub(crate) name: Option<String>,
    pub(crate) zone: Option<String>,
    pub(crate) weight: u16,
    /// 0 serves first, each other when those before it cannot.
    pub(crate) group: usize,
    /// `up`, `starting`, `down`, `ejected`, `draining` or `removed`.
    pub(crate) state: String,
    /// Why, in words.
    pub(crate) cause: Option<String>,
    pub(crate) active: u32,
    pub(crate) connections: u64,
    pub(crate) received_bytes: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) failures: BTreeMap<String, u64>,
    pub(crate) transitions: u64,
}

/// What a configuration would change.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PlanView {
    pub(crate) changes: Vec<Change>,
    /// What changes of announcements, in words.
    #[serde(default)]
    pub(crate) announcements: Vec<String>,
    /// Sections that change and take effect after an upgrade.
    pub(crate) restart: Vec<String>,
}

/// An open connection or session of datagrams.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ConnectionView {
    pub(crate) service: Option<String>,
    pub(crate) protocol: String,
    pub(crate) client: String,
    pub(crate) vip: String,
    pub(crate) backend: Option<String>,
    pub(crate) attempts: u32,
    pub(crate) received_bytes: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) age_seconds: f64,
    pub(crate) idle_seconds: f64,
}

impl ConnectionView {
    pub(crate) fn of(open: &OpenConnection) -> Self {
        Self {
            service: open.service.as_deref().map(Into::into),
            protocol: open.protocol.to_string(),
            client: open.client.to_string(),
            vip: open.vip.to_string(),
            backend: open.backend.map(|backend| backend.to_string()),
            attempts: open.attempts,
            received_bytes: open.rx_bytes,
            sent_bytes: open.tx_bytes,
            age_seconds: open.age.as_secs_f64(),
            idle_seconds: open.idle.as_secs_f64(),
        }
    }
}

/// A flow of the packet path.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FlowView {
    pub(crate) service: Option<String>,
    pub(crate) protocol: String,
    pub(crate) client: String,
    pub(crate) vip: String,
    pub(crate) backend: String,
    /// Who the backend believes to talk to, in `nat` and `fullNat`.
    pub(crate) local: Option<String>,
    pub(crate) state: String,
    /// Of IP packets, both directions that come through here.
    pub(crate) bytes: u64,
    pub(crate) age_seconds: f64,
    /// Until it ends, if nothing moves.
    pub(crate) expires_seconds: f64,
}

impl FlowView {
    pub(crate) fn of(open: &OpenFlow) -> Self {
        let flow = &open.view.flow;
        Self {
            service: open.service.as_deref().map(Into::into),
            protocol: match flow.protocol {
                protocol::TCP => "TCP".into(),
                protocol::UDP => "UDP".into(),
                protocol::SCTP => "SCTP".into(),
                other => other.to_string(),
            },
            client: flow.client.to_string(),
            vip: flow.vip.to_string(),
            backend: flow.backend.to_string(),
            local: flow.mode.is_two_way().then(|| flow.local.to_string()),
            state: open.view.state.label().into(),
            bytes: open.view.bytes,
            age_seconds: open.age.as_secs_f64(),
            expires_seconds: open.left.as_secs_f64(),
        }
    }
}

/// Which open connections are asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct WhichConnections {
    pub(crate) service: Option<String>,
    client: Option<String>,
    backend: Option<String>,
    older_than_seconds: Option<u64>,
    pub(crate) most: Option<usize>,
}

/// Connections that are listed of each worker, unless more are asked for.
const LISTED: usize = 10_000;

impl WhichConnections {
    /// An error says what is no filter, or who is not here.
    pub(crate) fn filter(
        &self,
        control: &Control,
    ) -> Result<ConnectionFilter, (StatusCode, String)> {
        let client = self.client.as_ref().map(|text| {
            let prefix = text.parse::<IpPrefix>();
            prefix.map_err(|_| {
                let why = format!("`{text}` is no address or prefix of a client");
                (StatusCode::BAD_REQUEST, why)
            })
        });
        let backends = self.backend.as_ref().map(|word| {
            let found = control.backends_named(word);
            if found.is_empty() {
                let why = format!("no backend `{word}` here; `fairway backends` lists them");
                return Err((StatusCode::NOT_FOUND, why));
            }
            Ok(found)
        });
        Ok(ConnectionFilter {
            service: self.service.clone(),
            client: client.transpose()?.into_iter().collect(),
            backends: backends.transpose()?,
            older_than: Duration::from_secs(self.older_than_seconds.unwrap_or(0)),
            most: self.most.unwrap_or(LISTED),
        })
    }
}

/// One of the heaviest clients of a service, by connections and sessions that have ended.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TalkerView {
    pub(crate) service: String,
    /// An IPv4 address, or the /64 of an IPv6 one.
    pub(crate) client: String,
    /// None when it is not among the heaviest by that count.
    pub(crate) connections: Option<u64>,
    pub(crate) bytes: Option<u64>,
    /// By how much the counts may be too high.
    pub(crate) connections_error: u64,
    pub(crate) bytes_error: u64,
}

impl TalkerView {
    /// Sums what the workers say.
    pub(crate) fn merge(service: &str, workers: &[ServiceTalkers]) -> Vec<Self> {
        let mut views: BTreeMap<IpAddr, Self> = BTreeMap::new();
        let mut view = |client: IpAddr, change: &dyn Fn(&mut Self)| {
            let view = views.entry(client).or_insert_with(|| Self {
                service: service.into(),
                client: if client.is_ipv6() { format!("{client}/64") } else { client.to_string() },
                connections: None,
                bytes: None,
                connections_error: 0,
                bytes_error: 0,
            });
            change(view);
        };
        for worker in workers {
            for talker in worker.by_connections.list() {
                view(talker.client, &|view| {
                    *view.connections.get_or_insert(0) += talker.count;
                    view.connections_error += talker.error;
                });
            }
            for talker in worker.by_bytes.list() {
                view(talker.client, &|view| {
                    *view.bytes.get_or_insert(0) += talker.count;
                    view.bytes_error += talker.error;
                });
            }
        }
        views.into_values().collect()
    }
}

/// What is fixed for the life of the process.
#[derive(Debug, Clone)]
pub(crate) struct Fixed {
    pub(crate) budgets: Budgets,
    pub(crate) features: Features,
}

impl Control {
    pub(crate) fn status(&self, fixed: &Fixed, per_backend: bool) -> Status {
        let mut orders = self.order_words();
        orders.extend(self.rolled_back.map(|number| {
            format!("rolled back to configuration {number}; the file says otherwise")
        }));
        let down = |live: &&LiveBackend| live.standing().failed || live.standing().ejected;
        let listeners_open = self.listeners.descriptors() as u64;
        let loaded = self.config.loaded.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let workers = self.workers.iter().enumerate().map(|(worker, handle)| {
            let stats = &handle.stats;
            WorkerView {
                worker,
                connections: stats.connections.load(Relaxed),
                listeners: stats.listeners.load(Relaxed),
                paused: stats.paused.load(Relaxed),
                accept_pauses: stats.pauses.get(),
                starved_receives: stats.starved.get(),
                buffers_used: stats.buffers_used.load(Relaxed),
                no_service: stats.no_service.get(),
                packets: handle.packets.as_deref().map(PacketView::of),
            }
        });
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_seconds: self.clock.now().since(self.began).as_secs(),
            ready: !self.is_stopping(),
            stopping: self.is_stopping(),
            generation: self.publisher.current().generation,
            generation_in_use: self.publisher.oldest_seen(),
            config: ConfigView {
                path: self.config.path.display().to_string(),
                loaded_at: loaded.as_secs(),
                problems: self.config.problems.clone(),
                waiting_for_restart: self.config.waiting.iter().map(|s| (*s).into()).collect(),
            },
            services: self.services.len(),
            cluster: (!self.cloud.objects.is_empty()).then(|| ClusterView {
                objects: self.cloud.objects.clone(),
                services: self.cloud.services.len(),
            }),
            backends: self.services.values().map(|live| live.all().count()).sum(),
            backends_down: self.services.values().flat_map(|s| s.all()).filter(down).count(),
            checks: self.checker.len(),
            connections: self.connections(),
            udp_sessions: self.workers.iter().map(|w| w.stats.udp_sessions.load(Relaxed)).sum(),
            budgets: Budgets { listeners_open, ..fixed.budgets },
            per_backend_metrics: per_backend,
            uring_features: fixed.features.names().map(Into::into).collect(),
            workers: workers.collect(),
            interfaces: self.interface_views(),
            before: self
                .before
                .iter()
                .map(|(pid, connections)| BeforeView { pid: *pid, connections: *connections })
                .collect(),
            orders,
            troubles: self.troubles(),
        }
    }

    pub(crate) fn service_views(&self, name: Option<&str>) -> Vec<ServiceView> {
        let wanted = |key: &ServiceKey| name.is_none_or(|name| names(key, name));
        let services = self.services.iter().filter(|(key, _)| wanted(key));
        let view = |(key, live): (&ServiceKey, &Live)| {
            let totals = live.state.counters.totals();
            let spec = &live.spec;
            let addresses = spec.frontends.iter();
            ServiceView {
                name: key.to_string(),
                addresses: addresses.map(ToString::to_string).collect(),
                protocol: spec.protocol.to_string(),
                app_protocol: spec.app_protocol.as_deref().map(Into::into),
                backends: live.all().count(),
                backends_up: live.all().filter(|live| live.standing().admits()).count(),
                table_slots: live.table_len(),
                table_generation: live.state.table_generation.load(Relaxed),
                table_build_microseconds: live.state.table_build_us.load(Relaxed),
                panic: live.panic,
                active: live.state.active(),
                connections: totals.accepted,
                received_bytes: totals.rx_bytes,
                sent_bytes: totals.tx_bytes,
                ends: above_zero(&totals.ends, EndReason::LABELS),
                retries: above_zero(&totals.retries, RetryCause::LABELS),
                limits_hit: above_zero(&totals.limits, LimitKind::LABELS),
                received_packets: totals.rx_packets,
                sent_packets: totals.tx_packets,
                received_datagrams: totals.rx_datagrams,
                sent_datagrams: totals.tx_datagrams,
                dropped_datagrams: above_zero(&totals.datagram_drops, DatagramDrop::LABELS),
                written_at: format!("{}:{}", spec.origin.file.display(), spec.origin.place.line),
                troubles: self.troubles_of(live),
            }
        };
        services.map(view).collect()
    }

    /// The backends of the services that `name` means, or those of them that `word` means.
    pub(crate) fn backend_views(&self, name: Option<&str>, word: Option<&str>) -> Vec<BackendView> {
        let wanted = |key: &ServiceKey| name.is_none_or(|name| names(key, name));
        let mut views = Vec::new();
        for (key, live) in self.services.iter().filter(|(key, _)| wanted(key)) {
            let meant = |(_, live): &(usize, &LiveBackend)| {
                word.is_none_or(|word| is_backend(live.backend.addr, live.name.as_deref(), word))
            };
            let backends = live.grouped().filter(meant);
            views.extend(backends.map(|(group, live)| self.backend_view(key, live, group)));
        }
        let mut removed: Vec<_> = self.retiring.removed().filter(|(key, ..)| wanted(key)).collect();
        removed.retain(|(_, name, b)| word.is_none_or(|word| is_backend(b.addr, *name, word)));
        removed.sort_by_key(|(key, _, backend)| (*key, backend.addr));
        for (key, name, backend) in removed {
            let totals = backend.counters.totals();
            views.push(BackendView {
                service: key.to_string(),
                address: backend.addr.to_string(),
                name: name.map(Into::into),
                zone: None,
                weight: 0,
                group: 0,
                state: "removed".into(),
                cause: Some("no longer configured; its connections go on".into()),
                active: backend.active(),
                connections: totals.connections,
                received_bytes: totals.rx_bytes,
                sent_bytes: totals.tx_bytes,
                failures: above_zero(&totals.failures, FailureCause::LABELS),
                transitions: backend.transitions.get(),
            });
        }
        views
    }

    fn backend_view(&self, key: &ServiceKey, live: &LiveBackend, group: usize) -> BackendView {
        let now = self.clock.now();
        let shown = live.ejection.cause.as_deref().unwrap_or("its connections failed");
        let orders = live.orders.words(now);
        let (state, cause) = match (&live.down, live.ejection.until) {
            _ if live.orders.ejected.is_some() => ("ejected", None),
            (Some(cause), _) if live.orders.admitted.is_none() => ("down", Some(cause.to_string())),
            (None, Some(until)) if live.orders.admitted.is_none() => {
                ("ejected", Some(format!("{shown}; back in {:?}", until.since(now))))
            }
            _ if live.orders.drained.is_some() => ("draining", None),
            _ if live.serving == Serving::NotReady && live.orders.admitted.is_none() => {
                ("down", Some("its source says: not ready".into()))
            }
            _ if live.serving == Serving::Leaving && live.orders.admitted.is_none() => {
                ("draining", Some("its source says: about to go".into()))
            }
            _ if live.share < Share::FULL => {
                let percent = (live.share.part() * 100.0).round();
                ("starting", Some(format!("takes {percent}% of its share of new flows")))
            }
            (down, _) => ("up", down.as_ref().map(|cause| format!("checks say: {cause}"))),
        };
        let agent = &live.agent;
        let state = match state {
            "up" | "starting" if agent.down.is_some() || agent.maintenance => "down",
            "up" | "starting" if agent.drain => "draining",
            state => state,
        };
        let words: Vec<String> = cause.into_iter().chain(agent.words()).chain(orders).collect();
        let cause = (!words.is_empty()).then(|| words.join("; "));
        let totals = live.backend.counters.totals();
        BackendView {
            service: key.to_string(),
            address: live.backend.addr.to_string(),
            name: live.name.as_deref().map(Into::into),
            zone: live.zone.as_deref().map(Into::into),
            weight: live.weight,
            group,
            state: state.into(),
            cause,
            active: live.backend.active(),
            connections: totals.connections,
            received_bytes: totals.rx_bytes,
            sent_bytes: totals.tx_bytes,
            failures: above_zero(&totals.failures, FailureCause::LABELS),
            transitions: live.backend.transitions.get(),
        }
    }
}

fn above_zero(counts: &[u64], labels: &[&str]) -> BTreeMap<String, u64> {
    let counts = labels.iter().zip(counts).filter(|(_, count)| **count > 0);
    counts.map(|(label, count)| ((*label).to_owned(), *count)).collect()
}
