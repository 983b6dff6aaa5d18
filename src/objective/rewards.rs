//! From scores to per-token rewards: the missing-EOS penalty, clipping, the KL penalty, and the controller that may
//! move its coefficient.

use crate::config::KlEstimator;

pub(crate) use crate::ops::gae::Shaped;

/// What happens to a score before it becomes a reward.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Shaping {
    /// Mean and standard deviation that scores are brought to 0 and 1 with.
    pub(crate) normalize: Option<[f64; 2]>,
    /// Subtracted where a response did not end by itself.
    pub(crate) missing_eos_penalty: Option<f64>,
    /// Cut to plus and minus this.
    pub(crate) score_clip: Option<f64>,
}

impl Shaping {
    /// The shaped score: normalised, then penalised, then clipped.
    pub(crate) fn apply(&self, score: f64, stopped: bool) -> f64 {
        let score = self.normalize.map_or(score, |[mean, std]| (score - mean) / std.max(1e-8));
        let score = score - self.missing_eos_penalty.filter(|_| !stopped).unwrap_or(0.0);
        self.score_clip.map_or(score, |clip| if score.is_nan() { score } else { score.clamp(-clip, clip) })
    }
}

/// KL per episode: the sum over its tokens of the estimate.
pub(crate) fn episode_kl(logprobs: &[f32], ref_logprobs: &[f32], estimator: KlEstimator) -> f64 {
    let token = |(l, r): (&f32, &f32)| estimator.of(f64::from(*l) - f64::from(*r));
    logprobs.iter().zip(ref_logprobs).map(token).sum()
}

/// The price of a nat of KL; it follows a target if there is one (Ziegler et al., 2019, section 2.2).
#[derive(Debug, Clone, Copy)]
pub(crate) struct KlController {
    pub(crate) coefficient: f64,
    pub(crate) target: Option<f64>,
    pub(crate) horizon: f64,
}

impl KlController {
    /// Moves the coefficient after `episodes` episodes whose mean KL was `kl`.
    pub(crate) fn update(&mut self, kl: f64, episodes: usize) {
        if let Some(target) = self.target {
            let error = (kl / target - 1.0).clamp(-0.2, 0.2);
            self.coefficient *= 1.0 + error * episodes as f64 / self.horizon;
        }
    }
}
