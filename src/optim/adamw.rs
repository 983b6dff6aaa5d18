//! AdamW with decoupled weight decay on matrices only, and the global gradient norm clipped on the way in. A gradient
//! that is not finite stops the step before anything is changed.

use crate::error::{Code, Error, Result};
use crate::ops;
use crate::ops::adamw::{Step, Weights};
use crate::tensor::Tensor;

/// The optimizer's settings; units as in Loshchilov and Hutter, 2019.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Settings {
    pub(crate) beta1: f64,
    pub(crate) beta2: f64,
    pub(crate) eps: f64,
    pub(crate) weight_decay: f64,
    /// The gradient's norm is scaled down to this; 0 turns clipping off.
    pub(crate) max_grad_norm: f64,
}

/// First and second moments beside a flat parameter buffer.
#[derive(Debug)]
pub(crate) struct AdamW {
    settings: Settings,
    /// Elements before this one decay (matrices); those from here on do not (biases and norms).
    decayed: usize,
    m: Tensor,
    v: Tensor,
    steps: u64,
}

impl AdamW {
    /// Moments of zero for the flat buffer `params`, of which the first `decayed` elements decay.
    ///
    /// # Errors
    /// Memory of the device.
    pub(crate) fn new(params: &Tensor, decayed: usize, settings: Settings) -> Result<Self> {
        let zeros = || Tensor::zeros(params.device(), params.dtype(), params.shape());
        Ok(Self { settings, decayed, m: zeros()?, v: zeros()?, steps: 0 })
    }

    /// Both moments.
    pub(crate) fn moments(&self) -> [&Tensor; 2] {
        [&self.m, &self.v]
    }

    /// Queues the move of `params` against `grads` at learning rate `lr`, and of their copy `rounded`. Nothing
    /// changes if the gradient is not finite: the state [3] that comes back tells [`AdamW::settle`], which must follow.
    ///
    /// # Errors
    /// Of the device.
    pub(crate) fn step(&self, params: &Tensor, rounded: Option<&Tensor>, grads: &Tensor, lr: f64) -> Result<Tensor> {
        let Settings { beta1, beta2, eps, weight_decay, max_grad_norm } = self.settings;
        let clip = ops::global_norm::clip(grads, max_grad_norm)?;
        let step = Step { lr, beta1, beta2, eps, weight_decay, t: self.steps + 1 };
        let weights = Weights { masters: params, rounded, decayed: self.decayed };
        ops::adamw::adamw(&weights, [&self.m, &self.v], grads, &step, &clip)?;
        Ok(clip.state)
    }

    /// Counts the step of which this is the state; returns the gradient's norm before clipping.
    ///
    /// # Errors
    /// A gradient that is not finite; parameters and moments are as they were.
    pub(crate) fn settle(&mut self, state: &[f64]) -> Result<f64> {
        match state {
            [_, _, norm] if norm.is_finite() => {
                self.steps += 1;
                Ok(*norm)
            }
            _ => Err(Error::new(Code::NonFinite, "gradient-not-finite", "a gradient is not a finite number")
                .because("the loss or an activation has overflowed; the parameters are as they were before this step")
                .fix("lower the learning rate, or look at the data of this step")),
        }
    }
}
