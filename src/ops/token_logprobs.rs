//! The language-model head and what is read off it: with z = (h W^T) / temperature, logprob = z_y - logsumexp(z) and
//! the entropy of softmax(z). Logits exist a chunk of rows at a time. For training the loss is made with its gradients,
//! chunk by chunk: logits by a product, one pass over each row that reads it off and overwrites it with
//! dz_j = dlogprob (1[j = y] - p_j) - dentropy p_j (ln p_j + entropy), and two products, of which the second adds to
//! the weight's gradient. Nothing is saved but dh.

use crate::autograd::{Grad, Root, refuse_grad};
use crate::cpu;
use crate::cpu::matmul::{Matrix, matmul};
use crate::cpu::token_logprobs::{LOSS_OUTPUTS, OUTPUTS};
use crate::device::kernel::{Kernel, TOKEN_LOGPROBS};
use crate::device::launch::Launch;
use crate::device::{Device, Gpu};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::check;
use crate::ops::elementwise::row_sums;
use crate::ops::matmul::{multiply, weight_gradient};
use crate::ops::ppo_loss::Coefficients;
use crate::tensor::{Element, Tensor, floats};
use std::sync::Arc;

const FORWARD: Kernel = Kernel::new(&TOKEN_LOGPROBS, "token_logprobs_forward_bf16", "token_logprobs_forward_f32");
const LIKELIHOOD: Kernel =
    Kernel::new(&TOKEN_LOGPROBS, "token_logprobs_likelihood_bf16", "token_logprobs_likelihood_f32");
const CLIPPED: Kernel = Kernel::new(&TOKEN_LOGPROBS, "token_logprobs_clipped_bf16", "token_logprobs_clipped_f32");

/// What the head says about each row's target; all [N], without a gradient.
pub(crate) struct TokenLogprobs {
    /// Nats.
    pub(crate) logprobs: Tensor,
    /// Of the full distribution, in nats.
    pub(crate) entropy: Tensor,
    /// 1 where the target is the most likely token.
    pub(crate) hits: Tensor,
}

/// What is trained for: a sum over rows of a function of logprob and entropy.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Objective<'a> {
    /// -scale times the log-probability.
    Likelihood { scale: f64 },
    /// PPO's policy loss (`cpu/ppo_loss.rs`) times its scale, less entropy_coef times that scale times the entropy.
    Clipped { old_logprobs: &'a Tensor, advantages: &'a Tensor, coefficients: Coefficients, entropy_coef: f64 },
}

/// A loss over the head's rows. Its gradients are made already: those in the head's weight lie in their slot, so the
/// loss can only be the root of a backward walk.
pub(crate) struct HeadLoss {
    /// To the hidden states and what is before them.
    pub(crate) root: Root,
    pub(crate) rows: TokenLogprobs,
    /// Over the rows, in this order: logprobs, entropy, hits, the loss; [4].
    pub(crate) sums: Tensor,
}

impl HeadLoss {
    /// The loss.
    #[cfg(test)]
    pub(crate) fn value(&self) -> Result<f64> {
        Ok(self.sums.to_f64()?[OUTPUTS])
    }
}

/// On the CPU: logits that may exist at once, in elements, so that a cache holds what the next pass reads; and the rows
/// of a chunk that may follow from it.
const HOST_LOGITS: usize = 1 << 24;
const HOST_ROWS: [usize; 2] = [64, 2048];

/// On a GPU: the bytes of a chunk's logits at most, and its rows R. Each chunk reads and writes the weight's whole
/// gradient, 8 V C bytes beside the 6 R V C FLOP of its products, so that more rows are better.
const LOGITS_BYTES: usize = 1_300_000_000;
const ROWS: [usize; 2] = [64, 4096];

/// Rows of logits of `dtype` that exist at once.
pub(crate) fn chunk_rows(device: &Device, dtype: DType, vocabulary: usize) -> usize {
    let ([least, most], rows) = match device {
        Device::Cpu => (HOST_ROWS, HOST_LOGITS / vocabulary.max(1)),
        Device::Gpu(_) => (ROWS, LOGITS_BYTES / (vocabulary * dtype.bytes()).max(1) / ROWS[0] * ROWS[0]),
    };
    rows.clamp(least, most)
}

/// From hidden [N, C], the head's weight [V, C] and targets [N] (i32, in 0..V); temperature > 0. No gradient.
pub(crate) fn token_logprobs(
    hidden: &Tensor,
    weight: &Tensor,
    targets: &Tensor,
    temperature: f64,
) -> Result<TokenLogprobs> {
    refuse_grad("token_logprobs", &[hidden, weight])?;
    Head::new(hidden, weight, targets, temperature)?.forward()
}

