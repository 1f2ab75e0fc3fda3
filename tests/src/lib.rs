//! Three hosts in network namespaces, a real Fairway between real nginx servers and real clients.
//!
//! ```text
//! client 10.77.0.2 ── 10.77.0.1 lb 10.78.0.1 ── 10.78.0.11, .12, … servers
//!        fd77::2   ── fd77::1      fd78::1   ── fd78::11, …
//! ```
//!
//! The VIPs are 10.77.0.100 and fd70::100, on the load balancer. Everything a test makes carries
//! its process id and a number, and goes when the [`Net`] is dropped, also after a failure.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
#![allow(missing_docs, reason = "test helpers say it by their names")]

pub mod api_server;
pub mod cluster;
mod fairway;
pub mod http;
mod other;
pub mod packets;
pub mod rack;
mod servers;
pub mod wire;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

pub use fairway::Fairway;
pub use other::Other;
pub use servers::{Nginx, TOLD};

pub const VIP4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);
pub const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd70, 0, 0, 0, 0, 0, 0, 0x100);
pub const SECOND: Duration = Duration::from_secs(1);

static COUNT: AtomicU32 = AtomicU32::new(0);

/// Three hosts.
pub struct Net {
    prefix: String,
}

/// One of the three hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    Client,
    Lb,
    Servers,
}

impl Net {
    /// Makes the hosts, or says why not and returns `None`: then the test has nothing to do.
    pub fn new() -> Option<Self> {
        if let Some(why) = missing() {
            println!("SKIPPED: {why}");
            return None;
        }
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let net = Self { prefix: format!("fw{}-{count}", std::process::id()) };
        for host in [Host::Client, Host::Lb, Host::Servers] {
            run("ip", &["netns", "add", &net.name(host)]);
            net.exec(host, "ip link set lo up");
            net.exec(host, "sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0 net.core.somaxconn=65535");
        }
        net.link(Host::Client, "10.77.0.2/24", "fd77::2/64", "10.77.0.1/24", "fd77::1/64");
        net.link(Host::Servers, "10.78.0.2/24", "fd78::2/64", "10.78.0.1/24", "fd78::1/64");
        net.exec(Host::Lb, "ip address add 10.77.0.100/32 dev lo");
        net.exec(Host::Lb, "ip -6 address add fd70::100/128 dev lo nodad");
        net.exec(Host::Client, "ip route add default via 10.77.0.1");
        net.exec(Host::Client, "ip -6 route add default via fd77::1");
        Some(net)
    }

    pub fn name(&self, host: Host) -> String {
        let word = match host {
            Host::Client => "c",
            Host::Lb => "l",
            Host::Servers => "s",
        };
        format!("{}{word}", self.prefix)
    }

    fn link(&self, host: Host, v4: &str, v6: &str, lb_v4: &str, lb_v6: &str) {
        let (here, lb) = (self.name(host), self.name(Host::Lb));
        let far = if host == Host::Client { "clients" } else { "servers" };
        run(
            "ip",
            &[
                "link", "add", far, "netns", &lb, "type", "veth", "peer", "name", "lb", "netns",
                &here,
            ],
        );
        for (host, device, v4, v6) in [(host, "lb", v4, v6), (Host::Lb, far, lb_v4, lb_v6)] {
            self.exec(host, &format!("ip address add {v4} dev {device}"));
            self.exec(host, &format!("ip -6 address add {v6} dev {device} nodad"));
            self.exec(host, &format!("ip link set {device} up"));
        }
    }

    /// Runs a command on a host; it must succeed.
    pub fn exec(&self, host: Host, command: &str) -> String {
        let name = self.name(host);
        let words: Vec<&str> =
            ["netns", "exec", &name].into_iter().chain(command.split(' ')).collect();
        run("ip", &words)
    }

    /// What `/etc/name` is for programs that are started on a host.
    pub fn etc(&self, host: Host, name: &str, text: &str) {
        let folder = self.etc_folder(host);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(name), text).unwrap();
    }

    fn etc_folder(&self, host: Host) -> PathBuf {
        PathBuf::from("/etc/netns").join(self.name(host))
    }

    /// Address `n` on the servers' host, made if need be.
    pub fn server_address(&self, n: u8) -> IpAddr {
        let name = self.name(Host::Servers);
        let addr = format!("10.78.0.{}/24", 10 + n);
        // It may be there already.
        let _ = Command::new("ip")
            .args(["netns", "exec", &name, "ip", "address", "add", &addr, "dev", "lb"])
            .output();
        IpAddr::from([10, 78, 0, 10 + n])
    }

    /// Runs `work` on a thread that is on `host`; threads that it starts are there too.
    pub fn on<R: Send>(&self, host: Host, work: impl FnOnce() -> R + Send) -> R {
        in_namespace(&self.name(host), work)
    }
}

/// Runs `work` on a thread that is in a network namespace; threads that it starts are there too.
pub fn in_namespace<R: Send>(name: &str, work: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| {
        let inside = scope.spawn(move || {
            enter(name);
            work()
        });
        match inside.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Has this thread be in a network namespace.
fn enter(name: &str) {
    let namespace = std::fs::File::open(format!("/run/netns/{name}")).unwrap();
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
}

impl Drop for Net {
    fn drop(&mut self) {
        for host in [Host::Client, Host::Lb, Host::Servers] {
            let _ = Command::new("ip").args(["netns", "delete", &self.name(host)]).output();
            let _ = std::fs::remove_dir_all(self.etc_folder(host));
        }
    }
}

/// What keeps these tests from running here.
fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("network namespaces need root".into());
    }
    for program in ["ip", "nginx", "nft", "sysctl", "dnsmasq", "iperf3", "haproxy", "traceroute"] {
        if Command::new(program).arg("-V").output().is_err() {
            return Some(format!("`{program}` is not installed; tests/run installs it"));
        }
    }
    None
}

/// Runs a program; it must succeed.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{program} {arguments:?}: {stderr}{stdout}");
    stdout.into_owned()
}

/// The program under test, built by the same profile as this one.
pub fn program() -> PathBuf {
    let here = std::env::current_exe().unwrap();
    // Tests lie in a folder below the program, other programs beside it.
    let places = here.ancestors().skip(1).take(2).map(|folder| folder.join("fairway"));
    let found = places.into_iter().find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("no fairway beside {}: `cargo build`", here.display()))
}

/// Waits until `condition` holds.
pub fn wait_for(what: &str, condition: impl FnMut() -> bool) {
    wait_at_most(10 * SECOND, what, condition);
}

/// Waits until `condition` holds, for `limit` at most.
pub fn wait_at_most(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether the slow tests, or the slow parts of tests, are wanted.
pub fn all() -> bool {
    std::env::var_os("FAIRWAY_TESTS_ALL").is_some()
}
