//! An `nft` of our own that stays: its tables are owned by it, so that nobody else changes them, and
//! they go with it, however this process ends (nftables' `flags owner`, Linux 5.12).

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, memfd_create};

/// How long it may take over a set of rules.
const PATIENCE: Duration = Duration::from_secs(10);

/// The process.
pub(super) struct Nft {
    /// None when a process before this one has started it.
    child: Option<Child>,
    stdin: File,
    stdout: File,
    /// What it has said of a line that is not at its end.
    rest: String,
    /// Sets of rules that it was given.
    count: u64,
}

impl Nft {
    /// Starts it.
    pub(super) fn start() -> Result<Self, String> {
        let missing = |error: std::io::Error| format!("`nft` cannot be run: {error}");
        // It lives until we do, whoever is told to stop: what is stopped in groups drains first.
        let mut child = Command::new("sh")
            .args(["-c", "trap '' TERM INT HUP; exec nft -i 2>&1"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(missing)?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("`nft` has no pipes".into());
        };
        let mut nft = Self::of(stdin.into(), stdout.into());
        nft.child = Some(child);
        Ok(nft)
    }

    /// One that was started before, by its pipes.
    pub(super) fn of(stdin: OwnedFd, stdout: OwnedFd) -> Self {
        Self {
            child: None,
            stdin: stdin.into(),
            stdout: stdout.into(),
            rest: String::new(),
            count: 0,
        }
    }

    /// Its pipes, for the next process.
    pub(super) fn pipes(&self) -> [BorrowedFd<'_>; 2] {
        [self.stdin.as_fd(), self.stdout.as_fd()]
    }

    /// Leaves it to another process.
    pub(super) fn leave(mut self) {
        // It is not waited for: who started it may end before it.
        drop(self.child.take());
    }

    /// Whether it has ended, and its tables with it.
    pub(super) fn is_gone(&mut self) -> bool {
        match &mut self.child {
            Some(child) => !matches!(child.try_wait(), Ok(None)),
            None => {
                let mut ends = [PollFd::new(&self.stdin, PollFlags::empty())];
                poll(&mut ends, Some(&Duration::ZERO.try_into().unwrap_or_default())).is_ok()
                    && ends[0].revents().contains(PollFlags::ERR)
            }
        }
    }

    /// Its next line, if that comes in time.
    fn line(&mut self, until: Instant) -> Option<String> {
        loop {
            if let Some((line, rest)) = self.rest.split_once('\n') {
                let line = line.to_owned();
                self.rest = rest.to_owned();
                return Some(line);
            }
            let left = until.saturating_duration_since(Instant::now());
            let mut ends = [PollFd::new(&self.stdout, PollFlags::IN)];
            let ready = poll(&mut ends, Some(&left.try_into().ok()?));
            match ready {
                Ok(1..) => {}
                Err(rustix::io::Errno::INTR) => continue,
                _ => return None,
            }
            let mut bytes = [0; 4096];
            match self.stdout.read(&mut bytes) {
                Ok(0) | Err(_) => return None,
                Ok(n) => self.rest += &String::from_utf8_lossy(&bytes[..n]),
            }
        }
    }

    /// Applies a set of rules as a whole, or says why not.
    pub(super) fn apply(&mut self, rules: &str) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("`nft` takes no rules: {error}");
        let file = memfd_create("fairway-nft", MemfdFlags::CLOEXEC);
        let mut file = File::from(file.map_err(|error| failed(error.into()))?);
        file.write_all(rules.as_bytes()).map_err(failed)?;
        self.count += 1;
        // It says nothing of success: what it cannot know ends its words.
        let end = format!("fairway-end-{}-{}", std::process::id(), self.count);
        let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        writeln!(self.stdin, "include \"{path}\"\n{end}").map_err(failed)?;
        self.stdin.flush().map_err(failed)?;
        let until = Instant::now() + PATIENCE;
        let mut said: Vec<String> = Vec::new();
        loop {
            let Some(line) = self.line(until) else {
                return Err(match self.is_gone() {
                    true => format!("it has ended; it said: {}", said.join(" ")),
                    false => format!("it has not answered within {} s", PATIENCE.as_secs()),
                });
            };
            if line.trim() == end {
                break;
            }
            if line.trim().starts_with("fairway-end-") {
                // The last words to another process, which has ended before it heard them.
                said.clear();
                continue;
            }
            said.push(line);
        }
        // The end is no command, which was the last word; and so was, before us, a mark below one.
        said.pop();
        let words: Vec<&str> = said.iter().map(|line| line.trim()).collect();
        let words: Vec<&str> = words.into_iter().filter(|line| *line != "^").collect();
        if words.is_empty() { Ok(()) } else { Err(words.join(" ")) }
    }
}

impl Drop for Nft {
    fn drop(&mut self) {
        // One of another process's goes with its pipe.
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
