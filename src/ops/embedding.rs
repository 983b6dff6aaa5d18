//! Rows of a table gathered by index. Forward: out[n] = table[index[n]]. Backward: dtable[index[n]] += dout[n].

use crate::autograd::{Grad, record};
use crate::cpu;
use crate::device::kernel::{EMBEDDING, Kernel};
use crate::device::launch::Launch;
use crate::device::{Device, Gpu};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::{check, dout};
use crate::tensor::{Tensor, floats};

const FORWARD: Kernel = Kernel::new(&EMBEDDING, "embedding_forward_bf16", "embedding_forward_f32");
const BACKWARD: Kernel = Kernel::new(&EMBEDDING, "embedding_backward_bf16", "embedding_backward_f32");
const SCATTER: Kernel = Kernel::new(&EMBEDDING, "embedding_scatter_bf16", "embedding_scatter_f32");
const THREADS: usize = 128;
/// Columns that a thread of the gradient's kernels adds up.
const COLUMNS: usize = 4;

/// out [N, C] from a parameter table [V, C] and index [N] (i32, in 0..V).
pub(crate) fn embedding(table: &Tensor, index: &Tensor) -> Result<Tensor> {
    let (mut out, slot) = (gather(table, index)?, table.slot()?);
    let saved = index.detach();
    let rule = move |grads: &[Option<Tensor>]| {
        let dout = dout(grads, 0)?;
        if let Some(slot) = &slot {
            scatter_into_slot(slot, dout, &saved)?;
        }
        Ok(vec![None])
    };
    record("embedding", std::slice::from_mut(&mut out), &[table], Box::new(rule));
    Ok(out)
}

/// out [M, C]: the rows of an activation inp [N, C] that index [M] (i32, in 0..N) names.
pub(crate) fn gather_rows(inp: &Tensor, index: &Tensor) -> Result<Tensor> {
    let mut out = gather(inp, index)?;
    let (saved, shape) = (index.detach(), inp.shape().to_vec());
    let rule = move |grads: &[Option<Tensor>]| {
        let dout = dout(grads, 0)?;
        let dinp = Tensor::zeros(dout.device(), dout.dtype(), &shape)?;
        match dout.device() {
            Device::Cpu => floats!(dout, T => {
                cpu::embedding::backward(&mut dinp.write::<T>(), &dout.read(), &saved.read(), dout.width());
                Ok(())
            }),
            Device::Gpu(gpu) => scatter(gpu, SCATTER, &dinp, dout, &saved),
        }?;
        Ok(vec![Some(dinp)])
    };
    record("gather_rows", std::slice::from_mut(&mut out), &[inp], Box::new(rule));
    Ok(out)
}

fn gather(table: &Tensor, index: &Tensor) -> Result<Tensor> {
    let shapes = index.dtype() == DType::I32 && index.shape().len() == 1 && table.shape().len() == 2;
    check("embedding", shapes, &[table, index])?;
    let inside = index.read::<i32>().iter().all(|i| usize::try_from(*i).is_ok_and(|i| i < table.rows()));
    check("embedding: an index lies outside the table; it", inside, &[table, index])?;
    match table.device() {
        Device::Cpu => floats!(table, T => {
            let mut out = cpu::pool::take::<T>(index.len() * table.width());
            cpu::embedding::forward(&mut out, &table.read::<T>(), &index.read::<i32>(), table.width());
            Tensor::new(table.device(), &[index.len(), table.width()], out)
        }),
        Device::Gpu(gpu) => {
            let out = Tensor::empty(table.device(), table.dtype(), &[index.len(), table.width()])?;
            let lanes = table.width().div_ceil(32).next_power_of_two().min(32);
            Launch::new(gpu, FORWARD.of(table.dtype())?)
                .blocks(index.len().div_ceil(THREADS / lanes), THREADS)
                .out(&out)
                .tensor(table)
                .tensor(index)
                .sizes([index.len(), table.width()])
                .run()?;
            Ok(out)
        }
    }
}

fn scatter_into_slot(slot: &Grad, dout: &Tensor, index: &Tensor) -> Result<()> {
    match dout.device() {
        Device::Cpu => floats!(dout, T => {
            slot.add::<T>(|d| cpu::embedding::backward(d, &dout.read(), &index.read(), dout.width()));
            Ok(())
        }),
        Device::Gpu(gpu) => {
            if !slot.claim() {
                slot.tensor.clear()?;
            }
            scatter(gpu, BACKWARD, &slot.tensor, dout, index)
        }
    }
}

/// Adds the rows of dout [N, C] to the rows of `out` that index [N] names: the rows of one index in ascending order, by
/// one thread a column, so that the sum has one order.
fn scatter(gpu: &Gpu, kernel: Kernel, out: &Tensor, dout: &Tensor, index: &Tensor) -> Result<()> {
    let index = index.read::<i32>();
    let mut order: Vec<i32> = (0..index.len() as i32).collect();
    order.sort_by_key(|row| index[*row as usize]);
    let (mut ids, mut starts) = (Vec::new(), Vec::new());
    for (at, row) in order.iter().enumerate() {
        let id = index[*row as usize];
        if ids.last() != Some(&id) {
            ids.push(id);
            starts.push(at as i32);
        }
    }
    starts.push(order.len() as i32);
    let unique = ids.len();
    let ints = |values: Vec<i32>| Tensor::new(dout.device(), &[values.len()], values);
    let lanes = dout.width().div_ceil(COLUMNS).next_power_of_two().min(32);
    Launch::new(gpu, kernel.of(dout.dtype())?)
        .grid([unique.div_ceil(THREADS / lanes), dout.width().div_ceil(lanes * COLUMNS), 1], THREADS)
        .tensor(out)
        .tensor(dout)
        .tensor(&ints(order)?)
        .tensor(&ints(ids)?)
        .tensor(&ints(starts)?)
        .sizes([unique, dout.width()])
        .run()
}
