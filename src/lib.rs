//! wip
#![allow(dead_code)]
mod autograd;
pub mod cli;
pub mod config;
mod cpu;
pub mod data;
pub mod device;
pub mod disk;
pub mod dtype;
pub mod error;
pub mod model;
mod objective;
mod ops;
mod optim;
pub mod random;
pub mod tensor;
pub mod train;
