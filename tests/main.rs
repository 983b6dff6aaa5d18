//! The crate's integration tests: one binary, so that it links once.

// A test's helpers stop it where a file is not there or a program does not start.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic)]

mod badinput;
mod chat;
mod cli;
mod data;
mod demo;
mod eval;
mod examples;
mod faults;
mod fuzzing;
mod isolation;
mod knobs;
mod licences;
mod report;
mod resume;
mod support;
mod tidy;
mod transformers;
mod tutorial;
