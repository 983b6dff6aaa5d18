//! PPO: queries -> responses -> logprobs, ref_logprobs, values -> scores -> rewards -> advantages, returns -> loss ->
//! gradients -> parameters. The first five fill a `Rollout`; the rest repeats for every epoch and minibatch. Nothing
//! flows back but new parameters.

use serde::{Deserialize, Serialize};

use super::checkpoint::{Keeper, State};
use super::finite::blame;
use super::metrics::{Journal, row};
use super::reward::{Reward, lent};
use super::rollout::{Cast, Rollout, column};
use super::samples::Scorers;
use super::{Learner, in_step, permutation};
use crate::config::PpoConfig;
use crate::data::encode::PromptExample;
use crate::error::{Code, Error, Result};
use crate::model::Model;
use crate::model::heads::Packed;
use crate::model::params::Weights;
use crate::objective::calibration::{correlation, mean};
use crate::objective::losses::{Coefficients, Objective, Tokens, ppo_loss};
use crate::objective::rewards::{KlController, Shaping, episode_kl};
use crate::ops::read_together;
use crate::random::Stage;
use crate::tensor::Tensor;

/// AdamW's epsilon in PPO (N+).
pub(crate) const ADAM_EPSILON: f64 = 1e-5;
/// Batches between two rows of metrics (TRL).
pub(crate) const LOGGING_STEPS: usize = 1;

/// What PPO starts from; made by [`Start::new`].
#[non_exhaustive]
pub struct Start<'a> {
    /// The policy, which is also the reference that it is held to.
    pub policy: Model,
    /// A model with a scalar head, on the policy's device: a copy of the reward model, or [`Model::value_model`].
    pub value_model: Model,
    /// What scores the answers.
    pub reward: &'a mut dyn Reward,
    /// Tokens that end a response.
    pub stop: &'a [i32],
    /// Mean and deviation of the reward's scores, which are brought to 0 and 1 with them; none leaves them as they are.
    pub normalize: Option<[f64; 2]>,
    /// What else scores the answers and teaches nothing: a held-out judge, or a second reward model. Its mean is
    /// `objective/judge_scores`.
    pub judge: Option<&'a mut dyn Reward>,
}

impl<'a> Start<'a> {
    /// PPO of `policy` against `reward`, whose scores are taken as they are. `stop` are the tokens that end a response
    /// ([`Pretrained::stop_tokens`](super::pretrained::Pretrained::stop_tokens)).
    pub fn new(policy: Model, value_model: Model, reward: &'a mut dyn Reward, stop: &'a [i32]) -> Self {
        Self { policy, value_model, reward, stop, normalize: None, judge: None }
    }
}

/// What PPO ends with.
#[derive(Debug)]
pub struct Finish {
    /// The aligned policy.
    pub policy: Model,
    /// The value model that learned beside it.
    pub value_model: Model,
    /// The last batch's KL to the reference, nats an episode.
    pub kl: f64,
}

impl std::fmt::Debug for Start<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Start").field("policy", self.policy.config()).field("stop", &self.stop).finish_non_exhaustive()
    }
}

/// The two models that learn.
pub(super) struct Learners {
    pub(super) policy: Learner,
    pub(super) value: Learner,
}

impl Learners {
    /// The state between two batches.
    fn state<'a>(&'a mut self, progress: &'a mut Progress, journal: &'a mut Journal) -> State<'a> {
        State::new(vec![("policy", &mut self.policy), ("value_model", &mut self.value)], progress, journal)
    }

    /// Both under the settings of `config`, whose schedule has `total` steps.
    pub(super) fn new(policy: Model, value_model: Model, config: &PpoConfig, total: usize) -> Result<Self> {
        let (lr, value_lr) = (config.loss.learning_rate, config.loss.value_learning_rate);
        let learner = |model, lr| Learner::new(model, &config.optimizer, ADAM_EPSILON, lr, total);
        Ok(Self { policy: learner(policy, lr)?, value: learner(value_model, value_lr.unwrap_or(lr))? })
    }

    /// An error unless the losses and statistics of a micro-batch of `episodes` are finite.
    fn check_losses(&self, part: &[Vec<f64>], episodes: &[usize]) -> Result<()> {
        if part.iter().flatten().all(|x| x.is_finite()) {
            return Ok(());
        }
        let error = Error::new(Code::NonFinite, "loss-not-finite", "the PPO loss is not a finite number")
            .at(format!("episodes {episodes:?} of the batch"))
            .fix("lower the learning rate, or raise --kl-coef");
        let (policy, value) = (&self.policy.model, &self.value.model);
        Err(blame(blame(error, "policy: ", policy), "value model: ", value))
    }
}

