//! keepalived's configuration: virtual servers, and the groups of VRRP.
//!
//! What of it is looked at is marked; in the end everything else is told of.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};

use super::{
    Backend, Document, Group, Port, Service, arranged, by_weight, quoted, scheduler_of_ipvs,
};

/// Words that do not decide who is served, or where.
const TRIFLES: &[&str] = &[
    "debug",
    "dont_track_primary",
    "garp_lower_prio_delay",
    "garp_lower_prio_repeat",
    "garp_master_delay",
    "garp_master_refresh",
    "garp_master_refresh_repeat",
    "garp_master_repeat",
    "ha_suspend",
    "inhibit_on_failure",
    "log_all_failures",
    "notify",
    "notify_backup",
    "notify_down",
    "notify_fault",
    "notify_master",
    "notify_stop",
    "notify_up",
    "omega",
    "quorum_down",
    "quorum_up",
    "smtp_alert",
    "smtp_alerts",
    "state",
    "warmup",
];

/// A word with what stands behind it, and what is between braces below it.
#[derive(Debug, Clone)]
struct Node {
    line: usize,
    words: Vec<String>,
    below: Vec<Node>,
    /// Words that were looked at.
    seen: Cell<usize>,
}

impl Node {
    fn name(&self) -> &str {
        self.words.first().map(String::as_str).unwrap_or_default()
    }

    /// A word, which is then looked at with those before it.
    fn word(&self, n: usize) -> &str {
        self.seen.set(self.seen.get().max(n + 1));
        self.words.get(n).map(String::as_str).unwrap_or_default()
    }

    /// All of it is looked at, or told of as a whole.
    fn settle(&self) {
        self.seen.set(self.words.len());
        self.below.iter().for_each(Self::settle);
    }

    fn all<'n>(&'n self, name: &'n str) -> impl Iterator<Item = &'n Self> {
        self.below.iter().filter(move |node| node.name().eq_ignore_ascii_case(name))
    }

    fn find(&self, name: &str) -> Option<&Self> {
        self.below.iter().find(|node| node.name().eq_ignore_ascii_case(name))
    }

    /// What stands behind a word below it.
    fn value(&self, name: &str) -> Option<&str> {
        self.find(name).map(|node| node.word(1)).filter(|value| !value.is_empty())
    }

    /// Tells of what nobody has looked at.
    fn tell_rest(&self, document: &mut Document) {
        let seen = self.seen.get();
        let rest = self.words.get(seen..).unwrap_or_default().join(" ");
        let text = match (seen, rest.is_empty()) {
            (0, _) => format!("`{rest}` is not carried over"),
            (_, false) => format!("`{rest}` behind `{}` is not carried over", self.name()),
            (_, true) => String::new(),
        };
        if !text.is_empty() {
            document.say(self.line, !TRIFLES.contains(&self.name()), text);
        }
        if seen > 0 {
            self.below.iter().for_each(|node| node.tell_rest(document));
        }
    }
}

/// Reads a configuration.
pub(super) fn read(text: &str) -> Document {
    let mut document = Document::default();
    let tree = tree(text, &mut document);
    let groups: Vec<&Node> = tree.iter().filter(|it| it.name() == "virtual_server_group").collect();
    let globals = || tree.iter().filter(|it| it.name() == "global_defs");
    let is_three = globals().any(|node| node.value("vrrp_version") == Some("3"));
    for node in &tree {
        match node.name() {
            "virtual_server" => serve(&mut document, node, &groups),
            "vrrp_instance" => group(&mut document, node, is_three),
            "global_defs" => {
                for below in node.below.iter().filter(|it| it.name() != "vrrp_version") {
                    document
                        .note(below.line, format!("of keepalived's process: `{}`", below.name()));
                }
                node.settle();
            }
            what @ ("vrrp_script" | "vrrp_sync_group" | "vrrp_track_process" | "track_file") => {
                document.lost(
                    node.line,
                    format!("`{what}` is not carried over: `announce.vrrp[].track` follows interfaces and services"),
                );
                node.settle();
            }
            _ => {}
        }
    }
    tree.iter().for_each(|node| node.tell_rest(&mut document));
    document
}

