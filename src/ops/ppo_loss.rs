//! PPO's policy and value loss with gradients and statistics, one pass. Formulas in `cpu/ppo_loss.rs`; source: Schulman
//! et al., "Proximal policy optimization algorithms", 2017. Saved: the inputs.

use crate::autograd::record;
use crate::cpu;
pub(crate) use crate::cpu::ppo_loss::Coefficients;
use crate::cpu::ppo_loss::{Inputs, STATISTICS};
use crate::device::kernel::{Entry, PPO_LOSS};
use crate::device::launch::Launch;
use crate::device::{Device, Gpu};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::elementwise::scaled;
use crate::ops::{check, dout, reduction_threads};
use crate::tensor::{Tensor, floats};

const PPO_LOSS_F32: Entry = Entry::new(&PPO_LOSS, "ppo_loss_f32");

/// One value per response token; all [N].
#[derive(Clone)]
pub(crate) struct Tokens {
    /// Of the policy that learns; receives a gradient.
    pub(crate) logprobs: Tensor,
    pub(crate) old_logprobs: Tensor,
    pub(crate) advantages: Tensor,
    /// Of the value model that learns; receives a gradient.
    pub(crate) values: Tensor,
    pub(crate) old_values: Tensor,
    pub(crate) returns: Tensor,
}

/// The loss [1], and the statistics' sums over these tokens (see [`cpu::ppo_loss::STATISTICS`]).
pub(crate) fn ppo_loss(tokens: &Tokens, coefficients: Coefficients) -> Result<(Tensor, [f64; STATISTICS])> {
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
        return in_one_launch(gpu, tokens, all, &coefficients);
    }
    let mut statistics = [0.0; STATISTICS];
    floats!(tokens.logprobs, T => {
        let mut sums = [T::default(); STATISTICS];
        with_inputs::<T, _>(tokens, |inputs| cpu::ppo_loss::forward(&mut sums, inputs, &coefficients));
        statistics = sums.map(f64::from);
        Ok(())
    })?;
    let loss = coefficients.scale * (statistics[0] + coefficients.vf_coef * statistics[1]);
    let mut out = Tensor::from_f64(tokens.logprobs.device(), tokens.logprobs.dtype(), &[1], &[loss])?;
    let saved = Tokens { logprobs: tokens.logprobs.detach(), values: tokens.values.detach(), ..tokens.clone() };
    let rule = move |grads: &[Option<Tensor>]| {
        let dout = dout(grads, 0)?;
        floats!(dout, T => {
            let (mut dlogprobs, mut dvalues) = (cpu::pool::take::<T>(n), cpu::pool::take::<T>(n));
            let dloss = dout.read::<T>()[0];
            with_inputs::<T, _>(&saved, |inputs| {
                cpu::ppo_loss::backward(&mut dlogprobs, &mut dvalues, inputs, &coefficients, dloss);
            });
            let tensor = |values| Ok(Some(Tensor::new(dout.device(), &[n], values)?));
            Ok(vec![tensor(dlogprobs)?, tensor(dvalues)?])
        })
    };
    record("ppo_loss", std::slice::from_mut(&mut out), &[&tokens.logprobs, &tokens.values], Box::new(rule));
    Ok((out, statistics))
}

/// On a GPU the forward launch makes the gradients for dloss = 1 too; backward multiplies them.
fn in_one_launch(
    gpu: &Gpu,
    tokens: &Tokens,
    inputs: [&Tensor; 6],
    c: &Coefficients,
) -> Result<(Tensor, [f64; STATISTICS])> {
    let n = tokens.logprobs.len();
    let empty = |n: usize| Tensor::empty(tokens.logprobs.device(), DType::F32, &[n]);
    let (dlogprobs, dvalues, statistics, mut loss) = (empty(n)?, empty(n)?, empty(STATISTICS)?, empty(1)?);
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
    let values = statistics.to_f64()?;
    let sums = std::array::from_fn(|i| values[i]);
    let rule = move |grads: &[Option<Tensor>]| {
        let dloss = dout(grads, 0)?;
        Ok(vec![Some(scaled(&dlogprobs, dloss)?), Some(scaled(&dvalues, dloss)?)])
    };
    record("ppo_loss", std::slice::from_mut(&mut loss), &[&tokens.logprobs, &tokens.values], Box::new(rule));
    Ok((loss, sums))
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
