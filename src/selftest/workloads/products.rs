//! What tensor cores do: linear layers, attention, the language-model head.

use super::{Cost, Place, Recorded, Size, Workload};
use crate::error::Result;
use crate::ops::append::{Continued, LayerCache, QueriesKeys};
use crate::ops::attention::{Heads, Sequences, attention};
use crate::ops::matmul::{linear, weight_gradient};
use crate::ops::token_logprobs::{Objective, loss};
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
    let heads: &[[usize; 3]] = if large { &[[4096, 2048, 65536], [8192, 4096, 151_936]] } else { &[[64, 128, 1024]] };
    all.extend(heads.iter().map(|&sizes| head(sizes)));
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
    rows: Continued,
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
            cache.attention(
                &qkv,
                &QueriesKeys::default(),
                &Continued::new(&p.device, rows, &lengths, &empty)?,
                heads,
            )?;
        }
        let rows = Continued::new(&p.device, &slots, &vec![1; b], &vec![t; b])?;
        Ok(Self { qkv: p.tensor(&[b, heads.row()])?, cache, rows, heads })
    }

    /// The same token again and again: it is appended at the same position.
    fn step(&self) -> Result<()> {
        self.cache.attention(&self.qkv, &QueriesKeys::default(), &self.rows, self.heads).map(|_| ())
    }
}

fn decode(b: usize, t: usize, heads: Heads) -> Workload {
    let shape = format!("B {b} T {t} heads {}:{} HD {}", heads.heads, heads.kv_heads, heads.size);
    let cost = Cost::floats(2 * b * (t + 1) * heads.kv_heads * heads.size);
    Workload::new("attention decode", shape, cost, move |p| Decode::new(p, b, t, heads), Decode::step)
}

/// The loss of the head with its gradients in hidden states and weight; the chunks of logits among them.
fn head([n, c, v]: [usize; 3]) -> Workload {
    let cost = Cost::flop(6.0 * n as f64 * c as f64 * v as f64);
    let make = move |p: &Place| {
        let targets = p.ints((0..n).map(|i| (i * 7919 % v) as i32).collect())?;
        Ok((p.activation(&[n, c])?, p.parameter(&[v, c])?, targets))
    };
    let pass = move |(x, w, targets): &(Tensor, Tensor, Tensor)| {
        if let Some(slot) = w.slot()? {
            slot.reset();
        }
        loss(x, w, targets, 1.0, &Objective::Likelihood { scale: 1.0 / n as f64 }).map(drop)
    };
    Workload::new("token_logprobs with the head and all gradients", format!("N {n} C {c} V {v}"), cost, make, pass)
}
