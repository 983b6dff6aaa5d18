//! Layer normalisation, alone or with the residual sum before it. Forward: xh = (x - mean) r, r = 1 / sqrt(var + eps),
//! y = xh w + b. Backward: with g = w dy, dx = r (g - mean(g) - xh mean(g xh)), dw = sum dy xh, db = sum dy. Saved: x
//! and [mean, r] per row. Source: Ba, Kiros and Hinton, "Layer normalization", 2016.

use crate::autograd::{Grad, record};
use crate::cpu;
use crate::device::Device;
use crate::error::Result;
use crate::ops::{check, dout};
use crate::tensor::{Tensor, floats};
use std::sync::Arc;

/// out [N, C] from inp [N, C], weight [C], bias [C]; eps > 0.
pub(crate) fn layer_norm(inp: &Tensor, [weight, bias]: [&Tensor; 2], eps: f64) -> Result<Tensor> {
    let (mut out, saved) = forward(inp, [weight, bias], eps)?;
    let rule = move |grads: &[Option<Tensor>]| Ok(vec![Some(saved.backward(dout(grads, 0)?, None)?), None, None]);
    record("layer_norm", std::slice::from_mut(&mut out), &[inp, weight, bias], Box::new(rule));
    Ok(out)
}

/// The next residual stream and its normalisation: sum = residual + delta, out = layer_norm(sum); both [N, C].
pub(crate) fn add_layer_norm(
    residual: &Tensor,
    delta: &Tensor,
    [weight, bias]: [&Tensor; 2],
    eps: f64,
) -> Result<(Tensor, Tensor)> {
    let sum = super::elementwise::add(&residual.detach(), &delta.detach())?;
    let (out, saved) = forward(&sum, [weight, bias], eps)?;
    let mut outputs = [sum, out];
    let rule = move |grads: &[Option<Tensor>]| {
        let dsum = grads.first().and_then(Option::as_ref);
        let dinp = match grads.get(1).and_then(Option::as_ref) {
            Some(dout) => Some(saved.backward(dout, dsum)?),
            None => dsum.cloned(),
        };
        Ok(vec![dinp.clone(), dinp, None, None])
    };
    record("add_layer_norm", &mut outputs, &[residual, delta, weight, bias], Box::new(rule));
    let [sum, out] = outputs;
    Ok((sum, out))
}

struct Saved {
    inp: Tensor,
    weight: Tensor,
    stats: Tensor,
    slots: [Option<Arc<Grad>>; 2],
}

fn forward(inp: &Tensor, [weight, bias]: [&Tensor; 2], eps: f64) -> Result<(Tensor, Saved)> {
    let width = weight.len();
    check(
        "layer_norm",
        inp.shape().last() == Some(&width) && bias.len() == width && inp.dtype() == weight.dtype(),
        &[inp, weight, bias],
    )?;
    let slots = [weight.slot()?, bias.slot()?];
    match inp.device() {
        Device::Cpu => floats!(inp, T => {
            let rows = inp.len() / width;
            let (mut out, mut stats) = (cpu::pool::take::<T>(inp.len()), cpu::pool::take::<T>(2 * rows));
            cpu::layer_norm::forward(&mut out, &mut stats, &inp.read(), &weight.read(), &bias.read(), eps as T);
            let out = Tensor::new(inp.device(), inp.shape(), out)?;
            let stats = Tensor::new(inp.device(), &[rows, 2], stats)?;
            Ok((out, Saved { inp: inp.detach(), weight: weight.detach(), stats, slots }))
        }),
    }
}

impl Saved {
    /// dinp, with the residual stream's gradient added; the parameters' gradients go into their slots.
    fn backward(&self, dout: &Tensor, dresidual: Option<&Tensor>) -> Result<Tensor> {
        match dout.device() {
            Device::Cpu => floats!(dout, T => {
                let (dy, x, stats) = (dout.read::<T>(), self.inp.read::<T>(), self.stats.read::<T>());
                if let [Some(weight), Some(bias)] = &self.slots {
                    weight.add::<T>(|d| cpu::layer_norm::backward_weight(d, &dy, &x, &stats));
                    bias.add::<T>(|d| cpu::layer_norm::backward_bias(d, &dy));
                }
                let residual = dresidual.map(Tensor::read::<T>);
                let mut dinp = cpu::pool::take::<T>(x.len());
                cpu::layer_norm::backward(&mut dinp, &dy, &x, &self.weight.read(), &stats, residual.as_deref());
                Tensor::new(dout.device(), self.inp.shape(), dinp)
            }),
        }
    }
}
