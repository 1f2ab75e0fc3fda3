//! A rack: up to three boxes between a segment with a router and a segment with servers.
//!
//! ```text
//!                                   ┌─ a 10.81.0.1  10.82.0.1 ─┐
//! client 10.80.0.2 ── router ───────┼─ b 10.81.0.2  10.82.0.2 ─┼─ servers 10.82.0.11, .12
//!          10.80.0.1   10.81.0.254  └─ c 10.81.0.3  10.82.0.3 ─┘
//! ```
//!
//! IPv6 alike, with fd80, fd81, fd82. Each segment is a bridge; the boxes' ends are `front` and `back`.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::{Fairway, Nginx, enter, in_namespace, missing, run, wait_for};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// Hosts and segments; they go with it.
pub struct Rack {
    prefix: String,
    boxes: Vec<&'static str>,
}

/// The VIP of segments, which the router has as a neighbour.
pub const NEAR: &str = "10.81.0.100";
pub const NEAR_V6: &str = "fd81::100";
/// The VIP that routers are told of.
pub const FAR: &str = "10.90.0.100";
pub const FAR_V6: &str = "fd90::100";

impl Rack {
    /// Makes a rack with these boxes, of a, b and c; `None` when that cannot be here, and says why.
    pub fn new(boxes: &[&'static str]) -> Option<Self> {
        let lacks = ["bird", "keepalived", "gobgpd"]
            .into_iter()
            .find(|program| Command::new(program).arg("--version").output().is_err());
        let lacks = lacks.map(|it| format!("`{it}` is not installed; tests/run installs it"));
        if let Some(why) = missing().or(lacks) {
            println!("SKIPPED: {why}");
            return None;
        }
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("fr{}-{count}", std::process::id());
        let rack = Self { prefix, boxes: boxes.to_vec() };
        let hosts = ["client", "router", "servers", "switch"];
        for host in hosts.into_iter().chain(boxes.iter().copied()) {
            run("ip", &["netns", "add", &rack.name(host)]);
            rack.exec(host, "ip link set lo up");
            rack.exec(
                host,
                "sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0",
            );
        }
        for segment in ["front", "back"] {
            rack.exec("switch", &format!("ip link add {segment} type bridge mcast_snooping 0"));
            rack.exec("switch", &format!("ip link set {segment} up"));
        }
        rack.plug("router", "front", 254);
        rack.plug("servers", "back", 254);
        for (n, host) in (1..).zip(boxes) {
            rack.plug(host, "front", n);
            rack.plug(host, "back", n);
            rack.exec(host, "ip route add default via 10.81.0.254");
            rack.exec(host, "ip -6 route add default via fd81::fe");
        }
        let (client, router) = (rack.name("client"), rack.name("router"));
        run(
            "ip",
            &[
                "link", "add", "net", "netns", &client, "type", "veth", "peer", "name", "clients",
                "netns", &router,
            ],
        );
        for (host, device, v4, v6) in [
            ("client", "net", "10.80.0.2/24", "fd80::2/64"),
            ("router", "clients", "10.80.0.1/24", "fd80::1/64"),
        ] {
            rack.exec(host, &format!("ip address add {v4} dev {device}"));
            rack.exec(host, &format!("ip -6 address add {v6} dev {device} nodad"));
            rack.exec(host, &format!("ip link set {device} up"));
        }
        rack.exec("client", "ip route add default via 10.80.0.1");
        rack.exec("client", "ip -6 route add default via fd80::1");
        rack.exec("router", "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.fib_multipath_hash_policy=1");
        Some(rack)
    }

    /// Takes a host off a segment; its interface is gone.
    pub fn unplug(&self, host: &str, segment: &str) {
        self.exec(host, &format!("ip link delete {segment}"));
    }

    /// Puts a host on a segment, as its number `n`.
    pub fn plug(&self, host: &str, segment: &str, n: u8) {
        let (here, switch) = (self.name(host), self.name("switch"));
        let port = format!("{}{host}", &segment[..1]);
        run(
            "ip",
            &[
                "link", "add", segment, "netns", &here, "type", "veth", "peer", "name", &port,
                "netns", &switch,
            ],
        );
        self.exec("switch", &format!("ip link set {port} master {segment} up"));
        let net = if segment == "front" { 81 } else { 82 };
        self.exec(host, &format!("ip address add 10.{net}.0.{n}/24 dev {segment}"));
        self.exec(host, &format!("ip -6 address add fd{net}::{n:x}/64 dev {segment} nodad"));
        self.exec(host, &format!("ip link set {segment} up"));
    }

    pub fn name(&self, host: &str) -> String {
        format!("{}{host}", self.prefix)
    }

    /// Runs a command on a host; it must succeed.
    pub fn exec(&self, host: &str, command: &str) -> String {
        let name = self.name(host);
        let words: Vec<&str> =
            ["netns", "exec", &name].into_iter().chain(command.split(' ')).collect();
        run("ip", &words)
    }

    /// Runs `work` on a thread that is on `host`.
    pub fn on<R: Send>(&self, host: &str, work: impl FnOnce() -> R + Send) -> R {
        in_namespace(&self.name(host), work)
    }

    /// Server `n` at port 8080 of 10.82.0.{10 + n}; its word is its name.
    pub fn server(&self, n: u8) -> Nginx {
        let ip = format!("10.82.0.{}", 10 + n);
        self.exec("servers", &format!("ip address add {ip}/24 dev back"));
        let addr = SocketAddr::new(ip.parse().unwrap(), 8080);
        Nginx::start_in(&self.name("servers"), addr, &format!("s{n}"))
    }

    /// A server at port 80 of servers 1 and 2, and of every other address of their host.
    pub fn server_at_80(&self) -> Nginx {
        for n in [11, 12] {
            self.exec("servers", &format!("ip address add 10.82.0.{n}/24 dev back"));
        }
        self.server_on("servers")
    }

    /// A server at port 80 of a host.
    pub fn server_on(&self, host: &str) -> Nginx {
        let addr = SocketAddr::new("0.0.0.0".parse().unwrap(), 80);
        Nginx::start_in(&self.name(host), addr, host)
    }

    /// Puts the router on the servers' segment, too: their way to clients past the boxes.
    pub fn plug_router_back(&self) {
        self.plug("router", "back", 253);
    }

    /// A Fairway on a box.
    pub fn fairway(&self, host: &str, document: &str) -> Fairway {
        Fairway::start_in(&self.name(host), document)
    }

    /// The station of a host on a segment.
    pub fn station(&self, host: &str, segment: &str) -> String {
        self.exec(host, &format!("cat /sys/class/net/{segment}/address")).trim().into()
    }

    /// Whose station the router takes for that of an address: a box, or nobody's.
    pub fn at(&self, ip: &str) -> Option<&'static str> {
        let known = self.exec("router", &format!("ip neigh show {ip}"));
        self.boxes.iter().copied().find(|host| known.contains(&self.station(host, "front")))
    }

