//! The service manager: what it is told (`sd_notify`), and the descriptors that it keeps for the next
//! process (systemd's descriptor store, `FileDescriptorStoreMax=`). Without one, nothing is told and
//! nothing is kept.
//!
//! Everything goes by a thread of its own: a manager that is busy holds nobody up.

use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use crossbeam_channel::{Sender, bounded, unbounded};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::time::{ClockId, clock_gettime};

/// Most descriptors in a message (SCM_MAX_FD).
pub(crate) const MOST_DESCRIPTORS: usize = 253;
/// How long the end of the process waits for what is still to be told.
const PATIENCE: Duration = Duration::from_secs(1);

/// Something for the manager.
enum News {
    Say(String),
    Keep(String, Vec<OwnedFd>),
    /// Answers when all before it is told.
    Flush(Sender<()>),
    /// It hears us now.
    Release,
}

/// Our end of the service manager; cheap to copy.
#[derive(Clone, Default)]
pub(crate) struct Manager {
    news: Option<Sender<News>>,
    /// How often it wants to hear that we are alive.
    watchdog: Option<Duration>,
}

impl Manager {
    /// The manager that started this process, or the one before it, if one did. With `held`, it is told
    /// nothing until [`Self::release`]: it hears the service's main process alone.
    pub(crate) fn from_environment(mut held: bool) -> Self {
        let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return Self::default() };
        let socket = match connect(&path) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!("NOTIFY_SOCKET {}: {error}", path.display());
                return Self::default();
            }
        };
        let (news, receiver) = unbounded();
        let told = std::thread::Builder::new().name("fairway-notify".into()).spawn(move || {
            let mut kept = Vec::new();
            for news in receiver {
                held &= !matches!(news, News::Release);
                kept.push(news);
                if held {
                    continue;
                }
                for news in kept.drain(..) {
                    take(&socket, news);
                }
            }
        });
        if let Err(error) = told {
            tracing::warn!("the service manager is told nothing: {error}");
            return Self::default();
        }
        Self { news: Some(news), watchdog: watchdog() }
    }

    /// How often it wants to hear [`Self::is_alive`]; none when it does not.
    pub(crate) fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// This process serves.
    pub(crate) fn is_ready(&self, status: &str) {
        self.say(format!("READY=1\nSTATUS={status}"));
    }

    /// The configuration is being read again; [`Self::is_ready`] ends that.
    pub(crate) fn reloads(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let micros = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
        self.say(format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
    }

    /// This process ends.
    pub(crate) fn stops(&self) {
        self.say("STOPPING=1".into());
    }

    /// All is well.
    pub(crate) fn is_alive(&self) {
        self.say("WATCHDOG=1".into());
    }

    /// Another process is the service's main one from now on.
    pub(crate) fn hands_over_to(&self, pid: u32) {
        self.say(format!("MAINPID={pid}"));
        self.flush();
    }

    /// Has it keep descriptors for the next process, under a name: letters, digits and `.-_[]`.
    pub(crate) fn keep<F: AsFd>(&self, name: &str, descriptors: &[F]) {
        if self.news.is_none() {
            return;
        }
        let copies = descriptors.iter().map(|one| one.as_fd().try_clone_to_owned());
        match copies.collect::<io::Result<Vec<_>>>() {
            Ok(copies) => self.send(News::Keep(format!("FDSTORE=1\nFDNAME={name}"), copies)),
            Err(error) => tracing::warn!("{name} is not kept for a restart: {error}"),
        }
    }

    /// Has it let go of what it keeps under a name.
    pub(crate) fn forget(&self, name: &str) {
        self.say(format!("FDSTOREREMOVE=1\nFDNAME={name}"));
    }

    /// Waits until it was told everything, for a while.
    pub(crate) fn flush(&self) {
        let (done, told) = bounded(1);
        self.send(News::Flush(done));
        if self.news.is_some() {
            let _ = told.recv_timeout(PATIENCE);
        }
    }

    /// It hears this process from now on.
    pub(crate) fn release(&self) {
        self.send(News::Release);
    }

    fn say(&self, words: String) {
        self.send(News::Say(words));
    }

    fn send(&self, news: News) {
        if let Some(sender) = &self.news {
            // The thread ends with the process.
            let _ = sender.send(news);
        }
    }
}

fn take(socket: &UnixDatagram, news: News) {
    match news {
        News::Say(words) => tell(socket, &words, &[]),
        News::Keep(words, descriptors) => {
            for some in descriptors.chunks(MOST_DESCRIPTORS) {
                let some: Vec<_> = some.iter().map(AsFd::as_fd).collect();
                tell(socket, &words, &some);
            }
        }
        // Nobody waits any more when that took too long.
        News::Flush(done) => _ = done.send(()),
        News::Release => {}
    }
}

fn connect(path: &OsStr) -> io::Result<UnixDatagram> {
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(path)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    Ok(socket)
}

fn tell(socket: &UnixDatagram, words: &str, descriptors: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        // There is room for as many.
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let words = [IoSlice::new(words.as_bytes())];
    if let Err(error) = sendmsg(socket, &words, &mut control, SendFlags::NOSIGNAL) {
        tracing::warn!("the service manager cannot be told: {error}");
    }
}

/// A half of what the manager waits for, when it waits for this process.
fn watchdog() -> Option<Duration> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
    let whole = number("WATCHDOG_USEC").filter(|micros| ours && *micros > 0)?;
    Some(Duration::from_micros(whole / 2))
}

/// What the service manager kept for this process, or has opened for it, with the names. To be asked
/// once, before anything else is opened.
pub(crate) fn passed() -> Vec<(String, OwnedFd)> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    if number("LISTEN_PID") != Some(std::process::id()) {
        return Vec::new();
    }
    let descriptors = fairway_uring::passed_descriptors(number("LISTEN_FDS").unwrap_or(0));
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let names = names.split(':').map(ToOwned::to_owned).chain(std::iter::repeat(String::new()));
    names.zip(descriptors).collect()
}
