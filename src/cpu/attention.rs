//! Causal, grouped-query attention over packed sequences: per head S = Q K^T / sqrt(HD), P = softmax(S) over the keys
//! at or before the query, O = P V. Saved for backward: lse = logsumexp(S) per query and head. Backward:
//! dV = P^T dO, dP = dO V^T, dS = P (dP - rowsum(dO O)), dQ = dS K / sqrt(HD), dK = dS^T Q / sqrt(HD).
//!
//! A query's result is one fixed chain of operations over its keys in order, whatever stands beside it, so prefill,
//! decode against a cache, and training give the same bits. The heads are worked on in panels padded with zeros to
//! whole tiles; a zero at the end of a chain changes no bit.

#![forbid(unsafe_code)]

use rayon::prelude::*;

use super::math::{LANES, Real, fold, max_of, vectorized};
use super::pool::{Scratch, scratch};

/// Sizes of packed attention: `heads` query heads, `kv_heads` key and value heads, `size` elements a head. A row of
/// `qkv` is `heads + 2 kv_heads` heads wide: queries, keys, values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) size: usize,
}

impl Heads {
    /// Query heads that share one key and value head.
    pub(crate) fn group(self) -> usize {
        self.heads / self.kv_heads
    }

    /// Elements in a row of `qkv`.
    pub(crate) fn row(self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.size
    }

    /// Where key head `h` and value head `h` start in a row of `qkv`.
    pub(super) fn key(self, h: usize) -> usize {
        (self.heads + h) * self.size
    }
    pub(super) fn value(self, h: usize) -> usize {
        (self.heads + self.kv_heads + h) * self.size
    }
}

/// Rows in a tile.
const ROWS: usize = 4;

/// The next multiple of the tile's width.
pub(crate) fn padded(n: usize) -> usize {
    n.next_multiple_of(LANES)
}

/// A factor of a tile product: element (row, k) at `row * row_stride + k * depth_stride`.
#[derive(Clone, Copy)]
struct Left<'a, T> {
    data: &'a [T],
    row_stride: usize,
    depth_stride: usize,
}

/// One tile: acc[r][lane] += sum over k < depth of left(r, k) right[k * right_stride + lane], in ascending k.
#[inline(always)]
fn tile<T: Real, const R: usize>(
    acc: &mut [[T; LANES]; R],
    left: Left<'_, T>,
    right: &[T],
    right_stride: usize,
    depth: usize,
) {
    let mut sum = *acc;
    for k in 0..depth {
        let Some(b) = right.get(k * right_stride..).and_then(|r| r.first_chunk::<LANES>()) else { break };
        for (r, row) in sum.iter_mut().enumerate() {
            let a = left.data[r * left.row_stride + k * left.depth_stride];
            for lane in 0..LANES {
                row[lane] = a.mul_add(b[lane], row[lane]);
            }
        }
    }
    *acc = sum;
}

/// out[r, 0..columns] (+)= left right for R rows; `columns` is a multiple of the tile's width.
#[inline(always)]
fn strip<T: Real, const R: usize>(
    out: &mut [T],
    out_stride: usize,
    left: Left<'_, T>,
    right: &[T],
    right_stride: usize,
    [columns, depth]: [usize; 2],
    accumulate: bool,
) {
    let mut column = 0;
    while column < columns {
        let mut acc = [[T::ZERO; LANES]; R];
        if accumulate {
            for (r, row) in acc.iter_mut().enumerate() {
                row.copy_from_slice(&out[r * out_stride + column..][..LANES]);
            }
        }
        tile::<T, R>(&mut acc, left, &right[column..], right_stride, depth);
        for (r, row) in acc.iter().enumerate() {
            out[r * out_stride + column..][..LANES].copy_from_slice(row);
        }
        column += LANES;
    }
}

/// Keys and values of one head as the tiles want them: keys [HD, keys_stride] (one column a position), values
/// [positions, values_stride], both padded with zeros.
#[derive(Clone, Copy)]
pub(crate) struct KeysValues<'a, T> {
    pub(crate) keys: &'a [T],
    pub(crate) keys_stride: usize,
    pub(crate) values: &'a [T],
    pub(crate) values_stride: usize,
}

