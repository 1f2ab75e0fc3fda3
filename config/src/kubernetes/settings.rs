//! What a Service's annotations say: the fields of a service of the document, by the same names and
//! with the same values, and a few words besides.

use std::collections::BTreeSet;

use crate::check::{self, Findings, Means};
use crate::document::ServiceDoc;
use crate::spec::ServiceSpec;
use crate::tree::{self, Key, Node, Value};
use crate::values::At;
use crate::{File, Place, Problems};

/// What our annotations begin with.
pub const PREFIX: &str = "fairway.dev/";
/// Annotations that are no fields.
const WORDS: [&str; 8] = [
    "expose",
    "target",
    "addresses",
    "addressPool",
    "sharingKey",
    "podsAnswerForVip",
    IP_FAMILIES,
    SERVED_BY,
];
/// The annotation by which a Gateway says what a Service says by `ipFamilies`.
pub(super) const IP_FAMILIES: &str = "ipFamilies";
/// The annotation by which the box that serves a Service marks it.
pub const SERVED_BY: &str = "servedBy";
/// Fields that the Service itself says.
pub(super) const OF_SERVICE: [&str; 9] = [
    "name",
    "labels",
    "ports",
    "backends",
    "backupBackends",
    "sessionAffinity",
    "sessionAffinityTimeout",
    "loadBalancerSourceRanges",
    "trafficDistribution",
];
/// The same of a Gateway with its routes.
pub(super) const OF_GATEWAY: [&str; 5] = ["name", "labels", "ports", "backends", "backupBackends"];

/// Programs and files are this machine's, and its operator's to name: whoever writes to a cluster is
/// another one.
const OF_OPERATOR: [&str; 2] = ["command", "caFile"];

/// The first field in `value` that is the operator's.
fn of_operator(value: &Node) -> Option<&'static str> {
    match &value.value {
        Value::Map(entries) => entries.iter().find_map(|(key, value)| {
            let named = OF_OPERATOR.into_iter().find(|field| **field == *key.text);
            named.or_else(|| of_operator(value))
        }),
        Value::List(all) => all.iter().find_map(of_operator),
        Value::Null | Value::Scalar { .. } => None,
    }
}

/// Whether a field is for each Service to say.
pub(crate) fn is_of_service(field: &str) -> bool {
    field == "addresses" || OF_SERVICE.contains(&field)
}

/// A field of a service, and who set it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Setting {
    /// Who set it, for people.
    pub(crate) origin: Box<str>,
    pub(crate) field: Box<str>,
    pub(crate) value: Node,
    /// Set by us: it yields to others, and is not to blame.
    pub(crate) usual: bool,
}

impl Setting {
    /// As the document has it for all Services.
    pub(crate) fn of_default(field: &str, value: Node) -> Self {
        let origin = format!("`sources.kubernetes.defaults.{field}`").into();
        Self { origin, field: field.into(), value, usual: false }
    }

    /// As another object has it, which is said before its origin.
    pub(crate) fn of(mut self, whose: &str) -> Self {
        self.origin = format!("{whose}{}", self.origin).into();
        self
    }

    /// Our own choice where nobody says otherwise.
    pub(crate) fn usual(field: &str, yaml: &str) -> Option<Self> {
        let value = tree::parse(yaml).ok()?;
        Some(Self { origin: "".into(), field: field.into(), value, usual: true })
    }
}

/// The settings that annotations make, `but` those that the object itself makes; what cannot be read goes to
/// `report`.
pub(crate) fn of_annotations<'a>(
    annotations: impl Iterator<Item = (&'a String, &'a String)>,
    but: &[&str],
    mut report: impl FnMut(String),
) -> Vec<Setting> {
    let mut settings = Vec::new();
    for (key, text) in annotations {
        let Some(field) = key.strip_prefix(PREFIX) else { continue };
        if WORDS.contains(&field) {
            continue;
        }
        if but.contains(&field) {
            report(format!("annotation `{key}`: fields of its own say that; remove it"));
            continue;
        }
        match tree::parse(text) {
            Ok(value) if let Some(named) = of_operator(&value) => report(format!(
                "annotation `{key}`: `{named}` names a program or a file of this machine, which is for its operator: \
                 `sources.kubernetes.defaults` may say it"
            )),
            Ok(value) => settings.push(Setting {
                origin: format!("annotation `{key}`").into(),
                field: field.into(),
                value,
                usual: false,
            }),
            Err(error) => report(format!("annotation `{key}`: {}", error.message)),
        }
    }
    settings
}

/// What the document would call the service.
pub(crate) struct Sketch<'a> {
    pub(crate) name: &'a str,
    pub(crate) addresses: Vec<Box<str>>,
    /// Name, protocol and number of each port.
    pub(crate) ports: Vec<(Box<str>, &'static str, u16)>,
}

/// What a sketch and settings make.
pub(crate) struct Made {
    /// One for each port, without backends.
    pub(crate) specs: Vec<ServiceSpec>,
    /// Whether somebody has said how its backends are checked.
    pub(crate) is_checked: bool,
}

