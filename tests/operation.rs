//! Running it: files that change, signals, listeners that cannot be had, what people see.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::symlink;
use std::process::Command;
use std::thread;

use fairway_tests::http::{ask, connect, get};
use fairway_tests::{Fairway, Host, Net, Nginx, SECOND, VIP4, program, run, wait_for};
use rustix::process::Signal;

const VIP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(VIP4), 80);

fn document(servers: &[&Nginx]) -> String {
    on_port(servers, 80)
}

fn on_port(servers: &[&Nginx], port: u16) -> String {
    let backends: Vec<_> = servers.iter().map(|server| server.addr.to_string()).collect();
    format!(
        "services:\n  - name: web\n    addresses: [{VIP4}]\n    ports: [{{port: {port}}}]\n    \
         backends: [{}]\n    healthCheck: {{type: none}}\n",
        backends.join(", ")
    )
}

fn serves(net: &Net, vip: SocketAddr) -> Option<String> {
    net.on(Host::Client, || get(vip, "/").ok())
}

#[test]
fn files_are_followed_through_the_tricks_of_editors_and_mounts() {
    let Some(net) = Net::new() else { return };
    let (one, two) = (Nginx::start(&net, 1), Nginx::start(&net, 2));
    let fairway = Fairway::start(&net, &document(&[&one]));
    let becomes = |name: &str, what: &str| {
        wait_for(what, || serves(&net, VIP).as_deref() == Some(name));
    };
    becomes("s1", "the first document");
    fairway.write(&document(&[&two]));
    becomes("s2", "a rename over the file");

    // Truncated and written in parts.
    let text = fairway.whole(&document(&[&one]));
    let (start, rest) = text.split_at(text.len() / 2);
    std::fs::write(fairway.config_path(), "").unwrap();
    std::fs::write(fairway.config_path(), start).unwrap();
    thread::sleep(SECOND / 20);
    std::fs::write(fairway.config_path(), format!("{start}{rest}")).unwrap();
    becomes("s1", "a write in parts");

    // As a ConfigMap is mounted: fairway.yaml -> ..data/fairway.yaml, ..data -> ..1.
    let folder = fairway.folder();
    for (version, server) in [("..1", &two), ("..2", &one)] {
        std::fs::create_dir(folder.join(version)).unwrap();
        let text = fairway.whole(&document(&[server]));
        std::fs::write(folder.join(version).join("fairway.yaml"), text).unwrap();
    }
    let point = |to: &str| {
        symlink(to, folder.join("..new")).unwrap();
        std::fs::rename(folder.join("..new"), folder.join("..data")).unwrap();
    };
    point("..1");
    std::fs::remove_file(fairway.config_path()).unwrap();
    symlink("..data/fairway.yaml", fairway.config_path()).unwrap();
    becomes("s2", "the file is a symlink now");
    point("..2");
    becomes("s1", "the symlink behind it moved");

    // Gone: what runs goes on, and it is said.
    std::fs::remove_file(fairway.config_path()).unwrap();
    let problems = || fairway.status().unwrap()["config"]["problems"].as_array().unwrap().clone();
    wait_for("the loss is noticed", || !problems().is_empty());
    assert!(problems()[0].as_str().unwrap().contains("cannot be read"), "{:?}", problems());
    assert_eq!(serves(&net, VIP).as_deref(), Some("s1"));
    fairway.write(&document(&[&two]));
    becomes("s2", "it is back");
    wait_for("nothing is wrong any more", || problems().is_empty());
}

#[test]
fn a_bad_document_changes_nothing_and_shows() {
    let Some(net) = Net::new() else { return };
    let server = Nginx::start(&net, 1);
    let fairway = Fairway::start(&net, &document(&[&server]));
    let generation = fairway.status().unwrap()["generation"].clone();
    fairway.write(&document(&[&server]).replace("backends", "bakends"));
    let output = fairway.cli(&["reload"]);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("unknown field `bakends`; did you mean `backends`?"), "{said}");
    assert!(said.contains("fairway.yaml:") && said.contains(":5: unknown"), "{said}");
    let status = fairway.status().unwrap();
    assert_eq!(status["generation"], generation);
    assert_eq!(status["config"]["problems"].as_array().unwrap().len(), 1);
    assert!(fairway.metrics(&net).contains("fairway_config_last_reload_successful 0"));
    assert!(fairway.log().contains("the one before runs on"));
    assert_eq!(serves(&net, VIP).as_deref(), Some("s1"));
    fairway.apply(&document(&[&server]));
    assert!(fairway.metrics(&net).contains("fairway_config_last_reload_successful 1"));
}

