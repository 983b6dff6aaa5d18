//! Runs that are stopped and resumed on tiny models: they end in the bytes of the run that never stopped. Where a state
//! is resumed and one step is made, the next state has to be the next state of that run, which by induction holds the
//! promise for every step; some runs go on to the end all the same.

use std::path::{Path, PathBuf};

use super::*;
use crate::config::{PpoConfig, RewardConfig, SftConfig, defaults};
use crate::data::encode::{PairExample, PromptExample, SftExample};
use crate::device::Device;
use crate::model::ModelConfig;
use crate::model::config::LlamaShape;
use crate::random::{Philox, Stage};
use crate::train::metrics::{FILES, Voice};
use crate::train::ppo::Start;
use crate::train::reward::Episode;
use crate::train::{ppo, reward, sft};

const STAGES: [&str; 3] = ["sft", "reward", "ppo"];

fn save_args(save_steps: SaveSteps, save_total_limit: usize) -> SaveArgs {
    SaveArgs { save_steps, save_total_limit, resume: None, accept_changes: false }
}

/// A decoder of a few thousand weights; GPT-2, whose matrices are stored the other way round, where the CPU computes.
fn model(device: &Device, stage: &str) -> Model {
    if (device, stage) == (&Device::Cpu, "reward") {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/gpt2_tied");
        return Model::load(device, &root).unwrap();
    }
    let shape = LlamaShape {
        hidden_size: 16,
        layers: 1,
        heads: 2,
        kv_heads: 1,
        intermediate_size: 24,
        vocab_size: 40,
        max_positions: 64,
        tied: stage == "sft",
        bos_token_id: None,
        eos_token_id: 0,
        pad_token_id: None,
    };
    Model::fresh(device, ModelConfig::new_llama(&shape).unwrap(), 5).unwrap()
}

fn tokens(n: usize, row: u32) -> Vec<i32> {
    let mut stream = Philox::new(4, Stage::Init, 0, row);
    (0..n).map(|_| (stream.normal().abs() * 1000.0) as i32 % 36 + 3).collect()
}

/// A journal in `dir`: new, or cut back to what `from` says.
fn journal(dir: &Path, from: Option<&Found>) -> Journal {
    match from.and_then(|found| found.saved()?.journal.as_ref()) {
        Some(marks) => Journal::resume(dir, Voice::Quiet, marks).unwrap(),
        None => Journal::new(dir, true).unwrap(),
    }
}

fn train_sft(start: Model, steps: usize, journal: &mut Journal, keeper: &mut dyn Keeper) -> Result<()> {
    let row = |row: u32| {
        let ids = tokens(3 + row as usize % 5, row);
        SftExample { is_target: (0..ids.len()).map(|i| i % 3 != 1).collect(), ids, place: format!("row {row}") }
    };
    let data: Vec<SftExample> = (0..7).map(row).collect();
    let groups: Vec<Vec<usize>> = (0..7).map(|i| vec![i]).collect();
    let mut config = defaults::<SftConfig>()?;
    (config.optimizer.per_device_train_batch_size, config.optimizer.gradient_accumulation_steps) = (Some(2), 2);
    (config.epochs.max_steps, config.learning_rate, config.run.logging_steps) = (Some(steps), 1e-2, Some(4));
    (config.eval.eval_steps, config.optimizer.warmup_steps) = (Some(5), 3);
    sft::train(start, &data, &groups, &data[..2], &config, journal, keeper).map(|_| ())
}

fn train_reward(start: &Model, steps: usize, journal: &mut Journal, keeper: &mut dyn Keeper) -> Result<()> {
    let pair = |row: u32| PairExample {
        chosen: tokens(3 + row as usize % 5, row),
        rejected: tokens(4, row + 500),
        margin: 0.1,
        place: format!("pair {row}"),
    };
    let data: Vec<PairExample> = (0..7).map(pair).collect();
    let mut config = defaults::<RewardConfig>()?;
    config.optimizer.per_device_train_batch_size = Some(3);
    (config.epochs.max_steps, config.learning_rate, config.run.logging_steps) = (Some(steps), 1e-2, Some(3));
    reward::train(start.value_model(3)?, &data, &data[..2], &config, journal, keeper).map(|_| ())
}

