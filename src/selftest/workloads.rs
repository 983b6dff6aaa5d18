//! What the benchmarks time: single operations, forward or backward, at one small and one large size, with the bytes or
//! FLOPs that no form of them can do without. A workload owns several copies of its inputs and turns through them, so
//! that a cache does not answer for the memory.

mod losses;
mod products;
mod rows;

use std::sync::Arc;

use crate::autograd::{Grad, Origin, record};
use crate::device::Device;
use crate::device::launch::OnDevice;
use crate::dtype::DType;
use crate::error::Result;
use crate::tensor::Tensor;

/// How large the inputs are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// For the CPU and the emulator: milliseconds.
    Small,
    /// For a GPU: 100 MB and more move wherever the operation has a size.
    Large,
}

/// What an operation cannot do without.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// Elements of weights and activations, read or written.
    floats: f64,
    /// Bytes of anything else.
    bytes: f64,
    /// Elements that exist only where models compute in bf16.
    copied: f64,
    /// Of the matrix products; if there are any, they are the limit.
    pub flop: f64,
}

impl Cost {
    /// Bytes read and written on a device that computes in floats of `width` bytes.
    pub fn moved(&self, width: usize) -> f64 {
        let copied = if width == 2 { 2.0 * self.copied } else { 0.0 };
        self.floats * width as f64 + self.bytes + copied
    }

    fn floats(n: usize) -> Self {
        Self { floats: n as f64, ..Self::default() }
    }

    fn bytes(n: usize) -> Self {
        Self { bytes: n as f64, ..Self::default() }
    }

    fn flop(n: f64) -> Self {
        Self { flop: n, ..Self::default() }
    }

    fn and_copy(self, n: usize) -> Self {
        Self { copied: n as f64, ..self }
    }

    fn and_bytes(self, n: usize) -> Self {
        Self { bytes: self.bytes + n as f64, ..self }
    }
}

/// One pass of a workload, over the next copy of its inputs.
pub type Pass = Box<dyn FnMut() -> Result<()> + Send>;

/// Makes the inputs.
type Prepare = Box<dyn Fn(&Place) -> Result<Pass>>;

/// An operation at a size.
pub struct Workload {
    /// The kernel and the direction.
    pub name: &'static str,
    /// The sizes.
    pub shape: String,
    /// What it cannot do without.
    pub cost: Cost,
    prepare: Prepare,
}

impl std::fmt::Debug for Workload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.name, self.shape)
    }
}

impl Workload {
    /// `make` makes one copy of the inputs, `pass` is what is timed.
    fn new<I: Send + 'static>(
        name: &'static str,
        shape: impl Into<String>,
        cost: Cost,
        make: impl Fn(&Place) -> Result<I> + 'static,
        pass: impl Fn(&I) -> Result<()> + Clone + Send + 'static,
    ) -> Self {
        let prepare = move |place: &Place| -> Result<Pass> {
            let (copies, pass) = ((0..place.copies).map(|_| make(place)).collect::<Result<Vec<I>>>()?, pass.clone());
            let mut turn = 0;
            Ok(Box::new(move || {
                turn += 1;
                pass(&copies[turn % copies.len()])
            }))
        };
        Self { name, shape: shape.into(), cost, prepare: Box::new(prepare) }
    }

    /// Makes the inputs on `device`.
    ///
    /// # Errors
    /// No memory for them.
    pub fn prepare(&self, device: &Device, size: Size) -> Result<Pass> {
        (self.prepare)(&Place { device: device.clone(), copies: if size == Size::Large { 3 } else { 1 } })
    }
}

/// All workloads, by kernel.
pub fn workloads(size: Size) -> Vec<Workload> {
    let parts = [rows::workloads(size), products::workloads(size), losses::workloads(size)];
    let mut all: Vec<Workload> = parts.into_iter().flatten().collect();
    all.sort_by_key(|workload| workload.name);
    all
}

/// Where inputs are made.
struct Place {
    device: Device,
    copies: usize,
}

