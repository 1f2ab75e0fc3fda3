//! A section of HAProxy's as a service of ours.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use super::super::{Backend, Document, Port, Service, arranged, has_port};
use super::{Bind, Check, Section, Settings, milliseconds, pairs, time};

/// A service of the places of a section, with the servers of another or its own.
pub(super) fn serve(
    document: &mut Document,
    front: &Section,
    pool: &Section,
    addresses: &[IpAddr],
) {
    let (settings, own, name) = (&pool.settings, &front.settings, &front.name);
    if let Some(line) = settings.http.or(own.http) {
        document.note(
            line,
            format!(
                "`{name}` speaks HTTP: its connections are carried, requests are not looked at"
            ),
        );
    }
    let mut service = Service { name: name.into(), ..Service::default() };
    let places = places(document, front, addresses);
    if places.is_empty() {
        return;
    }
    service.scheduler = scheduler(document, pool);
    timeouts(document, &mut service, own, settings);
    if own.maxconn.is_some() {
        document.note(
            front.line,
            format!("`maxconn` of `{name}`: clients beyond it are refused, they do not wait"),
        );
    }
    retries(document, &mut service, settings);
    if settings.sticks {
        // HAProxy keeps them for ever where nothing is said.
        let seconds = settings.stick_seconds.and_then(|seconds| u32::try_from(seconds).ok());
        service.affinity_seconds = Some(seconds.unwrap_or(86_400));
    }
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
    if places.len() > 1 && (own.maxconn.or(servers.maxconn)).is_some() {
        document.note(
            front.line,
            format!(
                "`maxconn` of `{name}` and of its servers counts for each of its ports by itself"
            ),
        );
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
        // One of them at a time, the first that can.
        let mut next = 0;
        for backend in &mut service.backends {
            next += usize::from(backend.backup);
            backend.priority = Some(if backend.backup { next } else { 0 });
            backend.backup = false;
        }
    }
    if let Some(port) = servers.agent_port.as_ref().filter(|_| servers.asks_agent) {
        let interval = servers.agent_inter.map(|every| format!(", interval: {}", time(every)));
        let interval = interval.unwrap_or_default();
        service.fields.push(format!("agentCheck: {{port: {port}{interval}}}"));
    }
    check(document, &mut service, pool, &servers);
    if places.iter().any(|(.., accepts)| *accepts) {
        document.note(
            front.line,
            format!(
                "`{name}` believes headers of the PROXY protocol from everybody: name the proxies in \
                 `trustedSources`"
            ),
        );
    }
    for accepts in [false, true] {
        let alike = places.iter().filter(|(.., other)| *other == accepts);
        for (addresses, ports) in arranged(alike.map(|(ip, port, _)| (*ip, port.clone()))) {
            let mut service = Service { addresses, ports, ..service.clone() };
            let mut proxy: Vec<String> =
                servers.sends.iter().map(|version| format!("send: {version}")).collect();
            if accepts {
                proxy.push("accept: required".into());
                proxy.push("trustedSources: [\"0.0.0.0/0\", \"::/0\"]".into());
            }
            if !proxy.is_empty() {
                service.fields.push(format!("proxyProtocol: {{{}}}", proxy.join(", ")));
            }
            document.services.push(service);
        }
    }
}

/// Where clients dial, and whether a header of the PROXY protocol comes first.
fn places(
    document: &mut Document,
    front: &Section,
    addresses: &[IpAddr],
) -> Vec<(IpAddr, Port, bool)> {
    let mut places = Vec::new();
    for Bind { line, place, accepts, both } in &front.binds {
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
        let any = match bare {
            "" | "*" => Some(false),
            _ => bare.parse::<IpAddr>().ok().filter(IpAddr::is_unspecified).map(|ip| ip.is_ipv6()),
        };
        let dialled = match (any, bare.parse::<IpAddr>()) {
            (None, Ok(ip)) => vec![ip],
            (Some(ipv6), _) => {
                let meant = |ip: &&IpAddr| ip.is_ipv6() == ipv6 || (ipv6 && *both);
                let dialled: Vec<_> = addresses.iter().filter(meant).copied().collect();
                if dialled.is_empty() {
                    document.lost(
                        *line,
                        format!(
                            "`{place}` names no address, and is left out: say by `--address` which clients dial"
                        ),
                    );
                    continue;
                }
                dialled
            }
            (None, Err(_)) => {
                document.lost(*line, format!("`{bare}` is no address, and is left out"));
                continue;
            }
        };
        let port = Port { port, last, protocol: "TCP", target: None };
        places.extend(dialled.into_iter().map(|ip| (ip, port.clone(), *accepts)));
    }
    places
}