/// The service that a sketch and settings make. A setting that is wrong goes to `report`, as its field and
/// what is wrong, and is left out; the rest stays. None when nothing can be made.
pub(crate) fn specs(
    sketch: &Sketch<'_>,
    mut settings: Vec<Setting>,
    means: Means,
    file: &File,
    mut report: impl FnMut(Option<&str>, String),
) -> Option<Made> {
    // What comes later replaces what came before, which is there for when that is wrong.
    let mut seen = BTreeSet::new();
    settings.reverse();
    let (mut settings, mut replaced): (Vec<_>, Vec<_>) =
        settings.into_iter().partition(|setting| seen.insert(setting.field.clone()));
    settings.reverse();
    replaced.reverse();
    loop {
        let mut problems = Problems::default();
        let root = sketch.tree(&settings);
        let mut complete = true;
        let doc: Option<At<ServiceDoc>> = crate::de::read(&root, &[], |place, message| {
            complete = false;
            problems.push(file, place, message);
        });
        let specs = doc.map(|doc| {
            let mut findings = Findings { file, complete, problems: &mut problems };
            check::service(&doc, means, &mut findings)
        });
        if problems.is_empty() {
            let specs = specs?.into_iter();
            let check = |setting: &Setting| &*setting.field == "healthCheck" && !setting.usual;
            return Some(Made {
                specs: specs.map(|(spec, _)| ServiceSpec::clone(&spec)).collect(),
                is_checked: settings.iter().any(check),
            });
        }
        let mut blamed = BTreeSet::new();
        for problem in &problems.list {
            let line = problem.place.line as usize;
            let by_line = line.checked_sub(1).filter(|n| settings.get(*n).is_some());
            // What is missing is missing for the mode.
            let mode = || settings.iter().position(|setting| &*setting.field == "mode");
            match by_line.or_else(mode).map(|n| (n, &settings[n])) {
                Some((n, setting)) => {
                    if blamed.insert(n) && !setting.usual {
                        let message = format!("{}: {}", setting.origin, problem.message);
                        report(Some(&setting.field), message);
                    }
                }
                None => report(None, problem.message.clone()),
            }
        }
        if blamed.is_empty() {
            return None;
        }
        for n in blamed.into_iter().rev() {
            let wrong = settings.remove(n);
            let before = replaced.iter().rposition(|setting| setting.field == wrong.field);
            settings.extend(before.map(|n| replaced.remove(n)));
        }
    }
}

impl Sketch<'_> {
    /// As a document's service; settings have their number, from 1, as the line of all that they say.
    fn tree(&self, settings: &[Setting]) -> Node {
        let mut ids = 0..;
        let mut node =
            |value| Node { id: ids.next().unwrap_or_default(), place: Place::default(), value };
        let text = |text: &str| Value::Scalar { text: text.into(), quoted: false };
        let key = |text: &str| Key { text: text.into(), place: Place::default() };
        let addresses = self.addresses.iter().map(|ip| node(text(ip))).collect();
        let mut ports = Vec::new();
        for (name, protocol, number) in &self.ports {
            let mut entries = vec![
                (key("port"), node(text(&number.to_string()))),
                (key("protocol"), node(text(protocol))),
            ];
            if !name.is_empty() {
                entries.push((key("name"), node(text(name))));
            }
            ports.push(node(Value::Map(entries)));
        }
        let mut entries = vec![
            (key("name"), node(text(self.name))),
            (key("addresses"), node(Value::List(addresses))),
            (key("ports"), node(Value::List(ports))),
        ];
        for (setting, line) in settings.iter().zip(1..) {
            let mut value = setting.value.clone();
            adopt(&mut value, line, &mut ids);
            let place = Place { line, column: 1 };
            entries.push((Key { text: setting.field.clone(), place }, value));
        }
        Node { id: u32::MAX, place: Place::default(), value: Value::Map(entries) }
    }
}

/// Numbers a node and all in it anew, and places it on a line.
fn adopt(node: &mut Node, line: u32, ids: &mut std::ops::RangeFrom<u32>) {
    node.id = ids.next().unwrap_or_default();
    node.place.line = line;
    match &mut node.value {
        Value::List(items) => items.iter_mut().for_each(|item| adopt(item, line, ids)),
        Value::Map(entries) => {
            for (key, value) in entries {
                key.place.line = line;
                adopt(value, line, ids);
            }
        }
        Value::Null | Value::Scalar { .. } => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_name_no_programs_and_files() {
        for (text, named) in [
            ("{type: exec, command: [/bin/id]}", Some("`command`")),
            ("{type: https, tls: {caFile: /etc/shadow}}", Some("`caFile`")),
            ("[{deep: [{command: x}]}]", Some("`command`")),
            ("{type: http, path: /command}", None),
        ] {
            let annotation = ("fairway.dev/healthCheck".to_owned(), text.to_owned());
            let mut said = Vec::new();
            let pairs = std::iter::once((&annotation.0, &annotation.1));
            let settings = of_annotations(pairs, &[], |why| said.push(why));
            match named {
                Some(named) => {
                    assert!(settings.is_empty() && said[0].contains(named), "{text}: {said:?}");
                }
                None => assert!(settings.len() == 1 && said.is_empty(), "{text}: {said:?}"),
            }
        }
    }
}
