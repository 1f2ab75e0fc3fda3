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

fn switch_on(socket: impl AsFd, level: i32, option: i32) -> io::Result<()> {
    let on: i32 = 1;
    let fd = socket.as_fd().as_raw_fd();
    let (value, len) = ((&raw const on).cast(), size_of_val(&on) as u32);
    // SAFETY: the descriptor is borrowed, and the value is read within the call.
    match unsafe { libc::setsockopt(fd, level, option, value, len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
