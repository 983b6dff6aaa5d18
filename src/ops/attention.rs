//! Causal, grouped-query attention over packed sequences, for training and against a cache of keys and values.
//! Forward, per head: S = Q K^T / sqrt(HD), P = softmax(S over keys at or before the query), O = P V. Backward:
//! dV = P^T dO, dS = P (dO V^T - rowsum(dO O)), dQ = dS K / sqrt(HD), dK = dS^T Q / sqrt(HD). Saved: qkv, O and
//! lse = logsumexp(S) [N, NH]. Sources: Vaswani et al., 2017; Ainslie et al., 2023 (grouped queries); Dao, 2023.

use std::sync::Arc;

use crate::autograd::record;
use crate::cpu;
pub(crate) use crate::cpu::attention::Heads;
use crate::device::kernel::{ATTENTION, Entry, Kernel};
use crate::device::launch::Launch;
use crate::device::{Device, Gpu};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::append::{Continued, LayerCache, QueriesKeys, append};
use crate::ops::{check, dout};
use crate::tensor::{Tensor, floats};

/// Kernels for one size of padded head: bf16 heads up to 64 and up to 128, f32 heads of any size.
struct Kernels {
    forward: Entry,
    cached: Entry,
    decode: Entry,
    backward_queries: Entry,
    backward_keys: Entry,
    /// Dynamic shared bytes of a block, and of one of `backward_keys`.
    shared: [usize; 2],
}

const HEADS_64: Kernels = Kernels {
    forward: Entry::new(&ATTENTION, "attention_forward_64_bf16"),
    cached: Entry::new(&ATTENTION, "attention_forward_cached_64_bf16"),
    decode: Entry::new(&ATTENTION, "attention_forward_decode_64_bf16"),
    backward_queries: Entry::new(&ATTENTION, "attention_backward_queries_64_bf16"),
    backward_keys: Entry::new(&ATTENTION, "attention_backward_keys_64_bf16"),
    shared: [32768, 33792],
};
const HEADS_128: Kernels = Kernels {
    forward: Entry::new(&ATTENTION, "attention_forward_128_bf16"),
    cached: Entry::new(&ATTENTION, "attention_forward_cached_128_bf16"),
    decode: Entry::new(&ATTENTION, "attention_forward_decode_128_bf16"),
    backward_queries: Entry::new(&ATTENTION, "attention_backward_queries_128_bf16"),
    backward_keys: Entry::new(&ATTENTION, "attention_backward_keys_128_bf16"),
    shared: [65536, 66560],
};
const HEADS_F32: Kernels = Kernels {
    forward: Entry::new(&ATTENTION, "attention_forward_f32"),
    cached: Entry::new(&ATTENTION, "attention_forward_cached_f32"),
    decode: Entry::new(&ATTENTION, "attention_forward_decode_f32"),
    backward_queries: Entry::new(&ATTENTION, "attention_backward_queries_f32"),
    backward_keys: Entry::new(&ATTENTION, "attention_backward_keys_f32"),
    shared: [0, 0],
};
const DELTA: Kernel = Kernel::new(&ATTENTION, "attention_backward_delta_bf16", "attention_backward_delta_f32");

/// Positions in a tile of the kernels, and threads of a block.
const TILE: usize = 64;
const THREADS: usize = 128;

impl Kernels {
    fn of(qkv: &Tensor, heads: Heads) -> Result<&'static Self> {
        // A rehearsal of the CPU, which computes any size, launches nothing.
        let served = heads.size.is_multiple_of(8) && heads.size <= 128 || qkv.device().is_cpu();
        let shapes = served && heads.heads.is_multiple_of(heads.kv_heads);
        check("attention on a GPU (heads of 8, 16, ... 128)", shapes, &[qkv])?;
        Ok(match (qkv.dtype(), heads.size) {
            (DType::F32, _) => &HEADS_F32,
            (_, 0..=64) => &HEADS_64,
            _ => &HEADS_128,
        })
    }
}

/// Where sequences begin and end in a packed batch, and each token's position in its own sequence.
#[derive(Clone, Debug)]
pub(crate) struct Sequences {
    /// Sequence b is rows offsets[b]..offsets[b + 1].
    pub(crate) offsets: Arc<[usize]>,
    /// [N], i32.
    pub(crate) positions: Tensor,
    /// Positions that the longest sequence reaches.
    pub(crate) end: usize,
    on_gpu: Option<Plan>,
}

/// What a GPU's kernels know of a batch.
#[derive(Clone, Debug)]
struct Plan {
    /// [B + 1], i32.
    offsets: Tensor,
    /// [tiles, 2], i32: sequence, and which stretch of [`TILE`] positions; the longest work first.
    tiles: Tensor,
}

