//! Where a run begins: fresh, or from what an earlier one left in its output directory.

use std::path::{Path, PathBuf};

use super::session::required;
use crate::config::{LATEST, SaveArgs};
use crate::disk::{self, DirLock, Existing};
use crate::error::{Error, Result};
use crate::train::checkpoint::identity::{self, Identity};
use crate::train::checkpoint::manifest::{self, Manifest};
use crate::train::checkpoint::{self, Found};
use crate::train::metrics::RUN_FILE;

/// What an output directory offers to a run.
pub(super) enum Start {
    /// Nothing, or nothing was asked for.
    Fresh,
    /// The state after some step.
    From(Found),
    /// A run that is over.
    Finished(Manifest),
}

/// Which checkpoint is meant.
enum Which {
    Newest,
    At(PathBuf),
}

/// What `--resume` asks for, if it is given; `true` and `false` are what a configuration file may say.
fn which(save: &SaveArgs) -> Option<Which> {
    let path = save.resume.as_ref()?;
    match path.to_str() {
        Some("false") => None,
        Some(LATEST | "true") => Some(Which::Newest),
        _ => Some(Which::At(path.clone())),
    }
}

/// Whether the run is to go on from an earlier one.
pub(super) fn is_asked(save: &SaveArgs) -> bool {
    which(save).is_some()
}

/// The output directory: the one that is given, or the one in which the checkpoint lies.
pub(super) fn output_dir(save: &SaveArgs, given: Option<&PathBuf>) -> Result<PathBuf> {
    let Some(Which::At(path)) = which(save) else { return Ok(required(given, "output-dir")?.clone()) };
    let home = home(&path)?;
    match given {
        Some(output) if !is_same(output, &home) => {
            Err(Error::usage("resume-elsewhere", "the checkpoint is not of this output directory")
                .at(path.display().to_string())
                .because(format!("it lies in {}, and --output-dir is {}", home.display(), output.display()))
                .fix("leave --output-dir out, or copy the whole output directory first"))
        }
        given => Ok(given.cloned().unwrap_or(home)),
    }
}

/// The output directory of the checkpoint `path`: OUTPUT/checkpoints/step-N.
pub(super) fn home(path: &Path) -> Result<PathBuf> {
    let path = path.canonicalize().map_err(|e| Error::io("looking for the checkpoint", path, &e))?;
    let parent = path.parent().filter(|parent| parent.file_name().is_some_and(|name| name == checkpoint::DIR));
    parent.and_then(Path::parent).map(Path::to_path_buf).ok_or_else(|| {
        Error::usage("resume-path", "this is not the directory of a checkpoint")
            .at(path.display().to_string())
            .fix(format!("give a path such as OUTPUT/{}/step-100, or --resume alone for the newest", checkpoint::DIR))
    })
}

pub(super) fn is_same(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// Creates the output directory and takes it. One that holds files is refused, unless a run is resumed there. The lock
/// comes first: of two processes the second learns of the first, and neither can slip in between the other's look and
/// its lock.
pub(super) fn claim(dir: &Path, resumed: bool) -> Result<DirLock> {
    disk::create_output_dir(dir, Existing::Reuse)?;
    let lock = disk::lock(dir)?;
    if !resumed || !is_ours(dir) {
        disk::create_output_dir(dir, Existing::Refuse)?;
    }
    disk::remove_leftovers(dir)?;
    Ok(lock)
}

/// Whether a run of ours wrote into `dir`.
fn is_ours(dir: &Path) -> bool {
    [RUN_FILE, manifest::NAME].iter().any(|name| dir.join(name).is_file())
}

/// Looks for what the run begins from, and says what it found.
pub(super) fn find(save: &SaveArgs, output: &Path, say: &dyn Fn(&str)) -> Result<Start> {
    match which(save) {
        None => Ok(Start::Fresh),
        Some(Which::At(path)) => Found::read(&path).map(Start::From),
        Some(Which::Newest) => {
            if let Some(manifest) = checkpoint::finished(output)? {
                return Ok(Start::Finished(manifest));
            }
            let (found, broken) = Found::newest(&output.join(checkpoint::DIR))?;
            for error in broken {
                say(&format!("  note: a newer checkpoint is not used: {error}"));
            }
            Ok(found.map_or_else(
                || {
                    say(&format!(
                        "  note: there is no checkpoint in {}: the run begins at its start",
                        output.display()
                    ));
                    Start::Fresh
                },
                Start::From,
            ))
        }
    }
}

/// Compares what a run is made from with what it was made from, says the differences, and refuses those that are not
/// accepted.
pub(super) fn compare(
    differences: &[identity::Difference],
    save: &SaveArgs,
    place: &Path,
    say: &dyn Fn(&str),
) -> Result<()> {
    if !differences.is_empty() {
        say(&format!("changed since {} was written:\n{}", place.display(), identity::describe(differences)));
    }
    identity::check(differences, save.accept_changes, &place.display().to_string())
}

/// A finished run: says that there is nothing to do, if its settings are the same.
pub(super) fn finished(
    manifest: &Manifest,
    settings: &Identity,
    save: &SaveArgs,
    output: &Path,
    say: &dyn Fn(&str),
) -> Result<()> {
    compare(&settings.of_settings(&manifest.identity), save, output, say)?;
    say(&format!("{} is finished in {}: nothing is left to do", manifest.stage, output.display()));
    Ok(())
}

/// Makes room for a run that goes on after `found`: later checkpoints and the result are of a run that is given up.
pub(super) fn discard_later(output: &Path, found: &Found, say: &dyn Fn(&str)) -> Result<()> {
    if output.join(manifest::NAME).exists() {
        disk::remove_file(&output.join(manifest::NAME))?;
    }
    for path in checkpoint::remove_after(&output.join(checkpoint::DIR), found.manifest.step)? {
        say(&format!("  note: removed {}, which comes after the checkpoint", path.display()));
    }
    Ok(())
}