/// Elements that are made on the host; larger tensors repeat them.
const PATTERN: usize = 1 << 20;

/// Numbers between -1.7 and 1.7, of deviation 1, the same every time.
fn noise(n: usize) -> Vec<f32> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 3.4
    };
    (0..n).map(|_| next()).collect()
}

impl Place {
    /// Weights or activations.
    fn tensor(&self, shape: &[usize]) -> Result<Tensor> {
        self.of(self.device.dtype(), shape)
    }

    /// Numbers that are f32 everywhere.
    fn wide(&self, shape: &[usize]) -> Result<Tensor> {
        self.of(DType::F32, shape)
    }

    fn ints(&self, values: Vec<i32>) -> Result<Tensor> {
        Tensor::new(&self.device, &[values.len()], values)
    }

    fn of(&self, dtype: DType, shape: &[usize]) -> Result<Tensor> {
        let n: usize = shape.iter().product();
        match &self.device {
            Device::Gpu(gpu) if n > PATTERN => {
                let pattern = Tensor::from_f32(&self.device, dtype, &[PATTERN], noise(PATTERN))?;
                let tensor = Tensor::empty(&self.device, dtype, shape)?;
                let ((from, step), (to, bytes)) = (pattern.place(gpu)?, tensor.place(gpu)?);
                for at in (0..bytes).step_by(step as usize) {
                    gpu.driver().copy(to + at, from, step.min(bytes - at) as usize)?;
                }
                gpu.driver().synchronize()?;
                Ok(tensor)
            }
            _ => Tensor::from_f32(&self.device, dtype, shape, noise(n)),
        }
    }

    /// The tensor with a place for its gradient.
    fn trained(&self, mut tensor: Tensor) -> Result<Tensor> {
        let slot = Grad::new(Tensor::empty(&self.device, DType::F32, tensor.shape())?);
        tensor.origin = Origin::Parameter(Arc::new(slot));
        Ok(tensor)
    }

    /// Weights with a place for their gradient.
    fn parameter(&self, shape: &[usize]) -> Result<Tensor> {
        self.trained(self.tensor(shape)?)
    }

    /// Activations into which a gradient flows, and ends.
    fn activation(&self, shape: &[usize]) -> Result<Tensor> {
        let mut tensor = self.tensor(shape)?;
        let source = self.trained(self.wide(&[1])?)?;
        record("input", std::slice::from_mut(&mut tensor), &[&source], Box::new(|_| Ok(vec![None])));
        Ok(tensor)
    }
}

/// Outputs of a recorded operation, and the gradients that its rule gets.
struct Recorded {
    out: Tensor,
    grads: Vec<Option<Tensor>>,
    /// Their gradients are overwritten by every pass.
    parameters: Vec<Tensor>,
}

impl Recorded {
    fn new(place: &Place, out: Tensor, parameters: &[&Tensor]) -> Result<Self> {
        let dout = place.of(out.dtype(), out.shape())?;
        Ok(Self { out, grads: vec![Some(dout)], parameters: parameters.iter().map(|p| (*p).clone()).collect() })
    }

    fn backward(&self) -> Result<()> {
        for parameter in &self.parameters {
            if let Some(slot) = parameter.slot()? {
                slot.reset();
            }
        }
        self.out.rule_alone(&self.grads).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_inputs_repeat_the_pattern() {
        let place = Place { device: Device::parse("emulated").unwrap(), copies: 1 };
        let values = place.wide(&[2 * PATTERN + 5]).unwrap().to_f32().unwrap();
        let pattern = noise(PATTERN);
        assert!(values.iter().zip(pattern.iter().cycle()).all(|(a, b)| a == b));
        let mean = pattern.iter().sum::<f32>() / PATTERN as f32;
        let square = pattern.iter().map(|x| x * x).sum::<f32>() / PATTERN as f32;
        assert!(mean.abs() < 0.01 && (square - 1.0).abs() < 0.05, "{mean} {square}");
    }
}
