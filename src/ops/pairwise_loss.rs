//! The reward model's loss. Forward: softplus(-(r_c - r_r - margin)) + centering (r_c + r_r)^2 per pair. Gradient,
//! made with it: dr_c = -sigmoid(-(gap - margin)) + 2 centering (r_c + r_r), dr_r likewise with the first sign turned.
//! Sources: Bradley and Terry, 1952; Stiennon et al., 2020; Eisenstein et al., 2023 (centering).

use crate::autograd::Root;
use crate::cpu;
use crate::cpu::math::Real;
use crate::cpu::pairwise_loss::STATISTICS;
use crate::device::kernel::{Entry, PAIRWISE_LOSS};
use crate::device::launch::Launch;
use crate::device::{Device, Gpu};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::{check, reduction_threads};
use crate::tensor::{Tensor, floats};

const PAIRWISE_LOSS_F32: Entry = Entry::new(&PAIRWISE_LOSS, "pairwise_loss_f32");

/// The loss of some pairs.
pub(crate) struct PairwiseLoss {
    /// To the scores.
    pub(crate) root: Root,
    /// [1].
    pub(crate) loss: Tensor,
    /// Sums over these pairs of loss, correct order, and gap; [3].
    pub(crate) statistics: Tensor,
}

/// The loss of scores [2 P] (chosen, rejected, chosen, ...) with margin [P], times `scale` (1 / pairs of the whole
/// optimizer batch).
pub(crate) fn pairwise_loss(scores: &Tensor, margin: &Tensor, centering: f64, scale: f64) -> Result<PairwiseLoss> {
    check("pairwise_loss", scores.len() == 2 * margin.len() && scores.dtype() == margin.dtype(), &[scores, margin])?;
    let (dscores, loss, statistics) = match scores.device() {
        Device::Cpu => floats!(scores, T => {
            let (scores, margin) = (scores.read::<T>(), margin.read::<T>());
            let (mut sums, mut dscores) = ([T::default(); STATISTICS], cpu::pool::take::<T>(scores.len()));
            cpu::pairwise_loss::forward(&mut sums, &scores, &margin, centering);
            cpu::pairwise_loss::backward(&mut dscores, &scores, &margin, centering, scale);
            let tensor = |values: Vec<T>| Tensor::new(&Device::Cpu, &[values.len()], values);
            Ok((tensor(dscores)?, tensor(vec![T::of(sums[0].to_f64() * scale)])?, tensor(sums.to_vec())?))
        }),
        Device::Gpu(gpu) => in_one_launch(gpu, scores, margin, centering, scale),
    }?;
    Ok(PairwiseLoss { root: Root::new([(scores, dscores)]), loss, statistics })
}

/// dscores, loss, statistics.
fn in_one_launch(
    gpu: &Gpu,
    scores: &Tensor,
    margin: &Tensor,
    centering: f64,
    scale: f64,
) -> Result<(Tensor, Tensor, Tensor)> {
    let empty = |n: usize| Tensor::empty(scores.device(), DType::F32, &[n]);
    let (dscores, statistics, loss) = (empty(scores.len())?, empty(STATISTICS)?, empty(1)?);
    Launch::new(gpu, PAIRWISE_LOSS_F32)
        .blocks(1, reduction_threads(margin.len()))
        .out(&dscores)
        .out(&statistics)
        .out(&loss)
        .tensor(scores)
        .tensor(margin)
        .size(margin.len())
        .scalar(centering)
        .scalar(scale)
        .run()?;
    Ok((dscores, loss, statistics))
}
