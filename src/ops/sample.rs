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

/// tokens [R] from logits [R, V] and one uniform in [0, 1) per row. Logits that are not finite are an error: sampling
/// from them would mean nothing.
pub(crate) fn sample(logits: &Tensor, uniforms: &[f32], sampling: &Sampling) -> Result<Vec<i32>> {
    refuse_grad("sample", &[logits])?;
    check("sample", uniforms.len() == logits.rows() && sampling.temperature >= 0.0, &[logits])?;
    match logits.device() {
        Device::Cpu => floats!(logits, T => {
            let data = logits.read::<T>();
            if let Some(at) = data.iter().position(|x| !x.is_finite()) {
                return Err(not_finite(at / logits.width(), at % logits.width()));
            }
            let mut tokens = vec![0; logits.rows()];
            cpu::sample::forward(&mut tokens, &data, uniforms, logits.width(), sampling);
            Ok(tokens)
        }),
        Device::Gpu(gpu) => draw(gpu, logits, uniforms, sampling),
    }
}

fn draw(gpu: &Gpu, logits: &Tensor, uniforms: &[f32], sampling: &Sampling) -> Result<Vec<i32>> {
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
        .tensor(&Tensor::new(logits.device(), &[rows], uniforms.to_vec())?)
        .sizes([vocabulary, vocabulary])
        .scalar(if greedy { 1.0 } else { 1.0 / sampling.temperature })
        .flag(greedy)
        .size(sampling.top_k.min(vocabulary))
        .scalar(sampling.top_p)
        .run()?;
    match bad.to_i32()?.iter().enumerate().find(|(_, id)| **id >= 0) {
        Some((row, id)) => Err(not_finite(row, *id as usize)),
        None => tokens.to_i32(),
    }
}

fn not_finite(row: usize, id: usize) -> Error {
    Error::new(Code::NonFinite, "logits-not-finite", "a logit is not a finite number")
        .at(format!("row {row} of the batch, token id {id}"))
        .fix("the weights or activations have overflowed: check the model, lower the learning rate")
}
