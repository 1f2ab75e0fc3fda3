//! Real programs of other makes, each with a configuration of its own.

use std::process::{Child, Command, Stdio};

use crate::{Host, Net, run};

/// A server of another make, with its configuration.
pub struct Other {
    child: Child,
    /// Its configuration is in it.
    _folder: tempfile::TempDir,
}

impl Other {
    /// HAProxy with `config` after the defaults.
    pub fn haproxy(net: &Net, host: Host, config: &str) -> Self {
        let head = "global\n  maxconn 200\ndefaults\n  timeout connect 3s\n  timeout client 9s\n  timeout server 9s\n";
        Self::start(net, host, &format!("{head}{config}"), "haproxy", &["-db", "-f"])
    }

    /// nginx with `config` beside its events; `FOLDER` in it is a folder of its own.
    pub fn nginx(net: &Net, host: Host, config: &str) -> Self {
        let module = "/usr/lib/nginx/modules/ngx_stream_module.so";
        let head = format!(
            "load_module {module};\ndaemon off; master_process off; pid FOLDER/pid; \
             error_log FOLDER/error.log; user root;\nevents {{}}\n"
        );
        Self::start(net, host, &format!("{head}{config}"), "nginx", &["-c"])
    }

    /// dnsmasq on port 53 of server address `n`, with more arguments.
    pub fn dnsmasq(net: &Net, n: u8, arguments: &[&str]) -> Self {
        let listen = format!("--listen-address={}", net.server_address(n));
        let plain = ["--keep-in-foreground", "--no-resolv", "--no-hosts", "--bind-interfaces"];
        let own = ["--user=root", "--pid-file=", "--port=53", &listen];
        let all = [&plain[..], &own, arguments, &["-C"]].concat();
        Self::start(net, Host::Servers, "", "dnsmasq", &all)
    }

    /// Has it read its files again.
    pub fn hang_up(&self) {
        run("kill", &["-HUP", &self.child.id().to_string()]);
    }

    /// `program` with the path of `config` after its arguments.
    pub fn start(net: &Net, host: Host, config: &str, program: &str, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        let config = config.replace("FOLDER", &folder.path().display().to_string());
        std::fs::write(&path, config).unwrap();
        let child = Command::new("ip")
            .args(["netns", "exec", &net.name(host), program])
            .args(arguments)
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, _folder: folder }
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
