//! One file an operation: shape check, forward, backward, and one arm a device. Nothing above this room knows where
//! tensors live; nothing here knows what they mean.

pub(crate) mod adamw;
pub(crate) mod attention;
pub(crate) mod elementwise;
pub(crate) mod embedding;
pub(crate) mod gae;
pub(crate) mod gelu;
pub(crate) mod global_norm;
pub(crate) mod layer_norm;
pub(crate) mod matmul;
pub(crate) mod pairwise_loss;
pub(crate) mod ppo_loss;
pub(crate) mod rms_norm;
pub(crate) mod rope;
pub(crate) mod sample;
pub(crate) mod scalar_head;
pub(crate) mod swiglu;
pub(crate) mod token_logprobs;
pub(crate) mod whiten;

#[cfg(test)]
mod gradients;

use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// An error unless `condition` holds; says which operation and which shapes.
pub(crate) fn check(operation: &str, condition: bool, shapes: &[&Tensor]) -> Result<()> {
    if condition {
        return Ok(());
    }
    let shapes: Vec<_> = shapes.iter().map(|t| format!("{} {:?}", t.dtype(), t.shape())).collect();
    Err(Error::shape(format!("{operation} cannot work on {}", shapes.join(", "))))
}

/// The gradient of an output that must have one when its rule runs.
pub(crate) fn dout(grads: &[Option<Tensor>], output: usize) -> Result<&Tensor> {
    grads
        .get(output)
        .and_then(Option::as_ref)
        .ok_or_else(|| Error::failure("no-gradient", "a rule ran without its gradient"))
}
