//! Services that come and go, and their addresses.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use fairway_config::kubernetes::Name;
use fairway_config::{Config, load_text};
use fairway_core::Mode;

use super::told_tests::GATEWAY;
use super::{Cloud, StateFile};

/// Pools of the usual kind, in the document's words.
pub(super) const POOLS: &str = "
  - {name: public, addresses: [192.0.2.0/30, '2001:db8::/126']}
  - {name: asked, addresses: [198.51.100.1-198.51.100.9], autoAssign: false}
";

fn config(folder: &Path, pools: &str, manifests: &str) -> Config {
    config_with(folder, pools, manifests, "[]")
}

fn config_with(folder: &Path, pools: &str, manifests: &str, services: &str) -> Config {
    std::fs::write(folder.join("all.yaml"), manifests).unwrap();
    let file = folder.join("fairway.yaml");
    let text = format!(
        "sources: {{manifests: [all.yaml]}}\naddressPools:\n{pools}\nservices: {services}\n"
    );
    load_text(&file.as_path().into(), &text).unwrap_or_else(|problems| panic!("{problems}"))
}

/// A Service: its name, and fields of its metadata and of its spec.
pub(super) fn service(name: &str, annotations: &str, spec: &str) -> String {
    let ports = match spec.contains("ports:") {
        true => "",
        false => "ports: [{port: 80, nodePort: 30080}],",
    };
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, annotations: {{{annotations}}}}}\n\
         spec: {{type: LoadBalancer, {ports} {spec}}}\n"
    )
}

/// What each Service has, or why it has nothing.
pub(super) fn outcomes(cloud: &Cloud) -> BTreeMap<String, String> {
    let view = cloud.view();
    let text = |view: &super::CloudServiceView| {
        let addresses: Vec<String> = view.addresses.iter().map(ToString::to_string).collect();
        // Who serves is another question.
        let is_idle = |finding: &&String| finding.starts_with("nobody serves port");
        let findings = view.findings.iter().filter(|finding| !is_idle(finding)).cloned().collect();
        let words = [addresses, findings].concat().join(" ");
        (view.service.strip_prefix("default/").unwrap().to_owned(), words)
    };
    view.services.iter().map(text).collect()
}

fn served(pools: &str, manifests: &[String]) -> BTreeMap<String, String> {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), pools, &manifests.concat());
    let mut cloud = Cloud::new(&config, None);
    cloud.document(&config);
    outcomes(&cloud)
}

