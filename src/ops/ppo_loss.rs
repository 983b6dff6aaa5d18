//! PPO's policy and value loss with gradients and statistics, one pass. Formulas in `cpu/ppo_loss.rs`; source: Schulman
//! et al., "Proximal policy optimization algorithms", 2017. Saved: the inputs.

use crate::autograd::record;
use crate::cpu;
pub(crate) use crate::cpu::ppo_loss::Coefficients;
use crate::cpu::ppo_loss::{Inputs, STATISTICS};
use crate::device::Device;
use crate::error::Result;
use crate::ops::{check, dout};
use crate::tensor::{Tensor, floats};

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
    let mut statistics = [0.0; STATISTICS];
    match tokens.logprobs.device() {
        Device::Cpu => floats!(tokens.logprobs, T => {
            let mut sums = [T::default(); STATISTICS];
            with_inputs::<T, _>(tokens, |inputs| cpu::ppo_loss::forward(&mut sums, inputs, &coefficients));
            statistics = sums.map(f64::from);
            Ok(())
        }),
    }?;
    let loss = coefficients.scale * (statistics[0] + coefficients.vf_coef * statistics[1]);
    let mut out = Tensor::from_f64(tokens.logprobs.device(), tokens.logprobs.dtype(), &[1], &[loss])?;
    let saved = Tokens { logprobs: tokens.logprobs.detach(), values: tokens.values.detach(), ..tokens.clone() };
    let rule = move |grads: &[Option<Tensor>]| {
        let dout = dout(grads, 0)?;
        let device = dout.device();
        match device {
            Device::Cpu => floats!(dout, T => {
                let (mut dlogprobs, mut dvalues) = (cpu::pool::take::<T>(n), cpu::pool::take::<T>(n));
                let dloss = dout.read::<T>()[0];
                with_inputs::<T, _>(&saved, |inputs| {
                    cpu::ppo_loss::backward(&mut dlogprobs, &mut dvalues, inputs, &coefficients, dloss);
                });
                Ok(vec![Some(Tensor::new(device, &[n], dlogprobs)?), Some(Tensor::new(device, &[n], dvalues)?)])
            }),
        }
    };
    record("ppo_loss", std::slice::from_mut(&mut out), &[&tokens.logprobs, &tokens.values], Box::new(rule));
    Ok((out, statistics))
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
