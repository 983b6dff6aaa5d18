//! A disk that fails. The calls of a run go to a real directory and onto a record; from the record follows what a
//! killed process or a power failure may have left behind at any point: see [`inject`]. A call may also fail live: see
//! [`observe`]. This room knows the promises of file systems (POSIX, not those of one of them), and none of ours.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rand::RngExt;

use super::calls::Call;
use super::calls::observer::{self, Observer, Verdict};
use crate::random::{Philox, Stage};

mod state;
mod tests;

pub(crate) use state::{Disk, Loss, Tree};

/// A directory for a disk: in memory where the system has such a place, since real syncs would only cost time.
pub(crate) fn room() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// Error numbers of Linux, which the standard library gives no other name.
pub(crate) const EINTR: i32 = 4;
pub(crate) const EIO: i32 = 5;
pub(crate) const ENOSPC: i32 = 28;

/// A call that had its effect; paths begin at the directory that is recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Op {
    CreateDir(PathBuf),
    CreateFile(PathBuf),
    Write {
        path: PathBuf,
        offset: u64,
        bytes: Rc<[u8]>,
    },
    SetLength {
        path: PathBuf,
        bytes: u64,
    },
    SyncFile(PathBuf),
    SyncDir(PathBuf),
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    RemoveFile(PathBuf),
    RemoveDir(PathBuf),
    /// A call that has no effect: a sync of a disk that lies, with which a test shows that the sync matters.
    Ignored,
}

impl Op {
    /// The call, if all of it is under `root`.
    fn new(call: &Call<'_>, root: &Path) -> Option<Self> {
        let inside = |path: &Path| path.strip_prefix(root).ok().map(Path::to_path_buf);
        Some(match *call {
            Call::CreateDir(path) => Self::CreateDir(inside(path)?),
            Call::CreateFile(path) => Self::CreateFile(inside(path)?),
            Call::Write { path, offset, bytes } => Self::Write { path: inside(path)?, offset, bytes: bytes.into() },
            Call::SetLength { path, bytes } => Self::SetLength { path: inside(path)?, bytes },
            Call::SyncFile(path) => Self::SyncFile(inside(path)?),
            Call::SyncDir(path) => Self::SyncDir(inside(path)?),
            Call::Rename { from, to } => Self::Rename { from: inside(from)?, to: inside(to)? },
            Call::RemoveFile(path) => Self::RemoveFile(inside(path)?),
            Call::RemoveDir(path) => Self::RemoveDir(inside(path)?),
        })
    }

    /// The call without its data, for messages.
    pub(crate) fn name(&self) -> String {
        let (kind, path) = match self {
            Self::CreateDir(path) => ("create directory", path),
            Self::CreateFile(path) => ("create", path),
            Self::Write { path, .. } => ("write", path),
            Self::SetLength { path, .. } => ("set length of", path),
            Self::SyncFile(path) => ("sync", path),
            Self::SyncDir(path) => ("sync names in", path),
            Self::Rename { to, .. } => ("rename to", to),
            Self::RemoveFile(path) => ("remove", path),
            Self::RemoveDir(path) => ("remove directory", path),
            Self::Ignored => return "nothing".to_owned(),
        };
        format!("{kind} {:?}", path.display().to_string())
    }

    /// True for the calls that make something durable.
    pub(crate) fn is_sync(&self) -> bool {
        matches!(self, Self::SyncFile(_) | Self::SyncDir(_))
    }
}

/// How a call fails live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It changes nothing and returns this error number.
    Refused(i32),
    /// It takes effect and returns this error number.
    Reported(i32),
    /// A write that writes only so many bytes; the next one fails with "no space", as on a disk that fills up.
    Filled(usize),
    /// Neither this call nor any later one is made: the process is dead, whatever it still does.
    Killed,
}

/// What happened under [`observe`].
#[derive(Debug, Clone, Default)]
pub(crate) struct Record {
    /// The calls that had an effect, in order.
    pub(crate) ops: Vec<Op>,
    /// All that were asked for, those that failed included.
    pub(crate) asked: Vec<Op>,
    /// Whether the failure came about.
    pub(crate) failed: bool,
}

/// Runs `body` and records its calls under `root`; call number `at` (from 0) fails.
pub(crate) fn observe<T>(root: &Path, failure: Option<(usize, Failure)>, body: impl FnOnce() -> T) -> (T, Record) {
    let record = Rc::new(RefCell::new(Record::default()));
    let recorder = Recorder { root: root.to_path_buf(), failure, record: Rc::clone(&record) };
    let result = observer::observe(recorder, body);
    (result, record.take())
}

