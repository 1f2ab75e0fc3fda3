//! The services' addresses on an interface.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use fairway_core::Tick;
use fairway_core::announce::neighbor::announcement;
use fairway_uring::send_frames;

use crate::network::{Added, Addresses};

/// After the first word of a new address, the times until the next ones: a frame may be lost.
const ANNOUNCE: [Duration; 3] =
    [Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2)];

/// From one word that could not be sent to the next try.
const AGAIN: Duration = Duration::from_secs(2);

/// An interface that carries the services' addresses.
pub(crate) struct Interface {
    addresses: Addresses,
    /// Those that were added here; an address that was there before is left there.
    added: BTreeSet<IpAddr>,
    /// Those that a process before this one has left behind: of no use to anybody else.
    left: BTreeSet<IpAddr>,
    /// Those that the kernel refused, and what it said.
    failed: BTreeMap<IpAddr, String>,
    /// Those that the segment is told of, how often it was, and when it is again.
    announced: BTreeMap<IpAddr, (usize, Tick)>,
    /// Why it could not be told last.
    untold: Option<String>,
    /// Those that no service has any more, and until when connections to them may go on.
    leaving: BTreeMap<IpAddr, Tick>,
}

impl Interface {
    pub(crate) fn new(addresses: Addresses) -> Self {
        // An interface that is not there has none.
        let left = addresses.ours().unwrap_or_default();
        Self {
            addresses,
            added: BTreeSet::new(),
            left,
            failed: BTreeMap::new(),
            announced: BTreeMap::new(),
            untold: None,
            leaving: BTreeMap::new(),
        }
    }

    pub(crate) fn add(&mut self, ip: IpAddr) {
        let again = self.failed.remove(&ip).is_some();
        self.leaving.remove(&ip);
        match self.addresses.add(ip) {
            Ok(Added::New) => {
                self.added.insert(ip);
                self.announced.insert(ip, (0, Tick(0)));
                tracing::info!(%ip, interface = self.addresses.interface(), "address added");
            }
            Ok(Added::There) => {
                if self.left.remove(&ip) {
                    self.added.insert(ip);
                    self.announced.insert(ip, (0, Tick(0)));
                }
            }
            Err(why) => {
                if !again {
                    let interface = self.addresses.interface();
                    tracing::error!(%ip, interface, "cannot add address: {why}; trying again");
                }
                self.failed.insert(ip, why);
            }
        }
    }

    /// Takes away what a process before this one has left behind and no service has.
    pub(crate) fn take_over(&mut self) {
        for ip in std::mem::take(&mut self.left) {
            self.added.insert(ip);
            self.remove(ip);
        }
    }

    /// Tries again what the kernel refused, and takes away what has had its time.
    pub(crate) fn tend(&mut self, now: Tick) {
        for ip in self.failed.keys().copied().collect::<Vec<_>>() {
            self.add(ip);
        }
        let due = self.leaving.iter().filter(|(_, at)| **at <= now).map(|(ip, _)| *ip);
        for ip in due.collect::<Vec<_>>() {
            self.leaving.remove(&ip);
            self.remove(ip);
        }
        self.announce(now);
    }

    /// Tells the segment of new addresses: whoever knows another station for one of them is wrong.
    fn announce(&mut self, now: Tick) {
        let due = self.announced.iter().filter(|(_, (_, at))| *at <= now).map(|(ip, _)| *ip);
        let due: Vec<IpAddr> = due.collect();
        if due.is_empty() {
            return;
        }
        let interface = self.addresses.interface();
        let told = self.addresses.station().and_then(|station| {
            let Some(station) = station else { return Ok(()) };
            let frames: Vec<_> = due.iter().map(|ip| announcement(*ip, station)).collect();
            send_frames(interface, &frames).map_err(|error| error.to_string())
        });
        let failed = told.err();
        if let Some(why) = failed.as_ref().filter(|why| self.untold.as_ref() != Some(why)) {
            let addresses = due.len();
            tracing::warn!(interface, addresses, "cannot tell the segment of new addresses: {why}");
        }
        for ip in due {
            let Some((times, at)) = self.announced.get_mut(&ip) else { continue };
            match ANNOUNCE.get(*times) {
                // The interface may not be up yet.
                _ if failed.is_some() => *at = now.plus(AGAIN),
                Some(wait) => (*times, *at) = (*times + 1, now.plus(*wait)),
                None => _ = self.announced.remove(&ip),
            }
        }
        self.untold = failed;
    }

    /// Whether something is to be done later.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.failed.is_empty() || !self.leaving.is_empty() || !self.announced.is_empty()
    }

    /// No service has `ip` any more; it goes at `at`.
    pub(crate) fn leave(&mut self, ip: IpAddr, at: Tick) {
        self.failed.remove(&ip);
        if self.added.contains(&ip) {
            self.leaving.insert(ip, at);
        }
    }

    /// What the kernel refused, and what it said.
    pub(crate) fn failed(&self) -> &BTreeMap<IpAddr, String> {
        &self.failed
    }

    fn remove(&mut self, ip: IpAddr) {
        self.announced.remove(&ip);
        if !self.added.remove(&ip) {
            return;
        }
        let interface = self.addresses.interface();
        match self.addresses.remove(ip) {
            Ok(()) => tracing::info!(%ip, interface, "address removed"),
            Err(why) => tracing::warn!(%ip, interface, "cannot remove address: {why}"),
        }
    }

    pub(crate) fn clean_up(&mut self) {
        for ip in self.added.clone() {
            self.remove(ip);
        }
    }
}

/// Runs a command of the system and returns what it printed; an error is what it complained of.
pub(crate) fn run(program: &str, arguments: &[&str], input: &str) -> Result<String, String> {
    use std::io::Write;
    let missing = |error: std::io::Error| format!("`{program}` cannot be run: {error}");
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(missing)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command that ends before it has read everything says why on stderr.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(missing)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}
