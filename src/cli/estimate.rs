//! `rlhf estimate`: what a run would take, before it runs: memory, steps, tokens. The data are read and counted; of the
//! models only their shapes are, so a large run for a GPU can be sized on a laptop.

use std::ffi::OsString;
use std::path::Path;

use serde_json::Value;

use super::usual::Stage;
use super::{FromFile, examples, ppo, reward, sft, with_file};
use crate::config::{ComputeDType, PpoConfig, RewardConfig, RunArgs, SftConfig};
use crate::device::Device;
use crate::error::Result;
use crate::train::plan::Work;

/// What is asked of a run that is only estimated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Estimate {
    /// Bytes of memory to plan with, in the place of this machine's.
    pub(super) memory: Option<usize>,
}

/// Options of `rlhf estimate`.
#[derive(Debug, clap::Args)]
pub(super) struct EstimateArgs {
    #[command(subcommand)]
    stage: Estimated,
}

#[derive(Debug, clap::Subcommand)]
enum Estimated {
    /// Estimate supervised fine-tuning
    #[command(after_help = examples::ESTIMATE_SFT, args_override_self = true)]
    Sft(Box<OfStage<SftConfig>>),
    /// Estimate reward-model training
    #[command(after_help = examples::ESTIMATE_REWARD, args_override_self = true)]
    Reward(Box<OfStage<RewardConfig>>),
    /// Estimate PPO
    #[command(after_help = examples::ESTIMATE_PPO, args_override_self = true)]
    Ppo(Box<OfStage<PpoConfig>>),
}

#[derive(Debug, clap::Args)]
struct OfStage<T: clap::Args> {
    /// Plan for a GPU with this much memory, such as 24GiB, whatever is in this machine; with --device cpu for a host
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = "Input and output")]
    memory: Option<usize>,
    #[command(flatten)]
    stage: FromFile<T>,
}

/// Words of `rlhf estimate sft`.
const WORDS: usize = 3;

/// Prints the estimate; `args` is the whole command line.
pub(super) fn run(options: &EstimateArgs, args: &[OsString]) -> Result<()> {
    let given = args.get(WORDS..).unwrap_or_default();
    match &options.stage {
        Estimated::Sft(of) => {
            let (config, mut settings) = with_file::<SftConfig>(of.stage.config.as_deref(), given)?;
            settings.estimate = Some(of.estimate());
            sft::run(&config, &settings).map(|_| ())
        }
        Estimated::Reward(of) => {
            let (config, mut settings) = with_file::<RewardConfig>(of.stage.config.as_deref(), given)?;
            settings.estimate = Some(of.estimate());
            reward::run(&config, &settings).map(|_| ())
        }
        Estimated::Ppo(of) => {
            let (config, mut settings) = with_file::<PpoConfig>(of.stage.config.as_deref(), given)?;
            settings.estimate = Some(of.estimate());
            ppo::run(&config, &settings).map(|_| ())
        }
    }
}

impl<T: Stage> OfStage<T> {
    fn estimate(&self) -> Estimate {
        Estimate { memory: self.memory }
    }
}

impl Estimate {
    /// The device that the run would have: a GPU that need not be here, if its memory is given.
    pub(super) fn device(self, run: &RunArgs, here: impl FnOnce() -> Result<Device>) -> Result<Device> {
        match (self.memory, &run.device[..]) {
            (Some(_), "cpu") | (None, _) => here(),
            (Some(_), _) if run.dtype == ComputeDType::F32 => Ok(Device::imagined().in_f32()),
            (Some(_), _) => Ok(Device::imagined()),
        }
    }
}

const UNITS: [(&str, u32); 7] = [("GiB", 30), ("MiB", 20), ("KiB", 10), ("G", 30), ("M", 20), ("K", 10), ("B", 0)];

/// Bytes from a text such as `24GiB`, `512M` or `80G`; a unit without an `i` means the same.
fn size(text: &str) -> std::result::Result<usize, String> {
    let text = text.replace("GB", "GiB").replace("MB", "MiB").replace("KB", "KiB");
    let unit = UNITS.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)));
    let (number, shift) = unit.unwrap_or((&text, 0));
    let bytes = number.trim().parse::<f64>().unwrap_or(f64::NAN) * (1_u64 << shift) as f64;
    if (1.0..(1_u64 << 50) as f64).contains(&bytes) {
        return Ok(bytes as usize);
    }
    Err("a size such as 24GiB or 512MiB is needed".to_owned())
}

/// The line on how much there is to do.
pub(super) fn describe(work: &Work) -> String {
    let Work { steps, step, rows, row, .. } = work;
    let (mean, largest, total) = (work.tokens_mean, work.tokens_most, work.tokens_total);
    let most = if work.is_bound { "at most " } else { "" };
    let tokens = format!("{most}{mean:.0} in each on average, {largest} in the largest, {most}{total:.0} in all");
    format!("work: {steps} {step} of {rows} {row}; tokens: {tokens}")
}

/// The line on how long that takes, by the rates that the last run of this stage in `output` had, if there was one.
pub(super) fn duration(work: &Work, stage: &str, output: &Path) -> Option<String> {
    let text = crate::files::read_plain(&output.join("timings.jsonl"), "reading the rates", 1 << 26).ok()?;
    let text = String::from_utf8_lossy(&text);
    let rows = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let key = format!("{}_per_second", work.unit);
    let mut rates: Vec<f64> =
        rows.filter(|row| row["stage"] == stage).filter_map(|row| row[key.as_str()].as_f64()).collect();
    rates.retain(|rate| rate.is_finite() && *rate > 0.0);
    rates.sort_by(f64::total_cmp);
    let rate = *rates.get(rates.len() / 2)?;
    let seconds = work.units_total / rate;
    Some(format!(
        "time: about {} at {rate:.0} {} a second, the median of the last run in {}",
        clock(seconds),
        work.unit,
        output.display()
    ))
}

/// Seconds for people.
fn clock(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [("24GiB", 24 << 30), ("24GB", 24 << 30), ("0.5G", 1 << 29), ("512M", 512 << 20), ("9", 9)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "GiB", "0", "-1G", "nan", "1e99G", "24 parsecs", "inf"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn time_is_told_in_a_unit_that_fits() {
        assert_eq!([59.6, 600.0, 7200.0].map(clock), ["60 s", "10 min", "2.0 h"]);
    }
}
