//! The task that has the cloud's part: whatever is to be served goes through it to the control loop.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;
use fairway_config::kubernetes::Cluster;
use fairway_config::kubernetes::client::ClusterEvent;
use fairway_config::{ChangeSet, Config, Desired, Query};
use rustix::process::setpriority_process;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, interval, sleep_until};

use super::routes::HOLDS;
use super::{Cloud, CloudView, Outcome, Todo, state};
use crate::announce::Said;
use crate::control::{Answers, Control, Input};
use crate::resolver::{Asker, FIRST_ANSWER};

/// Events that are taken together.
const BATCH: usize = 4096;
/// From a change to the next time that the cluster is written down: at the least, and at the most.
const SAVE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));
/// Of a core's time writing it down has one part in so many: what it is read for, a start while the API server does
/// not answer, is rare.
const RARELY: u32 = 100;

/// Something for the cloud's part.
pub(crate) enum Work {
    /// A document was read, and asked for were the names that it brings. Told of when the control loop
    /// has been sent it.
    Document(Box<Config>, Answers, oneshot::Sender<()>),
    /// The API server has told something, and when.
    Event(ClusterEvent, Instant),
    /// This box leads, or no longer.
    Lead(bool),
    /// Somebody asks what a document would change: what is served now, what would be, and what of
    /// announcements.
    Plan(Arc<Config>, oneshot::Sender<(Desired, Desired, Vec<String>)>),
}

/// What changes for the control loop.
#[derive(Default)]
pub(crate) struct CloudNews {
    pub(crate) change: ChangeSet,
    /// What DNS said of names that it brings.
    pub(crate) names: Answers,
    /// The state, if that is news.
    pub(crate) view: Option<CloudView>,
    /// What announcements go by, if that is news.
    pub(crate) said: Option<Box<Said>>,
    /// When the API server told the first of it.
    pub(crate) since: Option<Instant>,
}

/// With whom the cloud's part works.
pub(crate) struct Neighbours {
    pub(crate) control: Sender<Input>,
    pub(crate) asker: Asker,
    /// Who tells the API server.
    pub(crate) todos: Option<mpsc::UnboundedSender<Todo>>,
    /// Where the cluster is written down; none when nothing is.
    pub(crate) saved: Option<PathBuf>,
}

