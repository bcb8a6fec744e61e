//! Hot reload: of whatever stands in files, when they change, and on SIGHUP.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use arc_swap::{ArcSwap, Guard};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, watch};

use crate::policy_file::MAX_FILE_BYTES;

/// Editors and volume mounts change a file in several steps; the last one counts.
const SETTLE: Duration = Duration::from_millis(200);

/// Something that was read from files, and can be read anew.
pub(crate) trait Reload: Send + Sync + 'static {
    /// What it is, for the log.
    fn what(&self) -> &'static str;

    /// The folders to watch for changes.
    fn folders(&self) -> Vec<PathBuf>;

    /// The files that would be read now.
    fn files(&self) -> Vec<PathBuf>;

    /// Reads the files anew. If anything is wrong, says everything that is, and stays as it was.
    fn reload(&self) -> Result<(), String>;

    /// What was wrong with the files when they were last looked at, if anything was.
    fn last_failure(&self) -> Option<String>;
}

/// What was read from files when they last held.
pub(crate) struct Kept<T> {
    current: ArcSwap<T>,
    last_failure: Mutex<Option<String>>,
}

impl<T> Kept<T> {
    pub(crate) fn new(read: T) -> Self {
        Self { current: ArcSwap::from_pointee(read), last_failure: Mutex::new(None) }
    }

    pub(crate) fn current(&self) -> Guard<Arc<T>> {
        self.current.load()
    }

    /// Keeps what was read anew; after a failure, what was there.
    pub(crate) fn renew(&self, read: Result<T, String>) -> Result<(), String> {
        if let Ok(mut last_failure) = self.last_failure.lock() {
            *last_failure = read.as_ref().err().cloned();
        }
        self.current.store(Arc::new(read?));
        Ok(())
    }

    pub(crate) fn last_failure(&self) -> Option<String> {
        self.last_failure.lock().ok()?.clone()
    }
}

/// The folder of a file.
pub(crate) fn folder_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if parent != Path::new("") => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// What stands in files, told apart from what stood there before: the hash of each that can be read, by its path.
#[derive(Debug, Default, PartialEq, Eq)]
struct Contents(Vec<(PathBuf, Option<[u8; 32]>)>);

impl Contents {
    fn of(part: &dyn Reload) -> Self {
        let hash = |path: &Path| {
            let mut bytes = Vec::new();
            // A byte more than any of these files may have: of a longer one it is enough to know that.
            File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)).ok()?;
            Some(Sha256::digest(bytes).into())
        };
        let mut files = part.files();
        files.sort_unstable();
        Self(files.into_iter().map(|path| (path.clone(), hash(&path))).collect())
    }
}

/// Something whose files are watched.
///
/// The folders are watched rather than the files, as a mounted configuration is replaced by renaming a
/// link in its folder. What else is written there is none of its business: were it read anew for that, a log in the same
/// folder, which gets a line for each reload, would never let it rest.
pub(crate) struct Watched {
    part: Arc<dyn Reload>,
    watcher: Option<RecommendedWatcher>,
    changes: mpsc::Receiver<()>,
    seen: Vec<PathBuf>,
    /// As of when they were last read.
    read: Contents,
}

impl Watched {
    /// Changes from now on are seen, whenever [`Watched::keep_fresh`] gets to them.
    pub(crate) fn new(part: Arc<dyn Reload>) -> Self {
        // One waiting notice is enough: it says that something changed, not what.
        let (notice, changes) = mpsc::channel(1);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| !event.kind.is_access()) {
                let _ = notice.try_send(());
            }
        });
        let failed = |error: &notify::Error| {
            tracing::warn!(what = part.what(), %error, "files cannot be watched; SIGHUP still reloads them");
        };
        let watcher = watcher.inspect_err(failed).ok();
        // Before the folders are watched: what changes between the two differs from this at the next notice.
        let read = Contents::of(&*part);
        let mut new = Self { part, watcher, changes, seen: Vec::new(), read };
        new.watch_new();
        new
    }

    /// Reloads it for as long as the node lives, on changes and on each of `hangups`.
    pub(crate) async fn keep_fresh(mut self, mut hangups: watch::Receiver<()>) {
        let what = self.part.what();
        loop {
            let asked = tokio::select! {
                Some(()) = self.changes.recv() => {
                    tokio::time::sleep(SETTLE).await;
                    false
                }
                Ok(()) = hangups.changed() => true,
                else => return,
            };
            while self.changes.try_recv().is_ok() {}
            let (part, before) = (Arc::clone(&self.part), std::mem::take(&mut self.read));
            let looked = tokio::task::spawn_blocking(move || {
                // Looked at before they are read: what changes in between is seen to differ the next time.
                let now = Contents::of(&*part);
                let outcome = (asked || now != before).then(|| part.reload());
                (now, outcome)
            });
            match looked.await {
                Ok((now, outcome)) => {
                    self.read = now;
                    match outcome {
                        None => continue,
                        Some(Ok(())) => tracing::info!(what, "reloaded"),
                        Some(Err(errors)) => tracing::error!(what, errors, "not reloaded; what was there stays"),
                    }
                }
                Err(error) => tracing::error!(what, %error, "not reloaded; what was there stays"),
            }
            self.watch_new();
        }
    }

    /// Watches the folders that are not watched yet: a file may have come to name others.
    fn watch_new(&mut self) {
        let Some(watcher) = &mut self.watcher else { return };
        for folder in self.part.folders() {
            if self.seen.contains(&folder) {
                continue;
            }
            if let Err(error) = watcher.watch(&folder, RecursiveMode::NonRecursive) {
                tracing::warn!(what = self.part.what(), %error, folder = %folder.display(), "folder cannot be watched; SIGHUP still reloads");
            }
            self.seen.push(folder);
        }
    }
}
