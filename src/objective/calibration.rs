//! How good a reward model is, from the scores it gives to held-out pairs: accuracy, calibration of the probability
//! sigmoid(r_c - r_r) that it implies, and how much of it is length.

use serde_json::{Map, Value, json};

use super::interval::wilson;

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

/// Pairs that share something, as sums.
#[derive(Debug, Default, Clone, Copy)]
struct Bin {
    pairs: usize,
    confidence: f64,
    correct: f64,
}

impl Bin {
    fn add(&mut self, pair: &Pair) {
        self.pairs += 1;
        self.confidence += pair.confidence();
        self.correct += f64::from(pair.gap() > 0.0);
    }

    fn mean(&self, sum: f64) -> f64 {
        sum / self.pairs.max(1) as f64
    }
}

/// The pairs by confidence, in bins of one width.
fn by_confidence(pairs: &[Pair]) -> [Bin; BINS] {
    let mut bins = [Bin::default(); BINS];
    for pair in pairs {
        bins[(((pair.confidence() - 0.5) * 2.0 * BINS as f64) as usize).min(BINS - 1)].add(pair);
    }
    bins
}

/// The expected calibration error (Naeini et al., 2015): mean distance of confidence and accuracy, over bins of
/// confidence.
fn calibration_error(pairs: &[Pair]) -> f64 {
    by_confidence(pairs).iter().map(|bin| (bin.confidence - bin.correct).abs()).sum::<f64>() / pairs.len().max(1) as f64
}

/// A reward model on held-out pairs, as `quality.json` holds it: the numbers of [`quality`], the accuracy with its
/// 95 % interval, and the accuracy in bins of confidence (`reliability`), of the distance of the two scores
/// (`by_margin`) and of the chosen answer's tokens minus the rejected one's (`by_length`). A bin holds `from` and not
/// `to`, the last one holds both; bins without a pair are left out.
pub(crate) fn describe(pairs: &[Pair]) -> Value {
    let mut all = Map::new();
    all.insert("pairs".into(), json!(pairs.len()));
    for (name, number) in quality(pairs) {
        all.insert(name.into(), json!(number));
        if name == "accuracy" {
            all.insert("accuracy_interval".into(), json!(wilson(number, pairs.len())));
        }
    }
    let reliability = by_confidence(pairs).into_iter().enumerate().filter(|(_, bin)| bin.pairs > 0).map(|(i, bin)| {
        let border = |i: usize| 0.5 + 0.5 * i as f64 / BINS as f64;
        json!({
            "from": border(i),
            "to": border(i + 1),
            "pairs": bin.pairs,
            "confidence": bin.mean(bin.confidence),
            "accuracy": bin.mean(bin.correct),
        })
    });
    all.insert("reliability".into(), reliability.collect());
    let margins: Vec<f64> = pairs.iter().map(|p| p.gap().abs()).collect();
    all.insert("by_margin".into(), by(pairs, &margins, &borders(&margins, 5)));
    let lengths: Vec<f64> = pairs.iter().map(|p| p.lengths[0] as f64 - p.lengths[1] as f64).collect();
    all.insert("by_length".into(), by(pairs, &lengths, &borders_around_zero(&lengths)));
    Value::Object(all)
}

/// Borders of at most `bins` bins with about as many of the values in each: the smallest value, quantiles, the
/// largest. None of no value.
fn borders(values: &[f64], bins: usize) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (Some(first), Some(last)) = (sorted.first().copied(), sorted.last().copied()) else { return Vec::new() };
    let inner = (1..bins).map(|k| sorted[k * sorted.len() / bins]);
    let mut borders: Vec<f64> = std::iter::once(first).chain(inner).collect();
    borders.dedup();
    // A quantile that is the largest value would leave it a bin without width.
    if borders.len() > 1 && borders.last() == Some(&last) {
        borders.pop();
    }
    borders.push(last);
    borders
}

