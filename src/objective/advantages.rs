//! Advantages and returns of a batch of episodes: rewards optionally scaled, generalised advantage estimation, then
//! whitening over all tokens. Returns are taken before whitening.

use crate::error::Result;
use crate::ops;
use crate::ops::gae::{Gae, Shaped};
use crate::tensor::Tensor;

/// Whitened advantages, and returns; both [N].
pub(crate) struct Advantages {
    pub(crate) advantages: Tensor,
    pub(crate) returns: Tensor,
}

/// From what rewards are made of, and values [N]; `discounts` are gamma and lam.
pub(crate) fn advantages(
    shaped: &Shaped<'_>,
    values: &Tensor,
    discounts: [f64; 2],
    whiten_rewards: bool,
) -> Result<Advantages> {
    let Gae { advantages, returns, statistics } = if whiten_rewards {
        let rewards = ops::whiten::whiten(&ops::gae::rewards(shaped)?, None, true)?;
        ops::gae::gae(&rewards, values, shaped.offsets, discounts)?
    } else {
        ops::gae::shaped_gae(shaped, values, discounts)?
    };
    Ok(Advantages { advantages: ops::whiten::whiten(&advantages, statistics.as_ref(), false)?, returns })
}
