//! The admin API: JSON over HTTP on a unix socket, and the public endpoints beside it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use crossbeam_channel::Sender;
use fairway_config::announce::Secret;
use fairway_config::document::PerBackendDoc;
use fairway_config::load_text;
use fairway_core::publish::View;
use fairway_uring::{ConnectionFilter, PacketStats, Shared, SharedStats};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::capture::capture;
use super::explain::{Question, explain_flow};
use super::registry::Registry;
use super::views::{ConnectionView, Fixed, FlowView, PlanView, TalkerView, WhichConnections};
use super::{metrics_text, packet_metrics, page};
use crate::announce::{AnnounceInput, AnnounceView, Handle as Announcer};
use crate::cloud::Work;
use crate::control::{Control, Input, Order, TalkerAnswers, plan as plan_changes, waiting_text};
use crate::handover::Giver;
use crate::reload::{Outcome, Reload};
use crate::resolver::{Asker, FIRST_ANSWER};

/// Backends up to which each has series of its own, unless the configuration says.
const PER_BACKEND: usize = 20_000;

/// Bytes of a document that `plan` is asked about: 10,000 services are about three million.
const LARGEST_DOCUMENT: usize = 64 << 20;

/// How long a worker may take to list its connections.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the API needs of the process.
#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) control: Sender<Input>,
    pub(crate) announcer: Announcer,
    pub(crate) cloud: mpsc::UnboundedSender<Work>,
    pub(crate) reload: mpsc::UnboundedSender<Reload>,
    pub(crate) asker: Asker,
    pub(crate) view: View,
    pub(crate) shared: Arc<Shared>,
    pub(crate) workers: Arc<[SharedStats]>,
    /// The packet paths of the workers; none when there is no interface for them.
    pub(crate) packets: Arc<[Arc<PacketStats>]>,
    pub(crate) interfaces: Arc<[String]>,
    pub(crate) registry: &'static Registry,
    pub(crate) fixed: Arc<Fixed>,
    pub(crate) per_backend: PerBackendDoc,
    pub(crate) ready: Arc<AtomicBool>,
    /// By which the page may steer.
    pub(crate) token: Option<Arc<Secret>>,
    pub(crate) giver: Arc<Giver>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    service: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WhichBackends {
    service: Option<String>,
    backend: Option<String>,
}

/// An order for a backend.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct OrderRequest {
    pub(crate) backend: String,
    pub(crate) service: Option<String>,
    pub(crate) order: Order,
    #[serde(default)]
    pub(crate) until_reload: bool,
}

/// A configuration to be compared with the running one.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PlanRequest {
    /// Where it is written; relative sources start there.
    pub(crate) path: PathBuf,
    pub(crate) text: String,
}

/// A configuration to be brought back; none is the one before the current.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RollbackRequest {
    /// As commands of before this version call it.
    #[serde(alias = "generation")]
    pub(crate) number: Option<u64>,
}

/// What an order came to.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Answer {
    pub(crate) ok: bool,
    pub(crate) message: String,
    /// Further lines: services that were touched, or problems that were found.
    #[serde(default)]
    pub(crate) details: Vec<String>,
}

impl Admin {
    pub(super) fn per_backend(&self) -> bool {
        match self.per_backend {
            PerBackendDoc::On => true,
            PerBackendDoc::Off => false,
            PerBackendDoc::Auto => {
                let snapshot = self.view.load();
                let backends = |s: &Arc<fairway_core::Service>| {
                    s.groups.iter().map(|group| group.pool.members().len()).sum::<usize>()
                };
                snapshot.services().map(backends).sum::<usize>() <= PER_BACKEND
            }
        }
    }

    /// Has the control loop answer.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Control) -> T + Send + 'static,
    ) -> Result<T, Response> {
        let (sender, receiver) = oneshot::channel();
        let ask = Box::new(move |control: &mut Control| {
            // Nobody waits any more when the caller has gone.
            let _ = sender.send(question(control));
        });
        let gone =
            || (StatusCode::SERVICE_UNAVAILABLE, "the control loop has stopped\n").into_response();
        self.control.send(Input::Ask(ask)).map_err(|_| gone())?;
        receiver.await.map_err(|_| gone())
    }
}

