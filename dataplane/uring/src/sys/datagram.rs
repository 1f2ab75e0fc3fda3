//! Datagrams in and out of the ring: how the kernel lays out what it received, and the messages
//! that must stay in place until they are sent.

use std::net::SocketAddr;

use socket2::SockAddr;

use super::buffers::{Buffers, Chunk};

/// Largest payload, and what the kernel writes before it.
pub(super) const BUFFER_BYTES: u32 = 66 << 10;
/// Room for one ancillary message of each kind that we ask for.
const CONTROL_BYTES: usize = 128;

/// Where a datagram came from and what lies in its chunk.
#[derive(Debug)]
pub(crate) struct Datagram {
    /// The payload: one datagram, or several of `segment` bytes each.
    pub(crate) chunk: Chunk,
    /// The sender.
    pub(crate) from: Option<SocketAddr>,
    /// Whom the sender addressed, on sockets that ask for it.
    pub(crate) to: Option<SocketAddr>,
    /// Size of each of several datagrams that the kernel has joined (UDP_GRO); the last may be
    /// shorter.
    pub(crate) segment: Option<u16>,
    /// It was longer than the buffer.
    pub(crate) truncated: bool,
}

/// A datagram to be sent, and whose it is.
#[derive(Debug)]
pub(crate) struct Parcel {
    /// The payload.
    pub(crate) chunk: Chunk,
    /// The receiver, on sockets that are not connected.
    pub(crate) to: Option<SocketAddr>,
    /// As [`Datagram::segment`]; the kernel takes them apart (UDP_SEGMENT).
    pub(crate) segment: Option<u16>,
    /// Index and generation of the session.
    pub(crate) session: (u32, u32),
}

/// The message header of receives: it says how much room sender and ancillary data have.
pub(super) struct Shape(Box<libc::msghdr>);

impl Shape {
    pub(super) fn new() -> Self {
        // SAFETY: zero is a valid value for a message header: null pointers and lengths of zero.
        let mut header: Box<libc::msghdr> = Box::new(unsafe { std::mem::zeroed() });
        header.msg_namelen = size_of::<libc::sockaddr_in6>() as u32;
        header.msg_controllen = CONTROL_BYTES;
        Self(header)
    }

    pub(super) fn as_ptr(&self) -> *const libc::msghdr {
        &raw const *self.0
    }

    /// Takes apart what the kernel put into `chunk`; none when it is no message.
    pub(super) fn open(&self, buffers: &Buffers, mut chunk: Chunk) -> Result<Datagram, Chunk> {
        let (start, len) = buffers.bytes(&chunk);
        // SAFETY: the chunk's bytes are mapped and filled, and stay so while it is not released.
        let bytes = unsafe { std::slice::from_raw_parts(start, len as usize) };
        let Ok(message) = io_uring::types::RecvMsgOut::parse(bytes, &self.0) else {
            return Err(chunk);
        };
        let payload = message.payload_data();
        let offset = payload.as_ptr() as usize - start as usize;
        let (payload_len, truncated) = (payload.len() as u32, message.is_payload_truncated());
        let from = address(message.name_data());
        let (mut to, mut segment) = (None, None);
        for (level, kind, data) in Ancillary(message.control_data()) {
            match (level, kind) {
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    let size = data.first_chunk().map(|size| i32::from_ne_bytes(*size));
                    segment = size.and_then(|size| u16::try_from(size).ok()).filter(|n| *n > 0);
                }
                (libc::SOL_IP, libc::IP_ORIGDSTADDR) | (libc::SOL_IPV6, libc::IPV6_ORIGDSTADDR) => {
                    to = address(data)
                }
                _ => {}
            }
        }
        chunk.narrow(offset as u32, payload_len);
        let segment = segment.filter(|size| u32::from(*size) < payload_len);
        Ok(Datagram { chunk, from, to, segment, truncated })
    }
}

/// Reads a socket address as the kernel writes it.
pub(super) fn address(bytes: &[u8]) -> Option<SocketAddr> {
    let port = |bytes: &[u8]| Some(u16::from_be_bytes(*bytes.get(2..4)?.first_chunk()?));
    let family = i32::from(u16::from_ne_bytes(*bytes.first_chunk()?));
    match family {
        libc::AF_INET => {
            let ip: [u8; 4] = *bytes.get(4..8)?.first_chunk()?;
            Some((ip, port(bytes)?).into())
        }
        libc::AF_INET6 => {
            let ip: [u8; 16] = *bytes.get(8..24)?.first_chunk()?;
            let scope = u32::from_ne_bytes(*bytes.get(24..28)?.first_chunk()?);
            let addr = std::net::SocketAddrV6::new(ip.into(), port(bytes)?, 0, scope);
            Some(addr.into())
        }
        _ => None,
    }
}

/// The ancillary messages in a control buffer: level, type, data.
pub(super) struct Ancillary<'a>(pub(super) &'a [u8]);

/// Length, level and type.
const HEAD: usize = size_of::<libc::cmsghdr>();

