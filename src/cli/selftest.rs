//! `rlhf selftest`: runs the table of kernel cases on a GPU, or on the emulator, and judges every output.

use std::io::Write;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::data::clock::utc_now;
use crate::device::{Device, Gpu};
use crate::error::{Error, Result};
use crate::selftest::record::Record;
use crate::selftest::verify::{Verified, lost, verify};
use crate::selftest::{Case, Judged, cases};
use crate::train::metrics::{Journal, tell};

/// Options of `rlhf selftest`.
#[derive(Debug, clap::Args)]
pub(super) struct SelftestArgs {
    /// Where the kernels run: cuda:N, emulated; auto is cuda:0, or emulated without a GPU
    #[arg(long, default_value = "auto")]
    device: String,
    /// Only cases whose line (kernel, floats, sizes) contains this text
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Print one JSON object with every case; the table goes to standard error then
    #[arg(long)]
    json: bool,
}

/// Runs the cases and prints what came of them.
pub(super) fn run(args: &SelftestArgs) -> Result<()> {
    let gpu = gpu(&args.device)?;
    let device = Device::Gpu(gpu.clone());
    let (all, text) = (cases(), args.filter.as_deref().unwrap_or_default());
    let chosen: Vec<&Case> = all.iter().filter(|case| case.to_string().contains(text)).collect();
    if chosen.is_empty() {
        return Err(Error::usage("filter-matches-nothing", format!("no case contains `{text}`"))
            .because(format!("a case's line is, for example, `{}`", all.first().map_or(String::new(), Case::to_string)))
            .fix("choose another --filter; `rlhf kernels` lists the kernels"));
    }
    tell(&format!("rlhf {}, {} cases on {}", env!("CARGO_PKG_VERSION"), chosen.len(), gpu.driver().description()));
    let start = Instant::now();
    let verified = watched(&device, &chosen);
    let record = Record::new(&gpu, chosen.len(), &verified, utc_now(), start.elapsed().as_secs_f64());
    let lines = [table(&verified), failures(&verified)].concat().join("\n");
    if args.json {
        tell(&lines);
        print(&serde_json::to_string_pretty(&record).map_err(|e| Error::failure("record-json", e.to_string()))?);
    } else {
        print(&lines);
    }
    verdict(&record, &verified)
}

/// A GPU or the emulator: the CPU computes what kernels are compared with.
pub(super) fn gpu(name: &str) -> Result<Gpu> {
    let device = if name == "auto" {
        Device::parse("cuda:0").or_else(|error| {
            let what = error.to_string();
            tell(&format!("note: no GPU, so the emulator runs: {}", what.lines().next().unwrap_or_default()));
            Device::parse("emulated")
        })?
    } else {
        Device::parse(name)?
    };
    match device {
        Device::Gpu(gpu) => Ok(gpu),
        Device::Cpu => Err(Error::usage("selftest-on-cpu", "the CPU has no kernels to test")
            .because("it is the reference that the kernels are compared with")
            .fix("use `--device cuda:0`, or `--device emulated`, which executes the kernels without a GPU")),
    }
}

/// A line of output; a reader that has gone away is no failure.
pub(super) fn print(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Runs the cases under a line that says how far it is.
fn watched<'a>(device: &Device, cases: &[&'a Case]) -> Vec<Verified<'a>> {
    let mut journal = Journal::shown();
    journal.begin("cases", cases.len());
    let progress = Mutex::new((journal, 0));
    let verified = verify(device, cases, &|case| {
        let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.1 += 1;
        let done = progress.1;
        progress.0.progress(done, &format!("{} {}", case.kernel, case.dtype));
    });
    let (mut journal, _) = progress.into_inner().unwrap_or_else(PoisonError::into_inner);
    // A journal without files has nothing to sync.
    let _ = journal.end();
    verified
}

