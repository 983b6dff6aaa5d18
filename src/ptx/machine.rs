//! The launch: arguments against the parameter list, blocks over threads, faults to errors.

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::iter::{IntoParallelIterator, ParallelIterator};

use super::block::{Block, Order};
use super::counters::Counters;
use super::error::{Error, Kind, Result};
use super::inst::Kernel;
use super::memory::{Cause, Memory};
use super::run::Context;

/// Errors of up to two units in the last place on approximate instructions, from a seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noise {
    /// Both ways.
    Mixed(u64),
    /// Never below the true value.
    Up(u64),
    /// Never above it.
    Down(u64),
}

impl Noise {
    pub(super) fn seed(self) -> u64 {
        match self {
            Self::Mixed(seed) | Self::Up(seed) | Self::Down(seed) => seed,
        }
    }
}

/// How kernels are executed. The default checks everything, counts everything, in order, on one thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Find data races.
    pub races: bool,
    /// Report reads of global memory that nobody wrote (shared and local memory are always watched).
    pub initialised: bool,
    /// Count sectors and wavefronts.
    pub count: bool,
    /// Disturb approximate instructions.
    pub noise: Option<Noise>,
    /// Run blocks and warps in an order drawn from this seed, warps in turns of 1 to 64 instructions.
    pub shuffle: Option<u64>,
    /// Threads of the host that blocks are spread over.
    pub threads: usize,
    /// Branches after which a warp counts as one that never ends.
    pub branches_max: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            races: true,
            initialised: true,
            count: true,
            noise: None,
            shuffle: None,
            threads: 1,
            branches_max: 1 << 28,
        }
    }
}

/// A kernel argument.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg<'a> {
    /// A device address or another 64-bit integer.
    U64(u64),
    /// A 32-bit integer.
    U32(u32),
    /// A signed 32-bit integer.
    I32(i32),
    /// A float.
    F32(f32),
    /// A double.
    F64(f64),
    /// The bytes of a parameter of any other type.
    Bytes(&'a [u8]),
}

impl Arg<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        match *self {
            Self::U64(x) => out.extend(x.to_le_bytes()),
            Self::U32(x) => out.extend(x.to_le_bytes()),
            Self::I32(x) => out.extend(x.to_le_bytes()),
            Self::F32(x) => out.extend(x.to_le_bytes()),
            Self::F64(x) => out.extend(x.to_le_bytes()),
            Self::Bytes(bytes) => out.extend(bytes),
        }
    }

    fn float(&self) -> Option<bool> {
        match self {
            Self::F32(_) | Self::F64(_) => Some(true),
            Self::Bytes(_) => None,
            _ => Some(false),
        }
    }
}

/// Executes kernels.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// How.
    pub options: Options,
}

/// Shared memory that a block may have (sm_80: 163 KiB; sm_90: 227 KiB).
const SHARED_MAX: u64 = 227 * 1024;

impl Machine {
    /// A machine with these options.
    pub fn new(options: Options) -> Self {
        Self { options }
    }

