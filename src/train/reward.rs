//! Reward-model training: pairs of answers -> one score an answer, read at its last token -> the pairwise loss ->
//! gradients -> parameters. And the trained model as PPO uses it: something that scores episodes.

use serde::{Deserialize, Serialize};

use super::checkpoint::{Keeper, State};
use super::finite::{among, blame};
use super::metrics::{Journal, Row, row};
use super::{Batches, Learner, in_step};
use crate::config::RewardConfig;
use crate::data::encode::PairExample;
use crate::error::{Code, Error, Result};
use crate::model::Model;
use crate::model::heads::Packed;
use crate::model::params::Weights;
use crate::objective::calibration::{Pair, mean, quality};
use crate::objective::losses::pairwise_loss;
use crate::ops::read_together;
use crate::tensor::Tensor;

/// One pass over the pairs is usual; more passes learn the labels' noise.
pub(crate) const EPOCHS: f64 = 1.0;
pub(crate) const ADAM_EPSILON: f64 = 1e-8;
pub(crate) const LOGGING_STEPS: usize = 10;

/// A finished answer to a prompt, in tokens.
#[derive(Debug, Clone, Copy)]
pub struct Episode<'a> {
    /// The prompt.
    pub query: &'a [i32],
    /// The answer, its end-of-sequence token included where there is one.
    pub response: &'a [i32],
}

