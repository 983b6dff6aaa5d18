//! What stands on logits: log-probabilities, entropy and their gradient, and sampling.

use super::super::engine::normal;
use super::super::{Case, Engine, Output};
use super::DTYPES;
use crate::cpu;
use crate::cpu::math::Real;
use crate::cpu::token_logprobs::OUTPUTS;
use crate::device::Device;
use crate::error::Result;
use crate::ops::matmul::linear;
use crate::ops::sample::{Sampling, sample};
use crate::ops::token_logprobs::{of_logits, token_logprobs};
use crate::tensor::{Element, Tensor, floats};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in DTYPES {
        for [n, v, c] in [[1, 1, 1], [1, 2, 3], [5, 111, 8], [33, 256, 24], [7, 257, 16], [3, 1000, 40], [2, 9001, 8]] {
            for temperature in [1.0, 0.7] {
                let shape = format!("N {n} V {v} C {c} temperature {temperature}");
                cases.push(Case::new("token_logprobs", shape, dtype, move |e| head(e, [n, v, c], temperature)));
            }
        }
        for (what, scale) in [("equal logits", 0.0), ("logits to 1e4", 3e3)] {
            cases.push(Case::new("token_logprobs", format!("R 5 V 300 {what}"), dtype, move |e| {
                let logits = e.tensor(&[5, 300], &normal(1500, 1).iter().map(|x| x * scale).collect::<Vec<_>>())?;
                let values = of_logits(&logits, &[0, 299, 150, 7, 8], 1.0)?.into_iter().map(f64::from).collect();
                Ok(vec![Output { name: "logprobs", values, is_gradient: false }])
            }));
        }
        // Widths against the chunks of 16 bytes and the lanes, aligned or not, with the largest logit in each place.
        for v in [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 31, 33, 64, 263, 272] {
            cases.push(Case::new("token_logprobs", format!("R V V {v} one large logit"), dtype, move |e| {
                let mut logits = normal(v * v, 3);
                (0..v).for_each(|r| logits[r * v + r] = 200.0 + r as f64);
                let targets: Vec<i32> = (0..v).map(|r| (r * 7 % v) as i32).collect();
                let values = of_logits(&e.tensor(&[v, v], &logits)?, &targets, 1.0)?;
                Ok(vec![Output {
                    name: "logprobs",
                    values: values.into_iter().map(f64::from).collect(),
                    is_gradient: false,
                }])
            }));
            cases.push(Case::new("token_logprobs", format!("N 2 V {v} C 3 all outputs"), dtype, move |e| {
                head(e, [2, v, 3], 1.0)
            }));
        }
        // Every width of the last chunk after a first round of a block's threads.
        for v in (129..=136).chain(257..=264) {
            let shape = format!("N 3 V {v} C 3 all outputs");
            cases.push(Case::new("token_logprobs", shape, dtype, move |e| head(e, [3, v, 3], 1.0)));
        }
        for (top_k, top_p, temperature) in [
            (0, 1.0, 1.0),
            (0, 1.0, 0.0),
            (1, 1.0, 0.7),
            (10, 1.0, 1.3),
            (0, 0.5, 1.0),
            (50, 0.9, 0.8),
            (400, 0.1, 1.0),
        ] {
            for [r, v] in [[1, 1], [9, 111], [33, 256], [3, 1000], [2, 9001]] {
                let shape = format!("R {r} V {v} top-k {top_k} top-p {top_p} temperature {temperature}");
                let sampling = Sampling { temperature, top_k, top_p };
                cases.push(Case::new("sample", shape, dtype, move |e| drawn(e, [r, v], &sampling)));
            }
        }
    }
    cases
}

fn head(e: &Engine, [n, v, c]: [usize; 3], temperature: f64) -> Result<Vec<Output>> {
    let (x, w) = (e.parameter(&[n, c], &normal(n * c, 1))?, e.parameter(&[v, c], &normal(v * c, 2))?);
    // First and last id, and ids between.
    let targets: Vec<i32> = (0..n).map(|i| if i % 3 == 1 { v as i32 - 1 } else { ((i * 17) % v) as i32 }).collect();
    if e.device == Device::Cpu {
        return floats!(x, T => in_steps::<T>(e, [&x, &w], &targets, temperature));
    }
    let out = token_logprobs(&x, &w, &e.ints(&targets)?, temperature)?;
    let mut outputs = vec![e.wide_output("logprobs", &out.logprobs)?, e.wide_output("entropy", &out.entropy)?];
    outputs.push(e.wide_output("hits", &out.hits)?);
    e.wide_backward(&[&out.logprobs, &out.entropy])?;
    outputs.extend([e.gradient("dhidden", &x)?, e.wide_gradient("dweight", &w)?]);
    Ok(outputs)
}

/// The same on the host in steps, because logits and their gradient are stored between them, and so rounded.
fn in_steps<T: Real + Element>(
    e: &Engine,
    [x, w]: [&Tensor; 2],
    targets: &[i32],
    temperature: f64,
) -> Result<Vec<Output>> {
    let logits = linear(&x.detach(), &w.detach(), None)?;
    e.store(&logits)?;
    let (n, v) = (logits.rows(), logits.width());
    let mut rows = vec![T::ZERO; n * OUTPUTS];
    cpu::token_logprobs::forward(&mut rows, &logits.read::<T>(), targets, v, T::of(temperature));
    let column = |i: usize| rows.chunks_exact(OUTPUTS).map(|row| row[i]).collect::<Vec<T>>();
    let output = |name, i| e.wide_output(name, &Tensor::new(&e.device, &[n], column(i))?);
    let mut outputs = vec![output("logprobs", 0)?, output("entropy", 1)?, output("hits", 2)?];
    let dout = |i| Ok::<_, crate::error::Error>(e.wide_dout(i, &[n])?.read::<T>().to_vec());
    let (dlogprobs, dentropy) = (dout(0)?, dout(1)?);
    let stats = [&column(1)[..], &column(3)[..]];
    let gradient = logits.duplicate()?;
    let mut dlogits = gradient.write::<T>();
    cpu::token_logprobs::backward(&mut dlogits, stats, &dlogprobs, Some(&dentropy), targets, v, T::of(temperature));
    drop(dlogits);
    e.store(&gradient)?;
    let out = linear(x, w, None)?;
    e.backward_with(&[&out], vec![Some(gradient)])?;
    outputs.extend([e.gradient("dhidden", x)?, e.wide_gradient("dweight", w)?]);
    Ok(outputs)
}

/// Uniform numbers from the middle of a step of the cumulative distribution would agree always; these fall where they
/// fall, and agree because all engines see the same rounded logits.
fn drawn(e: &Engine, [r, v]: [usize; 2], sampling: &Sampling) -> Result<Vec<Output>> {
    let logits = e.tensor(&[r, v], &normal(r * v, 1))?;
    let uniforms: Vec<f32> = (0..r).map(|i| ((i as f32 + 0.37) * 0.618_034).fract()).collect();
    let tokens = sample(&logits, &uniforms, sampling)?;
    Ok(vec![Output { name: "tokens", values: tokens.into_iter().map(f64::from).collect(), is_gradient: false }])
}
