//! Packet sockets (packet(7)): frames of an interface, in rings that are shared with the kernel.
//!
//! TPACKET_V2: a slot belongs to the kernel or to us, as its status says. Frames larger than a slot
//! (the kernel joins segments) wait in the socket's queue instead, whole, and their slot says so.
//! Super-packets are sent by a socket of their own, without a ring; the kernel or the card cuts them.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use fairway_core::packet::{BURST, Frame, TransportChecksum, VlanTag};
use libc::{c_int, sock_filter, sock_fprog, sockaddr_ll, socklen_t, tpacket_req, tpacket2_hdr};

use super::memory::Mapping;
use super::offloads::{OFFLOADS, Offloads};
use super::options::set_struct;

/// Room before a frame for the headers of a tunnel.
pub(crate) const HEADROOM: usize = 128;
/// A slot's frame starts here at the earliest: header, address, alignment, offloads, headroom.
const OVERHEAD: usize = 80 + OFFLOADS + HEADROOM;
/// Bytes that the kernel takes at a time for a ring.
const BLOCK: usize = 1 << 18;
/// Slots of a ring.
const SLOTS: usize = 1024;
/// Of one for jumbo frames.
const FEWEST: usize = 512;
/// Where a frame starts in a slot that is to be sent.
const SEND_AT: usize = libc::TPACKET2_HDRLEN - size_of::<sockaddr_ll>();
/// Where the address stands that goes with a received frame.
const ADDRESS_AT: usize =
    libc::TPACKET_ALIGNMENT * size_of::<tpacket2_hdr>().div_ceil(libc::TPACKET_ALIGNMENT);
/// Bytes of the two stations before a tag.
const STATIONS: usize = 12;
/// Largest frame that the kernel joins of others.
const LARGEST: usize = 1 << 17;
/// Bytes of frames on their way, in the socket's accounts.
const QUEUE: c_int = 8 << 20;

/// A frame that the kernel has joined of several, or that is larger than a slot.
pub(crate) struct Large<'r> {
    pub(crate) frame: &'r mut [u8],
    pub(crate) offloads: Offloads,
    pub(crate) tag: Option<VlanTag>,
}

/// What a taken burst is followed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    /// Nothing: the ring is empty.
    Nothing,
    /// More frames.
    More,
    /// A large frame: [`Receiver::large`] has it.
    Large,
}

/// A socket that receives an interface's frames.
pub(crate) struct Receiver {
    slots: Slots,
    socket: OwnedFd,
    /// Slots of the last burst, not given back yet.
    taken: usize,
    large: Box<[u8]>,
    /// Frames that were cut short as neither slot nor queue had room.
    pub(crate) cut: u64,
    /// The frames that are this process's, by when they came.
    span: Span,
}

/// From when to when frames are ours: nanoseconds since 1970, by the clock that the kernel stamps them by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    /// Those before are another process's, and passed over.
    pub(crate) from: u64,
    /// From then on they are, and stay where they are.
    pub(crate) until: u64,
}

impl Span {
    /// All.
    pub(crate) const EVER: Self = Self { from: 0, until: u64::MAX };
    /// None: they are passed over.
    pub(crate) const NEVER: Self = Self { from: u64::MAX, until: u64::MAX };

    fn of(header: &tpacket2_hdr) -> u64 {
        u64::from(header.tp_sec) * 1_000_000_000 + u64::from(header.tp_nsec)
    }
}

/// A socket that sends frames.
pub(crate) struct Sender {
    slots: Slots,
    socket: OwnedFd,
    /// For super-packets.
    large: OwnedFd,
    /// Frames since the kernel was told last.
    pub(crate) queued: usize,
    /// The kernel could not send all that it was told of.
    pub(crate) again: bool,
    /// The kernel has refused a super-packet: all are cut.
    pub(crate) cuts: bool,
}

/// A ring of slots.
struct Slots {
    memory: Mapping,
    /// Bytes of a slot.
    size: usize,
    count: usize,
    at: usize,
}

/// Sockets among which an interface's frames are divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Group(u16);

fn failed() -> io::Error {
    io::Error::last_os_error()
}

fn get<T>(socket: &OwnedFd, level: c_int, option: c_int, mut value: T) -> io::Result<T> {
    let mut length = size_of::<T>() as socklen_t;
    let pointer: *mut T = &raw mut value;
    let fd = socket.as_raw_fd();
    // SAFETY: the kernel writes `length` bytes at most, into `value`, whose types are all integers.
    match unsafe { libc::getsockopt(fd, level, option, pointer.cast(), &raw mut length) } {
        0 => Ok(value),
        _ => Err(failed()),
    }
}

