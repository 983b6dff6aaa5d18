//! Element types, as run-time values: a tensor is not generic.

#![forbid(unsafe_code)]

use std::fmt;

/// The type of a tensor's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum DType {
    /// 64-bit float: the golden reference of tests.
    F64,
    /// 32-bit float: everything the CPU computes; parameters' gradients, masters and moments everywhere.
    F32,
    /// bfloat16: weights, activations and logits on a GPU, where arithmetic is f32; never on the CPU.
    BF16,
    /// 32-bit integer: token ids, positions, offsets.
    I32,
}

impl DType {
    /// Bytes of one element.
    pub(crate) fn bytes(self) -> usize {
        match self {
            DType::F64 => 8,
            DType::F32 | DType::I32 => 4,
            DType::BF16 => 2,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F64 => "f64",
            DType::F32 => "f32",
            DType::BF16 => "bf16",
            DType::I32 => "i32",
        })
    }
}
