//! The learning rate as a function of the step: a linear warm-up, then constant, linear or cosine decay. The formulas
//! are those of transformers' schedules of the same names; step 0 of a warm-up has rate 0.

use crate::config::SchedulerType;

/// A schedule over a known number of steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Schedule {
    pub(crate) kind: SchedulerType,
    pub(crate) learning_rate: f64,
    /// The rate at the end, as a share of `learning_rate`.
    pub(crate) min_lr_ratio: f64,
    pub(crate) warmup_steps: usize,
    pub(crate) total_steps: usize,
}

impl Schedule {
    /// The learning rate of `step`, counted from 0.
    pub(crate) fn at(&self, step: usize) -> f64 {
        if step < self.warmup_steps {
            return self.learning_rate * step as f64 / self.warmup_steps as f64;
        }
        let span = self.total_steps.saturating_sub(self.warmup_steps).max(1);
        let progress = ((step - self.warmup_steps) as f64 / span as f64).min(1.0);
        let left = match self.kind {
            SchedulerType::Constant => return self.learning_rate,
            SchedulerType::Linear => 1.0 - progress,
            SchedulerType::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        };
        self.learning_rate * (self.min_lr_ratio + (1.0 - self.min_lr_ratio) * left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_at_the_landmarks() {
        let schedule =
            |kind| Schedule { kind, learning_rate: 2.0, min_lr_ratio: 0.1, warmup_steps: 4, total_steps: 14 };
        for kind in [SchedulerType::Linear, SchedulerType::Cosine, SchedulerType::Constant] {
            assert_eq!([0, 1, 4].map(|step| schedule(kind).at(step)), [0.0, 0.5, 2.0]);
        }
        assert!((schedule(SchedulerType::Linear).at(9) - 2.0 * 0.55).abs() < 1e-12);
        assert!((schedule(SchedulerType::Cosine).at(9) - 2.0 * 0.55).abs() < 1e-12);
        assert_eq!(schedule(SchedulerType::Constant).at(13), 2.0);
        assert!((schedule(SchedulerType::Linear).at(14) - 0.2).abs() < 1e-12);
    }
}
