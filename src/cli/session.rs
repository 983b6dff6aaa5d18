//! What every run begins and ends with: the device, the output directory and its lock, the head that says what will be
//! done, `run.json`, and the models that are saved.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::resume::{self, Start};
use super::settings::Settings;
use crate::config::{ComputeDType, EvalArgs, OptimizerArgs, ROWS_PER_PASS, RunArgs, SaveArgs};
use crate::data::encode::Encoded;
use crate::data::ledger::Ledger;
use crate::data::records::{Rows, open_rows};
use crate::data::template::ChatTemplate;
use crate::data::tokenizer::Tokenizer;
use crate::device::Device;
use crate::disk::{self, DirLock, Existing};
use crate::error::{Code, Error, Result};
use crate::model::Model;
use crate::model::card::{Card, Stage};
use crate::model::checkpoint::{saved_files, source_files};
use crate::model::config::model_file;
use crate::train::checkpoint::identity::{Identity, file_hash, files_hash};
use crate::train::checkpoint::{self, Checkpoints, Finished, Found, seal};
use crate::train::metrics::{Journal, RUN_FILE, tell};
use crate::train::plan;

/// A run in its output directory.
pub(super) struct Session {
    pub(super) device: Device,
    pub(super) output: PathBuf,
    settings: Settings,
    save: SaveArgs,
    start: Start,
    identity: Identity,
    /// Files of the result, from the output directory.
    result: Vec<String>,
    facts: Map<String, Value>,
    quiet: bool,
    dry_run: bool,
    data: Vec<String>,
    lock: Option<DirLock>,
    /// Bytes of the GPU's memory that could be planned with before the run took any.
    usable: usize,
    /// Bytes that the plan has at its peak.
    planned: Option<usize>,
}

impl Session {
    /// Checks device, floats and output directory, takes the directory's lock, prints the settings, and looks for what
    /// the run begins from.
    pub(super) fn open(run: &RunArgs, settings: &Settings) -> Result<Self> {
        let device = compute_device(run)?;
        let usable = device.memory_to_plan()?;
        let output = resume::output_dir(&run.save, run.output_dir.as_ref())?;
        let resumed = resume::is_asked(&run.save);
        let lock = match (run.dry_run, resumed) {
            (false, _) => Some(resume::claim(&output, resumed)?),
            (true, false) => refuse_existing(&output).map(|()| None)?,
            (true, true) => None,
        };
        let mut session = Self {
            identity: Identity {
                program: Identity::of_program()?,
                arithmetic: arithmetic(&device),
                settings: settings.to_map(),
                ..Identity::default()
            },
            device,
            output,
            settings: settings.clone(),
            save: run.save.clone(),
            start: Start::Fresh,
            result: Vec::new(),
            facts: Map::new(),
            quiet: run.quiet,
            dry_run: run.dry_run,
            data: Vec::new(),
            lock,
            usable,
            planned: None,
        };
        session.say(&format!("rlhf {} {}, on {}", env!("CARGO_PKG_VERSION"), settings.stage, session.device.name()));
        session.say(&settings.describe());
        if let Some(owner) = session.lock.as_ref().and_then(DirLock::stale) {
            session.say(&format!("  note: {owner}"));
        }
        session.start = resume::find(&run.save, &session.output, &|line| session.say(line))?;
        Ok(session)
    }

    /// Whether an earlier run has done all of this; says so.
    pub(super) fn is_finished(&self) -> Result<bool> {
        let Start::Finished(manifest) = &self.start else { return Ok(false) };
        resume::finished(manifest, &self.identity, &self.save, &self.output, &|line| self.say(line)).map(|()| true)
    }

    /// A line for the person who watches.
    pub(super) fn say(&self, line: &str) {
        if !self.quiet {
            tell(line);
        }
    }

    /// Reads a model with its tokenizer and template, and says what it is.
    pub(super) fn load(&mut self, role: &str, dir: &Path) -> Result<Loaded> {
        let loaded = Loaded::read(&self.device, dir)?;
        let config = loaded.model.config();
        self.say(&format!(
            "{role}: {} ({:?}, {} layers, width {}, {} parameters, {} positions)",
            dir.display(),
            config.architecture,
            config.layers,
            config.hidden_size,
            config.parameters(),
            config.max_positions
        ));
        for note in loaded.model.notes().iter().chain(loaded.tokenizer.notes()) {
            self.say(&format!("  note: {note}"));
        }
        self.facts.insert(role.to_owned(), json!(dir.display().to_string()));
        for (part, files) in source_files(dir)? {
            let files: Vec<(&str, &Path)> = files.iter().map(|(name, path)| (name.as_str(), path.as_path())).collect();
            self.identity.inputs.insert(format!("{role}/{part}"), files_hash(&files)?);
        }
        Ok(loaded)
    }

