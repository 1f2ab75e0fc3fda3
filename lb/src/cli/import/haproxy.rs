//! HAProxy's configuration: what of it is of layer 4. Each place that clients dial becomes a service with the
//! servers of its default backend.

mod serve;

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::Document;

/// Settings that a section has, or takes from the defaults.
#[derive(Debug, Clone, Default)]
struct Settings {
    http: Option<usize>,
    balance: Option<String>,
    /// Milliseconds, by HAProxy's names.
    timeouts: BTreeMap<String, (usize, u64)>,
    retries: Option<(usize, u32)>,
    redispatch: bool,
    all_backups: bool,
    /// Clients keep their server: by `stick on src`, for so long.
    sticks: bool,
    stick_seconds: Option<u64>,
    disabled: bool,
    /// `option httpchk` is on.
    asks_http: bool,
    /// What `option httpchk` and `http-check` say.
    check: Check,
    /// Of `default-server`.
    server: Vec<(String, String)>,
    maxconn: Option<u32>,
}

#[derive(Debug, Clone, Default)]
struct Check {
    /// HAProxy's own default is OPTIONS.
    method: Option<String>,
    path: Option<String>,
    host: Option<String>,
    headers: Vec<(String, String)>,
    statuses: Option<String>,
}

/// A place that clients dial.
#[derive(Debug, Clone)]
struct Bind {
    line: usize,
    place: String,
    /// With a header of the PROXY protocol.
    accepts: bool,
    /// Any address of IPv6 stands for those of IPv4, too.
    both: bool,
}

/// A section with places to dial, servers, or both.
#[derive(Debug, Clone, Default)]
struct Section {
    name: String,
    line: usize,
    settings: Settings,
    binds: Vec<Bind>,
    default_backend: Option<(usize, String)>,
    servers: Vec<(usize, Vec<String>)>,
}

