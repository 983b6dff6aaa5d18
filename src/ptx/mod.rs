//! A GPU in plain Rust: executes the PTX that is shipped, checks it for faults that a GPU hides, and counts what it
//! does. Text -> [`Module::parse`] -> dense program -> [`Machine::launch`] over [`Memory`] -> [`Counters`], or an
//! [`Error`] that names kernel, PTX line, CUDA line and thread. What is not executed is an error when the text loads.
//!
//! A block's warps of 32 lanes run one after the other until they wait; lanes that part at a branch join at its
//! immediate post-dominator. Asynchronous copies land as late as the rules allow. A race is two accesses that no
//! barrier orders, in whatever order they ran. This module imports nothing from the rest of the crate.

#![forbid(unsafe_code)]

mod access;
mod alu;
mod alu64;
mod ast;
mod block;
mod collective;
mod convert;
mod copy;
mod counters;
mod error;
mod float;
mod flow;
mod inst;
mod lex;
mod lower;
mod lower_arith;
mod lower_memory;
mod machine;
mod matrix;
mod memory;
mod module;
mod parse;
mod run;
mod shared;
mod warp;

pub use ast::Param;
pub use counters::{Counters, LineCount, Traffic};
pub use error::{Error, Fault, Kind, Result};
pub use inst::{Kernel, Work};
pub use machine::{Arg, Machine, Noise, Options};
pub use memory::Memory;
pub use module::Module;

#[cfg(test)]
mod tests_faults;
#[cfg(test)]
mod tests_kernels;
#[cfg(test)]
mod tests_rows;
#[cfg(test)]
mod tests_speed;
#[cfg(test)]
mod tests_text;
#[cfg(test)]
mod tests_warps;
