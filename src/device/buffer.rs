//! Bytes in a device's memory, given back when nobody holds them.

#![forbid(unsafe_code)]

use std::sync::Arc;

use super::Gpu;
use super::arena::Arena;
use super::driver::Address;
use crate::error::Result;

/// Memory of a device.
#[derive(Debug)]
pub(crate) struct Buffer {
    gpu: Gpu,
    address: Address,
    bytes: usize,
    /// Whose memory it is, if it is not the driver's.
    arena: Option<Arc<Arena>>,
}

impl Buffer {
    /// Memory with no value of worth in it, from the open arena where there is one.
    pub(crate) fn new(gpu: &Gpu, bytes: usize) -> Result<Self> {
        let arena = gpu.open_arena();
        let address = match &arena {
            Some(arena) => arena.take(bytes)?,
            None => gpu.driver().alloc(bytes)?,
        };
        Ok(Self { address, bytes, arena, gpu: gpu.clone() })
    }

    /// The first byte.
    pub(crate) fn address(&self) -> Address {
        self.address
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        match &self.arena {
            Some(arena) => arena.give(self.address, self.bytes),
            None => self.gpu.driver().free(self.address),
        }
    }
}
