//! What connections cost that do nothing.

use std::fmt::Write as _;
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use fairway_tests::{Host, Net, wait_for};
use serde::{Deserialize, Serialize};

use crate::core::{OTHERS, measured, memory_of};
use crate::load::{self, Clients, Exchange, Plan};
use crate::rivals::{Backends, Haproxy, Rival};

/// Of the 20,000 descriptors that a process may have in most containers Fairway keeps some for listeners, pipes
/// and UDP sessions, whatever the document says: this is what all of them take.
const CONNECTIONS: usize = 6000;
/// For which they do nothing while the core is watched.
const WATCHED: Duration = Duration::from_secs(10);

/// The rows.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct IdleTable {
    connections: usize,
    rows: Vec<Row>,
}

/// One balancer.
#[derive(Debug, Serialize, Deserialize)]
struct Row {
    rival: String,
    /// Bytes of the process for each connection that has said little.
    fresh: u64,
    /// Bytes for each after a reply of 16 KiB.
    used: u64,
    /// Share of the core while nothing happens.
    busy: f64,
}

pub(crate) fn run(net: &Net, backends: &Backends, quick: bool) -> IdleTable {
    let connections = if quick { CONNECTIONS / 8 } else { CONNECTIONS };
    let watched = if quick { WATCHED / 10 } else { WATCHED };
    let starts: [&dyn Fn() -> Rival; 3] = [
        &|| Rival::fairway(net, backends),
        &|| Rival::haproxy(net, backends, Haproxy::Default),
        &|| Rival::nginx(net, backends),
    ];
    let row = |start: &&dyn Fn() -> Rival| {
        let rival = start();
        net.on(Host::Client, || {
            load::to_core(OTHERS);
            wait_for(rival.name, || TcpStream::connect(rival.tcp).is_ok());
            row(&rival, connections, watched)
        })
    };
    IdleTable { connections, rows: starts.iter().map(row).collect() }
}

fn row(rival: &Rival, connections: usize, watched: Duration) -> Row {
    let process = rival.process().unwrap();
    // What the kernel may drop, as the program's own text, says nothing of connections; what it has put aside
    // is still the process's.
    let memory = || {
        let of = memory_of(process);
        ["Anonymous", "Swap"].iter().filter_map(|field| of.get(*field)).sum::<u64>()
    };
    let plan = |clients| Plan { clients, exchange: Exchange::new(64, 16 << 10), rate: None };
    // What the first connections take is not for each of them.
    drop(Clients::open(rival.tcp, plan(64)).unwrap());
    let before = memory();
    let mut clients = Clients::open(rival.tcp, plan(connections)).unwrap();
    let fresh = memory();
    clients.run(Duration::from_secs(3)).unwrap();
    thread::sleep(Duration::from_secs(2));
    let used = memory();
    let (cost, ()) = measured(&[process], || thread::sleep(watched));
    let each = |now: u64| now.saturating_sub(before) / connections as u64;
    Row {
        rival: rival.name.into(),
        fresh: each(fresh),
        used: each(used),
        busy: cost.busy.as_secs_f64() / cost.wall.as_secs_f64(),
    }
}

impl IdleTable {
    pub(crate) fn text(&self) -> String {
        let mut text = format!(
            "### {} idle connections\n\n| balancer | bytes each, after a byte | after 16 KiB | of a core |\n| --- | \
             --- | --- | --- |\n",
            self.connections
        );
        for row in &self.rows {
            // Writing into a String cannot fail.
            let _ = writeln!(
                text,
                "| {} | {} | {} | {:.2} % |",
                row.rival,
                row.fresh,
                row.used,
                row.busy * 100.0
            );
        }
        text
    }
}
