//! The gated activation. Forward: y = silu(gate) up. Backward, with s = sigmoid(gate): dgate = dy up (s + gate s (1 -
//! s)), dup = dy gate s. Saved: the input. Source: Shazeer, "GLU variants improve transformer", 2020.

use crate::autograd::record;
use crate::cpu;
use crate::device::Device;
use crate::device::kernel::{Kernel, SWIGLU};
use crate::error::Result;
use crate::ops::{check, dout, elementwise_launch};
use crate::tensor::{Tensor, floats};

const FORWARD: Kernel = Kernel::new(&SWIGLU, "swiglu_forward_bf16", "swiglu_forward_f32");
const BACKWARD: Kernel = Kernel::new(&SWIGLU, "swiglu_backward_bf16", "swiglu_backward_f32");

/// out [N, F] from inp [N, 2 F]: gate and up side by side.
pub(crate) fn swiglu(inp: &Tensor) -> Result<Tensor> {
    check("swiglu", inp.shape().len() == 2 && inp.width().is_multiple_of(2), &[inp])?;
    let (rows, width) = (inp.rows(), inp.width() / 2);
    let mut out = match inp.device() {
        Device::Gpu(gpu) => {
            let out = Tensor::empty(inp.device(), inp.dtype(), &[rows, width])?;
            elementwise_launch(gpu, FORWARD.of(inp.dtype())?, &out, rows * width)
                .tensor(inp)
                .sizes([rows, width])
                .run()?;
            Ok(out)
        }
        Device::Cpu => floats!(inp, T => {
            let mut out = cpu::pool::take::<T>(rows * width);
            cpu::swiglu::forward(&mut out, &inp.read::<T>(), width);
            Tensor::new(inp.device(), &[rows, width], out)
        }),
    }?;
    let saved = inp.detach();
    let rule = move |grads: &[Option<Tensor>]| {
        let dout = dout(grads, 0)?;
        let dinp = match dout.device() {
            Device::Gpu(gpu) => {
                let dinp = Tensor::empty(dout.device(), dout.dtype(), saved.shape())?;
                elementwise_launch(gpu, BACKWARD.of(dout.dtype())?, &dinp, dout.len())
                    .tensor(dout)
                    .tensor(&saved)
                    .sizes([rows, width])
                    .run()?;
                Ok(dinp)
            }
            Device::Cpu => floats!(dout, T => {
                let mut dinp = cpu::pool::take::<T>(saved.len());
                cpu::swiglu::backward(&mut dinp, &dout.read::<T>(), &saved.read(), width);
                Tensor::new(dout.device(), saved.shape(), dinp)
            }),
        }?;
        Ok(vec![Some(dinp)])
    };
    record("swiglu", std::slice::from_mut(&mut out), &[inp], Box::new(rule));
    Ok(out)
}
