//! The linear layer: y = x W^T + b, weights [out, in]. Backward: dx = dy W, dW = dy^T x, db = sum over rows of dy; the
//! parameters' gradients are accumulated into their slots by the product itself.

use crate::autograd::record;
use crate::cpu;
use crate::cpu::matmul::Matrix;
use crate::device::Device;
use crate::error::Result;
use crate::ops::{check, dout};
use crate::tensor::{Tensor, floats};

/// out [N, O] from inp [N, C], weight [O, C] and an optional bias [O].
pub(crate) fn linear(inp: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let shapes = weight.shape().len() == 2 && inp.width() == weight.width() && inp.dtype() == weight.dtype();
    check("linear", shapes && bias.is_none_or(|b| b.len() == weight.rows()), &[inp, weight])?;
    let mut out = product(inp, weight, bias)?;
    let (slot, bias_slot) = (weight.slot()?, bias.map(Tensor::slot).transpose()?.flatten());
    let (x, w, needs_dx) = (inp.detach(), weight.detach(), inp.needs_grad());
    let rule = move |grads: &[Option<Tensor>]| {
        let dout = dout(grads, 0)?;
        let dinp = match dout.device() {
            Device::Cpu => floats!(dout, T => {
                let dy = dout.read::<T>();
                let dy_matrix = Matrix::new(&dy[..], dout.rows(), dout.width());
                if let Some(slot) = &slot {
                    let accumulate = slot.claim();
                    let x_data = x.read::<T>();
                    let x_matrix = Matrix::new(&x_data[..], x.rows(), x.width());
                    cpu::matmul::matmul(&mut slot.tensor.write::<T>(), dy_matrix.transposed(), x_matrix, accumulate);
                }
                if let Some(slot) = &bias_slot {
                    slot.add::<T>(|d| cpu::layer_norm::backward_bias(d, &dy));
                }
                needs_dx.then(|| {
                    let mut dx = cpu::pool::take::<T>(x.len());
                    let w_data = w.read::<T>();
                    cpu::matmul::matmul(&mut dx, dy_matrix, Matrix::new(&w_data[..], w.rows(), w.width()), false);
                    Tensor::new(dout.device(), x.shape(), dx)
                }).transpose()
            }),
        }?;
        Ok(vec![dinp, None, None])
    };
    let none = Tensor::zeros(inp.device(), inp.dtype(), &[0]);
    record("linear", std::slice::from_mut(&mut out), &[inp, weight, bias.unwrap_or(&none)], Box::new(rule));
    Ok(out)
}

fn product(inp: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    match inp.device() {
        Device::Cpu => floats!(inp, T => {
            let (n, o, c) = (inp.rows(), weight.rows(), weight.width());
            let mut out = cpu::pool::take::<T>(n * o);
            if let Some(bias) = bias {
                let bias = bias.read::<T>();
                out.chunks_exact_mut(o).for_each(|row| row.copy_from_slice(&bias));
            }
            let (x, w) = (inp.read::<T>(), weight.read::<T>());
            let (x, w) = (Matrix::new(&x[..], n, c), Matrix::new(&w[..], o, c).transposed());
            cpu::matmul::matmul(&mut out, x, w, bias.is_some());
            Tensor::new(inp.device(), &[n, o], out)
        }),
    }
}
