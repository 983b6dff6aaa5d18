//! `rlhf eval win-rate`: two models answer the same prompts, and a reward model, or a judge of the user's own, says
//! whose answer is better. A judge is a program that reads the answers and writes scores; it is not started from here.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::super::generate::{self, Answering};
use super::super::session::{check_output, every_row};
use super::judge::{Verdicts, read_answers, read_verdicts};
use super::{Findings, check_head, percent};
use crate::data::encode::{PairOptions, encode_pairs};
use crate::data::formats::{self, Turns};
use crate::data::records::{Row, read_rows};
use crate::device::Device;
use crate::disk::write_file_with;
use crate::error::{Error, Result};
use crate::model::config::Head;
use crate::model::generate::Sampling;
use crate::objective::win_rate::Record;
use crate::train::metrics::Journal;
use crate::train::pretrained::Pretrained;
use crate::train::reward::{check_scores, evaluate};

/// Options of `rlhf eval win-rate`.
#[derive(Debug, clap::Args)]
pub(super) struct WinRateArgs {
    /// Directory of the language model whose answers should be better
    #[arg(
        help_heading = "Input and output",
        long,
        value_name = "DIR",
        required_unless_present = "answers",
        conflicts_with = "answers"
    )]
    model_name_or_path: Option<PathBuf>,
    /// Directory of the language model that it is held against
    #[arg(
        help_heading = "Input and output",
        long,
        value_name = "DIR",
        required_unless_present = "answers",
        conflicts_with = "answers"
    )]
    baseline: Option<PathBuf>,
    /// Held-out prompts: JSONL or Parquet with a `prompt` column, a text or a list of messages
    #[arg(
        help_heading = "Input and output",
        long,
        value_name = "FILE",
        required_unless_present = "answers",
        conflicts_with = "answers"
    )]
    prompts: Option<PathBuf>,
    /// Directory of the reward model that judges; without it the answers are only written
    #[arg(help_heading = "Input and output", long, value_name = "DIR", conflicts_with = "answers")]
    reward_model_path: Option<PathBuf>,
    /// JSONL to write: index, prompt, baseline, model, and score_baseline, score_model of a reward model
    #[arg(
        help_heading = "Input and output",
        long,
        value_name = "FILE",
        required_unless_present_any = ["reward_model_path", "answers"],
        conflicts_with = "answers"
    )]
    output: Option<PathBuf>,
    /// Answers that were written by --output, to be judged by --scores
    #[arg(help_heading = "Input and output", long, value_name = "FILE", requires = "scores")]
    answers: Option<PathBuf>,
    /// What your own judge says of --answers: JSONL, one row an answer pair in any order, either
    /// {"index": 0, "score_model": 1.5, "score_baseline": 0.5}, higher is better, or
    /// {"index": 0, "preferred": "model"}, or "baseline", or "tie"; other keys are not read
    #[arg(help_heading = "Input and output", long, value_name = "FILE", requires = "answers", verbatim_doc_comment)]
    scores: Option<PathBuf>,
    /// Tokens of an answer at most
    #[arg(help_heading = "Answers")]
    #[arg(long, default_value_t = 128, value_parser = crate::config::at_least_one(), conflicts_with = "answers")]
    max_new_tokens: usize,
    /// Divides the logits; 0 takes the most likely token, so that the answers do not depend on chance
    #[arg(
        help_heading = "Answers",
        long,
        default_value_t = 0.0,
        value_parser = crate::config::temperature_or_greedy,
        conflicts_with = "answers"
    )]
    temperature: f64,
    /// Sample among the k most likely tokens; 0 means all
    #[arg(help_heading = "Answers")]
    #[arg(long, default_value_t = 0, value_parser = crate::config::count, conflicts_with = "answers")]
    top_k: usize,
    /// Sample among the most likely tokens that hold this much probability
    #[arg(help_heading = "Answers")]
    #[arg(long, default_value_t = 1.0, value_parser = crate::config::share, conflicts_with = "answers")]
    top_p: f64,
    /// Random numbers of the answers
    #[arg(help_heading = "Answers")]
    #[arg(long, default_value_t = 42, value_parser = crate::config::seed, conflicts_with = "answers")]
    seed: u64,
    /// Where to compute: auto, cpu, cuda, cuda:N (the N-th GPU, from 0), emulated
    #[arg(help_heading = "Input and output", long, default_value = "auto", conflicts_with = "answers")]
    device: String,
    /// Print JSON
    #[arg(help_heading = "Input and output", long)]
    json: bool,
}

