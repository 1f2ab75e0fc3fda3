//! Services of a cluster, through a real Fairway, by manifests: to nodes and to Pods.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::net::SocketAddr;

use fairway_tests::cluster::{Cluster, FIRST, Node, Stands, node_ports, other, pod, shop, slice};
use fairway_tests::http::{Outcome, connect, get, load};
use fairway_tests::{Host, Net, Nginx, packets, wait_for};

const CHECKS: &str =
    "{interval: 100ms, timeout: 90ms, rise: 1, fall: 2, type: http, path: /healthz, port: 10256}";

#[test]
fn nodes_serve_what_manifests_say() {
    let Some(net) = Net::new() else { return };
    let pods = ["p1", "p2"].iter().zip(1..).map(|(name, n)| pod(&net, name, n));
    let pods: Vec<Nginx> = pods.collect();
    let [a, b] = [("a", 1), ("b", 2)].map(|(name, n)| Node::start(&net, name, n, &[10256]));
    node_ports(&net, 30080, &[(&a, &[&pods[0]]), (&b, &[&pods[1]])]);
    let check = format!("fairway.dev/healthCheck: '{CHECKS}'");
    let nodes = [a.manifest(), b.manifest()].concat();
    let service = shop(&check, "externalTrafficPolicy: Cluster");
    let cluster = Cluster::start(&net, "{}", &format!("{service}{nodes}"));
    let shares = cluster.shares(FIRST, 100);
    assert!(shares.len() == 2 && shares.values().all(|count| *count > 20), "{shares:?}");
    let table = String::from_utf8(cluster.fairway.cli(&["cluster"]).stdout).unwrap();
    assert!(table.contains("default/shop  10.77.0.120  public  -"), "{table}");
    let services = String::from_utf8(cluster.fairway.cli(&["services"]).stdout).unwrap();
    assert!(services.contains("default/shop/http"), "{services}");

    // What a document would change has its part of the cluster.
    let document = std::fs::read_to_string(cluster.fairway.config_path()).unwrap();
    let other = cluster.fairway.folder().join("other.yaml");
    std::fs::write(&other, document.replace("kubernetes: {}", "kubernetes: {target: pod}"))
        .unwrap();
    let plan = cluster.fairway.cli(&["plan", other.to_str().unwrap()]).stdout;
    let plan = String::from_utf8(plan).unwrap();
    assert!(plan.starts_with("~ default/shop/http\n    backend 10.78.0.11:30080"), "{plan}");

    // A node that says so is left alone, before anybody is failed by it.
    b.say(false);
    wait_for("it is out", || cluster.state("10.78.0.12:30080") == "down");
    assert_eq!(cluster.shares(FIRST, 20), [("p1".into(), 20)].into());
    b.say(true);
    wait_for("it is back", || cluster.state("10.78.0.12:30080") == "up");

    // One that is to go keeps what it has.
    let mut held = net.on(Host::Client, || {
        let mut held: Vec<_> = (0..8).map(|_| connect(FIRST).unwrap()).collect();
        let names: Vec<_> =
            held.iter_mut().map(|held| fairway_tests::http::ask(held, "/").unwrap()).collect();
        held.into_iter().zip(names).collect::<Vec<_>>()
    });
    let label = "labels: {node.kubernetes.io/exclude-from-external-load-balancers: \"\"}";
    // One that takes no new Pods serves those that it has.
    let cordoned = nodes.replace("status:", "spec: {unschedulable: true}\nstatus:");
    cluster.apply(&format!("{service}{cordoned}"));
    assert_eq!(cluster.state("10.78.0.12:30080"), "up");
    let excluded = nodes.replace("{name: b}", &format!("{{name: b, {label}}}"));
    cluster.apply(&format!("{service}{excluded}"));
    assert_eq!(cluster.state("10.78.0.12:30080"), "draining");
    assert_eq!(cluster.shares(FIRST, 20), [("p1".into(), 20)].into());
    assert!(held.iter().any(|(_, name)| name == "p2"));
    for (held, name) in &mut held {
        assert_eq!(fairway_tests::http::ask(held, "/").unwrap(), *name);
    }
    // A Service that goes takes its address along; nobody need ask for that.
    cluster.write(&excluded);
    wait_for("nobody serves it", || cluster.fairway.services().as_array().unwrap().is_empty());
}