/// [`borders`] of what is below 0 and of the rest, between which 0 is a border.
fn borders_around_zero(values: &[f64]) -> Vec<f64> {
    let (below, above): (Vec<f64>, Vec<f64>) = values.iter().partition(|x| **x < 0.0);
    let (mut below, mut above) = (borders(&below, 3), borders(&above, 3));
    match above.first_mut() {
        Some(first) => {
            *first = 0.0;
            below.pop();
        }
        None => below.iter_mut().last().into_iter().for_each(|last| *last = 0.0),
    }
    [below, above].concat()
}

/// The pairs in bins of `values`, one a pair, between `borders`.
fn by(pairs: &[Pair], values: &[f64], borders: &[f64]) -> Value {
    let mut bins = vec![Bin::default(); borders.len().max(1)];
    let last = borders.len().saturating_sub(2);
    for (pair, value) in pairs.iter().zip(values) {
        bins[borders.partition_point(|border| border <= value).saturating_sub(1).min(last)].add(pair);
    }
    let rows = borders.windows(2).zip(bins).filter(|(_, bin)| bin.pairs > 0);
    rows.map(
        |(edge, bin)| json!({ "from": edge[0], "to": edge[1], "pairs": bin.pairs, "accuracy": bin.mean(bin.correct) }),
    )
    .collect()
}

/// Mean; 0 of nothing.
pub(crate) fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len();
    values.sum::<f64>() / n.max(1) as f64
}

