//! Seeing and steering: the admin API on a unix socket, metrics and health on TCP.

mod api;
pub(crate) mod bearer;
mod bounded;
mod capture;
pub(crate) mod explain;
mod metrics_text;
mod packet_metrics;
mod page;
mod pcapng;
pub(crate) mod registry;
pub(crate) mod views;

use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::pin::Pin;

use axum::Router;
use tokio::net::{TcpListener, UnixListener};
use tokio::task::AbortHandle;

use self::bounded::Bounded;
pub(crate) use page::Summary;

use crate::handover::Inherited;

pub(crate) use api::{
    Admin, Answer, DrainRequest, OrderRequest, PlanRequest, RollbackRequest, admin_router,
    public_router,
};

/// Where this process is asked: the admin socket and the metrics address.
#[derive(Default)]
pub(crate) struct Doors {
    /// The socket's file, when it is ours to remove.
    file: Option<PathBuf>,
    /// What answers once [`Self::begin`] says so: until then, who comes waits.
    waiting: Vec<Pin<Box<dyn Future<Output = ()> + Send>>>,
    accepting: Vec<AbortHandle>,
    listeners: Vec<(&'static str, OwnedFd)>,
}

/// Names of the listeners for the next process.
pub(crate) const ADMIN: &str = "admin";
pub(crate) const METRICS: &str = "metrics";

impl Doors {
    /// Serves the admin API at `path`, which only the owner and the group may open: on a socket that is
    /// there already, when it is one of that path; then its file is not ours to remove, unless
    /// [`Self::own_socket`] says so.
    pub(crate) fn serve_socket(
        &mut self,
        path: &Path,
        inherited: &mut Inherited,
        router: Router,
    ) -> io::Result<()> {
        let is_there = |listener: &StdUnixListener| {
            listener.local_addr().is_ok_and(|addr| addr.as_pathname() == Some(path))
        };
        let passed = inherited.take(ADMIN).into_iter().map(StdUnixListener::from).find(is_there);
        let listener = match passed {
            Some(listener) => listener,
            None => {
                let listener = bind(path)?;
                self.file = Some(path.into());
                listener
            }
        };
        listener.set_nonblocking(true)?;
        self.listeners.push((ADMIN, listener.try_clone()?.into()));
        let listener = UnixListener::from_std(listener)?;
        self.waiting.push(Box::pin(async move {
            // It only ends when the listener is lost, which the command line then shows.
            let _ = axum::serve(listener, router).await;
        }));
        Ok(())
    }

    /// Serves metrics and health at `addr`, on a socket that is there already when it is one of that
    /// address; returns the bound address.
    pub(crate) fn serve_public(
        &mut self,
        addr: SocketAddr,
        inherited: &mut Inherited,
        router: Router,
    ) -> io::Result<SocketAddr> {
        let fits = |listener: &StdTcpListener| {
            let is_any = |bound: SocketAddr| addr.port() == 0 && addr.ip() == bound.ip();
            listener.local_addr().is_ok_and(|bound| bound == addr || is_any(bound))
        };
        let passed = inherited.take(METRICS).into_iter().map(StdTcpListener::from).find(fits);
        let listener = match passed {
            Some(listener) => listener,
            None => StdTcpListener::bind(addr)?,
        };
        listener.set_nonblocking(true)?;
        let bound = listener.local_addr()?;
        self.listeners.push((METRICS, listener.try_clone()?.into()));
        let listener = Bounded::new(TcpListener::from_std(listener)?);
        self.waiting.push(Box::pin(async move {
            // It only ends when the listener is lost, which probes then show.
            let _ = axum::serve(listener, router).await;
        }));
        Ok(bound)
    }

    /// Answers from now on.
    pub(crate) fn begin(&mut self) {
        let serving = self.waiting.drain(..).map(|it| tokio::spawn(it).abort_handle());
        self.accepting.extend(serving);
    }

    /// Copies of the listeners, by name.
    pub(crate) fn copies(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        let copy =
            |(name, listener): &(&str, OwnedFd)| Ok(((*name).to_owned(), listener.try_clone()?));
        self.listeners.iter().map(copy).collect()
    }

    /// The socket's file is ours to remove from now on.
    pub(crate) fn own_socket(&mut self, path: &Path) {
        self.file = Some(path.into());
    }

    /// Whether the socket's file is ours to remove.
    pub(crate) fn owns_socket(&self) -> bool {
        self.file.is_some()
    }

    /// Another process answers from now on.
    pub(crate) fn leave(&mut self) {
        self.accepting.drain(..).for_each(|serving| serving.abort());
        self.listeners.clear();
        self.file = None;
    }
}

impl Drop for Doors {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            // It may be gone already.
            let _ = std::fs::remove_file(file);
        }
    }
}

/// Opens the admin socket.
fn bind(path: &Path) -> io::Result<StdUnixListener> {
    if let Some(folder) = path.parent() {
        if !folder.exists() {
            tracing::info!(folder = %folder.display(), "the folder of `admin.socket` is made");
        }
        std::fs::create_dir_all(folder)?;
    }
    // A socket that nobody answers on was left by a process that is gone.
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another Fairway answers there"));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = StdUnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}
