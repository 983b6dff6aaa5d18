//! What is wrong with a data set before anyone trains on it: the lints, each with its name, why it matters and how to
//! fix it, and what was found of each. `check.rs` looks for them; `text.rs` and `lengths.rs` here print and count.

pub(crate) mod lengths;
pub(crate) mod text;

use serde::Serialize;

use crate::error::Error;

/// How many rows a finding names.
const PLACES_SHOWN: usize = 5;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Severity {
    /// Training would stop.
    Error,
    /// Training would go on, and probably not teach what is meant.
    Warning,
    /// Worth knowing.
    Note,
}

impl Severity {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

/// A fault that is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Lint {
    NothingLeft,
    PromptTooLong,
    EmptyRow,
    AllMasked,
    MissingEos,
    PadIsEos,
    DoubleBos,
    MissingGenerationPrompt,
    PlainPrompt,
    RoleNotRendered,
    CutByMaxLength,
    DroppedByMaxLength,
    StraddlingBoundary,
    EmptyChosen,
    EmptyRejected,
    IdenticalPair,
    LengthBias,
    UnknownToken,
    LostCharacter,
    DuplicateRow,
    RepeatedPrompt,
    EvalRowInTraining,
    EvalPromptInTraining,
    EndsBehindEos,
    DatedTemplate,
    UnusedColumn,
}

/// What is said of a lint.
struct About {
    lint: Lint,
    severity: Severity,
    id: &'static str,
    what: &'static str,
    why: &'static str,
    fix: &'static str,
}

