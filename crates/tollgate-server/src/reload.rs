//! Reload of files when they change, and on SIGHUP.

use std::{path::PathBuf, sync::Arc, thread, time::Duration};

use arc_swap::{ArcSwap, Guard};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot, watch};
use tollgate_policy::redaction::shown_path;

use crate::files::{self, Failure, FileError, MAX_FILE_BYTES};

/// The pause after a change, because editors and volume mounts change files in several steps.
const SETTLE_TIME: Duration = Duration::from_millis(200);
/// The interval of attempts while a reload is stuck: there is no event when the file system responds again.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// A part of a node that is read from files, and can be reloaded.
pub(crate) trait Reload: Send + Sync + 'static {
    /// Its name in the log.
    fn what(&self) -> &'static str;

    /// The folders to watch for changes.
    fn folders(&self) -> Vec<PathBuf>;

    /// The files that a reload would read now.
    fn files(&self) -> Vec<PathBuf>;

    /// Reads the files again. If there are errors, returns all of them and changes nothing. Takes a bounded time, even
    /// if a file system does not respond.
    fn reload(&self) -> Result<(), Failure>;

    /// The failure of the last reload, if it failed.
    fn last_failure(&self) -> Option<Failure>;
}

/// The failure of the last reload, if it failed.
#[derive(Default)]
pub(crate) struct LastFailure(Mutex<Option<Failure>>);

impl LastFailure {
    /// Records the result of a reload. Called after its contents are in force, so that a client that sees no failure
    /// can rely on them.
    pub(crate) fn record(&self, failure: Option<Failure>) {
        *self.0.lock() = failure;
    }

    pub(crate) fn get(&self) -> Option<Failure> {
        self.0.lock().clone()
    }
}

/// The last valid contents of files.
pub(crate) struct ReloadCell<T> {
    current: ArcSwap<T>,
    last_failure: LastFailure,
}

impl<T> ReloadCell<T> {
    pub(crate) fn new(read: T) -> Self {
        Self { current: ArcSwap::from_pointee(read), last_failure: LastFailure::default() }
    }

    pub(crate) fn current(&self) -> Guard<Arc<T>> {
        self.current.load()
    }

    /// Replaces the contents; after a failure, they stay as they were.
    pub(crate) fn renew(&self, read: Result<T, Failure>) -> Result<(), Failure> {
        let outcome = read.map(|read| self.current.store(Arc::new(read)));
        self.last_failure.record(outcome.as_ref().err().cloned());
        outcome
    }

    pub(crate) fn last_failure(&self) -> Option<Failure> {
        self.last_failure.get()
    }
}

/// Detects changed contents of files: the hash of each readable file, by its path.
#[derive(Debug, Default, PartialEq, Eq)]
struct Fingerprints(Vec<(PathBuf, Option<[u8; 32]>)>);

impl Fingerprints {
    fn of(part: &dyn Reload) -> Self {
        let mut files = part.files();
        files.sort_unstable();
        let hash = |path: &PathBuf| Some(Sha256::digest(files::read(path, MAX_FILE_BYTES).ok()?.bytes).into());
        Self(files.into_iter().map(|path| (path.clone(), hash(&path))).collect())
    }
}

/// Watches the files of a part.
///
/// Folders are watched instead of files, because a mounted configuration is replaced by renaming a link in its folder.
/// Changes of other files are ignored: otherwise a log in the same folder would cause endless reloads.
pub(crate) struct FileWatcher {
    what: &'static str,
    changes: mpsc::Receiver<()>,
    reader: Arc<Mutex<Reader>>,
    after_reload: Arc<dyn Fn() + Send + Sync>,
}

/// Reads the files. It blocks on file systems, so it does not run on the threads of the runtime.
struct Reader {
    part: Arc<dyn Reload>,
    watcher: Option<Arc<Mutex<RecommendedWatcher>>>,
    watched_folders: Vec<PathBuf>,
    /// The fingerprints when the files were last read.
    read: Fingerprints,
}

