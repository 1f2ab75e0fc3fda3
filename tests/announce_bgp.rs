//! Addresses told to real routers by BGP, watched by BFD.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::time::Duration;

use fairway_tests::rack::{FAR, FAR_V6, Peer, Rack};
use fairway_tests::{Fairway, SECOND, wait_at_most, wait_for};

/// A document of box `n` whose VIPs are told to the router; `more` are further fields of the peer.
fn document(n: u8, more: &str) -> String {
    format!(
        "dataplane: {{vip: {{interface: lo}}}}\nannounce:\n  withdrawDelay: 1s\n  bfdProfiles: [{{name: quick, \
         receiveInterval: 100ms, transmitInterval: 100ms}}]\n  bgp:\n    myASN: 6451{n}\n    routerID: \
         10.81.0.{n}\n    peers:\n      - {{name: router, peerAddress: 10.81.0.254, peerASN: 64500{more}}}\n    \
         advertisements: [{{name: all, communities: [\"64512:7\", \"64512:1:2\"], med: 30}}]\nservices:\n  - name: \
         web\n    addresses: [{FAR}, \"{FAR_V6}\"]\n    ports: [{{port: 80}}]\n    backends: \
         [\"10.82.0.11:8080\"]\n    healthCheck: {{type: tcp, interval: 200ms, fall: 2, rise: 1}}\n"
    )
}

/// BIRD as the router of boxes 1 to `boxes`; `more` are further words of each session.
fn bird(rack: &Rack, boxes: u8, more: &str) -> Peer {
    let sessions: String = (1..=boxes)
        .map(|n| {
            format!(
                "protocol bgp box{n} {{ local 10.81.0.254 as 64500; neighbor 10.81.0.{n} as 6451{n}; {more}\n\
                 error wait time 1, 1;\n\
                 ipv4 {{ import all; export none; next hop self; }}; ipv6 {{ import all; export none; }}; }}\n"
            )
        })
        .collect();
    let bfd = "protocol bfd { interface \"front\" { min rx interval 100 ms; min tx interval 100 ms; \
               multiplier 3; }; }\n";
    Peer::bird(rack, "router", &format!("{bfd}{sessions}"))
}

fn is_told(fairway: &Fairway, routes: u64) -> bool {
    let peer = &fairway.announced()["peers"][0];
    peer["state"] == "Established" && peer["routes"] == routes
}

#[test]
fn bird_is_told_of_both_families_and_of_what_they_come_to() {
    let Some(rack) = Rack::new(&["a"]) else { return };
    let mut server = rack.server(1);
    let bird = bird(&rack, 1, "password \"hush\"; bfd on;");
    let key = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(key.path(), "hush\n").unwrap();
    let more = format!(", bfdProfile: quick, passwordFile: {}", key.path().display());
    let mut fairway = rack.fairway("a", &document(1, &more));
    wait_for("the router is told", || is_told(&fairway, 2));
    wait_for("clients are served", || rack.answers(FAR) && rack.answers(FAR_V6));
    let route = bird.birdc(&format!("show route for {FAR} all"));
    for want in [
        "BGP.as_path: 64511",
        "BGP.next_hop: 10.81.0.1",
        "BGP.med: 30",
        "BGP.community: (64512,7)",
        "BGP.large_community: (64512, 1, 2)",
        "BGP.origin: IGP",
    ] {
        assert!(route.contains(want), "{want}\n{route}");
    }
    let route = bird.birdc(&format!("show route for {FAR_V6} all"));
    assert!(route.contains("BGP.next_hop: fd81::1"), "{route}");
    wait_for("BFD is up", || fairway.announced()["peers"][0]["bfd"]["state"] == "up");
    // Without a backend nobody comes; with one again, they do.
    server.kill();
    wait_for("it is taken back", || !bird.birdc("show route").contains(FAR));
    assert!(is_told(&fairway, 0));
    server.restart();
    wait_for("it is told again", || bird.birdc("show route").contains(FAR));
    // An UPDATE of the router changes nothing here, and an order of its operator is obeyed.
    bird.birdc("restart box1");
    wait_for("a new session", || fairway.announced()["peers"][0]["changes"] == 3);
    wait_for("the router is told", || is_told(&fairway, 2));
    bird.birdc("reload in box1");
    wait_for("it has all once more", || bird.birdc("show route").contains(FAR_V6));
    let metrics = rack
        .on("a", || fairway_tests::http::get(([127, 0, 0, 1], 9180).into(), "/metrics").unwrap());
    for want in [
        "fairway_bgp_session_up{peer=\"router\"} 1",
        "fairway_bgp_routes{peer=\"router\"} 2",
        "fairway_bfd_session_up{peer=\"router\"} 1",
        "fairway_announce_address_peers{address=\"10.90.0.100\"} 1",
    ] {
        assert!(metrics.contains(want), "{want}\n{metrics}");
    }
    // A box that goes asks for other ways, then takes back, and serves meanwhile.
    fairway.signal(rustix::process::Signal::TERM);
    wait_for("it asks for other ways", || {
        bird.birdc(&format!("show route for {FAR} all")).contains("(65535,0)")
    });
    assert!(rack.answers(FAR));
    wait_for("it takes back", || !bird.birdc("show route").contains(FAR));
    fairway.wait();
    let state = bird.birdc("show protocols all box1");
    assert!(state.contains("Received: Administrative shutdown"), "{state}");
}

