//! Hot reload of files, when they change and on SIGHUP.

use std::{path::PathBuf, sync::Arc, thread, time::Duration};

use arc_swap::{ArcSwap, Guard};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot, watch};
use tollgate_policy::redaction::shown_path;

use crate::files::{self, Failure, FileError, MAX_FILE_BYTES};

/// Editors and volume mounts change a file in several steps; the last one counts.
const SETTLE: Duration = Duration::from_millis(200);
/// The interval of attempts while a reload is stuck: no event says when the file system answers again.
const RETRY: Duration = Duration::from_secs(10);

/// A part of a node that is read from files, and can be reloaded.
pub(crate) trait Reload: Send + Sync + 'static {
    /// Its name in the log.
    fn what(&self) -> &'static str;

    /// The folders to watch for changes.
    fn folders(&self) -> Vec<PathBuf>;

    /// The files that would be read now.
    fn files(&self) -> Vec<PathBuf>;

    /// Reads the files again. If there are mistakes, returns all of them and changes nothing. Takes a bounded time,
    /// even if a file system does not answer.
    fn reload(&self) -> Result<(), Failure>;

    /// The mistakes found at the last reload, if there were any.
    fn last_failure(&self) -> Option<Failure>;
}

/// The mistakes found in files at the last reload, if there were any.
#[derive(Default)]
pub(crate) struct LastFailure(Mutex<Option<Failure>>);

impl LastFailure {
    /// Records the result of a reload. Called once its contents are in force, so that a client that sees no failure may
    /// rely on them.
    pub(crate) fn record(&self, failure: Option<Failure>) {
        *self.0.lock() = failure;
    }

    pub(crate) fn get(&self) -> Option<Failure> {
        self.0.lock().clone()
    }
}

/// The contents of files when they were last valid.
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

/// Something whose files are watched.
///
/// The folders are watched instead of the files, because a mounted configuration is replaced by renaming a link in its
/// folder. Changes of other files there are ignored: otherwise a log in the same folder, which gets a line for each
/// reload, would cause endless reloads.
pub(crate) struct FileWatcher {
    what: &'static str,
    changes: mpsc::Receiver<()>,
    reader: Arc<Mutex<Reader>>,
    after: Arc<dyn Fn() + Send + Sync>,
}

/// Reads the files. It waits for file systems, so it does not run on the threads of the runtime.
struct Reader {
    part: Arc<dyn Reload>,
    watcher: Option<Arc<Mutex<RecommendedWatcher>>>,
    watched: Vec<PathBuf>,
    /// As of when they were last read.
    read: Fingerprints,
}

impl FileWatcher {
    /// Changes from now on are seen, whenever [`FileWatcher::run`] gets to them. `after` is called after each reload
    /// that succeeded.
    pub(crate) fn new(part: Arc<dyn Reload>, after: Arc<dyn Fn() + Send + Sync>) -> Self {
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
        let watcher = watcher.inspect_err(failed).ok().map(|watcher| Arc::new(Mutex::new(watcher)));
        // Before the folders are watched: changes in between are detected at the next notice.
        let read = Fingerprints::of(&*part);
        let mut reader = Reader { part, watcher, watched: Vec::new(), read };
        reader.watch_new();
        Self { what: reader.part.what(), changes, reader: Arc::new(Mutex::new(reader)), after }
    }

    /// Reloads it for as long as the node lives, on changes and on each of `hangups`.
    pub(crate) async fn run(self, mut hangups: watch::Receiver<()>) {
        let Self { what, mut changes, reader, after } = self;
        let mut last: Option<Failure> = None;
        loop {
            let cause = tokio::select! {
                Some(()) = changes.recv() => {
                    tokio::time::sleep(SETTLE).await;
                    Cause::Change
                }
                Ok(()) = hangups.changed() => Cause::Hangup,
                () = tokio::time::sleep(RETRY), if last.as_ref().is_some_and(|failure| failure.stuck) => Cause::Retry,
                else => return,
            };
            while changes.try_recv().is_ok() {}
            match look(Arc::clone(&reader), cause != Cause::Change).await {
                Ok(None) => {}
                Ok(Some(Ok(()))) => {
                    last = None;
                    tracing::info!(what, "reloaded");
                    after();
                }
                // Said once, not each time it is tried again.
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
    /// The last time a file system did not answer.
    Retry,
}

/// Lets the reader look, on a thread of its own, for which neither the runtime nor the end of the process waits.
async fn look(reader: Arc<Mutex<Reader>>, asked: bool) -> Result<Option<Result<(), Failure>>, String> {
    let (done, finished) = oneshot::channel();
    let work = move || drop(done.send(reader.lock().look(asked)));
    thread::Builder::new().name("reload".to_owned()).spawn(work).map_err(|error| error.to_string())?;
    finished.await.map_err(|_| "the thread that read it ended early".to_owned())
}

impl Reader {
    /// Reads the files again if they changed, or if an operator requested it.
    fn look(&mut self, asked: bool) -> Option<Result<(), Failure>> {
        // The hashes are computed before the files are read: changes in between are detected the next time.
        let now = Fingerprints::of(&*self.part);
        let outcome = (asked || now != self.read).then(|| self.part.reload());
        self.read = now;
        self.watch_new();
        outcome
    }

    /// Watches the folders that are not watched yet: a file may have come to name others.
    fn watch_new(&mut self) {
        let Some(watcher) = &self.watcher else { return };
        for folder in self.part.folders() {
            if self.watched.contains(&folder) {
                continue;
            }
            let watcher = Arc::clone(watcher);
            let added = files::in_time(&folder, move |folder| {
                let failed =
                    |error: notify::Error| FileError::Unreadable(std::io::Error::other(format!("{:?}", error.kind)));
                watcher.lock().watch(folder, RecursiveMode::NonRecursive).map_err(failed)
            });
            match added {
                // Tried again with the reload, which reports it.
                Err(FileError::NoAnswer) => continue,
                Err(error) => {
                    let folder = shown_path(&folder);
                    tracing::warn!(what = self.part.what(), %error, folder, "folder cannot be watched; SIGHUP still reloads");
                }
                Ok(()) => {}
            }
            self.watched.push(folder);
        }
    }
}
