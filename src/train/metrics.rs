//! Where a loop's numbers go: `metrics.jsonl` (only what seed and data determine), `timings.jsonl` (rates and seconds),
//! and one live line on a terminal or plain lines elsewhere.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::disk::{Appender, Mark};
use crate::error::{Result, visible};

/// Named numbers of one step, in the order in which they are written.
pub type Row = Map<String, Value>;

/// A row from names and numbers.
pub(crate) fn row(entries: &[(&str, f64)]) -> Row {
    entries.iter().map(|(name, x)| ((*name).to_owned(), number(*x))).collect()
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

/// How far a record had come: a run that is resumed cuts its files back to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Marks {
    metrics: Mark,
    timings: Mark,
    /// Seconds of the stage that was running, and of those before.
    elapsed: f64,
    seconds: Vec<(String, f64)>,
}

/// The file that says what a run is.
pub(crate) const RUN_FILE: &str = "run.json";
/// The files that grow.
const METRICS: &str = "metrics.jsonl";
const TIMINGS: &str = "timings.jsonl";

/// The record of a run.
pub struct Journal {
    metrics: Option<Appender>,
    timings: Option<Appender>,
    quiet: bool,
    bar: ProgressBar,
    stage: String,
    steps: usize,
    started: Instant,
    /// Seconds of this stage before the run was resumed.
    before: f64,
    last_line: Instant,
    seconds: Vec<(String, f64)>,
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
        let metrics = Appender::create(&dir.join(METRICS))?;
        let timings = Appender::create(&dir.join(TIMINGS))?;
        Ok(Self { metrics: Some(metrics), timings: Some(timings), quiet, ..Self::silent() })
    }

    /// Goes on in `dir`, whose files are cut back to `marks`.
    ///
    /// # Errors
    /// A file that is shorter or begins otherwise than when the marks were made; input and output errors.
    pub(crate) fn resume(dir: &Path, quiet: bool, marks: &Marks) -> Result<Self> {
        let metrics = Appender::resume(&dir.join(METRICS), &marks.metrics)?;
        let timings = Appender::resume(&dir.join(TIMINGS), &marks.timings)?;
        let seconds = marks.seconds.clone();
        Ok(Self { metrics: Some(metrics), timings: Some(timings), quiet, seconds, ..Self::silent() })
    }

    /// How far the record has come, once that is on the disk; none where nothing is kept.
    pub(crate) fn mark(&self) -> Result<Option<Marks>> {
        let (Some(metrics), Some(timings)) = (&self.metrics, &self.timings) else { return Ok(None) };
        metrics.sync()?;
        timings.sync()?;
        let (elapsed, seconds) = (self.elapsed(), self.seconds.clone());
        Ok(Some(Marks { metrics: metrics.mark(), timings: timings.mark(), elapsed, seconds }))
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
            metrics: None,
            timings: None,
            quiet: true,
            bar: ProgressBar::hidden(),
            stage: String::new(),
            steps: 0,
            started: Instant::now(),
            before: 0.0,
            last_line: Instant::now(),
            seconds: Vec::new(),
        }
    }

    /// Keeps nothing, and shows how far a stage is.
    pub(crate) fn shown() -> Self {
        Self { quiet: false, ..Self::silent() }
    }

    /// Begins a stage of `steps` steps.
    pub(crate) fn begin(&mut self, stage: &str, steps: usize) {
        (self.stage, self.steps, self.started) = (stage.to_owned(), steps, Instant::now());
        self.before = 0.0;
        self.last_line = self.started;
        self.bar = ProgressBar::with_draw_target(
            Some(steps as u64),
            if self.quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr_with_hz(4) },
        );
        let style = ProgressStyle::with_template("{prefix:>7} {bar:24} {pos}/{len}  {msg}  {eta} left");
        self.bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        self.bar.set_prefix(self.stage.clone());
    }

    /// Moves the live line: `step` steps are done, `units` per second of something, and a few words.
    pub(crate) fn progress(&mut self, step: usize, words: &str) {
        self.bar.set_position(step as u64);
        self.bar.set_message(words.to_owned());
        let due = self.last_line.elapsed() >= LINE_INTERVAL || step == self.steps;
        if self.bar.is_hidden() && !self.quiet && due {
            self.last_line = Instant::now();
            let left = self.bar.eta().as_secs();
            tell(&format!("{:>7} {step}/{}  {words}  {left}s left", self.stage, self.steps));
        }
    }

    /// Seconds that the stage has run.
    pub(crate) fn elapsed(&self) -> f64 {
        self.before + self.started.elapsed().as_secs_f64()
    }

    /// Writes a step's numbers: what seed and data determine, and what the clock does.
    pub(crate) fn log(&mut self, step: usize, metrics: Row, timings: Row) -> Result<()> {
        let stage = self.stage.clone();
        for (file, numbers) in [(&mut self.metrics, metrics), (&mut self.timings, timings)] {
            if let (Some(file), false) = (file, numbers.is_empty()) {
                let mut line = Map::new();
                line.insert("stage".into(), json!(stage));
                line.insert("step".into(), json!(step));
                line.extend(numbers);
                file.append_line(&Value::Object(line).to_string())?;
            }
        }
        Ok(())
    }

    /// Ends the stage; what was logged is on the disk then.
    pub(crate) fn end(&mut self) -> Result<()> {
        self.bar.finish_and_clear();
        for file in [&self.metrics, &self.timings].into_iter().flatten() {
            file.sync()?;
        }
        let seconds = self.elapsed();
        match self.seconds.iter_mut().find(|(stage, _)| *stage == self.stage) {
            Some((_, sum)) => *sum += seconds,
            None => self.seconds.push((self.stage.clone(), seconds)),
        }
        Ok(())
    }

    /// Seconds of each finished stage, in order.
    pub fn seconds(&self) -> &[(String, f64)] {
        &self.seconds
    }

    /// A line for the person who watches.
    pub fn say(&self, line: &str) {
        if !self.quiet {
            self.bar.suspend(|| tell(line));
        }
    }
}
