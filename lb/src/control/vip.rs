//! Adds the services' addresses to an interface, through the `ip` command of iproute2.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::process::{Command, Stdio};

use fairway_core::Tick;

/// An interface that carries the services' addresses.
pub(crate) struct Interface {
    name: String,
    /// Those that were added here; an address that was there before is left there.
    added: BTreeSet<IpAddr>,
    /// Those that the kernel refused, and what it said.
    failed: BTreeMap<IpAddr, String>,
    /// Those that no service has any more, and until when connections to them may go on.
    leaving: BTreeMap<IpAddr, Tick>,
}

impl Interface {
    pub(crate) fn new(name: String) -> Self {
        Self { name, added: BTreeSet::new(), failed: BTreeMap::new(), leaving: BTreeMap::new() }
    }

    pub(crate) fn add(&mut self, ip: IpAddr) {
        let again = self.failed.remove(&ip).is_some();
        self.leaving.remove(&ip);
        match self.run("add", ip) {
            Ok(_) => {
                self.added.insert(ip);
                tracing::info!(%ip, interface = self.name, "address added");
            }
            Err(why) if why.contains("File exists") || why.contains("already assigned") => {}
            Err(why) => {
                if !again {
                    let interface = &self.name;
                    tracing::error!(%ip, interface, "cannot add address: {why}; trying again");
                }
                self.failed.insert(ip, why);
            }
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
    }

    /// Whether something is to be done later.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.failed.is_empty() || !self.leaving.is_empty()
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
        if !self.added.remove(&ip) {
            return;
        }
        match self.run("delete", ip) {
            Ok(_) => tracing::info!(%ip, interface = self.name, "address removed"),
            Err(why) => tracing::warn!(%ip, interface = self.name, "cannot remove address: {why}"),
        }
    }

    pub(crate) fn clean_up(&mut self) {
        for ip in self.added.clone() {
            self.remove(ip);
        }
    }

    fn run(&self, verb: &str, ip: IpAddr) -> Result<String, String> {
        let prefix = format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 });
        let mut arguments = vec!["address", verb, &prefix, "dev", &self.name];
        if verb == "add" && ip.is_ipv6() {
            // Duplicate address detection would hold the address back for seconds.
            arguments.push("nodad");
        }
        run("ip", &arguments, "")
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
