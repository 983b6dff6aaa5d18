//! The three stages as a plan rehearses them: their largest rows, and the trainers' functions in the order of a run.

use std::cmp::Reverse;

use super::{Job, Scene, Work};
use crate::config::{OptimizerArgs, PpoConfig, ROWS_PER_PASS, RewardConfig, SftConfig};
use crate::data::encode::{PairExample, PromptExample, SftExample};
use crate::error::Result;
use crate::model::config::Head;
use crate::model::{Model, ModelConfig};
use crate::objective::rewards::Shaping;
use crate::train::ppo::{self, Learners};
use crate::train::reward::Reward;
use crate::train::rollout::{Cast, Rollout};
use crate::train::{Learner, reward, samples, sft};

/// Shorter texts are not worth a run.
const LENGTH_MIN: usize = 8;

/// A row of supervised fine-tuning: tokens and targets of each example in it.
pub(super) type Row = Vec<[usize; 2]>;

fn tokens(row: &Row) -> usize {
    row.iter().map(|example| example[0]).sum()
}

/// At least as large as any `most` of `rows`: row i has the i-th most tokens and the i-th most targets.
pub(super) fn largest(mut rows: Vec<Row>, most: usize) -> Vec<Row> {
    let mut targets: Vec<usize> = rows.iter().map(|row| row.iter().map(|example| example[1]).sum()).collect();
    targets.sort_by_key(|n| Reverse(*n));
    rows.sort_by_key(|row| Reverse(tokens(row)));
    rows.truncate(most);
    for (row, mut targets) in rows.iter_mut().zip(targets) {
        for [tokens, marked] in row {
            *marked = targets.min(tokens.saturating_sub(1));
            targets -= *marked;
        }
    }
    rows
}

/// The rows, cut to `length` tokens.
pub(super) fn cut(rows: &[Row], length: usize) -> Vec<Row> {
    let cut = |row: &Row| {
        let mut left = length;
        let shorten = |[tokens, targets]: &[usize; 2]| {
            let tokens = left.min(*tokens);
            left -= tokens;
            [tokens, (*targets).min(tokens.saturating_sub(1))]
        };
        row.iter().map(shorten).filter(|example| example[0] > 0).collect()
    };
    rows.iter().map(cut).collect()
}

/// Numbers below `now` to try, none below `least`.
fn below(now: usize, least: usize) -> Vec<usize> {
    let mut numbers: Vec<usize> = (1..16).rev().map(|n| now * n / 16).chain([now / 32, now / 64]).collect();
    numbers.retain(|n| *n >= least);
    numbers.dedup();
    numbers
}

/// An optimizer step's rows if one pass has these, `rows` of them: two passes at most, of which the second finds what
/// the first has left. Each further pass would leave the same few numbers.
fn passes<T: Clone>(pass: Vec<T>, args: &OptimizerArgs, rows: usize) -> Vec<T> {
    if args.rows_per_step() > rows { [&pass[..], &pass[..]].concat() } else { pass }
}

/// A row's examples; their tokens do not matter.
fn examples(row: &Row) -> Vec<SftExample> {
    let example = |[tokens, targets]: &[usize; 2]| SftExample {
        ids: vec![0; *tokens],
        is_target: (0..*tokens).map(|i| i > 0 && i <= *targets).collect(),
        place: String::new(),
    };
    row.iter().map(example).collect()
}

/// Supervised fine-tuning.
pub(crate) struct Sft<'a> {
    model: &'a ModelConfig,
    config: SftConfig,
    /// The largest rows, the largest first.
    rows: Vec<Row>,
    eval: Vec<Row>,
    /// Tokens of the prompts that are answered now and then, and of an answer.
    samples: (Vec<usize>, usize),
    work: Work,
}

impl<'a> Sft<'a> {
    /// Of `model` on rows of examples that are packed together as `groups` say.
    pub(crate) fn new(
        model: &'a ModelConfig,
        data: &[SftExample],
        groups: &[Vec<usize>],
        eval: &[SftExample],
        config: &SftConfig,
    ) -> Self {
        let example = |e: &SftExample| [e.ids.len(), e.is_target.iter().skip(1).filter(|t| **t).count()];
        let most = config.optimizer.per_device_train_batch_size.unwrap_or(ROWS_PER_PASS);
        let rows: Vec<Row> = groups.iter().map(|group| group.iter().map(|i| example(&data[*i])).collect()).collect();
        let (prompts, answer) =
            samples::fine_tuning(samples::held_out(data, eval), model.max_positions, &config.samples);
        let samples = (prompts.iter().map(Vec::len).collect(), answer);
        let eval = eval.iter().map(|e| vec![example(e)]).collect();
        let work = Work::sft(rows.iter().map(tokens).collect(), config);
        Self { model, config: config.clone(), rows: largest(rows, most), eval: largest(eval, most), samples, work }
    }
}

