//! The reward model's loss. Forward: softplus(-(r_c - r_r - margin)) + centering (r_c + r_r)^2 per pair. Backward:
//! dr_c = -sigmoid(-(gap - margin)) + 2 centering (r_c + r_r), dr_r likewise with the first sign turned. Saved: scores.
//! Sources: Bradley and Terry, 1952; Stiennon et al., 2020; Eisenstein et al., 2023 (centering).

use crate::autograd::record;
use crate::cpu;
use crate::cpu::pairwise_loss::STATISTICS;
use crate::device::Device;
use crate::error::Result;
use crate::ops::{check, dout};
use crate::tensor::{Tensor, floats};

/// The loss [1] of scores [2 P] (chosen, rejected, chosen, ...) with margin [P], times `scale` (1 / pairs of the whole
/// optimizer batch); and the sums over these pairs of loss, correct order, and gap.
pub(crate) fn pairwise_loss(
    scores: &Tensor,
    margin: &Tensor,
    centering: f64,
    scale: f64,
) -> Result<(Tensor, [f64; STATISTICS])> {
    check("pairwise_loss", scores.len() == 2 * margin.len() && scores.dtype() == margin.dtype(), &[scores, margin])?;
    let mut statistics = [0.0; STATISTICS];
    match scores.device() {
        Device::Cpu => floats!(scores, T => {
            let mut sums = [T::default(); STATISTICS];
            cpu::pairwise_loss::forward(&mut sums, &scores.read(), &margin.read(), centering);
            statistics = sums.map(f64::from);
            Ok(())
        }),
    }?;
    let mut out = Tensor::from_f64(scores.device(), scores.dtype(), &[1], &[statistics[0] * scale])?;
    let (saved, margin) = (scores.detach(), margin.detach());
    let rule = move |grads: &[Option<Tensor>]| {
        let dout = dout(grads, 0)?;
        let dscores = match dout.device() {
            Device::Cpu => floats!(dout, T => {
                let mut dscores = cpu::pool::take::<T>(saved.len());
                let dloss = dout.read::<T>()[0];
                cpu::pairwise_loss::backward(&mut dscores, &saved.read(), &margin.read(), centering, scale, dloss);
                Tensor::new(dout.device(), saved.shape(), dscores)
            }),
        }?;
        Ok(vec![Some(dscores)])
    };
    record("pairwise_loss", std::slice::from_mut(&mut out), &[scores], Box::new(rule));
    Ok((out, statistics))
}
