//! The head of reward and value models. Forward: s = h . w. Backward: dh = ds w, dw = sum over rows of ds h. Saved: h.

use crate::autograd::{Grad, record};
use crate::cpu;
use crate::device::kernel::{Kernel, SCALAR_HEAD};
use crate::device::launch::Launch;
use crate::device::{Device, Gpu};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::column_sum::{add_partials, wide_plan};
use crate::ops::{check, dout};
use crate::tensor::{Tensor, floats};

const FORWARD: Kernel = Kernel::new(&SCALAR_HEAD, "scalar_head_forward_bf16", "scalar_head_forward_f32");
const BACKWARD: Kernel = Kernel::new(&SCALAR_HEAD, "scalar_head_backward_bf16", "scalar_head_backward_f32");

/// out [N] from inp [N, C] and weight [1, C].
pub(crate) fn scalar_head(inp: &Tensor, weight: &Tensor) -> Result<Tensor> {
    check("scalar_head", inp.shape().len() == 2 && inp.width() == weight.len(), &[inp, weight])?;
    let mut out = match inp.device() {
        Device::Gpu(gpu) => {
            let out = Tensor::empty(inp.device(), DType::F32, &[inp.rows()])?;
            let (plan, _, _) = wide_plan(inp.rows(), inp.width());
            Launch::new(gpu, FORWARD.of(inp.dtype())?)
                .blocks(inp.rows().div_ceil(plan.teams), plan.threads)
                .out(&out)
                .tensor(inp)
                .tensor(weight)
                .sizes([inp.rows(), inp.width()])
                .run()?;
            Ok(out)
        }
        Device::Cpu => floats!(inp, T => {
            let mut out = cpu::pool::take::<T>(inp.rows());
            cpu::scalar_head::forward(&mut out, &inp.read::<T>(), &weight.read());
            Tensor::new(inp.device(), &[inp.rows()], out)
        }),
    }?;
    let (x, w, slot) = (inp.detach(), weight.detach(), weight.slot()?);
    let rule = move |grads: &[Option<Tensor>]| {
        let dout = dout(grads, 0)?;
        let dinp = match dout.device() {
            Device::Gpu(gpu) => backward(gpu, dout, [&x, &w], slot.as_deref()),
            Device::Cpu => floats!(dout, T => {
                let ds = dout.read::<T>();
                if let Some(slot) = &slot {
                    slot.add::<T>(|d| cpu::scalar_head::backward_weight(d, &ds, &x.read()));
                }
                let mut dinp = cpu::pool::take::<T>(x.len());
                cpu::scalar_head::backward(&mut dinp, &ds, &w.read());
                Tensor::new(dout.device(), x.shape(), dinp)
            }),
        }?;
        Ok(vec![Some(dinp), None])
    };
    record("scalar_head", std::slice::from_mut(&mut out), &[inp, weight], Box::new(rule));
    Ok(out)
}

fn backward(gpu: &Gpu, dout: &Tensor, [inp, weight]: [&Tensor; 2], slot: Option<&Grad>) -> Result<Tensor> {
    let (rows, width) = (inp.rows(), inp.width());
    let (plan, chunks, columns) = wide_plan(rows, width);
    let partials = slot.map(|_| Tensor::empty(inp.device(), DType::F32, &[chunks, width])).transpose()?;
    let dinp = Tensor::empty(inp.device(), inp.dtype(), inp.shape())?;
    Launch::new(gpu, BACKWARD.of(inp.dtype())?)
        .grid([chunks, columns, 1], plan.threads)
        .shared(if slot.is_some() { plan.shared() } else { 0 })
        .out(&dinp)
        .optional_out(partials.as_ref())
        .tensor(dout)
        .tensor(inp)
        .tensor(weight)
        .sizes([rows, width])
        .run()?;
    if let (Some(slot), Some(partials)) = (slot, &partials) {
        add_partials(gpu, slot, partials)?;
    }
    Ok(dinp)
}
