//! What a file of rows is read for, and with which limits: one name for the three ways in which `encode.rs` sees rows,
//! for commands that take any of them.

use super::encode::{Encoder, PairOptions, PromptOptions, Seen, SftOptions, check_max_length};
use super::ledger::Stage;
use super::records::Row;
use super::template::ChatTemplate;
use super::tokenizer::Tokenizer;
use crate::error::Result;

/// How rows are seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Job {
    /// For supervised fine-tuning.
    Sft(SftOptions),
    /// For a reward model.
    Reward(PairOptions),
    /// For PPO.
    Ppo(PromptOptions),
}

impl Job {
    /// The stage.
    pub(crate) fn stage(&self) -> Stage {
        match self {
            Self::Sft(_) => Stage::Sft,
            Self::Reward(_) => Stage::Reward,
            Self::Ppo(_) => Stage::Ppo,
        }
    }

    /// The longest sequence that stays whole, in tokens.
    pub(crate) fn longest(&self) -> usize {
        match self {
            Self::Sft(options) => options.max_length,
            Self::Reward(options) => options.max_length,
            Self::Ppo(options) => options.context.saturating_sub(options.response_length),
        }
    }

    /// Checks the limits. Errors: `max-length`, `response-length`.
    pub(crate) fn check(&self) -> Result<()> {
        match self {
            Self::Sft(options) => check_max_length(options.max_length),
            Self::Reward(options) => check_max_length(options.max_length),
            Self::Ppo(options) => options.longest().map(|_| ()),
        }
    }

    /// What sees the rows.
    pub(crate) fn encoder<'a>(&self, tokenizer: &'a Tokenizer, template: Option<&'a ChatTemplate>) -> Encoder<'a> {
        Encoder::new(tokenizer, template, self.stage(), false)
    }

    /// A row as training sees it. Errors as `encode_sft`, `encode_pairs` and `encode_prompts`, but for prompts that are
    /// too long.
    pub(crate) fn see(&self, encoder: &Encoder<'_>, row: &Row) -> Result<Seen> {
        match self {
            Self::Sft(options) => encoder.sft_row(row, options),
            Self::Reward(options) => encoder.pair_row(row, options),
            Self::Ppo(_) => encoder.prompt_row(row),
        }
    }
}

impl Stage {
    /// The command that reads data for the stage.
    pub(crate) fn command(self) -> &'static str {
        match self {
            Self::Sft => "sft",
            Self::Reward => "reward",
            Self::Ppo => "ppo",
        }
    }

    /// The stage that a row's columns are made for, and these columns; none where no stage reads such rows.
    pub(crate) fn guess(row: &Row) -> Option<(Self, &'static str)> {
        let has = |name: &str| row.fields.get(name).is_some_and(|value| !value.is_null());
        if has("chosen") && has("rejected") {
            Some((Self::Reward, "`chosen` and `rejected`"))
        } else if has("prompt") && has("completion") {
            Some((Self::Sft, "`prompt` and `completion`"))
        } else if has("messages") {
            Some((Self::Sft, "`messages`"))
        } else if has("text") {
            Some((Self::Sft, "`text`"))
        } else if has("prompt") {
            Some((Self::Ppo, "`prompt` without a completion"))
        } else {
            None
        }
    }
}
