//! The losses of the three stages. Every mean is over the tokens (pairs) of the whole optimizer batch, whose number the
//! caller gives, so that cutting the batch into micro-batches changes nothing.

use crate::error::Result;
use crate::ops;
pub(crate) use crate::ops::pairwise_loss::pairwise_loss;
pub(crate) use crate::ops::ppo_loss::{Coefficients, Tokens, ppo_loss};
use crate::tensor::Tensor;

/// Supervised fine-tuning: -1/N of the sum of the targets' log-probabilities, N = `targets` of the optimizer batch.
pub(crate) fn sft_loss(logprobs: &Tensor, targets: usize) -> Result<Tensor> {
    ops::elementwise::scaled_sum(logprobs, -1.0 / targets.max(1) as f64)
}

/// loss - coefficient x mean entropy over the optimizer batch's tokens.
pub(crate) fn with_entropy_bonus(loss: Tensor, entropy: &Tensor, coefficient: f64, tokens: usize) -> Result<Tensor> {
    if coefficient == 0.0 {
        return Ok(loss);
    }
    ops::elementwise::add(&loss, &ops::elementwise::scaled_sum(entropy, -coefficient / tokens.max(1) as f64)?)
}
