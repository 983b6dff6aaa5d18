//! The next token of each row: temperature, top-k, top-p, and one uniform number. No gradient.

use crate::autograd::refuse_grad;
use crate::cpu;
pub(crate) use crate::cpu::sample::Sampling;
use crate::device::Device;
use crate::error::{Code, Error, Result};
use crate::ops::check;
use crate::tensor::{Tensor, floats};

/// tokens [R] from logits [R, V] and one uniform in [0, 1) per row. Logits that are not finite are an error: sampling
/// from them would mean nothing.
pub(crate) fn sample(logits: &Tensor, uniforms: &[f32], sampling: &Sampling) -> Result<Vec<i32>> {
    refuse_grad("sample", &[logits])?;
    check("sample", uniforms.len() == logits.rows() && sampling.temperature >= 0.0, &[logits])?;
    match logits.device() {
        Device::Cpu => floats!(logits, T => {
            let data = logits.read::<T>();
            if let Some(at) = data.iter().position(|x| !x.is_finite()) {
                let row = at / logits.width();
                return Err(Error::new(Code::NonFinite, "logits-not-finite", "a logit is not a finite number")
                    .at(format!("row {row} of the batch, token id {}", at % logits.width()))
                    .fix("the weights or activations have overflowed: check the model, lower the learning rate"));
            }
            let mut tokens = vec![0; logits.rows()];
            cpu::sample::forward(&mut tokens, &data, uniforms, logits.width(), sampling);
            Ok(tokens)
        }),
    }
}