const fn about(lint: Lint, severity: Severity, [id, what, why, fix]: [&'static str; 4]) -> About {
    About { lint, severity, id, what, why, fix }
}

use Severity::{Error as Stop, Note, Warning as Warn};

/// The lints, each with its name, what is so, why it matters, and how to fix it.
const LINTS: [About; 26] = [
    about(
        Lint::NothingLeft,
        Stop,
        [
            "nothing-left",
            "no row can be used",
            "there is nothing to train on",
            "look at the other findings: fill in what is empty, raise max_length for what is too long",
        ],
    ),
    about(
        Lint::PromptTooLong,
        Stop,
        [
            "prompt-too-long",
            "the prompt leaves no room for the response",
            "`rlhf ppo` refuses it: a cut prompt would ask something else",
            "shorten or remove these prompts, or lower --response-length",
        ],
    ),
    about(
        Lint::EmptyRow,
        Warn,
        [
            "empty-row",
            "there is no text, or nothing to learn in it, and the row is dropped",
            "rows that a conversion left empty are often a sign that it lost more",
            "fill them in or remove them",
        ],
    ),
    about(
        Lint::AllMasked,
        Warn,
        [
            "all-masked",
            "no token is learnt, and the row is dropped",
            "it costs time and teaches nothing; often the assistant's turns have another role's name, or max_length \
             cuts off the answers",
            "check the roles, or raise --max-length",
        ],
    ),
    about(
        Lint::MissingEos,
        Warn,
        [
            "missing-eos",
            "no end-of-sequence token ends what is learnt",
            "nothing teaches the model to stop: its answers run on to the length limit, in PPO without a score that \
             means anything",
            "let the chat template end an assistant's turn with the EOS, inside {% generation %} if it has such tags, \
             or set `eos_token` to what it ends a turn with",
        ],
    ),
    about(
        Lint::PadIsEos,
        Warn,
        [
            "pad-is-eos",
            "the padding token is the end-of-sequence token, and the row learns no EOS",
            "whoever masks padding masks the EOS with it, so that no trainer teaches the model to stop on such rows",
            "let the rows end with an EOS that is learnt, and give the tokenizer a padding token of its own",
        ],
    ),
    about(
        Lint::DoubleBos,
        Warn,
        [
            "double-bos",
            "the beginning-of-sequence token stands there twice",
            "the model never saw that before: quality falls without an error",
            "take the BOS out of the rows' texts, and let either the template or the tokenizer write it",
        ],
    ),
    about(
        Lint::MissingGenerationPrompt,
        Warn,
        [
            "missing-generation-prompt",
            "the prompt does not end with what begins an answer",
            "the policy would write the beginning of the assistant's turn itself, or go on with the user's",
            "let the template write it under `add_generation_prompt`, or end the texts with it to the character",
        ],
    ),
    about(
        Lint::PlainPrompt,
        Warn,
        [
            "plain-prompt",
            "the prompt is plain text, and the model has a chat template",
            "a chat model knows questions only in its template's form",
            "give the prompt as messages: [{\"role\": \"user\", \"content\": ...}]; for a base model this may be meant",
        ],
    ),
    about(
        Lint::RoleNotRendered,
        Warn,
        [
            "role-not-rendered",
            "the chat template leaves a turn out because of its role",
            "the model never sees that text",
            "rename the role to one that the template knows, or take another template",
        ],
    ),
    about(
        Lint::CutByMaxLength,
        Warn,
        [
            "cut-by-max-length",
            "the row is longer than max_length, and its end is cut off",
            "answers lose their ends, and with them the EOS",
            "raise --max-length, or shorten the rows; the table of lengths says what each value costs",
        ],
    ),
    about(
        Lint::DroppedByMaxLength,
        Warn,
        [
            "dropped-by-max-length",
            "an answer is longer than max_length, and the pair is dropped",
            "the reward model never sees long answers, and PPO is free to make them",
            "raise --max-length, or shorten the rows; the table of lengths says what each value costs",
        ],
    ),
    about(
        Lint::StraddlingBoundary,
        Warn,
        [
            "straddling-boundary",
            "a token begins in the prompt and ends in the answer, and is not learnt",
            "the answer's first letters are masked, and the prompt alone is other tokens than the ones trained on",
            "move the space from the end of the prompt to the beginning of the completion",
        ],
    ),
    about(
        Lint::EmptyChosen,
        Warn,
        [
            "empty-chosen",
            "the chosen answer is empty",
            "the reward model learns that saying nothing is best",
            "fill it in or remove the pair",
        ],
    ),
    about(
        Lint::EmptyRejected,
        Warn,
        [
            "empty-rejected",
            "the rejected answer is empty",
            "the pair teaches only that any text is better than none",
            "fill it in or remove the pair",
        ],
    ),
    about(
        Lint::IdenticalPair,
        Warn,
        [
            "identical-pair",
            "chosen and rejected are the same tokens",
            "the pair has no gradient, and no model can be right on it",
            "remove it",
        ],
    ),
    about(
        Lint::LengthBias,
        Warn,
        [
            "length-bias",
            "length alone tells most pairs apart",
            "the reward model learns length, and PPO then makes answers longer (or shorter) instead of better",
            "balance the pairs by length, and watch the correlation of reward and length",
        ],
    ),
    about(
        Lint::UnknownToken,
        Warn,
        [
            "unknown-token",
            "the tokenizer knows a part of the text only as its unknown token",
            "the model sees the same token for all that is unknown, and learns to write it",
            "use a tokenizer with byte fallback, or replace the characters",
        ],
    ),
    about(
        Lint::LostCharacter,
        Warn,
        [
            "lost-character",
            "the tokenizer has no token for some characters, and drops them",
            "the model sees another text than the file has",
            "use a tokenizer with byte fallback, or replace the characters",
        ],
    ),
    about(
        Lint::DuplicateRow,
        Warn,
        [
            "duplicate-row",
            "the row is, token for token, one that stood before",
            "repeated rows weigh more than others, and are learnt by heart",
            "remove the repetitions, unless they are meant",
        ],
    ),
    about(
        Lint::RepeatedPrompt,
        Note,
        [
            "repeated-prompt",
            "the prompt is one that stood before",
            "it is answered more often than others",
            "remove the repetitions, unless they are meant",
        ],
    ),
    about(
        Lint::EvalRowInTraining,
        Warn,
        [
            "eval-row-in-training",
            "the evaluation row is, token for token, a training row",
            "the evaluation measures memory, and looks better than the model is",
            "remove these rows from one of the files",
        ],
    ),
    about(
        Lint::EvalPromptInTraining,
        Warn,
        [
            "eval-prompt-in-training",
            "the evaluation row's prompt is one of the training data, with another answer",
            "the model has seen an answer to it, and the evaluation looks better than the model is",
            "split training and evaluation by prompt",
        ],
    ),
    about(
        Lint::EndsBehindEos,
        Note,
        [
            "ends-behind-eos",
            "the template writes more behind the end-of-sequence token",
            "the reward is learnt at the last token of all, and in PPO it is read at the EOS, where answers end",
            "let the template end the last assistant's turn with the EOS",
        ],
    ),
    about(
        Lint::DatedTemplate,
        Note,
        [
            "dated-template",
            "the chat template writes today's date",
            "the tokens change from day to day",
            "nothing, if the model expects a date; a resumed run keeps the first run's",
        ],
    ),
    about(
        Lint::UnusedColumn,
        Note,
        [
            "unused-column",
            "nothing reads a column, or a key of a message",
            "what it says is not trained on",
            "nothing, if that is meant; `messages[].tool_calls` and the like are not rendered",
        ],
    ),
];

impl Lint {
    fn about(self) -> &'static About {
        LINTS.iter().find(|about| about.lint == self).unwrap_or(&LINTS[0])
    }

    #[cfg(test)]
    pub(crate) fn id(self) -> &'static str {
        self.about().id
    }
}

