//! Addresses that one of several boxes has, and addresses that stations are told of.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use fairway_tests::rack::{NEAR, NEAR_V6, Peer, Rack};
use fairway_tests::{Fairway, SECOND, wait_at_most, wait_for};
use rustix::process::Signal;

/// A document of a box with a priority, whose VIPs are of a group; `more` are further fields of that.
fn document(priority: u8, more: &str) -> String {
    format!(
        "announce:\n  vrrp:\n    - {{name: web, interface: front, virtualRouterId: 51, priority: \
         {priority}{more}}}\nservices:\n  - name: web\n    addresses: [{NEAR}, \"{NEAR_V6}\"]\n    ports: [{{port: \
         80}}]\n    backends: [\"10.82.0.11:8080\"]\n    healthCheck: {{type: tcp, interval: 200ms, fall: 2, rise: \
         1}}\n"
    )
}

/// How a box stands in its group, for each family.
fn states(fairway: &Fairway) -> Vec<String> {
    let groups = fairway.announced()["groups"].clone();
    let state = |group: &serde_json::Value| group["state"].as_str().unwrap().to_owned();
    groups.as_array().unwrap().iter().map(state).collect()
}

fn is(fairway: &Fairway, state: &str) -> bool {
    states(fairway) == [state, state]
}

#[test]
fn keepalived_and_fairway_take_turns() {
    let Some(rack) = Rack::new(&["a", "b"]) else { return };
    let _server = rack.server(1);
    let other = Peer::keepalived_with_both(&rack, "b", 150);
    let has = |host| rack.with_address(NEAR) == [host] && rack.with_address(NEAR_V6) == [host];
    wait_for("keepalived is active", || has("b"));
    let fairway = rack.fairway("a", &document(100, ""));
    let heard = || {
        let groups = fairway.announced()["groups"].clone();
        groups.as_array().unwrap().iter().all(|group| {
            group["heard"].as_str().is_some_and(|heard| heard.ends_with("with priority 150"))
        })
    };
    wait_for("it hears keepalived", heard);
    assert!(is(&fairway, "backup") && has("b"));
    // keepalived stops in order, and comes back.
    drop(other);
    wait_for("Fairway is active", || is(&fairway, "active") && has("a"));
    assert_eq!(fairway.announced()["groups"][0]["cause"], "the active box has left");
    wait_for("clients are served", || rack.answers(NEAR));
    let other = Peer::keepalived_with_both(&rack, "b", 150);
    wait_for("keepalived is active again", || is(&fairway, "backup") && has("b"));
    assert_eq!(fairway.announced()["groups"][0]["cause"], "a box of higher priority is active");
    // Of lower priority it gives way to us.
    drop(other);
    let other = Peer::keepalived_with_both(&rack, "b", 50);
    wait_for("Fairway is active", || is(&fairway, "active") && has("a"));
    let groups = fairway.announced()["groups"].clone();
    assert!(
        groups.as_array().unwrap().iter().all(|group| group["oddAdvertisements"] == 0),
        "{groups}"
    );
    let log = other.log();
    for word in ["invalid", "mismatch", "discard", "error"] {
        assert!(!log.to_lowercase().contains(word), "{word}\n{log}");
    }
}

/// What happens to the box that has the addresses, and how it is undone.
struct Case {
    name: &'static str,
    happens: fn(&Rack, &mut Fairway),
    undone: fn(&Rack, &mut Fairway),
    /// Its kernel is to have let go of the addresses, too.
    is_there: bool,
}

const CASES: [Case; 5] = [
    Case {
        name: "killed",
        happens: |_, fairway| fairway.kill(),
        undone: |_, fairway| fairway.start_again(),
        is_there: true,
    },
    Case {
        name: "frozen",
        happens: |_, fairway| fairway.signal(Signal::STOP),
        undone: |_, fairway| fairway.signal(Signal::CONT),
        is_there: true,
    },
    Case {
        name: "drained",
        happens: |_, fairway| assert!(fairway.cli(&["announce", "drain"]).status.success()),
        undone: |_, fairway| assert!(fairway.cli(&["announce", "undrain"]).status.success()),
        is_there: true,
    },
    Case {
        name: "cut off from the backends",
        happens: |rack, _| _ = rack.exec("switch", "ip link set ba down"),
        undone: |rack, _| _ = rack.exec("switch", "ip link set ba up"),
        is_there: true,
    },
    Case {
        name: "cut off from the router",
        happens: |rack, _| _ = rack.exec("switch", "ip link set fa down"),
        undone: |rack, _| _ = rack.exec("switch", "ip link set fa up"),
        is_there: true,
    },
];

