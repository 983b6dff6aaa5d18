//! Supervised fine-tuning: rows of tokens, of which some are targets -> log-probabilities of the targets -> their mean
//! negative -> gradients -> parameters.

use super::metrics::{Journal, Row, row};
use super::{Batches, Learner, in_step};
use crate::autograd::backward;
use crate::config::SftConfig;
use crate::data::encode::SftExample;
use crate::error::{Code, Error, Result};
use crate::model::Model;
use crate::model::heads::Packed;
use crate::model::params::Weights;
use crate::objective::losses::sft_loss;

/// TRL's number of epochs.
pub(crate) const EPOCHS: f64 = 3.0;
const ADAM_EPSILON: f64 = 1e-8;
const LOGGING_STEPS: usize = 10;

/// Sums over targets.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Sums {
    nll: f64,
    entropy: f64,
    hits: f64,
    targets: usize,
    tokens: usize,
}

impl Sums {
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
    save: &mut dyn FnMut(usize, &Model) -> Result<()>,
) -> Result<Model> {
    let (rows, micro) = (config.optimizer.rows_per_step(), config.optimizer.per_device_train_batch_size);
    let total = config.epochs.total_steps(groups.len(), rows, EPOCHS);
    let mut batches = Batches::new(groups.len(), rows, config.run.seed);
    let mut learner = Learner::new(model, &config.optimizer, ADAM_EPSILON, config.learning_rate, total)?;
    let (mut sums, mut tokens, mut since) = (Sums::default(), 0, journal.elapsed());
    journal.begin("sft", total);
    for step in 0..total {
        let (batch, epoch) = batches.batch(step);
        let batch: Vec<Vec<&SftExample>> =
            batch.iter().map(|g| groups[*g].iter().map(|i| &data[*i]).collect()).collect();
        let lr = learner.lr(step);
        let (step_sums, norm) = update(&mut learner, &batch, micro, lr).map_err(|e| in_step(e, "sft", step + 1))?;
        sums.add(step_sums);
        tokens += step_sums.tokens;
        let rate = tokens as f64 / journal.elapsed().max(1e-9);
        journal.progress(step + 1, &format!("loss {:.3}  {rate:.0} tokens/s", step_sums.loss()));
        if config.run.logs(step + 1, total, LOGGING_STEPS) {
            let mut entries = sums.row();
            entries.extend([
                ("grad_norm", norm),
                ("learning_rate", lr),
                ("epoch", epoch),
                ("num_tokens", tokens as f64),
            ]);
            let seconds = journal.elapsed() - std::mem::replace(&mut since, journal.elapsed());
            let rates = [("tokens_per_second", sums.tokens as f64 / seconds.max(1e-9)), ("seconds", journal.elapsed())];
            journal.log(step + 1, row(&entries), row(&rates))?;
            sums = Sums::default();
        }
        if config.eval.due(step + 1, total) && !eval.is_empty() {
            journal.log(step + 1, eval_row(&evaluate(&learner.model, eval, micro)?), Row::new())?;
        }
        if config.run.save_steps.is_some_and(|n| (step + 1) % n == 0) {
            save(step + 1, &learner.model)?;
        }
    }
    journal.end()?;
    Ok(learner.model)
}

fn eval_row(sums: &Sums) -> Row {
    sums.row().into_iter().map(|(name, x)| (format!("eval_{name}"), super::metrics::number(x))).collect()
}

/// One optimizer step over `batch`, `micro` rows at a time.
fn update(learner: &mut Learner, batch: &[Vec<&SftExample>], micro: usize, lr: f64) -> Result<(Sums, f64)> {
    let weights = learner.begin()?;
    let targets = batch.iter().flatten().map(|e| e.is_target.iter().skip(1).filter(|t| **t).count()).sum();
    let mut sums = Sums::default();
    for rows in batch.chunks(micro) {
        let examples: Vec<&SftExample> = rows.iter().flatten().copied().collect();
        let (loss, part) = forward(&learner.model, &weights, &examples, targets)?;
        if !part.nll.is_finite() {
            let place = format!("among {} ... {}", examples[0].place, examples[examples.len() - 1].place);
            return Err(Error::new(Code::NonFinite, "loss-not-finite", "the loss is not a finite number")
                .at(place)
                .fix("lower the learning rate, or look at these rows"));
        }
        backward(loss)?;
        sums.add(part);
    }
    drop(weights);
    if sums.targets == 0 {
        return Ok((sums, 0.0));
    }
    Ok((sums, learner.finish(lr)?))
}

/// The share of the loss, over an optimizer batch of `targets` targets, that `examples` make up.
fn forward(
    model: &Model,
    weights: &Weights,
    examples: &[&SftExample],
    targets: usize,
) -> Result<(crate::tensor::Tensor, Sums)> {
    let packed = Packed::new(model, examples.iter().map(|e| &e.ids[..]))?;
    let (rows, tokens) = packed.targets(|example, t| examples[example].is_target[t]);
    let hidden = model.hidden(weights, &packed)?; // [N, C]
    let head = model.token_logprobs(weights, &hidden, [&rows, &tokens], 1.0)?; // [targets]
    let total = |x: &crate::tensor::Tensor| Ok(x.to_f64()?.iter().sum::<f64>());
    let sums = Sums {
        nll: -total(&head.logprobs)?,
        entropy: total(&head.entropy)?,
        hits: total(&head.hits)?,
        targets: tokens.len(),
        tokens: packed.sequences.tokens(),
    };
    Ok((sft_loss(&head.logprobs, targets)?, sums))
}

/// Loss, accuracy and entropy on held-out rows.
pub(crate) fn evaluate(model: &Model, data: &[SftExample], micro: usize) -> Result<Sums> {
    let weights = model.frozen()?;
    let mut sums = Sums::default();
    for rows in data.chunks(micro) {
        let examples: Vec<&SftExample> = rows.iter().collect();
        sums.add(forward(model, &weights, &examples, 1)?.1);
    }
    Ok(sums)
}
