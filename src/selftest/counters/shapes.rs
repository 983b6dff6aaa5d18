//! The shapes at which kernels are counted, and what each entry must move there: the formulas of the `.cu` files.

use super::super::Engine;
use super::super::engine::normal;
use super::{Limit, Workload};
use crate::autograd::Grad;
use crate::config::KlEstimator;
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::append::{Continued, LayerCache, QueriesKeys, append};
use crate::ops::attention::{Heads, Sequences, attention};
use crate::ops::gae::{Shaped, gae, rewards, shaped_gae};
use crate::ops::matmul::{linear, multiply};
use crate::ops::ppo_loss::{Coefficients, Tokens, ppo_loss};
use crate::ops::sample::{Drawn, Sampling, sample};
use crate::ops::token_logprobs::{Objective, loss, token_logprobs};
use crate::ops::{
    RowPlan, adamw, advance, column_sum, elementwise, embedding, gelu, global_norm, layer_norm, pairwise_loss,
    rms_norm, rope, scalar_head, swiglu, whiten,
};
use crate::random::Stage;
use crate::tensor::Tensor;

pub(super) fn workloads() -> Vec<Workload> {
    let mut all = Vec::new();
    for dtype in [DType::BF16, DType::F32] {
        all.extend(products(dtype));
        all.extend(attentions(dtype));
        all.extend(caches(dtype));
        all.extend(appends(dtype));
        all.extend(norms(dtype));
        all.extend(pointwise(dtype));
        all.extend(rows(dtype));
        all.extend(logits(dtype));
    }
    all.extend(wide());
    all
}

/// A workload; `{}` in the name of an entry stands for its dtype.
fn work(
    shape: impl Into<String>,
    dtype: DType,
    limits: &[(&str, Limit)],
    run: impl Fn(&Engine) -> Result<()> + Send + Sync + 'static,
) -> Workload {
    let name = if dtype == DType::BF16 { "bf16" } else { "f32" };
    let limits = limits.iter().map(|(entry, limit)| (entry.replace("{}", name), *limit)).collect();
    Workload { shape: shape.into(), dtype, run: Box::new(run), limits }
}

fn x(e: &Engine, shape: &[usize], stream: u32) -> Result<Tensor> {
    e.parameter(shape, &normal(shape.iter().product(), stream))
}

fn column(e: &Engine, n: usize, stream: u32) -> Result<Tensor> {
    e.wide(&[n], &normal(n, stream))
}

/// Each factor and the product once; 2 M N K FLOPs.
fn product(dtype: DType, [m, n, k]: [usize; 3], d_bytes: usize) -> Limit {
    let mma = if dtype == DType::BF16 { m * n * k / (16 * 8 * 16) } else { 0 };
    Limit::bytes((m * k + k * n) * dtype.bytes() + m * n * d_bytes).mma(mma)
}

fn products(dtype: DType) -> Vec<Workload> {
    let (b, [n, c, o]) = (dtype.bytes(), [192, 128, 256]);
    let limits = [
        ("gemm_nt_{}", product(dtype, [n, o, c], b)),
        ("gemm_nn_{}", product(dtype, [n, c, o], b)),
        ("gemm_tn_{}", product(dtype, [o, c, n], 4)),
    ];
    let mut all = vec![work(format!("N {n} C {c} O {o}"), dtype, &limits, move |e| {
        e.backward(&[&linear(&x(e, &[n, c], 1)?, &x(e, &[o, c], 2)?, None)?])
    })];
    if dtype == DType::BF16 {
        let (n, c, o) = (16, 256, 512);
        let skinny = [("gemm_nt_skinny_bf16", product(dtype, [n, o, c], b))];
        all.push(work(format!("N {n} C {c} O {o}"), dtype, &skinny, move |e| {
            linear(&x(e, &[n, c], 1)?.detach(), &x(e, &[o, c], 2)?.detach(), None).map(|_| ())
        }));
        let (n, c, o) = (128, 128, 128);
        let wide = [("gemm_nt_wide_bf16", product(dtype, [n, o, c], 4))];
        all.push(work(format!("N {n} C {c} O {o}"), dtype, &wide, move |e| {
            let out = Tensor::empty(&e.device, DType::F32, &[n, o])?;
            multiply(&out, [&x(e, &[n, c], 1)?, &x(e, &[o, c], 2)?], [false, true], None, false)
        }));
    }
    all
}

