//! The Euclidean norm of a flat buffer, sqrt(sum x^2), and the factor that brings it down to a limit. The norm is not
//! finite exactly if an element is not (or the sum overflows).

use crate::cpu;
use crate::device::Device;
use crate::device::kernel::{Entry, GLOBAL_NORM};
use crate::device::launch::Launch;
use crate::dtype::DType;
use crate::error::Result;
use crate::tensor::{Tensor, floats};

const FORWARD: Entry = Entry::new(&GLOBAL_NORM, "global_norm_forward_f32");
const FINISH: Entry = Entry::new(&GLOBAL_NORM, "global_norm_finish_f32");

/// Elements that are summed in f32; the pieces' sums are added in f64.
const PIECE: usize = 16384;
/// Blocks of the first launch at most; they take the pieces in turns.
const BLOCKS_MAX: usize = 1024;

/// What clipping found out about a gradient; it stays on the device until somebody reads it.
#[derive(Debug)]
pub(crate) struct Clip {
    /// What the gradient is to be multiplied with, 1 if its norm is finite (else 0), the norm before clipping; [3].
    pub(crate) state: Tensor,
}

/// The norm of all elements, and the scale that brings it down to `max_norm` (0: no limit).
pub(crate) fn clip(inp: &Tensor, max_norm: f64) -> Result<Clip> {
    match inp.device() {
        Device::Cpu => floats!(inp, T => {
            let norm = cpu::global_norm::forward::<T>(&inp.read());
            let scale = if max_norm > 0.0 { (max_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
            let state = vec![scale, f64::from(u8::from(norm.is_finite())), norm];
            Ok(Clip { state: Tensor::new(inp.device(), &[3], state)? })
        }),
        Device::Gpu(gpu) => {
            let count = inp.len().div_ceil(PIECE);
            let partials = Tensor::empty(inp.device(), DType::F32, &[count])?;
            let state = Tensor::empty(inp.device(), DType::F32, &[3])?;
            Launch::new(gpu, FORWARD)
                .blocks(count.min(BLOCKS_MAX), 256)
                .out(&partials)
                .tensor(inp)
                .long(inp.len())
                .run()?;
            Launch::new(gpu, FINISH)
                .blocks(1, 1024)
                .out(&state)
                .tensor(&partials)
                .size(count)
                .scalar(max_norm)
                .run()?;
            Ok(Clip { state })
        }
    }
}