impl<'a> Iterator for Ancillary<'a> {
    type Item = (i32, i32, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let head = self.0.get(..HEAD)?;
        let len = usize::from_ne_bytes(*head.first_chunk()?);
        let level = i32::from_ne_bytes(*head.get(8..12)?.first_chunk()?);
        let kind = i32::from_ne_bytes(*head.get(12..16)?.first_chunk()?);
        let data = self.0.get(HEAD..len)?;
        self.0 = self.0.get(len.next_multiple_of(size_of::<usize>())..).unwrap_or_default();
        Some((level, kind, data))
    }
}

/// A message that is being sent. The kernel reads it until its completion: it does not move.
struct Message {
    header: libc::msghdr,
    bytes: libc::iovec,
    name: SockAddr,
    control: [u64; 4],
    parcel: Option<Parcel>,
}

/// The messages that are being sent.
#[derive(Default)]
#[expect(clippy::vec_box, reason = "the kernel holds their addresses while the list grows")]
pub(super) struct Outbox {
    messages: Vec<Box<Message>>,
    free: Vec<u32>,
}

impl Outbox {
    /// Puts `parcel` in place; returns its number and the header to be sent.
    pub(super) fn put(&mut self, buffers: &Buffers, parcel: Parcel) -> (u32, *const libc::msghdr) {
        let index = self.free.pop().unwrap_or_else(|| {
            self.messages.push(Box::new(Message::empty()));
            self.messages.len() as u32 - 1
        });
        let message = &mut self.messages[index as usize];
        message.fill(buffers, parcel);
        (index, &raw const message.header)
    }

    /// Takes the parcel back once it is sent.
    pub(super) fn take(&mut self, index: u32) -> Option<Parcel> {
        let parcel = self.messages.get_mut(index as usize)?.parcel.take()?;
        self.free.push(index);
        Some(parcel)
    }
}

impl Message {
    fn empty() -> Self {
        Self {
            // SAFETY: zero is a valid value for a message header.
            header: unsafe { std::mem::zeroed() },
            bytes: libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 },
            name: SockAddr::from(SocketAddr::from(([0; 4], 0))),
            control: [0; 4],
            parcel: None,
        }
    }

    fn fill(&mut self, buffers: &Buffers, parcel: Parcel) {
        let (start, len) = buffers.bytes(&parcel.chunk);
        self.bytes = libc::iovec { iov_base: start.cast_mut().cast(), iov_len: len as usize };
        self.header.msg_iov = &raw mut self.bytes;
        self.header.msg_iovlen = 1;
        self.header.msg_name = std::ptr::null_mut();
        self.header.msg_namelen = 0;
        if let Some(to) = parcel.to {
            self.name = to.into();
            self.header.msg_name = self.name.as_ptr().cast_mut().cast();
            self.header.msg_namelen = self.name.len();
        }
        self.header.msg_control = std::ptr::null_mut();
        self.header.msg_controllen = 0;
        if let Some(segment) = parcel.segment {
            // A length of 18 bytes, level and type in one word, and the size: see cmsg(3).
            let kind = (libc::UDP_SEGMENT as u64) << 32 | libc::SOL_UDP as u64;
            self.control = [(HEAD + size_of::<u16>()) as u64, kind, u64::from(segment), 0];
            self.header.msg_control = self.control.as_mut_ptr().cast();
            self.header.msg_controllen = HEAD + size_of::<u64>();
        }
        self.parcel = Some(parcel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_the_kernel_writes_them() {
        for text in ["192.0.2.7:53", "[2001:db8::7]:5353"] {
            let want: SocketAddr = text.parse().unwrap();
            let written = SockAddr::from(want);
            // SAFETY: the address has `len` initialised bytes.
            let bytes = unsafe {
                std::slice::from_raw_parts(written.as_ptr().cast::<u8>(), written.len() as usize)
            };
            assert_eq!(address(bytes), Some(want));
            for cut in 0..bytes.len().min(8) {
                assert_eq!(address(&bytes[..cut]), None, "{cut} bytes of {text}");
            }
        }
        assert_eq!(address(&[9; 28]), None, "another family");
    }

    #[test]
    fn ancillary_data_ends_where_it_is_cut() {
        let mut bytes = Vec::new();
        for (kind, data) in [(1i32, 7i32), (2, 8)] {
            bytes.extend_from_slice(&(HEAD + 4).to_ne_bytes());
            bytes.extend_from_slice(&17i32.to_ne_bytes());
            bytes.extend_from_slice(&kind.to_ne_bytes());
            bytes.extend_from_slice(&data.to_ne_bytes());
            bytes.extend_from_slice(&[0; 4]);
        }
        fn read(bytes: &[u8]) -> Vec<(i32, i32)> {
            Ancillary(bytes).map(|(level, kind, _)| (level, kind)).collect()
        }
        assert_eq!(read(&bytes), [(17, 1), (17, 2)]);
        assert_eq!(read(&bytes[..30]), [(17, 1)]);
        assert_eq!(read(&bytes[..10]), []);
        let mut endless = bytes.clone();
        endless[..8].copy_from_slice(&u64::MAX.to_ne_bytes());
        assert_eq!(read(&endless), [], "a length that is no length");
        endless[..8].copy_from_slice(&0u64.to_ne_bytes());
        assert_eq!(read(&endless), [], "shorter than its own head");
    }
}
