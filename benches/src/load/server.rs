//! The servers behind the balancers.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use ring::digest::{Context, SHA256};
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::net::{RecvFlags, recv};

use super::{DIGEST, HASHED, HEADER, pattern};

/// Length of a PROXY header of version 2, as far as it says how long the rest is.
const GREETING: usize = 16;
/// What is read at a time.
const CHUNK: usize = 256 << 10;

/// Answers requests on `addresses` for as long as the process lives; on those `headed`, connections begin
/// with a PROXY header of version 2.
pub(crate) fn serve(addresses: &[SocketAddr], headed: &[SocketAddr]) {
    let bind = |addr: &SocketAddr| {
        let listener = TcpListener::bind(addr).unwrap();
        // The default of the standard library is short for thousands of clients at once.
        rustix::net::listen(&listener, 4096).unwrap();
        listener.set_nonblocking(true).unwrap();
        listener
    };
    let listeners = addresses.iter().map(|addr| (bind(addr), false));
    let listeners: Vec<_> = listeners.chain(headed.iter().map(|addr| (bind(addr), true))).collect();
    thread::spawn(move || Server::new(listeners).run());
}

struct Server {
    epoll: rustix::fd::OwnedFd,
    listeners: Vec<(TcpListener, bool)>,
    /// By number, which is the event's less that of listeners.
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    chunk: Vec<u8>,
}

struct Connection {
    stream: TcpStream,
    state: State,
    /// A header, as far as it has come.
    head: Vec<u8>,
    /// It waits until the socket has room.
    blocked: bool,
}

enum State {
    /// A PROXY header's first bytes.
    Greeting,
    /// The rest of that.
    Rest(usize),
    Header,
    Body {
        left: u64,
        reply: u64,
        hash: Option<Context>,
    },
    Reply {
        at: u64,
        left: u64,
        digest: Vec<u8>,
    },
}

impl Server {
    fn new(listeners: Vec<(TcpListener, bool)>) -> Self {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        for (n, (listener, _)) in listeners.iter().enumerate() {
            let data = epoll::EventData::new_u64(n as u64);
            epoll::add(&epoll, listener, data, epoll::EventFlags::IN).unwrap();
        }
        Self { epoll, listeners, connections: vec![], free: vec![], chunk: vec![0; CHUNK] }
    }

    fn run(mut self) {
        let mut events = Vec::with_capacity(512);
        loop {
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => panic!("epoll: {error}"),
            }
            for event in &events {
                let n = event.data.u64() as usize;
                match n.checked_sub(self.listeners.len()) {
                    None => self.accept(n),
                    Some(n) => self.serve(n),
                }
            }
        }
    }

    fn accept(&mut self, listener: usize) {
        while let Ok((stream, _)) = self.listeners[listener].0.accept() {
            let _ = stream.set_nodelay(true);
            stream.set_nonblocking(true).unwrap();
            let n = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            let data = epoll::EventData::new_u64((n + self.listeners.len()) as u64);
            epoll::add(&self.epoll, &stream, data, epoll::EventFlags::IN).unwrap();
            let state = if self.listeners[listener].1 { State::Greeting } else { State::Header };
            self.connections[n] =
                Some(Connection { stream, state, head: Vec::new(), blocked: false });
        }
    }

    fn serve(&mut self, n: usize) {
        let Some(connection) = &mut self.connections[n] else { return };
        let was_blocked = connection.blocked;
        if connection.advance(&mut self.chunk).is_err() {
            // Its end: closing takes it out of the epoll, too.
            self.connections[n] = None;
            self.free.push(n);
            return;
        }
        if connection.blocked != was_blocked {
            let data = epoll::EventData::new_u64((n + self.listeners.len()) as u64);
            let flags = match connection.blocked {
                true => epoll::EventFlags::OUT,
                false => epoll::EventFlags::IN,
            };
            epoll::modify(&self.epoll, &connection.stream, data, flags).unwrap();
        }
    }
}

impl Connection {
    /// Goes on until the socket has nothing, or no room; an error at its end.
    fn advance(&mut self, chunk: &mut [u8]) -> io::Result<()> {
        loop {
            if let State::Reply { .. } = self.state {
                if !self.reply()? {
                    self.blocked = true;
                    return Ok(());
                }
                self.blocked = false;
            }
            let n = match &self.state {
                // Nobody looks at it: the kernel need not copy it.
                State::Body { left, hash: None, .. } => {
                    let most = (*left).min(CHUNK as u64) as usize;
                    recv(&self.stream, &mut chunk[..most], RecvFlags::TRUNC)
                        .map(|(_, n)| n)
                        .map_err(io::Error::from)
                }
                _ => self.stream.read(chunk),
            };
            match n {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => self.take(&chunk[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if !matches!(self.state, State::Reply { .. } | State::Body { .. }) {
                // What else has come is told of again.
                return Ok(());
            }
        }
    }

    fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Greeting => {
                    if gather(&mut self.head, GREETING, &mut bytes) {
                        let length = u16::from_be_bytes([self.head[14], self.head[15]]);
                        self.head.clear();
                        self.state = match length {
                            0 => State::Header,
                            _ => State::Rest(length.into()),
                        };
                    }
                }
                State::Rest(length) => {
                    if gather(&mut self.head, *length, &mut bytes) {
                        self.head.clear();
                        self.state = State::Header;
                    }
                }
                State::Header => {
                    if gather(&mut self.head, HEADER, &mut bytes) {
                        let number = |at: usize| {
                            u64::from_be_bytes(self.head[at..at + 8].try_into().unwrap())
                        };
                        let (reply, follows) = (number(0), number(8));
                        let hash = (follows & HASHED != 0).then(|| Context::new(&SHA256));
                        self.head.clear();
                        self.state = State::Body { left: follows & !HASHED, reply, hash };
                        self.end_of_body();
                    }
                }
                State::Body { left, hash, .. } => {
                    let n = (*left).min(bytes.len() as u64) as usize;
                    if let Some(hash) = hash {
                        hash.update(&bytes[..n]);
                    }
                    *left -= n as u64;
                    bytes = &bytes[n..];
                    self.end_of_body();
                }
                // Clients ask again when they have been answered.
                State::Reply { .. } => panic!("a client spoke out of turn"),
            }
        }
    }

    fn end_of_body(&mut self) {
        if let State::Body { left: 0, reply, hash } = &self.state {
            let digest = match hash.clone() {
                Some(hash) => hash.finish().as_ref().to_vec(),
                None => Vec::new(),
            };
            debug_assert!(digest.is_empty() || digest.len() == DIGEST);
            self.state = State::Reply { at: 0, left: *reply, digest };
        }
    }

    /// Sends what is left of the reply; false when the socket has no room.
    fn reply(&mut self) -> io::Result<bool> {
        let State::Reply { at, left, digest } = &mut self.state else { return Ok(true) };
        while *left > 0 {
            let piece = match digest.get(*at as usize..) {
                Some(rest) if !rest.is_empty() => rest,
                _ => pattern(*at, *left),
            };
            match self.stream.write(piece) {
                Ok(n) => {
                    *at += n as u64;
                    *left -= n as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.state = State::Header;
        Ok(true)
    }
}

/// Fills `head` up to `length`; whether it is whole.
fn gather(head: &mut Vec<u8>, length: usize, bytes: &mut &[u8]) -> bool {
    let n = (length - head.len()).min(bytes.len());
    head.extend_from_slice(&bytes[..n]);
    *bytes = &bytes[n..];
    head.len() == length
}
