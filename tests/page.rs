//! The status page in a real browser, and what packaging shows of metrics.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use fairway_tests::http::{connect, get};
use fairway_tests::{Fairway, Host, Net, Nginx, VIP4, wait_for};

/// What a browser on the load balancer's host has made of the page after some seconds; with `size` it also
/// takes a picture.
fn browse(net: &Net, page: &str, folder: &Path, size: &str) -> String {
    let profile = format!("--user-data-dir={}", folder.join(size).display());
    let picture = format!("--screenshot={}", folder.join(format!("{size}.png")).display());
    let output = Command::new("ip")
        .args(["netns", "exec", &net.name(Host::Lb), "chromium", "--headless", "--no-sandbox"])
        .args(["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"])
        .args(["--disable-background-networking", "--disable-component-update"])
        .args([&profile, &picture, &format!("--window-size={size}")])
        .args(["--virtual-time-budget=5000", "--dump-dom", page])
        .stderr(Stdio::null())
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_page_shows_services_backends_and_what_is_wrong() {
    let Some(net) = Net::new() else { return };
    if Command::new("chromium").arg("--version").output().is_err() {
        println!("SKIPPED: chromium is not installed; `tests/run --all` installs it");
        return;
    }
    let server = Nginx::start(&net, 1);
    let text = format!(
        "services:\n  - name: \"web\"\n    addresses: [{VIP4}]\n    ports: [{{port: 80}}]\n    backends:\n      \
         - {{address: \"{}\", name: \"<b>one</b>\"}}\n      - {{address: \"10.78.0.99:1\", name: two}}\n    \
         healthCheck: {{interval: 200ms, timeout: 100ms, fall: 1}}\n",
        server.addr
    );
    let fairway = Fairway::start(&net, &text);
    net.on(Host::Client, || (0..10).for_each(|_| _ = get((VIP4, 80).into(), "/").unwrap()));
    wait_for("the other one is down", || {
        fairway.state_of("10.78.0.99:1").as_deref() == Some("down")
    });
    fairway.write(&text.replace("backends:", "bakends:"));
    wait_for("the error is known", || {
        !fairway.status().unwrap()["config"]["problems"].as_array().unwrap().is_empty()
    });
    let folder = tempfile::tempdir().unwrap();
    for size in ["1100,900", "390,844"] {
        let page = browse(&net, "http://127.0.0.1:9180/", folder.path(), size);
        for part in [
            "web/80",
            "1 of 2 up",
            "1 of 2 backends are down",
            "two 10.78.0.99:1 is down",
            "The newest configuration is not applied",
            "unknown field `bakends`",
            // A name is text, whatever it looks like.
            "&lt;b&gt;one&lt;/b&gt;",
            "<path d=\"M",
        ] {
            assert!(page.contains(part), "{part} in\n{page}");
        }
        let picture = std::fs::metadata(folder.path().join(format!("{size}.png"))).unwrap();
        assert!(picture.len() > 10_000, "{} bytes", picture.len());
    }
    // Without a token it changes nothing.
    let (status, said) = order(&net, "0123456789abcdef");
    assert_eq!(status, 403, "{said}");
    assert!(said.contains("`admin.tokenFile` is not set"), "{said}");
    assert!(!browse(&net, "http://127.0.0.1:9180/", folder.path(), "800,600").contains("<button>"));
    // It asks nobody else, and nothing of it changes anything.
    let text = net.on(Host::Lb, || get(([127, 0, 0, 1], 9180).into(), "/").unwrap());
    assert!(!text.contains("https://") && !text.contains("src="), "it works offline");
    assert!(net.on(Host::Lb, || get(([127, 0, 0, 1], 9180).into(), "/v1/status")).is_err());
}

/// Wants the first server of `web` drained, by the page's way; the status, and what is said.
fn order(net: &Net, token: &str) -> (u16, String) {
    let body = r#"{"service": "web/80", "backend": "10.78.0.11:8080", "order": "drain"}"#;
    let request = format!(
        "POST /api/order HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Authorization: Bearer {token}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = net.on(Host::Lb, || {
        let mut stream = connect(([127, 0, 0, 1], 9180).into()).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap(), answer.split("\r\n\r\n").nth(1).unwrap().to_owned())
}

#[test]
fn whoever_has_the_token_steers_by_the_page() {
    let Some(net) = Net::new() else { return };
    let server = Nginx::start(&net, 1);
    let key = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(key.path(), "0123456789abcdef\n").unwrap();
    let text = format!(
        "services:\n  - name: web\n    addresses: [{VIP4}]\n    ports: [{{port: 80}}]\n    backends: [\"{}\"]\n",
        server.addr
    );
    let fairway = Fairway::start(&net, &text);
    let admin = "admin: {";
    let whole = fairway.whole(&text);
    assert!(whole.contains(admin), "{whole}");
    let with = whole.replace(admin, &format!("admin: {{tokenFile: {}, ", key.path().display()));
    std::fs::write(fairway.config_path(), with).unwrap();
    let mut fairway = fairway;
    fairway.restart();
    assert_eq!(order(&net, "0123456789abcdee").0, 401);
    assert_eq!(fairway.state_of(&server.addr.to_string()).as_deref(), Some("up"));
    let (status, said) = order(&net, "0123456789abcdef");
    assert!(status == 200 && said.contains("drains: no new connections"), "{status} {said}");
    assert_eq!(fairway.state_of(&server.addr.to_string()).as_deref(), Some("draining"));
    // Another token counts at once.
    std::fs::write(key.path(), "fedcba9876543210").unwrap();
    assert_eq!(order(&net, "0123456789abcdef").0, 401);
    assert!(fairway.log().contains("ordered by the page"));
}

#[test]
fn whoever_reaches_the_page_cannot_use_up_what_serving_needs() {
    let Some(net) = Net::new() else { return };
    let server = Nginx::start(&net, 1);
    let text = format!(
        "services:\n  - name: web\n    addresses: [{VIP4}]\n    ports: [{{port: 80}}]\n    backends: [\"{}\"]\n",
        server.addr
    );
    let fairway = Fairway::start(&net, &text);
    let open = || std::fs::read_dir(format!("/proc/{}/fd", fairway.pid())).unwrap().count();
    let before = open();
    let half: Vec<_> = net.on(Host::Lb, || {
        (0..240)
            .map(|_| {
                let mut stream = connect(([127, 0, 0, 1], 9180).into()).unwrap();
                stream.write_all(b"GET / HTTP/1.1\r\n").unwrap();
                stream
            })
            .collect()
    });
    wait_for("some are taken", || open() > before + 100);
    assert!(open() < before + 200, "{} and then {}", before, open());
    net.on(Host::Client, || get((VIP4, 80).into(), "/").unwrap());
    drop(half);
    net.on(Host::Lb, || {
        wait_for("others are answered", || get(([127, 0, 0, 1], 9180).into(), "/readyz").is_ok());
    });
}

#[test]
fn dashboard_and_alerts_speak_of_metrics_that_there_are() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    let dashboard = read("packaging/grafana/fairway.json");
    serde_json::from_str::<serde_json::Value>(&dashboard).unwrap();
    let mut sources = String::new();
    let mut folders = vec![root.join("lb/src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            match entry.path() {
                path if path.is_dir() => folders.push(path),
                path => sources += &std::fs::read_to_string(path).unwrap_or_default(),
            }
        }
    }
    let text = dashboard + &read("packaging/prometheus/fairway.rules.yaml");
    let is_name = |c: char| c.is_ascii_lowercase() || c == '_';
    let names: BTreeSet<&str> = text
        .match_indices("fairway_")
        .map(|(at, _)| text[at..].split(|c| !is_name(c)).next().unwrap())
        .collect();
    assert!(names.len() > 20, "{names:?}");
    for name in names {
        let bare = name.trim_end_matches("_bucket");
        assert!(sources.contains(&format!("\"{bare}\"")), "{name} is no metric");
    }
}
