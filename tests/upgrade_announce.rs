//! From one process to the next while addresses are announced: nobody outside is to notice.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::net::SocketAddr;

use fairway_tests::http::{Outcome, load};
use fairway_tests::rack::{FAR, FAR_V6, NEAR, NEAR_V6, Peer, Rack};
use fairway_tests::{Fairway, wait_for};
use rustix::process::Signal;

/// Upgrades so many times in a row while clients ask; not a request may fail.
fn upgrades_under_load(rack: &Rack, fairway: &mut Fairway, vips: [&str; 2], count: usize) {
    let outcome = Outcome::default();
    std::thread::scope(|scope| {
        let _stop = outcome.stopper();
        for vip in vips {
            let (outcome, vip) = (&outcome, SocketAddr::new(vip.parse().unwrap(), 80));
            scope.spawn(move || rack.on("client", || load(vip, "/", 1_000_000, outcome)));
        }
        for n in 0..count {
            let before = outcome.requests();
            fairway.upgrade();
            wait_for("some requests more", || outcome.requests() > before + 20);
            assert_eq!(outcome.failed(), 0, "at upgrade {n}\n{}", fairway.log());
        }
    });
    assert_eq!(outcome.failed(), 0, "of {} requests", outcome.requests());
}

#[test]
fn groups_stay_active_and_no_other_box_takes_over() {
    let Some(rack) = Rack::new(&["a", "b"]) else { return };
    let _server = rack.server(1);
    let document = format!(
        "announce:\n  vrrp:\n    - {{name: web, interface: front, virtualRouterId: 51, priority: 200, preemptDelay: \
         60s}}\nservices:\n  - name: web\n    addresses: [{NEAR}, \"{NEAR_V6}\"]\n    ports: [{{port: 80}}]\n    \
         backends: [\"10.82.0.11:8080\"]\n    healthCheck: {{type: tcp, interval: 200ms, fall: 2, rise: 1}}\n"
    );
    let mut fairway = rack.fairway("a", &document);
    let groups = || fairway.announced()["groups"].clone();
    let active = || groups().as_array().unwrap().iter().all(|it| it["state"] == "active");
    let has = |host| rack.with_address(NEAR) == [host] && rack.with_address(NEAR_V6) == [host];
    wait_for("a is active", || active() && has("a"));
    let other = Peer::keepalived_with_both(&rack, "b", 150);
    wait_for("keepalived waits", || other.log().matches("Entering BACKUP STATE").count() == 2);
    wait_for("clients are served", || rack.answers(NEAR) && rack.answers(NEAR_V6));
    let changes = groups()[0]["changes"].clone();
    upgrades_under_load(&rack, &mut fairway, [NEAR, NEAR_V6], 5);
    fairway.fails_to_upgrade();
    upgrades_under_load(&rack, &mut fairway, [NEAR, NEAR_V6], 1);
    let (log, others) = (fairway.log(), other.log());
    assert!(!others.contains("Entering MASTER STATE"), "{others}\n{log}");
    assert_eq!(log.matches("taken over").count(), 2, "once for each family\n{log}");
    for word in ["given up", "address removed", "somebody has removed", "the guard of addresses"] {
        assert!(!log.contains(word), "{word}\n{log}");
    }
    assert_eq!(fairway.announced()["groups"][0]["changes"], changes);
    assert!(has("a"));
    // The addresses still go with the process, and with this one alone.
    fairway.signal(Signal::KILL);
    wait_for("b has them", || has("b"));
}

