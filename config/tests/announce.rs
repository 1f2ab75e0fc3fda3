//! What documents say of announcements.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::path::Path;
use std::time::Duration;

use fairway_config::announce::{Announce, Community, PeerAs, Secret};
use fairway_config::document::TrackServicesDoc;
use fairway_config::kubernetes::Cluster;
use fairway_config::{load, load_text};

/// Reads a document whose `announce` begins at line 6.
fn read(announce: &str) -> Result<Announce, Vec<String>> {
    let text = format!(
        "services:\n  - {{name: web, addresses: [192.0.2.10], ports: [{{port: 80}}], backends: []}}\n  - \
         {{name: dns, addresses: [198.51.100.53], ports: [{{port: 53}}], backends: []}}\naddressPools: \
         [{{name: inner, addresses: [192.0.2.0/28]}}]\nannounce:\n{announce}"
    );
    let file = Path::new("f.yaml").into();
    let config = load_text(&file, &text)
        .map_err(|problems| problems.list.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    Ok(config.announce)
}

#[test]
fn the_example_says_what_it_means() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/examples/announce.yaml");
    let announce = load(Path::new(folder)).unwrap().announce;
    assert!(announce.is_written && announce.layer2.is_empty());
    let [group] = &announce.vrrp[..] else { panic!("{:?}", announce.vrrp) };
    assert_eq!((group.id, group.priority, group.weight), (51, 150, 100));
    assert_eq!(group.interval, Duration::from_millis(200));
    assert_eq!((group.track_services, group.adds), (TrackServicesDoc::All, true));
    let [a, b] = &announce.peers[..] else { panic!("{:?}", announce.peers) };
    assert_eq!((a.own_as, a.peer_as, a.port), (64512, PeerAs::Number(64500), 179));
    assert_eq!(a.password, Some(Secret::File("/etc/fairway/tor-a.key".into())));
    assert_eq!(a.bfd.unwrap().transmit, Duration::from_millis(100));
    assert_eq!(b.password, Some(Secret::Credential("tor-b.key".into())));
    assert!(b.peer_as == PeerAs::External && b.direct && b.restart.is_none());
    let [dns, wide] = &announce.advertisements[..] else { panic!() };
    let want = [Community::Plain(64512 << 16 | 100), Community::Plain(0xffff_ff01)];
    assert_eq!(dns.communities, want.into());
    assert_eq!((dns.length_v4, dns.length_v6, dns.med), (32, 128, Some(50)));
    assert_eq!(wide.communities, [Community::Large([64512, 1, 2])].into());
    // Names and labels choose.
    let admits = |name, labels: &[(&str, &str)]| {
        let labels = labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        dns.chosen.admits("198.51.100.53".parse().unwrap(), name, &labels, None)
    };
    assert!(admits("dns", &[]) && !admits("web", &[]));
    assert!(b.node_selectors[0].admits(&announce.node_labels));
}

#[test]
fn defaults() {
    let announce = read(
        "  vrrp: [{name: a, interface: eth0, virtualRouterId: 1}]\n  bgp: {myASN: 64512, peers: [{name: r, \
         peerAddress: 192.0.2.1, peerASN: 64512}], advertisements: [{name: all}]}\n",
    )
    .unwrap();
    let group = &announce.vrrp[0];
    assert_eq!((group.priority, group.interval), (100, Duration::from_millis(200)));
    assert!(group.preempts && group.preempt_delay.is_zero() && group.peers.is_empty());
    let peer = &announce.peers[0];
    assert!(!peer.direct, "one of our own AS may be anywhere");
    assert_eq!((peer.hold, peer.retry), (Duration::from_secs(90), Duration::from_secs(10)));
    assert!(!read("  nodeName: a\n").unwrap().is_written);
}

