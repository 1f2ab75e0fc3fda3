//! A section of HAProxy's as a service of ours.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::super::{Backend, Document, Port, Service, has_port};
use super::{Check, Section, Settings, milliseconds, pairs, time};

/// Backends of a service are checked, limited and told of clients alike: names what servers have each for
/// themselves.
fn say_what_differs(document: &mut Document, pool: &Section) {
    let name = &pool.name;
    let options = |words: &[String]| -> BTreeMap<String, String> {
        let all = pairs(words.get(2..).unwrap_or_default()).into_iter();
        all.filter(|(option, _)| !matches!(option.as_str(), "weight" | "backup")).collect()
    };
    let all: Vec<_> = pool.servers.iter().map(|(line, words)| (*line, options(words))).collect();
    let names: BTreeSet<&String> = all.iter().flat_map(|(_, options)| options.keys()).collect();
    for option in names {
        let mut values = all.iter().map(|(line, options)| (line, options.get(option)));
        let first = values.next().and_then(|(_, value)| value);
        if let Some((line, _)) = values.find(|(_, value)| *value != first) {
            document.lost(
                *line,
                format!(
                    "servers of `{name}` differ in `{option}`, of which a service has one for all: look at \
                     what is made of it"
                ),
            );
        }
    }
}

/// A service of the places of a section, with the servers of another or its own.
pub(super) fn serve(
    document: &mut Document,
    name: &str,
    front: &Section,
    pool: &Section,
    addresses: &[IpAddr],
) {
    let (settings, own) = (&pool.settings, &front.settings);
    if let Some(line) = settings.http.or(own.http) {
        document.note(
            line,
            format!(
                "`{name}` speaks HTTP: its connections are carried, requests are not looked at"
            ),
        );
    }
    let mut service = Service { name: name.into(), ..Service::default() };
    places(document, &mut service, front, addresses);
    if service.addresses.is_empty() {
        return;
    }
    service.scheduler = scheduler(document, pool);
    timeouts(document, &mut service, own, settings);
    retries(document, &mut service, settings);
    say_what_differs(document, pool);
    let servers = servers(document, &mut service, pool);
    let mut limits = Vec::new();
    limits.extend(own.maxconn.map(|most| format!("serviceConnections: {most}")));
    limits.extend(servers.maxconn.map(|most| format!("backendConnections: {most}")));
    if !limits.is_empty() {
        service.fields.push(format!("limits: {{{}}}", limits.join(", ")));
    }
    if let Some(window) = servers.slow_start {
        service.fields.push(format!("slowStart: {{window: {}}}", time(window)));
    }
    if servers.maxconn.is_some() {
        document.note(
            pool.line,
            format!(
                "`maxconn` of servers of `{}`: connections beyond it go to the next backend, and are refused when \
                 all are full; nothing waits in a queue",
                pool.name
            ),
        );
    }
    let backups = service.backends.iter().filter(|backend| backend.backup).count();
    if backups > 1 && !settings.all_backups {
        document.note(
            pool.line,
            format!(
                "all backup servers of `{}` serve at once, not the first of them alone",
                pool.name
            ),
        );
    }
    check(&mut service, settings, &servers);
    let mut proxy: Vec<String> =
        servers.sends.iter().map(|version| format!("send: {version}")).collect();
    if front.binds.iter().any(|(_, _, accepts)| *accepts) {
        proxy.push("accept: required".into());
        proxy.push("trustedSources: [\"0.0.0.0/0\", \"::/0\"]".into());
        document.note(
            front.line,
            format!(
                "`{name}` believes headers of the PROXY protocol from everybody: name the proxies in \
                 `trustedSources`"
            ),
        );
    }
    if !proxy.is_empty() {
        service.fields.push(format!("proxyProtocol: {{{}}}", proxy.join(", ")));
    }
    document.services.push(service);
}

/// Where clients dial.
fn places(document: &mut Document, service: &mut Service, front: &Section, addresses: &[IpAddr]) {
    for (line, place, _) in &front.binds {
        let Some((address, ports)) = place.rsplit_once(':') else {
            document.lost(*line, format!("`{place}` has no port"));
            continue;
        };
        let (first, last) =
            ports.split_once('-').map_or((ports, None), |(first, last)| (first, Some(last)));
        let (Ok(port), Ok(last)) = (first.parse(), last.map(str::parse).transpose()) else {
            document
                .lost(*line, format!("`{ports}` of `{place}` is no port, and no range of ports"));
            continue;
        };
        let address = address.trim_start_matches("ipv4@").trim_start_matches("ipv6@");
        let bare = address.trim_start_matches('[').trim_end_matches(']');
        match (bare, bare.parse::<IpAddr>()) {
            (_, Ok(ip)) if !ip.is_unspecified() => service.addresses.push(ip),
            ("" | "*", _) | (_, Ok(_)) if !addresses.is_empty() => {
                service.addresses.extend(addresses)
            }
            ("" | "*", _) | (_, Ok(_)) => {
                document.lost(
                    *line,
                    format!("`{place}` names no address: say by `--address` which clients dial"),
                );
                continue;
            }
            (other, Err(_)) => {
                document.lost(*line, format!("`{other}` is no address"));
                continue;
            }
        }
        service.ports.push(Port { port, last, protocol: "TCP", target: None });
    }
    service.addresses.sort();
    service.addresses.dedup();
    service.ports.sort_by_key(|port| port.port);
    service.ports.dedup();
}

fn scheduler(document: &mut Document, pool: &Section) -> Option<&'static str> {
    let words: Vec<&str> =
        pool.settings.balance.as_deref().unwrap_or("roundrobin").split(' ').collect();
    match words[0] {
        "roundrobin" | "static-rr" => Some("roundRobin"),
        "leastconn" => Some("leastConnections"),
        "source" => Some("sourceHash"),
        "random" => Some("random"),
        other => {
            document
                .lost(pool.line, format!("`balance {other}` has no counterpart; maglev is used"));
            None
        }
    }
}

