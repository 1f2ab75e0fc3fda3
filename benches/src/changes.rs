//! Changes of a large configuration while there is load: a cluster's endpoints by an API server, and backends that
//! fail all at once.
//!
//! Fairway is on core 0 with one worker, and everything else on core 1. What the worker's thread took is the
//! data plane's; the rest of the process is the control plane.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use fairway_tests::api_server::ApiServer;
use fairway_tests::http::get;
use fairway_tests::{Fairway, Host, Net, VIP4, wait_at_most, wait_for};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};
use serde_json::{Value, json};

use crate::core::{BALANCER, OTHERS, cpu_of};
use crate::load::{self, Clients, Exchange, Outcome, Plan, serve};

const SMALL: Exchange = Exchange::new(64, 128);
/// Requests of the clients beside, a second.
const LOAD: u32 = 4000;
const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9180);

pub(crate) fn run(quick: bool) {
    let sizes: &[(usize, usize)] = if quick { &[(500, 10)] } else { &[(10_000, 10), (1000, 100)] };
    println!("Changes under load: {LOAD} requests a second over 64 connections beside\n");
    for (services, endpoints) in sizes {
        cluster(*services, *endpoints, quick);
    }
    failures(quick);
}

/// What a running Fairway has come to.
struct Reading {
    /// Before its metrics were asked for, which takes time of its own, and after.
    used: [Used; 2],
    metrics: BTreeMap<String, f64>,
}

#[derive(Clone, Copy)]
struct Used {
    at: Instant,
    /// CPU time of the process but for its workers.
    control: Duration,
    worker: Duration,
}

impl Used {
    fn of(pid: u32) -> Self {
        let worker = worker(pid);
        Self { at: Instant::now(), control: cpu_of(pid).saturating_sub(worker), worker }
    }
}

impl Reading {
    fn of(net: &Net, pid: u32) -> Self {
        let before = Used::of(pid);
        let text = net.on(Host::Lb, || get(METRICS, "/metrics")).unwrap_or_default();
        let value = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        let metrics =
            text.lines().filter(|line| !line.starts_with('#')).filter_map(value).collect();
        Self { used: [before, Used::of(pid)], metrics }
    }

    /// Seconds since `before`, and shares of a core that control plane and workers have had.
    fn shares(&self, before: &Self) -> (f64, f64, f64) {
        let (from, to) = (before.used[1], self.used[0]);
        let wall = (to.at - from.at).as_secs_f64();
        let share = |used: Duration| used.as_secs_f64() / wall;
        (wall, share(to.control - from.control), share(to.worker - from.worker))
    }

    fn get(&self, name: &str) -> f64 {
        self.metrics.get(name).copied().unwrap_or_default()
    }

    /// By so much a metric has grown since `before`.
    fn more(&self, before: &Self, name: &str) -> f64 {
        self.get(name) - before.get(name)
    }

    /// The bound, in milliseconds, within which this part of the new samples of a histogram is.
    fn within(&self, before: &Self, name: &str, part: f64) -> f64 {
        let count = self.more(before, &format!("{name}_count"));
        let bucket = format!("{name}_bucket{{le=\"");
        let mut bounds: Vec<(f64, f64)> = self
            .metrics
            .keys()
            .filter_map(|key| {
                let bound = key.strip_prefix(&bucket)?.strip_suffix("\"}")?.parse().ok()?;
                Some((bound, self.more(before, key)))
            })
            .collect();
        bounds.sort_by(|a, b| a.0.total_cmp(&b.0));
        let bound = bounds.iter().find(|(_, within)| *within >= part * count);
        bound.map_or(f64::INFINITY, |(bound, _)| bound * 1e3)
    }
}

/// CPU time of the worker's thread.
fn worker(pid: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let nanos = threads.filter_map(|thread| {
        let name = fs::read_to_string(thread.path().join("comm")).ok()?;
        let is_worker = name.trim().strip_prefix("fairway-")?.parse::<u32>().is_ok();
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        is_worker.then(|| text.split(' ').next()?.parse::<u64>().ok())?
    });
    Duration::from_nanos(nanos.sum())
}

