//! Each kind of check against a real server of its kind, and ejection by what traffic shows.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fmt::Write as _;
use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use fairway_tests::http::get;
use fairway_tests::{Fairway, Host, Net, Nginx, Other, SECOND, VIP4, wait_at_most, wait_for};

/// A document with a service for each check, on ports from 81 on, over one backend.
fn document(checks: &[(&str, &str)], backend: &str) -> String {
    let mut text = String::from("services:\n");
    for (n, (name, check)) in checks.iter().enumerate() {
        let port = 81 + n;
        writeln!(
            text,
            "  - name: {name}\n    addresses: [{VIP4}]\n    ports: [{{port: {port}}}]\n    \
             backends: [{backend}]\n    healthCheck: {{{check}, interval: 100ms, timeout: 2s, \
             rise: 1, fall: 1, initialState: down}}"
        )
        .unwrap();
    }
    text
}

/// State and cause of the only backend of a service.
fn state(fairway: &Fairway, service: &str) -> (String, String) {
    let backends = fairway.backends();
    let mut all = backends.as_array().unwrap().iter();
    let name = |view: &serde_json::Value| view["service"].as_str().unwrap().to_owned();
    let view = all.find(|view| name(view).starts_with(&format!("{service}/"))).unwrap();
    let text = |key: &str| view[key].as_str().unwrap_or_default().to_owned();
    (text("state"), text("cause"))
}

fn wait_up(fairway: &Fairway, service: &str) {
    wait_at_most(20 * SECOND, service, || state(fairway, service).0 == "up");
}

/// Waits until the check has failed for this cause.
fn wait_down(fairway: &Fairway, service: &str, cause: &str) {
    let mut last = String::new();
    wait_at_most(20 * SECOND, service, || {
        last = state(fairway, service).1;
        last.contains(cause)
    });
    assert_eq!(state(fairway, service).0, "down", "{service}: {last}");
}

/// Certificates of an authority and of a server `web.example` that it has signed.
fn certificates(folder: &Path) {
    let openssl = |arguments: &str| {
        let output = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(folder)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    std::fs::write(
        folder.join("names"),
        "subjectAltName=DNS:web.example,IP:10.78.0.2\nbasicConstraints=CA:FALSE\n",
    )
    .unwrap();
    openssl(
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem",
    );
    openssl("req -newkey rsa:2048 -nodes -subj /CN=web.example -keyout web.key -out web.csr");
    openssl(
        "x509 -req -in web.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out web.pem",
    );
}

#[test]
fn https_and_tls_checks_prove_who_answers() {
    let Some(net) = Net::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    let keys = folder.path().display();
    let _nginx = Other::nginx(
        &net,
        Host::Servers,
        &format!(
            "http {{ access_log off; client_body_temp_path FOLDER/b; proxy_temp_path FOLDER/p;
               fastcgi_temp_path FOLDER/f; uwsgi_temp_path FOLDER/u; scgi_temp_path FOLDER/s;
               server {{ listen 10.78.0.2:8443 ssl; ssl_certificate {keys}/web.pem;
                 ssl_certificate_key {keys}/web.key;
                 location /good {{ return 200 'ok'; }} location / {{ return 503; }} }}
               server {{ listen 10.78.0.2:8080; location / {{ return 200 'ok'; }} }} }}"
        ),
    );
    let ca = format!("caFile: {keys}/ca.pem");
    let checks = [
        ("named", format!("type: https, path: /good, tls: {{{ca}, serverName: web.example}}")),
        ("by-address", format!("type: https, path: /good, tls: {{{ca}}}")),
        ("unverified", "type: https, path: /good, tls: {verify: false}".into()),
        ("handshake", format!("type: tls, tls: {{{ca}}}")),
        ("sick", "type: https, path: /sick, tls: {verify: false}".into()),
        ("wrong-name", format!("type: tls, tls: {{{ca}, serverName: other.example}}")),
        ("unknown", format!("type: tls, tls: {{caFile: {keys}/web.pem}}")),
        ("plain", "type: tls, port: 8080".into()),
    ];
    let checks: Vec<_> = checks.iter().map(|(name, check)| (*name, check.as_str())).collect();
    let fairway = Fairway::start(&net, &document(&checks, "10.78.0.2:8443"));
    for service in ["named", "by-address", "unverified", "handshake"] {
        wait_up(&fairway, service);
    }
    for (service, cause) in [
        ("sick", "HTTP 503 from 10.78.0.2:8443, expected 200-399"),
        ("wrong-name", "not valid for name"),
        ("unknown", "invalid peer certificate"),
        ("plain", "TLS to 10.78.0.2:8080: received corrupt message"),
    ] {
        wait_down(&fairway, service, cause);
    }
}

