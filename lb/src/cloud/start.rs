//! The cloud's part at the start of the process: what is known, and who works.

use crossbeam_channel::Sender;
use fairway_config::kubernetes::client::{self, ClusterEvent};
use fairway_config::{ChangeSet, Config};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::run::{Neighbours, run};
use super::shares;
use super::{Cloud, CloudView, Outcome, Routes, StateFile, Work, controller, lease, state};
use crate::announce::{Handle as Announcer, Said};
use crate::control::Input;
use crate::handover::Gate;
use crate::resolver::Asker;

/// Where the Lease of those who serve a cluster is.
const LEASE_NAMESPACE: &str = "kube-system";
/// Where the Leases of shared addresses are: many, with names of their own, so apart from others'.
const SHARES_NAMESPACE: &str = "fairway-shares";

/// The cloud's part, at work.
pub(crate) struct Begun {
    /// What is to be served from the start.
    pub(crate) change: ChangeSet,
    pub(crate) view: Option<CloudView>,
    pub(crate) said: Option<Box<Said>>,
}

/// Starts the cloud's part, which works on what its mailbox gets, and tells the API server as `identity`
/// while the gate is open. Fails when there is no way to the API server that is named; that it does not
/// answer is no failure.
pub(crate) fn start(
    runtime: &Handle,
    config: &Config,
    (control, asker): (Sender<Input>, Asker),
    (works, receiver): (mpsc::UnboundedSender<Work>, mpsc::UnboundedReceiver<Work>),
    announcer: &Announcer,
    (identity, gate): (Option<String>, &Gate),
) -> Result<Begun, String> {
    let folder = &config.process.state_directory;
    // With an API server, Services themselves say what they have.
    let state = config.process.api.is_none().then(|| StateFile::open(folder));
    let mut cloud = Cloud::new(config, state);
    cloud.look_at_routes(Routes::default());
    let mut neighbours = Neighbours { control, asker, todos: None, saved: None };
    if let (Some(api), Some(identity)) = (&config.process.api, identity) {
        let saved = folder.join("cluster.json");
        if let Some(cluster) = state::recall(&saved) {
            cloud.recall(cluster);
        }
        neighbours.saved = Some(saved);
        let (client, url) = runtime.block_on(client::connect(api))?;
        tracing::info!(url, "watching a cluster");
        let _runtime = runtime.enter();
        let (events, mut told) = mpsc::unbounded_channel();
        // They end with the process.
        drop(client::watch(&client, api, &events));
        let forward = works.clone();
        runtime.spawn(async move {
            while let Some(event) = told.recv().await {
                if let ClusterEvent::Trouble(kind, Some(_)) = &event {
                    controller::count_error(kind.word());
                }
                if forward.send(Work::Event(event, Instant::now())).is_err() {
                    return;
                }
            }
        });
        let (leads, led) = watch::channel(false);
        let (todos, todo) = mpsc::unbounded_channel();
        neighbours.todos = Some(todos);
        let controller = controller::run(client.clone(), identity.clone(), todo, led);
        runtime.spawn(gate.clone().within(controller));
        // As names of objects are written.
        let class = config.cluster.rules.class.to_ascii_lowercase();
        let class = class.replace('/', ".").replace('_', "-");
        let lease = (LEASE_NAMESPACE.to_owned(), format!("load-balancer.{class}"));
        let node = config.announce.node_name.clone().unwrap_or_else(node_name);
        let shared = (SHARES_NAMESPACE.to_owned(), class);
        let own = (identity.clone(), node);
        let sharing = shares::run(client.clone(), shared, own, announcer.clone());
        runtime.spawn(gate.clone().within(sharing));
        let leading = lease::run(client, lease, identity, works.clone(), leads);
        runtime.spawn(gate.clone().within(leading));
    }
    let Outcome { change, .. } = cloud.document(config);
    let said = cloud.said().map(Box::new);
    let view = cloud.news();
    runtime.spawn(gate.clone().until_closed(run(cloud, receiver, neighbours)));
    Ok(Begun { change, view, said })
}

/// Who this box is, among those that would lead: its name, and something that another process of it has
/// not, unless it goes on in its place.
pub(crate) fn identity() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let nanos = since.map_or(0, |since| since.as_nanos());
    format!("{}_{:x}_{:x}", node_name(), std::process::id(), nanos)
}

/// The name of this machine.
pub(super) fn node_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
