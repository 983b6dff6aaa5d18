//! The only room that writes to the file system. A file appears under its name whole or not at all: it is written
//! under a temporary name in the same directory, synced, renamed, and the directory is synced. Temporary names are
//! recognisable, so that what a killed process left behind can be removed. One process owns an output directory: see
//! [`lock`].

use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, Hasher};
use std::io::{self, BufWriter, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::error::{Code, Error, Result};

/// The name of the lock inside an output directory.
pub(crate) const LOCK_NAME: &str = ".rlhf.lock";
/// How every temporary name ends.
const TEMPORARY_END: &str = ".rlhf-tmp";
/// Bytes gathered before a write call: large enough that the number of calls does not matter.
const BUFFER_BYTES: usize = 1 << 20;
/// A lock record is a line; whatever is longer is not ours.
const LOCK_BYTES_MAX: u64 = 4096;

/// What to do with an output directory that already holds files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    /// Refuse, so that no run overwrites another one.
    Refuse,
    /// Go on in it: the user asked to resume or to overwrite.
    Reuse,
}

/// Creates the output directory and its parents (0755 less the umask).
///
/// # Errors
/// `output-exists` (usage) when it holds files and `existing` is [`Existing::Refuse`]; a lock or temporary files alone
/// do not count. `output-not-directory` (usage) when the path is a file. Input and output errors otherwise.
pub(crate) fn create_output_dir(path: &Path, existing: Existing) -> Result<()> {
    match fs::metadata(path) {
        Ok(metadata) if !metadata.is_dir() => {
            return Err(Error::usage("output-not-directory", "the output path is a file, not a directory")
                .at(path.display().to_string())
                .fix("choose another output directory"));
        }
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {
            fs::create_dir_all(path).map_err(|e| Error::io("creating the output directory", path, &e))?;
            return sync_dir(parent(path));
        }
        Err(error) => return Err(Error::io("looking at the output directory", path, &error)),
    }
    if existing == Existing::Refuse && holds_files(path)? {
        return Err(Error::usage("output-exists", "the output directory is not empty")
            .at(path.display().to_string())
            .because("another run's files would be overwritten")
            .fix("choose another --output-dir, or move the old one away"));
    }
    Ok(())
}

/// True if the directory holds anything but a lock and temporary files.
fn holds_files(dir: &Path) -> Result<bool> {
    Ok(entries(dir)?.iter().any(|name| name != LOCK_NAME && !is_temporary(name)))
}

/// The names in a directory, sorted; a name that is not UTF-8 is shown with replacement characters.
fn entries(dir: &Path) -> Result<Vec<String>> {
    let list = || -> io::Result<Vec<String>> {
        fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    };
    let mut names = list().map_err(|e| Error::io("listing the directory", dir, &e))?;
    names.sort();
    Ok(names)
}

/// Removes the temporary files and directories that a killed process left in `dir`; returns how many there were.
/// Call it only while holding the directory's [`lock`].
///
/// # Errors
/// Input and output errors.
pub(crate) fn remove_leftovers(dir: &Path) -> Result<usize> {
    let leftovers: Vec<_> = entries(dir)?.into_iter().filter(|name| is_temporary(name)).collect();
    for name in &leftovers {
        let path = dir.join(name);
        let is_dir = fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir());
        let removed = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(|e| Error::io("removing a leftover", &path, &e))?;
    }
    Ok(leftovers.len())
}

/// Writes a whole file: it has these bytes under its name, or the name is as it was before.
///
/// # Errors
/// Input and output errors, among them a full disk.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    write_file_with(path, |writer| writer.write(bytes))
}

/// [`write_file`] for a file too large to hold: `fill` writes it piece by piece. If `fill` fails, nothing is left.
///
/// # Errors
/// Those of `fill`, and input and output errors.
pub(crate) fn write_file_with(path: &Path, fill: impl FnOnce(&mut FileWriter) -> Result<()>) -> Result<()> {
    let mut temporary = Temporary::create(path)?;
    fill(&mut temporary.writer)?;
    temporary.publish(path)
}