#[test]
fn a_bad_document_at_the_start_is_exit_2_with_every_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fairway.yaml");
    std::fs::write(&path, "servces: []\ndataplane: {workers: none}\n").unwrap();
    for command in ["run", "check"] {
        let output =
            Command::new(program()).arg(command).arg("--config").arg(&path).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{command}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("fairway.yaml:1:1: unknown field `servces`; did you mean"), "{said}");
        assert!(said.contains("fairway.yaml:2:22: `none` is not a number"), "{said}");
    }
}

#[test]
fn sighup_reloads_and_sigterm_drains() {
    let Some(net) = Net::new() else { return };
    let server = Nginx::start(&net, 1);
    let mut fairway = Fairway::start(&net, &document(&[&server]));
    fairway.signal(Signal::HUP);
    wait_for("SIGHUP is obeyed", || fairway.log().contains("configuration applied"));
    let metrics: SocketAddr = ([127, 0, 0, 1], 9180).into();
    net.on(Host::Lb, || assert_eq!(get(metrics, "/readyz").unwrap(), "ready"));
    let mut stream = net.on(Host::Client, || connect(VIP).unwrap());
    assert_eq!(ask(&mut stream, "/").unwrap(), "s1");
    fairway.signal(Signal::TERM);
    wait_for("it accepts nothing more", || serves(&net, VIP).is_none());
    net.on(Host::Lb, || assert!(get(metrics, "/readyz").is_err(), "readiness is off"));
    assert_eq!(ask(&mut stream, "/").unwrap(), "s1", "an open connection goes on");
    assert!(fairway.ended().is_none());
    drop(stream);
    assert!(fairway.wait().success(), "it ends with its last connection");
}

#[test]
fn a_second_sigterm_is_obeyed_at_once() {
    let Some(net) = Net::new() else { return };
    let server = Nginx::start(&net, 1);
    let mut fairway = Fairway::start(&net, &document(&[&server]));
    let mut stream = net.on(Host::Client, || connect(VIP).unwrap());
    assert_eq!(ask(&mut stream, "/").unwrap(), "s1");
    fairway.signal(Signal::TERM);
    wait_for("it accepts nothing more", || serves(&net, VIP).is_none());
    fairway.signal(Signal::TERM);
    assert!(fairway.wait().success());
    assert!(stream.read(&mut [0]).is_err(), "the connection was cut");
}

#[test]
fn a_taken_port_fails_one_service_and_is_tried_again() {
    let Some(net) = Net::new() else { return };
    let server = Nginx::start(&net, 1);
    let holder = net.on(Host::Lb, || TcpListener::bind(VIP).unwrap());
    let text = document(&[&server])
        + &on_port(&[&server], 81).replace("services:\n", "").replace("web", "other");
    let fairway = Fairway::start(&net, &text);
    assert_eq!(serves(&net, (VIP4, 81).into()).as_deref(), Some("s1"), "the other serves");
    let troubles = fairway.status().unwrap()["troubles"].to_string();
    assert!(troubles.contains("port 80 of 10.77.0.100 is taken by another process"), "{troubles}");
    drop(holder);
    wait_for("it is had after all", || serves(&net, VIP).as_deref() == Some("s1"));
    wait_for("and nothing is wrong", || {
        fairway.status().unwrap()["troubles"].as_array().unwrap().is_empty()
    });
}

#[test]
fn an_address_may_arrive_later() {
    let Some(net) = Net::new() else { return };
    let server = Nginx::start(&net, 1);
    let text = document(&[&server]).replace("10.77.0.100", "10.77.0.101");
    let fairway = Fairway::start(&net, &text);
    wait_for("it is told what to do", || {
        fairway.log().contains("add it with `ip address add 10.77.0.101/32 dev lo`")
    });
    assert!(fairway.status().unwrap()["troubles"].to_string().contains("10.77.0.101"));
    net.exec(Host::Lb, "ip address add 10.77.0.101/32 dev lo");
    wait_for("it serves", || serves(&net, ([10, 77, 0, 101], 80).into()).is_some());
    wait_for("and nothing is wrong", || {
        fairway.status().unwrap()["troubles"].as_array().unwrap().is_empty()
    });
}

