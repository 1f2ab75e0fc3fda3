//! `fairway run`: brings the process up, and down again.

mod described;
mod setup;

use std::hash::BuildHasher;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use fairway_config::document::{ConnectionsDoc, FormatDoc, LevelDoc, ListenDoc};
use fairway_config::{Config, Process, load};
use fairway_core::Mode;
use fairway_core::publish::Publisher;
use fairway_uring::{Clock, ConnectionRecord, Event, Features, Inboxes, Shared, WorkerHandle};
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use self::setup::{budgets, disabled, packet_setup, settings, worker_count, worker_cpus};
use crate::admin::views::{Budgets, Fixed};
use crate::admin::{Admin, Doors, admin_router, bearer, public_router, registry};
use crate::announce;
use crate::cli::{EXIT_CONFIG, EXIT_FAILURE, counted, hint_at_config};
use crate::cloud::{self, Begun, CloudNews};
use crate::connection_log::ConnectionWriter;
use crate::control::{Control, Input, Listeners, PacketPath, Tproxy, Watchers, attach_cards};
use crate::dpdk::{Cards, KernelEnds};
use crate::handover::{BEFORE, Before, Channel, Gate, Giver, Greeting, Inherited};
use crate::health::Checker;
use crate::manager::{self, Manager};
use crate::network::Watch;
use crate::reload::{self, Reload};
use crate::resolver::{FIRST_ANSWER, Resolver};

/// Connections that workers have reported and the log has not written.
const LOG_QUEUE: usize = 16_384;
/// How long the end of the process waits for the connection log.
const LOG_PATIENCE: Duration = Duration::from_secs(2);

