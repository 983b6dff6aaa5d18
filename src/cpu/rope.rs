//! Rotary positions (Su et al., 2021), the half-split form: element i of a head is paired with element i + HD/2 and the
//! pair is turned by the angle position x frequency_i. The gradient is the turn the other way.

#![forbid(unsafe_code)]

use super::math::Real;
use super::parallel;

/// Turns the first `turned` heads of each row of inp [N, H, HD] and copies the others. `table` is [positions, HD]: HD/2
/// cosines, then HD/2 sines. `backward` turns the other way.
pub(crate) fn forward<T: Real>(
    out: &mut [T],
    inp: &[T],
    table: &[T],
    positions: &[i32],
    dims: [usize; 3],
    backward: bool,
) {
    let [heads, turned, size] = dims;
    let (width, half) = (heads * size, size / 2);
    let sign = if backward { -T::ONE } else { T::ONE };
    parallel::rows(
        out,
        width,
        #[inline(always)]
        |first, chunk| {
            for (row, n) in chunk.chunks_exact_mut(width).zip(first..) {
                let x = &inp[n * width..][..width];
                let (cos, sin) = table[positions[n] as usize * size..][..size].split_at(half);
                for (o, x) in row.chunks_exact_mut(size).zip(x.chunks_exact(size)).take(turned) {
                    let ((o1, o2), (x1, x2)) = (o.split_at_mut(half), x.split_at(half));
                    for i in 0..half {
                        o1[i] = x1[i] * cos[i] - x2[i] * sin[i] * sign;
                        o2[i] = x2[i] * cos[i] + x1[i] * sin[i] * sign;
                    }
                }
                row[turned * size..].copy_from_slice(&x[turned * size..]);
            }
        },
    );
}