/// Reads a configuration; places without an address get `addresses`.
pub(super) fn read(text: &str, addresses: &[IpAddr]) -> Document {
    let mut document = Document::default();
    let mut defaults = Settings::default();
    let mut named: BTreeMap<String, Settings> = BTreeMap::new();
    let mut now = String::new();
    let mut sections: Vec<(String, String, Section)> = Vec::new();
    let mut kind = String::new();
    for (number, line) in (1..).zip(text.lines()) {
        let words = split(line);
        let Some(first) = words.first().map(String::as_str) else { continue };
        match first {
            "global" | "defaults" | "frontend" | "backend" | "listen" | "peers" | "resolvers"
            | "userlist" | "program" | "cache" | "mailers" | "ring" | "http-errors"
            | "log-forward" | "log-profile" | "fcgi-app" | "crt-store" | "traces" | "acme" => {
                if kind == "defaults" {
                    named.insert(std::mem::take(&mut now), defaults.clone());
                }
                kind = first.to_owned();
                let name = words.get(1).filter(|name| *name != "from").cloned().unwrap_or_default();
                let from = words.iter().skip_while(|word| *word != "from").nth(1);
                let inherited = from.map(|from| named.get(from).cloned().unwrap_or_default());
                match first {
                    "frontend" | "backend" | "listen" => {
                        let settings = inherited.unwrap_or_else(|| defaults.clone());
                        let section = Section {
                            name: name.clone(),
                            line: number,
                            settings,
                            ..Section::default()
                        };
                        sections.push((kind.clone(), name, section));
                    }
                    // Each begins anew.
                    "defaults" => {
                        defaults = inherited.unwrap_or_default();
                        now = name;
                    }
                    "global" => {}
                    other => document.note(number, format!("`{other}` is not carried over")),
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
                "global" => global(&mut document, number, &words),
                // It was named where it begins.
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
                    document.lost(*line, format!("there is no backend `{backend}`"));
                    continue;
                }
            },
            (None, "listen") => section,
            (None, _) => {
                document.lost(
                    section.line,
                    format!("frontend `{name}` has no `default_backend` and is left out"),
                );
                continue;
            }
        };
        if section.settings.disabled || pool.settings.disabled {
            document.note(section.line, format!("`{name}` is disabled there, and left out"));
            continue;
        }
        if pool.servers.is_empty() {
            document.lost(section.line, format!("`{name}` has no servers, and is left out"));
            continue;
        }
        serve::serve(&mut document, name, section, pool, addresses);
    }
    for (_, name, section) in sections.iter().filter(|(kind, ..)| kind == "backend") {
        if !used.contains(&name.as_str()) {
            document.lost(
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
                word.push(match c {
                    'r' => '\r',
                    'n' => '\n',
                    't' => '\t',
                    c => c,
                });
                escaped = false;
            }
            ('\\', None | Some('"')) => escaped = true,
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

/// What is of HAProxy's process, not of what it carries.
fn global(document: &mut Document, line: usize, words: &[String]) {
    match words[0].as_str() {
        "maxconn" => document.note(
            line,
            "`maxconn` of the process: here it is bounded by its descriptors (`LimitNOFILE=`), a service by \
             `limits`",
        ),
        word => document.note(line, format!("`{word}` is of HAProxy's process")),
    }
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
        ("bind", Some(section)) => bind(document, line, words, section),
        ("default_backend", Some(section)) => {
            section.default_backend = Some((line, word(1).into()))
        }
        ("server", Some(section)) => section.servers.push((line, words[1..].to_vec())),
        ("mode", _) => settings.http = (word(1) == "http").then_some(line),
        ("balance", _) => settings.balance = Some(words[1..].join(" ")),
        ("timeout", _) => match (word(1), milliseconds(word(2))) {
            (
                name @ ("connect" | "client" | "server" | "tunnel" | "client-fin" | "server-fin"
                | "check"),
                Some(time),
            ) => _ = settings.timeouts.insert(name.into(), (line, time)),
            ("queue", _) => document.note(
                line,
                "`timeout queue`: nothing waits in a queue, a full backend is passed over",
            ),
            (name, Some(_)) => {
                document.note(line, format!("`timeout {name}` is of HTTP, or of stick tables"))
            }
            (name, None) => document.lost(line, format!("`timeout {name} {}` is no time", word(2))),
        },
        ("maxconn", _) => settings.maxconn = word(1).parse().ok(),
        ("retries", _) => settings.retries = word(1).parse().ok().map(|count| (line, count)),
        ("default-server", _) => settings.server.extend(pairs(&words[1..])),
        ("option", _) => option(document, line, (word(1), true), words, settings),
        ("no", _) if word(1) == "option" => {
            option(document, line, (word(2), false), words, settings);
        }
        ("no", _) => document.note(line, format!("`no {}` is not carried over", word(1))),
        ("http-check", _) => http_check(document, line, words, settings),
        ("disabled", Some(_)) => settings.disabled = true,
        ("enabled", Some(_)) => settings.disabled = false,
        ("stick-table", _) => {
            let after = |name: &str| words.iter().skip_while(|word| *word != name).nth(1);
            let expires = after("expire").and_then(|time| milliseconds(time));
            settings.stick_seconds = expires.map(|time| time.div_ceil(1000));
            if after("peers").is_some() {
                document.note(
                    line,
                    "`peers`: what clients keep is handed on at an upgrade, not to other boxes",
                );
            }
        }
        ("stick", _) if words[1..].iter().eq(["on", "src"].iter()) => settings.sticks = true,
        ("acl", _) => {
            document.lost(line, "`acl`: what it decides is lost where it is used".to_owned())
        }
        ("tcp-request" | "http-request", _) => document.lost(
            line,
            format!(
                "`{} {}` is not carried over; `loadBalancerSourceRanges`, `denySourceRanges` and \
                 `limits` may do for addresses",
                word(0),
                word(1)
            ),
        ),
        (
            name @ ("log" | "log-format" | "log-tag" | "log-format-sd" | "unique-id-format"
            | "unique-id-header" | "capture" | "description" | "id" | "fullconn"
            | "errorfile" | "errorfiles" | "stats" | "monitor-uri" | "email-alert"
            | "compression" | "http-reuse" | "backlog" | "bind-process" | "hash-type"
            | "http-response"),
            _,
        ) => document.note(line, format!("`{name}` is not carried over")),
        (other, _) => document.lost(line, format!("`{other}` is not carried over")),
    }
}

/// Where clients dial.
fn bind(document: &mut Document, line: usize, words: &[String], section: &mut Section) {
    let (mut accepts, mut both, mut further) = (false, false, words.iter().skip(2));
    while let Some(word) = further.next() {
        match word.as_str() {
            "accept-proxy" => accepts = true,
            "v4v6" => both = true,
            "accept-netscaler-cip" => {
                further.next();
                document.lost(line, "`accept-netscaler-cip`: its headers are not understood");
            }
            "ssl" => document.lost(
                line,
                "`ssl`: TLS is not ended here, clients are passed on as they are".to_owned(),
            ),
            // Each with a value that follows.
            "crt" | "alpn" | "ca-file" | "verify" | "ciphers" | "name" | "process" | "thread"
            | "backlog" | "maxconn" | "interface" | "mss" | "nice" | "id" | "tcp-ut"
            | "ssl-min-ver" | "crt-list" => {
                further.next();
                match word.as_str() {
                    "interface" | "maxconn" | "verify" => {
                        document.lost(line, format!("`{word}` of a `bind` is not carried over"));
                    }
                    _ => document.note(line, format!("`{word}` of a `bind` is not carried over")),
                }
            }
            _ => document.note(line, format!("`{word}` of a `bind` is not carried over")),
        }
    }
    for place in words.get(1).map(String::as_str).unwrap_or_default().split(',') {
        section.binds.push(Bind { line, place: place.to_owned(), accepts, both });
    }
}

/// `option NAME`, or `no option NAME`.
fn option(
    document: &mut Document,
    line: usize,
    (name, on): (&str, bool),
    words: &[String],
    settings: &mut Settings,
) {
    match name {
        "httpchk" => {
            settings.asks_http = on;
            let check = &mut settings.check;
            // [METHOD] PATH [VERSION, with headers behind it as they are sent]
            match &words[2.min(words.len())..] {
                [] => {}
                [path] => check.path = Some(path.clone()),
                [method, path, ..] => {
                    (check.method, check.path) = (Some(method.clone()), Some(path.clone()));
                }
            }
            let sent = words.get(4..).unwrap_or_default().join(" ");
            for (name, value) in sent.lines().filter_map(|line| line.split_once(':')) {
                check.header(name.trim(), value.trim());
            }
        }
        "redispatch" => settings.redispatch = on,
        "allbackups" => settings.all_backups = on,
        "tcpka" | "clitcpka" | "srvtcpka" => {
            document.note(line, format!("`option {name}`: connections are always kept alive"));
        }
        // What follows it is named by its own lines.
        "tcp-check" => settings.asks_http = false,
        "mysql-check" | "pgsql-check" | "redis-check" | "ldap-check" | "smtpchk" | "ssl-hello-chk"
        | "spop-check" | "external-check"
            if on =>
        {
            settings.asks_http = false;
            document.lost(line, format!("`option {name}`: servers are checked by a connection alone"));
        }
        "forwardfor" if on => document.lost(
            line,
            "`option forwardfor`: requests are not looked at; `proxyProtocol: {send: v2}` tells backends of clients",
        ),
        "tcplog" | "httplog" | "dontlognull" | "dontlog-normal" | "log-health-checks"
        | "log-separate-errors" | "logasap" | "http-server-close" | "http-keep-alive"
        | "httpclose" | "forceclose" | "splice-auto" | "splice-request" | "splice-response"
        | "tcp-smart-accept" | "tcp-smart-connect" | "contstats" | "nolinger" | "abortonclose"
        | "socket-stats" | "forwardfor" | "http-use-htx" | "prefer-last-server" => {
            document.note(line, format!("`option {name}` is not carried over"));
        }
        other => document.lost(line, format!("`option {other}` is not carried over")),
    }
}

impl Check {
    fn header(&mut self, name: &str, value: &str) {
        match name.eq_ignore_ascii_case("host") {
            true => self.host = Some(value.into()),
            false => self.headers.push((name.into(), value.into())),
        }
    }
}

/// How servers are asked for their health by HTTP.
fn http_check(document: &mut Document, line: usize, words: &[String], settings: &mut Settings) {
    let word = |n: usize| words.get(n).map(String::as_str).unwrap_or_default();
    let check = &mut settings.check;
    match word(1) {
        "expect" if word(2) == "status" => check.statuses = Some(word(3).into()),
        "send" => {
            let mut words = words.iter().skip(2).map(String::as_str);
            while let Some(word) = words.next() {
                match (word, words.next().unwrap_or_default()) {
                    ("uri", path) => check.path = Some(path.into()),
                    ("meth", method) => check.method = Some(method.into()),
                    ("hdr", name) => check.header(name, words.next().unwrap_or_default()),
                    ("ver", _) => {}
                    (other, _) => document
                        .lost(line, format!("`{other}` of `http-check send` is not carried over")),
                }
            }
        }
        other => document.lost(line, format!("`http-check {other}` is not carried over")),
    }
}

/// Options of a server that have a value; others, and those that are not known, are taken to have none, so that
/// none swallows the one behind it.
const VALUED: &[&str] = &[
    "addr",
    "agent-addr",
    "agent-inter",
    "agent-port",
    "agent-send",
    "alpn",
    "ca-file",
    "check-alpn",
    "check-proto",
    "check-sni",
    "ciphers",
    "ciphersuites",
    "client-sigalgs",
    "cookie",
    "crl-file",
    "crt",
    "curves",
    "downinter",
    "error-limit",
    "fall",
    "fastinter",
    "hash-key",
    "id",
    "init-addr",
    "inter",
    "interface",
    "log-bufsize",
    "log-proto",
    "max-reuse",
    "maxconn",
    "maxqueue",
    "minconn",
    "namespace",
    "npn",
    "observe",
    "on-error",
    "on-marked-down",
    "on-marked-up",
    "pool-low-conn",
    "pool-max-conn",
    "pool-purge-delay",
    "port",
    "proto",
    "proxy-v2-options",
    "redir",
    "resolve-net",
    "resolve-opts",
    "resolve-prefer",
    "resolvers",
    "rise",
    "shard",
    "sigalgs",
    "slowstart",
    "sni",
    "socks4",
    "source",
    "ssl-max-ver",
    "ssl-min-ver",
    "tcp-ut",
    "track",
    "usesrc",
    "verify",
    "verifyhost",
    "weight",
    "ws",
];

/// Options of a server, each with its value if it has one.
fn pairs(words: &[String]) -> Vec<(String, String)> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let value = if VALUED.contains(&word.as_str()) { words.next() } else { None };
        pairs.push((word.clone(), value.cloned().unwrap_or_default()));
    }
    pairs
}

