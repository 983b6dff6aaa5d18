//! From gradients to new parameters: clipping, AdamW, and the learning rate's schedule.

pub(crate) mod adamw;
pub(crate) mod schedule;
