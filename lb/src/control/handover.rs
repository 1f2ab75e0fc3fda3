//! The control loop's part in going from one process to the next: [`crate::handover`].

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crossbeam_channel::unbounded;
use fairway_core::Tick;
use fairway_uring::{Command, HandedSession};

use super::{Control, LateCounts, Stop};
use crate::handover::{Handed, Heir, Left};

/// How long workers may take to end what is under way.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often the next process hears what is left of this one.
const TELL: Duration = Duration::from_secs(1);

/// What was handed over, and who has it now.
#[derive(Default)]
pub(super) struct Handing {
    /// What was counted when it was told last.
    told: BTreeMap<String, LateCounts>,
    heir: Option<Heir>,
    tell_at: Tick,
    /// It was told that nothing is accepted here.
    quiet: bool,
    /// Who asked for it has the answer by then.
    end_at: Tick,
}

impl Handing {
    /// Another process has taken over.
    pub(super) fn is_over(&self) -> bool {
        self.heir.is_some()
    }
}

impl Control {
    /// Whether another process may go on in place of this one; else why not.
    pub(crate) fn can_hand_over(&mut self) -> Result<(), String> {
        if self.is_stopping() {
            return Err("this process is ending".into());
        }
        match self.rolled_back {
            Some(number) => Err(format!(
                "configuration {number} was rolled back to, and a new process would serve what the file \
                 says; mend the file, or read it again with `fairway reload`"
            )),
            None => Ok(()),
        }
    }

    /// Gives everything away; nobody receives datagrams until [`Control::go_on`], or in the next process.
    pub(crate) fn hand_over(&mut self) -> Result<Handed, String> {
        self.can_hand_over()?;
        self.publish();
        let ends = self.kernel_ends()?;
        // Peers may take a moment, in which traffic goes on.
        let standing = self.announcing.hand_over().and_then(|announcements| {
            let (sessions, until) = (self.pause()?, self.end_packets()?);
            self.release_cards(ends)?;
            Ok((announcements, sessions, until))
        });
        let ((announcements, announcing), sessions, packets_until) = match standing {
            Ok(standing) => standing,
            Err(why) => {
                self.go_on(false);
                return Err(why);
            }
        };
        let memory = self.memory();
        self.handing.told = memory.counted();
        let mut named = announcing;
        let packets = self.packets_to_hand_over();
        for (name, socket) in self.listeners.to_hand_over().into_iter().chain(packets) {
            match socket.try_clone_to_owned() {
                Ok(socket) => named.push((name, socket)),
                Err(error) => {
                    self.go_on(false);
                    return Err(format!("no descriptors left: {error}; raise LimitNOFILE="));
                }
            }
        }
        let generation = self.publisher.current().generation;
        let nftables = self.listeners.held_by_nftables();
        Ok(Handed { memory, generation, packets_until, nftables, announcements, named, sessions })
    }

    fn pause(&self) -> Result<Vec<Vec<HandedSession>>, String> {
        let ask = |worker: &fairway_uring::WorkerHandle| {
            let (reply, sessions) = unbounded();
            worker.send(Command::PauseDatagrams { reply });
            sessions
        };
        let asked: Vec<_> = self.workers.iter().map(ask).collect();
        let late = |_| format!("a worker did not stand still within {PATIENCE:?}");
        asked.iter().map(|sessions| sessions.recv_timeout(PATIENCE).map_err(late)).collect()
    }

    /// Goes on as if nothing had been handed over; another process `may_have_begun` to serve.
    pub(crate) fn go_on(&mut self, may_have_begun: bool) {
        for worker in &self.workers {
            worker.send(Command::ResumeDatagrams);
        }
        // First what others are told of addresses by.
        self.restore_packets(self.clock.now());
        for worker in &self.workers {
            worker.send(Command::ResumePackets);
        }
        self.announcing.go_on(may_have_begun);
        self.listeners.restore();
    }

