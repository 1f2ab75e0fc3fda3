//! Documents and what is said of them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::path::Path;
use std::time::Duration;

use fairway_config::kubernetes::Manifests;
use fairway_config::{Config, Device, Exchange, Priority, Probe, load, load_text};
use fairway_core::{Mode, Scheduler, Weight};

fn read(text: &str) -> Result<Config, Vec<String>> {
    let file = Path::new("fairway.yaml").into();
    load_text(&file, text)
        .map_err(|problems| problems.list.iter().map(ToString::to_string).collect())
}

/// A service around `fields`, whose lines start at line 7.
fn service(fields: &str) -> String {
    let fields: String = fields.lines().map(|line| format!("    {line}\n")).collect();
    format!(
        "services:\n  - name: web\n    addresses: [192.0.2.1]\n    ports:\n      - port: 80\n    \
         backends: [10.0.0.1]\n{fields}"
    )
}

#[test]
fn defaults() {
    let config = read(&service("")).unwrap();
    let spec = &config.services.values().next().unwrap();
    assert_eq!(spec.key.to_string(), "web/80");
    assert_eq!(spec.backends[0].addr.to_string(), "10.0.0.1:80", "the dialled port");
    assert_eq!(spec.backends[0].weight, Weight::ONE);
    let policy = &spec.policy;
    let maglev = Scheduler::Maglev { table_size: None, bounded_load_percent: None };
    assert_eq!(policy.scheduler, maglev);
    assert!(policy.retry.on_connect && !policy.retry.on_reset_before_reply);
    assert_eq!(policy.timeouts.idle, Duration::from_secs(3600));
    let check = spec.check.as_ref().unwrap();
    assert_eq!(
        (check.probe.clone(), check.rise, check.fall),
        (Probe::Tcp(Exchange::default()), 2, 3)
    );
    assert_eq!(config.process.metrics.to_string(), "127.0.0.1:9180");
}

#[test]
fn an_empty_document_and_an_empty_pool_are_states() {
    assert_eq!(read("").unwrap_err().len(), 1, "an empty file is a slip");
    assert!(read("services: []\n").unwrap().services.is_empty());
    let empty = service("").replace("[10.0.0.1]", "[]");
    assert!(read(&empty).unwrap().services.values().next().unwrap().backends.is_empty());
}