#[test]
fn another_box_takes_over_whatever_happens() {
    let Some(rack) = Rack::new(&["a", "b"]) else { return };
    let _server = rack.server(1);
    let drain = "shutdown: {drainTimeout: 1s}\n";
    let mut a = rack.fairway("a", &(document(200, "") + drain));
    let b = rack.fairway("b", &(document(150, "") + drain));
    let has = |host| rack.with_address(NEAR) == [host] && rack.with_address(NEAR_V6) == [host];
    wait_for("a is active", || has("a") && is(&b, "backup"));
    wait_for("clients are served", || rack.answers(NEAR) && rack.answers(NEAR_V6));
    for case in CASES {
        let (four, six) = (rack.watch(NEAR), rack.watch(NEAR_V6));
        // The measure begins while all is well.
        std::thread::sleep(Duration::from_millis(200));
        let begun = Instant::now();
        (case.happens)(&rack, &mut a);
        wait_for("b is active", || is(&b, "active"));
        let taken = begun.elapsed();
        let both = || !rack.with_address(NEAR).contains(&"a");
        wait_for("a has let go", || !case.is_there || both());
        let let_go = begun.elapsed();
        wait_for("clients are served", || rack.answers(NEAR) && rack.answers(NEAR_V6));
        let ((four, failed), (six, _)) = (four.end(), six.end());
        println!(
            "VRRP at 200 ms, {}: without an answer for {four:?} (IPv6 {six:?}), {failed} dials failed; b has them \
             after {taken:?}, a has let go after {let_go:?}",
            case.name
        );
        assert!(four < 5 * SECOND && six < 5 * SECOND, "{}", case.name);
        (case.undone)(&rack, &mut a);
        wait_at_most(20 * SECOND, "a has them again", || has("a") && is(&b, "backup"));
        wait_for("clients are served", || rack.answers(NEAR) && rack.answers(NEAR_V6));
    }
    // One that is stopped serves until the other has taken over.
    let outage = rack.watch(NEAR);
    std::thread::sleep(Duration::from_millis(200));
    a.signal(Signal::TERM);
    a.wait();
    wait_for("b is active", || is(&b, "active") && has("b"));
    let (longest, failed) = outage.end();
    println!("VRRP at 200 ms, stopped: without an answer for {longest:?}, {failed} dials failed");
    let log = b.log();
    assert!(log.contains("taken over") && log.contains("the active box has left"), "{log}");
}

#[test]
fn three_boxes_by_unicast_do_not_preempt_when_told() {
    let Some(rack) = Rack::new(&["a", "b", "c"]) else { return };
    let _server = rack.server(1);
    let peers = |own: u8| {
        let others: Vec<_> = (1..=3).filter(|n| *n != own).collect();
        let four = others.iter().map(|n| format!("10.81.0.{n}"));
        format!(
            ", sourceAddress: 10.81.0.{own}, preempt: false, addresses: [{NEAR}], unicastPeers: [{}]",
            four.collect::<Vec<_>>().join(", ")
        )
    };
    let mut a = rack.fairway("a", &document(200, &peers(1)));
    wait_for("a is active", || states(&a) == ["active"]);
    let b = rack.fairway("b", &document(150, &peers(2)));
    let c = rack.fairway("c", &document(100, &peers(3)));
    wait_for("the others hear it", || states(&b) == ["backup"] && states(&c) == ["backup"]);
    a.kill();
    wait_for("b is active", || states(&b) == ["active"] && rack.with_address(NEAR) == ["b"]);
    assert_eq!(states(&c), ["backup"]);
    a.start_again();
    wait_for("a hears b", || a.announced()["groups"][0]["heard"].is_string());
    assert_eq!((states(&a), states(&b)), (vec!["backup".into()], vec!["active".into()]));
    // IPv6 is no group's here, and that is said.
    let troubles = b.announced()["troubles"].to_string();
    assert!(troubles.contains(&format!("nothing of `announce` chooses {NEAR_V6}")), "{troubles}");
}

