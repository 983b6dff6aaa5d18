//! The benchmarks' door into the crate: the device, single operations, ceilings, counters, rollouts. No part of the
//! public interface.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use crate::device::emulated::Emulated;
use crate::device::{Device, Gpu};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::generate::{Generation, Sampling};
use crate::ptx::Options;
use crate::random::Stage;
pub use crate::selftest::workloads::{Cost, Pass, Size, Workload, workloads};

/// The device that the environment's `RLHF_DEVICE` names; `auto` without it.
///
/// # Errors
/// Those of [`Device::parse`].
pub fn device() -> Result<Device> {
    Device::parse(&std::env::var("RLHF_DEVICE").unwrap_or_else(|_| "auto".to_owned()))
}

/// The device in words.
pub fn describe(device: &Device) -> String {
    match device {
        Device::Cpu => format!("the CPU reference, {} threads", rayon::current_num_threads()),
        Device::Gpu(gpu) => gpu.driver().description(),
    }
}

/// Runs `work` as the binary does on this device: for the CPU inside the pool of threads, because a step enters a few
/// hundred parallel loops; for a GPU on the thread that opened it.
pub fn in_pool<R: Send>(device: &Device, work: impl FnOnce() -> R + Send) -> R {
    if *device == Device::Cpu { rayon::scope(|_| work()) } else { work() }
}

/// Bytes of the floats that models on `device` compute in, and their name.
pub fn floats(device: &Device) -> (usize, String) {
    (device.dtype().bytes(), device.dtype().to_string())
}

/// Seconds that `passes` passes take on `device`: by its own events on a GPU.
///
/// # Errors
/// Those of the passes.
pub fn seconds(device: &Device, passes: u64, pass: &mut Pass) -> Result<f64> {
    let mut work = || (0..passes).try_for_each(|_| pass());
    match device {
        Device::Cpu => {
            let start = Instant::now();
            work()?;
            Ok(start.elapsed().as_secs_f64())
        }
        Device::Gpu(gpu) => gpu.driver().time(&mut work),
    }
}

/// Bytes a second, read and written, of a copy of 1 GiB inside a GPU's memory: the ceiling for what moves bytes.
///
/// # Errors
/// A device without memory of its own, or without room.
pub fn copy_rate(device: &Device) -> Result<f64> {
    const BYTES: usize = 1 << 30;
    const COPIES: usize = 10;
    let Device::Gpu(gpu) = device else { return Err(Error::failure("no-gpu", "the copy rate is that of a GPU")) };
    let driver = gpu.driver();
    let (from, to) = (driver.alloc(BYTES)?, driver.alloc(BYTES)?);
    driver.fill(from, BYTES, 1)?;
    driver.copy(to, from, BYTES)?;
    let seconds = driver.time(&mut || (0..COPIES).try_for_each(|_| driver.copy(to, from, BYTES)));
    driver.free(from);
    driver.free(to);
    Ok(2.0 * (BYTES * COPIES) as f64 / seconds?)
}

/// What the launches of one entry did in one pass.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counted {
    /// Launches.
    pub launches: u64,
    /// Instructions of lanes.
    pub instructions: u64,
    /// Warp-wide matrix instructions.
    pub mma: u64,
    /// Bytes of the sectors that global loads and stores touch.
    pub moved: u64,
    /// Shared-memory passes over what conflict-free accesses would take.
    pub conflicts: u64,
}

/// One pass of `workload` on an emulator that counts, by entry; launches that prepare it are left out.
///
/// # Errors
/// Those of the pass.
pub fn counters(workload: &Workload) -> Result<BTreeMap<&'static str, Counted>> {
    let options = Options { threads: rayon::current_num_threads(), ..Options::default() };
    let emulated = Arc::new(Emulated::new(options));
    let device = Device::Gpu(Gpu::new(emulated.clone(), DType::BF16));
    let mut pass = workload.prepare(&device, Size::Small)?;
    emulated.take_launched();
    pass()?;
    let mut entries: BTreeMap<&'static str, Counted> = BTreeMap::new();
    for launched in emulated.take_launched() {
        let (sum, did) = (entries.entry(launched.entry).or_default(), &launched.counters);
        sum.launches += 1;
        sum.instructions += did.lane_instructions;
        sum.mma += did.mma;
        sum.moved += did.global_load.moved() + did.global_store.moved();
        sum.conflicts += did.shared_wavefronts.saturating_sub(did.shared_wavefronts_ideal);
    }
    Ok(entries)
}

/// Answers of `length` tokens to all `prompts`; returns how many tokens that were.
///
/// # Errors
/// Prompts that do not fit the model.
pub fn rollout(model: &Model, prompts: &[&[i32]], length: usize) -> Result<usize> {
    let generation = Generation {
        sampling: Sampling { temperature: 1.0, top_k: 0, top_p: 1.0 },
        max_new_tokens: length,
        stop: &[],
        seed: 1,
        stage: Stage::Generate,
        step: 0,
        first_row: 0,
        slots: None,
    };
    let responses = model.generate(&model.frozen()?, prompts, &generation)?.responses;
    Ok(responses.iter().map(|response| response.tokens.len()).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A backward pass and a rule alone run more than once, as they do under the clock.
    #[test]
    fn every_workload_runs_on_the_cpu_and_on_the_emulator() {
        for workload in workloads(Size::Small) {
            let mut pass = workload.prepare(&Device::Cpu, Size::Small).unwrap();
            assert!(seconds(&Device::Cpu, 3, &mut pass).unwrap() > 0.0, "{workload:?}");
            let counted = counters(&workload).unwrap();
            assert!(counted.values().all(|c| c.launches > 0 && c.moved > 0), "{workload:?}: {counted:?}");
            // What moves is at least what must; sectors are counted once a request, so it may be more.
            let moved: u64 = counted.values().map(|c| c.moved).sum();
            let limit = workload.cost.moved(2);
            assert!(workload.cost.flop > 0.0 || moved as f64 >= 0.99 * limit, "{workload:?}: {moved} of {limit}");
        }
    }

    #[test]
    fn large_workloads_are_the_same_list() {
        let names = |size| workloads(size).iter().map(|w| w.name).collect::<std::collections::BTreeSet<_>>();
        assert_eq!(names(Size::Small), names(Size::Large));
    }
}