#[test]
fn each_service_has_what_it_asks_for() {
    let shared = "ports: [{port: 81, nodePort: 30081}]";
    for (what, manifests, want) in [
        (
            "the lowest free one, by name where nobody is older",
            vec![service("b", "", ""), service("a", "", "")],
            vec![("a", "192.0.2.0"), ("b", "192.0.2.1")],
        ),
        (
            "those who ask come first",
            vec![service("a", "", ""), service("b", "", "loadBalancerIP: 192.0.2.0")],
            vec![("a", "192.0.2.1"), ("b", "192.0.2.0")],
        ),
        (
            "each family",
            vec![service("a", "", "ipFamilies: [IPv6, IPv4], ipFamilyPolicy: RequireDualStack")],
            vec![("a", "2001:db8:: 192.0.2.0")],
        ),
        ("one family", vec![service("a", "", "ipFamilies: [IPv6]")], vec![("a", "2001:db8::")]),
        (
            "a pool that gives nothing by itself",
            vec![
                service("a", "metallb.io/address-pool: asked", ""),
                service("b", "metallb.universe.tf/loadBalancerIPs: 198.51.100.7", ""),
                service("c", "fairway.dev/addressPool: other", ""),
            ],
            vec![
                ("a", "198.51.100.1"),
                ("b", "198.51.100.7"),
                ("c", "there is no pool `other`; there are: asked, public"),
            ],
        ),
        (
            "what nobody has",
            vec![
                service("a", "", "loadBalancerIP: 203.0.113.1"),
                service("b", "fairway.dev/addresses: '192.0.2.1, 198.51.100.1'", ""),
                service("c", "fairway.dev/addresses: nowhere", ""),
                service("d", "metallb.io/loadBalancerIPs: 192.0.2.1", "loadBalancerIP: 192.0.2.2"),
            ],
            vec![
                ("a", "no pool for this Service has 203.0.113.1"),
                ("b", "no pool for this Service has 192.0.2.1 and 198.51.100.1"),
                ("c", "annotation `fairway.dev/addresses`: `nowhere` is no IP address"),
                (
                    "d",
                    "annotation `metallb.io/loadBalancerIPs` and `spec.loadBalancerIP` both name \
                     addresses; remove one",
                ),
            ],
        ),
        (
            "one address by a key, for other ports",
            vec![
                service("a", "metallb.io/allow-shared-ip: k", ""),
                service("b", "metallb.io/allow-shared-ip: k", shared),
                service("c", "fairway.dev/sharingKey: k", ""),
                service("d", "metallb.io/allow-shared-ip: k, fairway.dev/addresses: 192.0.2.0", ""),
                service("e", "fairway.dev/addresses: 192.0.2.0", shared),
            ],
            vec![
                // Who asks for it has it.
                ("a", "192.0.2.1"),
                ("b", "192.0.2.0"),
                ("c", "192.0.2.2"),
                ("d", "192.0.2.0"),
                ("e", "192.0.2.0 is taken by Service `default/d`"),
            ],
        ),
        (
            "with `Local` only beside the same Pods",
            vec![
                service(
                    "a",
                    "fairway.dev/sharingKey: k",
                    "externalTrafficPolicy: Local, selector: {a: b}",
                ),
                service(
                    "b",
                    "fairway.dev/sharingKey: k, fairway.dev/addresses: 192.0.2.0",
                    &format!("externalTrafficPolicy: Local, selector: {{a: b}}, {shared}"),
                ),
                service("c", "fairway.dev/sharingKey: k, fairway.dev/addresses: 192.0.2.0", shared),
            ],
            vec![
                ("a", "192.0.2.0"),
                ("b", "192.0.2.0"),
                (
                    "c",
                    "192.0.2.0 is taken by Service `default/b`, and with `externalTrafficPolicy: \
                     Local` only Services of the same Pods share one",
                ),
            ],
        ),
        (
            "until there are no more",
            ["a", "b", "c", "d", "e"].map(|name| service(name, "", "")).into(),
            vec![
                ("a", "192.0.2.0"),
                ("b", "192.0.2.1"),
                ("c", "192.0.2.2"),
                ("d", "192.0.2.3"),
                ("e", "no free IPv4 address in `public`"),
            ],
        ),
    ] {
        let got = served(POOLS, &manifests);
        let want: BTreeMap<String, String> =
            want.into_iter().map(|(name, text)| (name.into(), text.into())).collect();
        assert_eq!(got, want, "{what}");
    }
}

#[test]
fn pools_choose_whom_they_serve() {
    let pools = "
  - {name: last, addresses: [192.0.2.0/28]}
  - {name: first, addresses: [192.0.2.16/31], priority: 1, avoidBuggyIPs: true}
  - {name: late, addresses: [192.0.2.32/28], priority: 2}
  - {name: zeros, addresses: [203.0.113.0/24], autoAssign: false, avoidBuggyIPs: true}
  - {name: of-web, addresses: [198.51.100.0/24], serviceSelectors: [{matchLabels: {app: web}}], priority: 9}
  - {name: elsewhere, addresses: [198.51.101.0/24], namespaces: [other], priority: 0}
";
    let labelled = service("web", "", "").replace("{name: web,", "{name: web, labels: {app: web},");
    let manifests: Vec<String> = ["a", "b", "c"].map(|name| service(name, "", "")).into();
    let zeros = service("zeros", "fairway.dev/addressPool: zeros", "");
    let foreign = service("foreign", "fairway.dev/addressPool: elsewhere", "");
    let got = served(pools, &[manifests, vec![labelled, zeros, foreign]].concat());
    let want = [
        ("a", "192.0.2.16"),
        ("b", "192.0.2.17"),
        ("c", "192.0.2.32"),
        ("foreign", "pool `elsewhere` is not for this Service, by its selectors"),
        ("web", "198.51.100.0"),
        ("zeros", "203.0.113.1"),
    ];
    assert_eq!(got, want.map(|(name, text)| (name.into(), text.into())).into());
}

