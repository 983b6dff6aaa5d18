//! Work over rows on all cores, in chunks whose borders are fixed by the row numbers alone.

#![forbid(unsafe_code)]

use rayon::prelude::*;

use super::math::{Real, vectorized};

/// Rows in one chunk.
pub(crate) const CHUNK: usize = 64;

/// Elements below which a second thread costs more than it brings.
const SERIAL: usize = 16 * 1024;

/// Calls `work(first_row, rows_of_out)` for chunks of rows of `out`, each `width` wide.
pub(crate) fn rows<T: Real>(out: &mut [T], width: usize, work: impl Fn(usize, &mut [T]) + Sync) {
    if width == 0 {
        return;
    }
    let serial = out.len() <= SERIAL;
    // `work` stands in one place, so that it is inlined into the vectorized call and compiled for its instructions.
    let run = |(i, chunk): (usize, &mut [T])| {
        vectorized(
            #[inline(always)]
            || work(i * CHUNK, chunk),
        )
    };
    if serial {
        out.chunks_mut(CHUNK * width).enumerate().for_each(run);
    } else {
        out.par_chunks_mut(CHUNK * width).enumerate().for_each(run);
    }
}

/// Items in a group at least.
const GROUP: usize = 8;

/// Calls `work(first_item, items)` for groups of neighbouring items, one a core, and returns the results in order: for
/// work in many small steps, of which each would be too short to be shared. A result must not depend on its group.
pub(crate) fn groups<I: Sync, R: Send>(items: &[I], work: impl Fn(usize, &[I]) -> R + Sync) -> Vec<R> {
    let size = items.len().div_ceil(rayon::current_num_threads()).max(GROUP);
    items.par_chunks(size).enumerate().map(|(i, group)| work(i * size, group)).collect()
}

/// The same over two outputs whose rows are `widths` wide.
pub(crate) fn rows2<T: Real>(
    a: &mut [T],
    b: &mut [T],
    widths: [usize; 2],
    work: impl Fn(usize, &mut [T], &mut [T]) + Sync,
) {
    let [wa, wb] = widths;
    if wa == 0 || wb == 0 {
        return;
    }
    let serial = a.len() + b.len() <= SERIAL;
    let run = |(i, (x, y)): (usize, (&mut [T], &mut [T]))| {
        vectorized(
            #[inline(always)]
            || work(i * CHUNK, x, y),
        )
    };
    if serial {
        a.chunks_mut(CHUNK * wa).zip(b.chunks_mut(CHUNK * wb)).enumerate().for_each(run);
    } else {
        a.par_chunks_mut(CHUNK * wa).zip(b.par_chunks_mut(CHUNK * wb)).enumerate().for_each(run);
    }
}

/// Sums over rows: `work(rows, partial)` adds a chunk's rows into a zeroed partial sum of `width` elements; the partial
/// sums are added to `out` in the order of the chunks.
pub(crate) fn sum_rows<T: Real>(out: &mut [T], rows: usize, work: impl Fn(std::ops::Range<usize>, &mut [T]) + Sync) {
    let width = out.len();
    let chunks = rows.div_ceil(CHUNK);
    let partial = |i: usize| {
        let mut sum = vec![T::ZERO; width];
        vectorized(
            #[inline(always)]
            || work(i * CHUNK..((i + 1) * CHUNK).min(rows), &mut sum),
        );
        sum
    };
    let partials: Vec<Vec<T>> = if rows * width <= SERIAL {
        (0..chunks).map(partial).collect()
    } else {
        (0..chunks).into_par_iter().map(partial).collect()
    };
    for partial in partials {
        for (o, p) in out.iter_mut().zip(partial) {
            *o += p;
        }
    }
}
