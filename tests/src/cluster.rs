//! A cluster on the servers' host: nodes, whose ports lead to Pods as kube-proxy has it, and Pods with
//! addresses of their own.

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;

use crate::{Host, Net, Nginx, SECOND};

/// A node: what it says of itself, and where.
pub struct Node {
    pub name: &'static str,
    pub ip: IpAddr,
    said: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Node {
    /// Node `n`, which says at these ports whether it is well.
    pub fn start(net: &Net, name: &'static str, n: u8, ports: &[u16]) -> Self {
        let ip = net.server_address(n);
        let (said, stop) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
        let serve = |port: &u16| {
            let at = SocketAddr::new(ip, *port);
            let listener = net.on(Host::Servers, || TcpListener::bind(at).unwrap());
            listener.set_nonblocking(true).unwrap();
            let (said, stop) = (Arc::clone(&said), Arc::clone(&stop));
            std::thread::spawn(move || {
                while !stop.load(Relaxed) {
                    let Ok((mut stream, _)) = listener.accept() else {
                        std::thread::sleep(SECOND / 200);
                        continue;
                    };
                    let _ = stream.set_nonblocking(false);
                    let _ = stream.set_read_timeout(Some(SECOND));
                    let _ = stream.read(&mut [0; 1024]);
                    let status = if said.load(Relaxed) { "200 OK" } else { "503 Not" };
                    let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
                }
            })
        };
        let threads = ports.iter().map(serve).collect();
        Self { name, ip, said, stop, threads }
    }

    /// Whether it says that it is well.
    pub fn say(&self, well: bool) {
        self.said.store(well, Relaxed);
    }

    /// Its object.
    pub fn manifest(&self) -> String {
        format!(
            "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {}}}\nstatus: {{addresses: [{{type: \
             InternalIP, address: {}}}]}}\n",
            self.name, self.ip
        )
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        self.threads.drain(..).for_each(|thread| _ = thread.join());
    }
}

/// Has connections to each node's port go to its Pods in turn; without Pods they are dropped.
pub fn node_ports(net: &Net, port: u16, nodes: &[(&Node, &[&Nginx])]) {
    let mut rules = String::from(
        "table ip nodeports\ndelete table ip nodeports\ntable ip nodeports {\n\
         chain pods { type nat hook prerouting priority dstnat; policy accept;\n",
    );
    for (node, pods) in nodes.iter().filter(|(_, pods)| !pods.is_empty()) {
        let map: Vec<String> =
            pods.iter().enumerate().map(|(n, pod)| format!("{n} : {}", pod.ip())).collect();
        writeln!(
            rules,
            "ip daddr {} tcp dport {port} dnat to numgen inc mod {} map {{ {} }} : 8080",
            node.ip,
            pods.len(),
            map.join(", ")
        )
        .unwrap();
    }
    rules += "}\nchain nobody { type filter hook prerouting priority -150; policy accept;\n";
    for (node, _) in nodes.iter().filter(|(_, pods)| pods.is_empty()) {
        writeln!(rules, "ip daddr {} tcp dport {port} drop", node.ip).unwrap();
    }
    rules += "}\n}\n";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rules");
    std::fs::write(&path, rules).unwrap();
    net.exec(Host::Servers, &format!("nft -f {}", path.display()));
}

/// A Pod: a server at an address of its own, to which the load balancer has a route.
pub fn pod(net: &Net, name: &str, n: u8) -> Nginx {
    let ip = IpAddr::from([10, 244, 0, n]);
    net.exec(Host::Servers, &format!("ip address replace {ip}/32 dev lo"));
    net.exec(Host::Lb, "ip route replace 10.244.0.0/16 via 10.78.0.2");
    Nginx::start_at(net, (ip, 8080).into(), name)
}

/// How a Pod stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stands {
    Ready,
    NotReady,
    Terminating,
}

/// The slice of a Service with its endpoints: Pods, their nodes, how they stand.
pub fn slice(service: &str, endpoints: &[(IpAddr, &str, Stands)]) -> String {
    let mut text = format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {service}-1, \
         labels: {{kubernetes.io/service-name: {service}}}}}\naddressType: IPv4\n\
         ports: [{{name: http, port: 8080}}]\nendpoints:\n"
    );
    for (ip, node, stands) in endpoints {
        let conditions = match stands {
            Stands::Ready => "ready: true, serving: true, terminating: false",
            Stands::NotReady => "ready: false, serving: false, terminating: false",
            Stands::Terminating => "ready: false, serving: true, terminating: true",
        };
        writeln!(text, "  - {{addresses: [{ip}], nodeName: {node}, conditions: {{{conditions}}}}}")
            .unwrap();
    }
    text
}