#[test]
fn a_wrong_key_makes_no_session_and_is_said() {
    let Some(rack) = Rack::new(&["a"]) else { return };
    let _server = rack.server(1);
    let _bird = bird(&rack, 1, "password \"hush\";");
    let key = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(key.path(), "other\n").unwrap();
    let more = format!(", passwordFile: {}", key.path().display());
    let fairway = rack.fairway("a", &document(1, &more));
    let says = |want: &str| {
        let status = fairway.status().unwrap();
        status["troubles"].as_array().unwrap().iter().any(|it| it.as_str().unwrap().contains(want))
    };
    wait_for("it is said", || says("10.81.0.254:179 does not answer"));
    // The key is read at each try.
    std::fs::write(key.path(), "").unwrap();
    wait_at_most(15 * SECOND, "it is said", || says("is empty"));
    std::fs::write(key.path(), "hush").unwrap();
    wait_at_most(20 * SECOND, "the router is told", || is_told(&fairway, 2));
}

#[test]
fn a_box_that_is_killed_or_frozen_is_noticed_by_bfd() {
    let Some(rack) = Rack::new(&["a", "b"]) else { return };
    let _server = rack.server(1);
    let bird = bird(&rack, 2, "bfd on; bfd { min rx interval 100 ms; min tx interval 100 ms; };");
    let mut a = rack.fairway("a", &document(1, ", bfdProfile: quick"));
    let b = rack.fairway("b", &document(2, ", bfdProfile: quick"));
    let both = || {
        let routes = rack.exec("router", &format!("ip route show {FAR}"));
        routes.contains("10.81.0.1") && routes.contains("10.81.0.2")
    };
    let is_watched = |box_: &Fairway| box_.announced()["peers"][0]["bfd"]["state"] == "up";
    wait_for("both are told of", || both() && is_watched(&a) && is_watched(&b));
    wait_for("clients are served", || rack.answers(FAR));
    for (what, freezes) in [("frozen", true), ("killed", false)] {
        let outage = rack.watch(FAR);
        std::thread::sleep(Duration::from_millis(300));
        match freezes {
            true => a.signal(rustix::process::Signal::STOP),
            false => a.kill(),
        }
        wait_for("one is left", || !both());
        std::thread::sleep(Duration::from_millis(300));
        let (longest, failed) = outage.end();
        println!(
            "BGP with BFD 100 ms x 3, a box of two {what}: {longest:?}, {failed} dials failed"
        );
        assert!(longest < 5 * SECOND, "{longest:?}");
        if freezes {
            a.signal(rustix::process::Signal::CONT);
            wait_at_most(20 * SECOND, "both are told of again", || both() && is_watched(&a));
        }
    }
    drop((b, bird));
}