/// Each error: what is written, and what must be said where.
#[test]
fn errors_name_place_value_and_remedy() {
    for (fields, want) in [
        // Structure
        ("wieght: 1", "7:5: unknown field `wieght`; known here: "),
        ("timeouts: {conect: 1s}", "7:16: unknown field `conect`; did you mean `connect`?"),
        ("mode: 3", "7:11: `3` is none of: proxy, nat"),
        (
            "scheduler: wrr",
            "7:16: `wrr` is none of: maglev, roundRobin, random, powerOfTwo, leastConnections, shortestExpectedDelay, neverQueue, sourceHash, destinationHash; did you mean `roundRobin`?",
        ),
        ("slowStart: {from: 10%}", "7:16: `window` is missing; add it"),
        ("slowStart: {window: 1s, from: 0%}", "7:35: `from` is 0%; it is 1% to 100%"),
        (
            "limits: {backendConnections: many}",
            "7:34: expected a whole number from 0 to 4294967295, found `many`",
        ),
        ("limits: {backendConnections: \"5\"}", "7:34: expected a whole number (u32), found `5`"),
        ("hash: [1]", "7:11: expected a map, found a list"),
        (
            "timeouts: {idle: 5}",
            "7:22: `5` is not a duration (250ms, 3s, 10m, 1h): it needs a unit",
        ),
        ("timeouts: {idle: soon}", "7:22: `soon` is not a duration"),
        (
            "retry: {replayBuffer: 4KB}",
            "7:27: `4KB` is not a size (512, 64KiB, 16MiB, 1GiB): did you mean KiB?",
        ),
        ("panicThreshold: 0.5", "7:21: `0.5` is not a percentage"),
        (
            "denySourceRanges: [10.0.0.1/8]",
            "7:24: `10.0.0.1/8` is not a prefix: the address has bits behind its prefix length; did you mean 10.0.0.0/8?",
        ),
        // Meaning
        (
            "mode: dsr",
            "7:11: mode `dsr` forwards packets: name the interfaces that they come and go by in",
        ),
        (
            "maglev: {tableSize: 65536}",
            "7:25: table size 65536 is not prime; the next prime is 65537",
        ),
        ("maglev: {boundedLoad: 90%}", "7:27: `boundedLoad` is 90%"),
        (
            "scheduler: random\nmaglev: {tableSize: 251}",
            "8:13: `maglev` only goes with a hashing scheduler",
        ),
        (
            "scheduler: sourceHash\nhash: {fields: fiveTuple}",
            "8:20: this scheduler fixes what is hashed",
        ),
        ("hash: {ipv4Prefix: 33}", "7:24: `ipv4Prefix` is 33; it is 0 to 32"),
        ("panicThreshold: 101%", "7:21: `panicThreshold` is 101%"),
        ("timeouts: {connect: 0s}", "7:25: `connect` is 0"),
        ("retry: {attempts: 0}", "7:23: `attempts` is 0"),
        (
            "retry: {hedgeAfter: 3s}",
            "7:25: `hedgeAfter` must be shorter than the connect timeout of 3s",
        ),
        (
            "limits: {clientConnections: 0}",
            "7:33: `clientConnections` is 0 and would refuse everyone",
        ),
        ("healthCheck: {path: /x}", "7:25: `path` belongs to `type: http`"),
        ("healthCheck: {type: http, path: x}", "7:37: `x` is no path"),
        (
            "healthCheck: {type: http, expectStatus: [399-200]}",
            "7:46: `399-200` is not a status (200) or a range of them (200-399): it ends before it starts",
        ),
        ("healthCheck: {fall: 0}", "7:25: `fall` is 0"),
        (
            "loadBalancerSourceRanges: [\"2001:db8::/32\"]",
            "7:32: only IPv6 clients are allowed here",
        ),
        (
            "backupBackends: [10.0.0.1]",
            "7:22: backend 10.0.0.1:80 is listed twice (first on line 6)",
        ),
        (
            "backupBackends: [{address: 10.0.0.2, weight: 0}]",
            "7:50: weight 0 is out of range: 1 to 1000; to take it out, use `fairway drain`",
        ),
        (
            "backupBackends: [{address: 10.0.0.2, weight: 1001}]",
            "7:50: weight 1001 is out of range",
        ),
        (
            "backupBackends: [{address: 10.0.0.2:1, port: 2}]",
            "7:50: the port is in `address` already",
        ),
        ("backupBackends: [10.0.0.x]", "7:22: `10.0.0.x` is neither an address"),
        ("backupBackends: [\"10.0.0.2:70000\"]", "7:22: `70000` in `10.0.0.2:70000` is no port"),
        ("backupBackends: [\"web:0\"]", "7:22: `0` in `web:0` is no port; ports are 1 to 65535"),
        ("backupBackends: [10.0.0.300]", "7:22: `10.0.0.300` is neither an address"),
        ("backupBackends: [\"-.example.com\"]", "7:22: `-.example.com` is neither an address"),
        ("backupBackends: [web, WEB]", "7:27: `web` is listed twice (first on line 7)"),
        ("backupBackends: [{srv: \"a b\"}]", "7:28: `a b` is no name, like _http._tcp.example.com"),
        ("backupBackends: [{srv: _a._tcp.b, port: 1}]", "7:45: SRV records say the port"),
        ("backupBackends: [{srv: _a._tcp.b, address: c}]", "7:22: a backend has an `address` or"),
        (
            "backupBackends: [{address: 10.0.0.2, priority: 1}]",
            "7:52: `backupBackends` are the last priority; remove `priority`",
        ),
        ("ejection: {successRateDeviation: 0%}", "7:38: `successRateDeviation` is 0%"),
        ("failoverThreshold: 101%", "7:24: `failoverThreshold` is 101%"),
        ("backupBackends: [{weight: 2}]", "7:22: `address` is missing; add it"),
        ("backupBackends: [0.0.0.0]", "7:22: `0.0.0.0` cannot be dialled"),
    ] {
        let problems = read(&service(fields)).expect_err(fields);
        let want = format!("fairway.yaml:{want}");
        assert!(problems[0].starts_with(&want), "{fields}\nwant {want}\ngot  {problems:#?}");
        assert_eq!(problems.len(), 1, "{fields}: {problems:#?}");
    }
}