/// The loss of the same, with all its gradients: that of the weight is added to its slot here, that of the hidden
/// states waits in the root.
pub(crate) fn loss(
    hidden: &Tensor,
    weight: &Tensor,
    targets: &Tensor,
    temperature: f64,
    objective: &Objective<'_>,
) -> Result<HeadLoss> {
    if let Objective::Clipped { old_logprobs, advantages, .. } = objective {
        let fits = |t: &Tensor| t.len() == hidden.rows();
        check(
            "token_logprobs: PPO's loss",
            fits(old_logprobs) && fits(advantages),
            &[hidden, old_logprobs, advantages],
        )?;
    }
    Head::new(hidden, weight, targets, temperature)?.loss(hidden, objective)
}

/// logits [N, V] of all rows at once: for the last tokens of a decode step, never for training.
pub(crate) fn logits(hidden: &Tensor, weight: &Tensor) -> Result<Tensor> {
    super::matmul::linear(&hidden.detach(), &weight.detach(), None)
}

/// The log-probability of one token a row, [R], from logits [R, V] that exist already. No gradient.
pub(crate) fn of_logits(logits: &Tensor, tokens: &Tensor, temperature: f64) -> Result<Tensor> {
    let shapes = tokens.len() == logits.rows() && tokens.dtype() == DType::I32;
    check("token_logprobs", shapes && temperature > 0.0, &[logits, tokens])?;
    match logits.device() {
        Device::Cpu => floats!(logits, T => {
            let mut out = cpu::pool::take::<T>(tokens.len() * OUTPUTS);
            let targets = tokens.read::<i32>();
            cpu::token_logprobs::forward(&mut out, &logits.read::<T>(), &targets, logits.width(), temperature as T);
            Ok(TokenLogprobs::of(&columns::<T, OUTPUTS>(&out)?)?.logprobs)
        }),
        Device::Gpu(gpu) => {
            let columns = Tensor::empty(logits.device(), DType::F32, &[OUTPUTS, tokens.len()])?;
            read_off(gpu, &columns, logits, tokens, 0, temperature)?;
            Ok(TokenLogprobs::of(&columns)?.logprobs)
        }
    }
}

impl TokenLogprobs {
    /// The first three of some columns [_, N].
    fn of(columns: &Tensor) -> Result<Self> {
        let column = |i: usize| columns.view(i * columns.width(), &[columns.width()]);
        Ok(Self { logprobs: column(0)?, entropy: column(1)?, hits: column(2)? })
    }
}

/// Columns [K, N] on the host from rows [N, K].
fn columns<T: Element, const K: usize>(rows: &[T]) -> Result<Tensor> {
    let column = |i: usize| rows.chunks_exact(K).map(move |row| row[i]);
    Tensor::new(&Device::Cpu, &[K, rows.len() / K], (0..K).flat_map(column).collect())
}

/// Adds rows first.. of each column, which the kernel writes.
fn with_columns<'a>(launch: Launch<'a>, columns: &Tensor, first: usize, n: usize) -> Result<Launch<'a>> {
    (0..columns.rows()).try_fold(launch, |launch, i| Ok(launch.out(&columns.view(i * columns.width() + first, &[n])?)))
}

/// Rows first.. of columns [OUTPUTS, N] from logits [R, V] on a GPU.
fn read_off(
    gpu: &Gpu,
    columns: &Tensor,
    logits: &Tensor,
    targets: &Tensor,
    first: usize,
    temperature: f64,
) -> Result<()> {
    let (n, v) = (logits.rows(), logits.width());
    let launch = Launch::new(gpu, FORWARD.of(logits.dtype())?).blocks(n, row_threads(v));
    with_columns(launch, columns, first, n)?
        .tensor(logits)
        .tensor(&targets.view(first, &[n])?)
        .sizes([v, v])
        .scalar(1.0 / temperature)
        .run()
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
    /// Of a chunk at most.
    rows: usize,
}

