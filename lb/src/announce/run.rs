//! The thread that announces, and what it is told and tells.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use fairway_config::{Process, ServiceKey};
use fairway_core::{IpPrefix, Tick, Told as ToldOnPorts};
use fairway_uring::{Clock, Told};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use super::announcer::Announcer;
use super::plan::{Said, Standing};
use super::sharing::Shares;
use super::speakers::PeerEvent;
use super::status::AnnounceView;
use super::vrrp::GroupKey;
use crate::network::{Interfaces, follow_changes};

/// Things that are taken together before anything follows from them.
const BATCH: usize = 4096;
/// How long nothing is looked after without a cause.
const LOOK: Duration = Duration::from_secs(10);
/// How long the control loop waits for an answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Something for the thread.
pub(crate) enum Input {
    /// What announcements go by.
    Said(Box<Said>),
    /// Services stand otherwise, or are gone.
    Services(Vec<(ServiceKey, Option<Standing>)>),
    /// Addresses that connections are accepted at, and from when on no longer.
    Local(Vec<(IpAddr, Option<Tick>)>),
    /// The first of both has come: what a process before this one has left is nobody's.
    Begun,
    /// Shared addresses that Leases say are ours.
    Leased(BTreeSet<IpPrefix>),
    /// Take back what is announced, or announce it again.
    Drain(bool),
    /// Answers when all before it has been done.
    Sync(std::sync::mpsc::Sender<()>),
    /// How everything stands.
    View(oneshot::Sender<AnnounceView>),
    /// Take back everything, and end.
    Stop(std::sync::mpsc::Sender<()>),
}

/// Something that happens outside.
pub(crate) enum Event {
    /// A frame of neighbours on an interface.
    Frame(String, Box<[u8]>),
    /// An advertisement for a virtual router.
    Vrrp(GroupKey, Box<[u8]>, Told),
    /// A packet of BFD, over several hops or one.
    Bfd(Box<[u8]>, Told, bool),
    /// Something of a peer.
    Bgp(String, PeerEvent),
    /// Interfaces have changed.
    Links,
}

/// What the control loop is to know.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Announced {
    /// Addresses that are not expected on this machine by themselves.
    pub(crate) governed: BTreeSet<IpAddr>,
    /// Those that the kernel refused, and what it said.
    pub(crate) failed: BTreeMap<IpAddr, String>,
    /// On which ports of the packet path stations are told of addresses.
    pub(crate) told: Arc<ToldOnPorts>,
    /// What needs a person.
    pub(crate) troubles: Vec<String>,
}

/// The control loop's end of the thread.
#[derive(Clone)]
pub(crate) struct Handle {
    inputs: Option<mpsc::UnboundedSender<Input>>,
    shares: watch::Receiver<Shares>,
}

impl Handle {
    /// Nobody announces: for measuring the control loop alone.
    pub(crate) fn detached() -> Self {
        Self { inputs: None, shares: watch::channel(Shares::default()).1 }
    }

    /// Addresses that boxes share, and the backends that this one has for them.
    pub(crate) fn shares(&self) -> Shares {
        self.shares.borrow().clone()
    }

    /// Tells it something. A thread that has ended has said why.
    pub(crate) fn send(&self, input: Input) {
        if let Some(sender) = &self.inputs {
            let _ = sender.send(input);
        }
    }

    /// Waits until all that it was told has been done, for a while.
    pub(crate) fn sync(&self) {
        self.wait(Input::Sync);
    }

    /// Has it take back everything and end.
    pub(crate) fn stop(&self) {
        self.wait(Input::Stop);
    }

    fn wait(&self, input: impl FnOnce(std::sync::mpsc::Sender<()>) -> Input) {
        if self.inputs.is_some() {
            let (sender, receiver) = std::sync::mpsc::channel();
            self.send(input(sender));
            // Late is better than never: what waits goes on.
            let _ = receiver.recv_timeout(PATIENCE);
        }
    }
}

