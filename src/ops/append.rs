//! A cache of keys and values, and what happens to new tokens in front of attention: queries and keys are normalised
//! head by head (Qwen3) and turned by their positions (all but GPT-2), and keys and values are appended. On a GPU one
//! launch. No gradient.

use crate::autograd::refuse_grad;
use crate::cpu;
use crate::cpu::attention::{Cached, Heads, padded};
use crate::device::kernel::{APPEND, Kernel};
use crate::device::launch::Launch;
use crate::device::{Device, Gpu};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::attention::Sequences;
use crate::ops::rms_norm::qk_norm;
use crate::ops::{RowPlan, check, rope};
use crate::tensor::{Tensor, floats};

const PLAIN: Kernel = Kernel::new(&APPEND, "append_bf16", "append_f32");
const NORMED: Kernel = Kernel::new(&APPEND, "append_normed_bf16", "append_normed_f32");
/// Heads that a thread of the plain kernel turns by the same angles.
const HEADS: usize = 4;

/// What becomes of queries and keys before they meet.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct QueriesKeys<'a> {
    /// Weights [HD] of the normalisation of queries and of keys, and its epsilon.
    pub(crate) norms: Option<([&'a Tensor; 2], f64)>,
    /// Angles of the positions: see [`rope::rope`].
    pub(crate) table: Option<&'a Tensor>,
}

impl QueriesKeys<'_> {
    /// qkv [N, (NH + 2 NKV) HD] with queries and keys as they meet, for tokens at `positions` [N].
    pub(crate) fn apply(&self, qkv: &Tensor, positions: &Tensor, heads: Heads) -> Result<Tensor> {
        let normed = match self.norms {
            Some((weights, eps)) => qk_norm(qkv, weights, heads, eps)?,
            None => qkv.clone(),
        };
        match self.table {
            Some(table) => rope::queries_keys(&normed, table, positions, heads),
            None => Ok(normed),
        }
    }
}

/// Keys and values of one layer: keys [slots, NKV, HD, capacity], values [slots, NKV, capacity, padded HD]; on a GPU
/// both [slots, NKV, capacity, HD].
#[derive(Debug)]
pub(crate) struct LayerCache {
    pub(super) keys: Tensor,
    pub(super) values: Tensor,
    slots: usize,
    /// Positions that a sequence may have, and those that a slot has room for.
    positions: usize,
    pub(super) capacity: usize,
}

impl LayerCache {
    /// Room for `slots` sequences of up to `positions` positions.
    pub(crate) fn new(device: &Device, dtype: DType, slots: usize, positions: usize, heads: Heads) -> Result<Self> {
        if let Device::Gpu(_) = device {
            let shape = [slots, heads.kv_heads, positions, heads.size];
            let [keys, values] = [(); 2].map(|()| Tensor::empty(device, dtype, &shape));
            return Ok(Self { keys: keys?, values: values?, slots, positions, capacity: positions });
        }
        let capacity = padded(positions);
        let keys = Tensor::zeros(device, dtype, &[slots, heads.kv_heads, heads.size, capacity])?;
        let values = Tensor::zeros(device, dtype, &[slots, heads.kv_heads, capacity, padded(heads.size)])?;
        Ok(Self { keys, values, slots, positions, capacity })
    }
}

impl LayerCache {
    pub(crate) fn keys(&self) -> &Tensor {
        &self.keys
    }

    pub(crate) fn values(&self) -> &Tensor {
        &self.values
    }
}

/// Appends the keys and values of qkv [N, (NH + 2 NKV) HD] to the cache; returns qkv with the queries as they meet the
/// keys. On a GPU that is qkv itself.
pub(crate) fn append(
    cache: &LayerCache,
    qkv: &Tensor,
    before: &QueriesKeys<'_>,
    rows: &Continued,
    heads: Heads,
) -> Result<Tensor> {
    refuse_grad("append", &[qkv])?;
    let shapes = qkv.width() == heads.row() && qkv.rows() == rows.sequences.tokens();
    let table_fits = before.table.is_none_or(|t| t.width() == heads.size && t.rows() >= rows.sequences.end);
    let weights_fit = before.norms.is_none_or(|(weights, _)| weights.iter().all(|w| w.len() == heads.size));
    check("append", shapes && table_fits && weights_fit, &[qkv])?;
    if rows.sequences.end > cache.positions || rows.slots.read::<i32>().iter().any(|s| *s as usize >= cache.slots) {
        return Err(Error::failure("cache-full", "a sequence does not fit the key and value cache"));
    }
    if let Device::Gpu(gpu) = qkv.device() {
        return append_on(gpu, cache, qkv, before, rows, heads);
    }
    let qkv = before.apply(qkv, &rows.sequences.positions, heads)?;
    floats!(qkv, T => {
        let (mut keys, mut values) = (cache.keys.write::<T>(), cache.values.write::<T>());
        rows.on_host(cache.capacity, |cached| {
            cpu::append::append(&mut keys, &mut values, &qkv.read::<T>(), cached, heads);
        });
        Ok(())
    })?;
    Ok(qkv)
}

