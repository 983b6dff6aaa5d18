//! The lock on an output directory: one process writes into it. The record in the lock file names the owner for those
//! who are refused, and decides where the file system has no locks.

use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::{LOCK_NAME, calls, refuse_link};
use crate::error::{Code, Error, Result};

/// A lock record is a line; whatever is longer is not ours.
const LOCK_BYTES_MAX: u64 = 4096;

/// The right to write into an output directory; dropped, the directory is free.
#[derive(Debug)]
pub(crate) struct DirLock {
    /// Held for its operating-system lock, which dies with the process however that ends.
    file: calls::File,
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
        if is_file_at(&self.file) {
            let _ = calls::remove_file(&self.file.path);
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
        let mut file = calls::File::open_or_create(&path).map_err(failed)?;
        let locked = file.file.try_lock();
        let owner = Owner::read(&mut file.file);
        match locked {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(locked_error(dir, owner.as_ref())),
            Err(fs::TryLockError::Error(_)) if owner.as_ref().is_some_and(Owner::may_live) => {
                return Err(locked_error(dir, owner.as_ref()));
            }
            Err(fs::TryLockError::Error(_)) => {}
        }
        // The owner before may have removed the file between our open and our lock; then this lock guards nothing.
        if !is_file_at(&file) {
            continue;
        }
        let written = file
            .set_length(0)
            .and_then(|()| file.write_all(Owner::this_process().to_json().to_string().as_bytes()))
            .and_then(|()| file.sync());
        written.map_err(failed)?;
        let stale =
            owner.map(|owner| format!("took over the output directory from {}, which has ended", owner.describe()));
        return Ok(DirLock { file, stale });
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

/// True if the name still means the open file.
#[cfg(unix)]
fn is_file_at(file: &calls::File) -> bool {
    use std::os::unix::fs::MetadataExt;
    let (Ok(open), Ok(named)) = (file.file.metadata(), fs::metadata(&file.path)) else { return false };
    (open.dev(), open.ino()) == (named.dev(), named.ino())
}

/// Elsewhere an open file cannot be removed, so the name cannot have moved on.
#[cfg(not(unix))]
fn is_file_at(_file: &calls::File) -> bool {
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
    fn read(file: &mut fs::File) -> Option<Self> {
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

    #[test]
    fn one_owner_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).unwrap();
        assert_eq!(held.stale(), None);
        let error = lock(dir.path()).unwrap_err();
        assert_eq!((error.id(), error.code()), ("output-locked", Code::Locked));
        assert!(error.to_string().contains(&format!("process {} on host", std::process::id())), "{error}");
        drop(held);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
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