/// Copies a file byte for byte, with the same promise as [`write_file`].
///
/// # Errors
/// Input and output errors of either side.
pub(crate) fn copy_file(from: &Path, to: &Path) -> Result<()> {
    let reading = |e: &io::Error| Error::io("reading a file to copy", from, e);
    let mut source = File::open(from).map_err(|e| reading(&e))?;
    let mut piece = vec![0; BUFFER_BYTES];
    write_file_with(to, |writer| {
        loop {
            match source.read(&mut piece) {
                Ok(0) => return Ok(()),
                Ok(n) => writer.write(piece.get(..n).unwrap_or_default())?,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(reading(&error)),
            }
        }
    })
}

/// Removes a file; a file that is not there is no error.
///
/// # Errors
/// Input and output errors.
pub(crate) fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("removing a file", path, &error)),
        _ => Ok(()),
    }
}

/// Creates an empty directory with a temporary name beside `path`, to be filled and given to [`publish_dir`].
///
/// # Errors
/// Input and output errors.
pub(crate) fn temporary_dir(path: &Path) -> Result<PathBuf> {
    let (temporary, ()) = with_temporary_name(path, |temporary| fs::create_dir(temporary))?;
    Ok(temporary)
}

/// Gives a filled temporary directory its name, durably.
///
/// # Errors
/// `output-exists` (failure) when the name is taken; input and output errors.
pub(crate) fn publish_dir(temporary: &Path, path: &Path) -> Result<()> {
    if fs::symlink_metadata(path).is_ok() {
        return Err(Error::failure("output-exists", "a directory that was about to be written exists already")
            .at(path.display().to_string()));
    }
    sync_dir(temporary)?;
    fs::rename(temporary, path).map_err(|e| Error::io("naming a directory", path, &e))?;
    sync_dir(parent(path))
}

/// Makes the names inside a directory durable.
fn sync_dir(path: &Path) -> Result<()> {
    // Elsewhere a directory cannot be opened as a file, and renames are durable without it.
    if cfg!(unix) {
        let synced = File::open(path).and_then(|dir| dir.sync_all());
        synced.map_err(|e| Error::io("syncing a directory", path, &e))?;
    }
    Ok(())
}

/// The directory of a path; that of a bare name is the current one.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// True for the names that [`temporary_name`] makes.
fn is_temporary(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(TEMPORARY_END)
}

/// A hidden, unpredictable name beside `path`.
fn temporary_name(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // The standard library keys its hasher from the operating system: enough against a guessed name, and no dependency.
    let random = std::hash::RandomState::new().build_hasher().finish();
    parent(path).join(format!(".{name}.{random:016x}{TEMPORARY_END}"))
}

/// Calls `make` with temporary names until one is free.
fn with_temporary_name<T>(path: &Path, make: impl Fn(&Path) -> io::Result<T>) -> Result<(PathBuf, T)> {
    let mut tries = 0;
    loop {
        let temporary = temporary_name(path);
        match make(&temporary) {
            Ok(made) => return Ok((temporary, made)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists && tries < 16 => tries += 1,
            Err(error) => return Err(Error::io("making a temporary name", path, &error)),
        }
    }
}

/// Options that create a file that must not exist (so no link is followed), readable by all, writable by its owner.
fn exclusive() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o644);
    options
}

/// What [`write_file_with`] hands out: a buffered writer whose errors name the file.
#[derive(Debug)]
pub(crate) struct FileWriter {
    file: BufWriter<File>,
    path: PathBuf,
}

impl FileWriter {
    /// Writes all the bytes.
    ///
    /// # Errors
    /// Input and output errors, among them a full disk.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io("writing a file", &self.path, &e))
    }
}

