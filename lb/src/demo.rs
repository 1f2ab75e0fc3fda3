//! `fairway demo`: a real Fairway before three small HTTP servers, under a small load.
//!
//! One server is killed and brought back on the way. Nothing leaves loopback, nothing needs
//! privileges; the temporary folder goes at the end.

use std::collections::HashMap;
use std::io::{IsTerminal, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::{interval, sleep, timeout};

use crate::cli::EXIT_FAILURE;

/// As `println!`, but for a reader who has gone: that is told of by a signal.
macro_rules! say {
    ($($words:tt)*) => {
        _ = writeln!(std::io::stdout(), $($words)*)
    };
}

/// Clients that ask one request after the other, each on a connection of its own.
const CLIENTS: usize = 8;
/// Pause of a client between two requests.
const PAUSE: Duration = Duration::from_millis(4);
/// When the backend is killed and when it comes back, in a run without `--seconds`.
const KILL_AT: u64 = 3;
const RETURN_AT: u64 = 7;

pub(crate) fn demo(length: Option<Duration>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(run(length)),
        Err(error) => Err(anyhow::Error::from(error)),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(EXIT_FAILURE),
        Err(error) => {
            eprintln!("fairway demo: {error:#}");
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

async fn run(length: Option<Duration>) -> anyhow::Result<bool> {
    // Whoever reads no further (`fairway demo | head`) ends the demo, and not only this process of it.
    let reader = signal(SignalKind::pipe())?;
    let folder = tempfile::tempdir()?;
    let mut backends = Vec::new();
    for name in ["one", "two", "three"] {
        backends.push(Backend::start(name, 0).await?);
    }
    let vip = free_address().await?;
    let metrics = free_address().await?;
    let config = folder.path().join("fairway.yaml");
    std::fs::write(&config, document(folder.path(), vip, metrics, &backends))?;
    let mut fairway = spawn(&config)?;
    ready(&mut fairway, metrics).await?;
    say!("page      http://{metrics}/");
    say!("service   curl http://{vip}/");
    say!("metrics   curl http://{metrics}/metrics");
    say!("config    {}", config.display());
    say!("status    fairway status --socket {}", folder.path().join("admin.sock").display());
    say!();

    let load = Arc::new(Load::default());
    let clients: Vec<_> =
        (0..CLIENTS).map(|_| tokio::spawn(client(vip, Arc::clone(&load)))).collect();
    let watched = watch(length, &mut backends, &mut fairway, &load, reader).await;
    load.stop.store(true, Relaxed);
    for client in clients {
        // A client that panicked has failed its last request, which is then missing below.
        let _ = client.await;
    }
    let (requests, failed) = (load.requests.load(Relaxed), load.failed.load(Relaxed));
    say!("\n{requests} requests, {failed} failed");
    stop(&mut fairway).await;
    watched?;
    Ok(failed == 0 && requests > 0)
}

/// A line a second, and the failure on the way, until the time is over.
async fn watch(
    length: Option<Duration>,
    backends: &mut [Backend],
    fairway: &mut Child,
    load: &Load,
    mut reader: Signal,
) -> anyhow::Result<()> {
    let seconds = length.map(|length| length.as_secs().max(1));
    let (kill_at, return_at) = match seconds {
        None => (KILL_AT, RETURN_AT),
        Some(seconds) => ((seconds / 3).clamp(1, KILL_AT), (seconds * 2 / 3).clamp(2, RETURN_AT)),
    };
    say!("{:>4}  {:>8}  {:<32}  {:>8}  {:>8}", "s", "requests", "share", "p50", "p99");
    let mut ticks = interval(Duration::from_secs(1));
    ticks.tick().await;
    // Whoever ends the demo ends its Fairway with it.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    for second in 1.. {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            _ = hangup.recv() => return Ok(()),
            _ = reader.recv() => return Ok(()),
            ended = fairway.wait() => anyhow::bail!("fairway ended: {}", ended?),
        }
        load.print(second, backends);
        if second == kill_at {
            backends[1].kill();
            say!("{}", said("      backend `two` is killed"));
        }
        if second == return_at {
            backends[1].restart().await?;
            say!("{}", said("      backend `two` is back"));
        }
        if seconds.is_some_and(|seconds| second >= seconds) {
            return Ok(());
        }
    }
    Ok(())
}

fn said(text: &str) -> String {
    if std::io::stdout().is_terminal() { format!("\x1b[33m{text}\x1b[0m") } else { text.into() }
}

fn document(folder: &Path, vip: SocketAddr, metrics: SocketAddr, backends: &[Backend]) -> String {
    let backends: String = backends
        .iter()
        .map(|backend| format!("      - {{address: {}, name: {}}}\n", backend.addr, backend.name))
        .collect();
    format!(
        "admin:
  socket: {folder}/admin.sock
  metrics: {metrics}
log:
  level: error
services:
  - name: demo
    addresses: [{ip}]
    ports:
      - name: http
        port: {port}
    scheduler: roundRobin
    backends:
{backends}    healthCheck:
      type: http
      interval: 500ms
      timeout: 300ms
    retry:
      on: [connect, resetBeforeReply]
",
        folder = folder.display(),
        ip = vip.ip(),
        port = vip.port(),
    )
}

fn spawn(config: &Path) -> anyhow::Result<Child> {
    Ok(Command::new(std::env::current_exe()?)
        .arg("run")
        .arg("--config")
        .arg(config)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .process_group(0)
        .spawn()?)
}

async fn ready(fairway: &mut Child, metrics: SocketAddr) -> anyhow::Result<()> {
    for _ in 0..200 {
        if let Some(ended) = fairway.try_wait()? {
            anyhow::bail!("fairway ended at its start: {ended}");
        }
        if let Ok(answer) = get(metrics, "/readyz").await
            && answer.starts_with("HTTP/1.1 200")
        {
            return Ok(());
        }
        sleep(Duration::from_millis(25)).await;
    }
    anyhow::bail!("fairway was not ready after 5 s")
}

async fn stop(fairway: &mut Child) {
    if let Some(pid) = fairway.id().and_then(|pid| rustix::process::Pid::from_raw(pid as i32)) {
        // It may have ended already.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    if timeout(Duration::from_secs(5), fairway.wait()).await.is_err() {
        let _ = fairway.kill().await;
    }
}

/// An address that is free now; Fairway takes it a moment later.
async fn free_address() -> std::io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0").await?.local_addr()
}

