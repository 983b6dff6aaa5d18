//! The gradient's norm and AdamW over flat buffers.

use super::super::engine::normal;
use super::super::{Case, Engine, Output};
use super::DTYPES;
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::adamw::{Step, Weights, adamw};
use crate::ops::global_norm::clip;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for n in [1, 7, 1023, 16384, 16385, 100_003] {
        for max_norm in [0.0, 0.5, 1e6] {
            let shape = format!("n {n} max norm {max_norm}");
            cases.push(Case::new("global_norm", shape, DType::F32, move |e| {
                let state = clip(&e.wide(&[n], &normal(n, 1))?, max_norm)?.state.to_f64()?;
                Ok(vec![Output { name: "norm, scale", values: vec![state[2], state[0]], is_gradient: false }])
            }));
        }
    }
    for dtype in DTYPES {
        for n in [1, 7, 1023, 4096, 10_003] {
            cases.push(Case::new("adamw", format!("n {n} three steps"), dtype, move |e| steps(e, n)));
        }
    }
    cases
}

fn steps(e: &Engine, n: usize) -> Result<Vec<Output>> {
    let masters = e.wide(&[n], &normal(n, 1))?;
    let (m, v) = (e.wide(&[n], &vec![0.0; n])?, e.wide(&[n], &vec![0.0; n])?);
    let rounded = e.tensor(&[n], &vec![0.0; n])?;
    let has_copy = rounded.dtype() == DType::BF16;
    let weights = Weights { masters: &masters, rounded: has_copy.then_some(&rounded), decayed: n / 3 };
    for t in 1..=3 {
        let grads = e.wide(&[n], &normal(n, 10 + t as u32))?;
        let step = Step { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, t };
        adamw(&weights, [&m, &v], &grads, &step, &clip(&grads, 1.0)?)?;
    }
    let copy = if has_copy { &rounded } else { &masters };
    let mut outputs = vec![e.wide_output("m", &m)?, e.wide_output("v", &v)?, e.wide_output("weights", &masters)?];
    let mut copied = e.wide_output("copy", copy)?;
    if !has_copy {
        // The host has no copy; what it would hold is the rounded weight.
        copied.values.iter_mut().for_each(|x| *x = e.rounded(*x));
    }
    outputs.push(copied);
    Ok(outputs)
}
