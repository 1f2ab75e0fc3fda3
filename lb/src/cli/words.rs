//! The words of the command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};

use super::{DEFAULT_CONFIG, DEFAULT_SOCKET, import, percent, seconds};

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
  4  `plan` found changes, or `import` lost what decides who is served"
)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
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
    /// Starts a program, says its number, and ends
    #[command(hide = true)]
    Launch {
        /// The program
        program: PathBuf,
        /// What it is given
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
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
        number: Option<u64>,
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
effect that wait for one.")]
    Upgrade(Remote),
}

#[derive(Debug, Subcommand)]
pub(super) enum Announce {
    /// Addresses, VRRP groups, BGP peers: their state, since when, and why
    Status(Remote),
    /// Take back what this box announces: others take over while it goes on serving
    Drain(Remote),
    /// Announce again
    Undrain(Remote),
}

/// How long an order lasts.
#[derive(Debug, clap::Args)]
pub(super) struct Lasting {
    /// Only until the next configuration is applied; default: until it is taken back, or the
    /// process ends
    #[arg(long)]
    pub(super) until_reload: bool,
}

/// A backend.
#[derive(Debug, clap::Args)]
pub(super) struct Which {
    /// Address, address:port, or name
    pub(super) backend: String,
    /// Only in this service
    #[arg(long)]
    pub(super) service: Option<String>,
}

/// How to reach a running Fairway.
#[derive(Debug, clap::Args)]
pub(super) struct Remote {
    /// The admin socket
    #[arg(long, default_value = DEFAULT_SOCKET, env = "FAIRWAY_SOCKET")]
    pub(super) socket: PathBuf,
    #[command(flatten)]
    pub(super) output: Output,
}

/// Which connections or flows are listed, and how often.
#[derive(Debug, clap::Args)]
pub(super) struct Listed {
    /// Of this service: `web`, or one port of it: `web/http`
    pub(super) service: Option<String>,
    /// From these clients: an address or a prefix
    #[arg(long)]
    pub(super) client: Option<String>,
    /// On this backend
    #[arg(long)]
    pub(super) backend: Option<String>,
    /// At least this old
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(super) older_than: Option<Duration>,
    /// At most so many, the oldest of them
    #[arg(long, value_name = "N", default_value = "1000")]
    pub(super) most: usize,
    /// Again and again, every 2s or as written: `--watch=5s`
    #[arg(
        long, value_name = "TIME", value_parser = humantime::parse_duration,
        num_args = 0..=1, require_equals = true, default_missing_value = "2s"
    )]
    pub(super) watch: Option<Duration>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Output {
    /// Tables for people or JSON for programs
    #[arg(long, short, value_enum, default_value = "table")]
    pub(super) output: Format,
}

/// What the heaviest clients are counted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Count {
    Connections,
    Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Table,
    Json,
}