/// The braces of a text.
fn tree(text: &str, document: &mut Document) -> Vec<Node> {
    let mut stack: Vec<Vec<Node>> = vec![Vec::new()];
    for (line, content) in (1..).zip(text.lines()) {
        let content = content.split(['#', '!']).next().unwrap_or_default();
        let spaced = content.replace('{', " { ").replace('}', " } ");
        let mut words = Vec::new();
        for word in spaced.split_whitespace() {
            match word {
                "{" => {
                    push(&mut stack, line, &mut words);
                    stack.push(Vec::new());
                }
                "}" => {
                    push(&mut stack, line, &mut words);
                    match stack.pop() {
                        Some(below) if !stack.is_empty() => {
                            if let Some(node) = stack.last_mut().and_then(|nodes| nodes.last_mut())
                            {
                                node.below = below;
                            }
                        }
                        _ => {
                            document.lost(line, "a brace closes nothing");
                            stack = vec![Vec::new()];
                        }
                    }
                }
                word => words.push(word.trim_matches('"').to_owned()),
            }
        }
        push(&mut stack, line, &mut words);
    }
    while stack.len() > 1 {
        let below = stack.pop().unwrap_or_default();
        if let Some(node) = stack.last_mut().and_then(|nodes| nodes.last_mut()) {
            document.lost(node.line, "a brace is missing");
            node.below = below;
        }
    }
    stack.pop().unwrap_or_default()
}

fn push(stack: &mut [Vec<Node>], line: usize, words: &mut Vec<String>) {
    if !words.is_empty()
        && let Some(nodes) = stack.last_mut()
    {
        nodes.push(Node {
            line,
            words: std::mem::take(words),
            below: Vec::new(),
            seen: Cell::new(0),
        });
    }
}

fn serve(document: &mut Document, node: &Node, groups: &[&Node]) {
    let mut service = Service::default();
    let protocol = match node.value("protocol").unwrap_or("TCP") {
        "UDP" => "UDP",
        "SCTP" => "SCTP",
        _ => "TCP",
    };
    let Some(places) = places(document, node, groups, &mut service, protocol) else {
        return node.settle();
    };
    let places = places
        .into_iter()
        .map(|(ip, port)| (ip, Port { port, last: None, protocol, target: None }));
    let places = arranged(places);
    let kind = node.value("lb_kind").or(node.value("lvs_method")).unwrap_or("NAT");
    service.mode = Some(match kind {
        "DR" => "dsr",
        "TUN" => "ipip",
        _ => "nat",
    });
    let scheduler = node.value("lb_algo").or(node.value("lvs_sched")).unwrap_or("wlc");
    service.scheduler = scheduler_of_ipvs(scheduler);
    if service.scheduler.is_none() && scheduler != "fo" {
        document
            .lost(node.line, format!("scheduler `{scheduler}` has no counterpart; maglev is used"));
    }
    service.affinity_seconds =
        node.find("persistence_timeout").map(|it| it.word(1).parse().unwrap_or(360));
    let mut check = None;
    let dialled = places.first().and_then(|(_, ports)| ports.first()).map_or(0, |port| port.port);
    for real in node.all("real_server") {
        real_server(document, node, (real, dialled), &mut service, &mut check);
    }
    for sorry in node.all("sorry_server") {
        match (sorry.word(1).parse::<IpAddr>(), sorry.word(2).parse()) {
            (Ok(ip), Ok(port)) => {
                let address = SocketAddr::new(ip, port).to_string();
                let backend = Backend { address, weight: 1, backup: true, ..Backend::default() };
                add(document, sorry, &mut service, backend);
            }
            _ => document
                .lost(sorry.line, format!("`{}` has no address and port", sorry.words.join(" "))),
        }
    }
    if scheduler == "fo" {
        by_weight(&mut service);
    }
    let check = check.and_then(|(_, check)| check);
    if let Some(sorry) = node.find("sorry_server").filter(|_| check.is_some()) {
        document.lost(
            sorry.line,
            "keepalived does not check its `sorry_server`: here it is checked as the real servers are",
        );
    }
    service.fields.push(check.unwrap_or_else(|| "healthCheck: {type: none}".into()));
    for (addresses, ports) in places {
        document.services.push(Service { addresses, ports, ..service.clone() });
    }
}

