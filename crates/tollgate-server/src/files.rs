//! Access to the node's files: settings, policies, tokens, passwords, certificates.
//!
//! Every wait and every size is bounded. Only regular files are read, because opening a FIFO or a device may block. If
//! a file system does not respond, such as that of a failed server, only the thread of the request is blocked: the
//! caller gets an error after a timeout, and no second thread is started for the same path.

use std::{
    collections::HashMap,
    fs::{File, Metadata, OpenOptions},
    io::{self, Read},
    os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{LazyLock, mpsc},
    thread,
    time::Duration,
};

use parking_lot::Mutex;

/// The maximum size of a file, in bytes.
pub(crate) const MAX_FILE_BYTES: u64 = 1 << 20;
/// The timeout of a request to a file system.
const TIMEOUT: Duration = Duration::from_secs(3);
/// The timeout in a folder with a stalled request.
const SHORT_TIMEOUT: Duration = Duration::from_millis(100);
/// The maximum number of stalled requests; each blocks a thread.
const MAX_STALLED: usize = 64;

/// The requests in progress.
static REQUESTS: LazyLock<Mutex<Requests>> = LazyLock::new(Mutex::default);

/// The error of reading a file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// The operating system reports an error.
    #[error("cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    /// It is not a regular file.
    #[error("is {0}, and must be a regular file")]
    NotAFile(&'static str),
    /// It is longer than the caller allows.
    #[error("is too large; it may have at most {0} bytes")]
    TooLarge(u64),
    /// It is not text.
    #[error("cannot be read: it is not text in UTF-8")]
    NotText,
    /// The file system does not respond.
    #[error("cannot be read: the file system does not answer")]
    NoResponse,
}

/// Why files were not loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// All errors, one per line.
    pub(crate) text: String,
    /// Whether a file system did not respond, so that the contents of the files are unknown.
    pub(crate) stuck: bool,
}

impl Failure {
    /// The failure to read a file; `place` is its name in the message.
    pub(crate) fn of(place: impl std::fmt::Display, error: &FileError) -> Self {
        Self { text: format!("{place}: {error}"), stuck: matches!(error, FileError::NoResponse) }
    }

    /// The consequence for the contents that were read before.
    pub(crate) fn state(&self) -> ReloadState {
        if self.stuck { ReloadState::Stuck } else { ReloadState::NotReloaded }
    }

    /// Joins failures.
    pub(crate) fn join(failures: impl IntoIterator<Item = Self>) -> Self {
        let (texts, stuck): (Vec<String>, Vec<bool>) =
            failures.into_iter().map(|failure| (failure.text, failure.stuck)).unzip();
        Self { text: texts.join("\n"), stuck: stuck.contains(&true) }
    }
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self { text, stuck: false }
    }
}

/// The state of the loaded contents after a failed reload; the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ReloadState {
    /// The files have errors, and the previous contents are in force.
    NotReloaded,
    /// A file system does not respond, and the previous contents are in force.
    Stuck,
}

impl ReloadState {
    /// Its name in responses.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::NotReloaded => "not reloaded",
            Self::Stuck => "stuck",
        }
    }
}

/// The contents of a file.
pub(crate) struct Contents {
    /// Its bytes.
    pub(crate) bytes: Vec<u8>,
    /// Whether every user of the machine may read it.
    pub(crate) open_to_all: bool,
}

impl Contents {
    /// Its text.
    pub(crate) fn text(self) -> Result<String, FileError> {
        String::from_utf8(self.bytes).map_err(|_| FileError::NotText)
    }
}

/// The contents of the file at `path`, if it has at most this many bytes.
pub(crate) fn read(path: &Path, max_bytes: u64) -> Result<Contents, FileError> {
    with_timeout(path, move |path| {
        // Before opening, because opening may change the state of a device.
        check_regular(&std::fs::metadata(path)?)?;
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
        let metadata = file.metadata()?;
        check_regular(&metadata)?;
        let mut bytes = Vec::new();
        // One byte more than allowed, to detect longer files.
        File::take(file, max_bytes.saturating_add(1)).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > max_bytes {
            return Err(FileError::TooLarge(max_bytes));
        }
        Ok(Contents { bytes, open_to_all: metadata.permissions().mode() & 0o004 != 0 })
    })
}

/// The text of the file at `path`, if it has at most this many bytes.
pub(crate) fn read_text(path: &Path, max_bytes: u64) -> Result<String, FileError> {
    read(path, max_bytes)?.text()
}

/// Whether there is a folder at `path`.
pub(crate) fn is_folder(path: &Path) -> Result<bool, FileError> {
    with_timeout(path, |path| Ok(path.is_dir()))
}

/// The entries of a folder.
pub(crate) fn list(folder: &Path) -> Result<Vec<PathBuf>, FileError> {
    with_timeout(folder, |folder| {
        let entries = std::fs::read_dir(folder)?;
        Ok(entries.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?)
    })
}

/// The folder of a file.
pub(crate) fn folder_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if parent != Path::new("") => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

fn check_regular(metadata: &Metadata) -> Result<(), FileError> {
    let kind = metadata.file_type();
    let other = match kind {
        _ if kind.is_file() => return Ok(()),
        _ if kind.is_dir() => "a folder",
        _ if kind.is_fifo() => "a FIFO",
        _ if kind.is_socket() => "a socket",
        _ => "a device",
    };
    Err(FileError::NotAFile(other))
}

