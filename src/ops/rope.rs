//! Rotary positions. Forward: each pair (x_i, x_(i + HD/2)) of a head is turned by position x frequency_i. Backward:
//! the turn the other way. Nothing is saved but the positions. Source: Su et al., "RoFormer", 2021 (half-split
//! pairing).

use crate::autograd::record;
use crate::cpu;
use crate::cpu::attention::Heads;
use crate::device::Device;
use crate::device::kernel::{Kernel, ROPE};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::{check, dout, elementwise_launch};
use crate::tensor::{Tensor, floats};

/// Heads that a thread turns by the same angles.
const HEADS: usize = 4;
const ROPE_FORWARD: Kernel = Kernel::new(&ROPE, "rope_bf16", "rope_f32");

/// Queries and keys of qkv [N, (NH + 2 NKV) HD] turned, values as they are.
pub(crate) fn queries_keys(qkv: &Tensor, table: &Tensor, positions: &Tensor, heads: Heads) -> Result<Tensor> {
    let shape = qkv.shape().to_vec();
    let by_head = qkv.clone().reshape(&[qkv.rows(), heads.heads + 2 * heads.kv_heads, heads.size])?;
    rope(&by_head, table, positions, heads.heads + heads.kv_heads)?.reshape(&shape)
}

/// out [N, heads, HD]: the first `turned` heads of inp turned, the others copied. `table` [positions, HD] holds HD/2
/// cosines and HD/2 sines a position; `positions` [N] (i32) must lie inside it.
pub(crate) fn rope(inp: &Tensor, table: &Tensor, positions: &Tensor, turned: usize) -> Result<Tensor> {
    let shapes = inp.shape().len() == 3 && inp.shape()[2] == table.width() && positions.len() == inp.rows();
    let dtypes = inp.dtype() == table.dtype() || table.dtype() == DType::F32;
    check("rope", shapes && dtypes && turned <= inp.shape()[1], &[inp, table, positions])?;
    let inside = positions.read::<i32>().iter().all(|p| usize::try_from(*p).is_ok_and(|p| p < table.rows()));
    check("rope: a position lies outside the table; it", inside, &[inp, table, positions])?;
    let mut out = turn(inp, table, positions, turned, false)?;
    let (table, positions) = (table.detach(), positions.detach());
    let rule = move |grads: &[Option<Tensor>]| Ok(vec![Some(turn(dout(grads, 0)?, &table, &positions, turned, true)?)]);
    record("rope", std::slice::from_mut(&mut out), &[inp], Box::new(rule));
    Ok(out)
}

fn turn(inp: &Tensor, table: &Tensor, positions: &Tensor, turned: usize, back: bool) -> Result<Tensor> {
    match inp.device() {
        Device::Gpu(gpu) => {
            let (size, dtype) = (table.width(), inp.dtype());
            let heads = inp.width() / size;
            let out = Tensor::empty(inp.device(), dtype, &[inp.rows(), heads, size])?;
            elementwise_launch(gpu, ROPE_FORWARD.of(dtype)?, &out, inp.rows() * heads.div_ceil(HEADS) * size / 2)
                .tensor(inp)
                .tensor(table)
                .tensor(positions)
                .sizes([inp.rows(), heads, turned, size])
                .flag(back)
                .run()?;
            Ok(out)
        }
        Device::Cpu => floats!(inp, T => {
            let size = table.width();
            let mut out = cpu::pool::take::<T>(inp.len());
            let dims = [inp.width() / size, turned, size];
            cpu::rope::forward(&mut out, &inp.read::<T>(), &table.read(), &positions.read(), dims, back);
            let shape = [inp.rows(), dims[0], size];
            Tensor::new(inp.device(), &shape, out)
        }),
    }
}
