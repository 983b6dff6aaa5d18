//! Bytes in a device's memory, given back when nobody holds them.

use super::Gpu;
use super::driver::Address;
use crate::error::Result;

/// Memory of a device.
#[derive(Debug)]
pub(crate) struct Buffer {
    gpu: Gpu,
    address: Address,
}

impl Buffer {
    /// Memory with no value of worth in it.
    pub(crate) fn new(gpu: &Gpu, bytes: usize) -> Result<Self> {
        Ok(Self { address: gpu.driver().alloc(bytes)?, gpu: gpu.clone() })
    }

    /// The first byte.
    pub(crate) fn address(&self) -> Address {
        self.address
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.gpu.driver().free(self.address);
    }
}
