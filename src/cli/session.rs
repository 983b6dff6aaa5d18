//! What every run begins and ends with: the device, the output directory and its lock, the head that says what will be
//! done, `run.json`, and the models that are saved.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::estimate::{self, Estimate};
use super::host;
use super::resume::{self, Start};
use super::settings::Settings;
use crate::config::{ComputeDType, EvalArgs, OptimizerArgs, RunArgs, SaveArgs};
use crate::data::encode::Encoded;
use crate::data::ledger::Ledger;
use crate::data::records::{Rows, open_rows};
use crate::device::Device;
use crate::disk::{self, DirLock, Existing};
use crate::error::{Code, Error, Result};
use crate::model::Model;
use crate::model::card::{Card, Stage};
use crate::model::checkpoint::{saved_files, source_files};
use crate::report;
use crate::train::checkpoint::identity::{Identity, file_hash, files_hash};
use crate::train::checkpoint::{self, Checkpoints, Finished, Found, seal};
use crate::train::metrics::{Journal, RUN_FILE, Voice};
use crate::train::plan::{self, MemoryPlan};
use crate::train::pretrained::Pretrained;

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
    pub(super) voice: Voice,
    dry_run: bool,
    data: Vec<String>,
    lock: Option<DirLock>,
    /// Bytes of memory that could be planned with before the run took any.
    usable: usize,
    /// Of these, the bytes of the models that were read.
    loaded: usize,
    /// Bytes that the plan has at its peak.
    planned: Option<usize>,
}

impl Session {
    /// Checks device, floats and output directory, takes the directory's lock, prints the settings, and looks for what
    /// the run begins from.
    pub(super) fn open(run: &RunArgs, settings: &Settings) -> Result<Self> {
        let estimate = settings.estimate;
        let device = match estimate {
            None => compute_device(run)?,
            Some(estimate) => estimate.device(run, || compute_device(run))?,
        };
        let usable = usable(&device, estimate)?;
        // From here on no weight is read, so none takes memory.
        let device = if estimate.is_some() { device.rehearsal() } else { device };
        let output = match (estimate, &run.output_dir) {
            (Some(_), given) => given.clone().unwrap_or_default(),
            (None, given) => resume::output_dir(&run.save, given.as_ref())?,
        };
        let resumed = resume::is_asked(&run.save);
        let lock = match (estimate.is_some() || run.dry_run, resumed) {
            (false, _) => Some(resume::claim(&output, resumed)?),
            (true, false) if estimate.is_none() => refuse_existing(&output).map(|()| None)?,
            (true, _) => None,
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
            voice: Voice::of(run.quiet, run.json),
            dry_run: run.dry_run || estimate.is_some(),
            data: Vec::new(),
            lock,
            usable,
            loaded: 0,
            planned: None,
        };
        session.say(&format!("rlhf {} {}, on {}", env!("CARGO_PKG_VERSION"), settings.stage, session.device.name()));
        session.say(&settings.describe());
        if let Some(owner) = session.lock.as_ref().and_then(DirLock::stale) {
            session.say(&format!("  note: {owner}"));
        }
        if estimate.is_some() {
            return Ok(session);
        }
        session.start = resume::find(&run.save, &session.output, &|line| session.say(line))?;
        Ok(session)
    }

    /// Whether an earlier run has done all of this; says so.
    pub(super) fn is_finished(&self) -> Result<bool> {
        let Start::Finished(manifest) = &self.start else { return Ok(false) };
        resume::finished(manifest, &self.identity, &self.save, &self.output, &|line| self.say(line))?;
        if !self.output.join(report::REPORT).exists() {
            // Who sealed the result may have been stopped before it came to this.
            tell_report(&self.output, self.voice)?;
        }
        Ok(true)
    }

    /// A line for the person who watches.
    pub(super) fn say(&self, line: &str) {
        self.voice.say(line);
    }

