//! A cluster on the servers' host: nodes, whose ports lead to Pods as kube-proxy has it, and Pods with
//! addresses of their own.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;

use crate::api_server::ApiServer;
use crate::http::get;
use crate::{Fairway, Host, Net, Nginx, SECOND, wait_for};

/// The Lease of those who serve Services without a class of their own.
pub const LEASE: &str = "load-balancer.fairway.dev.fairway";

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

/// Pods that are ready, all on one node.
pub fn ready(pods: &[Nginx]) -> Vec<(IpAddr, &'static str, Stands)> {
    pods.iter().map(|pod| (pod.ip(), "a", Stands::Ready)).collect()
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

/// The first address of the pool.
pub const FIRST: SocketAddr =
    SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 77, 0, 120)), 80);

/// A Fairway with manifests beside its document.
pub struct Cluster<'n> {
    pub net: &'n Net,
    pub fairway: Fairway,
}

impl<'n> Cluster<'n> {
    pub fn start(net: &'n Net, kubernetes: &str, manifests: &str) -> Self {
        let rest = format!(
            "dataplane: {{vip: {{interface: lo}}}}\nsources: {{manifests: [manifests.d], kubernetes: \
             {kubernetes}}}\n\
             addressPools: [{{name: public, addresses: [10.77.0.120-10.77.0.129]}}]\n"
        );
        Self::begin(net, &rest, manifests)
    }

    /// As [`Cluster::start`], with packets between its links, and addresses of no machine.
    pub fn start_in_packets(net: &'n Net, manifests: &str) -> Self {
        let rest = "dataplane: {workers: 2, pinCpus: false, packet: {interfaces: [clients, servers]}}\n\
                    sources: {manifests: [manifests.d]}\n\
                    addressPools: [{name: public, addresses: [10.99.0.0/28]}]\n";
        Self::begin(net, rest, manifests)
    }

    fn begin(net: &'n Net, rest: &str, manifests: &str) -> Self {
        // The folder is there when it starts, and what is in it comes then.
        let files = [("manifests.d/all.yaml", manifests)];
        let document = format!("services: []\n{rest}");
        Self { net, fairway: Fairway::start_with_files(net, &document, &files) }
    }

    /// Puts other manifests in the place of those that are there.
    pub fn write(&self, manifests: &str) {
        let folder = self.fairway.folder().join("manifests.d");
        std::fs::write(folder.join(".new"), manifests).unwrap();
        std::fs::rename(folder.join(".new"), folder.join("all.yaml")).unwrap();
    }

    /// The same, and waits until they are in force.
    pub fn apply(&self, manifests: &str) {
        self.write(manifests);
        let output = self.fairway.cli(&["reload"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        wait_for("workers know it", || {
            let status = self.fairway.status().unwrap();
            status["generationInUse"] == status["generation"]
        });
    }

    /// Who answers `count` requests.
    pub fn shares(&self, vip: SocketAddr, count: u32) -> BTreeMap<String, u32> {
        self.net.on(Host::Client, || {
            let mut shares = BTreeMap::new();
            for _ in 0..count {
                *shares.entry(get(vip, "/").unwrap()).or_default() += 1;
            }
            shares
        })
    }

    pub fn states(&self) -> BTreeMap<String, (String, u64)> {
        let backends = self.fairway.backends();
        let state = |backend: &serde_json::Value| {
            let text = |field: &str| backend[field].as_str().unwrap().to_owned();
            (text("address"), (text("state"), backend["weight"].as_u64().unwrap()))
        };
        backends.as_array().unwrap().iter().map(state).collect()
    }

    pub fn state(&self, address: &str) -> String {
        self.states()[address].0.clone()
    }
}

/// The Service `other`, as `shop` is without nodes' ports.
pub fn other() -> String {
    shop("", "allocateLoadBalancerNodePorts: false")
        .replace("name: shop", "name: other")
        .replace("nodePort: 30080", "nodePort: 30081")
}

/// The Service `shop`, with further fields.
pub fn shop(annotations: &str, fields: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: shop, annotations: {{{annotations}}}}}\n\
         spec: {{type: LoadBalancer, selector: {{app: shop}}, {fields}, \
         ports: [{{name: http, port: 80, targetPort: 8080, nodePort: 30080}}]}}\n"
    )
}

/// A Fairway that watches an API server.
pub fn watching<'n>(net: &'n Net, api: &ApiServer<'_>, kubernetes: &str) -> Cluster<'n> {
    watch(net, api, kubernetes, "vip: {interface: lo}", Fairway::start_with_files)
}

/// The same, beside another on its host.
pub fn watching_too<'n>(net: &'n Net, api: &ApiServer<'_>, kubernetes: &str) -> Cluster<'n> {
    // The addresses are the other's to add.
    watch(net, api, kubernetes, "", Fairway::start_beside)
}

fn watch<'n>(
    net: &'n Net,
    api: &ApiServer<'_>,
    kubernetes: &str,
    dataplane: &str,
    start: fn(&Net, &str, &[(&str, &str)]) -> Fairway,
) -> Cluster<'n> {
    let folder = tempfile::tempdir().unwrap();
    api.kubeconfig(folder.path());
    let document = format!(
        "dataplane: {{{dataplane}}}\nservices: []\n\
         sources: {{kubernetes: {{kubeconfig: kubeconfig, defaultClass: true{kubernetes}}}}}\n\
         addressPools: [{{name: public, addresses: [10.77.0.120-10.77.0.129]}}]\n"
    );
    let text = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap_or_default();
    let (config, token) = (text("kubeconfig"), text("token"));
    let files = [("kubeconfig", &*config), ("token", &*token)];
    Cluster { net, fairway: start(net, &document, &files) }
}
