//! Layer normalisation, alone or with the residual sum before it. Forward: xh = (x - mean) r, r = 1 / sqrt(var + eps),
//! y = xh w + b. Backward: with g = w dy, dx = r (g - mean(g) - xh mean(g xh)), dw = sum dy xh, db = sum dy. Saved: x
//! and [mean, r] per row. Source: Ba, Kiros and Hinton, "Layer normalization", 2016.

use crate::autograd::{Grad, record};
use crate::cpu;
use crate::device::kernel::{Kernel, LAYER_NORM};
use crate::device::launch::Launch;
use crate::device::{Device, Gpu};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::column_sum::add_partials;
use crate::ops::{RowPlan, check, dout};
use crate::tensor::{Tensor, floats};
use std::sync::Arc;

const FORWARD: Kernel = Kernel::new(&LAYER_NORM, "layer_norm_forward_bf16", "layer_norm_forward_f32");
const BACKWARD: Kernel = Kernel::new(&LAYER_NORM, "layer_norm_backward_bf16", "layer_norm_backward_f32");

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
    let (sum, out, saved) = match residual.device() {
        Device::Cpu => {
            let sum = super::elementwise::add(&residual.detach(), &delta.detach())?;
            let (out, saved) = forward(&sum, [weight, bias], eps)?;
            (sum, out, saved)
        }
        Device::Gpu(gpu) => {
            check("add_layer_norm", residual.shape() == delta.shape(), &[residual, delta])?;
            let (out, sum, saved) = Saved::forward(gpu, [residual, weight, bias], Some(delta), eps)?;
            (sum, out, saved)
        }
    };
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
        Device::Gpu(gpu) => Saved::forward(gpu, [inp, weight, bias], None, eps).map(|(out, _, saved)| (out, saved)),
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
            Device::Gpu(gpu) => self.backward_on(gpu, dout, dresidual),
            Device::Cpu => floats!(dout, T => {
                let (dy, x, stats) = (dout.read::<T>(), self.inp.read::<T>(), self.stats.read::<T>());
                if let [Some(weight), Some(bias)] = &self.slots {
                    weight.add::<T>(|d| cpu::layer_norm::backward_weight(d, &dy, &x, &stats));
                    bias.add::<T>(|d| cpu::column_sum::bias_backward(d, &dy));
                }
                let residual = dresidual.map(Tensor::read::<T>);
                let mut dinp = cpu::pool::take::<T>(x.len());
                cpu::layer_norm::backward(&mut dinp, &dy, &x, &self.weight.read(), &stats, residual.as_deref());
                Tensor::new(dout.device(), self.inp.shape(), dinp)
            }),
        }
    }
}

impl Saved {
    /// out, and the sum inp + delta of which it is the norm (inp itself without a delta).
    fn forward(
        gpu: &Gpu,
        [inp, weight, bias]: [&Tensor; 3],
        delta: Option<&Tensor>,
        eps: f64,
    ) -> Result<(Tensor, Tensor, Self)> {
        let width = weight.len();
        let shapes = inp.shape().last() == Some(&width) && bias.len() == width && inp.dtype() == weight.dtype();
        let widest = (1..=RowPlan::WIDEST).contains(&width);
        check("layer_norm on a GPU", shapes && widest, &[inp, weight, bias])?;
        let rows = inp.len() / width;
        let plan = RowPlan::new(width);
        let out = Tensor::empty(inp.device(), inp.dtype(), inp.shape())?;
        let stats = Tensor::empty(inp.device(), DType::F32, &[rows, 2])?;
        let sum = delta.map(|_| Tensor::empty(inp.device(), inp.dtype(), inp.shape())).transpose()?;
        Launch::new(gpu, FORWARD.of(inp.dtype())?)
            .blocks(rows.div_ceil(plan.teams), plan.threads)
            .out(&out)
            .out(&stats)
            .optional_out(sum.as_ref())
            .tensor(inp)
            .optional(delta)
            .tensor(weight)
            .tensor(bias)
            .sizes([rows, width])
            .scalar(eps)
            .run()?;
        let sum = sum.unwrap_or_else(|| inp.detach());
        let slots = [weight.slot()?, bias.slot()?];
        Ok((out, sum.clone(), Self { inp: sum, weight: weight.detach(), stats, slots }))
    }

    fn backward_on(&self, gpu: &Gpu, dout: &Tensor, dresidual: Option<&Tensor>) -> Result<Tensor> {
        let (width, rows) = (self.weight.len(), self.stats.rows());
        let plan = RowPlan::new(width);
        let chunks = rows.div_ceil(plan.chunk);
        let trained = self.slots.iter().any(Option::is_some);
        let partials = trained.then(|| Tensor::empty(dout.device(), DType::F32, &[2 * chunks, width])).transpose()?;
        let dinp = Tensor::empty(dout.device(), dout.dtype(), self.inp.shape())?;
        Launch::new(gpu, BACKWARD.of(dout.dtype())?)
            .blocks(chunks, plan.threads)
            .shared(if trained { plan.shared() } else { 0 })
            .out(&dinp)
            .optional_out(partials.as_ref())
            .tensor(dout)
            .optional(dresidual)
            .tensor(&self.inp)
            .tensor(&self.weight)
            .tensor(&self.stats)
            .sizes([rows, width])
            .run()?;
        if let Some(partials) = &partials {
            for (slot, first) in self.slots.iter().zip([0, chunks * width]) {
                if let Some(slot) = slot {
                    add_partials(gpu, slot, &partials.view(first, &[chunks, width])?)?;
                }
            }
        }
        Ok(dinp)
    }
}
