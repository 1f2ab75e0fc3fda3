//! The numbers of services and backends, written down as they are given: flows that outlive this process
//! go by them.
//!
//! Lines in memory that the service manager keeps. The last word on a number holds; a line that is not
//! whole was being written when the process ended, and is nobody's yet.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Seek, Write};
use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroU32};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use fairway_config::ServiceKey;
use fairway_core::{BackendAddr, BackendId, ServiceId};
use fairway_uring::Clock;
use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use super::memory::{Memory, ServiceMemory};

/// Begins the name under which it is kept; how long the machine ran when it was begun ends it.
const IDS: &str = "ids-";
/// Lines above which it may be written anew.
const LINES: usize = 10_000;

/// The numbers of this process.
pub(super) struct IdLog {
    file: File,
    name: String,
    lines: usize,
    /// It cannot be written: said once.
    broken: bool,
}

#[derive(Serialize, Deserialize)]
struct Line<'l> {
    #[serde(rename = "s")]
    service: &'l str,
    #[serde(rename = "n")]
    number: u32,
    #[serde(rename = "b", skip_serializing_if = "Option::is_none")]
    backend: Option<(IpAddr, Option<NonZeroU16>, NonZeroU32)>,
}

impl IdLog {
    /// One without a line.
    pub(super) fn begin() -> Result<Self, String> {
        let failed = |error: rustix::io::Errno| format!("no memory for numbers: {error}");
        let file = memfd_create("fairway-ids", MemfdFlags::CLOEXEC).map_err(failed)?;
        let name = format!("{IDS}{}", Clock.micros());
        Ok(Self { file: file.into(), name, lines: 0, broken: false })
    }

    /// Under which it is kept.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// What it is in.
    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Writes down a service and backends of it.
    pub(super) fn note(
        &mut self,
        key: &ServiceKey,
        id: ServiceId,
        backends: impl Iterator<Item = (BackendAddr, BackendId)>,
    ) {
        let service = &*key.0;
        let mut lines = vec![Line { service, number: id.0, backend: None }];
        lines.extend(backends.map(|(addr, id)| Line {
            service,
            number: id.slot,
            backend: Some((addr.ip(), addr.port(), id.epoch)),
        }));
        let mut text = Vec::new();
        for line in &lines {
            // Into memory.
            let _ = serde_json::to_writer(&mut text, line);
            text.push(b'\n');
        }
        self.lines += lines.len();
        if let Err(error) = self.file.write_all(&text)
            && !std::mem::replace(&mut self.broken, true)
        {
            tracing::error!(
                "numbers of services are not written down, flows will not outlive this process: {error}"
            );
        }
    }

    /// Whether [`Self::is_long`] is worth asking.
    pub(super) fn may_be_long(&self) -> bool {
        self.lines > LINES
    }

    /// Whether most of its lines are about what is no more, where so many numbers are given.
    pub(super) fn is_long(&self, given: usize) -> bool {
        self.lines > LINES.max(4 * given)
    }

    /// Begins anew in the same place.
    pub(super) fn clear(&mut self) {
        self.lines = 0;
        // What follows is written over it otherwise.
        let _ = self.file.set_len(0).and_then(|()| self.file.rewind());
    }

    /// What another process has written.
    pub(super) fn read(file: OwnedFd) -> Memory {
        let mut file = File::from(file);
        let mut memory = Memory::default();
        if file.rewind().is_err() {
            return memory;
        }
        let mut owners = BTreeMap::new();
        for line in BufReader::new(file).split(b'\n').map_while(Result::ok) {
            let Ok(Line { service, number, backend }) = serde_json::from_slice(&line) else {
                continue;
            };
            match backend {
                None => memory.services.entry(service.to_owned()).or_default().id = number,
                Some(backend) => _ = owners.insert(number, (service.to_owned(), backend)),
            }
        }
        for (slot, (service, (ip, port, epoch))) in owners {
            let addr = BackendAddr::new(ip, port);
            if let Some(service) = memory.services.get_mut(&service) {
                service.know(addr, BackendId { slot, epoch });
            }
        }
        let mut taken = std::collections::BTreeSet::new();
        memory.services.retain(|_, service: &mut ServiceMemory| taken.insert(service.id));
        memory
    }
}

/// Begins the names of such logs.
pub(super) fn prefix() -> &'static str {
    IDS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_on_a_number_holds() {
        let addr = |n: u8| BackendAddr::new([10, 0, 0, n].into(), NonZeroU16::new(80));
        let id = |slot, epoch| BackendId { slot, epoch: NonZeroU32::new(epoch).unwrap() };
        let (web, dns) = (ServiceKey("web/80".into()), ServiceKey("dns/53".into()));
        let mut log = IdLog::begin().unwrap();
        log.note(&web, ServiceId(1), [(addr(1), id(0, 1)), (addr(2), id(1, 1))].into_iter());
        log.note(&dns, ServiceId(2), [(addr(9), id(2, 1))].into_iter());
        // A slot is used again, by another service.
        log.note(&dns, ServiceId(2), [(addr(3), id(1, 2))].into_iter());
        // The end of a process, in the middle of a word.
        log.file.write_all(b"{\"s\":\"web/80\",\"n\":5,\"b\":[\"10.0.").unwrap();
        let memory = IdLog::read(log.file().try_clone_to_owned().unwrap());
        let known = |key: &str, n| memory.services[key].backend(addr(n)).map(|it| it.id());
        assert_eq!(memory.services["web/80"].id(), ServiceId(1));
        assert_eq!((known("web/80", 1), known("web/80", 2)), (Some(id(0, 1)), None));
        assert_eq!((known("dns/53", 9), known("dns/53", 3)), (Some(id(2, 1)), Some(id(1, 2))));
        log.clear();
        log.note(&web, ServiceId(7), std::iter::empty());
        let memory = IdLog::read(log.file().try_clone_to_owned().unwrap());
        assert_eq!(memory.services.len(), 1);
        assert_eq!(memory.services["web/80"].id(), ServiceId(7));
    }
}
