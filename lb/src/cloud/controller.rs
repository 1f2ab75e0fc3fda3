//! Tells the API server what has become of Services: finalizers, status, Events. Only the box that
//! leads does.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use fairway_config::kubernetes::Name;
use fairway_config::kubernetes::client::chain;
use futures_util::future::join_all;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::status::{Object, Step, Todo};

/// As the upstream controller has it: the shortest and the longest time until a Service is tried again.
const RETRY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// For one request.
const PATIENCE: Duration = Duration::from_secs(10);
/// Services that are told of at a time.
const AT_A_TIME: usize = 16;

/// Something to be told, and when.
struct Waiting {
    todo: Todo,
    at: Instant,
    /// Until the next try, if this one fails.
    delay: Duration,
}

/// How a try ended.
enum End {
    Done,
    /// Another version of the object is on its way here, or none.
    Overtaken,
    Failed(String),
}

struct Controller {
    client: Client,
    recorder: Recorder,
}

/// Tells what comes until nobody sends any more; while `leads` is false nothing is told.
pub(crate) async fn run(
    client: Client,
    identity: String,
    mut todos: mpsc::UnboundedReceiver<Todo>,
    leads: watch::Receiver<bool>,
) {
    let reporter = Reporter { controller: "fairway".into(), instance: Some(identity) };
    let recorder = Recorder::new(client.clone(), reporter);
    let controller = Controller { client, recorder };
    let mut waiting: HashMap<Name, Waiting> = HashMap::new();
    // What was said of each last.
    let mut said: HashMap<Name, HashSet<String>> = HashMap::new();
    loop {
        let next = waiting.values().map(|waiting| waiting.at).min();
        tokio::select! {
            todo = todos.recv() => {
                let Some(todo) = todo else { return };
                let waits = Waiting { at: Instant::now(), delay: RETRY.0, todo };
                waiting.insert(waits.todo.name.clone(), waits);
                // Whatever else has come, too.
                while let Ok(todo) = todos.try_recv() {
                    let waits = Waiting { at: Instant::now(), delay: RETRY.0, todo };
                    waiting.insert(waits.todo.name.clone(), waits);
                }
            }
            () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
        }
        if !*leads.borrow() {
            waiting.clear();
            continue;
        }
        let now = Instant::now();
        let due: Vec<Name> = waiting
            .iter()
            .filter(|(_, waiting)| waiting.at <= now)
            .map(|(name, _)| name.clone())
            .take(AT_A_TIME)
            .collect();
        let due: Vec<Waiting> = due.iter().filter_map(|name| waiting.remove(name)).collect();
        let new = |todo: &Todo| {
            let known = said.get(&todo.name);
            let is_new = |message: &str| known.is_none_or(|known| !known.contains(message));
            let news = todo.findings.iter().filter(|finding| is_new(&finding.message));
            news.map(|finding| (finding.reason, finding.message.clone())).collect::<Vec<_>>()
        };
        let tries = due.iter().map(|waiting| controller.tell(&waiting.todo, new(&waiting.todo)));
        let ends = join_all(tries).await;
        for (mut waits, end) in due.into_iter().zip(ends) {
            let result = match &end {
                End::Done => "success",
                End::Overtaken => "overtaken",
                End::Failed(_) => "failure",
            };
            if waits.todo.patch.is_some() {
                metrics::counter!("fairway_cluster_updates_total", "result" => result).increment(1);
            }
            let Todo { name, step, findings, .. } = &waits.todo;
            match end {
                End::Overtaken => {}
                End::Done if *step == Step::Release => _ = said.remove(name),
                End::Done if findings.is_empty() => _ = said.remove(name),
                End::Done => {
                    let messages = findings.iter().map(|finding| finding.message.clone());
                    said.insert(name.clone(), messages.collect());
                }
                End::Failed(why) => {
                    count_error(waits.todo.object.kind);
                    let again = waits.delay;
                    tracing::warn!(object = %name, "the API server cannot be told: {why}; again in {again:?}");
                    waits.at = Instant::now() + again;
                    waits.delay = (again * 2).min(RETRY.1);
                    // What has come meanwhile is newer.
                    waiting.entry(name.clone()).or_insert(waits);
                }
            }
        }
    }
}

