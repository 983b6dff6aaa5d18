//! Whole kernels from NVRTC (`tests/ptx/*.cu`), against f64.

use super::{Arg, Counters, Machine, Memory, Module, Noise, Options, Result};

type Outcome = std::result::Result<(), Box<dyn std::error::Error>>;

fn uniform(seed: u64, n: usize) -> Vec<f32> {
    let mut order = super::block::Order(seed);
    (0..n).map(|_| (order.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
}

fn bf16(values: &[f32]) -> Vec<u16> {
    values.iter().map(|&v| half::bf16::from_f32(v).to_bits()).collect()
}

fn wide(values: &[u16]) -> Vec<f64> {
    values.iter().map(|&v| half::bf16::from_bits(v).to_f64()).collect()
}

fn bytes_of<T: bytemuck::NoUninit>(values: &[T]) -> &[u8] {
    bytemuck::cast_slice(values)
}

fn put<T: bytemuck::NoUninit>(memory: &mut Memory, name: &str, values: &[T]) -> Result<u64> {
    let at = memory.alloc(name, bytes_of(values).len() as u64)?;
    memory.upload(at, bytes_of(values))?;
    Ok(at)
}

fn out(memory: &mut Memory, name: &str, bytes: u64) -> Result<u64> {
    let at = memory.alloc(name, bytes)?;
    memory.expect_written(at, bytes)?;
    Ok(at)
}

fn get<T: bytemuck::Pod>(memory: &Memory, at: u64, n: usize) -> Result<Vec<T>> {
    let mut values = vec![T::zeroed(); n];
    memory.download(at, bytemuck::cast_slice_mut(&mut values))?;
    Ok(values)
}

fn modes() -> Vec<Options> {
    vec![
        Options::default(),
        Options { shuffle: Some(7), ..Options::default() },
        Options { threads: 2, ..Options::default() },
    ]
}

#[test]
fn vector_add() -> Outcome {
    let module = Module::parse(include_str!("../../tests/ptx/vector_add.ptx"))?;
    let kernel = module.kernel("vector_add_forward_f32")?;
    for options in modes() {
        let n = 1000usize;
        let (a, b) = (uniform(1, n), uniform(2, n));
        let mut memory = Memory::new();
        let (ga, gb) = (put(&mut memory, "a", &a)?, put(&mut memory, "b", &b)?);
        let go = out(&mut memory, "out", 4 * n as u64)?;
        let args = [Arg::U64(go), Arg::U64(ga), Arg::U64(gb), Arg::I32(n as i32)];
        let counters = Machine::new(options).launch(kernel, [8, 1, 1], [128, 1, 1], 0, &args, &mut memory)?;
        let sums: Vec<f32> = get(&memory, go, n)?;
        assert!(sums.iter().zip(a.iter().zip(&b)).all(|(s, (a, b))| *s == a + b));
        // 1000 elements are 31 full warps and one of 8 lanes; each full warp reads 4 sectors per operand.
        assert_eq!(counters.global_load.requests, 64);
        assert_eq!(counters.global_load.sectors, 250);
        assert_eq!(counters.global_store.moved(), 4000);
        assert_eq!(counters.divergent_branches, 1);
    }
    Ok(())
}

#[test]
fn block_sum() -> Outcome {
    let module = Module::parse(include_str!("../../tests/ptx/block_sum.ptx"))?;
    let kernel = module.kernel("block_sum_forward_f32")?;
    for options in modes() {
        let n = 5000usize;
        let a = uniform(3, n);
        let mut memory = Memory::new();
        let ga = put(&mut memory, "in", &a)?;
        let go = out(&mut memory, "out", 12)?;
        let args = [Arg::U64(go), Arg::U64(ga), Arg::I32(n as i32)];
        let counters = Machine::new(options).launch(kernel, [3, 1, 1], [256, 1, 1], 0, &args, &mut memory)?;
        let sums: Vec<f32> = get(&memory, go, 3)?;
        for (b, sum) in sums.iter().enumerate() {
            let golden: f64 = (0..n).filter(|i| i / 256 % 3 == b).map(|i| f64::from(a[i])).sum();
            assert!((f64::from(*sum) - golden).abs() < 1e-4, "{sum} {golden}");
        }
        assert_eq!(counters.shared_wavefronts, counters.shared_wavefronts_ideal);
    }
    Ok(())
}

#[test]
fn rms_norm() -> Outcome {
    let module = Module::parse(include_str!("../../tests/ptx/rms_norm.ptx"))?;
    let kernel = module.kernel("rms_norm_forward_bf16")?;
    let mut seen: Option<Vec<u16>> = None;
    for options in modes() {
        let (n, c) = (7usize, 320usize);
        let (x, w) = (bf16(&uniform(4, n * c)), bf16(&uniform(5, c)));
        let mut memory = Memory::new();
        let (gx, gw) = (put(&mut memory, "inp", &x)?, put(&mut memory, "weight", &w)?);
        let (gy, gr) = (out(&mut memory, "out", 2 * (n * c) as u64)?, out(&mut memory, "rstd", 4 * n as u64)?);
        let sizes = [Arg::I32(n as i32), Arg::I32(c as i32), Arg::F32(1e-6)];
        let args = [[Arg::U64(gy), Arg::U64(gr), Arg::U64(gx), Arg::U64(gw)].as_slice(), &sizes].concat();
        Machine::new(options).launch(kernel, [2, 1, 1], [128, 1, 1], 0, &args, &mut memory)?;
        let y: Vec<u16> = get(&memory, gy, n * c)?;
        let (x, w) = (wide(&x), wide(&w));
        for (row, got) in wide(&y).chunks(c).enumerate() {
            let x = &x[row * c..][..c];
            let r = 1.0 / (x.iter().map(|v| v * v).sum::<f64>() / c as f64 + 1e-6).sqrt();
            for i in 0..c {
                let golden = x[i] * r * w[i];
                assert!((got[i] - golden).abs() <= golden.abs() / 256.0 + 1e-6);
            }
        }
        assert!(seen.as_ref().is_none_or(|s| *s == y), "bits differ between orders");
        seen = Some(y);
    }
    Ok(())
}

#[test]
fn softmax() -> Outcome {
    let module = Module::parse(include_str!("../../tests/ptx/softmax.ptx"))?;
    let kernel = module.kernel("softmax_forward_f32")?;
    let noisy = |noise| Options { noise: Some(noise), ..Options::default() };
    let options = [noisy(Noise::Mixed(1)), noisy(Noise::Up(1)), noisy(Noise::Down(1))];
    let mut worst = Vec::new();
    for options in modes().into_iter().chain(options) {
        let (n, c) = (3usize, 777usize);
        let x: Vec<f32> = uniform(6, n * c).iter().map(|v| v * 20.0).collect();
        let mut memory = Memory::new();
        let gx = put(&mut memory, "inp", &x)?;
        let gy = out(&mut memory, "out", 4 * (n * c) as u64)?;
        let args = [Arg::U64(gy), Arg::U64(gx), Arg::I32(c as i32)];
        Machine::new(options).launch(kernel, [n as u32, 1, 1], [128, 1, 1], 0, &args, &mut memory)?;
        let y: Vec<f32> = get(&memory, gy, n * c)?;
        let mut error = 0f64;
        for (row, y) in y.chunks(c).enumerate() {
            let x: Vec<f64> = x[row * c..][..c].iter().map(|&v| f64::from(v)).collect();
            let top = x.iter().copied().fold(f64::MIN, f64::max);
            let sum: f64 = x.iter().map(|v| (v - top).exp()).sum();
            for (y, x) in y.iter().zip(&x) {
                let golden = (x - top).exp() / sum;
                error = error.max((f64::from(*y) - golden).abs() / golden);
            }
        }
        worst.push(error);
    }
    assert!(worst.iter().all(|e| *e < 2e-5), "{worst:?}");
    assert!(worst[3] > worst[0], "noise changes nothing: {worst:?}");
    Ok(())
}

#[test]
fn gemm() -> Outcome {
    let module = Module::parse(include_str!("../../tests/ptx/gemm.ptx"))?;
    let kernel = module.kernel("gemm_nt_forward_bf16")?;
    for options in modes() {
        let (m, n, k) = (70usize, 100usize, 200usize);
        let (a, b) = (bf16(&uniform(7, m * k)), bf16(&uniform(8, n * k)));
        let mut memory = Memory::new();
        let (ga, gb) = (put(&mut memory, "a", &a)?, put(&mut memory, "b", &b)?);
        let gc = out(&mut memory, "out", 4 * (m * n) as u64)?;
        let sizes = [Arg::I32(m as i32), Arg::I32(n as i32), Arg::I32(k as i32)];
        let args = [[Arg::U64(gc), Arg::U64(ga), Arg::U64(gb)].as_slice(), &sizes].concat();
        let counters = Machine::new(options).launch(kernel, [2, 2, 1], [128, 1, 1], 32768, &args, &mut memory)?;
        let c: Vec<f32> = get(&memory, gc, m * n)?;
        let (a, b) = (wide(&a), wide(&b));
        for i in 0..m {
            for j in 0..n {
                let golden: f64 = (0..k).map(|x| a[i * k + x] * b[j * k + x]).sum();
                assert!((f64::from(c[i * n + j]) - golden).abs() < 1e-4, "{i} {j}");
            }
        }
        // 4 blocks x 4 warps x 4 steps of K x 4 x 8 mma; the swizzle leaves no conflicts.
        assert_eq!(counters.mma, 4 * 4 * 4 * 32);
        assert_eq!(counters.shared_wavefronts, counters.shared_wavefronts_ideal);
    }
    Ok(())
}

/// Runs attention on fixed inputs: output bits, log-sum-exp, counters.
pub(super) fn attention_launch(
    t: usize,
    nh: usize,
    nkv: usize,
    causal: bool,
    options: Options,
) -> Result<(Vec<u16>, Vec<f32>, Counters)> {
    let module = Module::parse(include_str!("../../tests/ptx/attention.ptx"))?;
    let kernel = module.kernel("attention_forward_bf16")?;
    let [q, k, v] = attention_inputs(t, nh, nkv);
    let mut memory = Memory::new();
    let (gq, gk, gv) = (put(&mut memory, "q", &q)?, put(&mut memory, "k", &k)?, put(&mut memory, "v", &v)?);
    let (go, gl) = (out(&mut memory, "out", 2 * (t * nh * 64) as u64)?, out(&mut memory, "lse", 4 * (t * nh) as u64)?);
    let args = [
        Arg::U64(go),
        Arg::U64(gl),
        Arg::U64(gq),
        Arg::U64(gk),
        Arg::U64(gv),
        Arg::I32(t as i32),
        Arg::I32(nh as i32),
        Arg::I32(nkv as i32),
        Arg::I32(i32::from(causal)),
        Arg::F32(0.125),
    ];
    let grid = [t.div_ceil(64) as u32, nh as u32, 1];
    let counters = Machine::new(options).launch(kernel, grid, [128, 1, 1], 40960, &args, &mut memory)?;
    Ok((get(&memory, go, t * nh * 64)?, get(&memory, gl, t * nh)?, counters))
}

fn attention_inputs(t: usize, nh: usize, nkv: usize) -> [Vec<u16>; 3] {
    [(9, nh), (10, nkv), (11, nkv)].map(|(seed, heads)| bf16(&uniform(seed, t * heads * 64)))
}

/// The largest errors of output and log-sum-exp, the bits, and the counters.
fn attention(
    t: usize,
    nh: usize,
    nkv: usize,
    causal: bool,
    options: Options,
) -> Result<(f64, f64, Vec<u16>, Counters)> {
    let (bits, lse, counters) = attention_launch(t, nh, nkv, causal, options)?;
    let [q, k, v] = attention_inputs(t, nh, nkv);
    let (o, q, k, v) = (wide(&bits), wide(&q), wide(&k), wide(&v));
    let (mut worst, mut worst_lse) = (0f64, 0f64);
    for i in 0..t {
        for h in 0..nh {
            let hk = h / (nh / nkv);
            let keys = if causal { i + 1 } else { t };
            let score =
                |j: usize| (0..64).map(|d| q[(i * nh + h) * 64 + d] * k[(j * nkv + hk) * 64 + d]).sum::<f64>() * 0.125;
            let s: Vec<f64> = (0..keys).map(score).collect();
            let top = s.iter().copied().fold(f64::MIN, f64::max);
            let sum: f64 = s.iter().map(|x| (x - top).exp()).sum();
            worst_lse = worst_lse.max((f64::from(lse[h * t + i]) - top - sum.ln()).abs());
            for d in 0..64 {
                let mix = |j: usize| (s[j] - top).exp() / sum * v[(j * nkv + hk) * 64 + d];
                let golden: f64 = (0..keys).map(mix).sum();
                worst = worst.max((o[(i * nh + h) * 64 + d] - golden).abs());
            }
        }
    }
    Ok((worst, worst_lse, bits, counters))
}

#[test]
fn attention_matches_f64() -> Outcome {
    for (t, causal) in [(1, true), (64, false), (130, true), (200, false)] {
        let mut seen: Option<Vec<u16>> = None;
        for options in modes() {
            let (o, l, bits, counters) = attention(t, 4, 2, causal, options)?;
            assert!(o < 8e-3 && l < 1e-5, "t {t}: {o} {l}");
            assert_eq!(counters.shared_wavefronts, counters.shared_wavefronts_ideal);
            assert!(seen.as_ref().is_none_or(|s| *s == bits), "bits differ between orders");
            seen = Some(bits);
        }
    }
    Ok(())
}

/// Every instruction of a kernel dropped in turn: an answer each time, and almost always a report or a wrong sum.
#[test]
fn a_dropped_instruction_is_noticed() -> Outcome {
    let text = include_str!("../../tests/ptx/block_sum.ptx");
    let a = uniform(3, 700);
    let sum = |text: &str| -> Result<Vec<u32>> {
        let module = Module::parse(text)?;
        let mut memory = Memory::new();
        let ga = put(&mut memory, "in", &a)?;
        let go = out(&mut memory, "out", 8)?;
        let machine = Machine::new(Options { branches_max: 1000, ..Options::default() });
        let args = [Arg::U64(go), Arg::U64(ga), Arg::I32(700)];
        machine.launch(module.kernel("block_sum_forward_f32")?, [2, 1, 1], [256, 1, 1], 0, &args, &mut memory)?;
        get(&memory, go, 2)
    };
    let want = sum(text)?;
    let lines: Vec<&str> = text.lines().collect();
    let (mut killed, mut survivors) = (0, Vec::new());
    for (i, line) in lines.iter().enumerate().filter(|(_, l)| l.ends_with(';') && !l.trim_start().starts_with('.')) {
        let mutant: Vec<&str> = lines.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, l)| *l).collect();
        match sum(&mutant.join("\n")) {
            Ok(got) if got == want => survivors.push(format!("{}: {}", i + 1, line.trim())),
            _ => killed += 1,
        }
    }
    assert!(killed >= 9 * (killed + survivors.len()) / 10, "{killed} killed, survivors:\n{}", survivors.join("\n"));
    Ok(())
}

/// A large softmax, for the measurement: lane instructions.
pub(super) fn softmax_launch(options: Options) -> Result<u64> {
    let module = Module::parse(include_str!("../../tests/ptx/softmax.ptx"))?;
    let (n, c) = (64usize, 8192usize);
    let x = uniform(6, n * c);
    let mut memory = Memory::new();
    let gx = put(&mut memory, "inp", &x)?;
    let gy = out(&mut memory, "out", 4 * (n * c) as u64)?;
    let args = [Arg::U64(gy), Arg::U64(gx), Arg::I32(c as i32)];
    let kernel = module.kernel("softmax_forward_f32")?;
    let counters = Machine::new(options).launch(kernel, [n as u32, 1, 1], [128, 1, 1], 0, &args, &mut memory)?;
    Ok(counters.lane_instructions)
}
