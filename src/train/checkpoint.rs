//! The state of a loop between two steps, as a directory that is there whole or not at all: a model directory that
//! anybody can load, `training.safetensors` with the f32 masters and both moments of every learner, and the manifest
//! with the loop's own numbers and the hash of everything. It is filled under a temporary name, synced, and renamed.

#[cfg(test)]
mod corruption;
pub(crate) mod identity;
pub(crate) mod manifest;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Learner;
use super::interrupt::Watch;
use super::metrics::{Journal, Marks};
use crate::config::{SaveArgs, SaveSteps};
use crate::disk::{self, Existing};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::checkpoint::{TensorSpec, Weights, write_safetensors};
use crate::model::config::StoredDtype;
use crate::model::params::{Params, Part};
use crate::tensor::Tensor;
use identity::Identity;
use manifest::{Kind, Manifest, Saved};

/// The directory of checkpoints in an output directory.
pub(crate) const DIR: &str = "checkpoints";
/// The file with masters and moments.
const TENSORS: &str = "training.safetensors";
/// Without `--save-steps`: at least this long between two saves,
const INTERVAL: Duration = Duration::from_secs(300);
/// and at least this many times what the last one took;
const INTERVAL_COSTS: u32 = 100;
/// the first is taken to write so many bytes a second.
const BYTES_PER_SECOND: f64 = 500e6;

/// What keeps the state of a loop. `()` keeps nothing.
pub trait Keeper {
    /// Before the first step: puts a saved state in the place of the fresh one. Returns the steps that are done.
    ///
    /// # Errors
    /// A state that does not fit; input and output errors.
    fn restore(&mut self, _state: &mut State<'_>) -> Result<usize> {
        Ok(0)
    }

    /// After each step: `step` of `total` are done. An error ends the loop.
    ///
    /// # Errors
    /// Whatever keeps the state from being kept, or asks the loop to stop.
    fn after(&mut self, step: usize, total: usize, state: &mut State<'_>) -> Result<()>;
}

impl Keeper for () {
    fn after(&mut self, _step: usize, _total: usize, _state: &mut State<'_>) -> Result<()> {
        Ok(())
    }
}

/// The loop's own numbers, such as sums since the last logged row.
pub(crate) trait Numbers {
    fn save(&self) -> Result<Value>;
    fn load(&mut self, value: Value) -> Result<()>;
}

impl<T: Serialize + DeserializeOwned> Numbers for T {
    fn save(&self) -> Result<Value> {
        serde_json::to_value(self).map_err(|e| Error::failure("loop-numbers", e.to_string()))
    }

    fn load(&mut self, value: Value) -> Result<()> {
        *self = serde_json::from_value(value).map_err(|e| {
            Error::input("checkpoint-numbers", "the checkpoint's numbers are not those of this loop")
                .because(e.to_string())
                .fix("use another checkpoint of this run")
        })?;
        Ok(())
    }
}

/// All that the next step of a loop depends on, beside settings and data.
pub struct State<'a> {
    learners: Vec<(&'static str, &'a mut Learner)>,
    numbers: &'a mut dyn Numbers,
    journal: &'a mut Journal,
}

impl std::fmt::Debug for State<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("model", self.model().config()).finish_non_exhaustive()
    }
}

impl<'a> State<'a> {
    /// The first learner's model is the one that the run is about.
    pub(super) fn new(
        learners: Vec<(&'static str, &'a mut Learner)>,
        numbers: &'a mut dyn Numbers,
        journal: &'a mut Journal,
    ) -> Self {
        Self { learners, numbers, journal }
    }

    /// The model that is trained.
    pub fn model(&self) -> &Model {
        &self.learners[0].1.model
    }
}

/// What masters and moments are called in the file.
const KINDS: [&str; 3] = ["weights", "first_moment", "second_moment"];