impl Head {
    fn new(hidden: &Tensor, weight: &Tensor, targets: &Tensor, temperature: f64) -> Result<Self> {
        let shapes =
            hidden.width() == weight.width() && targets.len() == hidden.rows() && targets.dtype() == DType::I32;
        check("token_logprobs", shapes && temperature > 0.0, &[hidden, weight, targets])?;
        let inside = targets.read::<i32>().iter().all(|i| usize::try_from(*i).is_ok_and(|i| i < weight.rows()));
        check("token_logprobs: a target lies outside the vocabulary; it", inside, &[weight, targets])?;
        Ok(Self {
            hidden: hidden.detach(),
            weight: weight.detach(),
            targets: targets.detach(),
            temperature,
            slot: weight.slot()?,
            rows: chunk_rows(hidden.device(), hidden.dtype(), weight.rows()),
        })
    }

    /// First row and length of each chunk.
    fn chunks(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let n = self.hidden.rows();
        (0..n).step_by(self.rows).map(move |first| (first, self.rows.min(n - first)))
    }

    fn forward(&self) -> Result<TokenLogprobs> {
        let (n, v, c) = (self.hidden.rows(), self.weight.rows(), self.weight.width());
        match self.hidden.device() {
            Device::Cpu => floats!(self.hidden, T => {
                let (x, w, targets) = (self.hidden.read::<T>(), self.weight.read::<T>(), self.targets.read::<i32>());
                let mut out = cpu::pool::take::<T>(n * OUTPUTS);
                let mut logits = cpu::pool::take::<T>(self.rows.min(n) * v);
                for (first, rows) in self.chunks() {
                    let logits = &mut logits[..rows * v];
                    let x = Matrix::new(&x[first * c..(first + rows) * c], rows, c);
                    matmul(logits, x, Matrix::new(&w[..], v, c).transposed(), false);
                    let out = &mut out[first * OUTPUTS..(first + rows) * OUTPUTS];
                    cpu::token_logprobs::forward(out, logits, &targets[first..], v, self.temperature as T);
                }
                cpu::pool::give(logits);
                TokenLogprobs::of(&columns::<T, OUTPUTS>(&out)?)
            }),
            Device::Gpu(gpu) => {
                let columns = Tensor::empty(self.hidden.device(), DType::F32, &[OUTPUTS, n])?;
                let room = self.chunk_of_logits()?;
                for (first, rows) in self.chunks() {
                    let (_, logits) = self.logits(&room, first, rows)?;
                    read_off(gpu, &columns, &logits, &self.targets, first, self.temperature)?;
                }
                TokenLogprobs::of(&columns)
            }
        }
    }

    /// On a GPU: room for one chunk's logits.
    fn chunk_of_logits(&self) -> Result<Tensor> {
        let shape = [self.rows.min(self.hidden.rows()), self.weight.rows()];
        Tensor::empty(self.hidden.device(), self.hidden.dtype(), &shape)
    }

    /// On a GPU: the hidden states of a chunk and their logits, in `room`.
    fn logits(&self, room: &Tensor, first: usize, rows: usize) -> Result<(Tensor, Tensor)> {
        let c = self.weight.width();
        let (x, logits) = (self.hidden.view(first * c, &[rows, c])?, room.view(0, &[rows, self.weight.rows()])?);
        multiply(&logits, [&x, &self.weight], [false, true], None, false)?;
        Ok((x, logits))
    }

    /// The root leads to `hidden`, which is the head's own with what is before it.
    fn loss(&self, hidden: &Tensor, objective: &Objective<'_>) -> Result<HeadLoss> {
        let (columns, dhidden) = match hidden.device() {
            Device::Cpu => self.loss_on_host(objective)?,
            Device::Gpu(gpu) => self.loss_on(gpu, objective)?,
        };
        let sums = row_sums(&columns)?;
        Ok(HeadLoss { root: Root::new([(hidden, dhidden)]), rows: TokenLogprobs::of(&columns)?, sums })
    }

    /// Columns [LOSS_OUTPUTS, N] and dhidden; the weight's gradient goes into its slot.
    fn loss_on(&self, gpu: &Gpu, objective: &Objective<'_>) -> Result<(Tensor, Tensor)> {
        let (n, c, device) = (self.hidden.rows(), self.weight.width(), self.hidden.device());
        let columns = Tensor::empty(device, DType::F32, &[LOSS_OUTPUTS, n])?;
        let dhidden = Tensor::empty(device, self.hidden.dtype(), self.hidden.shape())?;
        let room = self.chunk_of_logits()?;
        for (first, rows) in self.chunks() {
            let (x, logits) = self.logits(&room, first, rows)?;
            self.turn(gpu, &columns, &logits, first, objective)?;
            let dx = dhidden.view(first * c, &[rows, c])?;
            multiply(&dx, [&logits, &self.weight], [false, false], None, false)?;
            if let Some(slot) = &self.slot {
                weight_gradient(slot, &logits, &x)?;
            }
        }
        Ok((columns, dhidden))
    }