#[test]
fn stations_are_answered_on_the_interfaces_that_are_chosen() {
    let Some(rack) = Rack::new(&["a", "b"]) else { return };
    let _server = rack.server(1);
    // Transparent sockets take connections to addresses that the kernel does not have.
    let layer2 = |more: &str| {
        format!(
            "dataplane: {{listen: tproxy}}\nannounce:\n  layer2: [{{name: lan, interfaces: [front]{more}}}]\nservices:\n  \
             - name: web\n    addresses: [{NEAR}, \"{NEAR_V6}\"]\n    ports: [{{port: 80}}]\n    backends: \
             [\"10.82.0.11:8080\"]\n"
        )
    };
    let fairway = rack.fairway("a", &layer2(""));
    wait_for("clients are served", || rack.answers(NEAR));
    assert!(rack.with_address(NEAR).is_empty(), "it was not added");
    assert_eq!(rack.at(NEAR), Some("a"));
    // The router asks anew, for IPv6 in the group of the address.
    rack.exec("router", "ip neigh flush dev front");
    wait_for("the router has asked", || {
        // Whether this kernel takes the connection is another matter.
        drop(rack.dial("router", NEAR_V6));
        rack.at(NEAR_V6) == Some("a")
    });
    // On the other segment nobody is told.
    assert!(rack.dial("servers", NEAR).is_err());
    // Another station that has the address is told of.
    std::thread::sleep(Duration::from_secs(4));
    rack.exec("b", &format!("ip address add {NEAR}/32 dev front"));
    rack.exec("b", "ip neigh flush dev front");
    rack.on("b", || {
        // Who asks by that address says that it is his.
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
        socket.bind(&SocketAddr::new(NEAR.parse().unwrap(), 0).into()).unwrap();
        socket.send_to(b"x", &SocketAddr::from(([10, 81, 0, 77], 9)).into()).unwrap();
    });
    let station = rack.station("b", "front");
    wait_for("it is noticed", || fairway.announced()["duplicates"][0]["station"] == *station);
    let status = fairway.status().unwrap()["troubles"].to_string();
    assert!(status.contains(&format!("{NEAR} is on another station of `front`, too: {station}")));
    // Elsewhere chosen, it is answered there alone.
    fairway.apply(&layer2("").replace("[front]", "[back]"));
    rack.exec("b", &format!("ip address del {NEAR}/32 dev front"));
    rack.exec("router", "ip neigh flush dev front");
    wait_for("it is not answered any more", || !rack.answers(NEAR));
}

#[test]
fn forwarded_connections_outlive_their_box() {
    let Some(rack) = Rack::new(&["a", "b"]) else { return };
    let _servers = [rack.server(1), rack.server(2)];
    let document = |priority: u8| {
        format!(
            "dataplane: {{packet: {{interfaces: [front, back]}}}}\nannounce:\n  vrrp: [{{name: v, interface: front, \
             virtualRouterId: 7, priority: {priority}}}]\nservices:\n  - name: web\n    mode: \
             nat\n    addresses: [{NEAR}]\n    ports: [{{port: 80, targetPort: 8080}}]\n    backends: [10.82.0.11, \
             10.82.0.12]\n"
        )
    };
    let mut a = rack.fairway("a", &document(200));
    let b = rack.fairway("b", &document(150));
    wait_for("a is active", || states(&a).contains(&"active".into()));
    rack.exec("servers", "ip route add 10.80.0.0/24 via 10.82.0.1");
    wait_for("clients are served", || rack.answers(NEAR));
    assert_eq!(rack.at(NEAR), Some("a"), "the other one is silent");
    let mut stream = rack.on("client", || {
        fairway_tests::http::connect(SocketAddr::new(NEAR.parse().unwrap(), 80)).unwrap()
    });
    let before = fairway_tests::http::ask(&mut stream, "/").unwrap();
    a.kill();
    wait_for("b has it", || states(&b).contains(&"active".into()));
    // The way back is the operator's: by a gateway address, or as here by hand.
    rack.exec("servers", "ip route replace 10.80.0.0/24 via 10.82.0.2");
    wait_for("the router knows", || rack.at(NEAR) == Some("b"));
    let after = fairway_tests::http::ask(&mut stream, "/").unwrap();
    assert_eq!(before, after, "the same connection, on the same backend");
}

