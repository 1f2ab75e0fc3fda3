//! Noticing that a file of the configuration changed.
//!
//! Editors rename, ConfigMap mounts swap symlinks, writers write in parts. So folders are
//! watched, not files, along every symlink; any event in them only says "look", and the looking
//! waits until nothing has happened for a while.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};

/// Files cannot be watched.
#[derive(Debug, thiserror::Error)]
#[error("cannot watch {}: {error}; changes are seen at SIGHUP or `fairway reload` only", path.display())]
pub struct WatchError {
    path: PathBuf,
    error: notify::Error,
}

/// Watches the folders of a configuration's files.
pub struct Watcher {
    inner: RecommendedWatcher,
    /// Watched folders, and which ones they were: a folder may be replaced under its name.
    folders: BTreeMap<PathBuf, Identity>,
}

impl Watcher {
    /// A watcher that calls `changed`, from a thread of its own, at every event.
    pub fn new(changed: impl Fn() + Send + 'static) -> Result<Self, WatchError> {
        let handler = move |event: notify::Result<notify::Event>| {
            let reading = |event: &notify::Event| matches!(event.kind, EventKind::Access(_));
            let opened = event.as_ref().is_ok_and(reading);
            if !opened {
                changed();
            }
        };
        let inner = notify::recommended_watcher(handler)
            .map_err(|error| WatchError { path: PathBuf::new(), error })?;
        Ok(Self { inner, folders: BTreeMap::new() })
    }

    /// Watches the folders of `files`, and no others any more.
    pub fn watch(&mut self, files: &[PathBuf]) -> Result<(), WatchError> {
        let wanted: BTreeMap<PathBuf, Identity> = files
            .iter()
            .flat_map(|file| folders(file))
            .filter_map(|folder| identity(&folder).map(|identity| (folder, identity)))
            .collect();
        for (gone, _) in self.folders.iter().filter(|(folder, id)| wanted.get(*folder) != Some(id))
        {
            // A folder that was removed is unwatched already.
            let _ = self.inner.unwatch(gone);
        }
        let mut first_error = None;
        // Watching anew makes events of its own: only what is not watched yet.
        for (folder, id) in &wanted {
            if self.folders.get(folder) == Some(id) {
                continue;
            }
            if let Err(error) = self.inner.watch(folder, RecursiveMode::NonRecursive) {
                first_error.get_or_insert(WatchError { path: folder.clone(), error });
            }
        }
        self.folders = wanted;
        first_error.map_or(Ok(()), Err)
    }
}

/// Device and inode.
type Identity = (u64, u64);

fn identity(folder: &Path) -> Option<Identity> {
    let metadata = std::fs::metadata(folder).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// The folders in which something may happen that changes what `path` reads: its own, itself if
/// it is one, and those of every symlink on the way.
fn folders(path: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let mut next = Some(path.to_path_buf());
    // Symlinks in a circle end somewhere.
    for _ in 0..16 {
        let Some(path) = next.take() else { break };
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new(".")).to_path_buf();
        if let Ok(target) = std::fs::read_link(&path) {
            next = Some(parent.join(target));
        } else if path.is_dir() {
            folders.push(path.clone());
        }
        // ConfigMap mounts: the folder of the target is a symlink itself.
        if next.is_none() && std::fs::read_link(&parent).is_ok() {
            next = Some(parent.clone());
        }
        folders.push(parent);
    }
    // A folder that is not there appears in the nearest one that is.
    let existing =
        |folder: &PathBuf| folder.ancestors().find(|f| f.is_dir()).map(Path::to_path_buf);
    folders.iter().filter_map(existing).collect()
}
