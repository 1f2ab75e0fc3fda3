//! Commands that ask more than a table: explain, plan, drain --wait.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use super::client::Client;
use super::{
    Count, EXIT_CHANGES, EXIT_CONFIG, EXIT_FAILURE, Format, Remote, counted, path, print_json,
    query, report, table,
};
use crate::admin::PlanRequest;
use crate::admin::explain::Explanation;
use crate::admin::views::{BackendView, PlanView, TalkerView};

/// Least time from one list of connections to the next: each asks every worker.
const SOONEST: Duration = Duration::from_millis(200);
/// From one look at a draining backend to the next.
const LOOK: Duration = Duration::from_millis(200);

pub(super) fn explain(remote: &Remote, words: &[String]) -> ExitCode {
    let Some((client, vip, protocol)) = flow(words) else {
        eprintln!(
            "fairway: a flow is a client and what it dials, like `203.0.113.7:4711 \
             192.0.2.10:443/tcp`"
        );
        return ExitCode::from(EXIT_CONFIG);
    };
    let path = query(
        "/v1/explain",
        &[("client", Some(&client)), ("vip", Some(&vip)), ("protocol", Some(&protocol))],
    );
    match Client::new(&remote.socket).get::<Explanation>(&path) {
        Err(error) => report(&error),
        Ok(explanation) if remote.output.output == Format::Json => {
            print_json(&explanation);
            ExitCode::SUCCESS
        }
        Ok(explanation) => {
            print!("{}", table::explanation(&explanation));
            ExitCode::SUCCESS
        }
    }
}

/// Client, VIP and protocol of `A B/tcp`, `A -> B` or `A → B`.
fn flow(words: &[String]) -> Option<(String, String, String)> {
    let joined = words.join(" ").replace("->", " ").replace('→', " ");
    let mut words = joined.split_whitespace();
    let (client, dialled) = (words.next()?, words.next()?);
    if words.next().is_some() {
        return None;
    }
    let (vip, protocol) = dialled.split_once('/').unwrap_or((dialled, "tcp"));
    Some((client.into(), vip.into(), protocol.into()))
}

pub(super) fn plan(remote: &Remote, config: &Path) -> ExitCode {
    let read = || Ok((std::fs::canonicalize(config)?, std::fs::read_to_string(config)?));
    let (path, text) = match read() {
        Ok(read) => read,
        Err::<_, std::io::Error>(error) => {
            eprintln!("fairway: {}: {error}", config.display());
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    let request = PlanRequest { path, text };
    let plan = match Client::new(&remote.socket).post::<PlanView>("/v1/plan", &request) {
        Ok(plan) => plan,
        Err(error) => return report(&error),
    };
    if remote.output.output == Format::Json {
        print_json(&plan);
    } else {
        print!("{}", table::plan(&plan));
    }
    let same = plan.changes.is_empty() && plan.announcements.is_empty() && plan.restart.is_empty();
    if same { ExitCode::SUCCESS } else { ExitCode::from(EXIT_CHANGES) }
}

pub(super) fn talkers(remote: &Remote, service: Option<&str>, by: Count, top: usize) -> ExitCode {
    let views = Client::new(&remote.socket).get::<Vec<TalkerView>>(&path("/v1/talkers", service));
    let mut views = match views {
        Ok(views) => views,
        Err(error) => return report(&error),
    };
    let count = |view: &TalkerView| match by {
        Count::Connections => view.connections,
        Count::Bytes => view.bytes,
    };
    views.retain(|view| count(view).is_some());
    views.sort_by(|a, b| a.service.cmp(&b.service).then(count(b).cmp(&count(a))));
    let of_one = views.chunk_by(|a, b| a.service == b.service);
    let shown: Vec<&TalkerView> = of_one.flat_map(|views| views.iter().take(top)).collect();
    if remote.output.output == Format::Json {
        print_json(&shown);
    } else {
        print!("{}", table::talkers(&shown));
    }
    ExitCode::SUCCESS
}

/// Runs `show` once, or every `interval` until it fails: on a terminal in the same place.
pub(super) fn again(interval: Option<Duration>, show: impl Fn() -> ExitCode) -> ExitCode {
    let Some(interval) = interval else { return show() };
    loop {
        if std::io::stdout().is_terminal() {
            // To the first place, and everything behind it goes.
            print!("\x1b[H\x1b[J");
        }
        let outcome = show();
        if outcome != ExitCode::SUCCESS {
            return outcome;
        }
        thread::sleep(interval.max(SOONEST));
    }
}

/// Writes what `path` sends to a file, as it comes.
pub(super) fn capture(socket: &Path, path: &str, file: &Path) -> ExitCode {
    let opened: std::io::Result<Box<dyn Write>> = match file.as_os_str() == "-" {
        true => Ok(Box::new(std::io::stdout())),
        false => std::fs::File::create(file).map(|file| Box::new(file) as Box<dyn Write>),
    };
    let mut out = match opened {
        Ok(out) => out,
        Err(error) => {
            eprintln!("fairway: {}: {error}", file.display());
            return ExitCode::from(EXIT_FAILURE);
        }
    };
    let written = Client::new(socket).follow(path, |part| {
        out.write_all(part)?;
        out.flush()
    });
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

/// Waits until no connection is left on `backend`.
pub(super) fn wait_until_drained(
    remote: &Remote,
    backend: &str,
    service: Option<&str>,
    timeout: Option<Duration>,
) -> ExitCode {
    let start = Instant::now();
    let client = Client::new(&remote.socket);
    let path = query("/v1/backends", &[("service", service), ("backend", Some(backend))]);
    let mut last = u32::MAX;
    loop {
        let views = match client.get::<Vec<BackendView>>(&path) {
            Ok(views) => views,
            Err(error) => return report(&error),
        };
        let left: u32 = views.iter().map(|view| view.active).sum();
        if left == 0 {
            return ExitCode::SUCCESS;
        }
        if left != last && std::io::stderr().is_terminal() {
            eprintln!("{} left", counted(left as usize, "connection"));
        }
        last = left;
        if timeout.is_some_and(|timeout| start.elapsed() >= timeout) {
            let left = counted(left as usize, "connection");
            eprintln!("fairway: {backend} still has {left} after {:.1?}", start.elapsed());
            return ExitCode::from(EXIT_FAILURE);
        }
        thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_are_written_in_several_ways() {
        let words = |text: &str| text.split('|').map(Into::into).collect::<Vec<String>>();
        let want = Some(("1.2.3.4:5".into(), "6.7.8.9:53".into(), "udp".into()));
        for text in [
            "1.2.3.4:5|6.7.8.9:53/udp",
            "1.2.3.4:5 -> 6.7.8.9:53/udp",
            "1.2.3.4:5 →|6.7.8.9:53/udp",
        ] {
            assert_eq!(flow(&words(text)), want, "{text}");
        }
        assert_eq!(flow(&words("[::1]:1|[::2]:2")).unwrap().2, "tcp");
        for text in ["1.2.3.4:5", "", "a|b c"] {
            assert_eq!(flow(&words(text)), None, "{text}");
        }
    }
}
