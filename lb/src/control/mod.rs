//! The control loop: the only writer of snapshots.
//!
//! Everything that changes what is served comes through one channel: documents, health, failures
//! that workers saw, the operator. The loop takes what has gathered, plans, publishes once.

mod announce;
mod apply;
mod backend;
mod cluster;
mod events;
mod fence;
mod handover;
mod history;
mod id_log;
mod ids;
mod listeners;
mod live;
mod memory;
mod names;
mod nf_table;
mod nft;
mod orders;
mod outlier;
mod packets;
mod plan;
mod publish;
mod ramp;
mod retire;
mod shortage;
mod stop;
mod system;
mod tproxy;
mod transparent;
mod troubles;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use fairway_config::{ChangeSet, Config, Desired, Problems, Process, Query, ServiceKey};
use fairway_core::publish::Publisher;
use fairway_core::{EndReason, Frontend, ServiceId, Tick};
use fairway_uring::{
    Capture, CaptureFilter, Captured, Clock, Command, ConnectionFilter, Event, OpenConnection,
    OpenFlow, ServiceTalkers, WorkerHandle,
};
use tokio::sync::oneshot;

use self::announce::Announcing;
use self::events::eject;
use self::id_log::IdLog;
use self::ids::Ids;
use self::names::Named;
use self::retire::Retiring;
use self::stop::Stop;
use crate::announce::{Announced, Handle as Announcer};
use crate::cloud::{CloudNews, CloudView};
use crate::handover::Left;
use crate::health::agent::AgentState;
use crate::health::{CheckTarget, Checker, HealthEvent};
use crate::manager::Manager;
use crate::network::News;
use crate::resolver::{NameAddress, NameEvent, Resolver};

pub(crate) use self::backend::LiveBackend;
pub(crate) use self::history::{Applied, History};
pub(crate) use self::listeners::{Listeners, Relisten};
pub(crate) use self::live::Live;
pub(crate) use self::memory::{LateCounts, Memory};
pub(crate) use self::orders::{Order, is_backend};
pub(crate) use self::packets::{InterfaceView, PacketPath, attach as attach_cards};
pub(crate) use self::plan::{Change, plan};
#[cfg(feature = "dpdk")]
pub(crate) use self::system::run;
pub(crate) use self::tproxy::Tproxy;

/// Changes that are taken together before one snapshot is published.
const BATCH: usize = 4096;
/// How often services are looked at whose window is over.
const LOOK: Duration = Duration::from_secs(1);
/// How often ejections, retired backends and failed listeners are looked at.
const TICK: Duration = Duration::from_millis(100);
/// From one publication to the next, unless somebody waits for it: what changes meanwhile is published together.
const GAP: Duration = Duration::from_millis(10);

/// What the workers say of a service's heaviest clients; it ends with the last of them.
pub(crate) type TalkerAnswers = Receiver<ServiceTalkers>;

/// What DNS said of names before they are followed.
pub(crate) type Answers = HashMap<Query, Vec<NameAddress>>;

/// Something for the control loop.
pub(crate) enum Input {
    /// A document was read, and asked for were the names that it brings; and what it changes of the
    /// cluster's Services.
    Config(Box<Config>, Answers, Box<CloudNews>),
    /// The cluster's Services have changed.
    Cluster(Box<CloudNews>),
    /// A document could not be read; what runs goes on.
    ConfigFailed(Problems),
    /// A check tipped the scale.
    Health(HealthEvent),
    /// DNS has news.
    Names(NameEvent),
    /// The networks of this machine have changed, or cannot be read.
    Network(Result<News, String>),
    /// What is announced has changed.
    Announced(Result<Box<Announced>, String>),
    /// A worker has something to say.
    Worker(Event),
    /// What is left of a process before this one.
    Before(Left),
    /// Someone asks, or asks for something, and gets the answer through the closure.
    Ask(Box<dyn FnOnce(&mut Control) + Send>),
    /// Stop: first accepting, then, after the drain, everything.
    Stop {
        /// At once, without a drain.
        now: bool,
    },
}

