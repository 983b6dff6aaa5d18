//! Sums of equal shapes (the residual stream) and of rows.

#![forbid(unsafe_code)]

use super::math::Real;
use super::parallel;

/// out = a + b, element by element.
pub(crate) fn add<T: Real>(out: &mut [T], a: &[T], b: &[T]) {
    parallel::rows(
        out,
        64,
        #[inline(always)]
        |row, chunk| {
            let first = row * 64;
            let (a, b) = (&a[first..][..chunk.len()], &b[first..][..chunk.len()]);
            for ((o, x), y) in chunk.iter_mut().zip(a).zip(b) {
                *o = *x + *y;
            }
        },
    );
}

/// out += inp, element by element.
pub(crate) fn add_assign<T: Real>(out: &mut [T], inp: &[T]) {
    parallel::rows(
        out,
        64,
        #[inline(always)]
        |row, chunk| {
            let inp = &inp[row * 64..][..chunk.len()];
            for (o, x) in chunk.iter_mut().zip(inp) {
                *o += *x;
            }
        },
    );
}

/// out [R]: the sum of each row of inp [R, n], rounded once.
pub(crate) fn row_sums<T: Real>(out: &mut [T], inp: &[T]) {
    let n = inp.len() / out.len().max(1);
    for (r, o) in out.iter_mut().enumerate() {
        *o = T::of(inp[r * n..][..n].iter().map(|x| x.to_f64()).sum());
    }
}