/// R queries at positions `first`, `first + 1`, ... against all keys at or before each: out [R, padded HD], lse [R].
/// `queries` is [R, HD]; `scratch` holds at least R rows of padded key count.
#[inline(always)]
fn attend<T: Real, const R: usize>(
    out: &mut [T],
    lse: &mut [T],
    queries: &[T],
    kv: KeysValues<'_, T>,
    [first, size]: [usize; 2],
    scratch: &mut [T],
) {
    let keys = first + R;
    let stride = padded(keys);
    let left = Left { data: queries, row_stride: size, depth_stride: 1 };
    strip::<T, R>(scratch, stride, left, kv.keys, kv.keys_stride, [stride, size], false);
    let scale = T::ONE / T::of(size as f64).sqrt();
    for r in 0..R {
        let row = &mut scratch[r * stride..][..stride];
        lse[r] = softmax(row, first + r + 1, scale);
    }
    let left = Left { data: scratch, row_stride: stride, depth_stride: 1 };
    strip::<T, R>(out, padded(size), left, kv.values, kv.values_stride, [padded(size), keys], false);
}

/// Turns a row of dot products into probabilities over its first `visible` elements, zero beyond; returns the
/// logarithm of the sum of exponentials.
#[inline(always)]
fn softmax<T: Real>(row: &mut [T], visible: usize, scale: T) -> T {
    for s in row.iter_mut() {
        *s = *s * scale;
    }
    row[visible..].fill(T::NEG_INFINITY);
    let largest = max_of(row);
    let mut lanes = [T::ZERO; LANES];
    for chunk in row.chunks_exact_mut(LANES) {
        for lane in 0..LANES {
            chunk[lane] = (chunk[lane] - largest).exp();
            lanes[lane] += chunk[lane];
        }
    }
    let sum = fold(lanes);
    let inverse = T::ONE / sum;
    for p in row.iter_mut() {
        *p = *p * inverse;
    }
    largest + sum.ln()
}

/// Copies one head's columns out of packed rows: panel [rows, stride], zero beyond the head.
fn gather<T: Real>(data: &[T], [rows, row_width, at, size]: [usize; 4], stride: usize) -> Scratch<T> {
    let mut panel = scratch(rows.next_multiple_of(ROWS) * stride);
    for (panel, row) in panel.chunks_exact_mut(stride).zip(data.chunks_exact(row_width)) {
        panel[..size].copy_from_slice(&row[at..at + size]);
        panel[size..].fill(T::ZERO);
    }
    panel[rows * stride..].fill(T::ZERO);
    panel
}

/// The same transposed: panel [size, padded rows].
fn gather_transposed<T: Real>(data: &[T], [rows, row_width, at, size]: [usize; 4]) -> Scratch<T> {
    let stride = padded(rows);
    let mut panel = scratch(size * stride);
    panel.chunks_exact_mut(stride).for_each(|row| row[rows..].fill(T::ZERO));
    for (n, row) in data.chunks_exact(row_width).take(rows).enumerate() {
        for (i, x) in row[at..at + size].iter().enumerate() {
            panel[i * stride + n] = *x;
        }
    }
    panel
}

/// Attention of `queries.len() / size` consecutive queries whose first stands at position `first`.
/// out is [queries, padded HD], lse [queries].
pub(crate) fn forward_head<T: Real>(
    out: &mut [T],
    lse: &mut [T],
    queries: &[T],
    kv: KeysValues<'_, T>,
    [first, size]: [usize; 2],
    scratch: &mut [T],
) {
    let count = lse.len();
    vectorized(
        #[inline(always)]
        || {
            let mut at = 0;
            while at < count {
                let (out, lse) = (&mut out[at * padded(size)..], &mut lse[at..]);
                let queries = &queries[at * size..];
                if count - at >= ROWS {
                    attend::<T, ROWS>(out, lse, queries, kv, [first + at, size], scratch);
                    at += ROWS;
                } else {
                    attend::<T, 1>(out, lse, queries, kv, [first + at, size], scratch);
                    at += 1;
                }
            }
        },
    );
}

/// One (sequence, key head) of a packed batch.
struct Task {
    rows: std::ops::Range<usize>,
    head: usize,
}

