//! Where bytes live and operations run: the CPU, which is the reference, or a GPU behind one of two drivers, CUDA and
//! the emulator. This is the machine room; its one door is [`launch::Launch`].

pub(crate) mod arena;
pub(crate) mod buffer;
pub(crate) mod cuda;
pub(crate) mod driver;
pub(crate) mod emulated;
#[cfg(test)]
pub(crate) mod faulty;
#[cfg(test)]
mod freshness;
pub(crate) mod gemm;
pub(crate) mod graph;
pub(crate) mod kernel;
pub(crate) mod launch;
mod rehearsal;

use std::sync::{Arc, Mutex, PoisonError};

use crate::dtype::DType;
use crate::error::{Error, Result};
use arena::Arena;
use cuda::Cuda;
use driver::Driver;
use emulated::Emulated;
use rehearsal::Rehearsal;

/// A place that holds tensors and computes on them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    /// The reference: plain loops and a GEMM library on the host.
    Cpu,
    /// An NVIDIA GPU, or the emulator that executes the same kernels.
    Gpu(Gpu),
}

/// A GPU and the float type that models on it compute in.
#[derive(Debug, Clone)]
pub struct Gpu {
    driver: Arc<dyn Driver>,
    dtype: DType,
    /// Whether forward products are our kernel's even where the driver has a library.
    exact: bool,
    /// Where memory comes from, if not from the driver; one for all handles of this GPU.
    open: Arc<Mutex<Option<Arc<Arena>>>>,
}

impl PartialEq for Gpu {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.driver, &other.driver)
    }
}

impl Eq for Gpu {}

impl Gpu {
    pub(crate) fn new(driver: Arc<dyn Driver>, dtype: DType) -> Self {
        Self { driver, dtype, exact: false, open: Arc::default() }
    }

    pub(crate) fn driver(&self) -> &dyn Driver {
        &*self.driver
    }

    pub(crate) fn is_exact(&self) -> bool {
        self.exact
    }

    fn new_arena(&self) -> Arena {
        Arena::new(self.driver.clone())
    }

    fn open_arena(&self) -> Option<Arc<Arena>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Does `work`, whose memory comes from `arena`.
    fn in_arena<T>(&self, arena: &Arc<Arena>, work: &mut dyn FnMut() -> Result<T>) -> Result<T> {
        let set = |arena| std::mem::replace(&mut *self.open.lock().unwrap_or_else(PoisonError::into_inner), arena);
        let before = set(Some(arena.clone()));
        let done = work();
        set(before);
        done
    }
}

/// Errors that say that this machine has no GPU which could compute: missing driver, no GPU, or one or the other too
/// old.
const NO_GPU: [&str; 4] = ["cuda-missing", "cuda-no-device", "cuda-capability", "cuda-driver-old"];

/// Bytes that this process holds now, and the most that it ever held; none where the system does not say.
pub(crate) fn process_memory() -> Option<[usize; 2]> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let bytes = |key| {
        let value = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        Some(value.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()? << 10)
    };
    Some([bytes("VmRSS")?, bytes("VmHWM")?])
}

/// The number in `cuda` or `cuda:N`.
fn ordinal(name: &str) -> Option<usize> {
    match name.strip_prefix("cuda")? {
        "" => Some(0),
        rest => rest.strip_prefix(':').filter(|n| n.bytes().all(|b| b.is_ascii_digit()))?.parse().ok(),
    }
}

