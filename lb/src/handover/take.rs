//! The new process's side.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::Sender;
use fairway_core::{AffinityTable, BackendId, Remembered, Tick};
use fairway_uring::HandedSession;

use super::channel::{Channel, ChannelError};
use super::{Answer, Estate, Greeting, Left, News};
use crate::control::{Input, LateCounts};

/// How long the old process may take for what it has to say.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long those that are left are listened to at a time.
const GLANCE: Duration = Duration::from_millis(100);

/// The process before this one, as long as it has something to give.
pub(crate) struct Before {
    channel: Channel,
    pub(crate) greeting: Greeting,
}

impl Before {
    /// The process at the other end of our standard input.
    pub(crate) fn meet() -> Result<Self, String> {
        let failed =
            |error: &dyn std::fmt::Display| format!("no process to take over from: {error}");
        let input =
            std::io::stdin().as_fd().try_clone_to_owned().map_err(|error| failed(&error))?;
        let null = std::fs::File::open("/dev/null").map_err(|error| failed(&error))?;
        rustix::stdio::dup2_stdin(&null).map_err(|error| failed(&error))?;
        let channel = Channel::of(input);
        let (greeting, _) = channel.receive(Some(PATIENCE)).map_err(|error| failed(&error))?;
        Ok(Self { channel, greeting })
    }

    /// Says why this process will not serve.
    pub(crate) fn refuse(&self, why: &str) {
        // It notices all the same when this process ends.
        let _ = self.channel.send(&Answer::Failed(why.to_owned()), &[]);
    }

    /// Has it give away what it has: it stands still from now on.
    pub(crate) fn take(&self) -> Result<(Estate, Vec<OwnedFd>), String> {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let answer = Answer::Ready { version };
        self.channel.send(&answer, &[]).map_err(|error| error.to_string())?;
        match self.channel.receive(Some(PATIENCE)) {
            Ok((News::Estate(estate), descriptors)) => Ok((*estate, descriptors)),
            Ok(_) => Err("the process before this one said something that was not its turn".into()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Says that this process serves, and waits until it is the service's main one; returns what follows
    /// what is left of the one before.
    pub(crate) fn serve(self) -> Result<Channel, String> {
        let Self { channel, greeting } = self;
        channel.send(&Answer::Serving, &[]).map_err(|error| error.to_string())?;
        match channel.receive(Some(PATIENCE)) {
            Ok((News::Yours, _)) => {}
            Ok(_) => tracing::warn!("the process before this one spoke out of turn"),
            // It serves no longer, whatever became of it.
            Err(error) => tracing::warn!("the process before this one: {error}"),
        }
        tracing::info!(version = greeting.version, "took over from the process before");
        Ok(channel)
    }
}

/// Hears what is left of processes before this one, until the next one does.
#[derive(Default)]
pub(crate) struct Followers {
    over: Arc<AtomicBool>,
    threads: Vec<(Channel, JoinHandle<()>)>,
}

impl Followers {
    /// Tells the control loop what comes by a channel.
    pub(crate) fn follow(&mut self, channel: Channel, control: Sender<Input>) -> io::Result<()> {
        let (copy, over) = (channel.try_clone()?, Arc::clone(&self.over));
        let follow = move || follow(&channel, &over, &control);
        let thread = std::thread::Builder::new().name("fairway-before".into()).spawn(follow)?;
        self.threads.push((copy, thread));
        Ok(())
    }

    /// The channels, for the next process.
    pub(crate) fn channels(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let live = self.threads.iter().filter(|(_, thread)| !thread.is_finished());
        live.map(|(channel, _)| channel.as_fd())
    }

    /// Hears nothing from now on.
    pub(crate) fn stop(&mut self) {
        self.over.store(true, Relaxed);
        for (_, thread) in self.threads.drain(..) {
            // It ends between two messages.
            let _ = thread.join();
        }
    }
}

fn follow(channel: &Channel, over: &AtomicBool, control: &Sender<Input>) {
    let mut pid = 0;
    while !over.load(Relaxed) {
        match channel.receive(Some(GLANCE)) {
            Ok((News::Left(left), _)) => {
                pid = left.pid;
                if control.send(Input::Before(left)).is_err() {
                    return;
                }
            }
            Ok(_) | Err(ChannelError::Late) => {}
            Err(ChannelError::Strange(why)) => tracing::warn!("the process before: {why}"),
            Err(_) => {
                // The loop may have ended, too.
                let _ = control.send(Input::Before(Left { pid, quiet: true, ..Left::default() }));
                return;
            }
        }
    }
}

/// The process after this one.
pub(crate) struct Heir(Channel);

impl Heir {
    pub(super) fn new(channel: Channel) -> Self {
        Self(channel)
    }

    /// Tells it what is left here. One that has ended needs to know nothing.
    pub(crate) fn tell(&self, connections: u64, quiet: bool, counts: BTreeMap<String, LateCounts>) {
        let left = Left { pid: std::process::id(), connections, quiet, counts };
        let _ = self.0.send(&News::Left(left), &[]);
    }
}

impl Estate {
    /// Joins sessions with their sockets; the rest of the descriptors have names.
    pub(crate) fn split(
        &mut self,
        descriptors: Vec<OwnedFd>,
    ) -> (Vec<(String, OwnedFd)>, Vec<Vec<HandedSession>>) {
        let mut descriptors = descriptors.into_iter();
        let named = std::mem::take(&mut self.names).into_iter().zip(descriptors.by_ref());
        let named: Vec<_> = named.collect();
        let mut sessions = Vec::new();
        for told in std::mem::take(&mut self.sessions) {
            let joined = told.into_iter().zip(descriptors.by_ref());
            sessions.push(joined.map(|(session, socket)| session.join(socket)).collect());
        }
        (named, sessions)
    }

    /// Has `table` remember clients' backends.
    pub(crate) fn fill(&self, table: &AffinityTable) {
        for (client, slot, epoch, used) in &self.affinity {
            let backend = BackendId { slot: *slot, epoch: *epoch };
            table.remember(Remembered { client: *client, backend, used: Tick(*used) });
        }
    }
}
