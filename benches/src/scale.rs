//! 10,000 services with 10 backends each: loading, one change, memory; beside nft and iptables.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fairway_tests::http::get;
use fairway_tests::{Host, Net, program};

const BACKENDS: usize = 10;

pub(crate) fn run(quick: bool) {
    let services = if quick { 1000 } else { 10_000 };
    println!("{services} services x {BACKENDS} backends, health checks off");
    println!("{:<52}  {:>14}  {:>22}", "", "load all", "one endpoint changed");
    // First, while all memory that it takes is new.
    cluster(if quick { 1000 } else { 5000 }, if quick { 200 } else { 2000 });
    planning(services, if quick { 200 } else { 2000 });
    let Some(net) = Net::new() else { return };
    process(&net, services);
    rivals(&net, services);
    println!();
}

/// The control loop alone, CPU time.
fn planning(services: usize, changes: usize) {
    let document = fairway::measure::document(services, BACKENDS);
    let mut scale = fairway::measure::scale(&document, changes);
    scale.changes.sort_unstable();
    let at = |hundredths: usize| scale.changes[scale.changes.len() * hundredths / 100];
    let name = "Fairway, change set to published (CPU, p50/p99)";
    let change = format!("{} / {}", millis(at(50)), millis(at(99)));
    println!("{name:<52}  {:>14}  {change:>22}", millis(scale.load));
    println!("{:<52}  {:>14}", "Fairway, reading the YAML (CPU)", millis(scale.parse));
}

/// A cluster's Services, beyond what its API server takes: CPU time.
fn cluster(services: usize, changes: usize) {
    let mut scale = fairway::measure::cluster_scale(services, BACKENDS, changes);
    scale.changes.sort_unstable();
    let at = |hundredths: usize| scale.changes[scale.changes.len() * hundredths / 100];
    let change = format!("{} / {}", millis(at(50)), millis(at(99)));
    let mebibytes = scale.memory.1.saturating_sub(scale.memory.0) >> 20;
    let name = format!("{services} Services, {} endpoints, {mebibytes} MiB", services * BACKENDS);
    println!("{name:<52}  {:>14}  {change:>22}", millis(scale.sync));
    println!("{:<52}  {:>14}", "the same, reading the lists", millis(scale.parse));
}

/// The whole process: from its start to serving, listeners included.
fn process(net: &Net, services: usize) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("admin.sock");
    let config = folder.path().join("fairway.yaml");
    let text = format!("admin: {{socket: {}}}\n", socket.display());
    std::fs::write(&config, text + &fairway::measure::document(services, BACKENDS)).unwrap();
    let start = Instant::now();
    let mut child = Command::new("ip")
        .args(["netns", "exec", &net.name(Host::Lb)])
        .arg(program())
        .args(["run", "--config"])
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let serving = || {
        let output = Command::new(program())
            .args(["status", "-o", "json", "--socket"])
            .arg(&socket)
            .output();
        output.is_ok_and(|output| output.status.success())
    };
    // The control loop answers only once everything is published and listened on.
    while !serving() && start.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let took = start.elapsed();
    let memory = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let memory = memory.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or("VmHWM: 0 kB");
    let kib: u64 = memory.split_whitespace().nth(1).unwrap().parse().unwrap();
    let name = format!("Fairway, process start to serving (wall), {} MiB", kib >> 10);
    println!("{name:<52}  {:>14}", millis(took));
    let (bytes, took) = net.on(Host::Lb, || {
        let scrape = || get(([127, 0, 0, 1], 9180).into(), "/metrics").unwrap();
        scrape();
        let start = Instant::now();
        (scrape().len(), start.elapsed())
    });
    let name = format!("Fairway, a scrape (wall), {:.1} MB", bytes as f64 / 1e6);
    println!("{name:<52}  {:>14}", millis(took));
    child.kill().unwrap();
    child.wait().unwrap();
    let _ = net.exec(Host::Lb, "nft delete table inet fairway");
}