    /// Reads a model with its tokenizer and template, and says what it is.
    pub(super) fn load(&mut self, role: &str, dir: &Path) -> Result<Pretrained> {
        let loaded = match self.settings.estimate {
            None => Pretrained::load(&self.device, dir)?,
            Some(_) => Pretrained::shape(&self.device, dir)?,
        };
        let config = loaded.model.config();
        self.loaded += config.parameters() * self.device.dtype().bytes();
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
        if self.settings.estimate.is_some() {
            return Ok(loaded);
        }
        for (part, files) in source_files(dir)? {
            let files: Vec<(&str, &Path)> = files.iter().map(|(name, path)| (name.as_str(), path.as_path())).collect();
            self.identity.inputs.insert(format!("{role}/{part}"), files_hash(&files)?);
        }
        Ok(loaded)
    }

    /// Says in `run.json` what the model made of a setting that nobody gave.
    pub(super) fn settle(&mut self, name: &str, value: usize) {
        self.settings.settle(name, value);
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

    /// Says how much there is to do, plans the memory and, on a GPU, sets the rows of a pass; keeps it for `run.json`.
    ///
    /// # Errors
    /// A run that does not fit.
    pub(super) fn plan(&mut self, job: &impl plan::Job, optimizer: &mut OptimizerArgs) -> Result<()> {
        let work = job.work();
        self.say(&estimate::describe(work));
        if let Some(line) = estimate::duration(work, self.settings.stage, &self.output) {
            self.say(&line);
        }
        self.facts.insert("steps".into(), json!(work.steps));
        let plan = if self.device.is_cpu() {
            self.plan_host(job)?
        } else {
            let plan = plan::make(job, &self.device, self.usable)?;
            // A resumed run sums its gradients in the same passes, if these fit.
            let before = self.found().and_then(|found| found.manifest.identity.numbers.get("rows_per_pass").copied());
            let before = before.and_then(|rows| usize::try_from(rows).ok()).filter(|rows| *rows <= plan.micro_batch);
            optimizer.micro_batch = Some(before.unwrap_or(plan.micro_batch));
            plan
        };
        self.say(&plan.summary(self.usable));
        if self.dry_run {
            self.say(&plan.table());
        }
        self.facts.insert("memory".into(), plan.to_json());
        self.planned = Some(plan.peak());
        self.identity.numbers.insert("rows_per_pass".into(), optimizer.rows_per_pass() as u64);
        self.facts.insert("rows_per_pass".into(), json!(optimizer.rows_per_pass()));
        self.facts.insert("rows_per_step".into(), json!(optimizer.rows_per_step()));
        Ok(())
    }

    /// The plan for the CPU, with a warning where it takes more than is free.
    fn plan_host(&self, job: &impl plan::Job) -> Result<MemoryPlan> {
        let weights = if self.settings.estimate.is_some() { 0 } else { self.loaded };
        let total = match self.settings.estimate.and_then(|estimate| estimate.memory) {
            Some(memory) => memory,
            None => host::memory().map_or(usize::MAX, |memory| memory.total),
        };
        let host = plan::Host { taken: host::taken()[0].saturating_sub(weights), free: self.usable, total };
        let (plan, advice) = plan::on_host(job, host)?;
        if let Some(settings) = advice {
            let cure = match &settings[..] {
                [] => "end other programs, or use a smaller model".to_owned(),
                settings => format!("use {}, or end other programs", settings.join(", or ")),
            };
            self.say(&format!(
                "  warning: that is more than is free: the machine may swap, or end the run\n  fix: {cure}"
            ));
        }
        Ok(plan)
    }

    /// After a run: what it took of the memory, beside what was planned.
    pub(super) fn compare_memory(&self, journal: &mut Journal) {
        if let Some(planned) = self.planned {
            let peak = if self.device.is_cpu() { host::taken()[1] } else { journal.memory_peak() };
            let [peak, planned] = [peak, planned].map(plan::text);
            self.say(&format!("memory: {peak} at the peak, {planned} were planned"));
        }
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
    /// has, and `steps` how many steps the run.
    pub(super) fn begin(&mut self, rows: usize, steps: usize) -> Result<Option<Journal>> {
        self.compare(rows)?;
        if self.settings.estimate.is_some() {
            return Ok(None);
        }
        if self.dry_run {
            self.say(&format!("dry run: nothing was written to {}", self.output.display()));
            return Ok(None);
        }
        let mut run = Map::new();
        run.insert("version".into(), json!(env!("CARGO_PKG_VERSION")));
        run.insert("command".into(), json!(self.settings.stage));
        run.insert("device".into(), json!(self.device.name()));
        run.insert("settings".into(), self.settings.to_json());
        run.insert("steps".into(), json!(steps));
        run.extend(self.facts.clone());
        run.insert("reproduce".into(), self.identity.reproduce());
        if let Some(found) = self.found() {
            run.insert("resumed_after".into(), json!(found.manifest.step));
            resume::discard_later(&self.output, found, &|line| self.say(line))?;
        }
        disk::write_file(&self.output.join(RUN_FILE), format!("{:#}\n", Value::Object(run)).as_bytes())?;
        let marks = self.found().and_then(|found| found.saved()?.journal.as_ref());
        let journal = match marks {
            Some(marks) => Journal::resume(&self.output, self.voice, marks)?,
            None => Journal::open(&self.output, self.voice)?,
        };
        Ok(Some(journal))
    }

    /// Saves a model under the output directory; `place` is empty for the run's result. The model card shows `results`.
    pub(super) fn save(
        &mut self,
        place: &str,
        stage: Stage,
        model: &Model,
        results: &[(String, String)],
    ) -> Result<PathBuf> {
        let dir = if place.is_empty() { self.output.clone() } else { self.output.join(place) };
        disk::create_output_dir(&dir, Existing::Reuse)?;
        self.save_into(&dir, stage, model, results)?;
        let prefix = if place.is_empty() { String::new() } else { format!("{place}/") };
        self.result.extend(saved_files(&dir)?.iter().map(|name| format!("{prefix}{name}")));
        Ok(dir)
    }

    /// Ends a run whose result is saved: from now on it is finished.
    pub(super) fn finish(self, more: &[&str], steps: usize) -> Result<PathBuf> {
        let files: Vec<String> = self.result.into_iter().chain(more.iter().map(|name| (*name).to_owned())).collect();
        let finished = Finished { stage: self.settings.stage, steps, identity: self.identity, journal: None };
        seal(&self.output, &files, finished)?;
        tell_report(&self.output, self.voice)?;
        Ok(self.output)
    }

    fn save_into(&self, dir: &Path, stage: Stage, model: &Model, results: &[(String, String)]) -> Result<()> {
        let name = self.output.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let source = model.source().map(|s| s.display().to_string()).unwrap_or_default();
        let card = Card {
            name: &name,
            stage,
            head: model.config().head,
            source: &source,
            data: &self.data,
            settings: &self.settings.for_card(),
            results,
            date: None,
        };
        model.save(dir, &card.render(model.config()))
    }

    /// The run's checkpoints.
    pub(super) fn checkpoints(&self, stage: Stage) -> Checkpoints<'_> {
        let export = move |dir: &Path, model: &Model| self.save_into(dir, stage, model, &[]);
        let dir = self.output.join(checkpoint::DIR);
        let (identity, from) = (self.identity.clone(), self.found().cloned());
        Checkpoints::new(dir, self.settings.stage, &self.save, identity, from, Box::new(export))
    }
}

/// Writes the report of a run and says where it is. The result is there already: after an error `rlhf report` makes
/// the page again.
pub(super) fn tell_report(dir: &Path, voice: Voice) -> Result<()> {
    let path = report::write(dir)?;
    voice.say(&format!("the report is {}", path.display()));
    Ok(())
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

/// Bytes that a plan may use: those that are given, or those that are free.
fn usable(device: &Device, estimate: Option<Estimate>) -> Result<usize> {
    match estimate.and_then(|estimate| estimate.memory) {
        Some(memory) => Ok(device.share_to_plan(memory)),
        None if device.is_cpu() => Ok(host::memory().map_or(usize::MAX, |memory| memory.free)),
        None => device.memory_to_plan(),
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