/// The health service as grpcio serves it: the server and `good` are well, `bad` is not.
const GRPC: &str = r#"
import grpc, sys, time
from concurrent import futures
def check(request, context):
    states = {b"": 1, b"\x0a\x04good": 1, b"\x0a\x03bad": 2}
    if request not in states:
        context.abort(grpc.StatusCode.NOT_FOUND, "unknown")
    return bytes([8, states[request]])
handler = grpc.unary_unary_rpc_method_handler(check)
server = grpc.server(futures.ThreadPoolExecutor(4))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(
    "grpc.health.v1.Health", {"Check": handler}),))
server.add_insecure_port("10.78.0.2:50051")
server.start()
server.wait_for_termination()
"#;

#[test]
fn checks_are_faster_while_results_change() {
    let Some(net) = Net::new() else { return };
    let mut server = Nginx::start(&net, 1);
    let text = document(&[("web", "type: tcp")], &server.addr.to_string());
    let (start, rest) = text.split_once("healthCheck: {").unwrap();
    let (_, end) = rest.split_once('}').unwrap();
    let check = "interval: 2s, fastInterval: 20ms, timeout: 1s, fall: 40, rise: 40";
    let fairway = Fairway::start(&net, &format!("{start}healthCheck: {{{check}}}{end}"));
    server.kill();
    // At 2s each, 40 failures would take longer than anybody waits here.
    wait_down(&fairway, "web", "connection refused");
    server.restart();
    wait_up(&fairway, "web");
    let metrics = fairway.metrics(&net);
    for result in ["success", "failure"] {
        let line = format!("fairway_health_checks_total{{type=\"tcp\",result=\"{result}\"}} ");
        let count = metrics.lines().find_map(|text| text.strip_prefix(&line)).unwrap();
        assert!(count.parse::<u32>().unwrap() >= 40, "{result}: {count}");
    }
}

#[test]
fn grpc_checks_ask_the_health_service() {
    let Some(net) = Net::new() else { return };
    if !Path::new("/usr/lib/python3/dist-packages/grpc").exists() {
        println!("SKIPPED: python3-grpcio is not installed; tests/run installs it");
        return;
    }
    let _server = Other::start(&net, Host::Servers, GRPC, "/usr/bin/python3", &[]);
    let checks = [
        ("server", "type: grpc"),
        ("good", "type: grpc, service: good"),
        ("bad", "type: grpc, service: bad"),
        ("nobody", "type: grpc, service: nobody"),
    ];
    let fairway = Fairway::start(&net, &document(&checks, "10.78.0.2:50051"));
    wait_up(&fairway, "server");
    wait_up(&fairway, "good");
    wait_down(&fairway, "bad", "10.78.0.2:50051 is NOT_SERVING, expected SERVING");
    wait_down(&fairway, "nobody", "gRPC status 5 (the service is not known there)");
}

