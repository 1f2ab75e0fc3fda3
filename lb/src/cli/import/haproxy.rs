//! HAProxy's configuration: what of it is of layer 4. Each place that clients dial becomes a service with the
//! servers of its default backend.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Backend, Document, Port, Service};

/// Settings that a section has, or takes from the defaults.
#[derive(Debug, Clone, Default)]
struct Settings {
    http: Option<usize>,
    balance: Option<String>,
    timeouts: BTreeMap<&'static str, String>,
    /// `option httpchk` and what belongs to it.
    check: Option<Check>,
    /// Of `default-server`.
    server: Vec<(String, String)>,
    maxconn: Option<u32>,
}

#[derive(Debug, Clone, Default)]
struct Check {
    path: String,
    host: Option<String>,
    statuses: Option<String>,
}

/// A section with places to dial, servers, or both.
#[derive(Debug, Clone, Default)]
struct Section {
    line: usize,
    settings: Settings,
    binds: Vec<(usize, String, bool)>,
    default_backend: Option<(usize, String)>,
    servers: Vec<(usize, Vec<String>)>,
}

/// Reads a configuration; places without an address get `addresses`.
pub(super) fn read(text: &str, addresses: &[IpAddr]) -> Document {
    let mut document = Document::default();
    let mut defaults = Settings::default();
    let mut sections: Vec<(String, String, Section)> = Vec::new();
    let mut kind = String::new();
    for (number, line) in (1..).zip(text.lines()) {
        let words = split(line);
        let Some(first) = words.first().map(String::as_str) else { continue };
        match first {
            "global" | "defaults" | "frontend" | "backend" | "listen" | "peers" | "resolvers"
            | "userlist" | "program" | "cache" | "mailers" | "ring" | "http-errors" => {
                kind = first.to_owned();
                let name = words.get(1).cloned().unwrap_or_default();
                match first {
                    "frontend" | "backend" | "listen" => {
                        let settings = defaults.clone();
                        let section = Section { line: number, settings, ..Section::default() };
                        sections.push((kind.clone(), name, section));
                    }
                    // Each begins anew.
                    "defaults" => defaults = Settings::default(),
                    _ => {}
                }
            }
            _ => match kind.as_str() {
                "defaults" => set(&mut document, number, &words, &mut defaults, None),
                "frontend" | "backend" | "listen" => {
                    if let Some((_, _, section)) = sections.last_mut() {
                        let mut settings = std::mem::take(&mut section.settings);
                        set(&mut document, number, &words, &mut settings, Some(section));
                        section.settings = settings;
                    }
                }
                // Of the process, not of what it carries.
                _ => {}
            },
        }
    }
    let pools: BTreeMap<&str, &Section> = sections
        .iter()
        .filter(|(kind, ..)| kind != "frontend")
        .map(|(_, name, section)| (name.as_str(), section))
        .collect();
    let mut used = Vec::new();
    for (kind, name, section) in sections.iter().filter(|(kind, ..)| kind != "backend") {
        let pool = match (&section.default_backend, kind.as_str()) {
            (Some((line, backend)), _) => match pools.get(backend.as_str()) {
                Some(pool) => {
                    used.push(backend.as_str());
                    *pool
                }
                None => {
                    document.note(*line, format!("there is no backend `{backend}`"));
                    continue;
                }
            },
            (None, "listen") => section,
            (None, _) => {
                document.note(
                    section.line,
                    format!("frontend `{name}` has no `default_backend` and is left out"),
                );
                continue;
            }
        };
        serve(&mut document, name, section, pool, addresses);
    }
    for (_, name, section) in sections.iter().filter(|(kind, ..)| kind == "backend") {
        if !used.contains(&name.as_str()) {
            document.note(
                section.line,
                format!("backend `{name}` is nobody's default and is left out"),
            );
        }
    }
    document
}

