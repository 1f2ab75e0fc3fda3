//! The design's arrows: which crate may know which. A new one is drawn first, then used.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

#[test]
fn no_crate_knows_one_that_it_must_not() {
    let allowed: BTreeMap<&str, &[&str]> = [
        ("fairway-core", &[][..]),
        ("fairway-config", &["fairway-core"]),
        ("fairway-uring", &["fairway-core"]),
        ("dpdk-sys", &[]),
        ("fairway-dpdk", &["fairway-core", "dpdk-sys"]),
        ("fairway", &["fairway-config", "fairway-core", "fairway-uring", "fairway-dpdk"]),
    ]
    .into();
    // Tests and benches may know any.
    let free = ["fairway-tests", "fairway-benches"];
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let names: BTreeSet<&str> = packages.iter().map(|p| p["name"].as_str().unwrap()).collect();
    for package in packages {
        let name = package["name"].as_str().unwrap();
        if free.contains(&name) {
            continue;
        }
        let allowed = allowed.get(name).unwrap_or_else(|| panic!("{name} is not in the design"));
        let dependencies = package["dependencies"].as_array().unwrap();
        let known = dependencies.iter().map(|d| d["name"].as_str().unwrap());
        for dependency in known.filter(|dependency| names.contains(dependency)) {
            assert!(allowed.contains(&dependency), "{name} must not know {dependency}");
        }
    }
    assert!(names.len() >= 6);
}

#[test]
fn unsafe_code_stays_in_its_rooms() {
    let output = Command::new("git")
        .args(["grep", "-lE", r"allow\(unsafe_code", "--", "*.rs", ":!tests"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .unwrap();
    let files = String::from_utf8(output.stdout).unwrap();
    let files: Vec<&str> = files.lines().collect();
    // Beside these, the bindings of `dpdk-sys`, which are not ours.
    assert_eq!(
        files,
        [
            "dataplane/core/src/packet/prefetch.rs",
            "dataplane/dpdk/src/owners/mod.rs",
            "dataplane/uring/src/sys/mod.rs"
        ]
    );
}
