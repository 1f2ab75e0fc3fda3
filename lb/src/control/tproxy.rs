//! Transparent listening: nftables hands the services' connections to a few sockets.
//!
//! A table of our own holds a set of address · port for each family; a rule marks what matches
//! and gives it to our sockets; marked packets are routed to this machine whatever their address.
//! Connections that are open go on when their address leaves the set: their own sockets claim them.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::IpAddr;

use fairway_core::{Frontend, Protocol, Tick};
use fairway_uring::{Command, ListenError, ListenerKey, WorkerHandle, open_transparent};

use super::system::run;

/// Name of the nftables table.
const TABLE: &str = "fairway";
/// Firewall mark of our packets, and number of their routing table: "fw" in ASCII.
const MARK: &str = "0x6677";
const ROUTES: &str = "26231";
/// Time after which a failed change is tried again.
const RETRY_MS: u64 = 1000;
/// From one look whether our table is still there to the next.
const VERIFY_MS: u64 = 5000;

/// Ports of our sockets of one family.
#[derive(Debug, Clone, Copy, Default)]
struct Ports {
    tcp: u16,
    udp: u16,
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
    sockets: usize,
}

impl Tproxy {
    /// Opens the sockets, has the workers accept on them, and makes table, rules and routes.
    pub(crate) fn start(workers: &[WorkerHandle]) -> Result<Self, String> {
        let (v4, mut sockets) = listen(false, workers).map_err(|error| error.to_string())?;
        let v6 = match listen(true, workers) {
            Ok((port, more)) => {
                sockets += more;
                Some(port)
            }
            Err(error) => {
                tracing::warn!("no transparent IPv6: {error}");
                None
            }
        };
        let mut tproxy = Self { ports: (v4, v6), sockets, ..Self::detached() };
        tproxy.rebuild()?;
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
            sockets: 0,
        }
    }

    pub(crate) fn change(&mut self, removed: &[Frontend], added: &[Frontend]) {
        for frontend in removed {
            self.wanted.remove(frontend);
        }
        self.wanted.extend(added);
        elements(&mut self.pending, "delete", removed.iter());
        elements(&mut self.pending, "add", added.iter());
    }

    /// Applies the gathered changes as one transaction; makes everything anew when they do not
    /// apply, or when somebody has taken our table away.
    pub(crate) fn flush(&mut self, now: Tick) {
        if now < self.retry_at {
            return;
        }
        let lost = now >= self.verify_at && {
            self.verify_at = Tick(now.0 + VERIFY_MS);
            run("nft", &["-t", "list", "table", "inet", TABLE], "").is_err()
        };
        if lost {
            tracing::warn!("our nftables table is gone; making it again");
        }
        if self.trouble.is_none() && !lost {
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
        Ok(())
    }

    pub(crate) fn is_waiting(&self) -> bool {
        self.trouble.is_some() || !self.pending.is_empty()
    }

    pub(crate) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Whether addresses of this family are served at all.
    pub(crate) fn serves(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() || self.ports.1.is_some() || self.sockets == 0
    }

    pub(crate) fn sockets(&self) -> usize {
        self.sockets
    }

    pub(crate) fn clean_up(&mut self) {
        forget();
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

/// A socket for each worker and protocol; those of one protocol on the port that the first gets.
fn listen(ipv6: bool, workers: &[WorkerHandle]) -> Result<(Ports, usize), ListenError> {
    let mut ports = Ports::default();
    for (protocol, port) in [(Protocol::Tcp, &mut ports.tcp), (Protocol::Udp, &mut ports.udp)] {
        for worker in workers {
            let socket = open_transparent(ipv6, *port, protocol)?;
            if let Some(addr) = socket.local_addr().ok().and_then(|addr| addr.as_socket()) {
                *port = addr.port();
            }
            let key = ListenerKey(u64::MAX - u64::from(ipv6) - 2 * u64::from(protocol.number()));
            worker.send(Command::Listen { key, socket, protocol, vip: None });
        }
    }
    Ok((ports, 2 * workers.len()))
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