/// A file under its temporary name; dropped before [`Temporary::publish`], it is gone.
struct Temporary {
    writer: FileWriter,
    path: PathBuf,
    published: bool,
}

impl Temporary {
    /// Opens a temporary file beside `target`.
    fn create(target: &Path) -> Result<Self> {
        let (path, file) = with_temporary_name(target, |temporary| exclusive().open(temporary))?;
        let writer = FileWriter { file: BufWriter::with_capacity(BUFFER_BYTES, file), path: target.to_path_buf() };
        Ok(Self { writer, path, published: false })
    }

    /// Makes the file durable under its own name.
    fn publish(mut self, target: &Path) -> Result<()> {
        let durable = self.writer.file.flush().and_then(|()| self.writer.file.get_ref().sync_all());
        durable.map_err(|e| Error::io("writing a file", target, &e))?;
        fs::rename(&self.path, target).map_err(|e| Error::io("naming a file", target, &e))?;
        self.published = true;
        sync_dir(parent(target))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.published {
            // The error on its way already says what went wrong; a leftover is removed by the next run.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A file that grows line by line, such as `metrics.jsonl`. Every line is handed to the operating system at once.
#[derive(Debug)]
pub(crate) struct Appender {
    file: File,
    path: PathBuf,
    bytes: u64,
}

impl Appender {
    /// Starts an empty file, in place of one that is there.
    ///
    /// # Errors
    /// `output-symlink` when the name is a symbolic link; input and output errors.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        Self::resume(path, 0)
    }

    /// Opens the file and cuts it back to its first `bytes` bytes: the length that a checkpoint recorded.
    ///
    /// # Errors
    /// `output-shorter` when the file has fewer bytes, `output-symlink` when the name is a symbolic link; input and
    /// output errors.
    pub(crate) fn resume(path: &Path, bytes: u64) -> Result<Self> {
        let failed = |e: io::Error| Error::io("opening a file to append to", path, &e);
        refuse_link(path)?;
        let mut file = match exclusive().open(path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => OpenOptions::new().write(true).open(path),
            opened => opened,
        }
        .map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        if length < bytes {
            return Err(Error::input("output-shorter", "a file of the run to resume has lost lines")
                .at(path.display().to_string())
                .because(format!("it has {length} bytes, and {bytes} when the checkpoint was made"))
                .fix("resume from an earlier checkpoint, or start anew in another directory"));
        }
        file.set_len(bytes).map_err(failed)?;
        file.seek(SeekFrom::Start(bytes)).map_err(failed)?;
        Ok(Self { file, path: path.to_path_buf(), bytes })
    }

    /// Appends `line` and a line feed; after an error the file ends with the line before.
    ///
    /// # Errors
    /// `line-break` (failure) when the text is more than one line; input and output errors, among them a full disk.
    pub(crate) fn append_line(&mut self, line: &str) -> Result<()> {
        if line.contains('\n') {
            return Err(
                Error::failure("line-break", "a line to append holds a line feed").at(self.path.display().to_string())
            );
        }
        let text = format!("{line}\n");
        if let Err(error) = self.file.write_all(text.as_bytes()) {
            // Half a line would make the file unreadable; if even this fails, resume cuts it.
            let _ = self.file.set_len(self.bytes).and_then(|()| self.file.seek(SeekFrom::Start(self.bytes)));
            return Err(Error::io("appending a line", &self.path, &error));
        }
        self.bytes += text.len() as u64;
        Ok(())
    }

    /// Makes all lines durable.
    ///
    /// # Errors
    /// Input and output errors.
    pub(crate) fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|e| Error::io("syncing a file", &self.path, &e))
    }
}

/// Refuses to write through a symbolic link, which could lead out of the output directory.
fn refuse_link(path: &Path) -> Result<()> {
    if fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink()) {
        return Err(Error::input("output-symlink", "a file to write is a symbolic link")
            .at(path.display().to_string())
            .because("it may lead out of the output directory")
            .fix("remove the link"));
    }
    Ok(())
}

