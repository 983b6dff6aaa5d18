//! Rewards from scores and the KL to the reference, then advantages and returns. Formulas in `cpu/gae.rs`; source:
//! Schulman et al., "High-dimensional continuous control using generalized advantage estimation", 2016. No gradient:
//! what stands here is a constant of the update.

use crate::autograd::refuse_grad;
use crate::config::KlEstimator;
use crate::cpu;
use crate::device::Device;
use crate::error::Result;
use crate::ops::check;
use crate::tensor::{Tensor, floats};

/// rewards [N] from logprobs [N], ref_logprobs [N] and scores [B]; episode b is tokens offsets[b]..offsets[b + 1].
pub(crate) fn rewards(
    [logprobs, ref_logprobs, scores]: [&Tensor; 3],
    offsets: &[i32],
    estimator: KlEstimator,
    kl_coef: f64,
) -> Result<Tensor> {
    refuse_grad("rewards", &[logprobs, ref_logprobs, scores])?;
    let shapes = logprobs.len() == ref_logprobs.len() && scores.len() + 1 == offsets.len();
    check("rewards", shapes, &[logprobs, ref_logprobs, scores])?;
    match logprobs.device() {
        Device::Cpu => floats!(logprobs, T => {
            let mut out = cpu::pool::take::<T>(logprobs.len());
            let (l, r, s) = (logprobs.read::<T>(), ref_logprobs.read::<T>(), scores.read::<T>());
            cpu::gae::rewards(&mut out, [&l, &r, &s], offsets, estimator, kl_coef as T);
            Tensor::new(logprobs.device(), logprobs.shape(), out)
        }),
    }
}

/// advantages [N] and returns [N] from rewards [N] and values [N].
pub(crate) fn gae(
    rewards: &Tensor,
    values: &Tensor,
    offsets: &[i32],
    [gamma, lam]: [f64; 2],
) -> Result<(Tensor, Tensor)> {
    refuse_grad("gae", &[rewards, values])?;
    check("gae", rewards.len() == values.len(), &[rewards, values])?;
    match rewards.device() {
        Device::Cpu => floats!(rewards, T => {
            let [mut advantages, mut returns] = [(); 2].map(|()| cpu::pool::take::<T>(rewards.len()));
            let inputs = [&rewards.read::<T>()[..], &values.read::<T>()[..]];
            cpu::gae::forward(&mut advantages, &mut returns, inputs, offsets, [gamma as T, lam as T]);
            let device = rewards.device();
            Ok((Tensor::new(device, rewards.shape(), advantages)?, Tensor::new(device, rewards.shape(), returns)?))
        }),
    }
}