/// A time as HAProxy has it, milliseconds where nothing is said.
fn milliseconds(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let count: u64 = digits.parse().ok()?;
    let unit = match &text[digits.len()..] {
        "us" => return Some(count.div_ceil(1000)),
        "" | "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    count.checked_mul(unit)
}

/// A time as ours are written.
fn time(milliseconds: u64) -> String {
    let units = [(3_600_000, "h"), (60_000, "m"), (1000, "s")];
    let unit =
        units.into_iter().find(|(size, _)| milliseconds > 0 && milliseconds.is_multiple_of(*size));
    unit.map_or(format!("{milliseconds}ms"), |(size, unit)| {
        format!("{}{unit}", milliseconds / size)
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
            "limits: {serviceConnections: 500}",
            "healthCheck: {type: http, path: \"/healthz\", expectStatus: [200], fall: 2, interval: 3s, timeout: 3s}",
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
            "2: `maxconn` of the process",
            "11: lost: `*:8080` names no address",
            "19: lost: `send-proxy-v2` of this server alone",
            "21: `db` believes headers",
            "24: lost: `use_backend` is not carried over",
            "25: lost: backend `unused` is nobody's default",
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
        let text = "listen x\n bind 192.0.2.1:80-82\n bind 192.0.2.1:90\n server a 10.0.0.1 check port 80 inter 1s \
                    send-proxy-v2\n server b 10.0.0.2 check port 80 inter 9s weight 3\n server c 10.0.0.3 check port \
                    80 inter 1s agent-check agent-port 99 backup\n server d 10.0.0.4:+1 check\n server e unix@/run/e\n";
        let (text, notes) = settled(read(text, &[]));
        let wanted = [
            "4: lost: `send-proxy-v2` of this server alone is not carried over: the others of `x` have none",
            "5: lost: `inter 9s` of this server alone is not carried over: the others of `x` have `1s`",
            "6: lost: `agent-check` of this server alone",
            "6: lost: `agent-port 99` of this server alone",
            "7: lost: `10.0.0.4:+1` is no address and port, and is left out",
            "8: lost: `unix@/run/e` is no address",
        ];
        assert_eq!(notes.len(), wanted.len(), "{notes:#?}");
        for wanted in wanted {
            assert!(notes.iter().any(|note| note.starts_with(wanted)), "{wanted} in {notes:#?}");
        }
        for part in [
            "- port: 80-82\n      - port: 90\n",
            "healthCheck: {interval: 1s, port: 80, timeout: 1s}",
            "- {address: \"10.0.0.2\", name: b, weight: 3}",
            "backupBackends:\n      - {address: \"10.0.0.3\", name: c}",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }

    #[test]
    fn checks_agents_and_clients_that_keep_their_server() {
        let text = "listen x\n bind 192.0.2.1:80\n balance random(2)\n stick-table type ip size 1m expire 30m\n stick on \
                    src\n option httpchk OPTIONS /x HTTP/1.1\\r\\nHost:\\ www\\r\\nX-A:\\ b\n server a 10.0.0.1:80 check \
                    agent-check agent-port 99 agent-inter 5s\n server b 10.0.0.2:80 check agent-check agent-port 99 \
                    agent-inter 5s backup\n server c 10.0.0.3:80 check agent-check agent-port 99 agent-inter 5s backup\n\
                    listen y\n bind :81\n bind [::]:81\n disabled\n server a 10.0.0.1:80\n\
                    listen z\n bind [::]:82\n server a 10.0.0.1:80\n";
        let (text, notes) = settled(read(text, &["198.51.100.7".parse().unwrap()]));
        for part in [
            "scheduler: powerOfTwo",
            "sessionAffinity: ClientIP\n    sessionAffinityTimeout: 1800s",
            "healthCheck: {type: http, path: \"/x\", host: \"www\", headers: {\"X-A\": \"b\"}, timeout: 2s}",
            "agentCheck: {port: 99, interval: 5s}",
            "- {address: \"10.0.0.1:80\", name: a, priority: 0}",
            "- {address: \"10.0.0.2:80\", name: b, priority: 1}",
            "- {address: \"10.0.0.3:80\", name: c, priority: 2}",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        let wanted = [
            "1: lost: checks of `x` ask by GET, not by OPTIONS",
            "16: lost: `[::]:82` names no address, and is left out: say by `--address` which clients dial",
            "10: `y` is disabled there, and left out",
        ];
        assert_eq!(notes.len(), wanted.len(), "{notes:#?}");
        for (note, wanted) in notes.iter().zip(wanted) {
            assert!(note.starts_with(wanted), "{note}");
        }
    }

    #[test]
    fn nothing_is_dropped_without_a_word() {
        let text = "global\n chroot /var/lib/haproxy\n log /dev/log local0\ndefaults\n log global\n retries 2\n \
                    timeout connect 5s\n timeout client 1m\n timeout server 30s\n timeout check 2s\n timeout queue 9s\n \
                    timeout http-request 10s\nlisten x\n bind 192.0.2.1:80 name web interface eth0\n fullconn 10\n acl \
                    bad src 10.0.0.0/8\n tcp-request connection reject if bad\n option mysql-check\n server a \
                    10.0.0.1:80 check maxconn 5 minconn 2\n server b 10.0.0.2:80 check maxconn 5 minconn 2\n";
        let (text, notes) = settled(read(text, &[]));
        for part in [
            "timeouts: {connect: 5s, idle: 1m}",
            "retry: {attempts: 3}",
            "healthCheck: {timeout: 2s}",
            "limits: {backendConnections: 5}",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        for part in [
            "14: lost: `interface` of a `bind`",
            "16: lost: `acl`",
            "17: lost: `tcp-request connection`",
            "18: lost: `option mysql-check`",
            "2: `chroot` is of HAProxy's process",
            "3: `log` is of HAProxy's process",
            "5: `log` is not carried over",
            "6: `retries 2`",
            "9: `timeout client` and `timeout server`",
            "11: `timeout queue`",
            "12: `timeout http-request`",
            "14: `name` of a `bind`",
            "15: `fullconn`",
            "19,20: `minconn`",
            "13: `maxconn` of servers of `x`",
        ] {
            assert!(notes.iter().any(|note| note.starts_with(part)), "{part} in {notes:#?}");
        }
        assert_eq!(notes.len(), 15, "{notes:#?}");
    }

    #[test]
    fn places_are_no_more_than_there_were() {
        let text = "defaults base\n timeout client 1m\ndefaults other from base\n timeout connect 3s\ndefaults\n retries \
                    3\nfrontend web from other\n bind 203.0.113.1:80\n bind 10.0.0.1:8080\n bind 203.0.113.2:80\n bind \
                    203.0.113.1:81 accept-proxy\n bind :::82 v4v6\n default_backend app\nbackend app from other\n option httpchk\n \
                    option tcp-check\n server a 2001:db8::1:80 check\n server b 10.0.0.2:80 no-check\n server c \
                    10.0.0.3:80 check disabled\nlog-forward x\n bind 192.0.2.9:514\nlisten stats\n bind 192.0.2.1:9\n \
                    stats enable\n";
        let both = ["198.51.100.7".parse().unwrap(), "2001:db8::7".parse().unwrap()];
        let (text, notes) = settled(read(text, &both));
        for part in [
            "addresses: [\"203.0.113.1\", \"203.0.113.2\"]\n    ports:\n      - port: 80\n",
            "addresses: [\"10.0.0.1\"]\n    ports:\n      - port: 8080\n",
            "addresses: [\"198.51.100.7\", \"2001:db8::7\"]\n    ports:\n      - port: 82\n",
            "addresses: [\"203.0.113.1\"]\n    ports:\n      - port: 81\n",
            "timeouts: {connect: 3s, idle: 1m}",
            "healthCheck: {timeout: 2s}",
            "- {address: \"[2001:db8::1]:80\", name: a}",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert_eq!(text.matches("accept: required").count(), 1, "{text}");
        assert!(!text.contains("10.0.0.3") && !text.contains("retry:"), "{text}");
        for part in [
            "18: lost: no `check` of this server alone",
            "19: lost: a disabled server is left out",
            "22: lost: `stats` has no servers",
            "20: `log-forward` is not carried over",
        ] {
            assert!(notes.iter().any(|note| note.starts_with(part)), "{part} in {notes:#?}");
        }
    }

    #[test]
    fn words_and_times_are_as_haproxy_has_them() {
        assert_eq!(split(r#"a "b c" d\ e 'f#' # g"#), ["a", "b c", "d e", "f#"]);
        for (text, want) in [
            ("500", Some("500ms")),
            ("90s", Some("90s")),
            ("120s", Some("2m")),
            ("1d", Some("24h")),
            ("7us", Some("1ms")),
            ("x", None),
        ] {
            assert_eq!(milliseconds(text).map(time).as_deref(), want);
        }
    }
}
