//! The loops, one file each: supervised fine-tuning, reward model, PPO. They share what stands here: a model that
//! learns, and the order in which rows are visited.

#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod demo;
#[cfg(test)]
mod device_faults;
#[cfg(test)]
mod emulated;
pub(crate) mod finite;
pub(crate) mod interrupt;
#[cfg(test)]
#[path = "tests.rs"]
mod loops;
pub mod metrics;
#[cfg(test)]
mod nonfinite;
pub(crate) mod plan;
pub mod ppo;
pub mod pretrained;
#[cfg(test)]
mod recompute;
pub mod reward;
mod rollout;
pub(crate) mod samples;
pub mod sft;
mod tensorboard;

use crate::config::{OptimizerArgs, Recompute};
use crate::data::packing::EpochOrder;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::params::{Grads, Part, Weights};
use crate::ops::global_norm::Clip;
use crate::optim::adamw::{self, AdamW, Settings};
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

    /// Masters, first and second moments: flat buffers of one layout.
    pub(crate) fn tensors(&self) -> [&Tensor; 3] {
        let [first, second] = self.optimizer.moments();
        [self.model.params.masters(), first, second]
    }

    /// Fills masters (and their rounded copy) and moments with what `source` returns for each of `kinds` and part.
    pub(crate) fn restore(
        &mut self,
        kinds: [&str; 3],
        source: &mut dyn FnMut(&str, &Part) -> Result<Vec<f32>>,
    ) -> Result<()> {
        self.model.params.fill(|part| source(kinds[0], part))?;
        for (kind, moments) in kinds[1..].iter().zip(self.optimizer.moments()) {
            self.model.params.layout().fill(&[moments], &mut |part| source(kind, part))?;
        }
        Ok(())
    }

    /// Steps of AdamW.
    pub(crate) fn optimizer_steps(&self) -> u64 {
        self.optimizer.steps()
    }

    /// Goes on after so many steps of AdamW.
    pub(crate) fn set_optimizer_steps(&mut self, steps: u64) {
        self.optimizer.set_steps(steps);
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

    /// Queues the gradient's norm. Its state is for [`Learner::check`], once the host has read it.
    pub(crate) fn clip(&self) -> Result<Clip> {
        self.grads.check_complete()?;
        self.optimizer.clip(&self.grads.flat)
    }

    /// The gradient's norm before clipping, from what the host has read; an error names the first tensor whose gradient
    /// is not finite.
    pub(crate) fn check(&self, state: &[f64]) -> Result<f64> {
        adamw::checked_norm(state).map_err(|error| {
            let layout = self.model.params.layout();
            error.at(finite::first_broken(&self.grads.flat, layout).unwrap_or("the sum of all squares").to_owned())
        })
    }

    /// Queues the parameters' move, after all checks of the step: from here on nothing refuses it.
    pub(crate) fn update(&mut self, lr: f64, clip: &Clip) -> Result<()> {
        let (params, grads) = (&self.model.params, &self.grads.flat);
        self.optimizer.step(params.masters(), params.rounded(), grads, lr, clip)
    }
}

/// The error with stage and step (from 1) before its place.
pub(crate) fn in_step(error: Error, stage: &str, step: usize) -> Error {
    error.before(format!("{stage} step {step}"))
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
