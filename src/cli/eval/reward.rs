//! `rlhf eval reward`: a reward model on held-out pairs: how often it prefers the better answer, whether its confidence
//! is deserved, and how much of its score is length.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::super::session::check_output;
use super::{Findings, check_head, left_out, percent};
use crate::data::encode::{PairOptions, encode_pairs};
use crate::data::records::open_rows;
use crate::device::Device;
use crate::disk::write_file;
use crate::error::Result;
use crate::model::config::Head;
use crate::objective::calibration::{Pair, describe};
use crate::train::finite::blame;
use crate::train::metrics::Journal;
use crate::train::pretrained::Pretrained;
use crate::train::reward::{check_scores, evaluate};

/// Options of `rlhf eval reward`.
#[derive(Debug, clap::Args)]
pub(super) struct RewardArgs {
    /// Directory of the reward model
    #[arg(long, value_name = "DIR")]
    model_name_or_path: PathBuf,
    /// Held-out pairs: JSONL or Parquet with chosen, rejected and mostly prompt; those longer than the model's context
    /// are left out and counted
    #[arg(long, value_name = "FILE")]
    dataset: PathBuf,
    /// JSON file to write (quality.json)
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Where to compute: auto, cpu, cuda, cuda:N (the N-th GPU, from 0), emulated
    #[arg(long, default_value = "auto")]
    device: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Pairs scored between two looks at the clock.
const BATCH: usize = 64;
/// Characters of a full bar.
const BAR: f64 = 20.0;

/// Evaluates.
pub(super) fn run(args: &RewardArgs) -> Result<()> {
    if let Some(output) = &args.output {
        check_output(output, &args.dataset)?;
    }
    check_head(&args.model_name_or_path, Head::Score)?;
    let loaded = Pretrained::load(&Device::parse(&args.device)?, &args.model_name_or_path)?;
    let options = PairOptions { max_length: loaded.model.config().max_positions, strict: false };
    let rows = open_rows(&args.dataset)?;
    let encoded = encode_pairs(rows, &loaded.tokenizer, loaded.template.as_ref(), &options)?;
    let mut journal = Journal::shown();
    journal.begin("reward", encoded.examples.len());
    let mut pairs: Vec<Pair> = Vec::with_capacity(encoded.examples.len());
    for chunk in encoded.examples.chunks(BATCH) {
        let scored = evaluate(&loaded.model, chunk)?;
        let flat: Vec<f32> = scored.iter().flat_map(|pair| [pair.chosen as f32, pair.rejected as f32]).collect();
        check_scores(&flat, |i| chunk[i / 2].place.clone()).map_err(|error| blame(error, "", &loaded.model))?;
        pairs.extend(scored);
        journal.progress(pairs.len(), "pairs");
    }
    journal.end()?;
    let quality = describe(&pairs);
    if let Some(output) = &args.output {
        write_file(output, format!("{quality:#}\n").as_bytes())?;
    }
    let heading = format!("{} on {}", args.model_name_or_path.display(), args.dataset.display());
    let mut findings = Findings { heading, rows: rows_of(&quality), json: quality };
    if let Some(what) = left_out(&encoded.ledger) {
        findings.rows.insert(1, ("left out", what));
    }
    if let Value::Object(quality) = &mut findings.json {
        quality.insert("rows_dropped".into(), json!(encoded.ledger.rows_in - encoded.ledger.rows_kept));
    }
    findings.print(args.json);
    Ok(())
}

fn number(of: &Value, name: &str) -> f64 {
    of[name].as_f64().unwrap_or(f64::NAN)
}

/// The description as rows for people.
fn rows_of(quality: &Value) -> Vec<(&'static str, String)> {
    let get = |name: &str| number(quality, name);
    let interval = [0, 1].map(|i| quality["accuracy_interval"][i].as_f64().unwrap_or(f64::NAN));
    let mut rows = vec![
        ("pairs", format!("{}", get("pairs"))),
        ("accuracy", percent(get("accuracy"), interval)),
        ("margin", format!("{:.4}  (mean of chosen minus rejected)", get("margin"))),
        ("scores", format!("{:.4} to {:.4}, mean {:.4}", get("min_reward"), get("max_reward"), get("mean_reward"))),
        ("calibration error", format!("{:.4}", get("calibration_error"))),
        ("score with length", format!("{:.4}  (correlation)", get("reward_length_correlation"))),
    ];
    let tables = [
        ("reliability", "by confidence", 2, "confidence is what the scores promise, accuracy what they keep"),
        ("by_margin", "by score gap", 3, "the distance of the two scores"),
        ("by_length", "by length", 0, "tokens of the chosen answer minus those of the rejected one"),
    ];
    for (key, name, digits, meaning) in tables {
        rows.push((name, meaning.to_owned()));
        let bins = quality[key].as_array().map_or(&[][..], Vec::as_slice);
        rows.extend(bins.iter().map(|bin| ("", bin_line(bin, digits))));
    }
    rows
}

/// A bin: its borders, its pairs, what was promised where that is known, and its accuracy with a bar.
fn bin_line(bin: &Value, digits: usize) -> String {
    let [from, to, accuracy] = ["from", "to", "accuracy"].map(|name| number(bin, name));
    let bar = "█".repeat((accuracy * BAR).round() as usize);
    let promised = bin["confidence"].as_f64().map(|x| format!("  confidence {:>5.1} %", 100.0 * x));
    let range = format!("{from:.digits$} to {to:.digits$}");
    let promised = promised.unwrap_or_default();
    format!("{range:<16} {:>7} pairs{promised}  accuracy {:>5.1} %  {bar}", number(bin, "pairs"), 100.0 * accuracy)
}
