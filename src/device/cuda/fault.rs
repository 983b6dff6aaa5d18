//! What the CUDA driver answers, as errors of this crate: the code that decides the exit code, the driver's own name
//! and text, and a cure.

use std::ffi::{CStr, c_char};
use std::ptr;

use cudarc::driver::sys::{self, CUresult};

use crate::error::{Code, Error, Result};

/// A class of the driver's errors, by their numbers (`CUresult` in cuda.h), which never change.
struct Class {
    numbers: &'static [u32],
    code: Code,
    id: &'static str,
    /// What the driver's own text leaves out.
    meaning: &'static str,
    fix: &'static str,
}

const CLASSES: &[Class] = &[
    Class {
        // OUT_OF_MEMORY
        numbers: &[2],
        code: Code::Resources,
        id: "device-memory",
        meaning: "the memory of the GPU is full",
        fix: "use smaller batches or shorter texts, or end other programs on the GPU (`nvidia-smi` lists them)",
    },
    Class {
        // STUB_LIBRARY
        numbers: &[34],
        code: Code::Device,
        id: "cuda-missing",
        meaning: "the libcuda that was found is the toolkit's stand-in for linking, not a driver",
        fix: "take the folder `stubs` out of LD_LIBRARY_PATH, install the NVIDIA driver, or use `--device cpu`",
    },
    Class {
        // NO_DEVICE
        numbers: &[100],
        code: Code::Device,
        id: "cuda-no-device",
        meaning: "the driver sees no GPU",
        fix: "check `nvidia-smi` and CUDA_VISIBLE_DEVICES, give the GPU to the container, or use `--device cpu`",
    },
    Class {
        // CALL_REQUIRES_NEWER_DRIVER, UNSUPPORTED_PTX_VERSION, SYSTEM_DRIVER_MISMATCH, COMPAT_NOT_SUPPORTED_ON_DEVICE
        numbers: &[36, 222, 803, 804],
        code: Code::Device,
        id: "cuda-driver-old",
        meaning: "the driver is too old, or not the one that the running system was started with",
        fix: "update the NVIDIA driver; after an update restart the machine; or use `--device cpu`",
    },
    Class {
        // JIT_COMPILER_NOT_FOUND, JIT_COMPILATION_DISABLED
        numbers: &[221, 223],
        code: Code::Device,
        id: "cuda-jit-missing",
        meaning: "the driver's compiler for PTX is missing or switched off",
        fix: "install libnvidia-ptxjitcompiler of the driver's version, and unset CUDA_DISABLE_PTX_JIT",
    },
    Class {
        // INVALID_IMAGE, NO_BINARY_FOR_GPU, INVALID_PTX
        numbers: &[200, 209, 218],
        code: Code::Device,
        id: "cuda-module",
        meaning: "the driver cannot use this kernel's text on this GPU",
        fix: "update the NVIDIA driver, or use `--device cpu`; please report it with the output of `rlhf doctor`",
    },
    Class {
        // ILLEGAL_ADDRESS, LAUNCH_TIMEOUT, ASSERT, HARDWARE_STACK_ERROR, ILLEGAL_INSTRUCTION, MISALIGNED_ADDRESS,
        // INVALID_ADDRESS_SPACE, INVALID_PC, LAUNCH_FAILED
        numbers: &[700, 702, 710, 714, 715, 716, 717, 718, 719],
        code: Code::Device,
        id: "cuda-kernel-fault",
        meaning: "a kernel that was started before was stopped by the GPU; what this process had on the GPU is lost",
        fix: "with CUDA_LAUNCH_BLOCKING=1 the message names the kernel: please report it with `rlhf doctor`",
    },
    Class {
        // NOT_INITIALIZED, DEINITIALIZED, DEVICE_UNAVAILABLE, INVALID_DEVICE, INVALID_CONTEXT, ECC_UNCORRECTABLE,
        // NVLINK_UNCORRECTABLE, CONTAINED, OPERATING_SYSTEM, CONTEXT_IS_DESTROYED, SYSTEM_NOT_READY,
        // MPS_CONNECTION_FAILED to MPS_CLIENT_TERMINATED, UNKNOWN
        numbers: &[3, 4, 46, 101, 201, 214, 220, 226, 304, 709, 802, 805, 806, 807, 808, 809, 810, 999],
        code: Code::Device,
        id: "cuda-device-lost",
        meaning: "the GPU or its driver does not answer as it should; nothing that was on it can be used any more",
        fix: "look at `nvidia-smi` and at the system's log, restart the GPU's services or the machine",
    },
];

