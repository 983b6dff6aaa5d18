//! The language-model head and what is read off it: with z = (h W^T) / temperature, logprob = z_y - logsumexp(z) and
//! the entropy of softmax(z). Logits exist a chunk of rows at a time and are overwritten by their own gradient:
//! dz_j = dlogprob (1[j = y] - p_j) - dentropy p_j (ln p_j + entropy). Saved: h, four numbers a row, and the logits
//! only if one chunk holds them all; else backward makes each chunk again.

use crate::autograd::{Grad, record};
use crate::cpu;
use crate::cpu::math::Real;
use crate::cpu::matmul::{Matrix, matmul};
use crate::cpu::token_logprobs::OUTPUTS;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::check;
use crate::tensor::{Tensor, floats};
use std::sync::Arc;

/// What the head says about each row's target; all [N].
pub(crate) struct TokenLogprobs {
    /// Nats.
    pub(crate) logprobs: Tensor,
    /// Of the full distribution, in nats.
    pub(crate) entropy: Tensor,
    /// 1 where the target is the most likely token. No gradient.
    pub(crate) hits: Tensor,
}

/// Logits that may exist at once, in elements, and the rows of a chunk that follow from it.
const CHUNK_LOGITS: usize = 1 << 24;
const CHUNK_ROWS: [usize; 2] = [64, 2048];

/// From hidden [N, C], the head's weight [V, C] and targets [N] (i32, in 0..V); temperature > 0.
pub(crate) fn token_logprobs(
    hidden: &Tensor,
    weight: &Tensor,
    targets: &Tensor,
    temperature: f64,
) -> Result<TokenLogprobs> {
    let shapes = hidden.width() == weight.width() && targets.len() == hidden.rows() && targets.dtype() == DType::I32;
    check("token_logprobs", shapes && temperature > 0.0, &[hidden, weight, targets])?;
    let inside = targets.read::<i32>().iter().all(|i| usize::try_from(*i).is_ok_and(|i| i < weight.rows()));
    check("token_logprobs: a target lies outside the vocabulary; it", inside, &[weight, targets])?;
    let head = Head {
        hidden: hidden.detach(),
        weight: weight.detach(),
        targets: targets.detach(),
        temperature,
        slot: weight.slot()?,
        rows: (CHUNK_LOGITS / weight.rows().max(1)).clamp(CHUNK_ROWS[0], CHUNK_ROWS[1]),
    };
    let keep = (hidden.needs_grad() || head.slot.is_some()) && hidden.rows() <= head.rows;
    let (out, logits) = head.forward(keep)?;
    let [logprobs, entropy, hits] = [0, 1, 2].map(|column| column_of(&out, column));
    let mut outputs = [logprobs?, entropy?];
    let rule = move |grads: &[Option<Tensor>]| Ok(vec![Some(head.backward(&out, logits.as_ref(), grads)?), None]);
    record("token_logprobs", &mut outputs, &[hidden, weight], Box::new(rule));
    let [logprobs, entropy] = outputs;
    Ok(TokenLogprobs { logprobs, entropy, hits: hits? })
}

/// logits [N, V] of all rows at once: for the last tokens of a decode step, never for training.
pub(crate) fn logits(hidden: &Tensor, weight: &Tensor) -> Result<Tensor> {
    super::matmul::linear(&hidden.detach(), &weight.detach(), None)
}

/// The log-probability of one token a row, from logits [R, V] that exist already.
pub(crate) fn of_logits(logits: &Tensor, tokens: &[i32], temperature: f64) -> Result<Vec<f32>> {
    check("token_logprobs", tokens.len() == logits.rows() && temperature > 0.0, &[logits])?;
    match logits.device() {
        Device::Cpu => floats!(logits, T => {
            let mut out = cpu::pool::take::<T>(tokens.len() * OUTPUTS);
            cpu::token_logprobs::forward(&mut out, &logits.read::<T>(), tokens, logits.width(), temperature as T);
            Ok(out.chunks_exact(OUTPUTS).map(|row| row[0].to_f64() as f32).collect())
        }),
    }
}

