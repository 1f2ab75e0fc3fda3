//! Balancers under measurement: each a process on the load balancer's host, on core 0.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fairway_tests::{Host, Net, VIP4, program};

/// A running balancer.
pub(crate) struct Rival {
    pub(crate) name: &'static str,
    pub(crate) vip: SocketAddr,
    child: Child,
    _folder: tempfile::TempDir,
}

impl Rival {
    pub(crate) fn fairway(net: &Net, backends: &[SocketAddr]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let list: Vec<_> = backends.iter().map(ToString::to_string).collect();
        let config = format!(
            "admin: {{socket: {}/admin.sock}}\ndataplane: {{workers: 1, pinCpus: false}}\nservices:\n  \
             - name: bench\n    addresses: [{VIP4}]\n    ports: [{{port: 81}}]\n    \
             healthCheck: {{type: none}}\n    backends: [{}]\n",
            folder.path().display(),
            list.join(", ")
        );
        let program = program();
        let arguments = ["run", "--config"];
        Self::start(net, "Fairway", 81, folder, &config, program.to_str().unwrap(), &arguments)
    }

    /// One worker, datagrams on `port`.
    pub(crate) fn fairway_udp(net: &Net, backends: &[SocketAddr], port: u16) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let list: Vec<_> = backends.iter().map(ToString::to_string).collect();
        let config = format!(
            "admin: {{socket: {}/admin.sock}}\ndataplane: {{workers: 1, pinCpus: false}}\nservices:\n  \
             - name: bench\n    addresses: [{VIP4}]\n    ports: [{{port: {port}, protocol: UDP}}]\n    \
             backends: [{}]\n",
            folder.path().display(),
            list.join(", ")
        );
        let program = program();
        let arguments = ["run", "--config"];
        Self::start(net, "Fairway", port, folder, &config, program.to_str().unwrap(), &arguments)
    }

    /// One worker that forwards packets, `nat`, from `vip` to `backend`.
    pub(crate) fn fairway_nat(net: &Net, vip: SocketAddr, backend: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = format!(
            "admin: {{socket: {}/admin.sock}}\ndataplane: {{workers: 1, pinCpus: false, packet: \
             {{interfaces: [clients, servers]}}}}\nservices:\n  - name: bench\n    mode: nat\n    \
             addresses: [{}]\n    ports: [{{port: {}, protocol: UDP}}]\n    backends: [{backend}]\n",
            folder.path().display(),
            vip.ip(),
            vip.port()
        );
        let program = program();
        let arguments = ["run", "--config"];
        Self::start(net, "Fairway", 0, folder, &config, program.to_str().unwrap(), &arguments)
    }

    /// This program as a bouncer, as `text` says.
    pub(crate) fn bouncer(net: &Net, text: &str) -> Self {
        let program = std::env::current_exe().unwrap();
        let folder = tempfile::tempdir().unwrap();
        Self::start(net, "bouncer", 0, folder, text, program.to_str().unwrap(), &["--bounce"])
    }

    /// nginx stream with one worker, datagrams on `port`.
    pub(crate) fn nginx_udp(net: &Net, backends: &[SocketAddr], port: u16) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display();
        let servers: String = backends.iter().map(|addr| format!("    server {addr};\n")).collect();
        let config = format!(
            "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\ndaemon off; master_process off; \
             worker_processes 1; pid {path}/pid;\nerror_log {path}/error.log; worker_rlimit_nofile 20000;\n\
             events {{ worker_connections 16384; }}\nstream {{\n  upstream bench {{\n{servers}  }}\n  \
             server {{ listen {VIP4}:{port} udp; proxy_pass bench; proxy_timeout 30s; }}\n}}\n"
        );
        Self::start(net, "nginx stream", port, folder, &config, "nginx", &["-c"])
    }

    /// HAProxy in TCP mode, as packaged, with one thread.
    pub(crate) fn haproxy(net: &Net, backends: &[SocketAddr]) -> Self {
        let servers: String = backends
            .iter()
            .enumerate()
            .map(|(n, addr)| format!("  server s{n} {addr}\n"))
            .collect();
        let config = format!(
            "global\n  nbthread 1\n  maxconn 4000\ndefaults\n  mode tcp\n  timeout connect 3s\n  \
             timeout client 1h\n  timeout server 1h\nlisten bench\n  bind {VIP4}:82\n  \
             balance roundrobin\n{servers}"
        );
        let folder = tempfile::tempdir().unwrap();
        Self::start(net, "HAProxy", 82, folder, &config, "haproxy", &["-db", "-f"])
    }

    /// nginx stream, as packaged, with one worker.
    pub(crate) fn nginx(net: &Net, backends: &[SocketAddr]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display();
        let servers: String = backends.iter().map(|addr| format!("    server {addr};\n")).collect();
        let module = "/usr/lib/nginx/modules/ngx_stream_module.so";
        let load = if std::path::Path::new(module).exists() {
            format!("load_module {module};\n")
        } else {
            String::new()
        };
        let config = format!(
            "{load}daemon off; master_process off; worker_processes 1; pid {path}/pid;\n\
             error_log {path}/error.log; worker_rlimit_nofile 20000;\n\
             events {{ worker_connections 16384; }}\nstream {{\n  upstream bench {{\n{servers}  }}\n  \
             server {{ listen {VIP4}:83 backlog=8192; proxy_pass bench; proxy_timeout 1h; tcp_nodelay on; }}\n}}\n"
        );
        Self::start(net, "nginx stream", 83, folder, &config, "nginx", &["-c"])
    }

    fn start(
        net: &Net,
        name: &'static str,
        port: u16,
        folder: tempfile::TempDir,
        config: &str,
        program: &str,
        arguments: &[&str],
    ) -> Self {
        let path = folder.path().join("config");
        std::fs::write(&path, config).unwrap();
        let child = Command::new("ip")
            .args(["netns", "exec", &net.name(Host::Lb), "taskset", "-c", "0", program])
            .args(arguments)
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { name, vip: (VIP4, port).into(), child, _folder: folder }
    }

    /// CPU time of all its threads so far, to the nanosecond.
    pub(crate) fn cpu(&self) -> Duration {
        cpu_of(self.child.id())
    }
}

/// CPU time of all threads of a process so far, to the nanosecond.
pub(crate) fn cpu_of(process: u32) -> Duration {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let nanos = |thread: std::fs::DirEntry| -> Option<u64> {
        let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse().ok()
    };
    Duration::from_nanos(threads.flatten().filter_map(nanos).sum())
}

impl Drop for Rival {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Time that core 0 has spent in softirqs, to a hundredth of a second.
pub(crate) fn softirq() -> Duration {
    let stat = std::fs::read_to_string("/proc/stat").unwrap();
    let line = stat.lines().find(|line| line.starts_with("cpu0 ")).unwrap();
    let ticks: u64 = line.split(' ').nth(7).unwrap().parse().unwrap();
    Duration::from_millis(ticks * 10)
}
