//! The end of a decode step.

use super::super::{Case, Engine, Output};
use super::head::integers;
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::advance::{Rows, Rule, Start, advance};
use crate::ops::sample::Drawn;
use crate::random::Stage;
use crate::tensor::Tensor;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (rows, stop) in [(1, &[3][..]), (31, &[]), (128, &[7, 2]), (129, &[0]), (300, &[9, 1, 5])] {
        let shape = format!("B {rows} stop {stop:?}");
        cases.push(Case::new("advance", shape, DType::F32, move |e| advanced(e, rows, stop)));
    }
    cases
}

/// Rows that decode for more steps than the window keeps: rows that stop, that come to their end, that meet a logit
/// which is not finite, and that are finished from the start.
fn advanced(e: &Engine, rows: usize, stop: &[i32]) -> Result<Vec<Output>> {
    let (window, most) = (3, 5);
    let rule =
        Rule { stop: e.ints(stop)?, most, seed: 0x1234_5678_9abc_def0, stage: Stage::Rollout, step: 0xffff_fff1 };
    let starts: Vec<Start> = (0..rows)
        .map(|i| Start {
            id: i as i32,
            position: i % 7,
            slot: rows - 1 - i,
            count: i % 4,
            number: 1000 + i as u32,
            finished: i % 5 == 4,
        })
        .collect();
    let state = Rows::new(&e.device, &starts, window, &rule)?;
    let mut outputs = Vec::new();
    for step in 0..6 {
        let drawn = Drawn {
            tokens: e.ints(&(0..rows).map(|i| ((i * 5 + step * 3) % 11) as i32).collect::<Vec<_>>())?,
            bad: e.ints(&(0..rows).map(|i| if (i + step) % 13 == 12 { i as i32 } else { -1 }).collect::<Vec<_>>())?,
        };
        let logprobs: Vec<f32> = (0..rows).map(|i| -((i * 6 + step) as f32)).collect();
        advance(&state, &drawn, &Tensor::new(&e.device, &[rows], logprobs)?, &rule)?;
        outputs.extend(state.columns().into_iter().map(|(name, t)| integers(name, t)).collect::<Result<Vec<_>>>()?);
        let floats = |name, t: &Tensor| Ok(Output { name, values: t.to_f64()?, is_gradient: false });
        outputs.extend([floats("uniforms", &state.uniforms)?, floats("logprobs", state.logprobs())?]);
    }
    Ok(outputs)
}
