//! Whether length alone tells chosen answers from rejected ones.

use serde_json::{Value, json};

/// From how many pairs of different lengths on anything is said.
const PAIRS_MIN: u64 = 30;

/// From which share of them with the longer (or shorter) answer chosen it is a bias. Human preferences that are known
/// to be usable stay below 60 %.
const SHARE_MIN: f64 = 0.65;

/// How many standard deviations of a fair coin it must be away from one half: chance does not get there.
const DEVIATIONS_MIN: f64 = 3.0;

/// The lengths of chosen and rejected answers, prompts included: these are the same on both sides.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answers {
    longer: u64,
    shorter: u64,
    same: u64,
    chosen: u64,
    rejected: u64,
}

impl Answers {
    /// Counts a pair, by its tokens.
    pub(super) fn add(&mut self, chosen: usize, rejected: usize) {
        self.longer += u64::from(chosen > rejected);
        self.shorter += u64::from(chosen < rejected);
        self.same += u64::from(chosen == rejected);
        self.chosen += chosen as u64;
        self.rejected += rejected as u64;
    }

    pub(super) fn pairs(&self) -> u64 {
        self.longer + self.shorter + self.same
    }

    /// Pairs that the more frequent direction of length decides.
    pub(super) fn decided_by_length(&self) -> u64 {
        self.longer.max(self.shorter)
    }

    pub(super) fn is_biased(&self) -> bool {
        let different = (self.longer + self.shorter) as f64;
        let share = self.decided_by_length() as f64 / different.max(1.0);
        let deviations = (share - 0.5) * 2.0 * different.sqrt();
        different as u64 >= PAIRS_MIN && share >= SHARE_MIN && deviations >= DEVIATIONS_MIN
    }

    fn mean_difference(&self) -> f64 {
        (self.chosen as f64 - self.rejected as f64) / self.pairs().max(1) as f64
    }

    /// The numbers, in words.
    pub(super) fn remark(&self) -> String {
        let percent = |part: u64| 100.0 * part as f64 / self.pairs().max(1) as f64;
        format!(
            "chosen is longer in {:.1} % of {} pairs, shorter in {:.1} %, by {:+.1} tokens on average",
            percent(self.longer),
            self.pairs(),
            percent(self.shorter),
            self.mean_difference()
        )
    }

    pub(super) fn describe(&self) -> String {
        format!("answers: {}\n", self.remark())
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "chosen_longer": self.longer,
            "chosen_shorter": self.shorter,
            "same_length": self.same,
            "mean_difference": self.mean_difference(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(longer: u64, shorter: u64) -> Answers {
        Answers { longer, shorter, ..Answers::default() }
    }

    #[test]
    fn a_bias_is_large_and_no_chance() {
        assert!(answers(70, 30).is_biased() && answers(30, 70).is_biased());
        assert!(!answers(60, 40).is_biased() && !answers(19, 0).is_biased() && !answers(20, 10).is_biased());
        let mut same = Answers::default();
        (0..99).for_each(|_| same.add(7, 7));
        assert!(!same.is_biased());
        same.add(9, 7);
        assert!(same.remark().starts_with("chosen is longer in 1.0 % of 100 pairs, shorter in 0.0 %, by +0.0"));
    }
}