/// Head sizes, each with the part of an entry's name that is its own.
fn head_forms(dtype: DType) -> Vec<(Heads, &'static str)> {
    let heads = |heads, kv_heads, size| Heads { heads, kv_heads, size };
    match dtype {
        DType::BF16 => vec![(heads(4, 2, 64), "64_bf16"), (heads(2, 1, 128), "128_bf16")],
        _ => vec![(heads(2, 1, 64), "f32")],
    }
}

/// Query, key, value, result and their gradients once; 4 NH HD T^2 / 2 FLOPs a sequence forward, 1.5 times that for the
/// queries' part of the backward pass and twice that for the keys'.
fn attentions(dtype: DType) -> Vec<Workload> {
    let b = dtype.bytes();
    let mut all = Vec::new();
    for (heads, form) in head_forms(dtype) {
        let lengths: &[usize] = if dtype == DType::BF16 { &[256, 192] } else { &[128, 64] };
        let n: usize = lengths.iter().sum();
        let squares: usize = lengths.iter().map(|t| t * t).sum();
        let (row, q, kv, nh) = (heads.row(), heads.heads * heads.size, heads.kv_heads * heads.size, heads.heads);
        let forward = if dtype == DType::BF16 { 2 * q * squares / 4096 } else { 0 };
        let names = ["forward", "backward_queries", "backward_keys"].map(|part| format!("attention_{part}_{form}"));
        let limits = [
            (&names[0][..], Limit::bytes(n * ((row + q) * b + 4 * nh)).mma(forward)),
            (&names[1], Limit::bytes(n * ((row + 2 * q) * b + 8 * nh)).mma(3 * forward / 2)),
            (&names[2], Limit::bytes(n * ((row + q + 2 * kv) * b + 8 * nh)).mma(2 * forward)),
            ("attention_backward_delta_{}", Limit::bytes(n * (2 * q * b + 4 * nh))),
        ];
        let shape = format!("heads {nh}:{} HD {} lengths {lengths:?}", heads.kv_heads, heads.size);
        all.push(work(shape, dtype, &limits, move |e| {
            let sequences = Sequences::new(&e.device, lengths)?;
            e.backward(&[&attention(&x(e, &[n, row], 1)?, &sequences, heads)?])
        }));
    }
    all
}

/// Prompts, then a token each: keys and values of each sequence once, and its queries and results.
fn caches(dtype: DType) -> Vec<Workload> {
    let b = dtype.bytes();
    let mut all = Vec::new();
    for (heads, form) in head_forms(dtype) {
        let lengths = [192, 128];
        let (n, row) = (lengths[0] + lengths[1], heads.row());
        let (q, kv) = (heads.heads * heads.size, heads.kv_heads * heads.size);
        let squares: usize = lengths.iter().map(|t| t * t).sum();
        let prefill = if dtype == DType::BF16 { 2 * q * squares / 4096 } else { 0 };
        let names = ["cached", "decode"].map(|part| format!("attention_forward_{part}_{form}"));
        let limits = [
            (&names[0][..], Limit::bytes(n * (2 * q + 2 * kv) * b).mma(prefill)),
            (&names[1], Limit::bytes(((n + 2) * 2 * kv + 4 * q) * b)),
            ("append_{}", Limit::bytes((n + 2) * 4 * kv * b)),
        ];
        let shape = format!("heads {}:{} HD {} cached {lengths:?}", heads.heads, heads.kv_heads, heads.size);
        all.push(work(shape, dtype, &limits, move |e| {
            let kind = x(e, &[1], 0)?.dtype();
            let cache = LayerCache::new(&e.device, kind, 2, 256, heads)?;
            for (new, first) in [(lengths, [0, 0]), ([1, 1], lengths)] {
                let qkv = x(e, &[new[0] + new[1], row], 1)?.detach();
                cache.attention(
                    &qkv,
                    &QueriesKeys::default(),
                    &Continued::new(&e.device, &[1, 0], &new, &first)?,
                    heads,
                )?;
            }
            Ok(())
        }));
    }
    all
}