/// One line for each kernel and float type.
fn table(verified: &[Verified<'_>]) -> Vec<String> {
    let mut lines = vec![format!(
        "{:<15}{:<6}{:>6}{:>7}{:>9}  {:>9}  {:>9}  {}",
        "kernel", "floats", "cases", "failed", "seconds", "error", "bound", "of the output closest to its bound"
    )];
    let same = |a: &Verified<'_>, b: &Verified<'_>| (a.case.kernel, a.case.dtype) == (b.case.kernel, b.case.dtype);
    for group in verified.chunk_by(same) {
        let failed = group.iter().filter(|v| !v.passed()).count();
        let seconds: f64 = group.iter().filter_map(|v| v.report.as_ref().ok()).map(|r| r.seconds).sum();
        let worst = |v: &Verified<'_>| Some((v.case.shape.clone(), v.report.as_ref().ok()?.worst()?.clone()));
        let share = |j: &Judged| j.error / j.bound;
        let worst = group.iter().filter_map(worst).max_by(|a, b| share(&a.1).total_cmp(&share(&b.1)));
        let head = |case: &Case| format!("{:<15}{:<6}", case.kernel, case.dtype.to_string());
        let judged = worst.map_or(String::new(), |(shape, worst)| {
            format!("{:>9.1e}  {:>9.1e}  {} of {shape}", worst.error, worst.bound, worst.name)
        });
        let head = group.first().map_or(String::new(), |v| head(v.case));
        lines.push(format!("{head}{:>6}{failed:>7}{seconds:>9.2}  {judged}", group.len()));
    }
    lines
}

/// Every output beyond its bound, and every case without an answer.
fn failures(verified: &[Verified<'_>]) -> Vec<String> {
    let mut lines = Vec::new();
    for verified in verified.iter().filter(|v| !v.passed()) {
        lines.push(format!("FAILED {}", verified.case));
        match &verified.report {
            Err(error) => lines.push(format!("  {}", error.to_string().replace('\n', "\n  "))),
            Ok(report) => {
                let line = |t: &Judged| format!("  {}: error {:.3e}, bound {:.3e}", t.name, t.error, t.bound);
                lines.extend(report.tensors.iter().filter(|t| !t.passed).map(line));
                lines.extend((!report.is_complete).then(|| "  outputs are missing".to_owned()));
                lines.push(format!("  the rule: {}", verified.case.rule()));
            }
        }
    }
    lines
}

/// The last line, and the exit code.
fn verdict(record: &Record, verified: &[Verified<'_>]) -> Result<()> {
    if let Some(error) = verified.iter().find_map(lost) {
        tell(&format!("the device was lost after {} of {} cases", verified.len(), record.asked));
        return Err(error.clone());
    }
    let failed = verified.iter().filter(|v| !v.passed()).count();
    if failed > 0 {
        return Err(Error::failure("selftest-failed", format!("{failed} of {} cases failed", record.asked))
            .at(record.device_description.clone())
            .because("a kernel's output is further from the reference than its rule allows, or it did not run")
            .fix("do not train on this device; please report the output of `rlhf selftest --json`"));
    }
    tell(&format!("passed: all {} cases, in {:.1} s", record.asked, record.seconds));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::error::Code;
    use crate::selftest::Output;

    fn case(shape: &str, out: impl Fn(bool) -> Result<f64> + Send + Sync + 'static) -> Case {
        Case::new("gae", shape, DType::F32, move |e| {
            Ok(vec![Output { name: "out", values: vec![out(e.device == Device::Cpu)?], is_gradient: false }])
        })
    }

    #[test]
    fn a_wrong_output_and_a_refusal_are_failures() {
        let cases = [
            case("right", |_| Ok(1.0)),
            case("wrong", |reference| Ok(if reference { 1.0 } else { 1.25 })),
            case("empty", |reference| if reference { Ok(1.0) } else { Err(Error::failure("kernel-fault", "a race")) }),
            case("nothing", |reference| Ok(if reference { 1.0 } else { f64::NAN })),
        ];
        let gpu = gpu("emulated").unwrap();
        let verified = verify(&Device::Gpu(gpu.clone()), &cases.iter().collect::<Vec<_>>(), &|_| {});
        let record = Record::new(&gpu, 4, &verified, String::new(), 1.0);
        assert!(!record.passed && record.cases[3].error.is_none() && record.cases[2].refusal.is_some());
        let rows = table(&verified);
        assert!(rows.len() == 2 && rows[1].starts_with("gae            f32        4      3"), "{rows:?}");
        let text = failures(&verified).join("\n");
        for words in ["FAILED gae f32 wrong\n  out: error 2.500e-1, bound 1.000e-5", "  a race [kernel-fault]", "L2"] {
            assert!(text.contains(words), "{words}: {text}");
        }
        let error = verdict(&record, &verified).unwrap_err();
        assert_eq!((error.code(), error.id()), (Code::Failure, "selftest-failed"));
        assert!(error.to_string().starts_with("3 of 4 cases failed"), "{error}");
    }

    /// The CPU stands for a card here: it runs one case after the other.
    #[test]
    fn a_lost_device_ends_the_run() {
        let gone = |_| Err(Error::new(Code::Device, "device-lost", "the card is gone"));
        let cases = [case("right", |_| Ok(1.0)), case("lost", gone), case("after", |_| Ok(1.0))];
        let verified = verify(&Device::Cpu, &cases.iter().collect::<Vec<_>>(), &|_| {});
        let record = Record::new(&gpu("emulated").unwrap(), 3, &verified, String::new(), 1.0);
        assert_eq!((record.passed, record.cases.len(), record.asked), (false, 2, 3));
        assert_eq!(verdict(&record, &verified).unwrap_err().id(), "device-lost");
    }
}
