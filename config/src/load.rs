//! Reading a configuration: the main document, its sources, all checks.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fairway_core::Mode;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::announce::Announce;
use crate::check::{self, Around, Findings, Means};
use crate::document::{AnnounceDoc, Document, KubernetesDoc, ListenDoc, ServiceDoc};
use crate::kubernetes::{Manifests, Pool};
use crate::spec::{ClusterSource, Config, Desired, Origin, Process, ServiceSpec};
use crate::tree::{self, Node, Value};
use crate::values::At;
use crate::{File, Place, Problems};

/// A file that is being written is empty for a moment; services do not go by accident.
const EMPTY: &str = "is empty; to serve nothing, write `services: []`";
/// Listeners that may be made one by one.
const MOST_LISTENERS: u64 = 4096;

/// Reads the document at `path` and everything that it names under `sources`.
///
/// Reads files and does nothing else. Every problem of every file is returned at once.
pub fn load(path: &Path) -> Result<Config, Problems> {
    let file: File = path.into();
    let text = std::fs::read_to_string(path).map_err(|error| {
        let mut problems = Problems { files: vec![path.into()], ..Problems::default() };
        problems.push(&file, Place::default(), format!("cannot be read: {error}"));
        problems
    })?;
    load_text(&file, &text)
}

/// As [`load`], with the text of the main document given; `file` names it and is where relative
/// paths start.
pub fn load_text(file: &File, text: &str) -> Result<Config, Problems> {
    let mut loader = Loader::default();
    let config = loader.main(file, text);
    match config {
        Some(config) if loader.problems.is_empty() => Ok(config),
        _ => {
            loader.problems.sort();
            loader.problems.files = loader.files;
            Err(loader.problems)
        }
    }
}

/// The document as JSON, for tools that check it against [`crate::schema`].
pub fn to_json(text: &str) -> Result<serde_json::Value, Problems> {
    let root = tree::parse(text).map_err(|error| {
        let mut problems = Problems::default();
        problems.push(&Path::new("document").into(), error.place, error.message);
        problems
    })?;
    Ok(json(&root))
}

