//! Clients: kept connections, each with one request under way, as fast as they are answered or at a rate; and
//! short connections.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use ring::digest::{Context, SHA256, digest};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socket_with};

use super::{DIGEST, Exchange, HEADER, pattern};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Read at a time, without being copied.
const CHUNK: usize = 1 << 20;

/// What is asked over kept connections.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) clients: usize,
    pub(crate) exchange: Exchange,
    /// Requests a second over all clients; as fast as they are answered without.
    pub(crate) rate: Option<u32>,
}

/// What is asked over connections of one request each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ShortPlan {
    /// At a time.
    pub(crate) clients: usize,
    pub(crate) exchange: Exchange,
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Exchanges that were finished.
    pub(crate) done: u64,
    /// Bytes of requests and replies that were moved.
    pub(crate) bytes: u64,
    /// Connections that failed; of kept ones none may.
    pub(crate) failed: u64,
    /// Of finished exchanges, in microseconds; at a rate from when they were due.
    pub(crate) times: Vec<u32>,
}

/// Kept connections.
pub(crate) struct Clients {
    plan: Plan,
    epoll: rustix::fd::OwnedFd,
    connections: Vec<Connection>,
    chunk: Vec<u8>,
}

struct Connection {
    stream: TcpStream,
    step: Step,
    /// When its request was sent, or due.
    since: Instant,
    /// It waits until the socket has room.
    blocked: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Idle,
    /// Bytes sent so far.
    Sending(u64),
    /// Bytes received so far.
    Receiving(u64),
}

