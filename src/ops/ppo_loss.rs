//! PPO's policy and value loss with gradients and statistics, one pass. Formulas in `cpu/ppo_loss.rs`; source: Schulman
//! et al., "Proximal policy optimization algorithms", 2017. Nothing is saved.

use crate::autograd::Root;
use crate::cpu;
use crate::cpu::math::Real;
use crate::cpu::ppo_loss::Inputs;
pub(crate) use crate::cpu::ppo_loss::{Coefficients, STATISTICS};
use crate::device::kernel::{Entry, PPO_LOSS};
use crate::device::launch::Launch;
use crate::device::{Device, Gpu};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::{check, reduction_threads};
use crate::tensor::{Tensor, floats};

const PPO_LOSS_F32: Entry = Entry::new(&PPO_LOSS, "ppo_loss_f32");

/// One value per response token; all [N].
#[derive(Clone)]
pub(crate) struct Tokens {
    /// Of the policy that learns; receive a gradient where they have one to pass on. (In training the head makes it,
    /// by the same formula, and these are detached.)
    pub(crate) logprobs: Tensor,
    pub(crate) old_logprobs: Tensor,
    pub(crate) advantages: Tensor,
    /// Of the value model that learns; receive a gradient.
    pub(crate) values: Tensor,
    pub(crate) old_values: Tensor,
    pub(crate) returns: Tensor,
}

/// The loss of some tokens.
pub(crate) struct PpoLoss {
    /// To the log-probabilities and the values, where they have a gradient.
    pub(crate) root: Root,
    /// [1].
    pub(crate) loss: Tensor,
    /// Over these tokens; see [`STATISTICS`].
    pub(crate) statistics: Tensor,
}

/// Loss, statistics and gradients of these tokens.
pub(crate) fn ppo_loss(tokens: &Tokens, coefficients: &Coefficients) -> Result<PpoLoss> {
    let n = tokens.logprobs.len();
    let all = [
        &tokens.logprobs,
        &tokens.old_logprobs,
        &tokens.advantages,
        &tokens.values,
        &tokens.old_values,
        &tokens.returns,
    ];
    check("ppo_loss", all.iter().all(|t| t.len() == n && t.dtype() == tokens.logprobs.dtype()), &all)?;
    if let Device::Gpu(gpu) = tokens.logprobs.device() {
        return in_one_launch(gpu, tokens, all, coefficients);
    }
    floats!(tokens.logprobs, T => with_inputs::<T, _>(tokens, |inputs| {
        let mut sums = [T::default(); STATISTICS];
        let (mut dlogprobs, mut dvalues) = (cpu::pool::take::<T>(n), cpu::pool::take::<T>(n));
        cpu::ppo_loss::forward(&mut sums, inputs, coefficients);
        cpu::ppo_loss::backward(&mut dlogprobs, &mut dvalues, inputs, coefficients);
        let loss = coefficients.scale * (sums[0].to_f64() + coefficients.vf_coef * sums[1].to_f64());
        let tensor = |values: Vec<T>| Tensor::new(&Device::Cpu, &[values.len()], values);
        let root = Root::new([(&tokens.logprobs, tensor(dlogprobs)?), (&tokens.values, tensor(dvalues)?)]);
        let loss = Tensor::from_f64(&Device::Cpu, tokens.logprobs.dtype(), &[1], &[loss])?;
        Ok(PpoLoss { root, loss, statistics: tensor(sums.to_vec())? })
    }))
}

fn in_one_launch(gpu: &Gpu, tokens: &Tokens, inputs: [&Tensor; 6], c: &Coefficients) -> Result<PpoLoss> {
    let n = tokens.logprobs.len();
    let empty = |n: usize| Tensor::empty(tokens.logprobs.device(), DType::F32, &[n]);
    let (dlogprobs, dvalues, statistics, loss) = (empty(n)?, empty(n)?, empty(STATISTICS)?, empty(1)?);
    let launch = Launch::new(gpu, PPO_LOSS_F32)
        .blocks(1, reduction_threads(n))
        .out(&dlogprobs)
        .out(&dvalues)
        .out(&statistics)
        .out(&loss);
    inputs
        .into_iter()
        .fold(launch, Launch::tensor)
        .size(n)
        .scalar(1.0 - c.cliprange_low)
        .scalar(1.0 + c.cliprange_high)
        .scalar(c.cliprange_value)
        .scalar(c.dual_clip.unwrap_or(f64::INFINITY))
        .scalar(c.vf_coef)
        .scalar(c.scale)
        .run()?;
    Ok(PpoLoss { root: Root::new([(&tokens.logprobs, dlogprobs), (&tokens.values, dvalues)]), loss, statistics })
}

fn with_inputs<T: crate::tensor::Element, R>(tokens: &Tokens, work: impl FnOnce(&Inputs<'_, T>) -> R) -> R {
    work(&Inputs {
        logprobs: &tokens.logprobs.read(),
        old_logprobs: &tokens.old_logprobs.read(),
        advantages: &tokens.advantages.read(),
        values: &tokens.values.read(),
        old_values: &tokens.old_values.read(),
        returns: &tokens.returns.read(),
    })
}
