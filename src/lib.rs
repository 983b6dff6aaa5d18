//! wip
#![allow(dead_code)]
mod autograd;
mod cpu;
pub mod device;
pub mod dtype;
pub mod error;
mod ops;
pub mod random;
pub mod tensor;