/// Where clients dial; none when nothing can be made of it, which is then told.
fn places(
    document: &mut Document,
    node: &Node,
    groups: &[&Node],
    service: &mut Service,
    protocol: &str,
) -> Option<Vec<(IpAddr, u16)>> {
    let mut places = Vec::new();
    match node.word(1) {
        "group" => {
            let name = node.word(2);
            let Some(group) = groups.iter().find(|group| group.word(1) == name) else {
                document.lost(node.line, format!("there is no virtual_server_group `{name}`"));
                return None;
            };
            service.name = name.into();
            for place in &group.below {
                match (place.word(0).parse::<IpAddr>(), place.word(1).parse::<u16>()) {
                    (Ok(ip), Ok(port @ 1..)) => places.push((ip, port)),
                    _ => {
                        document.lost(
                            place.line,
                            format!("`{}` is not carried over", place.words.join(" ")),
                        );
                        place.settle();
                    }
                }
            }
            if places.is_empty() {
                document
                    .lost(node.line, format!("`{name}` is left out: it has no address and port"));
                return None;
            }
        }
        "fwmark" => {
            document.lost(
                node.line,
                "a virtual server by firewall mark is left out: list its addresses and ports",
            );
            return None;
        }
        address => match (address.parse::<IpAddr>(), node.word(2).parse::<u16>()) {
            (Ok(_), Ok(0)) => {
                document.lost(
                    node.line,
                    "a virtual server for every port is left out: write `port: 1-65535`",
                );
                return None;
            }
            (Ok(ip), Ok(port)) => {
                service.name = format!("{ip}-{port}-{}", protocol.to_lowercase());
                places.push((ip, port));
            }
            _ => {
                document.lost(
                    node.line,
                    format!("`{address} {}` is no address and port", node.word(2)),
                );
                return None;
            }
        },
    }
    Some(places)
}

/// Takes a backend; `check` is that of the first, with its line.
fn real_server(
    document: &mut Document,
    node: &Node,
    (real, dialled): (&Node, u16),
    service: &mut Service,
    check: &mut Option<(usize, Option<String>)>,
) {
    let (address, port) = (real.word(1), real.word(2));
    let Ok(ip) = address.parse::<IpAddr>() else {
        document.lost(real.line, format!("`{address}` is no address"));
        return real.settle();
    };
    let weight = real.value("weight").or(node.value("weight"));
    let weight = weight.and_then(|it| it.parse().ok()).unwrap_or(1);
    if weight == 0 {
        document.lost(real.line, format!("{address} has weight 0 and is left out"));
        return real.settle();
    }
    let port = port.parse().unwrap_or(dialled);
    if service.mode != Some("nat") && port != dialled {
        document.lost(
            real.line,
            format!("{ip}: packets keep the port that was dialled, not {port}, in this mode"),
        );
    }
    let address = SocketAddr::new(ip, port).to_string();
    let own = checked(document, node, real);
    match check {
        None => *check = Some((real.line, own)),
        Some((line, first)) if *first != own => document.lost(
            real.line,
            format!(
                "{address} is checked in another way than the real server of line {line}, whose way is that of \
                 the whole service"
            ),
        ),
        Some(_) => {}
    }
    add(document, real, service, Backend { address, weight, ..Backend::default() });
}

fn add(document: &mut Document, node: &Node, service: &mut Service, backend: Backend) {
    if backend.address.parse::<SocketAddr>().is_ok_and(|addr| addr.ip().is_loopback()) {
        let address = &backend.address;
        document.lost(
            node.line,
            format!("packets cannot be forwarded to {address}: write an address that others reach"),
        );
    }
    service.backends.push(backend);
}

