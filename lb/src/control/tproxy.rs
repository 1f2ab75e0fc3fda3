//! Transparent listening: nftables hands the services' connections to a few sockets.
//!
//! A table of our own holds a set of address · port for each family; a rule marks what matches
//! and gives it to our sockets; marked packets are routed to this machine whatever their address.
//! Connections that are open go on when their address leaves the set: their own sockets claim them.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use fairway_core::{Frontend, Protocol, Tick};
use fairway_uring::{ListenError, ListenerKey, WorkerHandle, open_transparent};
use socket2::Socket;

use super::listeners::give;
use super::nf_table::is_there;
use super::system::run;
use crate::handover::Inherited;
use crate::manager::Manager;

/// Name of the nftables table.
const TABLE: &str = "fairway";
/// Firewall mark of our packets, and number of their routing table: "fw" in ASCII.
const MARK: &str = "0x6677";
const ROUTES: &str = "26231";
/// Time after which a failed change is tried again.
const RETRY_MS: u64 = 1000;
/// From one look whether our table is still there to the next.
const VERIFY_MS: u64 = 1000;
/// The name of the sockets for TCP over IPv4.
const NAME_TCP4: &str = "tproxy-tcp4";

/// Ports of our sockets of one family.
#[derive(Debug, Clone, Copy, Default)]
struct Ports {
    tcp: u16,
    udp: u16,
}

/// Sockets of a protocol and family.
struct Opened {
    /// The name under which the next process finds them.
    name: &'static str,
    key: ListenerKey,
    protocol: Protocol,
    sockets: Vec<Socket>,
}

/// The nftables side of transparent listening.
pub(crate) struct Tproxy {
    /// Ports of our sockets, by family; no IPv6 where the kernel has none.
    ports: (Ports, Option<Ports>),
    /// What the sets are to hold.
    wanted: BTreeSet<Frontend>,
    /// Changes that have not reached the kernel.
    pending: String,
    trouble: Option<String>,
    retry_at: Tick,
    verify_at: Tick,
    /// Copies of what workers accept on.
    sockets: Vec<Opened>,
    /// Workers have them.
    given: bool,
    /// The table is one of a process before this one: right for its services, and brought to ours once
    /// they are known.
    stale: bool,
    /// What its sets hold, as far as that process has said.
    present: Option<BTreeSet<String>>,
    /// The next process has the table.
    left: bool,
}

impl Tproxy {
    /// Opens the sockets of so many workers, or takes those that are inherited, and makes table, rules and
    /// routes. Workers accept once something is served. `manager` keeps the sockets for the next process;
    /// the one before has said what its sets hold, if it is `present`.
    pub(crate) fn start(
        workers: usize,
        inherited: &mut Inherited,
        manager: &Manager,
        present: Vec<String>,
    ) -> Result<Self, String> {
        let mut sockets = Vec::new();
        let stale = inherited.has(NAME_TCP4);
        let mut open = |ipv6| open(ipv6, workers, inherited, &mut sockets);
        let v4 = open(false).map_err(|error| error.to_string())?;
        let v6 = open(true).map_err(|error| tracing::warn!("no transparent IPv6: {error}")).ok();
        for Opened { name, sockets, .. } in &sockets {
            manager.keep(name, sockets);
        }
        let present = (!present.is_empty()).then(|| present.into_iter().collect());
        let mut tproxy = Self { ports: (v4, v6), sockets, stale, present, ..Self::detached() };
        if !stale {
            tproxy.rebuild()?;
        }
        tproxy.trouble = None;
        tproxy.retry_at = Tick(0);
        tproxy.verify_at = Tick(VERIFY_MS);
        Ok(tproxy)
    }

    /// Gathers changes and never sends them.
    pub(crate) fn detached() -> Self {
        Self {
            ports: (Ports::default(), None),
            wanted: BTreeSet::new(),
            pending: String::new(),
            trouble: Some("detached".into()),
            retry_at: Tick(u64::MAX),
            verify_at: Tick(u64::MAX),
            sockets: Vec::new(),
            given: false,
            stale: false,
            present: None,
            left: false,
        }
    }