pub(super) fn option(socket: &OwnedFd, option: c_int, value: c_int) -> io::Result<()> {
    set_struct(socket, libc::SOL_PACKET, option, &value)
}

pub(super) fn open() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no memory is involved. Protocol 0: nothing comes before it is bound.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if fd < 0 {
        return Err(failed());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Binds to an interface: for its frames, or to send alone.
pub(super) fn bind(socket: &OwnedFd, interface: u32, receives: bool) -> io::Result<()> {
    bind_for(socket, interface, if receives { libc::ETH_P_ALL } else { 0 })
}

/// Binds to an interface for frames of one protocol; for none with 0.
pub(super) fn bind_for(socket: &OwnedFd, interface: u32, protocol: c_int) -> io::Result<()> {
    // SAFETY: an address is plain integers, for which zeros are values.
    let mut address: sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (protocol as u16).to_be();
    address.sll_ifindex = interface as c_int;
    let length = size_of::<sockaddr_ll>() as socklen_t;
    let pointer: *const sockaddr_ll = &raw const address;
    // SAFETY: the kernel reads `length` bytes of `address`.
    match unsafe { libc::bind(socket.as_raw_fd(), pointer.cast(), length) } {
        0 => Ok(()),
        _ => Err(failed()),
    }
}

/// The number of an interface.
pub(crate) fn interface_number(name: &str) -> io::Result<u32> {
    let name = std::ffi::CString::new(name)?;
    // SAFETY: a string that ends with a zero, and lives until this returns.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(failed()),
        number => Ok(number),
    }
}

/// A socket that sends frames by an interface, and gets none.
pub(crate) fn packet_sender(interface: &str) -> io::Result<OwnedFd> {
    let socket = open()?;
    bind(&socket, interface_number(interface)?, false)?;
    Ok(socket)
}

impl Slots {
    /// A ring for frames of up to `frame` bytes, with `overhead` before each.
    fn map(socket: &OwnedFd, option: c_int, overhead: usize, frame: usize) -> io::Result<Self> {
        let size = (frame + overhead).next_power_of_two().max(2048);
        let block = BLOCK.max(size);
        let count = (SLOTS * 2048 / size).max(FEWEST) / (block / size) * (block / size);
        let request = tpacket_req {
            tp_block_size: block as u32,
            tp_block_nr: (count * size / block) as u32,
            tp_frame_size: size as u32,
            tp_frame_nr: count as u32,
        };
        set_struct(socket, libc::SOL_PACKET, option, &request)?;
        let memory = Mapping::new(count * size, Some(socket.as_fd()))?;
        Ok(Self { memory, size, count, at: 0 })
    }

    fn start(&self, index: usize) -> NonNull<u8> {
        self.inside(index, 0)
    }

    /// A place in a slot.
    fn inside(&self, index: usize, offset: usize) -> NonNull<u8> {
        self.memory.at(index * self.size + offset)
    }

    fn status(&self, index: usize) -> &AtomicU32 {
        // SAFETY: a slot begins with its status, aligned, which the kernel and we write atomically.
        unsafe { AtomicU32::from_ptr(self.start(index).cast().as_ptr()) }
    }

    fn step(&mut self, by: usize) {
        self.at = (self.at + by) % self.count;
    }
}

impl Receiver {
    /// Receives frames of up to `frame` bytes from an interface, and a share of them when there is a
    /// group or one is to be made (`divides`).
    pub(crate) fn open(
        interface: u32,
        frame: usize,
        divides: bool,
        group: Option<Group>,
    ) -> io::Result<(Self, Option<Group>)> {
        let socket = open()?;
        let option = |name, value| option(&socket, name, value);
        option(libc::PACKET_VERSION, libc::tpacket_versions::TPACKET_V2 as c_int)?;
        option(libc::PACKET_VNET_HDR, 1)?;
        option(libc::PACKET_RESERVE, HEADROOM as c_int)?;
        option(libc::PACKET_IGNORE_OUTGOING, 1)?;
        option(libc::PACKET_COPY_THRESH, 1)?;
        set_struct(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &QUEUE)?;
        let slots = Slots::map(&socket, libc::PACKET_RX_RING, OVERHEAD, frame)?;
        bind(&socket, interface, true)?;
        let mut joined = group;
        if divides {
            let kind = libc::PACKET_FANOUT_CBPF;
            let word = match group {
                Some(Group(id)) => u32::from(id) | kind << 16,
                None => (kind | libc::PACKET_FANOUT_FLAG_UNIQUEID) << 16,
            };
            set_struct(&socket, libc::SOL_PACKET, libc::PACKET_FANOUT, &word)?;
            let word: u32 = get(&socket, libc::SOL_PACKET, libc::PACKET_FANOUT, 0)?;
            joined = Some(Group(word as u16));
        }
        let large = vec![0; OFFLOADS + LARGEST].into();
        Ok((Self { slots, socket, taken: 0, large, cut: 0, span: Span::EVER }, joined))
    }

