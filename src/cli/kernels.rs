//! `rlhf kernels`: each file of kernels with its limit, its entries, and when and where this very text last ran on
//! hardware.

use serde_json::{Value, json};

use super::selftest::print;
use crate::device::kernel::{SOURCES, Source};
use crate::error::{Error, Result};
use crate::selftest::limits::limit;
use crate::selftest::record::{Record, Run, Text, last_run, records};

/// Options of `rlhf kernels`.
#[derive(Debug, clap::Args)]
pub(super) struct KernelsArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Prints the list.
pub(super) fn run(args: &KernelsArgs) -> Result<()> {
    let records = records()?;
    if args.json {
        let kernels = SOURCES.iter().map(|source| object(source, &records)).collect::<Result<Vec<_>>>()?;
        let all = json!({ "version": env!("CARGO_PKG_VERSION"), "kernels": kernels });
        print(&format!("{all:#}"));
        return Ok(());
    }
    let kernels = SOURCES.iter().map(|source| describe(source, &records)).collect::<Result<Vec<_>>>()?;
    print(&kernels.join("\n"));
    Ok(())
}

/// The names of the entries, in the order of the text.
fn entries(source: &'static Source) -> Result<Vec<&'static str>> {
    let names: Vec<&str> = source.module()?.kernels().iter().map(crate::ptx::Kernel::name).collect();
    if names.is_empty() {
        return Err(Error::failure("kernel-missing", "a text without an entry").at(source.name));
    }
    Ok(names)
}

fn object(source: &'static Source, records: &[Record]) -> Result<Value> {
    let text = Text::of(source);
    Ok(json!({
        "name": text.name,
        "limit": limit(source.name),
        "entries": entries(source)?,
        "source_hash": text.source_hash,
        "text_sha256": text.text_sha256,
        "hardware": last_run(records, &text),
    }))
}

fn describe(source: &'static Source, records: &[Record]) -> Result<String> {
    let text = Text::of(source);
    let hash = text.text_sha256.get(..16).unwrap_or_default();
    Ok(format!(
        "{} (text {hash})\n  limit: {}\n  hardware: {}\n  entries:{}\n",
        source.name,
        limit(source.name),
        last_run(records, &text).map_or_else(|| "not yet on hardware".to_owned(), words),
        wrapped(&entries(source)?),
    ))
}

fn words(run: Run) -> String {
    format!("{} of {} cases passed on {}, {}", run.passed, run.cases, run.device, run.date)
}

/// Names in lines of at most 100 characters.
fn wrapped(names: &[&str]) -> String {
    let (mut text, mut column) = (String::new(), "  entries:".len());
    for name in names {
        if column + 1 + name.len() > 100 {
            text.push_str("\n   ");
            column = 3;
        }
        text.push(' ');
        text.push_str(name);
        column += 1 + name.len();
    }
    text
}
