//! A launch in the making: an entry, its blocks, and its arguments in the order of the entry's parameters. The list is
//! checked against the PTX before any driver sees it.

#![forbid(unsafe_code)]

use super::Gpu;
use super::driver::{Arg, Shape, Written};
use super::kernel::Entry;
use crate::error::{Error, Result};
use crate::ptx;

/// Something that lies in a device's memory.
pub(crate) trait OnDevice {
    /// Its first byte and its length in bytes; an error if it does not lie on `gpu`.
    fn place(&self, gpu: &Gpu) -> Result<Written>;
}

/// Blocks that a grid has at most along each dimension (CUDA C++ programming guide, "Compute Capabilities"); a larger
/// grid is an error here and not on the card.
const GRID_MAX: [usize; 3] = [(1 << 31) - 1, 65535, 65535];
/// Threads that a block has at most (there too).
const THREADS_MAX: usize = 1024;

/// A launch in the making.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    gpu: &'a Gpu,
    entry: Entry,
    shape: Shape,
    args: Vec<Arg>,
    written: Vec<Written>,
    /// The first thing that was wrong; told by [`Launch::run`].
    error: Option<Error>,
}

impl<'a> Launch<'a> {
    /// One block of one warp, until told otherwise.
    pub(crate) fn new(gpu: &'a Gpu, entry: Entry) -> Self {
        let shape = Shape { grid: [1, 1, 1], block: [32, 1, 1], shared: 0 };
        Self { gpu, entry, shape, args: Vec::new(), written: Vec::new(), error: None }
    }

    /// Blocks and threads a block, along one dimension.
    pub(crate) fn blocks(self, blocks: usize, threads: usize) -> Self {
        self.grid([blocks, 1, 1], threads)
    }

    /// Blocks in three dimensions, threads along one.
    pub(crate) fn grid(mut self, grid: [usize; 3], threads: usize) -> Self {
        if grid.iter().zip(GRID_MAX).any(|(n, max)| *n > max) {
            self.error.get_or_insert(Error::shape(format!("{} in a grid of {grid:?}", self.entry.name)));
        }
        if !(1..=THREADS_MAX).contains(&threads) {
            self.error.get_or_insert(Error::shape(format!("{} in blocks of {threads} threads", self.entry.name)));
        }
        self.shape.grid = grid.map(|n| n as u32);
        self.shape.block = [threads as u32, 1, 1];
        self
    }

    /// Dynamic shared bytes a block.
    pub(crate) fn shared(mut self, bytes: usize) -> Self {
        match u32::try_from(bytes) {
            Ok(bytes) => self.shape.shared = bytes,
            Err(_) => {
                self.error.get_or_insert(Error::shape(format!("{} with {bytes} shared bytes", self.entry.name)));
            }
        }
        self
    }

    /// A tensor that the kernel writes in full.
    pub(crate) fn out(mut self, tensor: &impl OnDevice) -> Self {
        if let Some(place) = self.place(tensor) {
            self.written.push(place);
            self.args.push(Arg::Pointer(place.0));
        }
        self
    }

    /// A tensor that the kernel adds to if `accumulate`, else writes in full.
    pub(crate) fn sum(self, tensor: &impl OnDevice, accumulate: bool) -> Self {
        if accumulate { self.tensor(tensor) } else { self.out(tensor) }
    }

    /// A tensor that the kernel reads, or writes in part, or reads and writes.
    pub(crate) fn tensor(mut self, tensor: &impl OnDevice) -> Self {
        if let Some((address, _)) = self.place(tensor) {
            self.args.push(Arg::Pointer(address));
        }
        self
    }

    /// A tensor that the kernel writes in full, or none.
    pub(crate) fn optional_out(self, tensor: Option<&impl OnDevice>) -> Self {
        match tensor {
            Some(tensor) => self.out(tensor),
            None => self.null(),
        }
    }

    /// A tensor that the kernel reads, or none.
    pub(crate) fn optional(self, tensor: Option<&impl OnDevice>) -> Self {
        match tensor {
            Some(tensor) => self.tensor(tensor),
            None => self.null(),
        }
    }

    /// No tensor.
    fn null(mut self) -> Self {
        self.args.push(Arg::Pointer(0));
        self
    }