/// How reading the configuration went last.
#[derive(Debug, Clone)]
pub(crate) struct ConfigState {
    pub(crate) path: PathBuf,
    /// When the running configuration was read.
    pub(crate) loaded: SystemTime,
    /// What is wrong with the newest one; empty when it runs.
    pub(crate) problems: Vec<String>,
    /// Sections of it that take effect after an upgrade.
    pub(crate) waiting: Vec<&'static str>,
}

/// Says which sections wait for an upgrade.
pub(crate) fn waiting_text(sections: &[&str]) -> String {
    let list: Vec<_> = sections.iter().map(|section| format!("`{section}`")).collect();
    format!("changed, in effect after `fairway upgrade`: {}", list.join(", "))
}

/// Those who look at what lies outside: backends' health, and names.
pub(crate) struct Watchers {
    pub(crate) checker: Checker,
    pub(crate) resolver: Resolver,
}

/// The loop's state.
pub(crate) struct Control {
    pub(crate) clock: Clock,
    /// When this process began.
    pub(crate) began: Tick,
    pub(crate) process: Process,
    pub(crate) config: ConfigState,
    pub(crate) desired: Desired,
    /// The state of the cluster whose Services are served.
    pub(crate) cloud: CloudView,
    /// When the API server told the first of what is not published yet.
    cluster_news_since: Option<tokio::time::Instant>,
    pub(crate) services: BTreeMap<ServiceKey, Live>,
    keys: HashMap<ServiceId, ServiceKey>,
    next_service: u32,
    ids: Ids,
    pub(crate) publisher: Publisher,
    pub(crate) workers: Vec<WorkerHandle>,
    pub(crate) listeners: Listeners,
    packets: Option<PacketPath>,
    announcing: Announcing,
    pub(crate) checker: Checker,
    resolver: Resolver,
    /// What DNS says of the names that services use.
    names: HashMap<Query, Named>,
    checked: HashMap<CheckTarget, Checked>,
    /// What checks have said while nothing could come from backends, and until when that counts.
    unheard: (HashMap<CheckTarget, HealthEvent>, Tick),
    pub(crate) retiring: Retiring,
    /// Services with an ejected backend.
    ejected: BTreeSet<ServiceKey>,
    /// Services with a backend in slow start.
    starting: BTreeSet<ServiceKey>,
    dirty: BTreeSet<ServiceKey>,
    removed: Vec<(Vec<Frontend>, ServiceId)>,
    /// Frontends that a service left while staying.
    vacated: Vec<(Vec<Frontend>, ServiceId)>,
    rebuilt: HashSet<ServiceKey>,
    /// Before this, what has changed waits for more.
    publish_at: Instant,
    /// Who waits for the next publication.
    awaiting: Vec<oneshot::Sender<()>>,
    /// Frontends before and after, for listeners: opened only when the snapshot knows them.
    relisten: Vec<Relisten>,
    look_at: Tick,
    /// When to say again what the end waits for.
    told_at: Tick,
    /// What `source: transparent` lacks.
    routing: Option<String>,
    pub(crate) history: History,
    /// The configuration of the history that was brought back, while the file says otherwise.
    pub(crate) rolled_back: Option<u64>,
    stop: Stop,
    /// Why a worker ended that should not have.
    failure: Option<String>,
    manager: Manager,
    /// When the manager is to hear of us, and how far workers were the last time.
    alive_at: Tick,
    turns: Vec<u64>,
    /// What a process before this one knew of services that have not come yet.
    memory: Memory,
    /// Numbers that are given, where flows go by them.
    id_log: Option<IdLog>,
    /// Processes before this one that still have connections, and how many.
    pub(crate) before: BTreeMap<u32, u64>,
    /// Those before this one that accept no more.
    quiet_before: BTreeSet<u32>,
    handing: handover::Handing,
}

/// The standing of a checked address, and whose it is.
#[derive(Default)]
struct Checked {
    down: Option<Box<str>>,
    /// What an agent there has said.
    agent: Option<AgentState>,
    users: Vec<ServiceKey>,
}