/// Runs until a signal ends the process, or another one goes on in its place; with `take_over`, in place of
/// the one at the other end of our standard input.
pub(crate) fn run(path: PathBuf, take_over: bool) -> ExitCode {
    // Before anything else is opened.
    let mut inherited = Inherited::default();
    inherited.add(manager::passed());
    let before = match take_over.then(Before::meet).transpose() {
        Ok(before) => before,
        Err(why) => return failed(&why),
    };
    let config = match load(&path) {
        Ok(config) => config,
        Err(problems) => {
            if let Some(before) = before {
                before.refuse(&problems.to_string());
            }
            eprintln!("{problems}");
            eprintln!("fairway: {} in the configuration", counted(problems.list.len(), "error"));
            hint_at_config(&path);
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    init_log(&config.process);
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("fairway-tokio")
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return failed(&format!("no threads for the control plane: {error}")),
    };
    let manager = Manager::from_environment(before.is_some());
    match start(path, config, runtime.handle(), (inherited, before), manager.clone()) {
        Ok(started) => {
            let outcome = started.control.run(&started.inputs);
            manager.flush();
            drop(started.giver);
            runtime.shutdown_timeout(Duration::from_millis(200));
            finish_log(started.log);
            match outcome {
                Ok(()) => {
                    tracing::info!("stopped");
                    ExitCode::SUCCESS
                }
                Err(cause) => failed(&cause),
            }
        }
        Err(error) => failed(&error),
    }
}

fn failed(why: &str) -> ExitCode {
    tracing::error!("{why}");
    eprintln!("fairway: {why}");
    ExitCode::from(EXIT_FAILURE)
}

struct Started {
    control: Control,
    inputs: Receiver<Input>,
    /// Has what this process is asked by.
    giver: Arc<Giver>,
    /// Writes the connection log; it ends when nobody is left who could send.
    log: Option<JoinHandle<()>>,
}

/// Waits until what was queued for the connection log is written, for a while.
fn finish_log(log: Option<JoinHandle<()>>) {
    let end = Instant::now() + LOG_PATIENCE;
    while log.as_ref().is_some_and(|log| !log.is_finished()) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn start(
    path: PathBuf,
    config: Config,
    runtime: &Handle,
    (mut inherited, before): (Inherited, Option<Before>),
    manager: Manager,
) -> Result<Started, String> {
    let greeting = before.as_ref().map(|before| before.greeting.clone()).unwrap_or_default();
    let opens = before.is_none();
    match prepare(path, config, runtime, &greeting, manager, (&mut inherited, opens)) {
        Ok(prepared) => prepared.serve(runtime, inherited, before),
        Err(why) => {
            before.iter().for_each(|before| before.refuse(&why));
            Err(why)
        }
    }
}

/// A process that could serve; no client has been let in.
struct Prepared {
    config: Config,
    control: Control,
    inputs: Receiver<Input>,
    log: Option<JoinHandle<()>>,
    admin: Admin,
    /// What the cluster comes to, and what DNS said of names.
    news: CloudNews,
    reload: mpsc::UnboundedReceiver<Reload>,
    budgets: Budgets,
    features: Features,
    manager: Manager,
    gate: Gate,
}

fn prepare(
    path: PathBuf,
    config: Config,
    runtime: &Handle,
    greeting: &Greeting,
    manager: Manager,
    (inherited, opens): (&mut Inherited, bool),
) -> Result<Prepared, String> {
    let process = config.process.clone();
    let features = Features::detect(&disabled(&process)).map_err(|error| error.to_string())?;
    let registry = registry::install();
    described::describe_metrics();

    if let Some(why) = bearer::trouble(process.admin_token.as_ref()) {
        tracing::warn!("{why}");
    }
    let cpus = worker_cpus(&process)?;
    let count = worker_count(&process);
    let listened = config.services.values().filter(|spec| spec.policy.mode == Mode::Proxy);
    let listened = listened.flat_map(|spec| &spec.frontends);
    let listened = listened.map(|frontend| u64::from(frontend.ports.len())).sum();
    let of_cluster = process.api.is_some() || config.cluster.manifests.is_some();
    let budgets = budgets(&process, count, (!of_cluster).then_some(listened));
    let (sender, inputs) = unbounded();
    let (sink, log) = sink(sender.clone(), &process)?;
    let seeds = greeting.affinity_seeds.unwrap_or_else(random);
    let settings = settings(&process, &budgets, count);
    let shared =
        Arc::new(Shared::new(settings, Clock, (process.client_table as usize, seeds), sink));
    let mut publisher = Publisher::new();
    let mut workers = Vec::with_capacity(count);
    let inboxes = Inboxes::new(count).map_err(|error| format!("no event descriptors: {error}"))?;
    let inboxes = Arc::new(inboxes);
    let packet = process.packet.as_ref().filter(|packet| packet.dpdk.is_some());
    // Another process has the cards until it stands still.
    let start = |packet| Cards::start(packet, count, process.hash_seed, !opens);
    let mut cards = packet.map(start).transpose()?;
    let opened = cards.as_mut().filter(|_| opens).map(Cards::open).transpose()?;
    let mut memory = Vec::new();
    for worker in 0..count {
        let cpu = cpus.get(worker).copied();
        let reader = publisher.reader();
        let handle = WorkerHandle::spawn(
            worker,
            cpu,
            Arc::clone(&shared),
            reader,
            features,
            packet_setup(&process, (worker, count), &inboxes, &mut memory)?,
        );
        workers.push(handle.map_err(|error| error.to_string())?);
    }
    let network = sender.clone();
    let packets = match &process.packet {
        Some(configured) => {
            let watch = Watch::start(runtime, configured.interfaces.clone(), move |news| {
                // The receiver goes when the process stops.
                let _ = network.send(Input::Network(news));
            });
            let (watch, news) = watch?;
            let packets = PacketPath::new(configured, (watch, news), cards, &workers, memory)?;
            opened.into_iter().for_each(|opened| attach_cards(opened, &workers));
            Some(packets)
        }
        None => None,
    };
    let announcing = sender.clone();
    let announcer = announce::start(&process, Clock, move |announced| {
        // As above.
        let _ = announcing.send(Input::Announced(announced.map(Box::new)));
    })?;
    let health = sender.clone();
    let checker = Checker::new(runtime.clone(), budgets.for_control as usize / 2, move |event| {
        // The receiver goes when the process stops.
        let _ = health.send(Input::Health(event));
    });
    let names = sender.clone();
    let (servers, timeout) = (process.resolvers.clone(), process.resolver_timeout);
    let resolver = Resolver::new(runtime.clone(), servers, timeout, move |event| {
        // As above.
        let _ = names.send(Input::Names(event));
    });
    let asker = resolver.asker();
    let watchers = Watchers { checker, resolver };

    let (reload_sender, reload) = mpsc::unbounded_channel();
    let (works, receiver) = tokio::sync::mpsc::unbounded_channel();
    let gate = Gate::default();
    let identity = process.api.as_ref().map(|_| match &greeting.identity {
        Some(identity) => identity.clone(),
        None => cloud::identity(),
    });
    let giver = Giver {
        control: sender.clone(),
        doors: Arc::default(),
        manager: manager.clone(),
        shared: Arc::clone(&shared),
        config: path.clone(),
        identity: identity.clone(),
        gate: gate.clone(),
        followers: Mutex::default(),
        program: program(),
        busy: AtomicBool::new(false),
    };
    let admin = Admin {
        control: sender.clone(),
        announcer: announcer.clone(),
        cloud: works.clone(),
        reload: reload_sender,
        asker: asker.clone(),
        view: publisher.view(),
        shared,
        workers: workers.iter().map(|worker| Arc::clone(&worker.stats)).collect(),
        packets: workers.iter().filter_map(|worker| worker.packets.clone()).collect(),
        interfaces: process.packet.iter().flat_map(|packet| packet.interfaces.clone()).collect(),
        registry,
        fixed: Arc::new(Fixed { budgets, features }),
        per_backend: process.per_backend,
        ready: Arc::new(AtomicBool::new(false)),
        token: process.admin_token.clone().map(Arc::new),
        giver: Arc::new(giver),
    };
    if opens {
        let _runtime = runtime.enter();
        open_doors(&process, &admin, inherited)?;
        doors(&admin).begin();
    }
    let control = Control::new(
        process,
        path,
        publisher,
        workers,
        (packets, announcer),
        watchers,
        manager.clone(),
    );
    let mailbox = (works, receiver);
    let Begun { change, view, said } = cloud::start(
        runtime,
        &config,
        (sender, asker.clone()),
        mailbox,
        &admin.announcer,
        (identity, &gate),
    )?;
    let unknown = control.unknown_names(config.services.values().chain(&change.upserts));
    let names = runtime.block_on(asker.ask(unknown, FIRST_ANSWER));
    let news = CloudNews { change, names, view, said, since: None };
    Ok(Prepared {
        config,
        control,
        inputs,
        log,
        admin,
        news,
        reload,
        budgets,
        features,
        manager,
        gate,
    })
}

impl Prepared {
    /// Serves: what was `inherited`, and what the process `before` gives away, is gone on with.
    fn serve(
        self,
        runtime: &Handle,
        mut inherited: Inherited,
        before: Option<Before>,
    ) -> Result<Started, String> {
        let Self { config, mut control, inputs, log, admin, news, reload, manager, gate, .. } =
            self;
        let process = control.process.clone();
        let mut owned = false;
        let mut sessions = Vec::new();
        let (mut until, mut nftables) = (0, Vec::new());
        let mut ends = None;
        if let Some(before) = &before {
            control.await_sessions();
            ends = control.kernel_ends().inspect_err(|why| before.refuse(why))?;
            let (mut estate, descriptors) = before.take()?;
            control.take_cards(ends.as_ref()).inspect_err(|why| before.refuse(why))?;
            owned = estate.owns_socket;
            estate.fill(&admin.shared.clients.affinity);
            let named;
            (named, sessions) = estate.split(descriptors);
            inherited.add(named);
            until = estate.packets_until;
            nftables = std::mem::take(&mut estate.nftables);
            control.inherit_announcements(estate.announcements, &mut inherited);
            control.remember(estate.memory, estate.generation);
        }
        control.inherit_packets(&mut inherited, until);
        let giver = Arc::clone(&admin.giver);
        let left = inherited.take(BEFORE);
        let opened = match &before {
            Some(_) => {
                let _runtime = runtime.enter();
                open_doors(&process, &admin, &mut inherited)
            }
            None => Ok(()),
        };
        let workers = control.workers().len();
        // After the admin socket: only one Fairway on a host gets as far as touching nftables.
        let listening = opened.and_then(|()| {
            let tproxy = match process.listen {
                ListenDoc::PerAddress => None,
                ListenDoc::Tproxy => Some(
                    Tproxy::start(workers, &mut inherited, &manager, nftables)
                        .map_err(|why| format!("`listen: tproxy` is not to be had: {why}"))?,
                ),
            };
            let budget = self.budgets.for_listeners as usize;
            Ok(Listeners::new(tproxy, budget, inherited, manager.clone()))
        });
        let listeners = match listening {
            Ok(listeners) => listeners,
            Err(why) => {
                before.iter().for_each(|before| before.refuse(&why));
                return Err(why);
            }
        };
        let watcher = reload::watcher(&config.files, admin.reload.clone());
        // It may have changed since it was read: nobody looked.
        let _ = admin.reload.send(Reload::Changed);
        runtime.spawn(reload::run(
            (control.config.path.clone(), manager.clone()),
            config.clone(),
            watcher,
            reload,
            (admin.control.clone(), admin.cloud.clone()),
            admin.asker.clone(),
        ));
        let (sender, ready) = (admin.control.clone(), Arc::clone(&admin.ready));
        runtime.spawn(signals(sender.clone(), admin.reload.clone(), ready));

        let names: Vec<_> = self.features.names().collect();
        let workers = control.workers().len();
        tracing::info!(workers, features = names.join(" "), "started");
        let answers = news.names.clone();
        control.begin(listeners, config, &answers, news);
        if before.is_some() {
            control.adopt(sessions);
        }
        control.await_workers();
        admin.ready.store(true, Relaxed);
        {
            let _runtime = runtime.enter();
            doors(&admin).begin();
        }
        if let Some(before) = before {
            let left = left.into_iter().map(Channel::of).chain([before.serve()?]);
            // Until now the process before might have had the cards again.
            ends.iter().for_each(KernelEnds::keep_no_longer);
            let mut followers = giver.followers.lock().unwrap_or_else(PoisonError::into_inner);
            for channel in left {
                let followed = followers.follow(channel, sender.clone());
                followed.map_err(|error| format!("no thread: {error}"))?;
            }
            if owned {
                let mut doors = giver.doors.lock().unwrap_or_else(PoisonError::into_inner);
                doors.own_socket(&process.admin_socket);
            }
        }
        gate.open();
        manager.release();
        manager.is_ready(&control.in_short());
        Ok(Started { control, inputs, giver, log })
    }
}

fn doors(admin: &Admin) -> MutexGuard<'_, Doors> {
    admin.giver.doors.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens the admin socket and the metrics address, or goes on with those that are there.
fn open_doors(process: &Process, admin: &Admin, inherited: &mut Inherited) -> Result<(), String> {
    let mut doors = doors(admin);
    let path = &process.admin_socket;
    doors
        .serve_socket(path, inherited, admin_router(admin.clone()))
        .map_err(|error| format!("admin socket {}: {error}", path.display()))?;
    let bound = doors
        .serve_public(process.metrics, inherited, public_router(admin.clone()))
        .map_err(|error| metrics_refused(process.metrics, &error))?;
    tracing::info!(metrics = %bound, admin = %path.display(), "serving status");
    Ok(())
}

/// Four numbers that nobody can foretell.
fn random() -> [u64; 4] {
    let random = std::hash::RandomState::new();
    [0_u8, 1, 2, 3].map(|n| random.hash_one(n))
}

/// The file from which this process was started, which may have been replaced since.
fn program() -> Result<PathBuf, String> {
    std::env::current_exe()
        .map_err(|error| format!("where this program lies is not known: {error}"))
}

fn metrics_refused(addr: SocketAddr, error: &std::io::Error) -> String {
    let remedy = match error.kind() {
        std::io::ErrorKind::AddrInUse => format!(
            "; `ss -ltnp 'sport = :{}'` names who has it, `admin.metrics` is another address",
            addr.port()
        ),
        _ => String::new(),
    };
    format!("metrics address {addr}: {error}{remedy}")
}

fn init_log(process: &Process) {
    use tracing_subscriber::EnvFilter;
    let level = match process.log_level {
        LevelDoc::Error => "error",
        LevelDoc::Warn => "warn",
        LevelDoc::Info => "info",
        LevelDoc::Debug => "debug",
    };
    let filter = EnvFilter::try_from_env("FAIRWAY_LOG").unwrap_or_else(|_| {
        // What fails there is said here, with what it was for.
        let quiet = if level == "debug" { "" } else { ",kube_client=off,kube_runtime=off" };
        EnvFilter::new(format!("{level}{quiet}"))
    });
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    let colour = std::io::IsTerminal::is_terminal(&std::io::stderr());
    // A second subscriber in one process is refused: tests start several runs.
    let _ = match process.log_format {
        FormatDoc::Text => builder.with_ansi(colour).with_target(false).try_init(),
        FormatDoc::Json => builder.json().with_target(false).try_init(),
    };
}

/// Where workers' events go: ended connections to the log's thread, the rest to the control loop.
fn sink(
    control: Sender<Input>,
    process: &Process,
) -> Result<(fairway_uring::Sink, Option<JoinHandle<()>>), String> {
    let (log, records) = bounded::<Box<ConnectionRecord>>(LOG_QUEUE);
    let mut writer = None;
    if process.log_connections != ConnectionsDoc::Off {
        let mut log = ConnectionWriter::open(process.log_target.as_ref())?;
        let spawned = std::thread::Builder::new()
            .name("fairway-log".into())
            .spawn(move || log.run(&records))
            .map_err(|error| format!("no thread for the connection log: {error}"))?;
        writer = Some(spawned);
    }
    let sink: fairway_uring::Sink = Box::new(move |event| match event {
        Event::ConnectionEnded(record) => log.try_send(record).is_ok(),
        event => control.send(Input::Worker(event)).is_ok(),
    });
    Ok((sink, writer))
}

async fn signals(
    control: Sender<Input>,
    reload: mpsc::UnboundedSender<Reload>,
    ready: Arc<AtomicBool>,
) {
    let kinds = [SignalKind::hangup(), SignalKind::terminate(), SignalKind::interrupt()];
    let [Ok(mut hangup), Ok(mut terminate), Ok(mut interrupt)] = kinds.map(signal) else {
        tracing::error!("signals cannot be handled: SIGHUP will not reload, SIGTERM not drain");
        return;
    };
    let mut again = false;
    loop {
        tokio::select! {
            _ = hangup.recv() => {
                // The reader goes when the process stops.
                let _ = reload.send(Reload::Signal);
                continue;
            }
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        ready.store(false, Relaxed);
        let _ = control.send(Input::Stop { now: again });
        again = true;
    }
}