#[test]
fn an_interface_that_comes_anew_has_its_addresses_again() {
    let Some(rack) = Rack::new(&["a"]) else { return };
    let _server = rack.server(1);
    let document = format!(
        "announce: {{layer2: [{{name: lan, interfaces: [front]}}]}}\nservices:\n  - name: web\n    addresses: \
         [{NEAR}, \"{NEAR_V6}\"]\n    ports: [{{port: 80}}]\n    backends: [\"10.82.0.11:8080\"]\n"
    );
    let fairway = rack.fairway("a", &document);
    wait_for("clients are served", || rack.answers(NEAR) && rack.answers(NEAR_V6));
    // The card is pulled, and put in again.
    rack.unplug("a", "front");
    wait_for("it is said", || {
        fairway.status().unwrap()["troubles"].to_string().contains("there is no interface `front`")
    });
    rack.plug("a", "front", 1);
    rack.exec("a", "ip route add default via 10.81.0.254");
    rack.exec("a", "ip -6 route add default via fd81::fe");
    wait_at_most(15 * SECOND, "clients are served", || rack.answers(NEAR) && rack.answers(NEAR_V6));
    wait_for("nothing is wrong any more", || {
        !fairway.status().unwrap()["troubles"].to_string().contains("front")
    });
    // Somebody takes one away.
    rack.exec("a", &format!("ip address del {NEAR}/32 dev front"));
    wait_for("it is there again", || rack.with_address(NEAR) == ["a"]);
}

#[test]
fn groups_change_without_a_moment_without_their_addresses() {
    let Some(rack) = Rack::new(&["a", "b", "c"]) else { return };
    let _server = rack.server(1);
    // keepalived as the third member, of the lowest priority.
    let _c = Peer::keepalived(
        &rack,
        "c",
        &format!(
            "vrrp_instance v {{\n  state BACKUP\n  interface front\n  virtual_router_id 51\n  priority 50\n  \
             advert_int 0.2\n  virtual_ipaddress {{\n    {NEAR}/32\n  }}\n}}\n"
        ),
    );
    let only = format!(", addresses: [{NEAR}]");
    let mut a = rack.fairway("a", &document(200, &only));
    let mut b = rack.fairway("b", &document(150, &only));
    wait_for("a is active", || states(&a) == ["active"] && rack.with_address(NEAR) == ["a"]);
    let changes = || a.announced()["groups"][0]["changes"].clone();
    let before = changes();
    a.apply(&document(210, &format!("{only}, preemptDelay: 1s, track: {{weight: 10}}")));
    wait_for("it has another priority", || a.announced()["groups"][0]["priority"] == 210);
    assert_eq!((states(&a), changes()), (vec!["active".into()], before));
    // A lower one than another's gives way.
    a.apply(&document(100, &only));
    wait_for("b is active", || states(&b) == ["active"] && rack.with_address(NEAR) == ["b"]);
    // One after the other dies, until keepalived is left.
    b.kill();
    wait_for("a is active", || states(&a) == ["active"] && rack.with_address(NEAR) == ["a"]);
    a.kill();
    wait_for("keepalived is active", || rack.with_address(NEAR) == ["c"]);
}

#[test]
fn a_group_without_a_peer_of_a_family_takes_no_part_in_it() {
    let Some(rack) = Rack::new(&["a"]) else { return };
    let a = rack.fairway("a", &document(200, ", unicastPeers: [10.81.0.2]"));
    wait_for("it is active for IPv4", || states(&a) == ["active", "stopped"]);
    assert!(rack.with_address(NEAR_V6).is_empty(), "every box would have it");
    let troubles = a.announced()["troubles"].to_string();
    assert!(troubles.contains("`unicastPeers` has no IPv6 address of another"), "{troubles}");
    // Whose addresses come and go with a group, nobody else is told to add them.
    let log = a.log();
    assert!(!log.contains("is not an address of this machine"), "{log}");
}