#[test]
fn addresses_are_kept_and_go_to_who_waits() {
    let folder = tempfile::tempdir().unwrap();
    let small = "\n  - {name: public, addresses: [192.0.2.0/31]}\n";
    let mut cloud = None;
    let mut apply = |names: &[&str], pools: &str| {
        let manifests: String = names.iter().map(|name| service(name, "", "")).collect();
        let config = config(folder.path(), pools, &manifests);
        let cloud = cloud.get_or_insert_with(|| Cloud::new(&config, None));
        cloud.document(&config);
        outcomes(cloud)
    };
    let none = "no free IPv4 address in `public`";
    let all = apply(&["m", "n", "o"], small);
    assert_eq!((&*all["m"], &*all["n"], &*all["o"]), ("192.0.2.0", "192.0.2.1", none));
    // Who comes later takes nothing away, whatever its name.
    let all = apply(&["a", "m", "n", "o"], small);
    assert_eq!((&*all["m"], &*all["n"], &*all["a"]), ("192.0.2.0", "192.0.2.1", none));
    // What is free goes to the first who waits.
    let all = apply(&["a", "n", "o"], small);
    assert_eq!((&*all["a"], &*all["n"], &*all["o"]), ("192.0.2.0", "192.0.2.1", none));
    // Another pool is found, and its addresses do not draw anybody away.
    let wider = format!("{small}  - {{name: more, addresses: [198.51.100.0/24], priority: 1}}\n");
    let all = apply(&["a", "n", "o"], &wider);
    assert_eq!((&*all["a"], &*all["n"], &*all["o"]), ("192.0.2.0", "192.0.2.1", "198.51.100.0"));
    // Those whose pool has gone move.
    let other = "\n  - {name: more, addresses: [198.51.100.0/24]}\n";
    let all = apply(&["a", "n", "o"], other);
    assert_eq!(
        (&*all["a"], &*all["n"], &*all["o"]),
        ("198.51.100.1", "198.51.100.2", "198.51.100.0")
    );
}

#[test]
fn what_is_left_of_two_families_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let prefer = "ipFamilies: [IPv4, IPv6], ipFamilyPolicy: PreferDualStack";
    let all =
        [service("a", "", ""), service("b", "", prefer), service("c", "", "ipFamilies: [IPv6]")];
    let of = |pools: &str| config(folder.path(), pools, &all.concat());
    let first = of("\n  - {name: public, addresses: [192.0.2.0/31, '2001:db8::/126']}\n");
    let mut cloud = Cloud::new(&first, None);
    cloud.document(&first);
    assert_eq!(outcomes(&cloud)["b"], "192.0.2.1 2001:db8::");
    cloud.document(&of("\n  - {name: public, addresses: [192.0.2.0/31]}\n"));
    let got = outcomes(&cloud);
    assert_eq!((&*got["a"], &*got["b"]), ("192.0.2.0", "192.0.2.1"));
    assert_eq!(got["c"], "no free IPv6 address in `public`");
    // Whoever has addresses of a pool keeps them, whatever its neighbour is called.
    let pool = |name: &str| {
        format!(
            "---\napiVersion: fairway.dev/v1alpha1\nkind: AddressPool\nmetadata: {{name: {name}}}\n\
                 spec: {{addresses: [198.51.100.0/31]}}\n"
        )
    };
    let with = |pools: &str| config(folder.path(), "", &format!("{}{pools}", service("a", "", "")));
    cloud.document(&with(&pool("obj")));
    cloud.document(&with(&[pool("aaa"), pool("obj")].concat()));
    assert_eq!(outcomes(&cloud)["a"], "198.51.100.0");
    assert!(cloud.view().troubles[0].starts_with("pool `aaa` is not used"));
    // Also when the process begins with what it had.
    let both = with(&[pool("aaa"), pool("obj").replace("/31", "/30")].concat());
    let mut next = Cloud::new(&both, None);
    next.remembered.insert(Name::new("default", "a"), vec!["198.51.100.2".parse().unwrap()]);
    next.document(&both);
    assert_eq!(outcomes(&next)["a"], "198.51.100.2");
}

#[test]
fn reserved_networks_are_passed_over_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let own = "[{name: own, mode: nat, addresses: ['2001:db8::/64', 192.0.2.0/25, 192.0.2.200], ports: [{port: 80}]}]";
    let manifests = [service("a", "", "ipFamilies: [IPv6]"), service("b", "", "")].concat();
    std::fs::write(folder.path().join("all.yaml"), manifests).unwrap();
    let text = format!(
        "sources: {{manifests: [all.yaml]}}\naddressPools: [{{name: p, addresses: ['2001:db8::/32', 192.0.2.0/24]}}]\n\
         dataplane: {{packet: {{interfaces: [eth0]}}}}\nservices: {own}\n"
    );
    let config = load_text(&folder.path().join("fairway.yaml").as_path().into(), &text);
    let config = config.unwrap_or_else(|problems| panic!("{problems}"));
    let mut cloud = Cloud::new(&config, None);
    cloud.document(&config);
    let got = outcomes(&cloud);
    assert_eq!((&*got["a"], &*got["b"]), ("2001:db8:0:1::", "192.0.2.128"));
}