    /// Boxes whose kernel has an address.
    pub fn with_address(&self, ip: &str) -> Vec<&'static str> {
        let has = |host: &&&str| {
            let addresses = self.exec(host, "ip -o address show");
            addresses.contains(&format!(" {ip}/"))
        };
        self.boxes.iter().filter(has).copied().collect()
    }

    /// Whether the client is answered by a VIP.
    pub fn answers(&self, vip: &str) -> bool {
        let at = SocketAddr::new(vip.parse().unwrap(), 80);
        self.on("client", || answer(at, Duration::from_secs(1)).is_ok())
    }

    /// Dials port 80 of an address from a host.
    pub fn dial(&self, host: &str, ip: &str) -> std::io::Result<TcpStream> {
        let at = SocketAddr::new(ip.parse().unwrap(), 80);
        self.on(host, || TcpStream::connect_timeout(&at, Duration::from_millis(300)))
    }

    /// Dials a VIP again and again until it is stopped.
    pub fn watch(&self, vip: &str) -> Outage {
        let at = SocketAddr::new(vip.parse::<IpAddr>().unwrap(), 80);
        let (name, stop) = (self.name("client"), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            enter(&name);
            let (mut longest, mut failed) = (Duration::ZERO, 0);
            let mut good = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                let begun = Instant::now();
                match answer(at, Duration::from_millis(100)) {
                    Ok(()) => {
                        // A dial that is answered was good from its beginning.
                        longest = longest.max(begun.saturating_duration_since(good));
                        good = Instant::now();
                    }
                    Err(_) => failed += 1,
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            (longest.max(good.elapsed()), failed)
        });
        Outage { thread: Some(thread), stop }
    }
}

