//! The one seam to the file system: each call that changes it stands here, once, and nothing else in the crate makes
//! one. In tests an observer sees every call with its data, and can refuse it before or after its effect; in the
//! binary the calls are the system's own. This room knows nothing of protocols: temporary names, the order of syncs
//! and what is retried are for those who call it.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

#[cfg(test)]
pub(crate) mod observer;

/// A call, with all that decides its effect.
#[allow(dead_code, reason = "only an observer reads it")]
#[derive(Debug, Clone, Copy)]
pub(crate) enum Call<'a> {
    CreateDir(&'a Path),
    /// A new, empty file.
    CreateFile(&'a Path),
    /// A write at an offset; it may write less than all, as the system's may.
    Write {
        path: &'a Path,
        offset: u64,
        bytes: &'a [u8],
    },
    SetLength {
        path: &'a Path,
        bytes: u64,
    },
    SyncFile(&'a Path),
    SyncDir(&'a Path),
    Rename {
        from: &'a Path,
        to: &'a Path,
    },
    RemoveFile(&'a Path),
    RemoveDir(&'a Path),
}

/// Makes a call other than a write.
fn make<T>(call: Call<'_>, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    #[cfg(test)]
    return observer::make(&call, act);
    #[cfg(not(test))]
    {
        let _ = call;
        act()
    }
}

/// Creates one directory (0755 less the umask).
pub(super) fn create_dir(path: &Path) -> io::Result<()> {
    make(Call::CreateDir(path), || fs::create_dir(path))
}

/// Gives a file or directory another name, in place of a file that has it.
pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    make(Call::Rename { from, to }, || fs::rename(from, to))
}

/// Removes the name of a file or of a symbolic link.
pub(super) fn remove_file(path: &Path) -> io::Result<()> {
    make(Call::RemoveFile(path), || fs::remove_file(path))
}

/// Removes an empty directory.
pub(super) fn remove_dir(path: &Path) -> io::Result<()> {
    make(Call::RemoveDir(path), || fs::remove_dir(path))
}

/// Makes the names in a directory durable. Not on systems where a directory cannot be opened as a file; there renames
/// are durable without it.
pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
    make(Call::SyncDir(path), || if cfg!(unix) { fs::File::open(path)?.sync_all() } else { Ok(()) })
}

/// A file open for writing, and the name under which it was opened.
#[derive(Debug)]
pub(super) struct File {
    pub(super) file: fs::File,
    pub(super) path: PathBuf,
    offset: u64,
}

impl File {
    /// A file that must not exist, so that no link is followed: readable by all, writable by its owner.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o644);
        let file = make(Call::CreateFile(path), || options.open(path))?;
        Ok(Self { file, path: path.to_path_buf(), offset: 0 })
    }

    /// A file that exists; opening changes nothing, so no observer is asked.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Self { file, path: path.to_path_buf(), offset: 0 })
    }

    /// [`File::create`], or [`File::open`] if it exists already.
    pub(super) fn open_or_create(path: &Path) -> io::Result<Self> {
        let mut tries = 0;
        loop {
            match Self::open(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                opened => return opened,
            }
            match Self::create(path) {
                // Another process was quicker; a link that leads nowhere stays, and is not followed.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && tries < 16 => tries += 1,
                created => return created,
            }
        }
    }

    /// Makes the file `bytes` long; the next write goes to its end.
    pub(super) fn set_length(&mut self, bytes: u64) -> io::Result<()> {
        make(Call::SetLength { path: &self.path, bytes }, || self.file.set_len(bytes))?;
        self.offset = io::Seek::seek(&mut self.file, io::SeekFrom::Start(bytes))?;
        Ok(())
    }

    /// Makes all that was written durable; not the file's name.
    pub(super) fn sync(&self) -> io::Result<()> {
        make(Call::SyncFile(&self.path), || self.file.sync_all())
    }
}

/// One call a write: what retries and what gathers small pieces stands above.
impl io::Write for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        #[cfg(test)]
        let written = observer::write(&self.path, self.offset, bytes, |part| self.file.write(part))?;
        #[cfg(not(test))]
        let written = self.file.write(bytes)?;
        self.offset += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
