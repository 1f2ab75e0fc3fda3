//! How backends are checked: each kind of check has its fields, and no others.

use std::path::Path;
use std::sync::Arc;

use fairway_core::Policy;

use super::Findings;
use super::process::absolute;
use crate::Place;
use crate::document::{
    BackendDoc, CheckTypeDoc, HealthCheckDoc, InitialDoc, PortDoc, ServiceDoc, TargetDoc, TlsDoc,
};
use crate::spec::{CheckSpec, Exchange, Http, Probe, Tls};
use crate::values::At;

/// Longest text of a check that is sent or expected, in bytes.
const MOST_TEXT: usize = 4096;

pub(super) fn check(
    doc: &ServiceDoc,
    policy: &Policy,
    findings: &mut Findings<'_>,
) -> Option<Arc<CheckSpec>> {
    let default = HealthCheckDoc::default();
    let check = doc.health_check.as_ref().map_or(&default, |at| &at.value);
    let kind = check.kind.as_ref().map_or(CheckTypeDoc::Tcp, |at| at.value);
    of_other_kinds(kind, check, findings);
    let mut count = |name: &str, written: Option<At<u32>>, default: u32| {
        let Some(At { place, value }) = written else {
            return default;
        };
        if value == 0 {
            findings.add(place, format!("`{name}` is 0; at least 1 check decides"));
        }
        value.max(1)
    };
    let (rise, fall) = (count("rise", check.rise, 2), count("fall", check.fall, 3));
    if let Some(at) = check.jitter.as_ref().filter(|at| at.value.0 > 100) {
        findings.add(at.place, format!("`jitter` is {}%; it is 0% to 100%", at.value.0));
    }
    if let Some(at) = check.port.as_ref().filter(|at| at.value == 0) {
        findings.add(at.place, "`port` is 0; ports are 1 to 65535");
    }
    let interval = findings.time("interval", check.interval.as_ref(), "2s");
    let fast_interval = match &check.fast_interval {
        Some(at) => findings.time("fastInterval", Some(at), "1s").min(interval),
        None => interval,
    };
    let timeout = findings.time("timeout", check.timeout.as_ref(), "1s");
    // Where the check itself is missing something, its place says so.
    let place = doc.health_check.as_ref().map_or(doc.name.place, |at| at.place);
    Some(Arc::new(CheckSpec {
        probe: probe(kind, check, place, findings)?,
        port: check.port.map(|at| at.value),
        interval,
        fast_interval,
        source: check.source.map(|at| at.value.0.to_canonical()),
        jitter_percent: check.jitter.map_or(10, |at| at.value.0),
        timeout,
        rise,
        fall,
        initially_up: check.initial_state.unwrap_or_default() == InitialDoc::Up,
        header: policy.proxy_protocol.send.map(|send| send.format),
    }))
}

pub(super) fn agent(doc: &ServiceDoc, findings: &mut Findings<'_>) -> Option<Arc<CheckSpec>> {
    let At { value: agent, .. } = doc.agent_check.as_ref()?;
    if agent.port.value == 0 {
        findings.add(agent.port.place, "`port` is 0; ports are 1 to 65535");
    }
    let interval = findings.time("interval", agent.interval.as_ref(), "2s");
    Some(Arc::new(CheckSpec {
        probe: Probe::Agent(agent.send.as_ref().map_or("", |at| &at.value).as_bytes().into()),
        port: Some(agent.port.value),
        interval,
        fast_interval: interval,
        source: None,
        jitter_percent: 10,
        timeout: findings.time("timeout", agent.timeout.as_ref(), "1s"),
        rise: 1,
        fall: 3,
        initially_up: true,
        header: None,
    }))
}

