//! Services of a cluster, through a real Fairway that watches an API server.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use axum::http::Method;
use fairway_tests::api_server::{ApiServer, path};
use fairway_tests::cluster::{
    Cluster, FIRST, LEASE, Stands, other, pod, ready, shop, slice, watching, watching_too,
};
use fairway_tests::http::get;
use fairway_tests::{Host, Net, Nginx, SECOND, wait_at_most, wait_for};
use serde_json::{Value, json};

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
    assert_eq!(*held, json!(["service.kubernetes.io/load-balancer-cleanup"]));
    assert_eq!(
        service["status"]["loadBalancer"]["ingress"],
        json!([{
            "ip": "10.77.0.120", "ipMode": "Proxy", "ports": [{ "port": 80, "protocol": "TCP" }]
        }])
    );
    // It is served before it is said to be.
    let shares = cluster.shares(FIRST, 60);
    assert_eq!(shares.len(), 2, "{shares:?}");
    // What is written is so, and is not written again.
    let version = api.version("shop");
    api.apply(&slices(Stands::NotReady));
    wait_for("one is out", || cluster.state("10.244.0.2:8080") == "down");
    assert_eq!(cluster.shares(FIRST, 20), [("p1".into(), 20)].into());
    assert_eq!(api.version("shop"), version);
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
    let slices = |count: usize| slice("shop", &ready(&pods[..count]));
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
    api.come_back();
    wait_for("the news arrive", || served(&cluster) == 2);
    // It comes back with another memory, where it can lose it: what vanished meanwhile is gone, without a
    // word of it.
    api.go_away();
    api.apply(&other());
    api.delete("endpointslices", "default", "shop-1");
    api.apply(&slices(3).replace("name: shop-1", "name: shop-2"));
    api.forget();
    api.come_back();
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
    api.come_back();
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
    let lease = api.get("leases", "kube-system", LEASE).unwrap();
    assert_eq!(lease["spec"]["leaseTransitions"], 1, "{lease}");
    // Another one takes it over: what is served is served on, and no longer written.
    let mut stolen = lease;
    let meta = stolen["metadata"].as_object_mut().unwrap();
    meta.retain(|field, _| field == "name" || field == "namespace");
    stolen["spec"]["holderIdentity"] = json!("other");
    api.apply(&stolen.to_string());
    wait_for("it leads no longer", || cluster.fairway.log().contains("this box leads no longer"));
    assert_eq!(cluster.shares(FIRST, 10), [("p1".into(), 10)].into());
    api.apply(&other());
    let version = api.version("other");
    api.apply(&slice("shop", &[(pods[1].ip(), "a", Stands::Ready)]));
    wait_for("endpoints change all the same", || cluster.shares(FIRST, 10).contains_key("p2"));
    assert_eq!(api.version("other"), version);
}

/// Two boxes; the one that leads is killed, and whatever it had is carried on.
#[test]
fn the_box_that_leads_is_killed() {
    let Some(net) = Net::new() else { return };
    let pods: Vec<Nginx> = (1..=2).map(|n| pod(&net, &format!("p{n}"), n)).collect();
    let api = ApiServer::start(&net);
    let slices = |count: usize| slice("shop", &ready(&pods[..count]));
    api.apply(&slices(1));
    api.apply(&shop("", "allocateLoadBalancerNodePorts: false"));
    let first = watching(&net, &api, ", target: pod");
    wait_for("it has an address", || api.addresses("shop") == ["10.77.0.120"]);
    let second = watching_too(&net, &api, ", target: pod");
    let serves = |cluster: &Cluster<'_>| cluster.fairway.services().to_string().contains("shop");
    wait_for("the other serves it as well", || serves(&second));
    let leads = |cluster: &Cluster<'_>| cluster.fairway.log().contains("this box leads");
    assert!(leads(&first) && !leads(&second));
    drop(first);
    // The kernel takes a moment to close what a process on the same host had open.
    wait_for("its sockets are gone", || {
        net.on(Host::Client, || (0..20).all(|_| get(FIRST, "/").is_ok()))
    });
    // Traffic does not wait for a leader, and neither do endpoints.
    assert_eq!(second.shares(FIRST, 20).len(), 1);
    api.apply(&slices(2));
    wait_for("endpoints change all the same", || second.shares(FIRST, 20).len() == 2);
    api.apply(&other());
    wait_at_most(25 * SECOND, "the other leads", || api.addresses("other") == ["10.77.0.121"]);
    assert!(leads(&second));
    assert_eq!(api.addresses("shop"), ["10.77.0.120"]);
}