    /// Counts a file among what the run is made from.
    pub(super) fn made_from(&mut self, role: &str, path: &Path) -> Result<()> {
        self.identity.inputs.insert(role.to_owned(), file_hash(path)?);
        Ok(())
    }

    /// Opens a data set.
    pub(super) fn rows(&mut self, path: &Path) -> Result<Rows> {
        self.data.push(path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned());
        open_rows(path)
    }

    /// Prints a data set's ledger and keeps it for `run.json`; the file, which was good, is what the run is made from.
    pub(super) fn account<T>(&mut self, role: &str, path: &Path, encoded: Encoded<T>) -> Result<Vec<T>> {
        self.made_from(role, path)?;
        self.say(&format!("{role}:\n{}", encoded.ledger));
        if encoded.ledger.template_never_writes_eos() {
            self.say(
                "  note: the chat template never writes an end-of-sequence token: the model will not learn to stop",
            );
        }
        self.keep(role, &encoded.ledger);
        Ok(encoded.examples)
    }

    fn keep(&mut self, role: &str, ledger: &Ledger) {
        self.facts.insert(role.to_owned(), serde_json::to_value(ledger).unwrap_or_default());
    }

    /// Plans the memory of a GPU and sets the rows of a pass; says so, and keeps it for `run.json`. On the CPU nothing
    /// is planned.
    ///
    /// # Errors
    /// A run that does not fit.
    pub(super) fn plan(&mut self, job: &impl plan::Job, optimizer: &mut OptimizerArgs) -> Result<()> {
        if let Some(plan) = plan::make(job, &self.device, self.usable)? {
            self.say(&plan.summary(self.usable));
            if self.dry_run {
                self.say(&plan.table());
            }
            self.facts.insert("memory".into(), plan.to_json());
            self.planned = Some(plan.peak());
            // A resumed run sums its gradients in the same passes, if these fit.
            let before = self.found().and_then(|found| found.manifest.identity.numbers.get("rows_per_pass").copied());
            let before = before.and_then(|rows| usize::try_from(rows).ok()).filter(|rows| *rows <= plan.micro_batch);
            optimizer.micro_batch = Some(before.unwrap_or(plan.micro_batch));
        }
        self.identity.numbers.insert("rows_per_pass".into(), optimizer.rows_per_pass() as u64);
        self.settings.complete("per-device-train-batch-size", ROWS_PER_PASS);
        self.identity.settings = self.settings.to_map();
        self.facts.insert("rows_per_pass".into(), json!(optimizer.rows_per_pass()));
        self.facts.insert("rows_per_step".into(), json!(optimizer.rows_per_step()));
        Ok(())
    }

    /// After a run: what it took of the GPU's memory, beside what was planned.
    pub(super) fn compare_memory(&self) -> Result<()> {
        if let Some(planned) = self.planned {
            let [peak, planned] = [self.device.take_memory_peak()?, planned].map(plan::text);
            self.say(&format!("memory: {peak} at the peak, {planned} were planned"));
        }
        Ok(())
    }

    fn found(&self) -> Option<&Found> {
        if let Start::From(found) = &self.start { Some(found) } else { None }
    }

    /// Compares the run with the checkpoint that it begins from, if there is one; `rows` is how many rows an epoch has.
    fn compare(&mut self, rows: usize) -> Result<()> {
        self.identity.numbers.insert("rows".into(), rows as u64);
        let Some(found) = self.found() else { return Ok(()) };
        let differences = self.identity.differences(&found.manifest.identity);
        resume::compare(&differences, &self.save, &found.path, &|line| self.say(line))?;
        let [step, total] = [found.manifest.step, found.manifest.total_steps];
        self.say(&format!("resumed from {} (step {step} of {total})", found.path.display()));
        Ok(())
    }

