//! Files that people write and a node reads: settings, policies, tokens, passwords, certificates.
//!
//! Every wait is bounded. Only regular files are read, because opening a FIFO or a device may block, and no more bytes
//! than the caller allows. If a file system does not answer, such as that of a failed server, only the request's own
//! thread waits: the caller gets an error after a while, and a path that blocks a thread gets no second one.

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

/// The largest of these files, in bytes.
pub(crate) const MAX_FILE_BYTES: u64 = 1 << 20;
/// How long a file system may take to answer a request.
const PATIENCE: Duration = Duration::from_secs(3);
/// The time limit for a file on a file system that does not answer; healthy ones need far less.
const LITTLE_PATIENCE: Duration = Duration::from_millis(100);
/// The most requests without an answer; each holds a thread.
const MAX_STALLED: usize = 64;

/// The requests that are under way.
static REQUESTS: LazyLock<Mutex<Requests>> = LazyLock::new(Mutex::default);

/// Why a file was not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// The operating system reports an error.
    #[error("cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    /// It is something else.
    #[error("is {0}, and must be a regular file")]
    NotAFile(&'static str),
    /// It is longer than the caller allows.
    #[error("is too large; it may have at most {0} bytes")]
    TooLarge(u64),
    /// It is not text.
    #[error("cannot be read: it is not text in UTF-8")]
    NotText,
    /// The file system does not answer.
    #[error("cannot be read: the file system does not answer")]
    NoAnswer,
}

/// Why files were not taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Everything that is wrong, a line each.
    pub(crate) text: String,
    /// Whether a file system did not answer, so that the contents of the files are unknown.
    pub(crate) stuck: bool,
}

impl Failure {
    /// That a file could not be read; `place` names it.
    pub(crate) fn of(place: impl std::fmt::Display, error: &FileError) -> Self {
        Self { text: format!("{place}: {error}"), stuck: matches!(error, FileError::NoAnswer) }
    }

    /// The consequence for the contents that were read before.
    pub(crate) fn state(&self) -> ReloadState {
        if self.stuck { ReloadState::Stuck } else { ReloadState::NotReloaded }
    }

    /// All of them as one.
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

/// The relation between the contents in force and the files now; the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ReloadState {
    /// The files have mistakes, and the previous contents are in force.
    NotReloaded,
    /// A file system does not answer, and the previous contents are in force.
    Stuck,
}