#[test]
fn a_second_family_is_added_to_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let of = |pools: &str, spec: &str| config(folder.path(), pools, &service("a", "", spec));
    let v4 = "\n  - {name: public, addresses: [192.0.2.7]}\n";
    let both = "\n  - {name: public, addresses: [192.0.2.0/28, '2001:db8::/64']}\n";
    let prefer = "ipFamilies: [IPv4, IPv6], ipFamilyPolicy: PreferDualStack";
    let first = of(v4, prefer);
    let mut cloud = Cloud::new(&first, None);
    cloud.document(&first);
    assert_eq!(outcomes(&cloud)["a"], "192.0.2.7", "one is better than none");
    cloud.document(&of(both, prefer));
    assert_eq!(outcomes(&cloud)["a"], "192.0.2.7 2001:db8::");
    cloud.document(&of(both, "ipFamilies: [IPv6]"));
    assert_eq!(outcomes(&cloud)["a"], "2001:db8::");
    let require = "ipFamilies: [IPv6, IPv4], ipFamilyPolicy: RequireDualStack";
    cloud.document(&of(v4, require));
    assert_eq!(outcomes(&cloud)["a"], "no free IPv6 and IPv4 address in `public`");
}

#[test]
fn addresses_outlive_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let both = [service("a", "", ""), service("b", "", "")].concat();
    let begin = |manifests: &str| {
        let config = config(folder.path(), POOLS, manifests);
        let mut cloud = Cloud::new(&config, Some(StateFile::open(&folder.path().join("state"))));
        cloud.document(&config);
        outcomes(&cloud)
    };
    assert_eq!(begin(&both)["b"], "192.0.2.1");
    assert_eq!(begin(&service("b", "", ""))["b"], "192.0.2.1");
    // A file that cannot be read is a trouble, and no more.
    std::fs::write(folder.path().join("state/addresses.json"), "{").unwrap();
    let config = config(folder.path(), POOLS, &both);
    let cloud = Cloud::new(&config, Some(StateFile::open(&folder.path().join("state"))));
    assert!(cloud.view().troubles[0].contains("cannot be read"));
}

#[test]
fn the_documents_services_come_first() {
    let folder = tempfile::tempdir().unwrap();
    let manifests = [
        service("a", "", ""),
        service("b", "", "loadBalancerIP: 192.0.2.0"),
        service("web", "", ""),
    ]
    .concat();
    let own = "[{name: default/web, addresses: [192.0.2.0], ports: [{port: 443}]}]";
    let with = config_with(folder.path(), POOLS, &manifests, own);
    let mut cloud = Cloud::new(&with, None);
    cloud.document(&with);
    let got = outcomes(&cloud);
    assert_eq!(got["a"], "192.0.2.1");
    assert_eq!(got["b"], "192.0.2.0 is taken by service `default/web/443` of the document");
    assert!(
        got["web"]
            .ends_with("the document has a service of this name, which is served in its place")
    );
    assert_eq!(cloud.desired().len(), 1);
    let without = config(folder.path(), POOLS, &manifests);
    let change = cloud.document(&without).change;
    assert_eq!((change.upserts.len(), cloud.desired().len()), (2, 3));
}