/// New tokens with and without normalisation, turned.
fn appends(dtype: DType) -> [Workload; 2] {
    let (n, heads) = (256, Heads { heads: 4, kv_heads: 2, size: 64 });
    let (q, kv) = (heads.heads * heads.size, heads.kv_heads * heads.size);
    let limit = Limit::bytes(n * ((2 * q + 4 * kv) * dtype.bytes() + 4 * heads.size + 8));
    [("append_{}", false), ("append_normed_{}", true)].map(|(entry, normed)| {
        work(format!("N {n} heads 4:2 HD 64 turned"), dtype, &[(entry, limit)], move |e| {
            let qkv = x(e, &[n, heads.row()], 1)?.detach();
            let cache = LayerCache::new(&e.device, qkv.dtype(), 1, n, heads)?;
            let table = e.wide(&[n, heads.size], &normal(n * heads.size, 3))?;
            let weights = [x(e, &[heads.size], 4)?.detach(), x(e, &[heads.size], 5)?.detach()];
            let norms = normed.then_some(([&weights[0], &weights[1]], 1e-6));
            let before = QueriesKeys { norms, table: Some(&table) };
            append(&cache, &qkv, &before, &Continued::new(&e.device, &[0], &[n], &[0])?, heads).map(|_| ())
        })
    })
}

/// Bytes of the partial sums of rows of `c` elements.
fn partial_sums(n: usize, c: usize) -> usize {
    4 * c * n.div_ceil(RowPlan::new(c).chunk)
}

fn norms(dtype: DType) -> Vec<Workload> {
    let (b, [n, c]) = (dtype.bytes(), [256, 896]);
    let (tensor, partials) = (n * c * b, partial_sums(n, c));
    let rms = |tensors: [usize; 2]| {
        let [forward, backward] = tensors.map(|t| t * tensor);
        [
            ("rms_norm_forward_{}", Limit::bytes(forward + 4 * n)),
            ("rms_norm_backward_{}", Limit::bytes(backward + 4 * n + partials)),
        ]
    };
    let layer = |tensors: [usize; 2]| {
        let [forward, backward] = tensors.map(|t| t * tensor);
        [
            ("layer_norm_forward_{}", Limit::bytes(forward + 8 * n)),
            ("layer_norm_backward_{}", Limit::bytes(backward + 8 * n + 2 * partials)),
        ]
    };
    let (plain, residual) = (format!("N {n} C {c}"), format!("N {n} C {c} + residual"));
    let heads = Heads { heads: 14, kv_heads: 2, size: 64 };
    // Queries and keys are read and written by the norm; values are copied, forward and backward.
    let (in_row, head_partials) = (16 * 64, partial_sums(n * 14, 64) + partial_sums(n * 2, 64));
    let qk = [
        ("rms_norm_forward_{}", Limit::bytes(2 * n * in_row * b + 4 * n * 16)),
        ("rms_norm_backward_{}", Limit::bytes(3 * n * in_row * b + 4 * n * 16 + head_partials)),
        ("copy_columns_{}", Limit::bytes(4 * n * 2 * 64 * b)),
    ];
    vec![
        work(plain.clone(), dtype, &rms([2, 3]), move |e| {
            e.backward(&[&rms_norm::rms_norm(&x(e, &[n, c], 1)?, &x(e, &[c], 2)?, 1e-5)?])
        }),
        work(residual.clone(), dtype, &rms([4, 4]), move |e| {
            let (sum, out) = rms_norm::add_rms_norm(&x(e, &[n, c], 1)?, &x(e, &[n, c], 2)?, &x(e, &[c], 3)?, 1e-5)?;
            e.backward(&[&sum, &out])
        }),
        work(plain, dtype, &layer([2, 3]), move |e| {
            e.backward(&[&layer_norm::layer_norm(&x(e, &[n, c], 1)?, [&x(e, &[c], 2)?, &x(e, &[c], 3)?], 1e-5)?])
        }),
        work(residual, dtype, &layer([4, 4]), move |e| {
            let weights = [&x(e, &[c], 3)?, &x(e, &[c], 4)?];
            let (sum, out) = layer_norm::add_layer_norm(&x(e, &[n, c], 1)?, &x(e, &[n, c], 2)?, weights, 1e-5)?;
            e.backward(&[&sum, &out])
        }),
        work(format!("N {n} heads 14:2 HD 64 inside qkv"), dtype, &qk, move |e| {
            let qkv = x(e, &[n, heads.row()], 1)?;
            e.backward(&[&rms_norm::qk_norm(&qkv, [&x(e, &[64], 2)?, &x(e, &[64], 3)?], heads, 1e-5)?])
        }),
    ]
}

