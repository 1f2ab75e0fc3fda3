//! Packet services on DPDK: its cards are taps whose far ends are in the hosts' namespaces.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::net::SocketAddr;

use fairway_tests::http::get;
use fairway_tests::packets::*;
use fairway_tests::{Fairway, Host, Net, wait_for};

/// The two links, by the name of the kernel's end of each at the load balancer: host, its addresses,
/// the load balancer's.
const LINKS: [(&str, Host, [&str; 2], [&str; 2]); 2] = [
    ("clients", Host::Client, ["10.77.0.2/24", "fd77::2/64"], ["10.77.0.1/24", "fd77::1/64"]),
    ("servers", Host::Servers, ["10.78.0.2/24", "fd78::2/64"], ["10.78.0.1/24", "fd78::1/64"]),
];

/// Hosts without links, if DPDK is in the program.
fn hosts() -> Option<Net> {
    if std::env::var_os("FAIRWAY_TESTS_DPDK").is_none() {
        println!("SKIPPED: the program is built without DPDK; tests/run builds it with it");
        return None;
    }
    let net = Net::new()?;
    for (name, ..) in LINKS {
        net.exec(Host::Lb, &format!("ip link delete {name}"));
    }
    Some(net)
}

/// The document with cards in place of interfaces.
fn on_dpdk(document: &str) -> String {
    let ports: Vec<String> = LINKS
        .iter()
        .map(|(name, ..)| {
            format!("{{device: \"net_tap_{name}_wire,iface=w{name}\", interface: {name}}}")
        })
        .collect();
    let dpdk = format!(
        "driver: dpdk, ports: [{}], dpdk: {{noHuge: true, memory: 128MiB}}",
        ports.join(", ")
    );
    document.replace("interfaces: [clients, servers]", &dpdk)
}

/// Starts Fairway and ties the far ends of its cards to the hosts.
fn start(net: &Net, document: &str) -> Fairway {
    let fairway = Fairway::start(net, &on_dpdk(document));
    for (name, host, far, near) in LINKS {
        let there = net.name(host);
        net.exec(Host::Lb, &format!("ip link set w{name} netns {there} name lb"));
        for (host, device, addresses) in [(host, "lb", far), (Host::Lb, name, near)] {
            for address in addresses {
                let nodad = if address.contains(':') { " nodad" } else { "" };
                net.exec(host, &format!("ip address add {address} dev {device}{nodad}"));
            }
            net.exec(host, &format!("ip link set {device} up"));
        }
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
        drop((servers, fairway));
    }
}
