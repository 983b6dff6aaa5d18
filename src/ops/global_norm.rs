//! The Euclidean norm of a flat buffer: sqrt(sum x^2). Not finite exactly if an element is not (or the sum overflows).

use crate::cpu;
use crate::device::Device;
use crate::error::Result;
use crate::tensor::{Tensor, floats};

/// The norm of all elements.
pub(crate) fn global_norm(inp: &Tensor) -> Result<f64> {
    match inp.device() {
        Device::Cpu => floats!(inp, T => Ok(cpu::global_norm::forward::<T>(&inp.read()))),
    }
}
