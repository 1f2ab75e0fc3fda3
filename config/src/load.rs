//! Reading a configuration: the main document, its sources, all checks.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fairway_core::Mode;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::check::{self, Findings, Means};
use crate::document::{Document, ListenDoc, ServiceDoc, SourceDoc};
use crate::spec::{Config, Desired, Origin, Process, ServiceSpec};
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
        for source in &document.sources {
            self.source(file, base, source, means);
        }
        self.across(file, &process);
        let services: Desired =
            self.services.iter().map(|(spec, _)| (spec.key.clone(), Arc::clone(spec))).collect();
        Some(Config { process, services, files: self.files.clone() })
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

    fn source(&mut self, main: &File, base: &Path, source: &SourceDoc, means: Means) {
        let path = base.join(&source.path.value);
        let unreadable =
            |error: std::io::Error| format!("{} cannot be read: {error}", path.display());
        self.files.push(path.clone());
        let mut paths = vec![path.clone()];
        if path.is_dir() {
            match files_in(&path) {
                Ok(found) => paths = found,
                Err(error) => {
                    return self.problems.push(main, source.path.place, unreadable(error));
                }
            }
        }
        for path in paths {
            match std::fs::read_to_string(&path) {
                Ok(text) => self.further(path.into(), &text, means),
                Err(error) => {
                    let message = format!("{} cannot be read: {error}", path.display());
                    self.problems.push(main, source.path.place, message);
                }
            }
        }
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

    /// What only shows with all services at hand.
    fn across(&mut self, file: &File, process: &Process) {
        let mut names: HashMap<&str, &Origin> = HashMap::new();
        for (spec, _) in &self.services {
            let origin = &spec.origin;
            let name = spec.key.0.rsplit_once('/').map_or(&*spec.key.0, |(name, _)| name);
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

/// The `*.yaml` and `*.yml` files of a folder, by name.
fn files_in(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
        let yaml = path.extension().is_some_and(|ext| ext == "yaml" || ext == "yml");
        if yaml && !hidden && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}
