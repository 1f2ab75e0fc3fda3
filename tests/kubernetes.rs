//! Services of a cluster, through a real Fairway: by manifests, to nodes and to Pods.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use fairway_tests::api_server::ApiServer;
use fairway_tests::cluster::{Node, Stands, node_ports, pod, slice};
use fairway_tests::http::{Outcome, connect, get, load};
use fairway_tests::{Fairway, Host, Net, Nginx, SECOND, wait_at_most, wait_for};

/// The first address of the pool.
const FIRST: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 77, 0, 120)), 80);

/// A Fairway with manifests beside its document.
struct Cluster<'n> {
    net: &'n Net,
    fairway: Fairway,
}

impl<'n> Cluster<'n> {
    fn start(net: &'n Net, kubernetes: &str, manifests: &str) -> Self {
        // The folder is there when it starts, and what is in it comes then.
        let document = format!(
            "dataplane: {{vip: {{interface: lo}}}}\nservices: []\n\
             sources: {{manifests: [manifests.d], kubernetes: {kubernetes}}}\n\
             addressPools: [{{name: public, addresses: [10.77.0.120-10.77.0.129]}}]\n"
        );
        let fairway =
            Fairway::start_with_files(net, &document, &[("manifests.d/all.yaml", manifests)]);
        Self { net, fairway }
    }

    /// Puts other manifests in the place of those that are there.
    fn write(&self, manifests: &str) {
        let folder = self.fairway.folder().join("manifests.d");
        std::fs::write(folder.join(".new"), manifests).unwrap();
        std::fs::rename(folder.join(".new"), folder.join("all.yaml")).unwrap();
    }

    /// The same, and waits until they are in force.
    fn apply(&self, manifests: &str) {
        self.write(manifests);
        let output = self.fairway.cli(&["reload"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        wait_for("workers know it", || {
            let status = self.fairway.status().unwrap();
            status["generationInUse"] == status["generation"]
        });
    }

    /// Who answers `count` requests.
    fn shares(&self, vip: SocketAddr, count: u32) -> BTreeMap<String, u32> {
        self.net.on(Host::Client, || {
            let mut shares = BTreeMap::new();
            for _ in 0..count {
                *shares.entry(get(vip, "/").unwrap()).or_default() += 1;
            }
            shares
        })
    }

    fn states(&self) -> BTreeMap<String, (String, u64)> {
        let backends = self.fairway.backends();
        let state = |backend: &serde_json::Value| {
            let text = |field: &str| backend[field].as_str().unwrap().to_owned();
            (text("address"), (text("state"), backend["weight"].as_u64().unwrap()))
        };
        backends.as_array().unwrap().iter().map(state).collect()
    }

    fn state(&self, address: &str) -> String {
        self.states()[address].0.clone()
    }
}

/// The Service `shop`, with further fields.
fn shop(annotations: &str, fields: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: shop, annotations: {{{annotations}}}}}\n\
         spec: {{type: LoadBalancer, selector: {{app: shop}}, {fields}, \
         ports: [{{name: http, port: 80, targetPort: 8080, nodePort: 30080}}]}}\n"
    )
}

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
            new.last_mut().unwrap().restart(&net);
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

/// A Fairway that watches an API server.
fn watching<'n>(net: &'n Net, api: &ApiServer, kubernetes: &str) -> Cluster<'n> {
    let folder = tempfile::tempdir().unwrap();
    api.kubeconfig(folder.path());
    let file = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    let (config, token) = (file("kubeconfig"), file("token"));
    // The token lies beside it.
    let config = config.replace(&folder.path().join("token").display().to_string(), "token");
    let document = format!(
        "dataplane: {{vip: {{interface: lo}}}}\nservices: []\n\
         sources: {{kubernetes: {{kubeconfig: kubeconfig, defaultClass: true{kubernetes}}}}}\n\
         addressPools: [{{name: public, addresses: [10.77.0.120-10.77.0.129]}}]\n"
    );
    let files = [("kubeconfig", &*config), ("token", &*token)];
    Cluster { net, fairway: Fairway::start_with_files(net, &document, &files) }
}

