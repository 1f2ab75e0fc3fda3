//! The status page in a real browser, and what packaging shows of metrics.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use fairway_tests::http::get;
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
    // It asks nobody else, and nothing of it changes anything.
    let text = net.on(Host::Lb, || get(([127, 0, 0, 1], 9180).into(), "/").unwrap());
    assert!(!text.contains("https://") && !text.contains("src="), "it works offline");
    assert!(net.on(Host::Lb, || get(([127, 0, 0, 1], 9180).into(), "/v1/status")).is_err());
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