/// A copy of the policy that is not trained.
pub(super) fn reference(policy: &Model) -> Result<Model> {
    let mut ref_policy = policy.duplicate()?;
    ref_policy.params.drop_masters();
    Ok(ref_policy)
}

/// Batches that `rows` prompts and the settings ask for.
pub(crate) fn total_batches(config: &PpoConfig, rows: usize) -> usize {
    config.rollout.total_episodes.unwrap_or(rows).div_ceil(config.batch_size())
}

/// What the loop knows beside the models. Which prompts come next follows from the batch's number.
#[derive(Debug, Serialize, Deserialize)]
struct Progress {
    /// The last batch's.
    kl: f64,
    kl_coef: f64,
}

/// Trains the policy against the reward.
///
/// # Errors
/// Fewer prompts than a batch, a breach of an identity check, or a number that is not finite.
pub fn train(
    start: Start<'_>,
    prompts: &[PromptExample],
    config: &PpoConfig,
    journal: &mut Journal,
    keeper: &mut dyn Keeper,
) -> Result<Finish> {
    let (batch_size, total) = (config.batch_size(), total_batches(config, prompts.len()));
    check_prompts(prompts, batch_size)?;
    let Start { policy, value_model, reward, stop, normalize, mut judge } = start;
    let ref_policy = reference(&policy)?;
    let mut learners = Learners::new(policy, value_model, config, total)?;
    let rollout = &config.rollout;
    let shaping =
        Shaping { normalize, missing_eos_penalty: rollout.missing_eos_penalty, score_clip: rollout.score_clip };
    let mut progress = Progress { kl: 0.0, kl_coef: rollout.kl_coef };
    let mut order = Order::new(prompts.len(), batch_size, config.run.seed);
    journal.begin_on(learners.policy.model.device(), "ppo", total);
    let first = keeper.restore(&mut learners.state(&mut progress, journal))?;
    if first == 0 {
        journal.sample(0, |sampler| sampler.rows(&learners.policy.model, Scorers::of(reward, &mut judge)))?;
    }
    let mut controller =
        KlController { coefficient: progress.kl_coef, target: rollout.kl_target, horizon: rollout.kl_horizon };
    for batch in first..total {
        let queries = order.batch(batch).into_iter().map(|i| prompts[i].ids.clone()).collect();
        let mut cast = Cast {
            policy: &learners.policy.model,
            ref_policy: &ref_policy,
            value_model: &learners.value.model,
            reward: &mut *reward,
            judge: lent(&mut judge),
            stop,
            shaping,
        };
        let failed = |error| in_step(error, "ppo", batch + 1);
        let rollout =
            Rollout::collect(&mut cast, queries, config, controller.coefficient, batch as u32).map_err(failed)?;
        let updated = update(&mut learners, &rollout, config, batch).map_err(failed)?;
        let summary = summarize(&rollout, &updated, config, controller.coefficient)?;
        if batch == 0 {
            check_start(&summary, learners.policy.model.device().is_row_invariant())?;
        }
        controller.update(summary.kl, batch_size);
        progress = Progress { kl: summary.kl, kl_coef: controller.coefficient };
        report(journal, &summary, [batch, total, batch_size], &learners, config)?;
        journal.sample(batch + 1, |sampler| sampler.rows(&learners.policy.model, Scorers::of(reward, &mut judge)))?;
        keeper.after(batch + 1, total, &mut learners.state(&mut progress, journal))?;
    }
    journal.end()?;
    Ok(Finish { policy: learners.policy.model, value_model: learners.value.model, kl: progress.kl })
}

