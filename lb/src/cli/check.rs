//! `fairway check`: every error of a document at once, and what a good one gives up.

use std::path::Path;
use std::process::ExitCode;

use fairway_config::document::ListenDoc;
use fairway_config::kubernetes::client::connect;
use fairway_config::{Access, Config, Probe, load};
use fairway_core::{Frontend, Mode, Protocol, Scheduler};
use serde::Serialize;

use crate::admin::bearer;
use crate::announce;
use crate::cloud::Cloud;

use super::{EXIT_CONFIG, Format, counted, hint_at_config, print_json};

pub(super) fn check(path: &Path, format: Format) -> ExitCode {
    #[derive(Serialize)]
    struct Report {
        ok: bool,
        services: usize,
        backends: usize,
        /// Names that stand for more of them.
        names: usize,
        problems: Vec<String>,
        notes: Vec<String>,
    }
    let report = match load(path).map(|config| (api_trouble(&config), config)) {
        Ok((Some(why), _)) => Report {
            ok: false,
            services: 0,
            backends: 0,
            names: 0,
            problems: vec![format!("{}: {why}", path.display())],
            notes: Vec::new(),
        },
        Ok((None, config)) => {
            let mut notes = notes(&config);
            let mut all = config.services.clone();
            let mut cloud = Cloud::new(&config, None);
            cloud.document(&config);
            let said = cloud.said().unwrap_or_default();
            if let Some(manifests) = &config.cluster.manifests {
                notes.extend(manifests.notes.iter().cloned());
                let view = cloud.view();
                notes.extend(view.troubles);
                notes.extend(cloud.local_addresses());
                all.extend(cloud.desired());
            }
            notes.extend(announce::troubles(&said, &all));
            Report {
                ok: true,
                services: all.len(),
                backends: all.values().map(|spec| spec.backends.len()).sum(),
                names: all.values().map(|spec| spec.named.len()).sum(),
                problems: Vec::new(),
                notes,
            }
        }
        Err(problems) => Report {
            ok: false,
            services: 0,
            backends: 0,
            names: 0,
            problems: problems.list.iter().map(ToString::to_string).collect(),
            notes: Vec::new(),
        },
    };
    if format == Format::Json {
        print_json(&report);
    } else if report.ok {
        let services = counted(report.services, "service");
        let backends = counted(report.backends, "backend");
        let names = match report.names {
            0 => String::new(),
            names => format!(", {}", counted(names, "backend name")),
        };
        println!("{}: good, {services}, {backends}{names}", path.display());
        for note in &report.notes {
            println!("note: {note}");
        }
    } else {
        report.problems.iter().for_each(|problem| eprintln!("{problem}"));
        eprintln!("{}", counted(report.problems.len(), "error"));
        hint_at_config(path);
    }
    ExitCode::from(if report.ok { 0 } else { EXIT_CONFIG })
}

/// Why there is no way to the API server that a document names, as far as this machine knows: whether it
/// answers is not asked.
fn api_trouble(config: &Config) -> Option<String> {
    let api = config.process.api.as_ref()?;
    // What is in a Pod is known there alone.
    if api.access == Access::InCluster {
        return None;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    runtime.block_on(connect(api)).err()
}

/// What a configuration gives up, said before it is run.
fn notes(config: &Config) -> Vec<String> {
    let mut notes: Vec<String> =
        bearer::trouble(config.process.admin_token.as_ref()).into_iter().collect();
    let metrics = config.process.metrics;
    for (key, spec) in &config.services {
        let policy = &spec.policy;
        let taken = |f: &&Frontend| {
            let any = metrics.ip().is_unspecified() && f.ip().is_ipv4() == metrics.is_ipv4();
            f.ports.contains(metrics.port()) && (any || f.ip() == metrics.ip())
        };
        if policy.mode == Mode::Proxy
            && config.process.listen == ListenDoc::PerAddress
            && spec.protocol == Protocol::Tcp
            && spec.frontends.iter().any(|f| taken(&f))
        {
            notes.push(format!(
                "service {key}: {metrics} is where the page and the metrics are (`admin.metrics`); the \
                 service cannot listen there"
            ));
        }
        let program = spec.check.as_ref().and_then(|check| match &check.probe {
            Probe::Exec(command) => command.first(),
            _ => None,
        });
        if let Some(program) = program
            && program.starts_with('/')
            && !Path::new(&**program).exists()
        {
            notes.push(format!(
                "service {key}: {program}, which its checks run, is not on this machine: all its backends \
                 would be down"
            ));
        }
        let local = match policy.scheduler {
            Scheduler::Maglev { bounded_load_percent: None, .. } => None,
            Scheduler::Maglev { .. } => Some("`boundedLoad` follows the load of this box"),
            _ => Some("its scheduler follows the state of this box"),
        };
        if let Some(why) = local {
            notes.push(format!("service {key}: {why}; another box may choose other backends"));
        }
        if policy.limits.backend_connections.is_some() {
            notes.push(format!(
                "service {key}: `backendConnections` counts the connections of this box; another \
                 box passes other flows on"
            ));
        }
        let policy = &spec.policy;
        let hashes = matches!(policy.scheduler, Scheduler::Maglev { .. });
        if policy.mode == Mode::FullNat {
            notes.push(format!(
                "service {key}: mode `fullNat` chooses ports on this box; its connections end with it"
            ));
        } else if policy.mode != Mode::Proxy && !hashes {
            notes.push(format!(
                "service {key}: connections of packet modes go on after a restart only with a hashing \
                 scheduler"
            ));
        }
        if spec.slow_start.is_some() {
            notes.push(format!(
                "service {key}: `slowStart` follows the time at which this box saw a backend come"
            ));
        }
        if spec.protocol == Protocol::Udp && spec.check.is_none() {
            let noticed = match spec.policy.mode.is_two_way() {
                true => "ICMP errors are noticed all the same",
                false => {
                    "what answers past this box tells it nothing: a dead backend is not noticed"
                }
            };
            notes.push(format!(
                "service {key} has no health check: a UDP port needs one of its own kind; {noticed}"
            ));
        }
        if spec.backends.is_empty() && spec.named.is_empty() {
            notes.push(format!("service {key} has no backends; its clients will be refused"));
        }
        for backend in &spec.backends {
            let own = |f: &Frontend| {
                f.ip() == backend.addr.ip()
                    && backend.addr.port().is_none_or(|p| f.ports.contains(p.get()))
            };
            if spec.frontends.iter().any(own) {
                let addr = backend.addr;
                notes.push(format!(
                    "service {key}: backend {addr} is the service's own address; its connections \
                     would go in a circle"
                ));
            }
        }
        if let Some(check) = spec.check.as_ref().filter(|check| check.timeout > check.interval) {
            notes.push(format!(
                "service {key}: a check may take {:?}, longer than the interval of {:?}; the next \
                 one waits for it",
                check.timeout, check.interval
            ));
        }
        let mut names: Vec<_> =
            spec.backends.iter().filter_map(|backend| backend.name.as_deref()).collect();
        names.sort_unstable();
        for pair in names.windows(2).filter(|pair| pair[0] == pair[1]) {
            notes.push(format!(
                "service {key}: two backends are named `{}`; orders by that name reach both",
                pair[0]
            ));
        }
        if policy.retry.on_reset_before_reply {
            notes.push(format!(
                "service {key}: `resetBeforeReply` may run a request twice; for idempotent requests only"
            ));
        }
    }
    notes
}