#[test]
fn addresses_are_added_to_an_interface_and_taken_away() {
    let Some(net) = Net::new() else { return };
    let server = Nginx::start(&net, 1);
    let with_vip = |document: String| {
        format!("dataplane: {{vip: {{interface: lo}}}}\n{document}    drainTimeout: 300ms\n")
    };
    let text =
        with_vip(document(&[&server]).replace("[10.77.0.100]", "[10.77.0.102, \"fd77::102\"]"));
    let mut fairway = Fairway::start(&net, &text);
    let addresses = || net.exec(Host::Lb, "ip address show dev lo");
    assert_eq!(serves(&net, ([10, 77, 0, 102], 80).into()).as_deref(), Some("s1"));
    assert!(addresses().contains("fd77::102/128"));
    fairway.apply(&with_vip(document(&[&server])));
    wait_for("the address goes with the service", || !addresses().contains("10.77.0.102"));
    assert!(addresses().contains("10.77.0.100"), "one that was there before stays");
    fairway.signal(Signal::TERM);
    fairway.wait();
    assert!(addresses().contains("10.77.0.100") && !addresses().contains("10.77.0.102"));
}

#[test]
fn listeners_come_and_go_with_their_services() {
    let Some(net) = Net::new() else { return };
    let server = Nginx::start(&net, 1);
    let fairway = Fairway::start(&net, &document(&[&server]));
    assert!(serves(&net, (VIP4, 81).into()).is_none());
    fairway.apply(&on_port(&[&server], 81));
    wait_for("the new port serves", || serves(&net, (VIP4, 81).into()).is_some());
    wait_for("the old one does not", || serves(&net, VIP).is_none());
    fairway.apply("services: []\n");
    wait_for("nothing serves", || serves(&net, (VIP4, 81).into()).is_none());
}

#[test]
fn transparent_listening_serves_ranges() {
    let Some(net) = Net::new() else { return };
    let server = Nginx::start(&net, 1);
    let document = |ports: &str| {
        format!(
            "dataplane: {{listen: tproxy}}\nservices:\n  - name: many\n    addresses: [192.0.2.1, \"2001:db8::1\"]\n    \
             ports: [{{name: p, port: {ports}, targetPort: 8080}}]\n    backends: [{}]\n    \
             healthCheck: {{type: none}}\n",
            server.ip()
        )
    };
    let mut fairway = Fairway::start(&net, &document("2000-2999"));
    for vip in ["192.0.2.1:2000", "192.0.2.1:2999", "[2001:db8::1]:2500"] {
        let vip = vip.parse().unwrap();
        wait_for("the range serves", || serves(&net, vip).as_deref() == Some("s1"));
    }
    assert!(serves(&net, "192.0.2.1:3000".parse().unwrap()).is_none());
    let mut open = net.on(Host::Client, || connect("192.0.2.1:2000".parse().unwrap())).unwrap();
    assert_eq!(ask(&mut open, "/").unwrap(), "s1");
    fairway.apply(&document("4000-4099"));
    assert_eq!(ask(&mut open, "/").unwrap(), "s1", "an open connection goes on");
    wait_for("the new range serves", || serves(&net, "192.0.2.1:4050".parse().unwrap()).is_some());
    assert!(serves(&net, "192.0.2.1:2000".parse().unwrap()).is_none());
    // Somebody restarts their firewall.
    net.exec(Host::Lb, "nft flush ruleset");
    wait_for("the table is made again", || {
        let listed = Command::new("ip")
            .args(["netns", "exec", fairway.namespace(), "nft", "list", "table", "inet", "fairway"])
            .output();
        listed.is_ok_and(|output| output.status.success())
    });
    wait_for("and serves", || serves(&net, "192.0.2.1:4050".parse().unwrap()).is_some());
    let ruleset = net.exec(Host::Lb, "nft list table inet fairway");
    assert!(ruleset.contains("192.0.2.1 . tcp . 4000-4099"), "{ruleset}");
    // Another one would have another number, which its first line ends with.
    let number = || {
        let listed = net.exec(Host::Lb, "nft -a list table inet fairway");
        listed.lines().next().unwrap().rsplit_once("# handle ").unwrap().1.to_owned()
    };
    let before = number();
    // It is looked at each second.
    thread::sleep(3 * SECOND);
    assert_eq!(number(), before, "what is there is left alone");
    drop(open);
    fairway.signal(Signal::TERM);
    fairway.wait();
    assert!(!net.exec(Host::Lb, "nft list ruleset").contains("fairway"), "it cleans up");
    assert!(!net.exec(Host::Lb, "ip rule").contains("0x6677"));
}