/// The same services as kube-proxy would program them.
fn rivals(net: &Net, services: usize) {
    let load = nft(net, &nft_rules(services));
    let change = nft(net, &nft_service(7, true));
    println!(
        "{:<52}  {:>14}  {:>22}",
        "nft -f, a verdict map and a chain a service (wall)",
        load.map_or("not here".into(), millis),
        change.map_or("not here".into(), millis),
    );
    let load = iptables(net, &iptables_rules(services));
    // iptables writes the whole table again, whatever changed.
    let change = iptables(net, &iptables_rules(services));
    println!(
        "{:<52}  {:>14}  {:>22}",
        "iptables-restore, chains a service (wall)",
        load.map_or("not here".into(), millis),
        change.map_or("not here".into(), millis),
    );
}

fn nft(net: &Net, rules: &str) -> Option<Duration> {
    feed(net, &["nft", "-f", "-"], rules)
}

fn iptables(net: &Net, rules: &str) -> Option<Duration> {
    feed(net, &["iptables-restore"], rules)
}

fn feed(net: &Net, command: &[&str], input: &str) -> Option<Duration> {
    use std::io::Write;
    let start = Instant::now();
    let mut child = Command::new("ip")
        .args(["netns", "exec", &net.name(Host::Lb)])
        .args(command)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    child.stdin.take()?.write_all(input.as_bytes()).ok()?;
    child.wait().ok()?.success().then(|| start.elapsed())
}

fn vip(n: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x0a64_0000 + (n / 10) as u32 + 1)
}

fn endpoint(n: usize, b: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x0ac8_0000 + (n * BACKENDS + b) as u32)
}

fn nft_service(n: usize, again: bool) -> String {
    let mut text = String::new();
    let flush = if again { format!("flush chain ip lb svc-{n}\n") } else { String::new() };
    let targets: Vec<_> =
        (0..BACKENDS).map(|b| format!("{b} : {} . 30080", endpoint(n, b))).collect();
    writeln!(
        text,
        "{flush}add rule ip lb svc-{n} meta l4proto tcp dnat ip addr . port to numgen random mod {BACKENDS} map {{ {} }}",
        targets.join(", ")
    )
    .unwrap();
    text
}

fn nft_rules(services: usize) -> String {
    let mut text = String::from(
        "add table ip lb\nadd map ip lb vips { type ipv4_addr . inet_service : verdict; }\n\
         add chain ip lb pre { type nat hook prerouting priority dstnat; }\n",
    );
    for n in 0..services {
        writeln!(text, "add chain ip lb svc-{n}").unwrap();
        text += &nft_service(n, false);
    }
    for n in 0..services {
        let port = 8000 + n % 10;
        writeln!(text, "add element ip lb vips {{ {} . {port} : goto svc-{n} }}", vip(n)).unwrap();
    }
    text += "add rule ip lb pre ip daddr . tcp dport vmap @vips\n";
    text
}

fn iptables_rules(services: usize) -> String {
    let mut text = String::from("*nat\n:PREROUTING ACCEPT [0:0]\n");
    (0..services).for_each(|n| writeln!(text, ":SVC-{n} - [0:0]").unwrap());
    for n in 0..services {
        let port = 8000 + n % 10;
        writeln!(text, "-A PREROUTING -d {}/32 -p tcp --dport {port} -j SVC-{n}", vip(n)).unwrap();
        for b in 0..BACKENDS {
            let chance = if b + 1 < BACKENDS {
                format!(
                    "-m statistic --mode random --probability {:.10} ",
                    1.0 / (BACKENDS - b) as f64
                )
            } else {
                String::new()
            };
            writeln!(
                text,
                "-A SVC-{n} -p tcp {chance}-j DNAT --to-destination {}:30080",
                endpoint(n, b)
            )
            .unwrap();
        }
    }
    text + "COMMIT\n"
}

fn millis(time: Duration) -> String {
    let millis = time.as_secs_f64() * 1e3;
    if millis < 10.0 { format!("{millis:.3} ms") } else { format!("{millis:.0} ms") }
}
