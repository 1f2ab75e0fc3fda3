//! A running Fairway on the load balancer's host.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::http::get_by;
use crate::{Host, Net, SECOND, in_namespace, program, wait_for};

/// The first line of a document whose metrics are elsewhere.
const BESIDE: &str = "# beside another\n";

pub struct Fairway {
    folder: tempfile::TempDir,
    child: Child,
    /// Processes that went on in its place, the last of them now.
    heirs: Vec<u32>,
    namespace: String,
    /// Of a service manager, when there is one: it is the child then.
    manager: Option<tempfile::TempDir>,
}

impl Fairway {
    /// Starts with `document`, to which admin and log sections are added, and in the shape of an
    /// older kernel when that is asked for. Waits until it is ready.
    pub fn start(net: &Net, document: &str) -> Self {
        Self::start_by(net, document, &[])
    }

    /// As [`Fairway::start`], through a program that runs it: its words, and variables `NAME=value`
    /// before them.
    pub fn start_by(net: &Net, document: &str, words: &[&str]) -> Self {
        Self::spawn(net, document, words).ready(document)
    }

    /// As [`Fairway::start`], with further files beside the document: their names and texts.
    pub fn start_with_files(net: &Net, document: &str, files: &[(&str, &str)]) -> Self {
        Self::spawn_with(net, document, &[], files).ready(document)
    }

    /// As [`Fairway::start_with_files`], beside another on the same host.
    pub fn start_beside(net: &Net, document: &str, files: &[(&str, &str)]) -> Self {
        let document = format!("{BESIDE}{document}");
        Self::start_with_files(net, &document, files)
    }

    fn ready(self, document: &str) -> Self {
        let mut fairway = self;
        let has_kernel_ends = document.contains("driver: dpdk");
        let namespace = fairway.namespace.clone();
        let address = || {
            if has_kernel_ends {
                crate::packets::address_kernel_ends(&namespace);
            }
        };
        wait_for("fairway is ready", || {
            // Before its checks have given anybody up. Again each time: a link that is set up loses the
            // addresses of IPv6 that came before.
            address();
            if let Some(status) = fairway.child.try_wait().unwrap() {
                panic!("fairway ended with {status}:\n{}", fairway.log());
            }
            fairway.status().is_some_and(|status| status["ready"] == true)
        });
        // An interface that came between has one family's alone.
        address();
        fairway
    }

    /// As [`Fairway::start`], under a limit of descriptors.
    pub fn start_with_descriptors(net: &Net, document: &str, descriptors: u32) -> Self {
        let limit = format!("--nofile={descriptors}");
        let fairway = Self::spawn(net, document, &["prlimit", &limit]);
        wait_for("fairway is ready", || fairway.status().is_some());
        fairway
    }

    /// As [`Fairway::start_by`], and does not wait.
    pub fn spawn(net: &Net, document: &str, words: &[&str]) -> Self {
        Self::spawn_with(net, document, words, &[])
    }

    /// As [`Fairway::start`], in a network namespace.
    pub fn start_in(namespace: &str, document: &str) -> Self {
        Self::spawn_in(namespace, document, &[], &[]).ready(document)
    }

    /// The same with further files beside the document.
    pub fn start_in_with(namespace: &str, document: &str, files: &[(&str, &str)]) -> Self {
        Self::spawn_in(namespace, document, &[], files).ready(document)
    }

    fn spawn_with(net: &Net, document: &str, words: &[&str], files: &[(&str, &str)]) -> Self {
        Self::spawn_in(&net.name(Host::Lb), document, words, files)
    }

    fn spawn_in(namespace: &str, document: &str, words: &[&str], files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let config = folder.path().join("fairway.yaml");
        std::fs::write(&config, whole(folder.path(), document)).unwrap();
        let child = run(namespace, folder.path(), words);
        Self { folder, child, heirs: Vec::new(), namespace: namespace.into(), manager: None }
    }

