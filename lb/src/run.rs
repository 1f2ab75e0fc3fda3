//! `fairway run`: brings the process up, and down again.

use std::hash::BuildHasher;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use fairway_config::document::{ConnectionsDoc, FormatDoc, LevelDoc, ListenDoc, UringFeature};
use fairway_config::{Config, Process, load};
use fairway_core::packet::{Steering, Toeplitz, flow::Shape};
use fairway_core::publish::Publisher;
use fairway_uring::{
    Clock, ConnectionLog, ConnectionRecord, Event, Feature, Features, Inboxes, PacketSetup,
    PacketStats, Polled, Settings, Shared, WorkerHandle,
};
use metrics_exporter_prometheus::PrometheusBuilder;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::admin::views::{Budgets, Fixed};
use crate::admin::{self, Admin, admin_router, public_router};
use crate::announce;
use crate::cli::{EXIT_CONFIG, EXIT_FAILURE, counted, hint_at_config};
use crate::cloud::{self, CloudNews};
use crate::connection_log::ConnectionWriter;
use crate::control::{Control, Input, Listeners, PacketPath, Tproxy, Watchers};
use crate::health::Checker;
use crate::network::Watch;
use crate::reload::{self, Reload};
use crate::resolver::{FIRST_ANSWER, Resolver};

/// Descriptors for sockets of the control plane: checks, admin, metrics, files.
const CONTROL_DESCRIPTORS: u64 = 1500;
/// Bytes after which a direction is spliced. More than the kernel takes from us for a client that
/// never reads, so that such a client costs its credit and no pipe.
const SPLICE_AFTER: u64 = 1 << 20;
/// Connections that workers have reported and the log has not written.
const LOG_QUEUE: usize = 16_384;
/// How long the end of the process waits for the connection log.
const LOG_PATIENCE: Duration = Duration::from_secs(2);