#[test]
fn messages_that_are_none_end_a_session_and_the_next_is_good() {
    use std::io::{Read, Write};
    let Some(rack) = Rack::new(&["a"]) else { return };
    let _server = rack.server(1);
    let listener = rack.on("router", || std::net::TcpListener::bind("10.81.0.254:179").unwrap());
    let fairway = rack.fairway("a", &document(1, ", connectTime: 1s"));
    let marker = [0xff; 16];
    let open = [&marker[..], &[0, 29, 1, 4, 0xfb, 0xf4, 0, 90, 10, 81, 0, 254, 0]].concat();
    let keepalive = [&marker[..], &[0, 19, 4]].concat();
    // What is said instead of an OPEN, or after a good beginning.
    let spoiled: [&[u8]; 5] = [
        b"GET / HTTP/1.0\r\n\r\n     ",
        &[&marker[..], &[0xff, 0xff, 1]].concat(),
        &[&marker[..], &[0, 19, 77]].concat(),
        &[&open[..28], &[200], &[0; 10]].concat(),
        &[&marker[..], &[0, 20, 4, 0]].concat(),
    ];
    for (n, bytes) in spoiled.iter().enumerate() {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(5 * SECOND)).unwrap();
        if n > 2 {
            stream.write_all(&[&open[..], &keepalive].concat()).unwrap();
        }
        // Whoever has closed already has seen enough.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut heard = Vec::new();
        let _ = stream.read_to_end(&mut heard);
        assert!(heard.starts_with(&marker), "it begins with its OPEN");
        // In the end it says why: a NOTIFICATION.
        let last = heard.windows(16).rposition(|octets| octets == marker).unwrap();
        let words = &heard[last + 18..];
        assert!(words.starts_with(&[3]) && words.len() >= 3, "{n}: {words:?}");
    }
    let (mut stream, _) = listener.accept().unwrap();
    stream.write_all(&[&open[..], &keepalive].concat()).unwrap();
    // An UPDATE without sense is not looked at.
    stream.write_all(&[&marker[..], &[0, 25, 2, 9, 9, 9, 9, 9, 9]].concat()).unwrap();
    // It takes IPv4 alone.
    wait_for("the session is up", || is_told(&fairway, 1));
    let troubles = fairway.announced()["troubles"].to_string();
    assert!(troubles.contains("is told nothing of IPv6"), "{troubles}");
}

#[test]
fn frr_and_gobgp_are_told_too() {
    let Some(rack) = Rack::new(&["a", "b"]) else { return };
    let _server = rack.server(1);
    let frr = Peer::frr(
        &rack,
        "router",
        "hostname router\nbfd\n profile quick\n  receive-interval 100\n  transmit-interval 100\nrouter bgp 64500\n \
         bgp router-id 10.81.0.254\n no bgp ebgp-requires-policy\n neighbor 10.81.0.1 remote-as 64511\n neighbor \
         10.81.0.1 bfd profile quick\n neighbor 10.81.0.1 capability extended-nexthop\n address-family ipv6 \
         unicast\n  neighbor 10.81.0.1 activate\n",
    );
    let gobgp = Peer::gobgp(
        &rack,
        "b",
        "[global.config]\nas = 64512\nrouter-id = \"10.81.0.2\"\n[[neighbors]]\n[neighbors.config]\n\
         neighbor-address = \"10.81.0.1\"\npeer-as = 64511\n[neighbors.transport.config]\npassive-mode = true\n\
         [[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\nafi-safi-name = \"ipv4-unicast\"\n\
         [[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\nafi-safi-name = \"ipv6-unicast\"\n",
    );
    let two = document(1, ", bfdProfile: quick").replace(
        "    advertisements",
        "      - {name: other, peerAddress: 10.81.0.2, peerASN: external}\n    advertisements",
    );
    let fairway = rack.fairway("a", &two);
    let peers = || fairway.announced()["peers"].clone();
    wait_at_most(30 * SECOND, "both are told", || {
        peers().as_array().unwrap().iter().all(|peer| peer["routes"] == 2)
    });
    wait_for("BFD is up", || {
        peers()[1]["bfd"]["state"] == "up" || peers()[0]["bfd"]["state"] == "up"
    });
    let route = frr.vtysh(&format!("show bgp ipv4 unicast {FAR}/32"));
    for want in [
        "64511",
        "10.81.0.1 from 10.81.0.1",
        "metric 30",
        "Community: 64512:7",
        "Large Community: 64512:1:2",
    ] {
        assert!(route.contains(want), "{want}\n{route}");
    }
    assert!(frr.vtysh(&format!("show bgp ipv6 unicast {FAR_V6}/128")).contains("fd81::1"));
    let rib = gobgp.gobgp_says("global rib");
    assert!(rib.contains(&format!("{FAR}/32")) && rib.contains("10.81.0.1"), "{rib}");
    assert!(gobgp.gobgp_says("global rib -a ipv6").contains(FAR_V6));
    wait_for("clients are served", || rack.answers(FAR) && rack.answers(FAR_V6));
}