/// The words of a line, as far as it is no comment.
fn split(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote, mut escaped) = (Vec::new(), String::new(), None, false);
    for c in line.chars() {
        match (c, quote) {
            _ if escaped => {
                word.push(c);
                escaped = false;
            }
            ('\\', _) => escaped = true,
            ('"' | '\'', None) => quote = Some(c),
            (c, Some(open)) if c == open => quote = None,
            ('#', None) => break,
            (c, None) if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            (c, _) => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// Takes a line of a section, or of the defaults when there is none.
fn set(
    document: &mut Document,
    line: usize,
    words: &[String],
    settings: &mut Settings,
    section: Option<&mut Section>,
) {
    let word = |n: usize| words.get(n).map(String::as_str).unwrap_or_default();
    match (word(0), section) {
        ("bind", Some(section)) => {
            let accepts = words.iter().any(|word| word == "accept-proxy");
            if let Some(ssl) = words.iter().find(|word| *word == "ssl") {
                document.note(
                    line,
                    format!("`{ssl}`: TLS is not ended here, clients are passed on as they are"),
                );
            }
            for place in word(1).split(',') {
                section.binds.push((line, place.to_owned(), accepts));
            }
        }
        ("default_backend", Some(section)) => {
            section.default_backend = Some((line, word(1).into()))
        }
        ("server", Some(section)) => section.servers.push((line, words[1..].to_vec())),
        ("mode", _) => settings.http = (word(1) == "http").then_some(line),
        ("balance", _) => settings.balance = Some(words[1..].join(" ")),
        ("timeout", _) => {
            let ours = match word(1) {
                "connect" => "connect",
                "client" | "server" => "idle",
                "client-fin" | "server-fin" => "halfClosed",
                // Of HTTP, of queues, of checks.
                _ => return,
            };
            if let Some(time) = time(word(2)) {
                settings.timeouts.insert(ours, time);
            }
        }
        ("maxconn", _) => settings.maxconn = word(1).parse().ok(),
        ("default-server", _) => settings.server = pairs(&words[1..]),
        ("option", _) => match word(1) {
            "httpchk" => {
                let path = words.iter().skip(2).find(|word| word.starts_with('/'));
                settings.check =
                    Some(Check { path: path.map_or("/".into(), Clone::clone), ..Check::default() });
            }
            "tcp-check" | "tcplog" | "httplog" | "dontlognull" | "redispatch" | "tcpka"
            | "clitcpka" | "srvtcpka" | "forwardfor" | "http-server-close" | "http-keep-alive"
            | "httpclose" => {}
            other => document.note(line, format!("`option {other}` is not carried over")),
        },
        ("http-check", _) => {
            let check = settings.check.get_or_insert_default();
            match word(1) {
                "expect" if word(2) == "status" => check.statuses = Some(word(3).into()),
                "send" => {
                    for pair in words.windows(2) {
                        if pair[0] == "uri" {
                            check.path.clone_from(&pair[1]);
                        }
                    }
                    if let Some(at) =
                        words.windows(2).position(|pair| pair[0] == "hdr" && pair[1] == "Host")
                    {
                        check.host = words.get(at + 2).cloned();
                    }
                }
                other => document.note(line, format!("`http-check {other}` is not carried over")),
            }
        }
        (
            "retries" | "log" | "log-format" | "description" | "id" | "fullconn" | "errorfile"
            | "stats",
            _,
        ) => {}
        (other, _) => document.note(line, format!("`{other}` is not carried over")),
    }
}

/// Backends of a service are checked, limited and told of clients alike: names what servers have each for
/// themselves.
fn say_what_differs(document: &mut Document, name: &str, pool: &Section) {
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
            document.note(
                *line,
                format!(
                    "servers of `{name}` differ in `{option}`, of which a service has one for all: look at \
                     what is made of it"
                ),
            );
        }
    }
}

