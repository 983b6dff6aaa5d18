//! What tensor cores do: linear layers, attention, the language-model head.

use super::{Cost, Place, Recorded, Size, Workload};
use crate::error::Result;
use crate::ops::attention::{CacheRows, Heads, LayerCache, Sequences, attention};
use crate::ops::matmul::{linear, weight_gradient};
use crate::ops::token_logprobs::token_logprobs;
use crate::tensor::Tensor;

pub(super) fn workloads(size: Size) -> Vec<Workload> {
    let large = size == Size::Large;
    let mut all = linear_layer(if large { [8192; 3] } else { [192; 3] });
    let heads = |heads, kv_heads, size| Heads { heads, kv_heads, size };
    if large {
        all.extend(attention_of(8, 2048, heads(32, 32, 64)));
        all.extend(attention_of(8, 2048, heads(16, 4, 128)));
        all.push(decode(256, 2048, heads(32, 8, 128)));
    } else {
        all.extend(attention_of(2, 128, heads(2, 1, 64)));
        all.push(decode(4, 128, heads(4, 2, 64)));
    }
    all.push(head(if large { [4096, 2048, 65536] } else { [64, 128, 1024] }));
    all
}

/// The three products of y = x W^T for x [N, C] and W [O, C].
fn linear_layer([n, c, o]: [usize; 3]) -> Vec<Workload> {
    let cost = Cost::flop(2.0 * n as f64 * c as f64 * o as f64);
    let shape = format!("N {n} C {c} O {o}");
    let inputs = move |p: &Place| Ok((p.tensor(&[n, c])?, p.tensor(&[o, c])?));
    // The weight has no slot, so that the rule is the gradient of the input alone.
    let back = move |p: &Place| Recorded::new(p, linear(&p.activation(&[n, c])?, &p.tensor(&[o, c])?, None)?, &[]);
    let trained = move |p: &Place| Ok((p.parameter(&[o, c])?, p.tensor(&[n, o])?, p.tensor(&[n, c])?));
    let weight = |(w, dout, x): &(Tensor, Tensor, Tensor)| match w.slot()? {
        Some(slot) => {
            slot.reset();
            weight_gradient(&slot, dout, x)
        }
        None => Ok(()),
    };
    let forward = |(x, w): &(Tensor, Tensor)| linear(x, w, None).map(|_| ());
    vec![
        Workload::new("gemm NT, y = x W^T", &shape, cost, inputs, forward),
        Workload::new("gemm NN, dx = dy W", &shape, cost, back, Recorded::backward),
        Workload::new("gemm TN, dW = dy^T x", &shape, cost, trained, weight),
    ]
}

fn attention_of(b: usize, t: usize, heads: Heads) -> Vec<Workload> {
    let shape = format!("B {b} T {t} heads {}:{} HD {} causal", heads.heads, heads.kv_heads, heads.size);
    let flop = 2.0 * b as f64 * (t as f64).powi(2) * (heads.heads * heads.size) as f64;
    let lengths = move || vec![t; b];
    let inputs = move |p: &Place| Ok((p.tensor(&[b * t, heads.row()])?, Sequences::new(&p.device, &lengths())?));
    let forward = move |(qkv, sequences): &(Tensor, Sequences)| attention(qkv, sequences, heads).map(|_| ());
    let back = move |p: &Place| {
        let qkv = p.activation(&[b * t, heads.row()])?;
        Recorded::new(p, attention(&qkv, &Sequences::new(&p.device, &lengths())?, heads)?, &[])
    };
    vec![
        Workload::new("attention forward", &shape, Cost::flop(flop), inputs, forward),
        Workload::new("attention backward", &shape, Cost::flop(2.5 * flop), back, Recorded::backward),
    ]
}

/// What a decoding step of one layer holds.
struct Decode {
    qkv: Tensor,
    cache: LayerCache,
    sequences: Sequences,
    slots: Vec<usize>,
    lengths: Vec<usize>,
    heads: Heads,
}

impl Decode {
    /// A cache of `t` positions, filled by a prefill of sixteen rows at a time.
    fn new(p: &Place, b: usize, t: usize, heads: Heads) -> Result<Self> {
        let cache = LayerCache::new(&p.device, p.device.dtype(), b, t + 1, heads)?;
        let slots: Vec<usize> = (0..b).collect();
        for rows in slots.chunks(16) {
            let (lengths, empty) = (vec![t; rows.len()], vec![0; rows.len()]);
            let qkv = p.tensor(&[rows.len() * t, heads.row()])?;
            let map = CacheRows::new(&p.device, rows, &empty)?;
            cache.attention(&qkv, &Sequences::new(&p.device, &lengths)?, &map, heads)?;
        }
        let lengths = vec![t; b];
        let sequences = Sequences::continued(&p.device, &vec![1; b], &lengths)?;
        Ok(Self { qkv: p.tensor(&[b, heads.row()])?, cache, sequences, slots, lengths, heads })
    }

    /// The same token again and again: it is appended at the same position.
    fn step(&self) -> Result<()> {
        let rows = CacheRows::new(self.qkv.device(), &self.slots, &self.lengths)?;
        self.cache.attention(&self.qkv, &self.sequences, &rows, self.heads).map(|_| ())
    }
}

fn decode(b: usize, t: usize, heads: Heads) -> Workload {
    let shape = format!("B {b} T {t} heads {}:{} HD {}", heads.heads, heads.kv_heads, heads.size);
    let cost = Cost::floats(2 * b * (t + 1) * heads.kv_heads * heads.size);
    Workload::new("attention decode", shape, cost, move |p| Decode::new(p, b, t, heads), Decode::step)
}

/// Log-probabilities and their gradients in hidden states and weights; the chunks of logits among them.
fn head([n, c, v]: [usize; 3]) -> Workload {
    let cost = Cost::flop(6.0 * n as f64 * c as f64 * v as f64);
    let make = move |p: &Place| {
        let targets = p.ints((0..n).map(|i| (i * 7919 % v) as i32).collect())?;
        Ok((p.activation(&[n, c])?, p.parameter(&[v, c])?, targets, p.wide(&[n])?))
    };
    let pass = |(x, w, targets, dout): &(Tensor, Tensor, Tensor, Tensor)| {
        if let Some(slot) = w.slot()? {
            slot.reset();
        }
        let out = token_logprobs(x, w, targets, 1.0)?;
        out.logprobs.rule_alone(&[Some(dout.clone()), None]).map(|_| ())
    };
    Workload::new("token_logprobs with the head, both ways", format!("N {n} C {c} V {v}"), cost, make, pass)
}
