//! What stands on logits, the losses and scans of reinforcement learning, and the optimizer.

use super::{Cost, Place, Size, Workload};
use crate::config::KlEstimator;
use crate::ops::adamw::{Step, Weights, adamw};
use crate::ops::gae::{Shaped, shaped_gae};
use crate::ops::global_norm::{Clip, clip};
use crate::ops::pairwise_loss::pairwise_loss;
use crate::ops::ppo_loss::{Coefficients, Tokens, ppo_loss};
use crate::ops::sample::{Sampling, sample};
use crate::ops::token_logprobs::of_logits;
use crate::ops::whiten::whiten;
use crate::tensor::Tensor;

pub(super) fn workloads(size: Size) -> Vec<Workload> {
    let large = size == Size::Large;
    let mut all = logits(if large { [512, 151_936] } else { [32, 4096] });
    all.extend(scans(if large { [64, 512] } else { [16, 64] }));
    all.push(pairs(if large { 4096 } else { 256 }));
    all.extend(optimizer(if large { 1 << 27 } else { 1 << 18 }));
    all
}

fn logits([r, v]: [usize; 2]) -> Vec<Workload> {
    let shape = format!("R {r} V {v}");
    let uniforms = move || (0..r).map(|i| ((i as f32 + 0.37) * 0.618_034).fract()).collect::<Vec<f32>>();
    let inputs = move |p: &Place| Ok((p.tensor(&[r, v])?, Tensor::new(&p.device, &[r], uniforms())?));
    let draw = |top_k, top_p| {
        let sampling = Sampling { temperature: 0.7, top_k, top_p };
        move |(logits, uniforms): &(Tensor, Tensor)| sample(logits, uniforms, &sampling).map(|_| ())
    };
    let targets = move |p: &Place| Ok((p.tensor(&[r, v])?, p.ints((0..r).map(|i| (i * 7919 % v) as i32).collect())?));
    let gather = |(logits, tokens): &(Tensor, Tensor)| of_logits(logits, tokens, 0.7).map(|_| ());
    let cost = Cost::floats(r * v);
    vec![
        Workload::new("sample", &shape, cost, inputs, draw(0, 1.0)),
        Workload::new("sample top-k 50 top-p 0.9", &shape, cost, inputs, draw(50, 0.9)),
        Workload::new("token_logprobs forward", &shape, cost, targets, gather),
    ]
}

fn scans([b, t]: [usize; 2]) -> Vec<Workload> {
    let n = b * t;
    let shape = format!("B {b} T {t}");
    let columns = move |p: &Place| (0..6).map(|_| p.wide(&[n])).collect::<crate::error::Result<Vec<Tensor>>>();
    let episodes = move |p: &Place| Ok((columns(p)?, p.wide(&[b])?, (0..=b).map(|i| (i * t) as i32).collect()));
    let scan = |(columns, scores, offsets): &(Vec<Tensor>, Tensor, Vec<i32>)| {
        let logprobs = [&columns[0], &columns[1]];
        let shaped = Shaped { logprobs, scores, offsets, estimator: KlEstimator::K1, kl_coef: 0.05 };
        shaped_gae(&shaped, &columns[2], [1.0, 0.95]).map(|_| ())
    };
    let white = |x: &Tensor| whiten(x, None, false).map(|_| ());
    let tokens = move |p: &Place| {
        let [logprobs, old_logprobs, advantages, values, old_values, returns] = [(); 6].map(|()| p.wide(&[n]));
        Ok(Tokens {
            logprobs: p.trained(logprobs?)?,
            old_logprobs: old_logprobs?,
            advantages: advantages?,
            values: p.trained(values?)?,
            old_values: old_values?,
            returns: returns?,
        })
    };
    let coefficients = Coefficients {
        cliprange_low: 0.2,
        cliprange_high: 0.2,
        cliprange_value: 0.2,
        vf_coef: 0.1,
        dual_clip: None,
        scale: 1.0 / n as f64,
    };
    let loss = move |tokens: &Tokens| ppo_loss(tokens, &coefficients).map(drop);
    vec![
        Workload::new("gae with reward shaping", &shape, Cost::bytes(24 * n), episodes, scan),
        Workload::new("whiten", format!("N {n}"), Cost::bytes(8 * n), move |p| p.wide(&[n]), white),
        Workload::new("ppo_loss", format!("N {n}"), Cost::bytes(32 * n), tokens, loss),
    ]
}

fn pairs(p: usize) -> Workload {
    let make = move |place: &Place| Ok((place.trained(place.wide(&[2 * p])?)?, place.wide(&[p])?));
    let pass = move |(scores, margin): &(Tensor, Tensor)| pairwise_loss(scores, margin, 0.0, 1.0 / p as f64).map(drop);
    Workload::new("pairwise_loss", format!("P {p}"), Cost::bytes(20 * p), make, pass)
}

/// What an update of `n` parameters holds.
struct Update {
    masters: Tensor,
    /// On a device that computes in bf16.
    rounded: Option<Tensor>,
    moments: [Tensor; 2],
    grads: Tensor,
    clip: Clip,
}

fn optimizer(n: usize) -> Vec<Workload> {
    let shape = format!("n {n}");
    let make = move |p: &Place| {
        let half = p.tensor(&[n])?;
        let rounded = (half.dtype() == crate::dtype::DType::BF16).then_some(half);
        let (m, v) = (p.wide(&[n])?, p.wide(&[n])?);
        v.clear()?;
        let grads = p.wide(&[n])?;
        Ok(Update { masters: p.wide(&[n])?, rounded, moments: [m, v], clip: clip(&grads, 1.0)?, grads })
    };
    let step = Step { lr: 1e-5, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, t: 3 };
    let pass = move |u: &Update| {
        let weights = Weights { masters: &u.masters, rounded: u.rounded.as_ref(), decayed: n / 2 };
        adamw(&weights, [&u.moments[0], &u.moments[1]], &u.grads, &step, &u.clip)
    };
    let norm = |x: &Tensor| clip(x, 1.0).map(|_| ());
    vec![
        Workload::new("adamw", &shape, Cost::bytes(28 * n).and_copy(n), make, pass),
        Workload::new("global_norm", &shape, Cost::bytes(4 * n), move |p| p.wide(&[n]), norm),
    ]
}
