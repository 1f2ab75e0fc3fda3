//! What Services come to: manifests, and beside each the services that it makes.
//!
//! `FAIRWAY_TESTS_WRITE=1` writes what comes out beside them, to be looked at.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use fairway_config::kubernetes::{
    Attachments, Cluster, Draft, Role, Rules, Service, Translation, Verdict, gateway_wish,
    translate_gateway, wish,
};
use fairway_config::{CheckSpec, Config, Origin, Place, ServiceSpec, Serving, load_text};

/// The document, with manifests beside it.
fn load(document: &str, manifests: &str) -> Config {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("all.yaml"), manifests).unwrap();
    let file = folder.path().join("fairway.yaml");
    load_text(&file.as_path().into(), document).unwrap_or_else(|problems| panic!("{problems}"))
}

fn cluster(config: &Config) -> Cluster {
    let mut cluster = Cluster::default();
    for (object, _) in &config.cluster.manifests.as_ref().unwrap().objects {
        cluster.apply(object.clone());
    }
    cluster
}

/// The addresses that a Service would be given: those that it asks for, else one of each family.
fn addresses(service: &Service) -> Vec<IpAddr> {
    let wish = wish(service).unwrap();
    if !wish.addresses.is_empty() {
        return wish.addresses;
    }
    let families = if wish.families.is_empty() { vec![true] } else { wish.families };
    let of = |is_ipv4: bool| if is_ipv4 { "192.0.2.1" } else { "2001:db8::1" };
    families.into_iter().map(|family| of(family).parse().unwrap()).collect()
}

fn show(cluster: &Cluster, rules: &Arc<Rules>) -> String {
    let mut text = String::new();
    for (name, service) in cluster.services() {
        if rules.role(service) == Role::Foreign {
            writeln!(text, "{name}: left alone").unwrap();
            continue;
        }
        let origin = Origin { file: Path::new("all.yaml").into(), place: Place::default() };
        let done = Draft::new(service, rules, &addresses(service), &origin).served_in(cluster);
        let ip_mode = if done.keeps_address { "VIP" } else { "Proxy" };
        let ports: Vec<String> = done
            .ports
            .iter()
            .map(|port| {
                let error = port.error.map_or(String::new(), |error| format!(" ({error})"));
                format!("{}/{}{error}", port.port, port.protocol)
            })
            .collect();
        writeln!(text, "{name}: ipMode {ip_mode}, {}", ports.join(", ")).unwrap();
        show_done(&mut text, &done);
    }
    show_gateways(&mut text, cluster, rules);
    text
}

fn show_done(text: &mut String, done: &Translation) {
    done.specs.iter().for_each(|spec| show_spec(text, spec));
    for finding in &done.findings {
        writeln!(text, "  ! {}: {}", finding.reason, finding.message).unwrap();
    }
}

fn show_gateways(text: &mut String, cluster: &Cluster, rules: &Rules) {
    let show = |verdicts: &[Verdict]| {
        let shown = verdicts.iter().map(|verdict| {
            let Verdict { of, holds, reason, message } = verdict;
            let message = if message.is_empty() { "".into() } else { format!(" ({message})") };
            format!("{of}={holds} {reason}{message}")
        });
        shown.collect::<Vec<_>>().join(", ")
    };
    let all = Attachments::of(cluster, rules);
    for (name, state) in &all.gateways {
        writeln!(text, "Gateway {name}: {}", show(state.accepted.as_slice())).unwrap();
        for listener in &state.listeners {
            let attached = listener.attached;
            let verdicts = show(&listener.verdicts);
            writeln!(text, "  listener {}, {attached} routes: {verdicts}", listener.name).unwrap();
        }
        let gateway = cluster.gateway(name).unwrap();
        let wish = match gateway_wish(gateway) {
            Ok(wish) => wish,
            Err(finding) => {
                writeln!(text, "  ! {}: {}", finding.reason, finding.message).unwrap();
                continue;
            }
        };
        let addresses = match wish.addresses.is_empty() {
            true => vec!["192.0.2.1".parse().unwrap()],
            false => wish.addresses,
        };
        let origin = Origin { file: Path::new("all.yaml").into(), place: Place::default() };
        let done = translate_gateway(cluster, gateway, state, rules, &addresses, &origin);
        show_done(text, &done);
    }
    for ((kind, name), parents) in &all.routes {
        for parent in parents {
            let section = parent.at.section_name.as_ref().map(|name| format!("/{name}"));
            let at = format!("{}{}", parent.at.name, section.unwrap_or_default());
            writeln!(text, "{} {name} at {at}: {}", kind.word(), show(&parent.verdicts)).unwrap();
        }
    }
}

