//! `fairway import`: what others are set to, as a document of ours; and what of it could not be carried over.

mod haproxy;
mod ipvsadm;
mod keepalived;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;

use super::{EXIT_CHANGES, EXIT_CONFIG, EXIT_FAILURE, counted};

/// Whose configuration it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Origin {
    /// What `ipvsadm-save -n` prints
    Ipvsadm,
    /// haproxy.cfg
    Haproxy,
    /// keepalived.conf
    Keepalived,
}

/// A document that is being made.
#[derive(Debug, Default)]
struct Document {
    services: Vec<Service>,
    vrrp: Vec<Group>,
    notes: Vec<Note>,
}

/// What could not be carried over, and where it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Note {
    lines: BTreeSet<usize>,
    /// Whether it decides who is served, or where.
    lost: bool,
    text: String,
}

#[derive(Debug, Clone, Default)]
struct Service {
    name: String,
    addresses: Vec<IpAddr>,
    ports: Vec<Port>,
    mode: Option<&'static str>,
    scheduler: Option<&'static str>,
    affinity_seconds: Option<u32>,
    backends: Vec<Backend>,
    /// Further fields, each a whole line: `limits: {serviceConnections: 5}`.
    fields: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Port {
    port: u16,
    /// Of a range, its end.
    last: Option<u16>,
    protocol: &'static str,
    /// Where backends have it, when they do not say so themselves.
    target: Option<u16>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Backend {
    /// `ip:port` or `name:port`; without a port it is the one that was dialled.
    address: String,
    weight: u32,
    /// Who serves when none of the others can.
    backup: bool,
    /// The lowest serves first.
    priority: Option<usize>,
    name: Option<String>,
}

/// A group of VRRP.
#[derive(Debug, Default, Clone)]
struct Group {
    name: String,
    fields: Vec<String>,
}

/// What a path or the standard input has is printed as a document; what is missing of it goes beside.
pub(super) fn import(origin: Origin, file: &Path, addresses: &[IpAddr]) -> ExitCode {
    let text = match read(file) {
        Ok(text) => text,
        Err(error) => {
            eprintln!("fairway: {}: {error}", file.display());
            return ExitCode::from(EXIT_FAILURE);
        }
    };
    let mut document = match origin {
        Origin::Ipvsadm => ipvsadm::read(&text),
        Origin::Haproxy => haproxy::read(&text, addresses),
        Origin::Keepalived => keepalived::read(&text),
    };
    document.settle();
    let (services, empty) =
        (document.services.len(), document.services.is_empty() && document.vrrp.is_empty());
    if !empty {
        print!("{}", document.text());
    }
    for Note { lines, lost, text } in &document.notes {
        let lines: Vec<String> = lines.iter().map(usize::to_string).collect();
        let lost = if *lost { "lost: " } else { "" };
        eprintln!("{}:{}: {lost}{text}", file.display(), lines.join(","));
    }
    if empty {
        eprintln!("fairway: {} has nothing that could be carried over", file.display());
        return ExitCode::from(EXIT_CONFIG);
    }
    let lost = document.notes.iter().filter(|note| note.lost).count();
    let other = document.notes.len() - lost;
    eprintln!(
        "fairway: {} carried over, {} lost, {} without a counterpart; `fairway check` knows whether the document is \
         whole",
        counted(services, "service"),
        counted(lost, "thing"),
        counted(other, "thing")
    );
    if lost > 0 {
        eprintln!(
            "fairway: what is lost decides who is served, or where: put it in by hand before this serves"
        );
        return ExitCode::from(EXIT_CHANGES);
    }
    ExitCode::SUCCESS
}

fn read(file: &Path) -> std::io::Result<String> {
    if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        return Ok(text);
    }
    std::fs::read_to_string(file)
}

impl Document {
    /// What has no counterpart, and does not decide who is served.
    fn note(&mut self, line: usize, text: impl Into<String>) {
        self.say(line, false, text.into());
    }

    /// What decides who is served, or where, and is not in the document.
    fn lost(&mut self, line: usize, text: impl Into<String>) {
        self.say(line, true, text.into());
    }

    fn say(&mut self, line: usize, lost: bool, text: String) {
        match self.notes.iter_mut().find(|note| note.text == text) {
            Some(note) => _ = note.lines.insert(line),
            None => self.notes.push(Note { lines: [line].into(), lost, text }),
        }
    }