#[test]
fn errors_say_what_to_mend() {
    let peer = |fields: &str| {
        format!(
            "  bgp:\n    peers:\n      - {{name: r, peerAddress: 192.0.2.1, peerASN: 64500{fields}}}\n    \
             advertisements: [{{name: all}}]\n"
        )
    };
    let group = |fields: &str| {
        format!("  vrrp:\n    - {{name: a, interface: eth0, virtualRouterId: 51{fields}}}\n")
    };
    for (announce, want) in [
        (peer(""), "8:16: which AS number is ours? Set `myASN`, here or for all under `bgp`"),
        (
            peer(", myASN: 1, holdTime: 2s"),
            "`holdTime` is whole seconds, 3s to 65535s, or 0s for never",
        ),
        (peer(", myASN: 1, bfdProfile: quick"), "there is no BFD profile `quick`"),
        (
            peer(", myASN: 1, passwordFile: a, passwordCredential: b"),
            "`passwordFile` or `passwordCredential`: remove one",
        ),
        (
            peer(", myASN: 1, password: hush"),
            "unknown field `password`; did you mean `passwordFile`?",
        ),
        (peer(", myASN: 1, passive: true"), "a `passive` session needs `listenPort` of `bgp`"),
        (peer(", myASN: 1, nextHopIPv6: 192.0.2.1"), "`nextHopIPv6` is an IPv6 address"),
        (peer(", myASN: 1, sourceAddress: \"::1\""), "192.0.2.1 cannot be reached from ::1"),
        (
            peer(", myASN: 1").replace("192.0.2.1", "\"2001:db8::1\""),
            "a peer with an IPv6 address needs our `routerID`",
        ),
        (peer(", myASN: 1").replace("64500", "0"), "`0` is not an AS number"),
        (
            peer(", myASN: 1").replace("{name: all}", "{name: all, peers: [x]}"),
            "there is no peer `x`",
        ),
        (
            peer(", myASN: 1").replace("{name: all}", "{name: all, communities: [\"70000:1\"]}"),
            "each half is at most 65535; a large community has three parts",
        ),
        (
            peer(", myASN: 1").replace("{name: all}", "{name: all, aggregationLength: 4}"),
            "`aggregationLength` is 4; it is 8 to 32",
        ),
        (
            peer(", myASN: 1").replace("[{name: all}]", "[]"),
            "the peers are told nothing: add `advertisements`",
        ),
        (
            peer(", myASN: 1").replace("{name: all}", "{name: all, addressPools: [outer]}"),
            "there is no pool `outer`",
        ),
        (
            peer(", myASN: 1").replace("{name: all}", "{name: all, services: [mail]}"),
            "there is no service `mail`",
        ),
        (group(", priority: 256"), "`priority` is 256; it is 1 to 255"),
        (group(", advertInterval: 205ms"), "`advertInterval` is 10ms to 40950ms, in steps of 10ms"),
        (
            "  vrrp: [{name: a}]\n".into(),
            "`interface` is missing; add the one that has the addresses",
        ),
        (
            group("")
                + "    - {name: b, interface: eth0, virtualRouterId: 51, addresses: [10.9.9.9]}\n",
            "groups `b` and `a` have one number on one segment",
        ),
        (
            group("")
                + "    - {name: a, interface: eth0, virtualRouterId: 52, addresses: [10.9.9.9]}\n",
            "group `a` is here twice; rename one",
        ),
        (
            group("")
                + "    - {name: b, interface: eth0, virtualRouterId: 52, addressPools: [inner]}\n",
            "2:57: groups `a` and `b` of `announce.vrrp` both claim 192.0.2.10 of service `web`",
        ),
        ("  layer2: [{name: lan}]\n".into(), "on which segment? Name its `interfaces`"),
        (
            "  layer2: [{name: lan, interfaces: [eth0], election: lease}]\n".into(),
            "Leases are objects of an API server",
        ),
    ] {
        let said = read(&announce).expect_err(want);
        assert!(said.iter().any(|line| line.contains(want)), "{want}\n{said:#?}");
    }
}

/// Objects of a cluster, as manifests, beside a document.
fn of_objects(objects: &str) -> (Announce, Vec<String>) {
    let text = "sources: {manifests: [x.yaml]}\nannounce: {bgp: {myASN: 64512, routerID: 192.0.2.1}, bfdProfiles: \
                [{name: slow}]}\nservices: []\n";
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("x.yaml"), objects).unwrap();
    std::fs::write(folder.path().join("f.yaml"), text).unwrap();
    let config =
        load(&folder.path().join("f.yaml")).unwrap_or_else(|problems| panic!("{problems}"));
    let mut cluster = Cluster::default();
    for (object, _) in config.cluster.manifests.unwrap().objects {
        cluster.apply(object);
    }
    cluster.announce(&config.announce, &config.process)
}

