//! Large configurations: loading, one change, memory; beside nft, iptables and HAProxy.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fairway_tests::http::get;
use fairway_tests::{Host, Net, program};

/// Services, and backends of each.
type Size = (usize, usize);

pub(crate) fn run(quick: bool) {
    let changes = if quick { 200 } else { 2000 };
    // First, while all memory that it takes is new.
    println!("{:<60}  {:>14}  {:>22}", "", "load all", "one endpoint changed");
    cluster(if quick { 1000 } else { 5000 }, changes);
    let sizes: &[Size] = if quick { &[(1000, 10)] } else { &[(10_000, 10), (1000, 100)] };
    for size in sizes {
        let (services, backends) = size;
        println!("\n{services} services x {backends} backends, health checks off");
        planning(*size, changes);
        let Some(net) = Net::new() else { return };
        process(&net, *size);
        rivals(&net, *size);
    }
    println!();
}

fn row(name: &str, load: &str, change: &str) {
    println!("{name:<60}  {load:>14}  {change:>22}");
}

/// The control loop alone, CPU time.
fn planning((services, backends): Size, changes: usize) {
    let document = fairway::measure::document(services, backends);
    let mut scale = fairway::measure::scale(&document, changes);
    scale.changes.sort_unstable();
    let at = |hundredths: usize| scale.changes[scale.changes.len() * hundredths / 100];
    let name = "Fairway, change set to published (CPU, p50/p99)";
    let change = format!("{} / {}", millis(at(50)), millis(at(99)));
    row(name, &millis(scale.load), &change);
    row("Fairway, reading the YAML (CPU)", &millis(scale.parse), "");
}

/// A cluster's Services, beyond what its API server takes: CPU time.
fn cluster(services: usize, changes: usize) {
    const ENDPOINTS: usize = 10;
    let mut scale = fairway::measure::cluster_scale(services, ENDPOINTS, changes);
    scale.changes.sort_unstable();
    let at = |hundredths: usize| scale.changes[scale.changes.len() * hundredths / 100];
    let change = format!("{} / {}", millis(at(50)), millis(at(99)));
    let mebibytes = scale.memory.1.saturating_sub(scale.memory.0) >> 20;
    let name =
        format!("{services} Services, {} endpoints, {mebibytes} MiB (CPU)", services * ENDPOINTS);
    row(&name, &millis(scale.sync), &change);
    row("the same, reading the lists", &millis(scale.parse), "");
}

/// The whole process: from its start to serving, listeners included.
fn process(net: &Net, (services, backends): Size) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("admin.sock");
    let config = folder.path().join("fairway.yaml");
    let text = format!("admin: {{socket: {}}}\n", socket.display());
    std::fs::write(&config, text + &fairway::measure::document(services, backends)).unwrap();
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
    row(&name, &millis(took), "");
    for words in
        [&["explain", "192.0.2.1:4711", "10.100.0.2:8003"][..], &["plan", config.to_str().unwrap()]]
    {
        let start = Instant::now();
        let mut command = Command::new(program());
        let output = command.args(words).arg("--socket").arg(&socket).output().unwrap();
        let name = format!("Fairway, `{}` (wall)", words[0]);
        let took = if output.status.success() { millis(start.elapsed()) } else { "failed".into() };
        row(&name, &took, "");
    }
    let (bytes, took) = net.on(Host::Lb, || {
        let scrape = || get(([127, 0, 0, 1], 9180).into(), "/metrics").unwrap();
        scrape();
        let start = Instant::now();
        (scrape().len(), start.elapsed())
    });
    let name = format!("Fairway, a scrape (wall), {:.1} MB", bytes as f64 / 1e6);
    row(&name, &millis(took), "");
    child.kill().unwrap();
    child.wait().unwrap();
    let _ = net.exec(Host::Lb, "nft delete table inet fairway");
}

/// The same services as others have them.
fn rivals(net: &Net, size: Size) {
    let known = |took: Option<Duration>| took.map_or("not here".into(), millis);
    let load = nft(net, &nft_rules(size));
    let change = nft(net, &nft_service(7, size.1, true));
    row("nft -f, a verdict map and a chain a service (wall)", &known(load), &known(change));
    let load = iptables(net, &iptables_rules(size));
    // iptables writes the whole table again, whatever changed.
    let change = iptables(net, &iptables_rules(size));
    row("iptables-restore, chains a service (wall)", &known(load), &known(change));
    haproxy(net, size);
}