fn json(node: &Node) -> serde_json::Value {
    match &node.value {
        Value::Null => serde_json::Value::Null,
        Value::Scalar { text, quoted: false } => match &**text {
            "true" => true.into(),
            "false" => false.into(),
            word => word.parse::<i64>().map_or_else(|_| word.into(), Into::into),
        },
        Value::Scalar { text, .. } => (&**text).into(),
        Value::List(items) => items.iter().map(json).collect(),
        Value::Map(entries) => entries
            .iter()
            .map(|(key, value)| (String::from(&*key.text), json(value)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
    }
}

/// A further file: services and nothing else.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Services {
    /// Read one by one; here so that the field is known.
    services: Vec<ServiceDoc>,
}

#[derive(Default)]
struct Loader {
    problems: Problems,
    services: Vec<(Arc<ServiceSpec>, Origin)>,
    files: Vec<PathBuf>,
}

impl Loader {
    fn main(&mut self, file: &File, text: &str) -> Option<Config> {
        self.files.push(file.to_path_buf());
        let root = self.parse(file, text)?;
        if matches!(root.value, Value::Null) {
            self.problems.push(file, root.place, EMPTY);
            return None;
        }
        let (document, services) = self.head::<Document>(file, &root)?;
        let base = file.parent().unwrap_or(Path::new(""));
        let mut findings = Findings { file, complete: true, problems: &mut self.problems };
        let process = check::process(&document, base, &mut findings);
        let means = Means { listen: Some(process.listen), packets: process.packet.is_some() };
        self.services(file, services, means);
        let sources = document.sources;
        let kubernetes = sources.kubernetes.as_ref().map(|at| &at.value);
        let defaults = || root.get("sources")?.get("kubernetes")?.get("defaults");
        let usual = KubernetesDoc::default();
        let mut findings = Findings { file, complete: true, problems: &mut self.problems };
        let rules = check::rules(
            kubernetes.unwrap_or(&usual),
            defaults(),
            (&process, means),
            &mut findings,
        );
        let pools = check::pools(&document.address_pools, &mut findings);
        for path in &sources.files {
            for (further, text) in self.texts(file, base, path, &["yaml", "yml"]) {
                self.further(further, &text, means);
            }
        }
        let mut manifests = Manifests::default();
        for path in &sources.manifests {
            for (further, text) in self.texts(file, base, path, &["yaml", "yml", "json"]) {
                manifests.read(&further, &text, &mut self.problems);
            }
        }
        manifests.check(&mut self.problems);
        let named = kubernetes.map_or(&[][..], |doc| &doc.namespaces);
        let metallb = kubernetes.and_then(|doc| doc.read_metallb_pools).unwrap_or(true);
        manifests.keep(named, metallb);
        self.across(file, &process);
        let is_whole = sources.manifests.is_empty() && process.api.is_none();
        let announce = self.announce(file, &document.announce, (&process, &pools, is_whole));
        let services: Desired =
            self.services.iter().map(|(spec, _)| (spec.key.clone(), Arc::clone(spec))).collect();
        let manifests = (!sources.manifests.is_empty()).then_some(manifests);
        let cluster = ClusterSource { rules: Arc::new(rules), manifests, pools };
        Some(Config { process, services, cluster, announce, files: self.files.clone() })
    }

    fn parse(&mut self, file: &File, text: &str) -> Option<Node> {
        match tree::parse(text) {
            Ok(root) => Some(root),
            Err(error) => {
                self.problems.push(file, error.place, error.message);
                None
            }
        }
    }

    /// Everything but the services, and the services as they stand in the tree.
    fn head<'n, T>(&mut self, file: &File, root: &'n Node) -> Option<(T, &'n [Node])>
    where
        T: serde::de::DeserializeOwned,
    {
        let services = root.get("services");
        let list: &[Node] = match services.map(|node| &node.value) {
            Some(Value::List(items)) => items,
            _ => &[],
        };
        let skip: Vec<u32> = services.iter().filter(|_| !list.is_empty()).map(|n| n.id).collect();
        let problems = &mut self.problems;
        let head =
            crate::de::read(root, &skip, |place, message| problems.push(file, place, message))?;
        Some((head, list))
    }

    fn services(&mut self, file: &File, nodes: &[Node], means: Means) {
        for node in nodes {
            let problems = &mut self.problems;
            let mut complete = true;
            let doc: Option<At<ServiceDoc>> = crate::de::read(node, &[], |place, message| {
                complete = false;
                problems.push(file, place, message);
            });
            let Some(doc) = doc else { continue };
            let mut findings = Findings { file, complete, problems };
            let specs = check::service(&doc, means, &mut findings);
            self.services.extend(specs);
        }
    }

    /// The texts of a file, or of the files of a folder that end in one of these ways.
    fn texts(
        &mut self,
        main: &File,
        base: &Path,
        source: &At<String>,
        endings: &[&str],
    ) -> Vec<(File, String)> {
        let path = base.join(&source.value);
        self.files.push(path.clone());
        let found = match path.is_dir() {
            true => files_in(&path, endings),
            false => Ok(vec![path.clone()]),
        };
        let mut unreadable = |path: &Path, error: std::io::Error| {
            let remedy = match error.kind() {
                std::io::ErrorKind::NotFound => "; make it, or take it out here",
                _ => "",
            };
            let message = format!("{} cannot be read: {error}{remedy}", path.display());
            self.problems.push(main, source.place, message);
        };
        let paths = found.unwrap_or_else(|error| {
            unreadable(&path, error);
            Vec::new()
        });
        let read = paths.into_iter().filter_map(|path| match std::fs::read_to_string(&path) {
            Ok(text) => Some((path.into(), text)),
            Err(error) => {
                unreadable(&path, error);
                None
            }
        });
        read.collect()
    }

    fn further(&mut self, file: File, text: &str, means: Means) {
        let Some(root) = self.parse(&file, text) else { return };
        if matches!(root.value, Value::Null) {
            self.problems.push(&file, root.place, EMPTY);
            return;
        }
        if let Some((_, services)) = self.head::<Services>(&file, &root) {
            self.services(&file, services, means);
        }
    }

    /// What is said of announcements; `is_whole` when no other services and pools come from a cluster.
    fn announce(
        &mut self,
        file: &File,
        doc: &AnnounceDoc,
        (process, pools, is_whole): (&Process, &[Pool], bool),
    ) -> Announce {
        let services = self.services.iter().map(|(spec, _)| spec.key.service());
        let services: BTreeSet<&str> = services.collect();
        let names: BTreeSet<&str> = pools.iter().map(|pool| &*pool.name).collect();
        let base = file.parent().unwrap_or(Path::new(""));
        let around = Around {
            process,
            base,
            pools: is_whole.then_some(&names),
            services: is_whole.then_some(&services),
        };
        let mut findings = Findings { file, complete: true, problems: &mut self.problems };
        let announce = check::announce(doc, around, &mut findings);
        check::check_groups(&announce, &self.services, pools, &mut self.problems);
        announce
    }

    /// What only shows with all services at hand.
    fn across(&mut self, file: &File, process: &Process) {
        let mut names: HashMap<&str, &Origin> = HashMap::new();
        for (spec, _) in &self.services {
            let origin = &spec.origin;
            let name = spec.key.service();
            let first = *names.entry(name).or_insert(origin);
            if first != origin {
                let message = format!(
                    "service `{name}` is here twice; the first is at {}:{}",
                    first.file.display(),
                    first.place.line
                );
                self.problems.push(&origin.file, origin.place, message);
            }
        }
        check::check_frontends(&self.services, &mut self.problems);
        check::check_sources(&self.services, &mut self.problems);
        let ports = |spec: &ServiceSpec| -> u64 {
            spec.frontends.iter().map(|frontend| u64::from(frontend.ports.len())).sum()
        };
        let proxied = self.services.iter().filter(|(spec, _)| spec.policy.mode == Mode::Proxy);
        let listeners: u64 = proxied.map(|(spec, _)| ports(spec)).sum();
        if process.listen == ListenDoc::PerAddress && listeners > MOST_LISTENERS {
            let message = format!(
                "{listeners} addresses and ports need `dataplane.listen: tproxy`; with \
                 `perAddress` there are at most {MOST_LISTENERS}"
            );
            self.problems.push(file, Place::default(), message);
        }
    }
}

/// The files of a folder that end in one of these ways, by name.
fn files_in(folder: &Path, endings: &[&str]) -> std::io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
        let wanted = path.extension().is_some_and(|ext| endings.iter().any(|end| ext == *end));
        if wanted && !hidden && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}
