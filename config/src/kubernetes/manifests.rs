//! Manifests: the files that `kubectl apply` takes, read without a cluster.

use std::collections::HashMap;

use serde::de::DeserializeOwned;

use super::cluster::Kind;
use super::fields;
use super::gateway::RouteKind;
use super::objects::{Name, Object};
use crate::spec::Origin;
use crate::tree::{self, Node, Value};
use crate::{File, Place, Problems};

/// The version of our own objects.
const OURS: &str = "fairway.dev/v1alpha1";
/// Versions of the Gateway API.
const GATEWAYS: &str = "gateway.networking.k8s.io/v1";
const GATEWAYS_BETA: &str = "gateway.networking.k8s.io/v1beta1";
const GATEWAYS_ALPHA: &str = "gateway.networking.k8s.io/v1alpha2";

/// The objects of all manifests.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Manifests {
    /// The objects, each with the place where it begins.
    pub objects: Vec<(Object, Origin)>,
    /// What was passed over, for people.
    pub notes: Vec<String>,
}

impl Manifests {
    /// The objects of one text; `file` names it.
    pub fn of_text(file: &File, text: &str) -> Result<Self, Problems> {
        let (mut manifests, mut problems) = (Self::default(), Problems::default());
        manifests.read(file, text, &mut problems);
        manifests.check(&mut problems);
        if problems.is_empty() { Ok(manifests) } else { Err(problems) }
    }

    /// Adds the objects of a file; what is wrong goes to `problems`.
    pub(crate) fn read(&mut self, file: &File, text: &str, problems: &mut Problems) {
        match tree::parse_all(text) {
            // A file that is being written is empty for a moment; Services do not go by accident.
            Ok(documents) if documents.iter().all(|node| matches!(node.value, Value::Null)) => {
                problems.push(
                    file,
                    Place::default(),
                    "has no objects; remove it, if that is meant",
                );
            }
            Ok(documents) => documents.iter().for_each(|node| self.document(file, node, problems)),
            Err(error) => problems.push(file, error.place, error.message),
        }
    }

    fn document(&mut self, file: &File, node: &Node, problems: &mut Problems) {
        // Nothing between two `---`.
        if matches!(node.value, Value::Null) {
            return;
        }
        let (Some(version), Some(kind)) = (text(node, "apiVersion"), text(node, "kind")) else {
            let what = "an object has `apiVersion`, `kind`, `metadata`, as for `kubectl apply`";
            return problems.push(file, node.place, what);
        };
        if let (true, Some(Value::List(items))) =
            (kind.ends_with("List"), node.get("items").map(|items| &items.value))
        {
            return items.iter().for_each(|item| self.document(file, item, problems));
        }
        let object = match (version, kind) {
            ("v1", "Service") => read(file, node, problems).map(Object::Service),
            ("v1", "Endpoints") => read(file, node, problems).map(Object::Endpoints),
            ("v1", "Node") => read(file, node, problems).map(Object::Node),
            ("v1", "Namespace") => read(file, node, problems).map(Object::Namespace),
            ("discovery.k8s.io/v1", "EndpointSlice") => {
                read(file, node, problems).map(Object::EndpointSlice)
            }
            (OURS, "AddressPool") => read(file, node, problems).map(Object::AddressPool),
            (OURS, kind) if announcement(kind).is_some() => {
                let read = read(file, node, problems);
                announcement(kind).zip(read).map(|(kind, it)| Object::Announcement(kind, it))
            }
            ("metallb.io/v1beta1", "IPAddressPool") => {
                read(file, node, problems).map(Object::MetallbPool)
            }
            (GATEWAYS | GATEWAYS_BETA, "GatewayClass") => {
                read(file, node, problems).map(Object::GatewayClass)
            }
            (GATEWAYS | GATEWAYS_BETA, "Gateway") => {
                read(file, node, problems).map(Object::Gateway)
            }
            (GATEWAYS | GATEWAYS_ALPHA, "TCPRoute") => {
                read(file, node, problems).map(|route| Object::Route(RouteKind::Tcp, route))
            }
            (GATEWAYS | GATEWAYS_ALPHA, "UDPRoute") => {
                read(file, node, problems).map(|route| Object::Route(RouteKind::Udp, route))
            }
            (GATEWAYS | GATEWAYS_BETA, "ReferenceGrant") => {
                read(file, node, problems).map(Object::ReferenceGrant)
            }
            _ => {
                let name = node.get("metadata").and_then(|meta| text(meta, "name"));
                let (file, line) = (file.display(), node.place.line);
                self.notes.push(format!(
                    "{file}:{line}: {kind} `{}` ({version}) means nothing to Fairway and is passed \
                     over",
                    name.unwrap_or("")
                ));
                return;
            }
        };
        let Some(mut object) = object else { return };
        let named =
            |odd: &Node, what: String| format!("{}:{}: {what}", file.display(), odd.place.line);
        let odd = fields::unknown(kind, node).into_iter();
        self.notes.extend(odd.map(|(odd, what)| named(odd, what)));
        if object.name().name.is_empty() {
            let place = node.get("metadata").unwrap_or(node).place;
            return problems.push(file, place, format!("{kind} has no `metadata.name`; add it"));
        }
        if object.kind().is_namespaced() && object.name().namespace.is_empty() {
            object.meta_mut().namespace = "default".into();
        }
        self.objects.push((object, Origin { file: file.clone(), place: node.place }));
    }

    /// Forgets objects of other namespaces, if some are named, and MetalLB's pools, if they are not wanted.
    pub(crate) fn keep(&mut self, namespaces: &[String], metallb_pools: bool) {
        self.objects.retain(|(object, _)| {
            let (kind, name) = (object.kind(), object.name());
            let here = namespaces.is_empty() || namespaces.iter().any(|of| **of == *name.namespace);
            (!kind.is_namespaced() || here) && (kind != Kind::MetallbPool || metallb_pools)
        });
    }

    /// Adds a problem for each object that is there twice.
    pub(crate) fn check(&self, problems: &mut Problems) {
        let mut seen: HashMap<(Kind, Name), &Origin> = HashMap::new();
        for (object, origin) in &self.objects {
            let (kind, name) = (object.kind(), object.name());
            if let Some(first) = seen.get(&(kind, name.clone())) {
                let message = format!(
                    "{} `{name}` is here twice; the first is at {}:{}",
                    kind.word(),
                    first.file.display(),
                    first.place.line
                );
                problems.push(&origin.file, origin.place, message);
                continue;
            }
            seen.insert((kind, name), origin);
        }
    }
}

/// The kind of an object that says how addresses are announced, by its word.
fn announcement(word: &str) -> Option<Kind> {
    Kind::ALL.into_iter().find(|kind| kind.is_of_announcements() && kind.word() == word)
}

fn text<'n>(node: &'n Node, key: &str) -> Option<&'n str> {
    match &node.get(key)?.value {
        Value::Scalar { text, .. } => Some(text),
        _ => None,
    }
}

fn read<T: DeserializeOwned>(file: &File, node: &Node, problems: &mut Problems) -> Option<Box<T>> {
    let report = |place, message| problems.push(file, place, message);
    crate::de::read(node, &[], report).map(Box::new)
}
