//! `rlhf verify`: holds a checkpoint, or what a finished run left, against its manifest.

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use crate::error::{Error, Result};
use crate::train::checkpoint::manifest::{Kind, Manifest};

/// Options of `rlhf verify`.
#[derive(Debug, clap::Args)]
pub(super) struct VerifyArgs {
    /// OUTPUT/checkpoints/step-N, or the output directory of a finished run
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// Verifies, and says what was verified.
pub(super) fn run(args: &VerifyArgs) -> Result<()> {
    let began = Instant::now();
    let Some(manifest) = Manifest::read(&args.dir)? else {
        std::fs::metadata(&args.dir).map_err(|e| Error::io("looking for the directory", &args.dir, &e))?;
        return Err(Error::input("manifest-missing", "the directory has no manifest")
            .at(args.dir.display().to_string())
            .because("checkpoints and finished runs have one; a run that was stopped has not")
            .fix("give the directory of a checkpoint, such as OUTPUT/checkpoints/step-100"));
    };
    manifest.verify(&args.dir)?;
    let seconds = began.elapsed().as_secs_f64();
    let what = match manifest.kind {
        Kind::Checkpoint => {
            format!("checkpoint of {}, step {} of {}", manifest.stage, manifest.step, manifest.total_steps)
        }
        Kind::Result => format!("result of {}, {} steps", manifest.stage, manifest.step),
    };
    let [files, pieces] = manifest.counts();
    let (bytes, rate) = (manifest.bytes(), manifest.bytes() as f64 / seconds.max(1e-9) / 1e9);
    // A reader that has gone away is no failure.
    let _ = writeln!(
        std::io::stdout(),
        "{}: {what}: {files} files, {pieces} pieces, {bytes} bytes are as they were written ({rate:.2} GB/s)",
        args.dir.display()
    );
    Ok(())
}
