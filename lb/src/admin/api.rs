//! The admin API: JSON over HTTP on a unix socket, and the public endpoints beside it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use crossbeam_channel::Sender;
use fairway_config::document::PerBackendDoc;
use fairway_core::publish::View;
use fairway_uring::{Shared, SharedStats};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::metrics_text;
use super::views::Fixed;
use crate::control::{Control, Input, waiting_text};
use crate::reload::{Outcome, Reload};

/// Backends up to which each has series of its own, unless the configuration says.
const PER_BACKEND: usize = 20_000;

/// What the API needs of the process.
#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) control: Sender<Input>,
    pub(crate) reload: mpsc::UnboundedSender<Reload>,
    pub(crate) view: View,
    pub(crate) shared: Arc<Shared>,
    pub(crate) workers: Arc<[SharedStats]>,
    pub(crate) registry: PrometheusHandle,
    pub(crate) fixed: Arc<Fixed>,
    pub(crate) per_backend: PerBackendDoc,
    pub(crate) ready: Arc<AtomicBool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    service: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DrainRequest {
    pub(crate) backend: String,
    pub(crate) service: Option<String>,
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
    fn per_backend(&self) -> bool {
        match self.per_backend {
            PerBackendDoc::On => true,
            PerBackendDoc::Off => false,
            PerBackendDoc::Auto => {
                let snapshot = self.view.load();
                let backends = |s: &Arc<fairway_core::Service>| {
                    s.primary.members().len() + s.backup.members().len()
                };
                snapshot.services().map(backends).sum::<usize>() <= PER_BACKEND
            }
        }
    }

    /// Has the control loop answer.
    async fn ask<T: Send + 'static>(
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
        .route("/v1/services", get(services))
        .route("/v1/backends", get(backends))
        .route("/v1/drain", post(drain))
        .route("/v1/undrain", post(undrain))
        .route("/v1/reload", post(reload))
        .with_state(admin)
}

/// The routes of the metrics address: nothing here changes anything.
pub(crate) fn public_router(admin: Admin) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
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
    Query(which): Query<Which>,
) -> Result<Response, Response> {
    known(&admin, which.service.as_ref()).await?;
    let views = admin.ask(move |c| c.backend_views(which.service.as_deref())).await?;
    Ok(Json(views).into_response())
}

async fn drain(state: State<Admin>, body: Json<DrainRequest>) -> Result<Response, Response> {
    order(state, body, true).await
}

async fn undrain(state: State<Admin>, body: Json<DrainRequest>) -> Result<Response, Response> {
    order(state, body, false).await
}

async fn order(
    State(admin): State<Admin>,
    Json(request): Json<DrainRequest>,
    out: bool,
) -> Result<Response, Response> {
    let DrainRequest { backend, service } = request;
    let what = backend.clone();
    let unknown = service.clone();
    let found = admin.ask(move |c| match &service {
        Some(name) if !c.knows(name) => None,
        service => Some(c.drain(service.as_deref(), &backend, out)),
    });
    let Some(found) = found.await? else {
        let message = no_service(&unknown.unwrap_or_default());
        return Ok(Json(Answer { ok: false, message, details: Vec::new() }).into_response());
    };
    let verb = if out { "drains" } else { "takes new connections" };
    let answer = if found.is_empty() {
        Answer {
            ok: false,
            message: format!("no backend `{what}` here; `fairway backends` lists them"),
            details: found,
        }
    } else {
        Answer { ok: true, message: format!("{what} {verb}"), details: found }
    };
    Ok(Json(answer).into_response())
}

async fn reload(State(admin): State<Admin>) -> Result<Response, Response> {
    let (sender, receiver) = oneshot::channel();
    let gone = || (StatusCode::SERVICE_UNAVAILABLE, "the process is stopping\n").into_response();
    admin.reload.send(Reload::Asked(sender)).map_err(|_| gone())?;
    let Outcome { problems, waiting } = receiver.await.map_err(|_| gone())?;
    let answer = if problems.is_empty() {
        let details = if waiting.is_empty() { Vec::new() } else { vec![waiting_text(&waiting)] };
        Answer { ok: true, message: "configuration applied".into(), details }
    } else {
        let message = "the configuration has errors; the one before runs on".into();
        Answer { ok: false, message, details: problems }
    };
    Ok(Json(answer).into_response())
}

async fn readyz(State(admin): State<Admin>) -> Response {
    if admin.ready.load(Relaxed) {
        return "ready\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, "not ready: starting or stopping\n").into_response()
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let per_backend = admin.per_backend();
    // Ten thousand services take a while to write out: not on a thread that serves others.
    let text = tokio::task::spawn_blocking(move || {
        let mut text = admin.registry.render();
        let snapshot = admin.view.load();
        metrics_text::write(&mut text, &snapshot, &admin.workers, &admin.shared, per_backend);
        text
    });
    match text.await {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
