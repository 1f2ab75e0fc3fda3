//! Balancers under measurement: each a process on the load balancer's host, on core 0.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use fairway_tests::{Host, Net, VIP4, program};

use crate::core::BALANCER;

/// Descriptors that it may have.
const DESCRIPTORS: u32 = 20_000;

/// A running balancer.
pub(crate) struct Rival {
    pub(crate) name: &'static str,
    /// Where it takes connections.
    pub(crate) tcp: SocketAddr,
    /// Where it takes those that it hands on with a PROXY header of version 2, if it can.
    pub(crate) headed: Option<SocketAddr>,
    /// Where it takes datagrams, if it can.
    pub(crate) udp: Option<SocketAddr>,
    process: Option<Process>,
    /// What does it in the kernel, in the words of nft.
    rules: Option<String>,
}

/// A process and its folder; both go with it.
struct Process {
    child: Child,
    folder: tempfile::TempDir,
}

/// The backends, by what is dialled there.
#[derive(Clone)]
pub(crate) struct Backends {
    pub(crate) tcp: Vec<SocketAddr>,
    /// Their connections begin with a PROXY header.
    pub(crate) headed: Vec<SocketAddr>,
    pub(crate) udp: Vec<SocketAddr>,
}

/// Variants of HAProxy.
#[derive(Clone, Copy)]
pub(crate) enum Haproxy {
    /// As packaged, `mode tcp`, one thread.
    Default,
    /// splice(2) wherever it can.
    Splice,
    /// 64 KiB in place of 16.
    LargeBuffers,
    /// With a master process, which starts another worker for a new configuration.
    Master,
}

impl Rival {
    /// As shipped, with one worker.
    pub(crate) fn fairway(net: &Net, backends: &Backends) -> Self {
        let mut services = String::new();
        let parts = [
            ("tcp", 81, "TCP", &backends.tcp, ""),
            ("headed", 181, "TCP", &backends.headed, "proxyProtocol: {send: v2}"),
            ("udp", 281, "UDP", &backends.udp, ""),
        ];
        for (name, port, protocol, backends, more) in parts {
            if backends.is_empty() {
                continue;
            }
            let list: Vec<_> = backends.iter().map(ToString::to_string).collect();
            // Writing into a String cannot fail.
            let _ = writeln!(
                services,
                "  - name: {name}\n    addresses: [{VIP4}]\n    ports: [{{port: {port}, protocol: {protocol}}}]\n    \
                 healthCheck: {{type: none}}\n    backends: [{}]\n    {more}",
                list.join(", ")
            );
        }
        let document = format!("dataplane: {{workers: 1, pinCpus: false}}\nservices:\n{services}");
        Self { headed: at(181), udp: at(281), ..Self::run(net, 81, &document) }
    }

    /// One worker that forwards packets, `nat`, from `vip` to `backend`.
    pub(crate) fn fairway_nat(net: &Net, vip: SocketAddr, backend: SocketAddr) -> Self {
        let document = format!(
            "dataplane: {{workers: 1, pinCpus: false, packet: {{interfaces: [clients, servers]}}}}\nservices:\n  \
             - name: bench\n    mode: nat\n    addresses: [{}]\n    ports: [{{port: {}, protocol: UDP}}]\n    \
             backends: [{backend}]\n",
            vip.ip(),
            vip.port()
        );
        Self { tcp: vip, ..Self::run(net, 0, &document) }
    }

    /// The same for TCP, with all backends.
    pub(crate) fn fairway_nat_tcp(net: &Net, vip: SocketAddr, backends: &Backends) -> Self {
        let list: Vec<_> = backends.tcp.iter().map(ToString::to_string).collect();
        let document = format!(
            "dataplane: {{workers: 1, pinCpus: false, packet: {{interfaces: [clients, servers]}}}}\nservices:\n  \
             - name: bench\n    mode: nat\n    addresses: [{}]\n    ports: [{{port: {}}}]\n    healthCheck: {{type: \
             none}}\n    backends: [{}]\n",
            vip.ip(),
            vip.port(),
            list.join(", ")
        );
        Self { tcp: vip, ..Self::run(net, 0, &document) }
    }

    fn run(net: &Net, port: u16, document: &str) -> Self {
        let program = program();
        let admin = |folder: &Path| format!("admin: {{socket: {}/admin.sock}}\n", folder.display());
        let text = |folder: &Path| admin(folder) + document;
        Self::start(net, "Fairway", port, text, program.to_str().unwrap(), &["run", "--config"])
    }

    /// This program as a bouncer, as `text` says.
    pub(crate) fn bouncer(net: &Net, text: &str) -> Self {
        let program = std::env::current_exe().unwrap();
        let program = program.to_str().unwrap();
        Self::start(net, "bouncer", 0, |_| text.into(), program, &["--bounce"])
    }

    pub(crate) fn haproxy(net: &Net, backends: &Backends, variant: Haproxy) -> Self {
        let (name, port, global, defaults) = match variant {
            Haproxy::Default | Haproxy::Master => ("HAProxy", 82, "", ""),
            Haproxy::Splice => (
                "HAProxy, splice",
                84,
                "  maxpipes 1000\n",
                "  option splice-request\n  option splice-response\n",
            ),
            Haproxy::LargeBuffers => ("HAProxy, 64 KiB", 85, "  tune.bufsize 65536\n", ""),
        };
        let servers = |addresses: &[SocketAddr], more: &str| -> String {
            let line = |(n, addr)| format!("  server s{n} {addr}{more}\n");
            addresses.iter().enumerate().map(line).collect()
        };
        let config = format!(
            "global\n  nbthread 1\n  maxconn {}\n{global}defaults\n  mode tcp\n  timeout connect 3s\n  \
             timeout client 1h\n  timeout server 1h\n  balance roundrobin\n{defaults}listen tcp\n  bind \
             {VIP4}:{port}\n{}listen headed\n  bind {VIP4}:{}\n{}",
            // Two descriptors each, and some for pipes.
            DESCRIPTORS / 2 - 1200,
            servers(&backends.tcp, ""),
            port + 100,
            servers(&backends.headed, " send-proxy-v2"),
        );
        let arguments: &[&str] = match variant {
            Haproxy::Master => &["-W", "-db", "-f"],
            _ => &["-db", "-f"],
        };
        let started = Self::start(net, name, port, |_| config, "haproxy", arguments);
        Self { headed: at(port + 100), ..started }
    }

