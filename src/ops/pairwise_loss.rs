//! The reward model's loss. Forward: softplus(-(r_c - r_r - margin)) + centering (r_c + r_r)^2 per pair. Backward:
//! dr_c = -sigmoid(-(gap - margin)) + 2 centering (r_c + r_r), dr_r likewise with the first sign turned. Saved: scores.
//! Sources: Bradley and Terry, 1952; Stiennon et al., 2020; Eisenstein et al., 2023 (centering).

use crate::autograd::record;
use crate::cpu;
use crate::cpu::pairwise_loss::STATISTICS;
use crate::device::kernel::{Entry, PAIRWISE_LOSS};
use crate::device::launch::Launch;
use crate::device::{Device, Gpu};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::elementwise::scaled;
use crate::ops::{check, dout, reduction_threads};
use crate::tensor::{Tensor, floats};

const PAIRWISE_LOSS_F32: Entry = Entry::new(&PAIRWISE_LOSS, "pairwise_loss_f32");

/// The loss [1] of scores [2 P] (chosen, rejected, chosen, ...) with margin [P], times `scale` (1 / pairs of the whole
/// optimizer batch); and the sums over these pairs of loss, correct order, and gap.
pub(crate) fn pairwise_loss(
    scores: &Tensor,
    margin: &Tensor,
    centering: f64,
    scale: f64,
) -> Result<(Tensor, [f64; STATISTICS])> {
    check("pairwise_loss", scores.len() == 2 * margin.len() && scores.dtype() == margin.dtype(), &[scores, margin])?;
    if let Device::Gpu(gpu) = scores.device() {
        return in_one_launch(gpu, scores, margin, centering, scale);
    }
    let mut statistics = [0.0; STATISTICS];
    floats!(scores, T => {
        let mut sums = [T::default(); STATISTICS];
        cpu::pairwise_loss::forward(&mut sums, &scores.read(), &margin.read(), centering);
        statistics = sums.map(f64::from);
        Ok(())
    })?;
    let mut out = Tensor::from_f64(scores.device(), scores.dtype(), &[1], &[statistics[0] * scale])?;
    let (saved, margin) = (scores.detach(), margin.detach());
    let rule = move |grads: &[Option<Tensor>]| {
        let dout = dout(grads, 0)?;
        let dscores = floats!(dout, T => {
            let mut dscores = cpu::pool::take::<T>(saved.len());
            let dloss = dout.read::<T>()[0];
            cpu::pairwise_loss::backward(&mut dscores, &saved.read(), &margin.read(), centering, scale, dloss);
            Tensor::new(dout.device(), saved.shape(), dscores)
        })?;
        Ok(vec![Some(dscores)])
    };
    record("pairwise_loss", std::slice::from_mut(&mut out), &[scores], Box::new(rule));
    Ok((out, statistics))
}

/// On a GPU the forward launch makes the gradient for dloss = 1 too; backward multiplies it.
fn in_one_launch(
    gpu: &Gpu,
    scores: &Tensor,
    margin: &Tensor,
    centering: f64,
    scale: f64,
) -> Result<(Tensor, [f64; STATISTICS])> {
    let empty = |n: usize| Tensor::empty(scores.device(), DType::F32, &[n]);
    let (dscores, statistics, mut loss) = (empty(scores.len())?, empty(STATISTICS)?, empty(1)?);
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
    let sums = statistics.to_f64()?;
    let rule = move |grads: &[Option<Tensor>]| Ok(vec![Some(scaled(&dscores, dout(grads, 0)?)?)]);
    record("pairwise_loss", std::slice::from_mut(&mut loss), &[scores], Box::new(rule));
    Ok((loss, [sums[0], sums[1], sums[2]]))
}