/// Works until the control loop has gone.
pub(crate) async fn run(
    mut cloud: Cloud,
    mut works: mpsc::UnboundedReceiver<Work>,
    neighbours: Neighbours,
) {
    let Neighbours { control, asker, todos, saved } = neighbours;
    let mut next = None;
    let mut save_at: Option<Instant> = None;
    let mut saving: Option<oneshot::Receiver<Duration>> = None;
    let mut pause = SAVE.0;
    let mut looks = interval(HOLDS);
    loop {
        let work = match next.take() {
            Some(work) => Some(work),
            None => tokio::select! {
                work = works.recv() => match work {
                    Some(work) => Some(work),
                    None => return,
                },
                _ = looks.tick() => None,
                () = sleep_until(save_at.unwrap_or_else(Instant::now)), if save_at.is_some() => {
                    save_at = None;
                    let Some(path) = &saved else { continue };
                    match saving.as_mut().map(oneshot::Receiver::try_recv) {
                        // A disk that is slow is not asked for two things at once.
                        Some(Err(TryRecvError::Empty)) => {
                            save_at = Some(Instant::now() + SAVE.0);
                            continue;
                        }
                        // Of a large cluster that always changes, less often.
                        Some(Ok(took)) => pause = (RARELY * took).clamp(SAVE.0, SAVE.1),
                        Some(Err(TryRecvError::Closed)) | None => {}
                    }
                    saving = Some(save(path.clone(), cloud.saved().clone()));
                    continue;
                }
            },
        };
        let mut since = None;
        let (outcome, document) = match work {
            None => (cloud.look_again(), None),
            Some(Work::Document(config, names, done)) => {
                (cloud.document(&config), Some((config, names, done)))
            }
            Some(Work::Lead(leads)) => (cloud.lead(leads), None),
            Some(Work::Plan(config, answer)) => {
                // Nobody waits any more when the caller has gone.
                let announcements = cloud.would_say(&config.announce, &config.process);
                let _ = answer.send((cloud.desired(), cloud.would_serve(&config), announcements));
                continue;
            }
            Some(Work::Event(first, at)) => {
                since = Some(at);
                let mut events = vec![first];
                while events.len() < BATCH && next.is_none() {
                    match works.try_recv() {
                        Ok(Work::Event(event, _)) => events.push(event),
                        Ok(other) => next = Some(other),
                        Err(_) => break,
                    }
                }
                let outcome = cloud.events(events.into_iter());
                if cloud.is_unsaved() {
                    save_at.get_or_insert_with(|| Instant::now() + pause);
                }
                (outcome, None)
            }
        };
        let Outcome { change, todos: told } = outcome;
        let teardown = !change.is_empty();
        let said = cloud.said().map(Box::new);
        let Some(news) = news(change, cloud.news(), &control, &asker).await else { return };
        let news = CloudNews { since, said, ..news };
        let is_news = teardown || news.view.is_some() || news.said.is_some();
        let (input, done) = match document {
            Some((config, names, done)) => {
                (Some(Input::Config(config, names, Box::new(news))), Some(done))
            }
            None => (is_news.then(|| Input::Cluster(Box::new(news))), None),
        };
        if input.is_some_and(|input| control.send(input).is_err()) {
            return;
        }
        // Nobody waits any more when the process stops.
        done.into_iter().for_each(|done| _ = done.send(()));
        if let Some(todos) = todos.as_ref().filter(|_| !told.is_empty()) {
            // What is told is so: served before it has a status, gone before it is let go.
            if teardown && published(&control).await.is_none() {
                return;
            }
            // As above.
            told.into_iter().for_each(|todo| _ = todos.send(todo));
        }
    }
}

/// Waits until what the control loop was sent is published; none when it has gone.
async fn published(control: &Sender<Input>) -> Option<()> {
    let (sender, done) = oneshot::channel();
    crate::reload::ask(control, |control: &mut Control| control.tell_published(sender)).await?;
    done.await.ok()
}

/// Writes the cluster down on a thread of its own, to which everybody else on its core comes first: of a large one
/// it takes a good part of a second. Tells how much of the core's time it took.
fn save(path: PathBuf, cluster: Cluster) -> oneshot::Receiver<Duration> {
    let (done, took) = oneshot::channel();
    let body = move || {
        // Of the calling thread alone. That it stays as it is costs little.
        let _ = setpriority_process(None, 19);
        state::save(&path, &cluster);
        let took = clock_gettime(ClockId::ThreadCPUTime);
        // Nobody asks any more when the process stops.
        let _ = done.send(took.try_into().unwrap_or_default());
    };
    // Without a thread it is not written, this time.
    let _ = std::thread::Builder::new().name("fairway-save".into()).spawn(body);
    took
}

/// A change with the addresses of its names; none when the control loop has gone.
async fn news(
    change: ChangeSet,
    view: Option<CloudView>,
    control: &Sender<Input>,
    asker: &Asker,
) -> Option<CloudNews> {
    let unknown = match change.upserts.iter().any(|spec| !spec.named.is_empty()) {
        true => unknown_names(control, change.clone()).await?,
        false => Vec::new(),
    };
    let names = asker.ask(unknown, FIRST_ANSWER).await;
    Some(CloudNews { change, names, view, ..CloudNews::default() })
}

/// The names of a change that nobody follows yet.
async fn unknown_names(control: &Sender<Input>, change: ChangeSet) -> Option<Vec<Query>> {
    let question = move |control: &mut Control| control.unknown_names(&change.upserts);
    crate::reload::ask(control, question).await
}