#[test]
fn packet_modes_have_their_own_conditions() {
    let packets =
        |fields: &str| format!("{}dataplane: {{packet: {{interfaces: [a]}}}}\n", service(fields));
    for fields in [
        "mode: nat",
        "mode: fullNat\nsource: 10.0.0.254",
        "mode: fullNat\nsource: {addresses: [10.0.0.254, fd00::1], ports: 20000-29999}",
        "mode: dsr",
        "mode: ipip\nbackupBackends: [fd00::1]",
        "mode: gue\ngueVariant: 0",
        "mode: nat\nmssClamp: auto",
        "mode: nat\nmssClamp: 1400",
        "mode: nat\nbackupBackends: [fd00::1]\nsource: fd00::2",
        "mode: nat\nretry: {synTimeout: 20ms}",
    ] {
        let config = read(&packets(fields)).unwrap_or_else(|error| panic!("{fields}: {error:?}"));
        assert_ne!(config.services.values().next().unwrap().policy.mode, Mode::Proxy, "{fields}");
    }
    for (fields, want) in [
        (
            "mode: dsr\nmssClamp: auto",
            "8:15: `mssClamp` goes with `nat` and `fullNat`; here backends",
        ),
        ("mode: nat\nmssClamp: 100", "8:15: `mssClamp` is 100; it is 536 to 65535"),
        ("mode: nat\ngueVariant: 1", "8:17: `gueVariant` is 0 or 1, and goes with `mode: gue`"),
        ("mode: gue\ngueVariant: 2", "8:17: `gueVariant` is 0 or 1"),
        (
            "mode: dsr\nproxyProtocol: {send: v2}",
            "8:20: `proxyProtocol` does not go with mode `dsr`, which adds nothing",
        ),
        (
            "mode: nat\nproxyProtocol: {accept: optional, trustedSources: [10.0.0.0/8]}",
            "8:29: `accept` needs mode `proxy`",
        ),
        ("mode: nat\nproxyProtocol: {send: v1}", "8:27: mode `nat` sends headers of version 2"),
        (
            "mode: nat\nproxyProtocol: {send: v2, uniqueId: true}",
            "8:41: `uniqueId` does not go with mode `nat`",
        ),
        (
            "mode: fullNat\nproxyProtocol: {send: v2}\nsource: {addresses: [10.0.0.9], toa: true}",
            "9:42: `toa` or `proxyProtocol`: one of them",
        ),
        ("echo: whileHealthy", "7:11: `echo` goes with packet modes"),
        ("source: {addresses: [10.0.0.9], toa: true}", "7:42: `toa` goes with `fullNat`"),
        ("mode: dsr\nretry: {hedgeAfter: 1s}", "8:25: `hedgeAfter` does not go with mode `dsr`"),
        (
            "mode: nat\nsource: 10.0.0.1",
            "8:13: mode `nat` keeps the client's address; remove `source`",
        ),
        ("mode: fullNat", "2:11: mode `fullNat` needs addresses to come from"),
        (
            "mode: fullNat\nsource: 192.0.2.1",
            "5:15: `source` has 192.0.2.1, which clients of service `web/80` dial",
        ),
        (
            "mode: fullNat\nsource: transparent",
            "8:13: mode `fullNat` comes from addresses of its own",
        ),
        (
            "mode: fullNat\nsource: fd00::1",
            "6:16: `source.addresses` has no address of this backend's family",
        ),
        ("mode: dsr\nbackupBackends: [fd00::1]", "8:22: mode `dsr` leaves packets in their family"),
        (
            "mode: nat\nbackupBackends: [fd00::1]",
            "8:22: mode `nat` reaches a backend of another family",
        ),
        (
            "mode: dsr\nbackupBackends: [\"10.0.0.2:81\"]",
            "8:22: mode `dsr` keeps the port: remove port 81",
        ),
    ] {
        let problems = read(&packets(fields)).expect_err(fields);
        let want = format!("fairway.yaml:{want}");
        assert!(problems[0].starts_with(&want), "{fields}\nwant {want}\ngot  {problems:#?}");
        assert_eq!(problems.len(), 1, "{fields}: {problems:#?}");
    }
    let network = |mode: &str| packets(mode).replace("192.0.2.1", "192.0.2.0/28, 192.0.2.1");
    let config = read(&network("mode: nat")).unwrap();
    let spec = config.services.values().next().unwrap();
    let words: Vec<_> = spec.frontends.iter().map(ToString::to_string).collect();
    assert_eq!(words, ["192.0.2.0/28:80", "192.0.2.1:80"], "the longest match decides");
    let problems = read(&network("mode: proxy")).unwrap_err();
    assert!(problems[0].contains("`192.0.2.0/28`: mode `proxy` listens on single"), "{problems:?}");
    let ports = packets("mode: ipip").replace("port: 80", "port: 80\n        targetPort: 81");
    let problems = read(&ports).unwrap_err();
    assert!(
        problems[0].contains("mode `ipip` keeps the port: `targetPort` 81 must be"),
        "{problems:?}"
    );
    for (packet, want) in [
        ("{interfaces: []}", "`interfaces` is empty"),
        ("{interfaces: [a, a]}", "`a` is listed twice"),
        ("{interfaces: [abcdefghijklmnop]}", "an interface has a name of 1 to 15 bytes"),
        ("{interfaces: [a], flows: 3}", "`flows` is 3; it is 64 to 536870912"),
        ("{interfaces: [a], flows: many}", "`many` is not a number (5000, 256k, 4M)"),
        (
            "{interfaces: [a], ports: [{device: net_null0, interface: b}]}",
            "`ports` go with `driver: dpdk`: add it, or name `interfaces`",
        ),
        ("{interfaces: [a], dpdk: {noHuge: true}}", "`dpdk` goes with `driver: dpdk`"),
        ("{driver: dpdk}", "`ports` is empty"),
        (
            "{driver: dpdk, interfaces: [a], ports: [{device: net_null0, interface: b}]}",
            "with DPDK each of `ports` names its `interface`",
        ),
        (
            "{driver: dpdk, ports: [{device: d, interface: a}, {device: d, interface: b}]}",
            "`d` is listed twice",
        ),
        (
            "{driver: dpdk, ports: [{device: \"a b\", interface: a}]}",
            "a device is a PCI address like `0000:3b:00.0`",
        ),
        (
            "{driver: dpdk, ports: [{device: d, interface: a, mtu: 500}]}",
            "`mtu` is 500; it is 1280 to 9216",
        ),
        (
            "{driver: dpdk, ports: [{device: d, interface: a}], dpdk: {memory: 1MiB}}",
            "`memory` is 1 MiB; it is 64 to 1048576",
        ),
        (
            "{driver: dpdk, ports: [{device: d, interface: a}], dpdk: {noHuge: true, hugeDir: /h}}",
            "`noHuge` or `hugeDir`",
        ),
    ] {
        let problems =
            read(&format!("dataplane: {{packet: {packet}}}\nservices: []\n")).unwrap_err();
        assert!(problems.len() == 1 && problems[0].contains(want), "{packet}: {problems:?}");
    }
    let path = read("dataplane: {packet: {interfaces: [a], flows: 1M}}\nservices: []\n").unwrap();
    let path = path.process.packet.unwrap();
    assert_eq!((path.flows, path.flows_ipv6, path.dpdk), (1 << 20, 1 << 18, None));
    let text = "dataplane:\n  packet:\n    driver: dpdk\n    ports: [{device: 3b:00.0, interface: fw0, mtu: 9000}]\n    \
                dpdk: {hugeDir: /dev/hugepages, ealArguments: [--legacy-mem]}\nservices: []\n";
    let path = read(text).unwrap().process.packet.unwrap();
    assert_eq!(path.interfaces, ["fw0"]);
    let dpdk = path.dpdk.unwrap();
    let device = Device { name: "3b:00.0".into(), mtu: Some(9000) };
    assert_eq!((&dpdk.devices[..], dpdk.mebibytes), (&[device][..], 256));
    assert_eq!(dpdk.pages, fairway_config::Pages::Folder("/dev/hugepages".into()));
    assert_eq!(dpdk.arguments, ["--legacy-mem"]);
}

