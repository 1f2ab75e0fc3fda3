//! When the cluster is written down: a while after a change, and of a large one that always changes not often.

use std::path::PathBuf;
use std::time::Duration;

use fairway_config::kubernetes::Cluster;
use rustix::process::setpriority_process;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::time::Instant;

use super::state;

/// From a change to the next time that the cluster is written down: at the least, and at the most.
const PAUSE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));
/// Of a core's time that has one part in so many: what it is read for, a start while the API server does not answer,
/// is rare.
const RARELY: u32 = 300;

/// Who writes it down.
pub(super) struct Saver {
    path: PathBuf,
    pause: Duration,
    at: Option<Instant>,
    /// Tells how much of a core's time the last one took.
    running: Option<oneshot::Receiver<Duration>>,
}

impl Saver {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, pause: PAUSE.0, at: None, running: None }
    }

    /// There is something that is not written down.
    pub(super) fn note(&mut self) {
        if self.at.is_none() {
            self.is_running();
            self.at = Some(Instant::now() + self.pause);
        }
    }

    /// When it is to be written down, if it is.
    pub(super) fn at(&self) -> Option<Instant> {
        self.at
    }

    /// It is time: has `cluster` written down, unless that is still going on.
    pub(super) fn save(&mut self, cluster: impl FnOnce() -> Cluster) {
        // A disk that is slow is not asked for two things at once.
        if self.is_running() {
            self.at = Some(Instant::now() + PAUSE.0);
            return;
        }
        self.at = None;
        self.running = Some(begin(self.path.clone(), cluster()));
    }

    /// Whether the last one is not done yet; when it is, how much it took says when the next one comes.
    fn is_running(&mut self) -> bool {
        let Some(running) = &mut self.running else { return false };
        match running.try_recv() {
            Err(TryRecvError::Empty) => return true,
            Ok(took) => self.pause = (RARELY * took).clamp(PAUSE.0, PAUSE.1),
            Err(TryRecvError::Closed) => {}
        }
        self.running = None;
        false
    }
}

/// Writes the cluster down on a thread of its own, to which everybody else on its core comes first: of a large one
/// it takes a good part of a second.
fn begin(path: PathBuf, cluster: Cluster) -> oneshot::Receiver<Duration> {
    let (done, took) = oneshot::channel();
    let body = move || {
        // Of the calling thread alone. That it stays as it is costs little.
        let _ = setpriority_process(None, 19);
        state::save(&path, &cluster);
        drop(cluster);
        let took = clock_gettime(ClockId::ThreadCPUTime);
        // Nobody asks any more when the process stops.
        let _ = done.send(took.try_into().unwrap_or_default());
    };
    // Without a thread it is not written, this time.
    let _ = std::thread::Builder::new().name("fairway-save".into()).spawn(body);
    took
}
