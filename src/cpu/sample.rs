//! The next token of each row. Temperature first, then top-k, then top-p (nucleus sampling, Holtzman et al., 2020),
//! then one uniform number through the inverse of the cumulative distribution in vocabulary order. Temperature 0 takes
//! the most likely token, the first of equals.

#![forbid(unsafe_code)]

use super::math::Real;

/// How tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sampling {
    /// Divides the logits; 0 is greedy.
    pub(crate) temperature: f64,
    /// Only the k most likely tokens; 0 means all.
    pub(crate) top_k: usize,
    /// The smallest set of most likely tokens whose probabilities sum to this; 1 means all.
    pub(crate) top_p: f64,
}

/// tokens [R] from logits [R, V] and one uniform in [0, 1) per row.
pub(crate) fn forward<T: Real>(
    tokens: &mut [i32],
    logits: &[T],
    uniforms: &[f32],
    vocabulary: usize,
    sampling: &Sampling,
) {
    for ((token, row), uniform) in tokens.iter_mut().zip(logits.chunks_exact(vocabulary)).zip(uniforms) {
        *token = if sampling.temperature == 0.0 { greedy(row) } else { draw(row, *uniform, sampling) };
    }
}

fn greedy<T: Real>(row: &[T]) -> i32 {
    let mut best = 0;
    for (i, x) in row.iter().enumerate() {
        if *x > row[best] {
            best = i;
        }
    }
    best as i32
}

fn draw<T: Real>(row: &[T], uniform: f32, sampling: &Sampling) -> i32 {
    let inverse = 1.0 / sampling.temperature;
    let largest = row.iter().map(|x| x.to_f64()).fold(f64::NEG_INFINITY, f64::max);
    let mut weights: Vec<f64> = row.iter().map(|x| ((x.to_f64() - largest) * inverse).exp()).collect();
    if sampling.top_k > 0 || sampling.top_p < 1.0 {
        truncate(&mut weights, sampling);
    }
    let target = f64::from(uniform) * weights.iter().sum::<f64>();
    let (mut sum, mut last) = (0.0, 0);
    for (i, w) in weights.iter().enumerate().filter(|(_, w)| **w > 0.0) {
        (sum, last) = (sum + w, i);
        if sum > target {
            break;
        }
    }
    last as i32
}

/// Sets to zero what top-k and then top-p leave out; of equal weights the lower token ids stay.
fn truncate(weights: &mut [f64], sampling: &Sampling) {
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|a, b| weights[*b].total_cmp(&weights[*a]).then(a.cmp(b)));
    let kept = if sampling.top_k == 0 { order.len() } else { sampling.top_k.min(order.len()) };
    let total: f64 = order[..kept].iter().map(|i| weights[*i]).sum();
    let mut sum = 0.0;
    for (rank, i) in order.into_iter().enumerate() {
        // The token that passes the bound is the last that stays; the first always stays.
        if rank >= kept || (rank > 0 && sum >= sampling.top_p * total) {
            weights[i] = 0.0;
        } else {
            sum += weights[i];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frequencies(logits: &[f64], sampling: &Sampling) -> Vec<f64> {
        let n = 4000;
        let mut counts = vec![0.0; logits.len()];
        for i in 0..n {
            let mut token = [0];
            forward(&mut token, logits, &[(i as f32 + 0.5) / n as f32], logits.len(), sampling);
            counts[token[0] as usize] += 1.0 / f64::from(n);
        }
        counts
    }

    #[test]
    fn draws_follow_the_distribution() {
        let logits = [0.0, 1.0, -1.0, 2.0];
        let all = Sampling { temperature: 0.5, top_k: 0, top_p: 1.0 };
        let total: f64 = logits.iter().map(|z: &f64| (z * 2.0).exp()).sum();
        for (f, z) in frequencies(&logits, &all).iter().zip(logits) {
            assert!((f - (z * 2.0).exp() / total).abs() < 1e-3);
        }
        let top = frequencies(&logits, &Sampling { temperature: 1.0, top_k: 2, top_p: 1.0 });
        assert!(top[0] == 0.0 && top[2] == 0.0 && (top[3] - 1f64.exp() / (1.0 + 1f64.exp())).abs() < 1e-3);
        let nucleus = frequencies(&logits, &Sampling { temperature: 1.0, top_k: 0, top_p: 0.5 });
        assert!(nucleus[..3] == [0.0; 3] && nucleus[3] > 0.999);
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        let mut token = [9];
        forward(&mut token, &[1.0f32, 3.0, 3.0], &[0.99], 3, &Sampling { temperature: 0.0, top_k: 0, top_p: 1.0 });
        assert_eq!(token, [1]);
    }
}
