//! How far the embedded job has come in its directory: each stage's model in a directory of its own with a manifest,
//! the checkpoints of the stage that is running below it, and one record of metrics for all.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::{Codec, DemoOptions, tokenizer};
use crate::config::LATEST;
use crate::disk::{self, Existing};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::card::{Card, Stage};
use crate::model::checkpoint::saved_files;
use crate::train::checkpoint::identity::{self, Identity};
use crate::train::checkpoint::manifest::{self, Manifest};
use crate::train::checkpoint::{self, Checkpoints, Finished, Found, seal};
use crate::train::metrics::{Journal, Marks, RUN_FILE};

/// A stage: the name of its directory, and what its model's card calls it.
pub(super) type Name = (&'static str, Stage);
pub(super) const SFT: Name = ("sft", Stage::Sft);
pub(super) const REWARD: Name = ("reward", Stage::Reward);
pub(super) const PPO: Name = ("ppo", Stage::Ppo);
const STAGES: [Name; 3] = [SFT, REWARD, PPO];
/// What the job's settings are where nothing is said.
const DEFAULTS: [(&str, &str); 2] = [("seed", "1"), ("quick", "false")];
/// The file that says what came of it.
pub(super) const SUMMARY: &str = "summary.json";

/// Where the job begins.
pub(super) struct Course<'a> {
    options: &'a DemoOptions,
    dir: &'a Path,
    /// The stages that are done, in order.
    done: Vec<Manifest>,
    /// The state of the next one.
    from: Option<Found>,
}

impl<'a> Course<'a> {
    /// Looks for what an earlier run left in `dir`, if the options ask to go on from it.
    pub(super) fn find(options: &'a DemoOptions, dir: &'a Path) -> Result<Self> {
        let mut course = Self { options, dir, done: Vec::new(), from: None };
        let Some(path) = &options.save.resume else { return Ok(course) };
        if path.as_os_str() != LATEST {
            course.go_back(path)?;
        }
        for (name, _) in STAGES {
            if let Some(manifest) = checkpoint::finished(&dir.join(name))? {
                course.compare(&manifest.identity, &dir.join(name))?;
                course.done.push(manifest);
                continue;
            }
            let (found, broken) = Found::newest(&course.checkpoints(name))?;
            broken.iter().for_each(|error| course.say(&format!("note: a newer checkpoint is not used: {error}")));
            course.from = found;
            break;
        }
        if let Some(found) = &course.from {
            course.compare(&found.manifest.identity, &found.path)?;
            checkpoint::remove_after(&course.checkpoints(&found.manifest.stage), found.manifest.step)?;
        }
        course.say(&course.describe());
        Ok(course)
    }

    /// What the job goes on from, in words.
    fn describe(&self) -> String {
        let done: Vec<&str> = self.done.iter().map(|manifest| manifest.stage.as_str()).collect();
        match (&self.from, done.as_slice()) {
            (Some(found), _) => {
                let Manifest { step, total_steps, .. } = found.manifest;
                format!("resumed from {} (step {step} of {total_steps})", found.path.display())
            }
            (None, []) => format!("there is no checkpoint in {}: the job begins at its start", self.dir.display()),
            (None, done) => format!("resumed in {}: {} done", self.dir.display(), done.join(" and ")),
        }
    }

    /// Gives up all that was done after the checkpoint `path`, OUTPUT/STAGE/checkpoints/step-N.
    fn go_back(&self, path: &Path) -> Result<()> {
        let found = Found::read(path)?;
        let stage = found.manifest.stage.as_str();
        let first = STAGES.iter().position(|(name, _)| *name == stage).unwrap_or(STAGES.len());
        for (name, _) in STAGES.into_iter().skip(first) {
            disk::remove_file(&self.dir.join(name).join(manifest::NAME))?;
            let kept = if name == stage { found.manifest.step } else { 0 };
            for removed in checkpoint::remove_after(&self.checkpoints(name), kept)? {
                self.say(&format!("note: removed {}, which comes after the checkpoint", removed.display()));
            }
        }
        Ok(())
    }

    fn compare(&self, saved: &Identity, place: &Path) -> Result<()> {
        let differences = self.options.identity.differences(saved);
        if !differences.is_empty() {
            self.say(&format!("changed since {} was written:\n{}", place.display(), identity::describe(&differences)));
        }
        identity::check(&differences, self.options.save.accept_changes, &place.display().to_string())
    }

    pub(super) fn say(&self, line: &str) {
        self.options.voice.say(line);
    }

    fn checkpoints(&self, stage: &str) -> PathBuf {
        self.dir.join(stage).join(checkpoint::DIR)
    }

