//! PPO's clipped losses (Schulman et al., 2017) per response token, with their gradients and statistics in one pass.
//! ratio = exp(clamp(logprob - old, -20, 20)); policy loss max(-A ratio, -A clip(ratio, 1 - low, 1 + high)), with dual
//! clip at most -A c where A < 0; value loss 1/2 max((V - R)^2, (clip(V, V_old - e, V_old + e) - R)^2).
//! All means are over the tokens of the whole optimizer batch: `scale` is 1 / that number.

#![forbid(unsafe_code)]

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
/// policy terms, clipped value terms, ratio, ratio^2, |new - old|; and the largest of the last. Divided by nothing.
pub(crate) const STATISTICS: usize = 9;

/// The statistics [STATISTICS] of these tokens. The loss is scale (policy sum + vf_coef value sum).
pub(crate) fn forward<T: Real>(statistics: &mut [T], inputs: &Inputs<'_, T>, c: &Coefficients) {
    let (sums, largest) = statistics.split_at_mut(STATISTICS - 1);
    let apart = |n: usize| {
        let delta = inputs.logprobs[n] - inputs.old_logprobs[n];
        delta.max_nan(-delta)
    };
    largest[0] = (0..inputs.logprobs.len()).fold(T::ZERO, |largest, n| largest.max_nan(apart(n)));
    parallel::sum_rows(
        sums,
        inputs.logprobs.len(),
        #[inline(always)]
        |rows, sum| {
            for n in rows {
                let (policy, value) = terms(inputs, n, c);
                let delta = inputs.logprobs[n] - inputs.old_logprobs[n];
                let terms = [
                    policy.loss,
                    value.loss,
                    T::of(0.5) * delta * delta,
                    if policy.clipped { T::ONE } else { T::ZERO },
                    if value.clipped { T::ONE } else { T::ZERO },
                    policy.ratio,
                    policy.ratio * policy.ratio,
                    delta.max_nan(-delta),
                ];
                for (s, t) in sum.iter_mut().zip(terms) {
                    *s += t;
                }
            }
        },
    );
}

/// dlogprobs and dvalues of the loss.
pub(crate) fn backward<T: Real>(dlogprobs: &mut [T], dvalues: &mut [T], inputs: &Inputs<'_, T>, c: &Coefficients) {
    let (policy, value) = (T::of(c.scale), T::of(c.scale * c.vf_coef));
    parallel::rows2(
        dlogprobs,
        dvalues,
        [1, 1],
        #[inline(always)]
        |first, dlogprobs, dvalues| {
            for ((dl, dv), n) in dlogprobs.iter_mut().zip(dvalues).zip(first..) {
                let (policy_term, value_term) = terms(inputs, n, c);
                *dl = policy_term.dlogprob * policy;
                *dv = value_term.dvalue * value;
            }
        },
    );
}

/// One token's policy loss and its slope.
pub(crate) struct PolicyTerm<T> {
    pub(crate) ratio: T,
    pub(crate) loss: T,
    pub(crate) dlogprob: T,
    pub(crate) clipped: bool,
}

impl<T: Real> PolicyTerm<T> {
    #[inline(always)]
    pub(crate) fn new(logprob: T, old_logprob: T, advantage: T, c: &Coefficients) -> Self {
        let delta = logprob - old_logprob;
        let limit = T::of(20.0);
        let ratio = delta.clamp_nan(-limit, limit).exp();
        let limited = ratio.clamp_nan(T::of(1.0 - c.cliprange_low), T::of(1.0 + c.cliprange_high));
        let (plain, limited) = (-advantage * ratio, -advantage * limited);
        let clipped = limited > plain;
        // A saturated log-ratio does not move with the logprob; neither does a clipped ratio.
        let moves = delta > -limit && delta < limit || delta.is_nan();
        let dlogprob = if clipped || !moves { T::ZERO } else { plain };
        let term = Self { ratio, loss: plain.max_nan(limited), dlogprob, clipped };
        match c.dual_clip.map(|dual| -advantage * T::of(dual)) {
            Some(bound) if advantage < T::ZERO && term.loss > bound => Self { loss: bound, dlogprob: T::ZERO, ..term },
            _ => term,
        }
    }
}

/// One token's value loss and its slope.
struct ValueTerm<T> {
    loss: T,
    dvalue: T,
    clipped: bool,
}

impl<T: Real> ValueTerm<T> {
    #[inline(always)]
    fn new(value: T, old_value: T, target: T, range: T) -> Self {
        let near = value.clamp_nan(old_value - range, old_value + range);
        let (far_error, near_error) = ((value - target) * (value - target), (near - target) * (near - target));
        let clipped = near_error > far_error;
        // Where the clipped error is the larger, the value is outside its range and does not move it.
        let dvalue = if clipped { T::ZERO } else { value - target };
        Self { loss: T::of(0.5) * far_error.max_nan(near_error), dvalue, clipped }
    }
}

/// Both terms of token n.
#[inline(always)]
fn terms<T: Real>(inputs: &Inputs<'_, T>, n: usize, c: &Coefficients) -> (PolicyTerm<T>, ValueTerm<T>) {
    (
        PolicyTerm::new(inputs.logprobs[n], inputs.old_logprobs[n], inputs.advantages[n], c),
        ValueTerm::new(inputs.values[n], inputs.old_values[n], inputs.returns[n], T::of(c.cliprange_value)),
    )
}
