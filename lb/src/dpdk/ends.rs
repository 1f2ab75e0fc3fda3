//! The kernel's ends of cards' links while a card goes from one process to the next: interfaces stay, with
//! their addresses and routes.

use std::process::Command;

use fairway_uring::keep_tap;
use rustix::fs::{MemfdFlags, memfd_create};

/// What the kernel's ends had before their cards were let go of. DPDK switches a tap off when it closes it,
/// which takes its routes, and its addresses of IPv6.
#[derive(Debug)]
pub(crate) struct KernelEnds {
    interfaces: Vec<String>,
    /// As `ip` saves them: with which words, and what.
    saved: Vec<(Vec<String>, Vec<u8>)>,
}

impl KernelEnds {
    /// Notes what they have.
    pub(crate) fn look(interfaces: Vec<String>) -> Result<Self, String> {
        let mut saved = Vec::new();
        for interface in &interfaces {
            for (save, restore) in [
                ("address save dev", "address restore"),
                ("-4 route save table all dev", "-4 route restore"),
                ("-6 route save table all dev", "-6 route restore"),
            ] {
                let words: Vec<&str> = save.split(' ').chain([interface.as_str()]).collect();
                let restore = restore.split(' ').map(Into::into).collect();
                saved.push((restore, ip(&words, &[])?));
            }
        }
        Ok(Self { interfaces, saved })
    }

    /// Has the interfaces stay when nobody has them open.
    pub(crate) fn keep(&self) -> Result<(), String> {
        self.interfaces.iter().try_for_each(|interface| {
            keep_tap(interface, true)
                .map_err(|error| format!("interface `{interface}` cannot be kept: {error}"))
        })
    }

    /// Gives them back what they had.
    pub(crate) fn restore(&self) {
        for (words, bytes) in &self.saved {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            if let Err(why) = ip(&words, bytes) {
                tracing::error!("`ip {}` has failed: {why}", words.join(" "));
            }
        }
    }

    /// Has them go with the process that has them open now.
    pub(crate) fn keep_no_longer(&self) {
        for interface in &self.interfaces {
            if let Err(error) = keep_tap(interface, false) {
                tracing::warn!(interface, "it stays when this process ends: {error}");
            }
        }
    }
}

/// Runs `ip` and returns what it prints; what is there already it passes over.
fn ip(words: &[&str], input: &[u8]) -> Result<Vec<u8>, String> {
    use std::io::{Seek, Write};
    let failed = |error: std::io::Error| format!("`ip` cannot be run: {error}");
    // It reads routes twice, which a pipe does not let it.
    let file = memfd_create("saved", MemfdFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
    let mut file = std::fs::File::from(file);
    file.write_all(input).and_then(|()| file.rewind()).map_err(failed)?;
    let output = Command::new("ip").args(words).stdin(file).output().map_err(failed)?;
    match output.status.success() {
        true => Ok(output.stdout),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}
