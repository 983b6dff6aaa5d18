//! What every fuzz target does with an input: opens its door, and stops at a broken promise or at too much memory.

use peak_alloc::PeakAlloc;
use rlhf::fuzz::Door;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Bytes that an input may cost beside four times its own.
const BYTES_MAX: usize = 64 << 20;

/// Bytes that a Parquet file may cost: its rows may be the run-length code of far more values, under a budget of 256
/// MiB and 64 times the file; the decoder holds a page and its rows beside them.
const PARQUET_BYTES_MAX: usize = 1 << 30;

/// Opens `door` with `bytes`; a broken promise ends the process, which is how a find is told to the fuzzer.
pub fn hold(door: Door, bytes: &[u8]) {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    if let Err(broken) = door(bytes) {
        panic!("{broken}");
    }
    let limit = if bytes.starts_with(b"PAR1") { PARQUET_BYTES_MAX } else { BYTES_MAX } + 4 * bytes.len();
    let peak = MEMORY.peak_usage().saturating_sub(before);
    assert!(peak <= limit, "{peak} bytes of memory for {} bytes", bytes.len());
}
