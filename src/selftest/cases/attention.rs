//! Attention: training forward and backward over packed sequences, and new tokens against a cache.

use super::super::engine::normal;
use super::super::{Case, Engine, Output};
use super::DTYPES;
use crate::error::Result;
use crate::ops::append::{Continued, LayerCache, QueriesKeys};
use crate::ops::attention::{Heads, Sequences, attention};

/// Query heads, key heads, head size.
const HEADS: [[usize; 3]; 7] = [[1, 1, 64], [4, 2, 64], [6, 1, 64], [2, 2, 8], [3, 1, 40], [2, 1, 80], [4, 2, 128]];

/// Lengths of the sequences: one token, the tile (64) and its neighbours, empty sequences, a mixture.
const LENGTHS: [&[usize]; 6] = [&[1], &[31, 2], &[63, 0, 64, 65], &[97], &[5, 130, 1, 0], &[200]];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in DTYPES {
        for [heads, kv_heads, size] in HEADS {
            let heads = Heads { heads, kv_heads, size };
            for lengths in LENGTHS {
                // Every head shape sees the mixture; the widest lists go with two of them.
                if lengths.iter().sum::<usize>() > 100 && ![64, 128].contains(&size) {
                    continue;
                }
                let shape = format!("heads {}:{} HD {size} lengths {lengths:?}", heads.heads, heads.kv_heads);
                cases.push(Case::new("attention", shape, dtype, move |e| training(e, lengths, heads, 1.0)));
            }
            let shape = format!("heads {}:{} HD {size}", heads.heads, heads.kv_heads);
            cases.push(Case::new("attention", format!("{shape} large scores"), dtype, move |e| {
                training(e, &[70], heads, 4.0)
            }));
            cases.push(Case::new("attention", format!("{shape} cached"), dtype, move |e| cached(e, heads)));
        }
        let odd = Heads { heads: 2, kv_heads: 1, size: 24 };
        cases.push(Case::new("attention", "heads 2:1 HD 24 peaks", dtype, move |e| {
            continued(e, odd, odd, &[[33, 2], [1, 1], [3, 40]])
        }));
        cases.push(Case::new("attention", "heads 2:1 HD 24 rising scores", dtype, move |e| {
            training_of(e, &[70], odd, &rows(&[70], odd, Scores::Rising, 0))
        }));
        for size in [64, 128] {
            let heads = Heads { heads: 4, kv_heads: 2, size };
            let shape = format!("heads 4:2 HD {size}");
            cases.push(Case::new("attention", format!("{shape} peaks"), dtype, move |e| {
                training_of(e, &[128], heads, &rows(&[128], heads, Scores::Peaks, 0))
            }));
            cases.push(Case::new("attention", format!("{shape} rising scores"), dtype, move |e| {
                training_of(e, &[144], heads, &rows(&[144], heads, Scores::Rising, 0))
            }));
            cases.push(Case::new("attention", format!("{shape} cached peaks"), dtype, move |e| {
                continued(e, heads, heads, &[[80, 5], [64, 140]])
            }));
            let wide = Heads { heads: 16, kv_heads: 1, size };
            cases.push(Case::new("attention", format!("heads 16:1 HD {size} decoded"), dtype, move |e| {
                continued(e, Heads { heads: 1, ..wide }, wide, &[[62, 126], [1, 1], [1, 1], [1, 1]])
            }));
        }
    }
    cases
}

fn training(e: &Engine, lengths: &[usize], heads: Heads, scale: f64) -> Result<Vec<Output>> {
    let n: usize = lengths.iter().sum();
    let values: Vec<f64> = normal(n * heads.row(), 1).iter().map(|x| x * scale).collect();
    training_of(e, lengths, heads, &values)
}

fn training_of(e: &Engine, lengths: &[usize], heads: Heads, values: &[f64]) -> Result<Vec<Output>> {
    let qkv = e.parameter(&[lengths.iter().sum(), heads.row()], values)?;
    let sequences = Sequences::new(&e.device, lengths)?;
    let out = attention(&qkv, &sequences, heads)?;
    let forward = e.output("out", &out)?;
    e.backward(&[&out])?;
    Ok(vec![forward, e.gradient("dqkv", &qkv)?])
}