/// The routes of the unix socket.
pub(crate) fn admin_router(admin: Admin) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/summary", get(page::summary))
        .route("/v1/services", get(services))
        .route("/v1/backends", get(backends))
        .route("/v1/cluster", get(cluster))
        .route("/v1/announce", get(announce))
        .route("/v1/announce/drain", post(drain_announced))
        .route("/v1/order", post(order))
        .route("/v1/plan", post(plan).layer(DefaultBodyLimit::max(LARGEST_DOCUMENT)))
        .route("/v1/history", get(history))
        .route("/v1/rollback", post(rollback))
        .route("/v1/explain", get(explain))
        .route("/v1/connections", get(connections))
        .route("/v1/flows", get(flows))
        .route("/v1/capture", get(capture))
        .route("/v1/talkers", get(talkers))
        .route("/v1/reload", post(reload))
        .route("/v1/upgrade", post(upgrade))
        .with_state(admin)
}

/// The routes of the metrics address: nothing here changes anything without a token.
pub(crate) fn public_router(admin: Admin) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .merge(page::routes())
        .with_state(admin)
}

async fn status(State(admin): State<Admin>) -> Result<Response, Response> {
    let (fixed, per_backend) = (Arc::clone(&admin.fixed), admin.per_backend());
    let status = admin.ask(move |control| control.status(&fixed, per_backend)).await?;
    Ok(Json(status).into_response())
}

fn no_service(name: &str) -> String {
    format!("no service `{name}` here; `fairway services` lists them")
}

/// An error for a service that is not here.
async fn known(admin: &Admin, service: Option<&String>) -> Result<(), Response> {
    let Some(name) = service.cloned() else { return Ok(()) };
    let message = format!("{}\n", no_service(&name));
    match admin.ask(move |control| control.knows(&name)).await? {
        true => Ok(()),
        false => Err((StatusCode::NOT_FOUND, message).into_response()),
    }
}

async fn services(
    State(admin): State<Admin>,
    Query(which): Query<Which>,
) -> Result<Response, Response> {
    known(&admin, which.service.as_ref()).await?;
    let views = admin.ask(move |c| c.service_views(which.service.as_deref())).await?;
    Ok(Json(views).into_response())
}

async fn backends(
    State(admin): State<Admin>,
    Query(which): Query<WhichBackends>,
) -> Result<Response, Response> {
    known(&admin, which.service.as_ref()).await?;
    let views = admin.ask(move |control| {
        control.backend_views(which.service.as_deref(), which.backend.as_deref())
    });
    let views = views.await?;
    Ok(Json(views).into_response())
}

pub(super) async fn order(
    State(admin): State<Admin>,
    Json(request): Json<OrderRequest>,
) -> Result<Response, Response> {
    let OrderRequest { backend, service, order, until_reload } = request;
    let (what, whose) = (backend.clone(), service.clone().unwrap_or_default());
    let found = admin.ask(move |control| {
        let found = control.order(service.as_deref(), &backend, order, until_reload);
        // In force before it is answered.
        control.publish();
        found
    });
    let answer = match found.await? {
        None => Answer { ok: false, message: no_service(&whose), details: Vec::new() },
        Some(found) if found.is_empty() => Answer {
            ok: false,
            message: if whose.is_empty() {
                format!("no backend `{what}` here; `fairway backends` lists them")
            } else {
                format!("no backend `{what}` in `{whose}`; `fairway backends {whose}` lists them")
            },
            details: found,
        },
        Some(found) => {
            Answer { ok: true, message: format!("{what} {}", order.words()), details: found }
        }
    };
    Ok(Json(answer).into_response())
}

