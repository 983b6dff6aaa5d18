//! What there is to compute on: the driver, and the GPUs that it sees. Nothing here needs a context, and a machine
//! without any of it gets a sentence.

use std::ffi::c_int;

use cudarc::driver::sys::{self, CUdevice_attribute as Attribute};

use super::fault::check;
use crate::error::{Code, Error, Result};

/// The oldest driver, by the version of CUDA that it speaks: it has the stream-ordered allocator (11.2), the figures of
/// its pools (11.3), and takes the PTX that we ship (7.1: CUDA 11.1). 11.4 is its first long-term release (R470).
const CUDA_MIN: i32 = 11_040;

/// The oldest GPU: Ampere, for bf16 in the matrix units and asynchronous copies to shared memory.
const CAPABILITY_MIN: [i32; 2] = [8, 0];

/// What the driver says of one GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Properties {
    pub(crate) ordinal: usize,
    pub(crate) name: String,
    /// Compute capability, major and minor.
    pub(crate) capability: [i32; 2],
    /// Bytes of memory.
    pub(crate) total: usize,
    /// Whether it has the stream-ordered allocator.
    pub(crate) pools: bool,
}

/// Loads and starts the driver; the version of CUDA that it speaks, 1000 x major + 10 x minor.
///
/// # Errors
/// A driver that is missing, too old, or does not start.
pub(crate) fn start() -> Result<i32> {
    // Any other call into the binding panics where the library is missing.
    // SAFETY: loads libcuda, whose initialisers every CUDA program runs, and closes it again.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::new(Code::Device, "cuda-missing", "the NVIDIA driver is not there")
            .because("its library, libcuda.so.1, is not found on this machine")
            .fix(
                "install the NVIDIA driver, or use `--device cpu` (`--device emulated` runs the same kernels, slowly)",
            ));
    }
    let mut version: c_int = 0;
    // SAFETY: `version` may be written; this call is allowed before cuInit.
    check("asking for the driver's version", unsafe { sys::cuDriverGetVersion(&raw mut version) })?;
    // Before any symbol is used that an old driver lacks.
    judge_driver(version)?;
    // SAFETY: may be called any number of times, from any thread.
    check("starting the CUDA driver", unsafe { sys::cuInit(0) })?;
    Ok(version)
}

fn judge_driver(version: i32) -> Result<()> {
    // The stub for linking says 0 and then names itself when it is started.
    if version == 0 || version >= CUDA_MIN {
        return Ok(());
    }
    let [is, needs] = [version, CUDA_MIN].map(version_text);
    Err(Error::new(Code::Device, "cuda-driver-old", "the NVIDIA driver is too old")
        .because(format!("it speaks CUDA {is}; {needs} is needed (driver 470)"))
        .fix("update the NVIDIA driver, or use `--device cpu`"))
}

/// `12.4` of 12040.
pub(crate) fn version_text(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// The number of GPUs that the driver shows to this process; it must be started.
pub(crate) fn count() -> Result<usize> {
    let mut count: c_int = 0;
    // SAFETY: `count` may be written.
    check("counting the GPUs", unsafe { sys::cuDeviceGetCount(&raw mut count) })?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// The driver's handle of a GPU.
///
/// # Errors
/// A number that no GPU has, with the number of those that there are.
pub(super) fn device(ordinal: usize) -> Result<sys::CUdevice> {
    let count = count()?;
    let Some(number) = c_int::try_from(ordinal).ok().filter(|_| ordinal < count) else {
        return Err(absent(ordinal, count));
    };
    let mut device = 0;
    // SAFETY: `device` may be written, and `number` is below the number of devices.
    check("choosing a GPU", unsafe { sys::cuDeviceGet(&raw mut device, number) })?;
    Ok(device)
}

fn absent(ordinal: usize, count: usize) -> Error {
    let there = match count {
        0 => "the driver shows no GPU to this process".to_owned(),
        1 => "the driver shows 1 GPU to this process, cuda:0".to_owned(),
        n => format!("the driver shows {n} GPUs to this process, cuda:0 to cuda:{}", n - 1),
    };
    Error::new(Code::Device, "cuda-no-device", format!("there is no GPU {ordinal}"))
        .because(there)
        .fix("check `nvidia-smi` and CUDA_VISIBLE_DEVICES, choose another --device, or use `--device cpu`")
}

/// What the driver says of a GPU.
pub(crate) fn properties(ordinal: usize) -> Result<Properties> {
    let device = device(ordinal)?;
    let mut name = [0u8; 128];
    let mut total = 0;
    let doing = "asking what the GPU is";
    // SAFETY: `name` may be written and its length is given; `device` is one of the driver's.
    check(doing, unsafe { sys::cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as c_int, device) })?;
    // SAFETY: `total` may be written; `device` is one of the driver's.
    check(doing, unsafe { sys::cuDeviceTotalMem_v2(&raw mut total, device) })?;
    let attribute = |attribute: Attribute| -> Result<i32> {
        let mut value: c_int = 0;
        // SAFETY: `value` may be written; `device` is one of the driver's.
        check(doing, unsafe { sys::cuDeviceGetAttribute(&raw mut value, attribute, device) })?;
        Ok(value)
    };
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(Properties {
        ordinal,
        name: String::from_utf8_lossy(name).into_owned(),
        capability: [
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ],
        total,
        pools: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)? != 0,
    })
}