/// Memory of its own, in MiB.
fn memory(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or_default() >> 10
}

/// Moves all of its threads to the balancers' core.
fn place(pid: u32) {
    let mut set = CpuSet::new();
    set.set(BALANCER);
    for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let id = thread.file_name().to_str().and_then(|id| id.parse().ok()).and_then(Pid::from_raw);
        // It may have ended.
        let _ = id.map(|id| sched_setaffinity(Some(id), &set));
    }
}

/// Clients of the service that does not change, for `length`; meanwhile `work`.
fn loaded<T: Send>(net: &Net, length: Duration, work: impl FnOnce() -> T + Send) -> (Outcome, T) {
    thread::scope(|scope| {
        let clients = scope.spawn(|| {
            net.on(Host::Client, || {
                let plan = Plan { clients: 64, exchange: SMALL, rate: Some(LOAD) };
                let mut clients = Clients::open((VIP4, 81).into(), plan).unwrap();
                clients.run(length).unwrap()
            })
        });
        let made = work();
        (clients.join().unwrap(), made)
    })
}

fn latency(outcome: Outcome) -> String {
    let mut times = outcome.times;
    times.sort_unstable();
    let Some(last) = times.len().checked_sub(1) else { return "none".into() };
    let at = |part: usize| times[(times.len() * part / 1000).min(last)];
    format!("{} / {} / {} / {}", at(500), at(990), at(999), times[last])
}

fn backend(net: &Net) -> SocketAddr {
    let addr = SocketAddr::new(net.server_address(1), 9000);
    net.on(Host::Servers, || {
        load::to_core(OTHERS);
        serve(&[addr], &[]);
    });
    addr
}

/// Endpoints of a cluster's Services change.
fn cluster(services: usize, endpoints: usize, quick: bool) {
    let Some(net) = Net::new() else { return };
    load::to_core(OTHERS);
    // Where Pods are.
    net.exec(Host::Lb, "ip route add 10.192.0.0/10 via 10.78.0.2");
    let api = ApiServer::start(&net);
    for n in 0..services {
        assert!(
            api.write("services", &format!("svc-{n}"), service(n)),
            "a real server is not asked for so much"
        );
        api.write("endpointslices", &format!("svc-{n}-1"), slice(n, endpoints, None));
    }
    let written = api.get("services", "default", "svc-0");
    let folder = tempfile::tempdir().unwrap();
    api.kubeconfig(folder.path());
    let text = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap_or_default();
    let (kubeconfig, token) = (text("kubeconfig"), text("token"));
    let document = format!(
        "dataplane: {{workers: 1, pinCpus: false, listen: tproxy}}\nservices:\n  - name: still\n    addresses: \
         [{VIP4}]\n    ports: [{{port: 81}}]\n    healthCheck: {{type: none}}\n    backends: [{}]\n\
         sources: {{kubernetes: {{kubeconfig: kubeconfig, defaultClass: true, target: pod}}}}\n\
         addressPools: [{{name: all, addresses: [10.100.0.0/16]}}]\n",
        backend(&net)
    );
    let files = [("kubeconfig", &*kubeconfig), ("token", &*token)];
    let (start, own) = (Instant::now(), cpu_of(std::process::id()));
    let fairway = Fairway::start_with_files(&net, &document, &files);
    let pid = fairway.pid();
    let served = || fairway.served().is_some_and(|count| count > services as u64);
    while !served() && start.elapsed() < Duration::from_secs(60) {
        thread::sleep(Duration::from_millis(20));
    }
    let (took, cpu) = (start.elapsed(), cpu_of(pid));
    let own = cpu_of(std::process::id()) - own;
    place(pid);
    settle(pid);
    assert_eq!(api.get("services", "default", "svc-0"), written, "there was nothing to be written");
    println!("{services} Services x {endpoints} endpoints, by an API server");
    println!(
        "  start until all are served: {:.2} s, {:.2} s of CPU beside {:.2} s of the API server, {} MiB",
        took.as_secs_f64(),
        cpu.as_secs_f64(),
        own.as_secs_f64(),
        memory(pid)
    );
    let length = Duration::from_secs(if quick { 2 } else { 10 });
    let (outcome, ()) = loaded(&net, length, || {});
    println!("  latency without changes, p50 / p99 / p99.9 / longest: {} us", latency(outcome));
    for rate in [20, 1000] {
        let before = Reading::of(&net, pid);
        let (outcome, changes) = loaded(&net, length, || {
            change(&api, (services, endpoints), rate, length - Duration::from_millis(200))
        });
        let after = Reading::of(&net, pid);
        let (wall, control, worker) = after.shares(&before);
        let lag = "fairway_cluster_lag_seconds";
        println!(
            "  {rate} changes a second: {changes} changes, {:.0} publications ({:.0} a second), control {:.1} % of a \
             core ({:.3} ms a change), worker {:.1} %; told to known p50 <= {} ms, p99 <= {} ms",
            after.more(&before, "fairway_snapshot_generation"),
            after.more(&before, "fairway_snapshot_generation") / wall,
            100.0 * control,
            1e3 * control * wall / changes as f64,
            100.0 * worker,
            after.within(&before, lag, 0.5),
            after.within(&before, lag, 0.99),
        );
        println!("    latency meanwhile: {} us", latency(outcome));
    }
    for words in [&["explain", "192.0.2.1:4711", "10.100.0.7:80"][..], &["status"]] {
        let start = Instant::now();
        let output = fairway.cli(words);
        let good = output.status.success();
        println!(
            "  fairway {}: {:.1} ms{}",
            words.join(" "),
            1e3 * start.elapsed().as_secs_f64(),
            if good { "" } else { ", failed" }
        );
    }
    println!();
}