#[test]
fn workers_have_the_cores_that_are_named() {
    let process = |text: &str| read(&format!("dataplane: {{{text}}}\nservices: []\n"));
    let named = process("cpus: [3, 1]").unwrap().process;
    assert_eq!((named.workers, named.pin_cpus, &named.cpus[..]), (Some(2), true, &[3, 1][..]));
    let usual = process("").unwrap().process;
    assert_eq!((usual.workers, usual.pin_cpus, &usual.cpus[..]), (None, true, &[][..]));
    for (text, want) in [
        ("cpus: [1, 1]", "core 1 is listed twice"),
        ("cpus: [1, 2], workers: 3", "`workers` is 3, and 2 `cpus` are named"),
        ("cpus: [1], pinCpus: false", "remove `pinCpus: false`"),
    ] {
        let problems = process(text).unwrap_err();
        assert!(problems.len() == 1 && problems[0].contains(want), "{text}: {problems:?}");
    }
}

#[test]
fn errors_of_whole_services() {
    for (text, want) in [
        (
            "services:\n  - name: a b\n    addresses: [192.0.2.1]\n    ports: [{port: 80}]\n",
            "2:11: `a b` is no name",
        ),
        (
            "services:\n  - name: a\n    ports: [{port: 80}]\n",
            "2:5: `addresses` is missing; add it",
        ),
        ("services: [{}]\n", "1:12: `name`, `addresses` and `ports` are missing; add them"),
        (
            "services:\n  - name: a\n    addresses: [127.0.0.300]\n    ports: [{port: 80}]\n",
            "3:17: `127.0.0.300` is not an IP address or a network of them",
        ),
        (
            "services:\n  - name: a\n    addresses: []\n    ports: [{port: 80}]\n",
            "3:16: `addresses` is empty",
        ),
        (
            "services:\n  - name: a\n    addresses: [192.0.2.1, 192.0.2.1]\n    ports: [{port: 80}]\n",
            "3:28: `192.0.2.1` is listed twice",
        ),
        (
            "services:\n  - name: a\n    addresses: [224.0.0.1]\n    ports: [{port: 80}]\n",
            "3:17: `224.0.0.1` cannot be dialled",
        ),
        (
            "services:\n  - name: a\n    addresses: [192.0.2.1]\n    ports: []\n",
            "4:12: `ports` is empty",
        ),
        (
            "services:\n  - name: a\n    addresses: [192.0.2.1]\n    ports: [{port: 0}]\n",
            "4:20: `0` is not a port",
        ),
        (
            "services:\n  - name: a\n    addresses: [192.0.2.1]\n    ports: [{port: 90-80}]\n",
            "4:20: `90-80` is not a port (443) or a range of ports (8000-8099): port range 90-80 ends before it starts",
        ),
        (
            "services:\n  - name: a\n    addresses: [192.0.2.1]\n    ports: [{port: 53, protocol: SCTP}]\n",
            "4:34: `SCTP` is not carried by mode `proxy`",
        ),
        (
            "services:\n  - name: a\n    addresses: [192.0.2.1]\n    ports: [{port: 53, protocol: UDP}]\n    udp: {responses: 0}\n",
            "5:22: `responses` is 0; it is at least 1",
        ),
        (
            "services:\n  - name: a\n    addresses: [192.0.2.1]\n    ports: [{port: 53, name: b/c}]\n",
            "4:30: `b/c`: no `/` in the name of a port",
        ),
        (
            "services:\n  - name: a\n    addresses: [192.0.2.1]\n    ports: [{port: 1000-1064, targetPort: 1}]\n",
            "4:20: a range of 65 ports needs `dataplane.listen: tproxy`",
        ),
        (
            "services:\n  - name: a\n    addresses: [192.0.2.1]\n    ports: [{port: 80-81}]\n    backends: [10.0.0.1]\n",
            "4:20: a check needs a port",
        ),
        (
            "services:\n  - name: a\n    addresses: [192.0.2.1]\n    ports: [{port: 80}, {port: 81, name: '80'}]\n",
            "4:42: port `80` is here twice",
        ),
        (
            "services:\n  - name: a\n    addresses: [192.0.2.1]\n    ports: [{port: 80}, {port: 81}]\n    backends: [10.0.0.1:1]\n",
            "5:16: a backend's own port is only clear when the service has one port",
        ),
        (
            "services:\n  - name: a\n    addresses: [192.0.2.1]\n    ports: [{port: 80}]\n  - name: b\n    addresses: [192.0.2.1]\n    ports: [{port: 80}]\n",
            "7:20: TCP 192.0.2.1 port 80 is taken by service `a/80` (port 80, line 4)",
        ),
        (
            "services:\n  - name: a\n    addresses: [192.0.2.1]\n    ports: [{port: 80-90, targetPort: 1}]\n  - name: b\n    addresses: [192.0.2.1]\n    ports: [{port: 85}]\n",
            "7:20: TCP 192.0.2.1 port 85 is taken by service `a/80-90` (port 80-90, line 4)",
        ),
        (
            "services:\n  - name: a\n    addresses: [192.0.2.1]\n    ports: [{port: 80}]\n  - name: a\n    addresses: [192.0.2.2]\n    ports: [{port: 80}]\n",
            "5:5: service `a` is here twice; the first is at fairway.yaml:2",
        ),
        ("dataplane: {workers: 0}\n", "1:22: `0` is not a number above zero, or `auto`"),
        ("dataplane: {bufferSize: 1KiB}\n", "1:25: `bufferSize` is out of range: 4KiB to 1024KiB"),
        ("admin: {metrics: localhost}\n", "1:18: `localhost` is not an address and port"),
        ("sources: {files: [nowhere.yaml]}\n", "1:19: nowhere.yaml cannot be read"),
        ("services: 5\n", "1:11: expected a list, found `5`"),
        ("- 1\n", "1:1: expected a map, found a list"),
        ("services:\n\t- x\n", "2:2: not YAML: tabs"),
    ] {
        let problems = read(text).expect_err(text);
        let want = format!("fairway.yaml:{want}");
        assert!(problems[0].starts_with(&want), "{text}\nwant {want}\ngot  {problems:#?}");
        assert_eq!(problems.len(), 1, "{text}: {problems:#?}");
    }
}

