//! RMS normalisation, alone or with the residual sum before it. Forward: r = 1 / sqrt(mean(x^2) + eps), y = x r w.
//! Backward: dx = r (w dy - x r mean(w dy x r)), dw = sum over rows of dy x r. Saved: x and r [N].
//! Source: Zhang and Sennrich, "Root mean square layer normalization", 2019.

use crate::autograd::{Grad, record};
use crate::cpu;
use crate::device::kernel::{Kernel, RMS_NORM};
use crate::device::launch::Launch;
use crate::device::{Device, Gpu};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::attention::Heads;
use crate::ops::column_sum::add_partials;
use crate::ops::elementwise::copy_columns;
use crate::ops::{RowPlan, check, dout};
use crate::tensor::{Tensor, floats};
use std::sync::Arc;

const FORWARD: Kernel = Kernel::new(&RMS_NORM, "rms_norm_forward_bf16", "rms_norm_forward_f32");
const BACKWARD: Kernel = Kernel::new(&RMS_NORM, "rms_norm_backward_bf16", "rms_norm_backward_f32");

/// out [N, C] from inp [N, C], weight [C]; eps > 0. An input of more dimensions is seen as rows of the last one.
pub(crate) fn rms_norm(inp: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let (mut out, saved) = forward(inp, weight, eps)?;
    let rule = move |grads: &[Option<Tensor>]| Ok(vec![Some(saved.backward(dout(grads, 0)?, None)?), None]);
    record("rms_norm", std::slice::from_mut(&mut out), &[inp, weight], Box::new(rule));
    Ok(out)
}