fn scheduler(document: &mut Document, pool: &Section) -> Option<&'static str> {
    let words: Vec<&str> =
        pool.settings.balance.as_deref().unwrap_or("roundrobin").split(' ').collect();
    match words[0] {
        "roundrobin" | "static-rr" => Some("roundRobin"),
        "leastconn" => Some("leastConnections"),
        "source" => Some("sourceHash"),
        "hash" if words[1..] == ["src"] => Some("sourceHash"),
        "random(1)" => Some("random"),
        // Of so many, the one that has least to do; two are the default.
        other if other.starts_with("random") => Some("powerOfTwo"),
        _ => {
            let words = words.join(" ");
            document
                .lost(pool.line, format!("`balance {words}` has no counterpart; maglev is used"));
            None
        }
    }
}

/// Times of a frontend and of its backend, which are one here.
fn timeouts(document: &mut Document, service: &mut Service, own: &Settings, pool: &Settings) {
    let of = |settings: &Settings, name: &str| settings.timeouts.get(name).copied();
    let (client, server) = (of(own, "client"), of(pool, "server"));
    // With HTTP, only of connections that have changed to another protocol.
    let tunnel = of(pool, "tunnel").or(of(own, "tunnel")).filter(|_| pool.http.is_none());
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
    asks_agent: bool,
    agent_port: Option<String>,
    /// Milliseconds.
    agent_inter: Option<u64>,
}

/// Options of one server, those of all of its kind before its own.
type Options = BTreeMap<String, String>;

/// Options that each server has for itself; of the others a service has one for all.
const OWN: [&str; 4] = ["weight", "backup", "cookie", "id"];

/// What most servers have; of the rest, what is theirs alone is told.
fn common(document: &mut Document, pool: &Section, all: &[(usize, Options)]) -> Options {
    let names: BTreeSet<&String> = all.iter().flat_map(|(_, options)| options.keys()).collect();
    let mut common = Options::new();
    for name in names.into_iter().filter(|name| !OWN.contains(&name.as_str())) {
        let values = || all.iter().map(|(_, options)| options.get(name));
        let votes = |value: Option<&String>| values().filter(|other| *other == value).count();
        let Some(most) = values().rev().max_by_key(|value| votes(*value)) else { continue };
        for (line, options) in all.iter().filter(|(_, options)| options.get(name) != most) {
            let with = |value: &String| match value.as_str() {
                "" => format!("`{name}`"),
                value => format!("`{name} {value}`"),
            };
            let own = options.get(name).map_or(format!("no `{name}`"), with);
            let others = match most.map(String::as_str) {
                None => "none".to_owned(),
                Some("") => "it".to_owned(),
                Some(value) => format!("`{value}`"),
            };
            document.lost(
                *line,
                format!(
                    "{own} of this server alone is not carried over: the others of `{}` have {others}",
                    pool.name
                ),
            );
        }
        common.extend(most.map(|value| (name.clone(), value.clone())));
    }
    common
}