/// Runs `request` for `path` on its own thread. After the timeout the thread continues, and its result is ignored.
pub(crate) fn with_timeout<T: Send + 'static>(
    path: &Path,
    request: impl FnOnce(&Path) -> Result<T, FileError> + Send + 'static,
) -> Result<T, FileError> {
    let (number, timeout) = REQUESTS.lock().begin(path).ok_or(FileError::NoResponse)?;
    let pending = Request(number);
    let (sender, receiver) = mpsc::sync_channel(1);
    let path = path.to_owned();
    thread::Builder::new().name("file".to_owned()).spawn(move || {
        let pending = pending;
        let result = request(&path);
        drop(pending);
        let _ = sender.send(result);
    })?;
    match receiver.recv_timeout(timeout) {
        Ok(result) => result,
        Err(_) if REQUESTS.lock().stall(number) => Err(FileError::NoResponse),
        // It ended at the last moment.
        Err(_) => receiver.recv().unwrap_or(Err(FileError::NoResponse)),
    }
}

/// A request that is in progress until this is dropped.
struct Request(u64);

impl Drop for Request {
    fn drop(&mut self) {
        REQUESTS.lock().pending.remove(&self.0);
    }
}

#[derive(Default)]
struct Requests {
    last: u64,
    pending: HashMap<u64, PendingRequest>,
}

struct PendingRequest {
    path: PathBuf,
    stalled: bool,
}

impl Requests {
    /// Begins a request; returns its number and timeout. `None` if a request for the path is stalled, or too many are.
    fn begin(&mut self, path: &Path) -> Option<(u64, Duration)> {
        let mut stalled = self.pending.values().filter(|request| request.stalled);
        let folder = folder_of(path);
        let stalled_in_folder = stalled.clone().any(|request| folder_of(&request.path) == folder);
        if stalled.clone().count() >= MAX_STALLED || stalled.any(|request| request.path == path) {
            return None;
        }
        self.last += 1;
        self.pending.insert(self.last, PendingRequest { path: path.to_owned(), stalled: false });
        Some((self.last, if stalled_in_folder { SHORT_TIMEOUT } else { TIMEOUT }))
    }

    /// Marks a request as stalled; returns whether it is still in progress.
    fn stall(&mut self, number: u64) -> bool {
        self.pending.get_mut(&number).map(|request| request.stalled = true).is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn create_fifo(path: &Path) {
        let status = std::process::Command::new("mkfifo").arg(path).status().unwrap();
        assert!(status.success());
    }

    /// Fails without the check of the file type: then the FIFO is read as an empty file.
    #[test]
    fn only_regular_files_of_a_bounded_size_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("file"), "text").unwrap();
        std::os::unix::fs::symlink("file", path("link")).unwrap();
        create_fifo(&path("fifo"));
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        let read = |path: &Path, max_bytes| read_text(path, max_bytes).map_err(|error| error.to_string());
        for name in ["file", "link"] {
            assert_eq!(read(&path(name), 4).unwrap(), "text");
        }
        for (path, expected) in [
            (path("fifo"), "is a FIFO, and must be a regular file"),
            (path("socket"), "is a socket, and must be a regular file"),
            (path(""), "is a folder, and must be a regular file"),
            (PathBuf::from("/dev/zero"), "is a device, and must be a regular file"),
            (path("none"), "cannot be read: No such file or directory (os error 2)"),
        ] {
            assert_eq!(read(&path, 4).unwrap_err(), expected);
        }
        assert_eq!(read(&path("file"), 3).unwrap_err(), "is too large; it may have at most 3 bytes");
        std::fs::write(path("file"), [0xff]).unwrap();
        assert_eq!(read(&path("file"), 4).unwrap_err(), "cannot be read: it is not text in UTF-8");
    }

    /// Fails with an unbounded wait, and without the check for stalled requests.
    #[test]
    fn a_file_system_that_does_not_respond_blocks_no_caller() {
        let (mount, unmounted) = mpsc::channel::<()>();
        let (path, other_path) = (Path::new("/a-mount-that-hangs/file"), Path::new("/a-mount-that-hangs/other"));
        let request = move |_: &Path| {
            let _ = unmounted.recv();
            Ok(())
        };
        let started = Instant::now();
        assert!(matches!(with_timeout(path, request), Err(FileError::NoResponse)));
        assert!(started.elapsed() >= TIMEOUT);
        // No second thread is started for it.
        assert!(matches!(with_timeout(path, |_| Ok(())), Err(FileError::NoResponse)));
        // Other files of the folder have a short timeout.
        let (number, timeout) = REQUESTS.lock().begin(other_path).unwrap();
        assert_eq!(timeout, SHORT_TIMEOUT);
        drop(Request(number));
        assert!(with_timeout(Path::new("/elsewhere"), |_| Ok(())).is_ok());
        drop(mount);
        let bound = Instant::now() + Duration::from_secs(30);
        while with_timeout(path, |_| Ok(())).is_err() {
            assert!(Instant::now() < bound, "it responds again");
            thread::yield_now();
        }
    }

    /// Fails without the bound.
    #[test]
    fn the_number_of_stalled_requests_is_bounded() {
        let mut requests = Requests::default();
        for number in 0..MAX_STALLED {
            let (request, _) = requests.begin(Path::new(&format!("/{number}/file"))).unwrap();
            assert!(requests.stall(request));
        }
        assert!(requests.begin(Path::new("/another/file")).is_none());
        requests.pending.remove(&1);
        assert!(requests.begin(Path::new("/another/file")).is_some());
    }
}
