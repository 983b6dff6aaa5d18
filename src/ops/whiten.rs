//! Whitening over all tokens of a batch: (x - mean) / sqrt(var + 1e-8), unbiased variance. No gradient.

use crate::autograd::refuse_grad;
use crate::cpu;
use crate::device::Device;
use crate::device::kernel::{Entry, WHITEN};
use crate::device::launch::Launch;
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::{check, reduction_threads};
use crate::tensor::{Tensor, floats};

const WHITEN_F32: Entry = Entry::new(&WHITEN, "whiten_f32");

/// out [N] from inp [N]; with `keep_mean` only the scale changes. `statistics` [groups, 3] (count, mean, sum of squared
/// distances from it) spare a GPU the passes that find them.
pub(crate) fn whiten(inp: &Tensor, statistics: Option<&Tensor>, keep_mean: bool) -> Result<Tensor> {
    refuse_grad("whiten", &[inp])?;
    match inp.device() {
        Device::Cpu => floats!(inp, T => {
            let mut out = cpu::pool::take::<T>(inp.len());
            cpu::whiten::forward(&mut out, &inp.read::<T>(), keep_mean);
            Tensor::new(inp.device(), inp.shape(), out)
        }),
        Device::Gpu(gpu) => {
            check("whiten", inp.dtype() == DType::F32, &[inp])?;
            let (n, out) = (inp.len(), Tensor::empty(inp.device(), DType::F32, inp.shape())?);
            let blocks = match statistics {
                Some(_) => n.div_ceil(4096),
                None if n <= 4096 => 1,
                None => n.div_ceil(1024),
            };
            Launch::new(gpu, WHITEN_F32)
                .blocks(blocks, reduction_threads(n))
                .out(&out)
                .tensor(inp)
                .optional(statistics)
                .sizes([n, statistics.map_or(0, Tensor::rows)])
                .flag(keep_mean)
                .run()?;
            Ok(out)
        }
    }
}
