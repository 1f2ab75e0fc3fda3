//! Where a socket to a backend comes from: the client's own address, one of ours, or the kernel's
//! choice.

use std::io;
use std::net::{IpAddr, SocketAddr};

use fairway_core::SourceAddress;
use socket2::Socket;

use crate::sys::{late_port, port_range};

/// Binds `socket`, which is to connect to `target` for `client`, as `source` says. The
/// flow's hash chooses among several addresses.
pub(crate) fn bind(
    socket: &Socket,
    source: &SourceAddress,
    client: SocketAddr,
    target: SocketAddr,
    hash: u64,
) -> io::Result<()> {
    if let Some(interface) = &source.interface {
        socket.bind_device(Some(interface.as_bytes()))?;
    }
    if let Some((first, last)) = source.ports {
        port_range(socket, first, last)?;
    }
    let ours = |ip: &&IpAddr| ip.is_ipv4() == target.is_ipv4();
    let ip = if source.transparent {
        if target.is_ipv4() {
            socket.set_ip_transparent_v4(true)?;
        } else {
            socket.set_ip_transparent_v6(true)?;
        }
        client.ip().to_canonical()
    } else {
        let fitting = source.addresses.iter().filter(ours).count();
        if fitting == 0 {
            return Ok(());
        }
        let chosen =
            source.addresses.iter().filter(ours).nth((hash ^ (hash >> 16)) as usize % fitting);
        chosen.copied().unwrap_or_else(|| target.ip())
    };
    // The port is chosen when the target is known: over TCP each source has all its ports for each
    // backend. (A UDP port is taken for all of them.)
    late_port(socket)?;
    socket.bind(&SocketAddr::new(ip, 0).into())
}
