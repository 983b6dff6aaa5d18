//! The crate's integration tests: one binary, so that it links once.

// A test's helpers stop it where a file is not there or a program does not start.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic)]

mod badinput;
mod cli;
mod demo;
mod faults;
mod fuzzing;
mod isolation;
mod knobs;
mod licences;
mod resume;
mod support;
mod tidy;