impl Job for Sft<'_> {
    type Ready = Learner;

    fn work(&self) -> &Work {
        &self.work
    }

    fn optimizer(&self) -> &OptimizerArgs {
        &self.config.optimizer
    }

    fn with_optimizer(&self, optimizer: OptimizerArgs) -> Self {
        let config = SftConfig { optimizer, ..self.config.clone() };
        let [rows, eval] = [&self.rows, &self.eval].map(Vec::clone);
        Self { model: self.model, config, rows, eval, samples: self.samples.clone(), work: self.work.clone() }
    }

    fn prepare(&self, scene: &mut Scene) -> Result<Learner> {
        let model = scene.model(self.model)?;
        scene.ends("load")?;
        let learner = Learner::new(model, &self.config.optimizer, sft::ADAM_EPSILON, self.config.learning_rate, 1)?;
        let longest = self.rows.iter().chain(&self.eval).flatten().map(|example| example[0]).max().unwrap_or(0);
        let (prompts, answer) = &self.samples;
        let learner = scene.learns(learner, longest.max(prompts.iter().max().map_or(0, |prompt| prompt + answer)))?;
        if !prompts.is_empty() {
            let prompts: Vec<Vec<i32>> = prompts.iter().map(|length| vec![0; *length]).collect();
            let prompts: Vec<&[i32]> = prompts.iter().map(|ids| &ids[..]).collect();
            learner.model.generate(&learner.model.frozen()?, &prompts, &samples::greedy(*answer, &[]))?;
            scene.ends("samples")?;
        }
        Ok(learner)
    }

    fn train(&self, learner: &mut Learner, rows: usize, scene: &mut Scene) -> Result<()> {
        let fixed = scene.used()?;
        let batch: Vec<Vec<SftExample>> = self.rows.iter().take(rows).map(examples).collect();
        let batch: Vec<Vec<&SftExample>> = batch.iter().map(|row| row.iter().collect()).collect();
        let batch = passes(batch, &self.config.optimizer, rows);
        sft::update(learner, &batch, rows, 0.0)?;
        let peak = scene.ends("training")?;
        scene.group("activations and logits", peak - fixed);
        if !self.eval.is_empty() {
            let eval: Vec<SftExample> = self.eval.iter().take(rows).flat_map(examples).collect();
            sft::evaluate(&learner.model, &eval, rows)?;
            scene.ends("evaluation")?;
        }
        Ok(())
    }

    fn smaller(&self) -> Vec<Vec<(String, Self)>> {
        let longest = self.rows.iter().chain(&self.eval).map(tokens).max().unwrap_or(0);
        let with = |length: usize| {
            let [rows, eval] = [&self.rows, &self.eval].map(|rows| cut(rows, length));
            let (config, samples, work) = (self.config.clone(), self.samples.clone(), self.work.clone());
            (format!("--max-length {length}"), Self { model: self.model, config, rows, eval, samples, work })
        };
        vec![below(longest, LENGTH_MIN).into_iter().map(with).collect()]
    }
}

/// Reward-model training.
pub(crate) struct Preferences<'a> {
    model: &'a ModelConfig,
    config: RewardConfig,
    /// Lengths of the largest pairs, the largest first.
    pairs: Vec<[usize; 2]>,
    /// Lengths of the sequences that are evaluated, in their order.
    eval: Vec<usize>,
    work: Work,
}

impl<'a> Preferences<'a> {
    /// From `model`, whose head may be of either kind.
    pub(crate) fn new(
        model: &'a ModelConfig,
        data: &[PairExample],
        eval: &[PairExample],
        config: &RewardConfig,
    ) -> Self {
        let lengths = |pair: &PairExample| [pair.chosen.len(), pair.rejected.len()];
        let mut pairs: Vec<[usize; 2]> = data.iter().map(lengths).collect();
        let work = Work::reward(pairs.iter().map(|[a, b]| a + b).collect(), config);
        pairs.sort_by_key(|[a, b]| Reverse(a + b));
        pairs.truncate(config.optimizer.per_device_train_batch_size.unwrap_or(ROWS_PER_PASS));
        Self { model, config: config.clone(), pairs, eval: eval.iter().flat_map(lengths).collect(), work }
    }