impl Plan {
    fn new(device: &Device, offsets: &[usize], first: &[usize]) -> Result<Self> {
        let mut tiles: Vec<[i32; 2]> = Vec::new();
        for (b, (rows, first)) in offsets.windows(2).zip(first).enumerate() {
            let end = first + rows[1] - rows[0];
            if rows[1] > rows[0] {
                tiles.extend((first / TILE..=(end - 1) / TILE).map(|t| [b as i32, t as i32]));
            }
        }
        tiles.sort_by_key(|[b, t]| (std::cmp::Reverse(*t), *b));
        let ints = |values: Vec<i32>| Tensor::new(device, &[values.len()], values);
        Ok(Self {
            offsets: ints(offsets.iter().map(|o| *o as i32).collect())?,
            tiles: Tensor::new(device, &[tiles.len(), 2], tiles.concat())?,
        })
    }
}

impl Sequences {
    /// Sequences of these lengths, each from position 0.
    pub(crate) fn new(device: &Device, lengths: &[usize]) -> Result<Self> {
        Self::continued(device, lengths, &vec![0; lengths.len()])
    }

    /// Sequences of these lengths whose first tokens stand at the positions `first`.
    pub(super) fn continued(device: &Device, lengths: &[usize], first: &[usize]) -> Result<Self> {
        let mut offsets = vec![0];
        let mut positions = Vec::new();
        let end = lengths.iter().zip(first).map(|(length, first)| first + length).max().unwrap_or(0);
        for (length, first) in lengths.iter().zip(first) {
            positions.extend((*first..first + length).map(|p| p as i32));
            offsets.push(positions.len());
        }
        let positions = Tensor::new(device, &[positions.len()], positions)?;
        let on_gpu = match device {
            Device::Cpu => None,
            Device::Gpu(_) => Some(Plan::new(device, &offsets, first)?),
        };
        Ok(Self { offsets: offsets.into(), positions, end, on_gpu })
    }

    /// One token a sequence, at positions [B] that may change on the device up to `end`.
    pub(super) fn one_each(positions: &Tensor, end: usize) -> Self {
        Self { offsets: (0..=positions.len()).collect(), positions: positions.detach(), end, on_gpu: None }
    }

    /// Tokens in all sequences.
    pub(crate) fn tokens(&self) -> usize {
        self.positions.len()
    }

    fn plan(&self) -> Result<&Plan> {
        self.on_gpu.as_ref().ok_or_else(|| Error::failure("sequences-device", "the sequences lie on another device"))
    }
}

/// out [N, NH HD] from qkv [N, (NH + 2 NKV) HD].
pub(crate) fn attention(qkv: &Tensor, sequences: &Sequences, heads: Heads) -> Result<Tensor> {
    check("attention", qkv.width() == heads.row() && qkv.rows() == sequences.tokens(), &[qkv])?;
    let (mut out, lse) = match qkv.device() {
        Device::Gpu(gpu) => forward(gpu, qkv, sequences, heads),
        Device::Cpu => floats!(qkv, T => {
            let rows = qkv.rows();
            let mut out = cpu::pool::take::<T>(rows * heads.heads * heads.size);
            let mut lse = cpu::pool::take::<T>(rows * heads.heads);
            cpu::attention::forward(&mut out, &mut lse, &qkv.read::<T>(), &sequences.offsets, heads);
            let out = Tensor::new(qkv.device(), &[rows, heads.heads * heads.size], out)?;
            Ok((out, Tensor::new(qkv.device(), &[rows, heads.heads], lse)?))
        }),
    }?;
    let (qkv_saved, out_saved, sequences) = (qkv.detach(), out.detach(), sequences.clone());
    let rule = move |grads: &[Option<Tensor>]| {
        let dout = dout(grads, 0)?;
        let dqkv = match dout.device() {
            Device::Gpu(gpu) => backward(gpu, dout, [&qkv_saved, &out_saved, &lse], &sequences, heads),
            Device::Cpu => floats!(dout, T => {
                let mut dqkv = cpu::pool::take::<T>(qkv_saved.len());
                let (qkv, out, lse) = (qkv_saved.read::<T>(), out_saved.read::<T>(), lse.read::<T>());
                let offsets = &sequences.offsets;
                cpu::attention::backward(&mut dqkv, &dout.read::<T>(), &qkv, &out, &lse, offsets, heads);
                Tensor::new(dout.device(), qkv_saved.shape(), dqkv)
            }),
        }?;
        Ok(vec![Some(dqkv)])
    };
    record("attention", std::slice::from_mut(&mut out), &[qkv], Box::new(rule));
    Ok(out)
}

