//! What a finished directory of ours holds: `manifest.json` lists every file with the size and the SHA-256 of each of
//! its pieces (in a safetensors file the header and each tensor, so that damage is named), what the directory is, and
//! how a run goes on from it. The manifest is written last, and its own last line is the hash of all before it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::identity::Identity;
use crate::disk;
use crate::error::{Error, Result};
use crate::files::check_values;
use crate::model::checkpoint::Weights;
use crate::train::metrics::Marks;

/// The file's name.
pub(crate) const NAME: &str = "manifest.json";
/// This layout of the file and of the directory.
const FORMAT: u32 = 1;
/// A list of a hundred thousand tensors.
const BYTES_MAX: u64 = 32 << 20;
/// Bytes hashed at a time.
const BUFFER_BYTES: usize = 1 << 20;
/// Threads that hash; more do not read faster, and fewer bytes than this are not worth one.
const THREADS_MAX: usize = 8;
const BYTES_PER_THREAD: u64 = 4 << 20;
/// What stands between the manifest's text and its hash, and behind it.
const CHECKSUM: [&str; 2] = [",\n  \"checksum\": \"", "\"\n}\n"];
const HASH_CHARS: usize = 64;

/// What a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// The state of a run between two steps.
    Checkpoint,
    /// What a finished run leaves.
    Result,
}

/// The list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    pub(crate) format: u32,
    pub(crate) kind: Kind,
    pub(crate) stage: String,
    /// Steps that are done, and steps of the whole stage.
    pub(crate) step: usize,
    pub(crate) total_steps: usize,
    /// Of a checkpoint: what the loop goes on with beside the tensors.
    pub(crate) state: Option<Saved>,
    /// What the run was made from.
    pub(crate) identity: Identity,
    pub(crate) files: Vec<Listed>,
}

/// What a loop goes on with beside its tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Saved {
    /// The loop's own numbers.
    pub(crate) numbers: Value,
    /// Steps of each learner's AdamW, by its name.
    pub(crate) optimizer_steps: Vec<(String, u64)>,
    /// How far the metrics files had grown.
    pub(crate) journal: Option<Marks>,
}

/// A file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Listed {
    /// From the directory; parts are separated by `/`.
    name: String,
    pieces: Vec<Piece>,
}

/// A stretch of a file; the stretches follow each other and cover it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Piece {
    /// The tensor, `header`, or `file` for all of it.
    name: String,
    bytes: u64,
    sha256: String,
}

impl Manifest {
    /// A manifest of `names`, files in `dir`, to be given to [`Manifest::write`].
    ///
    /// # Errors
    /// Input and output errors; a safetensors file that is not one.
    pub(crate) fn of(dir: &Path, names: &[String], kind: Kind, stage: &str, identity: Identity) -> Result<Self> {
        let (mut files, mut jobs) = (Vec::new(), Vec::new());
        for name in names {
            let pieces = pieces(dir, name)?;
            let mut begin = 0;
            for piece in &pieces {
                jobs.push(Job { path: dir.join(name), begin, bytes: piece.bytes });
                begin += piece.bytes;
            }
            files.push(Listed { name: name.clone(), pieces });
        }
        let hashes = hash(&jobs)?;
        files.iter_mut().flat_map(|file| &mut file.pieces).zip(hashes).for_each(|(piece, hash)| piece.sha256 = hash);
        Ok(Self {
            format: FORMAT,
            kind,
            stage: stage.to_owned(),
            step: 0,
            total_steps: 0,
            state: None,
            identity,
            files,
        })
    }

