//! `rlhf data check` and `rlhf data preview`: a data set looked at as training would read it, before anything is
//! trained. Of the model only the tokenizer, the chat template and the configuration are read.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};

use super::selftest::print;
use super::sft::loss_on;
use crate::config::{EpochArgs, PpoConfig, at_least_one, defaults};
use crate::data::check::{Checked, Checker, Memory};
use crate::data::encode::{PairOptions, PromptOptions, SftOptions};
use crate::data::job::Job;
use crate::data::ledger::Stage;
use crate::data::lint::text::verdict;
use crate::data::preview::{Paint, Preview, Selection, missing_row};
use crate::data::records::open_rows;
use crate::data::template::ChatTemplate;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result, visible};
use crate::model::ModelConfig;

/// Rows that are in memory at a time.
const ROWS_AT_ONCE: usize = 1024;

/// What is done with a data set.
#[derive(Debug, clap::Subcommand)]
pub(super) enum DataCommand {
    /// Look for what would make training on a data set worthless
    #[command(after_help = super::examples::DATA_CHECK, args_override_self = true)]
    Check(CheckArgs),
    /// Show rows token for token, with what the loss learns of them
    #[command(after_help = super::examples::DATA_PREVIEW, args_override_self = true)]
    Preview(PreviewArgs),
}

/// What decides how rows become tokens.
#[derive(Debug, clap::Args)]
struct Reading {
    /// JSONL or Parquet, in TRL's columns
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Directory of the model that is to be trained; its weights are not read
    #[arg(help_heading = "How rows are read", long, value_name = "DIR")]
    model_name_or_path: PathBuf,
    /// What the rows are for; without it that is guessed from the columns, and said
    #[arg(help_heading = "How rows are read", long, value_enum)]
    stage: Option<StageName>,
    /// sft, reward: tokens of a row at most [1024, or the model's positions where they are fewer]
    #[arg(help_heading = "How rows are read", long, value_parser = at_least_one())]
    max_length: Option<usize>,
    /// ppo: tokens of a response at most [53]
    #[arg(help_heading = "How rows are read", long, value_parser = at_least_one())]
    response_length: Option<usize>,
    /// sft: loss on the completion only; the default for prompt-completion data
    #[arg(help_heading = "How rows are read")]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    completion_only_loss: Option<bool>,
    /// sft: loss on the assistant's turns only, for conversations
    #[arg(help_heading = "How rows are read")]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    assistant_only_loss: Option<bool>,
}

/// Options of `rlhf data check`.
#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    reading: Reading,
    /// Held-out data of the same kind: checked too, and held against the training data
    #[arg(help_heading = "How rows are read", long, value_name = "FILE")]
    eval_dataset: Option<PathBuf>,
    /// Exit with 3 on warnings too
    #[arg(help_heading = "What is shown", long)]
    strict: bool,
    /// Print one JSON object
    #[arg(help_heading = "What is shown", long)]
    json: bool,
}