/// The next residual stream and its normalisation: sum = residual + delta, out = rms_norm(sum); both [N, C].
pub(crate) fn add_rms_norm(residual: &Tensor, delta: &Tensor, weight: &Tensor, eps: f64) -> Result<(Tensor, Tensor)> {
    let (sum, out, saved) = match residual.device() {
        Device::Cpu => {
            let sum = super::elementwise::add(&residual.detach(), &delta.detach())?;
            let (out, saved) = forward(&sum, weight, eps)?;
            (sum, out, saved)
        }
        Device::Gpu(gpu) => {
            check("add_rms_norm", residual.shape() == delta.shape(), &[residual, delta])?;
            let rows = Rows::plain(residual, weight)?;
            let [out, sum] = [(); 2].map(|()| Tensor::empty(residual.device(), residual.dtype(), residual.shape()));
            let (out, sum) = (out?, sum?);
            let rstd = rows.forward(gpu, &out, Some((&sum, delta)), residual, weight, eps)?;
            let saved = Saved { inp: sum.detach(), weight: weight.detach(), rstd, slot: weight.slot()? };
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
        Ok(vec![dinp.clone(), dinp, None])
    };
    record("add_rms_norm", &mut outputs, &[residual, delta, weight], Box::new(rule));
    let [sum, out] = outputs;
    Ok((sum, out))
}

#[derive(Clone)]
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
        Device::Gpu(gpu) => {
            let out = Tensor::empty(inp.device(), inp.dtype(), inp.shape())?;
            let rstd = Rows::plain(inp, weight)?.forward(gpu, &out, None, inp, weight, eps)?;
            Ok((out, Saved { inp: inp.detach(), weight: weight.detach(), rstd, slot }))
        }
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
            Device::Gpu(gpu) => {
                let dinp = Tensor::empty(dout.device(), dout.dtype(), self.inp.shape())?;
                let rows = Rows::plain(&self.inp, &self.weight)?;
                rows.backward(gpu, &dinp, dout, dresidual, self)?;
                Ok(dinp)
            }
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

/// Rows as a GPU sees them: `groups` rows of `width` elements side by side in each stretch of `stride` elements.
struct Rows {
    rows: usize,
    width: usize,
    groups: usize,
    stride: usize,
}

impl Rows {
    fn plain(inp: &Tensor, weight: &Tensor) -> Result<Self> {
        let width = weight.len();
        let shapes = inp.shape().last() == Some(&width) && inp.dtype() == weight.dtype();
        check("rms_norm on a GPU", shapes && (1..=RowPlan::WIDEST).contains(&width), &[inp, weight])?;
        Ok(Self { rows: inp.len() / width, width, groups: 1, stride: width })
    }

    fn heads(qkv: &Tensor, span: &std::ops::Range<usize>, heads: Heads) -> Result<Self> {
        check("qk_norm on a GPU", heads.size <= RowPlan::WIDEST, &[qkv])?;
        let groups = span.len() / heads.size;
        Ok(Self { rows: qkv.rows() * groups, width: heads.size, groups, stride: qkv.width() })
    }

    /// Whether the rows are all there is, so that a launch writes its output in full.
    fn is_whole(&self) -> bool {
        self.groups * self.width == self.stride
    }

    /// Writes out, and with `sum` and `delta` first sum = inp + delta; returns rstd [rows].
    fn forward(
        &self,
        gpu: &Gpu,
        out: &Tensor,
        sum: Option<(&Tensor, &Tensor)>,
        inp: &Tensor,
        weight: &Tensor,
        eps: f64,
    ) -> Result<Tensor> {
        let plan = RowPlan::new(self.width);
        let rstd = Tensor::empty(inp.device(), DType::F32, &[self.rows])?;
        Launch::new(gpu, FORWARD.of(inp.dtype())?)
            .blocks(self.rows.div_ceil(plan.teams), plan.threads)
            .sum(out, !self.is_whole())
            .out(&rstd)
            .optional_out(sum.map(|(sum, _)| sum))
            .tensor(inp)
            .optional(sum.map(|(_, delta)| delta))
            .tensor(weight)
            .sizes([self.rows, self.width, self.groups])
            .long(self.stride)
            .scalar(eps)
            .run()?;
        Ok(rstd)
    }

    /// Writes dinp; the weight's gradient goes into its slot.
    fn backward(
        &self,
        gpu: &Gpu,
        dinp: &Tensor,
        dout: &Tensor,
        dresidual: Option<&Tensor>,
        saved: &Saved,
    ) -> Result<()> {
        let plan = RowPlan::new(self.width);
        let shape = [self.rows.div_ceil(plan.chunk), self.width];
        let partials = saved.slot.as_ref().map(|_| Tensor::empty(dout.device(), DType::F32, &shape)).transpose()?;
        Launch::new(gpu, BACKWARD.of(dout.dtype())?)
            .blocks(shape[0], plan.threads)
            .shared(if partials.is_some() { plan.shared() } else { 0 })
            .sum(dinp, !self.is_whole())
            .optional_out(partials.as_ref())
            .tensor(dout)
            .optional(dresidual)
            .tensor(&saved.inp)
            .tensor(&saved.weight)
            .tensor(&saved.rstd)
            .sizes([self.rows, self.width, self.groups])
            .long(self.stride)
            .run()?;
        match (&saved.slot, &partials) {
            (Some(slot), Some(partials)) => add_partials(gpu, slot, partials),
            _ => Ok(()),
        }
    }
}

/// Qwen3's normalisation of each query and key head of qkv [N, row] over its own elements, with weights [HD] each;
/// values pass as they are.
pub(crate) fn qk_norm(qkv: &Tensor, weights: [&Tensor; 2], heads: Heads, eps: f64) -> Result<Tensor> {
    check("qk_norm", qkv.width() == heads.row() && weights.iter().all(|w| w.len() == heads.size), &[qkv])?;
    let (mut out, saved) = match qkv.device() {
        Device::Cpu => qk_norm_on_host(qkv, weights, heads, eps)?,
        Device::Gpu(gpu) => {
            let out = Tensor::empty(qkv.device(), qkv.dtype(), qkv.shape())?;
            copy_columns(gpu, &out, qkv, values(heads))?;
            let mut saved = Vec::new();
            for (span, weight) in spans(heads).into_iter().zip(weights) {
                let rows = Rows::heads(qkv, &span, heads)?;
                let (place, inp) = (from(&out, span.start)?, from(qkv, span.start)?);
                let rstd = rows.forward(gpu, &place, None, &inp, weight, eps)?;
                saved.push(Saved { inp: qkv.detach(), weight: weight.detach(), rstd, slot: weight.slot()? });
            }
            (out, saved)
        }
    };
    let rule = move |grads: &[Option<Tensor>]| {
        let dout = dout(grads, 0)?;
        let dinp = match dout.device() {
            Device::Cpu => dout.duplicate()?,
            Device::Gpu(gpu) => {
                let dinp = Tensor::empty(dout.device(), dout.dtype(), dout.shape())?;
                copy_columns(gpu, &dinp, dout, values(heads))?;
                dinp
            }
        };
        for (span, saved) in spans(heads).into_iter().zip(&saved) {
            match dout.device() {
                Device::Cpu => {
                    let part = saved.backward(&cut(dout, span.clone(), saved.weight.len())?, None)?;
                    paste(&dinp, span, &part)?;
                }
                Device::Gpu(gpu) => {
                    let rows = Rows::heads(dout, &span, heads)?;
                    let inp = from(&saved.inp, span.start)?;
                    let saved = Saved { inp, ..saved.clone() };
                    rows.backward(gpu, &from(&dinp, span.start)?, &from(dout, span.start)?, None, &saved)?;
                }
            }
        }
        Ok(vec![Some(dinp), None, None])
    };
    record("qk_norm", std::slice::from_mut(&mut out), &[qkv, weights[0], weights[1]], Box::new(rule));
    Ok(out)
}

/// The columns of queries, and of keys.
fn spans(heads: Heads) -> [std::ops::Range<usize>; 2] {
    let queries = heads.heads * heads.size;
    [0..queries, queries..queries + heads.kv_heads * heads.size]
}

/// The columns of values.
fn values(heads: Heads) -> std::ops::Range<usize> {
    (heads.heads + heads.kv_heads) * heads.size..heads.row()
}

/// The tensor from its element `first` on.
fn from(tensor: &Tensor, first: usize) -> Result<Tensor> {
    tensor.view(first.min(tensor.len()), &[tensor.len().saturating_sub(first)])
}

fn qk_norm_on_host(qkv: &Tensor, weights: [&Tensor; 2], heads: Heads, eps: f64) -> Result<(Tensor, Vec<Saved>)> {
    let out = qkv.duplicate()?;
    let mut saved = Vec::new();
    for (span, weight) in spans(heads).into_iter().zip(weights) {
        let (normed, save) = forward(&cut(qkv, span.clone(), heads.size)?, weight, eps)?;
        paste(&out, span, &normed)?;
        saved.push(save);
    }
    Ok((out, saved))
}

/// On the host: the columns `span` of every row, as rows of `size` elements.
fn cut(inp: &Tensor, span: std::ops::Range<usize>, size: usize) -> Result<Tensor> {
    floats!(inp, T => {
        let data = inp.read::<T>();
        let cut: Vec<T> = data.chunks_exact(inp.width()).flat_map(|row| &row[span.clone()]).copied().collect();
        Tensor::new(inp.device(), &[cut.len() / size, size], cut)
    })
}

/// Puts what [`cut`] took back into the columns `span`.
fn paste(out: &Tensor, span: std::ops::Range<usize>, inp: &Tensor) -> Result<()> {
    floats!(inp, T => {
        let (mut out_data, inp) = (out.write::<T>(), inp.read::<T>());
        for (row, cut) in out_data.chunks_exact_mut(out.width()).zip(inp.chunks_exact(span.len())) {
            row[span.clone()].copy_from_slice(cut);
        }
        Ok(())
    })
}
