//! Layer normalisation (Ba et al., 2016): xh = (x - mean) r, r = 1 / sqrt(var + eps), y = xh w + b. Saved: mean and r.

#![forbid(unsafe_code)]

use super::math::{Real, sum_by};
use super::parallel;

/// out [N, C], stats [N, 2] (mean, r) from inp [N, C], weight [C], bias [C].
pub(crate) fn forward<T: Real>(out: &mut [T], stats: &mut [T], inp: &[T], weight: &[T], bias: &[T], eps: T) {
    let width = weight.len();
    let count = T::of(width as f64);
    parallel::rows2(
        out,
        stats,
        [width, 2],
        #[inline(always)]
        |first, out, stats| {
            for ((y, s), n) in out.chunks_exact_mut(width).zip(stats.chunks_exact_mut(2)).zip(first..) {
                let x = &inp[n * width..][..width];
                let mean = sum_by(width, |i| x[i]) / count;
                let variance = sum_by(width, |i| (x[i] - mean) * (x[i] - mean)) / count;
                let r = T::ONE / (variance + eps).sqrt();
                s.copy_from_slice(&[mean, r]);
                for i in 0..width {
                    y[i] = (x[i] - mean) * r * weight[i] + bias[i];
                }
            }
        },
    );
}

/// dinp = r (g - mean(g) - xh mean(g xh)), g = w dy; with `dresidual`, the residual stream's gradient is added.
pub(crate) fn backward<T: Real>(
    dinp: &mut [T],
    dout: &[T],
    inp: &[T],
    weight: &[T],
    stats: &[T],
    dresidual: Option<&[T]>,
) {
    let width = weight.len();
    let count = T::of(width as f64);
    parallel::rows(
        dinp,
        width,
        #[inline(always)]
        |first, chunk| {
            for (dx, n) in chunk.chunks_exact_mut(width).zip(first..) {
                let (dy, x) = (&dout[n * width..][..width], &inp[n * width..][..width]);
                let (mean, r) = (stats[2 * n], stats[2 * n + 1]);
                let mean_g = sum_by(width, |i| weight[i] * dy[i]) / count;
                let mean_gx = sum_by(width, |i| weight[i] * dy[i] * (x[i] - mean)) * r / count;
                for i in 0..width {
                    dx[i] = r * (weight[i] * dy[i] - mean_g - (x[i] - mean) * r * mean_gx);
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

/// dweight += sum over rows of dy xh.
pub(crate) fn backward_weight<T: Real>(dweight: &mut [T], dout: &[T], inp: &[T], stats: &[T]) {
    let width = dweight.len();
    parallel::sum_rows(
        dweight,
        stats.len() / 2,
        #[inline(always)]
        |rows, sum| {
            for n in rows {
                let (dy, x) = (&dout[n * width..][..width], &inp[n * width..][..width]);
                let (mean, r) = (stats[2 * n], stats[2 * n + 1]);
                for i in 0..width {
                    sum[i] += dy[i] * (x[i] - mean) * r;
                }
            }
        },
    );
}