fn append_on(
    gpu: &Gpu,
    cache: &LayerCache,
    qkv: &Tensor,
    before: &QueriesKeys<'_>,
    rows: &Continued,
    heads: Heads,
) -> Result<Tensor> {
    let (count, size) = (heads.row() / heads.size, heads.size);
    let (norms, qkv) = match (before.norms, before.table) {
        (Some(norms), Some(_)) if [32, 64, 128].contains(&size) => (Some(norms), qkv.clone()),
        (Some((weights, eps)), _) => (None, qk_norm(qkv, weights, heads, eps)?),
        (None, _) => (None, qkv.clone()),
    };
    let launch = match norms {
        Some(_) => {
            let plan = RowPlan::new(size);
            let blocks = (qkv.rows() * count).div_ceil(plan.teams);
            Launch::new(gpu, NORMED.of(qkv.dtype())?).blocks(blocks, plan.threads)
        }
        None => {
            let vector = 16 / qkv.dtype().bytes();
            let run = if (size / 2).is_multiple_of(vector) { vector } else { 1 };
            let blocks = (qkv.rows() * count.div_ceil(HEADS) * size / 2).div_ceil(run * 256);
            Launch::new(gpu, PLAIN.of(qkv.dtype())?).blocks(blocks, 256)
        }
    };
    let launch = launch.tensor(&cache.keys).tensor(&cache.values).tensor(&qkv);
    let launch = match norms {
        Some(([query, key], _)) => launch.tensor(query).tensor(key),
        None => launch,
    };
    let launch = launch
        .optional(before.table)
        .tensor(&rows.token_slots)
        .tensor(&rows.sequences.positions)
        .long(qkv.rows())
        .sizes([heads.heads, heads.kv_heads, size, cache.capacity]);
    match norms {
        Some((_, eps)) => launch.scalar(eps).run(),
        None => launch.run(),
    }?;
    Ok(qkv)
}

/// Tokens that continue sequences of which a cache holds the beginning, one sequence a slot.
#[derive(Debug)]
pub(crate) struct Continued {
    pub(crate) sequences: Sequences,
    /// The slot of each sequence, [B], i32.
    pub(super) slots: Tensor,
    /// The slot of each token, [N], i32.
    token_slots: Tensor,
    /// The position of each sequence's first new token, [B], i32.
    pub(super) first: Tensor,
    /// Whether each sequence has exactly one new token.
    pub(super) one_each: bool,
}

impl Continued {
    /// Sequence b has lengths[b] new tokens from position first[b] on, and lives in slots[b].
    pub(crate) fn new(device: &Device, slots: &[usize], lengths: &[usize], first: &[usize]) -> Result<Self> {
        check("cached sequences", slots.len() == lengths.len() && slots.len() == first.len(), &[])?;
        let sequences = Sequences::continued(device, lengths, first)?;
        let ints = |values: Vec<i32>| Tensor::new(device, &[values.len()], values);
        let token_slots = slots.iter().zip(lengths).flat_map(|(s, n)| std::iter::repeat_n(*s as i32, *n)).collect();
        Ok(Self {
            sequences,
            slots: ints(slots.iter().map(|s| *s as i32).collect())?,
            token_slots: ints(token_slots)?,
            first: ints(first.iter().map(|f| *f as i32).collect())?,
            one_each: lengths.iter().all(|n| *n == 1),
        })
    }

    /// One new token a sequence; slots and positions [B] may change on the device between uses, the positions up to
    /// `end`.
    pub(crate) fn one_each(slots: &Tensor, positions: &Tensor, end: usize) -> Self {
        let sequences = Sequences::one_each(positions, end);
        let positions = positions.detach();
        Self { sequences, slots: slots.detach(), token_slots: slots.detach(), first: positions, one_each: true }
    }

    /// The same for the host's loops, of a cache with room for `capacity` positions a slot.
    pub(super) fn on_host(&self, capacity: usize, work: impl FnOnce(Cached<'_>)) {
        let sizes = |t: &Tensor| t.read::<i32>().iter().map(|x| *x as usize).collect::<Vec<_>>();
        let (slots, lengths) = (sizes(&self.slots), sizes(&self.first));
        work(Cached { sequences: &self.sequences.offsets, slots: &slots, lengths: &lengths, capacity });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_refuses_what_does_not_fit() {
        let heads = Heads { heads: 2, kv_heads: 1, size: 8 };
        for device in [Device::Cpu, Device::parse("emulated").unwrap()] {
            let cache = LayerCache::new(&device, device.dtype(), 2, 6, heads).unwrap();
            let attend = |slot: usize, n: usize, first: usize, table: Option<usize>| {
                let qkv = Tensor::zeros(&device, device.dtype(), &[n, heads.row()]).unwrap();
                let table = table.map(|rows| Tensor::zeros(&device, DType::F32, &[rows, heads.size]).unwrap());
                let rows = Continued::new(&device, &[slot], &[n], &[first]).unwrap();
                append(&cache, &qkv, &QueriesKeys { norms: None, table: table.as_ref() }, &rows, heads)
                    .map(|_| ())
                    .map_err(|e| e.id().to_owned())
            };
            assert_eq!(attend(1, 6, 0, Some(6)), Ok(()));
            assert_eq!(attend(1, 1, 5, None), Ok(()));
            assert_eq!(attend(1, 2, 5, None).unwrap_err(), "cache-full");
            assert_eq!(attend(2, 1, 0, None).unwrap_err(), "cache-full");
            assert_eq!(attend(1, 6, 0, Some(5)).unwrap_err(), "shape");
        }
    }
}
