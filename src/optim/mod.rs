//! From gradients to new parameters: clipping, AdamW, and the learning rate's schedule.

#![forbid(unsafe_code)]

pub(crate) mod adamw;
pub(crate) mod schedule;
