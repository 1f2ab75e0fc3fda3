//! Packet services on DPDK: its cards are taps whose far ends are in the hosts' namespaces.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::net::SocketAddr;
use std::time::Duration;

use fairway_tests::http::{ask as ask_again, connect, get};
use fairway_tests::packets::*;
use fairway_tests::{Fairway, Host, Net, wait_for};
use rustix::net::sockopt::Ipv4PathMtuDiscovery;
use rustix::process::Signal;

/// The links, by the name of the kernel's end of each at the load balancer: the host at the far end,
/// and its addresses.
const LINKS: [(&str, Host, [&str; 2]); 2] = [
    ("clients", Host::Client, ["10.77.0.2/24", "fd77::2/64"]),
    ("servers", Host::Servers, ["10.78.0.2/24", "fd78::2/64"]),
];

/// Hosts without links, if DPDK is in the program.
fn hosts() -> Option<Net> {
    if driver().is_none_or(|driver| driver != "tap") {
        println!("SKIPPED: for a program with DPDK; tests/run builds it and runs this");
        return None;
    }
    let net = Net::new()?;
    for (name, ..) in LINKS {
        net.exec(Host::Lb, &format!("ip link delete {name}"));
    }
    Some(net)
}

/// Starts Fairway and ties the far ends of its cards to the hosts.
fn start(net: &Net, document: &str) -> Fairway {
    let fairway = Fairway::start(net, document);
    for (name, host, addresses) in LINKS {
        let there = net.name(host);
        net.exec(Host::Lb, &format!("ip link set card-{name} netns {there} name lb"));
        for address in addresses {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            net.exec(host, &format!("ip address add {address} dev lb{nodad}"));
        }
        net.exec(host, "ip link set lb up");
    }
    for (host, v4, v6) in
        [(Host::Client, "10.77.0.1", "fd77::1"), (Host::Servers, "10.78.0.1", "fd78::1")]
    {
        net.exec(host, &format!("ip route add default via {v4}"));
        net.exec(host, &format!("ip -6 route add default via {v6}"));
    }
    fairway
}

#[test]
fn connections_and_checks_go_by_cards_that_the_kernel_does_not_have() {
    let Some(net) = hosts() else { return };
    let own = "source: {addresses: [10.99.1.1]}";
    for (mode, source) in [("nat", ""), ("fullNat", own)] {
        let addresses: Vec<SocketAddr> = [at("10.78.0.11", 8080), at("10.78.0.12", 8080)].into();
        let check = "\nhealthCheck: {interval: 200ms, timeout: 150ms, rise: 1, initialState: down}";
        let fields = format!("{source}{check}");
        let fairway = start(&net, &document(mode, VIP4, &addresses, &fields));
        net.exec(Host::Servers, "ip route replace 10.99.1.1 via 10.78.0.1");
        let servers = servers(&net, 2, false);
        // Checks are the kernel's own connections, by the kernel's end of the link.
        wait_for("both are well", || {
            addresses.iter().all(|at| fairway.state_of(&at.to_string()).unwrap() == "up")
        });
        net.on(Host::Client, || {
            wait_for("packets pass", || get(at(VIP4, 80), "/").is_ok());
            let answers: Vec<_> = (0..20).map(|_| get(at(VIP4, 80), "/").unwrap()).collect();
            for name in ["s1", "s2"] {
                assert!(answers.iter().any(|answer| answer == name), "{mode}: {answers:?}");
            }
            let peer = get(at(VIP4, 80), "/peer").unwrap();
            assert_eq!(peer, if mode == "nat" { "10.77.0.2" } else { "10.99.1.1" });
            assert_eq!(get(at(VIP4, 80), "/big").unwrap().len(), 64 << 20);
        });
        drop(servers);
        // Datagrams in parts, both ways, whichever queue they come by.
        let echo = Echo::start(&net, at("10.78.0.11", 5353), "a");
        let udp = "ports: [{port: 53, protocol: UDP}]\nhealthCheck: {interval: 1h}";
        let udp = document(mode, VIP4, &[at("10.78.0.11", 5353)], &format!("{source}\n{udp}"));
        fairway.apply(&udp);
        net.on(Host::Client, || {
            let large: Vec<u8> = (0..8000_u32).map(|n| b'a' + (n % 23) as u8).collect();
            for _ in 0..20 {
                assert_eq!(ask(&client_socket(at(VIP4, 53)), &large).unwrap(), "a", "{mode}");
            }
        });
        drop(echo);
        let metrics = fairway.metrics(&net);
        for line in [
            "fairway_card_missed_packets_total{interface=\"servers\"} 0",
            "fairway_port_received_frames_total{worker=\"1\",interface=\"clients\"}",
        ] {
            assert!(metrics.contains(line), "{line}\n{metrics}");
        }
        drop(fairway);
    }
}

