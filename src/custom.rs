//!
//! The types here wrap the crate's own and let through what an operation needs; what a user's rule returns is checked
//! before the tape sees it.

#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::autograd::{self, Grad, Origin, Root};
use crate::device::kernel::Entry;
pub use crate::device::kernel::Source;
use crate::device::{Device, Gpu, launch};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::tensor;

/// Elements of f32 on a device, row-major. A copy is another handle of the same elements.
#[derive(Debug, Clone)]
pub struct Tensor(tensor::Tensor);

/// The elements of `shape`.
fn elements(shape: &[usize]) -> Result<usize> {
    let product =
        shape.iter().try_fold(1usize, |n, side| n.checked_mul(*side)).filter(|n| *n <= isize::MAX as usize / 4);
    product.ok_or_else(|| Error::shape(format!("a tensor of {shape:?} is larger than any memory")))
}

impl Tensor {
    /// A tensor of `shape` that holds `values`; no gradient flows into it.
    ///
    /// # Errors
    /// `shape` where there are more or fewer values than the shape has elements; memory that the device has not.
    pub fn new(device: &Device, shape: &[usize], values: Vec<f32>) -> Result<Self> {
        elements(shape)?;
        tensor::Tensor::new(device, shape, values).map(Self)
    }

    /// The same, with a place for its gradient: backward walks end in it and leave [`Tensor::gradient`].
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn parameter(device: &Device, shape: &[usize], values: Vec<f32>) -> Result<Self> {
        let Self(mut tensor) = Self::new(device, shape, values)?;
        let grad = tensor::Tensor::empty(device, DType::F32, shape)?;
        tensor.origin = Origin::Parameter(Arc::new(Grad::new(grad)));
        Ok(Self(tensor))
    }

    /// A tensor for an operation to write. On a GPU its elements hold nothing of value (the emulator makes reading them
    /// an error); on the CPU they are zeros.
    ///
    /// # Errors
    /// Memory that the device has not.
    pub fn empty(device: &Device, shape: &[usize]) -> Result<Self> {
        elements(shape)?;
        tensor::Tensor::empty(device, DType::F32, shape).map(Self)
    }

    /// Where the elements lie.
    pub fn device(&self) -> &Device {
        self.0.device()
    }

    /// The shape, in elements.
    pub fn shape(&self) -> &[usize] {
        self.0.shape()
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A copy of the elements on the host; waits until the device has computed them.
    ///
    /// # Errors
    /// A launch before it that failed; on the emulator, an element that nobody has written.
    pub fn to_vec(&self) -> Result<Vec<f32>> {
        self.0.to_f32()
    }

    /// The same elements, without their past on the tape: what a rule keeps of an input, so that it does not keep all
    /// that came before.
    #[must_use]
    pub fn detach(&self) -> Self {
        Self(self.0.detach())
    }

    /// The gradient that backward walks left, summed over them; none if this is no [`Tensor::parameter`], or if none
    /// has arrived.
    ///
    /// # Errors
    /// As [`Tensor::to_vec`].
    pub fn gradient(&self) -> Result<Option<Vec<f32>>> {
        match &self.0.origin {
            Origin::Parameter(grad) if grad.is_written() => grad.tensor.to_f32().map(Some),
            _ => Ok(None),
        }
    }

    /// Walks back from this tensor, whose own gradient is `gradient` (`[1.0]` for a loss), to the parameters that it
    /// was computed from. It takes the tensor, so that what the rules keep is freed on the way.
    ///
    /// # Errors
    /// `no-gradient` where it was computed from no parameter, `shape` where the gradient has another length, and
    /// whatever the rules say.
    pub fn backward(self, gradient: Vec<f32>) -> Result<()> {
        if !self.0.needs_grad() {
            return Err(Error::failure("no-gradient", "the tensor was computed from no parameter"));
        }
        let seed = tensor::Tensor::new(self.device(), self.shape(), gradient)?;
        let root = Root::new([(&self.0, seed)]);
        drop(self);
        root.backward()
    }
}

/// A launch in the making: an entry of a PTX text, its blocks, and its arguments in the order of its parameters.
///
/// Nothing happens before [`Launch::run`], which also tells what was wrong before it.
#[derive(Debug)]
#[must_use = "a launch does nothing until it is run"]
pub struct Launch<'a>(launch::Launch<'a>);

