//! Advantages and returns of a batch of episodes: rewards optionally scaled, generalised advantage estimation, then
//! whitening over all tokens. Returns are taken before whitening.

use crate::error::Result;
use crate::ops;
use crate::tensor::Tensor;

/// Whitened advantages, and returns; both [N].
pub(crate) struct Advantages {
    pub(crate) advantages: Tensor,
    pub(crate) returns: Tensor,
}

/// From rewards [N] and values [N]; episode b is tokens offsets[b]..offsets[b + 1].
pub(crate) fn advantages(
    rewards: Tensor,
    values: &Tensor,
    offsets: &[i32],
    discounts: [f64; 2],
    whiten_rewards: bool,
) -> Result<Advantages> {
    let rewards = if whiten_rewards { ops::whiten::whiten(&rewards, true)? } else { rewards };
    let (advantages, returns) = ops::gae::gae(&rewards, values, offsets, discounts)?;
    Ok(Advantages { advantages: ops::whiten::whiten(&advantages, false)?, returns })
}