#[test]
fn dns_udp_icmp_text_and_programs_are_checked() {
    let Some(net) = Net::new() else { return };
    let server = Nginx::start(&net, 1);
    let ip = server.ip();
    let _dns = Other::start(
        &net,
        Host::Servers,
        &format!(
            "no-resolv\nno-hosts\nbind-interfaces\nlisten-address={ip}\nuser=root\npid-file=\n\
             keep-in-foreground\naddress=/known.example/192.0.2.1\n"
        ),
        "dnsmasq",
        &["-C"],
    );
    let query = "0001 0100 0001 0000 0000 0000 05 6b6e6f776e 07 6578616d706c65 00 0001 0001";
    let checks = [
        ("known", "type: dns, port: 53, query: known.example".to_owned()),
        ("refused", "type: dns, port: 53, query: other.example, record: AAAA".into()),
        ("datagram", format!("type: udp, port: 53, sendHex: '{query}', expectHex: 'c0000201'")),
        ("silent", format!("type: udp, port: 54, sendHex: '{query}'")),
        ("ping", "type: icmp".into()),
        ("text", "type: tcp, send: \"GET / HTTP/1.0\\r\\n\\r\\n\", expect: 200 OK".into()),
        ("other-text", "type: tcp, send: \"GET / HTTP/1.0\\r\\n\\r\\n\", expect: teapot".into()),
        ("from", "type: tcp, source: 10.78.0.1".into()),
        ("program", "type: exec, command: [/bin/sh, -c, 'test $FAIRWAY_PORT = 8080']".into()),
        ("failing", "type: exec, command: [/bin/sh, -c, 'echo no disk >&2; exit 7']".into()),
    ];
    let checks: Vec<_> = checks.iter().map(|(name, check)| (*name, check.as_str())).collect();
    let fairway = Fairway::start(&net, &document(&checks, &server.addr.to_string()));
    for service in ["known", "datagram", "ping", "text", "from", "program"] {
        wait_up(&fairway, service);
    }
    for (service, cause) in [
        ("refused", "for `other.example`"),
        ("silent", "connection refused"),
        ("other-text", "expected `teapot` in it"),
        ("failing", "exit status: 7: no disk"),
    ] {
        wait_down(&fairway, service, cause);
    }
    net.exec(Host::Servers, &format!("ip address delete {ip}/24 dev lb"));
    wait_down(&fairway, "ping", "10.78.0.11");
}

#[test]
fn a_slow_backend_is_ejected_by_its_connect_time() {
    let Some(net) = Net::new() else { return };
    let servers: Vec<Nginx> = (1..=3).map(|n| Nginx::start(&net, n)).collect();
    // What one server sends goes through a narrow pipe: every packet takes its time. (netem would
    // say it more plainly, and many kernels lack it.)
    net.exec(Host::Servers, "tc qdisc add dev lb root handle 1: htb default 1");
    net.exec(Host::Servers, "tc class add dev lb parent 1: classid 1:1 htb rate 10gbit");
    net.exec(
        Host::Servers,
        "tc class add dev lb parent 1: classid 1:3 htb rate 64kbit ceil 64kbit burst 80 cburst 80",
    );
    net.exec(
        Host::Servers,
        "tc filter add dev lb parent 1: protocol ip u32 match ip src 10.78.0.13/32 flowid 1:3",
    );
    let backends: Vec<_> = servers.iter().map(|server| server.addr.to_string()).collect();
    let text = format!(
        "services:\n  - name: web\n    addresses: [{VIP4}]\n    ports: [{{port: 80}}]\n    \
         scheduler: roundRobin\n    backends: [{}]\n    healthCheck: {{type: none}}\n    \
         ejection: {{window: 1s, minSamples: 5, slowFactor: 5, slowAbove: 10ms, baseTime: 60s}}\n",
        backends.join(", ")
    );
    let fairway = Fairway::start(&net, &text);
    let vip: SocketAddr = (VIP4, 80).into();
    wait_at_most(20 * SECOND, "the slow one is ejected", || {
        net.on(Host::Client, || (0..30).for_each(|_| drop(get(vip, "/").unwrap())));
        fairway.state_of("10.78.0.13:8080").unwrap() == "ejected"
    });
    assert!(fairway.log().contains("the pool's median is"));
    assert_eq!(fairway.state_of("10.78.0.11:8080").unwrap(), "up");
    net.on(Host::Client, || {
        let answers = (0..20).map(|_| get(vip, "/").unwrap());
        assert!(answers.into_iter().all(|name| name != "s3"));
    });
}

