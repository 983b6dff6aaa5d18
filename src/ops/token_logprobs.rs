//! The language-model head and what is read off it: with z = (h W^T) / temperature, logprob = z_y - logsumexp(z) and
//! the entropy of softmax(z). Logits exist a chunk of rows at a time and are overwritten by their own gradient:
//! dz_j = dlogprob (1[j = y] - p_j) - dentropy p_j (ln p_j + entropy). Saved: h, four numbers a row, and the logits
//! only if one chunk holds them all; else backward makes each chunk again.

use crate::autograd::{Grad, record};
use crate::cpu;
use crate::cpu::math::Real;
use crate::cpu::matmul::{Matrix, matmul};
use crate::cpu::token_logprobs::OUTPUTS;
use crate::device::kernel::{Kernel, TOKEN_LOGPROBS};
use crate::device::launch::Launch;
use crate::device::{Device, Gpu};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::check;
use crate::ops::matmul::{multiply, weight_gradient};
use crate::tensor::{Element, Tensor, floats};
use std::sync::Arc;

const FORWARD: Kernel = Kernel::new(&TOKEN_LOGPROBS, "token_logprobs_forward_bf16", "token_logprobs_forward_f32");
const BACKWARD: Kernel = Kernel::new(&TOKEN_LOGPROBS, "token_logprobs_backward_bf16", "token_logprobs_backward_f32");

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
    let (rows, logits) = head.forward(keep)?;
    let mut outputs = [rows.logprobs.clone(), rows.entropy.clone()];
    let hits = rows.hits.clone();
    let rule = move |grads: &[Option<Tensor>]| Ok(vec![Some(head.backward(&rows, logits.as_ref(), grads)?), None]);
    record("token_logprobs", &mut outputs, &[hidden, weight], Box::new(rule));
    let [logprobs, entropy] = outputs;
    Ok(TokenLogprobs { logprobs, entropy, hits })
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
        Device::Gpu(gpu) => {
            let targets = Tensor::new(logits.device(), &[tokens.len()], tokens.to_vec())?;
            let rows = Rows::empty(logits, tokens.len())?;
            rows.read_off(gpu, logits, &targets, 0, temperature)?;
            rows.logprobs.to_f32()
        }
    }
}

/// What is read off each row of logits; all [N].
struct Rows {
    logprobs: Tensor,
    entropy: Tensor,
    hits: Tensor,
    lse: Tensor,
}

impl Rows {
    fn empty(like: &Tensor, n: usize) -> Result<Self> {
        let column = || Tensor::empty(like.device(), DType::F32, &[n]);
        Ok(Self { logprobs: column()?, entropy: column()?, hits: column()?, lse: column()? })
    }

    /// From [N, OUTPUTS] on the host.
    fn of<T: Element>(out: &[T]) -> Result<Self> {
        let column = |i: usize| {
            let values: Vec<T> = out.chunks_exact(OUTPUTS).map(|row| row[i]).collect();
            Tensor::new(&Device::Cpu, &[values.len()], values)
        };
        Ok(Self { logprobs: column(0)?, entropy: column(1)?, hits: column(2)?, lse: column(3)? })
    }

    /// Writes rows first.. of all four from logits [R, V] on a GPU.
    fn read_off(&self, gpu: &Gpu, logits: &Tensor, targets: &Tensor, first: usize, temperature: f64) -> Result<()> {
        let (n, v) = (logits.rows(), logits.width());
        let launch = Launch::new(gpu, FORWARD.of(logits.dtype())?).blocks(n, row_threads(v));
        [&self.logprobs, &self.entropy, &self.hits, &self.lse]
            .into_iter()
            .try_fold(launch, |launch, column| Ok::<_, Error>(launch.out(&column.view(first, &[n])?)))?
            .tensor(logits)
            .tensor(&targets.view(first, &[n])?)
            .sizes([v, v])
            .scalar(1.0 / temperature)
            .run()
    }
}