#[test]
fn routers_may_connect_and_one_connection_stays() {
    let Some(rack) = Rack::new(&["a"]) else { return };
    let _server = rack.server(1);
    let listening =
        |more: &str| document(1, more).replace("    routerID", "    listenPort: 179\n    routerID");
    // Both connect; then the router alone.
    let bird = bird(&rack, 1, "connect delay time 1; connect retry time 1;");
    let fairway = rack.fairway("a", &listening(""));
    wait_for("the router is told", || is_told(&fairway, 2));
    let connections = || {
        let all = rack.exec("a", "ss -Htn state established ( sport = :179 or dport = :179 )");
        all.lines().count()
    };
    wait_for("one connection stays", || connections() == 1);
    bird.birdc("restart box1");
    wait_for("the router is told again", || is_told(&fairway, 2) && connections() == 1);
    fairway.apply(&listening(", passive: true"));
    wait_at_most(20 * SECOND, "the router is told again", || is_told(&fairway, 2));
    assert!(bird.birdc("show route").contains(FAR));
    // One that has gone from the document is told to end it.
    let without = listening("").replace("name: router", "name: another");
    fairway.apply(&without.replace("10.81.0.254", "10.81.0.253"));
    wait_for("it is taken back", || !bird.birdc("show route").contains(FAR));
}

#[test]
fn routers_of_our_own_system_are_told_over_ipv6_and_keep_routes_while_we_restart() {
    let Some(rack) = Rack::new(&["a"]) else { return };
    let _server = rack.server(1);
    let bird = Peer::bird(
        &rack,
        "router",
        "protocol bgp a { local fd81::fe as 64511; neighbor fd81::1 as 64511; error wait time 1, 1;\n\
         ipv4 { import all; export none; extended next hop; }; ipv6 { import all; export none; }; }\n",
    );
    let document = document(1, ", enableGracefulRestart: true, restartTime: 60s")
        .replace(
            "peerAddress: 10.81.0.254, peerASN: 64500",
            "peerAddress: \"fd81::fe\", peerASN: internal",
        )
        .replace("med: 30", "localPref: 300, aggregationLength: 24");
    let mut fairway = rack.fairway("a", &document);
    wait_for("the router is told", || is_told(&fairway, 2));
    let route = bird.birdc("show route for 10.90.0.0/24 all");
    for want in ["BGP.local_pref: 300", "BGP.next_hop: 10.81.0.1", "from fd81::1"] {
        assert!(route.contains(want), "{want}\n{route}");
    }
    assert!(!route.contains("BGP.med"), "our own system is told no metric\n{route}");
    // Killed, it is expected back: its routes stay, and those that it does not tell again go.
    fairway.kill();
    wait_for("it is missed", || {
        bird.birdc("show protocols all a").contains("Neighbor graceful restart active")
    });
    assert!(bird.birdc("show route").contains("10.90.0.0/24"));
    fairway.start_again();
    wait_for("the router is told again", || is_told(&fairway, 2));
    wait_for("the restart is over", || {
        !bird.birdc("show protocols all a").contains("Neighbor graceful restart active")
    });
    let routes = bird.birdc("show route");
    assert!(routes.contains("10.90.0.0/24") && routes.contains(FAR_V6), "{routes}");
}

