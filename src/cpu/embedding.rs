//! Rows gathered by index, and the gradient scattered back. Serves token embeddings, learned positions, and the choice
//! of the rows that carry a loss.

#![forbid(unsafe_code)]

use super::math::Real;
use super::parallel;

/// out[n, :] = table[index[n], :], rows of `width` elements.
pub(crate) fn forward<T: Real>(out: &mut [T], table: &[T], index: &[i32], width: usize) {
    parallel::rows(
        out,
        width,
        #[inline(always)]
        |first, chunk| {
            for (row, n) in chunk.chunks_exact_mut(width).zip(first..) {
                row.copy_from_slice(&table[index[n] as usize * width..][..width]);
            }
        },
    );
}

/// dtable[index[n], :] += dout[n, :], in the order of n, so that repeated indices add up in one order.
pub(crate) fn backward<T: Real>(dtable: &mut [T], dout: &[T], index: &[i32], width: usize) {
    for (grad, i) in dout.chunks_exact(width).zip(index) {
        for (d, g) in dtable[*i as usize * width..][..width].iter_mut().zip(grad) {
            *d += *g;
        }
    }
}
