//! `rlhf score`: for a language model the log-probability of every token of a completion, for a reward model one score
//! a row; one JSON row for every row of the input.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::session::{check_output, every_row};
use crate::data::encode::{LossOn, SftExample, SftOptions, encode_sft};
use crate::data::records::{Row, open_rows};
use crate::device::Device;
use crate::disk::write_file_with;
use crate::error::{Code, Error, Result};
use crate::model::config::Head;
use crate::model::heads::Packed;
use crate::train::finite::blame;
use crate::train::pretrained::Pretrained;
use crate::train::reward::{check_scores, runs, score};

/// Options of `rlhf score`.
#[derive(Debug, clap::Args)]
pub(super) struct ScoreArgs {
    /// Directory of a language model or of a reward model
    #[arg(long, value_name = "DIR")]
    model_name_or_path: PathBuf,
    /// JSONL or Parquet: prompt and completion, text, or messages
    #[arg(long, value_name = "FILE")]
    dataset: PathBuf,
    /// JSONL to write: index, tokens, logprobs, sum_logprob; of a reward model index, score
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Divides the logits of a language model
    #[arg(long, default_value_t = 1.0, value_parser = crate::config::temperature)]
    temperature: f64,
    /// Where to compute: auto, cpu, cuda, cuda:N (the N-th GPU, from 0), emulated
    #[arg(long, default_value = "auto")]
    device: String,
}

/// Scores all rows.
pub(super) fn run(args: &ScoreArgs) -> Result<()> {
    check_output(&args.output, &args.dataset)?;
    let loaded = Pretrained::load(&Device::parse(&args.device)?, &args.model_name_or_path)?;
    let rows = open_rows(&args.dataset)?;
    let reward = loaded.model.config().head == Head::Score;
    let examples: Vec<SftExample> = rows.map(|row| encode(row?, &loaded, reward)).collect::<Result<_>>()?;
    write_file_with(&args.output, |file| {
        let lines = if reward { scores(&loaded, examples)? } else { logprobs(&loaded, &examples, args.temperature)? };
        lines.iter().try_for_each(|line| file.write(format!("{line}\n").as_bytes()))
    })
}

/// One row alone, so that every row has its line: what training would drop or cut is an error here. A reward model
/// reads the end-of-sequence token that it was trained to score at; a language model reads the text as it is written.
fn encode(row: Row, loaded: &Pretrained, reward: bool) -> Result<SftExample> {
    let options = SftOptions {
        max_length: loaded.model.config().max_positions,
        loss_on: if reward { LossOn::All } else { LossOn::Completion },
        append_eos: reward,
        strict: true,
    };
    let place = row.place.clone();
    let encoded = encode_sft([Ok(row)], &loaded.tokenizer, loaded.template.as_ref(), &options);
    encoded
        .map_err(every_row)?
        .examples
        .into_iter()
        .next()
        .ok_or_else(|| Error::input("row-empty", "the row has no token").at(place))
}

fn scores(loaded: &Pretrained, examples: Vec<SftExample>) -> Result<Vec<Value>> {
    let (sequences, places): (Vec<Vec<i32>>, Vec<String>) = examples.into_iter().map(|e| (e.ids, e.place)).unzip();
    let scores = score(&loaded.model, &sequences)?;
    check_scores(&scores, |i| places[i].clone()).map_err(|error| blame(error, "", &loaded.model))?;
    Ok(scores.iter().enumerate().map(|(index, score)| json!({ "index": index, "score": score })).collect())
}

fn logprobs(loaded: &Pretrained, examples: &[SftExample], temperature: f64) -> Result<Vec<Value>> {
    let (model, weights) = (&loaded.model, loaded.model.frozen()?);
    let mut lines = Vec::with_capacity(examples.len());
    for run in runs(examples.iter().map(|e| e.ids.len())) {
        let examples = &examples[run];
        let packed = Packed::new(model, examples.iter().map(|e| &e.ids[..]))?;
        let (rows, targets) = packed.targets(|b, t| examples[b].is_target[t]);
        let hidden = model.hidden(&weights, &packed)?;
        let all = model.token_logprobs(&weights, &hidden, [&rows, &targets], temperature)?.logprobs.to_f32()?;
        let mut at = 0;
        for example in examples {
            let n = example.is_target.iter().skip(1).filter(|t| **t).count();
            let logprobs = &all[at..at + n];
            check_logprobs(logprobs, example).map_err(|error| blame(error, "", model))?;
            let sum: f64 = logprobs.iter().map(|l| f64::from(*l)).sum();
            let tokens = &targets[at..at + n];
            lines.push(json!({ "index": lines.len(), "tokens": tokens, "logprobs": logprobs, "sum_logprob": sum }));
            at += n;
        }
    }
    Ok(lines)
}

/// An error unless all are finite: JSON has no word for another number, and a reader would take it for a hole.
fn check_logprobs(logprobs: &[f32], example: &SftExample) -> Result<()> {
    match logprobs.iter().position(|l| !l.is_finite()) {
        None => Ok(()),
        Some(i) => Err(Error::new(Code::NonFinite, "logprob-not-finite", "a log-probability is not a finite number")
            .at(&example.place)
            .because(format!("that of scored token {i} is {}", logprobs[i]))
            .fix("check the model, or raise --temperature")),
    }
}
