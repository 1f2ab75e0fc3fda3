//! Addresses of a cluster's Services, shared by boxes through Leases, and announced as its objects say.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fmt::Write;

use fairway_tests::api_server::ApiServer;
use fairway_tests::cluster::{Stands, slice};
use fairway_tests::rack::{Peer, Rack};
use fairway_tests::{Fairway, SECOND, all, wait_at_most, wait_for};

const SERVICES: usize = 6;

/// Services with an address each, from 10.81.0.100 on, all served by one Pod.
fn services() -> String {
    let mut text = String::from(
        "---\napiVersion: fairway.dev/v1alpha1\nkind: AddressPool\nmetadata: {name: near}\nspec: {addresses: \
         [10.81.0.100-10.81.0.109]}\n",
    );
    for n in 0..SERVICES {
        write!(
            text,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{n}, labels: {{n: s{n}}}}}\nspec: {{type: \
             LoadBalancer, selector: {{app: s{n}}}, allocateLoadBalancerNodePorts: false, ports: [{{name: http, port: \
             80, targetPort: 8080}}]}}\n"
        )
        .unwrap();
        text += &slice(&format!("s{n}"), &[("10.82.0.11".parse().unwrap(), "a", Stands::Ready)]);
    }
    text
}

/// A Fairway of a box that watches the API server; `more` is the rest of its document.
fn watching(rack: &Rack, api: &ApiServer<'_>, host: &str, more: &str) -> Fairway {
    let folder = tempfile::tempdir().unwrap();
    api.kubeconfig(folder.path());
    let document = format!(
        "announce: {{nodeName: {host}, bgp: {{myASN: 64511}}}}\nservices: []\nsources: {{kubernetes: {{kubeconfig: \
         kubeconfig, defaultClass: true, target: pod, defaults: {{healthCheck: {{type: tcp, interval: 200ms, \
         timeout: 300ms, fall: 2, rise: 1}}}}}}}}\n{more}"
    );
    let text = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap_or_default();
    let (config, token) = (text("kubeconfig"), text("token"));
    let files = [("kubeconfig", &*config), ("token", &*token)];
    Fairway::start_in_with(&rack.name(host), &document, &files)
}

fn address(n: usize) -> String {
    format!("10.81.0.{}", 100 + n)
}

/// The boxes that have each address.
fn holders(rack: &Rack) -> Vec<Vec<&'static str>> {
    (0..SERVICES).map(|n| rack.with_address(&address(n))).collect()
}

fn all_on(rack: &Rack, host: &'static str) -> bool {
    holders(rack).iter().all(|holders| holders == &[host])
}

#[test]
fn boxes_share_addresses_by_leases() {
    let Some(rack) = Rack::new(&["a", "b"]) else { return };
    let _pod = rack.server(1);
    let api = ApiServer::of_rack(&rack, &["a", "b"]);
    api.apply(&services());
    api.apply(
        "apiVersion: fairway.dev/v1alpha1\nkind: L2Advertisement\nmetadata: {name: lan}\nspec: {interfaces: \
         [front], addressPools: [near]}\n",
    );
    let mut a = watching(&rack, &api, "a", "");
    wait_at_most(20 * SECOND, "one has all", || all_on(&rack, "a"));
    wait_for("clients are served", || (0..SERVICES).all(|n| rack.answers(&address(n))));
    // Another one gets its part, and each address is on one box.
    let b = watching(&rack, &api, "b", "");
    let spread = || {
        let holders = holders(&rack);
        let one_each = holders.iter().all(|holders| holders.len() == 1);
        one_each && holders.iter().any(|holders| holders == &["b"])
    };
    wait_at_most(30 * SECOND, "they share", spread);
    let parts = holders(&rack);
    assert!(parts.iter().any(|holders| holders == &["a"]), "{parts:?}");
    wait_for("clients are served", || (0..SERVICES).all(|n| rack.answers(&address(n))));
    // A drained box hands over what it has.
    assert!(b.cli(&["announce", "drain"]).status.success());
    wait_at_most(15 * SECOND, "a has all", || all_on(&rack, "a"));
    assert!(b.cli(&["announce", "undrain"]).status.success());
    wait_at_most(30 * SECOND, "they share again", || spread() && holders(&rack) == parts);
    // One that dies without a word is followed.
    let mine = parts.iter().position(|holders| holders == &["a"]).unwrap();
    let outage = rack.watch(&address(mine));
    a.kill();
    wait_at_most(20 * SECOND, "b has all", || all_on(&rack, "b"));
    wait_for("clients are served", || (0..SERVICES).all(|n| rack.answers(&address(n))));
    println!("Leases, a box is killed: without an answer for {:?}", outage.end().0);
    if !all() {
        return;
    }
    // One that does not reach the API server gives up, for another has taken over.
    a.start_again();
    wait_at_most(30 * SECOND, "they share again", || spread() && holders(&rack) == parts);
    rack.exec("a", "nft add table inet cut");
    rack.exec("a", "nft add chain inet cut out { type filter hook output priority 0 ; }");
    rack.exec("a", "nft add rule inet cut out tcp dport 6443 drop");
    wait_at_most(20 * SECOND, "b has all", || all_on(&rack, "b"));
    rack.exec("a", "nft delete table inet cut");
    wait_at_most(30 * SECOND, "they share again", || spread() && holders(&rack) == parts);
}

