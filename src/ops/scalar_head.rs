//! The head of reward and value models. Forward: s = h . w. Backward: dh = ds w, dw = sum over rows of ds h. Saved: h.

use crate::autograd::record;
use crate::cpu;
use crate::device::Device;
use crate::error::Result;
use crate::ops::{check, dout};
use crate::tensor::{Tensor, floats};

/// out [N] from inp [N, C] and weight [1, C].
pub(crate) fn scalar_head(inp: &Tensor, weight: &Tensor) -> Result<Tensor> {
    check("scalar_head", inp.shape().len() == 2 && inp.width() == weight.len(), &[inp, weight])?;
    let mut out = match inp.device() {
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
