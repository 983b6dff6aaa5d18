//! Rewards shaped by the KL to the reference, and generalised advantage estimation (Schulman et al., 2016), per episode
//! of a packed batch. With d = logprob - ref_logprob: r_t = -kl_coef k(d_t), plus the episode's score at its last
//! token; delta_t = r_t + gamma V_(t+1) - V_t, A_t = delta_t + gamma lam A_(t+1), V after the last token 0; returns = A
//! + V.

#![forbid(unsafe_code)]

use super::math::Real;
use crate::config::KlEstimator;

impl KlEstimator {
    /// The estimate for one token's d = logprob - ref_logprob.
    pub(crate) fn of<T: Real>(self, d: T) -> T {
        match self {
            Self::K1 => d,
            Self::K2 => T::of(0.5) * d * d,
            Self::K3 => (-d).exp() - T::ONE + d,
        }
    }
}

/// rewards [N]: the KL penalty of every token, and each episode's score at its last token. Episode b is tokens
/// offsets[b]..offsets[b + 1].
pub(crate) fn rewards<T: Real>(
    rewards: &mut [T],
    [logprobs, ref_logprobs, scores]: [&[T]; 3],
    offsets: &[i32],
    estimator: KlEstimator,
    kl_coef: T,
) {
    for (n, r) in rewards.iter_mut().enumerate() {
        *r = -kl_coef * estimator.of(logprobs[n] - ref_logprobs[n]);
    }
    for (episode, score) in offsets.windows(2).zip(scores) {
        if episode[1] > episode[0] {
            rewards[episode[1] as usize - 1] += *score;
        }
    }
}

/// advantages [N] and returns [N] from rewards [N], values [N].
pub(crate) fn forward<T: Real>(
    advantages: &mut [T],
    returns: &mut [T],
    [rewards, values]: [&[T]; 2],
    offsets: &[i32],
    [gamma, lam]: [T; 2],
) {
    for episode in offsets.windows(2) {
        let (mut next_value, mut advantage) = (T::ZERO, T::ZERO);
        for t in (episode[0] as usize..episode[1] as usize).rev() {
            let delta = rewards[t] + gamma * next_value - values[t];
            advantage = delta + gamma * lam * advantage;
            advantages[t] = advantage;
            returns[t] = advantage + values[t];
            next_value = values[t];
        }
    }
}