    /// nginx stream, as packaged, with one worker. It knows version 1 of PROXY headers alone.
    pub(crate) fn nginx(net: &Net, backends: &Backends) -> Self {
        Self::nginx_as(net, backends, "master_process off;")
    }

    /// The same with a master process, which starts another worker for a new configuration.
    pub(crate) fn nginx_with_master(net: &Net, backends: &Backends) -> Self {
        Self::nginx_as(net, backends, "user root;")
    }

    fn nginx_as(net: &Net, backends: &Backends, more: &str) -> Self {
        let servers = |addresses: &[SocketAddr]| -> String {
            addresses.iter().map(|addr| format!("    server {addr};\n")).collect()
        };
        let module = "/usr/lib/nginx/modules/ngx_stream_module.so";
        let load = match Path::new(module).exists() {
            true => format!("load_module {module};\n"),
            false => String::new(),
        };
        let config = |folder: &Path| {
            let path = folder.display();
            format!(
                "{load}daemon off; {more} worker_processes 1; pid {path}/pid;\n\
                 error_log {path}/error.log; worker_rlimit_nofile {DESCRIPTORS};\n\
                 events {{ worker_connections {DESCRIPTORS}; }}\nstream {{\n  upstream tcp {{\n{}  }}\n  \
                 upstream udp {{\n{}  }}\n  server {{ listen {VIP4}:83 backlog=8192; proxy_pass tcp; \
                 proxy_timeout 1h; tcp_nodelay on; }}\n  server {{ listen {VIP4}:283 udp; proxy_pass udp; \
                 proxy_timeout 30s; }}\n}}\n",
                servers(&backends.tcp),
                servers(&backends.udp),
            )
        };
        Self { udp: at(283), ..Self::start(net, "nginx stream", 83, config, "nginx", &["-c"]) }
    }

    /// DNAT in the kernel: a random backend, replies through the balancer. Its rules are there while it is
    /// [`Self::active`] alone: with them the kernel follows every connection, and all would pay for it.
    pub(crate) fn nftables(net: &Net, backends: &Backends) -> Self {
        net.exec(Host::Lb, "sysctl -qw net.ipv4.ip_forward=1");
        let rule = |protocol: &str, port: u16, addresses: &[SocketAddr]| {
            if addresses.is_empty() {
                return String::new();
            }
            let target =
                |(n, addr): (usize, &SocketAddr)| format!("{n} : {} . {}", addr.ip(), addr.port());
            let targets: Vec<String> = addresses.iter().enumerate().map(target).collect();
            format!(
                "    ip daddr {VIP4} {protocol} dport {port} dnat ip addr . port to numgen random mod {} map {{ {} }}\n",
                addresses.len(),
                targets.join(", ")
            )
        };
        let rules = format!(
            "table ip lb {{\n  chain pre {{\n    type nat hook prerouting priority dstnat;\n{}{}  }}\n  chain post \
             {{\n    type nat hook postrouting priority srcnat;\n    oifname \"servers\" masquerade\n  }}\n}}\n",
            rule("tcp", 86, &backends.tcp),
            rule("udp", 286, &backends.udp),
        );
        let tcp = SocketAddr::new(VIP4.into(), 86);
        Self {
            name: "nftables DNAT",
            tcp,
            headed: None,
            udp: at(286),
            process: None,
            rules: Some(rules),
        }
    }

    /// Runs `work` with this balancer's part of the kernel in place.
    pub(crate) fn active<T>(&self, net: &Net, work: impl FnOnce() -> T) -> T {
        use std::io::Write;
        let Some(rules) = &self.rules else { return work() };
        let mut child = Command::new("ip")
            .args(["netns", "exec", &net.name(Host::Lb), "nft", "-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "nft");
        let made = work();
        net.exec(Host::Lb, "nft delete table ip lb");
        made
    }

    fn start(
        net: &Net,
        name: &'static str,
        port: u16,
        config: impl FnOnce(&Path) -> String,
        program: &str,
        arguments: &[&str],
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        std::fs::write(&path, config(folder.path())).unwrap();
        let core = BALANCER.to_string();
        let child = Command::new("ip")
            .args(["netns", "exec", &net.name(Host::Lb), "taskset", "-c", &core, program])
            .args(arguments)
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let tcp = SocketAddr::new(VIP4.into(), port);
        Self {
            name,
            tcp,
            headed: None,
            udp: None,
            process: Some(Process { child, folder }),
            rules: None,
        }
    }

    /// Its process; the kernel has none.
    pub(crate) fn process(&self) -> Option<u32> {
        self.process.as_ref().map(|process| process.child.id())
    }

    /// The file that it was started with.
    pub(crate) fn config(&self) -> Option<std::path::PathBuf> {
        self.process.as_ref().map(|process| process.folder.path().join("config"))
    }
}

fn at(port: u16) -> Option<SocketAddr> {
    Some(SocketAddr::new(VIP4.into(), port))
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
