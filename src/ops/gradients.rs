//! Every operation's backward rule against central differences of its forward, in f64, at several shapes.

use std::sync::Arc;

use crate::autograd::{Grad, Origin, backward, record};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::attention::{Heads, Sequences, attention};
use crate::ops::{elementwise, embedding, gelu, layer_norm, matmul, pairwise_loss, ppo_loss, rms_norm, rope, swiglu};
use crate::ops::{scalar_head, token_logprobs};
use crate::random::{Philox, Stage};
use crate::tensor::Tensor;

/// The largest relative L2 error of a gradient tensor that passes.
const TOLERANCE: f64 = 1e-6;
const DELTA: f64 = 1e-5;

fn random(n: usize, stream: u32) -> Vec<f64> {
    let mut stream = Philox::new(11, Stage::Init, 0, stream);
    (0..n).map(|_| stream.normal()).collect()
}

fn tensor(shape: &[usize], values: &[f64]) -> Tensor {
    Tensor::from_f64(&Device::Cpu, DType::F64, shape, values).unwrap()
}

fn ints(values: &[i32]) -> Tensor {
    Tensor::new(&Device::Cpu, &[values.len()], values.to_vec()).unwrap()
}

fn parameter(shape: &[usize], values: &[f64]) -> Tensor {
    let mut tensor = tensor(shape, values);
    let slot = Grad::new(Tensor::zeros(&Device::Cpu, DType::F64, shape).unwrap());
    tensor.origin = Origin::Parameter(Arc::new(slot));
    tensor
}

/// A loss that weighs every element of every output differently.
fn weighted(outputs: &[Tensor]) -> Tensor {
    let weights: Vec<Vec<f64>> = outputs.iter().enumerate().map(|(i, o)| random(o.len(), 900 + i as u32)).collect();
    let dot = |(o, w): (&Tensor, &Vec<f64>)| o.to_f64().unwrap().iter().zip(w).map(|(a, b)| a * b).sum::<f64>();
    let mut loss = tensor(&[1], &[outputs.iter().zip(&weights).map(dot).sum()]);
    let grads: Vec<_> = outputs.iter().zip(&weights).map(|(o, w)| Some(tensor(o.shape(), w))).collect();
    let inputs: Vec<&Tensor> = outputs.iter().collect();
    record("weighted", std::slice::from_mut(&mut loss), &inputs, Box::new(move |_| Ok(grads.clone())));
    loss
}

/// Compares all gradients of `forward` at random inputs of these shapes; returns the worst relative error.
fn worst_error(shapes: &[&[usize]], forward: &dyn Fn(&[Tensor]) -> Result<Vec<Tensor>>) -> f64 {
    let values: Vec<Vec<f64>> = shapes.iter().enumerate().map(|(i, s)| random(s.iter().product(), i as u32)).collect();
    let inputs: Vec<Tensor> = shapes.iter().zip(&values).map(|(s, v)| parameter(s, v)).collect();
    backward(weighted(&forward(&inputs).unwrap())).unwrap();
    let evaluate = |at: usize, i: usize, delta: f64| {
        let mut values = values.clone();
        values[at][i] += delta;
        let inputs: Vec<Tensor> = shapes.iter().zip(&values).map(|(s, v)| tensor(s, v)).collect();
        weighted(&forward(&inputs).unwrap()).to_f64().unwrap()[0]
    };
    let mut worst = 0.0f64;
    for (at, input) in inputs.iter().enumerate() {
        let slot = input.slot().unwrap().unwrap();
        assert!(slot.is_written(), "input {at} received no gradient");
        let (mut error, mut norm) = (0.0, 0.0);
        for (i, ours) in slot.tensor.to_f64().unwrap().iter().enumerate() {
            let numeric = (evaluate(at, i, DELTA) - evaluate(at, i, -DELTA)) / (2.0 * DELTA);
            error += (ours - numeric).powi(2);
            norm += numeric.powi(2);
        }
        worst = worst.max((error / norm.max(1e-12)).sqrt());
    }
    worst
}