/// Pairs scored between two looks at the clock.
const BATCH: usize = 64;
/// Two answers are of similar length if the shorter one has this share of the longer one's characters.
const SIMILAR: f64 = 0.8;

/// Two answers to one prompt.
pub(super) struct Answers {
    /// Empty where it was not read.
    pub(super) prompt: String,
    /// The model's and the baseline's.
    pub(super) texts: [String; 2],
}

impl Answers {
    /// In characters: tokens of two models are not of one kind.
    fn lengths(&self) -> [f64; 2] {
        self.texts.each_ref().map(|text| text.chars().count() as f64)
    }

    fn are_of_similar_length(&self) -> bool {
        let [a, b] = self.lengths();
        a.min(b) >= SIMILAR * a.max(b)
    }
}

/// Compares.
pub(super) fn run(args: &WinRateArgs) -> Result<()> {
    if let (Some(answers), Some(scores)) = (&args.answers, &args.scores) {
        let compared = read_answers(answers)?;
        let verdicts = read_verdicts(scores, compared.len())?;
        let heading = format!("model against baseline, judged by {}", scores.display());
        describe(heading, &compared, &verdicts, None).print(args.json);
        return Ok(());
    }
    let missing = |name: &str| Error::usage("option-missing", format!("`--{name}` is needed"));
    let model = args.model_name_or_path.as_ref().ok_or_else(|| missing("model-name-or-path"))?;
    let baseline = args.baseline.as_ref().ok_or_else(|| missing("baseline"))?;
    let prompts = args.prompts.as_ref().ok_or_else(|| missing("prompts"))?;
    if let Some(output) = &args.output {
        check_output(output, prompts)?;
    }
    [model, baseline].into_iter().try_for_each(|dir| check_head(dir, Head::Language))?;
    args.reward_model_path.iter().try_for_each(|dir| check_head(dir, Head::Score))?;
    let (device, rows) = (Device::parse(&args.device)?, read_rows(prompts)?);
    let mut journal = Journal::shown();
    let ours = answer(args, &device, ("model", model), &rows, &mut journal)?;
    let theirs = answer(args, &device, ("baseline", baseline), &rows, &mut journal)?;
    let cut = [&ours, &theirs].map(|answers| answers.iter().filter(|(_, stopped)| !stopped).count());
    let texts = ours.into_iter().zip(theirs).map(|((ours, _), (theirs, _))| [ours, theirs]);
    let compared: Vec<Answers> = rows
        .iter()
        .zip(texts)
        .map(|(row, texts)| Ok(Answers { prompt: prompt_text(row)?, texts }))
        .collect::<Result<_>>()?;
    let judge = args.reward_model_path.as_ref();
    let verdicts = judge.map(|dir| judged(&device, dir, &rows, &compared, &mut journal)).transpose()?;
    if let Some(output) = &args.output {
        write(output, &compared, verdicts.as_ref())?;
    }
    let place = |path: &Path| path.display().to_string();
    match (verdicts, judge) {
        (Some(verdicts), Some(judge)) => {
            let [model, baseline, judge] = [model, baseline, judge].map(|path| place(path));
            let heading = format!("{model} against {baseline}, judged by {judge}");
            describe(heading, &compared, &verdicts, Some(cut)).print(args.json);
        }
        _ => written(args, compared.len(), cut).print(args.json),
    }
    Ok(())
}