#[test]
fn a_service_of_an_api_server_is_held_served_and_let_go() {
    let Some(net) = Net::new() else { return };
    let pods: Vec<Nginx> = (1..=2).map(|n| pod(&net, &format!("p{n}"), n)).collect();
    let api = ApiServer::start(&net);
    let slices = |of_second: Stands| {
        let endpoints = [(pods[0].ip(), "a", Stands::Ready), (pods[1].ip(), "a", of_second)];
        slice("shop", &endpoints)
    };
    let cluster = watching(&net, &api, ", target: pod");
    api.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: default}\n");
    api.apply(&slices(Stands::Ready));
    api.apply(&shop("", "allocateLoadBalancerNodePorts: false"));
    wait_for("it has an address", || api.addresses("shop") == ["10.77.0.120"]);
    let service = api.get("services", "default", "shop").unwrap();
    let held = &service["metadata"]["finalizers"];
    assert_eq!(*held, serde_json::json!(["service.kubernetes.io/load-balancer-cleanup"]));
    assert_eq!(
        service["status"]["loadBalancer"]["ingress"],
        serde_json::json!([{
            "ip": "10.77.0.120", "ipMode": "Proxy", "ports": [{ "port": 80, "protocol": "TCP" }]
        }])
    );
    // It is served before it is said to be.
    let shares = cluster.shares(FIRST, 60);
    assert_eq!(shares.len(), 2, "{shares:?}");
    // What is written is so, and is not written again.
    api.requests();
    api.apply(&slices(Stands::NotReady));
    wait_for("one is out", || cluster.state("10.244.0.2:8080") == "down");
    assert_eq!(cluster.shares(FIRST, 20), [("p1".into(), 20)].into());
    let patches: Vec<_> =
        api.requests().into_iter().filter(|request| request.starts_with("PATCH")).collect();
    assert!(patches.is_empty(), "{patches:?}");
    // A bad annotation is told of, once, and the rest works.
    api.apply(&shop("fairway.dev/scheduler: best", "allocateLoadBalancerNodePorts: false"));
    let warned = || {
        let events = api.all("events").into_iter();
        events.filter(|event| event["reason"] == "InvalidAnnotation").collect::<Vec<_>>()
    };
    wait_for("its owner is told", || !warned().is_empty());
    assert!(warned()[0]["note"].as_str().unwrap().contains("`best` is none of"), "{:?}", warned());
    assert_eq!(cluster.shares(FIRST, 10), [("p1".into(), 10)].into());
    let reasons: Vec<String> =
        api.all("events").iter().map(|e| e["reason"].as_str().unwrap().into()).collect();
    for reason in ["EnsuringLoadBalancer", "EnsuredLoadBalancer"] {
        assert!(reasons.iter().any(|known| known == reason), "{reasons:?}");
    }
    // Pods to which there is no way are told of, too.
    let astray = "apiVersion: v1\nkind: Service\nmetadata: {name: astray}\nspec: {type: LoadBalancer, \
                  ports: [{name: http, port: 81}]}\n";
    api.apply(&format!(
        "{astray}{}",
        slice("astray", &[([10, 245, 0, 1].into(), "a", Stands::Ready)])
    ));
    wait_for("its owner is told", || {
        let events = api.all("events");
        events.iter().any(|event| event["reason"] == "NoRouteToPods")
    });
    // It goes when we have let it go.
    api.delete("services", "default", "shop");
    wait_for("it is gone", || api.get("services", "default", "shop").is_none());
    let services = || cluster.fairway.services();
    wait_for("nobody serves it", || !services().to_string().contains("default/shop/"));
    assert!(services().to_string().contains("default/astray/http"));
}

