//! Frames of the control plane: few, and not through a worker.

use std::io;

use crate::sys;

/// Sends whole Ethernet frames by an interface. Needs CAP_NET_RAW.
pub fn send_frames(interface: &str, frames: &[Vec<u8>]) -> io::Result<()> {
    let socket = sys::packet_sender(interface)?;
    for frame in frames {
        rustix::io::write(&socket, frame)?;
    }
    Ok(())
}
