//! AdamW (Loshchilov and Hutter, 2019) over a flat buffer:
//! m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, w = w (1 - lr decay) - lr (m / c1) / (sqrt(v / c2) + eps),
//! c = 1 - b^t. The gradient is scaled by the clip factor on the way in.

#![forbid(unsafe_code)]

use rayon::prelude::*;

use super::math::{Real, vectorized};

/// The numbers of one step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) lr: f64,
    pub(crate) beta1: f64,
    pub(crate) beta2: f64,
    pub(crate) eps: f64,
    pub(crate) weight_decay: f64,
    /// The step's number, from 1.
    pub(crate) t: u64,
}

/// Elements in a piece of parallel work.
const PIECE: usize = 16 * 1024;

/// Updates weights, m and v [n] from grads [n], each multiplied with `scale` first.
pub(crate) fn step<T: Real>(weights: &mut [T], m: &mut [T], v: &mut [T], grads: &[T], s: &Step, scale: f64) {
    let (b1, b2, scale) = (T::of(s.beta1), T::of(s.beta2), T::of(scale));
    let (a1, a2) = (T::of(1.0 - s.beta1), T::of(1.0 - s.beta2));
    let keep = T::of(1.0 - s.lr * s.weight_decay);
    let rate = T::of(s.lr / (1.0 - s.beta1.powf(s.t as f64)));
    let root = T::of((1.0 - s.beta2.powf(s.t as f64)).sqrt());
    let eps = T::of(s.eps);
    let pieces = weights.par_chunks_mut(PIECE).zip(m.par_chunks_mut(PIECE)).zip(v.par_chunks_mut(PIECE));
    pieces.zip(grads.par_chunks(PIECE)).for_each(|(((w, m), v), g)| {
        vectorized(
            #[inline(always)]
            || {
                for (((w, m), v), g) in w.iter_mut().zip(m).zip(v).zip(g) {
                    let g = *g * scale;
                    *m = b1 * *m + a1 * g;
                    *v = b2 * *v + a2 * g * g;
                    *w = *w * keep - rate * *m / ((*v).sqrt() / root + eps);
                }
            },
        );
    });
}