#[test]
fn an_api_server_may_be_away() {
    let Some(net) = Net::new() else { return };
    let pods: Vec<Nginx> = (1..=3).map(|n| pod(&net, &format!("p{n}"), n)).collect();
    let mut api = ApiServer::start(&net);
    // Nobody has installed our pools.
    api.lacks("addresspools");
    let slices = |count: usize| {
        let endpoints: Vec<_> =
            pods[..count].iter().map(|pod| (pod.ip(), "a", Stands::Ready)).collect();
        slice("shop", &endpoints)
    };
    api.apply(&slices(1));
    api.apply(&shop("", "allocateLoadBalancerNodePorts: false"));
    let mut cluster = watching(&net, &api, ", target: pod");
    wait_for("it has an address", || api.addresses("shop") == ["10.77.0.120"]);
    let served = |cluster: &Cluster<'_>| cluster.shares(FIRST, 30).len();
    assert_eq!(served(&cluster), 1);
    // While it is away, what is known is served.
    api.go_away();
    wait_for("it is told of", || {
        let troubles = cluster.fairway.status().unwrap()["troubles"].to_string();
        troubles.contains("Service objects cannot be watched, what is known of them is served")
    });
    assert_eq!(served(&cluster), 1);
    api.apply(&slices(2));
    api.come_back(&net);
    wait_for("the news arrive", || served(&cluster) == 2);
    // It comes back with another memory: what vanished meanwhile is gone, without a word of it.
    api.go_away();
    api.apply(
        &shop("", "allocateLoadBalancerNodePorts: false").replace("name: shop", "name: other"),
    );
    api.delete("endpointslices", "default", "shop-1");
    api.apply(&slices(3).replace("name: shop-1", "name: shop-2"));
    api.forget();
    api.come_back(&net);
    wait_for("it is listed anew", || served(&cluster) == 3);
    wait_for("the other has an address", || api.addresses("other") == ["10.77.0.121"]);
    wait_for("all is well", || {
        let troubles = cluster.fairway.status().unwrap()["troubles"].to_string();
        !troubles.contains("watched")
    });
    // And so does the next process, when there is no API server at all.
    let saved = cluster.fairway.folder().join("state/cluster.json");
    wait_for("it is written down", || {
        std::fs::read_to_string(&saved).is_ok_and(|text| text.contains("other"))
    });
    api.go_away();
    cluster.fairway.restart();
    wait_for("it serves again", || net.on(Host::Client, || get(FIRST, "/").is_ok()));
    assert_eq!(served(&cluster), 3);
    api.come_back(&net);
    wait_for("it is watched again", || {
        let troubles = cluster.fairway.status().unwrap()["troubles"].to_string();
        !troubles.contains("watched")
    });
    assert_eq!((served(&cluster), api.addresses("shop")), (3, vec!["10.77.0.120".to_owned()]));
}

#[test]
fn another_box_leads_when_one_dies() {
    let Some(net) = Net::new() else { return };
    let pods: Vec<Nginx> = (1..=2).map(|n| pod(&net, &format!("p{n}"), n)).collect();
    let api = ApiServer::start(&net);
    api.apply(&slice("shop", &[(pods[0].ip(), "a", Stands::Ready)]));
    api.apply(&shop("", "allocateLoadBalancerNodePorts: false"));
    // Somebody else led, and is not heard of any more.
    api.apply(
        "apiVersion: coordination.k8s.io/v1\nkind: Lease\nmetadata: {name: \
         load-balancer.fairway.dev.fairway, namespace: kube-system}\nspec: {holderIdentity: other, \
         leaseDurationSeconds: 15, renewTime: \"2026-01-01T00:00:00.000000Z\"}\n",
    );
    let cluster = watching(&net, &api, ", target: pod");
    wait_for("it follows", || {
        let table = cluster.fairway.cli(&["cluster"]).stdout;
        String::from_utf8(table).unwrap().contains("default/shop  -")
    });
    assert!(api.addresses("shop").is_empty());
    wait_at_most(25 * SECOND, "it leads", || api.addresses("shop") == ["10.77.0.120"]);
    assert_eq!(cluster.shares(FIRST, 10), [("p1".into(), 10)].into());
    let lease = api.get("leases", "kube-system", "load-balancer.fairway.dev.fairway").unwrap();
    assert_eq!(lease["spec"]["leaseTransitions"], 1, "{lease}");
    // Another one takes it over: what is served is served on, and no longer written.
    let mut stolen = serde_json::to_string(&lease).unwrap();
    stolen = stolen.replace(lease["spec"]["holderIdentity"].as_str().unwrap(), "other");
    api.apply(&stolen);
    wait_for("it leads no longer", || cluster.fairway.log().contains("this box leads no longer"));
    assert_eq!(cluster.shares(FIRST, 10), [("p1".into(), 10)].into());
    api.requests();
    api.apply(
        &shop("", "allocateLoadBalancerNodePorts: false").replace("name: shop", "name: other"),
    );
    api.apply(&slice("shop", &[(pods[1].ip(), "a", Stands::Ready)]));
    wait_for("endpoints change all the same", || cluster.shares(FIRST, 10).contains_key("p2"));
    assert!(!api.requests().iter().any(|request| request.starts_with("PATCH")));
}
