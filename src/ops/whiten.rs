//! Whitening over all tokens of a batch: (x - mean) / sqrt(var + 1e-8), unbiased variance. No gradient.

use crate::autograd::refuse_grad;
use crate::cpu;
use crate::device::Device;
use crate::error::Result;
use crate::tensor::{Tensor, floats};

/// out [N] from inp [N]; with `keep_mean` only the scale changes.
pub(crate) fn whiten(inp: &Tensor, keep_mean: bool) -> Result<Tensor> {
    refuse_grad("whiten", &[inp])?;
    match inp.device() {
        Device::Cpu => floats!(inp, T => {
            let mut out = cpu::pool::take::<T>(inp.len());
            cpu::whiten::forward(&mut out, &inp.read::<T>(), keep_mean);
            Tensor::new(inp.device(), inp.shape(), out)
        }),
    }
}
