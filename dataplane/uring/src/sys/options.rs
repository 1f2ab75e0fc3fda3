//! Socket options that no library names.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Has the kernel join the datagrams of a flow that arrive together (UDP_GRO, Linux 5.0).
pub(crate) fn join_datagrams(socket: impl AsFd) -> io::Result<()> {
    switch_on(socket, libc::SOL_UDP, libc::UDP_GRO)
}

/// Has each datagram come with the address that its sender dialled (IP_RECVORIGDSTADDR).
pub(crate) fn tell_destination(socket: impl AsFd, ipv6: bool) -> io::Result<()> {
    if ipv6 {
        switch_on(socket, libc::SOL_IPV6, libc::IPV6_RECVORIGDSTADDR)
    } else {
        switch_on(socket, libc::SOL_IP, libc::IP_RECVORIGDSTADDR)
    }
}

/// Has the kernel choose the source port when the socket connects, not when it is bound
/// (IP_BIND_ADDRESS_NO_PORT, Linux 4.2).
pub(crate) fn late_port(socket: impl AsFd) -> io::Result<()> {
    switch_on(socket, libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT)
}

/// Has the kernel choose source ports from `first` to `last` (IP_LOCAL_PORT_RANGE, Linux 6.3).
pub(crate) fn port_range(socket: impl AsFd, first: u16, last: u16) -> io::Result<()> {
    // No library names it yet: linux/in.h.
    const IP_LOCAL_PORT_RANGE: i32 = 51;
    let range = u32::from(last) << 16 | u32::from(first);
    set(socket, libc::SOL_IP, IP_LOCAL_PORT_RANGE, range as i32)
}

pub(super) fn switch_on(socket: impl AsFd, level: i32, option: i32) -> io::Result<()> {
    set(socket, level, option, 1)
}

fn set(socket: impl AsFd, level: i32, option: i32, value: i32) -> io::Result<()> {
    set_struct(socket, level, option, &value)
}

/// Sets an option that is a plain struct, as the kernel lays it out.
pub(super) fn set_struct<T>(
    socket: impl AsFd,
    level: i32,
    option: i32,
    value: &T,
) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    let pointer: *const T = value;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the descriptor is borrowed, and the kernel reads `length` bytes at the pointer, which are
    // those of `value`, within the call.
    match unsafe { libc::setsockopt(fd, level, option, pointer.cast(), length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
