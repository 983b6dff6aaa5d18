//! The only room that writes to the file system. A file appears under its name whole or not at all: it is written
//! under a temporary name in the same directory, synced, renamed, and the directory is synced. A directory does so as
//! a whole: it is filled under a temporary name, synced, and renamed. Temporary names are recognisable, so that what a
//! killed process left behind can be removed. One process owns an output directory: see [`lock`].

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

mod calls;
mod lock;
#[cfg(test)]
pub(crate) mod simulated;
#[cfg(test)]
mod tests;

pub(crate) use lock::{DirLock, lock};

/// The name of the lock inside an output directory.
pub(crate) const LOCK_NAME: &str = ".rlhf.lock";
/// How every temporary name ends.
const TEMPORARY_END: &str = ".rlhf-tmp";
/// Bytes gathered before a write call: large enough that the number of calls does not matter.
const BUFFER_BYTES: usize = 1 << 20;

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
        Ok(_) => sync_name(path)?,
        Err(error) if error.kind() == ErrorKind::NotFound => return create_dirs(path),
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

/// Makes the name of a directory durable: who created it may have been killed before that. A directory whose parent
/// must not be read is not ours.
fn sync_name(path: &Path) -> Result<()> {
    match calls::sync_dir(parent(path)) {
        Err(error) if error.kind() != ErrorKind::PermissionDenied => {
            Err(Error::io("syncing a directory", parent(path), &error))
        }
        _ => Ok(()),
    }
}

/// Creates a directory with its parents; each is there durably before the next is put into it.
fn create_dirs(path: &Path) -> Result<()> {
    let missing: Vec<&Path> = path.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists()).collect();
    for dir in missing.into_iter().rev() {
        match calls::create_dir(dir) {
            // Another process was quicker.
            Err(error) if error.kind() == ErrorKind::AlreadyExists && dir.is_dir() => {}
            Err(error) => return Err(Error::io("creating the output directory", path, &error)),
            Ok(()) => {}
        }
        sync_dir(parent(dir))?;
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

/// Removes the temporary files and directories that a killed process left in `dir` and in the directories inside it;
/// returns how many there were. A directory inside that has a lock of its own is another run's. Call it only while
/// holding the [`lock`] on `dir`.
///
/// # Errors
/// Input and output errors.
pub(crate) fn remove_leftovers(dir: &Path) -> Result<usize> {
    let (leftovers, others): (Vec<_>, Vec<_>) = entries(dir)?.into_iter().partition(|name| is_temporary(name));
    if !leftovers.is_empty() {
        // Who was killed may not have synced these names. What is empty must not come back under the name before.
        sync_dir(dir)?;
    }
    for name in &leftovers {
        let path = dir.join(name);
        remove_tree(&path).map_err(|e| Error::io("removing a leftover", &path, &e))?;
    }
    let mut removed = leftovers.len();
    for path in others.into_iter().map(|name| dir.join(name)) {
        let is_dir = fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir());
        if is_dir && fs::symlink_metadata(path.join(LOCK_NAME)).is_err() {
            removed += remove_leftovers(&path)?;
        }
    }
    Ok(removed)
}

/// Removes a file, or a directory with all that is in it; links are not followed. Not durable.
fn remove_tree(path: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(path)?.is_dir() {
        return calls::remove_file(path);
    }
    for entry in fs::read_dir(path)? {
        remove_tree(&entry?.path())?;
    }
    calls::remove_dir(path)
}

/// Writes a whole file: it has these bytes under its name, or the name is as it was before. Inside a
/// [`temporary_dir`] the file is written in place and synced alone: there the promise is [`publish_dir`]'s.
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
    let mut file = Unfinished::create(path)?;
    fill(&mut file.writer)?;
    file.publish()
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

/// Removes a file; a file that is not there is no error. What is written afterwards appears after the removal also
/// when the power fails: whoever takes `config.json` away before new weights must not find both. So the directory is
/// synced even if the file was gone, since whoever removed it may have been killed before that. Inside a
/// [`temporary_dir`], which nobody reads before it is published, nothing is synced.
///
/// # Errors
/// Input and output errors.
pub(crate) fn remove_file(path: &Path) -> Result<()> {
    match calls::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound && !parent(path).exists() => return Ok(()),
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(Error::io("removing a file", path, &error)),
        _ => {}
    }
    if in_temporary_dir(path) { Ok(()) } else { sync_dir(parent(path)) }
}