    /// Names are unique, ports of backends clear, and weights what a document may have; what is lost is said
    /// first.
    fn settle(&mut self) {
        self.notes.sort_by_key(|note| (!note.lost, note.lines.first().copied()));
        for service in &mut self.services {
            // Packets keep the port that was dialled there.
            if service.mode.is_some_and(|mode| mode != "nat") {
                for backend in &mut service.backends {
                    if let Ok(addr) = backend.address.parse::<SocketAddr>() {
                        backend.address = addr.ip().to_string();
                    }
                }
            }
        }
        let services = std::mem::take(&mut self.services);
        self.services = services.into_iter().flat_map(Service::clear).collect();
        let mut names = BTreeSet::new();
        for service in &mut self.services {
            let plain = plain(&service.name);
            let others = (2..).map(|n| format!("{plain}-{n}"));
            let free = std::iter::once(plain.clone()).chain(others).find(|it| !names.contains(it));
            service.name = free.unwrap_or(plain);
            names.insert(service.name.clone());
            let largest = service.backends.iter().map(|it| it.weight).max().unwrap_or(1);
            if largest > 1000 {
                for backend in &mut service.backends {
                    let scaled = u64::from(backend.weight) * 1000 / u64::from(largest);
                    backend.weight = (scaled as u32).max(1);
                }
            }
        }
    }

    /// As YAML.
    fn text(&self) -> String {
        let mut out =
            String::from("# Made by `fairway import`; `fairway check` finds what is missing.\n");
        // Writing into a String cannot fail.
        if self.services.iter().any(|service| service.mode.is_some()) {
            let _ = writeln!(
                out,
                "dataplane:\n  packet:\n    interfaces: [eth0]    # where packets come and go: name yours"
            );
        }
        if !self.vrrp.is_empty() {
            let _ = writeln!(out, "announce:\n  vrrp:");
            for Group { name, fields } in &self.vrrp {
                let _ = writeln!(out, "    - name: {}", quoted(name));
                for field in fields {
                    let _ = writeln!(out, "      {field}");
                }
            }
        }
        let empty = if self.services.is_empty() { " []" } else { "" };
        let _ = writeln!(out, "services:{empty}");
        for service in &self.services {
            service.write(&mut out);
        }
        out
    }
}

impl Service {
    /// Of several ports, each needs to know the backends' ports: backends that have one in common leave it
    /// to the ports, others make a service for each port.
    fn clear(mut self) -> Vec<Self> {
        let alone = |backend: &Backend| !has_port(&backend.address);
        if self.ports.len() < 2 || self.backends.iter().all(alone) {
            return vec![self];
        }
        let split = |address: &str| {
            let (host, port) = address.rsplit_once(':')?;
            let host = host.trim_start_matches('[').trim_end_matches(']');
            Some((host.to_owned(), port.parse::<u16>().ok()?))
        };
        let known: Option<Vec<_>> = self.backends.iter().map(|it| split(&it.address)).collect();
        let first = known.as_ref().and_then(|known| known.first()).map(|(_, port)| *port);
        match (known, first) {
            (Some(known), Some(first)) if known.iter().all(|(_, port)| *port == first) => {
                for (backend, (host, _)) in self.backends.iter_mut().zip(known) {
                    backend.address = host;
                }
                self.ports.iter_mut().for_each(|port| port.target = Some(first));
                vec![self]
            }
            _ => {
                let ports = std::mem::take(&mut self.ports);
                let of = |port: Port| Self {
                    name: format!("{}-{}", self.name, port.port),
                    ports: vec![port],
                    ..self.clone()
                };
                ports.into_iter().map(of).collect()
            }
        }
    }

    fn write(&self, out: &mut String) {
        let list = |items: Vec<String>| items.join(", ");
        let addresses = self.addresses.iter().map(|ip| quoted(&ip.to_string())).collect();
        // Writing into a String cannot fail.
        let _ =
            writeln!(out, "  - name: {}\n    addresses: [{}]", quoted(&self.name), list(addresses));
        let _ = writeln!(out, "    ports:");
        for Port { port, last, protocol, target } in &self.ports {
            let port = last.map_or(port.to_string(), |last| format!("{port}-{last}"));
            let protocol = (*protocol != "TCP").then(|| format!(", protocol: {protocol}"));
            let target = target.map(|target| format!(", targetPort: {target}"));
            let more = [protocol, target].into_iter().flatten().collect::<String>();
            match more.is_empty() {
                true => _ = writeln!(out, "      - port: {port}"),
                false => _ = writeln!(out, "      - {{port: {port}{more}}}"),
            }
        }
        if let Some(mode) = self.mode {
            let _ = writeln!(out, "    mode: {mode}");
        }
        if let Some(scheduler) = self.scheduler {
            let _ = writeln!(out, "    scheduler: {scheduler}");
        }
        if let Some(seconds) = self.affinity_seconds {
            let _ = writeln!(
                out,
                "    sessionAffinity: ClientIP\n    sessionAffinityTimeout: {seconds}s"
            );
        }
        for field in &self.fields {
            let _ = writeln!(out, "    {field}");
        }
        let (backup, first): (Vec<_>, Vec<_>) = self.backends.iter().partition(|it| it.backup);
        for (field, backends) in [("backends", first), ("backupBackends", backup)] {
            if backends.is_empty() && (field != "backends") {
                continue;
            }
            let empty = if backends.is_empty() { " []" } else { "" };
            let _ = writeln!(out, "    {field}:{empty}");
            for Backend { address, weight, name, priority, .. } in backends {
                let priority = priority.map(|priority| format!(", priority: {priority}"));
                let name = name.as_ref().map(|name| format!(", name: {}", quoted(name)));
                let weight = (*weight != 1).then(|| format!(", weight: {weight}"));
                let more = [name, weight, priority].into_iter().flatten().collect::<String>();
                match more.is_empty() {
                    true => _ = writeln!(out, "      - {}", quoted(address)),
                    false => _ = writeln!(out, "      - {{address: {}{more}}}", quoted(address)),
                }
            }
        }
    }
}

/// A text as YAML has it, with quotes where it could be taken for something else.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    let word = text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.chars().all(plain);
    let taken = ["yes", "no", "true", "false", "on", "off", "null", "y", "n"];
    match word && !taken.contains(&text.to_ascii_lowercase().as_str()) {
        true => text.into(),
        false => format!("{text:?}"),
    }
}

