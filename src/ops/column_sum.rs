//! Sums over rows into a gradient: of a bias, and the second step of every weight gradient that is a sum over rows.

use crate::autograd::Grad;
use crate::cpu;
use crate::device::kernel::{COLUMN_SUM, Entry, Kernel};
use crate::device::launch::Launch;
use crate::device::{Device, Gpu};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::RowPlan;
use crate::tensor::{Tensor, floats};

const BIAS_BACKWARD: Kernel = Kernel::new(&COLUMN_SUM, "bias_backward_bf16", "bias_backward_f32");
const COLUMN_SUM_F32: Entry = Entry::new(&COLUMN_SUM, "column_sum_f32");

/// Columns that one block of a first step covers where a row is wider.
const COLUMNS: usize = 1024;

/// The slot's gradient [C] += the sum over rows of dout [N, C].
pub(crate) fn bias_backward(slot: &Grad, dout: &Tensor) -> Result<()> {
    match dout.device() {
        Device::Cpu => floats!(dout, T => {
            slot.add::<T>(|d| cpu::column_sum::bias_backward(d, &dout.read()));
            Ok(())
        }),
        Device::Gpu(gpu) => {
            let (plan, chunks, columns) = wide_plan(dout.rows(), dout.width());
            let partials = Tensor::empty(dout.device(), DType::F32, &[chunks, dout.width()])?;
            Launch::new(gpu, BIAS_BACKWARD.of(dout.dtype())?)
                .grid([chunks, columns, 1], plan.threads)
                .shared(plan.shared())
                .out(&partials)
                .tensor(dout)
                .sizes([dout.rows(), dout.width()])
                .run()?;
            add_partials(gpu, slot, &partials)
        }
    }
}

/// For rows of any width, cut into spans of columns: the plan of a span, the chunks of rows, and the spans.
pub(crate) fn wide_plan(rows: usize, width: usize) -> (RowPlan, usize, usize) {
    let plan = RowPlan::new(width.min(COLUMNS));
    (plan, rows.div_ceil(plan.chunk), width.div_ceil(COLUMNS))
}

/// The slot's gradient [C] += the sum of partials [chunks, C], in ascending order.
pub(crate) fn add_partials(gpu: &Gpu, slot: &Grad, partials: &Tensor) -> Result<()> {
    let width = partials.width();
    let accumulate = slot.claim();
    Launch::new(gpu, COLUMN_SUM_F32)
        .blocks(width.div_ceil(32), 512)
        .sum(&slot.tensor, accumulate)
        .tensor(partials)
        .sizes([partials.rows(), width])
        .flag(accumulate)
        .run()
}