/// A Gateway of our class, with a route to two Services.
fn gateway(weights: [u32; 2]) -> String {
    let [first, second] = weights;
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {{name: edge}}\n\
         spec: {{controllerName: fairway.dev/fairway}}\n---\n\
         apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: web}}\n\
         spec: {{gatewayClassName: edge, listeners: [{{name: http, protocol: TCP, port: 80}}, \
         {{name: https, protocol: HTTPS, port: 443}}]}}\n---\n\
         apiVersion: gateway.networking.k8s.io/v1alpha2\nkind: TCPRoute\nmetadata: {{name: shop}}\n\
         spec: {{parentRefs: [{{name: web, sectionName: http}}], rules: [{{backendRefs: [\
         {{name: old, port: 80, weight: {first}}}, {{name: new, port: 80, weight: {second}}}]}}]}}\n"
    )
}

#[test]
fn gateways_lead_to_services_by_weight() {
    let Some(net) = Net::new() else { return };
    let pods: Vec<Nginx> = (1..=4).map(|n| pod(&net, &format!("p{n}"), n)).collect();
    let api = ApiServer::start(&net);
    if !api.has("gateways") {
        println!("SKIPPED: the API server has no Gateway API");
        return;
    }
    let cluster_ip = |name: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
             spec: {{ports: [{{name: http, port: 80}}]}}\n"
        )
    };
    let cluster = watching(&net, &api, "");
    api.apply(&gateway([3, 1]));
    let gateway_status = || api.get("gateways", "default", "web").unwrap()["status"].clone();
    wait_for("it has an address", || gateway_status()["addresses"][0]["value"] == "10.77.0.120");
    let condition = |status: &Value, kind: &str| {
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.into_iter().find(|condition| condition["type"] == kind);
        found.map(|found| format!("{} {}", found["status"], found["reason"]).replace('"', ""))
    };
    let status = gateway_status();
    assert_eq!(condition(&status, "Accepted").unwrap(), "True ListenersNotValid");
    assert_eq!(condition(&status, "Programmed").unwrap(), "True Programmed");
    let listeners = &status["listeners"];
    assert_eq!(condition(&listeners[0], "Programmed").unwrap(), "True Programmed");
    assert_eq!(condition(&listeners[1], "Accepted").unwrap(), "False UnsupportedProtocol");
    let class = || api.get("gatewayclasses", "", "edge").unwrap();
    wait_for("the class is ours", || {
        condition(&class()["status"], "Accepted").is_some_and(|found| found == "True Accepted")
    });
    let route = || {
        let route = api.get("tcproutes", "default", "shop").unwrap();
        condition(&route["status"]["parents"][0], "ResolvedRefs").unwrap_or_default()
    };
    wait_for("what it leads to is missed", || route() == "False BackendNotFound");
    // The Services come, with their endpoints.
    api.apply(&(cluster_ip("old") + &slice("old", &ready(&pods[..3]))));
    api.apply(&(cluster_ip("new") + &slice("new", &ready(&pods[3..]))));
    wait_for("what it leads to is there", || route() == "True ResolvedRefs");
    wait_for("it is served", || net.on(Host::Client, || get(FIRST, "/").is_ok()));
    // Three Pods of one Service have three quarters, and the one of the other has a quarter.
    let shares = cluster.shares(FIRST, 400);
    assert!(shares.len() == 4 && shares.values().all(|n| (60..=140).contains(n)), "{shares:?}");
    // The new version takes over.
    api.apply(&gateway([0, 1]));
    wait_for("all go to the new one", || cluster.shares(FIRST, 10) == [("p4".into(), 10)].into());
    api.delete("tcproutes", "default", "shop");
    wait_for("nobody listens", || net.on(Host::Client, || get(FIRST, "/").is_err()));
    assert_eq!(gateway_status()["addresses"][0]["value"], "10.77.0.120");
    assert_eq!(gateway_status()["listeners"][0]["attachedRoutes"], 0);
}