    /// Opens the metrics, unless this is a dry run: then there is nothing more to do. `rows` is how many rows an epoch
    /// has.
    pub(super) fn begin(&mut self, rows: usize) -> Result<Option<Journal>> {
        self.compare(rows)?;
        if self.dry_run {
            self.say(&format!("dry run: nothing was written to {}", self.output.display()));
            return Ok(None);
        }
        let mut run = Map::new();
        run.insert("version".into(), json!(env!("CARGO_PKG_VERSION")));
        run.insert("command".into(), json!(self.settings.stage));
        run.insert("device".into(), json!(self.device.name()));
        run.insert("settings".into(), self.settings.to_json());
        run.extend(self.facts.clone());
        if let Some(found) = self.found() {
            run.insert("resumed_after".into(), json!(found.manifest.step));
            resume::discard_later(&self.output, found, &|line| self.say(line))?;
        }
        disk::write_file(&self.output.join(RUN_FILE), format!("{:#}\n", Value::Object(run)).as_bytes())?;
        let marks = self.found().and_then(|found| found.saved()?.journal.as_ref());
        let journal = match marks {
            Some(marks) => Journal::resume(&self.output, self.quiet, marks)?,
            None => Journal::new(&self.output, self.quiet)?,
        };
        Ok(Some(journal))
    }

    /// Saves a model under the output directory; `place` is empty for the run's result.
    pub(super) fn save(&mut self, place: &str, stage: Stage, model: &Model) -> Result<PathBuf> {
        let dir = if place.is_empty() { self.output.clone() } else { self.output.join(place) };
        disk::create_output_dir(&dir, Existing::Reuse)?;
        self.save_into(&dir, stage, model)?;
        let prefix = if place.is_empty() { String::new() } else { format!("{place}/") };
        self.result.extend(saved_files(&dir)?.iter().map(|name| format!("{prefix}{name}")));
        Ok(dir)
    }

    /// Ends a run whose result is saved: from now on it is finished.
    pub(super) fn finish(self, more: &[&str], steps: usize) -> Result<PathBuf> {
        let files: Vec<String> = self.result.into_iter().chain(more.iter().map(|name| (*name).to_owned())).collect();
        let finished = Finished { stage: self.settings.stage, steps, identity: self.identity, journal: None };
        seal(&self.output, &files, finished)?;
        Ok(self.output)
    }

    fn save_into(&self, dir: &Path, stage: Stage, model: &Model) -> Result<()> {
        let name = self.output.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let source = model.source().map(|s| s.display().to_string()).unwrap_or_default();
        let card = Card {
            name: &name,
            stage,
            head: model.config().head,
            source: &source,
            data: &self.data,
            settings: &self.settings.for_card(),
            results: &[],
            date: None,
        };
        model.save(dir, &card.render(model.config()))
    }

    /// The run's checkpoints.
    pub(super) fn checkpoints(&self, stage: Stage) -> Checkpoints<'_> {
        let export = move |dir: &Path, model: &Model| self.save_into(dir, stage, model);
        let dir = self.output.join(checkpoint::DIR);
        let (identity, from) = (self.identity.clone(), self.found().cloned());
        Checkpoints::new(dir, self.settings.stage, &self.save, identity, from, Box::new(export))
    }
}

/// What decides the last bits of results: what computes, and in which floats. Matrix products on a CPU are cut to the
/// sizes of its caches, so its model counts.
pub(super) fn arithmetic(device: &Device) -> String {
    let processor = || {
        let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        name.map_or_else(|| "a CPU".to_owned(), |(_, name)| name.to_owned())
    };
    match device {
        Device::Cpu => format!("{} ({}) in f32", processor(), crate::cpu::math::instructions()),
        Device::Gpu(_) => format!("{} in {:?}", device.description(), device.dtype()),
    }
}

/// The device that a run names, set to compute in the floats that it names.
fn compute_device(run: &RunArgs) -> Result<Device> {
    match (Device::parse(&run.device)?, run.dtype) {
        (Device::Cpu, ComputeDType::Bf16) => {
            Err(Error::new(Code::Usage, "dtype-unavailable", "bf16 is not computed on the CPU")
                .because("the CPU path computes in f32; bf16 and f16 weights are widened when they are read")
                .fix("use `--dtype auto` or `--dtype f32`, or a GPU"))
        }
        (device, ComputeDType::F32) => Ok(device.in_f32()),
        (device, _) => Ok(device),
    }
}

/// A model directory, read.
pub(super) struct Loaded {
    pub(super) model: Model,
    pub(super) tokenizer: Tokenizer,
    pub(super) template: Option<ChatTemplate>,
}

