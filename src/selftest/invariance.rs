//! A row's result does not depend on what else is in the batch, nor a token's on whether its sequence is trained on,
//! prefilled or decoded: the same bits, on the emulator.

use super::engine::normal;
use super::tests::{bits, emulated};
use super::{Engine, Output};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::append::{Continued, LayerCache, QueriesKeys};
use crate::ops::attention::{Heads, Sequences, attention};
use crate::ops::matmul::linear;
use crate::ops::ppo_loss::Coefficients;
use crate::ops::sample::{Sampling, sample};
use crate::ops::token_logprobs::{HeadLoss, Objective, loss, token_logprobs};
use crate::ops::{gelu, layer_norm, rms_norm, rope, scalar_head, swiglu};
use crate::ptx::Options;
use crate::tensor::Tensor;

/// Batches of rows that have a name each: one row, the warp and the tiles (16, 64) and beyond them, any order, a row
/// more than once. The last holds all rows.
fn batches() -> Vec<Vec<u32>> {
    let reversed = (0..31).rev().collect();
    vec![
        vec![0],
        vec![77],
        vec![5, 77],
        reversed,
        (60..77).collect(),
        (13..78).collect(),
        vec![77; 3],
        (0..130).collect(),
    ]
}

/// Rows of normal numbers, each from its name alone.
fn values(rows: &[u32], width: usize, what: u32) -> Vec<f64> {
    rows.iter().flat_map(|row| normal(width, 1000 * what + row)).collect()
}

fn rows_of(e: &Engine, rows: &[u32], width: usize, what: u32) -> Result<Tensor> {
    e.parameter(&[rows.len(), width], &values(rows, width, what))
}

fn weight(e: &Engine, shape: &[usize]) -> Result<Tensor> {
    e.tensor(shape, &normal(shape.iter().product(), 3))
}

/// `out`, and the gradient at `x` for output gradients from the rows' names.
fn both(e: &Engine, rows: &[u32], x: &Tensor, out: &Tensor) -> Result<Vec<Output>> {
    let forward = e.output("out", out)?;
    let dout = Tensor::from_f64(&e.device, out.dtype(), out.shape(), &values(rows, out.len() / rows.len(), 9))?;
    e.backward_with(&[out], vec![Some(dout)])?;
    Ok(vec![forward, e.gradient("dinp", x)?])
}

const COEFFICIENTS: Coefficients = Coefficients {
    cliprange_low: 0.2,
    cliprange_high: 0.2,
    cliprange_value: 0.2,
    vf_coef: 0.1,
    dual_clip: None,
    scale: 0.1,
};