#[test]
fn a_backend_that_resets_early_is_ejected_by_its_rate() {
    let Some(net) = Net::new() else { return };
    let good = Nginx::start(&net, 1);
    let bad: SocketAddr = (net.server_address(2), 8080).into();
    let (ready, started) = std::sync::mpsc::channel();
    net.on(Host::Servers, || {
        let listener = TcpListener::bind(bad).unwrap();
        thread::spawn(move || {
            ready.send(()).unwrap();
            for mut stream in listener.incoming().flatten() {
                // It takes the request and gives nothing.
                let _ = stream.read(&mut [0; 512]);
                let linger = Some(Duration::ZERO);
                socket2::SockRef::from(&stream).set_linger(linger).unwrap();
            }
        });
    });
    started.recv().unwrap();
    let text = format!(
        "services:\n  - name: web\n    addresses: [{VIP4}]\n    ports: [{{port: 80}}]\n    \
         scheduler: roundRobin\n    backends: [{}, {bad}]\n    ejection: {{window: 1s, minSamples: \
         5, baseTime: 60s}}\n",
        good.addr
    );
    let fairway = Fairway::start(&net, &text);
    let vip: SocketAddr = (VIP4, 80).into();
    wait_at_most(20 * SECOND, "it is ejected", || {
        net.on(Host::Client, || (0..30).for_each(|_| drop(get(vip, "/"))));
        fairway.state_of(&bad.to_string()).unwrap() == "ejected"
    });
    assert!(fairway.log().contains("100% of its connections failed"));
    net.on(Host::Client, || wait_for("everyone is served", || get(vip, "/").is_ok()));
}

/// An agent on the servers' host that answers what the file says at the moment.
const AGENT: &str = r#"
import socket, sys, time
listener = socket.create_server(("10.78.0.11", 9777))
while True:
    client, _ = listener.accept()
    line = open("FOLDER/line").read()
    if line == "hang":
        hung = client
        continue
    client.sendall(line.encode())
    client.close()
"#;

#[test]
fn an_agent_turns_its_backend_up_and_down() {
    let Some(net) = Net::new() else { return };
    let servers: Vec<Nginx> = (1..=2).map(|n| Nginx::start(&net, n)).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("line");
    std::fs::write(&path, "20%\n").unwrap();
    let script = AGENT.replace("FOLDER", &folder.path().display().to_string());
    let _agent = Other::start(&net, Host::Servers, &script, "/usr/bin/python3", &[]);
    let addr = servers[0].addr.to_string();
    let text = format!(
        "services:\n  - name: web\n    addresses: [{VIP4}]\n    ports: [{{port: 80}}]\n    \
         scheduler: roundRobin\n    backends: [{addr}, {}]\n    agentCheck: {{port: 9777, interval: \
         100ms, timeout: 200ms}}\n",
        servers[1].addr
    );
    let fairway = Fairway::start(&net, &text);
    let vip: SocketAddr = (VIP4, 80).into();
    let cause = || {
        let backends = fairway.backends();
        let mut all = backends.as_array().unwrap().iter();
        let view = all.find(|view| view["address"] == *addr).unwrap();
        view["cause"].as_str().unwrap_or_default().to_owned()
    };
    let say = |line: &str, words: &str| {
        std::fs::write(&path, line).unwrap();
        wait_for(line, || cause().contains(words));
    };
    let share = || {
        net.on(Host::Client, || {
            let first = (0..200).filter(|_| get(vip, "/").unwrap() == "s1").count();
            first as f64 / 200.0
        })
    };
    wait_for("a fifth", || cause().contains("20% of its weight"));
    let part = share();
    assert!((0.03..0.2).contains(&part), "a fifth of a half: {part}");
    say("down #disk full\n", "down: disk full");
    assert_eq!((share(), fairway.state_of(&addr).unwrap().as_str()), (0.0, "down"));
    say("up drain\n", "drain");
    assert_eq!(fairway.state_of(&addr).unwrap(), "draining");
    say("maint\n", "maintenance");
    // What cannot be understood, and a hanging agent, change nothing and are counted.
    std::fs::write(&path, "all is well, I think\n").unwrap();
    wait_for("it is said", || fairway.log().contains("is no word of an agent"));
    std::fs::write(&path, "hang").unwrap();
    wait_for("it is counted", || {
        let metrics = fairway.metrics(&net);
        let line = metrics.lines().find(|l| l.starts_with("fairway_agent_failures_total")).unwrap();
        line.rsplit(' ').next().unwrap().parse::<u32>().unwrap() > 8
    });
    assert!(cause().contains("maintenance"));
    std::fs::write(&path, "ready up 100%\n").unwrap();
    wait_for("all is well", || fairway.state_of(&addr).unwrap() == "up");
    assert!(share() > 0.4);
}
