//! GELU in the tanh form of GPT-2. Forward: y = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3). Backward, with
//! s = sigmoid(2u): dx = dy (s + x s (1 - s) 2u'). Saved: the input. Source: Hendrycks and Gimpel, 2016.

use crate::autograd::record;
use crate::cpu;
use crate::device::Device;
use crate::device::kernel::{GELU, Kernel};
use crate::error::Result;
use crate::ops::{check, dout, elementwise_launch};
use crate::tensor::{Tensor, floats};

const FORWARD: Kernel = Kernel::new(&GELU, "gelu_forward_bf16", "gelu_forward_f32");
const BACKWARD: Kernel = Kernel::new(&GELU, "gelu_backward_bf16", "gelu_backward_f32");

/// out [N, F] from inp [N, F].
pub(crate) fn gelu(inp: &Tensor) -> Result<Tensor> {
    check("gelu", inp.shape().len() == 2, &[inp])?;
    let mut out = match inp.device() {
        Device::Gpu(gpu) => {
            let out = Tensor::empty(inp.device(), inp.dtype(), inp.shape())?;
            elementwise_launch(gpu, FORWARD.of(inp.dtype())?, &out, inp.len()).tensor(inp).long(inp.len()).run()?;
            Ok(out)
        }
        Device::Cpu => floats!(inp, T => {
            let mut out = cpu::pool::take::<T>(inp.len());
            cpu::gelu::forward(&mut out, &inp.read::<T>(), inp.width());
            Tensor::new(inp.device(), inp.shape(), out)
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
                    .long(dout.len())
                    .run()?;
                Ok(dinp)
            }
            Device::Cpu => floats!(dout, T => {
                let mut dinp = cpu::pool::take::<T>(saved.len());
                cpu::gelu::backward(&mut dinp, &dout.read::<T>(), &saved.read(), saved.width());
                Tensor::new(dout.device(), saved.shape(), dinp)
            }),
        }?;
        Ok(vec![Some(dinp)])
    };
    record("gelu", std::slice::from_mut(&mut out), &[inp], Box::new(rule));
    Ok(out)
}
