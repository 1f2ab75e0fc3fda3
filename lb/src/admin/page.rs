//! The status page: one file, and what it asks for once a second. Nothing here changes anything but orders for
//! backends, with a token.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use fairway_core::packet::DropReason;
use fairway_core::{Histogram, ServiceTotals};
use serde::{Deserialize, Serialize};

use super::api::{Admin, OrderRequest, announce_view, order};
use super::bearer::admit;
use super::views::{BackendView, ServiceView, Status};
use crate::announce::AnnounceView;
use crate::control::{Applied, Control};

/// Services that are shown at most; those with the most connections.
const MOST: usize = 200;
/// What the page may do: nothing but ask whoever it came from.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src \
                      'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// How long whoever is refused waits for that: nobody tries many tokens.
const PENANCE: Duration = Duration::from_millis(500);

/// Everything that the page shows, and `fairway top`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Summary {
    pub(crate) status: Status,
    pub(crate) services: Vec<ServiceView>,
    pub(crate) backends: Vec<BackendView>,
    /// Services that are not among those.
    more: usize,
    announce: AnnounceView,
    history: Vec<Applied>,
    /// How long connecting took: the bounds in milliseconds, and of all services how many were within
    /// each, and above all.
    connect_bounds: Vec<f64>,
    connect_counts: Vec<u64>,
    /// Whoever knows the token may steer.
    #[serde(default)]
    steers: bool,
    /// Packets that went no further.
    drops: BTreeMap<String, u64>,
}

pub(super) fn routes() -> Router<Admin> {
    Router::new()
        .route("/", get(page))
        .route("/api/summary", get(summary))
        .route("/api/order", post(steer))
}

/// An order for a backend, of one who knows the token.
async fn steer(
    admin: State<Admin>,
    headers: HeaderMap,
    Json(request): Json<OrderRequest>,
) -> Result<Response, Response> {
    if let Err(refused) = admit(admin.token.as_deref(), &headers) {
        tokio::time::sleep(PENANCE).await;
        return Err(refused.into_response());
    }
    let OrderRequest { backend, service, order: what, .. } = &request;
    let service = service.as_deref().unwrap_or("every service");
    tracing::info!(backend, service, order = ?what, "ordered by the page");
    order(admin, Json(request)).await
}

async fn page() -> Response {
    let headers = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-cache"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, Html(include_str!("page.html"))).into_response()
}

pub(super) async fn summary(State(admin): State<Admin>) -> Result<Response, Response> {
    let (fixed, per_backend) = (Arc::clone(&admin.fixed), admin.per_backend());
    let asked = admin.ask(move |control: &mut Control| {
        let status = control.status(&fixed, per_backend);
        let mut services = control.service_views(None);
        let all = services.len();
        // Those that carry something, then those that would.
        services.sort_by_key(|service| std::cmp::Reverse((service.active, service.connections)));
        services.truncate(MOST);
        let more = all - services.len();
        services.sort_by(|a, b| a.name.cmp(&b.name));
        let backends = services.iter().flat_map(|it| control.backend_views(Some(&it.name), None));
        let backends = backends.collect();
        (status, services, backends, more, control.history.list())
    });
    let (status, services, backends, more, history) = asked.await?;
    let mut counts = vec![0; Histogram::BOUNDS_MS.len() + 1];
    for service in admin.view.load().services() {
        let ServiceTotals { connect_buckets, .. } = service.state.counters.totals();
        counts.iter_mut().zip(connect_buckets).for_each(|(sum, count)| *sum += count);
    }
    let mut drops = BTreeMap::new();
    for stats in admin.packets.iter() {
        for (reason, counter) in DropReason::LABELS.iter().zip(&stats.counters.dropped) {
            if counter.get() > 0 {
                *drops.entry((*reason).to_owned()).or_default() += counter.get();
            }
        }
    }
    let summary = Summary {
        status,
        services,
        backends,
        more,
        announce: announce_view(&admin).await.unwrap_or_default(),
        history,
        connect_bounds: Histogram::BOUNDS_MS.into(),
        connect_counts: counts,
        steers: admin.token.is_some(),
        drops,
    };
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(summary)).into_response())
}
