//! What an API server tells, and what it is told.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::path::Path;

use fairway_config::kubernetes::client::ClusterEvent;
use fairway_config::kubernetes::{Kind, Manifests, Name};
use fairway_config::load_text;
use serde_json::{Value, json};

use super::Cloud;
use super::status::{Step, Todo};
use super::tests::{POOLS, outcomes, service};

/// A box at an API server, which has told of these objects.
fn told(folder: &Path, leads: bool, manifests: &str) -> Cloud {
    let text = format!(
        "sources: {{kubernetes: {{kubeconfig: none, defaultClass: true}}}}\naddressPools:\n{POOLS}\n\
         services: [{{name: own, mode: nat, addresses: [198.51.100.4/30], ports: [{{port: 80}}]}}]\n\
         dataplane: {{packet: {{interfaces: [eth0]}}}}\n"
    );
    let config = load_text(&folder.join("fairway.yaml").as_path().into(), &text);
    let config = config.unwrap_or_else(|problems| panic!("{problems}"));
    let mut cloud = Cloud::new(&config, None);
    assert!(cloud.document(&config).change.is_empty(), "nothing is known yet");
    if leads {
        cloud.lead(true);
    }
    tell(&mut cloud, manifests);
    cloud
}

/// Has the API server tell of these objects and no others.
fn tell(cloud: &mut Cloud, manifests: &str) -> Vec<Todo> {
    let objects = Manifests::of_text(&Path::new("all.yaml").into(), manifests).unwrap().objects;
    let all = Kind::ALL.map(|kind| {
        let of_kind = objects.iter().filter(|(object, _)| object.kind() == kind);
        ClusterEvent::All(kind, None, of_kind.map(|(object, _)| object.clone()).collect())
    });
    cloud.events(all.into_iter()).todos
}

#[test]
fn who_follows_serves_what_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let held = "finalizers: [service.kubernetes.io/load-balancer-cleanup],";
    let written = service("a", "", "").replace("metadata: {", &format!("metadata: {{{held} "))
        + "status: {loadBalancer: {ingress: [{ip: 192.0.2.1}]}}\n";
    let wishes = service("b", "", "loadBalancerIP: 192.0.2.1").replace(
        "metadata: {",
        &format!("metadata: {{{held} creationTimestamp: 2020-01-01T00:00:00Z, "),
    );
    let reserved = service("c", "fairway.dev/addresses: 198.51.100.5", "")
        .replace("metadata: {", &format!("metadata: {{{held} "));
    let all = [written, wishes, reserved].concat();
    let pending = "the box that leads has given it no address yet";
    let mut cloud = told(folder.path(), false, &all);
    let got = outcomes(&cloud);
    assert_eq!((&*got["a"], &*got["b"]), ("192.0.2.1", pending));
    assert_eq!(cloud.desired().len(), 1);
    // When it leads, the older one that wishes for it does not take it away.
    cloud.lead(true);
    let got = outcomes(&cloud);
    assert_eq!(got["a"], "192.0.2.1");
    assert_eq!(got["b"], "192.0.2.1 is taken by Service `default/a`");
    assert_eq!(got["c"], "198.51.100.5 is taken by service `own/80` of the document", "a network");
    // It leads from before anything is known, and acts when everything is.
    assert_eq!(outcomes(&told(folder.path(), true, &all))["a"], "192.0.2.1");
}

#[test]
fn finalizers_of_others_stay() {
    let folder = tempfile::tempdir().unwrap();
    let held = "finalizers: [service.kubernetes.io/load-balancer-cleanup],";
    let of = |annotations: &str, kind: &str| {
        service("a", annotations, "")
            .replace("metadata: {", &format!("metadata: {{{held} "))
            .replace("type: LoadBalancer", &format!("type: {kind}"))
    };
    let exposed = "fairway.dev/expose: 'true', fairway.dev/addresses: 192.0.2.1";
    let name = Name::new("default", "a");
    let step = |annotations: &str, kind: &str| {
        let cloud = told(folder.path(), true, &of(annotations, kind));
        cloud.todo(&name, false).map(|todo| todo.step)
    };
    assert_eq!(step(exposed, "NodePort"), None);
    assert_eq!(step("fairway.dev/servedBy: fairway.dev/fairway", "NodePort"), Some(Step::Release));
    assert_eq!(step("fairway.dev/servedBy: example.com/other", "NodePort"), None);
    assert_eq!(step("", "LoadBalancer"), Some(Step::Hold), "it is marked first");
    let marked = "fairway.dev/servedBy: fairway.dev/fairway";
    assert_eq!(step(marked, "LoadBalancer"), Some(Step::Status));
}

