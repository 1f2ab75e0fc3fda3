//! Who the client is: the PROXY protocol with real HAProxy and nginx on both sides.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::net::{SocketAddr, UdpSocket};

use fairway_tests::http::{ask, connect, get};
use fairway_tests::{Fairway, Host, Net, Nginx, Other, VIP4, VIP6, wait_for};

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

fn answer(net: &Net, host: Host, addr: SocketAddr) -> String {
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
            assert_eq!(answer(&net, Host::Client, VIP), "10.77.0.2 80", "{send} to {backend}");
            let vip6 = SocketAddr::new(VIP6.into(), 80);
            assert_eq!(answer(&net, Host::Client, vip6), "fd77::2 80", "{send} to {backend}");
        }
    }
}

#[test]
fn haproxy_behind_fairway_hears_the_client() {
    let Some(net) = Net::new() else { return };
    let _haproxy = Other::haproxy(
        &net,
        Host::Servers,
        "frontend web\n  mode http\n  bind 10.78.0.2:8080 accept-proxy\n  bind [fd78::2]:8080 accept-proxy\n  \
         http-request return content-type text/plain lf-string \"%[src] %[fc_pp_unique_id]\\n\"\n",
    );
    for (send, with_id) in [
        ("{send: v1}", false),
        ("{send: v2}", false),
        ("{send: v2, crc32c: true}", false),
        ("{send: v2, crc32c: true, uniqueId: true}", true),
    ] {
        for backend in ["10.78.0.2:8080", "[fd78::2]:8080"] {
            let _fairway = Fairway::start(&net, &document(send, backend));
            let vip6 = SocketAddr::new(VIP6.into(), 80);
            for (vip, client) in [(VIP, "10.77.0.2"), (vip6, "fd77::2")] {
                let answer = answer(&net, Host::Client, vip);
                let id = answer.strip_prefix(client).unwrap().trim();
                assert_eq!(id.len(), if with_id { 32 } else { 0 }, "{send} {backend}: {answer}");
            }
        }
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
            let answer = answer(&net, Host::Client, at);
            assert!(answer.starts_with(want), "{at}: {answer}");
        }
    }
    let refused = fairway.count("ends/proxy_header");
    assert!(net.on(Host::Client, || get(VIP, "/")).is_err(), "without a header");
    wait_for("it is counted", || fairway.count("ends/proxy_header") == refused + 1);
}

/// A document for an nginx that answers `/peer` with the address that it sees.
fn from(source: &str, backend: &str, head: &str) -> String {
    format!(
        "{head}services:\n  - name: web\n    addresses: [{VIP4}]\n    ports: [{{port: 80}}]\n    \
         backends: [{backend}]\n    source: {source}\n    healthCheck: {{type: none}}\n"
    )
}

#[test]
fn backends_see_the_source_that_is_asked_for() {
    let Some(net) = Net::new() else { return };
    let server = Nginx::start(&net, 1);
    let backend = server.addr.to_string();
    let peer = || net.on(Host::Client, || get(VIP, "/peer")).unwrap();
    for address in ["10.78.0.201", "10.78.0.202"] {
        net.exec(Host::Lb, &format!("ip address add {address}/24 dev servers"));
    }
    let fairway = Fairway::start(&net, &from("10.78.0.201", &backend, ""));
    assert_eq!(peer(), "10.78.0.201");
    fairway.apply(&from("{addresses: [10.78.0.201, 10.78.0.202]}", &backend, ""));
    let mut seen: Vec<String> = (0..20).map(|_| peer()).collect();
    seen.sort();
    seen.dedup();
    assert_eq!(seen, ["10.78.0.201", "10.78.0.202"], "in turn");
    fairway.apply(&from("{interface: servers, addresses: [10.78.0.202]}", &backend, ""));
    assert_eq!(peer(), "10.78.0.202");
    // More connections than the range has ports, over two addresses.
    let narrow = "{addresses: [10.78.0.201, 10.78.0.202], ports: 30000-30019}";
    fairway.apply(&from(narrow, &backend, ""));
    net.on(Host::Client, || {
        let mut held: Vec<_> = (0..36).map(|_| connect(VIP).unwrap()).collect();
        let served = held.iter_mut().filter_map(|stream| ask(stream, "/peer").ok()).count();
        assert!(served > 20, "{served} of 36 at once over 20 ports");
    });
    // An address that is not ours is said, and costs nobody else anything.
    fairway.apply(&from("192.0.2.77", &backend, ""));
    assert!(net.on(Host::Client, || get(VIP, "/peer")).is_err());
    let troubles = fairway.status().unwrap()["troubles"].to_string();
    assert!(troubles.contains("could not be given the `source`"), "{troubles}");
    assert_eq!(fairway.count("ends/local_error"), 1);
}