fn probe(
    kind: CheckTypeDoc,
    check: &HealthCheckDoc,
    place: Place,
    findings: &mut Findings<'_>,
) -> Option<Probe> {
    Some(match kind {
        CheckTypeDoc::None => return None,
        CheckTypeDoc::Tcp => Probe::Tcp(exchange(check, findings)),
        CheckTypeDoc::Http => Probe::Http(http(check, findings), None),
        CheckTypeDoc::Https => {
            Probe::Http(http(check, findings), Some(tls_or_default(check, findings)))
        }
        CheckTypeDoc::Tls => Probe::Tls(tls_or_default(check, findings)),
        CheckTypeDoc::Grpc => {
            let service = check.service.as_ref().map_or("", |at| &at.value);
            Probe::Grpc(service.into(), check.tls.as_ref().map(|at| tls(&at.value, findings)))
        }
        CheckTypeDoc::Dns => {
            let query = match &check.query {
                Some(at) => at.value.as_str(),
                None => {
                    findings.absent(place, "`type: dns` asks for a name; set `query`");
                    "."
                }
            };
            Probe::Dns {
                query: query.into(),
                record: check.record.map(|at| at.value).unwrap_or_default(),
            }
        }
        CheckTypeDoc::Udp => {
            let exchange = exchange(check, findings);
            if exchange.send.is_empty() {
                findings.absent(
                    place,
                    "`type: udp` sends a datagram that is answered; set `send` or `sendHex`",
                );
            }
            Probe::Udp(exchange)
        }
        CheckTypeDoc::Icmp => Probe::Icmp,
        CheckTypeDoc::Exec => Probe::Exec(command(check, place, findings)),
    })
}

/// Fields that are written for another kind of check.
fn of_other_kinds(kind: CheckTypeDoc, check: &HealthCheckDoc, findings: &mut Findings<'_>) {
    use CheckTypeDoc::{Dns, Exec, Grpc, Http, Https, Tcp, Tls, Udp};
    let web: &[CheckTypeDoc] = &[Http, Https];
    let text: &[CheckTypeDoc] = &[Tcp, Udp];
    fn place<T>(at: &Option<At<T>>) -> Option<Place> {
        at.as_ref().map(|at| at.place)
    }
    for (name, place, kinds, words) in [
        ("path", place(&check.path), web, "http` or `https"),
        ("host", place(&check.host), web, "http` or `https"),
        ("headers", place(&check.headers), web, "http` or `https"),
        ("expectStatus", place(&check.expect_status), web, "http` or `https"),
        ("tls", place(&check.tls), &[Https, Tls, Grpc], "https`, `tls` or `grpc"),
        ("send", place(&check.send), text, "tcp` or `udp"),
        ("sendHex", place(&check.send_hex), text, "tcp` or `udp"),
        ("expect", place(&check.expect), text, "tcp` or `udp"),
        ("expectHex", place(&check.expect_hex), text, "tcp` or `udp"),
        ("service", place(&check.service), &[Grpc], "grpc"),
        ("query", place(&check.query), &[Dns], "dns"),
        ("record", place(&check.record), &[Dns], "dns"),
        ("command", place(&check.command), &[Exec], "exec"),
    ] {
        if let Some(place) = place.filter(|_| !kinds.contains(&kind)) {
            findings
                .add(place, format!("`{name}` belongs to `type: {words}`; set that, or remove it"));
        }
    }
}

fn exchange(check: &HealthCheckDoc, findings: &mut Findings<'_>) -> Exchange {
    let mut bytes = |name: &str, text: &Option<At<String>>, hex: &Option<At<String>>| {
        let bytes: Box<[u8]> = match (text, hex) {
            (Some(_), Some(hex)) => {
                findings.add(hex.place, format!("`{name}` is there already; remove one of them"));
                Box::default()
            }
            (Some(text), None) => text.value.as_bytes().into(),
            (None, Some(hex)) => from_hex(&hex.value).unwrap_or_else(|| {
                findings.add(
                    hex.place,
                    format!("`{}` is no row of bytes, two hexadecimal digits each", hex.value),
                );
                Box::default()
            }),
            (None, None) => Box::default(),
        };
        if bytes.len() > MOST_TEXT
            && let Some(at) = text.as_ref().or(hex.as_ref())
        {
            findings.add(at.place, format!("`{name}` is longer than {MOST_TEXT} bytes"));
        }
        bytes
    };
    Exchange {
        send: bytes("send", &check.send, &check.send_hex),
        expect: bytes("expect", &check.expect, &check.expect_hex),
    }
}

fn from_hex(text: &str) -> Option<Box<[u8]>> {
    let digits: Vec<char> = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    let pairs = digits.chunks_exact(2);
    let whole = pairs.remainder().is_empty();
    let byte = |pair: &[char]| Some((pair[0].to_digit(16)? * 16 + pair[1].to_digit(16)?) as u8);
    pairs.map(byte).collect::<Option<Box<[u8]>>>().filter(|_| whole)
}

fn tls_or_default(check: &HealthCheckDoc, findings: &mut Findings<'_>) -> Tls {
    let default = TlsDoc::default();
    tls(check.tls.as_ref().map_or(&default, |at| &at.value), findings)
}

