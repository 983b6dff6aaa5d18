//! Where a loop's numbers go: `metrics.jsonl` (only what seed and data determine), `timings.jsonl` (rates, seconds,
//! memory), `samples.jsonl` (answers to fixed prompts over time), the same numbers as TensorBoard's events, and one
//! live line on a terminal or plain lines elsewhere. Every row is also shown to the alarms.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::samples::Sampler;
use super::tensorboard;
use crate::device::Device;
use crate::disk::{Appender, Mark};
use crate::error::{Error, Result, visible};
use crate::report::alarms::{Alarm, Watch};

/// Named numbers of one step, in the order in which they are written.
pub type Row = Map<String, Value>;

/// A row from names and numbers.
pub(crate) fn row(entries: &[(&str, f64)]) -> Row {
    entries.iter().map(|(name, x)| ((*name).to_owned(), number(*x))).collect()
}

fn named(entries: impl IntoIterator<Item = (&'static str, Value)>) -> Row {
    entries.into_iter().map(|(name, x)| (name.to_owned(), x)).collect()
}

/// A number as JSON; what JSON cannot hold (NaN, infinity) as its name, so that it stays visible.
pub(crate) fn number(x: f64) -> Value {
    if x.is_finite() { json!(x) } else { json!(x.to_string()) }
}

/// Writes a line to standard error. A reader that has gone away (`2>&1 | head`) is no reason to lose a run, as
/// `eprintln!`, which panics then, would.
pub(crate) fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{}", visible(line));
}

/// Bytes for people.
pub(crate) fn bytes_text(bytes: usize) -> String {
    let kib = bytes as f64 / 1024.0;
    match bytes {
        0..0x10_0000 => format!("{kib:.1} KiB"),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", kib / 1024.0),
        _ => format!("{:.1} GiB", kib / 1024.0 / 1024.0),
    }
}

/// How a run speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Voice {
    /// One live line on a terminal, plain lines elsewhere, on standard error.
    #[default]
    Lines,
    /// Errors only.
    Quiet,
    /// One JSON object a line on standard output.
    Json,
}

impl Voice {
    /// What `--quiet` and `--json` ask for.
    pub(crate) fn of(quiet: bool, json: bool) -> Self {
        match (quiet, json) {
            (_, true) => Self::Json,
            (true, false) => Self::Quiet,
            (false, false) => Self::Lines,
        }
    }

    /// A line for the person who watches, or a note for the program that does.
    pub(crate) fn say(self, line: &str) {
        match self {
            Self::Lines => tell(line),
            Self::Quiet => {}
            Self::Json => self.event("note", named([("text", json!(line))])),
        }
    }

    /// An event for the program that watches; nobody else hears it.
    pub(crate) fn event(self, name: &'static str, more: Row) {
        if self == Self::Json {
            let mut event = named([("event", json!(name))]);
            event.extend(more);
            // As in `tell`: a reader that has gone away is no failure.
            let _ = writeln!(std::io::stdout(), "{}", Value::Object(event));
        }
    }
}

/// How far a record had come: a run that is resumed cuts its files back to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Marks {
    /// In the order of [`FILES`].
    files: [Mark; FILES.len()],
    /// Seconds of the stage that was running, and of those before.
    elapsed: f64,
    seconds: Vec<(String, f64)>,
}

/// The file that says what a run is.
pub(crate) const RUN_FILE: &str = "run.json";
/// The files that grow.
pub(crate) const FILES: [&str; 4] = ["metrics.jsonl", "timings.jsonl", "samples.jsonl", tensorboard::FILE];
const METRICS: usize = 0;
const TIMINGS: usize = 1;
const SAMPLES: usize = 2;
const EVENTS: usize = 3;

/// The record of a run.
pub struct Journal {
    /// Of [`FILES`], if anything is kept.
    files: Option<[Appender; FILES.len()]>,
    voice: Voice,
    bar: ProgressBar,
    stage: String,
    steps: usize,
    device: Device,
    started: Instant,
    /// Seconds of this stage before the run was resumed.
    before: f64,
    last_line: Instant,
    seconds: Vec<(String, f64)>,
    /// The most memory of this stage that was seen in use, in bytes.
    memory_peak: usize,
    sampler: Option<Sampler>,
    watch: Watch,
    alarms: usize,
    /// The last of each number of the stage.
    last: Row,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").field("stage", &self.stage).finish_non_exhaustive()
    }
}

/// Between two plain lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

impl Journal {
    /// Writes into `dir`; with `quiet` prints nothing.
    ///
    /// # Errors
    /// Input and output errors.
    pub fn new(dir: &Path, quiet: bool) -> Result<Self> {
        Self::open(dir, Voice::of(quiet, false))
    }

    /// Writes into `dir`, and speaks with `voice`.
    pub(crate) fn open(dir: &Path, voice: Voice) -> Result<Self> {
        let mut files = create(dir)?;
        files[EVENTS].append(&tensorboard::head(SystemTime::now()))?;
        Ok(Self { files: Some(files), voice, ..Self::silent() })
    }