/// One small request; how it went.
fn answer(at: SocketAddr, patience: Duration) -> std::io::Result<()> {
    use std::io::{Read, Write};
    let mut stream = TcpStream::connect_timeout(&at, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut head = [0; 12];
    stream.read_exact(&mut head)?;
    match &head[9..] {
        b"200" => Ok(()),
        _ => Err(std::io::Error::other("not 200")),
    }
}

/// A VIP that is dialled again and again.
pub struct Outage {
    thread: Option<JoinHandle<(Duration, u32)>>,
    stop: Arc<AtomicBool>,
}

impl Outage {
    /// The longest time without an answer, and how many dials failed.
    pub fn end(mut self) -> (Duration, u32) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Outage {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Drop for Rack {
    fn drop(&mut self) {
        let hosts = ["client", "router", "servers", "switch"];
        for host in hosts.into_iter().chain(self.boxes.iter().copied()) {
            let _ = Command::new("ip").args(["netns", "delete", &self.name(host)]).output();
        }
    }
}

/// A program of another make that speaks the same protocols, in the foreground.
pub struct Peer {
    children: Vec<Child>,
    folder: tempfile::TempDir,
    namespace: String,
}

impl Peer {
    fn new(rack: &Rack, host: &str) -> Self {
        Self {
            children: Vec::new(),
            folder: tempfile::tempdir().unwrap(),
            namespace: rack.name(host),
        }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn spawn(&mut self, words: &[&str]) {
        let log = std::fs::File::create(self.path("log")).unwrap();
        let child = Command::new("ip")
            .args(["netns", "exec", &self.namespace])
            .args(words)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.children.push(child);
    }

    /// keepalived with the near addresses of both families, one virtual router each.
    pub fn keepalived_with_both(rack: &Rack, host: &str, priority: u8) -> Self {
        let instance = |name: &str, family: &str, address: &str| {
            format!(
                "vrrp_instance {name} {{\n  state BACKUP\n  interface front\n  virtual_router_id 51\n  priority \
                 {priority}\n  advert_int 0.2\n  {family}\n  virtual_ipaddress {{\n    {address}\n  }}\n}}\n"
            )
        };
        let config = instance("four", "", &format!("{NEAR}/32"))
            + &instance("six", "native_ipv6", &format!("{NEAR_V6}/128"));
        Self::keepalived(rack, host, &config)
    }

    /// BIRD 2, with routes in its kernel's table.
    pub fn bird(rack: &Rack, host: &str, config: &str) -> Self {
        let mut peer = Self::new(rack, host);
        let head = "router id 10.81.0.254;\nprotocol device { scan time 1; }\n\
                    protocol kernel { merge paths yes; ipv4 { export all; }; }\n\
                    protocol kernel { merge paths yes; ipv6 { export all; }; }\n";
        std::fs::write(peer.path("bird.conf"), format!("{head}{config}")).unwrap();
        let (config, socket) = (peer.path("bird.conf"), peer.path("bird.ctl"));
        peer.spawn(&["bird", "-f", "-c", &config, "-s", &socket]);
        wait_for("bird answers", || {
            peer.try_ask(&["birdc", "-s", &socket, "show", "status"]).is_some()
        });
        peer
    }

    /// Ends it as a crash does.
    pub fn kill_at_once(&mut self) {
        for child in &mut self.children {
            let children = format!("/proc/{0}/task/{0}/children", child.id());
            let of_it = std::fs::read_to_string(children).unwrap_or_default();
            let own = std::iter::once(child.id() as i32);
            for pid in own.chain(of_it.split_whitespace().filter_map(|pid| pid.parse().ok())) {
                let pid = rustix::process::Pid::from_raw(pid).unwrap();
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }

    /// What birdc says.
    pub fn birdc(&self, words: &str) -> String {
        let socket = self.path("bird.ctl");
        let all: Vec<&str> = ["birdc", "-s", &socket].into_iter().chain(words.split(' ')).collect();
        self.try_ask(&all).unwrap_or_default()
    }

    /// FRR: zebra, bgpd and bfdd.
    pub fn frr(rack: &Rack, host: &str, config: &str) -> Self {
        let mut peer = Self::new(rack, host);
        std::fs::write(peer.path("frr.conf"), config).unwrap();
        let folder = peer.folder.path().display().to_string();
        run("chmod", &["-R", "a+rwX", &folder]);
        let zserv = peer.path("zserv.api");
        for daemon in ["zebra", "bfdd", "bgpd"] {
            let (program, pid) =
                (format!("/usr/lib/frr/{daemon}"), peer.path(&format!("{daemon}.pid")));
            let (config, control) = (peer.path("frr.conf"), peer.path("bfdd.sock"));
            let mut words = vec![
                program.as_str(),
                "-f",
                &config,
                "-i",
                &pid,
                "-z",
                &zserv,
                "--vty_socket",
                &folder,
                "-P",
                "0",
            ];
            if daemon == "bfdd" {
                words.extend(["--bfdctl", &control]);
            }
            peer.spawn(&words);
            wait_for(daemon, || peer.folder.path().join(format!("{daemon}.vty")).exists());
        }
        peer
    }

    /// What a daemon of FRR's says.
    pub fn vtysh(&self, words: &str) -> String {
        let folder = self.folder.path().display().to_string();
        self.try_ask(&["vtysh", "--vty_socket", &folder, "-c", words]).unwrap_or_default()
    }

    /// GoBGP.
    pub fn gobgp(rack: &Rack, host: &str, config: &str) -> Self {
        let mut peer = Self::new(rack, host);
        std::fs::write(peer.path("gobgp.toml"), config).unwrap();
        let config = peer.path("gobgp.toml");
        peer.spawn(&["gobgpd", "-f", &config, "--api-hosts", "127.0.0.1:50051"]);
        wait_for("gobgp answers", || peer.try_ask(&["gobgp", "global"]).is_some());
        peer
    }

    /// What gobgp says.
    pub fn gobgp_says(&self, words: &str) -> String {
        let all: Vec<&str> = ["gobgp"].into_iter().chain(words.split(' ')).collect();
        self.try_ask(&all).unwrap_or_default()
    }

    /// keepalived.
    pub fn keepalived(rack: &Rack, host: &str, config: &str) -> Self {
        let mut peer = Self::new(rack, host);
        let head =
            "global_defs {\n  vrrp_version 3\n  enable_script_security\n  script_user root\n}\n";
        std::fs::write(peer.path("keepalived.conf"), format!("{head}{config}")).unwrap();
        let (config, pid, vrrp) =
            (peer.path("keepalived.conf"), peer.path("pid"), peer.path("vrrp.pid"));
        peer.spawn(&["keepalived", "-n", "-l", "-P", "-D", "-f", &config, "-p", &pid, "-r", &vrrp]);
        peer
    }

    fn try_ask(&self, words: &[&str]) -> Option<String> {
        let output = Command::new("ip")
            .args(["netns", "exec", &self.namespace])
            .args(words)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        output.status.success().then_some(said)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- a peer's log\n{}", self.log());
        }
        for child in &mut self.children {
            // keepalived's children end with it when it is asked to.
            let pid = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        for child in &mut self.children {
            let end = Instant::now() + Duration::from_secs(3);
            while child.try_wait().unwrap().is_none() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(10));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