impl Clients {
    /// Connects all of them and has each do one small exchange, so that every connection is whole.
    pub(crate) fn open(vip: SocketAddr, plan: Plan) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut connections = Vec::with_capacity(plan.clients);
        for n in 0..plan.clients {
            let mut stream = TcpStream::connect_timeout(&vip, PATIENCE)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(&Exchange::new(HEADER as u64, 1).header(false))?;
            stream.read_exact(&mut [0])?;
            stream.set_nonblocking(true)?;
            let data = epoll::EventData::new_u64(n as u64);
            epoll::add(&epoll, &stream, data, epoll::EventFlags::IN)?;
            let (step, since) = (Step::Idle, Instant::now());
            connections.push(Connection { stream, step, since, blocked: false });
        }
        Ok(Self { plan, epoll, connections, chunk: vec![0; CHUNK] })
    }

    /// Works for `length`. Whatever is under way then is finished and not counted; long transfers count
    /// with the bytes that they have moved.
    pub(crate) fn run(&mut self, length: Duration) -> io::Result<Outcome> {
        let mut outcome = Outcome::default();
        let start = Instant::now();
        let end = start + length;
        let pause = self.plan.rate.map(|rate| Duration::from_secs(1) / rate);
        let mut due = start;
        // The others are in the middle of a long one, from the run before.
        let is_idle = |n: &usize| self.connections[*n].step == Step::Idle;
        let mut idle: VecDeque<usize> = (0..self.connections.len()).filter(is_idle).collect();
        let mut events = Vec::with_capacity(512);
        loop {
            let now = Instant::now();
            if now >= end {
                break;
            }
            while let Some(&n) = idle.front()
                && pause.is_none_or(|_| due <= now)
            {
                idle.pop_front();
                let since = if pause.is_some() { due } else { now };
                due += pause.unwrap_or_default();
                self.begin(n, since, &mut outcome)?;
            }
            let until = if pause.is_some() && !idle.is_empty() { due.min(end) } else { end };
            self.wait(until.saturating_duration_since(now), &mut events)?;
            for event in &events {
                let n = event.data.u64() as usize;
                if self.advance(n, &mut outcome)? {
                    idle.push_back(n);
                }
            }
        }
        self.finish(&mut events)?;
        Ok(outcome)
    }

    /// One exchange of each connection, compared byte by byte by its SHA-256, both ways.
    pub(crate) fn verify(vip: SocketAddr, exchange: Exchange) -> io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&vip, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let reply = exchange.reply.max(DIGEST as u64);
        let exchange = Exchange { reply, ..exchange };
        stream.write_all(&exchange.header(true))?;
        let (mut sent, mut at) = (Context::new(&SHA256), HEADER as u64);
        while at < exchange.request {
            let piece = pattern(at, exchange.request - at);
            sent.update(piece);
            stream.write_all(piece)?;
            at += piece.len() as u64;
        }
        let mut arrived = [0; DIGEST];
        stream.read_exact(&mut arrived)?;
        let mut got = vec![0; (reply - DIGEST as u64) as usize];
        stream.read_exact(&mut got)?;
        let mut wanted = Vec::with_capacity(got.len());
        while wanted.len() < got.len() {
            let at = (DIGEST + wanted.len()) as u64;
            wanted.extend_from_slice(pattern(at, reply - at));
        }
        if arrived != sent.finish().as_ref() {
            return Err(io::Error::other("what was sent arrived changed"));
        }
        if digest(&SHA256, &got).as_ref() != digest(&SHA256, &wanted).as_ref() {
            return Err(io::Error::other("the reply came changed"));
        }
        Ok(())
    }

    fn begin(&mut self, n: usize, since: Instant, outcome: &mut Outcome) -> io::Result<()> {
        let connection = &mut self.connections[n];
        connection.since = since;
        connection.step = Step::Sending(0);
        self.advance(n, outcome).map(|_| ())
    }

    fn wait(&self, most: Duration, events: &mut Vec<epoll::Event>) -> io::Result<()> {
        let most = Timespec { tv_sec: most.as_secs() as i64, tv_nsec: most.subsec_nanos().into() };
        events.clear();
        match epoll::wait(&self.epoll, spare_capacity(events), Some(&most)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Finishes small exchanges; connections in the middle of long ones are left as they are.
    fn finish(&mut self, events: &mut Vec<epoll::Event>) -> io::Result<()> {
        let exchange = self.plan.exchange;
        if exchange.request.max(exchange.reply) > CHUNK as u64 {
            return Ok(());
        }
        let end = Instant::now() + PATIENCE;
        let mut ignored = Outcome::default();
        while self.connections.iter().any(|connection| connection.step != Step::Idle) {
            if Instant::now() > end {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.wait(PATIENCE, events)?;
            for event in events.iter() {
                self.advance(event.data.u64() as usize, &mut ignored)?;
            }
        }
        Ok(())
    }

    /// Goes on with a connection; true when its exchange is done.
    fn advance(&mut self, n: usize, outcome: &mut Outcome) -> io::Result<bool> {
        let connection = &mut self.connections[n];
        let before = connection.blocked;
        let done = connection.advance(self.plan.exchange, &mut self.chunk, outcome)?;
        if connection.blocked != before {
            let data = epoll::EventData::new_u64(n as u64);
            let flags = match connection.blocked {
                true => epoll::EventFlags::OUT,
                false => epoll::EventFlags::IN,
            };
            epoll::modify(&self.epoll, &connection.stream, data, flags)?;
        }
        Ok(done)
    }
}

impl Connection {
    fn advance(
        &mut self,
        exchange: Exchange,
        chunk: &mut [u8],
        outcome: &mut Outcome,
    ) -> io::Result<bool> {
        while let Step::Sending(at) = self.step {
            let small;
            let piece = if at < HEADER as u64 {
                small = first_piece(exchange);
                &small.0[at as usize..small.1]
            } else {
                pattern(at, exchange.request - at)
            };
            match self.stream.write(piece) {
                Ok(n) => {
                    outcome.bytes += n as u64;
                    let at = at + n as u64;
                    if at == exchange.request {
                        // The reply takes a while, and is told of.
                        self.step = Step::Receiving(0);
                        self.blocked = false;
                        return Ok(false);
                    }
                    self.step = Step::Sending(at);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked = true;
                    return Ok(false);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        while let Step::Receiving(at) = self.step {
            let most = (exchange.reply - at).min(CHUNK as u64) as usize;
            // Nobody looks at it: the kernel need not copy it.
            match recv(&self.stream, &mut chunk[..most], RecvFlags::TRUNC).map(|(_, n)| n) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    outcome.bytes += n as u64;
                    self.step = Step::Receiving(at + n as u64);
                    if at + n as u64 == exchange.reply {
                        self.step = Step::Idle;
                        outcome.done += 1;
                        let took = self.since.elapsed().as_micros();
                        outcome.times.push(took.try_into().unwrap_or(u32::MAX));
                        return Ok(true);
                    }
                }
                Err(rustix::io::Errno::AGAIN) => return Ok(false),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(false)
    }
}

/// A request's beginning, so that a small one is sent at once, and how long that is.
fn first_piece(exchange: Exchange) -> ([u8; 256], usize) {
    let mut piece = [0; 256];
    let length = exchange.request.min(256) as usize;
    piece[..HEADER].copy_from_slice(&exchange.header(false));
    let rest = pattern(HEADER as u64, (length - HEADER) as u64);
    piece[HEADER..length].copy_from_slice(rest);
    (piece, length)
}

/// Connections of one exchange each, for `length`.
pub(crate) fn short(vip: SocketAddr, plan: &ShortPlan, length: Duration) -> io::Result<Outcome> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut connections: Vec<Option<Connection>> = Vec::new();
    connections.resize_with(plan.clients, || None);
    let mut outcome = Outcome::default();
    let (mut events, mut chunk) = (Vec::with_capacity(512), vec![0; CHUNK]);
    let end = Instant::now() + length;
    let limit = end + PATIENCE;
    loop {
        let now = Instant::now();
        if now < end {
            for (n, place) in connections.iter_mut().enumerate().filter(|(_, it)| it.is_none()) {
                *place = Some(dial(vip, n, &epoll)?);
            }
        } else if connections.iter().all(Option::is_none) {
            return Ok(outcome);
        } else if now > limit {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let most = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        events.clear();
        match epoll::wait(&epoll, spare_capacity(&mut events), Some(&most)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            let n = event.data.u64() as usize;
            let Some(connection) = &mut connections[n] else { continue };
            let was_sending = matches!(connection.step, Step::Sending(_));
            match connection.advance(plan.exchange, &mut chunk, &mut outcome) {
                Ok(false) => {
                    if was_sending && !matches!(connection.step, Step::Sending(_)) {
                        let data = epoll::EventData::new_u64(n as u64);
                        epoll::modify(&epoll, &connection.stream, data, epoll::EventFlags::IN)?;
                    }
                }
                Ok(true) => connections[n] = None,
                Err(_) => {
                    outcome.failed += 1;
                    connections[n] = None;
                }
            }
        }
    }
}

/// A connect under way; the event says when it is done.
fn dial(vip: SocketAddr, n: usize, epoll: &rustix::fd::OwnedFd) -> io::Result<Connection> {
    let family = if vip.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    rustix::net::sockopt::set_tcp_nodelay(&socket, true)?;
    match rustix::net::connect(&socket, &vip) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    let data = epoll::EventData::new_u64(n as u64);
    epoll::add(epoll, &socket, data, epoll::EventFlags::OUT)?;
    let stream = TcpStream::from(socket);
    Ok(Connection { stream, step: Step::Sending(0), since: Instant::now(), blocked: false })
}
