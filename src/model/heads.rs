//! What is read off the hidden states: log-probabilities of tokens (language-model head) or one score a row (scalar
//! head of reward and value models).

use super::Model;
use super::params::Weights;
use crate::error::Result;
use crate::ops;
use crate::ops::attention::Sequences;
use crate::ops::token_logprobs::{HeadLoss, Objective, TokenLogprobs};
use crate::tensor::Tensor;

/// A packed batch of token sequences on the device.
#[derive(Debug)]
pub(crate) struct Packed {
    /// [N], i32.
    pub(crate) ids: Tensor,
    pub(crate) sequences: Sequences,
    tokens: Vec<i32>,
}

impl Packed {
    /// Packs sequences one after the other; nothing is padded.
    pub(crate) fn new<'a>(model: &Model, rows: impl IntoIterator<Item = &'a [i32]>) -> Result<Self> {
        let (mut tokens, mut lengths) = (Vec::new(), Vec::new());
        for row in rows {
            tokens.extend_from_slice(row);
            lengths.push(row.len());
        }
        let device = model.device();
        let ids = Tensor::new(device, &[tokens.len()], tokens.clone())?;
        Ok(Self { ids, sequences: Sequences::new(device, &lengths)?, tokens })
    }

    /// The rows of the packed batch that predict what `is_target(sequence, position)` marks, and the tokens they
    /// predict: a token at position t is predicted by the row at t - 1, so position 0 is never a target.
    pub(crate) fn targets(&self, is_target: impl Fn(usize, usize) -> bool) -> (Vec<i32>, Vec<i32>) {
        let (mut rows, mut targets) = (Vec::new(), Vec::new());
        for (sequence, span) in self.sequences.offsets.windows(2).enumerate() {
            for n in span[0] + 1..span[1] {
                if is_target(sequence, n - span[0]) {
                    rows.push(n as i32 - 1);
                    targets.push(self.tokens[n]);
                }
            }
        }
        (rows, targets)
    }

    /// The last row of every sequence; none may be empty.
    pub(crate) fn last_rows(&self) -> Vec<i32> {
        self.sequences.offsets.windows(2).map(|span| span[1] as i32 - 1).collect()
    }
}

impl Model {
    /// Hidden states [N, C] of a packed batch.
    pub(crate) fn hidden(&self, weights: &Weights, batch: &Packed) -> Result<Tensor> {
        self.network.hidden(weights, &batch.ids, &batch.sequences)
    }

    /// What the language-model head says, from the hidden states' `rows` alone, about `targets` (one a row), at
    /// `temperature`. No gradient.
    pub(crate) fn token_logprobs(
        &self,
        weights: &Weights,
        hidden: &Tensor,
        [rows, targets]: [&[i32]; 2],
        temperature: f64,
    ) -> Result<TokenLogprobs> {
        let chosen = self.rows_of(hidden, rows)?;
        let targets = Tensor::new(self.device(), &[targets.len()], targets.to_vec())?;
        ops::token_logprobs::token_logprobs(&chosen, weights.get(self.network.head), &targets, temperature)
    }

    /// The loss of the same rows, which are then walked back from its root.
    pub(crate) fn head_loss(
        &self,
        weights: &Weights,
        hidden: &Tensor,
        [rows, targets]: [&[i32]; 2],
        temperature: f64,
        objective: &Objective<'_>,
    ) -> Result<HeadLoss> {
        let chosen = self.rows_of(hidden, rows)?;
        let targets = Tensor::new(self.device(), &[targets.len()], targets.to_vec())?;
        ops::token_logprobs::loss(&chosen, weights.get(self.network.head), &targets, temperature, objective)
    }

    /// The scalar head's number for each of `rows`.
    pub(crate) fn scalars(&self, weights: &Weights, hidden: &Tensor, rows: &[i32]) -> Result<Tensor> {
        ops::scalar_head::scalar_head(&self.rows_of(hidden, rows)?, weights.get(self.network.head))
    }

    fn rows_of(&self, hidden: &Tensor, rows: &[i32]) -> Result<Tensor> {
        let index = Tensor::new(self.device(), &[rows.len()], rows.to_vec())?;
        ops::embedding::gather_rows(hidden, &index)
    }
}