/// An error unless there are enough prompts for one batch.
pub(crate) fn check_prompts(prompts: &[PromptExample], batch_size: usize) -> Result<()> {
    if prompts.len() >= batch_size {
        return Ok(());
    }
    Err(Error::input("dataset-smaller-than-batch", format!("{} prompts do not fill one batch", prompts.len()))
        .because(format!("a PPO batch is {batch_size} episodes"))
        .fix(
            "give more prompts, or lower --per-device-train-batch-size, --gradient-accumulation-steps or \
              --num-mini-batches",
        ))
}

/// Full batches of prompts without end: what an epoch's last batch lacks comes from the next epoch.
struct Order {
    rows: usize,
    size: usize,
    seed: u64,
    epoch: Option<(usize, Vec<usize>)>,
}

impl Order {
    fn new(rows: usize, size: usize, seed: u64) -> Self {
        Self { rows, size, seed, epoch: None }
    }

    /// The rows of batch number `batch`.
    fn batch(&mut self, batch: usize) -> Vec<usize> {
        (batch * self.size..(batch + 1) * self.size).map(|at| self.row(at / self.rows, at % self.rows)).collect()
    }

    /// The row that comes after `at` others of `epoch`.
    fn row(&mut self, epoch: usize, at: usize) -> usize {
        let (rows, seed) = (self.rows, self.seed);
        let order = match self.epoch.take().filter(|(known, _)| *known == epoch) {
            Some(order) => order,
            None => (epoch, permutation(rows, seed, Stage::Shuffle, epoch as u32)),
        };
        self.epoch.insert(order).1[at]
    }
}

/// Sums over the response tokens of all optimizer steps of a batch.
#[derive(Debug, Default)]
pub(super) struct Updated {
    /// The first of [`crate::cpu::ppo_loss::STATISTICS`].
    statistics: [f64; 7],
    entropy: f64,
    tokens: usize,
    /// |logprob of the trainer - logprob of the rollout| before the first step: largest and sum, and over how many.
    logp_diff_max: f64,
    logp_diff_sum: f64,
    logp_diff_tokens: usize,
    epochs: usize,
    grad_norms: [f64; 2],
}

/// Epochs and minibatches over one rollout.
pub(super) fn update(learners: &mut Learners, rollout: &Rollout, config: &PpoConfig, batch: usize) -> Result<Updated> {
    let mut done = Updated::default();
    let episodes = rollout.responses.len();
    for epoch in 0..config.loss.num_ppo_epochs {
        let number = (batch * config.loss.num_ppo_epochs + epoch) as u32;
        let order = permutation(episodes, config.run.seed, Stage::Minibatch, number);
        let before = (done.statistics[2], done.tokens);
        for minibatch in order.chunks(config.optimizer.rows_per_step()) {
            step(learners, rollout, minibatch, config, batch, &mut done)?;
        }
        done.epochs += 1;
        let approxkl = (done.statistics[2] - before.0) / (done.tokens - before.1).max(1) as f64;
        if config.loss.target_kl.is_some_and(|target| approxkl > target) {
            break;
        }
    }
    Ok(done)
}

