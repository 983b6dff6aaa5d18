//! GELU in GPT-2's tanh form: y = x/2 (1 + tanh(u)), u = sqrt(2/pi) (x + 0.044715 x^3).
//! (1 + tanh(u)) / 2 = sigmoid(2u), so y = x sigmoid(2u).

#![forbid(unsafe_code)]

use super::math::{Real, sigmoid};
use super::parallel;

const CUBIC: f64 = 0.044_715;
/// 2 sqrt(2/pi)
const SCALE: f64 = 1.595_769_121_605_730_8;

/// out = gelu(inp), element by element; rows of any `width` that divides the length.
pub(crate) fn forward<T: Real>(out: &mut [T], inp: &[T], width: usize) {
    parallel::rows(
        out,
        width,
        #[inline(always)]
        |first, chunk| {
            for (y, x) in chunk.iter_mut().zip(&inp[first * width..]) {
                *y = *x * sigmoid(T::of(SCALE) * (*x + T::of(CUBIC) * *x * *x * *x));
            }
        },
    );
}

/// dinp = dout (s + x s (1 - s) 2u'), with s = sigmoid(2u).
pub(crate) fn backward<T: Real>(dinp: &mut [T], dout: &[T], inp: &[T], width: usize) {
    parallel::rows(
        dinp,
        width,
        #[inline(always)]
        |first, chunk| {
            let (dy, x) = (&dout[first * width..], &inp[first * width..]);
            for ((dx, dy), x) in chunk.iter_mut().zip(dy).zip(x) {
                let s = sigmoid(T::of(SCALE) * (*x + T::of(CUBIC) * *x * *x * *x));
                let slope = T::of(SCALE) * (T::ONE + T::of(3.0 * CUBIC) * *x * *x);
                *dx = *dy * (s + *x * s * (T::ONE - s) * slope);
            }
        },
    );
}