/// All tasks of a packed batch.
fn tasks(sequences: &[usize], heads: Heads) -> Vec<Task> {
    let pairs = sequences.windows(2).filter(|w| w[0] < w[1]);
    pairs.flat_map(|w| (0..heads.kv_heads).map(move |head| Task { rows: w[0]..w[1], head })).collect()
}

/// What a task hands back: columns of the packed output, to be put in place by rows.
struct Columns<T: Real> {
    rows: std::ops::Range<usize>,
    /// (first column, width, row stride of the panel, panel)
    panels: Vec<(usize, usize, usize, Scratch<T>)>,
}

/// Puts the tasks' columns into out [N, width].
fn place<T: Real>(out: &mut [T], width: usize, done: &[Columns<T>]) {
    let mut rest = out;
    let mut at = 0;
    let mut strips = Vec::new();
    for group in done.chunk_by(|a, b| a.rows == b.rows) {
        let rows = group[0].rows.clone();
        let (_, tail) = rest.split_at_mut((rows.start - at) * width);
        let (strip, tail) = tail.split_at_mut(rows.len() * width);
        strips.push((strip, group));
        (rest, at) = (tail, rows.end);
    }
    strips.into_par_iter().for_each(|(strip, group)| {
        for (column, size, stride, panel) in group.iter().flat_map(|c| &c.panels) {
            for (row, panel) in strip.chunks_exact_mut(width).zip(panel.chunks_exact(*stride)) {
                row[*column..column + size].copy_from_slice(&panel[..*size]);
            }
        }
    });
}

/// out [N, heads HD], lse [N, heads] from packed qkv [N, row]; sequence b is rows sequences[b]..sequences[b + 1].
pub(crate) fn forward<T: Real>(out: &mut [T], lse: &mut [T], qkv: &[T], sequences: &[usize], heads: Heads) {
    let (size, group) = (heads.size, heads.group());
    let run = |task: &Task| {
        let data = &qkv[task.rows.start * heads.row()..task.rows.end * heads.row()];
        let rows = task.rows.len();
        let keys = gather_transposed(data, [rows, heads.row(), heads.key(task.head), size]);
        let values = gather(data, [rows, heads.row(), heads.value(task.head), size], padded(size));
        let mut scores = scratch(ROWS * padded(rows));
        let kv = KeysValues { keys: &keys, keys_stride: padded(rows), values: &values, values_stride: padded(size) };
        let mut lse = scratch(group * rows);
        let panels = (0..group).map(|g| {
            let head = task.head * group + g;
            let queries = gather(data, [rows, heads.row(), head * size, size], size);
            let mut out = scratch(rows * padded(size));
            forward_head(&mut out, &mut lse[g * rows..][..rows], &queries, kv, [0, size], &mut scores);
            (head * size, size, padded(size), out)
        });
        let columns = Columns { rows: task.rows.clone(), panels: panels.collect() };
        let lse = lse.chunks_exact(rows).enumerate().map(|(g, l)| {
            let mut column = scratch(rows);
            column.copy_from_slice(l);
            (task.head * group + g, 1, 1, column)
        });
        (columns, Columns { rows: task.rows.clone(), panels: lse.collect() })
    };
    let (columns, sums): (Vec<_>, Vec<_>) = tasks(sequences, heads).par_iter().map(run).unzip();
    place(out, heads.heads * size, &columns);
    place(lse, heads.heads, &sums);
}

/// Which sequences of a batch stand where in a cache: sequence b is rows `sequences[b]..sequences[b + 1]` of the batch,
/// continues `lengths[b]` cached positions, and lives in `slots[b]`. A slot has room for `capacity` positions.
#[derive(Clone, Copy)]
pub(crate) struct Cached<'a> {
    pub(crate) sequences: &'a [usize],
    pub(crate) slots: &'a [usize],
    pub(crate) lengths: &'a [usize],
    pub(crate) capacity: usize,
}