impl Loaded {
    /// Reads model, tokenizer and template, and checks that they fit together.
    pub(super) fn read(device: &Device, dir: &Path) -> Result<Self> {
        check_directory(dir)?;
        let tokenizer = Tokenizer::load(dir)?;
        let template = ChatTemplate::load(dir, &tokenizer)?;
        let model = Model::load(device, dir)?;
        tokenizer
            .check_vocabulary(model.config().vocab_size)
            .map_err(|e| e.at_if_unplaced(dir.display().to_string()))?;
        Ok(Self { model, tokenizer, template })
    }

    /// Tokens that end a response; a model without one can never end.
    pub(super) fn stop_tokens(&self) -> Result<Vec<i32>> {
        let mut stop = self.tokenizer.eos_token_ids().to_vec();
        stop.extend(self.model.config().eos_token_ids.iter().filter(|id| !self.tokenizer.eos_token_ids().contains(id)));
        if stop.is_empty() {
            return Err(Error::input("eos-missing", "the model has no end-of-sequence token")
                .at(self.model.source().map_or_else(String::new, |dir| dir.display().to_string()))
                .because("a response could never end by itself")
                .fix("set `eos_token_id` in generation_config.json"));
        }
        Ok(stop)
    }
}

/// An option that this command cannot do without.
pub(super) fn required<'a, T>(value: Option<&'a T>, name: &str) -> Result<&'a T> {
    value.ok_or_else(|| {
        Error::usage("option-missing", format!("`--{name}` is needed"))
            .fix(format!("give --{name}, or `{}` in the --config file", name.replace('-', "_")))
    })
}

/// The training data, after a look at what can be known before a model is read: files that are not there, and an
/// `--eval-steps` without anything to evaluate on.
pub(super) fn dataset<'a>(run: &'a RunArgs, eval: Option<&EvalArgs>) -> Result<&'a PathBuf> {
    let dataset = required(run.dataset.as_ref(), "dataset")?;
    let held_out = eval.and_then(|eval| eval.eval_dataset.as_ref());
    for path in [Some(dataset), held_out].into_iter().flatten() {
        std::fs::metadata(path).map_err(|e| Error::io("looking for the data set", path, &e))?;
    }
    if held_out.is_none() && eval.is_some_and(|eval| eval.eval_steps.is_some()) {
        return Err(Error::usage("eval-without-data", "`--eval-steps` needs an `--eval-dataset`")
            .fix("give --eval-dataset, or leave --eval-steps out"));
    }
    Ok(dataset)
}

/// An error where the file `output` cannot be put: over the `input` itself, or over what is no plain file. The new
/// file takes the place of the old one, so a link would be lost, and with `/dev/stdout` one of the system's own.
pub(super) fn check_output(output: &Path, input: &Path) -> Result<()> {
    let refuse = |id, what: &str| {
        let error = Error::usage(id, what).at(output.display().to_string());
        Err(error.fix("choose another --output"))
    };
    if std::fs::symlink_metadata(output).is_ok_and(|metadata| !metadata.is_file()) {
        return refuse("output-not-file", "the output exists and is not a plain file");
    }
    if output.canonicalize().is_ok_and(|output| input.canonicalize().is_ok_and(|input| input == output)) {
        return refuse("output-is-input", "the output would replace the input");
    }
    Ok(())
}

/// What [`crate::data::encode`] refuses under `strict`, in the words of a command that has no such option.
pub(super) fn every_row(error: Error) -> Error {
    if !error.id().starts_with("strict-") {
        return error;
    }
    error.because("every row gets its line, so none is dropped or cut").fix("correct or remove the row")
}

/// The refusal of [`disk::create_output_dir`] without creating anything.
pub(super) fn refuse_existing(path: &Path) -> Result<()> {
    if path.exists() && !path.is_dir() {
        return disk::create_output_dir(path, Existing::Refuse);
    }
    let holds_files = std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some());
    if holds_files {
        return Err(Error::usage("output-exists", "the output directory is not empty")
            .at(path.display().to_string())
            .because("another run's files would be overwritten")
            .fix("choose another --output-dir, or move the old one away"));
    }
    Ok(())
}

/// A name of a model that is not a directory: the commonest mistake is to give one of the Hugging Face hub.
fn check_directory(dir: &Path) -> Result<()> {
    if dir.exists() {
        return model_file(dir, "config.json").map(|_| ());
    }
    Err(Error::input("model-missing", "there is no such model directory")
        .at(dir.display().to_string())
        .because("a model is read from disk; nothing is downloaded")
        .fix("check the path, or download the model first (`hf download NAME --local-dir DIR`)"))
}