#[test]
fn only_what_changes_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let slice = |ready: bool| {
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: a-1, labels: {{kubernetes.io/service-name: a}}}}\naddressType: IPv4\n\
             ports: [{{port: 8080}}]\nendpoints: [{{addresses: [10.0.0.1], conditions: {{ready: {ready}}}}}]\n"
        )
    };
    let pods = "fairway.dev/target: pod";
    let services = [service("a", pods, ""), service("b", "", "")].concat();
    let of = |more: &str| config(folder.path(), POOLS, &format!("{services}{more}"));
    let first = of(&slice(true));
    let mut cloud = Cloud::new(&first, None);
    assert_eq!(cloud.document(&first).change.upserts.len(), 2);
    assert!(cloud.document(&first).change.is_empty());
    let change = cloud.document(&of(&slice(false))).change;
    let keys: Vec<_> = change.upserts.iter().map(|spec| spec.key.to_string()).collect();
    assert_eq!(keys, ["default/a/80"]);
    assert_eq!(change.upserts[0].backends.len(), 1, "it stays in the table");
    let node = "---\napiVersion: v1\nkind: Node\nmetadata: {name: n}\n\
                status: {addresses: [{type: InternalIP, address: 10.0.0.9}]}\n";
    let change = cloud.document(&of(&format!("{}{node}", slice(false)))).change;
    let keys: Vec<_> = change.upserts.iter().map(|spec| spec.key.to_string()).collect();
    assert_eq!(keys, ["default/b/80"]);
    let change = cloud.document(&config(folder.path(), POOLS, &service("b", "", ""))).change;
    assert_eq!(change.removals.len(), 1);
    assert!(cloud.served.keys().eq([&Name::new("default", "b")]));
}

#[test]
fn an_external_address_has_one_owner() {
    let folder = tempfile::tempdir().unwrap();
    let asks = |name: &str, ips: &str| service(name, "", &format!("externalIPs: [{ips}]"));
    let of = |names: &[&str]| {
        let asking = names.iter().map(|name| asks(name, "203.0.113.1, 192.0.2.0, 192.0.2.250"));
        let manifests: String = asking.collect();
        std::fs::write(folder.path().join("all.yaml"), manifests).unwrap();
        let text = format!(
            "sources: {{manifests: [all.yaml], kubernetes: {{externalIPs: true}}}}\naddressPools:\n{POOLS}\n\
             services: [{{name: own, addresses: [192.0.2.250], ports: [{{port: 443}}]}}]\n"
        );
        load_text(&folder.path().join("fairway.yaml").as_path().into(), &text).unwrap()
    };
    let first = of(&["b", "c"]);
    let mut cloud = Cloud::new(&first, None);
    cloud.document(&first);
    let frontends = |cloud: &Cloud, name: &str| {
        let desired = cloud.desired();
        let of = desired.iter().filter(|(key, _)| key.0.contains(&format!("/{name}/")));
        let all = of.flat_map(|(_, spec)| &spec.frontends).map(|f| f.ip().to_string());
        all.collect::<Vec<_>>().join(" ")
    };
    // The pool has given 192.0.2.0 to the first, the document has 192.0.2.250.
    assert_eq!(frontends(&cloud, "b"), "192.0.2.0 203.0.113.1");
    assert_eq!(frontends(&cloud, "c"), "192.0.2.1");
    assert!(outcomes(&cloud)["c"].contains("taken by Service `default/b`"));
    assert!(outcomes(&cloud)["c"].contains("taken by service `own/443` of the document"));
    // Whoever comes first by name has it, whenever it comes.
    cloud.document(&of(&["a", "b", "c"]));
    assert_eq!(frontends(&cloud, "a"), "192.0.2.2 203.0.113.1");
    assert_eq!(frontends(&cloud, "b"), "192.0.2.0");
    cloud.document(&of(&["c"]));
    assert_eq!(frontends(&cloud, "c"), "192.0.2.1 203.0.113.1 192.0.2.0");
}

#[test]
fn exposed_services_name_their_addresses() {
    let exposed = |name: &str, more: &str| {
        service(name, &format!("fairway.dev/expose: 'true'{more}"), "")
            .replace("type: LoadBalancer", "type: NodePort")
    };
    let got =
        served(POOLS, &[exposed("a", ""), exposed("b", ", fairway.dev/addresses: 192.0.2.3")]);
    assert!(got["a"].starts_with("`fairway.dev/expose` needs an address"), "{got:?}");
    assert_eq!(got["b"], "192.0.2.3");
}