    /// Runs a grid of blocks to its end, or to the first fault. Ranges given to [`Memory::expect_written`] are checked
    /// afterwards.
    pub fn launch(
        &self,
        kernel: &Kernel,
        grid: [u32; 3],
        block: [u32; 3],
        dynamic_shared_bytes: u32,
        args: &[Arg<'_>],
        memory: &mut Memory,
    ) -> Result<Counters> {
        let wrong = |what: String| Error::at(Kind::Launch, 0, what).in_kernel(&kernel.name);
        let blocks = check_shape(kernel, grid, block, dynamic_shared_bytes).map_err(wrong)?;
        let params = pack(kernel, args).map_err(wrong)?;
        let launch = memory.begin();
        let threads = self.options.threads.clamp(1, blocks.max(1) as usize);
        let cx = Context {
            kernel,
            grid,
            block,
            params: &params,
            memory,
            options: &self.options,
            launch,
            solo: threads == 1,
        };
        let ran = self.spread(&cx, blocks, threads, dynamic_shared_bytes);
        // Expectations end with the launch, also with one that failed.
        let late = memory.finish();
        let mut counters = ran?;
        counters.finish(&kernel.code);
        match late {
            Some(Cause(kind, what)) => Err(Error::at(kind, 0, what).in_kernel(&kernel.name)),
            None => Ok(counters),
        }
    }

    /// Workers take blocks from one queue; of several faults the one of the earliest block in the queue is told.
    fn spread(&self, cx: &Context<'_>, blocks: u32, threads: usize, dynamic: u32) -> Result<Counters> {
        let mut queue: Vec<u32> = (0..blocks).collect();
        if let Some(seed) = self.options.shuffle {
            Order(seed).shuffle(&mut queue);
        }
        let (next, failed) = (AtomicUsize::new(0), AtomicUsize::new(usize::MAX));
        let worker = |_: usize| {
            let mut state = Block::new(cx, dynamic);
            loop {
                let turn = next.fetch_add(1, Ordering::Relaxed);
                if turn >= failed.load(Ordering::Relaxed) {
                    return (state.tally, None);
                }
                let Some(&index) = queue.get(turn) else { return (state.tally, None) };
                if let Err(error) = state.run(index) {
                    failed.fetch_min(turn, Ordering::Relaxed);
                    return (state.tally, Some((turn, error)));
                }
            }
        };
        let parts: Vec<_> =
            if threads == 1 { vec![worker(0)] } else { (0..threads).into_par_iter().map(worker).collect() };
        let mut total = Counters::new(&cx.kernel.code);
        let mut worst: Option<(usize, Error)> = None;
        for (part, error) in parts {
            total.merge(&part);
            if let Some(error) = error
                && worst.as_ref().is_none_or(|w| error.0 < w.0)
            {
                worst = Some(error);
            }
        }
        match worst {
            Some((_, error)) => Err(error),
            None => Ok(total),
        }
    }
}

fn check_shape(kernel: &Kernel, grid: [u32; 3], block: [u32; 3], dynamic: u32) -> std::result::Result<u32, String> {
    let count = |s: [u32; 3]| s.iter().try_fold(1u64, |n, &x| n.checked_mul(u64::from(x)));
    let threads = count(block).unwrap_or(u64::MAX);
    if threads == 0 || threads > 1024 || block[2] > 64 {
        return Err(format!("a block of {block:?} threads: 1 to 1024 are possible"));
    }
    if let Some(max) = kernel.max_threads
        && threads > count(max).unwrap_or(0)
    {
        return Err(format!("a block of {block:?} threads: .maxntid allows {max:?}"));
    }
    if let Some(required) = kernel.required_threads
        && block != required
    {
        return Err(format!("a block of {block:?} threads: .reqntid asks for {required:?}"));
    }
    let blocks = count(grid).unwrap_or(u64::MAX);
    if blocks == 0 || blocks >= 0xff_ffff || grid[1] > 65535 || grid[2] > 65535 {
        return Err(format!("a grid of {grid:?} blocks"));
    }
    if u64::from(kernel.shared_static) + u64::from(dynamic) > SHARED_MAX {
        return Err(format!("{} + {dynamic} bytes of shared memory", kernel.shared_static));
    }
    if dynamic > 0 && !kernel.uses_dynamic {
        return Err(format!("{dynamic} bytes of dynamic shared memory for a kernel that uses none"));
    }
    u32::try_from(blocks).map_err(|e| e.to_string())
}

fn pack(kernel: &Kernel, args: &[Arg<'_>]) -> std::result::Result<Vec<u8>, String> {
    if args.len() != kernel.params.len() {
        return Err(format!("{} arguments for {} parameters", args.len(), kernel.params.len()));
    }
    let mut out = Vec::new();
    for (i, (arg, param)) in args.iter().zip(&kernel.params).enumerate() {
        out.resize(param.offset as usize, 0);
        arg.write(&mut out);
        let bytes = out.len() - param.offset as usize;
        if bytes != param.bytes as usize {
            return Err(format!("argument {i} has {bytes} bytes, `{}` has {}", param.name, param.bytes));
        }
        if arg.float().is_some_and(|f| f != param.float) {
            return Err(format!("argument {i}: integer and float are mixed up with `{}`", param.name));
        }
    }
    Ok(out)
}
