//! The command line.

mod announced;
mod check;
mod client;
mod import;
mod reference;
mod steer;
mod table;
mod top;
mod words;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use serde::Serialize;
use serde::de::DeserializeOwned;

use self::client::{Client, ClientError};
use self::words::{Announce, Cli, Command, Count, Format, Listed, Remote, Which};
use crate::admin::views::{BackendView, ConnectionView, FlowView, ServiceView, Status};
use crate::admin::{DrainRequest, OrderRequest, RollbackRequest};
use crate::announce::AnnounceView;
use crate::cloud::CloudView;
use crate::control::{Applied, Order};

/// Something did not work.
pub(crate) const EXIT_FAILURE: u8 = 1;
/// The configuration or the command line is wrong.
pub(crate) const EXIT_CONFIG: u8 = 2;
/// A plan would change something, or an import lost something that matters.
pub(crate) const EXIT_CHANGES: u8 = 4;
/// No Fairway answers on the admin socket.
pub(crate) const EXIT_UNREACHABLE: u8 = 3;

const DEFAULT_CONFIG: &str = "/etc/fairway/fairway.yaml";
const DEFAULT_SOCKET: &str = "/run/fairway/admin.sock";

pub(crate) fn main() -> ExitCode {
    // An arrow between a client and what it dials is for the eye.
    let words = std::env::args_os().filter(|word| word != "->" && word != "→");
    let command = Cli::parse_from(words).command;
    if !matches!(command, Command::Run { .. }) {
        end_quietly();
    }
    match command {
        Command::Run { config, take_over } => crate::run::run(config, take_over),
        Command::Check { config, path, output } => {
            check::check(path.as_deref().unwrap_or(&config), output.output)
        }
        Command::Import { origin, file, address } => import::import(origin, &file, &address),
        Command::Schema => {
            println!("{:#}", fairway_config::schema());
            ExitCode::SUCCESS
        }
        Command::Reference => {
            print!("{}", reference::markdown());
            ExitCode::SUCCESS
        }
        Command::Completion { shell } => {
            let mut out = std::io::stdout();
            clap_complete::generate(shell, &mut Cli::command(), "fairway", &mut out);
            ExitCode::SUCCESS
        }
        Command::Manual { folder } => manual(&folder),
        Command::Demo { seconds } => crate::demo::demo(seconds.map(Duration::from_secs)),
        Command::Status(remote) => show(&remote, "/v1/status", table::status),
        Command::Top { delay, count, socket } => top::top(&socket, delay, count),
        Command::Services { service, remote } => {
            let path = path("/v1/services", service.as_deref());
            show::<Vec<ServiceView>>(&remote, &path, |views| table::services(views))
        }
        Command::Backends { service, remote } => {
            let path = path("/v1/backends", service.as_deref());
            show::<Vec<BackendView>>(&remote, &path, |views| table::backends(views))
        }
        Command::Cluster(remote) => show::<CloudView>(&remote, "/v1/cluster", table::cluster),
        Command::Announce { what: Announce::Status(remote) } => {
            show::<AnnounceView>(&remote, "/v1/announce", announced::announced)
        }
        Command::Announce { what: Announce::Drain(remote) } => {
            let request = DrainRequest { drains: true };
            client::order(&remote, "/v1/announce/drain", &request, EXIT_FAILURE)
        }
        Command::Announce { what: Announce::Undrain(remote) } => {
            let request = DrainRequest { drains: false };
            client::order(&remote, "/v1/announce/drain", &request, EXIT_FAILURE)
        }
        Command::GuardAddresses { interface, patience } => {
            crate::announce::guard(interface, Duration::from_millis(patience))
        }
        Command::Launch { program, arguments } => crate::handover::launch(&program, &arguments),
        Command::Drain { which, lasting, wait, timeout, remote } => {
            let backend = which.backend.clone();
            let service = which.service.clone();
            let code = give(&remote, which, Order::Drain, lasting.until_reload);
            if wait && code == ExitCode::SUCCESS {
                return steer::wait_until_drained(&remote, &backend, service.as_deref(), timeout);
            }
            code
        }
        Command::Undrain { which, remote } => give(&remote, which, Order::Undrain, false),
        Command::Eject { which, lasting, remote } => {
            give(&remote, which, Order::Eject, lasting.until_reload)
        }
        Command::Admit { which, lasting, remote } => {
            give(&remote, which, Order::Admit, lasting.until_reload)
        }
        Command::Weight { which, share, lasting, remote } => {
            give(&remote, which, Order::Weight(share), lasting.until_reload)
        }
        Command::Reset { which, remote } => give(&remote, which, Order::Reset, false),
        Command::Explain { flow, remote } => steer::explain(&remote, &flow),
        Command::Plan { config, remote } => steer::plan(&remote, &config),
        Command::History(remote) => {
            show::<Vec<Applied>>(&remote, "/v1/history", |list| table::history(list))
        }
        Command::Rollback { number, remote } => {
            client::order(&remote, "/v1/rollback", &RollbackRequest { number }, EXIT_FAILURE)
        }
        Command::Connections { which, remote } => {
            list::<ConnectionView>(&remote, &which, "/v1/connections", table::connections)
        }
        Command::Flows { which, remote } => {
            list::<FlowView>(&remote, &which, "/v1/flows", table::flows)
        }
        Command::Capture { write, net, port, dropped, count, length, socket } => {
            let path = query(
                "/v1/capture",
                &[
                    ("net", net.as_deref()),
                    ("port", port.map(|port| port.to_string()).as_deref()),
                    ("dropped", dropped.then_some("true")),
                    ("count", count.map(|count| count.to_string()).as_deref()),
                    ("seconds", length.map(|time| time.as_secs_f64().to_string()).as_deref()),
                ],
            );
            steer::capture(&socket, &path, &write)
        }
        Command::Talkers { service, by, top, remote } => {
            steer::talkers(&remote, service.as_deref(), by, top)
        }
        Command::Reload(remote) => client::order(&remote, "/v1/reload", &(), EXIT_CONFIG),
        Command::Upgrade(remote) => client::upgrade(&remote),
    }
}

