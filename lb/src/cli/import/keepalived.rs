//! keepalived's configuration: virtual servers, and the groups of VRRP.

use std::net::{IpAddr, SocketAddr};

use super::{Backend, Document, Group, Port, Service, scheduler_of_ipvs};

/// A word with what stands behind it, and what is between braces below it.
#[derive(Debug, Clone)]
struct Node {
    line: usize,
    words: Vec<String>,
    below: Vec<Node>,
}

impl Node {
    fn word(&self, n: usize) -> &str {
        self.words.get(n).map(String::as_str).unwrap_or_default()
    }

    fn find(&self, name: &str) -> Option<&Self> {
        self.below.iter().find(|node| node.word(0).eq_ignore_ascii_case(name))
    }

    /// What stands behind a word below it.
    fn value(&self, name: &str) -> Option<&str> {
        self.find(name).map(|node| node.word(1)).filter(|value| !value.is_empty())
    }
}

/// Reads a configuration.
pub(super) fn read(text: &str) -> Document {
    let mut document = Document::default();
    let tree = tree(text, &mut document);
    let groups: Vec<&Node> =
        tree.iter().filter(|it| it.word(0) == "virtual_server_group").collect();
    for node in &tree {
        match node.word(0) {
            "virtual_server" => serve(&mut document, node, &groups),
            "vrrp_instance" => group(&mut document, node),
            "global_defs" => {
                let words: Vec<&str> = node.below.iter().map(|it| it.word(0)).collect();
                let words = words.join("`, `");
                document.note(node.line, format!("`{words}` are of keepalived's process"));
            }
            // Looked at above.
            "virtual_server_group" => {}
            "vrrp_script" | "vrrp_sync_group" | "vrrp_track_process" | "track_file" => {
                let what = node.word(0);
                document.lost(node.line, format!("`{what}` is not carried over: `announce.vrrp[].track` follows interfaces and services"));
            }
            other => document.lost(node.line, format!("`{other}` is not carried over")),
        }
    }
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
        nodes.push(Node { line, words: std::mem::take(words), below: Vec::new() });
    }
}

fn serve(document: &mut Document, node: &Node, groups: &[&Node]) {
    let mut service = Service::default();
    let protocol = match node.value("protocol").unwrap_or("TCP") {
        "UDP" => "UDP",
        "SCTP" => "SCTP",
        _ => "TCP",
    };
    let mut places = Vec::new();
    match node.word(1) {
        "group" => {
            let name = node.word(2);
            let Some(group) = groups.iter().find(|group| group.word(1) == name) else {
                return document
                    .lost(node.line, format!("there is no virtual_server_group `{name}`"));
            };
            service.name = name.into();
            for place in &group.below {
                match (place.word(0).parse::<IpAddr>(), place.word(1).parse::<u16>()) {
                    (Ok(ip), Ok(port)) => places.push((ip, port)),
                    _ => document.lost(
                        place.line,
                        format!("`{}` is not carried over", place.words.join(" ")),
                    ),
                }
            }
        }
        "fwmark" => {
            return document.lost(
                node.line,
                "a virtual server by firewall mark is left out: list its addresses and ports",
            );
        }
        address => match (address.parse::<IpAddr>(), node.word(2).parse::<u16>()) {
            (Ok(ip), Ok(port)) => {
                service.name = format!("{ip}-{port}-{}", protocol.to_lowercase());
                places.push((ip, port));
            }
            _ => {
                return document.lost(
                    node.line,
                    format!("`{address} {}` is no address and port", node.word(2)),
                );
            }
        },
    }
    for (ip, port) in places {
        if !service.addresses.contains(&ip) {
            service.addresses.push(ip);
        }
        let port = Port { port, last: None, protocol, target: None };
        if !service.ports.contains(&port) {
            service.ports.push(port);
        }
    }
    let kind = node.value("lb_kind").or(node.value("lvs_method")).unwrap_or("NAT");
    service.mode = Some(match kind {
        "DR" => "dsr",
        "TUN" => "ipip",
        _ => "nat",
    });
    let scheduler = node.value("lb_algo").or(node.value("lvs_sched")).unwrap_or("rr");
    service.scheduler = scheduler_of_ipvs(scheduler);
    if service.scheduler.is_none() {
        document
            .note(node.line, format!("scheduler `{scheduler}` has no counterpart; maglev is used"));
    }
    service.affinity_seconds =
        node.find("persistence_timeout").map(|it| it.word(1).parse().unwrap_or(360));
    let mut check = None;
    for real in &node.below {
        match real.word(0) {
            "real_server" => real_server(document, node, real, &mut service, &mut check),
            "sorry_server" => match (real.word(1).parse::<IpAddr>(), real.word(2).parse()) {
                (Ok(ip), Ok(port)) => {
                    let address = SocketAddr::new(ip, port).to_string();
                    service.backends.push(Backend { address, weight: 1, backup: true, name: None });
                }
                _ => document
                    .lost(real.line, format!("`{}` has no address and port", real.words.join(" "))),
            },
            "delay_loop"
            | "lb_algo"
            | "lvs_sched"
            | "lb_kind"
            | "lvs_method"
            | "protocol"
            | "persistence_timeout"
            | "retry"
            | "delay_before_retry"
            | "connect_timeout" => {}
            "alpha" | "omega" | "warmup" | "quorum_up" | "quorum_down" | "ha_suspend" => {
                document.note(real.line, format!("`{}` is not carried over", real.word(0)));
            }
            other => document.lost(real.line, format!("`{other}` is not carried over")),
        }
    }
    let check = check.and_then(|(_, check)| check);
    service.fields.push(check.unwrap_or_else(|| "healthCheck: {type: none}".into()));
    document.services.push(service);
}

