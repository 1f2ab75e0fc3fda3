//! Sockets of the control plane that no library has: for neighbours' frames, for datagrams with the hops
//! that they may still take, for signed connections. Few packets, none on the way of traffic.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use libc::{c_int, sock_filter, sock_fprog, sockaddr_ll, socklen_t};
use socket2::SockAddr;

use super::datagram::{Ancillary, address};
use super::options::{set_struct, switch_on};
use super::packet::{bind_for, interface_number, is_for_us, open};

/// Whose frames they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Neighbors {
    /// Of IPv4: ARP.
    Arp,
    /// Of IPv6: neighbour solicitations and advertisements.
    Ndp,
}

/// A socket for neighbours' frames of an interface, those that ask for stations and those that name them:
/// [`receive_frame`] has them, and what is written to it is sent, a frame each time. Needs CAP_NET_RAW.
pub fn neighbors(interface: &str, which: Neighbors) -> io::Result<OwnedFd> {
    let socket = open()?;
    if which == Neighbors::Ndp {
        set_filter(&socket, &mut NDP.clone())?;
    }
    let protocol = match which {
        Neighbors::Arp => libc::ETH_P_ARP,
        Neighbors::Ndp => libc::ETH_P_IPV6,
    };
    bind_for(&socket, interface_number(interface)?, protocol)?;
    Ok(socket)
}

/// The next frame for this station or for all; [`io::ErrorKind::WouldBlock`] when there is none.
pub fn receive_frame(socket: impl AsFd, frame: &mut [u8]) -> io::Result<usize> {
    let fd = socket.as_fd().as_raw_fd();
    loop {
        // SAFETY: an address is plain integers, for which zeros are values.
        let mut from: sockaddr_ll = unsafe { std::mem::zeroed() };
        let mut length = size_of::<sockaddr_ll>() as socklen_t;
        let pointer: *mut sockaddr_ll = &raw mut from;
        let (bytes, room) = (frame.as_mut_ptr().cast(), frame.len());
        // SAFETY: the kernel writes `room` bytes at most into `frame`, and an address into `from`.
        let count = unsafe { libc::recvfrom(fd, bytes, room, 0, pointer.cast(), &raw mut length) };
        if count < 0 {
            return Err(io::Error::last_os_error());
        }
        if is_for_us(from.sll_pkttype) {
            return Ok(count as usize);
        }
    }
}

const fn step(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt, jf, k }
}

const LOAD: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
const EQUALS: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

/// ICMPv6 of types 135 and 136, straight behind the header of IPv6, as RFC 4861 has them.
const NDP: [sock_filter; 7] = [
    step(LOAD, 0, 0, 14 + 6),
    step(EQUALS, 0, 4, 58),
    step(LOAD, 0, 0, 14 + 40),
    step(EQUALS, 1, 0, 135),
    step(EQUALS, 0, 1, 136),
    step(RETURN, 0, 0, 0xffff),
    step(RETURN, 0, 0, 0),
];

fn set_filter(socket: &OwnedFd, program: &mut [sock_filter]) -> io::Result<()> {
    let len =
        u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let program = sock_fprog { len, filter: program.as_mut_ptr() };
    set_struct(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

/// A datagram with what its header said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// Bytes of it.
    pub length: usize,
    /// Who has sent it.
    pub from: SocketAddr,
    /// Whom it was for, if the socket asks ([`tell_hops`]).
    pub to: Option<IpAddr>,
    /// Hops that it could still have taken; likewise.
    pub hops: Option<u8>,
    /// Number of the interface that it came by; likewise.
    pub interface: Option<u32>,
}

/// Has [`receive_told`] say of each datagram whom it was for, where it came in, and its hops.
pub fn tell_hops(socket: impl AsFd, ipv6: bool) -> io::Result<()> {
    let socket = socket.as_fd();
    if ipv6 {
        switch_on(socket, libc::SOL_IPV6, libc::IPV6_RECVPKTINFO)?;
        switch_on(socket, libc::SOL_IPV6, libc::IPV6_RECVHOPLIMIT)
    } else {
        switch_on(socket, libc::SOL_IP, libc::IP_PKTINFO)?;
        switch_on(socket, libc::SOL_IP, libc::IP_RECVTTL)
    }
}

/// Takes the next datagram of a socket that does not block.
pub fn receive_told(socket: impl AsFd, bytes: &mut [u8]) -> io::Result<Told> {
    // Aligned as the kernel writes its messages.
    let mut control = [0_u64; 16];
    let mut slice = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: zero is a valid value for a message header: null pointers and lengths of zero.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut slice;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control);
    let mut name = [0_u8; size_of::<libc::sockaddr_in6>()];
    header.msg_name = name.as_mut_ptr().cast();
    header.msg_namelen = name.len() as u32;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: every pointer of the header is to memory of this function, or of `bytes`, with its length.
    let count = unsafe { libc::recvmsg(fd, &raw mut header, libc::MSG_DONTWAIT) };
    if count < 0 {
        return Err(io::Error::last_os_error());
    }
    let odd = || io::Error::from(io::ErrorKind::InvalidData);
    let from = address(&name[..header.msg_namelen as usize]).ok_or_else(odd)?;
    let mut told = Told { length: count as usize, from, to: None, hops: None, interface: None };
    let written = header.msg_controllen.min(size_of_val(&control));
    let control: Vec<u8> = control.iter().flat_map(|word| word.to_ne_bytes()).collect();
    for (level, kind, data) in Ancillary(&control[..written]) {
        let word = |at: usize| {
            let bytes = data.get(at..at + 4)?.first_chunk()?;
            Some(u32::from_ne_bytes(*bytes))
        };
        match (level, kind) {
            (libc::SOL_IP, libc::IP_TTL) | (libc::SOL_IPV6, libc::IPV6_HOPLIMIT) => {
                told.hops = word(0).and_then(|hops| u8::try_from(hops).ok());
            }
            // The interface, the address that it came to, that of its header.
            (libc::SOL_IP, libc::IP_PKTINFO) => {
                told.interface = word(0);
                told.to =
                    data.get(8..12).and_then(|it| Some(IpAddr::from(*it.first_chunk::<4>()?)));
            }
            (libc::SOL_IPV6, libc::IPV6_PKTINFO) => {
                told.to =
                    data.get(..16).and_then(|it| Some(IpAddr::from(*it.first_chunk::<16>()?)));
                told.interface = word(16);
            }
            _ => {}
        }
    }
    Ok(told)
}

