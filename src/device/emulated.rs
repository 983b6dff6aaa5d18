//! The driver whose GPU is the emulator of `ptx::`. Everything is done when a call returns.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::driver::{Accounting, Address, Arg, Driver, Recording, Shape, Written, host_work};
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

/// What was queued, as it was queued.
#[derive(Debug, Clone)]
enum Queued {
    Launch {
        entry: Entry,
        shape: Shape,
        args: Vec<Arg>,
        written: Vec<Written>,
    },
    Copy {
        to: Address,
        from: Address,
        bytes: usize,
    },
    Fill {
        to: Address,
        bytes: usize,
        value: u8,
    },
    #[cfg(test)]
    Gemm(super::gemm::LtCall),
}

impl Queued {
    /// Addresses that it was given.
    fn addresses(&self) -> Vec<Address> {
        match self {
            Queued::Launch { args, .. } => {
                args.iter().filter_map(|arg| if let Arg::Pointer(p) = arg { Some(*p) } else { None }).collect()
            }
            Queued::Copy { to, from, .. } => vec![*to, *from],
            Queued::Fill { to, .. } => vec![*to],
            #[cfg(test)]
            Queued::Gemm(call) => vec![call.a, call.b, call.d, call.bias],
        }
    }
}

#[derive(Default)]
struct State {
    memory: Memory,
    /// Kept only if launches are counted.
    launched: Vec<Launched>,
    copies: Copies,
    /// What is queued while something is recorded.
    recording: Option<Vec<Queued>>,
    recorded: BTreeMap<Recording, Arc<[Queued]>>,
    recordings: Recording,
}

impl State {
    fn not_recording(&self, what: &str) -> Result<()> {
        if self.recording.is_some() { Err(host_work(what)) } else { Ok(()) }
    }
}

/// A GPU in memory.
pub(crate) struct Emulated {
    machine: Machine,
    state: Mutex<State>,
    /// Bytes that may be handed out at once.
    capacity: u64,
    /// Another text for one source, whose entries are launched instead where it has them.
    #[cfg(test)]
    replaced: Option<(&'static Source, Arc<ptx::Module>)>,
    /// Whether it has a library that multiplies, as a card has.
    #[cfg(test)]
    library: bool,
}

impl std::fmt::Debug for Emulated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Emulated")
    }
}

impl Emulated {
    /// An emulator that executes as `options` say; with `count`, what each launch did is kept.
    pub(crate) fn new(options: Options) -> Self {
        Self {
            machine: Machine::new(options),
            state: Mutex::default(),
            // The memory is the host's; this is what one allocation may have.
            capacity: 1 << 36,
            #[cfg(test)]
            replaced: None,
            #[cfg(test)]
            library: false,
        }
    }

    /// The same with so many bytes of memory.
    #[cfg(test)]
    pub(crate) fn with_capacity(options: Options, capacity: u64) -> Self {
        Self { capacity, ..Self::new(options) }
    }

    /// The same with another text for one source.
    #[cfg(test)]
    pub(crate) fn with_text(options: Options, source: &'static Source, text: Arc<ptx::Module>) -> Self {
        Self { replaced: Some((source, text)), ..Self::new(options) }
    }