#[test]
fn nodes_get_their_share_of_endpoints() {
    let Some(net) = Net::new() else { return };
    let pods = ["p1", "p2", "p3", "p4"].iter().zip(1..).map(|(name, n)| pod(&net, name, n));
    let pods: Vec<Nginx> = pods.collect();
    let nodes =
        [("a", 1), ("b", 2), ("c", 3)].map(|(name, n)| Node::start(&net, name, n, &[32000]));
    let [a, b, c] = &nodes;
    let at_a: Vec<&Nginx> = pods[..3].iter().collect();
    node_ports(&net, 30080, &[(a, &at_a), (b, &[&pods[3]]), (c, &[])]);
    let local = "externalTrafficPolicy: Local, healthCheckNodePort: 32000";
    let manifests: String = nodes.iter().map(Node::manifest).collect();
    let text = |of_b: Stands| {
        let mut endpoints: Vec<_> =
            pods[..3].iter().map(|pod| (pod.ip(), "a", Stands::Ready)).collect();
        endpoints.push((pods[3].ip(), "b", of_b));
        format!("{}{}{manifests}", shop("", local), slice("shop", &endpoints))
    };
    let cluster = Cluster::start(&net, "{}", &text(Stands::Ready));
    let weights = |cluster: &Cluster<'_>| -> Vec<u64> {
        cluster.states().values().map(|(_, weight)| *weight).collect()
    };
    assert_eq!(weights(&cluster), [3, 1], "the third has none");
    // Every Pod has as much, whichever node it is on.
    let shares = cluster.shares(FIRST, 400);
    assert!(shares.len() == 4 && shares.values().all(|n| (60..=140).contains(n)), "{shares:?}");
    cluster.apply(&text(Stands::Terminating));
    assert_eq!(cluster.state("10.78.0.12:30080"), "draining");
    assert!(!cluster.shares(FIRST, 40).contains_key("p4"));
}

#[test]
fn a_rolling_update_fails_no_request() {
    let Some(net) = Net::new() else { return };
    let mut old: Vec<Nginx> = (1..=3).map(|n| pod(&net, &format!("old{n}"), n)).collect();
    let mut new: Vec<Nginx> = Vec::new();
    let service = shop("", "allocateLoadBalancerNodePorts: false");
    let text = |old: &[Nginx], leaves: bool, new: &[Nginx], last: Stands| {
        let mut endpoints: Vec<_> = old.iter().map(|pod| (pod.ip(), "a", Stands::Ready)).collect();
        endpoints.extend(new.iter().map(|pod| (pod.ip(), "a", Stands::Ready)));
        if leaves {
            endpoints[0].2 = Stands::Terminating;
        }
        if let Some(newest) = endpoints.last_mut().filter(|_| !new.is_empty()) {
            newest.2 = last;
        }
        format!("{service}{}", slice("shop", &endpoints))
    };
    let kubernetes = "{target: pod}";
    let cluster = Cluster::start(&net, kubernetes, &text(&old, false, &new, Stands::Ready));
    let outcome = Outcome::default();
    std::thread::scope(|scope| {
        let _stopper = outcome.stopper();
        for _ in 0..3 {
            scope.spawn(|| net.on(Host::Client, || load(FIRST, "/kib", u64::MAX, &outcome)));
        }
        let passed = |more: u64| {
            let from = outcome.requests();
            wait_for("requests go on", || outcome.requests() >= from + more);
        };
        for n in 11..=13 {
            passed(50);
            // It is there, and not yet ready: nobody answers.
            let mut starting = pod(&net, &format!("new{n}"), n);
            starting.kill();
            new.push(starting);
            cluster.apply(&text(&old, false, &new, Stands::NotReady));
            passed(50);
            new.last_mut().unwrap().restart();
            cluster.apply(&text(&old, false, &new, Stands::Ready));
            passed(50);
            cluster.apply(&text(&old, true, &new, Stands::Ready));
            let leaving = old[0].addr.to_string();
            wait_for("its connections end", || {
                let backends = cluster.fairway.backends();
                let mut backends = backends.as_array().unwrap().iter();
                let at = backends.find(|backend| backend["address"] == leaving.as_str()).unwrap();
                at["state"] == "draining" && at["active"] == 0
            });
            // It ends, and then it is gone from the slice.
            old.remove(0).kill();
            passed(50);
            cluster.apply(&text(&old, false, &new, Stands::Ready));
        }
        passed(100);
    });
    assert_eq!(outcome.failed(), 0, "of {}", outcome.requests());
    let shares = cluster.shares(FIRST, 60);
    assert_eq!(shares.keys().collect::<Vec<_>>(), ["new11", "new12", "new13"]);
    let service = cluster.fairway.service();
    assert!(service["retries"].as_object().is_none_or(serde_json::Map::is_empty), "{service}");
}

