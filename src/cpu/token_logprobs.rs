//! Log-softmax, gather and entropy in one pass over a row of logits, with z = logits / temperature:
//! logprob = z_y - logsumexp(z), entropy = logsumexp(z) - sum softmax(z) z. The log-probabilities of the whole
//! vocabulary never exist. Backward overwrites the logits with their gradient:
//! dz_j = dlogprob (1[j = y] - p_j) - dentropy p_j (ln p_j + entropy), dlogits = dz / temperature.

use super::math::{LANES, Real, fold, max_of};
use super::parallel;

/// What a row yields, in this order: logprob of the target, entropy (nats), 1 if the target is the most likely token
/// (else 0), logsumexp.
pub(crate) const OUTPUTS: usize = 4;

/// out [R, OUTPUTS] from logits [R, V], targets [R].
pub(crate) fn forward<T: Real>(out: &mut [T], logits: &[T], targets: &[i32], vocabulary: usize, temperature: T) {
    let inverse = T::ONE / temperature;
    parallel::rows(
        out,
        OUTPUTS,
        #[inline(always)]
        |first, chunk| {
            for (o, n) in chunk.chunks_exact_mut(OUTPUTS).zip(first..) {
                let row = &logits[n * vocabulary..][..vocabulary];
                let largest = max_of(row) * inverse;
                let (sum, weighted) = exponentials(row, inverse, largest);
                let lse = largest + sum.ln();
                let target = row[targets[n] as usize] * inverse;
                let hit = if target == largest { T::ONE } else { T::ZERO };
                o.copy_from_slice(&[target - lse, sum.ln() - weighted / sum, hit, lse]);
            }
        },
    );
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

/// Overwrites logits [R, V] with their gradient, from the rows' entropy [R] and logsumexp [R], and dlogprob [R],
/// dentropy [R].
pub(crate) fn backward<T: Real>(
    logits: &mut [T],
    [entropies, lses]: [&[T]; 2],
    dlogprob: &[T],
    dentropy: Option<&[T]>,
    targets: &[i32],
    vocabulary: usize,
    temperature: T,
) {
    let inverse = T::ONE / temperature;
    parallel::rows(
        logits,
        vocabulary,
        #[inline(always)]
        |first, chunk| {
            for (row, n) in chunk.chunks_exact_mut(vocabulary).zip(first..) {
                let (entropy, lse) = (entropies[n], lses[n]);
                let down = -dlogprob[n] * inverse;
                match dentropy.map(|d| d[n] * inverse).filter(|d| *d != T::ZERO) {
                    None => {
                        for z in row.iter_mut() {
                            *z = down * (*z * inverse - lse).exp();
                        }
                    }
                    Some(dentropy) => {
                        for z in row.iter_mut() {
                            let logp = *z * inverse - lse;
                            let p = logp.exp();
                            // A masked token's logp is -inf: its terms are 0, as in the forward.
                            *z = if p == T::ZERO { T::ZERO } else { p * (down - dentropy * (logp + entropy)) };
                        }
                    }
                }
                row[targets[n] as usize] += dlogprob[n] * inverse;
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A logit of -inf is a token that cannot be: the others have the same numbers as without it.
    #[test]
    fn a_masked_token_takes_no_part() {
        let (dlogprob, dentropy) = ([0.7], [0.3]);
        let run = |logits: &[f64]| {
            let (mut out, mut gradient) = ([0.0; OUTPUTS], logits.to_vec());
            forward(&mut out, logits, &[1], logits.len(), 0.8);
            let stats = [&out[1..2], &out[3..4]];
            backward(&mut gradient, stats, &dlogprob, Some(&dentropy), &[1], logits.len(), 0.8);
            (out, gradient)
        };
        let (plain, masked) = (run(&[0.5, -1.0, 2.0]), run(&[0.5, -1.0, 2.0, f64::NEG_INFINITY]));
        assert_eq!((plain.0, &plain.1[..]), (masked.0, &masked.1[..3]));
        assert_eq!(masked.1[3], 0.0);
    }
}