    /// The same with a library for matrix products, of which a row's bits depend on how many rows there are.
    #[cfg(test)]
    pub(crate) fn with_library(options: Options) -> Self {
        Self { library: true, ..Self::new(options) }
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

    /// Does it, or keeps it if something is recorded.
    fn queue(&self, queued: Queued) -> Result<()> {
        if let Some(recording) = &mut self.state().recording {
            recording.push(queued);
            return Ok(());
        }
        self.run(&queued)
    }

    fn run(&self, queued: &Queued) -> Result<()> {
        let mut state = self.state();
        match queued {
            Queued::Fill { to, bytes, value } => state.memory.fill(*to, *bytes as u64, *value).map_err(fault),
            Queued::Copy { to, from, bytes } => {
                let mut data = vec![0; *bytes];
                if let Some(at) = state.memory.unwritten(*from, *bytes as u64).map_err(fault)? {
                    return Err(Error::failure("read-unwritten", format!("byte {at} of a copy was not written")));
                }
                state.memory.download(*from, &mut data).map_err(fault)?;
                state.memory.upload(*to, &data).map_err(fault)
            }
            #[cfg(test)]
            Queued::Gemm(call) => super::gemm::on_host(&mut state.memory, call).map_err(fault),
            Queued::Launch { entry, shape, args, written } => self.execute(&mut state, entry, *shape, args, written),
        }
    }

    fn execute(&self, state: &mut State, entry: &Entry, shape: Shape, args: &[Arg], written: &[Written]) -> Result<()> {
        let kernel = self.kernel(entry)?;
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
        let refused = |what: String| Error::new(Code::Resources, "device-memory", what);
        let (mut state, bytes) = (self.state(), bytes.max(1) as u64);
        state.not_recording("memory is taken")?;
        let free = self.capacity.saturating_sub(state.memory.allocated());
        if bytes > free {
            return Err(refused(format!("{bytes} bytes were asked for; {free} of {} are free", self.capacity)));
        }
        state.memory.alloc("tensor", bytes).map_err(|e| refused(e.to_string()))
    }

    fn free(&self, address: Address) {
        // Only an address that `alloc` gave and nobody freed arrives here.
        let _ = self.state().memory.free(address);
    }

    fn upload(&self, to: Address, bytes: &[u8]) -> Result<()> {
        let mut state = self.state();
        state.not_recording("an upload")?;
        state.copies.uploads += 1;
        state.memory.upload(to, bytes).map_err(fault)
    }

    fn download(&self, out: &mut [u8], from: Address) -> Result<()> {
        let mut state = self.state();
        state.not_recording("a download")?;
        state.copies.downloads += 1;
        if let Some(at) = state.memory.unwritten(from, out.len() as u64).map_err(fault)? {
            return Err(Error::failure("read-unwritten", format!("byte {at} of a tensor is read and was not written")));
        }
        state.memory.download(from, out).map_err(fault)
    }

    fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<()> {
        self.queue(Queued::Copy { to, from, bytes })
    }

    fn fill(&self, to: Address, bytes: usize, value: u8) -> Result<()> {
        self.queue(Queued::Fill { to, bytes, value })
    }

    fn launch(&self, entry: &Entry, shape: Shape, args: &[Arg], written: &[Written]) -> Result<()> {
        self.queue(Queued::Launch { entry: *entry, shape, args: args.to_vec(), written: written.to_vec() })
    }

    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Recording> {
        self.state().not_recording("a recording")?;
        self.state().recording = Some(Vec::new());
        let done = work();
        let mut state = self.state();
        let queued = state.recording.take().unwrap_or_default();
        done?;
        state.recordings += 1;
        let number = state.recordings;
        state.recorded.insert(number, queued.into());
        Ok(number)
    }

    fn replay(&self, recording: Recording) -> Result<()> {
        let lost = || Error::failure("graph-unknown", format!("there is no recording {recording}"));
        let queued = self.state().recorded.get(&recording).cloned().ok_or_else(lost)?;
        {
            let state = self.state();
            let gone = |p: &Address| *p != 0 && !state.memory.is_allocated(*p);
            if let Some(address) = queued.iter().flat_map(Queued::addresses).find(gone) {
                return Err(Error::failure("graph-freed", format!("a recording uses {address:#x}, which was freed")));
            }
        }
        queued.iter().try_for_each(|queued| self.run(queued))
    }

    fn forget(&self, recording: Recording) {
        self.state().recorded.remove(&recording);
    }

    #[cfg(not(test))]
    fn gemm(&self, _: &Gemm) -> Result<bool> {
        Ok(false)
    }

    #[cfg(test)]
    fn gemm(&self, gemm: &Gemm) -> Result<bool> {
        if self.library {
            self.queue(Queued::Gemm(gemm.translated()))?;
        }
        Ok(self.library)
    }

    #[cfg(not(test))]
    fn is_row_invariant(&self) -> bool {
        true
    }

    #[cfg(test)]
    fn is_row_invariant(&self) -> bool {
        !self.library
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
        Ok([self.capacity.saturating_sub(self.state().memory.allocated()), self.capacity].map(|bytes| bytes as usize))
    }

    fn take_peak(&self) -> Result<usize> {
        Ok(self.state().memory.take_peak() as usize)
    }

    fn accounting(&self) -> Accounting {
        Accounting { granule: 1, workspace: 0, reserve: 0.0 }
    }
}