fn tls(doc: &TlsDoc, findings: &mut Findings<'_>) -> Tls {
    if let Some(at) = doc.server_name.as_ref().filter(|at| !is_name(&at.value)) {
        findings.add(at.place, format!("`{}` is no host name", at.value));
    }
    let base = findings.file.parent().unwrap_or(Path::new(""));
    let ca_file = doc.ca_file.as_ref().map(|at| (at.place, absolute(base, &at.value)));
    if let Some((place, path)) = &ca_file
        && let Err(error) = std::fs::metadata(path)
    {
        findings.add(*place, format!("{} cannot be read: {error}", path.display()));
    }
    if let (Some(false), Some((place, _))) = (doc.verify, &ca_file) {
        findings.add(*place, "`caFile` says nothing while `verify` is false; remove one of them");
    }
    Tls {
        verify: doc.verify.unwrap_or(true),
        server_name: doc.server_name.as_ref().map(|at| at.value.as_str().into()),
        ca_file: ca_file.map(|(_, path)| path),
    }
}

fn is_name(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    !text.is_empty() && text.len() <= 253 && text.chars().all(fits)
}

fn command(check: &HealthCheckDoc, place: Place, findings: &mut Findings<'_>) -> Vec<Box<str>> {
    let words = check.command.as_ref().map_or(&[][..], |at| &at.value);
    match words.first() {
        None => {
            let place = check.command.as_ref().map_or(place, |at| at.place);
            findings.absent(place, "`type: exec` runs a program; set `command: [/path, argument]`");
        }
        Some(program) if !program.starts_with('/') => {
            let place = check.command.as_ref().map_or(place, |at| at.place);
            findings.add(place, format!("`{program}` is no absolute path; nobody looks for it"));
        }
        Some(_) => {}
    }
    words.iter().map(|word| word.as_str().into()).collect()
}

fn http(check: &HealthCheckDoc, findings: &mut Findings<'_>) -> Http {
    let bad = |c: char| c.is_control() || c == ' ';
    if let Some(at) = &check.path
        && (!at.value.starts_with('/') || at.value.contains(bad))
    {
        findings.add(
            at.place,
            format!("`{}` is no path; it starts with `/`, without spaces", at.value),
        );
    }
    if let Some(at) = check.host.as_ref().filter(|at| at.value.is_empty() || at.value.contains(bad))
    {
        findings.add(at.place, format!("`{}` is no host name", at.value));
    }
    if let Some(at) = &check.headers {
        for (name, value) in &at.value {
            let token = |c: char| c.is_ascii_alphanumeric() || "-_!#$%&'*+.^`|~".contains(c);
            let fits = !name.is_empty() && name.chars().all(token);
            if !fits || value.chars().any(char::is_control) {
                findings.add(at.place, format!("`{name}: {value}` is no HTTP header"));
            }
        }
    }
    let statuses = match &check.expect_status {
        None => vec![(200, 399)],
        Some(at) => {
            if at.value.is_empty() {
                findings.absent(at.place, "`expectStatus` is empty; no answer would be good");
            }
            at.value.iter().map(|at| at.value.0).collect()
        }
    };
    let headers = check.headers.iter().flat_map(|at| &at.value);
    Http {
        path: check.path.as_ref().map_or("/", |at| &at.value).into(),
        host: check.host.as_ref().map(|at| at.value.as_str().into()),
        headers: headers
            .map(|(name, value)| (name.as_str().into(), value.as_str().into()))
            .collect(),
        statuses,
    }
}

/// A range keeps the dialled port, so its backends have no port that could be checked.
pub(super) fn check_port(
    doc: &ServiceDoc,
    check: &CheckSpec,
    port: &PortDoc,
    findings: &mut Findings<'_>,
) {
    // These look at no port.
    if matches!(check.probe, Probe::Icmp | Probe::Exec(_)) {
        return;
    }
    let no_port = |backend: &At<BackendDoc>| match &backend.value.target {
        TargetDoc::Endpoint(at) => at.value.port.is_none() && backend.value.port.is_none(),
        TargetDoc::Srv(_) => false,
    };
    let needs = port.port.value.0.len() > 1
        && port.target_port.is_none()
        && check.port.is_none()
        && doc.backends.iter().chain(&doc.backup_backends).any(no_port);
    if needs {
        let place = doc.health_check.as_ref().map_or(port.port.place, |at| at.place);
        findings.add(
            place,
            "a check needs a port, and a range leaves it open; set `healthCheck.port`, or \
             `healthCheck: {type: none}`",
        );
    }
}