impl Control {
    pub(crate) fn new(
        process: Process,
        path: PathBuf,
        publisher: Publisher,
        workers: Vec<WorkerHandle>,
        (packets, announcer): (Option<PacketPath>, Announcer),
        Watchers { checker, resolver }: Watchers,
        manager: Manager,
    ) -> Self {
        Self {
            clock: Clock,
            began: Clock.now(),
            process,
            config: ConfigState {
                path,
                loaded: SystemTime::now(),
                problems: Vec::new(),
                waiting: Vec::new(),
            },
            desired: Desired::new(),
            cloud: CloudView::default(),
            cluster_news_since: None,
            services: BTreeMap::new(),
            keys: HashMap::new(),
            next_service: 0,
            ids: Ids::default(),
            publisher,
            workers,
            listeners: Listeners::detached(),
            packets,
            announcing: Announcing::new(announcer),
            checker,
            resolver,
            names: HashMap::new(),
            checked: HashMap::new(),
            unheard: (HashMap::new(), Tick(0)),
            retiring: Retiring::default(),
            ejected: BTreeSet::new(),
            starting: BTreeSet::new(),
            dirty: BTreeSet::new(),
            removed: Vec::new(),
            vacated: Vec::new(),
            rebuilt: HashSet::new(),
            publish_at: Instant::now(),
            awaiting: Vec::new(),
            relisten: Vec::new(),
            look_at: Tick(0),
            told_at: Tick(0),
            routing: None,
            history: History::default(),
            rolled_back: None,
            stop: Stop::Running,
            failure: None,
            manager,
            alive_at: Tick(0),
            turns: Vec::new(),
            memory: Memory::default(),
            id_log: None,
            before: BTreeMap::new(),
            quiet_before: BTreeSet::new(),
            handing: handover::Handing::default(),
        }
    }

    /// Starts to serve what `config` says, by `listeners`.
    pub(crate) fn begin(
        &mut self,
        listeners: Listeners,
        config: Config,
        names: &Answers,
        news: CloudNews,
    ) {
        self.listeners = listeners;
        let change = ChangeSet::between(&self.desired, &config.services);
        self.desired = config.services;
        self.history.push(self.desired.clone(), self.config.path.display().to_string());
        self.apply(change, names);
        self.take_cluster(news);
        self.publish();
        self.begin_announcing();
        self.listeners.tend(self.clock.now(), &self.workers);
        self.listeners.begun(&self.workers);
        self.tend_packets(self.clock.now());
        self.carry_packets();
        metrics::gauge!("fairway_config_last_reload_successful").set(1.0);
        tracing::info!(services = self.services.len(), "serving");
    }

    /// The workers.
    pub(crate) fn workers(&self) -> &[WorkerHandle] {
        &self.workers
    }

    /// What it does, in a few words.
    pub(crate) fn in_short(&self) -> String {
        let troubles = self.config.problems.len();
        let words = format!("serving {} services", self.services.len());
        match troubles {
            0 => words,
            _ => format!("{words}; the newest configuration is not applied: {troubles} errors"),
        }
    }