/// out [N, heads HD] from packed qkv [N, row] against a cache that [`append`] has filled with these rows.
pub(crate) fn forward_cached<T: Real>(
    out: &mut [T],
    qkv: &[T],
    [keys, values]: [&[T]; 2],
    cached: Cached<'_>,
    heads: Heads,
) {
    let (size, group, wide, capacity) = (heads.size, heads.group(), padded(heads.size), cached.capacity);
    let run = |b: usize| {
        let rows = cached.sequences[b]..cached.sequences[b + 1];
        let data = &qkv[rows.start * heads.row()..rows.end * heads.row()];
        let mut lse = scratch(rows.len());
        let mut scores = scratch(ROWS * padded(cached.lengths[b] + rows.len()));
        let panels = (0..heads.heads).map(|head| {
            let slot = cached.slots[b] * heads.kv_heads + head / group;
            let kv = KeysValues {
                keys: &keys[slot * size * capacity..][..size * capacity],
                keys_stride: capacity,
                values: &values[slot * capacity * wide..][..capacity * wide],
                values_stride: wide,
            };
            let queries = gather(data, [rows.len(), heads.row(), head * size, size], size);
            let mut out = scratch(rows.len() * wide);
            forward_head(&mut out, &mut lse, &queries, kv, [cached.lengths[b], size], &mut scores);
            (head * size, size, wide, out)
        });
        Columns { panels: panels.collect(), rows: rows.clone() }
    };
    let sequences = cached.sequences.len().saturating_sub(1);
    let columns: Vec<_> = (0..sequences).into_par_iter().with_min_len(4).map(run).collect();
    place(out, heads.heads * size, &columns);
}

/// Query rows whose probabilities are held at once in backward.
const BLOCK: usize = 64;

/// Scratch of one backward task; panels as in forward, and blocks of probabilities and their gradients.
struct Panels<T: Real> {
    queries: Scratch<T>,
    keys: Scratch<T>,
    keys_t: Scratch<T>,
    values_t: Scratch<T>,
    dout: Scratch<T>,
    probabilities: Scratch<T>,
    dscores: Scratch<T>,
}

/// dqkv [N, row] from dout [N, heads HD], and what forward read and wrote.
pub(crate) fn backward<T: Real>(
    dqkv: &mut [T],
    dout: &[T],
    qkv: &[T],
    out: &[T],
    lse: &[T],
    sequences: &[usize],
    heads: Heads,
) {
    let inputs = Inputs { dout, qkv, out, lse, heads };
    let columns: Vec<_> = tasks(sequences, heads).par_iter().map(|task| inputs.backward_task(task)).collect();
    place(dqkv, heads.row(), &columns);
}

#[derive(Clone, Copy)]
struct Inputs<'a, T> {
    dout: &'a [T],
    qkv: &'a [T],
    out: &'a [T],
    lse: &'a [T],
    heads: Heads,
}

impl<T: Real> Inputs<'_, T> {
    /// The gradients of one sequence's queries, keys and values that share a key head.
    fn backward_task(self, task: &Task) -> Columns<T> {
        let heads = self.heads;
        let (size, rows, wide) = (heads.size, task.rows.len(), padded(heads.size));
        let data = &self.qkv[task.rows.start * heads.row()..task.rows.end * heads.row()];
        let empty = || scratch(0);
        let mut panels = Panels {
            queries: empty(),
            keys: gather(data, [rows, heads.row(), heads.key(task.head), size], wide),
            keys_t: gather_transposed(data, [rows, heads.row(), heads.key(task.head), size]),
            values_t: gather_transposed(data, [rows, heads.row(), heads.value(task.head), size]),
            dout: empty(),
            probabilities: scratch(BLOCK * padded(rows)),
            dscores: scratch(BLOCK * padded(rows)),
        };
        let [mut dkeys, mut dvalues] = [(); 2].map(|()| {
            let mut panel = scratch(rows.next_multiple_of(ROWS) * wide);
            panel.fill(T::ZERO);
            panel
        });
        let mut columns = Vec::new();
        for g in 0..heads.group() {
            let head = task.head * heads.group() + g;
            panels.queries = gather(data, [rows, heads.row(), head * size, size], wide);
            let width = heads.heads * size;
            let span = task.rows.start * width..task.rows.end * width;
            panels.dout = gather(&self.dout[span.clone()], [rows, width, head * size, size], wide);
            let dots = self.dots(&panels.dout, &self.out[span], [width, head * size]);
            let lse: Vec<T> = task.rows.clone().map(|n| self.lse[n * heads.heads + head]).collect();
            let mut dqueries = scratch(rows.next_multiple_of(ROWS) * wide);
            vectorized(
                #[inline(always)]
                || {
                    for first in (0..rows).step_by(BLOCK) {
                        let block = first..(first + BLOCK).min(rows);
                        scores_block(&mut panels, &lse, &dots, block.clone(), [rows, size]);
                        gradient_block(&panels, block, [rows, size], &mut dqueries, &mut dkeys, &mut dvalues);
                    }
                },
            );
            columns.push((head * size, size, wide, dqueries));
        }
        columns.push((heads.key(task.head), size, wide, dkeys));
        columns.push((heads.value(task.head), size, wide, dvalues));
        Columns { rows: task.rows.clone(), panels: columns }
    }

    /// rowsum(dO O) for each row of one head.
    fn dots(self, dout: &[T], out: &[T], [width, at]: [usize; 2]) -> Vec<T> {
        let (size, wide) = (self.heads.size, padded(self.heads.size));
        let dot = |(d, o): (&[T], &[T])| super::math::sum_by(size, |i| d[i] * o[at + i]);
        dout.chunks_exact(wide).zip(out.chunks_exact(width)).map(dot).collect()
    }
}

