//! The loops, one file each: supervised fine-tuning, reward model, PPO. They share what stands here: a model that
//! learns, and the order in which rows are visited.

pub mod demo;
#[cfg(test)]
mod emulated;
#[cfg(test)]
#[path = "tests.rs"]
mod loops;
pub mod metrics;
pub(crate) mod plan;
pub mod ppo;
#[cfg(test)]
mod recompute;
pub mod reward;
mod rollout;
pub mod sft;

use crate::config::{OptimizerArgs, Recompute};
use crate::data::packing::EpochOrder;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::params::{Grads, Params, Weights};
use crate::optim::adamw::{AdamW, Settings};
use crate::optim::schedule::Schedule;
use crate::random::{Philox, Stage};
use crate::tensor::Tensor;

/// A model with its gradients, optimizer and schedule.
pub(crate) struct Learner {
    pub(crate) model: Model,
    grads: Grads,
    optimizer: AdamW,
    schedule: Schedule,
    recompute: Recompute,
}

impl Learner {
    /// `model` under the optimizer that `args` describe, with `adam_epsilon` where they name none, and a learning rate
    /// that peaks at `learning_rate` and ends after `total_steps` steps of the schedule.
    pub(crate) fn new(
        model: Model,
        args: &OptimizerArgs,
        adam_epsilon: f64,
        learning_rate: f64,
        total_steps: usize,
    ) -> Result<Self> {
        let settings = Settings {
            beta1: args.adam_beta1,
            beta2: args.adam_beta2,
            eps: args.adam_epsilon.unwrap_or(adam_epsilon),
            weight_decay: args.weight_decay,
            max_grad_norm: args.max_grad_norm,
        };
        let schedule = Schedule {
            kind: args.lr_scheduler_type,
            learning_rate,
            min_lr_ratio: args.min_lr_ratio,
            warmup_steps: args.warmup_steps,
            total_steps,
        };
        let optimizer = AdamW::new(model.params.masters(), model.params.layout().matrices(), settings)?;
        let recompute = args.recompute;
        Ok(Self { grads: Grads::new(&model.params)?, optimizer, schedule, recompute, model })
    }

    /// The parameters with empty gradient slots: the start of an optimizer step.
    pub(crate) fn begin(&self) -> Result<Weights> {
        self.grads.reset();
        Ok(self.model.trained(&self.grads)?.recomputing(self.recompute))
    }

    /// The learning rate of `step` of the schedule.
    pub(crate) fn lr(&self, step: usize) -> f64 {
        self.schedule.at(step)
    }

    /// Queues the parameters' move; its state is for [`Learner::settle`], once the host has read it.
    pub(crate) fn update(&self, lr: f64) -> Result<Tensor> {
        self.grads.check_complete()?;
        let (params, grads) = (&self.model.params, &self.grads);
        self.optimizer.step(params.masters(), params.rounded(), &grads.flat, lr)
    }

    /// Ends the step that [`Learner::update`] queued; returns the gradient's norm before clipping.
    pub(crate) fn settle(&mut self, state: &[f64]) -> Result<f64> {
        let (params, grads) = (&self.model.params, &self.grads);
        self.optimizer.settle(state).map_err(|error| {
            let finite =
                |part, offset| Params::stored(&grads.flat, part, offset).is_ok_and(|g| g.iter().all(|x| x.is_finite()));
            match params.layout().parts().find(|(part, offset)| !finite(part, *offset)) {
                Some((part, _)) => error.at(part.name.clone()),
                None => error.at("the sum of all squares"),
            }
        })
    }
}

/// The error with stage and step (from 1) before its place.
pub(crate) fn in_step(error: Error, stage: &str, step: usize) -> Error {
    let place = error.place().map(|place| format!(", {place}")).unwrap_or_default();
    error.at(format!("{stage} step {step}{place}"))
}

/// The order in which `rows` rows are visited in `epoch`: a permutation that depends on the seed and the epoch alone.
pub(crate) fn permutation(rows: usize, seed: u64, stage: Stage, epoch: u32) -> Vec<usize> {
    EpochOrder::new(rows, &mut Philox::new(seed, stage, epoch, 0)).as_slice().to_vec()
}

/// Endless batches over `rows` rows, a fresh permutation each epoch; the last batch of an epoch may be smaller.
pub(crate) struct Batches {
    rows: usize,
    size: usize,
    seed: u64,
    epoch: u32,
    order: Vec<usize>,
}

impl Batches {
    pub(crate) fn new(rows: usize, size: usize, seed: u64) -> Self {
        Self { rows, size, seed, epoch: 0, order: permutation(rows, seed, Stage::Shuffle, 0) }
    }

    /// The rows of batch number `step`, and which share of an epoch is behind it.
    pub(crate) fn batch(&mut self, step: usize) -> (Vec<usize>, f64) {
        let per_epoch = self.rows.div_ceil(self.size);
        let (epoch, at) = ((step / per_epoch) as u32, step % per_epoch * self.size);
        if epoch != self.epoch {
            (self.epoch, self.order) = (epoch, permutation(self.rows, self.seed, Stage::Shuffle, epoch));
        }
        let rows = self.order[at..(at + self.size).min(self.rows)].to_vec();
        let share = f64::from(epoch) + (at + rows.len()) as f64 / self.rows as f64;
        (rows, share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_visits_every_row_once() {
        let mut batches = Batches::new(10, 4, 1);
        let mut seen = [0; 10];
        let sizes: Vec<usize> = (0..6)
            .map(|step| {
                let (rows, _) = batches.batch(step);
                rows.iter().for_each(|r| seen[*r] += 1);
                rows.len()
            })
            .collect();
        assert_eq!((sizes, seen), (vec![4, 4, 2, 4, 4, 2], [2; 10]));
        assert_eq!(batches.batch(2).1, 1.0);
        assert_ne!(permutation(50, 1, Stage::Shuffle, 0), permutation(50, 1, Stage::Shuffle, 1));
    }
}
