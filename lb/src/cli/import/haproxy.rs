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
    let mut sections: Vec<(String, Section)> = Vec::new();
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
                        let section =
                            Section { name, line: number, settings, ..Section::default() };
                        sections.push((kind.clone(), section));
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
                    if let Some((_, section)) = sections.last_mut() {
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
        .map(|(_, section)| (section.name.as_str(), section))
        .collect();
    let mut used = Vec::new();
    for (kind, section) in sections.iter().filter(|(kind, ..)| kind != "backend") {
        let name = &section.name;
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
        serve::serve(&mut document, section, pool, addresses);
    }
    for (_, section) in sections.iter().filter(|(kind, ..)| kind == "backend") {
        let name = &section.name;
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
const VALUED: &str = "addr agent-addr agent-inter agent-port agent-send alpn ca-file check-alpn check-proto check-sni \
    ciphers ciphersuites client-sigalgs cookie crl-file crt curves downinter error-limit fall \
    fastinter hash-key id init-addr inter interface log-bufsize log-proto max-reuse maxconn \
    maxqueue minconn namespace npn observe on-error on-marked-down on-marked-up pool-low-conn \
    pool-max-conn pool-purge-delay port proto proxy-v2-options redir resolve-net resolve-opts \
    resolve-prefer resolvers rise shard sigalgs slowstart sni socks4 source ssl-max-ver ssl-min-ver \
    tcp-ut track usesrc verify verifyhost weight ws";

/// Options of a server, each with its value if it has one.
fn pairs(words: &[String]) -> Vec<(String, String)> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let value = if VALUED.split(' ').any(|it| it == word) { words.next() } else { None };
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
mod tests;
