//! Packet services from one process to the next: by `fairway upgrade`, and when one is killed.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::net::TcpStream;
use std::time::Instant;

use fairway_tests::http::{Outcome, ask, connect, load};
use fairway_tests::packets::*;
use fairway_tests::{Fairway, Host, Net, wait_for};

/// Connections that are open, one to each VIP.
fn open(net: &Net) -> Vec<TcpStream> {
    let open = |vip| {
        let mut stream = net.on(Host::Client, || connect(at(vip, 80)).unwrap());
        ask(&mut stream, "/kib").unwrap();
        stream
    };
    [VIP4, VIP6].map(open).into()
}

/// One service of each family and mode, on one box.
fn both(net: &Net, fields: &str) -> (String, Vec<fairway_tests::Nginx>) {
    let (four, six) = (servers(net, 2, false), servers(net, 2, true));
    let own = FAMILIES[1].2;
    net.exec(Host::Servers, &format!("ip route replace {own} via {}", gateway(true)));
    let first = document("nat", VIP4, &addresses(&four), "");
    let more =
        document("fullNat", VIP6, &addresses(&six), &format!("source: {{addresses: [\"{own}\"]}}"));
    let services = |text: &str| text.split_once("services:\n").unwrap().1.to_owned();
    let more = services(&more).replace("name: web", "name: more");
    (format!("{first}{more}{fields}"), four.into_iter().chain(six).collect())
}

#[test]
fn flows_go_on_through_upgrades_under_load() {
    let Some(net) = net() else { return };
    let (document, _servers) = both(&net, "");
    let mut fairway = Fairway::start(&net, &document);
    let mut streams = open(&net);
    let outcome = Outcome::default();
    std::thread::scope(|scope| {
        let _stop = outcome.stopper();
        for vip in [VIP4, VIP4, VIP6] {
            let (net, outcome) = (&net, &outcome);
            scope.spawn(move || {
                net.on(Host::Client, || load(at(vip, 80), "/kib", 1_000_000, outcome))
            });
        }
        for n in 0..5 {
            let before = outcome.requests();
            fairway.upgrade();
            wait_for("some requests more", || outcome.requests() > before + 50);
            assert_eq!(outcome.failed(), 0, "at upgrade {n}");
            net.on(Host::Client, || {
                streams.iter_mut().for_each(|stream| _ = ask(stream, "/kib").unwrap());
            });
        }
    });
    assert_eq!(outcome.failed(), 0, "of {} requests", outcome.requests());
    let tables = net.exec(Host::Lb, "nft list tables");
    // The kernel has no part in cards: nothing is to be kept from it.
    let fences = usize::from(driver().is_none());
    assert_eq!(tables.matches("fairway").count(), fences, "{tables}");
    let log = fairway.log();
    for gap in log.lines().filter_map(|line| line.split_once("handed over ")) {
        println!("an upgrade under load, from the pause on: {}", gap.1);
    }
    let told: Vec<&str> =
        log.lines().filter(|line| line.contains("flows of the process before go on")).collect();
    assert!(told.len() == 5 && told.iter().all(|line| line.ends_with("dropped=0")), "{told:#?}");
    let active: u64 = fairway
        .services()
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["active"].as_u64().unwrap())
        .sum();
    assert!(active >= 2, "they hold their places");
    wait_for("processes without anything to do end", || fairway.ended().is_some());
}

#[test]
fn packets_are_carried_on_when_the_next_process_cannot() {
    let Some(net) = net() else { return };
    let (document, _servers) = both(&net, "");
    let fairway = Fairway::start(&net, &document);
    let mut streams = open(&net);
    for _ in 0..2 {
        fairway.fails_to_upgrade();
        net.on(Host::Client, || {
            streams.iter_mut().for_each(|stream| _ = ask(stream, "/kib").unwrap());
            for vip in [VIP4, VIP6] {
                fairway_tests::http::get(at(vip, 80), "/kib").unwrap();
            }
        });
    }
}

/// The kernel's ends of cards end with a process that is killed: whoever configures networks gives the next
/// ones their addresses.
fn restore_kernel_ends(net: &Net) {
    if driver().is_some() {
        address_kernel_ends(&net.name(Host::Lb));
    }
}

#[test]
fn flows_outlive_a_process_that_is_killed() {
    let Some(net) = net() else { return };
    let (document, _servers) = both(&net, "");
    let fairway = Fairway::start_managed(&net, &document);
    let mut streams = open(&net);
    for n in 1..=3 {
        wait_for("flows and numbers are kept", || fairway.told().contains("KEPT"));
        let (pid, killed) = (fairway.pid(), Instant::now());
        fairway.signal(rustix::process::Signal::KILL);
        wait_for("it is ready again", || {
            restore_kernel_ends(&net);
            fairway.told().matches("READY").count() > n
        });
        println!("ready again after {:?}", killed.elapsed());
        restore_kernel_ends(&net);
        assert_ne!(fairway.pid(), pid);
        net.on(Host::Client, || {
            streams.iter_mut().for_each(|stream| _ = ask(stream, "/kib").unwrap());
        });
    }
    let flows = fairway.services();
    let flows: Vec<_> = flows.as_array().unwrap().iter().map(|it| it["active"].clone()).collect();
    assert_eq!(flows, [1, 1], "they hold their places");
    // Other numbers of flows: those that there are find room.
    fairway.apply(&document.replace("packet: {", "packet: {flows: 500, "));
    fairway.signal(rustix::process::Signal::KILL);
    wait_for("it is ready again", || {
        restore_kernel_ends(&net);
        fairway.told().matches("READY").count() > 4
    });
    restore_kernel_ends(&net);
    net.on(Host::Client, || {
        streams.iter_mut().for_each(|stream| _ = ask(stream, "/kib").unwrap());
    });
    assert_eq!(
        fairway.log().matches("flows of the process before go on flows=2 dropped=0").count(),
        4
    );
}