/// Times of a frontend and of its backend, which are one here.
fn timeouts(document: &mut Document, service: &mut Service, own: &Settings, pool: &Settings) {
    let of = |settings: &Settings, name: &str| settings.timeouts.get(name).copied();
    let (client, server) = (of(own, "client"), of(pool, "server"));
    let tunnel = of(pool, "tunnel").or(of(own, "tunnel"));
    let either = |a: Option<(usize, u64)>, b: Option<(usize, u64)>| {
        a.into_iter().chain(b).max_by_key(|(_, time)| *time)
    };
    let idle = tunnel.or(either(client, server));
    if let (Some((line, a)), Some((other, b))) = (client, server)
        && a != b
        && tunnel.is_none()
    {
        document.note(
            line.max(other),
            "`timeout client` and `timeout server` differ: the longer is `timeouts.idle` of both sides",
        );
    }
    let closed = either(of(own, "client-fin"), of(pool, "server-fin"));
    let all = [("connect", of(pool, "connect")), ("halfClosed", closed), ("idle", idle)];
    let all: Vec<String> = all
        .into_iter()
        .filter_map(|(name, found)| Some(format!("{name}: {}", time(found?.1))))
        .collect();
    if !all.is_empty() {
        service.fields.push(format!("timeouts: {{{}}}", all.join(", ")));
    }
}

fn retries(document: &mut Document, service: &mut Service, settings: &Settings) {
    let Some((line, count)) = settings.retries else { return };
    service.fields.push(format!("retry: {{attempts: {}}}", count.saturating_add(1)));
    if !settings.redispatch && count > 0 {
        document.note(
            line,
            format!(
                "`retries {count}` goes to another backend at once each time, as with `option redispatch 1`"
            ),
        );
    }
}

/// What servers have in common.
#[derive(Default)]
struct Servers {
    checked: bool,
    check: Vec<String>,
    sends: Option<&'static str>,
    maxconn: Option<u32>,
    /// Milliseconds.
    slow_start: Option<u64>,
}

fn servers(document: &mut Document, service: &mut Service, pool: &Section) -> Servers {
    let mut found = Servers::default();
    for (line, words) in &pool.servers {
        let own = pairs(words.get(2..).unwrap_or_default());
        let mut backend = Backend {
            address: words.get(1).cloned().unwrap_or_default(),
            weight: 1,
            backup: false,
            name: words.first().cloned(),
        };
        for (option, value) in pool.settings.server.iter().chain(&own) {
            let every = |field: &str| Some(format!("{field}: {}", time(milliseconds(value)?)));
            match option.as_str() {
                "check" => found.checked = true,
                "weight" => backend.weight = value.parse().unwrap_or(1),
                "backup" => backend.backup = true,
                "maxconn" => found.maxconn = value.parse::<u32>().ok().max(found.maxconn),
                "inter" => found.check.extend(every("interval")),
                "fastinter" => found.check.extend(every("fastInterval")),
                "fall" | "rise" => found.check.push(format!("{option}: {value}")),
                "port" => found.check.push(format!("port: {value}")),
                "slowstart" => found.slow_start = milliseconds(value),
                "send-proxy" => found.sends = Some("v1"),
                "send-proxy-v2" => found.sends = Some("v2"),
                "disabled" => document.lost(
                    *line,
                    "a disabled server serves here: `fairway drain` takes a backend out of use",
                ),
                "no-backup" | "no-ssl" | "enabled" | "no-check" => {}
                "id" | "downinter" | "maxqueue" | "minconn" | "cookie" | "resolvers"
                | "resolve-prefer" | "init-addr" | "tfo" | "observe" | "error-limit"
                | "on-error" | "on-marked-up" | "pool-max-conn" | "log-proto" => {
                    document.note(*line, format!("`{option}` is not carried over"));
                }
                other => document.lost(*line, format!("`{other}` is not carried over")),
            }
        }
        if backend.weight == 0 {
            document
                .lost(*line, format!("a server of `{}` has weight 0 and is left out", pool.name));
            continue;
        }
        let bare = backend.address.parse::<IpAddr>().is_ok() || !backend.address.contains(':');
        if !bare && !has_port(&backend.address) {
            let address = backend.address;
            document.lost(*line, format!("`{address}` is no address and port, and is left out"));
            continue;
        }
        service.backends.push(backend);
    }
    found
}

fn check(service: &mut Service, settings: &Settings, servers: &Servers) {
    if !servers.checked {
        service.fields.push("healthCheck: {type: none}".into());
        return;
    }
    let mut words = Vec::new();
    if let Some(Check { path, host, statuses }) = &settings.check {
        words.extend(["type: http".to_owned(), format!("path: {path:?}")]);
        words.extend(host.as_ref().map(|host| format!("host: {host:?}")));
        let list = statuses.as_ref().map(|list| list.replace(',', ", "));
        words.extend(list.map(|list| format!("expectStatus: [{list}]")));
    }
    // What a server says comes after what is said for all.
    let mut fields: BTreeMap<&str, &str> = BTreeMap::new();
    fields.extend(servers.check.iter().filter_map(|field| field.split_once(": ")));
    words.extend(fields.into_iter().map(|(name, value)| format!("{name}: {value}")));
    let timeout = settings.timeouts.get("check");
    words.extend(timeout.map(|(_, limit)| format!("timeout: {}", time(*limit))));
    if !words.is_empty() {
        service.fields.push(format!("healthCheck: {{{}}}", words.join(", ")));
    }
}