/// Fills the block's rows of P and dS / sqrt(HD).
#[inline(always)]
fn scores_block<T: Real>(
    panels: &mut Panels<T>,
    lse: &[T],
    dots: &[T],
    block: std::ops::Range<usize>,
    [rows, size]: [usize; 2],
) {
    let (stride, wide) = (padded(rows), padded(size));
    let scale = T::ONE / T::of(size as f64).sqrt();
    for first in block.clone().step_by(ROWS) {
        let at = (first - block.start) * stride;
        let columns = padded((first + ROWS).min(rows));
        let left = |data| Left { data, row_stride: wide, depth_stride: 1 };
        let (p, ds) = (&mut panels.probabilities[at..], &mut panels.dscores[at..]);
        let (q, d) = (&panels.queries[first * wide..], &panels.dout[first * wide..]);
        strip::<T, ROWS>(p, stride, left(q), &panels.keys_t, stride, [columns, size], false);
        strip::<T, ROWS>(ds, stride, left(d), &panels.values_t, stride, [columns, size], false);
        for r in 0..ROWS.min(rows - first) {
            let (p, ds) = (&mut p[r * stride..][..stride], &mut ds[r * stride..][..stride]);
            let visible = first + r + 1;
            for (p, ds) in p[..visible].iter_mut().zip(&mut ds[..visible]) {
                *p = (*p * scale - lse[first + r]).exp();
                *ds = *p * (*ds - dots[first + r]) * scale;
            }
            p[visible..].fill(T::ZERO);
            ds[visible..].fill(T::ZERO);
        }
    }
}

