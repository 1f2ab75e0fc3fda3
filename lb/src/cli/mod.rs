//! The command line.

mod client;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use fairway_config::load;
use serde::Serialize;
use serde::de::DeserializeOwned;

use self::client::{Client, ClientError};
use crate::admin::views::{BackendView, ServiceView, Status};

/// Something did not work.
pub(crate) const EXIT_FAILURE: u8 = 1;
/// The configuration or the command line is wrong.
pub(crate) const EXIT_CONFIG: u8 = 2;
/// No Fairway answers on the admin socket.
pub(crate) const EXIT_UNREACHABLE: u8 = 3;

const DEFAULT_CONFIG: &str = "/etc/fairway/fairway.yaml";
const DEFAULT_SOCKET: &str = "/run/fairway/admin.sock";

/// A userspace layer-4 load balancer.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:
  fairway demo                              see it work, on this machine, without privileges
  fairway check --config fairway.yaml       every error of a configuration, with its place
  fairway run --config fairway.yaml         serve
  fairway backends web                      the backends of service `web` and how they stand
  fairway drain 10.0.0.1:8080               take a backend out of new connections

Exit codes:
  0  done    1  failed    2  wrong configuration or arguments    3  no Fairway is running"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGTERM; SIGHUP reads the configuration again
    Run {
        /// The document
        #[arg(long, short, default_value = DEFAULT_CONFIG, env = "FAIRWAY_CONFIG")]
        config: PathBuf,
    },
    /// Check a configuration and say everything that is wrong with it
    Check {
        /// The document
        #[arg(long, short, default_value = DEFAULT_CONFIG, env = "FAIRWAY_CONFIG")]
        config: PathBuf,
        #[command(flatten)]
        output: Output,
    },
    /// Print the JSON Schema of the configuration
    Schema,
    /// See Fairway work: three backends, a load, a failure, on loopback
    Demo {
        /// Stop after this many seconds, 3 or more; default: at Ctrl-C
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(3..))]
        seconds: Option<u64>,
    },
    /// The state of the process
    Status(Remote),
    /// The services, or those named
    Services {
        /// A service: `web`, or one port of it: `web/http`
        service: Option<String>,
        #[command(flatten)]
        remote: Remote,
    },
    /// The backends and how they stand
    Backends {
        /// A service: `web`, or one port of it: `web/http`
        service: Option<String>,
        #[command(flatten)]
        remote: Remote,
    },
    /// Take a backend out of new connections; the open ones go on
    Drain {
        /// Address, address:port, or name
        backend: String,
        /// Only in this service
        #[arg(long)]
        service: Option<String>,
        #[command(flatten)]
        remote: Remote,
    },
    /// Let a drained backend take new connections again
    Undrain {
        /// Address, address:port, or name
        backend: String,
        /// Only in this service
        #[arg(long)]
        service: Option<String>,
        #[command(flatten)]
        remote: Remote,
    },
    /// Read the configuration again and say what is wrong with it
    Reload(Remote),
}

