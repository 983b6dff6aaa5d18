//! One file an operation: shape check, forward, backward, and one arm a device. Nothing above this room knows where
//! tensors live; nothing here knows what they mean.

#![forbid(unsafe_code)]

pub(crate) mod adamw;
pub(crate) mod advance;
pub(crate) mod append;
pub(crate) mod attention;
pub(crate) mod column_sum;
pub(crate) mod elementwise;
pub(crate) mod embedding;
pub(crate) mod gae;
pub(crate) mod gelu;
pub(crate) mod global_norm;
pub(crate) mod layer_norm;
pub(crate) mod matmul;
pub(crate) mod pairwise_loss;
pub(crate) mod ppo_loss;
pub(crate) mod rms_norm;
pub(crate) mod rope;
pub(crate) mod sample;
pub(crate) mod scalar_head;
pub(crate) mod swiglu;
pub(crate) mod token_logprobs;
pub(crate) mod whiten;

#[cfg(test)]
mod gradients;

use crate::device::kernel::Entry;
use crate::device::launch::{Launch, OnDevice};
use crate::device::{Device, Gpu};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// An error unless `condition` holds; says which operation and which shapes.
pub(crate) fn check(operation: &str, condition: bool, shapes: &[&Tensor]) -> Result<()> {
    if condition {
        return Ok(());
    }
    let shapes: Vec<_> = shapes.iter().map(|t| format!("{} {:?}", t.dtype(), t.shape())).collect();
    Err(Error::shape(format!("{operation} cannot work on {}", shapes.join(", "))))
}

/// Groups of items side by side on a CPU's cores: see [`crate::cpu::parallel::groups`].
pub(crate) use crate::cpu::parallel::groups;

/// The gradient of an output that must have one when its rule runs.
pub(crate) fn dout(grads: &[Option<Tensor>], output: usize) -> Result<&Tensor> {
    grads
        .get(output)
        .and_then(Option::as_ref)
        .ok_or_else(|| Error::failure("no-gradient", "a rule ran without its gradient"))
}

/// The elements of f32 tensors of one device, in one download: they are gathered where they lie. (The host has them in
/// any type.)
pub(crate) fn read_together(tensors: &[Tensor]) -> Result<Vec<Vec<f64>>> {
    let Some(Device::Gpu(gpu)) = tensors.first().map(Tensor::device) else {
        return tensors.iter().map(Tensor::to_f64).collect();
    };
    let total = tensors.iter().map(Tensor::len).sum();
    let room = Tensor::empty(tensors[0].device(), DType::F32, &[total])?;
    let mut at = 0;
    for tensor in tensors {
        check("read_together", tensor.dtype() == DType::F32, &[tensor])?;
        let (from, bytes) = tensor.place(gpu)?;
        gpu.driver().copy(room.view(at, tensor.shape())?.place(gpu)?.0, from, bytes as usize)?;
        at += tensor.len();
    }
    let mut values = room.to_f64()?.into_iter();
    Ok(tensors.iter().map(|tensor| values.by_ref().take(tensor.len()).collect()).collect())
}

/// Threads of a block of an element-wise kernel.
pub(crate) const ELEMENTWISE_THREADS: usize = 256;

/// A launch of an element-wise kernel over `n` elements, 16 bytes a thread, that writes `out`.
pub(crate) fn elementwise_launch<'a>(gpu: &'a Gpu, entry: Entry, out: &Tensor, n: usize) -> Launch<'a> {
    let vectors = n.div_ceil(16 / out.dtype().bytes());
    Launch::new(gpu, entry).blocks(vectors.div_ceil(ELEMENTWISE_THREADS), ELEMENTWISE_THREADS).out(out)
}

/// Threads of the one block that sums `n` elements.
pub(crate) fn reduction_threads(n: usize) -> usize {
    n.next_multiple_of(32).clamp(32, 1024)
}

/// How rows are shared among threads; the counterpart of `kernels/row.cuh`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowPlan {
    /// Threads of a block.
    pub(crate) threads: usize,
    /// Rows that a block holds at once.
    pub(crate) teams: usize,
    /// Rows that a block adds into one partial sum.
    pub(crate) chunk: usize,
}

