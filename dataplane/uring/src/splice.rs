//! Long transfers: bytes move from socket to socket through a pipe, without passing our memory.
//!
//! Plain splice(2), driven by readiness from the ring: io_uring's own splice goes to kernel worker
//! threads and costs ten times as much. The sockets are non-blocking from then on, because
//! `SPLICE_F_NONBLOCK` alone does not keep a socket read from blocking.

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, splice};

/// Asked of the kernel; it may grant less to an unprivileged process.
const PIPE_BYTES: usize = 1 << 20;
/// With less, moving bytes costs more calls than copying them.
const LEAST_BYTES: usize = 64 << 10;
/// A source that had fewer has no more: asking it again, when all of that is out, would cost as much as being told.
const SHORT_BYTES: usize = 32 << 10;
/// Rounds of fill and drain before other sessions have their turn.
const ROUNDS: usize = 16;

/// A pipe and how full it is.
pub(crate) struct Pipe {
    reader: PipeReader,
    writer: PipeWriter,
    held: usize,
}

/// How a run of [`Pipe::run`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The source has nothing now.
    SourceEmpty,
    /// The sink has no room now.
    SinkFull,
    /// There is more to do, after the others.
    Yield,
    /// The source has ended and the pipe is empty.
    Ended,
    /// The source failed with this error number.
    SourceFailed(i32),
    /// The sink failed with this error number.
    SinkFailed(i32),
}

impl Pipe {
    /// An error when no descriptor is free, or the user's share of pipe memory (`fs.pipe-user-pages-soft`)
    /// is used up: then copying is better.
    pub(crate) fn new() -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        for end in [reader.as_fd(), writer.as_fd()] {
            set_nonblocking(end)?;
        }
        if fcntl_setpipe_size(&writer, PIPE_BYTES).is_err()
            && fcntl_getpipe_size(&writer)? < LEAST_BYTES
        {
            return Err(Errno::PERM.into());
        }
        Ok(Self { reader, writer, held: 0 })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Moves bytes until one side has to wait; returns how many reached the sink.
    pub(crate) fn run(&mut self, source: BorrowedFd<'_>, sink: BorrowedFd<'_>) -> (u64, Stop) {
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        let mut moved = 0;
        let mut ended = false;
        for _ in 0..ROUNDS {
            let mut starved = false;
            if !ended {
                match splice(source, None, &self.writer, None, PIPE_BYTES, flags) {
                    Ok(0) => ended = true,
                    Ok(n) => {
                        self.held += n;
                        starved = n < SHORT_BYTES;
                    }
                    // A full pipe says the same: then there is something to drain.
                    Err(Errno::AGAIN) => starved = true,
                    Err(Errno::INTR) => {}
                    Err(error) => return (moved, Stop::SourceFailed(error.raw_os_error())),
                }
            }
            if self.held > 0 {
                match splice(&self.reader, None, sink, None, self.held, flags) {
                    Ok(n) => {
                        self.held -= n;
                        moved += n as u64;
                    }
                    Err(Errno::AGAIN) => return (moved, Stop::SinkFull),
                    Err(Errno::INTR) => {}
                    Err(error) => return (moved, Stop::SinkFailed(error.raw_os_error())),
                }
            }
            if self.held == 0 && ended {
                return (moved, Stop::Ended);
            }
            if self.held == 0 && starved {
                return (moved, Stop::SourceEmpty);
            }
        }
        // Bytes in the pipe wait for the sink; the source may have no more to say.
        (moved, if self.held > 0 { Stop::SinkFull } else { Stop::Yield })
    }
}

/// Makes every read and write on `fd` return at once.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn bytes_pass_and_ends_are_seen() {
        let (mut client, source) = UnixStream::pair().unwrap();
        let (sink, mut server) = UnixStream::pair().unwrap();
        for fd in [source.as_fd(), sink.as_fd()] {
            set_nonblocking(fd).unwrap();
        }
        let mut pipe = Pipe::new().unwrap();
        client.write_all(b"hello").unwrap();
        assert_eq!(pipe.run(source.as_fd(), sink.as_fd()), (5, Stop::SourceEmpty));
        let mut got = [0; 5];
        server.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello");
        drop(client);
        assert_eq!(pipe.run(source.as_fd(), sink.as_fd()), (0, Stop::Ended));
    }

    #[test]
    fn a_full_sink_stops_the_run_and_nothing_is_lost() {
        let (mut client, source) = UnixStream::pair().unwrap();
        let (sink, mut server) = UnixStream::pair().unwrap();
        for fd in [source.as_fd(), sink.as_fd()] {
            set_nonblocking(fd).unwrap();
        }
        let mut pipe = Pipe::new().unwrap();
        let sender = std::thread::spawn(move || client.write_all(&[7; 4 << 20]));
        let mut moved = 0;
        loop {
            let (n, stop) = pipe.run(source.as_fd(), sink.as_fd());
            moved += n;
            if stop == Stop::SinkFull {
                break;
            }
        }
        let receiver = std::thread::spawn(move || {
            let mut total = 0;
            let mut buffer = [0; 65_536];
            while let Ok(n @ 1..) = server.read(&mut buffer) {
                total += n as u64;
            }
            total
        });
        loop {
            let (n, stop) = pipe.run(source.as_fd(), sink.as_fd());
            moved += n;
            if stop == Stop::Ended {
                break;
            }
        }
        sender.join().unwrap().unwrap();
        drop(sink);
        assert_eq!((moved, receiver.join().unwrap()), (4 << 20, 4 << 20));
    }
}