    /// What its sets hold; nothing is said when that is not known.
    pub(crate) fn held(&self) -> BTreeSet<String> {
        if self.trouble.is_some() || self.stale || !self.pending.is_empty() {
            return BTreeSet::new();
        }
        self.wanted.iter().map(element).collect()
    }

    /// Keeps no copies of its sockets any longer; their names.
    pub(crate) fn close(&mut self) -> impl Iterator<Item = &'static str> + use<> {
        let opened = self.sockets.iter_mut();
        let names: Vec<_> = opened.map(|opened| (opened.sockets.clear(), opened.name).1).collect();
        names.into_iter()
    }

    /// The table may be another process's: it is made anew.
    pub(crate) fn restore(&mut self) {
        (self.stale, self.present) = (true, None);
        self.retry_at = Tick(0);
    }

    /// Leaves table, rules and routes to the next process.
    pub(crate) fn leave(&mut self) {
        self.left = true;
        (self.retry_at, self.verify_at) = (Tick(u64::MAX), Tick(u64::MAX));
    }

    pub(crate) fn change(&mut self, removed: &[Frontend], added: &[Frontend]) {
        for frontend in removed {
            self.wanted.remove(frontend);
        }
        self.wanted.extend(added);
        elements(&mut self.pending, "delete", removed.iter());
        elements(&mut self.pending, "add", added.iter());
    }

    /// Has the workers accept: what is served is published.
    pub(crate) fn serve(&mut self, workers: &[WorkerHandle]) {
        if std::mem::replace(&mut self.given, true) {
            return;
        }
        for Opened { key, protocol, sockets, .. } in &self.sockets {
            if let Err(error) = give(*key, *protocol, None, sockets, workers) {
                tracing::error!(
                    "no descriptors to listen: {error}; raise LimitNOFILE= of the service"
                );
            }
        }
    }

    /// Applies the gathered changes as one transaction; makes everything anew when they do not
    /// apply, or when somebody has taken our table away.
    pub(crate) fn flush(&mut self, now: Tick) {
        if now < self.retry_at {
            return;
        }
        let lost = now >= self.verify_at && {
            self.verify_at = Tick(now.0 + VERIFY_MS);
            // One of which nothing can be learned is taken for there.
            let there = is_there(TABLE);
            if let Err(why) = there {
                tracing::debug!("our nftables table cannot be asked for: {why}");
            }
            there == Ok(false)
        };
        if lost {
            tracing::warn!("our nftables table is gone; making it again");
        }
        if !lost
            && self.stale
            && let Some(present) = self.present.take()
        {
            // Of what is replaced, even by the same, the kernel knows nothing for some microseconds.
            self.stale = false;
            self.pending = difference(&present, &self.wanted.iter().map(element).collect());
        }
        if self.trouble.is_none() && !lost && !self.stale {
            if self.pending.is_empty() {
                return;
            }
            if run("nft", &["-f", "-"], &self.pending).is_ok() {
                self.pending.clear();
                return;
            }
        }
        match self.rebuild() {
            Ok(()) => self.trouble = None,
            Err(why) => {
                let why = format!("nftables refused our table: {why}");
                if self.trouble.is_none() {
                    tracing::error!("{why}; trying again every second");
                }
                self.trouble = Some(why);
                self.retry_at = Tick(now.0 + RETRY_MS);
            }
        }
    }

    /// Table, sets with all that is wanted, rules and routes, from nothing.
    ///
    /// The table is replaced in one transaction, rules and routes that are there are kept: open
    /// connections miss no packet.
    fn rebuild(&mut self) -> Result<(), String> {
        let mut text = format!("table inet {TABLE} {{}}\ndelete table inet {TABLE}\n");
        text += &table(self.ports.0, self.ports.1);
        elements(&mut text, "add", self.wanted.iter());
        run("nft", &["-f", "-"], &text)?;
        for (family, all) in [("-4", "0.0.0.0/0"), ("-6", "::/0")] {
            if family == "-6" && self.ports.1.is_none() {
                continue;
            }
            let rules = run("ip", &[family, "rule", "list"], "")?;
            if !rules.contains(&format!("fwmark {MARK} lookup {ROUTES}")) {
                run("ip", &[family, "rule", "add", "fwmark", MARK, "lookup", ROUTES], "")?;
            }
            let route = [family, "route", "replace", "local", all, "dev", "lo", "table", ROUTES];
            run("ip", &route, "")?;
        }
        self.pending.clear();
        self.stale = false;
        Ok(())
    }

    pub(crate) fn is_waiting(&self) -> bool {
        self.trouble.is_some() || !self.pending.is_empty() || self.stale
    }

    pub(crate) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Whether addresses of this family are served at all.
    pub(crate) fn serves(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() || self.ports.1.is_some() || self.sockets.is_empty()
    }

    /// Descriptors of its sockets, each in a worker and here.
    pub(crate) fn descriptors(&self) -> usize {
        self.sockets.iter().map(|opened| 2 * opened.sockets.len()).sum()
    }

    /// Its sockets, by the names under which the next process finds them.
    pub(crate) fn to_hand_over(&self) -> impl Iterator<Item = (String, BorrowedFd<'_>)> {
        self.sockets.iter().flat_map(|Opened { name, sockets, .. }| {
            sockets.iter().map(|socket| ((*name).to_owned(), socket.as_fd()))
        })
    }

    pub(crate) fn clean_up(&mut self) {
        if !self.left {
            forget();
        }
    }
}