#[test]
fn ten_errors_of_ten_kinds_are_reported_at_once() {
    let text = "\
dataplane:
  wrokers: 2
  bufferSize: lots
services:
  - name: web
    addresses: [192.0.2.1, nonsense]
    ports: [{port: 80, targetPort: 8080}]
    scheduler: fastest
    backends:
      - {address: 10.0.0.1, weight: 5000}
      - 10.0.0.1
    timeouts: {idle: -1s}
  - name: web2
    addresses: [192.0.2.1]
    ports: [{port: 80}]
    mode: gue
    limits: {serviceConnections: [1]}
    loadBalancerSourceRanges: [10.1.2.3/8]
";
    let problems = read(text).unwrap_err();
    let places: Vec<_> = problems
        .iter()
        .map(|p| p.split(": ").next().unwrap().replace("fairway.yaml:", ""))
        .collect();
    let want = [
        "2:3", "3:15", "6:28", "8:16", "10:37", "11:9", "12:22", "15:20", "16:11", "17:34", "18:32",
    ];
    assert_eq!(places, want, "{problems:#?}");
}

#[test]
fn sources_are_read_in_the_order_of_names_and_checked_together() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    std::fs::create_dir(folder.path().join("conf.d")).unwrap();
    write("fairway.yaml", "sources: {files: [conf.d]}\n");
    let one = "services:\n  - {name: a, addresses: [192.0.2.1], ports: [{port: 80}]}\n";
    write("conf.d/10-a.yaml", one);
    write("conf.d/20-b.yml", &one.replace("name: a", "name: b").replace("80", "81"));
    write("conf.d/.hidden.yaml", "]");
    write("conf.d/readme.txt", "]");
    let config = load(&folder.path().join("fairway.yaml")).unwrap();
    let keys: Vec<_> = config.services.keys().map(ToString::to_string).collect();
    assert_eq!(keys, ["a/80", "b/81"]);

    write("conf.d/30-c.yaml", &one.replace("name: a", "name: c"));
    write("conf.d/40-d.yaml", "dataplane: {}\n");
    let problems = load(&folder.path().join("fairway.yaml")).unwrap_err();
    assert_eq!(problems.list.len(), 2, "{problems}");
    let text = problems.to_string();
    assert!(text.contains("30-c.yaml:2:") && text.contains("taken by service `a/80`"), "{text}");
    assert!(text.contains("40-d.yaml:1:1: unknown field `dataplane`"), "{text}");
}

