//! The gRPC health service: one unary call, `grpc.health.v1.Health/Check`.
//!
//! Source: github.com/grpc/grpc, doc/health-checking.md and doc/PROTOCOL-HTTP2.md. The two messages
//! have a field each, so they are written and read by hand.

use std::net::SocketAddr;

use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};

use super::fail;
use crate::health::state::{ProbeError, ProbeResult};

/// Asks for `service`, or for the server when that is empty.
pub(super) async fn check(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    addr: SocketAddr,
    service: &str,
) -> ProbeResult {
    let failed = |what: &dyn std::fmt::Display| ProbeError(format!("gRPC to {addr}: {what}"));
    let request = Request::post(format!("http://{addr}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(message(service)))
        .map_err(|error| failed(&error))?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|error| failed(&error))?;
    let driver = tokio::spawn(connection);
    let answer = async {
        let response = sender.send_request(request).await.map_err(|error| failed(&error))?;
        let status = response.status();
        // A call that fails at once has its status among the headers.
        let early = response.headers().get("grpc-status").cloned();
        let body = response.into_body().collect().await.map_err(|error| failed(&error))?;
        let late = body.trailers().and_then(|trailers| trailers.get("grpc-status").cloned());
        Ok((status, late.or(early), body.to_bytes()))
    };
    let answer = answer.await;
    driver.abort();
    let (status, code, body) = answer?;
    if !status.is_success() {
        return fail(format!("HTTP {} from {addr} to a gRPC call", status.as_u16()));
    }
    match code.as_ref().and_then(|code| code.to_str().ok()) {
        Some("0") => {}
        Some(code) => return fail(format!("gRPC status {code} ({}) from {addr}", name_of(code))),
        None => return fail(format!("no gRPC status from {addr}")),
    }
    match serving(&body) {
        Some(1) => Ok(()),
        other => fail(format!("{addr} is {}, expected SERVING", state_of(other))),
    }
}

/// A request with its prefix of five bytes: not compressed, and how long.
fn message(service: &str) -> Bytes {
    let mut field = Vec::new();
    if !service.is_empty() {
        // Field 1, a string.
        field.push(0x0a);
        varint(service.len() as u64, &mut field);
        field.extend_from_slice(service.as_bytes());
    }
    let mut bytes = vec![0];
    bytes.extend_from_slice(&(field.len() as u32).to_be_bytes());
    bytes.extend_from_slice(&field);
    bytes.into()
}

fn varint(mut n: u64, out: &mut Vec<u8>) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// The status in an answer: field 1, a number; absent means zero. None when it is malformed.
fn serving(body: &[u8]) -> Option<u8> {
    match body {
        [0, _, _, _, _] => Some(0),
        [0, _, _, _, _, 0x08, status] => Some(*status),
        _ => None,
    }
}

fn state_of(status: Option<u8>) -> &'static str {
    match status {
        Some(0) => "UNKNOWN",
        Some(1) => "SERVING",
        Some(2) => "NOT_SERVING",
        Some(3) => "SERVICE_UNKNOWN",
        _ => "talking of something else",
    }
}

fn name_of(code: &str) -> &'static str {
    match code {
        "5" => "the service is not known there",
        "12" => "there is no health service",
        "14" => "unavailable",
        _ => "an error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_those_of_the_protocol() {
        assert_eq!(message("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(message("a.B")[..], *b"\0\0\0\0\x05\x0a\x03a.B");
        let long = message(&"x".repeat(300));
        assert_eq!(long[..8], [0, 0, 0, 1, 47, 0x0a, 0xac, 0x02]);
        for (body, want) in [
            (&[0, 0, 0, 0, 2, 8, 1][..], Some(1)),
            (&[0, 0, 0, 0, 2, 8, 2], Some(2)),
            (&[0, 0, 0, 0, 0], Some(0)),
            (&[1, 0, 0, 0, 2, 8, 1], None),
            (&[], None),
        ] {
            assert_eq!(serving(body), want);
        }
    }
}