    /// On a GPU: rows first.. of the columns, and the chunk's logits into their gradient.
    fn turn(
        &self,
        gpu: &Gpu,
        columns: &Tensor,
        logits: &Tensor,
        first: usize,
        objective: &Objective<'_>,
    ) -> Result<()> {
        let (n, v) = (logits.rows(), logits.width());
        let part = |t: &Tensor| t.view(first, &[n]);
        let kernel = match objective {
            Objective::Likelihood { .. } => LIKELIHOOD,
            Objective::Clipped { .. } => CLIPPED,
        };
        let launch = Launch::new(gpu, kernel.of(logits.dtype())?).blocks(n, row_threads(v)).tensor(logits);
        let launch = with_columns(launch, columns, first, n)?.tensor(&part(&self.targets)?);
        match objective {
            Objective::Likelihood { scale } => launch.sizes([v, v]).scalar(1.0 / self.temperature).scalar(*scale).run(),
            Objective::Clipped { old_logprobs, advantages, coefficients: c, entropy_coef } => launch
                .tensor(&part(old_logprobs)?)
                .tensor(&part(advantages)?)
                .sizes([v, v])
                .scalar(1.0 / self.temperature)
                .scalar(1.0 - c.cliprange_low)
                .scalar(1.0 + c.cliprange_high)
                .scalar(c.dual_clip.unwrap_or(f64::INFINITY))
                .scalar(c.scale)
                .scalar(entropy_coef * c.scale)
                .run(),
        }
    }

    /// As [`Head::loss_on`].
    fn loss_on_host(&self, objective: &Objective<'_>) -> Result<(Tensor, Tensor)> {
        let (n, v, c) = (self.hidden.rows(), self.weight.rows(), self.weight.width());
        floats!(self.hidden, T => {
            let (x, w, targets) = (self.hidden.read::<T>(), self.weight.read::<T>(), self.targets.read::<i32>());
            let (mut out, mut dhidden) = (cpu::pool::take::<T>(n * LOSS_OUTPUTS), cpu::pool::take::<T>(n * c));
            let mut room = cpu::pool::take::<T>(self.rows.min(n) * v);
            let w = Matrix::new(&w[..], v, c);
            for (first, rows) in self.chunks() {
                let last = first + rows;
                let (x, logits) = (Matrix::new(&x[first * c..last * c], rows, c), &mut room[..rows * v]);
                matmul(logits, x, w.transposed(), false);
                let out = &mut out[first * LOSS_OUTPUTS..last * LOSS_OUTPUTS];
                with_objective::<T, _>(objective, first, |objective| {
                    let targets = &targets[first..];
                    cpu::token_logprobs::loss(out, logits, targets, v, self.temperature as T, objective);
                });
                let dlogits = Matrix::new(&logits[..], rows, v);
                matmul(&mut dhidden[first * c..last * c], dlogits, w, false);
                if let Some(slot) = &self.slot {
                    let accumulate = slot.claim();
                    matmul(&mut slot.tensor.write::<T>(), dlogits.transposed(), x, accumulate);
                }
            }
            cpu::pool::give(room);
            Ok((columns::<T, LOSS_OUTPUTS>(&out)?, Tensor::new(&Device::Cpu, self.hidden.shape(), dhidden)?))
        })
    }
}

