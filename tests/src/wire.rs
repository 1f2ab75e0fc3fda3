//! Frames as they are on a link.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::{Host, Net};

/// A packet socket on an interface of a host.
pub struct Wire {
    child: Child,
    stdin: ChildStdin,
    frames: Receiver<String>,
    _script: tempfile::NamedTempFile,
}

impl Wire {
    pub fn open(net: &Net, host: Host, interface: &str) -> Self {
        let mut script = tempfile::NamedTempFile::new().unwrap();
        script.write_all(include_bytes!("wire.py")).unwrap();
        let mut child = Command::new("ip")
            .args(["netns", "exec", &net.name(host), "python3", "-u"])
            .arg(script.path())
            .arg(interface)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (sender, frames) = channel();
        std::thread::spawn(move || {
            let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
            while lines.next().is_some_and(|line| sender.send(line).is_ok()) {}
        });
        let wire = Self { child, stdin, frames, _script: script };
        assert_eq!(wire.frames.recv_timeout(Duration::from_secs(10)).unwrap(), "ready");
        wire
    }

    pub fn send(&mut self, frame: &[u8]) {
        let text: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(self.stdin, "{text}").unwrap();
        self.stdin.flush().unwrap();
    }

    /// The next frame that comes in; none when there is none until `end`.
    pub fn receive(&self, end: Instant) -> Option<Vec<u8>> {
        let left = end.saturating_duration_since(Instant::now());
        let text = self.frames.recv_timeout(left).ok()?;
        let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
        Some((0..text.len()).step_by(2).map(byte).collect())
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