/// Pearson's correlation; 0 where one side does not vary.
pub(crate) fn correlation(x: &[f64], y: &[f64]) -> f64 {
    let (mx, my) = (mean(x.iter().copied()), mean(y.iter().copied()));
    let covariance: f64 = x.iter().zip(y).map(|(a, b)| (a - mx) * (b - my)).sum();
    let spread = |v: &[f64], m: f64| v.iter().map(|a| (a - m).powi(2)).sum::<f64>();
    let product = (spread(x, mx) * spread(y, my)).sqrt();
    if product > 0.0 { covariance / product } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(chosen: f64, rejected: f64, lengths: [usize; 2]) -> Pair {
        Pair { chosen, rejected, lengths }
    }

    #[test]
    fn numbers_by_hand() {
        let numbers = quality(&[pair(1.0, 0.0, [2, 1]), pair(0.0, 1.0, [1, 2])]);
        let get = |name| numbers.iter().find(|(n, _)| *n == name).unwrap().1;
        assert_eq!((get("accuracy"), get("margin"), get("mean_reward")), (0.5, 0.0, 0.5));
        assert!((get("reward_length_correlation") - 1.0).abs() < 1e-12);
        // Both pairs have confidence sigmoid(1); one of two is right.
        assert!((get("calibration_error") - (1.0 / (1.0 + (-1f64).exp()) - 0.5)).abs() < 1e-12);
    }

    /// Four pairs: gaps 2, -1, 0.1 and 0.1, lengths apart by 3, -2, 0 and -2.
    #[test]
    fn described_by_hand() {
        let pairs = [pair(2.0, 0.0, [5, 2]), pair(0.0, 1.0, [2, 4]), pair(0.1, 0.0, [3, 3]), pair(0.35, 0.25, [1, 3])];
        let found = describe(&pairs);
        let keys: Vec<&str> = found.as_object().unwrap().keys().map(String::as_str).collect();
        let names = "pairs accuracy accuracy_interval margin min_reward mean_reward max_reward calibration_error \
                     reward_length_correlation reliability by_margin by_length";
        assert_eq!(keys, names.split_whitespace().collect::<Vec<_>>());
        assert_eq!((&found["pairs"], &found["accuracy"]), (&json!(4), &json!(0.75)));
        // 3 of 4: the roots of (0.75 - p)² = z² p (1 - p) / 4.
        let interval = [0, 1].map(|i| found["accuracy_interval"][i].as_f64().unwrap());
        assert!((interval[0] - 0.3006).abs() < 5e-5 && (interval[1] - 0.9544).abs() < 5e-5, "{interval:?}");
        // sigmoid(0.1) = 0.525, sigmoid(1) = 0.731, sigmoid(2) = 0.881.
        let bins: Vec<_> = found["reliability"].as_array().unwrap().iter().collect();
        assert_eq!(bins.len(), 3, "{found}");
        let of = |bin: &Value, name: &str| bin[name].as_f64().unwrap();
        for (bin, wanted) in bins.iter().zip([
            [0.5, 0.55, 2.0, 0.524_979_187, 1.0],
            [0.7, 0.75, 1.0, 0.731_058_579, 0.0],
            [0.85, 0.9, 1.0, 0.880_797_078, 1.0],
        ]) {
            for (name, x) in ["from", "to", "pairs", "confidence", "accuracy"].into_iter().zip(wanted) {
                assert!((of(bin, name) - x).abs() < 1e-8, "{name} of {bin} is not {x}");
            }
        }
        let edges = |name: &str| -> Vec<[f64; 4]> {
            let bins = found[name].as_array().unwrap().iter();
            bins.map(|bin| ["from", "to", "pairs", "accuracy"].map(|key| of(bin, key))).collect()
        };
        let gap = 0.35 - 0.25;
        assert_eq!(edges("by_margin"), [[gap, 0.1, 1.0, 1.0], [0.1, 1.0, 1.0, 1.0], [1.0, 2.0, 2.0, 0.5]]);
        assert_eq!(edges("by_length"), [[-2.0, 0.0, 2.0, 0.5], [0.0, 3.0, 2.0, 1.0]]);
    }

    #[test]
    fn borders_are_quantiles_around_zero() {
        let numbers = |range: std::ops::Range<i32>| range.map(f64::from).collect::<Vec<_>>();
        assert_eq!(borders(&numbers(0..100), 5), [0.0, 20.0, 40.0, 60.0, 80.0, 99.0]);
        assert_eq!(borders(&[3.0, 3.0], 5), [3.0, 3.0]);
        assert_eq!(borders(&[1.0, 3.0, 3.0, 3.0], 3), [1.0, 3.0]);
        assert!(borders(&[], 5).is_empty());
        assert_eq!(borders_around_zero(&numbers(-9..6)), [-9.0, -6.0, -3.0, 0.0, 2.0, 4.0, 5.0]);
        assert_eq!(borders_around_zero(&[0.0, 0.0]), [0.0, 0.0]);
        assert_eq!(borders_around_zero(&[-2.0, 0.0, 0.0]), [-2.0, 0.0, 0.0]);
        assert_eq!(borders_around_zero(&[-4.0, -4.0]), [-4.0, 0.0]);
        assert_eq!(borders_around_zero(&[2.0, 7.0]), [0.0, 7.0]);
        assert!(borders_around_zero(&[]).is_empty());
    }

    /// Every pair is in one bin of each kind, and nothing of nothing is a number.
    #[test]
    fn no_pair_is_lost() {
        let pairs: Vec<Pair> =
            (0..200_usize).map(|i| pair((i * 37 % 91) as f64 / 9.0, (i % 7) as f64, [i * 13 % 17, i % 11])).collect();
        let found = describe(&pairs);
        for name in ["reliability", "by_margin", "by_length"] {
            let bins = found[name].as_array().unwrap();
            let sum = |key: &str| -> f64 {
                bins.iter().map(|bin| bin["pairs"].as_f64().unwrap() * bin[key].as_f64().unwrap()).sum()
            };
            assert_eq!(bins.iter().map(|bin| bin["pairs"].as_u64().unwrap()).sum::<u64>(), 200, "{name}");
            assert!((sum("accuracy") / 200.0 - found["accuracy"].as_f64().unwrap()).abs() < 1e-12, "{name}");
            assert!(bins.len() > 4, "{name}: {bins:?}");
        }
        let nothing = describe(&[]);
        assert_eq!((&nothing["pairs"], &nothing["accuracy"]), (&json!(0), &json!(0.0)));
        assert_eq!((&nothing["by_length"], &nothing["reliability"]), (&json!([]), &json!([])));
    }
}
