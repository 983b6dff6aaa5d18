//! The table of kernel cases: operation, shape, dtype, and what must come out. One table, run by the tests on the
//! emulator, by `rlhf selftest` on the user's own card, and timed by the benchmarks.
//!
//! A case runs an operation forward and backward through the same code three times: in f64 on the CPU (golden), as a
//! plain evaluation (the CPU in f32 with inputs, stored intermediates and outputs rounded to the dtype), and on the
//! device. It passes if the device's largest error is at most twice the plain evaluation's plus 1e-5 (gradients: three
//! times); in f32, if the relative L2 error of every tensor is at most 1e-5.

#![forbid(unsafe_code)]

mod cases;
#[cfg(test)]
mod counters;
mod engine;
#[cfg(test)]
mod forms;
#[cfg(test)]
mod invariance;
pub(crate) mod limits;
#[cfg(test)]
mod mutants;
#[cfg(test)]
mod mutation;
pub(crate) mod record;
#[cfg(test)]
mod tests;
pub(crate) mod verify;
pub(crate) mod workloads;

use std::fmt;
use std::time::Instant;

use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
pub(crate) use engine::{Engine, Output};

/// The error that is always allowed: of values near 1, what f32 arithmetic in another order of summation leaves.
const FLOOR: f64 = 1e-5;

/// Another floor than the usual one, and why.
#[derive(Debug, Clone, Copy)]
struct Floor(f64, &'static str);

type Run = Box<dyn Fn(&Engine) -> Result<Vec<Output>> + Send + Sync>;

/// One row of the table.
pub(crate) struct Case {
    /// The operation: the stem of its `.cu` file.
    pub(crate) kernel: &'static str,
    /// Sizes and what is special about the inputs.
    pub(crate) shape: String,
    pub(crate) dtype: DType,
    floor: Option<Floor>,
    run: Run,
}

impl Case {
    /// A case under the rule.
    pub(crate) fn new(
        kernel: &'static str,
        shape: impl Into<String>,
        dtype: DType,
        run: impl Fn(&Engine) -> Result<Vec<Output>> + Send + Sync + 'static,
    ) -> Self {
        Self { kernel, shape: shape.into(), dtype, floor: None, run: Box::new(run) }
    }

    /// The same case with another floor.
    pub(crate) fn floor(self, floor: f64, reason: &'static str) -> Self {
        Self { floor: Some(Floor(floor, reason)), ..self }
    }

    /// What comes out on `engine`.
    pub(crate) fn outputs(&self, engine: &Engine) -> Result<Vec<Output>> {
        (self.run)(engine)
    }

    /// What an output is held to, in words.
    pub(crate) fn rule(&self) -> String {
        let Floor(floor, why) = self.floor.unwrap_or(Floor(FLOOR, ""));
        let why = if why.is_empty() { String::new() } else { format!(": {why}") };
        if self.dtype == DType::F32 {
            return format!("relative L2 error at most {floor:e}{why}");
        }
        format!("largest error at most twice that of a plain evaluation (gradients three times) + {floor:e}{why}")
    }

    /// Runs the case on `device` and judges it.
    ///
    /// # Errors
    /// A fault of the device, or an operation that refuses.
    pub(crate) fn check(&self, device: &Device) -> Result<Report> {
        let start = Instant::now();
        let ours = self.outputs(&Engine::device(device, self.dtype))?;
        let seconds = start.elapsed().as_secs_f64();
        let golden = self.outputs(&Engine::golden(self.dtype))?;
        let plain = self.outputs(&Engine::plain(self.dtype))?;
        Ok(Report { seconds, ..self.judge_all(&ours, &golden, &plain) })
    }

    /// The verdict on outputs that a device gave in no time.
    fn judge_all(&self, ours: &[Output], golden: &[Output], plain: &[Output]) -> Report {
        let is_complete = !golden.is_empty() && [ours.len(), plain.len()] == [golden.len(); 2];
        let tensors = ours.iter().zip(golden).zip(plain).map(|((o, g), p)| self.judge(o, g, p)).collect();
        Report { tensors, is_complete, seconds: 0.0 }
    }

    fn judge(&self, ours: &Output, golden: &Output, plain: &Output) -> Judged {
        let floor = self.floor.map_or(FLOOR, |floor| floor.0);
        let (error, bound) = if self.dtype == DType::F32 {
            (relative_error(&ours.values, &golden.values), floor)
        } else {
            let times = if golden.is_gradient { 3.0 } else { 2.0 };
            (largest_error(&ours.values, &golden.values), times * largest_error(&plain.values, &golden.values) + floor)
        };
        let lengths = [ours.values.len(), plain.values.len()] == [golden.values.len(); 2];
        // A plain evaluation that is not finite where the golden one is would allow everything.
        let passed = lengths && bound.is_finite() && error <= bound;
        Judged { name: golden.name, error, bound, passed }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.kernel, self.dtype, self.shape)
    }
}

/// One output tensor of a case, judged.
#[derive(Debug, Clone)]
pub(crate) struct Judged {
    pub(crate) name: &'static str,
    pub(crate) error: f64,
    pub(crate) bound: f64,
    pub(crate) passed: bool,
}

/// All outputs of a case, judged.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    pub(crate) tensors: Vec<Judged>,
    /// Whether the device gave every output that the golden evaluation gave.
    pub(crate) is_complete: bool,
    /// That the device took, uploads and downloads included.
    pub(crate) seconds: f64,
}

impl Report {
    /// Whether every output is there and within its bound.
    pub(crate) fn passed(&self) -> bool {
        self.is_complete && self.tensors.iter().all(|t| t.passed)
    }

    /// The output that is closest to its bound, or furthest beyond.
    pub(crate) fn worst(&self) -> Option<&Judged> {
        self.tensors.iter().max_by(|a, b| (a.error / a.bound).total_cmp(&(b.error / b.bound)))
    }
}

/// The largest absolute difference; equal infinities agree, and so do two NaN: what is not a number must be so on both
/// sides.
fn largest_error(ours: &[f64], golden: &[f64]) -> f64 {
    ours.iter().zip(golden).map(|(a, b)| difference(*a, *b)).fold(0.0, f64::max)
}

fn difference(a: f64, b: f64) -> f64 {
    if a == b || (a.is_nan() && b.is_nan()) {
        return 0.0;
    }
    let d = (a - b).abs();
    if d.is_nan() { f64::INFINITY } else { d }
}

/// The Euclidean norm of the difference over that of the golden values.
fn relative_error(ours: &[f64], golden: &[f64]) -> f64 {
    let square = |x: f64| x * x;
    let error: f64 = ours.iter().zip(golden).map(|(a, b)| square(difference(*a, *b))).sum();
    let norm: f64 = golden.iter().filter(|x| x.is_finite()).map(|x| square(*x)).sum();
    if error == 0.0 { 0.0 } else { (error / norm.max(f64::MIN_POSITIVE)).sqrt() }
}

/// The whole table, in the order of the kernels' names.
pub(crate) fn cases() -> Vec<Case> {
    cases::all()
}