    /// Takes these frames alone from now on.
    pub(crate) fn set_span(&mut self, span: Span) {
        self.span = span;
    }

    /// Takes the next frames that were sent to this machine; those not taken up are skipped.
    /// Returns their number, and what follows them.
    pub(crate) fn take<'r>(&'r mut self, frames: &mut [Frame<'r>; BURST]) -> (usize, After) {
        let mut count = 0;
        loop {
            let index = (self.slots.at + self.taken) % self.slots.count;
            let status = self.slots.status(index).load(Ordering::Acquire);
            if status & libc::TP_STATUS_USER == 0 || self.taken == self.slots.count {
                return (count, After::Nothing);
            }
            if count == BURST {
                return (count, After::More);
            }
            let slot = self.slots.start(index);
            // SAFETY: the slot is ours until we give it back, and begins with this header.
            let header: tpacket2_hdr = unsafe { slot.cast().read() };
            let start = usize::from(header.tp_mac);
            let end = start + header.tp_snaplen as usize;
            let came = Span::of(&header);
            if came >= self.span.until {
                return (count, After::Nothing);
            }
            // Whoever it is for, what lies in the queue leaves it with its slot.
            if status & libc::TP_STATUS_COPY != 0 {
                return (count, After::Large);
            }
            if !is_for_us(self.packet_kind(index))
                || end > self.slots.size
                || start < OFFLOADS
                || came < self.span.from
            {
                self.taken += 1;
                continue;
            }
            let offloads = Offloads::of(self.offloads(index, start));
            if offloads.segment().is_some() || header.tp_len > header.tp_snaplen {
                return (count, After::Large);
            }
            let shift = libc::TPACKET2_HDRLEN;
            let behind = self.slots.inside(index, shift);
            let length = self.slots.size - shift;
            // SAFETY: the rest of the slot is ours until we give it back, which the borrow of `self`
            // keeps from happening as long as the frame lives; no two frames share a slot.
            let room = unsafe { std::slice::from_raw_parts_mut(behind.as_ptr(), length) };
            let mut frame = Frame::new(room, start - shift, end - shift);
            frame.tag = tag_of(&header);
            if offloads.is_partial() {
                frame.checksum = TransportChecksum::Partial;
            }
            frames[count] = frame;
            count += 1;
            self.taken += 1;
        }
    }

    /// Gives the slots of the last burst back to the kernel.
    pub(crate) fn give_back(&mut self) {
        for n in 0..self.taken {
            let index = (self.slots.at + n) % self.slots.count;
            self.slots.status(index).store(libc::TP_STATUS_KERNEL, Ordering::Release);
        }
        self.slots.step(self.taken);
        self.taken = 0;
    }