/// Removes a directory with all that is in it, durably; one that is not there is no error. It is gone whole or still
/// there whole: it loses its name first, and if this is interrupted, the rest is a leftover.
///
/// # Errors
/// Input and output errors.
pub(crate) fn remove_dir(path: &Path) -> Result<()> {
    if fs::symlink_metadata(path).is_err_and(|e| e.kind() == ErrorKind::NotFound) {
        return Ok(());
    }
    // What takes its place may have been named by a process that was killed before it synced the name.
    sync_dir(parent(path))?;
    let (temporary, ()) = with_temporary_name(path, |temporary| {
        // A rename would replace an empty directory that has the name.
        if fs::symlink_metadata(temporary).is_ok() {
            return Err(ErrorKind::AlreadyExists.into());
        }
        calls::rename(path, temporary)
    })?;
    sync_dir(parent(path))?;
    remove_tree(&temporary).map_err(|e| Error::io("removing a directory", path, &e))
}

/// Creates an empty directory with a temporary name beside `path`, to be filled and given to [`publish_dir`].
///
/// # Errors
/// Input and output errors.
pub(crate) fn temporary_dir(path: &Path) -> Result<PathBuf> {
    let (temporary, ()) = with_temporary_name(path, calls::create_dir)?;
    Ok(temporary)
}

/// Gives a filled temporary directory its name, durably. Its files were synced when they were written; here their
/// names are, then the directory's own.
///
/// # Errors
/// `output-exists` (failure) when the name is taken; input and output errors.
pub(crate) fn publish_dir(temporary: &Path, path: &Path) -> Result<()> {
    if fs::symlink_metadata(path).is_ok() {
        return Err(Error::failure("output-exists", "a directory that was about to be written exists already")
            .at(path.display().to_string()));
    }
    sync_dirs(temporary)?;
    calls::rename(temporary, path).map_err(|e| Error::io("naming a directory", path, &e))?;
    sync_dir(parent(path))
}

/// Makes the names in a directory durable, and those in the directories inside it.
fn sync_dirs(path: &Path) -> Result<()> {
    for name in entries(path)? {
        let inner = path.join(name);
        if fs::symlink_metadata(&inner).is_ok_and(|metadata| metadata.is_dir()) {
            sync_dirs(&inner)?;
        }
    }
    sync_dir(path)
}

/// Makes the names in a directory durable.
fn sync_dir(path: &Path) -> Result<()> {
    calls::sync_dir(path).map_err(|e| Error::io("syncing a directory", path, &e))
}

/// The directory of a path; that of a bare name is the current one.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// True for the names that [`temporary_name`] makes.
fn is_temporary(name: &str) -> bool {
    let random = name.strip_suffix(TEMPORARY_END).and_then(|name| name.strip_prefix('.')?.rsplit_once('.'));
    random.is_some_and(|(_, random)| random.len() == 16 && random.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// True if one of the directories that the path names is a [`temporary_dir`].
fn in_temporary_dir(path: &Path) -> bool {
    path.ancestors().skip(1).filter_map(Path::file_name).any(|name| name.to_str().is_some_and(is_temporary))
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

/// What [`write_file_with`] hands out: a buffered writer whose errors name the file.
#[derive(Debug)]
pub(crate) struct FileWriter {
    file: calls::File,
    buffer: Vec<u8>,
    path: PathBuf,
}

impl FileWriter {
    /// Writes into `file`; errors name `path`.
    fn new(file: calls::File, path: &Path) -> Self {
        Self { file, buffer: Vec::new(), path: path.to_path_buf() }
    }

    /// Writes all the bytes.
    ///
    /// # Errors
    /// Input and output errors, among them a full disk.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if self.buffer.len() + bytes.len() > BUFFER_BYTES {
            self.flush()?;
        }
        if bytes.len() < BUFFER_BYTES {
            self.buffer.extend_from_slice(bytes);
            return Ok(());
        }
        self.file.write_all(bytes).map_err(|e| Error::io("writing a file", &self.path, &e))
    }

    /// Hands the gathered bytes to the operating system.
    fn flush(&mut self) -> Result<()> {
        let written = self.file.write_all(&self.buffer);
        self.buffer.clear();
        written.map_err(|e| Error::io("writing a file", &self.path, &e))
    }

    /// Makes the file durable, not its name.
    fn sync(&mut self) -> Result<()> {
        self.flush()?;
        self.file.sync().map_err(|e| Error::io("syncing a file", &self.path, &e))
    }
}

/// A file that is being written; dropped before [`Unfinished::publish`], it is gone.
struct Unfinished {
    writer: FileWriter,
    published: bool,
}

impl Unfinished {
    /// Opens a file with a temporary name beside `target`, or with that very name if all is temporary there.
    fn create(target: &Path) -> Result<Self> {
        let file = if in_temporary_dir(target) {
            create_in_place(target).map_err(|e| Error::io("creating a file", target, &e))?
        } else {
            with_temporary_name(target, calls::File::create)?.1
        };
        Ok(Self { writer: FileWriter::new(file, target), published: false })
    }

    /// Makes the file durable under its own name.
    fn publish(mut self) -> Result<()> {
        self.writer.sync()?;
        let (from, to) = (&self.writer.file.path, &self.writer.path);
        if from == to {
            self.published = true;
            return Ok(());
        }
        calls::rename(from, to).map_err(|e| Error::io("naming a file", to, &e))?;
        self.published = true;
        sync_dir(parent(to))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.published {
            // The error on its way already says what went wrong; a leftover is removed by the next run.
            let _ = calls::remove_file(&self.writer.file.path);
        }
    }
}

/// Creates a file in a directory that nobody else reads, in place of one that is there.
fn create_in_place(path: &Path) -> io::Result<calls::File> {
    match calls::File::create(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            calls::remove_file(path)?;
            calls::File::create(path)
        }
        created => created,
    }
}

