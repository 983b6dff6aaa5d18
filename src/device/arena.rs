//! Memory of work that is done again and again: what it frees is kept for its next turn, by size, so that from the
//! second turn on it finds the addresses of the first and asks the driver for nothing. A graph depends on that.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::driver::{Address, Driver};
use crate::error::Result;

/// Sizes are rounded up to this many bytes.
const GRAIN: usize = 256;

/// Memory that is given back to the driver when nobody holds the arena.
#[derive(Debug)]
pub(crate) struct Arena {
    driver: Arc<dyn Driver>,
    spare: Mutex<BTreeMap<usize, Vec<Address>>>,
}

impl Arena {
    pub(super) fn new(driver: Arc<dyn Driver>) -> Self {
        Self { driver, spare: Mutex::default() }
    }

    fn spare(&self) -> MutexGuard<'_, BTreeMap<usize, Vec<Address>>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Memory of exactly this size that was given back, or new memory: the same requests in the same order get the same
    /// addresses every time.
    pub(super) fn take(&self, bytes: usize) -> Result<Address> {
        let bytes = bytes.max(1).next_multiple_of(GRAIN);
        match self.spare().get_mut(&bytes).and_then(Vec::pop) {
            Some(address) => Ok(address),
            None => self.driver.alloc(bytes),
        }
    }

    /// Takes back what [`Arena::take`] gave.
    pub(super) fn give(&self, address: Address, bytes: usize) {
        self.spare().entry(bytes.max(1).next_multiple_of(GRAIN)).or_default().push(address);
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        let spare = std::mem::take(&mut *self.spare());
        spare.into_values().flatten().for_each(|address| self.driver.free(address));
    }
}
