//! Causal, grouped-query attention over packed sequences, for training and against a cache of keys and values.
//! Forward, per head: S = Q K^T / sqrt(HD), P = softmax(S over keys at or before the query), O = P V. Backward:
//! dV = P^T dO, dS = P (dO V^T - rowsum(dO O)), dQ = dS K / sqrt(HD), dK = dS^T Q / sqrt(HD). Saved: qkv, O and
//! lse = logsumexp(S) [N, NH]. Sources: Vaswani et al., 2017; Ainslie et al., 2023 (grouped queries); Dao, 2023.

use std::sync::Arc;

use crate::autograd::{record, refuse_grad};
use crate::cpu;
pub(crate) use crate::cpu::attention::Heads;
use crate::cpu::attention::{Cached, padded};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::{check, dout};
use crate::tensor::{Tensor, floats};

/// Where sequences begin and end in a packed batch, and each token's position in its own sequence.
#[derive(Clone, Debug)]
pub(crate) struct Sequences {
    /// Sequence b is rows offsets[b]..offsets[b + 1].
    pub(crate) offsets: Arc<[usize]>,
    /// [N], i32.
    pub(crate) positions: Tensor,
}

impl Sequences {
    /// Sequences of these lengths, each from position 0.
    pub(crate) fn new(device: &Device, lengths: &[usize]) -> Result<Self> {
        Self::continued(device, lengths, &vec![0; lengths.len()])
    }

    /// Sequences of these lengths whose first tokens stand at the positions `first`.
    pub(crate) fn continued(device: &Device, lengths: &[usize], first: &[usize]) -> Result<Self> {
        let mut offsets = vec![0];
        let mut positions = Vec::new();
        for (length, first) in lengths.iter().zip(first) {
            positions.extend((*first..first + length).map(|p| p as i32));
            offsets.push(positions.len());
        }
        let positions = Tensor::new(device, &[positions.len()], positions)?;
        Ok(Self { offsets: offsets.into(), positions })
    }

    /// Tokens in all sequences.
    pub(crate) fn tokens(&self) -> usize {
        self.positions.len()
    }
}

/// out [N, NH HD] from qkv [N, (NH + 2 NKV) HD].
pub(crate) fn attention(qkv: &Tensor, sequences: &Sequences, heads: Heads) -> Result<Tensor> {
    check("attention", qkv.width() == heads.row() && qkv.rows() == sequences.tokens(), &[qkv])?;
    let (mut out, lse) = match qkv.device() {
        Device::Cpu => floats!(qkv, T => {
            let rows = qkv.rows();
            let mut out = cpu::pool::take::<T>(rows * heads.heads * heads.size);
            let mut lse = cpu::pool::take::<T>(rows * heads.heads);
            cpu::attention::forward(&mut out, &mut lse, &qkv.read::<T>(), &sequences.offsets, heads);
            let out = Tensor::new(qkv.device(), &[rows, heads.heads * heads.size], out)?;
            Ok((out, Tensor::new(qkv.device(), &[rows, heads.heads], lse)?))
        }),
    }?;
    let (qkv_saved, out_saved, offsets) = (qkv.detach(), out.detach(), sequences.offsets.clone());
    let rule = move |grads: &[Option<Tensor>]| {
        let dout = dout(grads, 0)?;
        let dqkv = match dout.device() {
            Device::Cpu => floats!(dout, T => {
                let mut dqkv = cpu::pool::take::<T>(qkv_saved.len());
                let (qkv, out, lse) = (qkv_saved.read::<T>(), out_saved.read::<T>(), lse.read::<T>());
                cpu::attention::backward(&mut dqkv, &dout.read::<T>(), &qkv, &out, &lse, &offsets, heads);
                Tensor::new(dout.device(), qkv_saved.shape(), dqkv)
            }),
        }?;
        Ok(vec![Some(dqkv)])
    };
    record("attention", std::slice::from_mut(&mut out), &[qkv], Box::new(rule));
    Ok(out)
}

/// Keys and values of one layer: keys [slots, NKV, HD, capacity], values [slots, NKV, capacity, padded HD].
#[derive(Debug)]
pub(crate) struct LayerCache {
    keys: Tensor,
    values: Tensor,
    slots: usize,
    capacity: usize,
}

impl LayerCache {
    /// Room for `slots` sequences of up to `positions` positions.
    pub(crate) fn new(device: &Device, dtype: DType, slots: usize, positions: usize, heads: Heads) -> Self {
        let capacity = padded(positions);
        let keys = Tensor::zeros(device, dtype, &[slots, heads.kv_heads, heads.size, capacity]);
        let values = Tensor::zeros(device, dtype, &[slots, heads.kv_heads, capacity, padded(heads.size)]);
        Self { keys, values, slots, capacity }
    }

    /// out [N, NH HD] of new tokens qkv [N, row] that continue the sequences in `slots`, each of which holds `lengths`
    /// positions already; their keys and values are appended. No gradient.
    pub(crate) fn attention(
        &self,
        qkv: &Tensor,
        sequences: &Sequences,
        [slots, lengths]: [&[usize]; 2],
        heads: Heads,
    ) -> Result<Tensor> {
        refuse_grad("cached attention", &[qkv])?;
        let offsets = &sequences.offsets;
        let fits = offsets.windows(2).zip(lengths).all(|(w, l)| w[1] - w[0] + l <= self.capacity);
        let rows = qkv.width() == heads.row() && slots.len() + 1 == offsets.len() && lengths.len() == slots.len();
        check("cached attention", rows, &[qkv])?;
        if !fits || slots.iter().any(|s| *s >= self.slots) {
            return Err(Error::failure("cache-full", "a sequence does not fit the key and value cache"));
        }
        let cached = Cached { sequences: offsets, slots, lengths, capacity: self.capacity };
        match qkv.device() {
            Device::Cpu => floats!(qkv, T => {
                let mut out = cpu::pool::take::<T>(qkv.rows() * heads.heads * heads.size);
                let qkv_data = qkv.read::<T>();
                let (mut keys, mut values) = (self.keys.write::<T>(), self.values.write::<T>());
                cpu::attention::append(&mut keys, &mut values, &qkv_data, cached, heads);
                cpu::attention::forward_cached(&mut out, &qkv_data, [&keys, &values], cached, heads);
                Tensor::new(qkv.device(), &[qkv.rows(), heads.heads * heads.size], out)
            }),
        }
    }
}