fn servers(document: &mut Document, service: &mut Service, pool: &Section) -> Servers {
    let mut all = Vec::new();
    for (line, words) in &pool.servers {
        let own = pairs(words.get(2..).unwrap_or_default());
        let mut options = Options::new();
        for (name, value) in pool.settings.server.iter().cloned().chain(own) {
            let undone = match name.as_str() {
                "enabled" => Some("disabled"),
                name => name.strip_prefix("no-"),
            };
            // What is undone was the default, or comes from `default-server`.
            match undone {
                Some(undone) => _ = options.remove(undone),
                None => _ = options.insert(name, value),
            }
        }
        let address = address(words.get(1).map(String::as_str).unwrap_or_default());
        let plain = !address.contains(['@', '/']);
        let bare = plain && (address.parse::<IpAddr>().is_ok() || !address.contains(':'));
        if !(bare || plain && has_port(&address)) {
            document.lost(*line, format!("`{address}` is no address and port, and is left out"));
            continue;
        }
        let weight = options.get("weight").and_then(|weight| weight.parse().ok()).unwrap_or(1);
        if weight == 0 {
            document
                .lost(*line, format!("a server of `{}` has weight 0 and is left out", pool.name));
            continue;
        }
        if options.contains_key("disabled") {
            document.lost(
                *line,
                "a disabled server is left out; `fairway drain` takes a backend out of use",
            );
            continue;
        }
        let backup = options.contains_key("backup");
        let name = words.first().cloned();
        service.backends.push(Backend { address, weight, backup, name, priority: None });
        all.push((*line, options));
    }
    let mut found = Servers::default();
    let lines: BTreeSet<usize> = all.iter().map(|(line, _)| *line).collect();
    for (option, value) in common(document, pool, &all) {
        let every = |field: &str| Some(format!("{field}: {}", time(milliseconds(&value)?)));
        match option.as_str() {
            "check" => found.checked = true,
            "maxconn" => found.maxconn = value.parse().ok().filter(|most| *most > 0),
            "inter" => found.check.extend(every("interval")),
            "fastinter" => found.check.extend(every("fastInterval")),
            "fall" | "rise" | "port" => found.check.push(format!("{option}: {value}")),
            "slowstart" => found.slow_start = milliseconds(&value),
            "agent-check" => found.asks_agent = true,
            "agent-port" => found.agent_port = Some(value),
            "agent-inter" => found.agent_inter = milliseconds(&value),
            "send-proxy" => found.sends = Some("v1"),
            "send-proxy-v2" => found.sends = Some("v2"),
            "downinter" | "maxqueue" | "minconn" | "resolvers" | "resolve-prefer"
            | "resolve-net" | "resolve-opts" | "init-addr" | "tfo" | "observe" | "error-limit"
            | "on-error" | "on-marked-up" | "pool-max-conn" | "pool-low-conn"
            | "pool-purge-delay" | "log-proto" | "non-stick" => {
                for line in &lines {
                    document.note(*line, format!("`{option}` is not carried over"));
                }
            }
            other => {
                let words = format!("{other} {value}");
                for line in &lines {
                    document.lost(*line, format!("`{}` is not carried over", words.trim_end()));
                }
            }
        }
    }
    found
}

/// A server's address as ours are written: of HAProxy's, the last colon is before the port.
fn address(text: &str) -> String {
    match text.rsplit_once(':') {
        Some((host, port)) if !text.contains('[') && host.parse::<Ipv6Addr>().is_ok() => {
            format!("[{host}]:{port}")
        }
        _ => text.into(),
    }
}

fn check(document: &mut Document, service: &mut Service, pool: &Section, servers: &Servers) {
    let settings = &pool.settings;
    if !servers.checked {
        service.fields.push("healthCheck: {type: none}".into());
        return;
    }
    let mut words = Vec::new();
    if settings.asks_http {
        let Check { method, path, host, headers, statuses } = &settings.check;
        let method = method.as_deref().unwrap_or("OPTIONS");
        if method != "GET" {
            document
                .lost(pool.line, format!("checks of `{}` ask by GET, not by {method}", pool.name));
        }
        let path = path.as_deref().unwrap_or("/");
        words.extend(["type: http".to_owned(), format!("path: {path:?}")]);
        words.extend(host.as_ref().map(|host| format!("host: {host:?}")));
        if !headers.is_empty() {
            let of = |(name, value): &(String, String)| format!("{name:?}: {value:?}");
            let headers: Vec<String> = headers.iter().map(of).collect();
            words.push(format!("headers: {{{}}}", headers.join(", ")));
        }
        let list = statuses.as_ref().map(|list| list.replace(',', ", "));
        words.extend(list.map(|list| format!("expectStatus: [{list}]")));
    }
    let fields: BTreeMap<&str, &str> =
        servers.check.iter().filter_map(|field| field.split_once(": ")).collect();
    words.extend(fields.iter().map(|(name, value)| format!("{name}: {value}")));
    // Where nothing is said, a check may take as long as it is to the next.
    let limit = settings.timeouts.get("check").map(|(_, limit)| time(*limit));
    let limit = limit.unwrap_or_else(|| (*fields.get("interval").unwrap_or(&"2s")).into());
    words.push(format!("timeout: {limit}"));
    service.fields.push(format!("healthCheck: {{{}}}", words.join(", ")));
}