#[test]
fn a_missing_file_is_an_error_with_its_name() {
    let problems = load(Path::new("/nonexistent/fairway.yaml")).unwrap_err();
    assert!(problems.to_string().starts_with("/nonexistent/fairway.yaml: cannot be read"));
}

#[test]
fn the_same_configuration_in_another_order_means_the_same() {
    let a = read(&service("").replace("[10.0.0.1]", "[10.0.0.1, 10.0.0.2]")).unwrap();
    let b = read(&service("").replace("[10.0.0.1]", "[10.0.0.2, 10.0.0.1]")).unwrap();
    let specs = [&a, &b].map(|c| c.services.values().next().unwrap());
    assert!(specs[0].same_meaning(specs[1]));
}

#[test]
fn every_example_is_good_and_fits_the_schema() {
    let schema = fairway_config::schema();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/examples");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let file = Path::new("example.yaml").into();
        // The folder of further files exists on the target machine only.
        let problems = match load_text(&file, &text) {
            Ok(_) => Vec::new(),
            Err(problems) => problems.list,
        };
        let problems: Vec<_> =
            problems.iter().filter(|p| !p.message.contains("/etc/fairway/")).collect();
        assert!(problems.is_empty(), "{}: {problems:#?}", path.display());
        let value = fairway_config::to_json(&text).unwrap();
        let errors: Vec<_> = validator.iter_errors(&value).map(|e| e.to_string()).collect();
        assert!(errors.is_empty(), "{}: {errors:#?}", path.display());
        count += 1;
    }
    assert!(count >= 4, "the examples are gone");
}