/// A time in seconds, as top(1) takes it.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().map_err(|_| format!("`{text}` is no number of seconds"))?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// Writes fairway(1), a page for each of its commands, and fairway.yaml(5).
fn manual(folder: &Path) -> ExitCode {
    let write = || -> std::io::Result<()> {
        clap_mangen::generate_to(Cli::command(), folder)?;
        std::fs::write(folder.join("fairway.yaml.5"), reference::manual())
    };
    match write() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fairway: {}: {error}", folder.display());
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

/// Lists what `path` has of what is wanted, once or again and again.
fn list<T: DeserializeOwned + Serialize>(
    remote: &Remote,
    which: &Listed,
    path: &str,
    table: fn(&[T]) -> String,
) -> ExitCode {
    let older = which.older_than.map(|age| age.as_secs().to_string());
    let path = query(
        path,
        &[
            ("service", which.service.as_deref()),
            ("client", which.client.as_deref()),
            ("backend", which.backend.as_deref()),
            ("olderThanSeconds", older.as_deref()),
            ("most", Some(&which.most.to_string())),
        ],
    );
    let once = || {
        show::<Vec<T>>(remote, &path, |views| {
            if views.len() >= which.most {
                eprintln!("only {} are shown; `--most` shows more", which.most);
            }
            table(views)
        })
    };
    steer::again(which.watch, once)
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

fn give(remote: &Remote, which: Which, order: Order, until_reload: bool) -> ExitCode {
    let Which { backend, service } = which;
    let request = OrderRequest { backend, service, order, until_reload };
    client::order(remote, "/v1/order", &request, EXIT_FAILURE)
}

/// `30%` or `30`.
fn percent(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix('%').unwrap_or(text).parse::<u32>().ok();
    number.filter(|n| *n <= 100).ok_or_else(|| format!("`{text}` is not 0% to 100%"))
}

fn path(base: &str, service: Option<&str>) -> String {
    query(base, &[("service", service)])
}

/// `base` with those of `fields` that have a value.
fn query(base: &str, fields: &[(&str, Option<&str>)]) -> String {
    use std::fmt::Write;
    let mut path = base.to_owned();
    let present = fields.iter().filter_map(|(name, value)| Some((name, (*value)?)));
    for (n, (name, value)) in present.enumerate() {
        path += if n == 0 { "?" } else { "&" };
        path += name;
        path += "=";
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
                path.push(char::from(byte));
            } else {
                // Writing into a String cannot fail.
                let _ = write!(path, "%{byte:02X}");
            }
        }
    }
    path
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
        ClientError::Wrong(_) => EXIT_CONFIG,
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