impl Controller {
    async fn tell(&self, todo: &Todo, findings: Vec<(&'static str, String)>) -> End {
        match timeout(PATIENCE, self.try_to_tell(todo, findings)).await {
            Ok(end) => end,
            Err(_) => End::Failed(format!("no answer within {PATIENCE:?}")),
        }
    }

    async fn try_to_tell(&self, todo: &Todo, findings: Vec<(&'static str, String)>) -> End {
        let before = match todo.step {
            Step::Hold => Some(("EnsuringLoadBalancer", "Ensuring load balancer")),
            Step::Release => Some(("DeletingLoadBalancer", "Deleting load balancer")),
            Step::Status | Step::Updated | Step::Nothing => None,
        };
        if let Some((reason, note)) = before {
            self.say(todo, EventType::Normal, reason, note).await;
        }
        if let Some(patch) = &todo.patch {
            let object = &todo.object;
            let (parameters, patch) = (PatchParams::default(), Patch::Merge(patch));
            match self.api(object).patch_status(&object.name.name, &parameters, &patch).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                    return End::Overtaken;
                }
                Err(error) => {
                    let why = chain(&error);
                    if todo.object.kind == "Service" {
                        let reason = "SyncLoadBalancerFailed";
                        self.say(todo, EventType::Warning, reason, &why).await;
                    }
                    return End::Failed(why);
                }
            }
        }
        let after = match todo.step {
            Step::Status => Some(("EnsuredLoadBalancer", "Ensured load balancer")),
            Step::Updated => Some(("UpdatedLoadBalancer", "Updated load balancer with new hosts")),
            Step::Release => Some(("DeletedLoadBalancer", "Deleted load balancer")),
            Step::Hold | Step::Nothing => None,
        };
        if let Some((reason, note)) = after {
            self.say(todo, EventType::Normal, reason, note).await;
        }
        for (reason, message) in findings {
            self.say(todo, EventType::Warning, reason, &message).await;
        }
        End::Done
    }

    fn api(&self, object: &Object) -> Api<DynamicObject> {
        let (group, version) =
            object.api_version.split_once('/').unwrap_or(("", &object.api_version));
        let resource = ApiResource {
            group: group.into(),
            version: version.into(),
            api_version: object.api_version.clone(),
            kind: object.kind.into(),
            plural: object.plural.into(),
        };
        match &*object.name.namespace {
            "" => Api::all_with(self.client.clone(), &resource),
            namespace => Api::namespaced_with(self.client.clone(), namespace, &resource),
        }
    }

    /// An Event of an object. One that is lost changes nothing.
    async fn say(&self, todo: &Todo, kind: EventType, reason: &str, note: &str) {
        let event = Event {
            type_: kind,
            reason: reason.into(),
            note: Some(note.chars().take(1000).collect()),
            // Of Events that differ in their note alone, only the first would be there.
            action: format!("Sync{:04x}", hashed(note)),
            secondary: None,
        };
        let Object { api_version, kind, name, uid, .. } = &todo.object;
        let about = ObjectReference {
            api_version: Some(api_version.clone()),
            kind: Some((*kind).into()),
            namespace: Some(name.namespace.to_string()),
            name: Some(name.name.to_string()),
            uid: Some(uid.clone()),
            ..ObjectReference::default()
        };
        if let Err(error) = self.recorder.publish(&event, &about).await {
            tracing::debug!(object = %todo.name, reason, "Event lost: {}", chain(&error));
        }
    }
}

/// The API server has refused something, or has not answered.
pub(super) fn count_error(kind: &'static str) {
    metrics::counter!("fairway_cluster_api_errors_total", "kind" => kind).increment(1);
}

fn hashed(note: &str) -> u16 {
    let mut hasher = DefaultHasher::new();
    note.hash(&mut hasher);
    hasher.finish() as u16
}
