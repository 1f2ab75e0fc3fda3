//! Who the client is: the PROXY protocol with real HAProxy and nginx on both sides.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::net::SocketAddr;

use fairway_tests::http::get;
use fairway_tests::{Fairway, Host, Net, Other, VIP4, VIP6, wait_for};

/// An nginx that only takes connections with a header, and answers with whom it names.
fn nginx_behind(net: &Net) -> Other {
    Other::nginx(
        net,
        Host::Servers,
        "http { access_log off; client_body_temp_path FOLDER/b; proxy_temp_path FOLDER/p;
           fastcgi_temp_path FOLDER/f; uwsgi_temp_path FOLDER/u; scgi_temp_path FOLDER/s;
           server { listen 10.78.0.2:8080 proxy_protocol; listen [fd78::2]:8080 proxy_protocol;
             location / { return 200 '$proxy_protocol_addr $proxy_protocol_server_port\n'; } } }",
    )
}

fn document(proxy_protocol: &str, backend: &str) -> String {
    format!(
        "services:\n  - name: web\n    addresses: [{VIP4}, \"{VIP6}\"]\n    ports: [{{port: 80}}]\n    \
         backends: [\"{backend}\"]\n    proxyProtocol: {proxy_protocol}\n    \
         healthCheck: {{type: http, interval: 100ms, timeout: 90ms, rise: 1, initialState: down}}\n"
    )
}

fn ask(net: &Net, host: Host, addr: SocketAddr) -> String {
    net.on(host, || {
        let mut answer = String::new();
        wait_for("an answer", || match get(addr, "/") {
            Ok(text) => {
                answer = text;
                true
            }
            Err(_) => false,
        });
        answer
    })
}

const VIP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(VIP4), 80);

#[test]
fn nginx_behind_fairway_hears_the_client() {
    let Some(net) = Net::new() else { return };
    let _nginx = nginx_behind(&net);
    for send in ["{send: v1}", "{send: v2}", "{send: v2, crc32c: true, uniqueId: true}"] {
        for backend in ["10.78.0.2:8080", "[fd78::2]:8080"] {
            let fairway = Fairway::start(&net, &document(send, backend));
            // The check's header is what brings the backend up at all.
            wait_for("the check is good", || fairway.backends()[0]["state"] == "up");
            assert_eq!(ask(&net, Host::Client, VIP), "10.77.0.2 80", "{send} to {backend}");
            let vip6 = SocketAddr::new(VIP6.into(), 80);
            assert_eq!(ask(&net, Host::Client, vip6), "fd77::2 80", "{send} to {backend}");
        }
    }
}

#[test]
fn haproxy_behind_fairway_hears_the_client() {
    let Some(net) = Net::new() else { return };
    let _haproxy = Other::haproxy(
        &net,
        Host::Servers,
        "frontend web\n  mode http\n  bind 10.78.0.2:8080 accept-proxy\n  \
         http-request return content-type text/plain lf-string \"%[src] %[fc_pp_unique_id]\\n\"\n",
    );
    for (send, with_id) in [
        ("{send: v1}", false),
        ("{send: v2}", false),
        ("{send: v2, crc32c: true}", false),
        ("{send: v2, crc32c: true, uniqueId: true}", true),
    ] {
        let _fairway = Fairway::start(&net, &document(send, "10.78.0.2:8080"));
        let answer = ask(&net, Host::Client, VIP);
        let id = answer.strip_prefix("10.77.0.2").unwrap().trim();
        assert_eq!(id.len(), if with_id { 32 } else { 0 }, "{send}: {answer}");
    }
}

#[test]
fn proxies_before_fairway_are_believed() {
    let Some(net) = Net::new() else { return };
    let _nginx = nginx_behind(&net);
    let fields = "{accept: required, trustedSources: [10.77.0.0/24, \"fd77::/64\"], send: v1}";
    let fairway = Fairway::start(&net, &document(fields, "10.78.0.2:8080"));
    let listen = |n: u16, send: &str, to: &str| {
        format!(
            "listen p{n}\n  mode tcp\n  bind 127.0.0.1:{n}\n  bind [::1]:{n}\n  \
             unique-id-format %[uuid()]\n  server s {to}:80 {send}\n"
        )
    };
    let haproxy = [
        listen(9001, "send-proxy", "10.77.0.100"),
        listen(9002, "send-proxy-v2", "10.77.0.100"),
        listen(9003, "send-proxy-v2 proxy-v2-options crc32c,unique-id", "10.77.0.100"),
        listen(9004, "send-proxy-v2", "[fd70::100]"),
    ];
    let _haproxy = Other::haproxy(&net, Host::Client, &haproxy.concat());
    let _stream = Other::nginx(
        &net,
        Host::Client,
        "stream { server { listen 127.0.0.1:9005; listen [::1]:9005; proxy_protocol on;
           proxy_pass 10.77.0.100:80; } }",
    );
    for port in 9001..=9005 {
        for (client, want) in [("127.0.0.1", "127.0.0.1 "), ("[::1]", "::1 ")] {
            let at = format!("{client}:{port}").parse().unwrap();
            let answer = ask(&net, Host::Client, at);
            assert!(answer.starts_with(want), "{at}: {answer}");
        }
    }
    let refused = fairway.count("ends/proxy_header");
    assert!(net.on(Host::Client, || get(VIP, "/")).is_err(), "without a header");
    wait_for("it is counted", || fairway.count("ends/proxy_header") == refused + 1);
}