fn pointwise(dtype: DType) -> Vec<Workload> {
    let (b, [n, f]) = (dtype.bytes(), [64, 1216]);
    let one = n * f * b;
    let [turned, heads, size] = [16, 18, 64];
    let rope_bytes = 2 * n * heads * size * b + n * size * 4;
    vec![
        work(
            format!("N {n} F {f}"),
            dtype,
            &[("swiglu_forward_{}", Limit::bytes(3 * one)), ("swiglu_backward_{}", Limit::bytes(5 * one))],
            move |e| e.backward(&[&swiglu::swiglu(&x(e, &[n, 2 * f], 1)?)?]),
        ),
        work(
            format!("N {n} F {f}"),
            dtype,
            &[("gelu_forward_{}", Limit::bytes(2 * one)), ("gelu_backward_{}", Limit::bytes(3 * one))],
            move |e| e.backward(&[&gelu::gelu(&x(e, &[n, f], 1)?)?]),
        ),
        // a twice: its gradient, f32, is first assigned and then added to.
        work(
            format!("n {}", n * f),
            dtype,
            &[
                ("add_{}", Limit::bytes(2 * 3 * one)),
                ("assign_{}", Limit::bytes(2 * n * f * (b + 4))),
                ("add_assign_{}", Limit::bytes(n * f * (b + 8))),
            ],
            move |e| {
                let (a, c) = (x(e, &[n * f], 1)?, x(e, &[n * f], 2)?);
                e.backward(&[&elementwise::add(&elementwise::add(&a, &c)?, &a)?])
            },
        ),
        // Forward and the turn back.
        work(
            format!("N {n} heads {heads} turned {turned} HD {size}"),
            dtype,
            &[("rope_{}", Limit::bytes(2 * rope_bytes + 8 * n))],
            move |e| {
                let table = e.wide(&[n, size], &normal(n * size, 2))?;
                let positions = e.ints(&(0..n as i32).collect::<Vec<_>>())?;
                e.backward(&[&rope::rope(&x(e, &[n, heads, size], 1)?, &table, &positions, turned)?])
            },
        ),
    ]
}

fn rows(dtype: DType) -> Vec<Workload> {
    let b = dtype.bytes();
    let [v, c, n] = [200, 512, 300];
    let index: Vec<i32> = (0..n as i32).map(|i| (i * 37) % 120).collect();
    let (rows, unique) = (n * c * b, 120 * c);
    let [m, o]: [usize; 2] = [512, 1000];
    let partials = 4 * o * m.div_ceil(column_sum::wide_plan(m, o).0.chunk);
    let index_too = index.clone();
    vec![
        work(
            format!("V {v} C {c} N {n}"),
            dtype,
            &[
                ("embedding_forward_{}", Limit::bytes(2 * rows + 4 * n)),
                ("embedding_backward_{}", Limit::bytes(rows + 8 * unique + 4 * n)),
            ],
            move |e| e.backward(&[&embedding::embedding(&x(e, &[v, c], 1)?, &e.ints(&index)?)?]),
        ),
        work(
            format!("V {v} C {c} N {n} of activations"),
            dtype,
            &[("embedding_scatter_{}", Limit::bytes(rows + unique * b + 4 * n))],
            move |e| e.backward(&[&embedding::gather_rows(&x(e, &[v, c], 1)?, &e.ints(&index_too)?)?]),
        ),
        work(
            format!("N {m} C {o}"),
            dtype,
            &[
                ("scalar_head_forward_{}", Limit::bytes(m * o * b + 4 * m)),
                ("scalar_head_backward_{}", Limit::bytes(2 * m * o * b + partials)),
            ],
            move |e| e.wide_backward(&[&scalar_head::scalar_head(&x(e, &[m, o], 1)?, &x(e, &[1, o], 2)?)?]),
        ),
        work(
            format!("N {m} O {o}"),
            dtype,
            &[
                ("bias_backward_{}", Limit::bytes(m * o * b + partials)),
                ("column_sum_f32", Limit::bytes(partials + 4 * o)),
            ],
            move |e| {
                let slot = Grad::new(Tensor::empty(&e.device, DType::F32, &[o])?);
                column_sum::bias_backward(&slot, &x(e, &[m, o], 1)?)
            },
        ),
    ]
}

