//! The Euclidean norm of a flat buffer, and whether all of it is finite, in one pass.

#![forbid(unsafe_code)]

use rayon::prelude::*;

use super::math::{Real, sum_by, vectorized};

/// Elements in a piece; the pieces' sums are added in order.
const PIECE: usize = 16 * 1024;

/// sqrt(sum x^2); NaN or infinite exactly if an element is (or the sum of squares overflows f64).
pub(crate) fn forward<T: Real>(inp: &[T]) -> f64 {
    let pieces: Vec<f64> = inp
        .par_chunks(PIECE)
        .map(|x| {
            vectorized(
                #[inline(always)]
                || sum_by(x.len(), |i| x[i] * x[i]),
            )
            .to_f64()
        })
        .collect();
    pieces.into_iter().sum::<f64>().sqrt()
}