/// Something that scores finished answers: a reward model, or the user's own function.
pub trait Reward {
    /// One score an episode; higher is better.
    ///
    /// # Errors
    /// Whatever keeps it from scoring.
    fn scores(&mut self, episodes: &[Episode<'_>]) -> Result<Vec<f32>>;
}

impl<F: FnMut(&[Episode<'_>]) -> Result<Vec<f32>>> Reward for F {
    fn scores(&mut self, episodes: &[Episode<'_>]) -> Result<Vec<f32>> {
        self(episodes)
    }
}

/// The one who scores, if there is one, for a while.
pub(crate) fn lent<'a>(scorer: &'a mut Option<&mut dyn Reward>) -> Option<&'a mut dyn Reward> {
    match scorer {
        Some(scorer) => Some(&mut **scorer),
        None => None,
    }
}

/// Tokens of one forward pass without gradients.
pub(crate) const FORWARD_TOKENS: usize = 4096;

/// Cuts rows into runs of about [`FORWARD_TOKENS`] tokens each; returns the runs' borders.
pub(crate) fn runs(lengths: impl Iterator<Item = usize>) -> Vec<std::ops::Range<usize>> {
    let (mut runs, mut start, mut tokens, mut end) = (Vec::new(), 0, 0, 0);
    for length in lengths {
        if tokens > 0 && tokens + length > FORWARD_TOKENS {
            runs.push(start..end);
            (start, tokens) = (end, 0);
        }
        (tokens, end) = (tokens + length, end + 1);
    }
    if end > start {
        runs.push(start..end);
    }
    runs
}

impl Reward for Model {
    fn scores(&mut self, episodes: &[Episode<'_>]) -> Result<Vec<f32>> {
        let sequences: Vec<Vec<i32>> = episodes.iter().map(|e| [e.query, e.response].concat()).collect();
        let scores = score(self, &sequences)?;
        check_scores(&scores, episode).map_err(|error| blame(error, "reward model: ", self))?;
        Ok(scores)
    }
}

/// An error unless all scores are finite; `place` says what was scored.
pub(crate) fn check_scores(scores: &[f32], place: impl Fn(usize) -> String) -> Result<()> {
    match scores.iter().position(|s| !s.is_finite()) {
        None => Ok(()),
        Some(i) => Err(Error::new(Code::NonFinite, "score-not-finite", "a score is not a finite number")
            .at(place(i))
            .because(format!("it is {}", scores[i]))
            .fix("check the reward model")),
    }
}

/// The place of an episode for people.
pub(super) fn episode(number: usize) -> String {
    format!("episode {number} of the batch")
}

/// The score of each sequence, at its last token.
pub(crate) fn score(model: &Model, sequences: &[Vec<i32>]) -> Result<Vec<f32>> {
    let weights = model.frozen()?;
    let mut scores = Vec::with_capacity(sequences.len());
    for run in runs(sequences.iter().map(Vec::len)) {
        let packed = Packed::new(model, sequences[run].iter().map(|s| &s[..]))?;
        let hidden = model.hidden(&weights, &packed)?;
        scores.extend(model.scalars(&weights, &hidden, &packed.last_rows())?.to_f32()?);
    }
    Ok(scores)
}

/// Mean and deviation of scores; the deviation is never 0, so that one can divide by it.
///
/// # Errors
/// A score that is not finite.
pub(crate) fn spread(scores: &[f32]) -> Result<[f64; 2]> {
    check_scores(scores, |i| format!("answer {i}"))?;
    let mean_score = mean(scores.iter().map(|s| f64::from(*s)));
    let variance = mean(scores.iter().map(|s| (f64::from(*s) - mean_score).powi(2)));
    Ok([mean_score, variance.sqrt().max(1e-6)])
}

/// Sums over pairs.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(super) struct Sums {
    loss: f64,
    correct: f64,
    gap: f64,
    pairs: usize,
    tokens: usize,
    scores: Vec<f32>,
}

impl Sums {
    fn row(&self) -> Vec<(&'static str, f64)> {
        let n = self.pairs.max(1) as f64;
        let scores = || self.scores.iter().map(|s| f64::from(*s));
        vec![
            ("loss", self.loss / n),
            ("accuracy", self.correct / n),
            ("margin", self.gap / n),
            ("min_reward", scores().fold(f64::INFINITY, f64::min)),
            ("mean_reward", mean(scores())),
            ("max_reward", scores().fold(f64::NEG_INFINITY, f64::max)),
        ]
    }
}

/// Optimizer steps over `rows` rows.
pub(crate) fn total_steps(config: &RewardConfig, rows: usize) -> usize {
    config.epochs.total_steps(rows, config.optimizer.rows_per_step(), EPOCHS)
}

/// What the loop knows beside the model.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Progress {
    /// Since the last row of metrics.
    sums: Sums,
    /// In all.
    pairs: usize,
    tokens: usize,
}

/// Trains `model`, which has a scalar head, on pairs, and returns it.
///
/// # Errors
/// A loss or gradient that is not finite.
pub fn train(
    model: Model,
    data: &[PairExample],
    eval: &[PairExample],
    config: &RewardConfig,
    journal: &mut Journal,
    keeper: &mut dyn Keeper,
) -> Result<Model> {
    let rows = config.optimizer.rows_per_step();
    let total = total_steps(config, data.len());
    let mut batches = Batches::new(data.len(), rows, config.run.seed);
    let mut learner = Learner::new(model, &config.optimizer, ADAM_EPSILON, config.learning_rate, total)?;
    let mut progress = Progress::default();
    journal.begin_on(learner.model.device(), "reward", total);
    let first = keeper.restore(&mut State::new(vec![("model", &mut learner)], &mut progress, journal))?;
    for step in first..total {
        let (batch, epoch) = batches.batch(step);
        let batch: Vec<&PairExample> = batch.iter().map(|i| &data[*i]).collect();
        let lr = learner.lr(step);
        let Progress { sums, pairs, tokens } = &mut progress;
        let norm = update(&mut learner, &batch, config, lr, sums).map_err(|e| in_step(e, "reward", step + 1))?;
        *pairs += batch.len();
        let rate = *pairs as f64 / journal.elapsed().max(1e-9);
        let accuracy = sums.correct / sums.pairs as f64;
        journal.progress(step + 1, &format!("accuracy {accuracy:.3}  {rate:.0} pairs/s"));
        if config.run.logs(step + 1, total, LOGGING_STEPS) {
            let mut entries = sums.row();
            *tokens += sums.tokens;
            entries.extend([
                ("grad_norm", norm),
                ("learning_rate", lr),
                ("epoch", epoch),
                ("num_tokens", *tokens as f64),
            ]);
            journal.log(step + 1, row(&entries), row(&[("pairs_per_second", rate), ("seconds", journal.elapsed())]))?;
            *sums = Sums::default();
        }
        if config.eval.due(step + 1, total) && !eval.is_empty() {
            let numbers = quality(&evaluate(&learner.model, eval)?);
            let numbers: Row =
                numbers.into_iter().map(|(n, x)| (format!("eval_{n}"), super::metrics::number(x))).collect();
            journal.log(step + 1, numbers, Row::new())?;
        }
        keeper.after(step + 1, total, &mut State::new(vec![("model", &mut learner)], &mut progress, journal))?;
    }
    journal.end()?;
    Ok(learner.model)
}

/// One optimizer step; adds to `sums`, returns the gradient's norm. The host waits for the device once, at the end,
/// and what it reads is checked before anything is moved.
pub(super) fn update(
    learner: &mut Learner,
    batch: &[&PairExample],
    config: &RewardConfig,
    lr: f64,
    sums: &mut Sums,
) -> Result<f64> {
    let weights = learner.begin()?;
    let (scale, micro) = (1.0 / batch.len() as f64, config.optimizer.rows_per_pass());
    let (mut to_read, mut tokens) = (Vec::new(), 0);
    for pairs in batch.chunks(micro) {
        let model = &learner.model;
        let packed = Packed::new(model, pairs.iter().flat_map(|p| [&p.chosen[..], &p.rejected[..]]))?;
        let scores = pair_scores(model, &weights, &packed)?; // [2 P]
        let margin =
            Tensor::from_f32(model.device(), scores.dtype(), &[pairs.len()], pairs.iter().map(|p| p.margin).collect())?;
        let loss = pairwise_loss(&scores, &margin, config.center_rewards_coefficient, scale)?;
        to_read.extend([loss.statistics, scores.detach()]);
        drop(scores);
        loss.root.backward()?;
        tokens += packed.sequences.tokens();
    }
    drop(weights);
    let clip = learner.clip()?;
    to_read.push(clip.state.clone());
    let numbers = read_together(&to_read)?;
    let (parts, state) = numbers.split_at(to_read.len() - 1);
    let among = |pairs: &[&PairExample]| among(pairs.iter().map(|pair| &*pair.place));
    for (part, pairs) in parts.chunks_exact(2).zip(batch.chunks(micro)) {
        // The loss alone would not show a score of infinity in the right place.
        if part.iter().flatten().any(|x| !x.is_finite()) {
            let error = Error::new(Code::NonFinite, "loss-not-finite", "the loss is not a finite number")
                .at(among(pairs))
                .fix("lower the learning rate, or look at these rows");
            return Err(blame(error, "", &learner.model));
        }
    }
    let norm = learner.check(&state[0]).map_err(|error| blame(error.behind(among(batch)), "", &learner.model))?;
    learner.update(lr, &clip)?;
    for part in parts.chunks_exact(2) {
        sums.scores.extend(part[1].iter().map(|score| *score as f32));
        (sums.loss, sums.correct, sums.gap) =
            (sums.loss + part[0][0], sums.correct + part[0][1], sums.gap + part[0][2]);
    }
    (sums.pairs, sums.tokens) = (sums.pairs + batch.len(), sums.tokens + tokens);
    Ok(norm)
}

fn pair_scores(model: &Model, weights: &Weights, packed: &Packed) -> Result<Tensor> {
    let hidden = model.hidden(weights, packed)?;
    model.scalars(weights, &hidden, &packed.last_rows())
}

/// The scores of held-out pairs.
pub(crate) fn evaluate(model: &Model, data: &[PairExample]) -> Result<Vec<Pair>> {
    let sequences: Vec<Vec<i32>> = data.iter().flat_map(|p| [p.chosen.clone(), p.rejected.clone()]).collect();
    let scores = score(model, &sequences)?;
    let pair = |(scores, data): (&[f32], &PairExample)| Pair {
        chosen: f64::from(scores[0]),
        rejected: f64::from(scores[1]),
        lengths: [data.chosen.len(), data.rejected.len()],
    };
    Ok(scores.chunks_exact(2).zip(data).map(pair).collect())
}