    /// The summary of a job that is over.
    pub(super) fn summary(&self) -> Result<Option<Map<String, Value>>> {
        if self.done.len() < STAGES.len() {
            return Ok(None);
        }
        let path = self.dir.join(SUMMARY);
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io("reading the summary", &path, &e))?;
        let summary = serde_json::from_str(&text).map_err(|e| {
            Error::input("summary", "the summary is not JSON").at(path.display().to_string()).because(e.to_string())
        })?;
        Ok(Some(summary))
    }

    /// Writes what the job is and how many rows each stage has, and opens the record, cut back to where the job goes
    /// on.
    pub(super) fn begin(&self, rows: Value) -> Result<Journal> {
        let setting = |(name, value): (&String, &String)| {
            let origin = if DEFAULTS.contains(&(name, value)) { "default" } else { "command line" };
            (name.clone(), json!({ "value": value, "origin": origin }))
        };
        let settings: Map<String, Value> = self.options.identity.settings.iter().map(setting).collect();
        let run = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "command": "demo",
            "device": self.options.device.name(),
            "settings": settings,
            "rows": rows,
            "reproduce": self.options.identity.reproduce(),
        });
        disk::write_file(&self.dir.join(RUN_FILE), format!("{run:#}\n").as_bytes())?;
        let of = |manifest: &Manifest| -> Option<Marks> { manifest.state.as_ref()?.journal.clone() };
        let last = self.from.as_ref().map(|found| &found.manifest).or(self.done.last());
        match last.and_then(of) {
            Some(marks) => Journal::resume(self.dir, self.options.voice, &marks),
            None => Journal::open(self.dir, self.options.voice),
        }
    }

    /// The model of a stage that is done.
    pub(super) fn read(&self, (name, _): Name) -> Result<Option<Model>> {
        let is_done = self.done.iter().any(|manifest| manifest.stage == name);
        is_done.then(|| self.load(name)).transpose()
    }

    fn load(&self, name: &str) -> Result<Model> {
        Model::load(&self.options.device, &self.dir.join(name))
    }

    /// The checkpoints of a stage.
    pub(super) fn keeper<'b>(&mut self, stage: Name, codec: &'b Codec) -> Checkpoints<'b> {
        let (name, options) = (stage.0, self.options);
        let seed = options.seed;
        let export = move |dir: &Path, model: &Model| save(dir, stage, model, codec, seed, &Map::new());
        let from = self.from.take_if(|found| found.manifest.stage == name);
        let identity = options.identity.clone();
        Checkpoints::new(self.checkpoints(name), name, &options.save, identity, from, Box::new(export))
    }

    /// Saves what a stage gave, from when on it is done, and reads it: the next stage begins with what a resumed job
    /// would find.
    pub(super) fn finish(
        &self,
        stage: Name,
        model: &Model,
        codec: &Codec,
        results: &Map<String, Value>,
        journal: &Journal,
    ) -> Result<Model> {
        let dir = self.dir.join(stage.0);
        disk::create_output_dir(&dir, Existing::Reuse)?;
        save(&dir, stage, model, codec, self.options.seed, results)?;
        let (identity, journal) = (self.options.identity.clone(), journal.mark()?);
        seal(&dir, &saved_files(&dir)?, Finished { stage: stage.0, steps: 0, identity, journal })?;
        self.load(stage.0)
    }
}

/// Writes one model directory, tokenizer included.
fn save(
    dir: &Path,
    (name, stage): Name,
    model: &Model,
    codec: &Codec,
    seed: u64,
    results: &Map<String, Value>,
) -> Result<()> {
    let json = codec.tokenizer.to_string(true).map_err(|e| Error::failure("tokenizer-json", e.to_string()))?;
    let results: Vec<(String, String)> =
        ["reward_accuracy", "gold_sft", "gold_ppo", "win_rate", "win_rate_greedy", "kl"]
            .iter()
            .filter_map(|key| Some(((*key).to_owned(), format!("{:.3}", results.get(*key)?.as_f64()?))))
            .collect();
    let card = Card {
        name: &format!("rlhf demo, {name}"),
        stage,
        head: model.config().head,
        source: "random weights",
        data: &["the embedded task of rlhf".to_owned()],
        settings: &[("seed".to_owned(), seed.to_string())],
        results: &results,
        date: None,
    };
    disk::write_file(&dir.join("tokenizer.json"), json.as_bytes())?;
    disk::write_file(&dir.join("tokenizer_config.json"), tokenizer::config_json().as_bytes())?;
    model.save(dir, &card.render(model.config()))
}