/// How to reach a running Fairway.
#[derive(Debug, clap::Args)]
struct Remote {
    /// The admin socket
    #[arg(long, default_value = DEFAULT_SOCKET, env = "FAIRWAY_SOCKET")]
    socket: PathBuf,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
struct Output {
    /// Tables for people or JSON for programs
    #[arg(long, short, value_enum, default_value = "table")]
    output: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
}

pub(crate) fn main() -> ExitCode {
    let command = Cli::parse().command;
    if !matches!(command, Command::Run { .. }) {
        end_quietly();
    }
    match command {
        Command::Run { config } => crate::run::run(config),
        Command::Check { config, output } => check(&config, output.output),
        Command::Schema => {
            println!("{:#}", fairway_config::schema());
            ExitCode::SUCCESS
        }
        Command::Demo { seconds } => crate::demo::demo(seconds.map(Duration::from_secs)),
        Command::Status(remote) => show(&remote, "/v1/status", table::status),
        Command::Services { service, remote } => {
            let path = path("/v1/services", service.as_deref());
            show::<Vec<ServiceView>>(&remote, &path, |views| table::services(views))
        }
        Command::Backends { service, remote } => {
            let path = path("/v1/backends", service.as_deref());
            show::<Vec<BackendView>>(&remote, &path, |views| table::backends(views))
        }
        Command::Drain { backend, service, remote } => {
            client::order(&remote, "/v1/drain", Some((backend, service)))
        }
        Command::Undrain { backend, service, remote } => {
            client::order(&remote, "/v1/undrain", Some((backend, service)))
        }
        Command::Reload(remote) => client::order(&remote, "/v1/reload", None),
    }
}

/// `fairway … | head` ends quietly: Rust ignores SIGPIPE, and println! panics when its reader has
/// gone. Never for the daemon, whose log may lose its reader.
fn end_quietly() {
    std::panic::set_hook(Box::new(|info| {
        let text = info.to_string();
        if text.contains("Broken pipe") {
            std::process::exit(0);
        }
        eprintln!("fairway: {text}");
    }));
}

fn path(base: &str, service: Option<&str>) -> String {
    match service {
        None => base.into(),
        Some(service) => format!("{base}?service={}", service.replace('/', "%2F")),
    }
}

fn check(path: &std::path::Path, format: Format) -> ExitCode {
    #[derive(Serialize)]
    struct Report {
        ok: bool,
        services: usize,
        backends: usize,
        problems: Vec<String>,
        notes: Vec<String>,
    }
    let report = match load(path) {
        Ok(config) => Report {
            ok: true,
            services: config.services.len(),
            backends: config
                .services
                .values()
                .map(|s| s.backends.len() + s.backup_backends.len())
                .sum(),
            problems: Vec::new(),
            notes: notes(&config),
        },
        Err(problems) => Report {
            ok: false,
            services: 0,
            backends: 0,
            problems: problems.list.iter().map(ToString::to_string).collect(),
            notes: Vec::new(),
        },
    };
    if format == Format::Json {
        print_json(&report);
    } else if report.ok {
        let services = counted(report.services, "service");
        let backends = counted(report.backends, "backend");
        println!("{}: good, {services}, {backends}", path.display());
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

/// What a configuration gives up, said before it is run.
fn notes(config: &fairway_config::Config) -> Vec<String> {
    use fairway_core::{Frontend, Protocol, Scheduler};
    let mut notes = Vec::new();
    for (key, spec) in &config.services {
        let policy = &spec.policy;
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
        if spec.slow_start.is_some() {
            notes.push(format!(
                "service {key}: `slowStart` follows the time at which this box saw a backend come"
            ));
        }
        if spec.protocol == Protocol::Udp && spec.check.is_none() {
            notes.push(format!(
                "service {key} has no health check: a UDP port needs one of its own kind; ICMP \
                 errors are noticed all the same"
            ));
        }
        if spec.backends.is_empty() && spec.backup_backends.is_empty() {
            notes.push(format!("service {key} has no backends; its clients will be refused"));
        }
        for backend in spec.backends.iter().chain(&spec.backup_backends) {
            let own = |f: &Frontend| {
                f.ip == backend.addr.ip()
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
        let named = spec.backends.iter().chain(&spec.backup_backends);
        let mut names: Vec<_> = named.filter_map(|backend| backend.name.as_deref()).collect();
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

/// For who started us without a document.
pub(crate) fn hint_at_config(path: &std::path::Path) {
    if !path.exists() {
        eprintln!("`--config` or FAIRWAY_CONFIG names another path");
    }
}

/// `1 service`, `2 services`.
pub(crate) fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn show<T>(remote: &Remote, path: &str, table: impl Fn(&T) -> String) -> ExitCode
where
    T: DeserializeOwned + Serialize,
{
    match Client::new(&remote.socket).get::<T>(path) {
        Ok(value) if remote.output.output == Format::Json => {
            print_json(&value);
            ExitCode::SUCCESS
        }
        Ok(value) => {
            print!("{}", table(&value));
            ExitCode::SUCCESS
        }
        Err(error) => report(&error),
    }
}

fn report(error: &ClientError) -> ExitCode {
    eprintln!("fairway: {error}");
    ExitCode::from(match error {
        ClientError::Unreachable { .. } => EXIT_UNREACHABLE,
        ClientError::Failed(_) => EXIT_FAILURE,
    })
}

fn print_json<T: Serialize>(value: &T) {
    match serde_json::to_string_pretty(value) {
        Ok(text) => println!("{text}"),
        Err(error) => eprintln!("fairway: {error}"),
    }
}

/// Kept beside the views, so that a table shows what JSON shows.
pub(crate) fn status_line(status: &Status) -> &'static str {
    match (status.stopping, status.config.problems.is_empty(), status.troubles.is_empty()) {
        (true, ..) => "stopping",
        (_, false, _) => "serving the previous configuration",
        (.., false) => "serving, with troubles",
        (_, true, true) => "serving",
    }
}