    /// Writes it into `dir`, whose last file it is.
    ///
    /// # Errors
    /// Input and output errors.
    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        disk::write_file(&dir.join(NAME), self.text()?.as_bytes())
    }

    /// The whole file.
    pub(crate) fn text(&self) -> Result<String> {
        let text = serde_json::to_string_pretty(self).map_err(|e| Error::failure("manifest", e.to_string()))?;
        Ok(seal(text.strip_suffix("\n}").unwrap_or(&text)))
    }

    /// Reads the manifest of `dir` and checks it against its own hash; none if there is none.
    ///
    /// # Errors
    /// `manifest-damaged`, `manifest-version`, `manifest-kind`; input and output errors.
    pub(crate) fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(NAME);
        read_small(&path)?.map(|bytes| Self::parse(&bytes, &path)).transpose()
    }

    /// Reads the bytes of the file `path`.
    pub(crate) fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        let damaged = |why: String| {
            Error::input("manifest-damaged", "the manifest is not as it was written")
                .at(path.display().to_string())
                .because(why)
                .fix("use another checkpoint: nothing that this one says can be relied on")
        };
        let [before, after] = CHECKSUM;
        let text = std::str::from_utf8(bytes).map_err(|e| damaged(e.to_string()))?;
        let ends = text.strip_suffix(after).and_then(|t| t.split_at_checked(t.len().checked_sub(HASH_CHARS)?));
        let Some((text, hash)) = ends else { return Err(damaged("its end is missing".to_owned())) };
        let Some(text) = text.strip_suffix(before) else { return Err(damaged("its end is missing".to_owned())) };
        if hex(&Sha256::digest(text)) != hash {
            return Err(damaged("its checksum is another".to_owned()));
        }
        check_values(text.as_bytes()).map_err(damaged)?;
        let format = serde_json::from_str::<Value>(&format!("{text}\n}}")).map_err(|e| damaged(e.to_string()))?;
        match format["format"].as_u64() {
            Some(number) if number == u64::from(FORMAT) => {}
            _ => {
                return Err(Error::input("manifest-version", "the manifest is of another version of rlhf")
                    .at(path.display().to_string())
                    .because(format!("its format is {}, and this program reads {FORMAT}", format["format"]))
                    .fix("use the program that wrote it"));
            }
        }
        let manifest: Self = serde_json::from_value(format).map_err(|e| damaged(e.to_string()))?;
        manifest.check_names().map_err(damaged)?;
        Ok(manifest)
    }

    /// Names that stay in the directory, each once.
    fn check_names(&self) -> std::result::Result<(), String> {
        let mut seen = BTreeSet::new();
        for Listed { name, .. } in &self.files {
            let plain = |part: &str| {
                !part.is_empty()
                    && part != "."
                    && part != ".."
                    && !part.contains('\\')
                    && !part.contains(char::is_control)
            };
            if !name.split('/').all(plain) || !seen.insert(name) {
                return Err(format!("it lists a file {name:?}"));
            }
        }
        Ok(())
    }

    /// Holds every listed file against its size and hashes. A checkpoint must hold nothing else.
    ///
    /// # Errors
    /// `manifest-file-missing`, `manifest-file-kind`, `manifest-file-size`, `manifest-extra-file`, and
    /// `manifest-file-damaged`, which names the tensor.
    pub(crate) fn verify(&self, dir: &Path) -> Result<()> {
        if self.kind == Kind::Checkpoint {
            self.check_nothing_else(dir)?;
        }
        let (mut jobs, mut expected) = (Vec::new(), Vec::new());
        for file in &self.files {
            let path = dir.join(&file.name);
            file.check_size(&path)?;
            let mut begin = 0;
            for piece in &file.pieces {
                jobs.push(Job { path: path.clone(), begin, bytes: piece.bytes });
                expected.push((file, piece));
                begin += piece.bytes;
            }
        }
        for ((file, piece), hash) in expected.into_iter().zip(hash(&jobs)?) {
            if piece.sha256 != hash {
                let what = format!("{} of {} is not as it was written", piece.describe(), file.name);
                return Err(Error::input("manifest-file-damaged", what)
                    .at(dir.join(&file.name).display().to_string())
                    .because("its SHA-256 is not the manifest's")
                    .fix("use another checkpoint, and check the disk"));
            }
        }
        Ok(())
    }

    fn check_nothing_else(&self, dir: &Path) -> Result<()> {
        let listed: BTreeSet<&str> = self.files.iter().map(|file| file.name.as_str()).chain([NAME]).collect();
        let entries = std::fs::read_dir(dir).map_err(|e| Error::io("listing the checkpoint", dir, &e))?;
        for entry in entries {
            let name = entry.map_err(|e| Error::io("listing the checkpoint", dir, &e))?.file_name();
            if !name.to_str().is_some_and(|name| listed.contains(name)) {
                return Err(Error::input(
                    "manifest-extra-file",
                    "the checkpoint holds a file that it was not written with",
                )
                .at(dir.join(&name).display().to_string())
                .fix("move the file away"));
            }
        }
        Ok(())
    }

    /// Bytes of all files.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.bytes()))
    }

    /// The names of all files.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(|file| file.name.as_str())
    }

    /// How many files and pieces there are.
    pub(crate) fn counts(&self) -> [usize; 2] {
        [self.files.len(), self.files.iter().map(|file| file.pieces.len()).sum()]
    }
}

/// A manifest's text, without the brace that ends it, and its checksum.
pub(crate) fn seal(text: &str) -> String {
    let [before, after] = CHECKSUM;
    format!("{text}{before}{}{after}", hex(&Sha256::digest(text)))
}