/// Adds the block's share: dQ = dS K (complete for these rows), dK += dS^T Q, dV += P^T dO.
#[inline(always)]
fn gradient_block<T: Real>(
    panels: &Panels<T>,
    block: std::ops::Range<usize>,
    [rows, size]: [usize; 2],
    dqueries: &mut [T],
    dkeys: &mut [T],
    dvalues: &mut [T],
) {
    let (stride, wide) = (padded(rows), padded(size));
    for first in block.clone().step_by(ROWS) {
        let left =
            Left { data: &panels.dscores[(first - block.start) * stride..], row_stride: stride, depth_stride: 1 };
        let keys = (first + ROWS).min(rows);
        strip::<T, ROWS>(&mut dqueries[first * wide..], wide, left, &panels.keys, wide, [wide, keys], false);
    }
    for key in (0..block.end).step_by(ROWS) {
        // Queries before the key do not see it; start at the first query row of this block that may.
        let from = key.max(block.start) - block.start;
        let depth = block.len() - from;
        let row = (block.start + from) * wide;
        let left = |data: &'_ [T]| from * stride + key..data.len();
        let [p, ds] = [&panels.probabilities, &panels.dscores].map(|data| Left {
            data: &data[left(data)],
            row_stride: 1,
            depth_stride: stride,
        });
        let extent = [wide, depth];
        strip::<T, ROWS>(&mut dkeys[key * wide..], wide, ds, &panels.queries[row..], wide, extent, true);
        strip::<T, ROWS>(&mut dvalues[key * wide..], wide, p, &panels.dout[row..], wide, extent, true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Philox, Stage};

    fn random(n: usize, row: u32) -> Vec<f64> {
        let mut stream = Philox::new(8, Stage::Init, 0, row);
        (0..n).map(|_| stream.normal()).collect()
    }

    /// The plain form of one sequence: for each head and query, softmax over the keys up to it, then the mean of
    /// values.
    fn plain(qkv: &[f64], heads: Heads) -> (Vec<f64>, Vec<f64>) {
        let (size, row) = (heads.size, heads.row());
        let (mut out, mut lse) = (Vec::new(), Vec::new());
        for i in 0..qkv.len() / row {
            for h in 0..heads.heads {
                let (q, kv) = (&qkv[i * row + h * size..][..size], h / heads.group());
                let dot = |j: usize| {
                    let k = &qkv[j * row + heads.key(kv)..][..size];
                    q.iter().zip(k).map(|(a, b)| a * b).sum::<f64>() / (size as f64).sqrt()
                };
                let scores: Vec<f64> = (0..=i).map(dot).collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
                lse.push(largest + sum.ln());
                out.extend((0..size).map(|d| {
                    let value = |j: usize| qkv[j * row + heads.value(kv) + d];
                    scores.iter().enumerate().map(|(j, s)| (s - largest).exp() / sum * value(j)).sum::<f64>()
                }));
            }
        }
        (out, lse)
    }

    fn assert_close(what: &str, ours: &[f64], theirs: &[f64]) {
        assert_eq!(ours.len(), theirs.len(), "{what}");
        for (a, b) in ours.iter().zip(theirs) {
            assert!((a - b).abs() < 1e-12, "{what}: {a} {b}");
        }
    }

    const SHAPES: [Heads; 4] = [
        Heads { heads: 1, kv_heads: 1, size: 1 },
        Heads { heads: 4, kv_heads: 2, size: 5 },
        Heads { heads: 3, kv_heads: 1, size: 16 },
        Heads { heads: 2, kv_heads: 2, size: 33 },
    ];

    #[test]
    fn agrees_with_the_plain_form() {
        for heads in SHAPES {
            let lengths = [1usize, 0, 3, 17, 70];
            let offsets: Vec<usize> = lengths
                .iter()
                .scan(0, |at, n| Some(std::mem::replace(at, *at + n)))
                .chain([lengths.iter().sum()])
                .collect();
            let n = offsets[lengths.len()];
            let qkv = random(n * heads.row(), heads.size as u32);
            let (mut out, mut lse) = (vec![f64::NAN; n * heads.heads * heads.size], vec![f64::NAN; n * heads.heads]);
            forward(&mut out, &mut lse, &qkv, &offsets, heads);
            let parts = offsets.windows(2).map(|w| plain(&qkv[w[0] * heads.row()..w[1] * heads.row()], heads));
            let (expected, sums): (Vec<Vec<f64>>, Vec<Vec<f64>>) = parts.unzip();
            assert_close(&format!("{heads:?}"), &out, &expected.concat());
            assert_close(&format!("{heads:?} lse"), &lse, &sums.concat());
        }
    }

    /// Five tokens, then one, then three against the cache: the same bits as all nine at once.
    #[test]
    fn a_cache_changes_no_bit() {
        for heads in SHAPES {
            let qkv: Vec<f32> = random(9 * heads.row(), 3).into_iter().map(|x| x as f32).collect();
            let width = heads.heads * heads.size;
            let (mut all, mut lse) = (vec![0f32; 9 * width], vec![0f32; 9 * heads.heads]);
            forward(&mut all, &mut lse, &qkv, &[0, 9], heads);
            let capacity = padded(9);
            let mut keys = vec![f32::NAN; 2 * heads.kv_heads * heads.size * capacity];
            let mut values = vec![0f32; 2 * heads.kv_heads * capacity * padded(heads.size)];
            for (first, count) in [(0, 5), (5, 1), (6, 3)] {
                let rows = &qkv[first * heads.row()..(first + count) * heads.row()];
                let cached = Cached { sequences: &[0, count], slots: &[1], lengths: &[first], capacity };
                crate::cpu::append::append(&mut keys, &mut values, rows, cached, heads);
                let mut out = vec![0f32; count * width];
                forward_cached(&mut out, rows, [&keys, &values], cached, heads);
                assert_eq!(out, all[first * width..(first + count) * width], "{heads:?} from {first}");
            }
        }
    }
}
