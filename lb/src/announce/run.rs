//! The thread that announces, and what it is told and tells.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use fairway_config::document::ListenDoc;
use fairway_config::{Process, ServiceKey};
use fairway_core::{IpPrefix, Tick, Told as ToldOnPorts};
use fairway_uring::{Clock, Told};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::announcer::Announcer;
use super::handing::Handed;
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
/// The same where others may take over meanwhile.
const BEAT: Duration = Duration::from_millis(500);
/// How often the control loop is told what is news.
const TELL: Duration = Duration::from_millis(20);
/// How long the end waits for Leases to be given back.
const PARTING: Duration = Duration::from_millis(500);
/// How long announcing may take to begin: thousands of addresses are put on interfaces one by one.
const BEGINS: Duration = Duration::from_secs(30);
/// How long the control loop waits for an answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Something for the thread.
pub(crate) enum Input {
    /// Services stand otherwise, or are gone; and what announcements go by, if that is news.
    Services(Vec<(ServiceKey, Option<Standing>)>, Option<Box<Said>>),
    /// Addresses that connections are accepted at, and from when on no longer.
    Local(Vec<(IpAddr, Option<Tick>)>),
    /// What the process before this one has handed over; it comes before anything else.
    Inherit(Box<Handed>, Vec<(String, OwnedFd)>),
    /// The first of both has come: what a process before this one has left is nobody's.
    Begun,
    /// Shared addresses that Leases say are ours, none while nobody has read any, and why boxes cannot agree,
    /// if they cannot.
    Leased(Option<BTreeSet<IpPrefix>>, Option<String>),
    /// Take back what is announced, or announce it again.
    Drain(bool),
    /// The same for good: this process ends.
    Leave,
    /// Answers when all before it has been done.
    Sync(std::sync::mpsc::Sender<()>),
    /// How everything stands.
    View(oneshot::Sender<AnnounceView>),
    /// Give everything to the next process, and stand still.
    HandOver(std::sync::mpsc::Sender<(Handed, Vec<(String, OwnedFd)>)>),
    /// The next process does not take it.
    GoOn {
        /// It may have begun to speak.
        may_have_begun: bool,
    },
    /// End, and leave everything as it is to the next process.
    Abandon,
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
    /// Addresses in use of which `governed` has been decided.
    pub(crate) known: BTreeSet<IpAddr>,
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
    pub(crate) fn shares(&self) -> watch::Receiver<Shares> {
        self.shares.clone()
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

    /// Waits until it has begun; as long as it takes, up to what the process before waits.
    pub(crate) fn begin(&self) -> Result<(), String> {
        self.send(Input::Begun);
        let Some(begun) = self.asked(Input::Sync) else { return Ok(()) };
        let late = |_| format!("announcing did not begin within {BEGINS:?}");
        begun.recv_timeout(BEGINS).map_err(late)
    }

    /// Has it take back everything and end.
    pub(crate) fn stop(&self) {
        self.wait(Input::Stop);
    }

    /// Has it give everything away and stand still; an error when it does not do so in time.
    pub(crate) fn hand_over(&self) -> Result<(Handed, Vec<(String, OwnedFd)>), String> {
        let handed = self.wait(Input::HandOver);
        handed.ok_or_else(|| format!("announcements did not stand still within {PATIENCE:?}"))
    }

    /// The answer; none when it is late. What waits goes on all the same.
    fn wait<T>(&self, input: impl FnOnce(std::sync::mpsc::Sender<T>) -> Input) -> Option<T> {
        self.asked(input)?.recv_timeout(PATIENCE).ok()
    }

    fn asked<T>(
        &self,
        input: impl FnOnce(std::sync::mpsc::Sender<T>) -> Input,
    ) -> Option<std::sync::mpsc::Receiver<T>> {
        self.inputs.as_ref()?;
        let (sender, receiver) = std::sync::mpsc::channel();
        self.send(input(sender));
        Some(receiver)
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
    tell: impl Fn(Result<Announced, String>) + Send + 'static,
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
        is_transparent: process.listen == ListenDoc::Tproxy,
    };
    std::thread::Builder::new()
        .name("fairway-announce".into())
        .spawn(move || {
            let work = || runtime.block_on(run(fixed, clock, (inputs, share), &tell));
            // A process that serves and announces nothing is of no use: it ends with the cause.
            match catch_unwind(AssertUnwindSafe(work)) {
                Ok(Ok(())) => {}
                Ok(Err(why)) => tell(Err(why)),
                Err(_) => tell(Err("it panicked; the log has the place".into())),
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
    /// Connections are taken for addresses that the kernel does not have.
    pub(crate) is_transparent: bool,
}

async fn run(
    fixed: Fixed,
    clock: Clock,
    (mut inputs, share): (mpsc::UnboundedReceiver<Input>, watch::Sender<Shares>),
    tell: &impl Fn(Result<Announced, String>),
) -> Result<(), String> {
    let kernel = Interfaces::connect()?;
    let (events, mut happened) = mpsc::unbounded_channel();
    let changes = events.clone();
    follow_changes(move || changes.send(Event::Links).is_ok())?;
    let mut announcer = Announcer::new(fixed, kernel, events);
    let mut told = None;
    let mut tell_at = clock.now();
    loop {
        let now = clock.now();
        // A box that shares something is to notice that it stood still.
        let longest = if announcer.is_shared() { BEAT } else { LOOK };
        let wait = announcer.due().map_or(longest, |due| due.since(now).min(longest));
        let planned = now.plus(wait);
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
        let late = now.since(planned);
        if !late.is_zero() {
            announcer.stood_still(late, now);
            // What has come is read before anything follows from its absence.
            tokio::task::yield_now().await;
        }
        let mut count = 0;
        event = event.or_else(|| happened.try_recv().ok());
        while let Some(happens) = event.take() {
            announcer.take(happens, now).await;
            count += 1;
            event = happened.try_recv().ok().filter(|_| count < BATCH);
        }
        // Each has its turn, whatever strangers send.
        count = 0;
        input = input.or_else(|| inputs.try_recv().ok());
        let mut answers = Vec::new();
        let mut views = Vec::new();
        let mut ends = None;
        let mut asked = false;
        while let Some(told) = input.take() {
            match told {
                Input::Sync(answer) => answers.push(answer),
                Input::View(answer) => views.push(answer),
                Input::Stop(answer) => ends = Some(answer),
                Input::Abandon => return Ok(()),
                Input::HandOver(answer) => {
                    // Who asked may have lost patience, and will say so.
                    let _ = answer.send(announcer.hand_over(&clock, &mut happened).await);
                }
                other => {
                    asked = true;
                    announcer.hear(other, now).await;
                }
            }
            count += 1;
            input = inputs.try_recv().ok().filter(|_| count < BATCH && ends.is_none());
        }
        announcer.settle(now, !answers.is_empty()).await;
        if asked || now >= tell_at {
            tell_at = now.plus(TELL);
            share.send_if_modified(|known| {
                let shares = announcer.shares();
                let changed = *known != shares;
                *known = shares;
                changed
            });
            let announced = announcer.announced();
            // Whoever has told of something waits for what follows.
            if (asked && announcer.is_written()) || told.as_ref() != Some(&announced) {
                tell(Ok(told.insert(announced).clone()));
            }
        }
        // Nobody waits any more when the asker has gone.
        answers.into_iter().for_each(|answer| _ = answer.send(()));
        views.into_iter().for_each(|answer| _ = answer.send(announcer.view(now)));
        if let Some(answer) = ends {
            announcer.end(&clock, &mut happened).await;
            share.send_replace(announcer.shares());
            if announcer.has_leases() {
                // What this box holds is free at once, if the API server hears it.
                let _ = timeout(PARTING, share.closed()).await;
            }
            let _ = answer.send(());
            return Ok(());
        }
    }
}
