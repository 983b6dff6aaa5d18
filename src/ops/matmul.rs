//! The linear layer: y = x W^T + b, weights [out, in]. Backward: dx = dy W, dW = dy^T x, db = sum over rows of dy; the
//! parameters' gradients are accumulated into their slots by the product itself. Saved: x, or the recipe that it
//! carries.

use crate::autograd::{Grad, record};
use crate::cpu;
use crate::cpu::matmul::Matrix;
use crate::device::gemm::{Factor, Gemm};
use crate::device::kernel::{Entry, GEMM, Kernel};
use crate::device::launch::{Launch, OnDevice};
use crate::device::{Device, Gpu};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::column_sum::bias_backward;
use crate::ops::{check, dout};
use crate::tensor::{Tensor, floats};

const NT: Kernel = Kernel::new(&GEMM, "gemm_nt_bf16", "gemm_nt_f32");
const NT_SKINNY: Entry = Entry::new(&GEMM, "gemm_nt_skinny_bf16");
const NT_WIDE: Entry = Entry::new(&GEMM, "gemm_nt_wide_bf16");
const NN: Kernel = Kernel::new(&GEMM, "gemm_nn_bf16", "gemm_nn_f32");
const TN: Kernel = Kernel::new(&GEMM, "gemm_tn_bf16", "gemm_tn_f32");

/// Rows up to which the small tile of `gemm_nt_skinny_bf16` wastes less.
const SKINNY_ROWS: usize = 64;

/// out [N, O] from inp [N, C], weight [O, C] and an optional bias [O].
pub(crate) fn linear(inp: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let shapes = weight.shape().len() == 2 && inp.width() == weight.width() && inp.dtype() == weight.dtype();
    check("linear", shapes && bias.is_none_or(|b| b.len() == weight.rows()), &[inp, weight])?;
    let mut out = product(inp, weight, bias)?;
    let (slot, bias_slot) = (weight.slot()?, bias.map(Tensor::slot).transpose()?.flatten());
    let (x, w, needs_dx) = (inp.keep(), weight.detach(), inp.needs_grad());
    let inputs = 2 + usize::from(bias.is_some());
    let rule = move |grads: &[Option<Tensor>]| {
        let dout = dout(grads, 0)?;
        if let Some(slot) = &slot {
            weight_gradient(slot, dout, &x.get()?)?;
        }
        if let Some(slot) = &bias_slot {
            bias_backward(slot, dout)?;
        }
        let dinp = needs_dx.then(|| input_gradient(dout, &w)).transpose()?;
        Ok([dinp, None, None].into_iter().take(inputs).collect())
    };
    let recorded: Vec<&Tensor> = [inp, weight].into_iter().chain(bias).collect();
    record("linear", std::slice::from_mut(&mut out), &recorded, Box::new(rule));
    Ok(out)
}

fn product(inp: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (n, o, c) = (inp.rows(), weight.rows(), weight.width());
    match inp.device() {
        Device::Cpu => floats!(inp, T => {
            let mut out = cpu::pool::take::<T>(n * o);
            if let Some(bias) = bias {
                let bias = bias.read::<T>();
                out.chunks_exact_mut(o).for_each(|row| row.copy_from_slice(&bias));
            }
            let (x, w) = (inp.read::<T>(), weight.read::<T>());
            let (x, w) = (Matrix::new(&x[..], n, c), Matrix::new(&w[..], o, c).transposed());
            cpu::matmul::matmul(&mut out, x, w, bias.is_some());
            Tensor::new(inp.device(), &[n, o], out)
        }),
        Device::Gpu(_) => {
            let out = Tensor::empty(inp.device(), inp.dtype(), &[n, o])?;
            multiply(&out, [inp, weight], [false, true], bias, false)?;
            Ok(out)
        }
    }
}

/// dW [O, C] of the slot += dout [N, O]^T inp [N, C].
pub(crate) fn weight_gradient(slot: &Grad, dout: &Tensor, inp: &Tensor) -> Result<()> {
    let accumulate = slot.claim();
    match dout.device() {
        Device::Cpu => floats!(dout, T => {
            let (dy, x) = (dout.read::<T>(), inp.read::<T>());
            let dy = Matrix::new(&dy[..], dout.rows(), dout.width()).transposed();
            let x = Matrix::new(&x[..], inp.rows(), inp.width());
            cpu::matmul::matmul(&mut slot.tensor.write::<T>(), dy, x, accumulate);
            Ok(())
        }),
        Device::Gpu(_) => multiply(&slot.tensor, [dout, inp], [true, false], None, accumulate),
    }
}