impl FileWatcher {
    /// Changes from now on are processed by [`FileWatcher::run`]. `after_reload` is called after each successful
    /// reload.
    pub(crate) fn new(part: Arc<dyn Reload>, after_reload: Arc<dyn Fn() + Send + Sync>) -> Self {
        // One queued notice is enough, because it contains no details.
        let (notice, changes) = mpsc::channel(1);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| !event.kind.is_access()) {
                let _ = notice.try_send(());
            }
        });
        let failed = |error: &notify::Error| {
            tracing::warn!(what = part.what(), %error, "files cannot be watched; SIGHUP still reloads them");
        };
        let watcher = watcher.inspect_err(failed).ok().map(|watcher| Arc::new(Mutex::new(watcher)));
        // Before the folders are watched, so that changes in between are detected later.
        let read = Fingerprints::of(&*part);
        let mut reader = Reader { part, watcher, watched_folders: Vec::new(), read };
        reader.watch_new();
        Self { what: reader.part.what(), changes, reader: Arc::new(Mutex::new(reader)), after_reload }
    }

    /// Reloads the files as long as the node runs, on changes and on each of `hangups`.
    pub(crate) async fn run(self, mut hangups: watch::Receiver<()>) {
        let Self { what, mut changes, reader, after_reload } = self;
        let mut last: Option<Failure> = None;
        loop {
            let is_stuck = last.as_ref().is_some_and(|failure| failure.stuck);
            let cause = tokio::select! {
                Some(()) = changes.recv() => {
                    tokio::time::sleep(SETTLE_TIME).await;
                    Cause::Change
                }
                Ok(()) = hangups.changed() => Cause::Hangup,
                () = tokio::time::sleep(RETRY_INTERVAL), if is_stuck => Cause::Retry,
                else => return,
            };
            while changes.try_recv().is_ok() {}
            match check_files(Arc::clone(&reader), cause != Cause::Change).await {
                Ok(None) => {}
                Ok(Some(Ok(()))) => {
                    last = None;
                    tracing::info!(what, "reloaded");
                    after_reload();
                }
                // The same failure of repeated attempts is logged once.
                Ok(Some(Err(failure))) if cause == Cause::Retry && last.as_ref() == Some(&failure) => {}
                Ok(Some(Err(failure))) => {
                    tracing::error!(what, errors = failure.text, "not reloaded; the old contents stay in force");
                    last = Some(failure);
                }
                Err(error) => tracing::error!(what, error, "not reloaded; the old contents stay in force"),
            }
        }
    }
}

/// Why files are read again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// Something changed in their folders.
    Change,
    /// An operator requested it.
    Hangup,
    /// In the last attempt a file system did not respond.
    Retry,
}

/// Runs the reader on its own thread, which delays neither the runtime nor the exit of the process.
async fn check_files(reader: Arc<Mutex<Reader>>, is_forced: bool) -> Result<Option<Result<(), Failure>>, String> {
    let (sender, receiver) = oneshot::channel();
    let work = move || drop(sender.send(reader.lock().check_files(is_forced)));
    thread::Builder::new().name("reload".to_owned()).spawn(work).map_err(|error| error.to_string())?;
    receiver.await.map_err(|_| "the thread that read it ended early".to_owned())
}

impl Reader {
    /// Reads the files again if they changed, or if an operator requested it.
    fn check_files(&mut self, is_forced: bool) -> Option<Result<(), Failure>> {
        // The hashes are computed before the files are read, so that changes in between are detected the next time.
        let now = Fingerprints::of(&*self.part);
        let outcome = (is_forced || now != self.read).then(|| self.part.reload());
        self.read = now;
        self.watch_new();
        outcome
    }

    /// Watches new folders, which files may refer to.
    fn watch_new(&mut self) {
        let Some(watcher) = &self.watcher else { return };
        for folder in self.part.folders() {
            if self.watched_folders.contains(&folder) {
                continue;
            }
            let watcher = Arc::clone(watcher);
            let added = files::with_timeout(&folder, move |folder| {
                let failed =
                    |error: notify::Error| FileError::Unreadable(std::io::Error::other(format!("{:?}", error.kind)));
                watcher.lock().watch(folder, RecursiveMode::NonRecursive).map_err(failed)
            });
            match added {
                // The reload reports the error, and is repeated.
                Err(FileError::NoResponse) => continue,
                Err(error) => {
                    let folder = shown_path(&folder);
                    tracing::warn!(what = self.part.what(), %error, folder, "folder cannot be watched; SIGHUP still reloads");
                }
                Ok(()) => {}
            }
            self.watched_folders.push(folder);
        }
    }
}