#[test]
fn what_people_and_programs_see() {
    let Some(net) = Net::new() else { return };
    let server = Nginx::start(&net, 1);
    let fairway =
        Fairway::start(&net, &format!("log: {{connections: all}}\n{}", document(&[&server])));
    for _ in 0..5 {
        assert!(serves(&net, VIP).is_some());
    }
    let text = |arguments: &[&str]| {
        let output = fairway.cli(arguments);
        assert!(output.status.success(), "{arguments:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(text(&["status"]).contains("serving, pid"), "{}", text(&["status"]));
    assert!(text(&["services"]).contains("web/80"));
    let backends = text(&["backends", "web"]);
    assert!(backends.contains("10.78.0.11:8080") && backends.contains("  up "), "{backends}");
    let metrics = fairway.metrics(&net);
    for line in [
        "fairway_service_connections_total{service=\"web/80\"} 5",
        "fairway_service_connection_ends_total{service=\"web/80\",reason=\"backend_closed\"} 5",
        "fairway_service_connect_duration_seconds_count{service=\"web/80\"} 5",
        "fairway_service_backends{service=\"web/80\",state=\"up\"} 1",
        "fairway_backend_connections_total{service=\"web/80\",backend=\"10.78.0.11:8080\"} 5",
        "fairway_backend_up{service=\"web/80\",backend=\"10.78.0.11:8080\"} 1",
        "fairway_snapshot_generation 1",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line}\n{metrics}");
    }
    assert!(!metrics.contains("fairway_service_retries_total{"), "zero series are left out");
    wait_for("connections are logged", || fairway.log().matches("connection ended").count() == 5);
    assert!(fairway.log().contains("reason=\"backend_closed\" attempts=1"), "{}", fairway.log());
    let gone =
        Command::new(program()).args(["status", "--socket", "/nonexistent"]).output().unwrap();
    assert_eq!(gone.status.code(), Some(3));
}

#[test]
fn orders_say_what_they_did_not_find_and_what_must_wait() {
    let Some(net) = Net::new() else { return };
    let server = Nginx::start(&net, 1);
    let fairway = Fairway::start(&net, &document(&[&server]));
    for (arguments, want) in [
        (&["services", "nope"][..], "no service `nope` here; `fairway services` lists them"),
        (&["backends", "nope"], "no service `nope` here; `fairway services` lists them"),
        (
            &["drain", "10.78.0.11", "--service", "nope"],
            "no service `nope` here; `fairway services` lists them",
        ),
        (&["drain", "10.9.9.9"], "no backend `10.9.9.9` here; `fairway backends` lists them"),
    ] {
        let output = fairway.cli(arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), text.trim()), (Some(1), &*format!("fairway: {want}")));
    }
    fairway.write(&(document(&[&server]) + "shutdown: {drainTimeout: 7s}\n"));
    let output = fairway.cli(&["reload"]);
    let text = String::from_utf8_lossy(&output.stdout);
    let want = "changed, in effect after `fairway upgrade`: `shutdown`";
    assert!(output.status.success() && text.contains(want), "{text}");
    assert!(fairway.status().unwrap()["troubles"].to_string().contains(want));
}