/// Every tensor of the learners: its name in the file, where it is, and its part of the layout.
fn tensors<'a>(learners: &'a [(&'static str, &mut Learner)]) -> Vec<(String, &'a Tensor, &'a Part, usize)> {
    let of = |(name, learner): &'a (&'static str, &mut Learner)| {
        let parts = learner.model.params.layout().parts();
        let flats = KINDS.iter().zip(learner.tensors());
        let flats: Vec<_> = flats.collect();
        parts.flat_map(move |(part, offset)| {
            let entry =
                |(kind, flat): (&&str, &'a Tensor)| (format!("{name}/{kind}/{}", part.name), flat, part, offset);
            flats.clone().into_iter().map(entry).collect::<Vec<_>>()
        })
    };
    learners.iter().flat_map(of).collect()
}

/// Writes masters and moments.
fn write_tensors(path: &Path, learners: &[(&'static str, &mut Learner)]) -> Result<()> {
    let all = tensors(learners);
    let specs: Vec<TensorSpec> =
        all.iter().map(|(name, _, part, _)| TensorSpec { name: name.clone(), shape: part.stored_shape() }).collect();
    let by_name: HashMap<&str, _> =
        all.iter().map(|(name, flat, part, at)| (name.as_str(), (*flat, *part, *at))).collect();
    write_safetensors(path, &specs, StoredDtype::F32, &mut |spec| match by_name.get(spec.name.as_str()) {
        Some((flat, part, at)) => Ok(Cow::Owned(Params::stored(flat, part, *at)?)),
        None => Err(Error::failure("save-tensor", format!("{} is not in the layout", spec.name))),
    })
}

/// Reads what [`write_tensors`] wrote; the file must hold these tensors and no other.
fn read_tensors(path: &Path, learners: &mut [(&'static str, &mut Learner)]) -> Result<()> {
    let weights = Weights::open_file(path)?;
    let names: Vec<String> = tensors(learners).into_iter().map(|(name, ..)| name).collect();
    if let Some(name) = weights.unused_names(&names).first() {
        return Err(Error::input("checkpoint-tensors", "the checkpoint is of another model")
            .at(path.display().to_string())
            .because(format!("it holds the tensor {name:?}, which the model does not have"))
            .fix("resume with the model that the run began with"));
    }
    for (name, learner) in learners {
        let mut source =
            |kind: &str, part: &Part| weights.read_f32(&format!("{name}/{kind}/{}", part.name), &part.stored_shape());
        learner.restore(KINDS, &mut source)?;
    }
    Ok(())
}

/// A checkpoint whose files were all held against its manifest.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) path: PathBuf,
    pub(crate) manifest: Manifest,
}

impl Found {
    /// Reads and verifies the checkpoint in `path`.
    ///
    /// # Errors
    /// `manifest-missing`, `checkpoint-kind`, and those of [`Manifest`].
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let bad = |id, what: &str| {
            let error = Error::input(id, what).at(path.display().to_string());
            Err(error.fix("give the directory of a checkpoint, such as OUTPUT/checkpoints/step-100"))
        };
        let manifest = match Manifest::read(path)? {
            None => return bad("manifest-missing", "the directory has no manifest: it is not a checkpoint of rlhf"),
            Some(manifest) if manifest.kind != Kind::Checkpoint || manifest.state.is_none() => {
                return bad("checkpoint-kind", "the directory holds a finished model, not a checkpoint");
            }
            Some(manifest) => manifest,
        };
        let named = path.canonicalize().ok().and_then(|path| path.file_name()?.to_str().map(str::to_owned));
        if named.is_some_and(|name| name.starts_with("step-") && name != format!("step-{}", manifest.step)) {
            return bad("checkpoint-step", "the checkpoint's name and its manifest speak of different steps");
        }
        manifest.verify(path)?;
        Ok(Self { path: path.to_path_buf(), manifest })
    }

    /// The newest checkpoint in `dir` that is whole, and why newer ones are not.
    ///
    /// # Errors
    /// The newest one's, if there are checkpoints and none is whole; input and output errors.
    pub(crate) fn newest(dir: &Path) -> Result<(Option<Self>, Vec<Error>)> {
        let mut broken = Vec::new();
        for (_, path) in list(dir)?.into_iter().rev() {
            match Self::read(&path) {
                Ok(found) => return Ok((Some(found), broken)),
                Err(error) => broken.push(error),
            }
        }
        match broken.into_iter().next() {
            None => Ok((None, Vec::new())),
            Some(newest) => Err(newest),
        }
    }

    /// What the loop goes on with.
    pub(crate) fn saved(&self) -> Option<&Saved> {
        self.manifest.state.as_ref()
    }
}

/// The checkpoints in `dir` by their step, the oldest first; none if there is no such directory.
pub(crate) fn list(dir: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let failed = |e: std::io::Error| Error::io("listing the checkpoints", dir, &e);
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        let digits =
            name.to_str().and_then(|name| name.strip_prefix("step-")).filter(|digits| !digits.starts_with(['0', '+']));
        if let Some(step) = digits.and_then(|digits| digits.parse().ok()) {
            found.push((step, dir.join(name)));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Removes the checkpoints after `step`; returns what was removed.
///
/// # Errors
/// Input and output errors.
pub(crate) fn remove_after(dir: &Path, step: usize) -> Result<Vec<PathBuf>> {
    let later = list(dir)?.into_iter().filter(|(at, _)| *at > step).map(|(_, path)| path).rev();
    later.map(|path| disk::remove_dir(&path).map(|()| path)).collect()
}

/// Writes a model directory: the checkpoint's public half.
pub(crate) type Export<'a> = Box<dyn Fn(&Path, &Model) -> Result<()> + 'a>;

/// The checkpoints of one loop.
pub(crate) struct Checkpoints<'a> {
    dir: PathBuf,
    stage: &'static str,
    every: SaveSteps,
    /// How many are kept; 0 is all.
    limit: usize,
    identity: Identity,
    export: Export<'a>,
    /// What the loop goes on from.
    from: Option<Found>,
    clock: Clock,
    watch: Option<Watch>,
}

/// When something was saved last, and how long that took.
#[derive(Debug)]
struct Clock {
    last: Instant,
    cost: Duration,
}

impl<'a> Checkpoints<'a> {
    /// The checkpoints of `stage` under `dir`, saved and kept as `save` says. The loop goes on from `from`.
    pub(crate) fn new(
        dir: PathBuf,
        stage: &'static str,
        save: &SaveArgs,
        identity: Identity,
        from: Option<Found>,
        export: Export<'a>,
    ) -> Self {
        let clock = Clock { last: Instant::now(), cost: Duration::ZERO };
        let (every, limit) = (save.save_steps, save.save_total_limit);
        Self { dir, stage, every, limit, identity, export, from, clock, watch: None }
    }

    fn is_due(&self, step: usize) -> bool {
        match self.every {
            SaveSteps::Every(0) => false,
            SaveSteps::Every(n) => step.is_multiple_of(n),
            SaveSteps::Auto => self.clock.last.elapsed() >= INTERVAL.max(self.clock.cost * INTERVAL_COSTS),
        }
    }

    fn save(&mut self, step: usize, total: usize, state: &State<'_>) -> Result<PathBuf> {
        let began = Instant::now();
        disk::create_output_dir(&self.dir, Existing::Reuse)?;
        let path = self.dir.join(format!("step-{step}"));
        let temporary = disk::temporary_dir(&path)?;
        let published = self.fill(&temporary, step, total, state).and_then(|()| disk::publish_dir(&temporary, &path));
        if let Err(error) = published {
            // The error on its way says what went wrong; what is left is removed by the next run.
            let _ = disk::remove_dir(&temporary);
            return Err(error);
        }
        self.remove_old()?;
        let cost = began.elapsed();
        self.clock = Clock { last: Instant::now(), cost };
        Ok(path)
    }

    /// Removes the oldest checkpoints, so that as many remain as are wanted.
    fn remove_old(&self) -> Result<()> {
        if self.limit == 0 {
            return Ok(());
        }
        // Every checkpoint that has a name is whole and finite; the newest was just written, or read.
        let kept = list(&self.dir)?;
        kept.iter().rev().skip(self.limit).rev().try_for_each(|(_, old)| disk::remove_dir(old))
    }

    fn fill(&self, dir: &Path, step: usize, total: usize, state: &State<'_>) -> Result<()> {
        // The metrics files first: the manifest says how long they are, so they must be that long after a power cut.
        let journal = state.journal.mark()?;
        (self.export)(dir, state.model())?;
        write_tensors(&dir.join(TENSORS), &state.learners)?;
        let optimizer_steps =
            state.learners.iter().map(|(name, learner)| ((*name).to_owned(), learner.optimizer_steps())).collect();
        let saved = Saved { numbers: state.numbers.save()?, optimizer_steps, journal };
        let files = file_names(dir)?;
        let manifest = Manifest::of(dir, &files, Kind::Checkpoint, self.stage, self.identity.clone())?;
        Manifest { step, total_steps: total, state: Some(saved), ..manifest }.write(dir)
    }

    /// Puts the state in `found` in the place of a fresh one.
    fn load(&self, found: &Found, state: &mut State<'_>) -> Result<usize> {
        let place = found.path.display().to_string();
        let manifest = &found.manifest;
        let Some(saved) = found.saved().filter(|_| manifest.stage == self.stage) else {
            return Err(Error::input(
                "checkpoint-stage",
                format!("the checkpoint is of {}, not of {}", manifest.stage, self.stage),
            )
            .at(place)
            .fix("resume each stage from its own checkpoint"));
        };
        let names = |steps: &[(String, u64)]| steps.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        let own: Vec<String> = state.learners.iter().map(|(name, _)| (*name).to_owned()).collect();
        if names(&saved.optimizer_steps) != own {
            return Err(Error::input("checkpoint-tensors", "the checkpoint has the states of other models")
                .at(place)
                .fix("resume each stage from its own checkpoint"));
        }
        read_tensors(&found.path.join(TENSORS), &mut state.learners)?;
        for ((_, learner), (_, steps)) in state.learners.iter_mut().zip(&saved.optimizer_steps) {
            learner.set_optimizer_steps(*steps);
        }
        state.numbers.load(saved.numbers.clone()).map_err(|error| error.at_if_unplaced(place))?;
        if let Some(marks) = &saved.journal {
            state.journal.go_on(marks, manifest.step);
        }
        Ok(manifest.step)
    }
}

impl Keeper for Checkpoints<'_> {
    fn restore(&mut self, state: &mut State<'_>) -> Result<usize> {
        let done = match self.from.take() {
            Some(found) => {
                let done = self.load(&found, state)?;
                // Who saved it may have been stopped before it came to this.
                self.remove_old()?;
                done
            }
            None => 0,
        };
        let elements: usize = state.learners.iter().flat_map(|(_, learner)| learner.tensors()).map(Tensor::len).sum();
        let cost = Duration::from_secs_f64(4.0 * elements as f64 / BYTES_PER_SECOND);
        self.clock = Clock { last: Instant::now(), cost };
        self.watch = Some(Watch::begin());
        Ok(done)
    }

    fn after(&mut self, step: usize, total: usize, state: &mut State<'_>) -> Result<()> {
        let signal = self.watch.as_ref().and_then(Watch::take);
        if signal.is_none() && !self.is_due(step) {
            return Ok(());
        }
        let since = self.clock.last.elapsed().as_secs_f64();
        let path = self.save(step, total, state)?;
        if signal.is_none() && self.every == SaveSteps::Auto {
            let took = self.clock.cost.as_secs_f64();
            let share = 100.0 * took / (since + took);
            state.journal.say(&format!("saved {} in {took:.1} s ({share:.1} % of the time)", path.display()));
        }
        match signal {
            Some(signal) => Err(signal.error(self.stage, step, &path.display().to_string())),
            None => Ok(()),
        }
    }
}

/// What a finished directory is.
pub(crate) struct Finished<'a> {
    pub(crate) stage: &'a str,
    pub(crate) steps: usize,
    pub(crate) identity: Identity,
    /// How far the metrics files had grown, where more stages follow.
    pub(crate) journal: Option<Marks>,
}

/// Writes the manifest of `dir`, which holds the finished `files`.
///
/// # Errors
/// Input and output errors.
pub(crate) fn seal(dir: &Path, files: &[String], finished: Finished<'_>) -> Result<()> {
    let Finished { stage, steps, identity, journal } = finished;
    let state = Saved { numbers: Value::Null, optimizer_steps: Vec::new(), journal };
    let manifest = Manifest::of(dir, files, Kind::Result, stage, identity)?;
    Manifest { step: steps, total_steps: steps, state: Some(state), ..manifest }.write(dir)
}

/// What a finished run left in `dir`, verified; none if no run has finished there.
///
/// # Errors
/// Those of [`Manifest`].
pub(crate) fn finished(dir: &Path) -> Result<Option<Manifest>> {
    let manifest = Manifest::read(dir)?.filter(|manifest| manifest.kind == Kind::Result);
    manifest.as_ref().map_or(Ok(()), |manifest| manifest.verify(dir))?;
    Ok(manifest)
}

/// The names of the files in a directory, sorted.
fn file_names(dir: &Path) -> Result<Vec<String>> {
    let list = || -> std::io::Result<Vec<String>> {
        std::fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    };
    let mut names = list().map_err(|e| Error::io("listing the checkpoint", dir, &e))?;
    names.sort();
    Ok(names)
}