    /// The sequences of the evaluation's largest pass.
    fn largest_run(&self) -> &[usize] {
        let runs = reward::runs(self.eval.iter().copied());
        let largest = runs.into_iter().max_by_key(|run| self.eval[run.clone()].iter().sum::<usize>());
        largest.map_or(&[], |run| &self.eval[run])
    }
}

impl Job for Preferences<'_> {
    type Ready = Learner;

    fn work(&self) -> &Work {
        &self.work
    }

    fn optimizer(&self) -> &OptimizerArgs {
        &self.config.optimizer
    }

    fn with_optimizer(&self, optimizer: OptimizerArgs) -> Self {
        let config = RewardConfig { optimizer, ..self.config.clone() };
        let (pairs, eval) = (self.pairs.clone(), self.eval.clone());
        Self { model: self.model, config, pairs, eval, work: self.work.clone() }
    }

    fn prepare(&self, scene: &mut Scene) -> Result<Learner> {
        let read = scene.model(self.model)?;
        let model = match self.model.head {
            Head::Score => read,
            Head::Language => {
                let model = scene.model(&ModelConfig { head: Head::Score, ..self.model.clone() })?;
                drop(read);
                model
            }
        };
        scene.ends("load")?;
        let learner = Learner::new(model, &self.config.optimizer, reward::ADAM_EPSILON, self.config.learning_rate, 1)?;
        let longest = self.pairs.iter().flatten().chain(&self.eval).max().copied().unwrap_or(0);
        scene.learns(learner, longest)
    }

    fn train(&self, learner: &mut Learner, rows: usize, scene: &mut Scene) -> Result<()> {
        let fixed = scene.used()?;
        let pair = |[chosen, rejected]: &[usize; 2]| {
            let [chosen, rejected] = [chosen, rejected].map(|length| vec![0; *length]);
            PairExample { chosen, rejected, margin: 0.0, place: String::new() }
        };
        let batch: Vec<PairExample> = self.pairs.iter().take(rows).map(pair).collect();
        let mut config = self.config.clone();
        config.optimizer.micro_batch = Some(rows);
        let batch = passes(batch.iter().collect(), &config.optimizer, rows);
        reward::update(learner, &batch, &config, 0.0, &mut reward::Sums::default())?;
        let peak = scene.ends("training")?;
        scene.group("activations", peak - fixed);
        if !self.eval.is_empty() {
            let sequences: Vec<Vec<i32>> = self.largest_run().iter().map(|length| vec![0; *length]).collect();
            reward::score(&learner.model, &sequences)?;
            scene.ends("evaluation")?;
        }
        Ok(())
    }

    fn smaller(&self) -> Vec<Vec<(String, Self)>> {
        let longest = self.pairs.iter().flatten().chain(&self.eval).max().copied().unwrap_or(0);
        let with = |length: usize| {
            let pairs = self.pairs.iter().map(|pair| pair.map(|n| n.min(length))).collect();
            let eval = self.eval.iter().map(|n| *n.min(&length)).collect();
            let (config, work) = (self.config.clone(), self.work.clone());
            (format!("--max-length {length}"), Self { model: self.model, config, pairs, eval, work })
        };
        vec![below(longest, LENGTH_MIN).into_iter().map(with).collect()]
    }
}

/// PPO.
pub(crate) struct Ppo<'a> {
    policy: &'a ModelConfig,
    reward: &'a ModelConfig,
    judge: Option<&'a ModelConfig>,
    config: PpoConfig,
    /// Lengths of a batch's prompts, the longest first.
    prompts: Vec<usize>,
    work: Work,
}

/// The cast of PPO, and a rollout of the longest prompts.
pub(crate) struct PpoReady {
    learners: Learners,
    rollout: Rollout,
    /// Nobody asks them again, but they stay.
    _frozen: Vec<Model>,
}

