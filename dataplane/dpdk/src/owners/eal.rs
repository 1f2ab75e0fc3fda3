//! The environment abstraction layer: huge pages, buses, devices. There is one a process.

use std::ffi::{CStr, CString, c_char, c_int};
use std::marker::PhantomData;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ThreadId;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Where packet memory comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Memory {
    /// Huge pages without files: nothing is left behind, and nobody else can attach.
    Private,
    /// Huge pages with files in a folder, a mounted hugetlbfs.
    Folder(PathBuf),
    /// Ordinary pages. Slower, and of no use to cards that copy by themselves.
    Ordinary,
}

/// How the EAL is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EalOptions {
    /// Where packet memory comes from.
    pub memory: Memory,
    /// How much, in MiB.
    pub mebibytes: u32,
    /// Keeps several processes of DPDK apart.
    pub prefix: String,
    /// PCI addresses of cards that it may touch; without any it does not look for cards.
    pub pci: Vec<String>,
    /// Virtual devices, as DPDK writes them: `net_tap0,iface=t`.
    pub devices: Vec<String>,
    /// Further arguments, as they are.
    pub more: Vec<String>,
}

/// Why it did not start.
#[derive(Debug, thiserror::Error)]
pub enum EalError {
    /// It can start once.
    #[error("DPDK was started before in this process, and can be started once")]
    Again,
    /// An argument holds a byte of value zero.
    #[error("the argument {0:?} for DPDK holds a zero byte")]
    Argument(String),
    /// A device cannot be made.
    #[error("DPDK makes, or lets go of, no device `{name}`: {error}")]
    Device {
        /// Its name.
        name: String,
        /// DPDK's reason.
        error: String,
    },
    /// It says no.
    #[error("DPDK does not start ({error}); it was given: {arguments}")]
    Refused {
        /// Its reason.
        error: String,
        /// What it was given.
        arguments: String,
    },
}

/// The running EAL. Dropped, it gives its memory back.
#[derive(Debug)]
pub struct Eal {
    /// Cleaning up is for the thread that started it.
    thread: PhantomData<*const ()>,
}

// SAFETY: all that others do with a reference is to borrow for its lifetime; DPDK's own state is
// behind locks of its own.
unsafe impl Sync for Eal {}

static STARTED: AtomicBool = AtomicBool::new(false);
static LOG: OnceLock<fn(LogLevel, &str)> = OnceLock::new();

/// How grave a line of DPDK's log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    /// DPDK calls it an error, or worse.
    Error,
    /// Something to look at.
    Warning,
    /// All else.
    Notice,
}

extern "C" fn log_line(level: u32, line: *const c_char, length: usize) {
    // SAFETY: so many bytes, which stay during the call.
    let line = unsafe { std::slice::from_raw_parts(line.cast::<u8>(), length) };
    let level = match level {
        0..=dpdk_sys::RTE_LOG_ERR => LogLevel::Error,
        dpdk_sys::RTE_LOG_WARNING => LogLevel::Warning,
        _ => LogLevel::Notice,
    };
    let text = String::from_utf8_lossy(line);
    if let Some(log) = LOG.get().filter(|_| !text.trim().is_empty()) {
        log(level, text.trim());
    }
}

impl Eal {
    /// Starts it. The calling thread keeps its processors, which DPDK would narrow to one.
    pub fn start(options: &EalOptions) -> Result<Self, EalError> {
        let own = sched_getaffinity(None).ok();
        let words = arguments(options, own.as_ref());
        let owned: Vec<CString> = words
            .iter()
            .map(|word| CString::new(word.as_str()).map_err(|_| EalError::Argument(word.clone())))
            .collect::<Result<_, _>>()?;
        if STARTED.swap(true, Ordering::SeqCst) {
            return Err(EalError::Again);
        }
        // DPDK may reorder what it is given.
        let mut pointers: Vec<*mut c_char> =
            owned.iter().map(|word| word.as_ptr().cast_mut()).collect();
        pointers.push(std::ptr::null_mut());
        // SAFETY: as many strings as said, which end with zero and outlive the call; DPDK copies
        // what it keeps.
        let done = unsafe { dpdk_sys::rte_eal_init(owned.len() as c_int, pointers.as_mut_ptr()) };
        if let Some(own) = own {
            // It was ours a moment ago.
            let _ = sched_setaffinity(None, &own);
        }
        if done < 0 {
            return Err(EalError::Refused { error: last_error(), arguments: words.join(" ") });
        }
        Ok(Self { thread: PhantomData })
    }

    /// Has lines of DPDK's log go to `log`, from any thread; before it starts.
    pub fn log_to(log: fn(LogLevel, &str)) {
        if LOG.set(log).is_ok() {
            // SAFETY: a function that lives as long as the program. A failure leaves the log where it
            // was, on stderr.
            let _ = unsafe { dpdk_sys::fairway_log_to(Some(log_line)) };
        }
    }

    /// Has a card that is pulled out end its own work only, and not the process, where its bus can see
    /// to that: with uio, what is read of it from then on is nothing. False when that is not to be had.
    pub fn survive_removals(&self) -> bool {
        // SAFETY: the EAL runs.
        let watched = unsafe { dpdk_sys::rte_dev_event_monitor_start() } == 0;
        // SAFETY: as above.
        watched && unsafe { dpdk_sys::rte_dev_hotplug_handle_enable() } == 0
    }

    /// DPDK's version, as it calls itself.
    #[must_use]
    pub fn version() -> String {
        // SAFETY: no arguments.
        let version = unsafe { dpdk_sys::rte_version() };
        // SAFETY: a string that lives as long as the program.
        let version = unsafe { CStr::from_ptr(version) };
        version.to_string_lossy().into_owned()
    }

