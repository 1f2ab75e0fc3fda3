//! Addresses that others on the segment are told of.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use fairway_tests::{Fairway, Host, Net, Nginx, wait_for};

#[test]
fn a_new_address_is_told_to_its_segment() {
    let Some(net) = Net::new() else { return };
    let server = Nginx::start(&net, 1);
    // The client knows another station, which had the addresses before.
    let addresses = ["10.77.0.150", "fd77::150"];
    for ip in addresses {
        let words = format!("ip neigh replace {ip} lladdr 02:00:00:00:00:99 dev lb nud stale");
        net.exec(Host::Client, &words);
    }
    let link = net.exec(Host::Lb, "cat /sys/class/net/clients/address");
    let station = link.trim();
    let known = |ip: &str| net.exec(Host::Client, &format!("ip neigh show {ip}"));
    assert!(addresses.iter().all(|ip| !known(ip).contains(station)));
    let document = format!(
        "dataplane: {{vip: {{interface: clients}}}}\nservices:\n  - name: web\n    addresses: \
         [10.77.0.150, \"fd77::150\"]\n    ports: [{{port: 80}}]\n    backends: [\"{}\"]\n",
        server.addr
    );
    let fairway = Fairway::start(&net, &document);
    for ip in addresses {
        wait_for("the client knows it", || known(ip).contains(station));
    }
    // An address that comes later is told of, too.
    net.exec(
        Host::Client,
        "ip neigh replace 10.77.0.151 lladdr 02:00:00:00:00:99 dev lb nud stale",
    );
    fairway.apply(&document.replace("[10.77.0.150", "[10.77.0.151"));
    wait_for("the client knows it", || known("10.77.0.151").contains(station));
}