fn assert_gradients(name: &str, shapes: &[&[usize]], forward: &dyn Fn(&[Tensor]) -> Result<Vec<Tensor>>) {
    let worst = worst_error(shapes, forward);
    assert!(worst <= TOLERANCE, "{name} {shapes:?}: relative error {worst:e}");
}

#[test]
fn a_wrong_rule_is_found() {
    let wrong = |t: &[Tensor]| {
        let mut out = elementwise::add(&t[0].detach(), &t[0].detach())?;
        let rule = |grads: &[Option<Tensor>]| Ok(vec![grads[0].clone()]);
        record("wrong", std::slice::from_mut(&mut out), &[&t[0]], Box::new(rule));
        Ok(vec![out])
    };
    assert!(worst_error(&[&[3, 2]], &wrong) > 0.1);
}

#[test]
fn linear() {
    for (n, o, c) in [(1, 1, 1), (1, 5, 3), (7, 3, 5), (13, 17, 9), (66, 4, 3)] {
        assert_gradients("linear", &[&[n, c], &[o, c]], &|t| Ok(vec![matmul::linear(&t[0], &t[1], None)?]));
        assert_gradients("linear with bias", &[&[n, c], &[o, c], &[o]], &|t| {
            Ok(vec![matmul::linear(&t[0], &t[1], Some(&t[2]))?])
        });
    }
}

#[test]
fn sums() {
    for n in [1, 7, 130] {
        assert_gradients("add", &[&[n, 3], &[n, 3]], &|t| Ok(vec![elementwise::add(&t[0], &t[1])?]));
        assert_gradients("add to itself", &[&[n, 3]], &|t| Ok(vec![elementwise::add(&t[0], &t[0])?]));
        assert_gradients("scaled_sum", &[&[n, 3]], &|t| Ok(vec![elementwise::scaled_sum(&t[0], -0.3)?]));
    }
}

#[test]
fn embedding_and_gather() {
    for index in [&[0][..], &[2, 2, 0, 1, 2]] {
        assert_gradients("embedding", &[&[3, 5]], &|t| Ok(vec![embedding::embedding(&t[0], &ints(index))?]));
        assert_gradients("gather_rows", &[&[3, 5]], &|t| Ok(vec![embedding::gather_rows(&t[0], &ints(index))?]));
    }
}

#[test]
fn norms() {
    for (n, c) in [(1, 1), (1, 7), (5, 16), (67, 19)] {
        let (x, w): (&[usize], &[usize]) = (&[n, c], &[c]);
        assert_gradients("rms_norm", &[x, w], &|t| Ok(vec![rms_norm::rms_norm(&t[0], &t[1], 1e-2)?]));
        assert_gradients("add_rms_norm", &[x, x, w], &|t| {
            let (sum, out) = rms_norm::add_rms_norm(&t[0], &t[1], &t[2], 1e-2)?;
            Ok(vec![sum, out])
        });
        assert_gradients("layer_norm", &[x, w, w], &|t| Ok(vec![layer_norm::layer_norm(&t[0], [&t[1], &t[2]], 1e-2)?]));
        assert_gradients("add_layer_norm", &[x, x, w, w], &|t| {
            let (sum, out) = layer_norm::add_layer_norm(&t[0], &t[1], [&t[2], &t[3]], 1e-2)?;
            Ok(vec![sum, out])
        });
    }
}

#[test]
fn query_and_key_norms() {
    for (n, heads, kv_heads, size) in [(1, 1, 1, 1), (3, 4, 2, 5), (33, 2, 1, 3)] {
        let heads = Heads { heads, kv_heads, size };
        assert_gradients("qk_norm", &[&[n, heads.row()], &[size], &[size]], &|t| {
            Ok(vec![rms_norm::qk_norm(&t[0], [&t[1], &t[2]], heads, 1e-2)?])
        });
    }
}