impl Device {
    /// The device that `name` (`auto`, `cpu`, `cuda`, `cuda:N`, `emulated`) asks for; `auto` is the best one that this
    /// machine offers. A GPU computes in bfloat16; see [`Device::in_f32`].
    ///
    /// # Errors
    /// A name that is not known, or a device that is not there.
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "cpu" => Ok(Self::Cpu),
            "auto" => Self::best(Cuda::open(0)),
            "emulated" => Ok(Self::Gpu(Gpu::new(Arc::new(Emulated::for_training()), DType::BF16))),
            _ if let Some(ordinal) = ordinal(name) => Cuda::open(ordinal).map(Self::cuda),
            _ => Err(Error::usage("device-unknown", format!("`{name}` is not a device"))
                .fix("use `auto`, `cpu`, `cuda`, `cuda:N` (the N-th GPU, from 0) or `emulated`")),
        }
    }

    fn cuda(cuda: Cuda) -> Self {
        Self::Gpu(Gpu::new(Arc::new(cuda), DType::BF16))
    }

    /// The GPU, or the CPU where there is no GPU for us. A GPU that is there and fails is an error: a run that is a
    /// hundred times slower than it should be is not what anybody asked for.
    fn best(opened: Result<Cuda>) -> Result<Self> {
        match opened {
            Err(error) if NO_GPU.contains(&error.id()) => Ok(Self::Cpu),
            opened => opened.map(Self::cuda),
        }
    }

    /// The same device, with models computing in f32.
    #[must_use]
    pub fn in_f32(self) -> Self {
        match self {
            Self::Cpu => Self::Cpu,
            Self::Gpu(gpu) => Self::Gpu(Gpu { dtype: DType::F32, ..gpu }),
        }
    }

    /// The same device, with the forward products of models in one order of summation whatever stands beside a row: a
    /// library does not promise that, our kernel does. What has no library is exact anyhow.
    #[must_use]
    pub fn exact(self, exact: bool) -> Self {
        match self {
            Self::Cpu => Self::Cpu,
            Self::Gpu(gpu) => Self::Gpu(Gpu { exact, ..gpu }),
        }
    }

    /// The name that [`Device::parse`] takes.
    pub fn name(&self) -> &str {
        match self {
            Self::Cpu => "cpu",
            Self::Gpu(gpu) => gpu.driver.name(),
        }
    }

    /// What computes, in words.
    pub(crate) fn description(&self) -> String {
        match self {
            Self::Cpu => "CPU".to_owned(),
            Self::Gpu(gpu) => gpu.driver.description(),
        }
    }

    /// Whether a token's numbers have the same bits whatever else is in the batch.
    pub(crate) fn is_row_invariant(&self) -> bool {
        match self {
            Self::Cpu => true,
            Self::Gpu(gpu) => gpu.exact || gpu.driver.is_row_invariant(),
        }
    }

    /// A device that counts memory as this one does, without an end, and computes nothing.
    pub(crate) fn rehearsal(&self) -> Self {
        match self {
            Self::Cpu => Self::Gpu(Gpu::new(Arc::new(Rehearsal::of_host()), DType::F32)),
            Self::Gpu(gpu) => Self::Gpu(Gpu::new(Arc::new(Rehearsal::of(gpu.driver())), gpu.dtype)),
        }
    }

    /// A rehearsal of a GPU that need not be in this machine.
    pub(crate) fn imagined() -> Self {
        Self::Gpu(Gpu::new(Arc::new(Rehearsal::of_card()), DType::BF16))
    }

    /// Whether this is the CPU, or a rehearsal of it.
    pub(crate) fn is_cpu(&self) -> bool {
        self.name() == rehearsal::HOST
    }

    /// Bytes of a GPU's memory that a run may plan with: what is free, less the driver's reserve.
    pub(crate) fn memory_to_plan(&self) -> Result<usize> {
        let Self::Gpu(gpu) = self else { return Ok(usize::MAX) };
        let [free, total] = gpu.driver.memory()?;
        Ok(free.saturating_sub((gpu.driver.accounting().reserve * total as f64) as usize))
    }

    /// The same of a device of this kind with `total` bytes, all of them free.
    pub(crate) fn share_to_plan(&self, total: usize) -> usize {
        let Self::Gpu(gpu) = self else { return total };
        total.saturating_sub((gpu.driver.accounting().reserve * total as f64) as usize)
    }

    /// Bytes of a GPU's memory that are handed out.
    pub(crate) fn memory_used(&self) -> Result<usize> {
        let Self::Gpu(gpu) = self else { return Ok(0) };
        let [free, total] = gpu.driver.memory()?;
        Ok(total - free)
    }

    /// Bytes of a GPU's memory that were handed out at once, at most, since this was asked last.
    pub(crate) fn take_memory_peak(&self) -> Result<usize> {
        let Self::Gpu(gpu) = self else { return Ok(0) };
        gpu.driver.take_peak()
    }

    /// Bytes in use now, and at most since this was asked last: of a GPU's memory, or of this process's; none where the
    /// system does not say.
    pub(crate) fn memory_in_use(&self) -> Option<[usize; 2]> {
        if let Self::Gpu(_) = self {
            let [now, peak] = [self.memory_used().ok()?, self.take_memory_peak().ok()?];
            return Some([now, peak.max(now)]);
        }
        // The system's peak is of the whole process, and stages follow each other in one.
        process_memory().map(|[now, _]| [now; 2])
    }

    /// The type of weights and activations of models on this device.
    pub(crate) fn dtype(&self) -> DType {
        match self {
            Self::Cpu => DType::F32,
            Self::Gpu(gpu) => gpu.dtype,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    #[test]
    fn names_of_gpus() {
        for (name, number) in [("cuda", Some(0)), ("cuda:0", Some(0)), ("cuda:12", Some(12))] {
            assert_eq!(ordinal(name), number, "{name}");
        }
        for name in ["cuda:", "cuda:-1", "cuda:+1", "cuda: 1", "cuda1", "cudax", "CUDA", "cuda:99999999999999999999"] {
            assert_eq!(ordinal(name), None, "{name}");
            assert_eq!(Device::parse(name).unwrap_err().id(), "device-unknown", "{name}");
        }
    }

    #[test]
    fn auto_is_the_cpu_only_where_there_is_no_gpu() {
        let opened = |id| Err(Error::new(Code::Device, id, "it cannot be opened"));
        for id in NO_GPU {
            assert_eq!(Device::best(opened(id)), Ok(Device::Cpu));
        }
        for id in ["cuda-device-lost", "device-memory", "cuda-jit-missing"] {
            assert_eq!(Device::best(opened(id)).unwrap_err().id(), id);
        }
    }

    #[test]
    fn a_gpu_that_is_not_there_says_so() {
        let error = Device::parse("cuda:4095").unwrap_err();
        assert_eq!(error.code(), Code::Device, "{error}");
    }
}
