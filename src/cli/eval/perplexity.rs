//! `rlhf eval perplexity`: how well a language model predicts a text. A long text is read in windows that overlap, so
//! that each token is predicted once and with context; of rows the targets count, as fine-tuning counts them.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::{Findings, check_head, left_out};
use crate::data::encode::{LossOn, SftExample, SftOptions, encode_sft};
use crate::data::records::open_rows;
use crate::data::tokenizer::Tokenizer;
use crate::device::Device;
use crate::error::{Code, Error, Result};
use crate::files::read_plain;
use crate::model::config::Head;
use crate::model::heads::Packed;
use crate::objective::perplexity::{Likelihood, Window, windows};
use crate::train::finite::blame;
use crate::train::metrics::Journal;
use crate::train::pretrained::Pretrained;
use crate::train::reward::runs;

/// Options of `rlhf eval perplexity`.
#[derive(Debug, clap::Args)]
pub(super) struct PerplexityArgs {
    /// Directory of the language model
    #[arg(long, value_name = "DIR")]
    model_name_or_path: PathBuf,
    /// A .txt file, read as one text; or JSONL or Parquet as for `rlhf sft` (text, prompt and completion, or
    /// messages), of which the targets of fine-tuning count, the end-of-sequence token included
    #[arg(long, value_name = "FILE")]
    dataset: PathBuf,
    /// Tokens of a window at most; the model's context by default, and at most 1024
    #[arg(long, value_name = "N", value_parser = crate::config::at_least_one())]
    max_length: Option<usize>,
    /// Tokens from a window to the next, below --max-length: every token behind the first window has
    /// max_length - stride tokens before it at least; half of --max-length by default
    #[arg(long, value_name = "N", value_parser = crate::config::at_least_one())]
    stride: Option<usize>,
    /// Where to compute: auto, cpu, cuda, cuda:N (the N-th GPU, from 0), emulated
    #[arg(long, default_value = "auto")]
    device: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The longest window where none is asked for: that of the usual recipe, on GPT-2.
const MAX_LENGTH: usize = 1024;
/// The largest text file, in bytes.
const TEXT_BYTES_MAX: u64 = 256 << 20;

/// What is predicted.
struct Texts {
    examples: Vec<SftExample>,
    /// Bytes of all targets.
    bytes: usize,
    /// What was left out of it.
    left_out: Option<String>,
}

/// Evaluates.
pub(super) fn run(args: &PerplexityArgs) -> Result<()> {
    check_head(&args.model_name_or_path, Head::Language)?;
    let loaded = Pretrained::load(&Device::parse(&args.device)?, &args.model_name_or_path)?;
    let [max_length, stride] = lengths(args, loaded.model.config().max_positions)?;
    let is_text = args.dataset.extension().is_some_and(|name| name.eq_ignore_ascii_case("txt"));
    let texts = if is_text { whole(&args.dataset, &loaded.tokenizer)? } else { rows(&args.dataset, &loaded)? };
    let (nats, tokens, windows) = predict(&loaded, &texts.examples, max_length, stride)?;
    let found = Likelihood { nats, tokens, bytes: texts.bytes };
    let per_byte = found.bits_per_byte();
    let mut findings = Findings {
        heading: format!("{} on {}", args.model_name_or_path.display(), args.dataset.display()),
        rows: vec![
            ("nats per token", format!("{:.6}", found.nats_per_token())),
            ("perplexity", format!("{:.4}", found.perplexity())),
            ("bits per byte", per_byte.map_or("none: the tokens stand for no text".into(), |x| format!("{x:.6}"))),
            ("tokens", format!("{tokens} predicted, for {} bytes of text", found.bytes)),
            ("windows", format!("{windows} of at most {max_length} tokens, each {stride} after the one before")),
        ],
        json: json!({
            "nats_per_token": found.nats_per_token(),
            "perplexity": found.perplexity(),
            "bits_per_byte": per_byte,
            "tokens": tokens,
            "bytes": found.bytes,
            "texts": texts.examples.len(),
            "windows": windows,
            "max_length": max_length,
            "stride": stride,
        }),
    };
    findings.rows.extend(texts.left_out.map(|what| ("left out", what)));
    findings.print(args.json);
    Ok(())
}

/// The length of a window and the stride.
fn lengths(args: &PerplexityArgs, context: usize) -> Result<[usize; 2]> {
    let max_length = args.max_length.unwrap_or(context.min(MAX_LENGTH));
    if !(2..=context).contains(&max_length) {
        return Err(Error::usage("max-length", format!("a window of {max_length} tokens is not possible"))
            .because(format!("the model has {context} positions, and a window has 2 tokens at least"))
            .fix("choose another --max-length"));
    }
    let stride = args.stride.unwrap_or(max_length / 2);
    if stride >= max_length {
        return Err(Error::usage("stride", format!("a stride of {stride} leaves no token of {max_length} before it"))
            .because("the first token of each window would be predicted from nothing, or not at all")
            .fix("choose a --stride below --max-length"));
    }
    Ok([max_length, stride])
}

/// A file as one text.
fn whole(path: &Path, tokenizer: &Tokenizer) -> Result<Texts> {
    let place = || path.display().to_string();
    let text = String::from_utf8(read_plain(path, "reading the text", TEXT_BYTES_MAX)?).map_err(|error| {
        let at = error.utf8_error().valid_up_to() + 1;
        Error::input("text-utf8", format!("byte {at} of the text is not UTF-8")).at(place()).fix("save it as UTF-8")
    })?;
    let encoding = tokenizer.encode(&text, true)?;
    if encoding.ids.len() < 2 {
        return Err(Error::input("text-too-short", format!("the text has {} tokens", encoding.ids.len()))
            .at(place())
            .because("the first token is predicted from nothing, so it takes two")
            .fix("check that this is the file you meant"));
    }
    // The first token is not predicted, unless the tokenizer put it before the text.
    let begin = if encoding.is_added.first() == Some(&true) { 0 } else { encoding.offsets.first().map_or(0, |o| o.1) };
    let is_target = (0..encoding.ids.len()).map(|i| i > 0).collect();
    let examples = vec![SftExample { ids: encoding.ids, is_target, place: place() }];
    Ok(Texts { examples, bytes: text.len() - begin.min(text.len()), left_out: None })
}

/// The rows of a data set.
fn rows(path: &Path, loaded: &Pretrained) -> Result<Texts> {
    // Nothing is cut: a long row has several windows.
    let options = SftOptions { max_length: usize::MAX, loss_on: LossOn::Completion, append_eos: true, strict: false };
    let encoded = encode_sft(open_rows(path)?, &loaded.tokenizer, loaded.template.as_ref(), &options)?;
    let bytes = encoded.examples.iter().map(|e| target_bytes(e, &loaded.tokenizer)).sum::<Result<usize>>()?;
    Ok(Texts { examples: encoded.examples, bytes, left_out: left_out(&encoded.ledger) })
}

/// Bytes of the text that an example's targets stand for: what each run of them adds to the text before it.
fn target_bytes(example: &SftExample, tokenizer: &Tokenizer) -> Result<usize> {
    let (mut bytes, mut at) = (0, 0);
    let length = |end: usize| Ok::<_, Error>(tokenizer.decode(&example.ids[..end], true)?.len());
    for run in example.is_target.chunk_by(|a, b| a == b) {
        if run[0] {
            bytes += length(at + run.len())?.saturating_sub(length(at)?);
        }
        at += run.len();
    }
    Ok(bytes)
}

/// The nats of all targets, how many they are, and in how many windows they were predicted.
fn predict(
    loaded: &Pretrained,
    examples: &[SftExample],
    max_length: usize,
    stride: usize,
) -> Result<(f64, usize, usize)> {
    let (model, weights) = (&loaded.model, loaded.model.frozen()?);
    let all: Vec<(&SftExample, Window)> = examples
        .iter()
        .flat_map(|example| windows(example.ids.len(), max_length, stride).into_iter().map(move |w| (example, w)))
        .filter(|(example, window)| example.is_target[window.counted.clone()].contains(&true))
        .collect();
    let (mut nats, mut tokens, mut journal) = (0.0, 0, Journal::shown());
    journal.begin("text", all.len());
    for run in runs(all.iter().map(|(_, window)| window.read.len())) {
        let (end, part) = (run.end, &all[run]);
        let packed = Packed::new(model, part.iter().map(|(example, window)| &example.ids[window.read.clone()]))?;
        let (rows, targets) = packed.targets(|i, t| {
            let (example, window) = &part[i];
            let t = window.read.start + t;
            window.counted.contains(&t) && example.is_target[t]
        });
        let hidden = model.hidden(&weights, &packed)?;
        let logprobs = model.token_logprobs(&weights, &hidden, [&rows, &targets], 1.0)?.logprobs.to_f64()?;
        if logprobs.iter().any(|x| !x.is_finite()) {
            let error = Error::new(Code::NonFinite, "logprob-not-finite", "a log-probability is not a finite number")
                .at(part[0].0.place.clone())
                .fix("check the model");
            return Err(blame(error, "", model));
        }
        nats -= logprobs.iter().sum::<f64>();
        tokens += targets.len();
        journal.progress(end, "windows");
    }
    journal.end()?;
    Ok((nats, tokens, all.len()))
}
