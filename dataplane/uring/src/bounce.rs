//! Frames from one interface to another with other stations on them, and nothing else: what a packet
//! path costs at least, for measurements beside ours.

use std::io;
use std::os::fd::AsFd;

use fairway_core::packet::{BURST, Frame, Mac};

use crate::sys::{After, Features, Messages, Receiver, Ring, Sender, interface_number};

/// One side: the interface, our station there, and the station that everything goes to.
#[derive(Debug, Clone)]
pub struct Side {
    /// Name of the interface.
    pub interface: String,
    /// Our station.
    pub own: Mac,
    /// The other one.
    pub peer: Mac,
}

/// Bytes of a frame.
const FRAME: usize = 1522;

fn readdress(frame: &mut [u8], to: &Side) {
    if let Some(stations) = frame.first_chunk_mut::<12>() {
        stations[..6].copy_from_slice(&to.peer);
        stations[6..].copy_from_slice(&to.own);
    }
    // A sender on this machine has left its checksum to the port: none is right, too.
    if let Some(checksum) = frame.get_mut(40..42) {
        checksum.fill(0);
    }
}

/// Frames that are UDP in IPv4; the rest is left to the kernel.
fn is_ours(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[8, 0]) && frame.get(23) == Some(&17)
}

/// Bounces by rings that are shared with the kernel, with io_uring for readiness and sending.
pub fn by_rings(sides: &[Side; 2]) -> io::Result<()> {
    let features = Features { multishot_accept: false, capped_receive: false, splice: false };
    let mut ring = Ring::new(8, 4096, features).map_err(io::Error::other)?;
    let mut ports = Vec::new();
    for side in sides {
        let number = interface_number(&side.interface)?;
        let (receiver, _) = Receiver::open(number, FRAME, false, None)?;
        ports.push((receiver, Sender::open(number, FRAME)?));
    }
    let (mut completions, mut polled) = (Vec::new(), [false; 2]);
    loop {
        for (n, (receiver, _)) in ports.iter().enumerate() {
            if !std::mem::replace(&mut polled[n], true) {
                ring.poll(receiver.as_fd(), libc::POLLIN, n as u64);
            }
        }
        ring.wait(None)?;
        ring.completions(&mut completions);
        for completion in completions.drain(..) {
            if let Some(polled) = polled.get_mut(completion.token as usize) {
                *polled = false;
            }
        }
        for n in 0..2 {
            let (first, second) = ports.split_at_mut(1);
            let (from, to) = if n == 0 {
                (&mut first[0], &mut second[0])
            } else {
                (&mut second[0], &mut first[0])
            };
            loop {
                let mut frames: [Frame<'_>; BURST] = std::array::from_fn(|_| Frame::empty());
                let (count, after) = from.0.take(&mut frames);
                for frame in frames[..count].iter_mut().filter(|frame| is_ours(frame.bytes())) {
                    readdress(frame.bytes_mut(), &sides[1 - n]);
                    let _ = to.1.put(frame.bytes(), None);
                }
                from.0.give_back();
                match after {
                    After::More => {}
                    After::Large => _ = from.0.large(),
                    After::Nothing => break,
                }
            }
            if std::mem::take(&mut to.1.queued) > 0 {
                ring.tell(to.1.as_fd(), 9);
            }
        }
    }
}

/// Bounces by recvmmsg and sendmmsg.
pub fn by_messages(sides: &[Side; 2]) -> io::Result<()> {
    let mut ports = Vec::new();
    for side in sides {
        ports.push(Messages::open(interface_number(&side.interface)?, FRAME)?);
    }
    loop {
        Messages::wait([&ports[0], &ports[1]])?;
        for n in 0..2 {
            let (first, second) = ports.split_at_mut(1);
            let (from, to) =
                if n == 0 { (&mut first[0], &second[0]) } else { (&mut second[0], &first[0]) };
            while from.receive(|frame| {
                let ours = is_ours(frame);
                if ours {
                    readdress(frame, &sides[1 - n]);
                }
                ours
            })? {
                from.send_by(to);
            }
        }
    }
}
