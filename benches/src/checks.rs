//! What 10,000 health checks every two seconds cost.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use fairway_tests::{Host, Net, program, wait_at_most};

use crate::core::{BALANCER, OTHERS, measured};
use crate::load;

pub(crate) fn run(quick: bool) {
    let Some(net) = Net::new() else { return };
    let (checks, length) = if quick { (1000, 4) } else { (10_000, 20) };
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("fairway.yaml");
    let socket = folder.path().join("admin.sock");
    let mut text = format!("admin: {{socket: {}}}\nservices:\n", socket.display());
    for n in 0..checks / 100 {
        // Writing into a String cannot fail.
        let _ = write!(
            text,
            "  - name: s{n}\n    addresses: [10.77.0.100]\n    ports: [{{port: {}}}]\n    \
             healthCheck: {{type: tcp, interval: 2s}}\n    backends:\n",
            20_000 + n
        );
        for b in 0..100 {
            let ip = Ipv4Addr::from(0x7f10_0000 + (n * 100 + b) as u32);
            let _ = writeln!(text, "      - {ip}:9000");
        }
    }
    std::fs::write(&config, text).unwrap();
    // All of 127/8 is on the balancer's own host: the checks meet a real listener there.
    net.on(Host::Lb, || {
        load::to_core(OTHERS);
        let listener = TcpListener::bind("0.0.0.0:9000").unwrap();
        thread::spawn(move || listener.incoming().for_each(drop));
    });
    let mut child = Command::new("ip")
        .args(["netns", "exec", &net.name(Host::Lb), "taskset", "-c", &BALANCER.to_string()])
        .arg(program())
        .args(["run", "--config"])
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_at_most(Duration::from_secs(30), "it serves", || {
        let output = Command::new(program())
            .args(["status", "-o", "json", "--socket"])
            .arg(&socket)
            .output();
        output.is_ok_and(|output| output.status.success())
    });
    // The first round of checks is spread over an interval.
    thread::sleep(Duration::from_secs(4));
    let (cost, ()) = measured(&[child.id()], || thread::sleep(Duration::from_secs(length)));
    child.kill().unwrap();
    child.wait().unwrap();
    let done = checks as u64 / 2 * length;
    println!(
        "{checks} TCP checks every 2 s, for {length} s, the process alone on its core: {:.1} µs a check, {:.1} % \
         of the core",
        cost.busy.as_secs_f64() * 1e6 / done as f64,
        cost.busy.as_secs_f64() * 100.0 / cost.wall.as_secs_f64()
    );
    println!();
}
