//! Transparent listening: nftables hands the services' connections to a few sockets.
//!
//! A table of our own holds a set of address · port for each family; a rule marks what matches
//! and gives it to our sockets; marked packets are routed to this machine whatever their address.

use std::fmt::Write;
use std::net::IpAddr;

use fairway_core::{Frontend, Tick};
use fairway_uring::{Command, ListenError, ListenerKey, WorkerHandle, open_transparent};

use super::vip::run;

/// Name of the nftables table.
const TABLE: &str = "fairway";
/// Firewall mark of our packets, and number of their routing table: "fw" in ASCII.
const MARK: &str = "0x6677";
const ROUTES: &str = "26231";
/// Time after which a failed change is tried again.
const RETRY_MS: u64 = 1000;

/// The nftables side of transparent listening.
pub(crate) struct Tproxy {
    /// Changes that have not reached the kernel.
    pending: String,
    trouble: Option<String>,
    retry_at: Tick,
    sockets: usize,
}

impl Tproxy {
    /// Opens the sockets, has the workers accept on them, and makes table, rules and routes.
    pub(crate) fn start(workers: &[WorkerHandle]) -> Result<Self, String> {
        let (v4, v4_sockets) = listen(false, workers).map_err(|error| error.to_string())?;
        let (v6, v6_sockets) = listen(true, workers).map_err(|error| error.to_string())?;
        forget();
        run("nft", &["-f", "-"], &table(v4, v6))?;
        for family in ["-4", "-6"] {
            let all = if family == "-4" { "0.0.0.0/0" } else { "::/0" };
            run("ip", &[family, "rule", "add", "fwmark", MARK, "lookup", ROUTES], "")?;
            let route = [family, "route", "replace", "local", all, "dev", "lo", "table", ROUTES];
            run("ip", &route, "")?;
        }
        let sockets = v4_sockets + v6_sockets;
        Ok(Self { pending: String::new(), trouble: None, retry_at: Tick(0), sockets })
    }

    /// Gathers changes and never sends them.
    pub(crate) fn detached() -> Self {
        let trouble = Some("detached".into());
        Self { pending: String::new(), trouble, retry_at: Tick(u64::MAX), sockets: 0 }
    }

    pub(crate) fn change(&mut self, removed: &[Frontend], added: &[Frontend]) {
        for (verb, frontends) in [("delete", removed), ("add", added)] {
            for (set, is_v4) in [("vips4", true), ("vips6", false)] {
                let of_family = frontends.iter().filter(|f| f.ip.is_ipv4() == is_v4);
                let elements: Vec<_> = of_family.map(element).collect();
                if !elements.is_empty() {
                    // Writing into a String cannot fail.
                    let _ = writeln!(
                        self.pending,
                        "{verb} element inet {TABLE} {set} {{ {} }}",
                        elements.join(", ")
                    );
                }
            }
        }
    }

    /// Applies the gathered changes as one transaction.
    pub(crate) fn flush(&mut self, now: Tick) {
        if self.pending.is_empty() || (self.trouble.is_some() && now < self.retry_at) {
            return;
        }
        match run("nft", &["-f", "-"], &self.pending) {
            Ok(()) => {
                self.pending.clear();
                self.trouble = None;
            }
            Err(why) => {
                let why = format!("nftables refused a change: {why}");
                if self.trouble.is_none() {
                    tracing::error!("{why}; trying again every second");
                }
                self.trouble = Some(why);
                self.retry_at = Tick(now.0 + RETRY_MS);
            }
        }
    }

    pub(crate) fn is_waiting(&self) -> bool {
        !self.pending.is_empty()
    }

    pub(crate) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    pub(crate) fn sockets(&self) -> usize {
        self.sockets
    }

    pub(crate) fn clean_up(&mut self) {
        forget();
    }
}

/// One socket a worker, all on the port that the first one gets.
fn listen(ipv6: bool, workers: &[WorkerHandle]) -> Result<(u16, usize), ListenError> {
    let mut port = 0;
    for worker in workers {
        let socket = open_transparent(ipv6, port)?;
        if let Some(addr) = socket.local_addr().ok().and_then(|addr| addr.as_socket()) {
            port = addr.port();
        }
        let key = ListenerKey(u64::MAX - u64::from(ipv6));
        worker.send(Command::Listen { key, socket, vip: None });
    }
    Ok((port, workers.len()))
}

/// Takes away what an earlier process may have left. What is not there is no error.
fn forget() {
    let _ = run("nft", &["delete", "table", "inet", TABLE], "");
    for family in ["-4", "-6"] {
        while run("ip", &[family, "rule", "delete", "fwmark", MARK, "lookup", ROUTES], "").is_ok() {
        }
        let _ = run("ip", &[family, "route", "flush", "table", ROUTES], "");
    }
}

fn table(v4_port: u16, v6_port: u16) -> String {
    format!(
        "table inet {TABLE} {{
  set vips4 {{ type ipv4_addr . inet_service; flags interval; }}
  set vips6 {{ type ipv6_addr . inet_service; flags interval; }}
  chain prerouting {{
    type filter hook prerouting priority mangle; policy accept;
    ip daddr . tcp dport @vips4 tproxy ip to 127.0.0.1:{v4_port} meta mark set {MARK} accept
    ip6 daddr . tcp dport @vips6 tproxy ip6 to [::1]:{v6_port} meta mark set {MARK} accept
  }}
}}
"
    )
}

fn element(frontend: &Frontend) -> String {
    let ip: IpAddr = frontend.ip;
    format!("{ip} . {}", frontend.ports)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fairway_core::{PortRange, Protocol};
    use std::num::NonZeroU16;

    #[test]
    fn changes_are_grouped_by_set() {
        let port = |n| NonZeroU16::new(n).unwrap();
        let range = PortRange::new(port(80), port(90)).unwrap();
        let at =
            |ip: &str, ports| Frontend { ip: ip.parse().unwrap(), ports, protocol: Protocol::Tcp };
        let single = PortRange::single(port(443));
        let mut tproxy =
            Tproxy { pending: String::new(), trouble: None, retry_at: Tick(0), sockets: 0 };
        tproxy.change(
            &[at("192.0.2.1", single)],
            &[at("192.0.2.2", range), at("192.0.2.3", single), at("2001:db8::1", single)],
        );
        assert_eq!(
            tproxy.pending,
            "delete element inet fairway vips4 { 192.0.2.1 . 443 }\n\
             add element inet fairway vips4 { 192.0.2.2 . 80-90, 192.0.2.3 . 443 }\n\
             add element inet fairway vips6 { 2001:db8::1 . 443 }\n"
        );
    }
}