#[test]
fn routers_are_told_as_objects_say() {
    let Some(rack) = Rack::new(&["a"]) else { return };
    let _pod = rack.server(1);
    let api = ApiServer::of_rack(&rack, &["a"]);
    api.apply(&services().replace("10.81.0.100-10.81.0.109", "10.90.0.100-10.90.0.109"));
    api.apply(
        "apiVersion: v1\nkind: Node\nmetadata: {name: a, labels: {rack: one}}\nspec: {}\n---\napiVersion: \
         fairway.dev/v1alpha1\nkind: BGPPeer\nmetadata: {name: router}\nspec: {peerAddress: 10.81.0.254, peerASN: \
         64500, nodeSelectors: [{matchLabels: {rack: one}}]}\n---\napiVersion: fairway.dev/v1alpha1\nkind: \
         BGPAdvertisement\nmetadata: {name: some}\nspec: {serviceSelectors: [{matchExpressions: [{key: n, operator: \
         In, values: [s0, s1]}]}], communities: [\"1:2\"]}\n",
    );
    let bird = Peer::bird(
        &rack,
        "router",
        "protocol bgp a { local 10.81.0.254 as 64500; neighbor 10.81.0.1 as 64511; error wait time 1, 1;\n\
         ipv4 { import all; export none; }; }\n",
    );
    let fairway = watching(&rack, &api, "a", "dataplane: {vip: {interface: lo}}\n");
    let told = || bird.birdc("show route");
    wait_at_most(20 * SECOND, "the router is told", || {
        told().contains("10.90.0.100/32") && told().contains("10.90.0.101/32")
    });
    assert!(!told().contains("10.90.0.102/32"));
    let troubles = fairway.announced()["troubles"].to_string();
    assert!(
        troubles.contains("nothing of `announce` chooses 10.90.0.102 and 3 more"),
        "{troubles}"
    );
    // An object that changes counts at once; one that is wrong is told of and counts no more.
    api.apply(
        "apiVersion: fairway.dev/v1alpha1\nkind: BGPAdvertisement\nmetadata: {name: some}\nspec: {addresses: \
         [10.90.0.102]}\n",
    );
    wait_for("the router is told of another", || {
        told().contains("10.90.0.102/32") && !told().contains("10.90.0.100/32")
    });
    api.apply(
        "apiVersion: fairway.dev/v1alpha1\nkind: BGPAdvertisement\nmetadata: {name: some}\nspec: {adresses: \
         [10.90.0.102]}\n",
    );
    wait_for("it is told of", || {
        fairway.status().unwrap()["troubles"]
            .to_string()
            .contains("BGPAdvertisement `some`: unknown field")
    });
    wait_for("the router is told nothing", || !told().contains("10.90.0.102/32"));
}
