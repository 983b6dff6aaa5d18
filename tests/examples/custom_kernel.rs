//! An operation of one's own in one file: squared ReLU, y = max(x, 0)^2 (So et al., "Primer", 2021), with a kernel in
//! PTX. It is run on the CPU and on the emulator; both must agree, and the gradient must be what differences say.
//!
//! ```text
//! cargo run --example custom_kernel
//! ```

use std::process::ExitCode;

use rlhf::custom::{Launch, Source, Tensor, record};
use rlhf::{Device, Result};

// --- The reference: plain loops, which the kernels are held against. A NaN stays one. ---

fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

/// out = max(inp, 0)^2
fn forward(out: &mut [f32], inp: &[f32]) {
    for (y, x) in out.iter_mut().zip(inp) {
        *y = relu(*x) * relu(*x);
    }
}

/// dinp = dout 2 max(inp, 0)
fn backward(dinp: &mut [f32], dout: &[f32], inp: &[f32]) {
    for ((dx, dy), x) in dinp.iter_mut().zip(dout).zip(inp) {
        *dx = dy * (2.0 * relu(*x));
    }
}

// --- The kernels, one element a thread: for every GPU since sm_80. ---

/// The two kernels.
pub static SQUARED_RELU: Source = Source::new("squared_relu", PTX);

/// Their text. In CUDA C:
///
/// ```text
/// extern "C" __global__ void squared_relu_forward_f32(float* out, const float* inp, long long n) {
///     long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
///     if (i < n) { float r = fmaxf(inp[i], 0.0f); out[i] = r * r; }       // and a NaN stays one
/// }
/// extern "C" __global__ void squared_relu_backward_f32(
///     float* dinp, const float* dout, const float* inp, long long n) {
///     long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
///     if (i < n) dinp[i] = dout[i] * (2.0f * fmaxf(inp[i], 0.0f));
/// }
/// ```
pub const PTX: &str = "
.version 7.1
.target sm_80
.address_size 64

.visible .entry squared_relu_forward_f32(
    .param .u64 out, .param .u64 inp, .param .u64 n
)
{
    .reg .pred %p<2>;
    .reg .f32 %f<2>;
    .reg .b32 %r<4>;
    .reg .b64 %rd<8>;
    ld.param.u64 %rd1, [out];
    ld.param.u64 %rd2, [inp];
    ld.param.u64 %rd3, [n];
    mov.u32 %r1, %ctaid.x;
    mov.u32 %r2, %ntid.x;
    mov.u32 %r3, %tid.x;
    mul.wide.u32 %rd4, %r1, %r2;
    cvt.u64.u32 %rd5, %r3;
    add.s64 %rd4, %rd4, %rd5;
    setp.ge.s64 %p1, %rd4, %rd3;
    @%p1 bra $L_end;
    cvta.to.global.u64 %rd1, %rd1;
    cvta.to.global.u64 %rd2, %rd2;
    shl.b64 %rd5, %rd4, 2;
    add.s64 %rd6, %rd1, %rd5;
    add.s64 %rd7, %rd2, %rd5;
    ld.global.f32 %f1, [%rd7];
    max.NaN.f32 %f1, %f1, 0f00000000;
    mul.f32 %f1, %f1, %f1;
    st.global.f32 [%rd6], %f1;
$L_end:
    ret;
}

.visible .entry squared_relu_backward_f32(
    .param .u64 dinp, .param .u64 dout, .param .u64 inp, .param .u64 n
)
{
    .reg .pred %p<2>;
    .reg .f32 %f<3>;
    .reg .b32 %r<4>;
    .reg .b64 %rd<10>;
    ld.param.u64 %rd1, [dinp];
    ld.param.u64 %rd2, [dout];
    ld.param.u64 %rd3, [inp];
    ld.param.u64 %rd4, [n];
    mov.u32 %r1, %ctaid.x;
    mov.u32 %r2, %ntid.x;
    mov.u32 %r3, %tid.x;
    mul.wide.u32 %rd5, %r1, %r2;
    cvt.u64.u32 %rd6, %r3;
    add.s64 %rd5, %rd5, %rd6;
    setp.ge.s64 %p1, %rd5, %rd4;
    @%p1 bra $L_end;
    cvta.to.global.u64 %rd1, %rd1;
    cvta.to.global.u64 %rd2, %rd2;
    cvta.to.global.u64 %rd3, %rd3;
    shl.b64 %rd6, %rd5, 2;
    add.s64 %rd7, %rd1, %rd6;
    add.s64 %rd8, %rd2, %rd6;
    add.s64 %rd9, %rd3, %rd6;
    ld.global.f32 %f1, [%rd9];
    ld.global.f32 %f2, [%rd8];
    max.NaN.f32 %f1, %f1, 0f00000000;
    mul.f32 %f1, %f1, 0f40000000;
    mul.f32 %f1, %f2, %f1;
    st.global.f32 [%rd7], %f1;
$L_end:
    ret;
}
";

