//! Proxy workers on io_uring: accept, select a backend, connect, relay.
//!
//! One thread, one ring, one set of listeners a worker; nothing is shared between workers per
//! packet. Techniques and their measured costs are named where they are used. Linux 6.1 or later.

mod accept;
#[cfg(feature = "bench")]
pub mod bounce;
mod command;
mod connect;
mod direction;
mod greeting;
mod held;
mod listen;
mod packets;
mod relay;
mod report;
mod session;
mod source;
mod splice;
mod sys;
mod token;
mod udp;
mod wheel;
mod worker;

use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::Sender;
use crossbeam_utils::CachePadded;
use fairway_core::publish::Reader;
use rustix::event::{EventfdFlags, eventfd};
use rustix::thread::{CpuSet, sched_setaffinity};

pub use command::Command;
pub use listen::{ListenError, ListenerKey, open_listener, open_transparent, probe};
pub use packets::{
    Capture, CaptureFilter, Captured, Inboxes, LeftFlows, PacketPort, PacketSetup, Polled,
    PortControl, PortError, open_port, send_frames,
};
pub use report::{
    Carried, Clock, ConnectionFilter, ConnectionLog, ConnectionRecord, Event, OpenConnection,
    OpenFlow, PacketStats, PortStats, ServiceTalkers, Settings, Shared, SharedStats, Sink,
    WorkerStats,
};
pub use sys::{
    Feature, Features, Neighbors, SetupError, Told, flow_memory, keep_descriptors, keep_tap,
    neighbors, passed_descriptors, receive_frame, receive_told, sign, tell_hops,
};
pub use udp::HandedSession;

/// The control plane's end of a worker.
pub struct WorkerHandle {
    commands: Sender<Command>,
    wake: OwnedFd,
    thread: Option<JoinHandle<()>>,
    /// What the worker shows of itself.
    pub stats: SharedStats,
    /// The same of its packet path, if it has one.
    pub packets: Option<Arc<PacketStats>>,
}

impl WorkerHandle {
    /// Starts worker `worker`, on `cpu` if one is given, with a packet path if that is given. Its ring is set up before this returns.
    ///
    /// When the worker ends, for whatever reason, it says so by [`Event::WorkerEnded`].
    pub fn spawn(
        worker: usize,
        cpu: Option<usize>,
        shared: Arc<Shared>,
        reader: Reader,
        features: Features,
        packets: Option<PacketSetup>,
    ) -> Result<Self, SetupError> {
        let packet_stats = packets.as_ref().map(|setup| Arc::clone(&setup.stats));
        let (commands, receiver) = crossbeam_channel::unbounded();
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| SetupError::Resources(error.into()))?;
        let worker_wake = wake.try_clone().map_err(SetupError::Resources)?;
        let stats = Arc::new(CachePadded::new(WorkerStats::default()));
        let (ready, readiness) = crossbeam_channel::bounded(1);
        let worker_stats = Arc::clone(&stats);
        let body = move || {
            if let Some(cpu) = cpu {
                pin(cpu);
            }
            sys::short_slice();
            let mut region = None;
            // A ring belongs to the thread that made it.
            let built = packet_path(packets, &mut region, &shared).and_then(|packets| {
                worker::Worker::new(
                    worker,
                    Arc::clone(&shared),
                    worker_stats,
                    receiver,
                    worker_wake,
                    features,
                    packets,
                )
            });
            let runner = match built {
                Ok(runner) => runner,
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            let _ = ready.send(Ok(()));
            let error = match catch_unwind(AssertUnwindSafe(|| runner.run(reader))) {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(panic) => Some(panic_text(panic.as_ref())),
            };
            shared.send(Event::WorkerEnded { worker, error });
        };
        let thread = std::thread::Builder::new()
            .name(format!("fairway-{worker}"))
            .spawn(body)
            .map_err(SetupError::Resources)?;
        match readiness.recv() {
            Ok(Ok(())) => {
                Ok(Self { commands, wake, thread: Some(thread), stats, packets: packet_stats })
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(SetupError::Other(io::Error::other("the worker ended at its start"))),
        }
    }

    /// Has the worker do something. It does so soon, in order.
    pub fn send(&self, command: Command) {
        // A worker that has ended has said so by its event; nothing is left to command.
        let _ = self.commands.send(command);
        self.wake();
    }

    /// Has the worker look at the current snapshot even when it is idle.
    pub fn wake(&self) {
        // The only failure is a full counter, which wakes it too.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Waits for the worker's end.
    pub fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            // Panics were caught and reported.
            let _ = thread.join();
        }
    }
}

/// The packet path of a worker, if it is to have one, with its flows in `region`.
fn packet_path<'r>(
    setup: Option<PacketSetup>,
    region: &'r mut Option<sys::Region>,
    shared: &Shared,
) -> Result<Option<packets::Packets<'r>>, SetupError> {
    let Some(setup) = setup else { return Ok(None) };
    let region = region.insert(setup.region().map_err(SetupError::Resources)?);
    packets::Packets::new(setup, region, shared).map(Some)
}

fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    // A CPU that is not ours to use: the scheduler decides, as without pinning.
    let _ = sched_setaffinity(None, &set);
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("panicked: {}", text.unwrap_or_else(|| "without a message".into()))
}
