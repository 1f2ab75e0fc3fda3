//! Frames of the packet path, as they come and leave, to whoever asks.

use std::convert::Infallible;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use crossbeam_channel::{RecvTimeoutError, bounded};
use fairway_core::IpPrefix;
use fairway_uring::CaptureFilter;
use futures_util::stream::unfold;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::api::Admin;
use super::pcapng;

/// Frames that wait to be written.
const QUEUE: usize = 4096;
/// How often it is looked whether anybody still wants them.
const LOOK: Duration = Duration::from_millis(200);

/// Which frames are asked for, and how many.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Wanted {
    net: Option<String>,
    port: Option<u16>,
    dropped: Option<bool>,
    count: Option<u64>,
    seconds: Option<f64>,
}

pub(super) async fn capture(
    State(admin): State<Admin>,
    Query(wanted): Query<Wanted>,
) -> Result<Response, Response> {
    let bad = |why: String| (StatusCode::BAD_REQUEST, why + "\n").into_response();
    let net = match &wanted.net {
        Some(text) => match text.parse::<IpPrefix>() {
            Ok(net) => Some(net),
            Err(_) => return Err(bad(format!("`{text}` is no address or network"))),
        },
        None => None,
    };
    let dropped = wanted.dropped.unwrap_or(false);
    let filter = CaptureFilter { net, port: wanted.port, dropped };
    let (sender, frames) = bounded(QUEUE);
    let lost = admin.ask(move |control| control.capture(&filter, &sender)).await?;
    let none = || bad("there is no packet path: `dataplane.packet` names no interfaces".into());
    let lost = lost.ok_or_else(none)?;
    let interfaces = admin.interfaces.clone();
    let (out, body) = mpsc::channel::<Vec<u8>>(64);
    let end = wanted.seconds.map(|seconds| Instant::now() + Duration::from_secs_f64(seconds));
    tokio::task::spawn_blocking(move || {
        let _ = out.blocking_send(pcapng::beginning(interfaces.iter()));
        let mut left = wanted.count.unwrap_or(u64::MAX);
        while left > 0 && end.is_none_or(|end| Instant::now() < end) && !out.is_closed() {
            let block = match frames.recv_timeout(LOOK) {
                Ok(captured) => pcapng::packet(&captured),
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            left -= 1;
            if out.blocking_send(block).is_err() {
                break;
            }
        }
        let lost = lost.load(Relaxed);
        if lost > 0 {
            tracing::warn!(lost, "frames were left out of a capture that was read too slowly");
        }
    });
    let stream = unfold(body, async |mut body| {
        let block = body.recv().await?;
        Some((Ok::<_, Infallible>(block), body))
    });
    let kind = [(header::CONTENT_TYPE, "application/x-pcapng")];
    Ok((kind, Body::from_stream(stream)).into_response())
}