/// Takes a backend; `check` is that of the first, with its line.
fn real_server(
    document: &mut Document,
    node: &Node,
    real: &Node,
    service: &mut Service,
    check: &mut Option<(usize, Option<String>)>,
) {
    let (address, port) = (real.word(1), real.word(2));
    let Ok(ip) = address.parse::<IpAddr>() else {
        return document.lost(real.line, format!("`{address}` is no address"));
    };
    let weight = real.value("weight").and_then(|it| it.parse().ok()).unwrap_or(1);
    if weight == 0 {
        return document.lost(real.line, format!("{address} has weight 0 and is left out"));
    }
    let port = port.parse().unwrap_or(service.ports.first().map_or(0, |port| port.port));
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
    for below in &real.below {
        match below.word(0) {
            "weight" => {}
            checker if checker.ends_with("_CHECK") || checker.ends_with("_GET") => {}
            "uthreshold" | "lthreshold" => document.lost(
                below.line,
                format!(
                    "`{}` is not carried over: `limits: {{backendConnections: …}}` holds for all backends of a \
                     service",
                    below.word(0)
                ),
            ),
            "inhibit_on_failure" | "notify_up" | "notify_down" | "alpha" | "warmup" => {
                document.note(below.line, format!("`{}` is not carried over", below.word(0)));
            }
            other => document.lost(below.line, format!("`{other}` is not carried over")),
        }
    }
    service.backends.push(Backend { address, weight, backup: false, name: None });
}