impl ReloadState {
    /// Its name, the same for strangers and administrators.
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
pub(crate) fn read(path: &Path, most: u64) -> Result<Contents, FileError> {
    in_time(path, move |path| {
        // Before opening, because opening alone may change the state of a device.
        regular(&std::fs::metadata(path)?)?;
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
        let metadata = file.metadata()?;
        regular(&metadata)?;
        let mut bytes = Vec::new();
        // A byte more than allowed, so that a longer file is seen to be longer.
        File::take(file, most.saturating_add(1)).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > most {
            return Err(FileError::TooLarge(most));
        }
        Ok(Contents { bytes, open_to_all: metadata.permissions().mode() & 0o004 != 0 })
    })
}

/// The text of the file at `path`, if that has at most so many bytes.
pub(crate) fn read_text(path: &Path, most: u64) -> Result<String, FileError> {
    read(path, most)?.text()
}

/// Whether there is a folder at `path`.
pub(crate) fn is_folder(path: &Path) -> Result<bool, FileError> {
    in_time(path, |path| Ok(path.is_dir()))
}

/// The entries of a folder.
pub(crate) fn list(folder: &Path) -> Result<Vec<PathBuf>, FileError> {
    in_time(folder, |folder| {
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

fn regular(metadata: &Metadata) -> Result<(), FileError> {
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

/// The result of `ask` for `path`, unless that takes too long. Then `ask` continues on its own thread, and its result
/// is ignored.
pub(crate) fn in_time<T: Send + 'static>(
    path: &Path,
    ask: impl FnOnce(&Path) -> Result<T, FileError> + Send + 'static,
) -> Result<T, FileError> {
    let (number, patience) = REQUESTS.lock().begin(path).ok_or(FileError::NoAnswer)?;
    let request = Request(number);
    let (answer, answered) = mpsc::sync_channel(1);
    let path = path.to_owned();
    thread::Builder::new().name("file".to_owned()).spawn(move || {
        let request = request;
        let answered = ask(&path);
        drop(request);
        let _ = answer.send(answered);
    })?;
    match answered.recv_timeout(patience) {
        Ok(answer) => answer,
        Err(_) if REQUESTS.lock().stall(number) => Err(FileError::NoAnswer),
        // It ended at the last moment.
        Err(_) => answered.recv().unwrap_or(Err(FileError::NoAnswer)),
    }
}

/// A request that is under way as long as this lives.
struct Request(u64);

impl Drop for Request {
    fn drop(&mut self) {
        REQUESTS.lock().under_way.remove(&self.0);
    }
}

#[derive(Default)]
struct Requests {
    last: u64,
    under_way: HashMap<u64, PendingRequest>,
}

struct PendingRequest {
    path: PathBuf,
    stalled: bool,
}

impl Requests {
    /// A new request, and how long to wait for its answer; none about a path that does not answer anyway.
    fn begin(&mut self, path: &Path) -> Option<(u64, Duration)> {
        let mut stalled = self.under_way.values().filter(|request| request.stalled);
        let folder = folder_of(path);
        let beside = stalled.clone().any(|request| folder_of(&request.path) == folder);
        if stalled.clone().count() >= MAX_STALLED || stalled.any(|request| request.path == path) {
            return None;
        }
        self.last += 1;
        self.under_way.insert(self.last, PendingRequest { path: path.to_owned(), stalled: false });
        Some((self.last, if beside { LITTLE_PATIENCE } else { PATIENCE }))
    }

    /// Nobody waits for this request any more. Whether it is still under way.
    fn stall(&mut self, number: u64) -> bool {
        self.under_way.get_mut(&number).map(|request| request.stalled = true).is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn fifo(path: &Path) {
        let made = std::process::Command::new("mkfifo").arg(path).status().unwrap();
        assert!(made.success());
    }

    /// Seen to fail without the check of the file type: the FIFO is then read as an empty file.
    #[test]
    fn only_regular_files_of_a_bounded_size_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("file"), "text").unwrap();
        std::os::unix::fs::symlink("file", at("link")).unwrap();
        fifo(&at("fifo"));
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        let said = |path: &Path, most| read_text(path, most).map_err(|error| error.to_string());
        for name in ["file", "link"] {
            assert_eq!(said(&at(name), 4).unwrap(), "text");
        }
        for (path, expected) in [
            (at("fifo"), "is a FIFO, and must be a regular file"),
            (at("socket"), "is a socket, and must be a regular file"),
            (at(""), "is a folder, and must be a regular file"),
            (PathBuf::from("/dev/zero"), "is a device, and must be a regular file"),
            (at("none"), "cannot be read: No such file or directory (os error 2)"),
        ] {
            assert_eq!(said(&path, 4).unwrap_err(), expected);
        }
        assert_eq!(said(&at("file"), 3).unwrap_err(), "is too large; it may have at most 3 bytes");
        std::fs::write(at("file"), [0xff]).unwrap();
        assert_eq!(said(&at("file"), 4).unwrap_err(), "cannot be read: it is not text in UTF-8");
    }

    /// Seen to fail with an unbounded wait, and without the check for a path that is already stalled.
    #[test]
    fn a_file_system_that_does_not_answer_holds_nobody() {
        let (mount, gone) = mpsc::channel::<()>();
        let (path, beside) = (Path::new("/a-mount-that-hangs/file"), Path::new("/a-mount-that-hangs/other"));
        let ask = move |_: &Path| {
            let _ = gone.recv();
            Ok(())
        };
        let started = Instant::now();
        assert!(matches!(in_time(path, ask), Err(FileError::NoAnswer)));
        assert!(started.elapsed() >= PATIENCE);
        // No thread is spent on it again.
        assert!(matches!(in_time(path, |_| Ok(())), Err(FileError::NoAnswer)));
        // Other files may be readable or not.
        let (number, patience) = REQUESTS.lock().begin(beside).unwrap();
        assert_eq!(patience, LITTLE_PATIENCE);
        drop(Request(number));
        assert!(in_time(Path::new("/elsewhere"), |_| Ok(())).is_ok());
        drop(mount);
        let bound = Instant::now() + Duration::from_secs(30);
        while in_time(path, |_| Ok(())).is_err() {
            assert!(Instant::now() < bound, "it answers again");
            thread::yield_now();
        }
    }

    /// However many paths do not answer, so many threads are held and no more. (Seen to fail without the bound.)
    #[test]
    fn requests_without_an_answer_are_bounded() {
        let mut requests = Requests::default();
        for number in 0..MAX_STALLED {
            let (request, _) = requests.begin(Path::new(&format!("/{number}/file"))).unwrap();
            assert!(requests.stall(request));
        }
        assert!(requests.begin(Path::new("/another/file")).is_none());
        requests.under_way.remove(&1);
        assert!(requests.begin(Path::new("/another/file")).is_some());
    }
}
