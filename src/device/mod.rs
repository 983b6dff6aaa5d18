//! Where bytes live and operations run. Today the CPU; the drivers of a GPU and of its emulator enter here, and
//! nothing above `ops/` will notice.

use crate::error::{Error, Result};

/// A place that holds tensors and computes on them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    /// The reference: plain loops and a GEMM library on the host.
    Cpu,
}

impl Device {
    /// The device that `name` (`auto`, `cpu`) asks for; `auto` is the best one that this build and machine offer.
    ///
    /// # Errors
    /// A name that is not known, or a device that is not there.
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "auto" | "cpu" => Ok(Self::Cpu),
            _ if name.starts_with("cuda") || name == "emulated" => Err(Error::new(
                crate::error::Code::Device,
                "device-unavailable",
                format!("the device `{name}` is not available"),
            )
            .because("this version computes on the CPU; its GPU kernels are not in the tree yet")
            .fix("use `--device cpu` or `--device auto`")),
            _ => Err(Error::usage("device-unknown", format!("`{name}` is not a device")).fix("use `auto` or `cpu`")),
        }
    }

    /// The name that [`Device::parse`] takes.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
        }
    }
}
