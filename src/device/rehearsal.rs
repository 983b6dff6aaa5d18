//! The driver that computes nothing: it hands out addresses, counts bytes as the driver that it stands for would, and
//! answers downloads with zeros. A run that is rehearsed on it shows what it will take of the GPU's memory, because it
//! is the same code that runs there. It must know no more of its callers than the other drivers do.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::driver::{Accounting, Address, Arg, Driver, Recording, Shape, Written};
use super::gemm::Gemm;
use super::kernel::Entry;
use crate::error::Result;

/// What lies between two addresses at least.
const ALIGNMENT: usize = 512;
/// The memory is without an end; this is far beyond any card's.
const TOTAL: usize = 1 << 56;

/// The name of the CPU.
pub(super) const HOST: &str = "cpu";

#[derive(Default)]
struct State {
    next: Address,
    /// What every piece takes, by its address.
    pieces: HashMap<Address, usize>,
    used: usize,
    peak: usize,
}

/// A GPU in name.
pub(crate) struct Rehearsal {
    name: String,
    accounting: Accounting,
    state: Mutex<State>,
}

impl std::fmt::Debug for Rehearsal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rehearsal({})", self.name)
    }
}

impl Rehearsal {
    /// In the place of `driver`.
    pub(crate) fn of(driver: &dyn Driver) -> Self {
        Self::counting(driver.name(), driver.accounting())
    }

    /// In the place of the CPU's allocator.
    pub(super) fn of_host() -> Self {
        Self::counting(HOST, Accounting { granule: 64, workspace: 0, reserve: 0.0 })
    }

    /// In the place of a card, as a plan for one sees it: CUDA's pieces, the matrix library's workspace on the newest
    /// cards, and what is left alone.
    pub(super) fn of_card() -> Self {
        Self::counting("gpu", Accounting { granule: 512, workspace: 32 << 20, reserve: 0.05 })
    }

    fn counting(name: &str, accounting: Accounting) -> Self {
        let used = accounting.workspace;
        // Address 0 means none.
        let state = State { next: ALIGNMENT as Address, used, peak: used, ..State::default() };
        Self { name: name.to_owned(), accounting, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Driver for Rehearsal {
    fn name(&self) -> &str {
        &self.name
    }

    fn description(&self) -> String {
        format!("a rehearsal of {}", self.name)
    }

    fn alloc(&self, bytes: usize) -> Result<Address> {
        let (mut state, bytes) = (self.state(), bytes.max(1));
        let (address, taken) = (state.next, bytes.next_multiple_of(self.accounting.granule));
        state.next += bytes.next_multiple_of(ALIGNMENT) as Address;
        state.pieces.insert(address, taken);
        state.used += taken;
        state.peak = state.peak.max(state.used);
        Ok(address)
    }

    fn free(&self, address: Address) {
        let mut state = self.state();
        state.used -= state.pieces.remove(&address).unwrap_or(0);
    }

    fn upload(&self, _: Address, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn download(&self, out: &mut [u8], _: Address) -> Result<()> {
        out.fill(0);
        Ok(())
    }

    fn copy(&self, _: Address, _: Address, _: usize) -> Result<()> {
        Ok(())
    }

    fn fill(&self, _: Address, _: usize, _: u8) -> Result<()> {
        Ok(())
    }

    fn launch(&self, _: &Entry, _: Shape, _: &[Arg], _: &[Written]) -> Result<()> {
        Ok(())
    }

    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Recording> {
        work().map(|()| 0)
    }

    fn replay(&self, _: Recording) -> Result<()> {
        Ok(())
    }

    fn forget(&self, _: Recording) {}

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
        work().map(|()| 0.0)
    }

    fn memory(&self) -> Result<[usize; 2]> {
        Ok([TOTAL - self.state().used, TOTAL])
    }

    fn take_peak(&self) -> Result<usize> {
        let mut state = self.state();
        let used = state.used;
        Ok(std::mem::replace(&mut state.peak, used))
    }

    fn accounting(&self) -> Accounting {
        self.accounting
    }
}

#[cfg(test)]
mod tests {
    use super::super::emulated::Emulated;
    use super::*;

    /// Bytes in use and the peak after each of a few pieces comes and goes.
    fn counted(driver: &dyn Driver) -> Vec<[usize; 2]> {
        let mut counts = Vec::new();
        let mut count = || {
            let [free, total] = driver.memory().unwrap();
            counts.push([total - free, driver.take_peak().unwrap()]);
        };
        let pieces = [0, 1, 511, 512, 513, 100_000].map(|bytes| {
            let address = driver.alloc(bytes).unwrap();
            count();
            address
        });
        for address in [pieces[5], pieces[1]] {
            driver.free(address);
            count();
        }
        counts
    }

    #[test]
    fn bytes_are_counted_as_by_the_driver_that_it_stands_for() {
        let emulated = Emulated::for_training();
        let counts = counted(&Rehearsal::of(&emulated));
        assert_eq!(counts, counted(&emulated));
        assert_eq!(counts[6], [1 + 1 + 511 + 512 + 513, 1 + 1 + 511 + 512 + 513 + 100_000]);
        // A card cuts its memory into larger pieces, and its library has one before all others.
        let card = Rehearsal::counting("card", Accounting { granule: 512, workspace: 4096, reserve: 0.0 });
        let used: Vec<usize> = counted(&card)[..5].iter().map(|count| count[0] - 4096).collect();
        assert_eq!(used, [512, 1024, 1536, 2048, 3072]);
    }

    #[test]
    fn memory_that_is_not_there_is_an_error() {
        let small = Emulated::with_capacity(crate::ptx::Options::default(), 1000);
        let piece = small.alloc(600).unwrap();
        let error = small.alloc(401).unwrap_err();
        assert_eq!((error.code(), error.id()), (crate::error::Code::Resources, "device-memory"));
        small.free(piece);
        assert!(small.alloc(1000).is_ok());
    }
}
