//! The losses of the three stages. Every mean is over the tokens (pairs) of the whole optimizer batch, whose number the
//! caller gives, so that cutting the batch into micro-batches changes nothing.

pub(crate) use crate::ops::pairwise_loss::pairwise_loss;
pub(crate) use crate::ops::ppo_loss::{Coefficients, Tokens, ppo_loss};
pub(crate) use crate::ops::token_logprobs::Objective;
