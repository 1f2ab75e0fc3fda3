//! The task that has the cloud's part: whatever is to be served goes through it to the control loop.

use crossbeam_channel::Sender;
use fairway_config::{ChangeSet, Config, Query};
use tokio::sync::{mpsc, oneshot};

use super::{Cloud, CloudView};
use crate::control::{Answers, Control, Input};
use crate::resolver::{Asker, FIRST_ANSWER};

/// Something for the cloud's part.
pub(crate) enum Work {
    /// A document was read, and asked for were the names that it brings. Told of when the control loop
    /// has been sent it.
    Document(Box<Config>, Answers, oneshot::Sender<()>),
}

/// What changes for the control loop.
#[derive(Default)]
pub(crate) struct CloudNews {
    pub(crate) change: ChangeSet,
    /// What DNS said of names that it brings.
    pub(crate) names: Answers,
    pub(crate) view: CloudView,
}

/// Works until the control loop has gone.
pub(crate) async fn run(
    mut cloud: Cloud,
    mut works: mpsc::UnboundedReceiver<Work>,
    control: Sender<Input>,
    asker: Asker,
) {
    while let Some(work) = works.recv().await {
        let (input, done) = match work {
            Work::Document(config, names, done) => {
                let Some(news) = news(&mut cloud, &config, &control, &asker).await else { return };
                (Input::Config(config, names, Box::new(news)), done)
            }
        };
        if control.send(input).is_err() {
            return;
        }
        // Nobody waits any more when the process stops.
        let _ = done.send(());
    }
}

/// What a document changes; none when the control loop has gone.
async fn news(
    cloud: &mut Cloud,
    config: &Config,
    control: &Sender<Input>,
    asker: &Asker,
) -> Option<CloudNews> {
    let change = cloud.document(config);
    let unknown = match change.upserts.iter().any(|spec| !spec.named.is_empty()) {
        true => unknown_names(control, change.clone()).await?,
        false => Vec::new(),
    };
    let names = asker.ask(unknown, FIRST_ANSWER).await;
    Some(CloudNews { change, names, view: cloud.view() })
}

/// The names of a change that nobody follows yet.
async fn unknown_names(control: &Sender<Input>, change: ChangeSet) -> Option<Vec<Query>> {
    let question = move |control: &mut Control| control.unknown_names(&change.upserts);
    crate::reload::ask(control, question).await
}