/// The right to write into an output directory; dropped, the directory is free.
#[derive(Debug)]
pub(crate) struct DirLock {
    /// Held for its operating-system lock, which dies with the process however that ends.
    file: File,
    path: PathBuf,
    stale: Option<String>,
}

impl DirLock {
    /// The dead owner whose lock was taken over, if there was one: a sentence for the log.
    pub(crate) fn stale(&self) -> Option<&str> {
        self.stale.as_deref()
    }
}

impl Drop for DirLock {
    fn drop(&mut self) {
        // Removed before the file is closed: see `lock` for those who opened it in between. If a user deleted it by
        // hand, the name may be another owner's by now.
        if is_file_at(&self.file, &self.path) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Takes the output directory for this process. The operating system's file lock decides, because it ends with its
/// owner; on a file system without such locks, the process id in the lock file does, and a dead owner's is taken over.
///
/// # Errors
/// `output-locked` (exit code 7) naming the owner; `output-symlink`; input and output errors.
pub(crate) fn lock(dir: &Path) -> Result<DirLock> {
    let path = dir.join(LOCK_NAME);
    let failed = |e: io::Error| Error::io("locking the output directory", &path, &e);
    loop {
        refuse_link(&path)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o644);
        let mut file = options.open(&path).map_err(failed)?;
        let locked = file.try_lock();
        let owner = Owner::read(&mut file);
        match locked {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(locked_error(dir, owner.as_ref())),
            Err(fs::TryLockError::Error(_)) if owner.as_ref().is_some_and(Owner::may_live) => {
                return Err(locked_error(dir, owner.as_ref()));
            }
            Err(fs::TryLockError::Error(_)) => {}
        }
        // The owner before may have removed the file between our open and our lock; then this lock guards nothing.
        if !is_file_at(&file, &path) {
            continue;
        }
        let written = file
            .set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .and_then(|_| file.write_all(Owner::this_process().to_json().to_string().as_bytes()))
            .and_then(|()| file.sync_all());
        written.map_err(failed)?;
        let stale =
            owner.map(|owner| format!("took over the output directory from {}, which has ended", owner.describe()));
        return Ok(DirLock { file, path, stale });
    }
}

/// The error that names the owner.
fn locked_error(dir: &Path, owner: Option<&Owner>) -> Error {
    let who = owner.map_or_else(|| "another process".to_owned(), Owner::describe);
    Error::new(Code::Locked, "output-locked", "another process writes to this output directory")
        .at(dir.display().to_string())
        .because(format!("{who} owns it"))
        .fix(format!("wait for it, stop it, or choose another directory; if it is gone, delete {LOCK_NAME} there"))
}

/// True if `path` still names the open `file`.
#[cfg(unix)]
fn is_file_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let (Ok(open), Ok(named)) = (file.metadata(), fs::metadata(path)) else { return false };
    (open.dev(), open.ino()) == (named.dev(), named.ino())
}

/// Elsewhere an open file cannot be removed, so the name cannot have moved on.
#[cfg(not(unix))]
fn is_file_at(_file: &File, _path: &Path) -> bool {
    true
}

/// Who holds a lock: process id, host, and start as Unix seconds and as the kernel's ticks since boot. The ticks tell
/// a process from a later one that was given the same id.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Owner {
    pid: u64,
    host: String,
    started: u64,
    ticks: u64,
}

impl Owner {
    /// The record of this process.
    fn this_process() -> Self {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let pid = u64::from(std::process::id());
        Self { pid, host: host(), started, ticks: start_ticks(pid).unwrap_or_default() }
    }