/// How far a growing file had come: its length, and the SHA-256 of what it held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

/// A file that grows record by record, such as `metrics.jsonl`, whose records are lines. Each is handed to the system
/// at once.
#[derive(Debug)]
pub(crate) struct Appender {
    file: calls::File,
    bytes: u64,
    digest: Sha256,
}

impl Appender {
    /// Starts an empty file, in place of one that is there. Its name is durable.
    ///
    /// # Errors
    /// `output-symlink` when the name is a symbolic link; input and output errors.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        refuse_link(path)?;
        let failed = |e: io::Error| Error::io("creating a file to append to", path, &e);
        let mut file = calls::File::open_or_create(path).map_err(failed)?;
        file.set_length(0).map_err(failed)?;
        sync_dir(parent(path))?;
        Ok(Self { file, bytes: 0, digest: Sha256::new() })
    }

    /// Opens the file and cuts it back to what it was at `mark`.
    ///
    /// # Errors
    /// `output-shorter` when it has lost bytes since, `output-changed` when it has others, `output-symlink` when the
    /// name is a symbolic link; input and output errors.
    pub(crate) fn resume(path: &Path, mark: &Mark) -> Result<Self> {
        if mark.bytes == 0 {
            return Self::create(path);
        }
        refuse_link(path)?;
        let failed = |e: io::Error| Error::io("opening a file to append to", path, &e);
        let refused = |id, what: &str, why: String| {
            let error = Error::input(id, what).at(path.display().to_string()).because(why);
            Err(error.fix("resume from an earlier checkpoint, or start anew in another directory"))
        };
        let mut file = calls::File::open(path).map_err(failed)?;
        let length = file.file.metadata().map_err(failed)?.len();
        if length < mark.bytes {
            let why = format!("it has {length} bytes, and had {} when the checkpoint was made", mark.bytes);
            return refused("output-shorter", "a file of the run to resume has lost lines", why);
        }
        let digest = digest(&mut file.file, mark.bytes).map_err(failed)?;
        if hexadecimal(digest.clone()) != mark.sha256 {
            let why = format!("its first {} bytes are not those that it had when the checkpoint was made", mark.bytes);
            return refused("output-changed", "a file of the run to resume was changed", why);
        }
        file.set_length(mark.bytes).map_err(failed)?;
        Ok(Self { file, bytes: mark.bytes, digest })
    }

    /// Appends `line` and a line feed; after an error the file ends with the line before.
    ///
    /// # Errors
    /// `line-break` (failure) when the text is more than one line; input and output errors, among them a full disk.
    pub(crate) fn append_line(&mut self, line: &str) -> Result<()> {
        if line.contains('\n') {
            let error = Error::failure("line-break", "a line to append holds a line feed");
            return Err(error.at(self.file.path.display().to_string()));
        }
        self.append(format!("{line}\n").as_bytes())
    }

    /// Appends a whole record; after an error the file ends with the record before.
    ///
    /// # Errors
    /// Input and output errors, among them a full disk.
    pub(crate) fn append(&mut self, record: &[u8]) -> Result<()> {
        if let Err(error) = self.file.write_all(record) {
            // Half a record would make the file unreadable; if even this fails, resume cuts it.
            let _ = self.file.set_length(self.bytes);
            return Err(Error::io("appending to a file", &self.file.path, &error));
        }
        self.bytes += record.len() as u64;
        self.digest.update(record);
        Ok(())
    }

    /// Where the file ends now. A checkpoint may keep it once [`Appender::sync`] has made the lines durable.
    pub(crate) fn mark(&self) -> Mark {
        Mark { bytes: self.bytes, sha256: hexadecimal(self.digest.clone()) }
    }

    /// Makes all lines durable.
    ///
    /// # Errors
    /// Input and output errors.
    pub(crate) fn sync(&self) -> Result<()> {
        self.file.sync().map_err(|e| Error::io("syncing a file", &self.file.path, &e))
    }
}

/// The hash of the first `bytes` bytes.
fn digest(file: &mut File, bytes: u64) -> io::Result<Sha256> {
    let (mut digest, mut piece, mut file) = (Sha256::new(), vec![0; BUFFER_BYTES], file.take(bytes));
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(digest),
            Ok(n) => digest.update(piece.get(..n).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A hash as text.
fn hexadecimal(digest: Sha256) -> String {
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
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
