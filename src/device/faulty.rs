//! A driver for tests that does what another one does, until it is told to fail: the n-th call of a verb answers with
//! an error of the test's choice, alone or for good, or a kernel leaves a NaN behind. It keeps account of what was
//! handed out, so that a test can ask whether everything came back.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::driver::{Accounting, Address, Arg, Driver, Recording, Shape, Written};
use super::gemm::Gemm;
use super::kernel::Entry;
use super::rehearsal::Rehearsal;
use crate::error::{Error, Result};

/// What can fail: all that training asks of a driver. (It gives memory back without asking.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verb {
    Alloc,
    Upload,
    Download,
    Copy,
    Fill,
    Launch,
    Gemm,
    Record,
    Replay,
}

impl Verb {
    pub(crate) const ALL: [Self; 9] = [
        Self::Alloc,
        Self::Upload,
        Self::Download,
        Self::Copy,
        Self::Fill,
        Self::Launch,
        Self::Gemm,
        Self::Record,
        Self::Replay,
    ];
}

/// What happens at the call.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// This call fails.
    Once(Error),
    /// This call fails, and every later one: a card that is lost.
    ForGood(Error),
    /// The launch is done, and of the first output that it writes in full the last four bytes become NaN, be they one
    /// f32 or two bf16.
    Poison,
}

#[derive(Debug, Default)]
struct State {
    calls: BTreeMap<Verb, usize>,
    plan: Option<(Verb, usize, Fault)>,
    lost: Option<Error>,
    struck: bool,
    recording: bool,
    memory: BTreeSet<Address>,
    /// Numbers are not unique on a driver that records nothing.
    recordings: Vec<Recording>,
}

/// A driver before another.
#[derive(Debug)]
pub(crate) struct Faulty {
    inner: Arc<dyn Driver>,
    state: Mutex<State>,
}

impl Faulty {
    /// A driver that does not fail yet.
    pub(crate) fn new(inner: Arc<dyn Driver>) -> Self {
        Self { inner, state: Mutex::default() }
    }

    /// The same before one that computes nothing.
    pub(crate) fn rehearsing(driver: &dyn Driver) -> Self {
        Self::new(Arc::new(Rehearsal::of(driver)))
    }

    /// Has call number `n` (from 0) of `verb` fail; counts from here.
    pub(crate) fn strike(&self, verb: Verb, n: usize, fault: Fault) {
        let mut state = self.state();
        (state.plan, state.struck) = (Some((verb, n, fault)), false);
        state.calls.clear();
    }

    /// Whether the call came that was to fail.
    pub(crate) fn struck(&self) -> bool {
        self.state().struck
    }

    /// Calls of `verb` so far.
    pub(crate) fn calls(&self, verb: Verb) -> usize {
        self.state().calls.get(&verb).copied().unwrap_or(0)
    }

    /// What was handed out and did not come back: pieces of memory, bytes by the driver's own account, recordings.
    pub(crate) fn held(&self) -> [usize; 3] {
        let [free, total] = self.inner.memory().unwrap_or_default();
        let state = self.state();
        [state.memory.len(), total - free, state.recordings.len()]
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call; whether it must leave a NaN behind.
    fn call(&self, verb: Verb) -> Result<bool> {
        let mut state = self.state();
        if let Some(error) = &state.lost {
            return Err(error.clone());
        }
        let count = state.calls.entry(verb).or_default();
        let number = *count;
        *count += 1;
        let fault = match &state.plan {
            Some((at, n, fault)) if *at == verb && *n == number => fault.clone(),
            _ => return Ok(false),
        };
        state.struck = true;
        match fault {
            Fault::Once(error) => Err(error),
            Fault::ForGood(error) => {
                state.lost = Some(error.clone());
                Err(error)
            }
            // What is recorded is not done yet.
            Fault::Poison => Ok(!state.recording),
        }
    }
}

impl Driver for Faulty {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn description(&self) -> String {
        self.inner.description()
    }

    fn alloc(&self, bytes: usize) -> Result<Address> {
        self.call(Verb::Alloc)?;
        let address = self.inner.alloc(bytes)?;
        self.state().memory.insert(address);
        Ok(address)
    }

    fn free(&self, address: Address) {
        self.state().memory.remove(&address);
        self.inner.free(address);
    }

    fn upload(&self, to: Address, bytes: &[u8]) -> Result<()> {
        self.call(Verb::Upload)?;
        self.inner.upload(to, bytes)
    }

    fn download(&self, out: &mut [u8], from: Address) -> Result<()> {
        self.call(Verb::Download)?;
        self.inner.download(out, from)
    }

    fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<()> {
        self.call(Verb::Copy)?;
        self.inner.copy(to, from, bytes)
    }

    fn fill(&self, to: Address, bytes: usize, value: u8) -> Result<()> {
        self.call(Verb::Fill)?;
        self.inner.fill(to, bytes, value)
    }

    fn launch(&self, entry: &Entry, shape: Shape, args: &[Arg], written: &[Written]) -> Result<()> {
        let poisoned = self.call(Verb::Launch)?;
        self.inner.launch(entry, shape, args, written)?;
        match written.first() {
            // Tokens are no numbers.
            Some((address, bytes)) if poisoned && *bytes >= 4 && !entry.name.starts_with("sample") => {
                self.inner.upload(address + bytes - 4, &[0xC0, 0x7F, 0xC0, 0x7F])
            }
            _ => Ok(()),
        }
    }

    fn gemm(&self, gemm: &Gemm) -> Result<bool> {
        self.call(Verb::Gemm)?;
        self.inner.gemm(gemm)
    }

    fn is_row_invariant(&self) -> bool {
        self.inner.is_row_invariant()
    }

    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Recording> {
        self.call(Verb::Record)?;
        self.state().recording = true;
        let recorded = self.inner.record(work);
        let mut state = self.state();
        state.recording = false;
        let recording = recorded?;
        state.recordings.push(recording);
        Ok(recording)
    }

    fn replay(&self, recording: Recording) -> Result<()> {
        self.call(Verb::Replay)?;
        self.inner.replay(recording)
    }

    fn forget(&self, recording: Recording) {
        let mut state = self.state();
        if let Some(at) = state.recordings.iter().position(|held| *held == recording) {
            state.recordings.swap_remove(at);
        }
        drop(state);
        self.inner.forget(recording);
    }

    fn synchronize(&self) -> Result<()> {
        self.inner.synchronize()
    }

    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        self.inner.time(work)
    }

    fn memory(&self) -> Result<[usize; 2]> {
        self.inner.memory()
    }

    fn take_peak(&self) -> Result<usize> {
        self.inner.take_peak()
    }

    fn accounting(&self) -> Accounting {
        self.inner.accounting()
    }
}
