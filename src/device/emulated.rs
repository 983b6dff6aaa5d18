//! The driver whose GPU is the emulator of `ptx::`. Everything is done when a call returns.

#[cfg(test)]
use std::sync::Arc;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::driver::{Address, Arg, Driver, Shape, Written};
use super::gemm::Gemm;
use super::kernel::Entry;
#[cfg(test)]
use super::kernel::Source;
use crate::error::{Code, Error, Result};
use crate::ptx::{self, Counters, Machine, Memory, Options};

/// What a launch did.
#[derive(Debug, Clone)]
pub(crate) struct Launched {
    pub(crate) entry: &'static str,
    pub(crate) counters: Counters,
}

/// How often the host and the device waited for each other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Copies {
    /// Host to device.
    pub(crate) uploads: usize,
    /// Device to host; on a card the host waits for all that was queued.
    pub(crate) downloads: usize,
}

struct State {
    memory: Memory,
    /// Kept only if launches are counted.
    launched: Vec<Launched>,
    copies: Copies,
}

/// A GPU in memory.
pub(crate) struct Emulated {
    machine: Machine,
    state: Mutex<State>,
    /// Another text for one source, whose entries are launched instead where it has them.
    #[cfg(test)]
    replaced: Option<(&'static Source, Arc<ptx::Module>)>,
}

impl std::fmt::Debug for Emulated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Emulated")
    }
}

impl Emulated {
    /// An emulator that executes as `options` say; with `count`, what each launch did is kept.
    pub(crate) fn new(options: Options) -> Self {
        let state = State { memory: Memory::new(), launched: Vec::new(), copies: Copies::default() };
        Self {
            machine: Machine::new(options),
            state: Mutex::new(state),
            #[cfg(test)]
            replaced: None,
        }
    }

    /// The same with another text for one source.
    #[cfg(test)]
    pub(crate) fn with_text(options: Options, source: &'static Source, text: Arc<ptx::Module>) -> Self {
        Self { replaced: Some((source, text)), ..Self::new(options) }
    }

    #[cfg(test)]
    fn kernel(&self, entry: &Entry) -> Result<&ptx::Kernel> {
        match &self.replaced {
            Some((source, text)) if std::ptr::eq(*source, entry.source) => {
                text.kernel(entry.name).or_else(|_| entry.parsed())
            }
            _ => entry.parsed(),
        }
    }

    #[cfg(not(test))]
    fn kernel(&self, entry: &Entry) -> Result<&ptx::Kernel> {
        entry.parsed()
    }

    /// All checks, on all cores; nothing is counted.
    pub(crate) fn for_training() -> Self {
        Self::new(Options { count: false, threads: rayon::current_num_threads(), ..Options::default() })
    }

    /// What was launched since the last call.
    pub(crate) fn take_launched(&self) -> Vec<Launched> {
        std::mem::take(&mut self.state().launched)
    }

    /// Copies since the last call.
    #[cfg(test)]
    pub(crate) fn take_copies(&self) -> Copies {
        std::mem::take(&mut self.state().copies)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the emulator found is a fault of a kernel or of its launch, never of the user's input.
fn fault(error: ptx::Error) -> Error {
    Error::failure("kernel-fault", error.to_string())
}

impl Driver for Emulated {
    fn name(&self) -> &str {
        "emulated"
    }

    fn description(&self) -> String {
        "emulated GPU (PTX executed on the CPU)".to_owned()
    }

    fn alloc(&self, bytes: usize) -> Result<Address> {
        let refused = |e: ptx::Error| Error::new(Code::Resources, "device-memory", e.to_string());
        self.state().memory.alloc("tensor", bytes.max(1) as u64).map_err(refused)
    }

    fn free(&self, address: Address) {
        // Only an address that `alloc` gave and nobody freed arrives here.
        let _ = self.state().memory.free(address);
    }

    fn upload(&self, to: Address, bytes: &[u8]) -> Result<()> {
        let mut state = self.state();
        state.copies.uploads += 1;
        state.memory.upload(to, bytes).map_err(fault)
    }

    fn download(&self, out: &mut [u8], from: Address) -> Result<()> {
        let mut state = self.state();
        state.copies.downloads += 1;
        if let Some(at) = state.memory.unwritten(from, out.len() as u64).map_err(fault)? {
            return Err(Error::failure("read-unwritten", format!("byte {at} of a tensor is read and was not written")));
        }
        state.memory.download(from, out).map_err(fault)
    }

    fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<()> {
        let mut data = vec![0; bytes];
        self.download(&mut data, from)?;
        self.upload(to, &data)
    }

    fn fill(&self, to: Address, bytes: usize, value: u8) -> Result<()> {
        self.state().memory.fill(to, bytes as u64, value).map_err(fault)
    }

    fn launch(&self, entry: &Entry, shape: Shape, args: &[Arg], written: &[Written]) -> Result<()> {
        let kernel = self.kernel(entry)?;
        let mut state = self.state();
        for (address, bytes) in written {
            state.memory.expect_written(*address, *bytes).map_err(fault)?;
        }
        let args: Vec<ptx::Arg<'_>> = args
            .iter()
            .map(|arg| match *arg {
                Arg::Pointer(address) => ptx::Arg::U64(address),
                Arg::I32(x) => ptx::Arg::I32(x),
                Arg::I64(x) => ptx::Arg::U64(x as u64),
                Arg::F32(x) => ptx::Arg::F32(x),
            })
            .collect();
        let counters = self
            .machine
            .launch(kernel, shape.grid, shape.block, shape.shared, &args, &mut state.memory)
            .map_err(fault)?;
        if self.machine.options.count {
            state.launched.push(Launched { entry: entry.name, counters });
        }
        Ok(())
    }

    fn gemm(&self, _: &Gemm) -> Result<bool> {
        Ok(false)
    }

    fn is_row_invariant(&self) -> bool {
        true
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        let start = Instant::now();
        work()?;
        Ok(start.elapsed().as_secs_f64())
    }

    fn memory(&self) -> Result<[usize; 2]> {
        // The emulator's memory is the host's; 2^36 bytes is what one allocation may have.
        let total = 1usize << 36;
        Ok([total.saturating_sub(self.state().memory.allocated() as usize), total])
    }
}
