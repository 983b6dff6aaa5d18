//! The gated activation (Shazeer, 2020): y = silu(g) u = g sigmoid(g) u, with gate and up side by side in one input.

#![forbid(unsafe_code)]

use super::math::{Real, sigmoid};
use super::parallel;

/// out [N, F] from inp [N, 2F] = (gate, up).
pub(crate) fn forward<T: Real>(out: &mut [T], inp: &[T], width: usize) {
    parallel::rows(
        out,
        width,
        #[inline(always)]
        |first, chunk| {
            for (y, n) in chunk.chunks_exact_mut(width).zip(first..) {
                let (gate, up) = inp[n * 2 * width..][..2 * width].split_at(width);
                for i in 0..width {
                    y[i] = gate[i] * sigmoid(gate[i]) * up[i];
                }
            }
        },
    );
}

/// dinp [N, 2F]: dgate = dy u (s + g s (1 - s)), dup = dy g s, with s = sigmoid(g).
pub(crate) fn backward<T: Real>(dinp: &mut [T], dout: &[T], inp: &[T], width: usize) {
    parallel::rows(
        dinp,
        2 * width,
        #[inline(always)]
        |first, chunk| {
            for (dx, n) in chunk.chunks_exact_mut(2 * width).zip(first..) {
                let (gate, up) = inp[n * 2 * width..][..2 * width].split_at(width);
                let dy = &dout[n * width..][..width];
                let (dgate, dup) = dx.split_at_mut(width);
                for i in 0..width {
                    let s = sigmoid(gate[i]);
                    dgate[i] = dy[i] * up[i] * (s + gate[i] * s * (T::ONE - s));
                    dup[i] = dy[i] * gate[i] * s;
                }
            }
        },
    );
}