    /// Goes on in `dir`, whose files are cut back to `marks`.
    ///
    /// # Errors
    /// A file that is shorter or begins otherwise than when the marks were made; input and output errors.
    pub(crate) fn resume(dir: &Path, voice: Voice, marks: &Marks) -> Result<Self> {
        let files = resume(dir, &marks.files)?;
        let mut journal = Self { files: Some(files), voice, seconds: marks.seconds.clone(), ..Self::silent() };
        // What was raised before the run was stopped counts, and is not raised again.
        for row in earlier(&dir.join(FILES[METRICS]))? {
            journal.alarms += journal.watch.see(&row).len();
            journal.remember(&row);
        }
        Ok(journal)
    }

    /// How far the record has come, once that is on the disk; none where nothing is kept.
    pub(crate) fn mark(&self) -> Result<Option<Marks>> {
        let Some(files) = &self.files else { return Ok(None) };
        files.iter().try_for_each(Appender::sync)?;
        let marks = files.each_ref().map(Appender::mark);
        Ok(Some(Marks { files: marks, elapsed: self.elapsed(), seconds: self.seconds.clone() }))
    }

    /// The stage that has begun goes on after `step` steps, which it did before the run was resumed.
    pub(crate) fn go_on(&mut self, marks: &Marks, step: usize) {
        self.before = marks.elapsed;
        self.bar.set_position(step as u64);
        self.bar.reset_eta();
    }

    /// Keeps nothing and prints nothing.
    pub fn silent() -> Self {
        Self {
            files: None,
            voice: Voice::Quiet,
            bar: ProgressBar::hidden(),
            stage: String::new(),
            steps: 0,
            device: Device::Cpu,
            started: Instant::now(),
            before: 0.0,
            last_line: Instant::now(),
            seconds: Vec::new(),
            memory_peak: 0,
            sampler: None,
            watch: Watch::new(),
            alarms: 0,
            last: Row::new(),
        }
    }

    /// Keeps nothing, and shows how far a stage is.
    pub(crate) fn shown() -> Self {
        Self { voice: Voice::Lines, ..Self::silent() }
    }

    /// The stages that follow answer fixed prompts now and then.
    pub(crate) fn set_sampler(&mut self, sampler: Option<Sampler>) {
        self.sampler = sampler;
    }

    /// Begins a stage of `steps` steps on the CPU.
    pub(crate) fn begin(&mut self, stage: &str, steps: usize) {
        self.begin_on(&Device::Cpu, stage, steps);
    }

    /// Begins a stage of `steps` steps on `device`, whose memory is watched.
    pub(crate) fn begin_on(&mut self, device: &Device, stage: &str, steps: usize) {
        (self.stage, self.steps, self.started) = (stage.to_owned(), steps, Instant::now());
        (self.before, self.memory_peak, self.device) = (0.0, 0, device.clone());
        self.last_line = self.started;
        let shown = self.voice == Voice::Lines;
        self.bar = ProgressBar::with_draw_target(
            Some(steps as u64),
            if shown { ProgressDrawTarget::stderr_with_hz(4) } else { ProgressDrawTarget::hidden() },
        );
        let style = ProgressStyle::with_template("{prefix:>7} {bar:24} {pos}/{len}  {msg}  {eta} left");
        self.bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        self.bar.set_prefix(self.stage.clone());
    }

    /// Moves the live line: `step` steps are done, and a few words with the numbers that matter and the rate.
    pub(crate) fn progress(&mut self, step: usize, words: &str) {
        let memory = self.memory().map_or_else(String::new, |bytes| format!("  {}", bytes_text(bytes)));
        let words = format!("{words}{memory}");
        self.bar.set_position(step as u64);
        self.bar.set_message(words.clone());
        let due = self.last_line.elapsed() >= LINE_INTERVAL || step == self.steps;
        if !(self.bar.is_hidden() && due) {
            return;
        }
        self.last_line = Instant::now();
        let left = self.bar.eta().as_secs();
        match self.voice {
            Voice::Quiet => {}
            Voice::Lines => tell(&format!("{:>7} {step}/{}  {words}  {left}s left", self.stage, self.steps)),
            Voice::Json => {
                let event = [
                    ("stage", json!(self.stage)),
                    ("step", json!(step)),
                    ("steps", json!(self.steps)),
                    ("text", json!(words)),
                    ("seconds_left", json!(left)),
                ];
                self.voice.event("progress", named(event));
            }
        }
    }

    /// Bytes in use now, where the device or the system says; the peak follows. A journal that tells nobody leaves the
    /// device's peak to its caller.
    fn memory(&mut self) -> Option<usize> {
        if self.files.is_none() && self.voice == Voice::Quiet {
            return None;
        }
        let [now, peak] = self.device.memory_in_use()?;
        self.memory_peak = self.memory_peak.max(peak);
        Some(now)
    }

    /// The most memory of this stage that was seen in use, in bytes.
    pub(crate) fn memory_peak(&mut self) -> usize {
        self.memory();
        self.memory_peak
    }

    /// Seconds that the stage has run.
    pub(crate) fn elapsed(&self) -> f64 {
        self.before + self.started.elapsed().as_secs_f64()
    }

