//! Frames of the control plane: few, and not through a worker.

use std::io;

use crate::sys;

/// Sends whole Ethernet frames by an interface, each whatever becomes of the others; an error is the first
/// one's. Needs CAP_NET_RAW.
pub fn send_frames(interface: &str, frames: &[Vec<u8>]) -> io::Result<()> {
    let socket = sys::packet_sender(interface)?;
    let mut result = Ok(());
    for frame in frames {
        result = result.and(rustix::io::write(&socket, frame).map(drop));
    }
    Ok(result?)
}