#[test]
fn workers_sleep_while_no_packet_comes() {
    let Some(net) = hosts() else { return };
    let addresses = [at("10.78.0.11", 8080), at("10.78.0.12", 8080)];
    let fairway = start(&net, &document("nat", VIP4, &addresses, "healthCheck: {interval: 1h}"));
    let _servers = servers(&net, 2, false);
    let turns = || fairway.worker_naps();
    for _ in 0..3 {
        net.on(Host::Client, || wait_for("packets pass", || get(at(VIP4, 80), "/").is_ok()));
        wait_for("they sleep", || {
            let before = turns();
            assert_eq!(before.len(), 2);
            std::thread::sleep(Duration::from_millis(250));
            // Naps would be 500 and more.
            turns().iter().zip(&before).all(|(after, before)| after - before < 50)
        });
        // Of many connections some come by the queue of the other worker, and wake it.
        net.on(Host::Client, || {
            for _ in 0..20 {
                get(at(VIP4, 80), "/").unwrap();
            }
        });
    }
}

#[test]
fn links_carry_jumbo_frames() {
    // The other drivers here set no MTU.
    if driver().is_none_or(|driver| driver != "af_xdp") {
        return println!("SKIPPED: for links by XDP; tests/run --all has them");
    }
    let Some(net) = net() else { return };
    for (host, link) in [
        (Host::Lb, "card-clients"),
        (Host::Lb, "card-servers"),
        (Host::Client, "lb"),
        (Host::Servers, "lb"),
    ] {
        net.exec(host, &format!("ip link set {link} mtu 3000"));
    }
    server_ip(&net, 1, false);
    let fields = "ports: [{port: 53, protocol: UDP}]\nhealthCheck: {interval: 1h}";
    let usual = document("nat", VIP4, &[at("10.78.0.11", 5353)], fields);
    let jumbo = usual
        .replace("interface: clients", "interface: clients, mtu: 3000")
        .replace("interface: servers", "interface: servers, mtu: 3000");
    let _fairway = Fairway::start(&net, &jumbo);
    let _echo = Echo::start(&net, at("10.78.0.11", 5353), "a");
    net.on(Host::Client, || {
        let socket = client_socket(at(VIP4, 53));
        wait_for("packets pass", || ask(&socket, b"first").is_ok());
        // Whole, or not at all: 2972 bytes fill a packet, and the answer has two more.
        rustix::net::sockopt::set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::DO).unwrap();
        for length in [1473, 2972 - 2] {
            assert_eq!(
                ask(&socket, &vec![b'j'; length]).ok().as_deref(),
                Some("a"),
                "{length} bytes"
            );
        }
    });
}

#[test]
fn a_card_that_is_gone_ends_nothing_else() {
    let Some(net) = hosts() else { return };
    let addresses = [at("10.78.0.11", 8080), at("10.78.0.12", 8080)];
    let fairway = start(&net, &document("nat", VIP4, &addresses, "healthCheck: {interval: 1h}"));
    let serving = servers(&net, 2, false);
    net.on(Host::Client, || wait_for("packets pass", || get(at(VIP4, 80), "/").is_ok()));
    net.exec(Host::Client, "ip link delete lb");
    wait_for("it is told of", || {
        let troubles = fairway.status().unwrap()["troubles"].to_string();
        troubles.contains("the card of interface `clients` has no link")
    });
    let check = "healthCheck: {interval: 100ms, timeout: 90ms, rise: 1, fall: 1}";
    fairway.apply(&document("nat", VIP4, &addresses, check));
    let all_are = |state: &str| {
        addresses.iter().all(|at| fairway.state_of(&at.to_string()).unwrap() == state)
    };
    drop(serving);
    wait_for("the other card tells of servers that stop", || all_are("down"));
    let _servers = servers(&net, 2, false);
    wait_for("and of servers that start", || all_are("up"));
}

