//! `rlhf eval`: how good a model is, on data that it has not seen: its answers against a baseline's, a reward model on
//! held-out pairs, the perplexity of a text.

mod judge;
mod perplexity;
mod reward;
mod win_rate;

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use serde_json::Value;

use super::examples;
use crate::data::ledger::Ledger;
use crate::error::{Error, Result, visible};
use crate::model::ModelConfig;
use crate::model::config::Head;

/// Options of `rlhf eval`.
#[derive(Debug, clap::Args)]
pub(super) struct EvalCommand {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// How often a model's answers are preferred to a baseline's
    #[command(after_help = examples::WIN_RATE, args_override_self = true)]
    WinRate(Box<win_rate::WinRateArgs>),
    /// How often a reward model agrees with held-out preferences, and how sure it is
    #[command(after_help = examples::EVAL_REWARD, args_override_self = true)]
    Reward(reward::RewardArgs),
    /// How well a language model predicts a text
    #[command(after_help = examples::PERPLEXITY, args_override_self = true)]
    Perplexity(perplexity::PerplexityArgs),
}

/// Evaluates.
pub(super) fn run(command: &EvalCommand) -> Result<()> {
    match &command.what {
        What::WinRate(args) => win_rate::run(args),
        What::Reward(args) => reward::run(args),
        What::Perplexity(args) => perplexity::run(args),
    }
}

/// What was found: a heading and rows for people, or the same as JSON.
struct Findings {
    heading: String,
    rows: Vec<(&'static str, String)>,
    json: Value,
}

impl Findings {
    /// Writes them to standard output. A reader that has gone away is no failure.
    fn print(&self, as_json: bool) {
        let mut text = String::new();
        if as_json {
            let _ = write!(text, "{}", self.json);
        } else {
            text.push_str(&self.heading);
            let width = self.rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
            for (name, value) in &self.rows {
                let _ = write!(text, "\n  {name:width$}  {value}");
            }
        }
        let _ = writeln!(std::io::stdout(), "{}", visible(&text));
    }
}

/// A share with its 95 % interval, for people.
fn percent(share: f64, [low, high]: [f64; 2]) -> String {
    format!("{:.1} %  (95 % interval {:.1} to {:.1} %)", 100.0 * share, 100.0 * low, 100.0 * high)
}

/// What of the rows was left out and why; none if nothing was.
fn left_out(ledger: &Ledger) -> Option<String> {
    let reasons: Vec<String> = ledger.rows_dropped.iter().map(|(reason, rows)| format!("{rows} {reason}")).collect();
    let dropped = ledger.rows_in - ledger.rows_kept;
    (dropped > 0).then(|| format!("{dropped} of {} rows: {}", ledger.rows_in, reasons.join(", ")))
}

/// Refuses a model of the wrong kind by its configuration, before its weights are read.
pub(super) fn check_head(dir: &Path, head: Head) -> Result<()> {
    crate::train::pretrained::check_directory(dir)?;
    if ModelConfig::load(dir)?.head == head {
        return Ok(());
    }
    let error = match head {
        Head::Language => Error::input("not-a-language-model", "a language model is needed here, and this is none"),
        Head::Score => Error::input("not-a-reward-model", "a reward model is needed here, and this is none"),
    };
    Err(error.at(dir.display().to_string()).fix("check which directory is which"))
}
