//! How good a reward model is, from the scores it gives to held-out pairs: accuracy, calibration of the probability
//! sigmoid(r_c - r_r) that it implies, and how much of it is length.

/// One judged pair.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pair {
    pub(crate) chosen: f64,
    pub(crate) rejected: f64,
    /// Tokens of the two answers.
    pub(crate) lengths: [usize; 2],
}

impl Pair {
    fn gap(&self) -> f64 {
        self.chosen - self.rejected
    }

    /// The probability that the model gives to the order it believes in.
    fn confidence(&self) -> f64 {
        1.0 / (1.0 + (-self.gap().abs()).exp())
    }
}

/// The numbers that describe a reward model on held-out pairs, by name.
pub(crate) fn quality(pairs: &[Pair]) -> Vec<(&'static str, f64)> {
    let scores: Vec<f64> = pairs.iter().flat_map(|p| [p.chosen, p.rejected]).collect();
    let lengths: Vec<f64> = pairs.iter().flat_map(|p| p.lengths.map(|n| n as f64)).collect();
    vec![
        ("accuracy", mean(pairs.iter().map(|p| f64::from(p.gap() > 0.0)))),
        ("margin", mean(pairs.iter().map(Pair::gap))),
        ("min_reward", scores.iter().copied().fold(f64::INFINITY, f64::min)),
        ("mean_reward", mean(scores.iter().copied())),
        ("max_reward", scores.iter().copied().fold(f64::NEG_INFINITY, f64::max)),
        ("calibration_error", calibration_error(pairs)),
        ("reward_length_correlation", correlation(&scores, &lengths)),
    ]
}

/// Bins of confidence between 1/2 and 1.
const BINS: usize = 10;

/// The expected calibration error (Naeini et al., 2015): mean distance of confidence and accuracy, over bins of
/// confidence.
fn calibration_error(pairs: &[Pair]) -> f64 {
    let mut bins = [[0.0; 3]; BINS];
    for pair in pairs {
        let bin = (((pair.confidence() - 0.5) * 2.0 * BINS as f64) as usize).min(BINS - 1);
        for (sum, x) in bins[bin].iter_mut().zip([1.0, pair.confidence(), f64::from(pair.gap() > 0.0)]) {
            *sum += x;
        }
    }
    bins.iter().map(|[_, confidence, correct]| (confidence - correct).abs()).sum::<f64>() / pairs.len().max(1) as f64
}

/// Mean; 0 of nothing.
pub(crate) fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len();
    values.sum::<f64>() / n.max(1) as f64
}

/// Pearson's correlation; 0 where one side does not vary.
fn correlation(x: &[f64], y: &[f64]) -> f64 {
    let (mx, my) = (mean(x.iter().copied()), mean(y.iter().copied()));
    let covariance: f64 = x.iter().zip(y).map(|(a, b)| (a - mx) * (b - my)).sum();
    let spread = |v: &[f64], m: f64| v.iter().map(|a| (a - m).powi(2)).sum::<f64>();
    let product = (spread(x, mx) * spread(y, my)).sqrt();
    if product > 0.0 { covariance / product } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_by_hand() {
        let pair = |chosen, rejected, lengths| Pair { chosen, rejected, lengths };
        let numbers = quality(&[pair(1.0, 0.0, [2, 1]), pair(0.0, 1.0, [1, 2])]);
        let get = |name| numbers.iter().find(|(n, _)| *n == name).unwrap().1;
        assert_eq!((get("accuracy"), get("margin"), get("mean_reward")), (0.5, 0.0, 0.5));
        assert!((get("reward_length_correlation") - 1.0).abs() < 1e-12);
        // Both pairs have confidence sigmoid(1); one of two is right.
        assert!((get("calibration_error") - (1.0 / (1.0 + (-1f64).exp()) - 0.5)).abs() < 1e-12);
    }
}
