//! New tokens on their way into the cache: plain, turned, normalised and turned.

use super::super::engine::normal;
use super::super::{Case, Engine, Output};
use super::DTYPES;
use crate::cpu::attention::padded;
use crate::device::Device;
use crate::error::Result;
use crate::ops::append::{Continued, LayerCache, QueriesKeys, append};
use crate::ops::attention::Heads;
use crate::tensor::Tensor;

const SLOTS: usize = 3;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in DTYPES {
        // With and without vectors, with and without a kernel that normalises; heads that share angles and a rest.
        for [heads, kv_heads, size] in
            [[1, 1, 8], [3, 1, 16], [2, 1, 24], [5, 1, 32], [3, 3, 40], [4, 2, 64], [2, 1, 80], [4, 2, 128]]
        {
            let heads = Heads { heads, kv_heads, size };
            for (what, normed, turned) in [("plain", false, false), ("turned", false, true), ("normed", true, true)] {
                let shape = format!("heads {}:{} HD {size} {what}", heads.heads, heads.kv_heads);
                cases.push(Case::new("append", shape, dtype, move |e| appended(e, heads, normed, turned)));
            }
        }
    }
    cases
}

/// Fills a cache in two steps, so that every position of every slot is written once.
fn appended(e: &Engine, heads: Heads, normed: bool, turned: bool) -> Result<Vec<Output>> {
    let (steps, positions, size) = ([[4, 3, 6], [3, 4, 1]], 7, heads.size);
    let dtype = e.tensor(&[1], &[0.0])?.dtype();
    let cache = LayerCache::new(&e.device, dtype, SLOTS, positions, heads)?;
    let table = e.wide(&[positions, size], &normal(positions * size, 9))?;
    let weights = [e.tensor(&[size], &normal(size, 7))?, e.tensor(&[size], &normal(size, 8))?];
    let before =
        QueriesKeys { norms: normed.then_some(([&weights[0], &weights[1]], 1e-5)), table: turned.then_some(&table) };
    let (mut first, mut outputs) = ([0; SLOTS], Vec::new());
    for (step, lengths) in steps.into_iter().enumerate() {
        let n: usize = lengths.iter().sum();
        let qkv = e.tensor(&[n, heads.row()], &normal(n * heads.row(), step as u32))?;
        let rows = Continued::new(&e.device, &[2, 0, 1], &lengths, &first)?;
        let qkv = match e.device {
            Device::Cpu => {
                let qkv = in_steps(e, &qkv, &before, &rows, heads)?;
                append(&cache, &qkv, &QueriesKeys::default(), &rows, heads)?
            }
            Device::Gpu(_) => append(&cache, &qkv, &before, &rows, heads)?,
        };
        let queries = e.output("queries", &qkv)?;
        let columns = heads.heads * size;
        let values = queries.values.chunks_exact(heads.row()).flat_map(|row| &row[..columns]).copied().collect();
        outputs.push(Output { values, ..queries });
        (0..SLOTS).for_each(|b| first[b] += lengths[b]);
    }
    outputs.extend(contents(e, &cache, positions, heads)?);
    Ok(outputs)
}

/// On the host what is normalised is stored before it is turned, and so rounded.
fn in_steps(e: &Engine, qkv: &Tensor, before: &QueriesKeys<'_>, rows: &Continued, heads: Heads) -> Result<Tensor> {
    let positions = &rows.sequences.positions;
    let normed = QueriesKeys { table: None, ..*before }.apply(qkv, positions, heads)?;
    e.store(&normed)?;
    let turned = QueriesKeys { norms: None, ..*before }.apply(&normed, positions, heads)?;
    e.store(&turned)?;
    Ok(turned)
}

/// Keys and values as [slots, NKV, positions, HD], whatever the device's layout.
fn contents(e: &Engine, cache: &LayerCache, positions: usize, heads: Heads) -> Result<[Output; 2]> {
    let [keys, values] = [("keys", cache.keys()), ("values", cache.values())].map(|(name, t)| e.output(name, t));
    let (mut keys, mut values) = (keys?, values?);
    if e.device == Device::Cpu {
        let (capacity, wide) = (padded(positions), padded(heads.size));
        let places = (0..SLOTS * heads.kv_heads)
            .flat_map(|s| (0..positions).flat_map(move |p| (0..heads.size).map(move |i| (s, p, i))));
        let places: Vec<_> = places.collect();
        keys.values = places.iter().map(|(s, p, i)| keys.values[(s * heads.size + i) * capacity + p]).collect();
        values.values = places.iter().map(|(s, p, i)| values.values[(s * capacity + p) * wide + i]).collect();
    }
    Ok([keys, values])
}
