//! The crate's integration tests: one binary, so that it links once.

#[cfg(test)]
mod badinput;
#[cfg(test)]
mod cli;
#[cfg(test)]
mod knobs;
#[cfg(test)]
mod support;