    /// Waits until every worker serves what was published, for a second at most.
    pub(crate) fn await_workers(&self) {
        let end = Instant::now() + LOOK;
        let published = self.publisher.current().generation;
        while self.publisher.oldest_seen() < published && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Serves until stopped; an error is the cause of a worker's death.
    pub(crate) fn run(mut self, inputs: &Receiver<Input>) -> Result<(), String> {
        while self.stop != Stop::Done {
            match inputs.recv_timeout(self.patience()) {
                Ok(input) => {
                    self.take(input);
                    for input in inputs.try_iter().take(BATCH) {
                        self.take(input);
                        // However much comes, what has come is published in time.
                        if self.has_changed() && Instant::now() >= self.publish_at {
                            break;
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.tend();
            if Instant::now() >= self.publish_at {
                self.publish();
            }
        }
        for worker in &self.workers {
            worker.send(Command::Stop);
        }
        for worker in &mut self.workers {
            worker.join();
        }
        if self.handing.is_over() {
            // The next process has all that is seen outside.
            return self.failure.map_or(Ok(()), Err);
        }
        self.announcing.stop();
        self.listeners.clean_up();
        self.clean_up_packets();
        self.failure.map_or(Ok(()), Err)
    }

    fn patience(&self) -> Duration {
        let waits = !self.ejected.is_empty()
            || !self.starting.is_empty()
            || !self.retiring.is_empty()
            || self.listeners.is_waiting()
            || self.stop != Stop::Running
            || self.publisher.oldest_seen() < self.publisher.current().generation;
        let patience = if waits { TICK } else { LOOK };
        match self.is_unpublished() {
            true => self.publish_at.saturating_duration_since(Instant::now()),
            false => patience,
        }
    }

    pub(crate) fn take(&mut self, input: Input) {
        match input {
            // What was accepted is to end; a new document is for the next start.
            Input::Config(..) | Input::Cluster(_) if self.is_stopping() => {}
            Input::Config(config, names, news) => {
                self.take_config(*config, &names);
                self.take_cluster(*news);
            }
            Input::Cluster(news) => self.take_cluster(*news),
            Input::ConfigFailed(problems) => self.config_failed(&problems),
            Input::Health(event) => self.hear_health(event),
            Input::Names(event) => self.take_names(event),
            Input::Network(news) => self.take_network(news),
            Input::Announced(Ok(announced)) => self.take_announced(*announced),
            Input::Announced(Err(why)) => {
                self.failure.get_or_insert(format!("the announcing thread has ended: {why}"));
                self.stop = Stop::Done;
            }
            Input::Worker(event) => self.take_event(event),
            Input::Before(left) => self.take_before(&left),
            Input::Ask(ask) => ask(self),
            Input::Stop { now } => self.begin_stop(now),
        }
    }

    fn take_config(&mut self, config: Config, names: &Answers) {
        let change = ChangeSet::between(&self.desired, &config.services);
        self.config.waiting = self.process.sections_changed(&config.process);
        if !self.config.waiting.is_empty() {
            tracing::warn!("{}", waiting_text(&self.config.waiting));
        }
        let (changed, removed) = (change.upserts.len(), change.removals.len());
        self.end_orders();
        self.desired = config.services;
        self.rolled_back = None;
        self.history.push(self.desired.clone(), self.config.path.display().to_string());
        self.config.loaded = SystemTime::now();
        self.config.problems.clear();
        self.apply(change, names);
        metrics::counter!("fairway_config_reloads_total", "result" => "success").increment(1);
        metrics::gauge!("fairway_config_last_reload_successful").set(1.0);
        let services = self.services.len();
        tracing::info!(services, changed, removed, "configuration applied");
    }

    fn config_failed(&mut self, problems: &Problems) {
        self.config.problems = problems.list.iter().map(ToString::to_string).collect();
        metrics::counter!("fairway_config_reloads_total", "result" => "failure").increment(1);
        metrics::gauge!("fairway_config_last_reload_successful").set(0.0);
        for problem in &self.config.problems {
            tracing::error!("{problem}");
        }
        tracing::error!("the configuration was not applied; the one before runs on");
    }

    /// Flows of packet services that the end of the process would break.
    fn open_flows(&self) -> u64 {
        let packets = self.workers.iter().filter_map(|worker| worker.packets.as_ref());
        packets.map(|stats| stats.open.load(Relaxed)).sum()
    }

    /// Has every worker list its connections; returns the number of workers.
    pub(crate) fn list(
        &self,
        filter: &ConnectionFilter,
        reply: &Sender<Vec<OpenConnection>>,
    ) -> usize {
        for worker in &self.workers {
            worker.send(Command::List { filter: filter.clone(), reply: reply.clone() });
        }
        self.workers.len()
    }

    /// Has every worker list its flows; returns the number of workers.
    pub(crate) fn flows(&self, filter: &ConnectionFilter, reply: &Sender<Vec<OpenFlow>>) -> usize {
        for worker in &self.workers {
            worker.send(Command::Flows { filter: filter.clone(), reply: reply.clone() });
        }
        self.workers.len()
    }

    /// Has every worker copy frames for `sender`; returns the frames that found no room there. None
    /// when there is no packet path.
    pub(crate) fn capture(
        &self,
        filter: &CaptureFilter,
        sender: &Sender<Captured>,
    ) -> Option<Arc<AtomicU64>> {
        self.packets.as_ref()?;
        let lost = Arc::new(AtomicU64::new(0));
        for worker in &self.workers {
            let (filter, sender) = (filter.clone(), sender.clone());
            worker.send(Command::Capture(Capture { filter, sender, lost: Arc::clone(&lost) }));
        }
        Some(lost)
    }

    /// Has every worker name the heaviest clients of the services that `name` means; returns
    /// which service each answer is about, in order.
    pub(crate) fn talkers(&self, name: Option<&str>) -> Vec<(String, TalkerAnswers)> {
        let wanted = |key: &ServiceKey| name.is_none_or(|name| names(key, name));
        let services = self.services.iter().filter(|(key, _)| wanted(key));
        let ask = |(key, live): (&ServiceKey, &Live)| {
            let (reply, answers) = crossbeam_channel::unbounded();
            for worker in &self.workers {
                let reply = reply.clone();
                worker.send(Command::Talkers { service: live.id, reply });
            }
            (key.to_string(), answers)
        };
        services.map(ask).collect()
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stop != Stop::Running
    }

    /// What time brings.
    fn tend(&mut self) {
        let now = self.clock.now();
        for key in self.ejected.clone() {
            let Some(live) = self.services.get_mut(&key) else { continue };
            for addr in live.expire(now) {
                tracing::info!(service = %key, backend = %addr, "ejection is over");
                self.dirty.insert(key.clone());
            }
            if live.all().all(|live| live.ejection.until.is_none()) {
                self.ejected.remove(&key);
            }
            if live.is_starting() {
                self.starting.insert(key);
            }
        }
        if now >= self.look_at {
            self.look_at = now.plus(LOOK);
            // Workers that sleep let go of nothing.
            if self.retiring.has_idle() {
                self.workers.iter().for_each(WorkerHandle::wake);
            }
            for (key, live) in &mut self.services {
                if live.forget_previous(now) {
                    self.dirty.insert(key.clone());
                }
                for (id, verdict) in live.look(now) {
                    if eject(key, live, id, &verdict.to_string(), now) {
                        self.ejected.insert(key.clone());
                        self.dirty.insert(key.clone());
                    }
                }
            }
        }
        for key in self.starting.clone() {
            let Some(live) = self.services.get_mut(&key) else { continue };
            if live.grow(now) {
                self.dirty.insert(key.clone());
            }
            if !live.is_starting() {
                self.starting.remove(&key);
            }
        }
        let due = self.retiring.due(now);
        if !due.is_empty() {
            for worker in &self.workers {
                let backends = due.clone();
                worker.send(Command::EndBackends { backends, reason: EndReason::DrainTimeout });
            }
        }
        self.retiring.collect(&mut self.ids);
        if !self.is_stopping() {
            self.listeners.tend(now, &self.workers);
        }
        self.tend_packets(now);
        self.publisher.collect();
        self.stop_accepting();
        self.tend_heir(now);
        self.tend_unheard(now);
        self.tend_watchdog(now);
        self.tend_stop(now);
    }
}

impl Control {
    /// Whether there is a service of that name.
    pub(crate) fn knows(&self, service: &str) -> bool {
        self.services.keys().any(|key| names(key, service))
    }
}

/// Whether `name` means this service: by its key or by its name without the port.
pub(crate) fn names(key: &ServiceKey, name: &str) -> bool {
    *key.0 == *name || key.0.rsplit_once('/').is_some_and(|(service, _)| service == name)
}