impl RowPlan {
    /// The widest row that a team holds in registers.
    pub(crate) const WIDEST: usize = 8192;

    pub(crate) fn new(width: usize) -> Self {
        let lanes = width.div_ceil(32).next_power_of_two();
        let threads = if lanes <= 32 { 128 } else { lanes };
        let teams = threads / lanes;
        Self { threads, teams, chunk: if lanes <= 32 { 8 * teams } else { 16 } }
    }

    /// Dynamic shared bytes of a block that adds rows up.
    pub(crate) fn shared(&self) -> usize {
        144 * self.threads
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::KlEstimator;

    /// A norm that runs again takes the rounded sum that the fused kernel wrote.
    #[test]
    fn the_norm_of_the_sum_is_the_fused_norm() {
        let emulated = Device::parse("emulated").unwrap();
        for device in [Device::Cpu, emulated.clone(), emulated.in_f32()] {
            let tensor = |shape: &[usize], unit: f32| {
                let values = (0..shape.iter().product()).map(|i: usize| (i as f32 * unit).sin()).collect();
                Tensor::from_f32(&device, device.dtype(), shape, values).unwrap()
            };
            let (x, delta, w, b) =
                (tensor(&[5, 72], 0.7), tensor(&[5, 72], 1.3), tensor(&[72], 0.9), tensor(&[72], 2.1));
            let bits = |t: &Tensor| t.to_f32().unwrap().iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
            let (sum, fused) = rms_norm::add_rms_norm(&x, &delta, &w, 1e-5).unwrap();
            assert_eq!(bits(&fused), bits(&rms_norm::rms_norm(&sum, &w, 1e-5).unwrap()), "{device:?}");
            let (sum, fused) = layer_norm::add_layer_norm(&x, &delta, [&w, &b], 1e-5).unwrap();
            assert_eq!(bits(&fused), bits(&layer_norm::layer_norm(&sum, [&w, &b], 1e-5).unwrap()), "{device:?}");
            assert_ne!(bits(&fused), bits(&layer_norm::layer_norm(&x, [&w, &b], 1e-5).unwrap()), "{device:?}");
        }
    }

    /// A kernel would read beyond its tensors, and on a card nobody would tell.
    #[test]
    fn shapes_that_do_not_fit_are_refused_on_both_devices() {
        for device in [Device::Cpu, Device::parse("emulated").unwrap().in_f32()] {
            let tensor = |shape: &[usize]| {
                let n: usize = shape.iter().product();
                Tensor::from_f32(&device, DType::F32, shape, vec![1.0; n]).unwrap()
            };
            let (x, wide, narrow) = (tensor(&[3, 8]), tensor(&[8]), tensor(&[6]));
            let id = |result: Result<()>| result.unwrap_err().id().to_owned();
            assert!(rms_norm::add_rms_norm(&x, &x, &wide, 1e-5).is_ok());
            assert_eq!(id(rms_norm::add_rms_norm(&x, &x, &narrow, 1e-5).map(|_| ())), "shape");
            assert!(layer_norm::add_layer_norm(&x, &x, [&wide, &wide], 1e-5).is_ok());
            for weights in [[&narrow, &narrow], [&wide, &narrow]] {
                assert_eq!(id(layer_norm::add_layer_norm(&x, &x, weights, 1e-5).map(|_| ())), "shape");
            }
            let (column, scores) = (tensor(&[5]), tensor(&[2]));
            for (offsets, fits) in [([0, 2, 5], true), ([0, 2, 6], false), ([0, 2, 4], false)] {
                let shaped = gae::Shaped {
                    logprobs: [&column, &column],
                    scores: &scores,
                    offsets: &offsets,
                    estimator: KlEstimator::K1,
                    kl_coef: 0.1,
                };
                assert_eq!(gae::shaped_gae(&shaped, &column, [1.0, 0.9]).is_ok(), fits, "{offsets:?}");
                assert_eq!(gae::gae(&column, &column, &offsets, [1.0, 0.9]).is_ok(), fits, "{offsets:?}");
            }
        }
    }
}
