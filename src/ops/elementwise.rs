//! Sums: the residual stream, and a loss from per-token terms.

use crate::autograd::record;
use crate::cpu;
use crate::device::Device;
use crate::error::Result;
use crate::ops::{check, dout};
use crate::tensor::{Tensor, floats};

/// a + b, of equal shapes. Backward: both receive dout.
pub(crate) fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    check("add", a.shape() == b.shape() && a.dtype() == b.dtype(), &[a, b])?;
    let mut out = match a.device() {
        Device::Cpu => floats!(a, T => {
            let mut out = cpu::pool::take::<T>(a.len());
            cpu::elementwise::add(&mut out, &a.read::<T>(), &b.read::<T>());
            Tensor::new(a.device(), a.shape(), out)
        }),
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
    let sum: f64 = inp.to_f64().iter().sum();
    let mut out = Tensor::from_f64(inp.device(), inp.dtype(), &[1], &[sum * scale])?;
    let (device, dtype, shape) = (inp.device().clone(), inp.dtype(), inp.shape().to_vec());
    let rule = move |grads: &[Option<Tensor>]| {
        let value = dout(grads, 0)?.to_f64()[0] * scale;
        let n = shape.iter().product();
        Ok(vec![Some(Tensor::from_f64(&device, dtype, &shape, &vec![value; n])?)])
    };
    record("scaled_sum", std::slice::from_mut(&mut out), &[inp], Box::new(rule));
    Ok(out)
}
