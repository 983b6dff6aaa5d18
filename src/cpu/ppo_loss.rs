//! PPO's clipped losses (Schulman et al., 2017) per response token, with their gradients and statistics in one pass.
//! ratio = exp(clamp(logprob - old, -20, 20)); policy loss max(-A ratio, -A clip(ratio, 1 - low, 1 + high)), with dual
//! clip at most -A c where A < 0; value loss 1/2 max((V - R)^2, (clip(V, V_old - e, V_old + e) - R)^2).
//! All means are over the tokens of the whole optimizer batch: `scale` is 1 / that number.

use super::math::Real;
use super::parallel;

/// The clip ranges and weights of the loss.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Coefficients {
    pub(crate) cliprange_low: f64,
    pub(crate) cliprange_high: f64,
    pub(crate) cliprange_value: f64,
    pub(crate) vf_coef: f64,
    pub(crate) dual_clip: Option<f64>,
    /// 1 / number of response tokens in the optimizer batch.
    pub(crate) scale: f64,
}

/// What one token knows, in the order of the inputs' columns.
pub(crate) struct Inputs<'a, T> {
    pub(crate) logprobs: &'a [T],
    pub(crate) old_logprobs: &'a [T],
    pub(crate) advantages: &'a [T],
    pub(crate) values: &'a [T],
    pub(crate) old_values: &'a [T],
    pub(crate) returns: &'a [T],
}

/// The sums over tokens that the loss hands back, in this order: policy loss, value loss, 1/2 (new - old)^2, clipped
/// policy terms, clipped value terms, ratio, ratio^2. Not divided by anything.
pub(crate) const STATISTICS: usize = 7;

/// The statistics [STATISTICS] of these tokens. The loss is scale (policy sum + vf_coef value sum).
pub(crate) fn forward<T: Real>(statistics: &mut [T], inputs: &Inputs<'_, T>, c: &Coefficients) {
    parallel::sum_rows(
        statistics,
        inputs.logprobs.len(),
        #[inline(always)]
        |rows, sum| {
            for n in rows {
                let token = Token::new(inputs, n, c);
                let delta = inputs.logprobs[n] - inputs.old_logprobs[n];
                let terms = [
                    token.policy_loss,
                    token.value_loss,
                    T::of(0.5) * delta * delta,
                    if token.policy_clipped { T::ONE } else { T::ZERO },
                    if token.value_clipped { T::ONE } else { T::ZERO },
                    token.ratio,
                    token.ratio * token.ratio,
                ];
                for (s, t) in sum.iter_mut().zip(terms) {
                    *s += t;
                }
            }
        },
    );
}

/// dlogprobs and dvalues of the loss, times `dloss`.
pub(crate) fn backward<T: Real>(
    dlogprobs: &mut [T],
    dvalues: &mut [T],
    inputs: &Inputs<'_, T>,
    c: &Coefficients,
    dloss: T,
) {
    let (policy, value) = (dloss * T::of(c.scale), dloss * T::of(c.scale * c.vf_coef));
    parallel::rows2(
        dlogprobs,
        dvalues,
        [1, 1],
        #[inline(always)]
        |first, dlogprobs, dvalues| {
            for ((dl, dv), n) in dlogprobs.iter_mut().zip(dvalues).zip(first..) {
                let token = Token::new(inputs, n, c);
                *dl = token.dlogprob * policy;
                *dv = token.dvalue * value;
            }
        },
    );
}

/// One token's losses and their slopes.
struct Token<T> {
    ratio: T,
    policy_loss: T,
    policy_clipped: bool,
    dlogprob: T,
    value_loss: T,
    value_clipped: bool,
    dvalue: T,
}

impl<T: Real> Token<T> {
    #[inline(always)]
    fn new(inputs: &Inputs<'_, T>, n: usize, c: &Coefficients) -> Self {
        let delta = inputs.logprobs[n] - inputs.old_logprobs[n];
        let limit = T::of(20.0);
        let ratio = delta.clamp_nan(-limit, limit).exp();
        let advantage = inputs.advantages[n];
        let clipped = ratio.clamp_nan(T::of(1.0 - c.cliprange_low), T::of(1.0 + c.cliprange_high));
        let (plain, limited) = (-advantage * ratio, -advantage * clipped);
        let mut policy_loss = plain.max_nan(limited);
        let policy_clipped = limited > plain;
        // A saturated log-ratio does not move with the logprob; neither does a clipped ratio.
        let moves = delta > -limit && delta < limit || delta.is_nan();
        let mut dlogprob = if policy_clipped || !moves { T::ZERO } else { plain };
        if let Some(dual) = c.dual_clip
            && advantage < T::ZERO
            && policy_loss > -advantage * T::of(dual)
        {
            policy_loss = -advantage * T::of(dual);
            dlogprob = T::ZERO;
        }
        let (value, old, target) = (inputs.values[n], inputs.old_values[n], inputs.returns[n]);
        let range = T::of(c.cliprange_value);
        let near = value.clamp_nan(old - range, old + range);
        let (far_error, near_error) = ((value - target) * (value - target), (near - target) * (near - target));
        let value_clipped = near_error > far_error;
        Self {
            ratio,
            policy_loss,
            policy_clipped,
            dlogprob,
            value_loss: T::of(0.5) * far_error.max_nan(near_error),
            value_clipped,
            // Where the clipped error is the larger, the value is outside its range and does not move it.
            dvalue: if value_clipped { T::ZERO } else { value - target },
        }
    }
}
