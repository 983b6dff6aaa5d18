//! RMS normalisation (Zhang and Sennrich, 2019): r = 1 / sqrt(mean(x^2) + eps), y = x r w. Saved for backward: r.

#![forbid(unsafe_code)]

use super::math::{Real, sum_by};
use super::parallel;

/// out [N, C], rstd [N] from inp [N, C], weight [C].
pub(crate) fn forward<T: Real>(out: &mut [T], rstd: &mut [T], inp: &[T], weight: &[T], eps: T) {
    let width = weight.len();
    parallel::rows2(
        out,
        rstd,
        [width, 1],
        #[inline(always)]
        |first, out, rstd| {
            for ((y, r), n) in out.chunks_exact_mut(width).zip(rstd).zip(first..) {
                let x = &inp[n * width..][..width];
                let mean = sum_by(width, |i| x[i] * x[i]) / T::of(width as f64);
                *r = T::ONE / (mean + eps).sqrt();
                for i in 0..width {
                    y[i] = x[i] * *r * weight[i];
                }
            }
        },
    );
}

/// dinp = r (w dy - x r mean(w dy x r)); with `dresidual`, the gradient of the residual stream is added.
pub(crate) fn backward<T: Real>(
    dinp: &mut [T],
    dout: &[T],
    inp: &[T],
    weight: &[T],
    rstd: &[T],
    dresidual: Option<&[T]>,
) {
    let width = weight.len();
    parallel::rows(
        dinp,
        width,
        #[inline(always)]
        |first, chunk| {
            for (dx, n) in chunk.chunks_exact_mut(width).zip(first..) {
                let (dy, x, r) = (&dout[n * width..][..width], &inp[n * width..][..width], rstd[n]);
                let dot = sum_by(width, |i| weight[i] * dy[i] * x[i]) * r / T::of(width as f64);
                for i in 0..width {
                    dx[i] = r * (weight[i] * dy[i] - x[i] * r * dot);
                }
                if let Some(residual) = dresidual {
                    for (d, g) in dx.iter_mut().zip(&residual[n * width..][..width]) {
                        *d += *g;
                    }
                }
            }
        },
    );
}

/// dweight += sum over rows of dy x r.
pub(crate) fn backward_weight<T: Real>(dweight: &mut [T], dout: &[T], inp: &[T], rstd: &[T]) {
    let width = dweight.len();
    parallel::sum_rows(
        dweight,
        rstd.len(),
        #[inline(always)]
        |rows, sum| {
            for n in rows {
                let (dy, x, r) = (&dout[n * width..][..width], &inp[n * width..][..width], rstd[n]);
                for i in 0..width {
                    sum[i] += dy[i] * x[i] * r;
                }
            }
        },
    );
}