fn logits(dtype: DType) -> Vec<Workload> {
    let (b, [r, v]) = (dtype.bytes(), [6, 16384]);
    let row = r * v * b;
    let drawn = |shape: &str, sampling: Sampling| {
        let limit = [("sample_{}", Limit::bytes(row))];
        work(format!("R {r} V {v} {shape}"), dtype, &limit, move |e| {
            sample(&x(e, &[r, v], 1)?.detach(), &Tensor::new(&e.device, &[r], vec![0.4f32; r])?, &sampling).map(|_| ())
        })
    };
    vec![
        work(
            format!("R {r} V {v}"),
            dtype,
            &[
                ("token_logprobs_forward_{}", Limit::bytes(row)),
                ("token_logprobs_likelihood_{}", Limit::bytes(3 * row)),
                ("token_logprobs_clipped_{}", Limit::bytes(3 * row)),
            ],
            move |e| {
                let (hidden, weight, targets) = (x(e, &[r, 8], 1)?.detach(), x(e, &[v, 8], 2)?.detach(), vec![7; r]);
                let (targets, [old, advantages]) = (e.ints(&targets)?, [&column(e, r, 3)?, &column(e, r, 4)?]);
                token_logprobs(&hidden, &weight, &targets, 1.0)?;
                let coefficients = coefficients(r);
                for objective in [
                    Objective::Likelihood { scale: 0.5 },
                    Objective::Clipped { old_logprobs: old, advantages, coefficients, entropy_coef: 0.1 },
                ] {
                    loss(&hidden, &weight, &targets, 1.0, &objective)?.root.backward()?;
                }
                Ok(())
            },
        ),
        drawn("greedy", Sampling { temperature: 0.0, top_k: 0, top_p: 1.0 }),
        drawn("all", Sampling { temperature: 1.0, top_k: 0, top_p: 1.0 }),
        drawn("top-k 50 top-p 0.9", Sampling { temperature: 1.0, top_k: 50, top_p: 0.9 }),
    ]
}

/// What is f32 on every device.
fn wide() -> Vec<Workload> {
    let n = 65536;
    let pieces = n / 16384;
    let adam = |dtype: DType, bytes: usize| {
        let limits = [
            ("adamw_f32", Limit::bytes(bytes * n)),
            ("global_norm_forward_f32", Limit::bytes(4 * n)),
            ("global_norm_finish_f32", Limit::bytes(4 * pieces)),
        ];
        let limits = if dtype == DType::BF16 { &limits[..] } else { &limits[..1] };
        let shape = format!("n {n}{}", if dtype == DType::BF16 { "" } else { " without a copy" });
        work(shape, dtype, limits, move |e| {
            let (masters, grads) = (column(e, n, 1)?, column(e, n, 2)?);
            let (m, v) = (e.wide(&[n], &vec![0.0; n])?, e.wide(&[n], &vec![0.0; n])?);
            let rounded = x(e, &[n], 3)?;
            let copy = (rounded.dtype() == DType::BF16).then_some(&rounded);
            let weights = adamw::Weights { masters: &masters, rounded: copy, decayed: n / 2 };
            let step = adamw::Step { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, t: 1 };
            adamw::adamw(&weights, [&m, &v], &grads, &step, &global_norm::clip(&grads, 1.0)?)
        })
    };
    let mut all = vec![adam(DType::BF16, 30), adam(DType::F32, 28)];
    all.extend([episodes(), ppo(), pairs(), row_sums(), decoded()]);
    all
}