/// The answers of the model in `dir`, and whether each ended by itself.
fn answer(
    args: &WinRateArgs,
    device: &Device,
    (role, dir): (&str, &Path),
    rows: &[Row],
    journal: &mut Journal,
) -> Result<Vec<(String, bool)>> {
    let loaded = Pretrained::load(device, dir)?;
    let prompts = generate::prompts(&loaded, rows.iter().cloned().map(Ok), args.max_new_tokens)?;
    let sampling = Sampling { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p };
    let answering = Answering { sampling, max_new_tokens: args.max_new_tokens, seed: args.seed };
    let mut answers = Vec::with_capacity(prompts.len());
    journal.begin(role, prompts.len());
    generate::answer(&loaded, &prompts, &answering, |_, response, text| {
        answers.push((text, response.stopped));
        journal.progress(answers.len(), "answers");
        Ok(())
    })?;
    journal.end()?;
    Ok(answers)
}

/// A row's prompt for a judge to read: its text, or its turns.
fn prompt_text(row: &Row) -> Result<String> {
    Ok(match formats::prompt(row)?.body {
        Turns::Text(text) => text,
        Turns::Messages(turns) => match &turns[..] {
            [only] => only.content.clone(),
            turns => turns.iter().map(|t| format!("{}: {}", t.role, t.content)).collect::<Vec<_>>().join("\n"),
        },
    })
}

/// What the reward model in `dir` says. It reads each answer as it read those that it was trained on: through its own
/// template, with an end-of-sequence token.
fn judged(device: &Device, dir: &Path, rows: &[Row], compared: &[Answers], journal: &mut Journal) -> Result<Verdicts> {
    let loaded = Pretrained::load(device, dir)?;
    let options = PairOptions { max_length: loaded.model.config().max_positions, strict: true };
    let pairs = rows.iter().zip(compared).map(|(row, answers)| Ok(pair(row, answers)));
    let pairs = encode_pairs(pairs, &loaded.tokenizer, loaded.template.as_ref(), &options);
    let pairs = pairs.map_err(every_row)?.examples;
    let mut scores = Vec::with_capacity(pairs.len());
    journal.begin("judge", pairs.len());
    for chunk in pairs.chunks(BATCH) {
        let scored = evaluate(&loaded.model, chunk)?;
        let flat: Vec<f32> = scored.iter().flat_map(|pair| [pair.chosen as f32, pair.rejected as f32]).collect();
        check_scores(&flat, |i| chunk[i / 2].place.clone())?;
        scores.extend(scored.iter().map(|pair| [pair.chosen, pair.rejected]));
        journal.progress(scores.len(), "answer pairs");
    }
    journal.end()?;
    Ok(Verdicts::Scores(scores))
}

/// The model's answer as the chosen one, in the form of the prompt.
fn pair(row: &Row, answers: &Answers) -> Row {
    let prompt = row.fields.get("prompt").cloned().unwrap_or_default();
    let is_conversation = prompt.is_array();
    let side = |text: &String| match is_conversation {
        true => json!([{ "role": "assistant", "content": text }]),
        false => json!(text),
    };
    let [chosen, rejected] = answers.texts.each_ref().map(side);
    let fields = [("prompt", prompt), ("chosen", chosen), ("rejected", rejected)];
    Row { place: row.place.clone(), fields: fields.map(|(name, value)| (name.to_owned(), value)).into_iter().collect() }
}

/// Writes the answers, and the scores if there are any.
fn write(output: &Path, compared: &[Answers], verdicts: Option<&Verdicts>) -> Result<()> {
    write_file_with(output, |file| {
        for (index, answers) in compared.iter().enumerate() {
            let [model, baseline] = &answers.texts;
            let mut row = Map::new();
            row.insert("index".into(), json!(index));
            row.insert("prompt".into(), json!(answers.prompt));
            row.insert("baseline".into(), json!(baseline));
            row.insert("model".into(), json!(model));
            if let Some([model, baseline]) = verdicts.and_then(Verdicts::scores).map(|scores| scores[index]) {
                row.insert("score_baseline".into(), json!(baseline));
                row.insert("score_model".into(), json!(model));
            }
            file.write(format!("{}\n", Value::Object(row)).as_bytes())?;
        }
        Ok(())
    })
}