/// Has segments to and from `peer` signed with a key (RFC 2385, TCP_MD5SIG): before connecting, or on a
/// listening socket; with an empty key no longer. Fails with [`io::ErrorKind::InvalidInput`] when the key is
/// longer than 80 bytes.
pub fn sign(socket: impl AsFd, peer: IpAddr, key: &[u8]) -> io::Result<()> {
    /// `struct tcp_md5sig` of linux/tcp.h.
    #[repr(C)]
    struct Signature {
        peer: [u8; 128],
        flags: u8,
        prefix: u8,
        length: u16,
        interface: c_int,
        key: [u8; 80],
    }
    let mut signature =
        Signature { peer: [0; 128], flags: 0, prefix: 0, length: 0, interface: 0, key: [0; 80] };
    if key.len() > signature.key.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let name = SockAddr::from(SocketAddr::new(peer, 0));
    let length = name.len() as usize;
    // SAFETY: the address is `length` bytes long, plain, and outlives the slice.
    let bytes = unsafe { std::slice::from_raw_parts(name.as_ptr().cast::<u8>(), length) };
    signature.peer[..length].copy_from_slice(bytes);
    signature.length = key.len() as u16;
    signature.key[..key.len()].copy_from_slice(key);
    set_struct(socket, libc::IPPROTO_TCP, libc::TCP_MD5SIG, &signature)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn a_datagram_comes_with_what_its_header_said() {
        for (here, v6) in [("127.0.0.1:0", false), ("[::1]:0", true)] {
            let receiver = UdpSocket::bind(here).unwrap();
            receiver.set_nonblocking(true).unwrap();
            tell_hops(&receiver, v6).unwrap();
            let sender = socket2::Socket::from(UdpSocket::bind(here).unwrap());
            match v6 {
                false => sender.set_ttl_v4(255).unwrap(),
                true => sender.set_unicast_hops_v6(255).unwrap(),
            }
            let none = receive_told(&receiver, &mut [0; 8]).unwrap_err();
            assert_eq!(none.kind(), io::ErrorKind::WouldBlock);
            let to = receiver.local_addr().unwrap();
            sender.send_to(b"hello", &to.into()).unwrap();
            let mut bytes = [0; 64];
            let told = receive_told(&receiver, &mut bytes).unwrap();
            assert_eq!(&bytes[..told.length], b"hello");
            assert_eq!(Some(told.from), sender.local_addr().unwrap().as_socket());
            assert_eq!((told.to, told.hops), (Some(to.ip()), Some(255)));
            assert!(told.interface.is_some_and(|number| number > 0));
        }
    }

    #[test]
    fn keys_have_a_length() {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let socket = socket.unwrap();
        let peer = IpAddr::from([127, 0, 0, 1]);
        let refused = sign(&socket, peer, &[1; 81]).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
        sign(&socket, peer, b"secret").unwrap();
        sign(&socket, peer, b"").unwrap();
        assert!(sign(&socket, peer, b"").is_err(), "there is none any more");
    }
}