    /// The record in a lock file; none if it is empty or not ours.
    fn read(file: &mut File) -> Option<Self> {
        let mut text = String::new();
        file.take(LOCK_BYTES_MAX).read_to_string(&mut text).ok()?;
        let value: Value = serde_json::from_str(&text).ok()?;
        let number = |key: &str| value.get(key).and_then(Value::as_u64);
        let host = value.get("host").and_then(Value::as_str)?.to_owned();
        Some(Self { pid: number("pid")?, host, started: number("started")?, ticks: number("ticks")? })
    }

    fn to_json(&self) -> Value {
        json!({ "pid": self.pid, "host": self.host, "started": self.started, "ticks": self.ticks })
    }

    /// False only if the process is certainly gone: it ran on this host, and its id is free or another's.
    fn may_live(&self) -> bool {
        self.host != host() || start_ticks(self.pid).is_some_and(|ticks| ticks == self.ticks)
    }

    fn describe(&self) -> String {
        let age = SystemTime::now().duration_since(UNIX_EPOCH + Duration::from_secs(self.started.min(1 << 40)));
        let minutes = age.unwrap_or_default().as_secs() / 60;
        format!("process {} on host {:?}, started {minutes} min ago", self.pid, self.host)
    }
}

/// This machine's name; empty where the kernel does not tell.
fn host() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// When a process started, in ticks since boot; none if it is not there (or the system has no /proc).
fn start_ticks(pid: u64) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, which may itself hold spaces and parentheses.
    let (_, after_name) = text.rsplit_once(')')?;
    after_name.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        entries(dir).unwrap()
    }

    #[test]
    fn an_output_directory_is_created_once() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("a/b");
        create_output_dir(&dir, Existing::Refuse).unwrap();
        fs::write(dir.join(LOCK_NAME), "").unwrap();
        create_output_dir(&dir, Existing::Refuse).unwrap();
        fs::write(dir.join("x"), "1").unwrap();
        let error = create_output_dir(&dir, Existing::Refuse).unwrap_err();
        assert_eq!((error.id(), error.code()), ("output-exists", Code::Usage));
        create_output_dir(&dir, Existing::Reuse).unwrap();
        let error = create_output_dir(&dir.join("x"), Existing::Reuse).unwrap_err();
        assert_eq!((error.id(), error.code()), ("output-not-directory", Code::Usage));
        assert!(create_output_dir(&dir.join("x/y"), Existing::Reuse).is_err());
    }

    #[test]
    fn a_file_is_written_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        write_file(&path, b"first").unwrap();
        write_file(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        let failing = write_file_with(&path, |writer| {
            writer.write(&vec![7; 3 << 20])?;
            Err(Error::failure("test", "stop"))
        });
        assert_eq!(failing.unwrap_err().id(), "test");
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(names(dir.path()), ["a.bin"]);
        assert_eq!(write_file(&dir.path().join("no/a"), b"").unwrap_err().id(), "file-missing");
        fs::create_dir(dir.path().join("d")).unwrap();
        assert!(write_file(&dir.path().join("d"), b"").is_err());
        assert_eq!(names(dir.path()), ["a.bin", "d"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_file_is_readable_by_all_and_replaces_a_link() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (outside, path) = (dir.path().join("outside"), dir.path().join("a"));
        fs::write(&outside, "kept").unwrap();
        std::os::unix::fs::symlink(&outside, &path).unwrap();
        assert_eq!(Appender::create(&path).unwrap_err().id(), "output-symlink");
        write_file(&path, b"new").unwrap();
        assert_eq!(fs::read(&outside).unwrap(), b"kept");
        let mode = fs::symlink_metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644, "with the usual umask of 022");
    }

    #[test]
    fn a_copy_has_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|i| (i * 7) as u8).collect();
        fs::write(dir.path().join("a"), &bytes).unwrap();
        copy_file(&dir.path().join("a"), &dir.path().join("b")).unwrap();
        assert_eq!(fs::read(dir.path().join("b")).unwrap(), bytes);
        assert_eq!(copy_file(&dir.path().join("none"), &dir.path().join("c")).unwrap_err().id(), "file-missing");
        assert_eq!(names(dir.path()), ["a", "b"]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_named() {
        let error = FileWriter {
            file: BufWriter::new(File::options().write(true).open("/dev/full").unwrap()),
            path: "x".into(),
        }
        .write(&vec![0; 1 << 21])
        .unwrap_err();
        assert_eq!((error.id(), error.code()), ("disk-full", Code::Resources));
        let file = File::options().write(true).open("/dev/full").unwrap();
        let mut appender = Appender { file, path: "x".into(), bytes: 0 };
        assert_eq!(appender.append_line("a").unwrap_err().id(), "disk-full");
    }

    #[test]
    fn lines_are_appended_and_cut_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut appender = Appender::create(&path).unwrap();
        appender.append_line("{}").unwrap();
        let mark = fs::metadata(&path).unwrap().len();
        appender.append_line("[1]").unwrap();
        appender.sync().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{}\n[1]\n");
        assert_eq!(appender.append_line("a\nb").unwrap_err().id(), "line-break");
        let mut appender = Appender::resume(&path, mark).unwrap();
        appender.append_line("[2]").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{}\n[2]\n");
        assert_eq!(Appender::resume(&path, 99).unwrap_err().id(), "output-shorter");
        Appender::create(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
    }

    #[test]
    fn directories_appear_whole_and_leftovers_go() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("step-1");
        let temporary = temporary_dir(&path).unwrap();
        write_file(&temporary.join("w"), b"1").unwrap();
        publish_dir(&temporary, &path).unwrap();
        assert_eq!(names(root.path()), ["step-1"]);
        let left = temporary_dir(&path).unwrap();
        fs::write(left.join("half"), "").unwrap();
        fs::write(temporary_name(&path), "").unwrap();
        assert_eq!(publish_dir(&left, &path).unwrap_err().id(), "output-exists");
        assert_eq!(remove_leftovers(root.path()).unwrap(), 2);
        assert_eq!(names(root.path()), ["step-1"]);
        fs::remove_dir_all(&path).unwrap();
        assert!(names(root.path()).is_empty());
        remove_file(&path).unwrap();
    }

    #[test]
    fn one_owner_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).unwrap();
        assert_eq!(held.stale(), None);
        let error = lock(dir.path()).unwrap_err();
        assert_eq!((error.id(), error.code()), ("output-locked", Code::Locked));
        assert!(error.to_string().contains(&format!("process {} on host", std::process::id())), "{error}");
        drop(held);
        assert!(names(dir.path()).is_empty());
        let dead = Owner { pid: u64::MAX, ticks: 1, ..Owner::this_process() };
        fs::write(dir.path().join(LOCK_NAME), dead.to_json().to_string()).unwrap();
        assert!(lock(dir.path()).unwrap().stale().is_some_and(|text| text.contains("which has ended")));
        fs::write(dir.path().join(LOCK_NAME), [0xff; 9000]).unwrap();
        lock(dir.path()).unwrap();
        assert_eq!(lock(&dir.path().join("none")).unwrap_err().id(), "file-missing");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_dead_owner_is_recognised() {
        let alive = Owner::this_process();
        assert!(alive.ticks > 0 && alive.may_live());
        assert!(Owner { host: "elsewhere".into(), pid: u64::MAX, ..alive.clone() }.may_live());
        assert!(!Owner { ticks: alive.ticks + 1, ..alive.clone() }.may_live(), "a reused process id");
        assert!(!Owner { pid: u64::MAX, ..alive }.may_live());
    }

    #[test]
    fn many_threads_one_winner() {
        let dir = tempfile::tempdir().unwrap();
        let inside = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        if let Ok(_held) = lock(dir.path()) {
                            let before = inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                            assert_eq!(before, 0);
                            inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                        }
                    }
                });
            }
        });
    }
}
