//! How far a share that was counted may be from the share that is true.

/// The 97.5 % quantile of the normal distribution: 95 % lie within it on both sides.
pub(crate) const Z_95: f64 = 1.959_963_984_540_054;

/// The 95 % interval of a share of `n` independent trials (Wilson, "Probable inference, the law of succession, and
/// statistical inference", 1927): the shares p that a test at 5 % would not reject, (p̂ - p)² <= z² p (1 - p) / n. It
/// stays in [0, 1] and keeps a width where all trials agree; of no trial it is [0, 1].
pub(crate) fn wilson(share: f64, n: usize) -> [f64; 2] {
    let (n, z2) = (n as f64, Z_95 * Z_95);
    if n == 0.0 {
        return [0.0, 1.0];
    }
    let centre = (share + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = Z_95 / (1.0 + z2 / n) * (share * (1.0 - share) / n + z2 / (4.0 * n * n)).sqrt();
    [(centre - half).max(0.0), (centre + half).min(1.0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 8 of 10: the roots of (0.8 - p)² = z² p (1 - p) / 10, so of 1.38415 p² - 1.98415 p + 0.64 = 0: 0.4902, 0.9433.
    #[test]
    fn intervals_by_hand() {
        let close = |found: [f64; 2], wanted: [f64; 2]| {
            assert!(found.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 5e-5), "{found:?} is not {wanted:?}");
        };
        close(wilson(0.8, 10), [0.4902, 0.9433]);
        // None of n: the upper end is z² / (n + z²).
        close(wilson(0.0, 10), [0.0, 0.2775]);
        close(wilson(1.0, 10), [0.7225, 1.0]);
        assert_eq!(wilson(0.0, 0), [0.0, 1.0]);
    }
}
