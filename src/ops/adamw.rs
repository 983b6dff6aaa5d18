//! One optimizer step over a stretch of a flat buffer. Formula and source in `cpu/adamw.rs`.

use crate::cpu;
pub(crate) use crate::cpu::adamw::Step;
use crate::device::Device;
use crate::error::Result;
use crate::ops::check;
use crate::tensor::{Tensor, floats};

/// Updates weights [n] and the moments m [n], v [n] in place from grads [n].
pub(crate) fn adamw(weights: &Tensor, [m, v]: [&Tensor; 2], grads: &Tensor, step: &Step) -> Result<()> {
    let n = weights.len();
    check("adamw", m.len() == n && v.len() == n && grads.len() == n, &[weights, m, v, grads])?;
    match weights.device() {
        Device::Cpu => floats!(weights, T => {
            let (mut w, mut m, mut v) = (weights.write::<T>(), m.write::<T>(), v.write::<T>());
            cpu::adamw::step::<T>(&mut w, &mut m, &mut v, &grads.read(), step);
            Ok(())
        }),
    }
}
