//! Listening sockets: opened by the control plane, handed to the workers.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};

/// Connections that may wait to be accepted; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 65_535;

/// Bytes that a socket may hold beyond what the peer's window takes. Without it a client that does
/// not read holds up to 4 MiB of the kernel's memory, and some hundred of them slow everyone.
pub(crate) const UNSENT_BYTES: u32 = 64 << 10;
/// The same once a transfer is spliced: its peer does read.
pub(crate) const UNSENT_BYTES_SPLICED: u32 = 256 << 10;

/// Names a listener of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerKey(pub u64);

/// Why a socket cannot listen; says what to mend.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process has the port.
    #[error(
        "port {port} of {ip} is taken by another process; `ss -ltnp 'sport = :{port}'` names it"
    )]
    InUse {
        /// The address.
        ip: IpAddr,
        /// The port.
        port: u16,
    },
    /// The port is below 1024 and the process may not use it, or a transparent socket is refused.
    #[error("no permission to listen on {addr}; {remedy}")]
    Permission {
        /// Where.
        addr: SocketAddr,
        /// What to grant.
        remedy: &'static str,
    },
    /// Out of descriptors or memory.
    #[error("no resources to listen on {addr}: {error}; raise LimitNOFILE= of the service")]
    Resources {
        /// Where.
        addr: SocketAddr,
        /// The kernel's word.
        error: io::Error,
    },
    /// Something else.
    #[error("cannot listen on {addr}: {error}")]
    Other {
        /// Where.
        addr: SocketAddr,
        /// The kernel's word.
        error: io::Error,
    },
}

impl ListenError {
    fn of(error: io::Error, addr: SocketAddr, remedy: &'static str) -> Self {
        match error.raw_os_error() {
            Some(libc::EADDRINUSE) => Self::InUse { ip: addr.ip(), port: addr.port() },
            Some(libc::EACCES | libc::EPERM) => Self::Permission { addr, remedy },
            Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                Self::Resources { addr, error }
            }
            _ => Self::Other { addr, error },
        }
    }
}

/// A socket that listens on `addr`, one of several on it (`SO_REUSEPORT`), whether or not the
/// address is on this machine yet (`IP_FREEBIND`).
pub fn open_listener(addr: SocketAddr) -> Result<Socket, ListenError> {
    let remedy = "grant CAP_NET_BIND_SERVICE, or lower net.ipv4.ip_unprivileged_port_start";
    let open = || -> io::Result<Socket> {
        let socket = prepared(addr)?;
        match addr {
            SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
            SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
        }
        socket.bind(&SockAddr::from(addr))?;
        socket.listen(BACKLOG)?;
        Ok(socket)
    };
    open().map_err(|error| ListenError::of(error, addr, remedy))
}

/// Whether nobody listens on `addr`, by whatever options.
pub fn probe(addr: SocketAddr) -> Result<(), ListenError> {
    let bind = || -> io::Result<()> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        match addr {
            SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
            SocketAddr::V6(_) => {
                socket.set_only_v6(true)?;
                socket.set_freebind_v6(true)?;
            }
        }
        socket.bind(&SockAddr::from(addr))
    };
    let remedy = "grant CAP_NET_BIND_SERVICE, or lower net.ipv4.ip_unprivileged_port_start";
    bind().map_err(|error| ListenError::of(error, addr, remedy))
}

/// A socket that takes the connections to any address that nftables hands to `port`
/// (`IP_TRANSPARENT`). Needs CAP_NET_ADMIN.
pub fn open_transparent(ipv6: bool, port: u16) -> Result<Socket, ListenError> {
    let ip = if ipv6 { IpAddr::V6(Ipv6Addr::LOCALHOST) } else { IpAddr::V4(Ipv4Addr::LOCALHOST) };
    let addr = SocketAddr::new(ip, port);
    let remedy = "transparent sockets need CAP_NET_ADMIN";
    let open = || -> io::Result<Socket> {
        let socket = prepared(addr)?;
        if ipv6 {
            socket.set_ip_transparent_v6(true)?;
        } else {
            socket.set_ip_transparent_v4(true)?;
        }
        socket.bind(&SockAddr::from(addr))?;
        socket.listen(BACKLOG)?;
        Ok(socket)
    };
    open().map_err(|error| ListenError::of(error, addr, remedy))
}

fn prepared(addr: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Accepted sockets inherit what is set here.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(UNSENT_BYTES)?;
    socket
        .set_tcp_keepalive(&TcpKeepalive::new().with_time(std::time::Duration::from_secs(300)))?;
    Ok(socket)
}
