//! The next process, which is no child of the one before: the service manager has it as its own, as soon as
//! it is started, and waits for it itself.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};

/// How long a process that is killed may take to be gone.
const GOES: Duration = Duration::from_secs(5);

/// A process that was launched.
pub(super) struct Launched {
    pub(super) pid: u32,
    /// The same: it leads a group of its own.
    group: Pid,
    handle: OwnedFd,
}

impl Launched {
    /// Starts `fairway run --take-over` of this program, with a socket as its input, by a process in between
    /// that ends at once: whose child it was is then the manager's.
    pub(super) fn new(program: &Path, config: &Path, input: OwnedFd) -> Result<Self, String> {
        let output = Command::new("/proc/self/exe")
            .arg("launch")
            .arg(program)
            .args(["run", "--take-over", "--config"])
            .arg(config)
            // They are about this process.
            .env_remove("WATCHDOG_PID")
            .env_remove("LISTEN_PID")
            .env_remove("LISTEN_FDS")
            .env_remove("LISTEN_FDNAMES")
            .stdin(input)
            .stderr(Stdio::inherit())
            .output()
            .map_err(|error| format!("no process can be started: {error}"))?;
        let said = String::from_utf8_lossy(&output.stdout);
        let cannot = |_| format!("{} cannot be run: {}", program.display(), said.trim());
        let pid: u32 = said.trim().parse().map_err(cannot)?;
        let group = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let group = group.ok_or_else(|| format!("{pid} is no process"))?;
        let handle = pidfd_open(group, PidfdFlags::empty()).map_err(|_| {
            "the new process has ended; what it said, if anything, is in the log".to_owned()
        })?;
        Ok(Self { pid, group, handle })
    }

    /// Ends it, with what is in its group of processes; it touches nothing any more.
    pub(super) fn end(&self) {
        let mut ends = [PollFd::from_borrowed_fd(self.handle.as_fd(), PollFlags::IN)];
        let gone = poll(&mut ends, Some(&Timespec::default())).is_ok_and(|ready| ready > 0);
        // While it lives, its number is that of its own group and of nobody else's.
        if !gone {
            // Some may have ended meanwhile.
            let _ = kill_process_group(self.group, Signal::KILL);
        }
        // It may have ended already.
        let _ = pidfd_send_signal(&self.handle, Signal::KILL);
        let patience = Timespec::try_from(GOES).ok();
        let _ = poll(&mut ends, patience.as_ref());
    }
}

/// The process in between: starts a program, says its number, and ends.
pub(crate) fn launch(program: &Path, arguments: &[OsString]) -> ExitCode {
    // What it says is read by another one.
    let out = io::stderr().as_fd().try_clone_to_owned().map_or_else(|_| Stdio::null(), Stdio::from);
    match Command::new(program).args(arguments).stdout(out).process_group(0).spawn() {
        Ok(child) => {
            println!("{}", child.id());
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}
