//! What a run did, for a person: alarms raised from its metrics, and one self-contained page of curves and samples.
//! It reads the files of a run as text from outside, and trusts none of it: what is not as expected is an error with
//! its place, what is missing is said on the page, and what is too much is thinned and said.

#![forbid(unsafe_code)]

pub(crate) mod alarms;
mod curves;
mod lines;
mod page;
mod run;
mod samples;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use crate::disk;
use crate::error::{Error, Result};
use run::Run;

/// The page's name in a run's directory.
pub(crate) const REPORT: &str = "report.html";
/// Runs that one page compares: as many as there are colours that everybody can tell apart.
pub(crate) const RUNS_MAX: usize = 6;

/// Reads the files of the run in `dir` and writes `report.html` into it; returns its path. The same files give the
/// same bytes.
///
/// # Errors
/// Those of [`compare`].
pub(crate) fn write(dir: &Path) -> Result<PathBuf> {
    let path = dir.join(REPORT);
    compare(&[dir.to_owned()], &path)?;
    Ok(path)
}

/// Writes a page of these runs to `output`, side by side if they are several.
///
/// # Errors
/// `report-runs` (usage) for none, and for more than [`RUNS_MAX`]; `report-nothing` where no run is; `report-line` and
/// `report-json` for a file that is not what a run writes; input and output errors.
pub(crate) fn compare(dirs: &[PathBuf], output: &Path) -> Result<()> {
    if dirs.is_empty() || dirs.len() > RUNS_MAX {
        return Err(Error::usage("report-runs", format!("{} runs cannot stand on one page", dirs.len()))
            .because(format!("the curves of 1 to {RUNS_MAX} runs can be told apart"))
            .fix("name fewer directories"));
    }
    let runs = dirs.iter().zip(names(dirs)?).map(|(dir, name)| Run::read(dir, name)).collect::<Result<Vec<_>>>()?;
    disk::write_file(output, page::render(&runs)?.as_bytes())
}

/// What the runs are called: the names of their directories, so that a page does not depend on where the command was
/// given; where these do not tell them apart, as they were given.
fn names(dirs: &[PathBuf]) -> Result<Vec<String>> {
    let last = |dir: &PathBuf| {
        let dir = dir.canonicalize().map_err(|error| Error::io("looking for the run", dir, &error))?;
        Ok(dir.file_name().unwrap_or(dir.as_os_str()).to_string_lossy().into_owned())
    };
    let names = dirs.iter().map(last).collect::<Result<Vec<String>>>()?;
    let are_different = names.iter().collect::<std::collections::BTreeSet<_>>().len() == names.len();
    Ok(if are_different { names } else { dirs.iter().map(|dir| dir.display().to_string()).collect() })
}
