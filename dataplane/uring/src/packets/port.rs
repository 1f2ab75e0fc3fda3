//! Interfaces of the packet path: opened once for all workers, each of which gets its share of the
//! frames.

use std::io;

use fairway_core::IpPrefix;

use super::program::program;
use crate::sys::{Divider, Receiver, Sender, interface_number};

/// One worker's part of an interface.
pub struct PacketPort {
    pub(super) number: u16,
    pub(super) receiver: Receiver,
    pub(super) sender: Sender,
}

impl std::fmt::Debug for PacketPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PacketPort({})", self.number)
    }
}

/// The control plane's end of an interface.
pub struct PortControl {
    /// The kernel's number of it.
    pub interface: u32,
    divider: Divider,
    workers: u16,
    hears_groups: bool,
}

/// Why an interface cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// There is none.
    #[error("there is no interface `{0}`; `ip link` lists them")]
    Missing(String),
    /// Not allowed.
    #[error(
        "interface `{0}`: no permission for packet sockets; give the service CAP_NET_RAW and CAP_NET_ADMIN"
    )]
    Forbidden(String),
    /// Anything else.
    #[error("interface `{0}`: {1}")]
    Other(String, io::Error),
    /// The kernel's filters have a limit.
    #[error(
        "{0} addresses of packet services are more than the kernel can divide among workers on a \
         raw port; use fewer, or `dataplane.workers: 1`"
    )]
    TooMany(usize),
}

/// Opens the interface `name`, whose frames are of up to `mtu` bytes and their Ethernet header, as
/// port `number` for each of `workers`.
pub fn open_port(
    name: &str,
    number: u16,
    mtu: u16,
    workers: usize,
) -> Result<(PortControl, Vec<PacketPort>), PortError> {
    let other = |error: io::Error| match error.raw_os_error() {
        Some(libc::ENODEV | libc::ENXIO) => PortError::Missing(name.into()),
        Some(libc::EPERM | libc::EACCES) => PortError::Forbidden(name.into()),
        _ => PortError::Other(name.into(), error),
    };
    let interface = interface_number(name).map_err(other)?;
    // Two tags may be on it.
    let frame = usize::from(mtu) + 14 + 8;
    let (mut group, mut ports) = (None, Vec::new());
    for _ in 0..workers {
        let opened = Receiver::open(interface, frame, workers > 1, group);
        let (receiver, joined) = opened.map_err(other)?;
        group = joined;
        let sender = Sender::open(interface, frame).map_err(other)?;
        ports.push(PacketPort { number, receiver, sender });
    }
    let divider = ports.first().map(|port| port.receiver.divider());
    let divider = divider.transpose().map_err(other)?;
    let divider = divider.ok_or_else(|| other(io::Error::other("no workers")))?;
    let workers = u16::try_from(workers).unwrap_or(u16::MAX);
    Ok((PortControl { interface, divider, workers, hears_groups: false }, ports))
}

impl PortControl {
    /// Frames to these VIPs, and the replies to them, are divided among the workers from now on.
    pub fn serve(&mut self, vips: &[IpPrefix]) -> Result<(), PortError> {
        let other = |error| PortError::Other(format!("{}", self.interface), error);
        // Neighbour solicitations go to groups that the interface has not joined.
        if !self.hears_groups && vips.iter().any(|vip| !vip.is_ipv4()) {
            self.divider.hear_groups(self.interface).map_err(other)?;
            self.hears_groups = true;
        }
        if self.workers > 1 {
            let program = program(vips, self.workers);
            let mut program = program.ok_or(PortError::TooMany(vips.len()))?;
            self.divider.set_program(&mut program).map_err(other)?;
        }
        Ok(())
    }
}
