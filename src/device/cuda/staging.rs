//! Small uploads that do not wait: bytes are copied into page-locked memory of the host, and the GPU fetches them when
//! their turn comes. The memory is a ring of two halves; a half is written again when the GPU has read all of it.

use std::ffi::c_void;
use std::ptr;

use cudarc::driver::sys;

use super::super::driver::Address;
use super::fault::check;
use super::{Event, Stream};
use crate::error::Result;

/// Bytes of a half. Uploads that do not fit, which are rare and large, wait for their copy instead.
const HALF: usize = 1 << 20;
/// Uploads start at multiples of this.
const GRAIN: usize = 16;

/// Page-locked memory of the host.
struct Locked(*mut c_void);

impl Locked {
    fn new(bytes: usize) -> Result<Self> {
        let mut at = ptr::null_mut();
        // SAFETY: `at` may be written, and a context is current.
        check("locking memory of the host", unsafe { sys::cuMemHostAlloc(&raw mut at, bytes, 0) })?;
        Ok(Self(at))
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // SAFETY: given by `new`, given back once; the stream was waited for before.
        let _ = unsafe { sys::cuMemFreeHost(self.0) };
    }
}

struct Ring {
    memory: Locked,
    /// When the GPU has read the half that this is the index of.
    read: [Event; 2],
    half: usize,
    used: usize,
}

/// The ring, made at the first upload.
#[derive(Default)]
pub(super) struct Staging(Option<Ring>);

// SAFETY: the memory is this struct's alone, and the driver's handles serve every thread with the context.
unsafe impl Send for Staging {}

impl Staging {
    /// Queues a copy of `bytes` without waiting; false if they are too many.
    pub(super) fn upload(&mut self, to: Address, bytes: &[u8], stream: &Stream) -> Result<bool> {
        if bytes.len() > HALF / 4 {
            return Ok(false);
        }
        let ring = match &mut self.0 {
            Some(ring) => ring,
            None => {
                let read = [Event::new()?, Event::new()?];
                self.0.insert(Ring { memory: Locked::new(2 * HALF)?, read, half: 0, used: 0 })
            }
        };
        if ring.used + bytes.len() > HALF {
            ring.turn(stream)?;
        }
        let at = ring.half * HALF + ring.used;
        ring.used += bytes.len().next_multiple_of(GRAIN);
        // SAFETY: at + len lies in the ring by the check above, the GPU has read what stood there, and nobody else
        // writes it until this half's turn comes again, which waits for this copy.
        let result = unsafe {
            let place = ring.memory.0.cast::<u8>().add(at);
            ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len());
            sys::cuMemcpyHtoDAsync_v2(to, place.cast(), bytes.len(), stream.0)
        };
        check("copying to the GPU", result)?;
        Ok(true)
    }
}

impl Ring {
    /// Goes on in the other half, after the GPU has read what stands there.
    fn turn(&mut self, stream: &Stream) -> Result<()> {
        self.read[self.half].record(stream)?;
        self.half = 1 - self.half;
        self.used = 0;
        // An event that was never recorded has come.
        self.read[self.half].wait()
    }
}
