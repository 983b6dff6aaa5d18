//! Every operation's backward rule against central differences of its forward, in f64, at several shapes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::autograd::{Grad, Origin, Root, backward, checkpoint, record};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::attention::{Heads, Sequences, attention};
use crate::ops::token_logprobs::Objective;
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
    worst_error_of_root(shapes, &|inputs| {
        let loss = weighted(&forward(inputs)?);
        let value = loss.to_f64()?[0];
        Ok((value, Root::new([(&loss, tensor(&[1], &[1.0]))])))
    })
}

/// A loss that is a root: its value and its gradients.
type Loss<'a> = &'a dyn Fn(&[Tensor]) -> Result<(f64, Root)>;

/// The same of a loss that is a root.
fn worst_error_of_root(shapes: &[&[usize]], loss: Loss<'_>) -> f64 {
    let values: Vec<Vec<f64>> = shapes.iter().enumerate().map(|(i, s)| random(s.iter().product(), i as u32)).collect();
    let inputs: Vec<Tensor> = shapes.iter().zip(&values).map(|(s, v)| parameter(s, v)).collect();
    loss(&inputs).unwrap().1.backward().unwrap();
    let evaluate = |at: usize, i: usize, delta: f64| {
        let mut values = values.clone();
        values[at][i] += delta;
        let inputs: Vec<Tensor> = shapes.iter().zip(&values).map(|(s, v)| tensor(s, v)).collect();
        loss(&inputs).unwrap().0
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

fn assert_root_gradients(name: &str, shapes: &[&[usize]], loss: Loss<'_>) {
    let worst = worst_error_of_root(shapes, loss);
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

/// The exact log-probabilities less these are the old ones: ratios inside their range and outside, none at a border.
const AWAY: [f64; 5] = [0.1, -0.7, 0.9, -0.2, 0.3];

#[test]
fn head_losses() {
    // A vocabulary of one token has gradients of zero, which no relative error can measure.
    for (n, v, c) in [(1, 2, 1), (1, 9, 3), (6, 17, 5), (70, 3, 2)] {
        let targets: Vec<i32> = (0..n).map(|i| ((i * 7) % v) as i32).collect();
        let targets = ints(&targets);
        for temperature in [1.0, 0.7] {
            let (x, w) = (tensor(&[n, c], &random(n * c, 0)), tensor(&[v, c], &random(v * c, 1)));
            let exact = token_logprobs::token_logprobs(&x, &w, &targets, temperature).unwrap().logprobs;
            let old: Vec<f64> = exact.to_f64().unwrap().iter().zip(AWAY.iter().cycle()).map(|(l, a)| l - a).collect();
            let (old_logprobs, advantages) = (&tensor(&[n], &old), &tensor(&[n], &random(n, 32)));
            let clipped = |dual_clip| {
                let coefficients = coefficients(n, dual_clip);
                Objective::Clipped { old_logprobs, advantages, coefficients, entropy_coef: 0.4 }
            };
            let check = |name: &str, objective: &Objective<'_>| {
                assert_root_gradients(name, &[&[n, c], &[v, c]], &|t| {
                    let loss = token_logprobs::loss(&t[0], &t[1], &targets, temperature, objective)?;
                    Ok((loss.value()?, loss.root))
                });
            };
            check("likelihood", &Objective::Likelihood { scale: 0.3 });
            check("clipped", &clipped(None));
            check("clipped twice", &clipped(Some(1.3)));
        }
    }
}

fn coefficients(n: usize, dual_clip: Option<f64>) -> ppo_loss::Coefficients {
    ppo_loss::Coefficients {
        cliprange_low: 0.4,
        cliprange_high: 0.6,
        cliprange_value: 0.7,
        vf_coef: 0.3,
        dual_clip,
        scale: 1.0 / n as f64,
    }
}

#[test]
fn pairwise() {
    for p in [1, 5, 70] {
        let margin = tensor(&[p], &random(p, 50));
        assert_root_gradients("pairwise_loss", &[&[2 * p]], &|t| {
            let loss = pairwise_loss::pairwise_loss(&t[0], &margin, 0.03, 1.0 / p as f64)?;
            Ok((loss.loss.to_f64()?[0], loss.root))
        });
    }
}

#[test]
fn ppo() {
    for n in [5, 9, 130] {
        let constant = |stream| tensor(&[n], &random(n, stream));
        for dual_clip in [None, Some(1.3)] {
            assert_root_gradients("ppo_loss", &[&[n], &[n]], &|t| {
                let tokens = ppo_loss::Tokens {
                    logprobs: t[0].clone(),
                    old_logprobs: constant(31),
                    advantages: constant(32),
                    values: t[1].clone(),
                    old_values: constant(33),
                    returns: constant(34),
                };
                let loss = ppo_loss::ppo_loss(&tokens, &coefficients(n, dual_clip))?;
                Ok((loss.loss.to_f64()?[0], loss.root))
            });
        }
    }
}

/// An MLP block whose weights t[1], t[2] are parameters of the segment and not its inputs.
fn segment(t: &[Tensor]) -> impl Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + Sync + 'static {
    let (up, down) = (t[1].clone(), t[2].clone());
    move |x| {
        let active = gelu::gelu(&matmul::linear(&x[0], &up, None)?)?;
        Ok(vec![matmul::linear(&active, &down, None)?, elementwise::add(&x[0], &active)?])
    }
}

const SEGMENT: &[&[usize]] = &[&[3, 4], &[4, 4], &[4, 4]];

#[test]
fn segments_that_run_again() {
    assert_gradients("checkpoint", SEGMENT, &|t| checkpoint(&[&t[0]], segment(t)));
    // The weights inside are used outside too, before and after, and the input passes by the segment.
    assert_gradients("shared parameters", SEGMENT, &|t| {
        let before = matmul::linear(&t[0], &t[1], None)?;
        let inside = checkpoint(&[&before], segment(t))?;
        let after = elementwise::add(&matmul::linear(&inside[0], &t[2], None)?, &before)?;
        Ok(vec![after, inside[1].clone()])
    });
    assert_gradients("a segment in a segment", SEGMENT, &|t| {
        let (outer, inner) = (segment(t), Arc::new(segment(t)));
        checkpoint(&[&t[0]], move |x| {
            let inner = inner.clone();
            let first = checkpoint(&[&x[0]], move |x| inner(x))?;
            outer(&[elementwise::add(&first[0], &first[1])?])
        })
    });
    // An output without a gradient, and an input of which nothing is asked.
    assert_gradients("one of two outputs", SEGMENT, &|t| Ok(vec![checkpoint(&[&t[0]], segment(t))?.remove(0)]));
    assert_gradients("no input with a gradient", &SEGMENT[1..], &|t| {
        let all = [tensor(&[3, 4], &random(12, 40)), t[0].clone(), t[1].clone()];
        checkpoint(&[&all[0]], segment(&all))
    });
}

#[test]
fn recipes() {
    assert_gradients("again", SEGMENT, &|t| {
        let up = matmul::linear(&t[0], &t[1], None)?;
        let saved = up.detach();
        let active = gelu::gelu(&up)?.again(move || gelu::gelu(&saved));
        Ok(vec![matmul::linear(&active, &t[2], None)?])
    });
}

/// What runs again must be what ran: a second run with other values shows in the gradients.
#[test]
fn a_second_run_that_differs_is_found() {
    let wrong = |t: &[Tensor]| {
        let (runs, segment) = (AtomicUsize::new(0), segment(t));
        checkpoint(&[&t[0]], move |x| {
            let again = runs.fetch_add(1, Ordering::Relaxed) > 0;
            if again { segment(&[elementwise::add(&x[0], &x[0])?]) } else { segment(x) }
        })
    };
    assert!(worst_error(SEGMENT, &wrong) > 0.1);
    let wrong = |t: &[Tensor]| {
        let up = matmul::linear(&t[0], &t[1], None)?;
        let active = gelu::gelu(&up)?.again(|| Ok(tensor(&[3, 4], &[1.0; 12])));
        Ok(vec![matmul::linear(&active, &t[2], None)?])
    };
    assert!(worst_error(SEGMENT, &wrong) > 0.1);
}

#[test]
fn an_activation_that_is_no_input_is_refused() {
    let x = parameter(&[3, 4], &random(12, 41));
    let outside = elementwise::add(&x, &x).unwrap();
    let outputs = checkpoint(&[&x], move |x| Ok(vec![elementwise::add(&x[0], &outside)?])).unwrap();
    assert_eq!(backward(weighted(&outputs)).unwrap_err().id(), "checkpoint-input");
}