/// How a real server is checked.
fn checked(document: &mut Document, service: &Node, real: &Node) -> Option<String> {
    let seconds = |node: &Node, name: &str| {
        let value = node.value(name)?.parse::<f64>().ok()?;
        Some(format!("{}ms", (value * 1000.0).round().max(1.0) as u64))
    };
    let of = |names: &[&str]| names.iter().find_map(|name| real.find(name));
    let mut words = Vec::new();
    let node = if let Some(node) = of(&["TCP_CHECK"]) {
        words.push("type: tcp".to_owned());
        node
    } else if let Some(node) = of(&["HTTP_GET", "SSL_GET"]) {
        let secure = node.word(0) == "SSL_GET";
        words.push(format!("type: {}", if secure { "https" } else { "http" }));
        if secure {
            words.push("tls: {insecureSkipVerify: true}".into());
        }
        let urls: Vec<&Node> = node.below.iter().filter(|it| it.word(0) == "url").collect();
        if let Some(second) = urls.get(1) {
            document.lost(second.line, "of several urls of a check, the first is asked for");
        }
        if let Some(url) = urls.first() {
            words.push(format!("path: {:?}", url.value("path").unwrap_or("/")));
            if let Some(status) = url.value("status_code") {
                words.push(format!("expectStatus: [{status}]"));
            }
            if url.find("digest").is_some() {
                document.lost(url.line, "the digest of an answer is not looked at");
            }
        }
        words.extend(node.value("virtualhost").map(|host| format!("host: {host:?}")));
        node
    } else if let Some(node) = of(&["MISC_CHECK"]) {
        let command = node.find("misc_path").map(|it| it.words[1..].to_vec()).unwrap_or_default();
        let command: Vec<String> = command.iter().map(|word| format!("{word:?}")).collect();
        words.push(format!("type: exec, command: [{}]", command.join(", ")));
        document.note(node.line, "the program is told of the backend by FAIRWAY_ADDRESS and FAIRWAY_PORT, the same for all");
        node
    } else {
        for other in real.below.iter().filter(|it| it.word(0).ends_with("_CHECK")) {
            document.lost(other.line, format!("`{}` is not carried over", other.word(0)));
        }
        return None;
    };
    words.extend(node.value("connect_port").map(|port| format!("port: {port}")));
    let either = |name: &str| seconds(node, name).or(seconds(service, name));
    for (name, ours) in [
        ("connect_timeout", "timeout"),
        ("delay_loop", "interval"),
        ("delay_before_retry", "fastInterval"),
    ] {
        words.extend(either(name).map(|time| format!("{ours}: {time}")));
    }
    let retry = node.value("retry").or(service.value("retry"));
    let retry = retry.and_then(|count| count.parse::<u32>().ok());
    words.extend(retry.map(|count| format!("fall: {}", count.saturating_add(1))));
    Some(format!("healthCheck: {{{}}}", words.join(", ")))
}

fn group(document: &mut Document, node: &Node) {
    let mut group = Group { name: node.word(1).into(), ..Group::default() };
    let mut field = |name: &str, value: String| group.fields.push(format!("{name}: {value}"));
    for below in &node.below {
        let value = below.word(1).to_owned();
        match below.word(0) {
            "interface" => field("interface", super::quoted(&value)),
            "virtual_router_id" => field("virtualRouterId", value),
            "priority" => field("priority", value),
            "advert_int" => match value.parse::<f64>() {
                Ok(seconds) => {
                    field("advertInterval", format!("{}ms", (seconds * 1000.0).round() as u64))
                }
                Err(_) => document.note(below.line, format!("`{value}` is no time")),
            },
            "nopreempt" => field("preempt", "false".into()),
            "preempt_delay" => field("preemptDelay", format!("{value}s")),
            "unicast_src_ip" | "mcast_src_ip" => field("sourceAddress", format!("{value:?}")),
            "unicast_peer" => {
                let peers: Vec<String> =
                    below.below.iter().map(|it| format!("{:?}", it.word(0))).collect();
                field("unicastPeers", format!("[{}]", peers.join(", ")));
            }
            "virtual_ipaddress" | "virtual_ipaddress_excluded" => {
                let bare = |it: &Node| it.word(0).split('/').next().unwrap_or_default().to_owned();
                let list: Vec<String> =
                    below.below.iter().map(|it| format!("{:?}", bare(it))).collect();
                field("addresses", format!("[{}]", list.join(", ")));
            }
            "track_interface" => {
                let list: Vec<String> =
                    below.below.iter().map(|it| super::quoted(it.word(0))).collect();
                field("track", format!("{{interfaces: [{}]}}", list.join(", ")));
            }
            "authentication" => {
                document.lost(below.line, "VRRP 3 has no authentication: it is left out")
            }
            "version" if value == "3" => {}
            "version" => document
                .lost(below.line, "VRRP 2 is not spoken: set `vrrp_version 3` on the other boxes"),
            // The highest priority begins.
            "state" => {}
            "track_script" | "use_vmac" | "virtual_routes" | "virtual_rules" | "strict_mode" => {
                document.lost(below.line, format!("`{}` is not carried over", below.word(0)));
            }
            other => document.note(below.line, format!("`{other}` is not carried over")),
        }
    }
    document.vrrp.push(group);
}

