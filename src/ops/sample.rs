//! The next token of each row: temperature, top-k, top-p, and one uniform number. No gradient.

use crate::autograd::refuse_grad;
use crate::cpu;
pub(crate) use crate::cpu::sample::Sampling;
use crate::device::kernel::{Kernel, SAMPLE};
use crate::device::launch::Launch;
use crate::device::{Device, Gpu};
use crate::dtype::DType;
use crate::error::{Code, Error, Result};
use crate::ops::check;
use crate::tensor::{Tensor, floats};

const SAMPLE_KERNEL: Kernel = Kernel::new(&SAMPLE, "sample_bf16", "sample_f32");

/// What was drawn from R rows of logits.
pub(crate) struct Drawn {
    /// [R], i32.
    pub(crate) tokens: Tensor,
    /// [R], i32: the first token whose logit is not finite, or -1. Then the row's token means nothing.
    pub(crate) bad: Tensor,
}

/// A token for each row of logits [R, V], by one uniform in [0, 1) a row, [R].
pub(crate) fn sample(logits: &Tensor, uniforms: &Tensor, sampling: &Sampling) -> Result<Drawn> {
    refuse_grad("sample", &[logits])?;
    let shapes = uniforms.len() == logits.rows() && uniforms.dtype() == DType::F32;
    check("sample", shapes && sampling.temperature >= 0.0, &[logits, uniforms])?;
    match logits.device() {
        Device::Cpu => floats!(logits, T => {
            let (data, vocabulary) = (logits.read::<T>(), logits.width());
            let first = |row: &[T]| row.iter().position(|x| !x.is_finite()).map_or(-1, |id| id as i32);
            let bad: Vec<i32> = data.chunks_exact(vocabulary).map(first).collect();
            let mut tokens = vec![0; bad.len()];
            check_uniforms(&uniforms.read())?;
            if bad.iter().all(|id| *id < 0) {
                cpu::sample::forward(&mut tokens, &data, &uniforms.read(), vocabulary, sampling);
            }
            let ints = |values: Vec<i32>| Tensor::new(logits.device(), &[values.len()], values);
            Ok(Drawn { tokens: ints(tokens)?, bad: ints(bad)? })
        }),
        Device::Gpu(gpu) => draw(gpu, logits, uniforms, sampling),
    }
}

/// A number of another kind would draw a token all the same: NaN the last one.
fn check_uniforms(uniforms: &[f32]) -> Result<()> {
    match uniforms.iter().position(|u| !(0.0..1.0).contains(u)) {
        None => Ok(()),
        Some(row) => Err(Error::new(Code::NonFinite, "uniform-not-finite", "a random number is not in [0, 1)")
            .at(format!("row {row}"))
            .because(format!("it is {}", uniforms[row]))),
    }
}

fn draw(gpu: &Gpu, logits: &Tensor, uniforms: &Tensor, sampling: &Sampling) -> Result<Drawn> {
    let (rows, vocabulary) = (logits.rows(), logits.width());
    let greedy = sampling.temperature == 0.0;
    let ints = || Tensor::empty(logits.device(), DType::I32, &[rows]);
    let (tokens, bad) = (ints()?, ints()?);
    let threads = match vocabulary {
        0..=1024 => 32,
        1025..=8192 => 128,
        _ => 1024,
    };
    Launch::new(gpu, SAMPLE_KERNEL.of(logits.dtype())?)
        .blocks(rows, threads)
        .out(&tokens)
        .out(&bad)
        .tensor(logits)
        .tensor(uniforms)
        .sizes([vocabulary, vocabulary])
        .scalar(if greedy { 1.0 } else { 1.0 / sampling.temperature })
        .flag(greedy)
        .size(sampling.top_k.min(vocabulary))
        .scalar(sampling.top_p)
        .run()?;
    Ok(Drawn { tokens, bad })
}