#[test]
fn transparent_backends_see_the_client() {
    let Some(net) = Net::new() else { return };
    let server = Nginx::start(&net, 1);
    // Replies to clients must come back through the balancer.
    net.exec(Host::Servers, "ip route add default via 10.78.0.1");
    let backend = server.addr.to_string();
    let peer = || net.on(Host::Client, || get(VIP, "/peer"));
    let fairway = Fairway::start(&net, &from("transparent", &backend, ""));
    let troubles = fairway.status().unwrap()["troubles"].to_string();
    assert!(troubles.contains("ip rule add fwmark"), "it says what is missing: {troubles}");
    drop(fairway);
    let head = "dataplane: {listen: tproxy}\n";
    let text = from("transparent", &backend, head).replace(&VIP4.to_string(), "10.99.0.1");
    let fairway = Fairway::start(&net, &text);
    let vip: SocketAddr = "10.99.0.1:80".parse().unwrap();
    assert_eq!(net.on(Host::Client, || get(vip, "/peer")).unwrap(), "10.77.0.2");
    assert_eq!(fairway.status().unwrap()["troubles"].as_array().unwrap().len(), 0);
    drop(fairway);
    // The same by hand, with listeners of its own.
    for command in [
        "nft add table inet fairway_replies",
        "nft add chain inet fairway_replies prerouting { type filter hook prerouting priority mangle ; }",
        "nft add rule inet fairway_replies prerouting socket transparent 1 meta mark set 0x6677 accept",
        "ip rule add fwmark 0x6677 lookup 26231",
        // An earlier process may have left it.
        "ip route replace local 0.0.0.0/0 dev lo table 26231",
    ] {
        net.exec(Host::Lb, command);
    }
    let fairway = Fairway::start(&net, &from("transparent", &backend, ""));
    assert_eq!(peer().unwrap(), "10.77.0.2");
    assert_eq!(fairway.status().unwrap()["troubles"].as_array().unwrap().len(), 0);
}

#[test]
fn transparent_backends_see_the_client_of_datagrams() {
    let Some(net) = Net::new() else { return };
    net.exec(Host::Servers, "ip route add default via 10.78.0.1");
    let addr: SocketAddr = "10.78.0.2:9000".parse().unwrap();
    // A server that answers with whom it hears.
    net.on(Host::Servers, || {
        let socket = UdpSocket::bind(addr).unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                socket.send_to(from.ip().to_string().as_bytes(), from).unwrap();
            }
        });
    });
    let text = format!(
        "dataplane: {{listen: tproxy}}\nservices:\n  - name: who\n    addresses: [10.99.0.1]\n    \
         ports: [{{port: 9000, protocol: UDP}}]\n    backends: [{addr}]\n    source: transparent\n"
    );
    let _fairway = Fairway::start(&net, &text);
    net.on(Host::Client, || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect("10.99.0.1:9000").unwrap();
        socket.set_read_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
        let mut buffer = [0; 64];
        let mut n = 0;
        wait_for("an answer", || {
            socket.send(b"who am I?").unwrap();
            n = socket.recv(&mut buffer).unwrap_or(0);
            n > 0
        });
        assert_eq!(&buffer[..n], b"10.77.0.2");
    });
}
