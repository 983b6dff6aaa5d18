//! Operations on rows: norms, activations, rotary positions, sums, embeddings, the scalar head.

use super::super::engine::normal;
use super::super::{Case, Engine, Output};
use super::DTYPES;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::attention::Heads;
use crate::ops::{elementwise, embedding, gelu, layer_norm, rms_norm, rope, scalar_head, swiglu};
use crate::tensor::Tensor;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in DTYPES {
        norms(&mut cases, dtype);
        activations(&mut cases, dtype);
        positions(&mut cases, dtype);
        sums(&mut cases, dtype);
        embeddings(&mut cases, dtype);
    }
    cases
}

fn norms(cases: &mut Vec<Case>, dtype: DType) {
    // Rows and widths: 1, primes, the borders of a team of threads (32, 1024) and of a chunk of rows, wide rows.
    let sizes = [[1, 8], [5, 8], [31, 64], [33, 96], [65, 123], [7, 128], [199, 32], [9, 768], [3, 1024], [3, 1025]];
    for [n, c] in sizes.into_iter().chain([[17, 1536], [2, 4096], [2, 5001], [1, 8192]]) {
        let shape = format!("N {n} C {c}");
        cases.push(Case::new("rms_norm", shape.clone(), dtype, move |e| normed(e, [n, c], false, false)));
        cases
            .push(Case::new("rms_norm", format!("{shape} + residual"), dtype, move |e| normed(e, [n, c], false, true)));
        cases.push(Case::new("layer_norm", shape.clone(), dtype, move |e| normed(e, [n, c], true, false)));
        cases.push(Case::new("layer_norm", format!("{shape} + residual"), dtype, move |e| {
            normed(e, [n, c], true, true)
        }));
    }
    for [n, heads, kv_heads, size] in [[1, 1, 1, 8], [5, 6, 2, 64], [13, 2, 1, 128], [67, 3, 3, 24]] {
        let shape = format!("N {n} heads {heads}:{kv_heads} HD {size}");
        let heads = Heads { heads, kv_heads, size };
        cases.push(Case::new("rms_norm", format!("{shape} inside qkv"), dtype, move |e| head_norms(e, n, heads)));
    }
}

const EPS: f64 = 1e-5;

fn normed(e: &Engine, [n, c]: [usize; 2], centred: bool, residual: bool) -> Result<Vec<Output>> {
    // Off centre, so that a variance that forgets the mean shows.
    let shifted: Vec<f64> = normal(n * c, 1).iter().map(|x| x + 1.5).collect();
    let x = e.parameter(&[n, c], &shifted)?;
    let delta = e.parameter(&[n, c], &normal(n * c, 2))?;
    let (w, b) = (e.parameter(&[c], &normal(c, 3))?, e.parameter(&[c], &normal(c, 4))?);
    let mut outputs = Vec::new();
    if residual {
        // The host does it in two steps, because the sum between them is stored, and so rounded.
        let (sum, out) = match (&e.device, centred) {
            (Device::Gpu(_), true) => layer_norm::add_layer_norm(&x, &delta, [&w, &b], EPS)?,
            (Device::Gpu(_), false) => rms_norm::add_rms_norm(&x, &delta, &w, EPS)?,
            (Device::Cpu, _) => {
                let sum = elementwise::add(&x, &delta)?;
                e.store(&sum)?;
                let out = norm(&sum, &w, &b, centred)?;
                (sum, out)
            }
        };
        outputs.extend([e.output("sum", &sum)?, e.output("out", &out)?]);
        e.backward(&[&sum, &out])?;
        outputs.extend([e.gradient("dinp", &x)?, e.gradient("ddelta", &delta)?]);
    } else {
        let out = norm(&x, &w, &b, centred)?;
        outputs.push(e.output("out", &out)?);
        e.backward(&[&out])?;
        outputs.push(e.gradient("dinp", &x)?);
    }
    outputs.push(e.wide_gradient("dweight", &w)?);
    if centred {
        outputs.push(e.wide_gradient("dbias", &b)?);
    }
    Ok(outputs)
}

fn norm(x: &Tensor, w: &Tensor, b: &Tensor, centred: bool) -> Result<Tensor> {
    if centred { layer_norm::layer_norm(x, [w, b], EPS) } else { rms_norm::rms_norm(x, w, EPS) }
}

fn head_norms(e: &Engine, n: usize, heads: Heads) -> Result<Vec<Output>> {
    let qkv = e.parameter(&[n, heads.row()], &normal(n * heads.row(), 1))?;
    let weights =
        [e.parameter(&[heads.size], &normal(heads.size, 2))?, e.parameter(&[heads.size], &normal(heads.size, 3))?];
    let out = rms_norm::qk_norm(&qkv, [&weights[0], &weights[1]], heads, EPS)?;
    let forward = e.output("out", &out)?;
    e.backward(&[&out])?;
    let [q, k] = &weights;
    Ok(vec![forward, e.gradient("dqkv", &qkv)?, e.wide_gradient("dq", q)?, e.wide_gradient("dk", k)?])
}