/// Every row of every batch against the same row of the last batch. `operation` gives a row for each name.
fn hold(name: &str, operation: impl Fn(&Engine, &[u32]) -> Result<Vec<Output>>) {
    for dtype in [DType::BF16, DType::F32] {
        let run = |rows: &[u32]| {
            let engine = Engine::device(&emulated(Options::default()), dtype);
            operation(&engine, rows).unwrap_or_else(|error| panic!("{name} {dtype}: {error}"))
        };
        let mut batches = batches();
        let all = run(&batches.pop().unwrap());
        for batch in batches {
            for (ours, all) in run(&batch).iter().zip(&all) {
                let (width, whole) = (ours.values.len() / batch.len(), all.values.len() / 130);
                assert!(width == whole && width > 0, "{name}: {} has rows of {width} and {whole}", ours.name);
                for (at, row) in batch.iter().enumerate() {
                    let (here, there) = (at * width, *row as usize * width);
                    let same = bits(&ours.values[here..][..width]) == bits(&all.values[there..][..width]);
                    assert!(same, "{name} {dtype}: {} of row {row} differs in {batch:?}", ours.name);
                }
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    const EPS: f64 = 1e-5;
    hold("linear", |e, rows| {
        let x = rows_of(e, rows, 72, 1)?;
        both(e, rows, &x, &linear(&x, &weight(e, &[40, 72])?, Some(&weight(e, &[40])?))?)
    });
    for width in [96, 1300] {
        hold("rms_norm", |e, rows| {
            let x = rows_of(e, rows, width, 1)?;
            both(e, rows, &x, &rms_norm::rms_norm(&x, &weight(e, &[width])?, EPS)?)
        });
        hold("layer_norm", |e, rows| {
            let (x, w) = (rows_of(e, rows, width, 1)?, weight(e, &[width])?);
            both(e, rows, &x, &layer_norm::layer_norm(&x, [&w, &w], EPS)?)
        });
    }
    hold("rope", |e, rows| {
        let (x, table) = (rows_of(e, rows, 3 * 24, 1)?, e.wide(&[130, 24], &normal(130 * 24, 2))?);
        let x = x.reshape(&[rows.len(), 3, 24])?;
        let positions = e.ints(&rows.iter().map(|row| *row as i32).collect::<Vec<_>>())?;
        both(e, rows, &x, &rope::rope(&x, &table, &positions, 2)?)
    });
    hold("swiglu", |e, rows| {
        let x = rows_of(e, rows, 2 * 45, 1)?;
        both(e, rows, &x, &swiglu::swiglu(&x)?)
    });
    hold("gelu", |e, rows| {
        let x = rows_of(e, rows, 45, 1)?;
        both(e, rows, &x, &gelu::gelu(&x)?)
    });
    hold("scalar_head", |e, rows| {
        let x = rows_of(e, rows, 200, 1)?;
        both(e, rows, &x, &scalar_head::scalar_head(&x, &weight(e, &[1, 200])?)?)
    });
    hold("token_logprobs", |e, rows| {
        let x = rows_of(e, rows, 16, 1)?;
        let targets = e.ints(&rows.iter().map(|row| (row % 90) as i32).collect::<Vec<_>>())?;
        let w = weight(e, &[90, 16])?;
        let alone = token_logprobs(&x.detach(), &w, &targets, 0.8)?;
        let column = |what| e.wide(&[rows.len()], &values(rows, 1, what));
        let objective = Objective::Clipped {
            old_logprobs: &alone.logprobs,
            advantages: &column(5)?,
            coefficients: COEFFICIENTS,
            entropy_coef: 0.1,
        };
        let HeadLoss { root, rows: trained, .. } = loss(&x, &w, &targets, 0.8, &objective)?;
        for (ours, theirs) in [(&trained.logprobs, &alone.logprobs), (&trained.entropy, &alone.entropy)] {
            assert_eq!(bits(&ours.to_f64()?), bits(&theirs.to_f64()?), "what is trained is what a rollout stores");
        }
        root.backward()?;
        let forward = [("logprobs", trained.logprobs), ("entropy", trained.entropy), ("hits", trained.hits)];
        let forward = forward.iter().map(|(name, tensor)| e.wide_output(name, tensor));
        forward.chain([e.gradient("dhidden", &x)]).collect()
    });
    hold("sample", |e, rows| {
        let uniforms: Vec<f32> = rows.iter().map(|row| *row as f32 / 130.0).collect();
        let sampling = Sampling { temperature: 0.9, top_k: 40, top_p: 0.95 };
        let uniforms = Tensor::new(&e.device, &[rows.len()], uniforms)?;
        let tokens = sample(&rows_of(e, rows, 90, 1)?.detach(), &uniforms, &sampling)?.tokens.to_i32()?;
        Ok(vec![Output { name: "tokens", values: tokens.into_iter().map(f64::from).collect(), is_gradient: false }])
    });
}

/// Head counts and sizes: both sizes that the tensor cores have a form for, and one that is filled up.
const HEADS: [[usize; 3]; 4] = [[4, 2, 64], [2, 1, 128], [3, 1, 40], [2, 1, 24]];

/// Weights of norms and angles of positions, for [`before`].
fn prepared(e: &Engine, heads: Heads) -> Result<[Tensor; 3]> {
    let weight = |stream| e.tensor(&[heads.size], &normal(heads.size, stream));
    let table = Tensor::from_f64(&e.device, DType::F32, &[160, heads.size], &normal(160 * heads.size, 7))?;
    Ok([weight(8)?, weight(9)?, table])
}

/// Heads of 40 meet as they are, as in GPT-2; those of 128 are normalised and turned, as in Qwen3; the others turned.
fn before([query, key, table]: &[Tensor; 3], heads: Heads) -> QueriesKeys<'_> {
    QueriesKeys {
        norms: (heads.size == 128).then_some(([query, key], 1e-5)),
        table: (heads.size != 40).then_some(table),
    }
}

/// Lengths of the sequences that a name stands for: a token, the tile (64) and its neighbours, more than two tiles.
const LENGTHS: [usize; 6] = [1, 37, 64, 65, 150, 0];

/// Of one sequence or of the rows `range` of it, from its name.
fn tokens(sequence: usize, width: usize, what: u32) -> Vec<f64> {
    normal(LENGTHS[sequence] * width, 100 * what + sequence as u32)
}

fn all_heads(check: impl Fn(&Engine, Heads)) {
    for [heads, kv_heads, size] in HEADS {
        for dtype in [DType::BF16, DType::F32] {
            check(&Engine::device(&emulated(Options::default()), dtype), Heads { heads, kv_heads, size });
        }
    }
}

/// The result and the gradient of each sequence of a packed batch.
fn trained(e: &Engine, sequences: &[usize], heads: Heads) -> Result<Vec<[Vec<f64>; 2]>> {
    let (row, wide) = (heads.row(), heads.heads * heads.size);
    let packed = |width: usize, what| sequences.iter().flat_map(|s| tokens(*s, width, what)).collect::<Vec<f64>>();
    let lengths: Vec<usize> = sequences.iter().map(|s| LENGTHS[*s]).collect();
    let n = lengths.iter().sum();
    let qkv = e.parameter(&[n, row], &packed(row, 1))?;
    let sequences = Sequences::new(&e.device, &lengths)?;
    let turned = before(&prepared(e, heads)?, heads).apply(&qkv, &sequences.positions, heads)?;
    let out = attention(&turned, &sequences, heads)?;
    let forward = out.to_f64()?;
    e.backward_with(&[&out], vec![Some(e.tensor(&[n, wide], &packed(wide, 2))?)])?;
    let dqkv = e.gradient("dqkv", &qkv)?.values;
    let mut at = 0;
    let parts = lengths.iter().map(|length| {
        let rows = at..at + length;
        at = rows.end;
        [forward[rows.start * wide..rows.end * wide].to_vec(), dqkv[rows.start * row..rows.end * row].to_vec()]
    });
    Ok(parts.collect())
}

#[test]
fn a_sequence_does_not_depend_on_its_batch() {
    all_heads(|e, heads| {
        let all = trained(e, &[0, 1, 2, 3, 4, 5], heads).unwrap();
        for batch in [&[4][..], &[1], &[5, 3, 0], &[2, 4, 1, 4]] {
            for (sequence, ours) in batch.iter().zip(trained(e, batch, heads).unwrap()) {
                for (part, i) in [("out", 0), ("dqkv", 1)] {
                    let same = bits(&ours[i]) == bits(&all[*sequence][i]);
                    assert!(same, "{heads:?}: {part} of sequence {sequence} differs in {batch:?}");
                }
            }
        }
    });
}

/// Two sequences in one cache, in steps of prefill, decode and longer stretches, against the training pass.
fn continued(e: &Engine, heads: Heads, steps: &[[usize; 2]]) -> Result<[Vec<f64>; 2]> {
    let names = [4, 3];
    let (row, wide) = (heads.row(), heads.heads * heads.size);
    let dtype = e.tensor(&[1], &[0.0])?.dtype();
    let cache = LayerCache::new(&e.device, dtype, 3, 160, heads)?;
    let prepared = prepared(e, heads)?;
    let (mut lengths, mut outs) = ([0, 0], [Vec::new(), Vec::new()]);
    for new in steps {
        let mut qkv = Vec::new();
        for i in 0..2 {
            qkv.extend_from_slice(&tokens(names[i], row, 1)[lengths[i] * row..(lengths[i] + new[i]) * row]);
        }
        let qkv = e.tensor(&[new[0] + new[1], row], &qkv)?;
        let rows = Continued::new(&e.device, &[2, 0], new, &lengths)?;
        let out = cache.attention(&qkv, &before(&prepared, heads), &rows, heads)?.to_f64()?;
        let (first, second) = out.split_at(new[0] * wide);
        outs[0].extend_from_slice(first);
        outs[1].extend_from_slice(second);
        lengths = [lengths[0] + new[0], lengths[1] + new[1]];
    }
    Ok(outs)
}

#[test]
fn cached_tokens_are_those_of_training() {
    let decoded: Vec<[usize; 2]> = [[63, 2]].into_iter().chain([[1, 1]; 5]).collect();
    let mixed = [[1, 1], [1, 1], [70, 30], [1, 1], [1, 0], [2, 20], [60, 1]];
    let at_once = [[150, 65]];
    all_heads(|e, heads| {
        let [first, second] = [4, 3].map(|s| trained(e, &[s], heads).unwrap().remove(0)).map(|[out, _]| out);
        for steps in [&decoded[..], &mixed, &at_once] {
            let ours = continued(e, heads, steps).unwrap();
            for (ours, trained) in ours.iter().zip([&first, &second]) {
                assert!(!ours.is_empty());
                assert_eq!(bits(ours), bits(&trained[..ours.len()]), "{heads:?} {steps:?}");
            }
        }
    });
}

/// The control: a bit that differs is seen.
#[test]
#[should_panic(expected = "control bf16: out of row 5 differs in [5, 77]")]
fn a_row_that_depends_on_its_batch_is_noticed() {
    hold("control", |e, rows| {
        let mut values = values(rows, 8, 1);
        if rows.len() == 2 {
            values[3] *= 1.01;
        }
        Ok(vec![e.output("out", &gelu::gelu(&e.tensor(&[rows.len(), 8], &values)?)?)?])
    });
}
