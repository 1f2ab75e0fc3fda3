//! Any text is answered: objects, or problems with places inside it; and whatever objects say of
//! themselves, they come to services, or to findings.
#![no_main]

use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use fairway_config::kubernetes::{
    Attachments, Cluster, Draft, Manifests, Role, Rules, gateway_wish, translate_gateway, wish,
};
use fairway_config::{Origin, Place, load_text};
use libfuzzer_sys::fuzz_target;

fn rules() -> &'static Arc<Rules> {
    static RULES: OnceLock<Arc<Rules>> = OnceLock::new();
    RULES.get_or_init(|| {
        let text = "dataplane: {zone: z1, packet: {interfaces: [eth0]}}\nservices: []\n\
                    sources: {kubernetes: {kubeconfig: none, defaultClass: true, externalIPs: true}}\n";
        let config = load_text(&Path::new("fuzz.yaml").into(), text);
        config.map(|config| config.cluster.rules).expect("a good document")
    })
}

fuzz_target!(|text: &str| {
    let file = Path::new("fuzz.yaml").into();
    let lines = text.matches(['\n', '\r']).count() as u32;
    let manifests = match Manifests::of_text(&file, text) {
        Ok(manifests) => manifests,
        Err(problems) => {
            assert!(!problems.is_empty());
            for problem in problems.list {
                assert!(problem.place.line <= lines + 1, "{problem} of {lines} lines");
            }
            return;
        }
    };
    let mut cluster = Cluster::default();
    for (object, _) in manifests.objects {
        cluster.apply(object);
    }
    let addresses: [IpAddr; 2] =
        [[192, 0, 2, 1].into(), IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1])];
    let origin = Origin { file, place: Place::default() };
    for (_, service) in cluster.services() {
        let _ = wish(service);
        if rules().role(service) == Role::Foreign {
            continue;
        }
        let done = Draft::new(service, rules(), &addresses, &origin).served_in(&cluster);
        for spec in &done.specs {
            assert!(spec.backends.is_sorted_by_key(|backend| backend.addr), "{}", spec.key);
        }
    }
    for (name, state) in &Attachments::of(&cluster, rules()).gateways {
        let Some(gateway) = cluster.gateway(name) else { continue };
        let _ = gateway_wish(gateway);
        let done = translate_gateway(&cluster, gateway, state, rules(), &addresses, &origin);
        for spec in &done.specs {
            assert!(spec.backends.is_sorted_by_key(|backend| backend.addr), "{}", spec.key);
        }
    }
});