/// A load in proxy mode, while the Service's policy changes there and back.
#[test]
fn policies_switch_under_load() {
    let Some(net) = Net::new() else { return };
    let pods: Vec<Nginx> = (1..=3).map(|n| pod(&net, &format!("p{n}"), n)).collect();
    let nodes = [("a", 1), ("b", 2)].map(|(name, n)| Node::start(&net, name, n, &[10256, 32000]));
    let [a, b] = &nodes;
    node_ports(&net, 30080, &[(a, &[&pods[0], &pods[1]]), (b, &[&pods[2]])]);
    let manifests: String = nodes.iter().map(Node::manifest).collect();
    let endpoints = [(pods[0].ip(), "a"), (pods[1].ip(), "a"), (pods[2].ip(), "b")];
    let endpoints = endpoints.map(|(ip, node)| (ip, node, Stands::Ready));
    let text =
        |policy: &str| format!("{}{}{manifests}", shop("", policy), slice("shop", &endpoints));
    let to_all = text("externalTrafficPolicy: Cluster");
    let local = text("externalTrafficPolicy: Local, healthCheckNodePort: 32000");
    let cluster = Cluster::start(&net, "{}", &to_all);
    let outcome = Outcome::default();
    std::thread::scope(|scope| {
        let _stopper = outcome.stopper();
        for _ in 0..3 {
            scope.spawn(|| net.on(Host::Client, || load(FIRST, "/kib", u64::MAX, &outcome)));
        }
        for text in [&local, &to_all, &local] {
            let from = outcome.requests();
            wait_for("requests go on", || outcome.requests() >= from + 100);
            cluster.apply(text);
        }
    });
    assert_eq!(outcome.failed(), 0, "of {}", outcome.requests());
    let weights: Vec<u64> = cluster.states().values().map(|(_, weight)| *weight).collect();
    assert_eq!(weights, [2, 1]);
}

/// A node that is gone from the network before anybody has said so.
#[test]
fn a_lost_node_is_left() {
    let Some(net) = Net::new() else { return };
    let pods: Vec<Nginx> = (1..=2).map(|n| pod(&net, &format!("p{n}"), n)).collect();
    let [a, b] = [("a", 1), ("b", 2)].map(|(name, n)| Node::start(&net, name, n, &[10256]));
    node_ports(&net, 30080, &[(&a, &[&pods[0]]), (&b, &[&pods[1]])]);
    let check =
        format!("fairway.dev/healthCheck: '{CHECKS}', fairway.dev/timeouts: '{{connect: 300ms}}'");
    let service = shop(&check, "externalTrafficPolicy: Cluster");
    let of = |nodes: &[&Node]| {
        let nodes: String = nodes.iter().map(|node| node.manifest()).collect();
        format!("{service}{nodes}")
    };
    let cluster = Cluster::start(&net, "{}", &of(&[&a, &b]));
    assert_eq!(cluster.shares(FIRST, 40).len(), 2);
    // Nothing that is sent there is answered any more.
    node_ports(&net, 30080, &[(&a, &[&pods[0]]), (&b, &[])]);
    net.exec(Host::Servers, &format!("ip address del {}/24 dev lb", b.ip));
    // Whoever is sent there is carried on elsewhere.
    assert_eq!(cluster.shares(FIRST, 20), [("p1".into(), 20)].into());
    wait_for("it is out", || cluster.state("10.78.0.12:30080") == "down");
    cluster.apply(&of(&[&a]));
    wait_for("nobody waits for it", || cluster.states().len() == 1);
    // It comes back under the same name.
    net.exec(Host::Servers, &format!("ip address add {}/24 dev lb", b.ip));
    node_ports(&net, 30080, &[(&a, &[&pods[0]]), (&b, &[&pods[1]])]);
    cluster.apply(&of(&[&a, &b]));
    wait_for("it is back", || cluster.state("10.78.0.12:30080") == "up");
    assert_eq!(cluster.shares(FIRST, 40).len(), 2);
}

