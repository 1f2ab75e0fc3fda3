//! Talks to a running Fairway over its unix socket.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::{EXIT_FAILURE, Format, Remote, print_json, report};
use crate::admin::Answer;

/// When an order that takes long says so, and again.
const SAYS_AGAIN: Duration = Duration::from_secs(5);

/// A running Fairway.
pub(crate) struct Client<'a> {
    socket: &'a Path,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Nobody listens on the socket, or we may not open it.
    #[error("no Fairway answers at {}: {error}; {}", socket.display(), remedy(error))]
    Unreachable { socket: PathBuf, error: io::Error },
    /// What was asked or sent is wrong.
    #[error("{0}")]
    Wrong(String),
    /// The answer was an error.
    #[error("{0}")]
    Failed(String),
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "run this as root or in the group of the service",
        _ => "is it running? `--socket` names another path",
    }
}

impl<'a> Client<'a> {
    pub(crate) fn new(socket: &'a Path) -> Self {
        Self { socket }
    }

    /// Asks for `path`.
    pub(crate) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.send(Method::GET, path, Bytes::new())
    }

    /// Sends `body` to `path`.
    pub(crate) fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body =
            serde_json::to_vec(body).map_err(|error| ClientError::Failed(error.to_string()))?;
        self.send(Method::POST, path, body.into())
    }

    fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, ClientError> {
        let mut text = Vec::new();
        self.stream(method, path, body, |part| {
            text.extend(part);
            Ok(())
        })?;
        serde_json::from_slice(&text).map_err(|error| ClientError::Failed(error.to_string()))
    }

    /// Asks for `path`, and has `take` take the answer as it comes, until it fails.
    pub(crate) fn follow(
        &self,
        path: &str,
        take: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), ClientError> {
        self.stream(Method::GET, path, Bytes::new(), take)
    }

    fn stream(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        mut take: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), ClientError> {
        let failed = |error: &dyn std::error::Error| ClientError::Failed(error.to_string());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| failed(&error))?;
        runtime.block_on(async {
            let stream = UnixStream::connect(self.socket)
                .await
                .map_err(|error| ClientError::Unreachable { socket: self.socket.into(), error })?;
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream))
                    .await
                    .map_err(|error| failed(&error))?;
            tokio::spawn(connection);
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header(header::HOST, "fairway")
                .header(header::CONTENT_TYPE, "application/json")
                .body(Full::new(body))
                .map_err(|error| failed(&error))?;
            let response = sender.send_request(request).await.map_err(|error| failed(&error))?;
            let status = response.status();
            let mut body = response.into_body();
            if status != StatusCode::OK {
                let body = body.collect().await.map_err(|error| failed(&error))?;
                let text = String::from_utf8_lossy(&body.to_bytes()).trim().to_owned();
                return Err(match status {
                    StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => {
                        ClientError::Wrong(text)
                    }
                    StatusCode::NOT_FOUND if !text.is_empty() => ClientError::Failed(text),
                    _ => ClientError::Failed(format!("{status}: {text}")),
                });
            }
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| failed(&error))?;
                if let Ok(part) = frame.into_data() {
                    take(&part).map_err(|error| failed(&error))?;
                }
            }
            Ok(())
        })
    }
}

/// Gives an order and shows the answer.
///
/// `refused` is the exit code of an answer that says no.
pub(super) fn order(remote: &Remote, path: &str, body: &impl Serialize, refused: u8) -> ExitCode {
    let answer = Client::new(&remote.socket).post::<Answer>(path, body);
    match answer {
        Err(error) => report(&error),
        Ok(answer) => {
            if remote.output.output == Format::Json {
                print_json(&answer);
            } else if answer.ok {
                println!("{}", answer.message);
                answer.details.iter().for_each(|line| println!("  {line}"));
            } else {
                eprintln!("fairway: {}", answer.message);
                answer.details.iter().for_each(|line| eprintln!("{line}"));
            }
            if answer.ok { ExitCode::SUCCESS } else { ExitCode::from(refused) }
        }
    }
}

/// Orders an upgrade; one that takes long says that it is under way.
pub(super) fn upgrade(remote: &Remote) -> ExitCode {
    let (done, is_done) = mpsc::channel::<()>();
    let patience = thread::spawn(move || {
        let began = Instant::now();
        while is_done.recv_timeout(SAYS_AGAIN) == Err(RecvTimeoutError::Timeout) {
            let seconds = began.elapsed().as_secs();
            eprintln!(
                "fairway: nothing is heard of the new process after {seconds} s; the old one serves until it is ready"
            );
        }
    });
    let code = order(remote, "/v1/upgrade", &(), EXIT_FAILURE);
    drop(done);
    // It only writes.
    let _ = patience.join();
    code
}