    /// As [`Fairway::start`], by a stand-in for a service manager.
    pub fn start_managed(net: &Net, document: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let manager = folder.path().join("manager.py");
        std::fs::write(&manager, include_str!("manager.py")).unwrap();
        let (manager, notify) = (manager.display().to_string(), folder.path().join("notify"));
        let words = ["python3", &manager, &notify.display().to_string()];
        let mut fairway = Self::spawn(net, document, &words);
        fairway.manager = Some(folder);
        fairway.ready(document)
    }

    /// What its manager was told.
    pub fn told(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("out")).unwrap()
    }

    /// Ends it as a crash does, and starts it again as it was.
    pub fn restart(&mut self) {
        self.restart_after(|_| {});
    }

    /// The same; meanwhile something is done with its folder.
    pub fn restart_after(&mut self, meanwhile: impl FnOnce(&Path)) {
        self.kill();
        meanwhile(self.folder.path());
        self.start_again();
    }

    /// Starts it again after it has ended.
    pub fn start_again(&mut self) {
        self.child = run(&self.namespace, self.folder.path(), &[]);
        wait_for("fairway is ready", || {
            self.status().is_some_and(|status| status["ready"] == true)
        });
    }

    pub fn config_path(&self) -> PathBuf {
        self.folder.path().join("fairway.yaml")
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What the file holds when `document` is written into it.
    pub fn whole(&self, document: &str) -> String {
        whole(self.folder.path(), document)
    }

    /// Replaces the document as editors do: a new file, renamed over the old one.
    pub fn write(&self, document: &str) {
        let new = self.folder.path().join(".new.yaml");
        std::fs::write(&new, self.whole(document)).unwrap();
        std::fs::rename(new, self.config_path()).unwrap();
    }

    /// Replaces the document and waits until it runs.
    pub fn apply(&self, document: &str) {
        self.write(document);
        let output = self.cli(&["reload"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Runs a command of the command line against it.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        Command::new(program())
            .args(arguments)
            .arg("--socket")
            .arg(self.folder.path().join("admin.sock"))
            .output()
            .unwrap()
    }

    /// Has another process go on in its place.
    pub fn upgrade(&mut self) {
        let output = self.cli(&["upgrade"]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        let pid = said.split(' ').nth(1).and_then(|pid| pid.parse().ok());
        self.heirs.push(pid.unwrap_or_else(|| panic!("no process in {said}")));
    }

    /// An upgrade that fails when everything has been handed over: the next metrics address is taken.
    pub fn fails_to_upgrade(&self) {
        let text = std::fs::read_to_string(self.config_path()).unwrap();
        let taken = in_namespace(&self.namespace, || {
            std::net::TcpListener::bind("127.0.0.1:9199").unwrap()
        });
        let other = text.replace("127.0.0.1:9180", "127.0.0.1:9199");
        std::fs::write(self.config_path(), other).unwrap();
        let output = self.cli(&["upgrade"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("metrics address 127.0.0.1:9199"), "{said}");
        std::fs::write(self.config_path(), text).unwrap();
        drop(taken);
    }

    fn json(&self, arguments: &[&str]) -> Option<Value> {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--output", "json"]).collect();
        let output = self.cli(&arguments);
        output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    pub fn status(&self) -> Option<Value> {
        self.json(&["status"])
    }

    /// Number of services, asked by the socket itself: often, and beside a measurement.
    pub fn served(&self) -> Option<u64> {
        let socket = UnixStream::connect(self.folder.path().join("admin.sock")).ok()?;
        socket.set_read_timeout(Some(10 * SECOND)).ok()?;
        let status = get_by(socket, "/v1/status").ok()?;
        serde_json::from_str::<Value>(&status).ok()?["services"].as_u64()
    }

    /// How announcements stand.
    pub fn announced(&self) -> Value {
        self.json(&["announce", "status"]).unwrap()
    }

    /// Ends it as a crash does.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn services(&self) -> Value {
        self.json(&["services"]).unwrap()
    }

    pub fn backends(&self) -> Value {
        self.json(&["backends"]).unwrap()
    }

    /// The first service.
    pub fn service(&self) -> Value {
        self.services()[0].clone()
    }

    /// A number of the first service: a path like `ends/denied`; zero when absent.
    pub fn count(&self, path: &str) -> u64 {
        self.service().pointer(&format!("/{path}")).and_then(Value::as_u64).unwrap_or(0)
    }

    /// The state of the backend at an address.
    pub fn state_of(&self, address: &str) -> Option<String> {
        let backends = self.backends();
        let backends = backends.as_array().unwrap();
        let backend = backends.iter().find(|backend| backend["address"] == address)?;
        backend["state"].as_str().map(Into::into)
    }

    /// The text of /metrics, fetched on its own host.
    pub fn metrics(&self, net: &Net) -> String {
        net.on(Host::Lb, || crate::http::get(([127, 0, 0, 1], 9180).into(), "/metrics")).unwrap()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.pid() as i32).unwrap(), signal).unwrap();
    }

    /// Whether it still runs, and how it ended if not.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_for("fairway ends", || {
            status = self.ended();
            status.is_some()
        });
        status.unwrap()
    }

    /// How often each of its workers has gone to sleep.
    pub fn worker_naps(&self) -> Vec<u64> {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        let count = |thread: std::fs::DirEntry| {
            let status = std::fs::read_to_string(thread.path().join("status")).ok()?;
            let of = |field: &str| status.lines().find_map(|line| line.strip_prefix(field));
            of("Name:")?.trim().strip_prefix("fairway-")?.parse::<u32>().ok()?;
            of("voluntary_ctxt_switches:")?.trim().parse().ok()
        };
        threads.flatten().filter_map(count).collect()
    }

    /// The process that serves.
    pub fn pid(&self) -> u32 {
        if self.manager.is_some() {
            let told = self.told();
            let of = |line: &str| {
                let pid = line.strip_prefix("STARTED ").or(line.strip_prefix("MAINPID "));
                pid.and_then(|pid| pid.parse().ok())
            };
            return told.lines().rev().find_map(of).unwrap();
        }
        self.heirs.last().copied().unwrap_or(self.child.id())
    }

    pub fn namespace(&self) -> &str {
        &self.namespace
    }
}

