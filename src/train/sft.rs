//! Supervised fine-tuning: rows of tokens, of which some are targets -> log-probabilities of the targets -> their mean
//! negative -> gradients -> parameters.

use serde::{Deserialize, Serialize};

use super::checkpoint::{Keeper, State};
use super::finite::{among, blame};
use super::metrics::{Journal, Row, row};
use super::samples::Scorers;
use super::{Batches, Learner, in_step};
use crate::config::SftConfig;
use crate::data::encode::SftExample;
use crate::error::{Code, Error, Result};
use crate::model::Model;
use crate::model::heads::Packed;
use crate::objective::losses::Objective;
use crate::ops::read_together;
use crate::tensor::Tensor;

/// TRL's number of epochs.
pub(crate) const EPOCHS: f64 = 3.0;
pub(crate) const ADAM_EPSILON: f64 = 1e-8;
pub(crate) const LOGGING_STEPS: usize = 10;

/// Sums over targets.
#[derive(Debug, Default, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Sums {
    nll: f64,
    entropy: f64,
    hits: f64,
    targets: usize,
    tokens: usize,
}

impl Sums {
    /// From the sums of log-probabilities, entropies and hits, in this order.
    fn new(sums: &[f64], targets: usize, tokens: usize) -> Self {
        Self { nll: -sums[0], entropy: sums[1], hits: sums[2], targets, tokens }
    }

    fn add(&mut self, other: Self) {
        self.nll += other.nll;
        self.entropy += other.entropy;
        self.hits += other.hits;
        self.targets += other.targets;
        self.tokens += other.tokens;
    }

    /// The mean negative log-probability of a target, in nats.
    pub(crate) fn loss(&self) -> f64 {
        self.nll / self.targets.max(1) as f64
    }

    fn row(&self) -> Vec<(&'static str, f64)> {
        let n = self.targets.max(1) as f64;
        vec![
            ("loss", self.loss()),
            ("mean_token_accuracy", self.hits / n),
            ("entropy", self.entropy / n),
            ("target_share", self.targets as f64 / self.tokens.max(1) as f64),
        ]
    }
}

/// Optimizer steps over `rows` rows.
pub(crate) fn total_steps(config: &SftConfig, rows: usize) -> usize {
    config.epochs.total_steps(rows, config.optimizer.rows_per_step(), EPOCHS)
}

/// What the loop knows beside the model.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Progress {
    /// Since the last row of metrics.
    sums: Sums,
    /// In all.
    tokens: usize,
}

/// Trains `model` on rows of examples that are packed together (`groups` holds their indices) and returns it.
///
/// # Errors
/// No row to train on, or a loss or gradient that is not finite.
pub fn train(
    model: Model,
    data: &[SftExample],
    groups: &[Vec<usize>],
    eval: &[SftExample],
    config: &SftConfig,
    journal: &mut Journal,
    keeper: &mut dyn Keeper,
) -> Result<Model> {
    let (rows, micro) = (config.optimizer.rows_per_step(), config.optimizer.rows_per_pass());
    let total = total_steps(config, groups.len());
    let mut batches = Batches::new(groups.len(), rows, config.run.seed);
    let mut learner = Learner::new(model, &config.optimizer, ADAM_EPSILON, config.learning_rate, total)?;
    let mut progress = Progress::default();
    journal.begin_on(learner.model.device(), "sft", total);
    let first = keeper.restore(&mut State::new(vec![("model", &mut learner)], &mut progress, journal))?;
    if first == 0 {
        journal.sample(0, |sampler| sampler.rows(&learner.model, Scorers::default()))?;
    }
    let mut since = journal.elapsed();
    for step in first..total {
        let (batch, epoch) = batches.batch(step);
        let batch: Vec<Vec<&SftExample>> =
            batch.iter().map(|g| groups[*g].iter().map(|i| &data[*i]).collect()).collect();
        let lr = learner.lr(step);
        let (step_sums, norm) = update(&mut learner, &batch, micro, lr).map_err(|e| in_step(e, "sft", step + 1))?;
        progress.sums.add(step_sums);
        progress.tokens += step_sums.tokens;
        let rate = progress.tokens as f64 / journal.elapsed().max(1e-9);
        journal.progress(step + 1, &format!("loss {:.3}  {rate:.0} tokens/s", step_sums.loss()));
        if config.run.logs(step + 1, total, LOGGING_STEPS) {
            let sums = std::mem::take(&mut progress.sums);
            let mut entries = sums.row();
            entries.extend([
                ("grad_norm", norm),
                ("learning_rate", lr),
                ("epoch", epoch),
                ("num_tokens", progress.tokens as f64),
            ]);
            let seconds = journal.elapsed() - std::mem::replace(&mut since, journal.elapsed());
            let rates = [("tokens_per_second", sums.tokens as f64 / seconds.max(1e-9)), ("seconds", journal.elapsed())];
            journal.log(step + 1, row(&entries), row(&rates))?;
        }
        if config.eval.due(step + 1, total) && !eval.is_empty() {
            journal.log(step + 1, eval_row(&evaluate(&learner.model, eval, micro)?), Row::new())?;
        }
        journal.sample(step + 1, |sampler| sampler.rows(&learner.model, Scorers::default()))?;
        keeper.after(step + 1, total, &mut State::new(vec![("model", &mut learner)], &mut progress, journal))?;
    }
    journal.end()?;
    Ok(learner.model)
}