/// A service of each place of a section.
fn serve(
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
    let mut accepts = false;
    for (line, place, proxied) in &front.binds {
        accepts |= proxied;
        let Some((address, port)) = place.rsplit_once(':') else {
            document.note(*line, format!("`{place}` has no port"));
            continue;
        };
        let Ok(port) = port.parse() else {
            document.note(
                *line,
                format!("`{place}` is not carried over: it has no single port; write `ports: [{{port: 1000-2000}}]`"),
            );
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
                document.note(
                    *line,
                    format!("`{place}` names no address: say by `--address` which clients dial"),
                );
                continue;
            }
            (other, Err(_)) => {
                document.note(*line, format!("`{other}` is no address"));
                continue;
            }
        }
        service.ports.push(Port { port, protocol: "TCP", target: None });
    }
    service.addresses.sort();
    service.addresses.dedup();
    service.ports.sort_by_key(|port| port.port);
    service.ports.dedup();
    if service.addresses.is_empty() {
        return;
    }
    let words: Vec<&str> = settings.balance.as_deref().unwrap_or("roundrobin").split(' ').collect();
    service.scheduler = match words[0] {
        "roundrobin" | "static-rr" => Some("roundRobin"),
        "leastconn" => Some("leastConnections"),
        "source" => Some("sourceHash"),
        "random" => Some("random"),
        other => {
            document
                .note(pool.line, format!("`balance {other}` has no counterpart; maglev is used"));
            None
        }
    };
    let timeouts: Vec<String> = own
        .timeouts
        .iter()
        .chain(&settings.timeouts)
        .collect::<BTreeMap<_, _>>()
        .into_iter()
        .map(|(name, time)| format!("{name}: {time}"))
        .collect();
    if !timeouts.is_empty() {
        service.fields.push(format!("timeouts: {{{}}}", timeouts.join(", ")));
    }
    let mut limits = Vec::new();
    if let Some(most) = own.maxconn {
        limits.push(format!("serviceConnections: {most}"));
    }
    say_what_differs(document, name, pool);
    let (mut checked, mut check, mut sends, mut most) = (false, Vec::new(), None, None);
    for (line, words) in &pool.servers {
        let all = settings.server.iter().cloned().chain(pairs(words.get(2..).unwrap_or_default()));
        let mut backend = Backend {
            address: words.get(1).cloned().unwrap_or_default(),
            weight: 1,
            backup: false,
            name: words.first().cloned(),
        };
        for (option, value) in all {
            match option.as_str() {
                "check" => checked = true,
                "weight" => backend.weight = value.parse().unwrap_or(1),
                "backup" => backend.backup = true,
                "maxconn" => most = value.parse::<u32>().ok().max(most),
                "inter" => check.extend(time(&value).map(|time| format!("interval: {time}"))),
                "fastinter" => {
                    check.extend(time(&value).map(|time| format!("fastInterval: {time}")))
                }
                "fall" | "rise" => check.push(format!("{option}: {value}")),
                "port" => check.push(format!("port: {value}")),
                "send-proxy" => sends = Some("v1"),
                "send-proxy-v2" => sends = Some("v2"),
                "disabled" => document
                    .note(*line, "it is disabled: `fairway drain` takes a backend out of use"),
                "cookie" | "id" | "downinter" | "maxqueue" | "minconn" | "no-check" => {}
                other => document.note(*line, format!("`{other}` is not carried over")),
            }
        }
        if backend.weight == 0 {
            document.note(*line, "weight 0: left out");
            continue;
        }
        if backend.address.rsplit_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
            let address = backend.address;
            document.note(*line, format!("`{address}` has no port"));
            continue;
        }
        service.backends.push(backend);
    }
    limits.extend(most.map(|most| format!("backendConnections: {most}")));
    if !limits.is_empty() {
        service.fields.push(format!("limits: {{{}}}", limits.join(", ")));
    }
    check.sort();
    check.dedup_by(|a, b| a.split(':').next() == b.split(':').next());
    match (&settings.check, checked) {
        (_, false) => service.fields.push("healthCheck: {type: none}".into()),
        (Some(Check { path, host, statuses }), true) => {
            let mut words = vec!["type: http".into(), format!("path: {path:?}")];
            words.extend(host.as_ref().map(|host| format!("host: {host:?}")));
            words.extend(
                statuses
                    .as_ref()
                    .map(|list| format!("expectStatus: [{}]", list.replace(',', ", "))),
            );
            words.extend(check);
            service.fields.push(format!("healthCheck: {{{}}}", words.join(", ")));
        }
        (None, true) if check.is_empty() => {}
        (None, true) => service.fields.push(format!("healthCheck: {{{}}}", check.join(", "))),
    }
    let mut proxy: Vec<String> = sends.iter().map(|version| format!("send: {version}")).collect();
    if accepts {
        proxy.push("accept: required".into());
        proxy.push("trustedSources: [\"0.0.0.0/0\", \"::/0\"]".into());
        document.note(front.line, format!("`{name}` believes headers of the PROXY protocol from everybody: name the proxies in `trustedSources`"));
    }
    if !proxy.is_empty() {
        service.fields.push(format!("proxyProtocol: {{{}}}", proxy.join(", ")));
    }
    document.services.push(service);
}

/// Options of a server, each with its value if it has one.
fn pairs(words: &[String]) -> Vec<(String, String)> {
    let alone = [
        "check",
        "backup",
        "send-proxy",
        "send-proxy-v2",
        "disabled",
        "no-check",
        "ssl",
        "check-ssl",
        "tfo",
    ];
    let mut pairs = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let value = if alone.contains(&word.as_str()) { None } else { words.next() };
        pairs.push((word.clone(), value.cloned().unwrap_or_default()));
    }
    pairs
}