/// Appends the statements that `verb` the frontends in their sets.
fn elements<'f>(text: &mut String, verb: &str, frontends: impl Iterator<Item = &'f Frontend>) {
    let (v4, v6): (Vec<_>, Vec<_>) = frontends.partition(|frontend| frontend.ip().is_ipv4());
    for (set, frontends) in [("vips4", v4), ("vips6", v6)] {
        let elements: Vec<_> = frontends.into_iter().map(element).collect();
        if !elements.is_empty() {
            let elements = elements.join(", ");
            // Writing into a String cannot fail.
            let _ = writeln!(text, "{verb} element inet {TABLE} {set} {{ {elements} }}");
        }
    }
}

/// The statements that bring sets from some elements to others.
fn difference(before: &BTreeSet<String>, after: &BTreeSet<String>) -> String {
    let mut text = String::new();
    for (verb, elements) in
        [("delete", before.difference(after)), ("add", after.difference(before))]
    {
        let (v6, v4): (Vec<_>, Vec<_>) = elements.partition(|element| element.contains(':'));
        for (set, elements) in [("vips4", v4), ("vips6", v6)] {
            if !elements.is_empty() {
                let elements =
                    elements.into_iter().map(String::as_str).collect::<Vec<_>>().join(", ");
                // Writing into a String cannot fail.
                let _ = writeln!(text, "{verb} element inet {TABLE} {set} {{ {elements} }}");
            }
        }
    }
    text
}

/// A socket for each worker and protocol; those of one protocol on the port that the first gets.
fn open(
    ipv6: bool,
    workers: usize,
    inherited: &mut Inherited,
    all: &mut Vec<Opened>,
) -> Result<Ports, ListenError> {
    let mut ports = Ports::default();
    for (protocol, port) in [(Protocol::Tcp, &mut ports.tcp), (Protocol::Udp, &mut ports.udp)] {
        let name = match (protocol, ipv6) {
            (Protocol::Tcp, false) => NAME_TCP4,
            (Protocol::Tcp, true) => "tproxy-tcp6",
            (_, false) => "tproxy-udp4",
            (_, true) => "tproxy-udp6",
        };
        let mut sockets = inherited.sockets(name, None);
        loop {
            let first = sockets.first().and_then(|first| first.local_addr().ok()?.as_socket());
            *port = first.map_or(*port, |addr| addr.port());
            if sockets.len() >= workers {
                break;
            }
            sockets.push(open_transparent(ipv6, *port, protocol)?);
        }
        let key = ListenerKey(u64::MAX - u64::from(ipv6) - 2 * u64::from(protocol.number()));
        all.push(Opened { name, key, protocol, sockets });
    }
    Ok(ports)
}

