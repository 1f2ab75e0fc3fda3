//! What is made of files of HAProxy's.

use super::super::tests::{settled, told};
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
    told(&notes, &wanted);
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