#[test]
fn pools_are_objects_that_say_what_is_free() {
    let Some(net) = Net::new() else { return };
    let pods = [pod(&net, "p1", 1)];
    let api = ApiServer::start(&net);
    if !api.has("addresspools") {
        println!("SKIPPED: the API server has no AddressPools");
        return;
    }
    let pool = |addresses: &str| {
        format!(
            "apiVersion: fairway.dev/v1alpha1\nkind: AddressPool\nmetadata: {{name: small}}\n\
             spec: {{addresses: [{addresses}], priority: 1}}\n"
        )
    };
    api.apply(&pool("10.77.0.140-10.77.0.143"));
    api.apply(&slice("shop", &[(pods[0].ip(), "a", Stands::Ready)]));
    api.apply(&shop("", "allocateLoadBalancerNodePorts: false"));
    let cluster = watching(&net, &api, ", target: pod");
    wait_for("it has an address", || api.addresses("shop") == ["10.77.0.140"]);
    assert_eq!(cluster.shares("10.77.0.140:80".parse().unwrap(), 5), [("p1".into(), 5)].into());
    let counts = || {
        let pool = api.get("addresspools", "", "small").unwrap_or_default();
        format!("{} {}", pool["status"]["assignedIPv4"], pool["status"]["availableIPv4"])
    };
    wait_for("the pool says so", || counts() == "1 3");
    // Another that has its addresses, and comes first by its name, is told of and not used.
    api.apply(
        "apiVersion: fairway.dev/v1alpha1\nkind: AddressPool\nmetadata: {name: another}\n\
         spec: {addresses: [10.77.0.140/30], priority: 0}\n",
    );
    wait_for("it is told of", || {
        let table = String::from_utf8(cluster.fairway.cli(&["cluster"]).stdout).unwrap();
        table.contains("pool `another` is not used: 10.77.0.140-10.77.0.143 is in pool `small`")
    });
    assert_eq!(api.addresses("shop"), ["10.77.0.140"], "nobody is drawn away");
    api.delete("addresspools", "", "another");
    // What nobody asks for any more is free again.
    api.delete("services", "default", "shop");
    wait_for("it is free", || counts() == "0 4");
}

/// What cannot be written is tried again, and its owner is told.
#[test]
fn a_status_that_was_not_written_is_tried_again() {
    let Some(net) = Net::new() else { return };
    let pods = [pod(&net, "p1", 1)];
    let api = ApiServer::start(&net);
    let cluster = watching(&net, &api, ", target: pod");
    if !api.fail(1) {
        println!("SKIPPED: this API server cannot be made to fail");
        return;
    }
    api.apply(&slice("shop", &[(pods[0].ip(), "a", Stands::Ready)]));
    api.apply(&shop("", "allocateLoadBalancerNodePorts: false"));
    wait_for("its owner is told", || {
        api.all("events").iter().any(|event| event["reason"] == "SyncLoadBalancerFailed")
    });
    assert!(api.addresses("shop").is_empty());
    // Five seconds later, as the upstream controller has it.
    wait_at_most(15 * SECOND, "it is tried again", || api.addresses("shop") == ["10.77.0.120"]);
    assert_eq!(cluster.shares(FIRST, 5), [("p1".into(), 5)].into());
}

/// A token is read again from its file within a minute.
#[test]
fn a_new_token_is_taken() {
    if std::env::var_os("FAIRWAY_TESTS_ALL").is_none() {
        println!("SKIPPED: it takes more than a minute; `tests/run --all` runs it");
        return;
    }
    let Some(net) = Net::new() else { return };
    let pods: Vec<Nginx> = (1..=2).map(|n| pod(&net, &format!("p{n}"), n)).collect();
    let mut api = ApiServer::start(&net);
    api.apply(&slice("shop", &[(pods[0].ip(), "a", Stands::Ready)]));
    api.apply(&shop("", "allocateLoadBalancerNodePorts: false"));
    let cluster = watching(&net, &api, ", target: pod");
    wait_for("it has an address", || api.addresses("shop") == ["10.77.0.120"]);
    wait_for("its pod is known", || cluster.states().values().any(|(state, _)| state == "up"));
    if !api.renew_token("another") {
        println!("SKIPPED: tokens of this API server are not ours to renew");
        return;
    }
    api.go_away();
    api.come_back();
    wait_for("the old one is refused", || {
        cluster.fairway.status().unwrap()["troubles"].to_string().contains("Unauthorized")
    });
    assert_eq!(cluster.shares(FIRST, 10), [("p1".into(), 10)].into());
    std::fs::write(cluster.fairway.folder().join("token"), "another").unwrap();
    api.apply(&slice("shop", &[(pods[1].ip(), "a", Stands::Ready)]));
    wait_at_most(90 * SECOND, "the new one is read", || {
        cluster.shares(FIRST, 5).contains_key("p2")
    });
}

