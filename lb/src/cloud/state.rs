//! What outlives the process: the addresses of Services, and the cluster as it was known last.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use fairway_config::kubernetes::{Cluster, Name};
use serde::{Deserialize, Serialize};

/// The cluster as it was known last, if it was written down.
pub(crate) fn recall(path: &Path) -> Option<Cluster> {
    let bytes = std::fs::read(path).ok()?;
    let cluster = serde_json::from_slice(&bytes);
    cluster.map_err(|error| tracing::warn!("{} cannot be read: {error}", path.display())).ok()
}

/// Writes a cluster down.
pub(super) fn save(path: &Path, cluster: &Cluster) {
    // As it goes: of a large cluster it is tens of megabytes.
    if let Err(error) = replace(path, |file| Ok(serde_json::to_writer(file, cluster)?)) {
        tracing::warn!("{} cannot be written: {error}", path.display());
    }
}

/// Puts a new file, as `write` writes it, in the place of the old one.
fn replace(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    let mut buffered = BufWriter::new(&mut file);
    write(&mut buffered)?;
    buffered.flush()?;
    drop(buffered);
    file.as_file().sync_data()?;
    file.persist(path).map(drop).map_err(|error| error.error)
}

/// Addresses by Service.
pub(crate) type Known = BTreeMap<Name, Vec<IpAddr>>;

/// The file, and what is in it.
pub(crate) struct StateFile {
    path: PathBuf,
    written: Known,
    /// Why it cannot be written, or read.
    trouble: Option<String>,
}

/// The file as it is written.
#[derive(Serialize, Deserialize, Default)]
struct Contents {
    services: BTreeMap<String, Vec<IpAddr>>,
}

impl StateFile {
    /// A file in a folder, with what is in it. One that is not there is empty.
    pub(crate) fn open(folder: &Path) -> Self {
        let path = folder.join("addresses.json");
        let contents = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice::<Contents>(&bytes).map_err(|e| e.to_string()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Contents::default()),
            Err(error) => Err(error.to_string()),
        };
        let trouble = contents.as_ref().err().map(|why| {
            format!("{} cannot be read, Services may get other addresses: {why}", path.display())
        });
        let named = |(text, addresses): (String, Vec<IpAddr>)| {
            let (namespace, name) = text.split_once('/')?;
            Some((Name::new(namespace, name), addresses))
        };
        let services = contents.unwrap_or_default().services.into_iter();
        Self { path, written: services.filter_map(named).collect(), trouble }
    }

    /// What it held at the start.
    pub(crate) fn read(&self) -> Known {
        self.written.clone()
    }

    /// Writes what is known, if that is news: a new file in the place of the old one.
    pub(crate) fn write(&mut self, known: Known) {
        if known == self.written {
            return;
        }
        let services = known.iter().map(|(name, at)| (name.to_string(), at.clone())).collect();
        let contents = Contents { services };
        let written =
            replace(&self.path, |file| Ok(serde_json::to_writer_pretty(file, &contents)?));
        self.trouble = written.err().map(|error| {
            let path = self.path.display();
            format!("{path} cannot be written, Services may get other addresses at the next start: {error}")
        });
        self.written = known;
    }

    /// Why it cannot be used.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.trouble.clone()
    }
}