impl<'a> Ppo<'a> {
    /// Of a policy against a reward model, which the value model starts from; another may judge.
    pub(crate) fn new(
        [policy, reward]: [&'a ModelConfig; 2],
        judge: Option<&'a ModelConfig>,
        prompts: &[PromptExample],
        config: &PpoConfig,
    ) -> Self {
        let mut prompts: Vec<usize> = prompts.iter().map(|prompt| prompt.ids.len()).collect();
        prompts.sort_by_key(|n| Reverse(*n));
        let work = Work::ppo(&prompts, config);
        Self { policy, reward, judge, config: config.clone(), prompts, work }
    }

    fn with(&self, change: impl FnOnce(&mut PpoConfig)) -> Self {
        let mut config = self.config.clone();
        change(&mut config);
        Self { config, prompts: self.prompts.clone(), work: self.work.clone(), ..*self }
    }

    fn rehearse_rollout(&self, scene: &mut Scene, mut cast: Cast<'_>) -> Result<Rollout> {
        let (fixed, batch) = (scene.used()?, self.config.batch_size());
        let queries: Vec<Vec<i32>> = self.prompts.iter().take(batch).map(|length| vec![0; *length]).collect();
        let longest = queries.first().map_or(0, Vec::len) + self.config.rollout.response_length;
        let cache = cast.policy.response_cache(queries.len(), longest)?;
        let cached = scene.used()? - fixed;
        drop(cache);
        let rollout = Rollout::collect(&mut cast, queries, &self.config, 0.0, 0)?;
        let peak = scene.ends("rollout")?;
        scene.group("KV cache of the rollout", cached);
        scene.group("activations and logits of the rollout", (peak - fixed).saturating_sub(cached));
        Ok(rollout)
    }
}

impl Job for Ppo<'_> {
    type Ready = PpoReady;

    fn work(&self) -> &Work {
        &self.work
    }

    fn optimizer(&self) -> &OptimizerArgs {
        &self.config.optimizer
    }

    fn with_optimizer(&self, optimizer: OptimizerArgs) -> Self {
        self.with(|config| config.optimizer = optimizer)
    }

    fn prepare(&self, scene: &mut Scene) -> Result<PpoReady> {
        let (policy, mut reward) = (scene.model(self.policy)?, scene.model(self.reward)?);
        let mut judge = self.judge.map(|judge| scene.model(judge)).transpose()?;
        judge.iter_mut().for_each(|judge| judge.params.drop_masters());
        let value_model = reward.duplicate()?;
        reward.params.drop_masters();
        let ref_policy = ppo::reference(&policy)?;
        scene.ends("load")?;
        let learners = Learners::new(policy, value_model, &self.config, 1)?;
        let longest = self.prompts.first().copied().unwrap_or(0) + self.config.rollout.response_length;
        for model in [&learners.policy.model, &learners.value.model, &ref_policy, &reward].into_iter().chain(&judge) {
            scene.warm(model, longest)?;
        }
        scene.trained("policy: ", &learners.policy);
        scene.trained("value model: ", &learners.value);
        scene.frozen("reference model", &ref_policy);
        scene.frozen("reward model", &reward);
        judge.iter().for_each(|judge| scene.frozen("judge model", judge));
        scene.rest()?;
        let cast = Cast {
            policy: &learners.policy.model,
            ref_policy: &ref_policy,
            value_model: &learners.value.model,
            reward: &mut reward,
            judge: judge.as_mut().map(|judge| judge as &mut dyn Reward),
            // No answer ends before its time.
            stop: &[],
            shaping: Shaping::default(),
        };
        let rollout = self.rehearse_rollout(scene, cast)?;
        Ok(PpoReady { learners, rollout, _frozen: [ref_policy, reward].into_iter().chain(judge).collect() })
    }

    fn train(&self, ready: &mut PpoReady, rows: usize, scene: &mut Scene) -> Result<()> {
        let fixed = scene.used()?;
        let job = self.with(|config| config.optimizer.micro_batch = Some(rows));
        let episodes: Vec<usize> = (0..rows.min(ready.rollout.responses.len())).collect();
        let episodes = passes(episodes, &job.config.optimizer, rows);
        // From the batch on in which the policy learns too.
        let batch = job.config.loss.value_warmup_batches;
        ppo::step(&mut ready.learners, &ready.rollout, &episodes, &job.config, batch, &mut Default::default())?;
        let peak = scene.ends("training")?;
        scene.group("activations and logits of the training", peak - fixed);
        Ok(())
    }

    fn smaller(&self) -> Vec<Vec<(String, Self)>> {
        let PpoConfig { rollout, loss, optimizer, .. } = &self.config;
        let length =
            |n: usize| (format!("--response-length {n}"), self.with(|config| config.rollout.response_length = n));
        let steps = |n: usize| {
            let with = self.with(|config| config.optimizer.gradient_accumulation_steps = n);
            (format!("--gradient-accumulation-steps {n}"), with)
        };
        let minibatches =
            |n: usize| (format!("--num-mini-batches {n}"), self.with(|config| config.loss.num_mini_batches = n));
        vec![
            below(rollout.response_length, LENGTH_MIN).into_iter().map(length).collect(),
            below(optimizer.gradient_accumulation_steps, 1).into_iter().map(steps).collect(),
            below(loss.num_mini_batches, 1).into_iter().map(minibatches).collect(),
        ]
    }
}