/// How a real server is checked.
fn checked(document: &mut Document, service: &Node, real: &Node) -> Option<String> {
    let of = |name: &str| real.find(name);
    let mut words = Vec::new();
    let loops = service.value("delay_loop").and_then(|it| it.parse::<f64>().ok()).unwrap_or(60.0);
    // Retries, and seconds before one, where nothing is said.
    let (mut retries, mut before) = (1, 1.0);
    let node = if let Some(node) = of("TCP_CHECK") {
        words.push("type: tcp".to_owned());
        node
    } else if let Some(node) = of("HTTP_GET").or(of("SSL_GET")) {
        (retries, before) = (3, 3.0);
        http(document, node, &mut words);
        node
    } else if let Some(node) = of("PING_CHECK") {
        words.push("type: icmp".to_owned());
        node
    } else if let Some(node) = of("DNS_CHECK") {
        (retries, before) = (3, loops);
        words.push("type: dns".to_owned());
        words.push(format!("query: {:?}", node.value("name").unwrap_or(".")));
        words.push(format!("record: {}", node.value("type").unwrap_or("SOA")));
        node
    } else if let Some(node) = of("MISC_CHECK") {
        let path = node.find("misc_path");
        path.iter().for_each(|path| path.settle());
        let command = path.map(|it| it.words[1..].to_vec()).unwrap_or_default();
        let command: Vec<String> = command.iter().map(|word| format!("{word:?}")).collect();
        words.push(format!("type: exec, command: [{}]", command.join(", ")));
        retries = 0;
        let limit = node.value("misc_timeout").map(|limit| format!("{limit}s"));
        words.push(format!("timeout: {}", limit.unwrap_or_else(|| format!("{loops}s"))));
        document.note(node.line, "the program is told of the backend by FAIRWAY_ADDRESS and FAIRWAY_PORT, the same for all");
        node
    } else {
        return None;
    };
    node.word(0);
    words.extend(node.value("connect_port").map(|port| format!("port: {port}")));
    words.extend(node.value("bindto").map(|from| format!("source: {from:?}")));
    let seconds = |name: &str, default: Option<f64>| {
        let value = [node, real, service].into_iter().find_map(|node| node.value(name));
        let value = value.and_then(|value| value.parse::<f64>().ok()).or(default)?;
        Some(format!("{}ms", (value * 1000.0).round().max(1.0) as u64))
    };
    // Where nothing is said, as keepalived has it.
    if !words.iter().any(|word| word.starts_with("timeout")) {
        words.extend(seconds("connect_timeout", Some(5.0)).map(|time| format!("timeout: {time}")));
    }
    words.extend(seconds("delay_loop", Some(60.0)).map(|time| format!("interval: {time}")));
    words.extend(
        seconds("delay_before_retry", Some(before)).map(|time| format!("fastInterval: {time}")),
    );
    let retry = [node, real, service].into_iter().find_map(|node| node.value("retry"));
    let retry = retry.and_then(|count| count.parse::<u32>().ok()).unwrap_or(retries);
    words.push(format!("fall: {}", retry.saturating_add(1)));
    words.push("rise: 1".into());
    if [real, service].into_iter().any(|node| node.find("alpha").map(|it| it.word(1)).is_some()) {
        words.push("initialState: down".into());
    }
    Some(format!("healthCheck: {{{}}}", words.join(", ")))
}

fn http(document: &mut Document, node: &Node, words: &mut Vec<String>) {
    let secure = node.name() == "SSL_GET";
    words.push(format!("type: {}", if secure { "https" } else { "http" }));
    if secure {
        words.push("tls: {verify: false}".into());
    }
    let mut host = node.value("virtualhost");
    let urls: Vec<&Node> = node.all("url").collect();
    if let Some(url) = urls.first() {
        url.word(0);
        words.push(format!("path: {:?}", url.value("path").unwrap_or("/")));
        let statuses = url.find("status_code").map(|statuses| {
            statuses.settle();
            statuses.words[1..].join(", ")
        });
        words.push(format!("expectStatus: [{}]", statuses.as_deref().unwrap_or("200-299")));
        if let Some(digest) = url.find("digest") {
            digest.settle();
            document.lost(digest.line, "the digest of an answer is not looked at");
        }
        host = url.value("virtualhost").or(host);
    }
    for further in urls.iter().skip(1) {
        further.settle();
        document.lost(further.line, "of several urls of a check, the first is asked for");
    }
    words.extend(host.map(|host| format!("host: {host:?}")));
}

