//! Rows of a table gathered by index. Forward: out[n] = table[index[n]]. Backward: dtable[index[n]] += dout[n].

use crate::autograd::record;
use crate::cpu;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::{check, dout};
use crate::tensor::{Tensor, floats};

/// out [N, C] from a parameter table [V, C] and index [N] (i32, in 0..V).
pub(crate) fn embedding(table: &Tensor, index: &Tensor) -> Result<Tensor> {
    let (mut out, slot) = (gather(table, index)?, table.slot()?);
    let saved = index.detach();
    let rule = move |grads: &[Option<Tensor>]| {
        let dout = dout(grads, 0)?;
        if let Some(slot) = &slot {
            match dout.device() {
                Device::Cpu => floats!(dout, T => {
                    slot.add::<T>(|d| cpu::embedding::backward(d, &dout.read(), &saved.read(), dout.width()));
                    Ok(())
                }),
            }?;
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
        let dinp = Tensor::zeros(dout.device(), dout.dtype(), &shape);
        match dout.device() {
            Device::Cpu => floats!(dout, T => {
                cpu::embedding::backward(&mut dinp.write::<T>(), &dout.read(), &saved.read(), dout.width());
                Ok(())
            }),
        }?;
        Ok(vec![Some(dinp)])
    };
    record("gather_rows", std::slice::from_mut(&mut out), &[inp], Box::new(rule));
    Ok(out)
}

fn gather(table: &Tensor, index: &Tensor) -> Result<Tensor> {
    let shapes = index.dtype() == DType::I32 && index.shape().len() == 1 && table.shape().len() == 2;
    check("embedding", shapes, &[table, index])?;
    match table.device() {
        Device::Cpu => floats!(table, T => {
            let index_data = index.read::<i32>();
            let inside = index_data.iter().all(|i| usize::try_from(*i).is_ok_and(|i| i < table.rows()));
            check("embedding: an index lies outside the table; it", inside, &[table, index])?;
            let mut out = cpu::pool::take::<T>(index.len() * table.width());
            cpu::embedding::forward(&mut out, &table.read::<T>(), &index_data, table.width());
            Tensor::new(table.device(), &[index.len(), table.width()], out)
        }),
    }
}
