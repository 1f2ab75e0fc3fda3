//! Small real clients.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);

/// A connection with time-outs.
pub fn connect(addr: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&addr, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// One request on a connection of its own; the body of a 200 answer.
pub fn get(addr: SocketAddr, path: &str) -> io::Result<String> {
    get_by(connect(addr)?, path)
}

/// One request on a connection that is there; the body of a 200 answer.
pub fn get_by(mut stream: impl Read + Write, path: &str) -> io::Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) =
        answer.split_once("\r\n\r\n").ok_or_else(|| io::Error::other("no whole answer"))?;
    let length = head
        .lines()
        .find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
    if !head.starts_with("HTTP/1.1 200") || length != Some(body.len()) {
        return Err(io::Error::other(format!("{} bytes of {head}", body.len())));
    }
    Ok(body.trim_end().to_owned())
}

/// One request on a connection that stays open; the body.
pub fn ask(stream: &mut TcpStream, path: &str) -> io::Result<String> {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        answer.extend_from_slice(&buffer[..n]);
        let text = String::from_utf8_lossy(&answer);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head
            .lines()
            .find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
        if length == Some(body.len()) {
            return Ok(body.trim_end().to_owned());
        }
    }
}

/// What a load has come to.
#[derive(Debug, Default)]
pub struct Outcome {
    pub requests: AtomicU64,
    pub failed: AtomicU64,
    pub stop: AtomicBool,
}

impl Outcome {
    pub fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    pub fn failed(&self) -> u64 {
        self.failed.load(Relaxed)
    }

    /// Ends it when this is dropped: also when who waits for it panics.
    pub fn stopper(&self) -> Stopper<'_> {
        Stopper(self)
    }
}

pub struct Stopper<'o>(&'o Outcome);

impl Drop for Stopper<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Relaxed);
    }
}

/// Asks for `path` until told to stop or `most` requests are made, each on a connection of its
/// own. Call it on as many threads as there are to be clients.
pub fn load(addr: SocketAddr, path: &str, most: u64, outcome: &Outcome) {
    while !outcome.stop.load(Relaxed) && outcome.requests.fetch_add(1, Relaxed) < most {
        if let Err(error) = get(addr, path) {
            eprintln!("request failed: {error}");
            outcome.failed.fetch_add(1, Relaxed);
        }
    }
}
