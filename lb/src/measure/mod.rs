//! Entry points for the benchmarks: the control loop's work, without workers and sockets.

mod cluster;

use std::net::Ipv4Addr;
use std::num::NonZeroU16;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fairway_config::{ChangeSet, Config, ServiceSpec, load_text};
use fairway_core::publish::Publisher;
use fairway_core::{BackendAddr, Weight};
use rustix::time::{ClockId, clock_gettime};

use crate::announce::Handle;
use crate::cloud::CloudNews;
use crate::control::{Answers, Control, Listeners, Watchers};
use crate::health::Checker;
use crate::manager::Manager;
use crate::resolver::Resolver;

pub use cluster::{ClusterScale, cluster_scale};

/// What loading and changing a large configuration costs, in CPU time of one thread.
#[derive(Debug)]
pub struct Scale {
    /// Reading the document.
    pub parse: Duration,
    /// Planning and publishing all of it.
    pub load: Duration,
    /// From a change set with one endpoint changed to the published snapshot, each time.
    pub changes: Vec<Duration>,
}

/// A document of `services` services with `backends` backends each.
#[must_use]
pub fn document(services: usize, backends: usize) -> String {
    use std::fmt::Write;
    let mut text = String::from("dataplane: {listen: tproxy}\nservices:\n");
    for n in 0..services {
        let vip = Ipv4Addr::from(0x0a64_0000 + (n / 10) as u32 + 1);
        // Writing into a String cannot fail.
        let _ = write!(
            text,
            "  - name: svc-{n}\n    addresses: [{vip}]\n    ports: [{{name: http, port: {}}}]\n    \
             healthCheck: {{type: none}}\n    backends:\n",
            8000 + n % 10,
        );
        for b in 0..backends {
            let ip = Ipv4Addr::from(0x0ac8_0000 + (n * backends + b) as u32);
            let _ = writeln!(text, "      - {ip}:30080");
        }
    }
    text
}

/// Loads `document` and changes one endpoint of one service, `changes` times.
///
/// # Panics
/// When the document is not good: it is one of ours.
#[must_use]
pub fn scale(document: &str, changes: usize) -> Scale {
    let start = cpu();
    let config = load_text(&Path::new("scale.yaml").into(), document);
    let config = config.unwrap_or_else(|problems| panic!("{problems}"));
    let parse = cpu().saturating_sub(start);
    let specs: Vec<Arc<ServiceSpec>> = config.services.values().cloned().collect();
    let mut control = control(&config);
    let start = cpu();
    control.begin(Listeners::detached(), config, &Answers::new(), CloudNews::default());
    let load = cpu().saturating_sub(start);
    let changes = (0..changes).map(|n| {
        let spec = &specs[n * 7919 % specs.len()];
        let change = ChangeSet { upserts: vec![changed(spec, n)], removals: Vec::new() };
        let start = cpu();
        control.apply(change, &Answers::new());
        control.publish();
        cpu().saturating_sub(start)
    });
    Scale { parse, load, changes: changes.collect() }
}

fn control(config: &Config) -> Control {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build();
    let runtime = runtime.unwrap_or_else(|error| panic!("{error}"));
    Control::new(
        config.process.clone(),
        "scale.yaml".into(),
        Publisher::new(),
        Vec::new(),
        (None, Handle::detached()),
        Watchers {
            checker: Checker::new(runtime.handle().clone(), 1, |_| {}),
            resolver: Resolver::new(runtime.handle().clone(), Vec::new(), Duration::ZERO, |_| {}),
        },
        Manager::default(),
    )
}

/// `spec` with its last backend at another address.
fn changed(spec: &ServiceSpec, n: usize) -> Arc<ServiceSpec> {
    let mut spec = spec.clone();
    if let Some(last) = spec.backends.last_mut() {
        let ip = Ipv4Addr::from(0x0afa_0000 + (n % 65_536) as u32);
        last.addr = BackendAddr::new(ip.into(), NonZeroU16::new(30_080));
        last.weight = Weight::ONE;
    }
    Arc::new(spec)
}

/// CPU time of this thread.
fn cpu() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}