#[test]
fn flows_of_three_boxes_go_on_when_one_dies() {
    let Some(rack) = Rack::new(&["a", "b", "c"]) else { return };
    // Servers have the address, and answer past the boxes.
    rack.plug_router_back();
    rack.exec("servers", "ip route add default via 10.82.0.253");
    rack.exec("servers", "sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.rp_filter=0");
    rack.exec("router", "sysctl -qw net.ipv4.conf.all.rp_filter=0");
    rack.exec("servers", &format!("ip address add {FAR}/32 dev lo"));
    let _server = rack.server_at_80();
    let _bird = bird(&rack, 3, "");
    let document = |n: u8| {
        document(n, "")
            .replace("vip: {interface: lo}", "packet: {interfaces: [front, back]}")
            .replace("name: web", "name: web\n    mode: dsr")
            .replace(&format!(", \"{FAR_V6}\""), "")
            .replace("\"10.82.0.11:8080\"", "10.82.0.11, 10.82.0.12")
    };
    let mut boxes = Vec::from_iter(
        (1..).zip(["a", "b", "c"]).map(|(n, host)| rack.fairway(host, &document(n))),
    );
    let ways =
        || rack.exec("router", &format!("ip route show {FAR}")).matches("via 10.81.0.").count();
    wait_for("all are told of", || ways() == 3 && rack.answers(FAR));
    let at = std::net::SocketAddr::new(FAR.parse().unwrap(), 80);
    let mut open: Vec<_> =
        rack.on("client", || (0..30).map(|_| fairway_tests::http::connect(at).unwrap()).collect());
    let ask = |open: &mut Vec<std::net::TcpStream>| {
        open.iter_mut()
            .map(|stream| usize::from(fairway_tests::http::ask(stream, "/").is_ok()))
            .sum::<usize>()
    };
    assert_eq!(ask(&mut open), 30);
    boxes[1].kill();
    wait_for("two are left", || ways() == 2);
    assert_eq!(ask(&mut open), 30, "whoever gets a flow now finds its backend");
}

#[test]
fn a_router_may_be_several_hops_away() {
    let Some(rack) = Rack::new(&["a"]) else { return };
    let _server = rack.server(1);
    rack.exec("router", "ip address add 10.99.0.1/32 dev lo");
    let _bird = Peer::bird(
        &rack,
        "router",
        "protocol bfd { multihop { interval 100 ms; }; accept multihop; }\nprotocol bgp a { local 10.99.0.1 as \
         64500; neighbor 10.81.0.1 as 64511; multihop 2; bfd on; error wait time 1, 1;\nipv4 { import all; export \
         none; }; ipv6 { import all; export none; }; }\n",
    );
    let document = document(1, ", ebgpMultiHop: true, sourceAddress: 10.81.0.1, bfdProfile: quick")
        .replace("peerAddress: 10.81.0.254", "peerAddress: 10.99.0.1");
    let fairway = rack.fairway("a", &document);
    wait_for("the router is told", || is_told(&fairway, 2));
    // BIRD speaks with its system's TTL, and we say so.
    let told = "TTL of 64, and 254 is least";
    wait_for("it is said what is in the way", || {
        fairway.announced()["troubles"].to_string().contains(told)
    });
    fairway.apply(&document.replace("transmitInterval: 100ms", "minimumTTL: 64"));
    wait_for("BFD is up", || fairway.announced()["peers"][0]["bfd"]["state"] == "up");
    assert!(!fairway.announced()["troubles"].to_string().contains("TTL"));
}
