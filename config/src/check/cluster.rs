//! What a document says of clusters, and the addresses that it has for Services.

use std::path::Path;

use super::process::absolute;
use super::{Findings, Means};
use crate::document::{AddressPoolDoc, KubernetesDoc, SourcesDoc, TargetKindDoc};
use crate::kubernetes::{
    Pool, Rules, Selection, Setting, Sketch, Target, is_of_service, overlaps, specs,
};
use crate::spec::{Access, ApiServer, Process};
use crate::tree::{Node, Value};
use crate::values::At;

/// The class of Services that are ours when nobody names another.
const CLASS: &str = "fairway.dev/fairway";

/// Which Services are ours, and how they are served; `defaults` is what the document has there.
pub(crate) fn rules(
    doc: &KubernetesDoc,
    defaults: Option<&Node>,
    (process, means): (&Process, Means),
    findings: &mut Findings<'_>,
) -> Rules {
    if let Some(At { place, value }) = doc.class.as_ref().filter(|at| !is_class(&at.value)) {
        findings.add(
            *place,
            format!("`{value}` is no class: a label, with a prefix like `example.com/internal`"),
        );
    }
    Rules {
        class: doc.class.as_ref().map_or(CLASS, |at| &at.value).into(),
        is_default: doc.default_class.unwrap_or_else(|| !names_api(doc)),
        target: match doc.target {
            None | Some(TargetKindDoc::Node) => Target::Node,
            Some(TargetKindDoc::Pod) => Target::Pod,
        },
        node_address: doc.node_address.unwrap_or_default(),
        external_ips: doc.external_ips.unwrap_or(false),
        zone: process.zone.clone(),
        defaults: defaults.map_or_else(Vec::new, |node| settings(node, means, findings)),
        means,
    }
}

fn names_api(doc: &KubernetesDoc) -> bool {
    doc.kubeconfig.is_some() || doc.in_cluster.is_some_and(|at| at.value)
}

/// The API server that is watched, if one is named.
pub(super) fn api(
    sources: &SourcesDoc,
    base: &Path,
    findings: &mut Findings<'_>,
) -> Option<ApiServer> {
    let doc = &sources.kubernetes.as_ref()?.value;
    let in_cluster = doc.in_cluster.filter(|at| at.value);
    if let Some(at) = doc.context.as_ref().filter(|_| doc.kubeconfig.is_none()) {
        findings.add(at.place, "`context` is one of a kubeconfig: name it in `kubeconfig`");
    }
    let access = match (&doc.kubeconfig, in_cluster) {
        (Some(_), Some(at)) => {
            findings.add(at.place, "`inCluster` or `kubeconfig`: remove one of them");
            return None;
        }
        (Some(path), None) => Access::Kubeconfig {
            path: absolute(base, &path.value),
            context: doc.context.as_ref().map(|at| at.value.clone()),
        },
        (None, Some(_)) => Access::InCluster,
        (None, None) => {
            if sources.manifests.is_empty() {
                let place =
                    sources.kubernetes.as_ref().map_or_else(Default::default, |at| at.place);
                findings.add(
                    place,
                    "`kubernetes` has no source: name a `kubeconfig`, or `inCluster: true`, or \
                     `manifests` beside it",
                );
            }
            return None;
        }
    };
    if let Some(at) = sources.manifests.first() {
        findings.add(
            at.place,
            "`manifests` stand for an API server, and `kubernetes` names one; remove one of them",
        );
    }
    Some(ApiServer {
        access,
        namespaces: doc.namespaces.clone(),
        metallb_pools: doc.read_metallb_pools.unwrap_or(false),
    })
}

fn is_class(class: &str) -> bool {
    let (prefix, name) = class.rsplit_once('/').unwrap_or(("a", class));
    let fits = |text: &str, more: &str| {
        let good = |c: char| c.is_ascii_alphanumeric() || more.contains(c);
        let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        text.chars().all(good) && ends(text.chars().next()) && ends(text.chars().next_back())
    };
    prefix.len() <= 253 && fits(prefix, "-.") && name.len() <= 63 && fits(name, "-_.")
}

/// Fields for all Services; each that is wrong is a finding at its place.
fn settings(node: &Node, means: Means, findings: &mut Findings<'_>) -> Vec<Setting> {
    let Value::Map(entries) = &node.value else {
        findings.add(node.place, "`defaults` is a map of fields of a service, like `mode: nat`");
        return Vec::new();
    };
    for (key, _) in entries.iter().filter(|(key, _)| is_of_service(&key.text)) {
        findings
            .add(key.place, format!("`{}` is for each Service to say; remove it here", key.text));
    }
    let settings: Vec<_> =
        entries.iter().map(|(key, value)| Setting::of_default(&key.text, value.clone())).collect();
    let sketch = Sketch {
        name: "defaults",
        addresses: vec!["192.0.2.1".into()],
        ports: vec![("".into(), "TCP", 80)],
    };
    let file = findings.file;
    specs(&sketch, settings.clone(), means, file, |field, message| {
        let entry = entries.iter().find(|(key, _)| Some(&*key.text) == field);
        findings.add(entry.map_or(node.place, |(key, _)| key.place), message);
    });
    settings
}

/// The pools of a document.
pub(crate) fn pools(docs: &[At<AddressPoolDoc>], findings: &mut Findings<'_>) -> Vec<Pool> {
    let mut pools: Vec<Pool> = Vec::new();
    for At { value: doc, .. } in docs {
        let name = &doc.name.value;
        if pools.iter().any(|pool| *pool.name == **name) {
            findings.add(doc.name.place, format!("pool `{name}` is here twice"));
            continue;
        }
        if doc.addresses.value.is_empty() {
            findings.absent(doc.addresses.place, "`addresses` is empty; a pool needs some");
        }
        pools.push(Pool {
            name: name.as_str().into(),
            ranges: doc.addresses.value.iter().map(|at| at.value.0).collect(),
            auto_assign: doc.auto_assign.unwrap_or(true),
            avoid_buggy: doc.avoid_buggy_ips.unwrap_or(false),
            priority: doc.priority,
            selection: Selection {
                namespaces: doc.namespaces.clone(),
                namespace_selectors: doc.namespace_selectors.clone(),
                service_selectors: doc.service_selectors.clone(),
            },
        });
    }
    for (pool, earlier, range) in overlaps(&pools) {
        let place = docs.iter().find(|at| *at.value.name.value == *pool.name);
        findings.add(
            place.map_or_else(Default::default, |at| at.value.addresses.place),
            format!("{range} of pool `{}` is in pool `{}` already", pool.name, earlier.name),
        );
    }
    pools
}
