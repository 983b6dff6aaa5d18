//! One run, read from its directory: that of a stage, that of `rlhf run` (a directory a stage), or that of the
//! embedded job (one file of metrics for all stages). Which files are there decides what the page can show.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::alarms::{Alarm, Watch};
use super::curves::{Curves, brief};
use super::lines::{each_line, read_object};
use super::samples::{Comparison, Samples};
use crate::error::{Error, Result};

/// The stages in the order in which they follow each other; a directory of this name holds one.
const STAGES: [&str; 3] = ["sft", "reward", "ppo"];
/// Alarms that are shown; the rest is counted.
const ALARMS_MAX: usize = 100;
/// Stages of a run: three, and what else its rows name.
const STAGES_MAX: usize = 12;

/// One stage's numbers.
#[derive(Debug, Default)]
struct Stage {
    name: String,
    /// The stage's own run.json, where it has a directory of its own.
    run: Option<Value>,
    metrics: Curves,
    timings: Curves,
    last_step: u64,
}

/// What the files of a run say.
#[derive(Debug, Default)]
pub(super) struct Run {
    name: String,
    stages: Vec<Stage>,
    run: Option<Value>,
    summary: Option<Value>,
    quality: Option<Value>,
    samples: Samples,
    comparison: Comparison,
    watch: Watch,
    alarms: Vec<Alarm>,
    /// What was left out or is unfinished, in sentences.
    notes: Vec<String>,
}

impl Run {
    /// Reads a run.
    ///
    /// # Errors
    /// `report-nothing` where no file of a run is; those of reading the files.
    pub(super) fn read(dir: &Path, name: String) -> Result<Self> {
        std::fs::metadata(dir).map_err(|error| Error::io("looking for the run", dir, &error))?;
        let mut run = Self { name, watch: Watch::new(), ..Self::default() };
        run.run = read_object(&dir.join("run.json"))?;
        run.summary = read_object(&dir.join("summary.json"))?;
        run.quality = read_object(&dir.join("quality.json"))?;
        // A stage's directory names its stage in run.json; rows that name none belong to it.
        let command = run.run.as_ref().and_then(|run| run["command"].as_str()).unwrap_or_default().to_owned();
        run.add(dir, &command)?;
        for stage in STAGES {
            let place = dir.join(stage);
            run.add(&place, stage)?;
            if let Some(facts) = read_object(&place.join("run.json"))? {
                run.stage(stage).run = Some(facts);
            }
        }
        for place in [dir.join("reward").join("quality.json"), dir.join("eval").join("quality.json")] {
            if run.quality.is_none() {
                run.quality = read_object(&place)?;
            }
        }
        if run.comparison.is_empty() {
            run.comparison = run.samples.comparison().unwrap_or_default();
        }
        let nothing = run.stages.is_empty() && run.run.is_none() && run.quality.is_none() && run.comparison.is_empty();
        if nothing {
            return Err(Error::input("report-nothing", "there is no run in this directory")
                .at(dir.display().to_string())
                .because("none of metrics.jsonl, run.json, quality.json and comparison.jsonl is there")
                .fix("give the directory that --output-dir named"));
        }
        let order = |name: &str| STAGES.iter().position(|stage| *stage == name).unwrap_or(STAGES.len());
        run.stages.sort_by_key(|stage| order(&stage.name));
        Ok(run)
    }

    /// The stage of this name, new if need be; beyond `STAGES_MAX` the last takes all.
    fn stage(&mut self, name: &str) -> &mut Stage {
        let known = self.stages.iter().position(|stage| stage.name == name);
        let at = known.unwrap_or_else(|| {
            if self.stages.len() < STAGES_MAX {
                self.stages.push(Stage { name: name.to_owned(), ..Stage::default() });
            }
            self.stages.len() - 1
        });
        &mut self.stages[at]
    }

    /// Reads the files that grow in `dir`; rows that name no stage are of `stage`.
    fn add(&mut self, dir: &Path, stage: &str) -> Result<()> {
        let place = |row: &Map<String, Value>| {
            let name = row.get("stage").and_then(Value::as_str).unwrap_or(stage).to_owned();
            (name, row.get("step").and_then(Value::as_u64).unwrap_or(0))
        };
        let metrics = dir.join("metrics.jsonl");
        let unfinished = each_line(&metrics, |row| {
            let (name, step) = place(&row);
            let stage = self.stage(&name);
            stage.metrics.take(step, &row);
            stage.last_step = stage.last_step.max(step);
            let alarms = self.watch.see(&row);
            self.alarms.extend(alarms);
        })?;
        self.note(unfinished, &metrics);
        let timings = dir.join("timings.jsonl");
        let unfinished = each_line(&timings, |row| {
            let (name, step) = place(&row);
            self.stage(&name).timings.take(step, &row);
        })?;
        self.note(unfinished, &timings);
        let samples = dir.join("samples.jsonl");
        let unfinished = each_line(&samples, |row| self.samples.take(&row, stage))?;
        self.note(unfinished, &samples);
        let comparison = dir.join("comparison.jsonl");
        let mut found = Comparison::new("comparison.jsonl");
        let unfinished = each_line(&comparison, |row| found.take(&row))?;
        self.note(unfinished, &comparison);
        if self.comparison.is_empty() {
            self.comparison = found;
        }
        Ok(())
    }

    fn note(&mut self, unfinished: bool, path: &Path) {
        if unfinished {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            self.notes.push(format!(
                "The last line of {name} is unfinished and was left out: the run was killed, or is still writing."
            ));
        }
    }

    /// For the page.
    pub(super) fn to_json(&self) -> Value {
        let stages: Vec<Value> = self.stages.iter().map(|stage| stage.to_json(&self.watch)).collect();
        let alarms = self.alarms.iter().take(ALARMS_MAX).map(|alarm| {
            json!({
                "id": alarm.id, "stage": alarm.stage, "step": alarm.step, "what": alarm.what, "why": alarm.why,
                "advice": alarm.advice,
            })
        });
        let mut notes = self.notes.clone();
        if self.samples.skipped() > 0 {
            notes.push(format!(
                "{} rows of samples.jsonl have no completion and were left out.",
                self.samples.skipped()
            ));
        }
        json!({
            "name": self.name,
            "run": self.run,
            "stages": stages,
            "summary": self.summary,
            "quality": self.quality,
            "samples": self.samples.to_json(),
            "comparison": if self.comparison.is_empty() { Value::Null } else { self.comparison.to_json() },
            "alarms": alarms.collect::<Vec<_>>(),
            "alarms_total": self.alarms.len(),
            "notes": notes,
        })
    }
}

impl Stage {
    fn to_json(&self, watch: &Watch) -> Value {
        let watched = watch.watched(&self.name).into_iter();
        let watched = watched.map(|w| json!({ "id": w.id, "when": w.when, "key": w.key, "seen": w.seen }));
        let watched: Vec<Value> = if self.metrics.rows() == 0 { Vec::new() } else { watched.collect() };
        json!({
            "name": self.name,
            "run": self.run,
            "last_step": self.last_step,
            "metrics": self.metrics.to_json(),
            "timings": self.timings.to_json(),
            "seconds": self.timings.highest("seconds").map(brief),
            "memory_peak": self.timings.highest("memory_peak").or_else(|| self.timings.highest("memory")),
            "watched": watched,
        })
    }
}
