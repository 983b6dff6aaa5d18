//! Log-softmax, gather and entropy in one pass over a row of logits, with z = logits / temperature:
//! logprob = z_y - logsumexp(z), entropy = logsumexp(z) - sum softmax(z) z. The log-probabilities of the whole
//! vocabulary never exist. A loss that is a sum over rows of f(logprob, entropy) overwrites the logits with their
//! gradient in a second pass: dz_j = dlogprob (1[j = y] - p_j) - dentropy p_j (ln p_j + entropy), dlogits =
//! dz / temperature.

#![forbid(unsafe_code)]

use super::math::{LANES, Real, fold, max_of};
use super::parallel;
use super::ppo_loss::{Coefficients, PolicyTerm};

/// What a row yields, in this order: logprob of the target, entropy (nats), 1 if the target is the most likely token
/// (else 0).
pub(crate) const OUTPUTS: usize = 3;

/// What a row of a loss yields: the same, and the row's part of the loss.
pub(crate) const LOSS_OUTPUTS: usize = OUTPUTS + 1;

/// A sum over rows of a function of logprob and entropy.
pub(crate) enum Objective<'a, T> {
    /// -scale logprob.
    Likelihood { scale: f64 },
    /// scale times PPO's policy loss, less entropy_coef scale entropy. One number a row each.
    Clipped { old_logprobs: &'a [T], advantages: &'a [T], coefficients: Coefficients, entropy_coef: f64 },
}

impl<T: Real> Objective<'_, T> {
    /// Row n's part of the loss, and its slopes in logprob and entropy.
    #[inline(always)]
    fn term(&self, n: usize, row: &Row<T>) -> (T, [T; 2]) {
        match self {
            Objective::Likelihood { scale } => (-T::of(*scale) * row.logprob, [-T::of(*scale), T::ZERO]),
            Objective::Clipped { old_logprobs, advantages, coefficients, entropy_coef } => {
                let (scale, entropy) = (T::of(coefficients.scale), T::of(entropy_coef * coefficients.scale));
                let policy = PolicyTerm::new(row.logprob, old_logprobs[n], advantages[n], coefficients);
                (scale * policy.loss - entropy * row.entropy, [policy.dlogprob * scale, -entropy])
            }
        }
    }
}

/// out [R, OUTPUTS] from logits [R, V], targets [R].
pub(crate) fn forward<T: Real>(out: &mut [T], logits: &[T], targets: &[i32], vocabulary: usize, temperature: T) {
    let inverse = T::ONE / temperature;
    parallel::rows(
        out,
        OUTPUTS,
        #[inline(always)]
        |first, chunk| {
            for (o, n) in chunk.chunks_exact_mut(OUTPUTS).zip(first..) {
                let row = Row::new(&logits[n * vocabulary..][..vocabulary], targets[n] as usize, inverse);
                o.copy_from_slice(&[row.logprob, row.entropy, row.hit]);
            }
        },
    );
}

/// out [R, LOSS_OUTPUTS] from logits [R, V], targets [R]; the logits become the gradient of the loss in them.
pub(crate) fn loss<T: Real>(
    out: &mut [T],
    logits: &mut [T],
    targets: &[i32],
    vocabulary: usize,
    temperature: T,
    objective: &Objective<'_, T>,
) {
    let inverse = T::ONE / temperature;
    parallel::rows2(
        out,
        logits,
        [LOSS_OUTPUTS, vocabulary],
        #[inline(always)]
        |first, out, logits| {
            let rows = out.chunks_exact_mut(LOSS_OUTPUTS).zip(logits.chunks_exact_mut(vocabulary));
            for ((o, logits), n) in rows.zip(first..) {
                let target = targets[n] as usize;
                let row = Row::new(logits, target, inverse);
                let (loss, slopes) = objective.term(n, &row);
                o.copy_from_slice(&[row.logprob, row.entropy, row.hit, loss]);
                row.overwrite(logits, target, inverse, slopes);
            }
        },
    );
}

/// What a row of logits says about its target.
struct Row<T> {
    logprob: T,
    entropy: T,
    hit: T,
    lse: T,
}

impl<T: Real> Row<T> {
    #[inline(always)]
    fn new(logits: &[T], target: usize, inverse: T) -> Self {
        let largest = max_of(logits) * inverse;
        let (sum, weighted) = exponentials(logits, inverse, largest);
        let lse = largest + sum.ln();
        let target = logits[target] * inverse;
        let hit = if target == largest { T::ONE } else { T::ZERO };
        Self { logprob: target - lse, entropy: sum.ln() - weighted / sum, hit, lse }
    }

    /// Logits to their gradient, from the slopes of the loss in logprob and entropy.
    #[inline(always)]
    fn overwrite(&self, logits: &mut [T], target: usize, inverse: T, [dlogprob, dentropy]: [T; 2]) {
        let (up, spread) = (dlogprob * inverse, dentropy * inverse);
        if spread == T::ZERO {
            for z in logits.iter_mut() {
                *z = -up * (*z * inverse - self.lse).exp();
            }
        } else {
            for z in logits.iter_mut() {
                let logp = *z * inverse - self.lse;
                let p = logp.exp();
                // A masked token's logp is -inf: its terms are 0, as in the forward.
                *z = if p == T::ZERO { T::ZERO } else { p * (-up - spread * (logp + self.entropy)) };
            }
        }
        logits[target] += up;
    }
}

/// Sum of exp(z - largest), and of exp(z - largest) (z - largest).
#[inline(always)]
fn exponentials<T: Real>(row: &[T], inverse: T, largest: T) -> (T, T) {
    let (mut sums, mut weighted) = ([T::ZERO; LANES], [T::ZERO; LANES]);
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            let (e, ed) = term(chunk[lane] * inverse - largest);
            sums[lane] += e;
            weighted[lane] += ed;
        }
    }
    for (lane, x) in rest.iter().enumerate() {
        let (e, ed) = term(*x * inverse - largest);
        sums[lane] += e;
        weighted[lane] += ed;
    }
    (fold(sums), fold(weighted))
}

/// exp(d) and exp(d) d, the second 0 where the first is: the limit, and what a masked token contributes.
#[inline(always)]
fn term<T: Real>(d: T) -> (T, T) {
    let e = d.exp();
    (e, if e == T::ZERO { T::ZERO } else { e * d })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A logit of -inf is a token that cannot be: the others have the same numbers as without it.
    #[test]
    fn a_masked_token_takes_no_part() {
        let coefficients = Coefficients {
            cliprange_low: 0.2,
            cliprange_high: 0.2,
            cliprange_value: 0.2,
            vf_coef: 0.1,
            dual_clip: None,
            scale: 0.5,
        };
        let run = |logits: &[f64]| {
            let (mut out, mut gradient) = ([0.0; LOSS_OUTPUTS], logits.to_vec());
            let (old_logprobs, advantages) = (&[-3.6][..], &[-0.7][..]);
            let objective = Objective::Clipped { old_logprobs, advantages, coefficients, entropy_coef: 0.6 };
            loss(&mut out, &mut gradient, &[1], logits.len(), 0.8, &objective);
            (out, gradient)
        };
        let (plain, masked) = (run(&[0.5, -1.0, 2.0]), run(&[0.5, -1.0, 2.0, f64::NEG_INFINITY]));
        assert_eq!((plain.0, &plain.1[..]), (masked.0, &masked.1[..3]));
        assert_eq!(masked.1[3], 0.0);
        assert!(plain.1.iter().all(|dz| dz.abs() > 1e-3), "positive control: there is a gradient: {plain:?}");
    }
}
