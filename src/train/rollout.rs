//! One batch of PPO's experience: the prompts, what the policy answered, and every number that the update needs.

use super::finite::{blame, check_column};
use super::reward::{Episode, Reward, check_scores, episode, runs};
use crate::config::PpoConfig;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::generate::{Generated, Generation, Response, Sampling};
use crate::model::heads::Packed;
use crate::model::slots::SlotUse;
use crate::objective::advantages::advantages;
use crate::objective::rewards::{Shaped, Shaping};
use crate::random::Stage;
use crate::tensor::Tensor;

/// Episode b's response tokens stand at offsets[b]..offsets[b + 1] of every column of N numbers. The columns lie on the
/// host, where minibatches are cut from them without waiting for a device.
pub(crate) struct Rollout {
    pub(crate) queries: Vec<Vec<i32>>,
    pub(crate) responses: Vec<Response>,
    pub(crate) offsets: Vec<i32>,
    pub(crate) logprobs: Vec<f32>,
    pub(crate) ref_logprobs: Vec<f32>,
    pub(crate) values: Vec<f32>,
    /// As the reward gave them, one an episode.
    pub(crate) raw_scores: Vec<f32>,
    /// As a judge gave them, who teaches nothing.
    pub(crate) judge_scores: Option<Vec<f32>>,
    /// Shaped.
    pub(crate) scores: Vec<f64>,
    pub(crate) advantages: Vec<f32>,
    pub(crate) returns: Vec<f32>,
    /// Of the decode steps that gave the responses.
    pub(crate) slots: SlotUse,
}

/// Who takes part in a rollout.
pub(crate) struct Cast<'a> {
    pub(crate) policy: &'a Model,
    pub(crate) ref_policy: &'a Model,
    pub(crate) value_model: &'a Model,
    pub(crate) reward: &'a mut dyn Reward,
    pub(crate) judge: Option<&'a mut dyn Reward>,
    pub(crate) stop: &'a [i32],
    pub(crate) shaping: Shaping,
}

impl Rollout {
    /// Samples an answer to every query and computes all that follows from it.
    pub(crate) fn collect(
        cast: &mut Cast<'_>,
        queries: Vec<Vec<i32>>,
        config: &PpoConfig,
        kl_coef: f64,
        batch: u32,
    ) -> Result<Self> {
        let Generated { responses, slots } = respond(cast, &queries, config, batch)?;
        Ok(Self { slots, ..Self::of(cast, queries, responses, config, kl_coef)? })
    }

    /// All that follows from these answers to the queries.
    pub(crate) fn of(
        cast: &mut Cast<'_>,
        queries: Vec<Vec<i32>>,
        responses: Vec<Response>,
        config: &PpoConfig,
        kl_coef: f64,
    ) -> Result<Self> {
        let sequences: Vec<Vec<i32>> =
            queries.iter().zip(&responses).map(|(q, r)| [&q[..], &r.tokens[..]].concat()).collect();
        let prompts: Vec<usize> = queries.iter().map(Vec::len).collect();
        let offsets: Vec<i32> = std::iter::once(0)
            .chain(responses.iter().scan(0, |at, r| {
                *at += r.tokens.len() as i32;
                Some(*at)
            }))
            .collect();
        let logprobs: Vec<f32> = responses.iter().flat_map(|r| r.logprobs.iter().copied()).collect();
        let temperature = config.rollout.temperature;
        finite("logprobs", &logprobs, &offsets, Some(("policy: ", cast.policy)))?;
        let ref_logprobs = response_logprobs(cast.ref_policy, &sequences, &prompts, temperature)?;
        finite("ref_logprobs", &ref_logprobs, &offsets, Some(("reference model: ", cast.ref_policy)))?;
        let values = response_values(cast.value_model, &sequences, &prompts)?;
        finite("values", &values, &offsets, Some(("value model: ", cast.value_model)))?;
        let episodes: Vec<Episode<'_>> =
            queries.iter().zip(&responses).map(|(q, r)| Episode { query: q, response: &r.tokens }).collect();
        let raw_scores = scored(cast.reward, &episodes)?;
        let judge_scores = cast.judge.as_mut().map(|judge| scored(&mut **judge, &episodes)).transpose()?;
        let shaped = raw_scores.iter().zip(&responses);
        let scores: Vec<f64> = shaped.map(|(s, r)| cast.shaping.apply(f64::from(*s), r.stopped)).collect();
        let narrow: Vec<f32> = scores.iter().map(|s| *s as f32).collect();
        check_scores(&narrow, episode)?;
        let score_column = column(cast.policy, narrow)?;
        let columns = [&logprobs, &ref_logprobs, &values].map(|c| column(cast.policy, c.clone()));
        let [new, reference, value_column] = columns;
        let shaped = Shaped {
            logprobs: [&new?, &reference?],
            scores: &score_column,
            offsets: &offsets,
            estimator: config.rollout.kl_estimator,
            kl_coef,
        };
        let discounts = [config.rollout.gamma, config.rollout.lam];
        let made = advantages(&shaped, &value_column?, discounts, config.rollout.whiten_rewards)?;
        let (advantages, returns) = (made.advantages.to_f32()?, made.returns.to_f32()?);
        finite("returns", &returns, &offsets, None)?;
        finite("advantages", &advantages, &offsets, None)?;
        Ok(Self {
            queries,
            responses,
            offsets,
            logprobs,
            ref_logprobs,
            values,
            raw_scores,
            judge_scores,
            scores,
            advantages,
            returns,
            slots: SlotUse::default(),
        })
    }