/// A Gateway with a route to a Service.
pub(super) const GATEWAY: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: edge}
spec: {controllerName: fairway.dev/fairway}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: web, generation: 3}
spec: {gatewayClassName: edge, listeners: [{name: http, protocol: TCP, port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TCPRoute
metadata: {name: shop}
spec: {parentRefs: [{name: web}], rules: [{backendRefs: [{name: shop, port: 80}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: shop}
spec: {ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: shop-1, labels: {kubernetes.io/service-name: shop}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.0.0.1]}]
";

#[test]
fn statuses_are_written_once() {
    let folder = tempfile::tempdir().unwrap();
    let pool = "---\napiVersion: fairway.dev/v1alpha1\nkind: AddressPool\nmetadata: {name: more}\n\
                spec: {addresses: [203.0.113.0/29, '2001:db8:1::/64'], priority: 0}\n";
    let mut cloud = told(folder.path(), true, pool);
    let todos = tell(&mut cloud, &format!("{GATEWAY}{pool}"));
    let patch = |todos: &[Todo], name: &str| {
        let todo = todos.iter().find(|todo| todo.name.to_string() == name);
        todo.and_then(|todo| todo.patch.clone()).map(|patch| patch["status"].clone())
    };
    let of_gateway = patch(&todos, "default/gateway/web").unwrap();
    assert_eq!(of_gateway["addresses"], json!([{"type": "IPAddress", "value": "203.0.113.0"}]));
    let listener = &of_gateway["listeners"][0];
    let kinds = json!([{"group": "gateway.networking.k8s.io", "kind": "TCPRoute"}]);
    assert_eq!((&listener["attachedRoutes"], &listener["supportedKinds"]), (&json!(1), &kinds));
    let conditions = |of: &Value| -> Vec<String> {
        let all = of["conditions"].as_array().unwrap().iter();
        all.map(|c| format!("{}={}", c["type"].as_str().unwrap(), c["status"].as_str().unwrap()))
            .collect()
    };
    assert_eq!(conditions(&of_gateway), ["Accepted=True", "Programmed=True"]);
    assert_eq!(of_gateway["conditions"][0]["observedGeneration"], 3);
    let of_route = patch(&todos, "default/tcproutes/shop").unwrap();
    assert_eq!(conditions(&of_route["parents"][0]), ["Accepted=True", "ResolvedRefs=True"]);
    assert_eq!(of_route["parents"][0]["controllerName"], "fairway.dev/fairway");
    let of_class = patch(&todos, "gatewayclasses/edge").unwrap();
    assert_eq!(conditions(&of_class), ["Accepted=True"]);
    let of_pool = patch(&todos, "addresspools/more").unwrap();
    let counts = json!({"assignedIPv4": 1, "assignedIPv6": 0, "availableIPv4": 7, "availableIPv6": i64::MAX});
    assert_eq!(of_pool, counts);
    // Written so, and beside what others have written, there is nothing more to say.
    let mut route = of_route;
    let theirs = json!({"parentRef": {"name": "x"}, "controllerName": "example.com/x"});
    route["parents"].as_array_mut().unwrap().insert(0, theirs);
    let mut gateway = of_gateway;
    gateway["conditions"].as_array_mut().unwrap().push(json!({"type": "Theirs", "status": "True"}));
    let with = |kind: &str, text: &str, status: &Value| {
        text.replacen(&format!("kind: {kind}\n"), &format!("kind: {kind}\nstatus: {status}\n"), 1)
    };
    let mut text = with("Gateway", GATEWAY, &gateway);
    text = with("TCPRoute", &text, &route);
    text = with("GatewayClass", &text, &of_class);
    text += &with("AddressPool", pool, &of_pool);
    assert_eq!(tell(&mut cloud, &text), []);
    // News is said, with its time; what has not changed keeps it, and others' words stay.
    let todos = tell(&mut cloud, &text.replace("ports: [{port: 80}]}", "ports: [{port: 81}]}"));
    let route = patch(&todos, "default/tcproutes/shop").unwrap();
    assert_eq!(route["parents"][0]["controllerName"], "example.com/x");
    assert_eq!(conditions(&route["parents"][1]), ["Accepted=True", "ResolvedRefs=False"]);
    assert_eq!(patch(&todos, "default/gateway/web"), None);
    let todos = tell(&mut cloud, &text.replace("name: http", "name: other"));
    let gateway = patch(&todos, "default/gateway/web").unwrap();
    assert_eq!(conditions(&gateway), ["Accepted=True", "Programmed=True", "Theirs=True"]);
    // A route that leaves takes what we said of it along.
    let todos =
        tell(&mut cloud, &text.replace("parentRefs: [{name: web}]", "parentRefs: [{name: x}]"));
    let route = patch(&todos, "default/tcproutes/shop").unwrap();
    assert_eq!(route["parents"].as_array().unwrap().len(), 1);
}

#[test]
fn other_nodes_are_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let held = "finalizers: [service.kubernetes.io/load-balancer-cleanup],";
    let marked = "fairway.dev/servedBy: fairway.dev/fairway";
    let service = service("a", marked, "").replace("metadata: {", &format!("metadata: {{{held} "))
        + "status: {loadBalancer: {ingress: [{ip: 192.0.2.0, ipMode: Proxy, ports: [{port: 80, protocol: TCP}]}]}}\n";
    let node = |n: u8| {
        format!(
            "---\napiVersion: v1\nkind: Node\nmetadata: {{name: n{n}}}\n\
             status: {{addresses: [{{type: InternalIP, address: 10.0.0.{n}}}]}}\n"
        )
    };
    let mut cloud = told(folder.path(), true, &format!("{service}{}", node(1)));
    let steps = |todos: Vec<Todo>| -> Vec<Step> { todos.iter().map(|todo| todo.step).collect() };
    assert_eq!(steps(tell(&mut cloud, &format!("{service}{}", node(1)))), []);
    let two = format!("{service}{}{}", node(1), node(2));
    assert_eq!(steps(tell(&mut cloud, &two)), [Step::Updated]);
    assert_eq!(steps(tell(&mut cloud, &two)), []);
}

#[test]
fn who_follows_has_a_gateways_address_by_its_status() {
    let folder = tempfile::tempdir().unwrap();
    let mut cloud = told(folder.path(), false, GATEWAY);
    let pending = "the box that leads has given it no address yet";
    assert_eq!(outcomes(&cloud)["gateway/web"], pending);
    let with = |ip: &str| {
        let status = format!("kind: Gateway\nstatus: {{addresses: [{{value: {ip}}}]}}\n");
        GATEWAY.replacen("kind: Gateway\n", &status, 1)
    };
    for ip in ["192.0.2.1", "192.0.2.2"] {
        assert_eq!(tell(&mut cloud, &with(ip)), []);
        assert_eq!(outcomes(&cloud)["gateway/web"], ip);
        assert_eq!(cloud.desired().len(), 1);
    }
    // It goes on there when it leads.
    cloud.lead(true);
    assert_eq!(outcomes(&cloud)["gateway/web"], "192.0.2.2");
}

#[test]
fn endpoints_alone_are_no_news_to_an_owner() {
    let folder = tempfile::tempdir().unwrap();
    let ours = "fairway.dev/servedBy: fairway.dev/fairway, fairway.dev/addressPool: moves, fairway.dev/target: pod";
    let held = "metadata: {finalizers: [service.kubernetes.io/load-balancer-cleanup],";
    let written = service("a", ours, "").replace("metadata: {", held)
        + "status: {loadBalancer: {ingress: [{ip: 203.0.113.0, ipMode: Proxy, ports: [{port: 80, protocol: TCP}]}]}}\n";
    let all = |pool: &str, endpoint: &str| {
        format!(
            "{written}---\napiVersion: fairway.dev/v1alpha1\nkind: AddressPool\nmetadata: {{name: moves}}\nspec: \
             {{addresses: [{pool}], autoAssign: false}}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: a-1, labels: {{kubernetes.io/service-name: a}}}}\naddressType: IPv4\nports: \
             [{{port: 8080}}]\nendpoints: [{{addresses: [{endpoint}]}}]\n"
        )
    };
    let first = "203.0.113.0/30";
    let mut cloud = told(folder.path(), true, &all(first, "10.0.0.1"));
    let of_a = |todos: Vec<Todo>| -> Vec<Step> {
        let of_a = todos.into_iter().filter(|todo| &*todo.name.name == "a");
        of_a.map(|todo| todo.step).collect()
    };
    assert_eq!(of_a(tell(&mut cloud, &all(first, "10.0.0.2"))), []);
    let served = |cloud: &Cloud| cloud.desired().values().next().unwrap().backends[0].addr;
    assert_eq!(served(&cloud).to_string(), "10.0.0.2:8080");
    // With its endpoints, its address moves: of that it is to hear.
    assert_eq!(of_a(tell(&mut cloud, &all("203.0.113.8/30", "10.0.0.3"))), [Step::Status]);
    assert_eq!(served(&cloud).to_string(), "10.0.0.3:8080");
}