/// HAProxy's start and its reload, which is another start beside the one that runs.
fn haproxy(net: &Net, (services, backends): Size) {
    let folder = tempfile::tempdir().unwrap();
    let (config, pid) = (folder.path().join("haproxy.cfg"), folder.path().join("pid"));
    let mut text = String::from(
        "global\n  maxconn 1000\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1m\n  timeout server 1m\n",
    );
    for n in 0..services {
        // Ports in place of addresses, which need not be there.
        writeln!(text, "listen svc-{n}\n  bind 127.0.0.1:{}", 10_000 + n).unwrap();
        for b in 0..backends {
            writeln!(text, "  server s{b} {}:30080", endpoint(n, b, backends)).unwrap();
        }
    }
    std::fs::write(&config, text).unwrap();
    let start = |old: Option<&str>| {
        let begun = Instant::now();
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &net.name(Host::Lb), "haproxy", "-D", "-f"]).arg(&config);
        command.arg("-p").arg(&pid).stdout(Stdio::null()).stderr(Stdio::null());
        // It goes to the background when it listens.
        let status = command.args(old.iter().flat_map(|old| ["-sf", old])).status();
        status.is_ok_and(|status| status.success()).then(|| begun.elapsed())
    };
    let load = start(None);
    let mut memory = String::new();
    let mut change = None;
    if load.is_some() {
        let first = std::fs::read_to_string(&pid).unwrap_or_default().trim().to_owned();
        let status = std::fs::read_to_string(format!("/proc/{first}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        memory = format!(", {} MiB", kib.unwrap_or_default() >> 10);
        change = start(Some(&first));
        let last = std::fs::read_to_string(&pid).unwrap_or_default().trim().parse().ok();
        if let Some(last) = last.and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(last, rustix::process::Signal::KILL);
        }
    }
    let known = |took: Option<Duration>| took.map_or("not here".into(), millis);
    row(&format!("HAProxy{memory}; a reload (wall)"), &known(load), &known(change));
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

fn endpoint(n: usize, b: usize, backends: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x0ac8_0000 + (n * backends + b) as u32)
}

fn nft_service(n: usize, backends: usize, again: bool) -> String {
    let mut text = String::new();
    let flush = if again { format!("flush chain ip lb svc-{n}\n") } else { String::new() };
    let targets: Vec<_> =
        (0..backends).map(|b| format!("{b} : {} . 30080", endpoint(n, b, backends))).collect();
    writeln!(
        text,
        "{flush}add rule ip lb svc-{n} meta l4proto tcp dnat ip addr . port to numgen random mod {backends} map {{ {} }}",
        targets.join(", ")
    )
    .unwrap();
    text
}

fn nft_rules((services, backends): Size) -> String {
    let mut text = String::from(
        "add table ip lb\nadd map ip lb vips { type ipv4_addr . inet_service : verdict; }\n\
         add chain ip lb pre { type nat hook prerouting priority dstnat; }\n",
    );
    for n in 0..services {
        writeln!(text, "add chain ip lb svc-{n}").unwrap();
        text += &nft_service(n, backends, false);
    }
    for n in 0..services {
        let port = 8000 + n % 10;
        writeln!(text, "add element ip lb vips {{ {} . {port} : goto svc-{n} }}", vip(n)).unwrap();
    }
    text += "add rule ip lb pre ip daddr . tcp dport vmap @vips\n";
    text
}

fn iptables_rules((services, backends): Size) -> String {
    let mut text = String::from("*nat\n:PREROUTING ACCEPT [0:0]\n");
    (0..services).for_each(|n| writeln!(text, ":SVC-{n} - [0:0]").unwrap());
    for n in 0..services {
        let port = 8000 + n % 10;
        writeln!(text, "-A PREROUTING -d {}/32 -p tcp --dport {port} -j SVC-{n}", vip(n)).unwrap();
        for b in 0..backends {
            let chance = if b + 1 < backends {
                format!(
                    "-m statistic --mode random --probability {:.10} ",
                    1.0 / (backends - b) as f64
                )
            } else {
                String::new()
            };
            writeln!(
                text,
                "-A SVC-{n} -p tcp {chance}-j DNAT --to-destination {}:30080",
                endpoint(n, b, backends)
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
