//! Taps that stay while one process lets go of them and the next one does not have them yet.

use std::ffi::c_ulong;
use std::io;
use std::os::fd::AsRawFd;

/// `TUNSETIFF` of linux/if_tun.h: this descriptor is a queue of the tap that is named.
const ATTACH: c_ulong = 0x4004_54ca;
/// `TUNSETPERSIST`: whether the tap stays without one.
const PERSIST: c_ulong = 0x4004_54cb;
/// What a queue must say of itself to be one: `IFF_TAP`, `IFF_NO_PI`, `IFF_MULTI_QUEUE`, `IFF_VNET_HDR`.
const LAYOUT: u16 = 0x0002 | 0x1000 | 0x0100 | 0x4000;

/// `struct ifreq`, as these calls read it.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// Has a tap stay when nobody has it open, or no longer. An error when it is no tap, or has no room for a
/// queue.
pub fn keep_tap(interface: &str, stays: bool) -> io::Result<()> {
    let told = std::fs::read_to_string(format!("/sys/class/net/{interface}/tun_flags"))?;
    let flags = told.trim().strip_prefix("0x").and_then(|hex| u16::from_str_radix(hex, 16).ok());
    let flags = flags.ok_or(io::ErrorKind::InvalidData)? & LAYOUT;
    let mut request = Request { name: [0; 16], flags, rest: [0; 22] };
    // It ends with a zero.
    for (place, byte) in request.name[..15].iter_mut().zip(interface.bytes()) {
        *place = byte;
    }
    let device = std::fs::File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: a request of the size that the call reads and writes.
    if unsafe { libc::ioctl(device.as_raw_fd(), ATTACH, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a number.
    match unsafe { libc::ioctl(device.as_raw_fd(), PERSIST, libc::c_int::from(stays)) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
