//! Sums: the residual stream, and statistics from per-token terms.

use crate::autograd::{record, refuse_grad};
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
const ROW_SUMS_F32: Entry = Entry::new(&ELEMENTWISE, "row_sums_f32");

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

/// The sums [R] of the rows of inp [R, n]: statistics, without a gradient.
pub(crate) fn row_sums(inp: &Tensor) -> Result<Tensor> {
    refuse_grad("row_sums", &[inp])?;
    match inp.device() {
        Device::Cpu => floats!(inp, T => {
            let mut out = vec![T::default(); inp.rows()];
            cpu::elementwise::row_sums(&mut out, &inp.read::<T>());
            Tensor::new(inp.device(), &[inp.rows()], out)
        }),
        Device::Gpu(gpu) => {
            check("row_sums", inp.dtype() == DType::F32, &[inp])?;
            let out = Tensor::empty(inp.device(), DType::F32, &[inp.rows()])?;
            Launch::new(gpu, ROW_SUMS_F32)
                .blocks(inp.rows(), reduction_threads(inp.width()))
                .out(&out)
                .tensor(inp)
                .long(inp.width())
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
