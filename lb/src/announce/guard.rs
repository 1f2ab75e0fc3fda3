//! A child that takes shared addresses off an interface when this process is gone, or stands still: another
//! box has taken over then, and the kernel would go on answering here.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::time::Duration;

use fairway_core::Tick;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe::Receiver;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use crate::network::Interfaces;

/// The guard of an interface's addresses; they go with it, and what it has been told is over.
pub(crate) struct Guard {
    child: Child,
    stdin: ChildStdin,
    every: Duration,
    due: Tick,
}

impl Guard {
    /// Starts one for the interface of this number. It takes its addresses away after `patience` without a
    /// word.
    pub(crate) fn start(interface: u32, patience: Duration) -> std::io::Result<Self> {
        let mut child = Command::new("/proc/self/exe")
            .args(["guard-addresses", &interface.to_string(), &patience.as_millis().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        let stdin = child.stdin.take().ok_or(std::io::ErrorKind::BrokenPipe)?;
        // One that does not read is of no use, and must not hold us up.
        fcntl_setfl(&stdin, fcntl_getfl(&stdin)? | OFlags::NONBLOCK)?;
        Ok(Self { child, stdin, every: patience / 5, due: Tick(0) })
    }

    /// Guards an address from now on; none when the guard has ended.
    pub(crate) fn hold(self, ip: IpAddr) -> Option<Self> {
        self.say(&format!("+{ip}\n"))
    }

    /// Guards it no longer.
    pub(crate) fn release(self, ip: IpAddr) -> Option<Self> {
        self.say(&format!("-{ip}\n"))
    }

    /// Says that all is well, when that is due.
    pub(crate) fn beat(self, now: Tick) -> Option<Self> {
        if now < self.due {
            return Some(self);
        }
        let mut guard = self.say("\n")?;
        guard.due = now.plus(guard.every);
        Some(guard)
    }

    /// When [`Guard::beat`] is due.
    pub(crate) fn due(&self) -> Tick {
        self.due
    }

    fn say(mut self, words: &str) -> Option<Self> {
        self.stdin.write_all(words.as_bytes()).is_ok().then_some(self)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // What it guards goes on without it: at the end of what it reads it would take that away.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The child: `fairway guard-addresses NUMBER MILLISECONDS`.
pub(crate) fn guard(interface: u32, patience: Duration) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else { return ExitCode::FAILURE };
    runtime.block_on(watch(interface, patience))
}

async fn watch(interface: u32, patience: Duration) -> ExitCode {
    let Ok(kernel) = Interfaces::connect() else { return ExitCode::FAILURE };
    // A stop is for the process that is guarded: it has connections to end, and ends this with itself.
    let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()];
    let _deaf = kinds.map(signal);
    let input = std::io::stdin().as_fd().try_clone_to_owned();
    let Ok(Ok(input)) = input.map(Receiver::from_owned_fd) else { return ExitCode::FAILURE };
    let mut lines = BufReader::new(input).lines();
    let mut guarded: BTreeSet<IpAddr> = BTreeSet::new();
    let mut stands_still = false;
    loop {
        let line = match timeout(patience, lines.next_line()).await {
            Ok(Ok(Some(line))) => Some(line),
            // Gone.
            Ok(_) => break,
            Err(_) => None,
        };
        match line.as_deref() {
            Some("") => stands_still = false,
            Some(line) => {
                let (sign, ip) = line.split_at(1);
                if let Ok(ip) = ip.parse() {
                    match sign {
                        "+" => _ = guarded.insert(ip),
                        _ => _ = guarded.remove(&ip),
                    }
                }
            }
            None if !stands_still => {
                stands_still = true;
                drop(&kernel, interface, &guarded, "the process stands still").await;
            }
            None => {}
        }
    }
    drop(&kernel, interface, &guarded, "the process has ended").await;
    ExitCode::SUCCESS
}

async fn drop(kernel: &Interfaces, interface: u32, guarded: &BTreeSet<IpAddr>, why: &str) {
    if guarded.is_empty() {
        return;
    }
    for ip in guarded {
        if let Err(error) = kernel.remove(interface, *ip).await {
            eprintln!("fairway: {why}, and {ip} cannot be removed: {error}");
        }
    }
    eprintln!("fairway: {why}; shared addresses were removed: {}", guarded.len());
}