/// Runs the document of a folder.
fn run(namespace: &str, folder: &Path, words: &[&str]) -> Child {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(folder.join("log"));
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace, "env"]).args(words);
    command
        .arg(program())
        .arg("run")
        .arg("--config")
        .arg(folder.join("fairway.yaml"))
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(folder.join("out")).unwrap())
        .stderr(log.unwrap())
        .spawn()
        .unwrap()
}

/// Adds what every document here has in common, and lacks.
fn whole(folder: &Path, document: &str) -> String {
    let mut text = String::new();
    if !document.contains("admin:") {
        let metrics = if document.starts_with(BESIDE) { 9181 } else { 9180 };
        text += &format!(
            "admin: {{socket: {}/admin.sock, metrics: 127.0.0.1:{metrics}}}\n",
            folder.display()
        );
    }
    text += &format!("stateDirectory: {}/state\n", folder.display());
    let older = std::env::var("FAIRWAY_TEST_SHAPE").is_ok_and(|shape| shape == "6.1");
    if older && !document.contains("dataplane:") {
        text += "dataplane: {uring: {disable: [cappedReceive]}}\n";
    }
    text + document
}

impl Drop for Fairway {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- fairway's log\n{}", self.log());
        }
        for heir in &self.heirs {
            if let Some(pid) = Pid::from_raw(*heir as i32) {
                // It may have ended already.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        if self.manager.is_some() {
            // It ends with what it has started.
            if let Some(pid) = Pid::from_raw(self.child.id() as i32) {
                let _ = kill_process(pid, Signal::TERM);
            }
        } else {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}
