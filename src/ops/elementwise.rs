//! Sums: the residual stream, and a loss from per-token terms.

use crate::autograd::record;
use crate::cpu;
use crate::device::kernel::{ELEMENTWISE, Entry, Kernel};
use crate::device::launch::Launch;
use crate::device::{Device, Gpu};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::{ELEMENTWISE_THREADS, check, dout, elementwise_launch, reduction_threads};
use crate::tensor::{Tensor, floats};

const ADD: Kernel = Kernel::new(&ELEMENTWISE, "add_bf16", "add_f32");
const COPY_COLUMNS: Kernel = Kernel::new(&ELEMENTWISE, "copy_columns_bf16", "copy_columns_f32");
const FILL_F32: Entry = Entry::new(&ELEMENTWISE, "fill_f32");
const SCALE_F32: Entry = Entry::new(&ELEMENTWISE, "scale_f32");
const SCALED_SUM_F32: Entry = Entry::new(&ELEMENTWISE, "scaled_sum_f32");

/// a + b, of equal shapes. Backward: both receive dout.
pub(crate) fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    check("add", a.shape() == b.shape() && a.dtype() == b.dtype(), &[a, b])?;
    let mut out = match a.device() {
        Device::Cpu => floats!(a, T => {
            let mut out = cpu::pool::take::<T>(a.len());
            cpu::elementwise::add(&mut out, &a.read::<T>(), &b.read::<T>());
            Tensor::new(a.device(), a.shape(), out)
        }),
        Device::Gpu(gpu) => {
            let out = Tensor::empty(a.device(), a.dtype(), a.shape())?;
            elementwise_launch(gpu, ADD.of(a.dtype())?, &out, a.len()).tensor(a).tensor(b).long(a.len()).run()?;
            Ok(out)
        }
    }?;
    let rule = |grads: &[Option<Tensor>]| {
        let dout = dout(grads, 0)?;
        Ok(vec![Some(dout.clone()), Some(dout.clone())])
    };
    record("add", std::slice::from_mut(&mut out), &[a, b], Box::new(rule));
    Ok(out)
}

/// scale times the sum of all elements, as a tensor of one element. Backward: every element receives scale dout.
pub(crate) fn scaled_sum(inp: &Tensor, scale: f64) -> Result<Tensor> {
    let mut out = match inp.device() {
        Device::Cpu => {
            let sum: f64 = inp.to_f64()?.iter().sum();
            Tensor::from_f64(inp.device(), inp.dtype(), &[1], &[sum * scale])?
        }
        Device::Gpu(gpu) => {
            check("scaled_sum", inp.dtype() == DType::F32, &[inp])?;
            let out = Tensor::empty(inp.device(), DType::F32, &[1])?;
            Launch::new(gpu, SCALED_SUM_F32)
                .blocks(1, reduction_threads(inp.len()))
                .out(&out)
                .tensor(inp)
                .long(inp.len())
                .scalar(scale)
                .run()?;
            out
        }
    };
    let (dtype, shape) = (inp.dtype(), inp.shape().to_vec());
    let rule = move |grads: &[Option<Tensor>]| Ok(vec![Some(filled(dout(grads, 0)?, scale, dtype, &shape)?)]);
    record("scaled_sum", std::slice::from_mut(&mut out), &[inp], Box::new(rule));
    Ok(out)
}

/// A tensor of `shape` whose elements are all scale times value [1].
fn filled(value: &Tensor, scale: f64, dtype: DType, shape: &[usize]) -> Result<Tensor> {
    let n = shape.iter().product();
    match value.device() {
        Device::Cpu => Tensor::from_f64(value.device(), dtype, shape, &vec![value.to_f64()?[0] * scale; n]),
        Device::Gpu(gpu) => {
            let out = Tensor::empty(value.device(), DType::F32, shape)?;
            elementwise_launch(gpu, FILL_F32, &out, n).tensor(value).long(n).scalar(scale).run()?;
            Ok(out)
        }
    }
}

/// inp times factor [1], both f32 on a GPU: a gradient made for dloss = 1, once dloss is known.
pub(crate) fn scaled(inp: &Tensor, factor: &Tensor) -> Result<Tensor> {
    match inp.device() {
        Device::Cpu => {
            let factor = factor.to_f64()?[0];
            let values: Vec<f64> = inp.to_f64()?.into_iter().map(|x| x * factor).collect();
            Tensor::from_f64(inp.device(), inp.dtype(), inp.shape(), &values)
        }
        Device::Gpu(gpu) => {
            let out = Tensor::empty(inp.device(), DType::F32, inp.shape())?;
            elementwise_launch(gpu, SCALE_F32, &out, inp.len())
                .tensor(inp)
                .tensor(factor)
                .long(inp.len())
                .scalar(1.0)
                .run()?;
            Ok(out)
        }
    }
}

/// On a GPU: the columns `span` of every row of inp into the same columns of out.
pub(crate) fn copy_columns(gpu: &Gpu, out: &Tensor, inp: &Tensor, span: std::ops::Range<usize>) -> Result<()> {
    check("copy_columns", out.shape() == inp.shape() && span.end <= inp.width(), &[out, inp])?;
    let [to, from] = [out, inp].map(|t| t.view(span.start.min(t.len()), &[t.len().saturating_sub(span.start)]));
    let elements = inp.rows() * span.len();
    let vectors = elements.div_ceil(16 / inp.dtype().bytes());
    Launch::new(gpu, COPY_COLUMNS.of(inp.dtype())?)
        .blocks(vectors.div_ceil(ELEMENTWISE_THREADS), ELEMENTWISE_THREADS)
        .tensor(&to?)
        .long(out.width())
        .tensor(&from?)
        .long(inp.width())
        .sizes([inp.rows(), span.len()])
        .run()
}
