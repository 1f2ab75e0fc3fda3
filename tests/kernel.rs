//! A kernel that does not let us. Alone in its file: it changes a setting of the whole machine.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::process::Command;

use fairway_tests::{all, program};

const SETTING: &str = "/proc/sys/kernel/io_uring_disabled";

/// Puts the setting back, also after a failure.
struct Restore(String);

impl Drop for Restore {
    fn drop(&mut self) {
        let _ = std::fs::write(SETTING, &self.0);
    }
}

#[test]
fn without_io_uring_the_exit_says_what_to_set() {
    if !all() {
        println!("SKIPPED: switches io_uring off for the whole machine; tests/run --all does it");
        return;
    }
    let before = std::fs::read_to_string(SETTING).unwrap_or_default();
    if before.trim() != "0" || std::fs::write(SETTING, "2").is_err() {
        println!("SKIPPED: {SETTING} cannot be changed here");
        return;
    }
    let _restore = Restore(before);
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("fairway.yaml");
    let text = format!("admin: {{socket: {}/s}}\nservices: []\n", folder.path().display());
    std::fs::write(&config, text).unwrap();
    let output = Command::new(program()).args(["run", "--config"]).arg(&config).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("kernel.io_uring_disabled is 2"), "{said}");
    assert!(said.contains("sysctl kernel.io_uring_disabled=0"), "{said}");
}
