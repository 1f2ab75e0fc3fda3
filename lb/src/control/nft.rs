//! An `nft` of our own that stays: its tables are owned by it, so that nobody else changes them, and
//! they go with it, however this process ends (nftables' `flags owner`, Linux 5.12).

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, unbounded};
use rustix::fs::{MemfdFlags, memfd_create};

/// How long it may take over a set of rules.
const PATIENCE: Duration = Duration::from_secs(10);

/// The process.
pub(super) struct Nft {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
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
        let (sender, lines) = unbounded();
        std::thread::Builder::new()
            .name("nft".into())
            .spawn(move || {
                let mut words = BufReader::new(stdout).lines().map_while(Result::ok);
                while words.next().is_some_and(|line| sender.send(line).is_ok()) {}
            })
            .map_err(missing)?;
        Ok(Self { child, stdin, lines, count: 0 })
    }

    /// Whether it has ended, and its tables with it.
    pub(super) fn is_gone(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Applies a set of rules as a whole, or says why not.
    pub(super) fn apply(&mut self, rules: &str) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("`nft` takes no rules: {error}");
        let file = memfd_create("fairway-nft", MemfdFlags::CLOEXEC);
        let mut file = File::from(file.map_err(|error| failed(error.into()))?);
        file.write_all(rules.as_bytes()).map_err(failed)?;
        self.count += 1;
        // It says nothing of success: what it cannot know ends its words.
        let end = format!("fairway-end-{}", self.count);
        let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        writeln!(self.stdin, "include \"{path}\"\n{end}").map_err(failed)?;
        self.stdin.flush().map_err(failed)?;
        let until = Instant::now() + PATIENCE;
        let mut said: Vec<String> = Vec::new();
        loop {
            let Ok(line) = self.lines.recv_deadline(until) else {
                return Err(match self.is_gone() {
                    true => format!("it has ended; it said: {}", said.join(" ")),
                    false => format!("it has not answered within {} s", PATIENCE.as_secs()),
                });
            };
            if line.trim() == end {
                break;
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
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
