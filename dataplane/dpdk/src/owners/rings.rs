//! Ports over rings in memory: what one sends the other receives. For tests and measurements.

use std::ffi::CString;

use super::eal::{Eal, last_error};
use super::port::PortError;

/// The numbers of two ports with `queues` queues in a direction, whose packets go from one to the
/// other through rings of `size` places, a power of two; open them by these. Rings stay as long as
/// the EAL.
pub fn ring_ports(_eal: &Eal, name: &str, queues: u16, size: u32) -> Result<[u16; 2], PortError> {
    let refused = |step| PortError::Refused { name: name.into(), step, error: last_error() };
    let text = |what: String| CString::new(what).map_err(|_| PortError::Missing(name.into()));
    // One thread at each end.
    let flags = dpdk_sys::RING_F_SP_ENQ | dpdk_sys::RING_F_SC_DEQ;
    let mut ways = [Vec::new(), Vec::new()];
    for (way, rings) in ways.iter_mut().enumerate() {
        for queue in 0..queues {
            let ring = text(format!("{name}-{way}-{queue}"))?;
            // SAFETY: the EAL runs; the name ends with zero and is copied.
            let ring = unsafe { dpdk_sys::rte_ring_create(ring.as_ptr(), size, -1, flags) };
            if ring.is_null() {
                return Err(refused("making a ring"));
            }
            rings.push(ring);
        }
    }
    let [there, back] = ways;
    let count = u32::from(queues);
    let mut ports = [0; 2];
    for (port, (end, rx, tx)) in ports.iter_mut().zip([("a", &there, &back), ("b", &back, &there)])
    {
        let device = text(format!("{name}-{end}"))?;
        // SAFETY: no arguments.
        let node = unsafe { dpdk_sys::rte_socket_id() };
        // SAFETY: as many rings as said, which stay; the name ends with zero and is copied.
        let id = unsafe {
            dpdk_sys::rte_eth_from_rings(
                device.as_ptr(),
                rx.as_ptr(),
                count,
                tx.as_ptr(),
                count,
                node,
            )
        };
        *port = u16::try_from(id).map_err(|_| refused("making a port of rings"))?;
    }
    Ok(ports)
}