fn show_spec(text: &mut String, spec: &ServiceSpec) {
    let frontends: Vec<String> =
        spec.frontends.iter().map(|f| format!("{} port {}", f.net, f.ports)).collect();
    let policy = &spec.policy;
    let mut words = vec![spec.protocol.to_string(), policy.mode.to_string()];
    words.extend(spec.app_protocol.as_ref().map(ToString::to_string));
    words.extend(policy.affinity.map(|affinity| format!("affinity {:?}", affinity.timeout)));
    words.extend(spec.prefer_same_zone.then(|| "same zone first".into()));
    if !policy.allow.is_empty() {
        let some =
            ["198.51.100.9", "203.0.113.200", "192.0.2.200", "2001:db8:5::1", "2001:db8:6::1"];
        let may = |ip: &&str| policy.allow.contains(ip.parse().unwrap());
        let who: Vec<&str> = some.into_iter().filter(may).collect();
        words.push(format!("not from everybody, but from {}", who.join(" and ")));
    }
    let check = spec.check.as_deref().map_or("no check".into(), show_check);
    writeln!(text, "  {} at {}: {}, {check}", spec.key, frontends.join(", "), words.join(", "))
        .unwrap();
    for backend in &spec.backends {
        let mut words = Vec::new();
        words
            .extend((backend.weight.get() > 1).then(|| format!("weight {}", backend.weight.get())));
        words.extend(backend.name.as_ref().map(|name| format!("node {name}")));
        words.extend(backend.zone.as_ref().map(|zone| format!("zone {zone}")));
        words.extend((backend.serving != Serving::Yes).then(|| format!("{:?}", backend.serving)));
        let words = words.join(", ");
        writeln!(text, "    {} {words}", backend.addr).unwrap();
    }
    for named in &spec.named {
        let port = named.port.map_or(String::new(), |port| format!(" port {port}"));
        writeln!(text, "    {}{port}", named.query).unwrap();
    }
}

fn show_check(check: &CheckSpec) -> String {
    let port = check.port.map_or(String::new(), |port| format!(" at {port}"));
    format!("check {}{port}", check.probe.word())
}

#[test]
fn manifests_come_to_services() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kubernetes");
    let write = std::env::var_os("FAIRWAY_TESTS_WRITE").is_some();
    let mut wrong = BTreeMap::new();
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|ext| ext != "yaml") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        // What the document says, in the first line.
        let said = text.lines().next().and_then(|line| line.strip_prefix("# kubernetes: "));
        let document = format!(
            "dataplane: {{zone: z1, packet: {{interfaces: [eth0]}}}}\nservices: []\n\
             sources: {{manifests: [all.yaml], kubernetes: {}}}\n",
            said.unwrap_or("{}")
        );
        let config = load(&document, &text);
        let (known, rules) = (cluster(&config), &config.cluster.rules);
        let mut got = show(&known, rules);
        // What is written down is the same when it is read again.
        let written = serde_json::to_string(&known).unwrap();
        assert_eq!(
            show(&serde_json::from_str(&written).unwrap(), rules),
            got,
            "{}",
            path.display()
        );
        for note in &config.cluster.manifests.as_ref().unwrap().notes {
            writeln!(got, "note: {}", note.split_once("all.yaml").unwrap().1).unwrap();
        }
        let got: String = got.lines().map(|line| format!("{}\n", line.trim_end())).collect();
        let beside = path.with_extension("txt");
        if write {
            std::fs::write(&beside, &got).unwrap();
        }
        if std::fs::read_to_string(&beside).unwrap_or_default() != got {
            wrong.insert(path, got);
        }
        count += 1;
    }
    for (path, got) in &wrong {
        println!("--- {}\n{got}", path.display());
    }
    assert!(wrong.is_empty(), "{} of {count} came out otherwise", wrong.len());
    assert!(count > 20, "{count}");
}

#[test]
fn what_is_listed_replaces_what_was_there() {
    use fairway_config::kubernetes::{Kind, Manifests, Name};
    let services = |names: &[(&str, &str)]| {
        let text = |(namespace, name): &(&str, &str)| {
            format!(
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\n"
            )
        };
        let text: String = names.iter().map(text).collect();
        let manifests = Manifests::of_text(&Path::new("all.yaml").into(), &text).unwrap();
        manifests.objects.into_iter().map(|(object, _)| object).collect::<Vec<_>>()
    };
    let mut cluster = Cluster::default();
    let names = |cluster: &Cluster| -> Vec<String> {
        cluster.services().map(|(name, _)| name.to_string()).collect()
    };
    let all = services(&[("a", "x"), ("a", "y"), ("b", "x")]);
    assert_eq!(cluster.replace(Kind::Service, None, all.clone()).services.len(), 3);
    assert!(cluster.replace(Kind::Service, None, all).is_empty(), "nothing has changed");
    let touched = cluster.replace(Kind::Service, Some("a"), services(&[("a", "y"), ("a", "z")]));
    let touched: Vec<String> = touched.services.iter().map(ToString::to_string).collect();
    assert_eq!(touched, ["a/x", "a/z"]);
    assert_eq!(names(&cluster), ["a/y", "a/z", "b/x"], "another namespace is left alone");
    assert!(cluster.delete(Kind::Service, &Name::new("b", "nobody")).is_empty());
    cluster.replace(Kind::Service, None, Vec::new());
    assert!(names(&cluster).is_empty());
}

#[test]
fn what_is_wrong_with_manifests_has_its_place() {
    use fairway_config::kubernetes::Manifests;
    for (text, want) in [
        ("", "all.yaml: has no objects; remove it, if that is meant"),
        ("# later\n---\n", "all.yaml: has no objects"),
        ("a: [1\n", "all.yaml:1:4: not YAML"),
        ("kind: Service\n", "all.yaml:1:1: an object has `apiVersion`, `kind`, `metadata`"),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {namespace: shop}\n",
            "all.yaml:3:11: Service has no `metadata.name`; add it",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  ports:\n    - port: http\n",
            "all.yaml:6:13: expected a whole number from 0 to 65535, found `http`",
        ),
        (
            "apiVersion: v1\nkind: Node\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Node\n\
             metadata: {name: a}\n",
            "all.yaml:5:1: Node `a` is here twice; the first is at all.yaml:1",
        ),
    ] {
        let file = Path::new("all.yaml").into();
        let problems = Manifests::of_text(&file, text).unwrap_err().to_string();
        assert!(problems.starts_with(want), "{text:?}: {problems}");
    }
}