/// Runs until a signal ends the process.
pub(crate) fn run(path: PathBuf) -> ExitCode {
    let config = match load(&path) {
        Ok(config) => config,
        Err(problems) => {
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
    match start(path, config, runtime.handle()) {
        Ok(started) => {
            let outcome = started.control.run(&started.inputs);
            drop(started.socket);
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
    socket: admin::SocketFile,
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

fn start(path: PathBuf, config: Config, runtime: &Handle) -> Result<Started, String> {
    let process = config.process.clone();
    let features = Features::detect(&disabled(&process)).map_err(|error| error.to_string())?;
    let registry = PrometheusBuilder::new()
        .set_buckets(&[1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0])
        .and_then(PrometheusBuilder::install_recorder)
        .map_err(|error| format!("metrics cannot be set up: {error}"))?;
    describe_metrics();

    let cpus = worker_cpus(&process)?;
    let count = worker_count(&process);
    let budgets = budgets(&process, count);
    let (sender, inputs) = unbounded();
    let clock = Clock::start();
    let (sink, log) = sink(sender.clone(), &process)?;
    let shared = Arc::new(Shared::new(
        settings(&process, &budgets, count),
        clock,
        process.client_table as usize,
        sink,
    ));
    let mut publisher = Publisher::new();
    let mut workers = Vec::with_capacity(count);
    let inboxes = Inboxes::new(count).map_err(|error| format!("no event descriptors: {error}"))?;
    let inboxes = Arc::new(inboxes);
    let dpdk = match &process.packet {
        Some(packet) => crate::dpdk::start(packet, count, process.hash_seed)?,
        None => crate::dpdk::Started::default(),
    };
    let mut polled = dpdk.polled.into_iter();
    for worker in 0..count {
        let cpu = cpus.get(worker).copied();
        let reader = publisher.reader();
        let handle = WorkerHandle::spawn(
            worker,
            cpu,
            Arc::clone(&shared),
            reader,
            features,
            packet_setup(
                &process,
                steering((worker, count), dpdk.toeplitz.as_ref()),
                &inboxes,
                polled.next(),
            ),
        );
        workers.push(handle.map_err(|error| error.to_string())?);
    }
    runtime.spawn({
        let registry = registry.clone();
        async move {
            // Histograms gather samples until they are folded, by a scrape or here.
            let mut ticks = tokio::time::interval(Duration::from_secs(5));
            loop {
                ticks.tick().await;
                registry.run_upkeep();
            }
        }
    });
    let network = sender.clone();
    let packets = match &process.packet {
        Some(configured) => {
            let watch = Watch::start(runtime, configured.interfaces.clone(), move |news| {
                // The receiver goes when the process stops.
                let _ = network.send(Input::Network(news));
            });
            let (watch, news) = watch?;
            Some(PacketPath::new(configured, (watch, news), dpdk.cards, &workers)?)
        }
        None => None,
    };
    let announcing = sender.clone();
    let announcer = announce::start(&process, clock, move |announced| {
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

    let ready = Arc::new(AtomicBool::new(false));
    let (reload_sender, reload_reasons) = mpsc::unbounded_channel();
    let (works, receiver) = tokio::sync::mpsc::unbounded_channel();
    let admin = Admin {
        control: sender.clone(),
        announcer: announcer.clone(),
        cloud: works.clone(),
        reload: reload_sender.clone(),
        asker: asker.clone(),
        view: publisher.view(),
        shared,
        workers: workers.iter().map(|worker| Arc::clone(&worker.stats)).collect(),
        packets: workers.iter().filter_map(|worker| worker.packets.clone()).collect(),
        interfaces: process.packet.iter().flat_map(|packet| packet.interfaces.clone()).collect(),
        registry,
        fixed: Arc::new(Fixed { budgets, features }),
        per_backend: process.per_backend,
        ready: Arc::clone(&ready),
    };
    let socket = runtime.block_on(async {
        let socket_path = &process.admin_socket;
        let socket = admin::serve_socket(socket_path, admin_router(admin.clone()))
            .map_err(|error| format!("admin socket {}: {error}", socket_path.display()))?;
        let bound = admin::serve_public(process.metrics, public_router(admin))
            .await
            .map_err(|error| metrics_refused(process.metrics, &error))?;
        tracing::info!(metrics = %bound, admin = %socket_path.display(), "serving status");
        Ok::<_, String>(socket)
    })?;

    // After the admin socket: only one Fairway on a host gets as far as touching nftables.
    let tproxy = match process.listen {
        ListenDoc::PerAddress => None,
        ListenDoc::Tproxy => Some(
            Tproxy::start(&workers)
                .map_err(|why| format!("`listen: tproxy` is not to be had: {why}"))?,
        ),
    };
    let mailbox = (works.clone(), receiver);
    let cloud::Begun { change, view, said } =
        cloud::start(runtime, &config, sender.clone(), asker.clone(), mailbox, &announcer)?;
    let watcher = reload::watcher(&config.files, reload_sender.clone());
    runtime.spawn(reload::run(
        path.clone(),
        config.clone(),
        watcher,
        reload_reasons,
        (sender.clone(), works),
        asker.clone(),
    ));
    runtime.spawn(signals(sender, reload_sender, Arc::clone(&ready)));

    let names: Vec<_> = features.names().collect();
    tracing::info!(workers = count, features = names.join(" "), "started");
    let listeners = Listeners::new(tproxy, budgets.for_listeners as usize);
    let mut control = Control::new(
        clock,
        process,
        path,
        publisher,
        workers,
        (listeners, packets, announcer),
        watchers,
    );
    let unknown = control.unknown_names(config.services.values().chain(&change.upserts));
    let names = runtime.block_on(asker.ask(unknown, FIRST_ANSWER));
    let news = CloudNews { change, names: names.clone(), view, said, since: None };
    control.begin(config, &names, news);
    control.await_workers();
    ready.store(true, Relaxed);
    Ok(Started { control, inputs, socket, log })
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

fn describe_metrics() {
    metrics::describe_counter!("fairway_config_reloads_total", "Configurations read, by result.");
    metrics::describe_gauge!(
        "fairway_config_last_reload_successful",
        "Whether the newest configuration runs."
    );
    metrics::describe_gauge!("fairway_snapshot_generation", "Generation of the snapshot.");
    metrics::describe_histogram!("fairway_publish_seconds", "Time to make and publish a snapshot.");
    metrics::describe_histogram!(
        "fairway_cluster_lag_seconds",
        "From what a watch of the API server tells to workers that know it."
    );
    metrics::describe_gauge!("fairway_listeners_failed", "Listeners that the kernel refused.");
    metrics::describe_gauge!(
        "fairway_addresses_missing",
        "Addresses of services that are not on this machine."
    );
    metrics::describe_counter!(
        "fairway_health_checks_total",
        "Health checks and questions to agents, by type and result."
    );
    metrics::describe_counter!("fairway_dns_lookups_total", "Names asked for, by result.");
    metrics::describe_gauge!(
        "fairway_dns_names_failing",
        "Names of backends that cannot be resolved now."
    );
    for (name, help) in [
        ("fairway_cluster_objects", "Objects of the cluster that are known, by kind."),
        (
            "fairway_cluster_watch_up",
            "Whether a kind of objects can be watched; absent while it always could.",
        ),
        ("fairway_cluster_services", "Services of the cluster that are ours."),
        ("fairway_cluster_services_without_address", "Those of them that wait for an address."),
        ("fairway_cluster_leader", "Whether this box gives addresses and writes status."),
        ("fairway_address_pool_assigned", "Addresses of a pool that Services have."),
        ("fairway_address_pool_size", "Addresses of a pool, given away or not."),
    ] {
        metrics::describe_gauge!(name, help);
    }
    metrics::describe_counter!(
        "fairway_cluster_api_errors_total",
        "Requests that the API server refused or did not answer, by the kind of object."
    );
    metrics::describe_counter!(
        "fairway_cluster_updates_total",
        "What the API server was told of Services, by result."
    );
    metrics::describe_gauge!("fairway_port_up", "Whether an interface carries packets.");
    metrics::describe_gauge!(
        "fairway_packet_guard_up",
        "Whether the kernel is kept from packets of packet services."
    );
    metrics::describe_gauge!("fairway_packet_flows_limit", "Flows that there is room for.");
    metrics::describe_gauge!("fairway_info", "The running version.");
    metrics::gauge!("fairway_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
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

fn disabled(process: &Process) -> Vec<Feature> {
    let feature = |feature: &UringFeature| match feature {
        UringFeature::MultishotAccept => Feature::MultishotAccept,
        UringFeature::CappedReceive => Feature::CappedReceive,
        UringFeature::Splice => Feature::Splice,
    };
    process.disabled.iter().map(feature).collect()
}

/// The cores that workers are bound to, in their order.
fn worker_cpus(process: &Process) -> Result<Vec<usize>, String> {
    let allowed = allowed_cpus();
    if process.cpus.is_empty() {
        return Ok(if process.pin_cpus { allowed } else { Vec::new() });
    }
    let named: Vec<usize> = process.cpus.iter().map(|cpu| *cpu as usize).collect();
    match named.iter().find(|cpu| !allowed.contains(cpu)) {
        Some(cpu) => Err(format!(
            "`dataplane.cpus` names core {cpu}, which this process may not use: it may use {allowed:?}"
        )),
        None => Ok(named),
    }
}

/// The CPUs that this process may run on, by number.
fn allowed_cpus() -> Vec<usize> {
    let set = rustix::thread::sched_getaffinity(None);
    set.map_or_else(
        |_| Vec::new(),
        |set| (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect(),
    )
}

fn worker_count(process: &Process) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    process.workers.map_or(cores, |workers| workers as usize)
}

/// Raises the limit of descriptors as far as it goes, and divides them.
fn budgets(process: &Process, workers: usize) -> Budgets {
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let raised = setrlimit(Resource::Nofile, wanted).is_ok();
    let descriptors = if raised { limit.maximum } else { limit.current };
    let descriptors = descriptors.unwrap_or(1 << 20).min(1 << 24);
    let for_control = CONTROL_DESCRIPTORS.min(descriptors / 4);
    let rest = descriptors - for_control;
    let for_listeners = match process.listen {
        ListenDoc::PerAddress => (rest / 4).min(4096 * workers as u64),
        ListenDoc::Tproxy => 4 * workers as u64,
    };
    let for_pipes = (rest - for_listeners) / 10;
    // A session of datagrams is a socket.
    let for_udp = process
        .max_udp_sessions
        .map_or(descriptors / 16, |asked| u64::from(asked).min((rest - for_listeners) / 2));
    let room = rest - for_listeners - for_pipes - for_udp;
    // A connection is two sockets, three while a second backend is being tried.
    let most = process.max_connections.map_or(u64::MAX, u64::from).min(room * 2 / 5);
    if let Some(asked) = process.max_connections.filter(|asked| u64::from(*asked) > most) {
        tracing::warn!(
            "maxConnections is {asked}, but {descriptors} descriptors only allow {most}; raise LimitNOFILE= of the service"
        );
    }
    Budgets {
        descriptors,
        for_control,
        for_listeners,
        for_pipes,
        for_udp,
        for_connections: room,
        most_connections: most,
        listeners_open: 0,
    }
}

/// The place of `worker` of so many.
fn steering((worker, workers): (usize, usize), cards: Option<&Arc<Toeplitz>>) -> Steering {
    let number = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
    let steering = Steering::of(number(worker), number(workers));
    match cards {
        Some(cards) => steering.with_cards(Arc::clone(cards)),
        None => steering,
    }
}

/// What the packet path of a worker is made with; none when the document names no interfaces.
fn packet_setup(
    process: &Process,
    steering: Steering,
    inboxes: &Arc<Inboxes>,
    polled: Option<Polled>,
) -> Option<PacketSetup> {
    let configured = process.packet.as_ref()?;
    let random = std::collections::hash_map::RandomState::new();
    Some(PacketSetup {
        flows: Shape { ipv4: configured.flows, ipv6: configured.flows_ipv6 },
        seeds: [0_u8, 1].map(|n| random.hash_one(n)),
        steering,
        stats: Arc::new(PacketStats::new(configured.interfaces.len())),
        inboxes: Arc::clone(inboxes),
        polled,
    })
}

fn settings(process: &Process, budgets: &Budgets, workers: usize) -> Settings {
    let share = |total: u64| u32::try_from(total / workers as u64).unwrap_or(u32::MAX).max(1);
    Settings {
        hash_seed: process.hash_seed,
        buffer_bytes: process.buffer_bytes,
        buffers: process.buffers,
        credit_bytes: process.credit_bytes,
        splice_after_bytes: SPLICE_AFTER,
        max_connections: share(budgets.most_connections),
        max_udp_sessions: share(budgets.for_udp),
        max_pipes: share(budgets.for_pipes / 2),
        log: match process.log_connections {
            ConnectionsDoc::Off => ConnectionLog::Off,
            ConnectionsDoc::Errors => ConnectionLog::Errors,
            ConnectionsDoc::Sampled => ConnectionLog::Sampled(process.log_sample_percent),
            ConnectionsDoc::All => ConnectionLog::All,
        },
    }
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
