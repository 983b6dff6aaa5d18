//! How often one model's answers are preferred to another's, a tie counting half, and how sure that is.
//!
//! Win rate: (wins + ties / 2) / comparisons = 1/2 + (p_win - p_loss) / 2. The difference of the two shares is one of
//! paired proportions, so its interval is that of Bonett and Price ("Adjusted Wald confidence interval for a
//! difference of binomial proportions based on paired data", J. Educ. Behav. Stat. 37, 2012): one win and one loss
//! are added to what was seen. It keeps a width where all comparisons are ties, or all are won.

use super::interval::Z_95;

/// Wins, ties and losses of independent comparisons.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) wins: usize,
    pub(crate) ties: usize,
    pub(crate) losses: usize,
}

impl Record {
    /// Counts a comparison by which of the two numbers is larger.
    pub(crate) fn add(&mut self, ours: f64, theirs: f64) {
        if ours > theirs {
            self.wins += 1;
        } else if ours < theirs {
            self.losses += 1;
        } else {
            self.ties += 1;
        }
    }

    /// Comparisons.
    pub(crate) fn total(&self) -> usize {
        self.wins + self.ties + self.losses
    }

    /// The win rate; 1/2 of no comparison.
    pub(crate) fn win_rate(&self) -> f64 {
        let balance = self.wins as f64 - self.losses as f64;
        0.5 + 0.5 * balance / self.total().max(1) as f64
    }

    /// Its 95 % interval.
    pub(crate) fn interval(&self) -> [f64; 2] {
        let n = self.total() as f64 + 2.0;
        let (win, loss) = ((self.wins as f64 + 1.0) / n, (self.losses as f64 + 1.0) / n);
        let half = Z_95 * ((win + loss - (win - loss).powi(2)) / n).sqrt();
        [-half, half].map(|side| (0.5 + 0.5 * (win - loss + side)).clamp(0.0, 1.0))
    }

    /// Whether the interval leaves out 1/2.
    pub(crate) fn is_significant(&self) -> bool {
        let [low, high] = self.interval();
        low > 0.5 || high < 0.5
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(wins: usize, ties: usize, losses: usize) -> Record {
        Record { wins, ties, losses }
    }

    /// 12 wins, 4 ties, 2 losses: shares 13/20 and 3/20, difference 0.5, variance (0.8 - 0.25) / 20 = 0.0275, so
    /// 0.5 ± 1.96 0.16583 = (0.17498, 0.82502), and the win rate 0.77778 lies in (0.58749, 0.91251).
    #[test]
    fn a_record_by_hand() {
        let mut counted = Record::default();
        for (n, ours, theirs) in [(12, 1.0, 0.0), (4, 0.5, 0.5), (2, -1.0, 2.0)] {
            (0..n).for_each(|_| counted.add(ours, theirs));
        }
        assert_eq!(counted, record(12, 4, 2));
        assert!((counted.win_rate() - 14.0 / 18.0).abs() < 1e-12);
        let [low, high] = counted.interval();
        assert!((low - 0.58749).abs() < 1e-5 && (high - 0.91251).abs() < 1e-5, "{low} {high}");
        assert!(counted.is_significant() && !record(6, 8, 4).is_significant() && record(2, 4, 12).is_significant());
        assert_eq!((record(0, 0, 0).win_rate(), record(0, 0, 0).interval()), (0.5, [0.0, 1.0]));
        // All ties, and all won: the interval is not a point, and holds the win rate.
        for only in [record(0, 9, 0), record(9, 0, 0), record(0, 0, 9)] {
            let [low, high] = only.interval();
            assert!(high - low > 0.1 && low <= only.win_rate() && only.win_rate() <= high, "{only:?}: {low} {high}");
        }
    }

    /// The probability that the interval holds the true win rate: the sum over all records of n comparisons.
    fn coverage(n: usize, [win, tie]: [f64; 2], interval: impl Fn(&Record) -> [f64; 2]) -> f64 {
        let ln_factorials: Vec<f64> = (0..=n)
            .scan(0.0, |sum, k| {
                *sum += (k.max(1) as f64).ln();
                Some(*sum)
            })
            .collect();
        let loss = 1.0 - win - tie;
        let power = |p: f64, k: usize| if k == 0 { 0.0 } else { k as f64 * p.ln() };
        let mut covered = 0.0;
        for (wins, ties) in (0..=n).flat_map(|wins| (0..=n - wins).map(move |ties| (wins, ties))) {
            let seen = record(wins, ties, n - wins - ties);
            let ways = ln_factorials[n] - [wins, ties, seen.losses].map(|k| ln_factorials[k]).iter().sum::<f64>();
            let ln = ways + power(win, wins) + power(tie, ties) + power(loss, seen.losses);
            let [low, high] = interval(&seen);
            covered += if (low..=high).contains(&(win + tie / 2.0)) { ln.exp() } else { 0.0 };
        }
        covered
    }

    /// Near 95 % at all shares of ties. The control: the interval without the added win and loss falls far short.
    #[test]
    fn the_interval_covers_what_it_says() {
        let plain = |seen: &Record| {
            let n = seen.total() as f64;
            let (win, loss) = (seen.wins as f64 / n, seen.losses as f64 / n);
            let half = Z_95 * ((win + loss - (win - loss).powi(2)) / n).sqrt();
            [-half, half].map(|side| 0.5 + 0.5 * (win - loss + side))
        };
        let (mut sum, mut cases, mut worst_plain) = (0.0, 0.0, 1.0_f64);
        for n in [15, 40, 100] {
            for tie in [0.0, 0.1, 0.3, 0.6, 0.9] {
                for share in [0.1, 0.3, 0.5, 0.7, 0.95] {
                    let win = (1.0 - tie) * share;
                    let found = coverage(n, [win, tie], Record::interval);
                    assert!(found > 0.92, "{n} comparisons, wins {win}, ties {tie}: {found}");
                    worst_plain = worst_plain.min(coverage(n, [win, tie], plain));
                    (sum, cases) = (sum + found, cases + 1.0);
                }
            }
        }
        let mean = sum / cases;
        assert!((0.945..0.975).contains(&mean), "{mean}");
        assert!(worst_plain < 0.85, "{worst_plain}");
    }
}