/// Options of `rlhf data preview`.
#[derive(Debug, clap::Args)]
pub(super) struct PreviewArgs {
    #[command(flatten)]
    reading: Reading,
    /// How many rows from the first on, or which: 3, or 2,7,10-12
    #[arg(help_heading = "What is shown")]
    #[arg(long, value_name = "ROWS", default_value = "3", value_parser = Selection::parse)]
    rows: Selection,
    /// Colour; auto is on a terminal, unless NO_COLOR is set
    #[arg(help_heading = "What is shown", long, value_enum, default_value = "auto")]
    color: When,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum StageName {
    Sft,
    Reward,
    Ppo,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum When {
    Auto,
    Always,
    Never,
}

/// Looks at a data set.
pub(super) fn run(command: &DataCommand) -> Result<()> {
    match command {
        DataCommand::Check(args) => check(args),
        DataCommand::Preview(args) => preview(args),
    }
}

/// The parts of a model that turn rows into tokens, and how they are to do it.
struct Reader {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    job: Job,
    /// The columns that the stage was guessed from.
    guessed: Option<&'static str>,
    positions: usize,
}

impl Reader {
    fn open(args: &Reading) -> Result<Self> {
        let dir = &args.model_name_or_path;
        std::fs::metadata(&args.file).map_err(|e| Error::io("looking for the data set", &args.file, &e))?;
        crate::train::pretrained::check_directory(dir)?;
        let config = ModelConfig::load(dir)?;
        let tokenizer = Tokenizer::load(dir)?;
        let template = ChatTemplate::load(dir, &tokenizer)?;
        let at_model = |error: Error| error.at_if_unplaced(dir.display().to_string());
        tokenizer.check_vocabulary(config.vocab_size).map_err(at_model)?;
        let (stage, guessed) = stage(args)?;
        let job = job(args, stage, config.max_positions)?;
        Ok(Self { tokenizer, template, job, guessed, positions: config.max_positions })
    }

    /// One line on what the rows are read for.
    fn describe(&self, args: &Reading) -> String {
        let guessed = self.guessed.map(|columns| format!(", as the columns {columns} suggest")).unwrap_or_default();
        let longest = self.job.longest();
        let limit = match self.job {
            Job::Sft(_) | Job::Reward(_) => format!("max_length {longest}"),
            Job::Ppo(options) => format!("prompts of at most {longest} tokens before {}", options.response_length),
        };
        let [file, model] = [&args.file, &args.model_name_or_path].map(|path| path.display().to_string());
        format!(
            "{} for `rlhf {}`{guessed}; model {}, {} positions, {limit}",
            visible(&file),
            self.job.stage().command(),
            visible(&model),
            self.positions
        )
    }

    fn check(&self, path: &Path, training: Option<&Memory>, is_quiet: bool) -> Result<Checked> {
        let mut checker = Checker::new(self.job, &self.tokenizer, self.template.as_ref(), training);
        let bar = if is_quiet { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
        let style = ProgressStyle::with_template("{spinner} {pos} rows of {msg}, {per_sec}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.set_message(visible(&path.display().to_string()).into_owned());
        bar.enable_steady_tick(Duration::from_millis(250));
        let mut rows = open_rows(path)?.past_bad_lines();
        loop {
            let some: Vec<_> = rows.by_ref().take(ROWS_AT_ONCE).collect();
            if some.is_empty() {
                break;
            }
            let count = some.len() as u64;
            checker.rows(some)?;
            bar.inc(count);
        }
        bar.finish_and_clear();
        checker.close()
    }
}

/// The stage that is asked for, or the one that the first row is made for, with the columns that say so.
fn stage(args: &Reading) -> Result<(Stage, Option<&'static str>)> {
    match args.stage {
        Some(StageName::Sft) => return Ok((Stage::Sft, None)),
        Some(StageName::Reward) => return Ok((Stage::Reward, None)),
        Some(StageName::Ppo) => return Ok((Stage::Ppo, None)),
        None => {}
    }
    let mut first = open_rows(&args.file)?.past_bad_lines().filter_map(Result::ok);
    let row = first.next();
    match row.as_ref().and_then(Stage::guess) {
        Some((stage, columns)) => Ok((stage, Some(columns))),
        None => Err(Error::usage("stage-unknown", "the columns do not say what the rows are for")
            .at(row.map_or_else(|| args.file.display().to_string(), |row| row.place))
            .because("no stage reads such a row")
            .fix("give --stage sft, reward or ppo: it then says which columns are missing")),
    }
}

fn job(args: &Reading, stage: Stage, positions: usize) -> Result<Job> {
    let unused = |given: bool, name: &str| {
        let what = format!("--{name} means nothing to `rlhf {}`", stage.command());
        if given {
            Err(Error::usage("option-unused", what).fix("leave it out, or give another --stage"))
        } else {
            Ok(())
        }
    };
    let is_ppo = stage == Stage::Ppo;
    unused(is_ppo && args.max_length.is_some(), "max-length")?;
    unused(!is_ppo && args.response_length.is_some(), "response-length")?;
    unused(stage != Stage::Sft && args.completion_only_loss.is_some(), "completion-only-loss")?;
    unused(stage != Stage::Sft && args.assistant_only_loss.is_some(), "assistant-only-loss")?;
    let epochs = EpochArgs { num_train_epochs: None, max_steps: None, max_length: args.max_length };
    let job = match stage {
        Stage::Sft => Job::Sft(SftOptions {
            max_length: epochs.max_length(positions)?,
            loss_on: loss_on(args.assistant_only_loss == Some(true), args.completion_only_loss)?,
            append_eos: true,
            strict: false,
        }),
        Stage::Reward => Job::Reward(PairOptions { max_length: epochs.max_length(positions)?, strict: false }),
        Stage::Ppo => {
            let usual = defaults::<PpoConfig>()?.rollout.response_length;
            let response_length = args.response_length.unwrap_or(usual);
            Job::Ppo(PromptOptions { context: positions, response_length, strict: false })
        }
    };
    job.check()?;
    Ok(job)
}

fn check(args: &CheckArgs) -> Result<()> {
    let reader = Reader::open(&args.reading)?;
    let file = &args.reading.file;
    let mut files = Vec::from([("dataset", file, reader.check(file, None, args.json)?)]);
    if let Some(path) = &args.eval_dataset {
        let checked = reader.check(path, files.first().map(|(_, _, checked)| &checked.memory), args.json)?;
        files.push(("eval_dataset", path, checked));
    }
    let mut counts = [0; 3];
    for (_, _, checked) in &files {
        counts.iter_mut().zip(checked.counts()).for_each(|(sum, count)| *sum += count);
    }
    if args.json {
        print(&format!("{:#}", report(args, &reader, &files, counts)));
    } else {
        print(&format!("{}\n", reader.describe(&args.reading)));
        for (role, path, checked) in &files {
            print(&format!("{role}: {}\n{}", visible(&path.display().to_string()), checked.describe()));
        }
        print(&verdict(counts));
    }
    let [errors, warnings, _] = counts;
    if errors > 0 || args.strict && warnings > 0 {
        let error =
            Error::input("data-check", format!("the data does not pass (errors: {errors}, warnings: {warnings})"));
        let why = if errors > 0 { "training would stop at an error" } else { "--strict lets no warning pass" };
        return Err(error.at(file.display().to_string()).because(why).fix("see what is said of each above"));
    }
    Ok(())
}

fn report(args: &CheckArgs, reader: &Reader, files: &[(&str, &PathBuf, Checked)], counts: [u64; 3]) -> Value {
    let [errors, warnings, notes] = counts;
    let mut report = Map::new();
    let mut add = |name: &str, value: Value| report.insert(name.to_owned(), value);
    add("version", json!(env!("CARGO_PKG_VERSION")));
    add("model", json!(args.reading.model_name_or_path.display().to_string()));
    add("positions", json!(reader.positions));
    add("stage", json!(reader.job.stage()));
    add("stage_guessed_from", json!(reader.guessed));
    add("longest", json!(reader.job.longest()));
    for (role, path, checked) in files {
        let mut file = checked.to_json();
        if let Value::Object(file) = &mut file {
            file.insert("file".to_owned(), json!(path.display().to_string()));
        }
        add(role, file);
    }
    add("errors", json!(errors));
    add("warnings", json!(warnings));
    add("notes", json!(notes));
    add("verdict", json!(verdict(counts)));
    Value::Object(report)
}

fn preview(args: &PreviewArgs) -> Result<()> {
    let reader = Reader::open(&args.reading)?;
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let is_coloured = match args.color {
        When::Always => true,
        When::Never => false,
        When::Auto => std::io::stdout().is_terminal() && !no_color,
    };
    let paint = if is_coloured { Paint::Colour } else { Paint::Plain };
    let preview = Preview::new(reader.job, &reader.tokenizer, reader.template.as_ref(), paint);
    print(&format!("{}\n", reader.describe(&args.reading)));
    let mut number = 0;
    for row in
        open_rows(&args.reading.file)?.past_bad_lines().take(usize::try_from(args.rows.last()).unwrap_or(usize::MAX))
    {
        number += 1;
        if args.rows.contains(number) {
            print(&preview.row(number, row)?);
        }
    }
    if let Some(missing) = args.rows.named().filter(|named| *named > number) {
        return Err(missing_row(missing, number, &args.reading.file.display().to_string()));
    }
    print(preview.legend().trim_end());
    Ok(())
}
