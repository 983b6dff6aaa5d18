//! `rlhf report`: one page of a run's curves, samples and alarms, or of several runs side by side.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::session::check_output;
use crate::error::{Result, visible};
use crate::report;

/// Options of `rlhf report`.
#[derive(Debug, clap::Args)]
pub(super) struct ReportArgs {
    /// Output directories of runs; several are laid side by side
    #[arg(value_name = "DIR", required = true)]
    dirs: Vec<PathBuf>,
    /// Page to write [DIR/report.html of one run; report.html here of several]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Writes the page and says where it is.
pub(super) fn run(args: &ReportArgs) -> Result<()> {
    let output = match (&args.output, &args.dirs[..]) {
        (None, [dir]) => {
            check_output(&dir.join(report::REPORT), dir)?;
            report::write(dir)?
        }
        (output, dirs) => {
            let output = output.clone().unwrap_or_else(|| report::REPORT.into());
            check_output(&output, Path::new(""))?;
            report::compare(dirs, &output)?;
            output
        }
    };
    // As `train::metrics::tell`: a reader that has gone away is no failure.
    let _ = writeln!(std::io::stdout(), "{}", visible(&output.display().to_string()));
    Ok(())
}