fn row_sums() -> Workload {
    let [r, n] = [4, 5000];
    let limits = [("row_sums_f32", Limit::bytes(4 * r * n))];
    work(format!("R {r} n {n}"), DType::F32, &limits, move |e| {
        elementwise::row_sums(&e.wide(&[r, n], &normal(r * n, 1))?).map(|_| ())
    })
}

fn decoded() -> Workload {
    let n = 4096;
    work(format!("B {n}"), DType::F32, &[("advance_f32", Limit::bytes(56 * n))], move |e| {
        let rule = advance::Rule { stop: e.ints(&[7])?, most: 9, seed: 5, stage: Stage::Rollout, step: 1 };
        let start =
            |i: usize| advance::Start { id: 1, position: 3, slot: i, count: 1, number: i as u32, finished: false };
        let rows = advance::Rows::new(&e.device, &(0..n).map(start).collect::<Vec<_>>(), 8, &rule)?;
        let drawn = Drawn { tokens: e.ints(&vec![3; n])?, bad: e.ints(&vec![-1; n])? };
        advance::advance(&rows, &drawn, &column(e, n, 1)?, &rule)
    })
}

fn episodes() -> Workload {
    let (count, length) = (32, 200);
    let n = count * length;
    let limits = [
        ("rewards_f32", Limit::bytes(12 * n)),
        ("gae_forward_f32", Limit::bytes(24 * n)),
        ("gae_from_rewards_f32", Limit::bytes(16 * n)),
        ("whiten_f32", Limit::bytes(8 * n)),
    ];
    work(format!("{count} episodes of {length}"), DType::F32, &limits, move |e| {
        let offsets: Vec<i32> = (0..=count as i32).map(|i| i * length as i32).collect();
        let (logprobs, ref_logprobs, values) = (column(e, n, 1)?, column(e, n, 2)?, column(e, n, 3)?);
        let (scores, discounts) = (column(e, count, 4)?, [1.0, 0.95]);
        let shaped = Shaped {
            logprobs: [&logprobs, &ref_logprobs],
            scores: &scores,
            offsets: &offsets,
            estimator: KlEstimator::K1,
            kl_coef: 0.1,
        };
        gae(&rewards(&shaped)?, &values, &offsets, discounts)?;
        let fused = shaped_gae(&shaped, &values, discounts)?;
        whiten::whiten(&fused.advantages, fused.statistics.as_ref(), false).map(|_| ())
    })
}

fn ppo() -> Workload {
    let n = 4096;
    let limits = [("ppo_loss_f32", Limit::bytes(32 * n))];
    work(format!("N {n}"), DType::F32, &limits, move |e| {
        let tokens = Tokens {
            logprobs: column(e, n, 1)?,
            old_logprobs: column(e, n, 1)?,
            advantages: column(e, n, 3)?,
            values: column(e, n, 4)?,
            old_values: column(e, n, 5)?,
            returns: column(e, n, 6)?,
        };
        ppo_loss(&tokens, &coefficients(n))?.root.backward()
    })
}

fn coefficients(n: usize) -> Coefficients {
    Coefficients {
        cliprange_low: 0.2,
        cliprange_high: 0.2,
        cliprange_value: 0.2,
        vf_coef: 0.1,
        dual_clip: None,
        scale: 1.0 / n as f64,
    }
}

fn pairs() -> Workload {
    let p = 2048;
    work(format!("P {p}"), DType::F32, &[("pairwise_loss_f32", Limit::bytes(20 * p))], move |e| {
        pairwise_loss::pairwise_loss(&column(e, 2 * p, 1)?, &column(e, p, 2)?, 0.01, 1.0 / p as f64)?.root.backward()
    })
}