#[test]
fn huge_pages_are_given_back() {
    let Some(net) = hosts() else { return };
    let Some(_pages) = HugePages::get(128) else { return };
    let addresses = [at("10.78.0.11", 8080), at("10.78.0.12", 8080)];
    let fields = "healthCheck: {interval: 1h}";
    let usual = document("nat", VIP4, &addresses, fields).replace("noHuge: true, ", "");
    let before = HugePages::free();
    let mut fairway = start(&net, &usual);
    assert!(HugePages::free() < before, "packets lie in huge pages");
    let _servers = servers(&net, 2, false);
    let mut kept = net.on(Host::Client, || {
        wait_for("packets pass", || get(at(VIP4, 80), "/").is_ok());
        connect(at(VIP4, 80)).unwrap()
    });
    assert!(ask_again(&mut kept, "/").is_ok());
    fairway.signal(Signal::TERM);
    wait_for("it drains", || fairway.log().contains("stopping: no new connections"));
    assert!(ask_again(&mut kept, "/").is_ok(), "open connections go on");
    drop(kept);
    assert!(fairway.wait().success(), "{}", fairway.log());
    // Others may have had some of them, too.
    wait_for("huge pages are free again", || HugePages::free() >= before);
}

/// Huge pages of 2 MiB, for as long as a test runs.
struct HugePages(u64);

impl HugePages {
    const COUNT: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

    fn get(count: u64) -> Option<Self> {
        let read = || std::fs::read_to_string(Self::COUNT).ok()?.trim().parse().ok();
        let before: u64 = read()?;
        let wanted = before.max(count);
        let got = std::fs::write(Self::COUNT, wanted.to_string()).ok().and_then(|()| read());
        let pages = Self(before);
        if got.is_none_or(|got| got < count) {
            println!("SKIPPED: the kernel has no {count} huge pages for us");
            return None;
        }
        Some(pages)
    }

    fn free() -> u64 {
        let path = Self::COUNT.replace("nr_hugepages", "free_hugepages");
        std::fs::read_to_string(path).unwrap().trim().parse().unwrap()
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = std::fs::write(Self::COUNT, self.0.to_string());
    }
}

#[test]
fn a_card_without_a_link_is_told_of() {
    let Some(net) = hosts() else { return };
    // The far ends stay here: where they are moved to, their driver does not see them.
    let document = document("nat", VIP4, &[at("10.78.0.11", 8080)], "");
    let fairway = Fairway::start(&net, &document);
    let told = || {
        let troubles = fairway.status().unwrap()["troubles"].to_string();
        troubles.contains("the card of interface `servers` has no link")
    };
    for (state, up) in [("down", 0), ("up", 1)] {
        net.exec(Host::Lb, &format!("ip link set card-servers {state}"));
        wait_for("it is told of", || told() == (up == 0));
        let line = format!("fairway_card_up{{interface=\"servers\"}} {up}");
        wait_for("and shown", || fairway.metrics(&net).contains(&line));
    }
}

#[test]
fn what_dpdk_lacks_is_said_before_anything_starts() {
    let Some(net) = hosts() else { return };
    let usual = document("nat", VIP4, &[at("10.78.0.11", 8080)], "");
    for (text, want) in [
        (usual.replace("noHuge: true, memory: 128MiB", "memory: 900GiB"), "MiB of huge pages, and"),
        (
            usual.replace("net_tap_clients,iface=card-clients", "net_nothing0"),
            "DPDK does not start (No such device)",
        ),
        (
            usual.replace("net_tap_clients,iface=card-clients", "0000:ff:1f.7"),
            "there is no card 0000:ff:1f.7",
        ),
        (
            usual.replace("net_tap_clients,iface=card-clients", "net_af_packet0,iface=none"),
            "DPDK has no port `net_af_packet0`",
        ),
        (
            usual.replace("memory: 128MiB", "memory: 128MiB, kernelEnd: vhost"),
            "`kernelEnd: vhost` needs /dev/vhost-net",
        ),
        (
            usual.replace("workers: 2, pinCpus: false", "cpus: [0, 8191]"),
            "`dataplane.cpus` names core 8191, which this process may not use",
        ),
        (usual.replace("workers: 2", "workers: 17"), "17 workers are more than the 16 queues"),
        (usual.replace("workers: 2", "workers: 16"), "no memory for"),
    ] {
        let mut fairway = Fairway::spawn(&net, &text, &[]);
        let status = fairway.wait();
        let log = fairway.log();
        assert!(status.code() == Some(1) && log.contains(want), "{want}: {status}\n{log}");
    }
}
