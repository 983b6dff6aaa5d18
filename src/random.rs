//! Counter-based randomness: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
//! The key is the run's seed; the counter names what is drawn: (position, row, step, stage << 24 | draw). Nothing has
//! to be saved to resume, and the layout of a batch does not change what any row draws.

#![forbid(unsafe_code)]

use std::convert::Infallible;

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// What a random number is for; it keeps the draws of different uses apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Initial weights of a fresh model or head.
    Init = 1,
    /// The order of examples in an epoch.
    Shuffle = 2,
    /// Tokens sampled in a rollout.
    Rollout = 3,
    /// The order of episodes in a PPO epoch.
    Minibatch = 4,
    /// The embedded task's own data.
    Demo = 5,
    /// Tokens sampled by `rlhf generate` and in evaluations.
    Generate = 6,
}

/// Ten rounds of Philox on one counter: four words that depend on every bit of `counter` and `key`.
pub(crate) fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let (mut c, mut k) = (counter, key);
    for _ in 0..10 {
        let a = u64::from(MULTIPLIERS[0]) * u64::from(c[0]);
        let b = u64::from(MULTIPLIERS[1]) * u64::from(c[2]);
        c = [(b >> 32) as u32 ^ c[1] ^ k[0], b as u32, (a >> 32) as u32 ^ c[3] ^ k[1], a as u32];
        k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
    }
    c
}

fn key(seed: u64) -> [u32; 2] {
    [seed as u32, (seed >> 32) as u32]
}

/// The one uniform in [0, 1) that decides the token of `row` at `position` in `step`, with 24 bits.
pub(crate) fn uniform(seed: u64, stage: Stage, step: u32, row: u32, position: u32) -> f32 {
    uniform_of(seed, stage as u32, step, row, position)
}

/// The same with the stage's number.
pub(crate) fn uniform_of(seed: u64, stage: u32, step: u32, row: u32, position: u32) -> f32 {
    let word = philox([position, row, step, stage << 24], key(seed))[0];
    (word >> 8) as f32 / (1u32 << 24) as f32
}

/// A stream of random words for one purpose; implements `rand`'s generator trait, so that distributions and shuffles
/// go through `rand`.
#[derive(Debug, Clone)]
pub(crate) struct Philox {
    key: [u32; 2],
    counter: [u32; 4],
    words: [u32; 4],
    used: usize,
}

impl Philox {
    /// The stream of `stage` for item `row` of `step`.
    pub(crate) fn new(seed: u64, stage: Stage, step: u32, row: u32) -> Self {
        Self { key: key(seed), counter: [0, row, step, (stage as u32) << 24], words: [0; 4], used: 4 }
    }

    fn word(&mut self) -> u32 {
        if self.used == 4 {
            self.words = philox(self.counter, self.key);
            self.counter[0] = self.counter[0].wrapping_add(1);
            self.used = 0;
        }
        self.used += 1;
        self.words[self.used - 1]
    }

    /// A standard normal number (Box-Muller, one of the pair).
    pub(crate) fn normal(&mut self) -> f64 {
        let u = (f64::from(self.word()) + 0.5) / f64::from(u32::MAX);
        let v = f64::from(self.word()) / f64::from(u32::MAX);
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }
}

impl rand::TryRng for Philox {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(self.word())
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(u64::from(self.word()) | u64::from(self.word()) << 32)
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        for chunk in bytes.chunks_mut(4) {
            chunk.copy_from_slice(&self.word().to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the paper's reference implementation (Random123, `kat_vectors`).
    #[test]
    fn known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let ones = u32::MAX;
        assert_eq!(philox([ones; 4], [ones; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    }

    #[test]
    fn streams_differ_by_every_coordinate() {
        let base = uniform(1, Stage::Rollout, 2, 3, 4);
        assert_eq!(base, uniform(1, Stage::Rollout, 2, 3, 4));
        for other in [
            uniform(2, Stage::Rollout, 2, 3, 4),
            uniform(1, Stage::Generate, 2, 3, 4),
            uniform(1, Stage::Rollout, 3, 3, 4),
            uniform(1, Stage::Rollout, 2, 4, 4),
            uniform(1, Stage::Rollout, 2, 3, 5),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn normal_numbers_have_mean_zero_and_variance_one() {
        let mut stream = Philox::new(7, Stage::Init, 0, 0);
        let draws: Vec<f64> = (0..20_000).map(|_| stream.normal()).collect();
        let mean = draws.iter().sum::<f64>() / 20_000.0;
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 20_000.0;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05, "mean {mean}, variance {variance}");
    }
}