#[test]
fn gateways_are_served_where_their_routes_lead() {
    let folder = tempfile::tempdir().unwrap();
    let of = |text: &str| config(folder.path(), POOLS, text);
    let first = of(GATEWAY);
    let mut cloud = Cloud::new(&first, None);
    cloud.document(&first);
    assert_eq!(outcomes(&cloud)["gateway/web"], "192.0.2.0");
    let keys = |cloud: &Cloud| -> Vec<String> {
        cloud.desired().iter().map(|(key, spec)| format!("{key} {}", spec.backends.len())).collect()
    };
    assert_eq!(keys(&cloud), ["default/gateway/web/http 1"]);
    // Who serves the Service serves the Gateway; who is asked for it comes first.
    let second = "endpoints: [{addresses: [10.0.0.1]}, {addresses: [10.0.0.2]}]";
    let two = GATEWAY.replace("endpoints: [{addresses: [10.0.0.1]}]", second);
    let change = cloud.document(&of(&two)).change;
    assert_eq!(
        (change.upserts.len(), keys(&cloud)),
        (1, vec!["default/gateway/web/http 2".into()])
    );
    let named = two.replace(
        "spec: {gatewayClassName",
        "spec: {addresses: [{value: 198.51.100.3}], gatewayClassName",
    );
    cloud.document(&of(&named));
    assert_eq!(outcomes(&cloud)["gateway/web"], "198.51.100.3");
    // The Service's port is what a route leads to.
    cloud.document(&of(&named.replace("ports: [{port: 80}]}", "ports: [{port: 81}]}")));
    assert_eq!(keys(&cloud), ["default/gateway/web/http 0"]);
    cloud.document(&of(&named.replace("kind: TCPRoute", "kind: TLSRoute")));
    assert!(cloud.desired().is_empty(), "nobody listens where no route leads");
    cloud.document(&of(&named.replace("gatewayClassName: edge", "gatewayClassName: core")));
    assert!(outcomes(&cloud).is_empty());
    let trouble = "Gateway default/web is not served: there is no GatewayClass `core`";
    assert_eq!(cloud.view().troubles[0], trouble);
}

#[test]
fn what_would_be_served_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let both = [service("a", "", ""), service("b", "", "")].concat();
    let first = config(folder.path(), POOLS, &both);
    let state = StateFile::open(&folder.path().join("state"));
    let mut cloud = Cloud::new(&first, Some(state));
    cloud.document(&first);
    let keys = |desired: &fairway_config::Desired| -> Vec<String> {
        let shown = |spec: &std::sync::Arc<fairway_config::ServiceSpec>| {
            format!("{} {}", spec.key, spec.frontends[0].ip())
        };
        desired.values().map(shown).collect()
    };
    let now = keys(&cloud.desired());
    assert_eq!(now, ["default/a/80 192.0.2.0", "default/b/80 192.0.2.1"]);
    let written = std::fs::read(folder.path().join("state/addresses.json")).unwrap();
    let pools = "\n  - {name: other, addresses: [198.51.100.7]}\n";
    let would = cloud.would_serve(&config(folder.path(), pools, &service("b", "", "")));
    assert_eq!(keys(&would), ["default/b/80 198.51.100.7"]);
    assert_eq!(keys(&cloud.desired()), now);
    assert_eq!(std::fs::read(folder.path().join("state/addresses.json")).unwrap(), written);
}

#[test]
fn what_a_service_says_is_read_once() {
    let folder = tempfile::tempdir().unwrap();
    let load = |annotations: &str, endpoint: &str| {
        let slice = format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: a-1, labels: \
             {{kubernetes.io/service-name: a}}}}\naddressType: IPv4\nports: [{{port: 8080}}]\nendpoints: \
             [{{addresses: [{endpoint}]}}]\n"
        );
        config(folder.path(), POOLS, &(service("a", annotations, "") + &slice))
    };
    let pods = "fairway.dev/target: pod";
    let first = load(pods, "10.0.0.1");
    let mut cloud = Cloud::new(&first, None);
    let mut served = |config: &Config| {
        cloud.document(config);
        let served = cloud.served.values().next().unwrap();
        let spec = served.specs.values().next().unwrap();
        let backends: Vec<_> = spec.backends.iter().map(|it| it.addr.to_string()).collect();
        (served.draft.clone().unwrap(), backends.join(" "), spec.policy.mode)
    };
    let (before, backends, mode) = served(&first);
    assert_eq!((&*backends, mode), ("10.0.0.1:8080", Mode::Proxy));
    let (after, backends, _) = served(&load(pods, "10.0.0.2"));
    assert_eq!(backends, "10.0.0.2:8080");
    assert!(Arc::ptr_eq(&before, &after), "endpoints change nothing of it");
    let other = format!("{pods}, fairway.dev/limits: '{{maxConnections: 5}}'");
    let (again, backends, _) = served(&load(&other, "10.0.0.2"));
    assert!(!Arc::ptr_eq(&again, &after) && backends == "10.0.0.2:8080");
}
