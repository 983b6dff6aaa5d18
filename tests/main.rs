//! The crate's integration tests: one binary, so that it links once.

// A test's helpers stop it where a file is not there or a program does not start.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic)]

mod badinput;
mod cli;
mod demo;
mod knobs;
mod support;
mod tidy;
