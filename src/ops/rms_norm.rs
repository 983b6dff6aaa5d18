//! RMS normalisation, alone or with the residual sum before it. Forward: r = 1 / sqrt(mean(x^2) + eps), y = x r w.
//! Backward: dx = r (w dy - x r mean(w dy x r)), dw = sum over rows of dy x r. Saved: x and r [N].
//! Source: Zhang and Sennrich, "Root mean square layer normalization", 2019.

use crate::autograd::{Grad, record};
use crate::cpu;
use crate::device::Device;
use crate::error::Result;
use crate::ops::attention::Heads;
use crate::ops::{check, dout};
use crate::tensor::{Tensor, floats};
use std::sync::Arc;

/// out [N, C] from inp [N, C], weight [C]; eps > 0. An input of more dimensions is seen as rows of the last one.
pub(crate) fn rms_norm(inp: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let (mut out, saved) = forward(inp, weight, eps)?;
    let rule = move |grads: &[Option<Tensor>]| Ok(vec![Some(saved.backward(dout(grads, 0)?, None)?), None]);
    record("rms_norm", std::slice::from_mut(&mut out), &[inp, weight], Box::new(rule));
    Ok(out)
}

/// The next residual stream and its normalisation: sum = residual + delta, out = rms_norm(sum); both [N, C].
pub(crate) fn add_rms_norm(residual: &Tensor, delta: &Tensor, weight: &Tensor, eps: f64) -> Result<(Tensor, Tensor)> {
    let sum = super::elementwise::add(&residual.detach(), &delta.detach())?;
    let (out, saved) = forward(&sum, weight, eps)?;
    let mut outputs = [sum, out];
    let rule = move |grads: &[Option<Tensor>]| {
        let dsum = grads.first().and_then(Option::as_ref);
        let dinp = match grads.get(1).and_then(Option::as_ref) {
            Some(dout) => Some(saved.backward(dout, dsum)?),
            None => dsum.cloned(),
        };
        Ok(vec![dinp.clone(), dinp, None])
    };
    record("add_rms_norm", &mut outputs, &[residual, delta, weight], Box::new(rule));
    let [sum, out] = outputs;
    Ok((sum, out))
}

struct Saved {
    inp: Tensor,
    weight: Tensor,
    rstd: Tensor,
    slot: Option<Arc<Grad>>,
}

fn forward(inp: &Tensor, weight: &Tensor, eps: f64) -> Result<(Tensor, Saved)> {
    let width = weight.len();
    check("rms_norm", inp.shape().last() == Some(&width) && inp.dtype() == weight.dtype(), &[inp, weight])?;
    let slot = weight.slot()?;
    match inp.device() {
        Device::Cpu => floats!(inp, T => {
            let rows = inp.len() / width;
            let (mut out, mut rstd) = (cpu::pool::take::<T>(inp.len()), cpu::pool::take::<T>(rows));
            cpu::rms_norm::forward(&mut out, &mut rstd, &inp.read(), &weight.read(), eps as T);
            let out = Tensor::new(inp.device(), inp.shape(), out)?;
            let rstd = Tensor::new(inp.device(), &[rows], rstd)?;
            Ok((out, Saved { inp: inp.detach(), weight: weight.detach(), rstd, slot }))
        }),
    }
}

impl Saved {
    /// dinp, with the residual stream's gradient added; the weight's gradient goes into its slot.
    fn backward(&self, dout: &Tensor, dresidual: Option<&Tensor>) -> Result<Tensor> {
        match dout.device() {
            Device::Cpu => floats!(dout, T => {
                let (dy, x, r) = (dout.read::<T>(), self.inp.read::<T>(), self.rstd.read::<T>());
                if let Some(slot) = &self.slot {
                    slot.add::<T>(|d| cpu::rms_norm::backward_weight(d, &dy, &x, &r));
                }
                let residual = dresidual.map(Tensor::read::<T>);
                let mut dinp = cpu::pool::take::<T>(x.len());
                cpu::rms_norm::backward(&mut dinp, &dy, &x, &self.weight.read(), &r, residual.as_deref());
                Tensor::new(dout.device(), self.inp.shape(), dinp)
            }),
        }
    }
}

/// Qwen3's normalisation of each query and key head of qkv [N, row] over its own elements, with weights [HD] each;
/// values pass as they are.
pub(crate) fn qk_norm(qkv: &Tensor, weights: [&Tensor; 2], heads: Heads, eps: f64) -> Result<Tensor> {
    check("qk_norm", qkv.width() == heads.row() && weights.iter().all(|w| w.len() == heads.size), &[qkv])?;
    let q_width = heads.heads * heads.size;
    let spans = [0..q_width, q_width..q_width + heads.kv_heads * heads.size];
    let mut out = copy(qkv)?;
    let mut saved = Vec::new();
    for (span, weight) in spans.clone().into_iter().zip(weights) {
        let (normed, save) = forward(&cut(qkv, span.clone(), heads.size)?, weight, eps)?;
        paste(&out, span, &normed)?;
        saved.push(save);
    }
    let rule = move |grads: &[Option<Tensor>]| {
        let dout = dout(grads, 0)?;
        let dinp = copy(dout)?;
        for (span, saved) in spans.clone().into_iter().zip(&saved) {
            paste(&dinp, span.clone(), &saved.backward(&cut(dout, span, saved.weight.len())?, None)?)?;
        }
        Ok(vec![Some(dinp), None, None])
    };
    record("qk_norm", std::slice::from_mut(&mut out), &[qkv, weights[0], weights[1]], Box::new(rule));
    Ok(out)
}

fn copy(inp: &Tensor) -> Result<Tensor> {
    match inp.device() {
        Device::Cpu => floats!(inp, T => Tensor::new(inp.device(), inp.shape(), inp.read::<T>().to_vec())),
    }
}

/// The columns `span` of every row, as rows of `size` elements.
fn cut(inp: &Tensor, span: std::ops::Range<usize>, size: usize) -> Result<Tensor> {
    match inp.device() {
        Device::Cpu => floats!(inp, T => {
            let data = inp.read::<T>();
            let cut: Vec<T> = data.chunks_exact(inp.width()).flat_map(|row| &row[span.clone()]).copied().collect();
            Tensor::new(inp.device(), &[cut.len() / size, size], cut)
        }),
    }
}

/// Puts what [`cut`] took back into the columns `span`.
fn paste(out: &Tensor, span: std::ops::Range<usize>, inp: &Tensor) -> Result<()> {
    match inp.device() {
        Device::Cpu => floats!(inp, T => {
            let (mut out_data, inp) = (out.write::<T>(), inp.read::<T>());
            for (row, cut) in out_data.chunks_exact_mut(out.width()).zip(inp.chunks_exact(span.len())) {
                row[span.clone()].copy_from_slice(cut);
            }
            Ok(())
        }),
    }
}