/// Nothing is written any more of what has begun.
fn settle(pid: u32) {
    let mut before = (Instant::now(), cpu_of(pid));
    wait_at_most(Duration::from_secs(300), "it is quiet", || {
        thread::sleep(Duration::from_millis(500));
        let now = (Instant::now(), cpu_of(pid));
        let busy = (now.1 - before.1).as_secs_f64() / (now.0 - before.0).as_secs_f64();
        before = now;
        busy < 0.05
    });
}

/// Has one endpoint change, `rate` times a second; returns how many have.
fn change(
    api: &ApiServer<'_>,
    (services, endpoints): (usize, usize),
    rate: u32,
    length: Duration,
) -> usize {
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < length {
        let n = count * 7919 % services;
        api.write("endpointslices", &format!("svc-{n}-1"), slice(n, endpoints, Some(count)));
        count += 1;
        let due = start + Duration::from_secs(1) * count as u32 / rate;
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    count
}

/// A Service as its controller leaves it: nothing is to be written of it.
fn service(n: usize) -> Value {
    let ip = Ipv4Addr::from(0x0a64_0000 + n as u32 + 1).to_string();
    json!({
        "metadata": {
            "finalizers": ["service.kubernetes.io/load-balancer-cleanup"],
            "annotations": { "fairway.dev/servedBy": "fairway.dev/fairway" },
        },
        "spec": {
            "type": "LoadBalancer", "loadBalancerIP": ip, "allocateLoadBalancerNodePorts": false,
            "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }],
        },
        "status": { "loadBalancer": { "ingress": [{
            "ip": ip, "ipMode": "Proxy", "ports": [{ "port": 80, "protocol": "TCP" }],
        }] } },
    })
}

/// Its endpoints; of a changed one, the last is another.
fn slice(n: usize, endpoints: usize, changed: Option<usize>) -> Value {
    let ip = |e: usize| Ipv4Addr::from(0x0ac8_0000 + (n * endpoints + e) as u32).to_string();
    let other =
        changed.map(|count| Ipv4Addr::from(0x0afa_0000 + (count % 65_536) as u32).to_string());
    let endpoint = |e: usize| {
        let last = other.clone().filter(|_| e + 1 == endpoints);
        json!({ "addresses": [last.unwrap_or_else(|| ip(e))], "nodeName": format!("node-{}", e % 50),
            "conditions": { "ready": true, "serving": true, "terminating": false } })
    };
    json!({
        "metadata": { "labels": { "kubernetes.io/service-name": format!("svc-{n}") } },
        "addressType": "IPv4", "ports": [{ "name": "http", "port": 8080 }],
        "endpoints": (0..endpoints).map(endpoint).collect::<Vec<_>>(),
    })
}

/// A thousand backends fail, and come back, within one interval of their checks.
fn failures(quick: bool) {
    let Some(net) = Net::new() else { return };
    load::to_core(OTHERS);
    let (services, each) = if quick { (2, 100) } else { (10, 100) };
    let all = services * each;
    let document: String = (0..services)
        .map(|s| {
            let backend = |b: usize| format!("127.{}.0.{}:9001", s + 1, b + 1);
            let backends: Vec<String> = (0..each).map(backend).collect();
            format!(
                "  - name: svc-{s}\n    addresses: [{VIP4}]\n    ports: [{{port: {}}}]\n    healthCheck: {{interval: 1s, \
                 timeout: 500ms, fall: 1, rise: 1}}\n    backends: [{}]\n",
                7000 + s,
                backends.join(", ")
            )
        })
        .collect();
    let document = format!(
        "dataplane: {{workers: 1, pinCpus: false}}\nservices:\n  - name: still\n    addresses: [{VIP4}]\n    ports: \
         [{{port: 81}}]\n    healthCheck: {{type: none}}\n    backends: [{}]\n{document}",
        backend(&net)
    );
    let listener = Answering::start(&net);
    let fairway = Fairway::start(&net, &document);
    let pid = fairway.pid();
    place(pid);
    let down = || fairway.status().and_then(|status| status["backendsDown"].as_u64()).unwrap_or(0);
    wait_for("all are up", || down() == 0);
    let length = Duration::from_secs(5);
    let (outcome, ()) = loaded(&net, length, || {});
    println!("{all} backends of {services} services, checked once a second");
    println!("  latency while all are well, p50 / p99 / p99.9 / longest: {} us", latency(outcome));
    let mut listener = Some(listener);
    for fails in [true, false] {
        let before = Reading::of(&net, pid);
        let (outcome, took) = loaded(&net, length, || {
            let start = Instant::now();
            match fails {
                true => drop(listener.take()),
                false => listener = Some(Answering::start(&net)),
            }
            let wanted = if fails { all as u64 } else { 0 };
            wait_for("all have changed", || down() == wanted);
            start.elapsed()
        });
        let after = Reading::of(&net, pid);
        println!(
            "  all {}: {:.2} s until all are known, {:.0} publications, control {:.1} % of a core meanwhile\n    latency: {} us",
            if fails { "fail" } else { "come back" },
            took.as_secs_f64(),
            after.more(&before, "fairway_snapshot_generation"),
            100.0 * after.shares(&before).1,
            latency(outcome),
        );
    }
    println!();
}

/// Takes connections to every address of the balancer's host, and ends them.
struct Answering {
    stop: std::sync::Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
    namespace: String,
}

impl Answering {
    fn start(net: &Net) -> Self {
        let listener =
            net.on(Host::Lb, || TcpListener::bind((Ipv4Addr::UNSPECIFIED, 9001)).unwrap());
        // As many as check at once.
        rustix::net::listen(&listener, 4096).unwrap();
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let told = std::sync::Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !told.load(Relaxed) {
                // Whoever checks only connects.
                let _ = listener.accept();
            }
        });
        Self { stop, thread: Some(thread), namespace: net.name(Host::Lb) }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        // It waits for one more.
        let _ = fairway_tests::in_namespace(&self.namespace, || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, 9001))
        });
        self.thread.take().map(thread::JoinHandle::join);
    }
}