/// Rows that have a fault, as they are counted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rows {
    count: u64,
    places: Vec<String>,
}

impl Rows {
    /// So many, none of which is named.
    pub(crate) fn counted(count: u64) -> Self {
        Self { count, places: Vec::new() }
    }

    /// Counts one more.
    pub(crate) fn add(&mut self, place: impl FnOnce() -> String) {
        self.count += 1;
        if self.places.len() < PLACES_SHOWN {
            self.places.push(place());
        }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }
}

/// What was found of one fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) id: &'static str,
    pub(crate) severity: Severity,
    /// Rows that have it.
    pub(crate) count: u64,
    pub(crate) what: String,
    /// The first of these rows: `file:line`.
    pub(crate) rows: Vec<String>,
    pub(crate) why: String,
    pub(crate) fix: String,
}

impl Finding {
    /// A lint, and what is to be said of it here.
    pub(crate) fn of(lint: Lint, rows: Rows, detail: &str) -> Self {
        let About { severity, id, what, why, fix, .. } = *lint.about();
        let detail = if detail.is_empty() { String::new() } else { format!(" ({detail})") };
        let what = format!("{what}{detail}");
        let (why, fix) = (why.to_owned(), fix.to_owned());
        Self { id, severity, count: rows.count, what, rows: rows.places, why, fix }
    }

    /// Rows that cannot be read, all for the same reason.
    pub(crate) fn unreadable(error: &Error, rows: Rows) -> Self {
        Self {
            id: error.id(),
            severity: Severity::Error,
            count: rows.count,
            what: error.what().to_owned(),
            rows: rows.places,
            why: error.why().unwrap_or("the row cannot be read, and training would stop at it").to_owned(),
            fix: error.cure().unwrap_or("correct or remove the row").to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lint_is_described_once_under_a_name_of_its_own() {
        let mut ids: Vec<&str> = LINTS.iter().map(|about| about.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), LINTS.len());
        for (index, about) in LINTS.iter().enumerate() {
            assert_eq!(about.lint as usize, index, "{}", about.id);
            assert_eq!(about.lint.id(), about.id);
            assert!([about.what, about.why, about.fix].iter().all(|text| text.len() > 8 && !text.contains("  ")));
        }
    }
}
