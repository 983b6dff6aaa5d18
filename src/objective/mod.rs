//! The mathematics of RLHF, without state and without models: log-probabilities, scores and values in, rewards,
//! advantages and losses out.

#![forbid(unsafe_code)]

pub(crate) mod advantages;
pub(crate) mod calibration;
pub(crate) mod interval;
pub(crate) mod losses;
pub(crate) mod perplexity;
pub(crate) mod rewards;
#[cfg(test)]
mod tests;
pub(crate) mod win_rate;