struct Recorder {
    root: PathBuf,
    failure: Option<(usize, Failure)>,
    record: Rc<RefCell<Record>>,
}

impl Observer for Recorder {
    fn judge(&mut self, call: &Call<'_>) -> Verdict {
        let Some(op) = Op::new(call, &self.root) else { return Verdict::Proceed };
        let mut record = self.record.borrow_mut();
        let number = record.asked.len();
        record.asked.push(op);
        let Some((at, failure)) = self.failure else { return Verdict::Proceed };
        if number < at {
            return Verdict::Proceed;
        }
        record.failed = true;
        let error = io::Error::from_raw_os_error;
        match failure {
            Failure::Killed => Verdict::Refuse(error(EIO)),
            Failure::Filled(_) if number > at && matches!(call, Call::Write { .. }) => {
                self.failure = None;
                Verdict::Refuse(error(ENOSPC))
            }
            _ if number > at => Verdict::Proceed,
            Failure::Refused(code) => Verdict::Refuse(error(code)),
            Failure::Reported(code) => Verdict::ProceedAndFail(error(code)),
            Failure::Filled(bytes) => Verdict::Shorten(bytes),
        }
    }

    fn done(&mut self, call: &Call<'_>) {
        self.record.borrow_mut().ops.extend(Op::new(call, &self.root));
    }
}

/// What ends a run, at call number `call` of its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) call: usize,
    pub(crate) kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The process is killed before the call.
    KilledBefore,
    /// It is killed after it.
    KilledAfter,
    /// It is killed in the midst of a write, of which so many bytes remain.
    Torn(usize),
    /// The power fails after the call.
    PowerLost(Loss),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "call {}: {:?}", self.call, self.kind)
    }
}

impl Fault {
    /// How many calls of the record had returned by then: what they promised must hold.
    pub(crate) fn returned(&self) -> usize {
        match self.kind {
            Kind::KilledBefore | Kind::Torn(_) => self.call,
            Kind::KilledAfter | Kind::PowerLost(_) => self.call + 1,
        }
    }
}

/// How many faults of each kind a call gets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// Places in each write at which it is torn: after the first byte, before the last, and random ones.
    pub(crate) tears: usize,
    /// Power failures after each call that lose some of what was not synced, beside those that lose all or nothing.
    pub(crate) losses: usize,
    /// The first call that gets faults; those before it were another process's.
    pub(crate) from: usize,
}

/// Goes through the record of a run that began with `initial`, and hands every fault of the plan to `visit` with what
/// it leaves on the disk. Returns the number of faults.
pub(crate) fn inject(initial: &Tree, ops: &[Op], plan: Plan, mut visit: impl FnMut(Fault, &Tree)) -> usize {
    let mut disk = Disk::new(initial);
    let mut faults = 0;
    let mut visit = |call, kind, tree: &Tree| {
        faults += 1;
        visit(Fault { call, kind }, tree);
    };
    let mut before = Tree::default();
    for (call, op) in ops.iter().enumerate() {
        if call < plan.from {
            disk.apply(op);
            continue;
        }
        if call == plan.from {
            before = disk.cached();
        }
        visit(call, Kind::KilledBefore, &before);
        if let Op::Write { path, offset, bytes } = op {
            for n in tears(call, bytes.len(), plan.tears) {
                let mut torn = disk.clone();
                torn.apply(&Op::Write { path: path.clone(), offset: *offset, bytes: bytes[..n].into() });
                visit(call, Kind::Torn(n), &torn.cached());
            }
        }
        disk.apply(op);
        before = disk.cached();
        visit(call, Kind::KilledAfter, &before);
        let some = (0..plan.losses).map(|seed| Loss::Some(seed as u32));
        for loss in [Loss::Nothing, Loss::Everything].into_iter().chain(some) {
            visit(call, Kind::PowerLost(loss), &disk.after_power_loss(loss, call));
        }
    }
    faults
}

/// Lengths to which a write of `bytes` bytes is torn.
fn tears(call: usize, bytes: usize, wanted: usize) -> Vec<usize> {
    let mut random = Philox::new(1, Stage::Demo, call as u32, 0);
    let mut lengths: Vec<usize> = (2..wanted).map(|_| random.random_range(0..=bytes)).chain([1, bytes - 1]).collect();
    lengths.truncate(wanted);
    lengths
}