    /// Adds a device of a bus (`vdev`, `pci`) while others run.
    pub fn add_device(&self, bus: &str, name: &str, arguments: &str) -> Result<(), EalError> {
        let text = |text: &str| CString::new(text).map_err(|_| EalError::Argument(text.into()));
        let (bus, device, words) = (text(bus)?, text(name)?, text(arguments)?);
        // SAFETY: the EAL runs; strings that end with zero, and are copied.
        let code =
            unsafe { dpdk_sys::rte_eal_hotplug_add(bus.as_ptr(), device.as_ptr(), words.as_ptr()) };
        match code {
            0 => Ok(()),
            code => Err(EalError::Device { name: name.into(), error: error_text(code) }),
        }
    }

    /// Lets go of a device whose port is closed: another process can have it.
    pub fn remove_device(&self, bus: &str, name: &str) -> Result<(), EalError> {
        let text = |text: &str| CString::new(text).map_err(|_| EalError::Argument(text.into()));
        let (bus, device) = (text(bus)?, text(name)?);
        // SAFETY: the EAL runs; strings that end with zero.
        match unsafe { dpdk_sys::rte_eal_hotplug_remove(bus.as_ptr(), device.as_ptr()) } {
            0 => Ok(()),
            code => Err(EalError::Device { name: name.into(), error: error_text(code) }),
        }
    }
}

/// A thread that DPDK knows has a cache of packets of its own; others pay three times as much for a
/// packet's memory.
#[derive(Debug)]
pub struct Membership<'e> {
    thread: Option<ThreadId>,
    eal: PhantomData<&'e Eal>,
}

impl<'e> Membership<'e> {
    /// Of no thread yet.
    #[must_use]
    pub fn new(_eal: &'e Eal) -> Self {
        Self { thread: None, eal: PhantomData }
    }

    /// Makes the calling thread one that DPDK knows. Where it has no place for another one, the
    /// thread does without.
    pub fn enter(&mut self) {
        // SAFETY: the EAL runs, as it is borrowed.
        if self.thread.is_none() && unsafe { dpdk_sys::rte_thread_register() } == 0 {
            self.thread = Some(std::thread::current().id());
        }
    }
}

impl Drop for Membership<'_> {
    fn drop(&mut self) {
        if self.thread == Some(std::thread::current().id()) {
            // SAFETY: this thread was registered by `enter`, once.
            unsafe { dpdk_sys::rte_thread_unregister() };
        }
    }
}

impl Drop for Eal {
    fn drop(&mut self) {
        // SAFETY: it runs, and all that borrowed from it is gone.
        let _ = unsafe { dpdk_sys::rte_eal_cleanup() };
    }
}

/// What DPDK is given, its own name first.
fn arguments(options: &EalOptions, own: Option<&CpuSet>) -> Vec<String> {
    let EalOptions { memory, mebibytes, prefix, pci, devices, more } = options;
    let mut words: Vec<String> = vec!["fairway".into(), "--file-prefix".into(), prefix.clone()];
    let mut add = |name: &str, value: Option<&str>| {
        words.push(name.into());
        words.extend(value.map(Into::into));
    };
    match memory {
        Memory::Private => add("--in-memory", None),
        // Files of huge pages are gone from their folder as soon as they are mapped.
        Memory::Folder(path) => {
            add("--huge-dir", Some(&path.display().to_string()));
            add("--huge-unlink", None);
            add("--no-shconf", None);
        }
        Memory::Ordinary => {
            add("--no-huge", None);
            add("--no-shconf", None);
        }
    }
    add("-m", Some(&mebibytes.to_string()));
    add("--no-telemetry", None);
    // Threads are ours; DPDK's one stays where it may be.
    let first = own.and_then(|own| (0..CpuSet::MAX_CPU).find(|cpu| own.is_set(*cpu)));
    add("-l", Some(&first.unwrap_or(0).to_string()));
    if pci.is_empty() {
        add("--no-pci", None);
    }
    pci.iter().for_each(|address| add("-a", Some(address)));
    devices.iter().for_each(|device| add("--vdev", Some(device)));
    more.iter().for_each(|word| add(word, None));
    words
}

/// The text of the calling thread's last error in DPDK.
pub(crate) fn last_error() -> String {
    // SAFETY: no arguments; a variable of the thread's.
    error_text(unsafe { dpdk_sys::fairway_errno() })
}

/// The text of an error number, of whatever sign.
pub(crate) fn error_text(number: c_int) -> String {
    // SAFETY: any number has a text.
    let text = unsafe { dpdk_sys::rte_strerror(number.abs()) };
    // SAFETY: which ends with zero and stays until this thread's next call.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_arguments() {
        let options = EalOptions {
            memory: Memory::Private,
            mebibytes: 256,
            prefix: "fw".into(),
            pci: Vec::new(),
            devices: vec!["net_null0".into()],
            more: vec!["--log-level=4".into()],
        };
        let mut cpus = CpuSet::new();
        cpus.set(3);
        let words = arguments(&options, Some(&cpus)).join(" ");
        assert_eq!(
            words,
            "fairway --file-prefix fw --in-memory -m 256 --no-telemetry -l 3 --no-pci \
             --vdev net_null0 --log-level=4"
        );
        let pci = vec!["0000:3b:00.0".into()];
        let cards = EalOptions { memory: Memory::Ordinary, pci, ..options };
        assert!(
            arguments(&cards, None)
                .join(" ")
                .contains("--no-huge --no-shconf -m 256 --no-telemetry -l 0 -a 0000:3b:00.0")
        );
    }
}