/// Takes away what an earlier process may have left. What is not there is no error.
fn forget() {
    let _ = run("nft", &["delete", "table", "inet", TABLE], "");
    forget_routes();
}

fn forget_routes() {
    for family in ["-4", "-6"] {
        while run("ip", &[family, "rule", "delete", "fwmark", MARK, "lookup", ROUTES], "").is_ok() {
        }
        let _ = run("ip", &[family, "route", "flush", "table", ROUTES], "");
    }
}

fn table(v4: Ports, v6: Option<Ports>) -> String {
    let mut rules = String::new();
    let mut rule = |family: &str, set: &str, to: &str, ports: Ports| {
        for (protocol, port) in [("tcp", ports.tcp), ("udp", ports.udp)] {
            // Writing into a String cannot fail.
            let _ = writeln!(
                rules,
                "    {family} daddr . meta l4proto . {protocol} dport @{set} tproxy {family} to \
                 {to}:{port} meta mark set {MARK} accept"
            );
        }
    };
    rule("ip", "vips4", "127.0.0.1", v4);
    if let Some(v6) = v6 {
        rule("ip6", "vips6", "[::1]", v6);
    }
    format!(
        "table inet {TABLE} {{
  set vips4 {{ type ipv4_addr . inet_proto . inet_service; flags interval; }}
  set vips6 {{ type ipv6_addr . inet_proto . inet_service; flags interval; }}
  chain prerouting {{
    type filter hook prerouting priority mangle; policy accept;
{rules}    meta l4proto {{ tcp, udp }} socket transparent 1 meta mark set {MARK} accept
  }}
}}
"
    )
}

fn element(frontend: &Frontend) -> String {
    let ip: IpAddr = frontend.ip();
    let protocol = frontend.protocol.to_string().to_lowercase();
    format!("{ip} . {protocol} . {}", frontend.ports)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fairway_core::PortRange;
    use std::num::NonZeroU16;

    #[test]
    fn what_is_there_already_is_left_alone() {
        let set = |list: &[&str]| list.iter().map(|it| (*it).to_owned()).collect();
        let before = set(&["192.0.2.1 . tcp . 80", "192.0.2.2 . tcp . 80"]);
        let after = set(&["192.0.2.2 . tcp . 80", "2001:db8::1 . udp . 53"]);
        assert_eq!(difference(&before, &before), "");
        assert_eq!(
            difference(&before, &after),
            "delete element inet fairway vips4 { 192.0.2.1 . tcp . 80 }\n\
             add element inet fairway vips6 { 2001:db8::1 . udp . 53 }\n"
        );
    }

    #[test]
    fn changes_are_grouped_by_set() {
        let port = |n| NonZeroU16::new(n).unwrap();
        let range = PortRange::new(port(80), port(90)).unwrap();
        let at =
            |ip: &str, ports| Frontend { net: ip.parse().unwrap(), ports, protocol: Protocol::Tcp };
        let single = PortRange::single(port(443));
        let mut tproxy = Tproxy::detached();
        tproxy.change(
            &[at("192.0.2.1", single)],
            &[at("192.0.2.2", range), at("192.0.2.3", single), at("2001:db8::1", single)],
        );
        assert_eq!(
            tproxy.pending,
            "delete element inet fairway vips4 { 192.0.2.1 . tcp . 443 }\n\
             add element inet fairway vips4 { 192.0.2.2 . tcp . 80-90, 192.0.2.3 . tcp . 443 }\n\
             add element inet fairway vips6 { 2001:db8::1 . tcp . 443 }\n"
        );
    }
}
