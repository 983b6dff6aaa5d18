//! AdamW with decoupled weight decay on matrices only, and the global gradient norm clipped on the way in. A step has
//! two halves: the norm is queued, and only when the host has read and checked it, with all else that must be finite,
//! is the move queued. What is refused has changed nothing.

use crate::error::{Code, Error, Result};
use crate::ops;
use crate::ops::adamw::{Step, Weights};
use crate::ops::global_norm::Clip;
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

    /// Steps that were counted; they correct the moments' bias.
    pub(crate) fn steps(&self) -> u64 {
        self.steps
    }

    /// Goes on after `steps` steps, of which the moments are the state.
    pub(crate) fn set_steps(&mut self, steps: u64) {
        self.steps = steps;
    }

    /// Queues the norm of `grads`. Its state is for [`checked_norm`], once the host has read it.
    ///
    /// # Errors
    /// Of the device.
    pub(crate) fn clip(&self, grads: &Tensor) -> Result<Clip> {
        ops::global_norm::clip(grads, self.settings.max_grad_norm)
    }

    /// Queues the move of `params` against `grads` at learning rate `lr`, and of their copy `rounded`. What `clip`
    /// found must have passed [`checked_norm`].
    ///
    /// # Errors
    /// Of the device.
    pub(crate) fn step(
        &mut self,
        params: &Tensor,
        rounded: Option<&Tensor>,
        grads: &Tensor,
        lr: f64,
        clip: &Clip,
    ) -> Result<()> {
        let Settings { beta1, beta2, eps, weight_decay, .. } = self.settings;
        let step = Step { lr, beta1, beta2, eps, weight_decay, t: self.steps + 1 };
        let weights = Weights { masters: params, rounded, decayed: self.decayed };
        ops::adamw::adamw(&weights, [&self.m, &self.v], grads, &step, clip)?;
        self.steps += 1;
        Ok(())
    }
}

/// The gradient's norm before clipping, from the state of a [`Clip`].
///
/// # Errors
/// A gradient that is not finite.
pub(crate) fn checked_norm(state: &[f64]) -> Result<f64> {
    match state {
        // The scale and the flag too: the step multiplies with the one and obeys the other.
        [_, _, norm] if state.iter().all(|x| x.is_finite()) => Ok(*norm),
        _ => Err(Error::new(Code::NonFinite, "gradient-not-finite", "a gradient is not a finite number")
            .because("the loss or an activation has overflowed; parameters and moments are as they were")
            .fix("lower the learning rate, or look at the data of this step")),
    }
}
