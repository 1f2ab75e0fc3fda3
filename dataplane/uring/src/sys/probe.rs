//! What this kernel can do, found out by trying.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use io_uring::squeue::Entry;
use io_uring::types::Fd;
use io_uring::{IoUring, opcode};
use rustix::pipe::{SpliceFlags, splice};

/// A part of io_uring that is used when it is there and can be switched off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Feature {
    /// One request accepts any number of connections (Linux 5.19).
    MultishotAccept,
    /// One request receives until a number of bytes has come (about Linux 6.17). Without it each
    /// receive is a request of its own.
    CappedReceive,
    /// Long transfers move through a pipe in the kernel, not through our buffers.
    Splice,
}

impl Feature {
    /// Every feature.
    pub const ALL: [Self; 3] = [Self::MultishotAccept, Self::CappedReceive, Self::Splice];

    /// The word in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::MultishotAccept => "multishotAccept",
            Self::CappedReceive => "cappedReceive",
            Self::Splice => "splice",
        }
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The features in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// See [`Feature::MultishotAccept`].
    pub multishot_accept: bool,
    /// See [`Feature::CappedReceive`].
    pub capped_receive: bool,
    /// See [`Feature::Splice`].
    pub splice: bool,
}

impl Features {
    /// What the kernel has, less what is switched off.
    pub fn detect(disabled: &[Feature]) -> Result<Self, SetupError> {
        let mut ring = super::ring::build(8, 8)?;
        let wanted = |feature| !disabled.contains(&feature);
        Ok(Self {
            multishot_accept: wanted(Feature::MultishotAccept) && has_multishot_accept(&mut ring),
            capped_receive: wanted(Feature::CappedReceive) && has_capped_receive(&mut ring),
            splice: wanted(Feature::Splice) && has_splice(),
        })
    }

    /// The words for status and logs.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        [
            (self.multishot_accept, Feature::MultishotAccept),
            (self.capped_receive, Feature::CappedReceive),
            (self.splice, Feature::Splice),
        ]
        .into_iter()
        .filter(|(has, _)| *has)
        .map(|(_, feature)| feature.name())
    }
}

/// Why no ring can be had.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The system call does not exist or is hidden.
    #[error(
        "io_uring is not available (ENOSYS): the kernel was built without it, or a container's \
         seccomp profile hides it; allow io_uring_setup, io_uring_enter and io_uring_register"
    )]
    Missing,
    /// The system call is forbidden.
    #[error("io_uring is forbidden (EPERM): {}", remedy(.0))]
    Forbidden(String),
    /// The kernel is older than the flags that we need.
    #[error(
        "this kernel ({0}) lacks {1}, which Linux 6.1 has; run a newer kernel (Debian 12, Ubuntu \
         24.04, RHEL 10 or later)"
    )]
    TooOld(String, &'static str),
    /// Locked memory or descriptors ran out.
    #[error("no memory for io_uring ({0}); raise LimitMEMLOCK= or LimitNOFILE= of the service")]
    Resources(io::Error),
    /// Something else.
    #[error("io_uring cannot be set up: {0}")]
    Other(io::Error),
}

impl SetupError {
    pub(super) fn of(error: io::Error, what: &'static str) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOSYS) => Self::Missing,
            Some(libc::EPERM) => Self::Forbidden(
                std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled")
                    .map_or_else(|_| "unknown".into(), |text| text.trim().into()),
            ),
            Some(libc::EINVAL) => Self::TooOld(kernel_release(), what),
            Some(libc::ENOMEM | libc::EMFILE | libc::ENFILE) => Self::Resources(error),
            _ => Self::Other(error),
        }
    }
}

/// What is to be mended where `kernel.io_uring_disabled` has this value.
fn remedy(setting: &str) -> String {
    match setting {
        "0" => "the kernel lets everybody use it (kernel.io_uring_disabled is 0), so a seccomp profile or a \
                security module forbids it; allow io_uring_setup, io_uring_enter and io_uring_register there"
            .into(),
        _ => format!(
            "kernel.io_uring_disabled is {setting}; set it with `sysctl kernel.io_uring_disabled=0`, or allow \
             io_uring in the container's seccomp profile"
        ),
    }
}

fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// Kernels without it refuse the field that holds the cap.
fn has_capped_receive(ring: &mut IoUring) -> bool {
    let Ok((reader, _writer)) = UnixStream::pair() else {
        return false;
    };
    let mut entry = opcode::RecvMulti::new(Fd(reader.as_raw_fd()), 0).build();
    super::ring::cap(&mut entry, 1);
    waits(ring, &entry)
}

/// Kernels without it refuse the flag.
fn has_multishot_accept(ring: &mut IoUring) -> bool {
    let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)) else {
        return false;
    };
    waits(ring, &opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).build())
}

/// A seccomp profile may hide the call.
fn has_splice() -> bool {
    let try_it = || -> io::Result<usize> {
        let (source, mut client) = UnixStream::pair()?;
        let (_reader, writer) = io::pipe()?;
        io::Write::write_all(&mut client, b"x")?;
        Ok(splice(&source, None, &writer, None, 1, SpliceFlags::NONBLOCK)?)
    };
    try_it().is_ok_and(|moved| moved == 1)
}

/// Whether the kernel takes a request that has nothing to do yet, and lets it wait.
fn waits(ring: &mut IoUring, entry: &Entry) -> bool {
    // SAFETY: the callers' entries name a socket that lives until this returns, and no memory.
    if unsafe { ring.submission().push(&entry.clone().user_data(1)) }.is_err() {
        return false;
    }
    let timeout = io_uring::types::Timespec::new().nsec(1_000_000);
    let args = io_uring::types::SubmitArgs::new().timespec(&timeout);
    // The supported case waits for what never comes; the unsupported one fails at once. A ring
    // without buffers answers ENOBUFS only once there is data.
    let _ = ring.submitter().submit_with_args(1, &args);
    let refused = ring.completion().any(|cqe| cqe.result() == -libc::EINVAL);
    !refused
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_can_be_switched_off() {
        let all = Features::detect(&[]).unwrap();
        assert!(all.multishot_accept && all.splice);
        let none = Features::detect(&Feature::ALL).unwrap();
        assert_eq!(none.names().count(), 0);
    }

    #[test]
    fn errors_name_the_remedy() {
        for (errno, word) in [
            (libc::ENOSYS, "seccomp"),
            (libc::EPERM, "io_uring_disabled is"),
            (libc::EINVAL, "6.1"),
            (libc::ENOMEM, "LimitMEMLOCK"),
        ] {
            let text = SetupError::of(io::Error::from_raw_os_error(errno), "a flag").to_string();
            assert!(text.contains(word), "{errno}: {text}");
        }
        assert!(remedy("2").contains("`sysctl kernel.io_uring_disabled=0`"));
        assert!(remedy("0").contains("seccomp") && !remedy("0").contains("sysctl"));
    }
}
