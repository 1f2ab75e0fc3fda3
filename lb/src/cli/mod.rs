//! The command line.

mod announced;
mod check;
mod client;
mod import;
mod reference;
mod steer;
mod table;
mod top;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use serde::Serialize;
use serde::de::DeserializeOwned;

use self::client::{Client, ClientError};
use crate::admin::views::{BackendView, ConnectionView, FlowView, ServiceView, Status};
use crate::admin::{DrainRequest, OrderRequest, RollbackRequest};
use crate::announce::AnnounceView;
use crate::cloud::CloudView;
use crate::control::{Generation, Order};

/// Something did not work.
pub(crate) const EXIT_FAILURE: u8 = 1;
/// The configuration or the command line is wrong.
pub(crate) const EXIT_CONFIG: u8 = 2;
/// A plan would change something.
pub(crate) const EXIT_CHANGES: u8 = 4;
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
  fairway drain 10.0.0.1:8080 --wait        take a backend out and wait for its connections
  fairway explain 203.0.113.7:4711 192.0.2.10:443/tcp
                                            where that connection goes, and why
  fairway import haproxy haproxy.cfg > fairway.yaml
                                            begin with what another balancer was set to
  fairway upgrade                           run the new version, without a lost connection
  fairway plan fairway.yaml                 what a configuration would change, before it does

Exit codes:
  0  done    1  failed    2  wrong configuration or arguments    3  no Fairway is running
  4  `plan` found changes"
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
        /// Go on in place of the process at the other end of the standard input
        #[arg(long, hide = true)]
        take_over: bool,
    },
    /// Check a configuration and say everything that is wrong with it
    Check {
        /// The document
        #[arg(long, short, default_value = DEFAULT_CONFIG, env = "FAIRWAY_CONFIG")]
        config: PathBuf,
        /// The same, without the flag; it comes before the flag and FAIRWAY_CONFIG
        #[arg(value_name = "CONFIG")]
        path: Option<PathBuf>,
        #[command(flatten)]
        output: Output,
    },
    /// Make a document of another balancer's configuration, and say what could not be carried over
    Import {
        /// Whose it is
        #[arg(value_enum)]
        origin: import::Origin,
        /// The file; `-` is the standard input
        file: PathBuf,
        /// With haproxy: what clients dial where it says `*`
        #[arg(long, value_name = "ADDRESS")]
        address: Vec<std::net::IpAddr>,
    },
    /// Print the JSON Schema of the configuration
    Schema,
    /// Print the reference of the configuration, as Markdown
    Reference,
    /// Print what completes this program's words in a shell: `fairway completion bash`
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a folder
    #[command(hide = true)]
    Manual {
        /// Where
        folder: PathBuf,
    },
    /// See Fairway work: three backends, a load, a failure, on loopback
    Demo {
        /// Stop after this many seconds, 3 or more; default: at Ctrl-C
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(3..))]
        seconds: Option<u64>,
    },
    /// The state of the process
    Status(Remote),
    /// What services and backends do now, again and again, the busiest first; `h` shows the keys
    Top {
        /// Seconds from one answer to the next
        #[arg(long, short, default_value = "2", value_parser = seconds)]
        delay: Duration,
        /// End after so many answers
        #[arg(long, short = 'n')]
        count: Option<u64>,
        /// The admin socket
        #[arg(long, default_value = DEFAULT_SOCKET, env = "FAIRWAY_SOCKET")]
        socket: PathBuf,
    },
    /// The services, or those named
    Services {
        /// A service: `web`, or one port of it: `web/http`
        service: Option<String>,
        #[command(flatten)]
        remote: Remote,
    },
    /// The cluster's Services: their addresses, and what needs their owners
    Cluster(Remote),
    /// Which addresses are here, who is told of them, and by whom
    Announce {
        #[command(subcommand)]
        what: Announce,
    },
    /// Takes addresses off an interface when its parent has gone
    #[command(hide = true)]
    GuardAddresses {
        /// The interface's number
        interface: u32,
        /// Milliseconds without a word
        patience: u64,
    },
    /// The backends and how they stand
    Backends {
        /// A service: `web`, or one port of it: `web/http`
        service: Option<String>,
        #[command(flatten)]
        remote: Remote,
    },
    /// Take a backend out of new connections; the open ones may go on for its `drainTimeout`
    Drain {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        lasting: Lasting,
        /// Come back only once it has no connections left
        #[arg(long)]
        wait: bool,
        /// Give up waiting after this time
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, requires = "wait")]
        timeout: Option<Duration>,
        #[command(flatten)]
        remote: Remote,
    },
    /// Let a drained backend take new connections again
    Undrain {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        remote: Remote,
    },
    /// Give a backend nothing new, as if its checks failed; the open connections go on
    Eject {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        lasting: Lasting,
        #[command(flatten)]
        remote: Remote,
    },
    /// Give a backend connections, whatever checks and traffic say
    Admit {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        lasting: Lasting,
        #[command(flatten)]
        remote: Remote,
    },
    /// Give a backend a part of its configured weight: `fairway weight 10.0.0.1 30%`
    Weight {
        #[command(flatten)]
        which: Which,
        /// 0% to 100%
        #[arg(value_parser = percent)]
        share: u32,
        #[command(flatten)]
        lasting: Lasting,
        #[command(flatten)]
        remote: Remote,
    },
    /// Take back every order for a backend
    Reset {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        remote: Remote,
    },
    /// Why a connection goes where it goes: `fairway explain 203.0.113.7:4711 192.0.2.10:443/tcp`
    Explain {
        /// The client's address and port, and what it dials; an arrow may stand between them
        #[arg(num_args = 1..=2, required = true, value_names = ["CLIENT", "VIP"])]
        flow: Vec<String>,
        #[command(flatten)]
        remote: Remote,
    },
    /// What a configuration would change; exits with 4 when it would change something
    Plan {
        /// The document
        config: PathBuf,
        #[command(flatten)]
        remote: Remote,
    },
    /// The configurations that were applied and can be brought back
    History(Remote),
    /// Apply an earlier configuration, until the file changes
    Rollback {
        /// Its number in `fairway history`; default: the one before
        generation: Option<u64>,
        #[command(flatten)]
        remote: Remote,
    },
    /// The open connections and sessions, oldest first
    Connections {
        #[command(flatten)]
        which: Listed,
        #[command(flatten)]
        remote: Remote,
    },
    /// The flows of services whose packets are forwarded, oldest first
    Flows {
        #[command(flatten)]
        which: Listed,
        #[command(flatten)]
        remote: Remote,
    },
    /// Write packets that are forwarded to a file, with what became of each as a comment
    Capture {
        /// To this file, in pcapng; `-` is the standard output
        #[arg(long, short, value_name = "FILE")]
        write: PathBuf,
        /// To or from this address or network
        #[arg(long, value_name = "ADDRESS")]
        net: Option<String>,
        /// To or from this port
        #[arg(long)]
        port: Option<u16>,
        /// Only those that went no further
        #[arg(long)]
        dropped: bool,
        /// At most so many
        #[arg(long, value_name = "N")]
        count: Option<u64>,
        /// For so long; until interrupted by default
        #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
        length: Option<Duration>,
        #[arg(long, env = "FAIRWAY_SOCKET", default_value = DEFAULT_SOCKET)]
        socket: PathBuf,
    },
    /// The clients with the most ended connections, or the most bytes of them
    Talkers {
        /// A service: `web`, or one port of it: `web/http`
        service: Option<String>,
        /// What counts
        #[arg(long, value_enum, default_value = "connections")]
        by: Count,
        /// How many of each service
        #[arg(long, default_value = "10")]
        top: usize,
        #[command(flatten)]
        remote: Remote,
    },
    /// Read the configuration again and say what is wrong with it
    Reload(Remote),
    /// Start the program that is installed now in place of the one that runs, without a lost connection
    #[command(after_help = "\