fn activations(cases: &mut Vec<Case>, dtype: DType) {
    for [n, f] in [[1, 1], [2, 7], [5, 64], [33, 123], [3, 344], [1, 4864], [70, 40]] {
        for (scale, what) in [(1.0, ""), (30.0, " inputs to 100")] {
            let shape = format!("N {n} F {f}{what}");
            cases.push(Case::new("swiglu", shape.clone(), dtype, move |e| {
                pointwise(e, &[n, 2 * f], scale, swiglu::swiglu)
            }));
            cases.push(Case::new("gelu", shape, dtype, move |e| pointwise(e, &[n, f], scale, gelu::gelu)));
        }
    }
}

fn pointwise(e: &Engine, shape: &[usize], scale: f64, operation: fn(&Tensor) -> Result<Tensor>) -> Result<Vec<Output>> {
    let values: Vec<f64> = normal(shape.iter().product(), 1).iter().map(|x| x * scale).collect();
    let x = e.parameter(shape, &values)?;
    let out = operation(&x)?;
    let forward = e.output("out", &out)?;
    e.backward(&[&out])?;
    Ok(vec![forward, e.gradient("dinp", &x)?])
}

fn positions(cases: &mut Vec<Case>, dtype: DType) {
    for [n, heads, turned, size] in [[1, 1, 1, 2], [3, 4, 3, 8], [17, 3, 2, 64], [5, 4, 4, 80], [9, 2, 1, 128]] {
        let shape = format!("N {n} heads {heads} turned {turned} HD {size}");
        cases.push(Case::new("rope", shape, dtype, move |e| {
            let x = e.parameter(&[n, heads, size], &normal(n * heads * size, 1))?;
            let table = e.wide(&[n + 2, size], &normal((n + 2) * size, 2))?;
            let positions: Vec<i32> = (0..n).map(|i| ((i * 5 + 1) % (n + 2)) as i32).collect();
            let out = rope::rope(&x, &table, &e.ints(&positions)?, turned)?;
            let forward = e.output("out", &out)?;
            e.backward(&[&out])?;
            Ok(vec![forward, e.gradient("dinp", &x)?])
        }));
    }
}

fn sums(cases: &mut Vec<Case>, dtype: DType) {
    for n in [0, 1, 7, 64, 1023, 4099] {
        cases.push(Case::new("elementwise", format!("n {n} add"), dtype, move |e| {
            let (a, b) = (e.parameter(&[n], &normal(n, 1))?, e.parameter(&[n], &normal(n, 2))?);
            // a twice, so that two gradients meet at one tensor.
            let sum = elementwise::add(&a, &b)?;
            e.store(&sum)?;
            let out = elementwise::add(&sum, &a)?;
            let forward = e.output("out", &out)?;
            e.backward(&[&out])?;
            Ok(vec![forward, e.gradient("da", &a)?, e.gradient("db", &b)?])
        }));
    }
    for [r, n] in [[1, 1], [4, 33], [3, 1000], [1, 70001], [2, 0]] {
        if dtype == DType::F32 {
            cases.push(Case::new("elementwise", format!("R {r} n {n} row_sums"), dtype, move |e| {
                let inp = e.wide(&[r, n], &normal(r * n, 1))?;
                Ok(vec![e.wide_output("out", &elementwise::row_sums(&inp)?)?])
            }));
        }
    }
}

fn embeddings(cases: &mut Vec<Case>, dtype: DType) {
    // First and last row of the table, one index many times, widths that no vector divides.
    for (v, c, ids) in [
        (3, 5, vec![0]),
        (3, 8, vec![2, 2, 0, 1, 2]),
        (50, 96, (0..67).map(|i| (i * 31) % 50).collect()),
        (7, 123, vec![6; 40]),
        (9, 1030, vec![0, 8, 8, 3]),
    ] {
        let shape = format!("V {v} C {c} N {}", ids.len());
        let rows = ids.clone();
        cases.push(Case::new("embedding", shape.clone(), dtype, move |e| {
            let table = e.parameter(&[v, c], &normal(v * c, 1))?;
            let out = embedding::embedding(&table, &e.ints(&rows)?)?;
            let forward = e.output("out", &out)?;
            e.backward(&[&out])?;
            Ok(vec![forward, e.wide_gradient("dtable", &table)?])
        }));
        cases.push(Case::new("embedding", format!("{shape} of activations"), dtype, move |e| {
            let inp = e.parameter(&[v, c], &normal(v * c, 1))?;
            let out = embedding::gather_rows(&inp, &e.ints(&ids)?)?;
            let forward = e.output("out", &out)?;
            e.backward(&[&out])?;
            Ok(vec![forward, e.gradient("dinp", &inp)?])
        }));
    }
    for [n, c] in [[1, 1], [5, 64], [33, 96], [130, 123], [3, 1030], [9, 4096]] {
        cases.push(Case::new("scalar_head", format!("N {n} C {c}"), dtype, move |e| {
            let (x, w) = (e.parameter(&[n, c], &normal(n * c, 1))?, e.parameter(&[1, c], &normal(c, 2))?);
            let out = scalar_head::scalar_head(&x, &w)?;
            let forward = e.wide_output("out", &out)?;
            e.wide_backward(&[&out])?;
            Ok(vec![forward, e.gradient("dinp", &x)?, e.wide_gradient("dweight", &w)?])
        }));
    }
}