    /// The large frame that [`Receiver::take`] came to; none when it was for others, or was cut
    /// short. The frames before it were given back.
    pub(crate) fn large(&mut self) -> Option<Large<'_>> {
        let index = self.slots.at;
        let status = self.slots.status(index).load(Ordering::Acquire);
        if status & libc::TP_STATUS_USER == 0 {
            return None;
        }
        let slot = self.slots.start(index);
        // SAFETY: the slot is ours until we give it back, and begins with this header.
        let header: tpacket2_hdr = unsafe { slot.cast().read() };
        let for_us = is_for_us(self.packet_kind(index)) && Span::of(&header) >= self.span.from;
        let start = usize::from(header.tp_mac);
        let length = header.tp_snaplen as usize;
        let whole = header.tp_len == header.tp_snaplen;
        let received = if status & libc::TP_STATUS_COPY != 0 {
            // Whoever it is for, it leaves the queue with its slot.
            let flags = rustix::net::RecvFlags::DONTWAIT;
            // An error of the interface comes instead of the frame, which is still there then.
            (0..3).find_map(|_| {
                let received = rustix::net::recv(&self.socket, &mut self.large[..], flags);
                received.ok().map(|(n, _)| n)
            })
        } else if whole && start >= OFFLOADS && start + length <= self.slots.size {
            let from = self.slots.inside(index, start - OFFLOADS);
            // SAFETY: these bytes lie in the slot, which is ours until we give it back.
            let bytes = unsafe { std::slice::from_raw_parts(from.as_ptr(), OFFLOADS + length) };
            self.large[..bytes.len()].copy_from_slice(bytes);
            Some(bytes.len())
        } else {
            None
        };
        self.slots.status(index).store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.slots.step(1);
        let Some(received) = received.filter(|received| *received > OFFLOADS) else {
            self.cut += 1;
            return None;
        };
        let (offloads, frame) = self.large[..received].split_first_chunk_mut::<OFFLOADS>()?;
        let offloads = Offloads::of(*offloads);
        for_us.then_some(Large { frame, offloads, tag: tag_of(&header) })
    }

    /// What the kernel says of the frame in a slot: to whom it was sent.
    fn packet_kind(&self, index: usize) -> u8 {
        let address = self.slots.inside(index, ADDRESS_AT);
        // SAFETY: the address stands behind the header of each slot that is ours.
        unsafe { address.cast::<sockaddr_ll>().read() }.sll_pkttype
    }

    /// What stands before the frame of a slot, which starts at `start`.
    fn offloads(&self, index: usize, start: usize) -> [u8; OFFLOADS] {
        let place = self.slots.inside(index, start - OFFLOADS);
        // SAFETY: the bytes lie in a slot that is ours, and are plain.
        unsafe { place.cast::<[u8; OFFLOADS]>().read() }
    }

    /// Frames that the kernel had no room for, since this was asked last.
    pub(crate) fn lost(&self) -> u64 {
        let none = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let stats = get(&self.socket, libc::SOL_PACKET, libc::PACKET_STATISTICS, none);
        stats.map_or(0, |stats| stats.tp_drops.into())
    }

    /// Takes note of an error of the socket, such as that the interface is down; else it stays
    /// ready for ever.
    pub(crate) fn clear_error(&self) {
        let _: io::Result<c_int> = get(&self.socket, libc::SOL_SOCKET, libc::SO_ERROR, 0);
    }

    /// A second owner, by which frames are divided.
    pub(crate) fn divider(&self) -> io::Result<Divider> {
        self.socket.try_clone().map(Divider)
    }
}

impl AsFd for Receiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Says which worker gets a frame.
pub(crate) struct Divider(OwnedFd);

impl Divider {
    /// Has `program` divide the frames of the group: it returns the number of a socket, in the order
    /// in which they joined.
    pub(crate) fn set_program(&self, program: &mut [sock_filter]) -> io::Result<()> {
        let length =
            u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        let program = sock_fprog { len: length, filter: program.as_mut_ptr() };
        set_struct(&self.0, libc::SOL_PACKET, libc::PACKET_FANOUT_DATA, &program)
    }

    /// Has the interface take in the frames of every group of receivers (multicast).
    pub(crate) fn hear_groups(&self, interface: u32) -> io::Result<()> {
        #[repr(C)]
        struct Membership {
            interface: c_int,
            kind: u16,
            length: u16,
            address: [u8; 8],
        }
        let membership = Membership {
            interface: interface as c_int,
            kind: libc::PACKET_MR_ALLMULTI as u16,
            length: 0,
            address: [0; 8],
        };
        set_struct(&self.0, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &membership)
    }
}

impl Sender {
    /// Sends frames of up to `frame` bytes out of an interface.
    pub(crate) fn open(interface: u32, frame: usize) -> io::Result<Self> {
        let socket = open()?;
        let option = |name, value| option(&socket, name, value);
        option(libc::PACKET_VERSION, libc::tpacket_versions::TPACKET_V2 as c_int)?;
        // A frame that the kernel refuses does not hold up those behind it.
        option(libc::PACKET_LOSS, 1)?;
        set_struct(&socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &QUEUE)?;
        let slots = Slots::map(&socket, libc::PACKET_TX_RING, SEND_AT, frame + VlanTag::LENGTH)?;
        bind(&socket, interface, false)?;
        let large = open()?;
        self::option(&large, libc::PACKET_VNET_HDR, 1)?;
        set_struct(&large, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &QUEUE)?;
        bind(&large, interface, false)?;
        Ok(Self { slots, socket, large, queued: 0, again: false, cuts: false })
    }

