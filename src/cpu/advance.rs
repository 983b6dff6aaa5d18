//! One step of decoding is over: each row takes its token and becomes the next step's input. The token and its
//! log-probability are kept at (count mod window), count and position go up by one, and a row is finished after a stop
//! token, at the largest count, or if a logit was not finite; then it stays as it is.

#![forbid(unsafe_code)]

use crate::random::uniform_of;

/// Rows that decode; a slice has one element a row.
pub(crate) struct Rows<'a> {
    /// The token that is fed next.
    pub(crate) ids: &'a mut [i32],
    /// Where it stands.
    pub(crate) positions: &'a mut [i32],
    /// Tokens drawn so far.
    pub(crate) counts: &'a mut [i32],
    /// 1 if the row is finished.
    pub(crate) finished: &'a mut [i32],
    /// Decides the next draw.
    pub(crate) uniforms: &'a mut [f32],
    /// [window, rows].
    pub(crate) tokens: &'a mut [i32],
    /// [window, rows].
    pub(crate) logprobs: &'a mut [f32],
    /// Which random numbers the row draws.
    pub(crate) numbers: &'a [i32],
}

/// What is the same for all rows and steps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rule<'a> {
    pub(crate) stop: &'a [i32],
    /// Tokens of a row at most.
    pub(crate) most: usize,
    pub(crate) seed: u64,
    /// Stage and step of the random numbers' counter.
    pub(crate) stage: u32,
    pub(crate) step: u32,
}

/// A step in which `drawn` came with `logprobs`; `bad` is -1, or an id whose logit was not finite, which is kept as
/// the token -1 - id.
pub(crate) fn advance(rows: &mut Rows<'_>, drawn: &[i32], bad: &[i32], logprobs: &[f32], rule: Rule<'_>) {
    let (n, window) = (rows.ids.len(), rows.tokens.len() / rows.ids.len().max(1));
    for row in 0..n {
        if rows.finished[row] != 0 {
            continue;
        }
        let (token, count) = (drawn[row], rows.counts[row]);
        let place = count as usize % window * n + row;
        rows.tokens[place] = if bad[row] >= 0 { -1 - bad[row] } else { token };
        rows.logprobs[place] = logprobs[row];
        rows.counts[row] = count + 1;
        let stopped = bad[row] >= 0 || rule.stop.contains(&token) || count as usize + 1 >= rule.most;
        rows.finished[row] = i32::from(stopped);
        if !stopped {
            rows.ids[row] = token;
            rows.positions[row] += 1;
            let [number, position] = [rows.numbers[row], count + 1].map(|x| x as u32);
            rows.uniforms[row] = uniform_of(rule.seed, rule.stage, rule.step, number, position);
        }
    }
}
