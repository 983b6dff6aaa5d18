//! Autoregressive sampling with a cache of keys and values: prompts in one packed prefill, then one token a row and
//! step, the finished rows left out. The log-probability of each token comes from the routine that training uses.

use super::Model;
use super::params::Weights;
use crate::error::{Code, Error, Result};
use crate::ops;
use crate::ops::attention::Sequences;
pub(crate) use crate::ops::sample::Sampling;
use crate::random::{Stage, uniform};
use crate::tensor::Tensor;

/// How responses are drawn.
#[derive(Debug, Clone)]
pub(crate) struct Generation<'a> {
    pub(crate) sampling: Sampling,
    /// Tokens of a response at most, the stop token included.
    pub(crate) max_new_tokens: usize,
    /// Tokens that end a response.
    pub(crate) stop: &'a [i32],
    pub(crate) seed: u64,
    pub(crate) stage: Stage,
    /// The training step, or 0: one of the counters of the random numbers.
    pub(crate) step: u32,
    /// The number of the first row, so that a row draws the same numbers however rows are grouped.
    pub(crate) first_row: u32,
}

/// One row's answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Response {
    /// The sampled tokens, the stop token included.
    pub(crate) tokens: Vec<i32>,
    /// Of each token under the temperature-scaled policy, truncation left out; at temperature 0, of temperature 1.
    pub(crate) logprobs: Vec<f32>,
    /// Whether it ended with a stop token.
    pub(crate) stopped: bool,
}

/// Cached positions, over all rows, that are alive at once.
const CACHED_POSITIONS: usize = 1 << 16;

impl Model {
    /// A response to each prompt; none may be empty.
    pub(crate) fn generate(
        &self,
        weights: &Weights,
        prompts: &[&[i32]],
        options: &Generation<'_>,
    ) -> Result<Vec<Response>> {
        let longest = prompts.iter().map(|p| p.len()).max().unwrap_or(0) + options.max_new_tokens;
        if longest > self.config().max_positions {
            return Err(Error::new(Code::Input, "context-exceeded", "a prompt with its response passes the context")
                .because(format!("{longest} tokens are asked for, the model has {}", self.config().max_positions))
                .fix("shorten the prompts, or ask for fewer new tokens"));
        }
        if prompts.iter().any(|p| p.is_empty()) {
            return Err(Error::input("prompt-empty", "a prompt has no token"));
        }
        let wave = (CACHED_POSITIONS / longest.max(1)).max(1);
        let mut responses = Vec::with_capacity(prompts.len());
        for (i, prompts) in prompts.chunks(wave).enumerate() {
            let first_row = options.first_row + (i * wave) as u32;
            let options = Generation { first_row, ..options.clone() };
            responses.extend(self.generate_wave(weights, prompts, longest, &options)?);
        }
        Ok(responses)
    }

    fn generate_wave(
        &self,
        weights: &Weights,
        prompts: &[&[i32]],
        longest: usize,
        options: &Generation<'_>,
    ) -> Result<Vec<Response>> {
        let device = self.device();
        let mut cache = self.network.cache(&self.params.flat, prompts.len(), longest)?;
        let mut responses = vec![Response::default(); prompts.len()];
        let mut active: Vec<usize> = (0..prompts.len()).collect();
        let mut inputs: Vec<i32> = prompts.concat();
        for position in 0..options.max_new_tokens {
            let lengths: Vec<usize> =
                active.iter().map(|r| if position == 0 { prompts[*r].len() } else { 1 }).collect();
            let first: Vec<usize> = active.iter().map(|r| cache.length(*r)).collect();
            let sequences = Sequences::continued(device, &lengths, &first)?;
            let ids = Tensor::new(device, &[inputs.len()], std::mem::take(&mut inputs))?;
            let hidden = self.network.hidden_cached(weights, &ids, &sequences, &mut cache, &active)?;
            let last: Vec<i32> = sequences.offsets.iter().skip(1).map(|end| *end as i32 - 1).collect();
            let index = Tensor::new(device, &[last.len()], last)?;
            let hidden = ops::embedding::gather_rows(&hidden, &index)?; // [active, C]
            let (tokens, logprobs) = self.draw(weights, &hidden, &active, position, options)?;
            for ((row, token), logprob) in active.iter().zip(&tokens).zip(logprobs) {
                let response = &mut responses[*row];
                response.tokens.push(*token);
                response.logprobs.push(logprob);
                response.stopped = options.stop.contains(token);
            }
            active.retain(|row| !responses[*row].stopped);
            if active.is_empty() {
                break;
            }
            inputs = active.iter().filter_map(|row| responses[*row].tokens.last().copied()).collect();
        }
        Ok(responses)
    }

    /// The next token of each active row and its log-probability.
    fn draw(
        &self,
        weights: &Weights,
        hidden: &Tensor,
        active: &[usize],
        position: usize,
        options: &Generation<'_>,
    ) -> Result<(Vec<i32>, Vec<f32>)> {
        let logits = ops::token_logprobs::logits(hidden, weights.get(self.network.head))?; // [active, V]
        let Generation { seed, stage, step, first_row, .. } = *options;
        let number = |row: &usize| uniform(seed, stage, step, first_row + *row as u32, position as u32);
        let uniforms: Vec<f32> = active.iter().map(number).collect();
        let tokens = ops::sample::sample(&logits, &uniforms, &options.sampling)?;
        let temperature = if options.sampling.temperature == 0.0 { 1.0 } else { options.sampling.temperature };
        let logprobs = ops::token_logprobs::of_logits(&logits, &tokens, temperature)?;
        Ok((tokens, logprobs))
    }
}