The new process reads the configuration, takes over what clients dial and serves; the old one keeps its
connections and ends with the last of them, after `shutdown.handOverTimeout` at the latest. If the new one
does not come to serve, the old one goes on, and this exits with 1. So do changes of the configuration take
effect that want a restart.")]
    Upgrade(Remote),
}

#[derive(Debug, Subcommand)]
enum Announce {
    /// Addresses, VRRP groups, BGP peers: their state, since when, and why
    Status(Remote),
    /// Take back what this box announces: others take over while it goes on serving
    Drain(Remote),
    /// Announce again
    Undrain(Remote),
}

/// How long an order lasts.
#[derive(Debug, clap::Args)]
struct Lasting {
    /// Only until the next configuration is applied; default: until it is taken back, or the
    /// process ends
    #[arg(long)]
    until_reload: bool,
}

/// A backend.
#[derive(Debug, clap::Args)]
struct Which {
    /// Address, address:port, or name
    backend: String,
    /// Only in this service
    #[arg(long)]
    service: Option<String>,
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

/// Which connections or flows are listed, and how often.
#[derive(Debug, clap::Args)]
struct Listed {
    /// Of this service: `web`, or one port of it: `web/http`
    service: Option<String>,
    /// From these clients: an address or a prefix
    #[arg(long)]
    client: Option<String>,
    /// On this backend
    #[arg(long)]
    backend: Option<String>,
    /// At least this old
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
    /// At most so many, the oldest of them
    #[arg(long, value_name = "N", default_value = "1000")]
    most: usize,
    /// Again and again, every 2s or as written: `--watch=5s`
    #[arg(
        long, value_name = "TIME", value_parser = humantime::parse_duration,
        num_args = 0..=1, require_equals = true, default_missing_value = "2s"
    )]
    watch: Option<Duration>,
}

#[derive(Debug, clap::Args)]
struct Output {
    /// Tables for people or JSON for programs
    #[arg(long, short, value_enum, default_value = "table")]
    output: Format,
}

/// What the heaviest clients are counted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Count {
    Connections,
    Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
}

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
            show::<Vec<Generation>>(&remote, "/v1/history", |list| table::history(list))
        }
        Command::Rollback { generation, remote } => {
            client::order(&remote, "/v1/rollback", &RollbackRequest { generation }, EXIT_FAILURE)
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
        Command::Upgrade(remote) => client::order(&remote, "/v1/upgrade", &(), EXIT_FAILURE),
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