#[test]
fn routers_keep_their_sessions_and_their_routes() {
    let Some(rack) = Rack::new(&["a", "b"]) else { return };
    let _server = rack.server(1);
    let key = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(key.path(), "hush\n").unwrap();
    // Once we have made the connection, once the router has.
    for (more, ours) in [("", true), (", passive: true", false)] {
        let bird = Peer::bird(
            &rack,
            "router",
            &format!(
                "protocol bfd {{ interface \"front\" {{ min rx interval 100 ms; min tx interval 100 ms; multiplier \
                 5; }}; }}\nprotocol bgp a {{ local 10.81.0.254 as 64500; neighbor 10.81.0.1 as 64511; password \
                 \"hush\"; bfd on; hold time 3; error wait time 1, 1; connect delay time 1; {}\n\
                 ipv4 {{ import all; export none; next hop self; }}; ipv6 {{ import all; export none; }}; }}\n",
                if ours { "passive on;" } else { "" }
            ),
        );
        // Another one is away, and comes when an upgrade has failed.
        let document = format!(
            "dataplane: {{vip: {{interface: lo}}}}\nannounce:\n  bfdProfiles: [{{name: quick, receiveInterval: 100ms, \
             transmitInterval: 100ms, detectMultiplier: 5}}]\n  bgp:\n    myASN: 64511\n    listenPort: 179\n    peers: [{{name: router, \
             peerAddress: 10.81.0.254, peerASN: 64500, bfdProfile: quick, passwordFile: {}{more}}}, {{name: \
             other, peerAddress: 10.81.0.2, peerASN: 64501, connectTime: 1s}}]\n    \
             advertisements: [{{name: all, communities: [\"64512:7\"]}}]\nservices:\n  - name: web\n    addresses: \
             [{FAR}, \"{FAR_V6}\"]\n    ports: [{{port: 80}}]\n    backends: [\"10.82.0.11:8080\"]\n    healthCheck: \
             {{type: tcp, interval: 200ms, fall: 2, rise: 1}}\n",
            key.path().display()
        );
        let mut fairway = rack.fairway("a", &document);
        let named = |fairway: &Fairway, name: &str| {
            let peers = fairway.announced()["peers"].clone();
            let found = peers.as_array().unwrap().iter().find(|peer| peer["name"] == name).cloned();
            found.unwrap()
        };
        let peer = |fairway: &Fairway| named(fairway, "router");
        wait_for("the router is told, and watched", || {
            let peer = peer(&fairway);
            peer["routes"] == 2 && peer["bfd"]["state"] == "up"
        });
        wait_for("clients are served", || rack.answers(FAR) && rack.answers(FAR_V6));
        let stands = || {
            let (sessions, bfd) = (bird.birdc("show protocols a"), bird.birdc("show bfd sessions"));
            let since = |text: &str, word: &str| {
                let line = text.lines().find(|line| line.contains(word)).map(str::to_owned);
                line.unwrap_or_else(|| panic!("no {word} in {text}"))
            };
            (since(&sessions, "Established"), since(&bfd, "10.81.0.1"))
        };
        let (before, changes) = (stands(), peer(&fairway)["changes"].clone());
        upgrades_under_load(&rack, &mut fairway, [FAR, FAR_V6], 5);
        fairway.fails_to_upgrade();
        let other = Peer::bird(
            &rack,
            "b",
            "protocol bgp a { router id 10.81.0.2; local 10.81.0.2 as 64501; neighbor 10.81.0.1 as 64511; passive \
             on;\nipv4 { import all; export none; }; }\n",
        );
        wait_for("who was away is told", || named(&fairway, "other")["routes"] == 1);
        assert!(other.birdc("show route").contains(FAR));
        upgrades_under_load(&rack, &mut fairway, [FAR, FAR_V6], 1);
        assert_eq!(stands(), before, "{}", fairway.log());
        let now = peer(&fairway);
        assert_eq!((&now["changes"], &now["routes"]), (&changes, &2.into()), "{now}");
        assert_eq!(now["bfd"]["state"], "up", "{now}");
        // Longer than the hold time: this process speaks, hears and tells.
        let more = document.replace(&format!("[{FAR}, "), &format!("[{FAR}, 10.90.0.77, "));
        fairway.apply(&more);
        wait_for("it is told", || bird.birdc("show route").contains("10.90.0.77/32"));
        std::thread::sleep(4 * fairway_tests::SECOND);
        assert_eq!(stands(), before, "{}", fairway.log());
        fairway.apply(&document);
        wait_for("it is taken back", || !bird.birdc("show route").contains("10.90.0.77/32"));
        // It is still watched.
        fairway.signal(Signal::KILL);
        wait_for("it is missed", || !bird.birdc("show route").contains(FAR));
    }
}