async fn plan(
    State(admin): State<Admin>,
    Json(request): Json<PlanRequest>,
) -> Result<Response, Response> {
    let read = move || load_text(&request.path.into(), &request.text);
    let config = match tokio::task::spawn_blocking(read).await {
        Ok(Ok(config)) => config,
        Ok(Err(problems)) => {
            return Err((StatusCode::UNPROCESSABLE_ENTITY, format!("{problems}\n")).into_response());
        }
        Err(error) => {
            return Err((StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response());
        }
    };
    let config = Arc::new(config);
    let (answer, answered) = oneshot::channel();
    let stopping =
        || (StatusCode::SERVICE_UNAVAILABLE, "the process is stopping\n").into_response();
    if admin.cloud.send(Work::Plan(Arc::clone(&config), answer)).is_err() {
        return Err(stopping());
    }
    let (mut running, mut desired, announcements) = answered.await.map_err(|_| stopping())?;
    desired.extend(config.services.iter().map(|(key, spec)| (key.clone(), Arc::clone(spec))));
    let (desired, unknown) = admin
        .ask(move |control| {
            let unknown = control.unknown_names(desired.values());
            (desired, unknown)
        })
        .await?;
    let names = admin.asker.ask(unknown, FIRST_ANSWER).await;
    let changes = admin.ask(move |control| {
        let waiting = control.process.sections_changed(&config.process);
        let own = control.desired.iter().map(|(key, spec)| (key.clone(), Arc::clone(spec)));
        running.extend(own);
        let changes = plan_changes(
            |key| control.services.get(key),
            |spec| control.resolved_with(spec, &names),
            &running,
            &desired,
        );
        let restart = waiting.into_iter().map(Into::into).collect();
        PlanView { changes, announcements, restart }
    });
    Ok(Json(changes.await?).into_response())
}

async fn cluster(State(admin): State<Admin>) -> Result<Response, Response> {
    Ok(Json(admin.ask(|control| control.cloud.clone()).await?).into_response())
}

/// How announcements stand; nothing when nobody answers.
pub(super) async fn announce_view(admin: &Admin) -> Option<AnnounceView> {
    let (answer, answered) = oneshot::channel();
    admin.announcer.send(AnnounceInput::View(answer));
    answered.await.ok()
}

async fn announce(State(admin): State<Admin>) -> Response {
    Json(announce_view(&admin).await.unwrap_or_default()).into_response()
}

/// Whether what is announced is to be taken back.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DrainRequest {
    pub(crate) drains: bool,
}

async fn drain_announced(
    State(admin): State<Admin>,
    Json(request): Json<DrainRequest>,
) -> Response {
    admin.announcer.send(AnnounceInput::Drain(request.drains));
    let message = match request.drains {
        true => {
            "this box takes back what others can take over or be told of; addresses of segments without an \
             election stay"
        }
        false => "this box announces again",
    };
    Json(Answer { ok: true, message: message.into(), details: Vec::new() }).into_response()
}

async fn history(State(admin): State<Admin>) -> Result<Response, Response> {
    let kept = admin.ask(|control| control.history.list()).await?;
    Ok(Json(kept).into_response())
}

async fn rollback(
    State(admin): State<Admin>,
    Json(request): Json<RollbackRequest>,
) -> Result<Response, Response> {
    let outcome = admin.ask(move |control| {
        let outcome = control.roll_back(request.number);
        control.publish();
        outcome
    });
    let answer = match outcome.await? {
        Ok(number) => Answer {
            ok: true,
            message: format!(
                "configuration {number} runs again, until the file changes or is read again"
            ),
            details: Vec::new(),
        },
        Err(message) => Answer { ok: false, message, details: Vec::new() },
    };
    Ok(Json(answer).into_response())
}

async fn explain(
    State(admin): State<Admin>,
    Query(question): Query<Question>,
) -> Result<Response, Response> {
    let refused = |why: String| (StatusCode::BAD_REQUEST, why + "\n").into_response();
    let snapshot = admin.view.load();
    let mut explanation = explain_flow(&snapshot, &admin.shared, &question).map_err(refused)?;
    let service = explanation.service.clone();
    let views = admin.ask(move |control| control.backend_views(Some(&service), None)).await?;
    explanation.say_why(&views);
    Ok(Json(explanation).into_response())
}

async fn connections(
    State(admin): State<Admin>,
    Query(wanted): Query<WhichConnections>,
) -> Result<Response, Response> {
    let most = wanted.most;
    let lists =
        gather(&admin, wanted, |control, filter, reply| control.list(filter, reply)).await?;
    let mut views: Vec<_> = lists.iter().map(ConnectionView::of).collect();
    views.sort_by(|a, b| b.age_seconds.total_cmp(&a.age_seconds));
    views.truncate(most.unwrap_or(usize::MAX));
    Ok(Json(views).into_response())
}

