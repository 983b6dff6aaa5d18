//! Perplexity of a text that is longer than a model's context: windows that overlap, in which each token is predicted
//! once. And what the sum of the log-probabilities means per token and per byte.

use std::ops::Range;

/// A window of a sequence: the tokens that are read, and those of them that are counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) read: Range<usize>,
    pub(crate) counted: Range<usize>,
}

/// Windows of at most `max_length` of `tokens` tokens, each `stride` < `max_length` after the one before: a token
/// behind the first window has max_length - stride tokens before it at least, and all but the first of the sequence,
/// which nothing comes before, are counted once. A sequence of less than 2 tokens has none.
pub(crate) fn windows(tokens: usize, max_length: usize, stride: usize) -> Vec<Window> {
    let (mut windows, mut begin, mut done) = (Vec::new(), 0, 1);
    while done < tokens {
        let end = (begin + max_length).min(tokens);
        windows.push(Window { read: begin..end, counted: done..end });
        (begin, done) = (begin + stride, end);
    }
    windows
}

/// Sums over counted tokens.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Likelihood {
    /// The negative of the sum of log-probabilities, in nats.
    pub(crate) nats: f64,
    pub(crate) tokens: usize,
    /// Bytes of the text that the tokens stand for, in UTF-8.
    pub(crate) bytes: usize,
}

impl Likelihood {
    pub(crate) fn nats_per_token(&self) -> f64 {
        self.nats / self.tokens.max(1) as f64
    }

    /// e to the nats of a token: among how many equally likely tokens the model chooses, so to speak.
    pub(crate) fn perplexity(&self) -> f64 {
        self.nats_per_token().exp()
    }

    /// The same for every tokenizer; none where the tokens stand for no text.
    pub(crate) fn bits_per_byte(&self) -> Option<f64> {
        (self.bytes > 0).then(|| self.nats / std::f64::consts::LN_2 / self.bytes as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(tokens: usize, max_length: usize, stride: usize) -> Vec<[usize; 4]> {
        let windows = windows(tokens, max_length, stride);
        windows.iter().map(|w| [w.read.start, w.read.end, w.counted.start, w.counted.end]).collect()
    }

    #[test]
    fn windows_by_hand() {
        assert_eq!(of(10, 4, 2), [[0, 4, 1, 4], [2, 6, 4, 6], [4, 8, 6, 8], [6, 10, 8, 10]]);
        assert_eq!(of(9, 4, 3), [[0, 4, 1, 4], [3, 7, 4, 7], [6, 9, 7, 9]]);
        assert_eq!(of(4, 4, 1), [[0, 4, 1, 4]]);
        assert_eq!(of(5, 4, 1), [[0, 4, 1, 4], [1, 5, 4, 5]]);
        assert_eq!(of(2, 2, 1), [[0, 2, 1, 2]]);
        assert!(of(1, 4, 2).is_empty() && of(0, 4, 2).is_empty());
    }

    #[test]
    fn every_token_is_counted_once_with_context() {
        for (tokens, max_length) in [(2, 2), (17, 2), (100, 7), (64, 64), (65, 64), (1000, 33)] {
            for stride in 1..max_length {
                let windows = windows(tokens, max_length, stride);
                let counted: Vec<usize> = windows.iter().flat_map(|w| w.counted.clone()).collect();
                assert_eq!(counted, (1..tokens).collect::<Vec<_>>(), "{tokens} {max_length} {stride}");
                for window in &windows {
                    assert!(window.read.len() <= max_length && window.read.end == window.counted.end);
                    let before = window.counted.start - window.read.start;
                    assert!(before >= if window.read.start == 0 { 1 } else { max_length - stride });
                }
            }
        }
    }

    /// Two tokens of probability 1/2 and 1/8 for 4 bytes: 4 bits, of which 2 a token, and 1 a byte.
    #[test]
    fn units_by_hand() {
        let found = Likelihood { nats: 4.0 * std::f64::consts::LN_2, tokens: 2, bytes: 4 };
        assert!((found.perplexity() - 4.0).abs() < 1e-12 && found.bits_per_byte() == Some(1.0));
        assert_eq!(Likelihood::default().bits_per_byte(), None);
    }
}