/// A name as a service may have one.
fn plain(text: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    text.chars().map(|c| if fits(c) { c } else { '-' }).collect()
}

/// Places as services have them, each with all of its ports at all of its addresses: one port at one address and
/// another at another are two services, or four places would be served.
fn arranged(places: impl IntoIterator<Item = (IpAddr, Port)>) -> Vec<(Vec<IpAddr>, Vec<Port>)> {
    let mut by_address: Vec<(IpAddr, Vec<Port>)> = Vec::new();
    for (ip, port) in places {
        match by_address.iter_mut().find(|(known, _)| *known == ip) {
            Some((_, ports)) if ports.contains(&port) => {}
            Some((_, ports)) => ports.push(port),
            None => by_address.push((ip, vec![port])),
        }
    }
    let mut services: Vec<(Vec<IpAddr>, Vec<Port>)> = Vec::new();
    for (ip, mut ports) in by_address {
        ports.sort_by_key(|port| port.port);
        match services.iter_mut().find(|(_, known)| *known == ports) {
            Some((addresses, _)) => addresses.push(ip),
            None => services.push((vec![ip], ports)),
        }
    }
    services
}

/// The heaviest serves alone, until it cannot: what IPVS calls failover.
fn by_weight(service: &mut Service) {
    let mut weights: Vec<u32> = service.backends.iter().map(|it| it.weight).collect();
    weights.sort_unstable_by(|a, b| b.cmp(a));
    weights.dedup();
    for backend in service.backends.iter_mut().filter(|it| !it.backup) {
        backend.priority = weights.iter().position(|weight| *weight == backend.weight);
        backend.weight = 1;
    }
}

/// Whether an address of a backend ends in a port.
fn has_port(address: &str) -> bool {
    address.parse::<IpAddr>().is_err()
        && address.rsplit_once(':').is_some_and(|(_, port)| {
            port.bytes().all(|digit| digit.is_ascii_digit()) && port.parse::<u16>().is_ok()
        })
}

/// An address and a port, as all three write them.
fn endpoint(text: &str) -> Option<SocketAddr> {
    text.parse().ok()
}

/// A scheduler of IPVS as ours is called.
fn scheduler_of_ipvs(word: &str) -> Option<&'static str> {
    Some(match word {
        "rr" | "wrr" => "roundRobin",
        "lc" | "wlc" => "leastConnections",
        "sed" => "shortestExpectedDelay",
        "nq" => "neverQueue",
        "sh" => "sourceHash",
        "dh" => "destinationHash",
        "mh" => "maglev",
        "twos" => "powerOfTwo",
        _ => return None,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The document that a text becomes is good, and these are its notes.
    pub(super) fn settled(mut document: Document) -> (String, Vec<String>) {
        document.settle();
        let text = document.text();
        let path = Path::new("imported.yaml").into();
        if let Err(problems) = fairway_config::load_text(&path, &text) {
            panic!("{problems}\n{text}");
        }
        let note = |note: &Note| {
            let lines: Vec<String> = note.lines.iter().map(usize::to_string).collect();
            format!("{}:{} {}", lines.join(","), if note.lost { " lost:" } else { "" }, note.text)
        };
        (text, document.notes.iter().map(note).collect())
    }

    /// These notes, and no others, begin so.
    pub(super) fn told(notes: &[String], wanted: &[&str]) {
        assert_eq!(notes.len(), wanted.len(), "{notes:#?}");
        for (note, wanted) in notes.iter().zip(wanted) {
            assert!(note.starts_with(wanted), "{wanted}: {notes:#?}");
        }
    }

    #[test]
    fn texts_are_quoted_where_they_must_be() {
        for (text, want) in [
            ("web-1", "web-1"),
            ("10.0.0.1:80", "\"10.0.0.1:80\""),
            ("no", "\"no\""),
            ("a b", "\"a b\""),
            ("fd00::1", "\"fd00::1\""),
        ] {
            assert_eq!(quoted(text), want);
        }
    }
}