fn train_ppo(start: Model, batches: usize, journal: &mut Journal, keeper: &mut dyn Keeper) -> Result<()> {
    let prompt = |row: u32| PromptExample { ids: tokens(3, row), text: String::new(), place: format!("prompt {row}") };
    let prompts: Vec<PromptExample> = (0..6).map(prompt).collect();
    let mut config = defaults::<PpoConfig>()?;
    (config.optimizer.per_device_train_batch_size, config.loss.num_mini_batches) = (Some(2), 2);
    (config.loss.num_ppo_epochs, config.rollout.response_length) = (2, 4);
    (config.rollout.total_episodes, config.loss.learning_rate) = (Some(4 * batches), 1e-3);
    (config.rollout.kl_target, config.rollout.kl_horizon) = (Some(0.01), 20.0);
    (config.loss.value_warmup_batches, config.rollout.missing_eos_penalty) = (1, Some(0.5));
    let mut reward = |episodes: &[Episode<'_>]| {
        Ok(episodes.iter().map(|e| e.response.iter().filter(|t| **t % 2 == 0).count() as f32).collect())
    };
    let value_model = start.value_model(2)?;
    let start = Start { policy: start, value_model, reward: &mut reward, stop: &[0], normalize: None, judge: None };
    ppo::train(start, &prompts, &config, journal, keeper).map(|_| ())
}

/// A stage on a device, and how many steps it has.
pub(super) struct Run<'a> {
    pub(super) stage: &'static str,
    pub(super) device: &'a Device,
    pub(super) steps: usize,
}

impl Run<'_> {
    /// Trains in `dir` with a checkpoint after every step, from `from`, and stops after `until` steps.
    pub(super) fn go(&self, dir: &Path, from: Option<Found>, until: usize) {
        let mut journal = journal(dir, from.as_ref());
        let export: Export<'_> = Box::new(|to, model| model.save(to, "a card"));
        let (checkpoints, args) = (dir.join(DIR), save_args(SaveSteps::Every(1), 0));
        let inner = Checkpoints::new(checkpoints, self.stage, &args, Identity::default(), from, export);
        let mut keeper = Until { inner, until };
        let start = model(self.device, self.stage);
        let ended = match self.stage {
            "sft" => train_sft(start, self.steps, &mut journal, &mut keeper),
            "reward" => train_reward(&start, self.steps, &mut journal, &mut keeper),
            _ => train_ppo(start, self.steps, &mut journal, &mut keeper),
        };
        match ended {
            Ok(()) => assert_eq!(until, self.steps),
            Err(error) => assert_eq!((error.id(), until < self.steps), ("stopped", true), "{error}"),
        }
    }

    /// Goes on in `dir`, which holds the record of the whole run, from its state after `step` steps to `until`.
    fn resume(&self, whole: &Path, step: usize, until: usize) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in FILES {
            std::fs::copy(whole.join(name), dir.path().join(name)).unwrap();
        }
        self.go(dir.path(), Some(Found::read(&at(whole, step)).unwrap()), until);
        dir
    }

    /// The state after `step` steps in `a` is that in `b`, and so are the metrics up to there.
    fn assert_same(&self, a: &Path, b: &Path, step: usize, resumed: usize) {
        let what = format!("{} on {}, resumed after step {resumed}, at step {step}", self.stage, self.device.name());
        for name in [TENSORS, "model.safetensors", "config.json"] {
            let bytes = |dir: &Path| std::fs::read(at(dir, step).join(name)).unwrap();
            assert!(bytes(a) == bytes(b), "{name}: {what}");
        }
        let [first, second] = [a, b].map(|dir| Found::read(&at(dir, step)).unwrap().manifest);
        let [x, y] = [&first, &second].map(|manifest| manifest.state.clone().unwrap());
        assert_eq!((x.numbers, x.optimizer_steps), (y.numbers, y.optimizer_steps), "{what}");
        let metrics = |dir: &Path| std::fs::read(dir.join("metrics.jsonl")).unwrap();
        assert!(metrics(a).starts_with(&metrics(b)), "metrics: {what}");
        assert!(step < self.steps || metrics(a) == metrics(b), "metrics to the end: {what}");
    }
}

pub(super) fn at(dir: &Path, step: usize) -> PathBuf {
    dir.join(DIR).join(format!("step-{step}"))
}

/// Checkpoints that stop the loop after a step.
struct Until<'a> {
    inner: Checkpoints<'a>,
    until: usize,
}

impl Keeper for Until<'_> {
    fn restore(&mut self, state: &mut State<'_>) -> Result<usize> {
        self.inner.restore(state)
    }

    fn after(&mut self, step: usize, total: usize, state: &mut State<'_>) -> Result<()> {
        self.inner.after(step, total, state)?;
        if step == self.until && step < total { Err(Error::failure("stopped", "as asked")) } else { Ok(()) }
    }
}