/// A socket whose readiness the runtime tells: of whatever protocol, it is but a descriptor that does not
/// block.
pub(super) fn readable(socket: impl Into<OwnedFd>) -> io::Result<UdpSocket> {
    UdpSocket::from_std(std::net::UdpSocket::from(socket.into()))
}

/// Starts the thread; `tell` hears what the control loop is to know.
pub(crate) fn start(
    process: &Process,
    clock: Clock,
    tell: impl Fn(Announced) + Send + 'static,
) -> Result<Handle, String> {
    let (sender, inputs) = mpsc::unbounded_channel();
    let (share, shares) = watch::channel(Shares::default());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("no thread for announcements: {error}"))?;
    let fixed = Fixed {
        vip_interface: process.vip_interface.clone(),
        packet_interfaces: process.packet.iter().flat_map(|it| it.interfaces.clone()).collect(),
    };
    std::thread::Builder::new()
        .name("fairway-announce".into())
        .spawn(move || {
            if let Err(why) = runtime.block_on(run(fixed, clock, (inputs, share), tell)) {
                tracing::error!("nothing is announced: {why}");
            }
        })
        .map_err(|error| format!("no thread for announcements: {error}"))?;
    Ok(Handle { inputs: Some(sender), shares })
}

/// What of the document holds for the whole life of the process.
pub(crate) struct Fixed {
    /// What has the addresses that nothing else is said of.
    pub(crate) vip_interface: Option<String>,
    /// By the numbers of ports.
    pub(crate) packet_interfaces: Vec<String>,
}

async fn run(
    fixed: Fixed,
    clock: Clock,
    (mut inputs, share): (mpsc::UnboundedReceiver<Input>, watch::Sender<Shares>),
    tell: impl Fn(Announced),
) -> Result<(), String> {
    let kernel = Interfaces::connect()?;
    let (events, mut happened) = mpsc::unbounded_channel();
    let changes = events.clone();
    follow_changes(move || changes.send(Event::Links).is_ok())?;
    let mut announcer = Announcer::new(fixed, kernel, events);
    let mut told = Announced::default();
    loop {
        let now = clock.now();
        let wait = announcer.due().map_or(LOOK, |due| due.since(now).min(LOOK));
        let (mut input, mut event) = (None, None);
        tokio::select! {
            biased;
            happens = happened.recv() => event = happens,
            told = inputs.recv() => match told {
                Some(told) => input = Some(told),
                // The control loop has gone.
                None => return Ok(()),
            },
            () = sleep_until(Instant::now() + wait) => {}
        }
        let now = clock.now();
        announcer.wake(now);
        let mut count = 0;
        while let Some(happens) = event.take() {
            announcer.take(happens, now).await;
            count += 1;
            event = happened.try_recv().ok().filter(|_| count < BATCH);
        }
        let mut answers = Vec::new();
        let mut views = Vec::new();
        let mut ends = None;
        while let Some(told) = input.take() {
            match told {
                Input::Sync(answer) => answers.push(answer),
                Input::View(answer) => views.push(answer),
                Input::Stop(answer) => ends = Some(answer),
                other => announcer.hear(other, now).await,
            }
            count += 1;
            input = inputs.try_recv().ok().filter(|_| count < BATCH && ends.is_none());
        }
        announcer.settle(now).await;
        share.send_if_modified(|known| {
            let shares = announcer.shares();
            let changed = *known != shares;
            *known = shares;
            changed
        });
        let announced = announcer.announced();
        if announced != told {
            told = announced;
            tell(told.clone());
        }
        // Nobody waits any more when the asker has gone.
        answers.into_iter().for_each(|answer| _ = answer.send(()));
        views.into_iter().for_each(|answer| _ = answer.send(announcer.view(now)));
        if let Some(answer) = ends {
            announcer.end(&clock, &mut happened).await;
            let _ = answer.send(());
            return Ok(());
        }
    }
}