/// The whole of a Service in packets: nodes see who asks, Pods too, and datagrams leave who leaves.
#[test]
fn packets_reach_nodes_and_pods_with_their_clients_address() {
    let Some(net) = packets::net() else { return };
    let pods: Vec<Nginx> = (1..=3).map(|n| pod(&net, &format!("p{n}"), n)).collect();
    let nodes = [("a", 1), ("b", 2)].map(|(name, n)| Node::start(&net, name, n, &[32000]));
    let [a, b] = &nodes;
    node_ports(&net, 30080, &[(a, &[&pods[0], &pods[1]]), (b, &[&pods[2]])]);
    let endpoints: Vec<_> = ["a", "a", "b"]
        .iter()
        .zip(&pods)
        .map(|(node, pod)| (pod.ip(), *node, Stands::Ready))
        .collect();
    let manifests: String = nodes.iter().map(Node::manifest).collect();
    let vip = |n: u8| SocketAddr::from(([10, 99, 0, n], 80));
    let mode = "fairway.dev/mode: nat, fairway.dev/addresses: 10.99.0.2";
    let local = shop(mode, "externalTrafficPolicy: Local, healthCheckNodePort: 32000");
    // Datagrams go straight to Pods.
    let echoes = [1, 2].map(|n| {
        let at = SocketAddr::from(([10, 244, 0, n], 5353));
        packets::Echo::start(&net, at, &format!("e{n}"))
    });
    let names = "---\napiVersion: v1\nkind: Service\nmetadata: {name: names, annotations: \
                 {fairway.dev/mode: nat, fairway.dev/target: pod, fairway.dev/addresses: 10.99.0.3}}\n\
                 spec: {type: LoadBalancer, ports: [{name: dns, port: 53, protocol: UDP, nodePort: 30053}]}\n";
    let slice_of_names = |stands: [Stands; 2]| {
        let [first, second] = stands;
        slice("names", &[(pods[0].ip(), "a", first), (pods[1].ip(), "a", second)])
            .replace("{name: http, port: 8080}", "{name: dns, port: 5353, protocol: UDP}")
    };
    let text = |of_names: [Stands; 2]| {
        format!(
            "{local}{}{names}{}{manifests}",
            slice("shop", &endpoints),
            slice_of_names(of_names)
        )
    };
    let both = [Stands::Ready, Stands::Ready];
    let cluster = Cluster::start_in_packets(&net, &text(both));
    wait_for("all are well", || cluster.states().values().all(|(state, _)| state == "up"));
    let shares = cluster.shares(vip(2), 300);
    assert!(shares.len() == 3 && shares.values().all(|n| (55..=150).contains(n)), "{shares:?}");
    let seen = net.on(Host::Client, || get(vip(2), "/peer").unwrap());
    assert_eq!(seen, "10.77.0.2", "the Pod behind a node's port knows who asks");
    let at = SocketAddr::new(vip(3).ip(), 53);
    net.on(Host::Client, || {
        let sockets: Vec<_> = (0..20).map(|_| packets::client_socket(at)).collect();
        let asked = |text: &[u8]| -> Vec<String> {
            sockets.iter().map(|socket| packets::ask(socket, text).unwrap()).collect()
        };
        let first = asked(b"one");
        assert!(first.contains(&"e1".into()) && first.contains(&"e2".into()), "{first:?}");
        assert_eq!(asked(b"two"), first, "each stays where it is");
        cluster.apply(&text([Stands::Terminating, Stands::Ready]));
        assert!(asked(b"three").iter().all(|name| name == "e2"), "the next datagram moves");
    });
    drop(echoes);
}