    /// Another process serves: this one keeps its connections and ends with the last of them.
    pub(crate) fn leave(&mut self, heir: Heir) {
        let connections = self.connections();
        let longest = self.process.hand_over_timeout;
        tracing::info!(connections, ?longest, "another process serves; connections go on here");
        for worker in &self.workers {
            worker.send(Command::Leave);
        }
        self.listeners.leave();
        self.leave_packets();
        self.announcing.leave();
        self.checker.stop();
        self.resolver.stop();
        self.handing.heir = Some(heir);
        self.handing.end_at = self.clock.now().plus(TELL);
        self.stop = Stop::Left(self.clock.now().plus(longest));
    }

    /// Tells the next process what is left here, now and then; ends when nothing is.
    pub(super) fn tend_heir(&mut self, now: Tick) {
        let Stop::Left(until) = self.stop else { return };
        let left = self.connections();
        let quiet = self.listeners_are_quiet();
        let done = quiet && left == 0 && now >= self.handing.end_at;
        let over = now >= until || done;
        if over || now >= self.handing.tell_at || quiet != self.handing.quiet {
            self.handing.quiet = quiet;
            self.handing.tell_at = now.plus(TELL);
            let mut told = std::mem::take(&mut self.handing.told);
            let counts = self.late_counts(&mut told);
            self.handing.told = told;
            if let Some(heir) = &self.handing.heir {
                heir.tell(left, quiet, counts);
            }
        }
        if over {
            self.stop = Stop::Done;
        }
    }

    /// What is left of a process before this one.
    pub(super) fn take_before(&mut self, left: &Left) {
        self.count_late(&left.counts);
        if left.quiet && self.quiet_before.insert(left.pid) {
            for worker in &self.workers {
                worker.send(Command::LookForClients);
            }
        }
        match left.connections {
            0 => {
                if self.before.remove(&left.pid).is_some() {
                    tracing::info!(pid = left.pid, "the process before has ended");
                }
            }
            connections => _ = self.before.insert(left.pid, connections),
        }
        metrics::gauge!("fairway_processes_draining").set(self.before.len() as f64);
        let connections: u64 = self.before.values().sum();
        metrics::gauge!("fairway_connections_draining").set(connections as f64);
    }

    /// Takes no datagrams and packets yet: sessions and flows of the process before come first.
    pub(crate) fn await_sessions(&self) {
        // Nobody has any yet.
        let _ = self.pause();
        self.hold_packets();
    }

    /// Goes on with sessions of the process before, by its workers.
    pub(crate) fn adopt(&self, sessions: Vec<Vec<HandedSession>>) {
        for (worker, sessions) in self.workers.iter().cycle().zip(sessions) {
            let snapshot = self.publisher.current();
            worker.send(Command::AdoptDatagrams { sessions, snapshot });
        }
        for worker in &self.workers {
            worker.send(Command::ResumeDatagrams);
        }
    }

    /// Says that all is well, when the service manager wants to hear it and every worker has turned since
    /// the last time.
    pub(super) fn tend_watchdog(&mut self, now: Tick) {
        let Some(every) = self.manager.watchdog() else { return };
        if now < self.alive_at {
            return;
        }
        let turns: Vec<u64> =
            self.workers.iter().map(|worker| worker.stats.batches.get()).collect();
        let stuck = turns.iter().zip(&self.turns).position(|(now, before)| now == before);
        match stuck {
            // It is asked again soon: the manager waits for twice as long.
            Some(worker) => tracing::warn!(worker, "a worker has not turned for {every:?}"),
            None => self.manager.is_alive(),
        }
        self.turns = turns;
        self.alive_at = now.plus(every / 2);
        // Those who sleep turn, too.
        self.workers.iter().for_each(fairway_uring::WorkerHandle::wake);
    }

    /// Connections of this process.
    pub(crate) fn connections(&self) -> u64 {
        self.workers.iter().map(|worker| worker.stats.connections.load(Relaxed)).sum()
    }
}