fn group(document: &mut Document, node: &Node, is_three: bool) {
    let mut group = Group { name: node.word(1).into(), ..Group::default() };
    let mut field = |name: &str, value: String| group.fields.push(format!("{name}: {value}"));
    let interface = node.value("interface").unwrap_or_default();
    let mut addresses = Vec::new();
    for (name, ours) in [
        ("interface", "interface"),
        ("virtual_router_id", "virtualRouterId"),
        ("priority", "priority"),
    ] {
        node.value(name).into_iter().for_each(|value| field(ours, quoted_unless_number(value)));
    }
    match node.value("advert_int").map_or(Ok(1.0), str::parse::<f64>) {
        Ok(seconds) => field("advertInterval", format!("{}ms", (seconds * 1000.0).round() as u64)),
        Err(_) => document.lost(node.line, "`advert_int` is no time"),
    }
    if let Some(it) = node.find("nopreempt") {
        it.word(0);
        field("preempt", "false".into());
    }
    node.value("preempt_delay").into_iter().for_each(|it| field("preemptDelay", format!("{it}s")));
    let source = node.value("unicast_src_ip").or(node.value("mcast_src_ip"));
    source.into_iter().for_each(|it| field("sourceAddress", format!("{it:?}")));
    if let Some(peers) = node.find("unicast_peer") {
        peers.word(0);
        let peers: Vec<String> = peers.below.iter().map(|it| format!("{:?}", it.word(0))).collect();
        field("unicastPeers", format!("[{}]", peers.join(", ")));
    }
    let kept = ["virtual_ipaddress", "virtual_ipaddress_excluded"];
    for at in kept.into_iter().flat_map(|name| node.all(name)).inspect(|it| _ = it.word(0)) {
        if at.name().ends_with("excluded") {
            document.note(at.line, "excluded addresses are in what is advertised, too");
        }
        for address in &at.below {
            let (bare, length) = address.word(0).split_once('/').unwrap_or((address.word(0), ""));
            if !length.is_empty() && !["32", "128"].contains(&length) {
                document
                    .note(address.line, "addresses are added without the length of their prefix");
            }
            let device = address.words.iter().position(|word| word == "dev");
            let device = device.and_then(|at| address.words.get(at + 1));
            if let Some(device) = device.filter(|device| **device != interface) {
                document.lost(
                    address.line,
                    format!("{bare} is to be on `{device}`: it comes to `{interface}`, as all of its group"),
                );
            }
            address.settle();
            addresses.push(format!("{bare:?}"));
        }
    }
    if !addresses.is_empty() {
        field("addresses", format!("[{}]", addresses.join(", ")));
    }
    if let Some(tracked) = node.find("track_interface") {
        tracked.word(0);
        let mut weights = Vec::new();
        let mut list = Vec::new();
        for it in &tracked.below {
            list.push(quoted(it.word(0)));
            let weight =
                (it.words.get(1).map(String::as_str) == Some("weight")).then(|| it.word(2));
            weights.push(weight.and_then(|weight| weight.parse::<i32>().ok()));
        }
        let alike = weights.windows(2).all(|pair| pair[0] == pair[1]);
        let weight = match weights.first().copied().flatten().filter(|_| alike) {
            Some(weight @ ..0) => format!(", weight: {}", weight.unsigned_abs()),
            // The whole group gives up then, which is what the default comes to.
            None if alike => String::new(),
            _ => {
                document.lost(
                    tracked.line,
                    "weights that differ, or raise the priority: any of the interfaces takes 100 of it",
                );
                String::new()
            }
        };
        field("track", format!("{{interfaces: [{}]{weight}}}", list.join(", ")));
    }
    if let Some(it) = node.find("authentication") {
        it.settle();
        document.lost(it.line, "VRRP 3 has no authentication: it is left out");
    }
    // Of IPv6 it has always been version 3.
    let is_ipv6 = addresses.iter().any(|ip| ip.contains(':'));
    if !is_three && !is_ipv6 && node.value("version") != Some("3") {
        document.lost(
            node.line,
            "keepalived speaks VRRP 2 here, Fairway speaks 3: before they meet, set `vrrp_version 3` on the other \
             boxes",
        );
    }
    document.vrrp.push(group);
}

fn quoted_unless_number(text: &str) -> String {
    if text.parse::<u32>().is_ok() { text.into() } else { quoted(text) }
}

#[cfg(test)]
#[path = "keepalived_tests.rs"]
mod tests;