/// out [N, NH HD] and lse [N, NH].
fn forward(gpu: &Gpu, qkv: &Tensor, sequences: &Sequences, heads: Heads) -> Result<(Tensor, Tensor)> {
    let (kernels, plan) = (Kernels::of(qkv, heads)?, sequences.plan()?);
    let out = Tensor::empty(qkv.device(), qkv.dtype(), &[qkv.rows(), heads.heads * heads.size])?;
    let lse = Tensor::empty(qkv.device(), DType::F32, &[qkv.rows(), heads.heads])?;
    Launch::new(gpu, kernels.forward)
        .grid([heads.heads, plan.tiles.rows(), 1], THREADS)
        .shared(kernels.shared[0])
        .out(&out)
        .out(&lse)
        .tensor(qkv)
        .tensor(&plan.offsets)
        .tensor(&plan.tiles)
        .sizes([heads.heads, heads.kv_heads, heads.size])
        .scalar(scale(heads))
        .run()?;
    Ok((out, lse))
}

fn scale(heads: Heads) -> f64 {
    1.0 / (heads.size as f64).sqrt()
}

/// dqkv: the columns of queries from one kernel, those of keys and values from another, so that no block waits.
fn backward(
    gpu: &Gpu,
    dout: &Tensor,
    [qkv, out, lse]: [&Tensor; 3],
    sequences: &Sequences,
    heads: Heads,
) -> Result<Tensor> {
    let (kernels, plan) = (Kernels::of(qkv, heads)?, sequences.plan()?);
    let delta = Tensor::empty(qkv.device(), DType::F32, lse.shape())?;
    Launch::new(gpu, DELTA.of(dout.dtype())?)
        .blocks(lse.len().div_ceil(16), THREADS)
        .out(&delta)
        .tensor(dout)
        .tensor(out)
        .long(lse.len())
        .size(heads.size)
        .run()?;
    let dqkv = Tensor::empty(qkv.device(), qkv.dtype(), qkv.shape())?;
    let [shared, shared_keys] = kernels.shared;
    for (entry, width, shared) in
        [(kernels.backward_queries, heads.heads, shared), (kernels.backward_keys, heads.kv_heads, shared_keys)]
    {
        Launch::new(gpu, entry)
            .grid([width, plan.tiles.rows(), 1], THREADS)
            .shared(shared)
            .tensor(&dqkv)
            .tensor(dout)
            .tensor(qkv)
            .tensor(lse)
            .tensor(&delta)
            .tensor(&plan.offsets)
            .tensor(&plan.tiles)
            .sizes([heads.heads, heads.kv_heads, heads.size])
            .scalar(scale(heads))
            .run()?;
    }
    Ok(dqkv)
}

impl LayerCache {
    /// out [N, NH HD] of new tokens qkv [N, row], which continue what `rows` says, after [`append`]. No gradient.
    pub(crate) fn attention(
        &self,
        qkv: &Tensor,
        before: &QueriesKeys<'_>,
        rows: &Continued,
        heads: Heads,
    ) -> Result<Tensor> {
        let qkv = &append(self, qkv, before, rows, heads)?;
        if let Device::Gpu(gpu) = qkv.device() {
            return self.attention_on(gpu, qkv, rows, heads);
        }
        floats!(qkv, T => {
            let mut out = cpu::pool::take::<T>(qkv.rows() * heads.heads * heads.size);
            let cache = [&self.keys.read::<T>()[..], &self.values.read::<T>()[..]];
            rows.on_host(self.capacity, |cached| {
                cpu::attention::forward_cached(&mut out, &qkv.read::<T>(), cache, cached, heads);
            });
            Tensor::new(qkv.device(), &[qkv.rows(), heads.heads * heads.size], out)
        })
    }

    fn attention_on(&self, gpu: &Gpu, qkv: &Tensor, rows: &Continued, heads: Heads) -> Result<Tensor> {
        let kernels = Kernels::of(qkv, heads)?;
        let out = Tensor::empty(qkv.device(), qkv.dtype(), &[qkv.rows(), heads.heads * heads.size])?;
        let plan = if rows.one_each { None } else { Some(rows.sequences.plan()?) };
        let launch = match plan {
            None => {
                Launch::new(gpu, kernels.decode).grid([heads.kv_heads * heads.group().div_ceil(16), qkv.rows(), 1], 32)
            }
            Some(plan) => Launch::new(gpu, kernels.cached).grid([heads.heads, plan.tiles.rows(), 1], THREADS),
        };
        let launch = launch.shared(kernels.shared[0]).out(&out).tensor(qkv).tensor(&self.keys).tensor(&self.values);
        let launch = match plan {
            None => launch.tensor(&rows.slots).tensor(&rows.first),
            Some(plan) => launch.tensor(&plan.offsets).tensor(&rows.slots).tensor(&rows.first).tensor(&plan.tiles),
        };
        launch.sizes([heads.heads, heads.kv_heads, heads.size, self.capacity]).scalar(scale(heads)).run()?;
        Ok(out)
    }
}
