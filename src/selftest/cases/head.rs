//! What stands on logits: log-probabilities, entropy and their gradient, and sampling.

use super::super::engine::normal;
use super::super::{Case, Engine, Output, Run};
use super::DTYPES;
use crate::cpu;
use crate::cpu::math::Real;
use crate::cpu::token_logprobs::{LOSS_OUTPUTS, OUTPUTS};
use crate::device::Device;
use crate::error::Result;
use crate::ops::matmul::linear;
use crate::ops::ppo_loss::Coefficients;
use crate::ops::sample::{Sampling, sample};
use crate::ops::token_logprobs::{HeadLoss, Objective, loss, of_logits, token_logprobs};
use crate::tensor::{Element, Tensor, floats};

/// What is made of the log-probabilities.
#[derive(Debug, Clone, Copy)]
enum Trained {
    Likelihood,
    Clipped,
}
use Trained::{Clipped, Likelihood};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in DTYPES {
        let mut add = |shape: String, run: Run| {
            cases.push(Case::new("token_logprobs", shape, dtype, run));
        };
        for [n, v, c] in [[1, 1, 1], [1, 2, 3], [5, 111, 8], [33, 256, 24], [7, 257, 16], [3, 1000, 40], [2, 9001, 8]] {
            for temperature in [1.0, 0.7] {
                let shape = format!("N {n} V {v} C {c} temperature {temperature}");
                for what in [Likelihood, Clipped] {
                    let run = move |e: &Engine| trained(e, Rows::Normal([n, v, c]), temperature, what);
                    add(format!("{shape} {what:?}"), Box::new(run));
                }
                add(shape, Box::new(move |e| read(e, Rows::Normal([n, v, c]), temperature)));
            }
        }
        for (what, scale) in [("equal logits", 0.0), ("logits to 1e4", 3e3)] {
            add(
                format!("R 5 V 300 {what}"),
                Box::new(move |e| {
                    let logits = e.tensor(&[5, 300], &normal(1500, 1).iter().map(|x| x * scale).collect::<Vec<_>>())?;
                    let targets = e.ints(&[0, 299, 150, 7, 8])?;
                    Ok(vec![e.wide_output("logprobs", &of_logits(&logits, &targets, 1.0)?)?])
                }),
            );
        }
        // Widths against the chunks of 16 bytes and the lanes, aligned or not, with the largest logit in each place.
        for v in [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 31, 33, 64, 263, 272] {
            add(format!("R V V {v} one large logit"), Box::new(move |e| read(e, Rows::OneLarge(v), 1.0)));
            for what in [Likelihood, Clipped] {
                let large = move |e: &Engine| trained(e, Rows::OneLarge(v), 1.0, what);
                add(format!("R V V {v} one large logit {what:?}"), Box::new(large));
            }
            let narrow = move |e: &Engine| trained(e, Rows::Normal([4, v, 3]), 1.0, Clipped);
            add(format!("N 4 V {v} C 3 Clipped"), Box::new(narrow));
        }
        // Every width of the last chunk after a first round of a block's threads.
        for v in (129..=136).chain(257..=264) {
            let what = if v % 2 == 0 { Likelihood } else { Clipped };
            let run = move |e: &Engine| trained(e, Rows::Normal([3, v, 3]), 1.0, what);
            add(format!("N 3 V {v} C 3 {what:?}"), Box::new(run));
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

/// What the head is asked about.
#[derive(Debug, Clone, Copy)]
enum Rows {
    /// Hidden states [N, C] and a weight [V, C] of normal numbers.
    Normal([usize; 3]),
    /// V rows of V logits, each with a large one in another place: their hidden states, and a weight of ones on the
    /// diagonal, so that dhidden is the gradient of the logits.
    OneLarge(usize),
}

impl Rows {
    /// Hidden states, the head's weight, and targets: first and last id, and ids between.
    fn inputs(self, e: &Engine) -> Result<(Tensor, Tensor, Vec<i32>)> {
        match self {
            Rows::Normal([n, v, c]) => {
                let targets = (0..n).map(|i| if i % 3 == 1 { v as i32 - 1 } else { ((i * 17) % v) as i32 }).collect();
                Ok((e.parameter(&[n, c], &normal(n * c, 1))?, e.parameter(&[v, c], &normal(v * c, 2))?, targets))
            }
            Rows::OneLarge(v) => {
                let (mut logits, mut ones) = (normal(v * v, 3), vec![0.0; v * v]);
                (0..v).for_each(|r| (logits[r * v + r], ones[r * v + r]) = (200.0 + r as f64, 1.0));
                let targets = (0..v).map(|r| ((r * 7 + 1) % v) as i32).collect();
                Ok((e.parameter(&[v, v], &logits)?, e.parameter(&[v, v], &ones)?, targets))
            }
        }
    }

    /// Where a logit is large, leaves out numbers that are rounding alone: entropies of e^-190, and sums over
    /// log-probabilities of -200.
    fn retain(self, outputs: &mut Vec<Output>) {
        if let Rows::OneLarge(_) = self {
            outputs.retain(|output| !["entropy", "sums", "dweight"].contains(&output.name));
        }
    }
}

/// Columns [K, N] of rows [N, K].
fn columns<T: Element>(rows: &[T], k: usize) -> Vec<Vec<T>> {
    (0..k).map(|i| rows.chunks_exact(k).map(|row| row[i]).collect()).collect()
}

const COLUMNS: [&str; OUTPUTS] = ["logprobs", "entropy", "hits"];

/// The forward pass alone. On the host in steps, because logits are stored between them, and so rounded.
fn read(e: &Engine, rows: Rows, temperature: f64) -> Result<Vec<Output>> {
    let (x, w, targets) = rows.inputs(e)?;
    let (x, w) = (x.detach(), w.detach());
    let outputs: Vec<Tensor> = if e.device == Device::Cpu {
        let logits = linear(&x, &w, None)?;
        e.store(&logits)?;
        floats!(logits, T => {
            let mut out = vec![T::ZERO; targets.len() * OUTPUTS];
            cpu::token_logprobs::forward(&mut out, &logits.read(), &targets, logits.width(), T::of(temperature));
            columns(&out, OUTPUTS).into_iter().map(|c| Tensor::new(&e.device, &[c.len()], c)).collect()
        })?
    } else {
        let out = token_logprobs(&x, &w, &e.ints(&targets)?, temperature)?;
        vec![out.logprobs, out.entropy, out.hits]
    };
    let outputs = COLUMNS.iter().zip(&outputs).map(|(name, tensor)| e.wide_output(name, tensor));
    let mut all = outputs.collect::<Result<Vec<_>>>()?;
    rows.retain(&mut all);
    Ok(all)
}

/// What PPO's loss needs beside the head: log-probabilities from which the exact ones are so far that ratios fall on
/// both sides of their range, none near its borders; and advantages.
fn answered(e: &Engine, rows: Rows, temperature: f64) -> Result<[Tensor; 2]> {
    let exact = read(&Engine::golden(e.case()), rows, temperature)?.remove(0).values;
    let n = exact.len();
    let far = [0.4, -0.5, 0.1, -0.05, 0.9, 0.0, -0.4];
    let old: Vec<f64> = exact.iter().enumerate().map(|(i, logprob)| logprob - far[i % far.len()]).collect();
    // Both signs at each distance, and one that is small.
    let advantages: Vec<f64> = (0..n).map(|i| [-1.1, 0.8, -0.3, 1.4][i / 2 % 4]).collect();
    Ok([e.wide(&[n], &old)?, e.wide(&[n], &advantages)?])
}

const COEFFICIENTS: Coefficients = Coefficients {
    cliprange_low: 0.2,
    cliprange_high: 0.28,
    cliprange_value: 0.2,
    vf_coef: 0.1,
    dual_clip: Some(2.0),
    scale: 0.6,
};
const ENTROPY_COEF: f64 = 0.25;

/// A loss over the head with its gradients. On the host in steps, because logits and their gradient are stored between
/// them, and so rounded.
fn trained(e: &Engine, rows: Rows, temperature: f64, what: Trained) -> Result<Vec<Output>> {
    let (x, w, targets) = rows.inputs(e)?;
    let [old_logprobs, advantages] = &answered(e, rows, temperature)?;
    let (coefficients, entropy_coef) = (COEFFICIENTS, ENTROPY_COEF);
    let mut outputs = if e.device == Device::Cpu {
        let logits = linear(&x.detach(), &w.detach(), None)?;
        e.store(&logits)?;
        let read = floats!(logits, T => {
            let (old_logprobs, advantages) = (&old_logprobs.read()[..], &advantages.read()[..]);
            let objective = match what {
                Likelihood => cpu::token_logprobs::Objective::Likelihood { scale: COEFFICIENTS.scale },
                Clipped => {
                    cpu::token_logprobs::Objective::Clipped { old_logprobs, advantages, coefficients, entropy_coef }
                }
            };
            Ok(in_steps::<T>(&logits, &targets, temperature, &objective))
        })?;
        e.store(&logits)?;
        e.backward_with(&[&linear(&x, &w, None)?], vec![Some(logits)])?;
        read
    } else {
        let objective = match what {
            Likelihood => Objective::Likelihood { scale: COEFFICIENTS.scale },
            Clipped => Objective::Clipped { old_logprobs, advantages, coefficients, entropy_coef },
        };
        let HeadLoss { root, rows: read, sums } = loss(&x, &w, &e.ints(&targets)?, temperature, &objective)?;
        root.backward()?;
        [read.logprobs, read.entropy, read.hits, sums].iter().map(Tensor::to_f64).collect::<Result<_>>()?
    };
    let names = COLUMNS.into_iter().chain(["sums"]);
    let read = names.zip(&mut outputs).map(|(name, o)| Output { name, values: std::mem::take(o), is_gradient: false });
    let mut all: Vec<Output> = read.chain([e.gradient("dhidden", &x)?, e.wide_gradient("dweight", &w)?]).collect();
    rows.retain(&mut all);
    Ok(all)
}

/// The columns of the rows but the loss, and the sums of all; the logits become their gradient.
fn in_steps<T: Real + Element>(
    logits: &Tensor,
    targets: &[i32],
    temperature: f64,
    objective: &cpu::token_logprobs::Objective<'_, T>,
) -> Vec<Vec<f64>> {
    let mut rows = vec![T::ZERO; logits.rows() * LOSS_OUTPUTS];
    let mut dlogits = logits.write::<T>();
    cpu::token_logprobs::loss(&mut rows, &mut dlogits, targets, logits.width(), T::of(temperature), objective);
    let columns = columns(&rows, LOSS_OUTPUTS).into_iter().map(|c| c.into_iter().map(Real::to_f64).collect());
    let mut columns: Vec<Vec<f64>> = columns.collect();
    let sums = columns.iter().map(|c| c.iter().sum()).collect();
    columns[OUTPUTS] = sums;
    columns
}

/// Uniform numbers from the middle of a step of the cumulative distribution would agree always; these fall where they
/// fall, and agree because all engines see the same rounded logits.
fn drawn(e: &Engine, [r, v]: [usize; 2], sampling: &Sampling) -> Result<Vec<Output>> {
    let logits = e.tensor(&[r, v], &normal(r * v, 1))?;
    let uniforms: Vec<f32> = (0..r).map(|i| ((i as f32 + 0.37) * 0.618_034).fract()).collect();
    let drawn = sample(&logits, &Tensor::new(&e.device, &[r], uniforms)?, sampling)?;
    Ok(vec![integers("tokens", &drawn.tokens)?, integers("bad", &drawn.bad)?])
}

pub(super) fn integers(name: &'static str, tensor: &Tensor) -> Result<Output> {
    Ok(Output { name, values: tensor.to_i32()?.into_iter().map(f64::from).collect(), is_gradient: false })
}
