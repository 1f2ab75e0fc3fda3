//! The old process's side.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use fairway_core::Remembered;
use fairway_uring::{HandedSession, Shared};

use super::channel::{Channel, ChannelError};
use super::launch::Launched;
use super::{Answer, BEFORE, Estate, Followers, Gate, Greeting, Heir, News, Session};
use crate::admin::Doors;
use crate::announce::HandedAnnouncements;
use crate::control::{Control, Input, Memory};
use crate::manager::Manager;

/// How long the new process may take to check its document and to start: names are asked for, an API
/// server is heard.
const STARTS: Duration = Duration::from_secs(60);
/// How long it may take to serve with what it was given: nobody receives datagrams or packets then.
const TAKES_OVER: Duration = Duration::from_secs(40);

/// What the control loop gives away.
pub(crate) struct Handed {
    pub(crate) memory: Memory,
    pub(crate) generation: u64,
    /// Until when packets were carried here, nanoseconds since 1970.
    pub(crate) packets_until: u64,
    /// What transparent listening has nftables hold.
    pub(crate) nftables: Vec<String>,
    pub(crate) announcements: HandedAnnouncements,
    pub(crate) named: Vec<(String, OwnedFd)>,
    /// By worker.
    pub(crate) sessions: Vec<Vec<HandedSession>>,
}

/// Hands this process over, when asked.
pub(crate) struct Giver {
    pub(crate) control: Sender<Input>,
    pub(crate) doors: Arc<Mutex<Doors>>,
    pub(crate) manager: Manager,
    pub(crate) shared: Arc<Shared>,
    pub(crate) config: PathBuf,
    pub(crate) identity: Option<String>,
    pub(crate) gate: Gate,
    pub(crate) followers: Mutex<Followers>,
    /// What is run: the file from which this process was started, whatever is there now.
    pub(crate) program: Result<PathBuf, String>,
    pub(crate) busy: AtomicBool,
}

impl Giver {
    /// Hands over to a new process; blocks until that serves. An error says why this one goes on.
    pub(crate) fn hand_over(&self) -> Result<String, String> {
        if self.busy.swap(true, Relaxed) {
            return Err("another upgrade is under way".into());
        }
        let outcome = self.try_to();
        self.busy.store(false, Relaxed);
        outcome
    }

    fn try_to(&self) -> Result<String, String> {
        let ready = self.ask(Control::can_hand_over)?;
        ready?;
        let program = self.program.clone()?;
        let failed = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
        let (channel, theirs) = Channel::pair().map_err(|error| failed("no socket", &error))?;
        let next = Launched::new(&program, &self.config, theirs)?;
        let pid = next.pid;
        tracing::info!(pid, program = %program.display(), "a new process starts");
        let mut may_have_begun = false;
        match self.give(channel, &next, &mut may_have_begun) {
            Ok(version) => Ok(format!("process {pid} serves, version {version}")),
            Err(why) => {
                // It has said what it had to say, and is to touch nothing any more.
                next.end();
                let _ = self.ask(move |control| control.go_on(may_have_begun));
                tracing::error!("the new process does not serve, this one goes on: {why}");
                Err(why)
            }
        }
    }

    /// Gives everything to the next process; it `may_have_begun` to serve unless it has said that it has not.
    fn give(
        &self,
        channel: Channel,
        next: &Launched,
        may_have_begun: &mut bool,
    ) -> Result<String, String> {
        let greeting = Greeting {
            version: env!("CARGO_PKG_VERSION").into(),
            affinity_seeds: Some(self.shared.clients.affinity.seeds()),
            identity: self.identity.clone(),
        };
        channel.send(&greeting, &[]).map_err(|error| error.to_string())?;
        let version = match hear(&channel, STARTS)? {
            Answer::Ready { version } => version,
            other => return Err(unexpected(other)),
        };
        let started = Instant::now();
        let given = self.bequeath(&channel);
        given?;
        *may_have_begun = true;
        match hear(&channel, TAKES_OVER)? {
            Answer::Serving => {}
            other => {
                // It says so only before it begins.
                *may_have_begun = !matches!(other, Answer::Failed(_));
                return Err(unexpected(other));
            }
        }
        if self.ask(|control| control.is_stopping())? {
            return Err("this process was told to end meanwhile".into());
        }
        let gap = started.elapsed();
        self.followers().stop();
        self.manager.hands_over_to(next.pid);
        // A new process that is gone by now was told everything.
        let _ = channel.send(&News::Yours, &[]);
        self.doors.lock().unwrap_or_else(PoisonError::into_inner).leave();
        self.gate.close();
        let heir = Heir::new(channel);
        self.ask(move |control| control.leave(heir))?;
        tracing::info!(pid = next.pid, ?gap, "handed over");
        Ok(version)
    }

    /// Gives everything away.
    fn bequeath(&self, channel: &Channel) -> Result<(), String> {
        let Handed {
            memory,
            generation,
            packets_until,
            nftables,
            announcements,
            mut named,
            sessions,
        } = self.ask(Control::hand_over)??;
        let owns_socket = {
            let doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
            named.extend(doors.copies().map_err(|error| error.to_string())?);
            doors.owns_socket()
        };
        for channel in self.followers().channels() {
            let channel = channel.try_clone_to_owned().map_err(|error| error.to_string())?;
            named.push((BEFORE.to_owned(), channel));
        }
        let affinity = self.shared.clients.affinity.remembered();
        let plain = |Remembered { client, backend, used }: Remembered| {
            (client, backend.slot, backend.epoch, used.0)
        };
        let mut estate = Estate {
            names: Vec::new(),
            sessions: Vec::new(),
            memory,
            affinity: affinity.map(plain).collect(),
            generation,
            packets_until,
            nftables,
            announcements,
            owns_socket,
        };
        let mut descriptors = Vec::new();
        for (name, descriptor) in &named {
            estate.names.push(name.clone());
            descriptors.push(descriptor.as_fd());
        }
        for sessions in &sessions {
            let (told, sockets): (Vec<_>, Vec<_>) = sessions.iter().map(Session::split).unzip();
            estate.sessions.push(told);
            descriptors.extend(sockets);
        }
        let news = News::Estate(Box::new(estate));
        channel.send(&news, &descriptors).map_err(|error| error.to_string())
    }

    fn followers(&self) -> MutexGuard<'_, Followers> {
        self.followers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Control) -> T + Send + 'static,
    ) -> Result<T, String> {
        let gone = || "this process is ending".to_owned();
        let (answer, answered) = bounded(1);
        // Who asks waits for the answer.
        let ask = Box::new(move |control: &mut Control| _ = answer.send(question(control)));
        self.control.send(Input::Ask(ask)).map_err(|_| gone())?;
        answered.recv().map_err(|_| gone())
    }
}

/// What the new process says next.
fn hear(channel: &Channel, patience: Duration) -> Result<Answer, String> {
    match channel.receive(Some(patience)) {
        Ok((answer, _)) => Ok(answer),
        Err(ChannelError::Gone) => {
            Err("the new process has ended; what it said, if anything, is in the log".into())
        }
        Err(ChannelError::Late) => Err(format!("the new process took longer than {patience:?}")),
        Err(error) => Err(error.to_string()),
    }
}

fn unexpected(answer: Answer) -> String {
    match answer {
        Answer::Failed(why) => why,
        Answer::Ready { .. } | Answer::Serving => {
            "the new process said something that was not its turn".into()
        }
    }
}
