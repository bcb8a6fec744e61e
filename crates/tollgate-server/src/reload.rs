//! Hot reload: of whatever stands in files, when they change, and on SIGHUP.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use arc_swap::{ArcSwap, Guard};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{mpsc, watch};

/// Editors and volume mounts change a file in several steps; the last one counts.
const SETTLE: Duration = Duration::from_millis(200);

/// Something that was read from files, and can be read anew.
pub(crate) trait Reload: Send + Sync + 'static {
    /// What it is, for the log.
    fn what(&self) -> &'static str;

    /// The folders to watch for changes.
    fn folders(&self) -> Vec<PathBuf>;

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

/// Something whose files are watched.
///
/// The folders are watched rather than the files, as a mounted configuration is replaced by renaming a
/// link in its folder.
pub(crate) struct Watched {
    part: Arc<dyn Reload>,
    watcher: Option<RecommendedWatcher>,
    changes: mpsc::Receiver<()>,
    seen: Vec<PathBuf>,
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
        let mut new = Self { part, watcher, changes, seen: Vec::new() };
        new.watch_new();
        new
    }

    /// Reloads it for as long as the node lives, on changes and on each of `hangups`.
    pub(crate) async fn keep_fresh(mut self, mut hangups: watch::Receiver<()>) {
        let what = self.part.what();
        loop {
            tokio::select! {
                Some(()) = self.changes.recv() => tokio::time::sleep(SETTLE).await,
                Ok(()) = hangups.changed() => {}
                else => return,
            }
            while self.changes.try_recv().is_ok() {}
            let reloading = Arc::clone(&self.part);
            match tokio::task::spawn_blocking(move || reloading.reload()).await {
                Ok(Ok(())) => tracing::info!(what, "reloaded"),
                Ok(Err(errors)) => tracing::error!(what, errors, "not reloaded; what was there stays"),
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