/// Means over `rows` of a number of the model and one of the baseline.
fn means(rows: impl Iterator<Item = [f64; 2]>) -> [f64; 2] {
    let (sums, n) = rows.fold(([0.0; 2], 0), |(sums, n), row| ([sums[0] + row[0], sums[1] + row[1]], n + 1));
    sums.map(|sum| sum / f64::from(n.max(1)))
}

/// What is said where nobody has judged yet.
fn written(args: &WinRateArgs, count: usize, cut: [usize; 2]) -> Findings {
    let output = args.output.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    let next = format!("rlhf eval win-rate --answers {output} --scores FILE");
    Findings {
        heading: format!("{count} answers of each model are in {output}"),
        rows: vec![("cut at the limit", format!("model {}, baseline {}", cut[0], cut[1])), ("next", next)],
        json: json!({ "comparisons": count, "cut_model": cut[0], "cut_baseline": cut[1] }),
    }
}

fn record<'a>(compared: impl Iterator<Item = (&'a Answers, [f64; 2])>) -> Record {
    let mut record = Record::default();
    compared.for_each(|(_, [model, baseline])| record.add(model, baseline));
    record
}

/// The comparison in numbers; `cut` counts each side's answers that did not end by themselves, where that is known.
fn describe(heading: String, compared: &[Answers], verdicts: &Verdicts, cut: Option<[usize; 2]>) -> Findings {
    let judged = || compared.iter().zip(verdicts.ranks());
    let (all, similar) = (record(judged()), record(judged().filter(|(answers, _)| answers.are_of_similar_length())));
    let word = match (all.is_significant(), all.win_rate() > 0.5) {
        (false, _) => "not significant: 50 % lies in the interval",
        (true, true) => "the model is better: the interval lies above 50 %",
        (true, false) => "the baseline is better: the interval lies below 50 %",
    };
    let lengths = means(compared.iter().map(Answers::lengths));
    let mut rows = vec![
        ("comparisons", all.total().to_string()),
        ("win rate", percent(all.win_rate(), all.interval())),
        ("", word.to_owned()),
        ("wins, ties, losses", format!("{}, {}, {}", all.wins, all.ties, all.losses)),
    ];
    let mut json = of_record(&all);
    json.insert("significant".into(), json!(all.is_significant()));
    let mut both = |name, key: &str, [model, baseline]: [f64; 2], unit: &str, digits| {
        rows.push((name, format!("model {model:.digits$}, baseline {baseline:.digits$}{unit}")));
        json.insert(format!("{key}_model"), json!(model));
        json.insert(format!("{key}_baseline"), json!(baseline));
    };
    if let Some(scores) = verdicts.scores() {
        both("mean score", "mean_score", means(scores.iter().copied()), "", 4);
    }
    both("mean length", "mean_length", lengths, " characters", 1);
    if let Some(cut) = cut {
        both("cut at the limit", "cut", cut.map(|n| n as f64), "", 0);
    }
    let of_similar = match similar.total() {
        0 => "no two answers are of similar length".to_owned(),
        n => format!("{} over {n} comparisons", percent(similar.win_rate(), similar.interval())),
    };
    rows.push(("at similar length", of_similar));
    json.insert("similar_length".into(), Value::Object(of_record(&similar)));
    Findings { heading, rows, json: Value::Object(json) }
}

fn of_record(record: &Record) -> Map<String, Value> {
    let entries = [
        ("comparisons", json!(record.total())),
        ("wins", json!(record.wins)),
        ("ties", json!(record.ties)),
        ("losses", json!(record.losses)),
        ("win_rate", json!(record.win_rate())),
        ("interval", json!(record.interval())),
    ];
    entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