#[test]
fn activations() {
    for (n, f) in [(1, 1), (3, 7), (70, 5)] {
        assert_gradients("swiglu", &[&[n, 2 * f]], &|t| Ok(vec![swiglu::swiglu(&t[0])?]));
        assert_gradients("gelu", &[&[n, f]], &|t| Ok(vec![gelu::gelu(&t[0])?]));
        assert_gradients("scalar_head", &[&[n, f], &[1, f]], &|t| Ok(vec![scalar_head::scalar_head(&t[0], &t[1])?]));
    }
}

#[test]
fn rotary_positions() {
    let table = tensor(&[4, 6], &random(24, 77));
    for positions in [&[0][..], &[3, 0, 1, 2, 3]] {
        let n = positions.len();
        assert_gradients("rope", &[&[n, 3, 6]], &|t| Ok(vec![rope::rope(&t[0], &table, &ints(positions), 2)?]));
    }
}

#[test]
fn attention_over_packed_sequences() {
    for (heads, kv_heads, size) in [(1, 1, 2), (2, 1, 6), (4, 2, 5), (3, 3, 17)] {
        for lengths in [&[1][..], &[3, 1, 6], &[0, 5, 0], &[19]] {
            let heads = Heads { heads, kv_heads, size };
            let n: usize = lengths.iter().sum();
            let sequences = Sequences::new(&Device::Cpu, lengths).unwrap();
            assert_gradients("attention", &[&[n, heads.row()]], &|t| Ok(vec![attention(&t[0], &sequences, heads)?]));
        }
    }
}

#[test]
fn attention_over_a_long_sequence() {
    let heads = Heads { heads: 1, kv_heads: 1, size: 2 };
    let sequences = Sequences::new(&Device::Cpu, &[70]).unwrap();
    assert_gradients("attention", &[&[70, heads.row()]], &|t| Ok(vec![attention(&t[0], &sequences, heads)?]));
}

#[test]
fn head_and_log_probabilities() {
    for (n, v, c) in [(1, 1, 1), (1, 9, 3), (6, 17, 5), (70, 3, 2)] {
        let targets: Vec<i32> = (0..n).map(|i| ((i * 7) % v) as i32).collect();
        for temperature in [1.0, 0.7] {
            assert_gradients("token_logprobs", &[&[n, c], &[v, c]], &|t| {
                let out = token_logprobs::token_logprobs(&t[0], &t[1], &ints(&targets), temperature)?;
                // A vocabulary of one token has gradients of zero, which no relative error can measure.
                if v == 1 {
                    Ok(vec![out.logprobs, elementwise::add(&t[0], &t[0])?, matmul::linear(&t[0], &t[1], None)?])
                } else {
                    Ok(vec![out.logprobs, out.entropy])
                }
            });
        }
    }
}

#[test]
fn pairwise() {
    for p in [1, 5, 70] {
        let margin = tensor(&[p], &random(p, 50));
        assert_gradients("pairwise_loss", &[&[2 * p]], &|t| {
            Ok(vec![pairwise_loss::pairwise_loss(&t[0], &margin, 0.03, 1.0 / p as f64)?.0])
        });
    }
}

#[test]
fn ppo() {
    for n in [1, 9, 130] {
        let constant = |stream| tensor(&[n], &random(n, stream));
        for dual_clip in [None, Some(1.3)] {
            let coefficients = ppo_loss::Coefficients {
                cliprange_low: 0.6,
                cliprange_high: 0.9,
                cliprange_value: 0.7,
                vf_coef: 0.3,
                dual_clip,
                scale: 1.0 / n as f64,
            };
            assert_gradients("ppo_loss", &[&[n], &[n]], &|t| {
                // The inputs pass through an addition, so that a clipped token's zero gradient is measured beside
                // others.
                let tokens = ppo_loss::Tokens {
                    logprobs: t[0].clone(),
                    old_logprobs: constant(31),
                    advantages: constant(32),
                    values: t[1].clone(),
                    old_values: constant(33),
                    returns: constant(34),
                };
                let (loss, _) = ppo_loss::ppo_loss(&tokens, coefficients)?;
                Ok(vec![loss, elementwise::add(&t[0], &t[1])?])
            });
        }
    }
}
