//! The few verbs of a GPU. Two drivers speak them, CUDA and the emulator; everything above this line is the same code
//! for both.

#![forbid(unsafe_code)]

use std::fmt;

use super::gemm::Gemm;
use super::kernel::Entry;
use crate::error::{Error, Result};

/// An address in the device's memory.
pub(crate) type Address = u64;

/// A kernel's argument.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Arg {
    /// Device memory, or 0 for none.
    Pointer(Address),
    /// A size or a flag.
    I32(i32),
    /// A size that may pass 2^31.
    I64(i64),
    /// A scalar.
    F32(f32),
}

/// How a launch is cut into blocks: blocks, threads a block, dynamic shared bytes a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared: u32,
}

/// How a driver's memory is counted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Accounting {
    /// Every piece of memory takes a multiple of these bytes.
    pub(crate) granule: usize,
    /// Bytes that the driver takes for a library that it works with.
    pub(crate) workspace: usize,
    /// The share of all memory that a plan leaves alone: for what the driver and its libraries take beside the pieces,
    /// and for gaps between these.
    pub(crate) reserve: f64,
}

/// Device memory that a launch promises to write in full: where it starts, and its bytes.
pub(crate) type Written = (Address, u64);

/// The number of something that was recorded.
pub(crate) type Recording = u64;

/// What a driver answers to a call that cannot be part of a recording.
pub(super) fn host_work(what: &str) -> Error {
    Error::failure("graph-host-work", format!("{what} in work that is recorded as a graph"))
}

/// A GPU. All calls are ordered: what a call reads is what earlier calls wrote.
pub(crate) trait Driver: fmt::Debug + Send + Sync {
    /// The name that `--device` takes.
    fn name(&self) -> &str;

    /// What computes, in words: the card and its driver.
    fn description(&self) -> String;

    /// Memory with no value of worth in it; `bytes` may be 0.
    fn alloc(&self, bytes: usize) -> Result<Address>;

    /// Gives memory back. Launches that were queued before may still use it.
    fn free(&self, address: Address);

    /// Host to device.
    fn upload(&self, to: Address, bytes: &[u8]) -> Result<()>;

    /// Device to host; waits for all that was queued.
    fn download(&self, out: &mut [u8], from: Address) -> Result<()>;

    /// Device to device.
    fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<()>;

    /// Every byte becomes `value`.
    fn fill(&self, to: Address, bytes: usize, value: u8) -> Result<()>;

    /// Queues a kernel. The arguments were checked against its parameters.
    fn launch(&self, entry: &Entry, shape: Shape, args: &[Arg], written: &[Written]) -> Result<()>;

    /// Queues a matrix product on a library of the driver's, if it has one that serves it; false if it has none.
    fn gemm(&self, gemm: &Gemm) -> Result<bool>;

    /// Whether a row of a product has the same bits whatever other rows stand with it; a library does not promise it.
    fn is_row_invariant(&self) -> bool;

    /// Keeps the launches, copies and fills that `work` queues, with their arguments, instead of doing them. An upload,
    /// a download or an allocation in between is an error.
    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Recording>;

    /// Queues what was recorded once more; an error if memory that it uses was freed.
    fn replay(&self, recording: Recording) -> Result<()>;

    /// Drops a recording.
    fn forget(&self, recording: Recording);

    /// Waits for all that was queued.
    fn synchronize(&self) -> Result<()>;

    /// Seconds on the device between the start and the end of what `work` queues.
    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64>;

    /// Bytes of device memory: free, total.
    fn memory(&self) -> Result<[usize; 2]>;

    /// Bytes that were handed out at once, at most, since this was asked last.
    fn take_peak(&self) -> Result<usize>;

    /// How memory is counted.
    fn accounting(&self) -> Accounting;
}