/// A small HTTP server.
struct Backend {
    name: &'static str,
    addr: SocketAddr,
    serving: JoinHandle<()>,
}

impl Backend {
    async fn start(name: &'static str, port: u16) -> std::io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::from(([127, 0, 0, 1], port)))?;
        let listener = socket.listen(1024)?;
        let addr = listener.local_addr()?;
        let serving = tokio::spawn(async move {
            // Connections die with the server, as they do when a process is killed.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((stream, _)) = accepted else { continue };
                        connections.spawn(answer(stream, name));
                    }
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Ok(Self { name, addr, serving })
    }

    fn kill(&self) {
        self.serving.abort();
    }

    async fn restart(&mut self) -> std::io::Result<()> {
        *self = Self::start(self.name, self.addr.port()).await?;
        Ok(())
    }
}

async fn answer(mut stream: TcpStream, name: &str) {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read_buf(&mut request).await {
            Ok(1..) => {}
            _ => return,
        }
    }
    let body = format!("hello from backend {name}\n");
    let text = format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nx-backend: {name}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    // The client may have gone.
    let _ = stream.write_all(text.as_bytes()).await;
}

/// What the clients have seen.
#[derive(Default)]
struct Load {
    requests: AtomicU64,
    failed: AtomicU64,
    stop: AtomicBool,
    /// Since the last line: who answered, and how long each took.
    recent: Mutex<(HashMap<String, u64>, Vec<Duration>)>,
}

impl Load {
    fn print(&self, second: u64, backends: &[Backend]) {
        let (shares, mut times) = {
            let mut recent = match self.recent.lock() {
                Ok(recent) => recent,
                Err(poisoned) => poisoned.into_inner(),
            };
            std::mem::take(&mut *recent)
        };
        times.sort_unstable();
        let at = |hundredths: usize| {
            times.get(times.len() * hundredths / 100).copied().unwrap_or_default()
        };
        let total = times.len().max(1) as u64;
        let share = |backend: &Backend| {
            let count = shares.get(backend.name).copied().unwrap_or(0);
            format!("{} {:>3}%", backend.name, (count * 100 + total / 2) / total)
        };
        let shares: Vec<_> = backends.iter().map(share).collect();
        let millis = |time: Duration| format!("{:.2} ms", time.as_secs_f64() * 1e3);
        say!(
            "{second:>4}  {:>8}  {:<32}  {:>8}  {:>8}",
            times.len(),
            shares.join("  "),
            millis(at(50)),
            millis(at(99)),
        );
    }

    fn count(&self, answered: Result<(String, Duration), String>) {
        self.requests.fetch_add(1, Relaxed);
        let (backend, took) = match answered {
            Ok(answered) => answered,
            Err(why) => {
                if self.failed.fetch_add(1, Relaxed) == 0 {
                    say!("      a request failed: {why}");
                }
                return;
            }
        };
        let mut recent = match self.recent.lock() {
            Ok(recent) => recent,
            Err(poisoned) => poisoned.into_inner(),
        };
        *recent.0.entry(backend).or_default() += 1;
        recent.1.push(took);
    }
}

async fn client(vip: SocketAddr, load: Arc<Load>) {
    while !load.stop.load(Relaxed) {
        let start = Instant::now();
        let answer = timeout(Duration::from_secs(5), get(vip, "/")).await;
        let took = start.elapsed();
        let backend = match answer {
            Err(_) => Err("no answer in 5 s".into()),
            Ok(Err(error)) => Err(error.to_string()),
            Ok(Ok(text)) => backend_of(&text).ok_or_else(|| format!("half an answer: {text:?}")),
        };
        load.count(backend.map(|backend| (backend, took)));
        sleep(PAUSE).await;
    }
}

/// Who gave a whole answer.
fn backend_of(answer: &str) -> Option<String> {
    let line = answer.lines().find_map(|line| line.strip_prefix("x-backend: "))?;
    let whole = answer.ends_with('\n') && answer.starts_with("HTTP/1.1 200");
    whole.then(|| line.trim().to_owned())
}

/// One request on a connection of its own; the whole answer.
async fn get(addr: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(addr).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}