impl<'a> Launch<'a> {
    /// A launch of the kernel `entry` of `source`: one block of 32 threads, until told otherwise.
    pub fn new(gpu: &'a Gpu, source: &'static Source, entry: &'static str) -> Self {
        Self(launch::Launch::new(gpu, Entry::new(source, entry)))
    }

    /// Blocks (up to 2^31 - 1; none is no work) and threads a block (1 to 1024), along one dimension.
    pub fn blocks(self, blocks: usize, threads: usize) -> Self {
        Self(self.0.blocks(blocks, threads))
    }

    /// Blocks in three dimensions (up to 2^31 - 1, 65535, 65535) and threads a block (1 to 1024) along one.
    pub fn grid(self, grid: [usize; 3], threads: usize) -> Self {
        Self(self.0.grid(grid, threads))
    }

    /// Dynamic shared memory of a block, in bytes.
    pub fn shared(self, bytes: usize) -> Self {
        Self(self.0.shared(bytes))
    }

    /// A tensor that the kernel writes in full, for a 64-bit parameter; the emulator holds it to that.
    pub fn out(self, tensor: &Tensor) -> Self {
        Self(self.0.out(&tensor.0))
    }

    /// A tensor that the kernel reads, or writes in part, for a 64-bit parameter.
    pub fn tensor(self, tensor: &Tensor) -> Self {
        Self(self.0.tensor(&tensor.0))
    }

    /// A size below 2^31, for a 32-bit integer parameter.
    pub fn size(self, size: usize) -> Self {
        Self(self.0.size(size))
    }

    /// A size, for a 64-bit integer parameter.
    pub fn long(self, size: usize) -> Self {
        Self(self.0.long(size))
    }

    /// A number, for a parameter of f32.
    pub fn scalar(self, x: f32) -> Self {
        Self(self.0.scalar(f64::from(x)))
    }

    /// Queues it behind all earlier work of the GPU.
    ///
    /// # Errors
    /// `kernel-text` (not PTX that we understand) and `kernel-missing` (no such entry); `launch-arguments` where
    /// number, width or kind of the arguments are not those of the `.param` list; `shape` for a size out of range or
    /// a tensor of another device. The emulator also tells what the kernel did wrong (`kernel-fault`), a card refuses
    /// a text that nobody answers for (`kernel-unchecked`).
    pub fn run(self) -> Result<()> {
        self.0.run()
    }
}

/// Puts an operation on the tape: `out` was computed from `inputs`, and `rule` turns the gradient of `out` into those
/// of the inputs, in their order, each in its input's shape and on its device. `None` is for an input into which no
/// gradient flows. Returns `out`, with its past; where no input has a gradient the rule is dropped.
///
/// What the rule keeps stays in memory until a backward walk has used it; keep [`Tensor::detach`]ed inputs.
///
/// # Errors
/// `shape` where `out` lies on another device than an input; `recorded-twice` where it has a past already. Backward
/// tells when the rule breaks its word: `rule-arity`, `rule-shape`, and `rule-gradient` for a gradient that is cut.
pub fn record(
    name: &'static str,
    out: Tensor,
    inputs: &[&Tensor],
    rule: impl Fn(&Tensor) -> Result<Vec<Option<Tensor>>> + Send + Sync + 'static,
) -> Result<Tensor> {
    if out.0.needs_grad() {
        return Err(Error::failure("recorded-twice", format!("the output of {name} has a past already")));
    }
    if inputs.iter().any(|input| input.device() != out.device()) {
        return Err(Error::shape(format!("{name} has an input on another device than its output")));
    }
    let wanted: Vec<(Device, Vec<usize>, bool)> =
        inputs.iter().map(|i| (i.device().clone(), i.shape().to_vec(), i.0.needs_grad())).collect();
    let checked = move |grads: &[Option<tensor::Tensor>]| {
        let dout = grads.first().cloned().flatten();
        let dout = dout.ok_or_else(|| Error::failure("no-gradient", format!("{name} got none")))?;
        let results = rule(&Tensor(dout))?;
        if results.len() != wanted.len() {
            let what = format!("{name} returned {} gradients for {} inputs", results.len(), wanted.len());
            return Err(Error::failure("rule-arity", what));
        }
        let pairs = results.into_iter().zip(&wanted).enumerate();
        pairs.map(|(at, (grad, wanted))| check_gradient(name, at, grad, wanted)).collect()
    };
    let (mut out, inputs): (_, Vec<&tensor::Tensor>) = (out.0, inputs.iter().map(|input| &input.0).collect());
    autograd::record(name, std::slice::from_mut(&mut out), &inputs, Box::new(checked));
    Ok(Tensor(out))
}

