//! Real nginx servers, one process each, so that one can be killed alone.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Command, Stdio};

use crate::{Host, Net, http, wait_for};

/// The port where clients are known by a header of the PROXY protocol; `/` answers who they are.
pub const TOLD: u16 = 8081;

pub struct Nginx {
    pub addr: SocketAddr,
    pub name: String,
    folder: tempfile::TempDir,
    namespace: String,
    child: Child,
}

impl Nginx {
    /// Starts server `n` on port 8080 of its own address. `/` answers its name, `/kib` about
    /// 1 KiB with it, `/big` 64 MiB, `/healthz` 200.
    pub fn start(net: &Net, n: u8) -> Self {
        Self::start_at(net, (net.server_address(n), 8080).into(), &format!("s{n}"))
    }

    pub fn start_at(net: &Net, addr: SocketAddr, name: &str) -> Self {
        Self::start_in(&net.name(Host::Servers), addr, name)
    }

    /// The same in a network namespace.
    pub fn start_in(namespace: &str, addr: SocketAddr, name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display();
        std::fs::File::create(folder.path().join("big")).unwrap().set_len(64 << 20).unwrap();
        let kib = format!("{name} {}", "x".repeat(900));
        let told = SocketAddr::new(addr.ip(), TOLD);
        let mut config = String::new();
        write!(
            config,
            "daemon off; master_process off; pid {path}/pid; error_log {path}/error.log;
             user root; worker_rlimit_nofile 20000;
             events {{ worker_connections 8192; }}
             http {{
               access_log off; client_body_temp_path {path}/b; proxy_temp_path {path}/p;
               fastcgi_temp_path {path}/f; uwsgi_temp_path {path}/u; scgi_temp_path {path}/s;
               keepalive_timeout 3600; keepalive_requests 1000000;
               server {{
                 listen {addr} backlog=8192; root {path};
                 location = / {{ return 200 '{name}\n'; }}
                 location = /kib {{ return 200 '{kib}\n'; }}
                 location = /healthz {{ return 200 'ok\n'; }}
                 location = /peer {{ return 200 '$remote_addr\n'; }}
               }}
               server {{
                 listen {told} proxy_protocol; root {path};
                 location = / {{
                   return 200 '$proxy_protocol_addr:$proxy_protocol_port $proxy_protocol_server_addr\n';
                 }}
               }}
             }}"
        )
        .unwrap();
        std::fs::write(folder.path().join("nginx.conf"), config).unwrap();
        let child = spawn(namespace, &folder);
        let nginx = Self { addr, name: name.into(), folder, namespace: namespace.into(), child };
        nginx.wait();
        nginx
    }

    fn wait(&self) {
        let addr = self.addr;
        crate::in_namespace(&self.namespace, || {
            wait_for("nginx answers", || http::get(addr, "/healthz").is_ok());
        });
    }

    /// Ends it as a crash does.
    pub fn kill(&mut self) {
        // `ip netns exec` becomes nginx, so the child is nginx itself.
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again after [`Nginx::kill`].
    pub fn restart(&mut self) {
        self.child = spawn(&self.namespace, &self.folder);
        self.wait();
    }

    pub fn ip(&self) -> IpAddr {
        self.addr.ip()
    }
}

fn spawn(namespace: &str, folder: &tempfile::TempDir) -> Child {
    Command::new("ip")
        .args(["netns", "exec", namespace, "nginx", "-c"])
        .arg(folder.path().join("nginx.conf"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