impl Properties {
    /// An error if the kernels cannot run on it.
    pub(crate) fn judge(&self) -> Result<()> {
        let [major, minor] = self.capability;
        let error = |why: String| {
            let what = format!("the GPU {} ({}) cannot be used", self.ordinal, self.name);
            let error = Error::new(Code::Device, "cuda-capability", what).because(why);
            Err(error.fix("use a GPU of the Ampere generation or newer, or `--device cpu`"))
        };
        if self.capability < CAPABILITY_MIN {
            return error(format!("its compute capability is {major}.{minor}; the kernels need 8.0"));
        }
        if !self.pools {
            return error(
                "its driver has no stream-ordered memory allocator (a virtual GPU without memory pools)".into(),
            );
        }
        Ok(())
    }
}

/// The release of the driver's kernel module, such as `550.54.14`, where the system tells it.
pub(crate) fn release() -> Option<String> {
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    release_in(&text).map(str::to_owned)
}

/// The first word that is numbers between dots.
fn release_in(text: &str) -> Option<&str> {
    let is_release = |word: &&str| {
        word.contains('.') && word.split('.').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
    };
    text.split_whitespace().find(is_release)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(capability: [i32; 2], pools: bool) -> Properties {
        Properties { ordinal: 1, name: "a card".into(), capability, total: 1 << 30, pools }
    }

    #[test]
    fn old_cards_are_refused_with_a_sentence() {
        assert_eq!(card([8, 0], true).judge(), Ok(()));
        assert_eq!(card([12, 0], true).judge(), Ok(()));
        for (refused, why) in [(card([7, 5], true), "is 7.5; the kernels need 8.0"), (card([9, 0], false), "pools")] {
            let error = refused.judge().unwrap_err();
            assert_eq!((error.code(), error.id()), (Code::Device, "cuda-capability"));
            assert!(error.to_string().contains(why), "{error}");
        }
    }

    #[test]
    fn old_drivers_are_refused_with_a_sentence() {
        assert_eq!(judge_driver(CUDA_MIN), Ok(()));
        assert_eq!(judge_driver(13_020), Ok(()));
        let error = judge_driver(10_020).unwrap_err();
        assert_eq!((error.code(), error.id()), (Code::Device, "cuda-driver-old"));
        assert!(error.to_string().contains("CUDA 10.2; 11.4 is needed"), "{error}");
    }

    #[test]
    fn a_number_too_high_says_how_many_there_are() {
        for (count, says) in [(0, "no GPU"), (1, "1 GPU to this process, cuda:0"), (4, "4 GPUs")] {
            let error = absent(7, count);
            assert_eq!((error.code(), error.id()), (Code::Device, "cuda-no-device"));
            assert!(error.to_string().contains(says), "{error}");
        }
    }

    #[test]
    fn the_drivers_release_is_found_in_its_words() {
        let closed = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n";
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (a@b)\n";
        assert_eq!(release_in(closed), Some("535.104.05"));
        assert_eq!(release_in(open), Some("570.86.15"));
        assert_eq!(release_in("nothing. of the kind"), None);
    }
}