/// The gradient of input number `at` of an operation, if it is what that input wants.
fn check_gradient(
    name: &str,
    at: usize,
    grad: Option<Tensor>,
    (device, shape, needs_grad): &(Device, Vec<usize>, bool),
) -> Result<Option<tensor::Tensor>> {
    match grad {
        None if *needs_grad => Err(Error::failure("rule-gradient", format!("{name} cut the gradient of input {at}"))),
        Some(grad) if grad.shape() != shape || grad.device() != device => {
            let what = format!("{name} returned a gradient of {:?} for input {at} of {shape:?}", grad.shape());
            Err(Error::failure("rule-shape", what))
        }
        grad => Ok(grad.map(|grad| grad.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id<T>(result: Result<T>) -> &'static str {
        result.err().map_or("", |error| error.id())
    }

    #[test]
    fn a_shape_that_no_memory_has_is_an_error() {
        for shape in [&[usize::MAX, 2][..], &[1 << 62], &[3]] {
            assert_eq!(id(Tensor::new(&Device::Cpu, shape, vec![0.0; 2])), "shape", "{shape:?}");
        }
        assert_eq!(id(Tensor::empty(&Device::Cpu, &[usize::MAX, usize::MAX])), "shape");
    }

    #[test]
    fn a_rule_is_held_to_its_word() {
        let [x, y] = [0, 1].map(|_| Tensor::parameter(&Device::Cpu, &[2], vec![1.0, 2.0]).unwrap());
        let out = || Tensor::new(&Device::Cpu, &[2], vec![0.0; 2]).unwrap();
        let of = |make: fn(&Tensor) -> Vec<Option<Tensor>>| {
            record("op", out(), &[&x, &y], move |dout| Ok(make(dout))).unwrap().backward(vec![1.0, 1.0])
        };
        assert_eq!(id(of(|dout| vec![Some(dout.clone())])), "rule-arity");
        assert_eq!(id(of(|dout| vec![Some(dout.clone()), None])), "rule-gradient");
        let wide = |dout: &Tensor| vec![Some(dout.clone()), Tensor::empty(dout.device(), &[2, 1]).ok()];
        assert_eq!(id(of(wide)), "rule-shape");
        assert!(x.gradient().unwrap().is_none(), "nothing is written before all is checked");
        of(|dout| vec![Some(dout.clone()), Some(dout.clone())]).unwrap();
        of(|dout| vec![Some(dout.clone()), Some(dout.clone())]).unwrap();
        assert_eq!(y.gradient().unwrap(), Some(vec![2.0, 2.0]), "two walks add up");
    }

    #[test]
    fn what_cannot_be_recorded_is_refused() {
        let x = Tensor::parameter(&Device::Cpu, &[1], vec![1.0]).unwrap();
        assert_eq!(id(record("op", x.clone(), &[&x], |d| Ok(vec![Some(d.clone())]))), "recorded-twice");
        let elsewhere = Tensor::empty(&Device::parse("emulated").unwrap(), &[1]).unwrap();
        assert_eq!(id(record("op", elsewhere, &[&x], |d| Ok(vec![Some(d.clone())]))), "shape");
        assert_eq!(id(x.detach().backward(vec![1.0])), "no-gradient");
        assert_eq!(id(x.backward(vec![1.0, 1.0])), "shape");
    }
}