fn eval_row(sums: &Sums) -> Row {
    sums.row().into_iter().map(|(name, x)| (format!("eval_{name}"), super::metrics::number(x))).collect()
}

/// One optimizer step over `batch`, `micro` rows at a time. The host waits for the device once, at the end,
/// and what it reads is checked before anything is moved.
pub(super) fn update(learner: &mut Learner, batch: &[Vec<&SftExample>], micro: usize, lr: f64) -> Result<(Sums, f64)> {
    let weights = learner.begin()?;
    let targets: usize = batch.iter().flatten().map(|e| e.is_target.iter().skip(1).filter(|t| **t).count()).sum();
    let objective = Objective::Likelihood { scale: 1.0 / targets.max(1) as f64 };
    let (mut parts, mut to_read) = (Vec::new(), Vec::new());
    for rows in batch.chunks(micro) {
        let examples: Vec<&SftExample> = rows.iter().flatten().copied().collect();
        let (packed, rows, tokens) = pack(&learner.model, &examples)?;
        let hidden = learner.model.hidden(&weights, &packed)?; // [N, C]
        let loss = learner.model.head_loss(&weights, &hidden, [&rows, &tokens], 1.0, &objective)?;
        drop(hidden);
        loss.root.backward()?;
        to_read.push(loss.sums);
        parts.push((examples, tokens.len(), packed.sequences.tokens()));
    }
    drop(weights);
    let clip = if targets > 0 { Some(learner.clip()?) } else { None };
    to_read.extend(clip.iter().map(|clip| clip.state.clone()));
    let numbers = read_together(&to_read)?;
    let mut sums = Sums::default();
    for (numbers, (examples, targets, tokens)) in numbers.iter().zip(&parts) {
        if numbers.iter().any(|x| !x.is_finite()) {
            let error = Error::new(Code::NonFinite, "loss-not-finite", "the loss is not a finite number")
                .at(among(examples.iter().map(|e| &*e.place)))
                .fix("lower the learning rate, or look at these rows");
            return Err(blame(error, "", &learner.model));
        }
        sums.add(Sums::new(numbers, *targets, *tokens));
    }
    let Some((clip, state)) = clip.zip(numbers.get(parts.len())) else { return Ok((sums, 0.0)) };
    let rows = || among(batch.iter().flatten().map(|e| &*e.place));
    let norm = learner.check(state).map_err(|error| blame(error.behind(rows()), "", &learner.model))?;
    learner.update(lr, &clip)?;
    Ok((sums, norm))
}

/// The examples as one batch, the rows that predict a target, and the targets.
fn pack(model: &Model, examples: &[&SftExample]) -> Result<(Packed, Vec<i32>, Vec<i32>)> {
    let packed = Packed::new(model, examples.iter().map(|e| &e.ids[..]))?;
    let (rows, targets) = packed.targets(|example, t| examples[example].is_target[t]);
    Ok((packed, rows, targets))
}

/// Loss, accuracy and entropy on held-out rows.
pub(crate) fn evaluate(model: &Model, data: &[SftExample], micro: usize) -> Result<Sums> {
    let weights = model.frozen()?;
    let mut sums = Sums::default();
    for rows in data.chunks(micro) {
        let (packed, rows, targets) = pack(model, &rows.iter().collect::<Vec<_>>())?;
        let hidden = model.hidden(&weights, &packed)?; // [N, C]
        let head = model.token_logprobs(&weights, &hidden, [&rows, &targets], 1.0)?; // [targets]
        let total = |x: &Tensor| Ok::<_, Error>(x.to_f64()?.iter().sum::<f64>());
        let parts = [total(&head.logprobs)?, total(&head.entropy)?, total(&head.hits)?];
        sums.add(Sums::new(&parts, targets.len(), packed.sequences.tokens()));
    }
    Ok(sums)
}