/// Two prompts, then three single tokens each, then a stretch of tokens at once; slots in another order than rows.
fn cached(e: &Engine, heads: Heads) -> Result<Vec<Output>> {
    let dtype = e.tensor(&[1], &[0.0])?.dtype();
    let cache = LayerCache::new(&e.device, dtype, 3, 160, heads)?;
    let (slots, mut lengths) = ([2, 0], [0, 0]);
    let mut outputs = Vec::new();
    for (step, new) in [[66, 5], [1, 1], [1, 1], [1, 1], [7, 70]].into_iter().enumerate() {
        let n = new[0] + new[1];
        let qkv = e.tensor(&[n, heads.row()], &normal(n * heads.row(), step as u32))?;
        let rows = Continued::new(&e.device, &slots, &new, &lengths)?;
        let out = cache.attention(&qkv, &QueriesKeys::default(), &rows, heads)?;
        outputs.push(e.output("out", &out)?);
        lengths = [lengths[0] + new[0], lengths[1] + new[1]];
    }
    Ok(outputs)
}

/// What the scores of a sequence are like.
#[derive(Clone, Copy)]
enum Scores {
    /// One key has all the weight, and its score overflows the exponential unless the maximum is taken off: any key
    /// that the query sees, the query's own, or the next one, which it must not see. The first tile has the largest
    /// scores for even key heads and the last one for odd ones.
    Peaks,
    /// Each tile's largest score is a little above that of the tile before.
    Rising,
}

/// Rows of sequences that are continued at the positions `first`.
fn rows_from(first: &[usize], lengths: &[usize], heads: Heads, scores: Scores, stream: u32) -> Vec<f64> {
    let Heads { heads: count, kv_heads, size } = heads;
    let n: usize = lengths.iter().sum();
    let positions = first.iter().zip(lengths).flat_map(|(first, length)| *first..first + length);
    let mut values = normal(n * heads.row(), 70 + stream);
    // Small heads have several keys in one direction, whose scores must not lose too many digits.
    let peak = if size < 64 { 12.0 } else { 60.0 };
    for (row, at) in values.chunks_exact_mut(heads.row()).zip(positions) {
        let (queries, others) = row.split_at_mut(count * size);
        for (h, query) in queries.chunks_exact_mut(size).enumerate() {
            match scores {
                Scores::Rising => query.iter_mut().for_each(|x| *x += 1.0),
                Scores::Peaks => {
                    let key = if count == 4 && h > 1 { at + h - 2 } else { seen(at, h, count == 16) };
                    query.iter_mut().for_each(|x| *x *= 0.5);
                    query[key % size] = peak;
                }
            }
        }
        for (h, key) in others[..kv_heads * size].chunks_exact_mut(size).enumerate() {
            match scores {
                Scores::Rising => key.iter_mut().for_each(|x| *x += at as f64 * 0.03 / (size as f64).sqrt()),
                Scores::Peaks => {
                    key.iter_mut().for_each(|x| *x *= 0.5);
                    let tile = at / 64;
                    key[at % size] = peak * [6, 5, 4][if h % 2 == 0 { tile } else { 2 - tile }] as f64 / 6.0;
                }
            }
        }
    }
    values
}

/// A key of the first tile: for rows and heads of a tile, such that each place in the registers of a warp has its turn.
/// In decode the heads are the rows.
fn seen(at: usize, head: usize, decode: bool) -> usize {
    let (row, turn) = if decode { (head, at % 2 * 8) } else { (at, at / 16 * 8 + head * 8) };
    let place = (row + turn) % 8 + turn % 16;
    let lane = (row / 8 + at / 32 + head) % 4;
    let key = place / 4 * 16 + place / 2 % 2 * 8 + lane * 2 + place % 2;
    if key <= at { key } else { (at * 37 + head * 29) % (at + 1) }
}

fn rows(lengths: &[usize], heads: Heads, scores: Scores, stream: u32) -> Vec<f64> {
    rows_from(&vec![0; lengths.len()], lengths, heads, scores, stream)
}

/// Two sequences in steps of new tokens: the first with `prompt` heads, the others with `heads`; scores have peaks in
/// one cache and rise in another.
fn continued(e: &Engine, prompt: Heads, heads: Heads, steps: &[[usize; 2]]) -> Result<Vec<Output>> {
    let dtype = e.tensor(&[1], &[0.0])?.dtype();
    let mut outputs = Vec::new();
    for scores in [Scores::Peaks, Scores::Rising] {
        let cache = LayerCache::new(&e.device, dtype, 2, 160, heads)?;
        let mut lengths = [0, 0];
        for (step, new) in steps.iter().enumerate() {
            let heads = if step == 0 { prompt } else { heads };
            let values = rows_from(&lengths, new, heads, scores, step as u32);
            let qkv = e.tensor(&[new.iter().sum(), heads.row()], &values)?;
            let rows = Continued::new(&e.device, &[1, 0], new, &lengths)?;
            outputs.push(e.output("out", &cache.attention(&qkv, &QueriesKeys::default(), &rows, heads)?)?);
            lengths = [lengths[0] + new[0], lengths[1] + new[1]];
        }
    }
    Ok(outputs)
}