/// dinp [N, C] = dout [N, O] weight [O, C].
fn input_gradient(dout: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let shape = [dout.rows(), weight.width()];
    match dout.device() {
        Device::Cpu => floats!(dout, T => {
            let mut dinp = cpu::pool::take::<T>(shape[0] * shape[1]);
            let (dy, w) = (dout.read::<T>(), weight.read::<T>());
            let dy = Matrix::new(&dy[..], dout.rows(), dout.width());
            cpu::matmul::matmul(&mut dinp, dy, Matrix::new(&w[..], weight.rows(), weight.width()), false);
            Tensor::new(dout.device(), &shape, dinp)
        }),
        Device::Gpu(_) => {
            let dinp = Tensor::empty(dout.device(), dout.dtype(), &shape)?;
            multiply(&dinp, [dout, weight], [false, false], None, false)?;
            Ok(dinp)
        }
    }
}

/// On a GPU: out = a b (+ bias), or out += a b, with factors used as they lie or transposed. A library of the driver's
/// does it where there is one and the device is not to be exact, else `kernels/gemm.cu`.
pub(crate) fn multiply(
    out: &Tensor,
    [a, b]: [&Tensor; 2],
    transposed: [bool; 2],
    bias: Option<&Tensor>,
    accumulate: bool,
) -> Result<()> {
    let Device::Gpu(gpu) = out.device() else {
        return Err(Error::failure("gpu-only", "the host multiplies by cpu::matmul"));
    };
    let size = |t: &Tensor, turned: bool| if turned { [t.width(), t.rows()] } else { [t.rows(), t.width()] };
    let ([m, k], [k_too, n]) = (size(a, transposed[0]), size(b, transposed[1]));
    check("multiply", k == k_too && out.len() == m * n && a.dtype() == b.dtype(), &[out, a, b])?;
    let factor = |t: &Tensor, transposed| Ok(Factor { address: t.place(gpu)?.0, stride: t.width(), transposed });
    let gemm = Gemm {
        m,
        n,
        k,
        a: factor(a, transposed[0])?,
        b: factor(b, transposed[1])?,
        d: out.place(gpu)?.0,
        d_stride: n,
        dtype: a.dtype(),
        d_dtype: out.dtype(),
        bias: bias.map(|b| b.place(gpu)).transpose()?.map_or(0, |place| place.0),
        accumulate,
    };
    // x W^T is what forward passes multiply; the order of gradients' sums matters to nobody.
    let ours = gpu.is_exact() && transposed == [false, true];
    if m == 0 || n == 0 || (!ours && gpu.driver().gemm(&gemm)?) {
        return Ok(());
    }
    launch(gpu, &gemm, out, [a, b], bias)
}

fn launch(gpu: &Gpu, gemm: &Gemm, out: &Tensor, [a, b]: [&Tensor; 2], bias: Option<&Tensor>) -> Result<()> {
    let (dtype, wide) = (gemm.dtype, gemm.d_dtype == DType::F32);
    let layout = (gemm.a.transposed, gemm.b.transposed);
    let skinny = layout == (false, true) && dtype == DType::BF16 && !wide && gemm.m <= SKINNY_ROWS;
    let entry = match layout {
        (false, true) if skinny => NT_SKINNY,
        (false, true) if dtype == DType::BF16 && wide => NT_WIDE,
        (false, true) => NT.of(dtype)?,
        (false, false) => NN.of(dtype)?,
        (true, false) => TN.of(dtype)?,
        (true, true) => return Err(Error::failure("gemm-layout", "no kernel takes both factors transposed")),
    };
    let tile = if skinny { [16, 32] } else { [64, 64] };
    let threads = match (skinny, dtype) {
        (true, _) => 64,
        (false, DType::BF16) => 128,
        (false, _) => 256,
    };
    let launch = Launch::new(gpu, entry)
        .blocks(gemm.m.div_ceil(tile[0]) * gemm.n.div_ceil(tile[1]), threads)
        .sum(out, gemm.accumulate)
        .tensor(a)
        .tensor(b);
    let launch = if layout == (false, true) { launch.optional(bias) } else { launch };
    let sizes = [gemm.m, gemm.n, gemm.k, gemm.a.stride, gemm.b.stride, gemm.d_stride];
    let launch = launch.sizes(sizes);
    if layout == (true, false) { launch.flag(gemm.accumulate).run() } else { launch.run() }
}