/// Stops `run` after every step and makes the next one; after each of `ends` goes on to the end.
fn check(run: &Run<'_>, ends: &[usize]) {
    let whole = tempfile::tempdir().unwrap();
    run.go(whole.path(), None, run.steps);
    for step in 1..run.steps {
        let until = if ends.contains(&step) { run.steps } else { step + 1 };
        let dir = run.resume(whole.path(), step, until);
        (step + 1..=until).for_each(|at| run.assert_same(whole.path(), dir.path(), at, step));
    }
    // After the last step there is nothing to do, and nothing is lost.
    let dir = run.resume(whole.path(), run.steps, run.steps);
    assert_eq!(
        std::fs::read(dir.path().join("metrics.jsonl")).unwrap(),
        std::fs::read(whole.path().join("metrics.jsonl")).unwrap()
    );
    println!("{} on {}: stopped and resumed at each of {} steps", run.stage, run.device.name(), run.steps);
}

fn is_slow() -> bool {
    std::env::var_os("RLHF_SLOW").is_some_and(|value| value == "1")
}

#[test]
fn a_run_of_50_steps_resumes_at_every_step() {
    for stage in STAGES {
        let all: Vec<usize> = (1..50).collect();
        check(&Run { stage, device: &Device::Cpu, steps: 50 }, if is_slow() { &all } else { &[1, 24, 49] });
    }
}

#[test]
fn a_run_on_the_emulator_resumes_at_every_step() {
    let steps = if is_slow() { 50 } else { 5 };
    for stage in STAGES {
        let device = Device::parse("emulated").unwrap();
        check(&Run { stage, device: &device, steps }, &[1, 3]);
    }
}

/// Positive controls: what a checkpoint could leave out shows in the next state.
#[test]
fn a_state_that_lacks_something_is_another_run() {
    let whole = tempfile::tempdir().unwrap();
    let run = Run { stage: "sft", device: &Device::Cpu, steps: 6 };
    run.go(whole.path(), None, run.steps);
    let tensors = |dir: &Path, step| std::fs::read(at(dir, step).join(TENSORS)).unwrap();
    let changes: [fn(&mut Saved); 2] =
        [|saved| saved.optimizer_steps[0].1 = 0, |saved| saved.numbers["tokens"] = 0.into()];
    for (number, change) in changes.into_iter().enumerate() {
        let mut found = Found::read(&at(whole.path(), 3)).unwrap();
        change(found.manifest.state.as_mut().unwrap());
        let dir = tempfile::tempdir().unwrap();
        for name in FILES {
            std::fs::copy(whole.path().join(name), dir.path().join(name)).unwrap();
        }
        run.go(dir.path(), Some(found), run.steps);
        let same = [
            tensors(whole.path(), 6) == tensors(dir.path(), 6),
            std::fs::read(whole.path().join("metrics.jsonl")).unwrap()
                == std::fs::read(dir.path().join("metrics.jsonl")).unwrap(),
        ];
        assert_eq!(same, [number == 1, false], "change {number}");
    }
}

#[test]
fn only_the_newest_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::silent();
    let export: Export<'_> = Box::new(|to, model| model.save(to, "a card"));
    let args = save_args(SaveSteps::Every(2), 2);
    let mut keeper = Checkpoints::new(dir.path().join(DIR), "sft", &args, Identity::default(), None, export);
    train_sft(model(&Device::Cpu, "sft"), 9, &mut journal, &mut keeper).unwrap();
    let steps: Vec<usize> = list(&dir.path().join(DIR)).unwrap().into_iter().map(|(step, _)| step).collect();
    assert_eq!(steps, [6, 8]);
    remove_after(&dir.path().join(DIR), 6).unwrap();
    assert_eq!(list(&dir.path().join(DIR)).unwrap().len(), 1);
}

#[test]
fn a_checkpoint_of_another_stage_or_model_is_refused() {
    let whole = tempfile::tempdir().unwrap();
    Run { stage: "reward", device: &Device::Cpu, steps: 2 }.go(whole.path(), None, 2);
    let found = Found::read(&at(whole.path(), 1)).unwrap();
    let refused = |found: Found, stage| {
        let export: Export<'_> = Box::new(|_, _| Ok(()));
        let args = save_args(SaveSteps::Auto, 2);
        let dir = whole.path().join(DIR);
        let mut keeper = Checkpoints::new(dir, stage, &args, Identity::default(), Some(found), export);
        let start = model(&Device::Cpu, "sft");
        train_sft(start, 2, &mut Journal::silent(), &mut keeper).unwrap_err().id()
    };
    assert_eq!(refused(found.clone(), "sft"), "checkpoint-stage");
    assert_eq!(refused(found, "reward"), "checkpoint-tensors");
}