// --- The operation: forward and backward with one arm a device, and its place on the tape. ---

const THREADS: usize = 256;

/// out = max(inp, 0)^2, for a tensor of any shape, with the kernels of `source`. Backward: dinp = dout 2 max(inp, 0).
/// Saved: the input.
pub fn squared_relu(inp: &Tensor, source: &'static Source) -> Result<Tensor> {
    let n = inp.len();
    let out = match inp.device() {
        Device::Cpu => {
            let mut out = vec![0.0; n];
            forward(&mut out, &inp.to_vec()?);
            Tensor::new(inp.device(), inp.shape(), out)?
        }
        Device::Gpu(gpu) => {
            let out = Tensor::empty(inp.device(), inp.shape())?;
            let launch = Launch::new(gpu, source, "squared_relu_forward_f32").blocks(n.div_ceil(THREADS), THREADS);
            launch.out(&out).tensor(inp).long(n).run()?;
            out
        }
    };
    let saved = inp.detach();
    record("squared_relu", out, &[inp], move |dout| {
        let dinp = match dout.device() {
            Device::Cpu => {
                let mut dinp = vec![0.0; n];
                backward(&mut dinp, &dout.to_vec()?, &saved.to_vec()?);
                Tensor::new(dout.device(), saved.shape(), dinp)?
            }
            Device::Gpu(gpu) => {
                let dinp = Tensor::empty(dout.device(), saved.shape())?;
                let launch = Launch::new(gpu, source, "squared_relu_backward_f32").blocks(n.div_ceil(THREADS), THREADS);
                launch.out(&dinp).tensor(dout).tensor(&saved).long(n).run()?;
                dinp
            }
        };
        Ok(vec![Some(dinp)])
    })
}

// --- The proof. ---

/// The largest differences: the outputs of both devices, the gradients of both, and the gradient and central
/// differences of the reference. A kernel that reads or writes where it may not is an error.
pub fn differences(source: &'static Source) -> Result<[f32; 3]> {
    const DELTA: f32 = 1.0 / 64.0;
    // Three blocks, the last of them in part; the slope at 0 has no central difference, and no element comes near.
    let n = 2 * THREADS + 77;
    let x: Vec<f32> = (0..n).map(|i| (i as f32 - 200.0) / 16.0 + 1.0 / 32.0).collect();
    let dout: Vec<f32> = (0..n).map(|i| (i % 7) as f32 - 3.0).collect();
    let on = |device: &Device| -> Result<[Vec<f32>; 2]> {
        let inp = Tensor::parameter(device, &[n], x.clone())?;
        let out = squared_relu(&inp, source)?;
        let values = out.to_vec()?;
        out.backward(dout.clone())?;
        Ok([values, inp.gradient()?.unwrap_or_default()])
    };
    let [reference, emulated] = [on(&Device::Cpu)?, on(&Device::parse("emulated")?)?];
    let moved = |by: f32| -> Vec<f32> {
        let (mut out, inp): (_, Vec<f32>) = (vec![0.0; n], x.iter().map(|x| x + by).collect());
        forward(&mut out, &inp);
        out
    };
    let (up, down) = (moved(DELTA), moved(-DELTA));
    let slopes: Vec<f32> = (0..n).map(|i| dout[i] * (up[i] - down[i]) / (2.0 * DELTA)).collect();
    let [outputs, gradients] = [0, 1].map(|i| largest(&reference[i], &emulated[i]));
    Ok([outputs, gradients, largest(&emulated[1], &slopes)])
}

/// The largest difference of two columns; infinite where they cannot be compared.
fn largest(a: &[f32], b: &[f32]) -> f32 {
    let apart = |x: &f32, y: &f32| Some(x - y).filter(|d| d.is_finite()).map_or(f32::INFINITY, f32::abs);
    let start = if a.len() == b.len() { 0.0 } else { f32::INFINITY };
    a.iter().zip(b).fold(start, |max, (x, y)| max.max(apart(x, y)))
}

fn main() -> ExitCode {
    match differences(&SQUARED_RELU) {
        Ok([outputs, gradients, slopes]) => {
            println!("cpu and emulated differ by {outputs:e}, their gradients by {gradients:e};");
            println!("the gradient and central differences by {slopes:e}");
            ExitCode::from(u8::from(outputs > 0.0 || gradients > 0.0 || slopes > 1e-3))
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
