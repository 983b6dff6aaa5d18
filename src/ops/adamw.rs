//! One optimizer step over flat buffers. Formula and source in `cpu/adamw.rs`.

use crate::cpu;
pub(crate) use crate::cpu::adamw::Step;
use crate::device::Device;
use crate::device::kernel::{ADAMW, Entry};
use crate::device::launch::Launch;
use crate::error::Result;
use crate::ops::check;
use crate::ops::global_norm::Clip;
use crate::tensor::{Tensor, floats};

const ADAMW_F32: Entry = Entry::new(&ADAMW, "adamw_f32");

/// Blocks at most; a block then takes several stretches.
const BLOCKS_MAX: usize = 2048;

/// The parameters of a step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weights<'a> {
    /// [n].
    pub(crate) masters: &'a Tensor,
    /// [n], bf16: follows the masters.
    pub(crate) rounded: Option<&'a Tensor>,
    /// Elements before this one decay, those from here on do not.
    pub(crate) decayed: usize,
}

/// Updates the weights and the moments m [n], v [n] in place from grads [n], which are clipped on the way in;
/// changes nothing where their norm is not finite.
pub(crate) fn adamw(
    weights: &Weights<'_>,
    [m, v]: [&Tensor; 2],
    grads: &Tensor,
    step: &Step,
    clip: &Clip,
) -> Result<()> {
    let (w, n) = (weights.masters, weights.masters.len());
    let rounded = weights.rounded.is_none_or(|r| r.len() == n);
    check("adamw", m.len() == n && v.len() == n && grads.len() == n && rounded, &[w, m, v, grads])?;
    match w.device() {
        Device::Cpu => floats!(w, T => {
            let (mut w, mut m, mut v, g) = (w.write::<T>(), m.write::<T>(), v.write::<T>(), grads.read::<T>());
            let [scale, is_finite] = [0, 1].map(|i| clip.state.read::<f64>()[i]);
            if is_finite == 0.0 {
                return Ok(());
            }
            let at = weights.decayed.min(n);
            let [(w0, w1), (m0, m1), (v0, v1)] = [w.split_at_mut(at), m.split_at_mut(at), v.split_at_mut(at)];
            cpu::adamw::step::<T>(w0, m0, v0, &g[..at], step, scale);
            cpu::adamw::step::<T>(w1, m1, v1, &g[at..], &Step { weight_decay: 0.0, ..*step }, scale);
            Ok(())
        }),
        Device::Gpu(gpu) => {
            let t = step.t as f64;
            Launch::new(gpu, ADAMW_F32)
                .blocks(n.div_ceil(1024).min(BLOCKS_MAX), 256)
                .tensor(w)
                .optional(weights.rounded)
                .tensor(m)
                .tensor(v)
                .tensor(grads)
                .tensor(&clip.state)
                .long(n)
                .long(weights.decayed.min(n))
                .scalar(step.beta1)
                .scalar(step.beta2)
                .scalar(1.0 - step.beta1)
                .scalar(1.0 - step.beta2)
                .scalar(step.lr / (1.0 - step.beta1.powf(t)))
                .scalar((1.0 - step.beta2.powf(t)).sqrt())
                .scalar(step.eps)
                .scalar(1.0 - step.lr * step.weight_decay)
                .run()
        }
    }
}