#[cfg(test)]
mod tests {
    use super::super::tests::settled;
    use super::*;

    const CONFIG: &str = "! a comment
global_defs { router_id a }
vrrp_instance VI_1 {
  state MASTER
  interface eth0
  virtual_router_id 51
  priority 150
  advert_int 1
  authentication { auth_type PASS
    auth_pass secret }
  virtual_ipaddress {
    192.0.2.1/24 dev eth0
    192.0.2.2
  }
  track_interface { eth1 }
}
virtual_server 192.0.2.1 80 {
  delay_loop 6
  retry 2
  delay_before_retry 1
  lb_algo wrr
  lb_kind DR
  persistence_timeout 50
  protocol TCP
  sorry_server 10.0.0.9 80
  real_server 10.0.0.1 80 {
    weight 2
    HTTP_GET {
      url { path /up
        status_code 200 }
      connect_timeout 3
    }
  }
  real_server 10.0.0.2 80 { weight 1 }
  quorum 1
}
virtual_server_group DNS {
  192.0.2.2 53
}
virtual_server group DNS {
  protocol UDP
  lb_kind NAT
  real_server 10.0.0.5 5353 { TCP_CHECK { connect_port 53 } }
}
virtual_server fwmark 3 { lb_algo rr }
";

    #[test]
    fn virtual_servers_and_groups_are_carried_over() {
        let (text, notes) = settled(read(CONFIG));
        for part in [
            "vrrp:\n    - name: VI_1\n      interface: eth0\n      virtualRouterId: 51\n      priority: 150\n      \
             advertInterval: 1000ms\n      addresses: [\"192.0.2.1\", \"192.0.2.2\"]\n      track: {interfaces: [eth1]}",
            "mode: dsr\n    scheduler: roundRobin\n    sessionAffinity: ClientIP\n    sessionAffinityTimeout: 50s",
            "healthCheck: {type: http, path: \"/up\", expectStatus: [200], timeout: 3000ms, interval: 6000ms, fastInterval: 1000ms, fall: 3}",
            "backupBackends:\n      - \"10.0.0.9:80\"",
            "name: DNS\n    addresses: [\"192.0.2.2\"]\n    ports:\n      - {port: 53, protocol: UDP}\n    mode: nat",
            "healthCheck: {type: tcp, port: 53}",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        let wanted = [
            "9: lost: VRRP 3 has no authentication",
            "34: lost: 10.0.0.2:80 is checked in another way than the real server of line 26",
            "35: lost: `quorum`",
            "45: lost: a virtual server by firewall mark",
            "2: `router_id` are of keepalived's process",
        ];
        assert_eq!(notes.len(), wanted.len(), "{notes:#?}");
        for (note, wanted) in notes.iter().zip(wanted) {
            assert!(note.starts_with(wanted), "{note}");
        }
    }

    #[test]
    fn braces_that_do_not_match_are_told_of() {
        let document = read("virtual_server 192.0.2.1 80 {\n  real_server 10.0.0.1 80 {\n");
        assert_eq!(document.services.len(), 1);
        assert_eq!(document.notes[0].lines, [1, 2].into());
        assert_eq!(read("}\n").notes[0].text, "a brace closes nothing");
    }
}