    /// A size.
    pub(crate) fn size(mut self, size: usize) -> Self {
        match i32::try_from(size) {
            Ok(size) => self.args.push(Arg::I32(size)),
            Err(_) => {
                self.error.get_or_insert(Error::shape(format!("{} with a size of {size}", self.entry.name)));
            }
        }
        self
    }

    /// Several sizes.
    pub(crate) fn sizes<const N: usize>(self, sizes: [usize; N]) -> Self {
        sizes.into_iter().fold(self, Self::size)
    }

    /// A size that may pass 2^31.
    pub(crate) fn long(mut self, size: usize) -> Self {
        self.args.push(Arg::I64(size as i64));
        self
    }

    /// 32 bits, which a kernel takes as they are.
    pub(crate) fn word(mut self, word: u32) -> Self {
        self.args.push(Arg::I32(word as i32));
        self
    }

    /// A flag.
    pub(crate) fn flag(mut self, on: bool) -> Self {
        self.args.push(Arg::I32(i32::from(on)));
        self
    }

    /// A scalar, rounded to f32.
    pub(crate) fn scalar(mut self, x: f64) -> Self {
        self.args.push(Arg::F32(x as f32));
        self
    }

    fn place(&mut self, tensor: &impl OnDevice) -> Option<Written> {
        match tensor.place(self.gpu) {
            Ok(place) => Some(place),
            Err(error) => {
                self.error.get_or_insert(error.at(self.entry.name));
                None
            }
        }
    }

    /// Queues it. A grid without blocks is no work.
    pub(crate) fn run(self) -> Result<()> {
        if let Some(error) = self.error {
            return Err(error);
        }
        check(self.entry.parsed()?, &self.args)?;
        if self.shape.grid.contains(&0) {
            return Ok(());
        }
        self.gpu.driver().launch(&self.entry, self.shape, &self.args, &self.written)
    }
}

/// The arguments against the parameter list of the PTX: number, width, integer or float.
fn check(kernel: &ptx::Kernel, args: &[Arg]) -> Result<()> {
    let form = |arg: &Arg| match arg {
        Arg::Pointer(_) | Arg::I64(_) => (8, false),
        Arg::I32(_) => (4, false),
        Arg::F32(_) => (4, true),
    };
    let params = kernel.params();
    let wrong = args.iter().zip(params).position(|(a, p)| form(a) != (p.bytes, p.float));
    if args.len() == params.len() && wrong.is_none() {
        return Ok(());
    }
    let what = match wrong {
        Some(i) => format!("argument {i} ({:?}) does not fit parameter `{}`", args[i], params[i].name),
        None => format!("{} arguments for {} parameters", args.len(), params.len()),
    };
    Err(Error::failure("launch-arguments", what).at(kernel.name().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::device::kernel::GLOBAL_NORM;

    #[test]
    fn a_launch_that_does_not_fit_never_reaches_the_driver() {
        let Device::Gpu(gpu) = Device::parse("emulated").unwrap() else { panic!("the emulator is a GPU") };
        let launch = || Launch::new(&gpu, Entry::new(&GLOBAL_NORM, "global_norm_finish_f32"));
        let id = |launch: Launch<'_>| launch.run().unwrap_err().id().to_owned();
        assert_eq!(id(launch().grid([1, 65536, 1], 32).null().null().size(0).scalar(1.0)), "shape");
        assert_eq!(id(launch().null().null().size(1 << 31).scalar(1.0)), "shape");
        assert_eq!(id(launch().shared(1 << 32).null().null().size(0).scalar(1.0)), "shape");
        for threads in [0, 1025, (1 << 32) + 32] {
            assert_eq!(id(launch().blocks(1, threads).null().null().size(0).scalar(1.0)), "shape", "{threads}");
        }
        // One argument too few, one of another width, one of another kind.
        assert_eq!(id(launch().null().null().size(0)), "launch-arguments");
        assert_eq!(id(launch().null().null().long(0).scalar(1.0)), "launch-arguments");
        assert_eq!(id(launch().null().null().size(0).size(1)), "launch-arguments");
        assert!(launch().blocks(0, 32).null().null().size(0).scalar(1.0).run().is_ok());
    }
}
