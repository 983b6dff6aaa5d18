//! The Bradley-Terry loss of a reward model: -log sigmoid(r_c - r_r - margin) = softplus(-(r_c - r_r - margin)), plus
//! `centering` (r_c + r_r)^2 (Eisenstein et al., 2023), each averaged over the pairs of the whole optimizer batch.

#![forbid(unsafe_code)]

use super::math::{Real, sigmoid, softplus};
use super::parallel;

/// What is summed over pairs, in this order: loss (with centering), pairs with r_c > r_r, r_c - r_r. Not divided.
pub(crate) const STATISTICS: usize = 3;

/// The statistics [STATISTICS] of scores [2 P] = (chosen, rejected, chosen, ...) with margin [P].
pub(crate) fn forward<T: Real>(statistics: &mut [T], scores: &[T], margin: &[T], centering: f64) {
    parallel::sum_rows(
        statistics,
        margin.len(),
        #[inline(always)]
        |pairs, sum| {
            for p in pairs {
                let (chosen, rejected) = (scores[2 * p], scores[2 * p + 1]);
                let gap = chosen - rejected;
                let total = chosen + rejected;
                sum[0] += softplus(-(gap - margin[p])) + T::of(centering) * total * total;
                sum[1] += if chosen > rejected { T::ONE } else { T::ZERO };
                sum[2] += gap;
            }
        },
    );
}

/// dscores [2 P] of `scale` times the summed loss.
pub(crate) fn backward<T: Real>(dscores: &mut [T], scores: &[T], margin: &[T], centering: f64, scale: f64) {
    let factor = T::of(scale);
    parallel::rows(
        dscores,
        2,
        #[inline(always)]
        |first, chunk| {
            for (d, p) in chunk.chunks_exact_mut(2).zip(first..) {
                let (chosen, rejected) = (scores[2 * p], scores[2 * p + 1]);
                let pull = -sigmoid(-(chosen - rejected - margin[p]));
                let center = T::of(2.0 * centering) * (chosen + rejected);
                d[0] = (pull + center) * factor;
                d[1] = (center - pull) * factor;
            }
        },
    );
}