fn object(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: fairway.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n---\n"
    )
}

#[test]
fn objects_say_what_a_document_says() {
    let objects = [
        object("L2Advertisement", "lan", "{interfaces: [eth0], addressPools: [inner]}"),
        object("VRRPGroup", "edge", "{interface: eth0, virtualRouterId: 9, track: {weight: 50}}"),
        object("BFDProfile", "quick", "{receiveInterval: 100ms}"),
        object("BGPPeer", "tor", "{peerAddress: 192.0.2.254, peerASN: 64500, bfdProfile: quick}"),
        object("BGPPeer", "far", "{peerAddress: 192.0.2.253, peerASN: external, bfdProfile: slow}"),
        object(
            "BGPAdvertisement",
            "all",
            "{communities: [no-export], serviceSelectors: [{matchLabels: {a: b}}]}",
        ),
    ];
    let (announce, troubles) = of_objects(&objects.concat());
    assert_eq!(troubles, Vec::<String>::new());
    assert!(announce.is_written);
    assert_eq!(
        (&*announce.layer2[0].name, &announce.layer2[0].chosen.pools[..]),
        ("lan", &["inner".to_owned()][..])
    );
    assert_eq!((announce.vrrp[0].id, announce.vrrp[0].weight), (9, 50));
    let [far, tor] = &announce.peers[..] else { panic!("{:?}", announce.peers) };
    assert_eq!((tor.own_as, tor.router_id.unwrap().to_string()), (64512, "192.0.2.1".into()));
    assert_eq!(tor.bfd.unwrap().receive, Duration::from_millis(100));
    assert_eq!(far.bfd.unwrap().receive, Duration::from_millis(300));
    assert_eq!(announce.advertisements[0].communities, [Community::Plain(0xffff_ff01)].into());
}

#[test]
fn objects_that_are_wrong_are_left_out_and_told_of() {
    let objects = [
        object("VRRPGroup", "a", "{interface: eth0, virtualRouterId: 300}"),
        object("BGPPeer", "b", "{peerAddress: 192.0.2.254, peerASN: 64500, pasword: x}"),
        object("BGPPeer", "c", "{peerAddress: 192.0.2.254, peerASN: 64500, bfdProfile: none}"),
        object("BGPPeer", "good", "{peerAddress: 192.0.2.254, peerASN: 64500}"),
        object("L2Advertisement", "d", "[]"),
    ];
    let (announce, troubles) = of_objects(&objects.concat());
    assert_eq!(announce.peers.len(), 1);
    assert!(announce.vrrp.is_empty() && announce.layer2.is_empty());
    for want in [
        "VRRPGroup `a`: `virtualRouterId` is 300; it is 1 to 255",
        "BGPPeer `b`: unknown field `pasword`; known here: ",
        "BGPPeer `c`: there is no BFD profile `none`",
        "L2Advertisement `d`: ",
    ] {
        assert!(troubles.iter().any(|line| line.starts_with(want)), "{want}\n{troubles:#?}");
    }
}

#[test]
fn definitions_of_objects_have_the_fields_of_the_document() {
    let schema = fairway_config::schema();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/kubernetes/crds.yaml");
    let text = std::fs::read_to_string(path).unwrap();
    let definitions: Vec<_> = text
        .split("\n---\n")
        .map(|text| fairway_config::to_json(text).unwrap_or_else(|problems| panic!("{problems}")))
        .collect();
    for (kind, doc) in [
        ("L2Advertisement", "Layer2Doc"),
        ("VRRPGroup", "VrrpGroupDoc"),
        ("BGPPeer", "BgpPeerDoc"),
        ("BGPAdvertisement", "BgpAdvertisementDoc"),
        ("BFDProfile", "BfdProfileDoc"),
    ] {
        let definition = definitions.iter().find(|it| it["spec"]["names"]["kind"] == kind).unwrap();
        let of_object = definition
            .pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties")
            .unwrap();
        let mut want: Vec<&String> =
            schema["$defs"][doc]["properties"].as_object().unwrap().keys().collect();
        want.retain(|name| *name != "name");
        want.sort();
        let mut got: Vec<&String> = of_object.as_object().unwrap().keys().collect();
        got.sort();
        assert_eq!(got, want, "{kind}");
    }
}