async fn flows(
    State(admin): State<Admin>,
    Query(wanted): Query<WhichConnections>,
) -> Result<Response, Response> {
    let most = wanted.most;
    let lists =
        gather(&admin, wanted, |control, filter, reply| control.flows(filter, reply)).await?;
    let mut views: Vec<_> = lists.iter().map(FlowView::of).collect();
    views.sort_by(|a, b| b.age_seconds.total_cmp(&a.age_seconds));
    views.truncate(most.unwrap_or(usize::MAX));
    Ok(Json(views).into_response())
}

/// What all workers have of what is wanted; `ask` asks them, and says how many there are.
async fn gather<T: Send + 'static>(
    admin: &Admin,
    wanted: WhichConnections,
    ask: impl FnOnce(&Control, &ConnectionFilter, &Sender<Vec<T>>) -> usize + Send + 'static,
) -> Result<Vec<T>, Response> {
    known(admin, wanted.service.as_ref()).await?;
    let (sender, lists) = crossbeam_channel::unbounded();
    let asked = admin.ask(move |control| {
        let filter = wanted.filter(control)?;
        Ok(ask(control, &filter, &sender))
    });
    let bad = |(status, why): (StatusCode, String)| (status, format!("{why}\n")).into_response();
    let workers = asked.await?.map_err(bad)?;
    // Each worker answers at its next turn; one that does not has other troubles.
    let hear = move || -> Vec<T> {
        (0..workers).filter_map(|_| lists.recv_timeout(PATIENCE).ok()).flatten().collect()
    };
    Ok(tokio::task::spawn_blocking(hear).await.unwrap_or_default())
}

async fn reload(State(admin): State<Admin>) -> Result<Response, Response> {
    let (sender, receiver) = oneshot::channel();
    let gone = || (StatusCode::SERVICE_UNAVAILABLE, "the process is stopping\n").into_response();
    admin.reload.send(Reload::Asked(sender)).map_err(|_| gone())?;
    let Outcome { problems, waiting, names } = receiver.await.map_err(|_| gone())?;
    let answer = if problems.is_empty() {
        let waiting = (!waiting.is_empty()).then(|| waiting_text(&waiting));
        let details = waiting.into_iter().chain(names).collect();
        Answer { ok: true, message: "configuration applied".into(), details }
    } else {
        let message = "the configuration has errors; the one before runs on".into();
        Answer { ok: false, message, details: problems }
    };
    Ok(Json(answer).into_response())
}

async fn upgrade(State(admin): State<Admin>) -> Response {
    let giver = Arc::clone(&admin.giver);
    let outcome = tokio::task::spawn_blocking(move || giver.hand_over()).await;
    let outcome = outcome.unwrap_or_else(|error| Err(error.to_string()));
    let (ok, message) = match outcome {
        Ok(message) => (true, message),
        Err(why) => (false, format!("{why}; the process that ran serves on")),
    };
    Json(Answer { ok, message, details: Vec::new() }).into_response()
}

async fn talkers(
    State(admin): State<Admin>,
    Query(which): Query<Which>,
) -> Result<Response, Response> {
    known(&admin, which.service.as_ref()).await?;
    let asked = admin.ask(move |control| control.talkers(which.service.as_deref())).await?;
    let gather = move || -> Vec<TalkerView> {
        let of = |(service, answers): (String, TalkerAnswers)| {
            let heard: Vec<_> =
                std::iter::from_fn(|| answers.recv_timeout(PATIENCE).ok()).collect();
            TalkerView::merge(&service, &heard)
        };
        asked.into_iter().flat_map(of).collect()
    };
    let views = tokio::task::spawn_blocking(gather).await.unwrap_or_default();
    Ok(Json(views).into_response())
}

async fn readyz(State(admin): State<Admin>) -> Response {
    if admin.ready.load(Relaxed) {
        return "ready\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, "not ready: starting or stopping\n").into_response()
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let per_backend = admin.per_backend();
    let announced = announce_view(&admin).await.unwrap_or_default();
    // Ten thousand services take a while to write out: not on a thread that serves others.
    let text = tokio::task::spawn_blocking(move || {
        let mut text = admin.registry.text();
        let snapshot = admin.view.load();
        metrics_text::write(&mut text, &snapshot, &admin.workers, &admin.shared, per_backend);
        packet_metrics::write(&mut text, &admin.packets, &admin.interfaces);
        announced.write_metrics(&mut text);
        text
    });
    match text.await {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