impl Listed {
    fn bytes(&self) -> u64 {
        self.pieces.iter().fold(0, |sum, piece| sum.saturating_add(piece.bytes))
    }

    fn check_size(&self, path: &Path) -> Result<()> {
        let bad = |id, what: String| Err(Error::input(id, what).at(path.display().to_string()).fix(ANOTHER));
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                bad("manifest-file-missing", format!("{} is not there", self.name))
            }
            Err(error) => Err(Error::io("looking at a file of the checkpoint", path, &error)),
            Ok(metadata) if !metadata.is_file() => {
                bad("manifest-file-kind", format!("{} is not a plain file", self.name))
            }
            Ok(metadata) if metadata.len() != self.bytes() => {
                let what = format!("{} has {} bytes, and {} were written", self.name, metadata.len(), self.bytes());
                bad("manifest-file-size", what)
            }
            Ok(_) => Ok(()),
        }
    }
}

const ANOTHER: &str = "use another checkpoint, or copy this one again from where it is whole";

impl Piece {
    fn describe(&self) -> String {
        match self.name.as_str() {
            name @ ("header" | "file") => format!("the {name}"),
            name => format!("the tensor {name:?}"),
        }
    }
}

/// The pieces of a file, without their hashes.
fn pieces(dir: &Path, name: &str) -> Result<Vec<Piece>> {
    let path = dir.join(name);
    let piece = |name: String, bytes| Piece { name, bytes, sha256: String::new() };
    if !name.ends_with(".safetensors") {
        let bytes = std::fs::metadata(&path).map_err(|e| Error::io("looking at a file", &path, &e))?.len();
        return Ok(vec![piece("file".to_owned(), bytes)]);
    }
    let ranges = Weights::open_file(&path)?.ranges();
    let header = match ranges.first() {
        Some((_, begin, _)) => *begin,
        None => std::fs::metadata(&path).map_err(|e| Error::io("looking at a file", &path, &e))?.len(),
    };
    let tensors = ranges.into_iter().map(|(name, _, bytes)| piece(name, bytes));
    Ok(std::iter::once(piece("header".to_owned(), header)).chain(tensors).collect())
}

/// The bytes of a small file; none if it is not there.
fn read_small(path: &Path) -> Result<Option<Vec<u8>>> {
    let failed = |e: &std::io::Error| Error::io("reading the manifest", path, e);
    let metadata = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        metadata => metadata.map_err(|e| failed(&e))?,
    };
    if !metadata.is_file() || metadata.len() > BYTES_MAX {
        return Err(Error::input("manifest-kind", "the manifest is not a plain file of a possible size")
            .at(path.display().to_string())
            .because(format!("it has {} bytes; at most {BYTES_MAX} are read", metadata.len()))
            .fix(ANOTHER));
    }
    std::fs::read(path).map(Some).map_err(|e| failed(&e))
}

/// A stretch of a file to hash.
pub(super) struct Job {
    pub(super) path: PathBuf,
    pub(super) begin: u64,
    pub(super) bytes: u64,
}

/// The SHA-256 of each stretch, in order, on as many threads as the machine has.
pub(super) fn hash(jobs: &[Job]) -> Result<Vec<String>> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(vec![None; jobs.len()]));
    let bytes = jobs.iter().fold(0_u64, |sum, job| sum.saturating_add(job.bytes));
    let cores = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
    let threads = cores.min(usize::try_from(bytes / BYTES_PER_THREAD).unwrap_or(cores));
    let work = || {
        while let Some((at, job)) = Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, jobs.get(at)?)))
        {
            let hash = job.run();
            done.lock().unwrap_or_else(std::sync::PoisonError::into_inner)[at] = Some(hash);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    let done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.into_iter().map(|hash| hash.unwrap_or_else(|| Err(Error::failure("hash", "a file was not hashed")))).collect()
}

impl Job {
    fn run(&self) -> Result<String> {
        let failed = |e: std::io::Error| Error::io("reading a file", &self.path, &e);
        let mut file = File::open(&self.path).map_err(failed)?;
        file.seek(SeekFrom::Start(self.begin)).map_err(failed)?;
        let (mut hasher, mut left) = (Sha256::new(), self.bytes);
        let mut buffer = vec![0; BUFFER_BYTES.min(usize::try_from(left).unwrap_or(BUFFER_BYTES))];
        while left > 0 {
            let take = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            file.read_exact(&mut buffer[..take]).map_err(failed)?;
            hasher.update(&buffer[..take]);
            left -= take as u64;
        }
        Ok(hex(&hasher.finalize()))
    }
}

/// Bytes in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