fn column_of(out: &Tensor, column: usize) -> Result<Tensor> {
    match out.device() {
        Device::Cpu => floats!(out, T => {
            let values = out.read::<T>().chunks_exact(OUTPUTS).map(|row| row[column]).collect();
            Tensor::new(out.device(), &[out.rows()], values)
        }),
    }
}

struct Head {
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: f64,
    slot: Option<Arc<Grad>>,
    rows: usize,
}

impl Head {
    /// [N, OUTPUTS], and the logits if they are to be kept.
    fn forward(&self, keep: bool) -> Result<(Tensor, Option<Tensor>)> {
        let (n, v, c) = (self.hidden.rows(), self.weight.rows(), self.weight.width());
        match self.hidden.device() {
            Device::Cpu => floats!(self.hidden, T => {
                let (x, w, targets) = (self.hidden.read::<T>(), self.weight.read::<T>(), self.targets.read::<i32>());
                let mut out = cpu::pool::take::<T>(n * OUTPUTS);
                let mut logits = cpu::pool::take::<T>(self.rows.min(n) * v);
                for first in (0..n).step_by(self.rows) {
                    let rows = self.rows.min(n - first);
                    let logits = &mut logits[..rows * v];
                    let x = Matrix::new(&x[first * c..(first + rows) * c], rows, c);
                    matmul(logits, x, Matrix::new(&w[..], v, c).transposed(), false);
                    let out = &mut out[first * OUTPUTS..(first + rows) * OUTPUTS];
                    cpu::token_logprobs::forward(out, logits, &targets[first..], v, self.temperature as T);
                }
                let device = self.hidden.device();
                let logits = keep.then(|| Tensor::new(device, &[n, v], logits)).transpose()?;
                Ok((Tensor::new(device, &[n, OUTPUTS], out)?, logits))
            }),
        }
    }

    /// dhidden; the weight's gradient goes into its slot. Kept logits are overwritten.
    fn backward(&self, out: &Tensor, kept: Option<&Tensor>, grads: &[Option<Tensor>]) -> Result<Tensor> {
        let (n, v, c) = (self.hidden.rows(), self.weight.rows(), self.weight.width());
        match self.hidden.device() {
            Device::Cpu => floats!(self.hidden, T => {
                let (x, w, targets) = (self.hidden.read::<T>(), self.weight.read::<T>(), self.targets.read::<i32>());
                let out = out.read::<T>();
                let dlogprobs = grads[0].as_ref().map_or_else(|| vec![T::default(); n], |g| g.read::<T>().to_vec());
                let dentropy = grads[1].as_ref().map(|g| g.read::<T>().to_vec());
                let mut dhidden = cpu::pool::take::<T>(n * c);
                let mut again = cpu::pool::take::<T>(if kept.is_some() { 0 } else { self.rows.min(n) * v });
                let mut kept = kept.map(Tensor::write::<T>);
                let w = Matrix::new(&w[..], v, c);
                for first in (0..n).step_by(self.rows) {
                    let last = (first + self.rows).min(n);
                    let x = Matrix::new(&x[first * c..last * c], last - first, c);
                    let logits = match kept.as_deref_mut() {
                        Some(kept) => kept,
                        None => {
                            matmul(&mut again[..(last - first) * v], x, w.transposed(), false);
                            &mut again[..(last - first) * v]
                        }
                    };
                    let (rows, dlogprobs) = (&out[first * OUTPUTS..], &dlogprobs[first..]);
                    let dentropy = dentropy.as_ref().map(|d| &d[first..]);
                    let temperature = self.temperature as T;
                    cpu::token_logprobs::backward(logits, rows, dlogprobs, dentropy, &targets[first..], v, temperature);
                    let dlogits = Matrix::new(&logits[..], last - first, v);
                    matmul(&mut dhidden[first * c..last * c], dlogits, w, false);
                    if let Some(slot) = &self.slot {
                        let accumulate = slot.claim();
                        matmul(&mut slot.tensor.write::<T>(), dlogits.transposed(), x, accumulate);
                    }
                }
                cpu::pool::give(again);
                Tensor::new(self.hidden.device(), self.hidden.shape(), dhidden)
            }),
        }
    }
}
