//! Sums over rows: the gradient of a bias.

#![forbid(unsafe_code)]

use super::math::Real;
use super::parallel;

/// dbias += sum over rows of dout, rows of `dbias.len()` elements.
pub(crate) fn bias_backward<T: Real>(dbias: &mut [T], dout: &[T]) {
    let width = dbias.len();
    parallel::sum_rows(
        dbias,
        dout.len() / width.max(1),
        #[inline(always)]
        |rows, sum| {
            for n in rows {
                for (s, g) in sum.iter_mut().zip(&dout[n * width..][..width]) {
                    *s += *g;
                }
            }
        },
    );
}