/// One optimizer step of both models over a minibatch of episodes. The host waits for the device once, at the end,
/// and what it reads is checked before anything is moved.
pub(super) fn step(
    learners: &mut Learners,
    rollout: &Rollout,
    minibatch: &[usize],
    config: &PpoConfig,
    batch: usize,
    done: &mut Updated,
) -> Result<()> {
    let first = done.tokens == 0;
    let (policy, value) = (learners.policy.begin()?, learners.value.begin()?);
    let tokens = rollout.token_indices(minibatch).len();
    let (micro, mut to_read) = (config.optimizer.rows_per_pass(), Vec::new());
    for episodes in minibatch.chunks(micro) {
        to_read.extend(micro_batch(learners, [&policy, &value], rollout, episodes, config, tokens)?);
    }
    drop((policy, value));
    let (lr, value_lr) = (learners.policy.lr(batch), learners.value.lr(batch));
    let value_clip = learners.value.clip()?;
    let policy_clip = if batch >= config.loss.value_warmup_batches { Some(learners.policy.clip()?) } else { None };
    let parts = to_read.len();
    to_read.push(value_clip.state.clone());
    to_read.extend(policy_clip.iter().map(|clip| clip.state.clone()));
    let numbers = read_together(&to_read)?;
    let (parts, states) = numbers.split_at(parts);
    for (part, episodes) in parts.chunks_exact(2).zip(minibatch.chunks(micro)) {
        learners.check_losses(part, episodes)?;
        done.add(&part[0], &part[1], first.then(|| rollout.token_indices(episodes).len()));
    }
    if first {
        check_on_policy(done, learners.policy.model.device().is_row_invariant())?;
    }
    done.tokens += tokens;
    done.grad_norms[1] = checked_norm(&learners.value, "value model: ", &states[0], minibatch)?;
    if let Some(state) = states.get(1) {
        done.grad_norms[0] = checked_norm(&learners.policy, "policy: ", state, minibatch)?;
    }
    // Both or neither: nothing is refused from here on.
    learners.value.update(value_lr, &value_clip)?;
    policy_clip.map_or(Ok(()), |clip| learners.policy.update(lr, &clip))
}

/// The norm of a learner's gradient; an error names tensor and episodes.
fn checked_norm(learner: &Learner, role: &str, state: &[f64], episodes: &[usize]) -> Result<f64> {
    learner.check(state).map_err(|error| {
        let place = format!("{role}{}, episodes {episodes:?} of the batch", error.place().unwrap_or_default());
        blame(error.at(place), role, &learner.model)
    })
}

impl Updated {
    /// Adds a micro-batch: the sums of its head, and PPO's statistics. `tokens` is their number where the policy is
    /// still the one that answered.
    fn add(&mut self, head: &[f64], statistics: &[f64], tokens: Option<usize>) {
        let (sums, apart) = statistics.split_at(self.statistics.len());
        self.statistics.iter_mut().zip(sums).for_each(|(sum, s)| *sum += s);
        self.entropy += head[1];
        if let Some(tokens) = tokens {
            self.logp_diff_sum += apart[0];
            self.logp_diff_max = self.logp_diff_max.max(apart[1]);
            self.logp_diff_tokens += tokens;
        }
    }
}

/// The gradients of some episodes of a minibatch that has `tokens` response tokens: the policy's from its head, back
/// through its layers, then the value model's. What is to be read of them: the head's sums, and PPO's statistics.
fn micro_batch(
    learners: &Learners,
    [policy, value]: [&Weights; 2],
    rollout: &Rollout,
    episodes: &[usize],
    config: &PpoConfig,
    tokens: usize,
) -> Result<[Tensor; 2]> {
    let (model, value_model) = (&learners.policy.model, &learners.value.model);
    let sequences: Vec<Vec<i32>> =
        episodes.iter().map(|e| [&rollout.queries[*e][..], &rollout.responses[*e].tokens[..]].concat()).collect();
    let packed = Packed::new(model, sequences.iter().map(|s| &s[..]))?;
    let (rows, targets) = packed.targets(|b, t| t >= rollout.queries[episodes[b]].len());
    let indices = rollout.token_indices(episodes);
    let pick = |all: &[f32]| column(model, indices.iter().map(|i| all[*i]).collect());
    let (old_logprobs, advantages) = (pick(&rollout.logprobs)?, pick(&rollout.advantages)?);
    let coefficients = coefficients(config, tokens);
    let objective = Objective::Clipped {
        old_logprobs: &old_logprobs,
        advantages: &advantages,
        coefficients,
        entropy_coef: config.loss.entropy_coef,
    };
    let hidden = model.hidden(policy, &packed)?;
    let head = model.head_loss(policy, &hidden, [&rows, &targets], config.rollout.temperature, &objective)?;
    drop(hidden);
    head.root.backward()?;
    let value_hidden = value_model.hidden(value, &packed)?;
    let inputs = Tokens {
        logprobs: head.rows.logprobs,
        old_logprobs,
        advantages,
        values: value_model.scalars(value, &value_hidden, &rows)?,
        old_values: pick(&rollout.values)?,
        returns: pick(&rollout.returns)?,
    };
    let loss = ppo_loss(&inputs, &coefficients)?;
    drop(value_hidden);
    loss.root.backward()?;
    Ok([head.sums, loss.statistics])
}

