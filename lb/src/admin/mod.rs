//! Seeing and steering: the admin API on a unix socket, metrics and health on TCP.

mod api;
mod capture;
pub(crate) mod explain;
mod metrics_text;
mod packet_metrics;
mod pcapng;
pub(crate) mod views;

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use axum::Router;
use tokio::net::{TcpListener, UnixListener};

pub(crate) use api::{
    Admin, Answer, DrainRequest, OrderRequest, PlanRequest, RollbackRequest, admin_router,
    public_router,
};

/// Serves the admin API at `path`, which only the owner and the group may open.
pub(crate) fn serve_socket(path: &Path, router: Router) -> io::Result<SocketFile> {
    if let Some(folder) = path.parent() {
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
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    tokio::spawn(async move {
        // It only ends when the listener is lost, which the command line then shows.
        let _ = axum::serve(listener, router).await;
    });
    Ok(SocketFile(path.into()))
}

/// Removes the socket file when the process ends.
pub(crate) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Serves metrics and health at `addr`; returns the bound address.
pub(crate) async fn serve_public(addr: SocketAddr, router: Router) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(addr).await?;
    let bound = listener.local_addr()?;
    tokio::spawn(async move {
        // It only ends when the listener is lost, which probes then show.
        let _ = axum::serve(listener, router).await;
    });
    Ok(bound)
}
