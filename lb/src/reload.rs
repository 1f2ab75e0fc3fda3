//! Reading the configuration again: when a file changed, at SIGHUP, when asked.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;
use fairway_config::{Config, Query, Watcher, load};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::cloud::Work;
use crate::control::{Control, Input};
use crate::manager::Manager;
use crate::resolver::{Asker, FIRST_ANSWER};

/// Quiet time after the last event before files are read.
const QUIET: Duration = Duration::from_millis(50);
/// Longest wait for quiet.
const LONGEST: Duration = Duration::from_millis(500);

/// Why to read.
pub(crate) enum Reload {
    /// Something happened in a watched folder.
    Changed,
    /// SIGHUP.
    Signal,
    /// Somebody waits for what is wrong with it.
    Asked(oneshot::Sender<Outcome>),
}

/// What reading came to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    /// What is wrong; empty when the document is in force.
    pub(crate) problems: Vec<String>,
    /// Sections of it that take effect after an upgrade.
    pub(crate) waiting: Vec<&'static str>,
    /// Names that are not resolved.
    pub(crate) names: Vec<String>,
}

/// Reads the document at `path` for every reason that comes, and hands it to the control loop,
/// which serves `running` now; the service manager is told when it has asked.
pub(crate) async fn run(
    (path, manager): (PathBuf, Manager),
    running: Config,
    mut watcher: Option<Watcher>,
    mut reasons: mpsc::UnboundedReceiver<Reload>,
    (control, cloud): (Sender<Input>, mpsc::UnboundedSender<Work>),
    asker: Asker,
) {
    // What was read last: an event without a change, as from a neighbour's file, is no news.
    let mut last = Some(running);
    // The problems that were reported last: said once.
    let mut said = Vec::new();
    while let Some(reason) = reasons.recv().await {
        let (mut forced, mut signalled) = (false, false);
        let mut waiting = Vec::new();
        let mut note = |reason| match reason {
            Reload::Changed => {}
            Reload::Signal => {
                forced = true;
                signalled = true;
                manager.reloads();
            }
            Reload::Asked(sender) => {
                forced = true;
                waiting.push(sender);
            }
        };
        let settle = matches!(reason, Reload::Changed);
        note(reason);
        if settle {
            let end = Instant::now() + LONGEST;
            while let Ok(Some(reason)) =
                timeout_at((Instant::now() + QUIET).min(end), reasons.recv()).await
            {
                note(reason);
                if Instant::now() >= end {
                    break;
                }
            }
        }
        let file = path.clone();
        let Ok(result) = tokio::task::spawn_blocking(move || load(&file)).await else { continue };
        let problems = match result {
            Ok(config) => {
                said.clear();
                rewatch(&mut watcher, &config.files);
                if forced || last.as_ref() != Some(&config) {
                    last = Some(config.clone());
                    let Some((config, unknown)) = unknown_names(&control, config).await else {
                        return;
                    };
                    // So that nobody is refused while DNS makes up its mind.
                    let names = asker.ask(unknown, FIRST_ANSWER).await;
                    let (done, sent) = oneshot::channel();
                    let work = Work::Document(Box::new(config), names, done);
                    if cloud.send(work).is_err() || sent.await.is_err() {
                        return;
                    }
                }
                Vec::new()
            }
            Err(problems) => {
                rewatch(&mut watcher, &problems.files);
                // The next good document is news, even if it is the one that runs.
                last = None;
                let text: Vec<String> = problems.list.iter().map(ToString::to_string).collect();
                let news = forced || text != said;
                said.clone_from(&text);
                if news && control.send(Input::ConfigFailed(problems)).is_err() {
                    return;
                }
                text
            }
        };
        if signalled {
            let said = ask(&control, |control| {
                control.publish();
                control.in_short()
            });
            manager.is_ready(&said.await.unwrap_or_default());
        }
        if waiting.is_empty() {
            continue;
        }
        let outcome = match in_force(&control).await {
            Some((waiting, names)) => Outcome { problems, waiting, names },
            None => Outcome {
                problems: vec!["the process is stopping; nothing new is applied".into()],
                ..Outcome::default()
            },
        };
        for sender in waiting {
            // Nobody waits any more when the caller has gone.
            let _ = sender.send(outcome.clone());
        }
    }
}

/// Has the control loop answer; none when the process is stopping.
pub(crate) async fn ask<T: Send + 'static>(
    control: &Sender<Input>,
    question: impl FnOnce(&mut Control) -> T + Send + 'static,
) -> Option<T> {
    let (sender, receiver) = oneshot::channel();
    let ask = Box::new(move |control: &mut Control| {
        // Nobody waits any more when the process stops.
        let _ = sender.send((!control.is_stopping()).then(|| question(control)));
    });
    if control.send(Input::Ask(ask)).is_err() {
        return None;
    }
    // An error is a loop that has stopped.
    receiver.await.ok().flatten()
}

/// The names of `config` that nobody follows yet, beside it.
async fn unknown_names(control: &Sender<Input>, config: Config) -> Option<(Config, Vec<Query>)> {
    ask(control, move |control| {
        let unknown = control.unknown_names(config.services.values());
        (config, unknown)
    })
    .await
}

/// Waits until the control loop has published what it was sent; returns what waits for a restart
/// and the names that are not resolved.
async fn in_force(control: &Sender<Input>) -> Option<(Vec<&'static str>, Vec<String>)> {
    ask(control, |control| {
        control.publish();
        (control.config.waiting.clone(), control.name_troubles())
    })
    .await
}

fn rewatch(watcher: &mut Option<Watcher>, files: &[PathBuf]) {
    let Some(watcher) = watcher else { return };
    if let Err(error) = watcher.watch(files) {
        tracing::warn!("{error}");
    }
}

/// A watcher on `files` whose events go to `reasons`; none when the kernel refuses.
pub(crate) fn watcher(
    files: &[PathBuf],
    reasons: mpsc::UnboundedSender<Reload>,
) -> Option<Watcher> {
    let reasons = Arc::new(reasons);
    let changed = move || {
        // The receiver goes when the process stops.
        let _ = reasons.send(Reload::Changed);
    };
    let watched = Watcher::new(changed).and_then(|mut watcher| {
        watcher.watch(files)?;
        Ok(watcher)
    });
    watched.map_err(|error| tracing::warn!("{error}")).ok()
}