fn coefficients(config: &PpoConfig, tokens: usize) -> Coefficients {
    let loss = &config.loss;
    Coefficients {
        cliprange_low: loss.cliprange,
        cliprange_high: loss.cliprange_high.unwrap_or(loss.cliprange),
        cliprange_value: loss.cliprange_value,
        vf_coef: loss.vf_coef,
        dual_clip: loss.dual_clip,
        scale: 1.0 / tokens.max(1) as f64,
    }
}

/// What log-probabilities of the same weights may differ by on average, in nats, where a library multiplies.
const LOGP_DIFF_MEAN_MAX: f64 = 0.01;

/// Before the first step on a rollout the trainer is the policy that sampled it: the ratio is 1. Where both use one
/// arithmetic in one order, the log-probabilities agree to the bit.
fn check_on_policy(done: &Updated, exact: bool) -> Result<()> {
    let difference = [done.logp_diff_max, done.logp_diff_sum / done.logp_diff_tokens.max(1) as f64];
    check_same_weights(difference, exact, "off-policy", "the trainer's log-probabilities differ from the rollout's")
}

/// An error unless log-probabilities of the same weights agree; `difference` is the largest and the mean.
fn check_same_weights([largest, mean]: [f64; 2], exact: bool, id: &'static str, what: &str) -> Result<()> {
    // Written so that NaN fails; the mean has it where the largest has lost it.
    if (largest == 0.0 && mean == 0.0) || (!exact && mean <= LOGP_DIFF_MEAN_MAX) {
        return Ok(());
    }
    let bound = if exact { "0".to_owned() } else { format!("{LOGP_DIFF_MEAN_MAX} on average") };
    Err(Error::failure(id, what)
        .because(format!("the largest difference is {largest:e} nats, the mean {mean:e}; allowed is {bound}"))
        .fix("this is a defect of rlhf: please report it with the model's config.json"))
}