/// `dsr` to nodes: they answer for the address, as kube-proxy has it when the status says `VIP`.
#[test]
fn nodes_answer_for_the_address_itself() {
    let Some(net) = packets::net() else { return };
    packets::direct(&net);
    let pods: Vec<Nginx> = (1..=2).map(|n| pod(&net, &format!("p{n}"), n)).collect();
    let [a, b] = [("a", 1), ("b", 2)].map(|(name, n)| Node::start(&net, name, n, &[10256]));
    // Both nodes are on one host: whichever a packet reaches has both Pods.
    let rule = format!(
        "add rule ip vip pods ip daddr 10.99.0.1 tcp dport 80 dnat to numgen inc mod 2 map {{ 0 : {}, 1 : {} }} : 8080",
        pods[0].ip(),
        pods[1].ip()
    );
    for words in [
        "add table ip vip",
        "add chain ip vip pods { type nat hook prerouting priority dstnat ; policy accept ; }",
        &rule,
    ] {
        net.exec(Host::Servers, &format!("nft {words}"));
    }
    let mode = "fairway.dev/mode: dsr, fairway.dev/addresses: 10.99.0.1";
    let service = shop(mode, "externalTrafficPolicy: Cluster");
    let manifests = [a.manifest(), b.manifest()].concat();
    let cluster = Cluster::start_in_packets(&net, &format!("{service}{manifests}"));
    wait_for("all are well", || cluster.states().values().all(|(state, _)| state == "up"));
    let vip = SocketAddr::from(([10, 99, 0, 1], 80));
    assert_eq!(cluster.shares(vip, 20).len(), 2);
    assert_eq!(net.on(Host::Client, || get(vip, "/peer").unwrap()), "10.77.0.2");
    // A node that says so is left alone.
    b.say(false);
    wait_for("it is out", || cluster.states().values().any(|(state, _)| state == "down"));
    let of_b = || {
        let backends = cluster.fairway.backends();
        let mut backends = backends.as_array().unwrap().iter();
        backends.find(|backend| backend["name"] == "b").unwrap()["connections"].as_u64().unwrap()
    };
    let before = of_b();
    assert!(before > 0, "it had its part");
    cluster.shares(vip, 10);
    assert_eq!(of_b(), before);
}

/// A process that was killed has left its addresses; the next one knows them.
#[test]
fn what_a_killed_process_left_is_taken_over() {
    let Some(net) = Net::new() else { return };
    let pods = [pod(&net, "p1", 1)];
    let shop = shop("", "allocateLoadBalancerNodePorts: false");
    let slice = slice("shop", &[(pods[0].ip(), "a", Stands::Ready)]);
    let mut cluster = Cluster::start(&net, "{target: pod}", &format!("{shop}{}{slice}", other()));
    let addresses = || net.exec(Host::Lb, "ip -o address show dev lo");
    assert!(addresses().contains("10.77.0.120/32") && addresses().contains("10.77.0.121/32"));
    // Somebody's own, which is nobody's to take away.
    net.exec(Host::Lb, "ip address add 10.77.0.122/32 dev lo");
    cluster.fairway.restart_after(|folder| {
        std::fs::write(folder.join("manifests.d/all.yaml"), format!("{shop}{slice}")).unwrap();
    });
    // The first by its name had the first address.
    let second = SocketAddr::new([10, 77, 0, 121].into(), 80);
    // The kernel may take a moment to close what the one before had.
    wait_for("the port is ours", || net.on(Host::Client, || get(second, "/").is_ok()));
    assert_eq!(cluster.shares(second, 1), [("p1".into(), 1)].into());
    let now = addresses();
    assert!(now.contains("10.77.0.121") && now.contains("10.77.0.122"), "{now}");
    assert!(!now.contains("10.77.0.120"), "{now}");
    cluster.fairway.signal(rustix::process::Signal::TERM);
    assert!(cluster.fairway.wait().success());
    let left = addresses();
    assert!(!left.contains("10.77.0.121") && left.contains("10.77.0.122"), "{left}");
}