    /// Response tokens in all episodes.
    pub(crate) fn tokens(&self) -> usize {
        self.logprobs.len()
    }

    /// The response tokens of `episodes`, by their place in the [N] tensors.
    pub(crate) fn token_indices(&self, episodes: &[usize]) -> Vec<usize> {
        episodes.iter().flat_map(|e| self.offsets[*e] as usize..self.offsets[*e + 1] as usize).collect()
    }
}

/// One finite score an episode.
fn scored(who: &mut dyn Reward, episodes: &[Episode<'_>]) -> Result<Vec<f32>> {
    let scores = who.scores(episodes)?;
    if scores.len() != episodes.len() {
        return Err(Error::failure("reward-count", format!("{} scores for {} episodes", scores.len(), episodes.len())));
    }
    check_scores(&scores, episode)?;
    Ok(scores)
}

/// An error unless a column is finite; names the parameter of the model that made it, if that is the cause.
fn finite(name: &str, column: &[f32], offsets: &[i32], maker: Option<(&str, &Model)>) -> Result<()> {
    check_column(name, column, offsets).map_err(|error| match maker {
        Some((role, model)) => blame(error, role, model),
        None => error,
    })
}

/// f32 numbers as a tensor on the model's device.
pub(crate) fn column(model: &Model, values: Vec<f32>) -> Result<Tensor> {
    Tensor::from_f32(model.device(), DType::F32, &[values.len()], values)
}

fn respond(cast: &Cast<'_>, queries: &[Vec<i32>], config: &PpoConfig, batch: u32) -> Result<Generated> {
    let rollout = &config.rollout;
    let options = Generation {
        sampling: Sampling { temperature: rollout.temperature, top_k: rollout.top_k, top_p: rollout.top_p },
        max_new_tokens: rollout.response_length,
        stop: cast.stop,
        seed: config.run.seed,
        stage: Stage::Rollout,
        step: batch,
        first_row: 0,
        slots: None,
    };
    let prompts: Vec<&[i32]> = queries.iter().map(|q| &q[..]).collect();
    let generated = cast.policy.generate(&cast.policy.frozen()?, &prompts, &options);
    generated.map_err(|error| blame(error, "policy: ", cast.policy))
}

/// Log-probabilities [N] of all response tokens at `temperature`; sequence b's response starts at prompts[b].
pub(crate) fn response_logprobs(
    model: &Model,
    sequences: &[Vec<i32>],
    prompts: &[usize],
    temperature: f64,
) -> Result<Vec<f32>> {
    let weights = model.frozen()?;
    let mut values = Vec::new();
    for run in runs(sequences.iter().map(Vec::len)) {
        let packed = Packed::new(model, sequences[run.clone()].iter().map(|s| &s[..]))?;
        let (rows, targets) = packed.targets(|b, t| t >= prompts[run.start + b]);
        let hidden = model.hidden(&weights, &packed)?;
        values.extend(model.token_logprobs(&weights, &hidden, [&rows, &targets], temperature)?.logprobs.to_f32()?);
    }
    Ok(values)
}

/// Values [N]: the scalar head at the token before each response token.
fn response_values(model: &Model, sequences: &[Vec<i32>], prompts: &[usize]) -> Result<Vec<f32>> {
    let weights = model.frozen()?;
    let mut values = Vec::new();
    for run in runs(sequences.iter().map(Vec::len)) {
        let packed = Packed::new(model, sequences[run.clone()].iter().map(|s| &s[..]))?;
        let (rows, _) = packed.targets(|b, t| t >= prompts[run.start + b]);
        let hidden = model.hidden(&weights, &packed)?;
        values.extend(model.scalars(&weights, &hidden, &rows)?.to_f32()?);
    }
    Ok(values)
}

/// Replaces the responses' log-probabilities by those of `model`.
#[cfg(test)]
pub(crate) fn recompute(
    model: &Model,
    queries: &[Vec<i32>],
    responses: &mut [Response],
    temperature: f64,
) -> Result<()> {
    let sequences: Vec<Vec<i32>> =
        queries.iter().zip(responses.iter()).map(|(q, r)| [&q[..], &r.tokens[..]].concat()).collect();
    let prompts: Vec<usize> = queries.iter().map(Vec::len).collect();
    let all = response_logprobs(model, &sequences, &prompts, temperature)?;
    let mut at = 0;
    for response in responses {
        response.logprobs = all[at..at + response.tokens.len()].to_vec();
        at += response.tokens.len();
    }
    Ok(())
}
