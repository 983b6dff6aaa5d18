//! Where a case runs: golden, plain, or on a device. A case asks it for tensors and hands its outputs to it, and is the
//! same code in all three.

use std::sync::Arc;

use crate::autograd::{Grad, Origin, backward, record};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::random::{Philox, Stage};
use crate::tensor::Tensor;

/// A place to run a case.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) device: Device,
    /// Of weights and activations in the case.
    case: DType,
    /// Of weights and activations here.
    float: DType,
    /// Of statistics, losses and parameters' gradients here.
    wide: DType,
    /// Whether what is stored is rounded to bf16 on the way.
    rounds: bool,
}

/// What came out of a case.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    pub(crate) name: &'static str,
    pub(crate) values: Vec<f64>,
    pub(crate) is_gradient: bool,
}

/// The stream of the first output gradient.
const DOUT: u32 = 900;

/// Numbers from a seeded normal distribution.
pub(crate) fn normal(n: usize, stream: u32) -> Vec<f64> {
    let mut stream = Philox::new(17, Stage::Init, 0, stream);
    (0..n).map(|_| stream.normal()).collect()
}

fn round_to(dtype: DType, x: f64) -> f64 {
    match dtype {
        DType::BF16 => f64::from(half::bf16::from_f32(x as f32).to_f32()),
        DType::F32 => f64::from(x as f32),
        _ => x,
    }
}

impl Engine {
    /// f64 on the CPU.
    pub(crate) fn golden(case: DType) -> Self {
        Self { device: Device::Cpu, case, float: DType::F64, wide: DType::F64, rounds: false }
    }

    /// f32 on the CPU, with what is stored rounded to the case's dtype.
    pub(crate) fn plain(case: DType) -> Self {
        let rounds = case == DType::BF16;
        Self { device: Device::Cpu, case, float: DType::F32, wide: DType::F32, rounds }
    }

    /// A GPU.
    pub(crate) fn device(device: &Device, case: DType) -> Self {
        Self { device: device.clone(), case, float: case, wide: DType::F32, rounds: false }
    }

    /// A tensor of weights or activations; the values are rounded to the case's dtype, so that all engines see the
    /// same.
    pub(crate) fn tensor(&self, shape: &[usize], values: &[f64]) -> Result<Tensor> {
        let values: Vec<f64> = values.iter().map(|x| round_to(self.case, *x)).collect();
        Tensor::from_f64(&self.device, self.float, shape, &values)
    }

    /// A tensor that is f32 on a device whatever the case's dtype: statistics, log-probs, losses.
    pub(crate) fn wide(&self, shape: &[usize], values: &[f64]) -> Result<Tensor> {
        let values: Vec<f64> = values.iter().map(|x| round_to(DType::F32, *x)).collect();
        Tensor::from_f64(&self.device, self.wide, shape, &values)
    }

    /// The dtype of the case.
    pub(crate) fn case(&self) -> DType {
        self.case
    }

    /// The value as the plain evaluation and a device store it; f64 in the golden one.
    pub(crate) fn rounded(&self, x: f64) -> f64 {
        if self.float == DType::F64 { x } else { round_to(self.case, x) }
    }

    /// Indices, ids, positions.
    pub(crate) fn ints(&self, values: &[i32]) -> Result<Tensor> {
        Tensor::new(&self.device, &[values.len()], values.to_vec())
    }

    /// The tensor with a place for its gradient.
    pub(crate) fn trained(&self, mut tensor: Tensor) -> Result<Tensor> {
        let slot = Grad::new(Tensor::empty(&self.device, self.wide, tensor.shape())?);
        tensor.origin = Origin::Parameter(Arc::new(slot));
        Ok(tensor)
    }

    /// [`Engine::tensor`] with a place for its gradient.
    pub(crate) fn parameter(&self, shape: &[usize], values: &[f64]) -> Result<Tensor> {
        self.trained(self.tensor(shape, values)?)
    }

    /// An intermediate that is stored between forward and backward: the plain evaluation rounds it here.
    pub(crate) fn store(&self, tensor: &Tensor) -> Result<()> {
        if !self.rounds {
            return Ok(());
        }
        let rounded: Vec<f32> = tensor.to_f32()?.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect();
        tensor.set(&rounded)
    }

    /// An output of weights' or activations' type.
    pub(crate) fn output(&self, name: &'static str, tensor: &Tensor) -> Result<Output> {
        self.store(tensor)?;
        Ok(Output { name, values: tensor.to_f64()?, is_gradient: false })
    }

    /// An output that is f32 on a device.
    pub(crate) fn wide_output(&self, name: &'static str, tensor: &Tensor) -> Result<Output> {
        Ok(Output { name, values: tensor.to_f64()?, is_gradient: false })
    }

    /// Walks back from `outputs`, which are of weights' or activations' type, with normal output gradients.
    pub(crate) fn backward(&self, outputs: &[&Tensor]) -> Result<()> {
        self.walk_back(outputs, |shape, values| self.tensor(shape, values))
    }

    /// Walks back from `outputs`, which are f32 on a device, with normal output gradients.
    pub(crate) fn wide_backward(&self, outputs: &[&Tensor]) -> Result<()> {
        self.walk_back(outputs, |shape, values| self.wide(shape, values))
    }

    fn walk_back(&self, outputs: &[&Tensor], tensor: impl Fn(&[usize], &[f64]) -> Result<Tensor>) -> Result<()> {
        let dout = |(i, o): (usize, &&Tensor)| Ok(Some(tensor(o.shape(), &normal(o.len(), DOUT + i as u32))?));
        let douts = outputs.iter().enumerate().map(dout).collect::<Result<Vec<_>>>()?;
        self.backward_with(outputs, douts)
    }

    /// Walks back from `outputs` with these output gradients.
    pub(crate) fn backward_with(&self, outputs: &[&Tensor], douts: Vec<Option<Tensor>>) -> Result<()> {
        let mut loss = Tensor::from_f64(&self.device, self.wide, &[1], &[0.0])?;
        record("selftest", std::slice::from_mut(&mut loss), outputs, Box::new(move |_| Ok(douts.clone())));
        backward(loss)
    }

    /// The gradient that arrived at an activation, which is stored in the activations' type.
    pub(crate) fn gradient(&self, name: &'static str, tensor: &Tensor) -> Result<Output> {
        let mut output = self.wide_gradient(name, tensor)?;
        if self.rounds {
            output.values.iter_mut().for_each(|x| *x = round_to(DType::BF16, *x));
        }
        Ok(output)
    }

    /// The gradient that arrived at a parameter, which is f32.
    pub(crate) fn wide_gradient(&self, name: &'static str, tensor: &Tensor) -> Result<Output> {
        let values = match tensor.slot()? {
            Some(slot) if slot.is_written() => slot.tensor.to_f64()?,
            _ => Vec::new(),
        };
        Ok(Output { name, values, is_gradient: true })
    }
}
