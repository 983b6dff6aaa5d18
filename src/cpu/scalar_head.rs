//! The head of reward and value models: one number per row, s = h . w.

#![forbid(unsafe_code)]

use super::math::{Real, sum_by};
use super::parallel;

/// out [N] from inp [N, C], weight [C].
pub(crate) fn forward<T: Real>(out: &mut [T], inp: &[T], weight: &[T]) {
    let width = weight.len();
    parallel::rows(
        out,
        1,
        #[inline(always)]
        |first, chunk| {
            for (s, n) in chunk.iter_mut().zip(first..) {
                let x = &inp[n * width..][..width];
                *s = sum_by(width, |i| x[i] * weight[i]);
            }
        },
    );
}

/// dinp [N, C] = dout w.
pub(crate) fn backward<T: Real>(dinp: &mut [T], dout: &[T], weight: &[T]) {
    let width = weight.len();
    parallel::rows(
        dinp,
        width,
        #[inline(always)]
        |first, chunk| {
            for (dx, n) in chunk.chunks_exact_mut(width).zip(first..) {
                for (d, w) in dx.iter_mut().zip(weight) {
                    *d = dout[n] * *w;
                }
            }
        },
    );
}

/// dweight [C] += sum over rows of dout x.
pub(crate) fn backward_weight<T: Real>(dweight: &mut [T], dout: &[T], inp: &[T]) {
    let width = dweight.len();
    parallel::sum_rows(
        dweight,
        dout.len(),
        #[inline(always)]
        |rows, sum| {
            for n in rows {
                for (s, x) in sum.iter_mut().zip(&inp[n * width..][..width]) {
                    *s += dout[n] * *x;
                }
            }
        },
    );
}
