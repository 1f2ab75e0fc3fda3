//! Clients and servers of datagrams.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;

/// Longest burst, in bytes.
const LARGEST: usize = 65_000;
/// When an answer has not come, its client asks again after this.
const LOST: Duration = Duration::from_millis(200);
/// Room in a socket, for bursts of many clients at a time.
const BUFFER: usize = 4 << 20;

/// Answers what comes with the same, for as long as the process lives. Bursts that the kernel hands over
/// whole go back whole.
pub(crate) fn echo(addr: SocketAddr, size: Option<u16>) {
    let socket = UdpSocket::bind(addr).unwrap();
    set_socket_recv_buffer_size_force(&socket, BUFFER).unwrap();
    if let Some(size) = size {
        segments(&socket, size).unwrap();
    }
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..n], from);
        }
    });
}

/// How a client sends several datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Burst {
    /// Each by itself.
    Single(usize),
    /// In one call, for the kernel or a card to divide.
    Segmented(usize),
}

/// Clients, each with a burst of datagrams under way.
pub(crate) struct Datagrams {
    epoll: rustix::fd::OwnedFd,
    clients: Vec<Client>,
    text: Vec<u8>,
    size: usize,
    /// Bytes in a call.
    piece: usize,
}

struct Client {
    socket: UdpSocket,
    /// Bytes of answers that are still to come.
    missing: usize,
    sent: Instant,
}

impl Datagrams {
    pub(crate) fn open(
        vip: SocketAddr,
        clients: usize,
        size: usize,
        burst: Burst,
    ) -> io::Result<Self> {
        let (count, piece) = match burst {
            Burst::Single(count) => (count, size),
            Burst::Segmented(count) => (count, size * count),
        };
        assert!(size * count <= LARGEST);
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut opened = Vec::with_capacity(clients);
        for n in 0..clients {
            let any = if vip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any)?;
            socket.connect(vip)?;
            socket.set_nonblocking(true)?;
            if piece > size {
                segments(&socket, size as u16)?;
            }
            let data = epoll::EventData::new_u64(n as u64);
            epoll::add(&epoll, &socket, data, epoll::EventFlags::IN)?;
            opened.push(Client { socket, missing: 0, sent: Instant::now() });
        }
        let text = (0..size * count).map(|n| n as u8).collect();
        Ok(Self { epoll, clients: opened, text, size, piece })
    }

    /// Works for `length`; returns how many datagrams were answered, and how many were lost.
    pub(crate) fn run(&mut self, length: Duration) -> io::Result<(u64, u64)> {
        let end = Instant::now() + length;
        let (mut answered, mut lost) = (0_u64, 0_u64);
        let mut events = Vec::with_capacity(512);
        let mut buffer = vec![0; 1 << 16];
        let mut look = Instant::now();
        for client in &mut self.clients {
            client.send(&self.text, self.piece);
        }
        loop {
            let now = Instant::now();
            if now >= end {
                return Ok((answered / self.size as u64, lost / self.size as u64));
            }
            if now >= look {
                look = now + LOST;
                for client in self.clients.iter_mut().filter(|client| client.sent + LOST < now) {
                    lost += client.missing as u64;
                    client.send(&self.text, self.piece);
                }
            }
            let most = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&most)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                let client = &mut self.clients[event.data.u64() as usize];
                while let Ok(n) = client.socket.recv(&mut buffer) {
                    answered += n as u64;
                    client.missing = client.missing.saturating_sub(n);
                    if client.missing == 0 {
                        client.send(&self.text, self.piece);
                        break;
                    }
                }
            }
        }
    }

    /// Sends a burst and compares what comes back, in any order.
    pub(crate) fn verify(&self) -> io::Result<()> {
        let Some(Client { socket, .. }) = self.clients.first() else { return Ok(()) };
        let mut wanted: Vec<&[u8]> = self.text.chunks(self.size).collect();
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        for piece in self.text.chunks(self.piece) {
            socket.send(piece)?;
        }
        let mut buffer = vec![0; 1 << 16];
        while !wanted.is_empty() {
            let n = socket.recv(&mut buffer)?;
            for got in buffer[..n].chunks(self.size) {
                let place = wanted.iter().position(|wanted| *wanted == got);
                let place = place.ok_or_else(|| io::Error::other("a datagram came changed"))?;
                wanted.swap_remove(place);
            }
        }
        socket.set_nonblocking(true)?;
        Ok(())
    }
}

impl Client {
    fn send(&mut self, text: &[u8], piece: usize) {
        for piece in text.chunks(piece) {
            // A full socket loses it; it is then asked again.
            let _ = self.socket.send(piece);
        }
        self.missing = text.len();
        self.sent = Instant::now();
    }
}

/// Has the kernel divide what is sent into datagrams of `size`, and hand over what comes together.
fn segments(socket: &UdpSocket, size: u16) -> io::Result<()> {
    setsockopt(socket, sockopt::UdpGsoSegment, &size.into())?;
    Ok(setsockopt(socket, sockopt::UdpGroSegment, &true)?)
}