/// The numbers of one batch.
struct Summary {
    kl: f64,
    /// |logprob - ref_logprob|: largest and mean.
    reference_diff: [f64; 2],
    numbers: Vec<(&'static str, f64)>,
}

/// At batch 0 the policy is the reference, so their KL is 0.
fn check_start(summary: &Summary, exact: bool) -> Result<()> {
    let what = "the KL to the reference is not 0 although both are the same weights";
    check_same_weights(summary.reference_diff, exact, "kl-at-start", what)
}

fn summarize(rollout: &Rollout, updated: &Updated, config: &PpoConfig, kl_coef: f64) -> Result<Summary> {
    let (logprobs, ref_logprobs) = (&rollout.logprobs, &rollout.ref_logprobs);
    let spans = || rollout.offsets.windows(2).map(|w| w[0] as usize..w[1] as usize);
    let estimator = config.rollout.kl_estimator;
    let kls: Vec<f64> = spans().map(|s| episode_kl(&logprobs[s.clone()], &ref_logprobs[s], estimator)).collect();
    let surprise = |s: std::ops::Range<usize>| -logprobs[s].iter().map(|l| f64::from(*l)).sum::<f64>();
    let (kl, scores) = (mean(kls.iter().copied()), mean(rollout.scores.iter().copied()));
    let lengths = || rollout.responses.iter().map(|r| r.tokens.len() as f64);
    let stopped = rollout.responses.iter().filter(|r| r.stopped).count() as f64;
    let n = updated.tokens.max(1) as f64;
    let [policy, value, approxkl, clipped, value_clipped, ratio, ratio2] = updated.statistics.map(|s| s / n);
    let apart = || logprobs.iter().zip(ref_logprobs).map(|(l, r)| f64::from((l - r).abs()));
    let reference_diff = [apart().fold(0.0, |a, b| if b > a || b.is_nan() { b } else { a }), mean(apart())];
    let raw: Vec<f64> = rollout.raw_scores.iter().map(|s| f64::from(*s)).collect();
    let judged = rollout.judge_scores.as_ref();
    let judged = judged.map(|scores| ("objective/judge_scores", mean(scores.iter().map(|s| f64::from(*s)))));
    let mut numbers = vec![
        ("objective/kl", kl),
        ("objective/entropy", mean(spans().map(surprise))),
        ("objective/non_score_reward", -kl_coef * kl),
        ("objective/rlhf_reward", scores - kl_coef * kl),
        ("objective/scores", scores),
        ("objective/raw_scores", mean(raw.iter().copied())),
        ("objective/kl_coef", kl_coef),
        ("policy/approxkl_avg", approxkl),
        ("policy/clipfrac_avg", clipped),
        ("policy/entropy_avg", updated.entropy / n),
        ("loss/policy_avg", policy),
        ("loss/value_avg", value),
        ("val/clipfrac_avg", value_clipped),
        ("val/ratio", ratio),
        ("val/ratio_var", ratio2 - ratio * ratio),
        ("val/explained_variance", explained_variance(&rollout.values, &rollout.returns)),
        ("val/num_eos_tokens", stopped),
        ("response/slot_use", rollout.slots.share()),
        ("response/eos_share", stopped / rollout.responses.len() as f64),
        ("response/length_min", lengths().fold(f64::INFINITY, f64::min)),
        ("response/length_mean", rollout.tokens() as f64 / rollout.responses.len() as f64),
        ("response/length_max", lengths().fold(0.0, f64::max)),
        ("response/distinct_2", distinct_bigrams(rollout)),
        ("response/score_length_correlation", correlation(&raw, &lengths().collect::<Vec<_>>())),
        ("logp_diff/max", updated.logp_diff_max),
        ("logp_diff/mean", updated.logp_diff_sum / updated.logp_diff_tokens.max(1) as f64),
        ("policy/grad_norm", updated.grad_norms[0]),
        ("value/grad_norm", updated.grad_norms[1]),
        ("ppo_epochs", updated.epochs as f64),
    ];
    numbers.extend(judged);
    Ok(Summary { kl, reference_diff, numbers })
}

/// 1 - Var(R - V) / Var(R); 0 where the returns do not vary.
fn explained_variance(values: &[f32], returns: &[f32]) -> f64 {
    let variance = |x: &[f64]| {
        let m = mean(x.iter().copied());
        mean(x.iter().map(|v| (v - m).powi(2)))
    };
    let returns: Vec<f64> = returns.iter().map(|r| f64::from(*r)).collect();
    let errors: Vec<f64> = returns.iter().zip(values).map(|(r, v)| r - f64::from(*v)).collect();
    let total = variance(&returns);
    if total > 0.0 { 1.0 - variance(&errors) / total } else { 0.0 }
}

/// Different pairs of neighbouring tokens, as a share of all pairs: low where all answers are alike.
fn distinct_bigrams(rollout: &Rollout) -> f64 {
    let pairs = || rollout.responses.iter().flat_map(|r| r.tokens.windows(2));
    let distinct: std::collections::HashSet<&[i32]> = pairs().collect();
    distinct.len() as f64 / pairs().count().max(1) as f64
}

/// Writes a batch's numbers and moves the live line.
fn report(
    journal: &mut Journal,
    summary: &Summary,
    [batch, total, batch_size]: [usize; 3],
    learners: &Learners,
    config: &PpoConfig,
) -> Result<()> {
    let get = |name| summary.numbers.iter().find(|(n, _)| *n == name).map_or(f64::NAN, |(_, x)| *x);
    let words = format!(
        "score {:.3}  kl {:.3}  {:.1} episodes/s",
        get("objective/scores"),
        summary.kl,
        ((batch + 1) * batch_size) as f64 / journal.elapsed().max(1e-9)
    );
    journal.progress(batch + 1, &words);
    if !config.run.logs(batch + 1, total, LOGGING_STEPS) {
        return Ok(());
    }
    let mut numbers = summary.numbers.clone();
    numbers.push(("lr", learners.policy.lr(batch)));
    numbers.push(("value_lr", learners.value.lr(batch)));
    numbers.push(("episode", ((batch + 1) * batch_size) as f64));
    let rate = ((batch + 1) * batch_size) as f64 / journal.elapsed().max(1e-9);
    journal.log(batch + 1, row(&numbers), row(&[("episodes_per_second", rate), ("seconds", journal.elapsed())]))
}

/// A batch of PPO's answers, and the numbers that its update gave.
#[cfg(test)]
pub(super) struct Replayed {
    responses: Vec<crate::model::generate::Response>,
    pub(super) numbers: Vec<(&'static str, f64)>,
}

/// `batches` batches over the same queries: with the answers of `recorded`, whose log-probabilities are made anew on
/// this model's device, or with free ones.
#[cfg(test)]
pub(super) fn replay(
    policy: Model,
    queries: &[Vec<i32>],
    config: &PpoConfig,
    batches: usize,
    recorded: Option<&[Replayed]>,
    reward: &mut dyn Reward,
) -> Result<Vec<Replayed>> {
    let (ref_policy, value_model) = (policy.duplicate()?, policy.value_model(1)?);
    let learner = |model| Learner::new(model, &config.optimizer, ADAM_EPSILON, 3e-4, batches);
    let mut learners = Learners { policy: learner(policy)?, value: learner(value_model)? };
    let mut replayed = Vec::new();
    for batch in 0..batches {
        let mut cast = Cast {
            policy: &learners.policy.model,
            ref_policy: &ref_policy,
            value_model: &learners.value.model,
            reward,
            judge: None,
            stop: &[2],
            shaping: Shaping::default(),
        };
        let rollout = match recorded {
            None => Rollout::collect(&mut cast, queries.to_vec(), config, 0.05, batch as u32)?,
            Some(recorded) => {
                let mut responses = recorded[batch].responses.clone();
                super::rollout::recompute(cast.policy, queries, &mut responses, config.rollout.temperature)?;
                Rollout::of(&mut cast, queries.to_vec(), responses, config, 0.05)?
            }
        };
        let updated = update(&mut learners, &rollout, config, batch)?;
        let numbers = summarize(&rollout, &updated, config, 0.05)?.numbers;
        replayed.push(Replayed { responses: rollout.responses, numbers });
    }
    Ok(replayed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_breach_of_identity_stops_the_run() {
        let off = |sum| Updated { logp_diff_max: 1e-7, logp_diff_sum: sum, logp_diff_tokens: 10, ..Updated::default() };
        assert_eq!(check_on_policy(&off(1e-7), true).unwrap_err().id(), "off-policy");
        assert!(check_on_policy(&Updated::default(), true).is_ok());
        assert!(check_on_policy(&off(0.09), false).is_ok());
        assert_eq!(check_on_policy(&off(0.11), false).unwrap_err().id(), "off-policy");
        assert!(check_on_policy(&off(f64::NAN), false).is_err());
        let summary = |reference_diff| Summary { kl: 0.0, reference_diff, numbers: vec![] };
        assert_eq!(check_start(&summary([1e-7, 1e-9]), true).unwrap_err().id(), "kl-at-start");
        assert!(check_start(&summary([0.0, 0.0]), true).is_ok() && check_start(&summary([0.1, 0.01]), false).is_ok());
    }

    #[test]
    fn batches_are_always_full() {
        let mut order = Order::new(5, 3, 1);
        let mut seen = [0; 5];
        for number in 0..5 {
            let batch = order.batch(number);
            assert_eq!(batch.len(), 3);
            batch.iter().for_each(|row| seen[*row] += 1);
        }
        assert_eq!(seen, [3; 5]);
    }
}
