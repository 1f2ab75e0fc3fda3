//! A program of the operator's: good when it exits with 0.

use std::net::SocketAddr;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use super::{fail, plain};
use crate::health::state::{ProbeError, ProbeResult};

/// Bytes of what a program complains of that are kept.
const MOST_WORDS: u64 = 4096;

/// Runs `command` with the backend in its environment. The program is in a process group of its
/// own, which ends with the check: a timeout leaves nothing behind.
pub(super) async fn run(addr: SocketAddr, command: &[Box<str>]) -> ProbeResult {
    let Some((program, arguments)) = command.split_first() else {
        return fail("there is no program".into());
    };
    let failed = |error: std::io::Error| ProbeError(format!("{program}: {}", plain(&error)));
    let mut child = Command::new(&**program)
        .args(arguments.iter().map(|argument| &**argument))
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("FAIRWAY_ADDRESS", addr.ip().to_string())
        .env("FAIRWAY_PORT", addr.port().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let _group = child.id().and_then(|id| Pid::from_raw(id as i32)).map(Group);
    let words = words(child.stderr.take());
    let (status, words) = tokio::join!(child.wait(), words);
    let status = status.map_err(failed)?;
    if status.success() {
        return Ok(());
    }
    let last = words.lines().last().unwrap_or_default().trim().to_owned();
    let said = if last.is_empty() { String::new() } else { format!(": {last}") };
    fail(format!("{program} for {addr}: {status}{said}"))
}

async fn words(pipe: Option<impl AsyncRead + Unpin>) -> String {
    let Some(pipe) = pipe else { return String::new() };
    let mut bytes = Vec::new();
    // What cannot be read was not said.
    let mut pipe = pipe;
    let _ = (&mut pipe).take(MOST_WORDS).read_to_end(&mut bytes).await;
    // A program that says more than is kept may go on saying it.
    let _ = tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A process group that ends when this is dropped.
struct Group(Pid);

impl Drop for Group {
    fn drop(&mut self) {
        // It is gone already when the program ended in order.
        let _ = kill_process_group(self.0, Signal::KILL);
    }
}