    /// Writes a step's numbers: what seed and data determine, and what the clock does.
    pub(crate) fn log(&mut self, step: usize, metrics: Row, mut timings: Row) -> Result<()> {
        if !timings.is_empty()
            && let Some(now) = self.memory()
        {
            timings.extend([("memory".into(), json!(now)), ("memory_peak".into(), json!(self.memory_peak))]);
        }
        let at = |numbers: &Row| {
            let mut line = named([("stage", json!(self.stage)), ("step", json!(step))]);
            line.extend(numbers.clone());
            line
        };
        let rows = [at(&metrics), at(&timings)];
        if let Some(files) = &mut self.files {
            for (file, row) in [METRICS, TIMINGS].into_iter().zip(&rows) {
                if row.len() > 2 {
                    files[file].append_line(&Value::Object(row.clone()).to_string())?;
                }
            }
            files[EVENTS].append(&tensorboard::event(SystemTime::now(), &self.stage, step, [&metrics, &timings]))?;
        }
        let [row, timings] = rows;
        self.voice.event("metrics", row.iter().chain(&timings).map(|(name, x)| (name.clone(), x.clone())).collect());
        self.remember(&row);
        let raised = self.watch.see(&row);
        raised.iter().for_each(|alarm| self.raise(alarm));
        self.alarms += raised.len();
        Ok(())
    }

    fn remember(&mut self, row: &Row) {
        if self.last.get("stage") != row.get("stage") {
            self.last.clear();
        }
        self.last.extend(row.clone());
    }

    /// The last of each number of the stage, as a model card shows it.
    pub(crate) fn results(&self) -> Vec<(String, String)> {
        let shown = |x: &Value| x.as_f64().map_or_else(|| x.to_string(), |x| format!("{x:.4}"));
        let numbers = self.last.iter().filter(|(name, _)| !["stage", "step"].contains(&name.as_str()));
        numbers.map(|(name, x)| (name.clone(), shown(x))).collect()
    }

    fn raise(&self, alarm: &Alarm) {
        let Alarm { id, stage, step, what, why, advice } = alarm;
        match self.voice {
            Voice::Json => {
                let texts = [("what", json!(what)), ("why", json!(why)), ("advice", json!(advice))];
                let place = [("id", json!(id)), ("stage", json!(stage)), ("step", json!(step))];
                self.voice.event("alarm", named(place.into_iter().chain(texts)));
            }
            _ => {
                self.say(&format!("alarm [{id}] {stage} step {step}: {what}\n  why it matters: {why}\n  try: {advice}"))
            }
        }
    }

    /// Answers the fixed prompts if this is the step for it; `step` steps are done. `answer` gives rows for
    /// `samples.jsonl`, less stage and step.
    pub(crate) fn sample(&mut self, step: usize, answer: impl FnOnce(&mut Sampler) -> Result<Vec<Row>>) -> Result<()> {
        let Some(sampler) = self.sampler.as_mut().filter(|sampler| sampler.is_due(step, self.steps)) else {
            return Ok(());
        };
        let rows = answer(sampler)?;
        let Some(files) = &mut self.files else { return Ok(()) };
        for row in rows {
            let mut line = named([("stage", json!(self.stage)), ("step", json!(step))]);
            line.extend(row);
            files[SAMPLES].append_line(&Value::Object(line).to_string())?;
        }
        Ok(())
    }

    /// Ends the stage; what was logged is on the disk then.
    pub(crate) fn end(&mut self) -> Result<()> {
        self.bar.finish_and_clear();
        if let Some(files) = &self.files {
            files.iter().try_for_each(Appender::sync)?;
        }
        let seconds = self.elapsed();
        match self.seconds.iter_mut().find(|(stage, _)| *stage == self.stage) {
            Some((_, sum)) => *sum += seconds,
            None => self.seconds.push((self.stage.clone(), seconds)),
        }
        if self.alarms > 0 {
            self.say(&format!("{} alarms so far: the report says what each means", self.alarms));
        }
        self.voice.event("end", named([("stage", json!(self.stage)), ("seconds", json!(seconds))]));
        Ok(())
    }

    /// Seconds of each finished stage, in order.
    pub fn seconds(&self) -> &[(String, f64)] {
        &self.seconds
    }

    /// A line for the person who watches.
    pub fn say(&self, line: &str) {
        self.bar.suspend(|| self.voice.say(line));
    }
}

fn create(dir: &Path) -> Result<[Appender; FILES.len()]> {
    let [metrics, timings, samples, events] = FILES.map(|name| Appender::create(&dir.join(name)));
    Ok([metrics?, timings?, samples?, events?])
}

fn resume(dir: &Path, marks: &[Mark; FILES.len()]) -> Result<[Appender; FILES.len()]> {
    let open = |file: usize| Appender::resume(&dir.join(FILES[file]), &marks[file]);
    Ok([open(METRICS)?, open(TIMINGS)?, open(SAMPLES)?, open(EVENTS)?])
}

/// The rows of a metrics file of ours.
fn earlier(path: &Path) -> Result<Vec<Row>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("reading the metrics", path, &e))?;
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}
