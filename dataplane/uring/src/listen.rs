//! Listening sockets: opened by the control plane, handed to the workers.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use fairway_core::Protocol as Transport;
use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};

use crate::sys::tell_destination;

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
        "port {port} of {ip} is taken by another process; `ss -lnp{} 'sport = :{port}'` names it",
        if *transport == Transport::Udp { 'u' } else { 't' }
    )]
    InUse {
        /// The protocol.
        transport: Transport,
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
    fn of(error: io::Error, addr: SocketAddr, transport: Transport, remedy: &'static str) -> Self {
        match error.raw_os_error() {
            Some(libc::EADDRINUSE) => Self::InUse { transport, ip: addr.ip(), port: addr.port() },
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
pub fn open_listener(addr: SocketAddr, transport: Transport) -> Result<Socket, ListenError> {
    let remedy = "grant CAP_NET_BIND_SERVICE, or lower net.ipv4.ip_unprivileged_port_start";
    let open = || -> io::Result<Socket> {
        let socket = shared(addr, transport)?;
        match addr {
            SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
            SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
        }
        socket.bind(&SockAddr::from(addr))?;
        start_listening(&socket, transport)?;
        Ok(socket)
    };
    open().map_err(|error| ListenError::of(error, addr, transport, remedy))
}

/// Whether nobody listens on `addr`, by whatever options.
pub fn probe(addr: SocketAddr, transport: Transport) -> Result<(), ListenError> {
    let bind = || -> io::Result<()> {
        let socket = unbound(addr, transport)?;
        // For TCP it leaves out connections in TIME-WAIT; for UDP it would let us share the port.
        socket.set_reuse_address(transport == Transport::Tcp)?;
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
    bind().map_err(|error| ListenError::of(error, addr, transport, remedy))
}

/// A socket that takes the connections or datagrams to any address that nftables hands to `port`
/// (`IP_TRANSPARENT`). Needs CAP_NET_ADMIN.
pub fn open_transparent(
    ipv6: bool,
    port: u16,
    transport: Transport,
) -> Result<Socket, ListenError> {
    let ip = if ipv6 { IpAddr::V6(Ipv6Addr::LOCALHOST) } else { IpAddr::V4(Ipv4Addr::LOCALHOST) };
    let addr = SocketAddr::new(ip, port);
    let remedy = "transparent sockets need CAP_NET_ADMIN";
    let open = || -> io::Result<Socket> {
        let socket = shared(addr, transport)?;
        make_transparent(&socket, ipv6)?;
        if transport == Transport::Udp {
            tell_destination(&socket, ipv6)?;
        }
        socket.bind(&SockAddr::from(addr))?;
        start_listening(&socket, transport)?;
        Ok(socket)
    };
    open().map_err(|error| ListenError::of(error, addr, transport, remedy))
}

/// A socket that replies to datagrams leave from, whether or not `vip` is an address of this
/// machine: datagrams to it arrive at the transparent socket all the same.
pub(crate) fn open_reply(vip: SocketAddr) -> io::Result<Socket> {
    let socket = shared(vip, Transport::Udp)?;
    make_transparent(&socket, vip.is_ipv6())?;
    socket.bind(&vip.into())?;
    Ok(socket)
}

fn make_transparent(socket: &Socket, ipv6: bool) -> io::Result<()> {
    if ipv6 { socket.set_ip_transparent_v6(true) } else { socket.set_ip_transparent_v4(true) }
}

/// A socket that may share its address with others of this process.
fn shared(addr: SocketAddr, transport: Transport) -> io::Result<Socket> {
    let socket = unbound(addr, transport)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

fn unbound(addr: SocketAddr, transport: Transport) -> io::Result<Socket> {
    let (kind, protocol) = match transport {
        Transport::Tcp => (Type::STREAM, Protocol::TCP),
        Transport::Udp => (Type::DGRAM, Protocol::UDP),
        // Packets alone are carried.
        Transport::Sctp => return Err(io::ErrorKind::Unsupported.into()),
    };
    Socket::new(Domain::for_address(addr), kind, Some(protocol))
}

/// Peers that are gone without a word are noticed well before the idle timeout.
pub(crate) fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new().with_time(Duration::from_secs(300))
}

fn start_listening(socket: &Socket, transport: Transport) -> io::Result<()> {
    if transport == Transport::Udp {
        // Datagrams arrive from the bind on.
        return Ok(());
    }
    // Accepted sockets inherit what is set here.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(UNSENT_BYTES)?;
    socket.set_tcp_keepalive(&keepalive())?;
    socket.listen(BACKLOG)
}