/// A time as HAProxy has it, milliseconds where nothing is said, as ours.
fn time(text: &str) -> Option<String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let count: u64 = digits.parse().ok()?;
    Some(match &text[digits.len()..] {
        "" | "ms" => format!("{count}ms"),
        "us" => format!("{}ms", count.div_ceil(1000)),
        "d" => format!("{}h", count * 24),
        unit @ ("s" | "m" | "h") => format!("{count}{unit}"),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::settled;
    use super::*;

    const CONFIG: &str = "global
  maxconn 4000
defaults
  mode tcp
  timeout connect 5s
  timeout client 1m
  timeout server 1m
  default-server inter 3s fall 2
frontend web # the site
  bind 192.0.2.1:80,192.0.2.1:443
  bind *:8080
  maxconn 500
  default_backend app
backend app
  balance leastconn
  option httpchk GET /healthz
  http-check expect status 200
  server a 10.0.0.1:8080 check weight 10
  server b 10.0.0.2:8080 check send-proxy-v2
  server c app.example.com:8080 backup check maxconn 50
listen db
  bind [2001:db8::1]:5432 accept-proxy
  server one 10.0.1.1:5432
  use_backend other if { src 10.0.0.0/8 }
backend unused
  server z 10.0.9.9:1
frontend api
  mode http
  bind 192.0.2.2:80
  default_backend app
";

    #[test]
    fn places_become_services() {
        let (text, notes) = settled(read(CONFIG, &[]));
        for part in [
            "name: web\n    addresses: [\"192.0.2.1\"]\n    ports:\n      - {port: 80, targetPort: 8080}\n      - {port: 443, targetPort: 8080}\n    scheduler: leastConnections\n",
            "timeouts: {connect: 5s, idle: 1m}",
            "limits: {serviceConnections: 500, backendConnections: 50}",
            "healthCheck: {type: http, path: \"/healthz\", expectStatus: [200], fall: 2, interval: 3s}",
            "proxyProtocol: {send: v2}",
            "- {address: \"10.0.0.1\", name: a, weight: 10}",
            "backupBackends:\n      - {address: app.example.com, name: c}",
            "name: db\n    addresses: [\"2001:db8::1\"]",
            "proxyProtocol: {accept: required, trustedSources: ",
            "healthCheck: {type: none}",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        let about = |part: &str| notes.iter().any(|note| note.contains(part));
        for part in [
            "11: `*:8080` names no address",
            "21: `db` believes headers",
            "24: `use_backend` is not carried over",
            "25: backend `unused` is nobody's default",
            "28: `api` speaks HTTP",
        ] {
            assert!(about(part), "{part} in {notes:#?}");
        }
    }

    #[test]
    fn places_without_an_address_get_those_that_are_named() {
        let addresses: [IpAddr; 1] = ["198.51.100.7".parse().unwrap()];
        let text = "listen x\n bind :80\n server a 10.0.0.1:80\n";
        let (text, notes) = settled(read(text, &addresses));
        assert!(text.contains("addresses: [\"198.51.100.7\"]"), "{text}");
        assert!(notes.is_empty(), "{notes:?}");
    }

    #[test]
    fn what_servers_have_each_for_themselves_is_named() {
        let text = "listen x\n bind 192.0.2.1:80-82\n bind 192.0.2.1:90\n server a 10.0.0.1:80 check inter 1s \
                    send-proxy-v2\n server b 10.0.0.2:80 check inter 9s weight 3\n";
        let (_, notes) = settled(read(text, &[]));
        let about = |part: &str| notes.iter().filter(|note| note.contains(part)).count();
        assert_eq!(about("servers of `x` differ in `inter`"), 1, "{notes:#?}");
        assert_eq!(about("servers of `x` differ in `send-proxy-v2`"), 1, "{notes:#?}");
        assert_eq!(about("differ in"), 2, "{notes:#?}");
        assert_eq!(about("`192.0.2.1:80-82` is not carried over"), 1, "{notes:#?}");
    }

    #[test]
    fn words_and_times_are_as_haproxy_has_them() {
        assert_eq!(split(r#"a "b c" d\ e 'f#' # g"#), ["a", "b c", "d e", "f#"]);
        for (text, want) in
            [("500", Some("500ms")), ("2s", Some("2s")), ("1d", Some("24h")), ("x", None)]
        {
            assert_eq!(time(text).as_deref(), want);
        }
    }
}
