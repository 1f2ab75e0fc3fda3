//! Clients and servers of the measurements: threads with blocking sockets, on core 1.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};

/// A request says how many bytes it wants back: eight of them, then padding to 64.
const REQUEST: usize = 64;

/// Moves this thread, and those that it will start, to core 1.
pub(crate) fn to_core_1() {
    let mut set = CpuSet::new();
    set.set(1);
    // On a machine with one core everything shares it, and the figures say so.
    let _ = sched_setaffinity(None, &set);
}

/// Answers requests on `addr` for as long as the process lives.
pub(crate) fn serve(addr: SocketAddr) {
    let listener = TcpListener::bind(addr).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::Builder::new().stack_size(256 << 10).spawn(move || answer(stream)).unwrap();
        }
    });
}

fn answer(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut request = [0; REQUEST];
    let chunk = vec![7; 64 << 10];
    while stream.read_exact(&mut request).is_ok() {
        let mut left = u64::from_be_bytes(request[..8].try_into().unwrap()) as usize;
        while left > 0 {
            let n = left.min(chunk.len());
            if stream.write_all(&chunk[..n]).is_err() {
                return;
            }
            left -= n;
        }
    }
}

fn connect(vip: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&vip, Duration::from_secs(5))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    Ok(stream)
}

fn ask(stream: &mut TcpStream, bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
    let mut request = [0; REQUEST];
    request[..8].copy_from_slice(&bytes.to_be_bytes());
    stream.write_all(&request)?;
    let mut left = bytes as usize;
    while left > 0 {
        let room = left.min(buffer.len());
        match stream.read(&mut buffer[..room])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => left -= n,
        }
    }
    Ok(())
}

/// `count` requests for `bytes` each, over `clients` kept connections.
pub(crate) fn kept(vip: SocketAddr, clients: usize, count: u64, bytes: u64) {
    let done = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                let mut stream = connect(vip).unwrap();
                let mut buffer = vec![0; 256 << 10];
                while done.fetch_add(1, Relaxed) < count {
                    ask(&mut stream, bytes, &mut buffer).unwrap();
                }
            });
        }
    });
}

/// `count` connections of one request for 64 bytes each, `clients` at a time.
pub(crate) fn short(vip: SocketAddr, clients: usize, count: u64) {
    let done = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                let mut buffer = [0; 64];
                while done.fetch_add(1, Relaxed) < count {
                    let mut stream = connect(vip).unwrap();
                    ask(&mut stream, 64, &mut buffer).unwrap();
                }
            });
        }
    });
}

/// Times of requests for 64 bytes at `rate` a second over 16 kept connections, counted from when
/// each was due, so that a stall shows in every request that it held up.
pub(crate) fn paced(vip: SocketAddr, rate: u32, length: Duration) -> Vec<Duration> {
    const CLIENTS: u32 = 16;
    let pause = Duration::from_secs(1) * CLIENTS / rate;
    let start = Instant::now() + Duration::from_millis(50);
    let client = |n: u32| {
        let mut stream = connect(vip).unwrap();
        let mut buffer = [0; 64];
        let mut times = Vec::new();
        let mut due = start + pause * n / CLIENTS;
        while due < start + length {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            ask(&mut stream, 64, &mut buffer).unwrap();
            times.push(due.elapsed());
            due += pause;
        }
        times
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|n| scope.spawn(move || client(n))).collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    })
}