#[test]
fn ended_connections_are_logged_where_asked() {
    let Some(net) = Net::new() else { return };
    let server = Nginx::start(&net, 1);
    let log = tempfile::tempdir().unwrap();
    let path = log.path().join("connections.log");
    let head = format!("log: {{connections: all, to: file, path: {}}}\n", path.display());
    let fairway = Fairway::start(&net, &(head + &document(&[&server])));
    for _ in 0..3 {
        wait_for("it serves", || serves(&net, VIP).is_some());
    }
    let lines = || std::fs::read_to_string(&path).unwrap_or_default();
    wait_for("three lines", || lines().lines().count() >= 3);
    let line: serde_json::Value = serde_json::from_str(lines().lines().next().unwrap()).unwrap();
    assert_eq!(line["service"], "web/80");
    assert_eq!(line["backend"], server.addr.to_string());
    assert_eq!(line["reason"], "backend_closed");
    for number in ["connect_ms", "first_byte_ms", "duration_ms", "rx_bytes", "tx_bytes"] {
        assert!(line[number].is_number(), "{number} in {line}");
    }
    assert!(fairway.metrics(&net).contains("fairway_connection_log_dropped_lines_total 0"));
}

#[test]
fn metrics_pass_promtool() {
    let Some(net) = Net::new() else { return };
    if Command::new("promtool").arg("--version").output().is_err() {
        println!("SKIPPED: `promtool` is not installed; tests/run --all installs it");
        return;
    }
    let server = Nginx::start(&net, 1);
    let fairway = Fairway::start(&net, &document(&[&server]));
    assert!(serves(&net, VIP).is_some());
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), fairway.metrics(&net) + "\n").unwrap();
    let said = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(std::fs::File::open(file.path()).unwrap())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.status.success() && text.is_empty(), "{text}");
}

#[test]
fn the_demo_ends_well() {
    let output = run(program().to_str().unwrap(), &["demo", "--seconds", "4"]);
    assert!(output.contains(" 0 failed"), "{output}");
    assert!(output.contains("`two` is killed") && output.contains("`two` is back"), "{output}");
}

/// Where Debian puts it.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

#[test]
fn jumps_of_the_clock_change_nothing() {
    let Some(net) = Net::new() else { return };
    if !std::path::Path::new(FAKETIME).exists() {
        println!("SKIPPED: libfaketime is not installed; tests/run installs it");
        return;
    }
    let mut servers = [Nginx::start(&net, 1), Nginx::start(&net, 2)];
    let text = document(&[&servers[0], &servers[1]]).replace(
        "{type: none}",
        "{interval: 100ms, timeout: 90ms, fall: 1, rise: 1}\n    timeouts: {idle: 1h}\n    \
         sessionAffinity: ClientIP",
    );
    let folder = tempfile::tempdir().unwrap();
    let clock = folder.path().join("clock");
    std::fs::write(&clock, "+0").unwrap();
    let fairway = Fairway::start_by(
        &net,
        &text,
        &[
            &format!("LD_PRELOAD={FAKETIME}"),
            &format!("FAKETIME_TIMESTAMP_FILE={}", clock.display()),
            "FAKETIME_NO_CACHE=1",
            // The clock that no jump moves is the kernel's own.
            "FAKETIME_DONT_FAKE_MONOTONIC=1",
        ],
    );
    let mut held = net.on(Host::Client, || connect(VIP).unwrap());
    let first = ask(&mut held, "/").unwrap();
    let applied = |fairway: &Fairway| fairway.status().unwrap()["config"]["loadedAt"].as_u64();
    let before = applied(&fairway).unwrap();
    for (jump, idle) in [("+40d", "5m"), ("-40d", "6m")] {
        std::fs::write(&clock, jump).unwrap();
        // The wall clock has jumped indeed: a reload is stamped with it.
        fairway.apply(&text.replace("idle: 1h", &format!("idle: {idle}")));
        let apart = applied(&fairway).unwrap().abs_diff(before);
        assert!((39 * 86_400..41 * 86_400).contains(&apart), "{jump}: {apart} s");
        assert_eq!(ask(&mut held, "/").unwrap(), first, "{jump}: the open connection goes on");
        assert_eq!(serves(&net, VIP).unwrap(), first, "{jump}: affinity holds");
        for server in &servers {
            assert_eq!(fairway.state_of(&server.addr.to_string()).unwrap(), "up", "{jump}");
        }
        let other = usize::from(servers[0].name == first);
        let addr = servers[other].addr.to_string();
        servers[other].kill();
        wait_for("checks go on", || fairway.state_of(&addr).unwrap() == "down");
        servers[other].restart();
        wait_for("and see it return", || fairway.state_of(&addr).unwrap() == "up");
    }
    assert_eq!(fairway.count("ends/idle_timeout"), 0);
}