#[test]
fn what_a_cluster_needs_is_yaml_and_configures_us_well() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/kubernetes");
    let mut texts = String::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let manifests = Manifests::of_text(&path.as_path().into(), &text);
        manifests.unwrap_or_else(|problems| panic!("{problems}"));
        texts += &text;
    }
    let (_, rest) = texts.split_once("  fairway.yaml: |\n").unwrap();
    let document: String = rest
        .lines()
        .map_while(|line| line.strip_prefix("    "))
        .map(|l| format!("{l}\n"))
        .collect();
    let config = load_text(&Path::new("fairway.yaml").into(), &document);
    assert!(config.unwrap_or_else(|problems| panic!("{problems}")).process.api.is_some());
}

#[test]
fn the_schema_refuses_what_the_reader_refuses() {
    let validator = jsonschema::validator_for(&fairway_config::schema()).unwrap();
    for text in [
        service("wieght: 1"),
        service("mode: 3x"),
        service("timeouts: {idle: soon}"),
        service("limits: {backendConnections: many}"),
        service("panicThreshold: 0.5"),
        service("backupBackends: [{weight: 2}]"),
    ] {
        assert!(read(&text).is_err(), "{text}");
        assert!(!validator.is_valid(&fairway_config::to_json(&text).unwrap()), "{text}");
    }
}

proptest::proptest! {
    /// Whatever is written, reading it neither panics nor goes on for ever.
    #[test]
    fn any_text_is_answered(text in ".{0,200}") {
        let _ = read(&text);
        let _ = read(&service(&text));
    }
}

#[test]
fn names_and_priorities_are_read() {
    let text = "services:\n  - name: web\n    addresses: [192.0.2.1]\n    ports: [{port: 80}]\n    \
                backends:\n      - {address: 10.0.0.9, priority: 2}\n      - 10.0.0.5\n      \
                - Web.Example.com:8080\n      - {srv: _http._tcp.example.com, weight: 7, name: pool}\n    \
                backupBackends: [10.0.0.1, {address: old.example.com, zone: b}]\n    \
                failoverThreshold: 70%\nresolver: {servers: [10.0.0.53, \"[2001:db8::53]:5353\"]}\n";
    let config = load_text(&Path::new("fairway.yaml").into(), text).unwrap();
    let servers: Vec<_> = config.process.resolvers.iter().map(ToString::to_string).collect();
    assert_eq!(servers, ["10.0.0.53:53", "[2001:db8::53]:5353"]);
    let spec = config.services.values().next().unwrap();
    assert_eq!(spec.failover_percent, 70);
    let order: Vec<_> =
        spec.backends.iter().map(|b| (b.addr.ip().to_string(), b.priority)).collect();
    let want = [
        ("10.0.0.5", Priority::Given(0)),
        ("10.0.0.9", Priority::Given(2)),
        ("10.0.0.1", Priority::Backup(0)),
    ];
    assert_eq!(order, want.map(|(ip, priority)| (ip.to_owned(), priority)));
    let named: Vec<_> = spec.named.iter().map(|n| (n.query.to_string(), n.backup)).collect();
    let want = [
        ("`web.example.com`", false),
        ("`_http._tcp.example.com` (SRV)", false),
        ("`old.example.com`", true),
    ];
    assert_eq!(named, want.map(|(query, backup)| (query.to_owned(), backup)));
    assert_eq!(spec.named[0].port.map(Into::into), Some(8080_u16));
    assert_eq!(spec.named[2].port.map(Into::into), Some(80_u16), "that of the service");
    assert_eq!((&*spec.named[0].name, &*spec.named[1].name), ("web.example.com", "pool"));
}
