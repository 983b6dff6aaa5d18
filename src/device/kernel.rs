//! The shipped PTX: one text for each file of `kernels/`, compiled into the binary, and its entries.

#![forbid(unsafe_code)]

use std::sync::OnceLock;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ptx;

/// A PTX text, which holds one kernel or several: one of the crate's own, or a user's.
///
/// It is parsed when an entry of it is first launched, and stays; hence a `static`, or [`Box::leak`] for a text that is
/// made at run time.
///
/// ```
/// static TEXT: rlhf::custom::Source = rlhf::custom::Source::new("nothing", ".version 7.1\n.target sm_80\n");
/// ```
#[derive(Debug)]
pub struct Source {
    /// What errors call it; of ours, the stem of the `.cu` file.
    pub(crate) name: &'static str,
    /// PTX for compute_80.
    pub(crate) text: &'static str,
    /// Whether a card is handed it: ours are, and those that a user answers for.
    pub(super) for_cuda: bool,
    parsed: OnceLock<std::result::Result<ptx::Module, ptx::Error>>,
}

macro_rules! sources {
    ($($constant:ident $name:literal),* $(,)?) => {
        $(pub(crate) static $constant: Source =
            Source::ours($name, include_str!(concat!("../../kernels/ptx/", $name, ".ptx")));)*

        /// All texts of the crate, by name.
        pub(crate) static SOURCES: &[&Source] = &[$(&$constant),*];
    };
}
sources! {
    ADAMW "adamw",
    ADVANCE "advance",
    APPEND "append",
    ATTENTION "attention",
    COLUMN_SUM "column_sum",
    ELEMENTWISE "elementwise",
    EMBEDDING "embedding",
    GAE "gae",
    GELU "gelu",
    GEMM "gemm",
    GLOBAL_NORM "global_norm",
    LAYER_NORM "layer_norm",
    PAIRWISE_LOSS "pairwise_loss",
    PPO_LOSS "ppo_loss",
    RMS_NORM "rms_norm",
    ROPE "rope",
    SAMPLE "sample",
    SCALAR_HEAD "scalar_head",
    SWIGLU "swiglu",
    TOKEN_LOGPROBS "token_logprobs",
    WHITEN "whiten",
}

impl Source {
    /// A text for the emulator, which checks every access: a card refuses it (see [`Source::for_cuda`]). `name` is what
    /// errors call it. Whether it is PTX that we understand is found out at the first launch.
    pub const fn new(name: &'static str, text: &'static str) -> Self {
        Self { name, text, for_cuda: false, parsed: OnceLock::new() }
    }

    const fn ours(name: &'static str, text: &'static str) -> Self {
        Self { name, text, for_cuda: true, parsed: OnceLock::new() }
    }

    /// The text as the emulator reads it; also the parameter lists that every launch is checked against.
    pub(crate) fn module(&self) -> Result<&ptx::Module> {
        let parsed = self.parsed.get_or_init(|| ptx::Module::parse(self.text)).as_ref();
        parsed.map_err(|error| Error::failure("kernel-text", error.to_string()).at(self.name))
    }

    /// What follows a directive such as `.target` in the text's head.
    fn directive(&self, name: &str) -> Option<&'static str> {
        let argument = |line: &'static str| line.strip_prefix(name).map(str::trim);
        self.text.lines().take_while(|line| !line.contains('{')).find_map(argument)
    }

    /// The version of the PTX language that it is written in.
    pub(crate) fn ptx_version(&self) -> Option<&'static str> {
        self.directive(".version ")
    }

    /// The architecture that it is written for, such as `sm_80`.
    pub(crate) fn target(&self) -> Option<&'static str> {
        self.directive(".target ").and_then(|target| target.split([',', ' ']).next())
    }

    /// Whether a GPU of this compute capability can run it: newer ones can, unless the text is for one architecture.
    pub(crate) fn runs_on(&self, capability: [i32; 2]) -> bool {
        let Some(target) = self.target().and_then(|target| target.strip_prefix("sm_")) else { return false };
        let number = target.trim_end_matches(|c: char| !c.is_ascii_digit());
        let Ok(needed) = number.parse::<i32>() else { return false };
        let is = capability[0] * 10 + capability[1];
        if number.len() == target.len() { is >= needed } else { is == needed }
    }

    /// The hash that the text's first line carries: of its sources and of the compiler's options.
    pub(crate) fn source_hash(&self) -> &'static str {
        self.text.lines().next().and_then(|line| line.strip_prefix("// sha256 ")).unwrap_or("")
    }
}

/// One entry of a text.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) source: &'static Source,
    /// `<op>_<forward|backward>[_<part>]_<dtype>`.
    pub(crate) name: &'static str,
}

impl Entry {
    pub(crate) const fn new(source: &'static Source, name: &'static str) -> Self {
        Self { source, name }
    }

    /// The entry as the emulator reads it.
    pub(crate) fn parsed(&self) -> Result<&'static ptx::Kernel> {
        let error = |e: ptx::Error| Error::failure("kernel-missing", e.to_string()).at(self.source.name);
        self.source.module()?.kernel(self.name).map_err(error)
    }
}

/// A kernel that exists for both float types of the device.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kernel {
    bf16: Entry,
    f32: Entry,
}

impl Kernel {
    pub(crate) const fn new(source: &'static Source, bf16: &'static str, f32: &'static str) -> Self {
        Self { bf16: Entry::new(source, bf16), f32: Entry::new(source, f32) }
    }

    /// The entry for tensors of `dtype`.
    pub(crate) fn of(&self, dtype: DType) -> Result<Entry> {
        match dtype {
            DType::BF16 => Ok(self.bf16),
            DType::F32 => Ok(self.f32),
            other => Err(Error::shape(format!("{} has no form for {other}", self.f32.name))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_says_what_it_runs_on() {
        let of = |text| Source::new("a", text);
        let portable = of("// sha256 ab\n\n.version 7.1\n.target sm_80\n.address_size 64\n");
        assert_eq!((portable.ptx_version(), portable.target()), (Some("7.1"), Some("sm_80")));
        assert_eq!([[7, 5], [8, 0], [8, 9], [12, 0]].map(|c| portable.runs_on(c)), [false, true, true, true]);
        let hopper = of(".version 8.0\n.target sm_90a, debug\n");
        assert_eq!([[8, 0], [9, 0], [10, 0]].map(|c| hopper.runs_on(c)), [false, true, false]);
        let empty = of("");
        assert_eq!((empty.target(), empty.runs_on([9, 0])), (None, false));
    }
}
