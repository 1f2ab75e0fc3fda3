//! The task that has the cloud's part: whatever is to be served goes through it to the control loop.

use std::path::PathBuf;
use std::sync::Arc;

use crossbeam_channel::Sender;
use fairway_config::kubernetes::client::ClusterEvent;
use fairway_config::{ChangeSet, Config, Desired, Query};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, interval, sleep_until};

use super::routes::HOLDS;
use super::save::Saver;
use super::{Cloud, CloudView, Outcome, Todo};
use crate::announce::Said;
use crate::control::{Answers, Control, Input};
use crate::resolver::{Asker, FIRST_ANSWER};

/// Events that are taken together.
const BATCH: usize = 4096;

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
    let mut saver = saved.map(Saver::new);
    let mut looks = interval(HOLDS);
    loop {
        let save_at = saver.as_ref().and_then(Saver::at);
        let work = match next.take() {
            Some(work) => Some(work),
            None => tokio::select! {
                work = works.recv() => match work {
                    Some(work) => Some(work),
                    None => return,
                },
                _ = looks.tick() => None,
                () = sleep_until(save_at.unwrap_or_else(Instant::now)), if save_at.is_some() => {
                    saver.iter_mut().for_each(|saver| saver.save(|| cloud.saved().clone()));
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
                    saver.iter_mut().for_each(Saver::note);
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