/// What the other tests rest on, said of whichever API server they use.
#[test]
fn the_api_server_does_as_it_should() {
    let Some(net) = Net::new() else { return };
    let api = ApiServer::start(&net);
    let (services, shop_path) = ("services", path("services", "default", "conform"));
    let merge = "application/merge-patch+json";
    let strategic = "application/strategic-merge-patch+json";
    let body = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "conform" },
        "spec": { "type": "LoadBalancer", "ports": [{ "name": "http", "port": 80 }] },
    });
    let all = path(services, "default", "");
    let ask = |method: Method, path: &str, content: &str, body: Value| {
        api.try_ask(method, path, content, body)
    };
    let made = ask(Method::POST, &all, "application/json", body.clone()).unwrap();
    assert_eq!(ask(Method::POST, &all, "application/json", body).unwrap_err(), 409);
    // Finalizers and annotations are written through the status, and the spec is not.
    let status = format!("{shop_path}/status");
    let finalizer = "service.kubernetes.io/load-balancer-cleanup";
    let change = json!({
        "metadata": { "finalizers": [finalizer], "annotations": { "a": "b" } },
        "spec": { "type": "NodePort" },
        "status": { "loadBalancer": { "ingress": [{ "ip": "192.0.2.1", "ipMode": "Proxy" }] } },
    });
    let patched = ask(Method::PATCH, &status, merge, change).unwrap();
    assert_eq!(patched["metadata"]["finalizers"], json!([finalizer]));
    assert_eq!(patched["metadata"]["annotations"]["a"], "b");
    assert_eq!(patched["spec"]["type"], "LoadBalancer");
    let ingress = json!([{ "ip": "192.0.2.1", "ipMode": "Proxy" }]);
    assert_eq!(patched["status"]["loadBalancer"]["ingress"], ingress);
    // What is about another version is refused.
    let version = |object: &Value| json!({ "metadata": { "resourceVersion": object["metadata"]["resourceVersion"] } });
    assert_eq!(ask(Method::PATCH, &status, merge, version(&made)).unwrap_err(), 409);
    assert!(ask(Method::PATCH, &status, merge, version(&patched)).is_ok());
    assert_eq!(ask(Method::PUT, &shop_path, "application/json", made).unwrap_err(), 409);
    // An address has a mode only if it is there.
    let odd = json!({ "status": { "loadBalancer": { "ingress": [{ "ipMode": "VIP" }] } } });
    assert_eq!(ask(Method::PATCH, &status, merge, odd).unwrap_err(), 422);
    // A merge patch replaces lists; a strategic one adds to them.
    let second = json!({ "metadata": { "finalizers": ["example.com/second"] } });
    let both = ask(Method::PATCH, &shop_path, strategic, second.clone()).unwrap();
    assert_eq!(both["metadata"]["finalizers"].as_array().unwrap().len(), 2);
    let ports = json!({ "spec": { "ports": [{ "name": "https", "port": 443 }] } });
    let more = ask(Method::PATCH, &shop_path, strategic, ports).unwrap();
    assert_eq!(more["spec"]["ports"].as_array().unwrap().len(), 2);
    let one = ask(Method::PATCH, &shop_path, merge, second).unwrap();
    assert_eq!(one["metadata"]["finalizers"], json!(["example.com/second"]));
    // It goes when it is let go.
    api.delete(services, "default", "conform");
    let going = api.get(services, "default", "conform").unwrap();
    assert!(going["metadata"]["deletionTimestamp"].is_string());
    let free = json!({ "metadata": { "finalizers": null } });
    ask(Method::PATCH, &shop_path, merge, free).unwrap();
    assert_eq!(ask(Method::GET, &shop_path, "", Value::Null).unwrap_err(), 404);
}
