//! From the document to what workers are made with.

use std::hash::BuildHasher;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use fairway_config::Process;
use fairway_config::document::{ConnectionsDoc, ListenDoc, UringFeature};
use fairway_core::packet::{Steering, flow::Shape};
use fairway_uring::{
    ConnectionLog, Feature, Inboxes, PacketSetup, PacketStats, Settings, flow_memory,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::admin::views::Budgets;

/// Descriptors for sockets of the control plane: checks, admin, metrics, files.
const CONTROL_DESCRIPTORS: u64 = 1500;
/// Bytes after which a direction is spliced. More than the kernel takes from us for a client that
/// never reads, so that such a client costs its credit and no pipe.
const SPLICE_AFTER: u64 = 1 << 20;

pub(super) fn disabled(process: &Process) -> Vec<Feature> {
    let feature = |feature: &UringFeature| match feature {
        UringFeature::MultishotAccept => Feature::MultishotAccept,
        UringFeature::CappedReceive => Feature::CappedReceive,
        UringFeature::Splice => Feature::Splice,
    };
    process.disabled.iter().map(feature).collect()
}

/// The cores that workers are bound to, in their order.
pub(super) fn worker_cpus(process: &Process) -> Result<Vec<usize>, String> {
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

pub(super) fn worker_count(process: &Process) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    process.workers.map_or(cores, |workers| workers as usize)
}

/// Raises the limit of descriptors as far as it goes, and divides them; `sockets` is how many addresses and
/// ports are listened on by what the document says now, none when a cluster says it.
pub(super) fn budgets(process: &Process, workers: usize, sockets: Option<u64>) -> Budgets {
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let raised = setrlimit(Resource::Nofile, wanted).is_ok();
    let descriptors = if raised { limit.maximum } else { limit.current };
    let descriptors = descriptors.unwrap_or(1 << 20).min(1 << 24);
    let for_control = CONTROL_DESCRIPTORS.min(descriptors / 4);
    let rest = descriptors - for_control;
    let for_listeners = match process.listen {
        // Each is open in a worker, and kept for the next process. What a cluster will ask for is not known
        // yet; of a document, there is room for twice as many.
        ListenDoc::PerAddress => {
            let most = (rest / 4).min(8192 * workers as u64);
            let twice = |sockets: u64| sockets.saturating_mul(4 * workers as u64);
            sockets.map_or(most, |sockets| twice(sockets).max(rest / 16).min(most))
        }
        ListenDoc::Tproxy => 8 * workers as u64,
    };
    let for_pipes = (rest - for_listeners) / 16;
    // A session of datagrams is a socket.
    let for_udp = process
        .max_udp_sessions
        .map_or(descriptors / 16, |asked| u64::from(asked).min((rest - for_listeners) / 2));
    let room = rest - for_listeners - for_pipes - for_udp;
    // A connection is two sockets, three while a second backend is being tried: a quarter may at a time.
    let most = process.max_connections.map_or(u64::MAX, u64::from).min(room * 4 / 9);
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

/// What the packet path of a worker is made with; none when the document names no interfaces. A copy of
/// the memory for its flows goes to `memory`.
pub(super) fn packet_setup(
    process: &Process,
    (worker, workers): (usize, usize),
    inboxes: &Arc<Inboxes>,
    memory: &mut Vec<OwnedFd>,
) -> Result<Option<PacketSetup>, String> {
    let Some(configured) = &process.packet else { return Ok(None) };
    let number = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
    let random = std::collections::hash_map::RandomState::new();
    let flows = Shape { ipv4: configured.flows, ipv6: configured.flows_ipv6 };
    let failed = |error: std::io::Error| format!("no memory for flows: {error}");
    let own = flow_memory(flows.bytes(), configured.dpdk.is_some()).map_err(failed)?;
    memory.push(own.try_clone().map_err(failed)?);
    Ok(Some(PacketSetup {
        flows,
        seeds: [0_u8, 1].map(|n| random.hash_one(n)),
        memory: own,
        steering: Steering::of(number(worker), number(workers)),
        stats: Arc::new(PacketStats::new(configured.interfaces.len())),
        inboxes: Arc::clone(inboxes),
    }))
}

pub(super) fn settings(process: &Process, budgets: &Budgets, workers: usize) -> Settings {
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