/// The objective of the rows from `first` on, on the host.
fn with_objective<T: Element, R>(
    objective: &Objective<'_>,
    first: usize,
    work: impl FnOnce(&cpu::token_logprobs::Objective<'_, T>) -> R,
) -> R {
    use cpu::token_logprobs::Objective as OnHost;
    match *objective {
        Objective::Likelihood { scale } => work(&OnHost::Likelihood { scale }),
        Objective::Clipped { old_logprobs, advantages, coefficients, entropy_coef } => {
            let (old_logprobs, advantages) = (&old_logprobs.read::<T>()[first..], &advantages.read::<T>()[first..]);
            work(&OnHost::Clipped { old_logprobs, advantages, coefficients, entropy_coef })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::Origin;
    use crate::random::{Philox, Stage};

    /// The largest vocabulary in use, and smaller and larger ones; 4096 and 2048 rows at the first in the two dtypes.
    #[test]
    fn a_chunk_of_logits_is_bounded_whatever_the_batch() {
        let gpu = Device::parse("emulated").unwrap();
        for vocabulary in [1, 50_304, 151_936, 262_144, 1 << 20] {
            for dtype in [DType::BF16, DType::F32] {
                let rows = chunk_rows(&gpu, dtype, vocabulary);
                assert!(rows * vocabulary * dtype.bytes() <= 1_300_000_000, "{rows} rows of {vocabulary} {dtype}");
            }
        }
        assert_eq!([DType::BF16, DType::F32].map(|dtype| chunk_rows(&gpu, dtype, 151_936)), [4096, 2112]);
        assert_eq!(chunk_rows(&gpu, DType::BF16, 50_304), 4096);
        // What a head takes is what was counted here.
        let (hidden, weight) = ([5, 2], [3, 2]);
        let tensor = |shape: &[usize]| Tensor::zeros(&gpu, DType::BF16, shape).unwrap();
        let targets = Tensor::new(&gpu, &[5], vec![0; 5]).unwrap();
        let head = Head::new(&tensor(&hidden), &tensor(&weight), &targets, 1.0).unwrap();
        assert_eq!((head.rows, head.chunk_of_logits().unwrap().shape()), (4096, &[5, 3][..]));
        let small = Head { rows: 2, ..head };
        assert_eq!(small.chunk_of_logits().unwrap().shape(), [2, 3]);
    }

    /// Log-probabilities, sums, dhidden and dweight of 13 rows, in chunks of so many.
    fn in_chunks(device: &Device, rows: usize) -> [Vec<f32>; 4] {
        let [n, v, c] = [13, 37, 8];
        let values = |len: usize, stream: u32| {
            let mut stream = Philox::new(5, Stage::Init, 0, stream);
            (0..len).map(|_| stream.normal() as f32).collect::<Vec<f32>>()
        };
        let parameter = |shape: &[usize; 2], stream| {
            let mut tensor =
                Tensor::from_f32(device, device.dtype(), shape, values(shape[0] * shape[1], stream)).unwrap();
            tensor.origin = Origin::Parameter(Arc::new(Grad::new(Tensor::empty(device, DType::F32, shape).unwrap())));
            tensor
        };
        let (x, w) = (parameter(&[n, c], 1), parameter(&[v, c], 2));
        let targets = Tensor::new(device, &[n], (0..n as i32).map(|i| i * 5 % v as i32).collect()).unwrap();
        let column = |stream| Tensor::from_f32(device, DType::F32, &[n], values(n, stream)).unwrap();
        let head = Head { rows, ..Head::new(&x, &w, &targets, 0.9).unwrap() };
        let read = head.forward().unwrap();
        let objective = Objective::Clipped {
            old_logprobs: &read.logprobs,
            advantages: &column(3),
            coefficients: Coefficients {
                cliprange_low: 0.2,
                cliprange_high: 0.2,
                cliprange_value: 0.2,
                vf_coef: 0.1,
                dual_clip: None,
                scale: 0.1,
            },
            entropy_coef: 0.2,
        };
        let HeadLoss { root, rows, sums } = head.loss(&x, &objective).unwrap();
        assert_eq!(rows.logprobs.to_f32().unwrap(), read.logprobs.to_f32().unwrap(), "as a rollout stores them");
        root.backward().unwrap();
        let gradient = |t: &Tensor| t.slot().unwrap().unwrap().tensor.to_f32().unwrap();
        [rows.logprobs.to_f32().unwrap(), sums.to_f32().unwrap(), gradient(&x), gradient(&w)]
    }

    #[test]
    fn several_chunks_are_one() {
        let emulated = Device::parse("emulated").unwrap();
        for device in [Device::Cpu, emulated.clone(), emulated.in_f32()] {
            let whole = in_chunks(&device, 64);
            assert!(whole.iter().all(|values| values.iter().any(|x| x.abs() > 1e-2)));
            for rows in [1, 4, 12, 13] {
                let [logprobs, sums, dhidden, dweight] = in_chunks(&device, rows);
                assert_eq!([&logprobs, &sums, &dhidden], [&whole[0], &whole[1], &whole[2]], "{rows} on {device:?}");
                // Sums over rows are cut at the chunks' borders.
                let apart = dweight.iter().zip(&whole[3]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                let largest = whole[3].iter().fold(0.0, |m: f32, x| m.max(x.abs()));
                assert!(apart <= 1e-6 * largest, "{rows} rows on {device:?}: {apart} of {largest}");
            }
        }
    }
}
