//! Rewards from scores and the KL to the reference, then advantages and returns. Formulas in `cpu/gae.rs`; source:
//! Schulman et al., "High-dimensional continuous control using generalized advantage estimation", 2016. No gradient:
//! what stands here is a constant of the update.

use crate::autograd::refuse_grad;
use crate::config::KlEstimator;
use crate::cpu;
use crate::device::kernel::{Entry, GAE};
use crate::device::launch::Launch;
use crate::device::{Device, Gpu};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::check;
use crate::tensor::{Tensor, floats};

const FORWARD: Entry = Entry::new(&GAE, "gae_forward_f32");
const FROM_REWARDS: Entry = Entry::new(&GAE, "gae_from_rewards_f32");
const REWARDS: Entry = Entry::new(&GAE, "rewards_f32");

/// Episodes, of which each is a warp's work, in a block.
const EPISODES: usize = 4;

/// What rewards are made of. Episode b is tokens offsets[b]..offsets[b + 1].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shaped<'a> {
    /// [N], and that of the reference [N].
    pub(crate) logprobs: [&'a Tensor; 2],
    /// [B]: what an episode earns at its last token.
    pub(crate) scores: &'a Tensor,
    pub(crate) offsets: &'a [i32],
    pub(crate) estimator: KlEstimator,
    pub(crate) kl_coef: f64,
}

/// Advantages [N] and returns [N].
#[derive(Debug)]
pub(crate) struct Gae {
    pub(crate) advantages: Tensor,
    pub(crate) returns: Tensor,
    /// From a GPU: of each episode's advantages count, mean, and sum of squared distances from it; [B, 3].
    pub(crate) statistics: Option<Tensor>,
}

impl Shaped<'_> {
    fn check(&self) -> Result<()> {
        let [logprobs, ref_logprobs] = self.logprobs;
        refuse_grad("rewards", &[logprobs, ref_logprobs, self.scores])?;
        let shapes = logprobs.len() == ref_logprobs.len() && self.scores.len() + 1 == self.offsets.len();
        check("rewards", shapes && end_at(self.offsets, logprobs), &[logprobs, ref_logprobs, self.scores])
    }

    fn estimator_number(&self) -> usize {
        match self.estimator {
            KlEstimator::K1 => 1,
            KlEstimator::K2 => 2,
            KlEstimator::K3 => 3,
        }
    }
}

/// rewards [N].
pub(crate) fn rewards(shaped: &Shaped<'_>) -> Result<Tensor> {
    shaped.check()?;
    let Shaped { logprobs: [logprobs, ref_logprobs], scores, offsets, estimator, kl_coef } = *shaped;
    match logprobs.device() {
        Device::Cpu => floats!(logprobs, T => {
            let mut out = cpu::pool::take::<T>(logprobs.len());
            let (l, r, s) = (logprobs.read::<T>(), ref_logprobs.read::<T>(), scores.read::<T>());
            cpu::gae::rewards(&mut out, [&l, &r, &s], offsets, estimator, kl_coef as T);
            Tensor::new(logprobs.device(), logprobs.shape(), out)
        }),
        Device::Gpu(gpu) => {
            let out = column(logprobs)?;
            episodes(gpu, REWARDS, scores.len())
                .out(&out)
                .tensor(logprobs)
                .tensor(ref_logprobs)
                .tensor(scores)
                .tensor(&offsets_of(logprobs, offsets)?)
                .sizes([scores.len(), shaped.estimator_number()])
                .scalar(kl_coef)
                .run()?;
            Ok(out)
        }
    }
}

/// From rewards [N] and values [N]; episode b is tokens offsets[b]..offsets[b + 1].
pub(crate) fn gae(rewards: &Tensor, values: &Tensor, offsets: &[i32], discounts: [f64; 2]) -> Result<Gae> {
    refuse_grad("gae", &[rewards, values])?;
    check("gae", rewards.len() == values.len() && end_at(offsets, rewards), &[rewards, values])?;
    let [gamma, lam] = discounts;
    match rewards.device() {
        Device::Cpu => floats!(rewards, T => {
            let [mut advantages, mut returns] = [(); 2].map(|()| cpu::pool::take::<T>(rewards.len()));
            let inputs = [&rewards.read::<T>()[..], &values.read::<T>()[..]];
            cpu::gae::forward(&mut advantages, &mut returns, inputs, offsets, [gamma as T, lam as T]);
            let tensor = |values| Tensor::new(rewards.device(), rewards.shape(), values);
            Ok(Gae { advantages: tensor(advantages)?, returns: tensor(returns)?, statistics: None })
        }),
        Device::Gpu(gpu) => {
            let (advantages, returns, statistics) = outputs(rewards, offsets.len() - 1)?;
            episodes(gpu, FROM_REWARDS, offsets.len() - 1)
                .out(&advantages)
                .out(&returns)
                .out(&statistics)
                .tensor(rewards)
                .tensor(values)
                .tensor(&offsets_of(rewards, offsets)?)
                .size(offsets.len() - 1)
                .scalar(gamma)
                .scalar(lam)
                .run()?;
            Ok(Gae { advantages, returns, statistics: Some(statistics) })
        }
    }
}

/// [`rewards`], then [`gae`] with values [N]: on a GPU one launch.
pub(crate) fn shaped_gae(shaped: &Shaped<'_>, values: &Tensor, discounts: [f64; 2]) -> Result<Gae> {
    let [logprobs, ref_logprobs] = shaped.logprobs;
    let Device::Gpu(gpu) = logprobs.device() else {
        return gae(&rewards(shaped)?, values, shaped.offsets, discounts);
    };
    shaped.check()?;
    refuse_grad("gae", &[values])?;
    check("gae", logprobs.len() == values.len(), &[logprobs, values])?;
    let (advantages, returns, statistics) = outputs(logprobs, shaped.scores.len())?;
    episodes(gpu, FORWARD, shaped.scores.len())
        .out(&advantages)
        .out(&returns)
        .out(&column(logprobs)?)
        .out(&statistics)
        .tensor(logprobs)
        .tensor(ref_logprobs)
        .tensor(shaped.scores)
        .tensor(values)
        .tensor(&offsets_of(logprobs, shaped.offsets)?)
        .sizes([shaped.scores.len(), shaped.estimator_number()])
        .scalar(shaped.kl_coef)
        .scalar(discounts[0])
        .scalar(discounts[1])
        .run()?;
    Ok(Gae { advantages, returns, statistics: Some(statistics) })
}

/// Whether the last episode ends where the column does.
fn end_at(offsets: &[i32], column: &Tensor) -> bool {
    offsets.last().is_some_and(|end| usize::try_from(*end) == Ok(column.len()))
}

fn episodes(gpu: &Gpu, entry: Entry, count: usize) -> Launch<'_> {
    Launch::new(gpu, entry).blocks(count.div_ceil(EPISODES), 32 * EPISODES)
}

fn column(like: &Tensor) -> Result<Tensor> {
    Tensor::empty(like.device(), DType::F32, &[like.len()])
}

fn outputs(like: &Tensor, episodes: usize) -> Result<(Tensor, Tensor, Tensor)> {
    Ok((column(like)?, column(like)?, Tensor::empty(like.device(), DType::F32, &[episodes, 3])?))
}

fn offsets_of(like: &Tensor, offsets: &[i32]) -> Result<Tensor> {
    Tensor::new(like.device(), &[offsets.len()], offsets.to_vec())
}