/// Threads for a row of logits; the order of its sums follows from it.
fn row_threads(vocabulary: usize) -> usize {
    match vocabulary {
        0..=1024 => 32,
        1025..=8192 => 128,
        _ => 512,
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
    /// What is read off all rows, and the logits if they are to be kept.
    fn forward(&self, keep: bool) -> Result<(Rows, Option<Tensor>)> {
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
                let logits = keep.then(|| Tensor::new(&Device::Cpu, &[n, v], logits)).transpose()?;
                Ok((Rows::of(&out)?, logits))
            }),
            Device::Gpu(gpu) => {
                let rows = Rows::empty(&self.hidden, n)?;
                let logits = self.chunk_of_logits()?;
                for first in (0..n).step_by(self.rows) {
                    let chunk = self.logits(&logits, first)?;
                    rows.read_off(gpu, &chunk, &self.targets, first, self.temperature)?;
                }
                Ok((rows, keep.then_some(logits)))
            }
        }
    }

    /// Room for one chunk's logits.
    fn chunk_of_logits(&self) -> Result<Tensor> {
        let shape = [self.rows.min(self.hidden.rows()), self.weight.rows()];
        Tensor::empty(self.hidden.device(), self.hidden.dtype(), &shape)
    }

    /// On a GPU: the logits of the chunk that starts at row `first`, in `room`.
    fn logits(&self, room: &Tensor, first: usize) -> Result<Tensor> {
        let x = self.hidden_chunk(first)?;
        let logits = room.view(0, &[x.rows(), self.weight.rows()])?;
        multiply(&logits, [&x, &self.weight], [false, true], None, false)?;
        Ok(logits)
    }

    fn hidden_chunk(&self, first: usize) -> Result<Tensor> {
        let (n, c) = (self.rows.min(self.hidden.rows() - first), self.weight.width());
        self.hidden.view(first * c, &[n, c])
    }

    /// dhidden; the weight's gradient goes into its slot. Kept logits are overwritten.
    fn backward(&self, rows: &Rows, kept: Option<&Tensor>, grads: &[Option<Tensor>]) -> Result<Tensor> {
        let zeros = || Tensor::zeros(self.hidden.device(), rows.logprobs.dtype(), &[self.hidden.rows()]);
        let dlogprobs = grads[0].clone().map_or_else(zeros, Ok)?;
        match self.hidden.device() {
            Device::Cpu => self.backward_on_host(rows, kept, [Some(&dlogprobs), grads[1].as_ref()]),
            Device::Gpu(gpu) => self.backward_on(gpu, rows, kept, [Some(&dlogprobs), grads[1].as_ref()]),
        }
    }

    fn backward_on(
        &self,
        gpu: &Gpu,
        rows: &Rows,
        kept: Option<&Tensor>,
        douts: [Option<&Tensor>; 2],
    ) -> Result<Tensor> {
        let (n, v, c) = (self.hidden.rows(), self.weight.rows(), self.weight.width());
        let room = kept.map_or_else(|| self.chunk_of_logits(), |kept| Ok(kept.clone()))?;
        let dhidden = Tensor::empty(self.hidden.device(), self.hidden.dtype(), self.hidden.shape())?;
        for first in (0..n).step_by(self.rows) {
            let logits = if kept.is_some() { room.clone() } else { self.logits(&room, first)? };
            let part = |t: &Tensor| t.view(first, &[logits.rows()]);
            let launch = Launch::new(gpu, BACKWARD.of(logits.dtype())?)
                .blocks(logits.rows(), row_threads(v))
                .tensor(&logits)
                .tensor(&part(&self.targets)?);
            douts
                .into_iter()
                .try_fold(launch, |launch, d| Ok::<_, Error>(launch.optional(d.map(part).transpose()?.as_ref())))?
                .tensor(&part(&rows.entropy)?)
                .tensor(&part(&rows.lse)?)
                .sizes([v, v])
                .scalar(1.0 / self.temperature)
                .run()?;
            let dx = dhidden.view(first * c, &[logits.rows(), c])?;
            multiply(&dx, [&logits, &self.weight], [false, false], None, false)?;
            if let Some(slot) = &self.slot {
                weight_gradient(slot, &logits, &self.hidden_chunk(first)?)?;
            }
        }
        Ok(dhidden)
    }

    fn backward_on_host(&self, rows: &Rows, kept: Option<&Tensor>, douts: [Option<&Tensor>; 2]) -> Result<Tensor> {
        let (n, v, c) = (self.hidden.rows(), self.weight.rows(), self.weight.width());
        floats!(self.hidden, T => {
            let (x, w, targets) = (self.hidden.read::<T>(), self.weight.read::<T>(), self.targets.read::<i32>());
            let (entropy, lse) = (rows.entropy.read::<T>(), rows.lse.read::<T>());
            let [dlogprobs, dentropy] = douts.map(|d| d.map(|d| d.read::<T>().to_vec()));
            let dlogprobs = dlogprobs.unwrap_or_default();
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
                let (rows, dlogprobs) = ([&entropy[first..], &lse[first..]], &dlogprobs[first..]);
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
        })
    }
}
