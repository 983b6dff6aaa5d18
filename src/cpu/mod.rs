//! The specification: one file an operation, plain loops over slices, generic over f32 and f64. No tensor and no device
//! is known here. Fast forms stand only in [`matmul`], [`attention`] and [`math`], each held against its plain f64
//! form; everything else is meant to be checked by eye.
//!
//! Rows are worked on in fixed chunks of [`parallel::CHUNK`] rows, and partial sums of chunks are added in order, so
//! that results do not depend on the number of threads.

pub(crate) mod adamw;
pub(crate) mod advance;
pub(crate) mod append;
pub(crate) mod attention;
pub(crate) mod column_sum;
pub(crate) mod elementwise;
pub(crate) mod embedding;
pub(crate) mod gae;
pub(crate) mod gelu;
pub(crate) mod global_norm;
pub(crate) mod layer_norm;
pub(crate) mod math;
pub(crate) mod matmul;
pub(crate) mod pairwise_loss;
pub(crate) mod parallel;
pub(crate) mod pool;
pub(crate) mod ppo_loss;
pub(crate) mod rms_norm;
pub(crate) mod rope;
pub(crate) mod sample;
pub(crate) mod scalar_head;
pub(crate) mod swiglu;
pub(crate) mod token_logprobs;
pub(crate) mod whiten;
