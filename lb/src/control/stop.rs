//! The end of the process: others take over, accepting stops, what is open drains.

use std::sync::atomic::Ordering::Acquire;
use std::time::Duration;

use fairway_core::Tick;
use fairway_uring::Command;

use super::Control;

/// How often it is said what the end waits for.
const TELL: Duration = Duration::from_secs(5);
/// The same of a process that has handed over: nobody waits for it.
const TELL_RARELY: Duration = Duration::from_secs(600);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    Running,
    /// Others are to take over; goes on accepting until then.
    Withdrawing(Tick),
    /// Accepts nothing; ends what is left at the time.
    Draining(Tick),
    /// Another process has taken over; the same.
    Left(Tick),
    Done,
}

impl Control {
    pub(super) fn begin_stop(&mut self, now: bool) {
        if let Stop::Left(_) = self.stop
            && !now
        {
            self.stop = Stop::Draining(self.clock.now().plus(self.process.shutdown_drain));
            return;
        }
        self.manager.stops();
        if now || self.stop != Stop::Running {
            tracing::info!("stopping now");
            self.stop = Stop::Done;
            return;
        }
        // What was to be listened on is, before workers are told to stop.
        self.publish();
        // Clients go elsewhere before nobody takes them here.
        let wait = self.withdraw();
        if !wait.is_zero() {
            tracing::info!(?wait, "stopping: what is announced is taken back first");
        }
        self.stop = Stop::Withdrawing(self.clock.now().plus(wait));
        self.stop_accepting();
    }

    /// Stops accepting when others have had time to take over.
    pub(super) fn stop_accepting(&mut self) {
        let Stop::Withdrawing(until) = self.stop else { return };
        if self.clock.now() < until {
            return;
        }
        let drain = self.process.shutdown_drain;
        tracing::info!(?drain, "stopping: no new connections, the open ones may go on");
        self.listeners.stop();
        for worker in &self.workers {
            worker.send(Command::StopAccepting);
        }
        self.stop = Stop::Draining(self.clock.now().plus(drain));
    }

    /// Says now and then what the end waits for, and ends when nothing is left.
    pub(super) fn tend_stop(&mut self, now: Tick) {
        if self.is_stopping() && now >= self.told_at {
            let rarely = matches!(self.stop, Stop::Left(_));
            self.told_at = now.plus(if rarely { TELL_RARELY } else { TELL });
            let (left, listeners) = (self.connections(), self.listeners_are_quiet());
            tracing::info!(
                connections = left,
                flows = self.open_flows(),
                listeners_closed = listeners,
                "draining"
            );
        }
        if let Stop::Draining(until) = self.stop
            && (now >= until
                || (self.listeners_are_quiet() && self.connections() + self.open_flows() == 0))
        {
            self.stop = Stop::Done;
        }
    }

    /// Workers have seen that they are to accept nothing.
    pub(super) fn listeners_are_quiet(&self) -> bool {
        self.workers.iter().all(|worker| worker.stats.listeners.load(Acquire) == 0)
    }
}
