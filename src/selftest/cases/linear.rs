//! Matrix products through the linear layer, with bias and gradients: `gemm.cu` in its three layouts, `column_sum.cu`.

use super::super::engine::normal;
use super::super::{Case, Engine, Output};
use super::DTYPES;
use crate::error::Result;
use crate::ops::matmul::linear;

/// Rows, inputs, outputs: 1, a prime, the tile and its neighbours, sizes that no vector divides, nothing, many rows.
const SIZES: [[usize; 3]; 15] = [
    [1, 1, 1],
    [7, 13, 5],
    [15, 16, 17],
    [16, 64, 64],
    [63, 65, 64],
    [64, 64, 63],
    [65, 63, 66],
    [64, 128, 128],
    [1, 256, 129],
    [100, 96, 72],
    [129, 33, 31],
    [3, 520, 40],
    [200, 24, 136],
    [0, 8, 8],
    [257, 64, 10],
];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in DTYPES {
        for [n, c, o] in SIZES {
            for bias in [false, true] {
                let shape = format!("N {n} C {c} O {o}{}", if bias { " bias" } else { "" });
                cases.push(Case::new("gemm", shape, dtype, move |e| layer(e, [n, c, o], bias, 1)));
            }
        }
        cases.push(Case::new("gemm", "N 33 C 40 O 24 twice", dtype, |e| layer(e, [33, 40, 24], true, 2)));
        for [n, o] in [[1, 1], [7, 33], [64, 1025], [200, 96], [1000, 40]] {
            let shape = format!("N {n} O {o} bias alone");
            cases.push(Case::new("column_sum", shape, dtype, move |e| layer(e, [n, 8, o], true, 1)));
        }
    }
    cases
}

/// y = x W^T + b and its gradients, which are added up over `times` passes.
fn layer(e: &Engine, [n, c, o]: [usize; 3], bias: bool, times: usize) -> Result<Vec<Output>> {
    let w = e.parameter(&[o, c], &normal(o * c, 2))?;
    let b = e.parameter(&[o], &normal(o, 3))?;
    let mut outputs = Vec::new();
    for pass in 0..times {
        let x = e.parameter(&[n, c], &normal(n * c, 10 + pass as u32))?;
        let y = linear(&x, &w, bias.then_some(&b))?;
        outputs.push(e.output("out", &y)?);
        e.backward(&[&y])?;
        outputs.push(e.gradient("dinp", &x)?);
    }
    outputs.push(e.wide_gradient("dweight", &w)?);
    if bias {
        outputs.push(e.wide_gradient("dbias", &b)?);
    }
    Ok(outputs)
}
