//! HTTP/1.1 GET.

use std::net::SocketAddr;

use fairway_config::Http;
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::fail;
use crate::health::state::{ProbeError, ProbeResult};

/// Makes `request` over `stream` and judges the status.
pub(super) async fn get(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    addr: SocketAddr,
    request: &Http,
) -> ProbeResult {
    let status = status(stream, addr, request).await?;
    let good = request.statuses.iter().any(|(first, last)| (*first..=*last).contains(&status));
    if good {
        return Ok(());
    }
    fail(format!("HTTP {status} from {addr}, expected {}", wanted(&request.statuses)))
}

async fn status(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    addr: SocketAddr,
    Http { path, host, headers, .. }: &Http,
) -> Result<u16, ProbeError> {
    let failed = |what: &str| ProbeError(format!("HTTP to {addr}: {what}"));
    let host = host.as_deref().map_or_else(|| addr.to_string(), Into::into);
    let mut request = Request::get(&**path)
        .header(header::HOST, host)
        .header(header::USER_AGENT, concat!("fairway/", env!("CARGO_PKG_VERSION")))
        .header(header::CONNECTION, "close");
    for (name, value) in headers {
        request = request.header(&**name, &**value);
    }
    let request = request
        .body(Empty::<Bytes>::new())
        .map_err(|error| failed(&format!("the request cannot be made: {error}")))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| failed(&error.to_string()))?;
    // The connection ends with the timeout around the check, or when this returns.
    let driver = tokio::spawn(connection);
    let answer = sender.send_request(request).await;
    driver.abort();
    match answer {
        Ok(response) => Ok(response.status().as_u16()),
        Err(error) => Err(failed(&error.to_string())),
    }
}

fn wanted(statuses: &[(u16, u16)]) -> String {
    let one = |(first, last): &(u16, u16)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    statuses.iter().map(one).collect::<Vec<_>>().join(", ")
}