/// Everything else: a call that this program should not have made.
const OTHER: Class = Class {
    numbers: &[],
    code: Code::Failure,
    id: "cuda-call",
    meaning: "the driver refuses this call",
    fix: "please report it with the output of `rlhf doctor`",
};

/// An error unless `result` is success; `doing` is a phrase such as "copying to the GPU".
pub(super) fn check(doing: &str, result: CUresult) -> Result<()> {
    // A newer driver may know numbers that the binding does not: nothing but the number is looked at.
    match result as u32 {
        0 => Ok(()),
        number => Err(explain(doing, number, &name(result), &text(result))),
    }
}

/// The error for a number, with the driver's own name and text for it.
pub(crate) fn explain(doing: &str, number: u32, name: &str, text: &str) -> Error {
    let class = CLASSES.iter().find(|class| class.numbers.contains(&number)).unwrap_or(&OTHER);
    Error::new(class.code, class.id, format!("{doing} failed: {}", class.meaning))
        .because(format!("{name} ({number}): {text}"))
        .fix(class.fix)
}

fn name(result: CUresult) -> String {
    let mut name = ptr::null();
    // SAFETY: `name` may be written; the driver writes there a string that it never frees, or null.
    let _ = unsafe { sys::cuGetErrorName(result, &raw mut name) };
    owned(name).unwrap_or_else(|| "an unknown error".to_owned())
}

fn text(result: CUresult) -> String {
    let mut text = ptr::null();
    // SAFETY: as in `name`.
    let _ = unsafe { sys::cuGetErrorString(result, &raw mut text) };
    owned(text).unwrap_or_else(|| "the driver has no text for it".to_owned())
}

fn owned(text: *const c_char) -> Option<String> {
    // SAFETY: a pointer that is not null is one of the driver's constant strings, which end with a zero byte.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_decides_the_exit_code() {
        for (number, code, id) in [
            (2, Code::Resources, "device-memory"),
            (100, Code::Device, "cuda-no-device"),
            (222, Code::Device, "cuda-driver-old"),
            (700, Code::Device, "cuda-kernel-fault"),
            (719, Code::Device, "cuda-kernel-fault"),
            (999, Code::Device, "cuda-device-lost"),
            (1, Code::Failure, "cuda-call"),
            (998, Code::Failure, "cuda-call"),
        ] {
            let error = explain("copying to the GPU", number, "CUDA_ERROR_X", "in words");
            assert_eq!((error.code(), error.id()), (code, id), "{number}");
            let text = error.to_string();
            assert!(text.starts_with("copying to the GPU failed: "), "{text}");
            assert!(text.contains(&format!("CUDA_ERROR_X ({number}): in words")), "{text}");
            assert!(text.contains("\n  fix: "), "{text}");
        }
    }

    #[test]
    fn every_number_of_the_table_has_its_exit_code() {
        let memory: &[u32] = &[2];
        let device: &[u32] = &[
            3, 4, 34, 36, 46, 100, 101, 200, 201, 209, 214, 218, 220, 221, 222, 223, 226, 304, 700, 702, 709, 710, 714,
            715, 716, 717, 718, 719, 802, 803, 804, 805, 806, 807, 808, 809, 810, 999,
        ];
        let mut known: Vec<u32> = CLASSES.iter().flat_map(|class| class.numbers).copied().collect();
        known.sort_unstable();
        let code = |number: u32| explain("working", number, "CUDA_ERROR_X", "in words").code();
        for (numbers, expected) in [(memory, Code::Resources), (device, Code::Device)] {
            numbers.iter().for_each(|number| assert_eq!(code(*number), expected, "{number}"));
        }
        assert_eq!(known, [memory, device].concat());
        assert!((0..2000).filter(|number| !known.contains(number)).all(|number| code(number) == Code::Failure));
    }

    #[test]
    fn the_numbers_are_those_of_the_binding_and_stand_once() {
        for (number, constant) in [
            (2, CUresult::CUDA_ERROR_OUT_OF_MEMORY),
            (34, CUresult::CUDA_ERROR_STUB_LIBRARY),
            (100, CUresult::CUDA_ERROR_NO_DEVICE),
            (200, CUresult::CUDA_ERROR_INVALID_IMAGE),
            (221, CUresult::CUDA_ERROR_JIT_COMPILER_NOT_FOUND),
            (222, CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION),
            (700, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS),
            (716, CUresult::CUDA_ERROR_MISALIGNED_ADDRESS),
            (719, CUresult::CUDA_ERROR_LAUNCH_FAILED),
            (803, CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH),
            (999, CUresult::CUDA_ERROR_UNKNOWN),
        ] {
            assert_eq!(number, constant as u32);
        }
        let mut all: Vec<u32> = CLASSES.iter().flat_map(|class| class.numbers).copied().collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