    /// Whether the kernel should be told soon.
    pub(crate) fn is_filling(&self) -> bool {
        self.queued * 2 >= self.slots.count
    }

    /// Puts a frame into the ring, with its tag; false when the ring is full, or the frame is too
    /// large for it. It leaves when the kernel is told.
    pub(crate) fn put(&mut self, frame: &[u8], tag: Option<VlanTag>) -> bool {
        let length = frame.len() + if tag.is_some() { VlanTag::LENGTH } else { 0 };
        let index = self.slots.at;
        let status = self.slots.status(index).load(Ordering::Acquire);
        let Some((stations, rest)) = frame.split_first_chunk::<STATIONS>() else { return false };
        if status != libc::TP_STATUS_AVAILABLE || length > self.slots.size - SEND_AT {
            return false;
        }
        let place = self.slots.inside(index, SEND_AT);
        // SAFETY: an available slot is ours, and has room for the frame behind its header.
        let out = unsafe { std::slice::from_raw_parts_mut(place.as_ptr(), length) };
        write_tagged(out, stations, rest, tag);
        let header: *mut tpacket2_hdr = self.slots.start(index).cast().as_ptr();
        // SAFETY: as above; the header is at the start of the slot.
        unsafe { (*header).tp_len = length as u32 };
        self.slots.status(index).store(libc::TP_STATUS_SEND_REQUEST, Ordering::Release);
        self.slots.step(1);
        self.queued += 1;
        true
    }

    /// Whether frames are left in the ring that the kernel was told of: its queue had no room.
    pub(crate) fn is_behind(&self) -> bool {
        let last = (self.slots.at + self.slots.count - 1) % self.slots.count;
        self.slots.status(last).load(Ordering::Acquire) & libc::TP_STATUS_SEND_REQUEST != 0
    }

    /// Sends a super-packet with its tag; the offloads are those with which it came. Overtakes what is left
    /// in the ring. Costs a system call and a copy.
    pub(crate) fn send_large(
        &self,
        frame: &[u8],
        offloads: Offloads,
        tag: Option<VlanTag>,
    ) -> io::Result<()> {
        let bytes = tag.map(VlanTag::bytes);
        let tag: &[u8] = bytes.as_ref().map_or(&[], |bytes| bytes);
        let offloads = offloads.to_send(frame, tag.len());
        let parts = offloads.as_ref().zip(frame.split_first_chunk::<STATIONS>());
        let Some((offloads, (stations, rest))) = parts else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let parts = [&offloads[..], stations, tag, rest].map(IoSlice::new);
        Ok(rustix::io::writev(&self.large, &parts).map(drop)?)
    }
}

impl AsFd for Sender {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Writes a frame, in two parts, with the tag between them.
fn write_tagged(out: &mut [u8], stations: &[u8; STATIONS], rest: &[u8], tag: Option<VlanTag>) {
    let (head, body) = out.split_at_mut(STATIONS);
    head.copy_from_slice(stations);
    match tag {
        None => body.copy_from_slice(rest),
        Some(tag) => {
            let (place, body) = body.split_at_mut(VlanTag::LENGTH);
            place.copy_from_slice(&tag.bytes());
            body.copy_from_slice(rest);
        }
    }
}

pub(super) fn is_for_us(kind: u8) -> bool {
    // PACKET_HOST, PACKET_BROADCAST, PACKET_MULTICAST; not those of other stations, nor our own.
    kind <= libc::PACKET_MULTICAST
}

fn tag_of(header: &tpacket2_hdr) -> Option<VlanTag> {
    let tagged = header.tp_status & libc::TP_STATUS_VLAN_VALID != 0;
    tagged.then_some(VlanTag(header.tp_vlan_tci))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_stands_behind_the_stations() {
        let (stations, rest) = ([1; STATIONS], [8, 0, 69]);
        let mut out = [0; STATIONS + 3];
        write_tagged(&mut out, &stations, &rest, None);
        assert_eq!(out[STATIONS..], rest);
        let mut out = [0; STATIONS + VlanTag::LENGTH + 3];
        write_tagged(&mut out, &stations, &rest, Some(VlanTag(0x600a)));
        assert_eq!(out[..STATIONS], stations);
        assert_eq!(out[STATIONS..], [0x81, 0, 0x60, 10, 8, 0, 69]);
    }
}
