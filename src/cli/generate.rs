//! `rlhf generate`: answers to prompts, one JSON row each.

use std::path::PathBuf;

use serde_json::json;

use super::session::{check_output, every_row};
use crate::data::encode::{PromptExample, PromptOptions, encode_prompts};
use crate::data::records::{Row, open_rows};
use crate::device::Device;
use crate::disk::write_file_with;
use crate::error::{Error, Result};
use crate::model::config::Head;
use crate::model::generate::{Generation, Response, Sampling};
use crate::random::Stage;
use crate::train::pretrained::Pretrained;

/// Options of `rlhf generate`.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Input and output")]
pub(super) struct GenerateArgs {
    /// Directory of the language model
    #[arg(long, value_name = "DIR")]
    model_name_or_path: PathBuf,
    /// JSONL or Parquet with a `prompt` column: a text, or a list of messages
    #[arg(long, value_name = "FILE")]
    prompts: PathBuf,
    /// JSONL to write: index, prompt, completion, tokens, logprobs, finish_reason
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Tokens of an answer at most
    #[arg(long, default_value_t = 128, value_parser = crate::config::at_least_one(), help_heading = "Sampling")]
    max_new_tokens: usize,
    /// Divides the logits; 0 takes the most likely token
    #[arg(long, default_value_t = 1.0, value_parser = crate::config::temperature_or_greedy, help_heading = "Sampling")]
    temperature: f64,
    /// Sample among the k most likely tokens; 0 means all
    #[arg(long, default_value_t = 0, value_parser = crate::config::count, help_heading = "Sampling")]
    top_k: usize,
    /// Sample among the most likely tokens that hold this much probability
    #[arg(long, default_value_t = 1.0, value_parser = crate::config::share, help_heading = "Sampling")]
    top_p: f64,
    /// Random numbers of the answers
    #[arg(long, default_value_t = 42, value_parser = crate::config::seed, help_heading = "Sampling")]
    seed: u64,
    /// Where to compute: auto, cpu, cuda, cuda:N (the N-th GPU, from 0), emulated
    #[arg(long, default_value = "auto")]
    device: String,
}

/// How the answers of a command are drawn.
pub(super) struct Answering {
    pub(super) sampling: Sampling,
    pub(super) max_new_tokens: usize,
    pub(super) seed: u64,
}

/// The prompts among `rows`, of which every one must be right and leave room for its answer.
pub(super) fn prompts(
    loaded: &Pretrained,
    rows: impl Iterator<Item = Result<Row>>,
    max_new_tokens: usize,
) -> Result<Vec<PromptExample>> {
    let options =
        PromptOptions { context: loaded.model.config().max_positions, response_length: max_new_tokens, strict: true };
    let encoded = encode_prompts(rows, &loaded.tokenizer, loaded.template.as_ref(), &options);
    Ok(encoded.map_err(|error| in_words_of_this(every_row(error)))?.examples)
}

/// Answers all prompts; `each` gets every one's index and answer, and the answer's text, in order. An answer depends on
/// its prompt and index alone.
pub(super) fn answer(
    loaded: &Pretrained,
    prompts: &[PromptExample],
    answering: &Answering,
    mut each: impl FnMut(usize, &Response, String) -> Result<()>,
) -> Result<()> {
    let (stop, weights) = (loaded.stop_tokens()?, loaded.model.frozen()?);
    for (batch, prompts) in prompts.chunks(BATCH).enumerate() {
        let generation = Generation {
            sampling: answering.sampling,
            max_new_tokens: answering.max_new_tokens,
            stop: &stop,
            seed: answering.seed,
            stage: Stage::Generate,
            step: 0,
            first_row: (batch * BATCH) as u32,
            slots: None,
        };
        let queries: Vec<&[i32]> = prompts.iter().map(|p| &p.ids[..]).collect();
        for (i, response) in loaded.model.generate(&weights, &queries, &generation)?.responses.iter().enumerate() {
            each(batch * BATCH + i, response, loaded.tokenizer.decode(&response.tokens, true)?)?;
        }
    }
    Ok(())
}

/// The advice of [`encode_prompts`], which speaks of PPO's option.
fn in_words_of_this(error: Error) -> Error {
    match error.id() {
        "prompt-too-long" => error.fix("shorten or remove these prompts, or lower --max-new-tokens"),
        "response-length" => error.fix("lower --max-new-tokens"),
        _ => error,
    }
}

/// Prompts answered between two writes.
const BATCH: usize = 64;

/// Answers all prompts.
pub(super) fn run(args: &GenerateArgs) -> Result<()> {
    check_output(&args.output, &args.prompts)?;
    let loaded = Pretrained::load(&Device::parse(&args.device)?, &args.model_name_or_path)?;
    if loaded.model.config().head != Head::Language {
        return Err(Error::input("not-a-language-model", "only a language model generates")
            .at(args.model_name_or_path.display().to_string())
            .fix("a reward model scores: use `rlhf score`"));
    }
    let prompts = prompts(&loaded, open_rows(&args.prompts)?, args.max_new_tokens)?;
    let sampling = Sampling { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p };
    let answering = Answering { sampling, max_new_tokens: args.max_new_tokens, seed: args.seed };
    write_file_with(&args.output, |file| {
        answer(&loaded, &prompts, &answering, |index, response, text| {
            let row = json!({
                "index": index,
                "prompt": prompts[index].text,
                "completion": text,
                "tokens": response.tokens,
                "logprobs": response.logprobs,
                "finish_reason": if response.stopped { "stop" } else { "length" },
            });
            file.write(format!("{row}\n").as_bytes())
        })
    })
}
