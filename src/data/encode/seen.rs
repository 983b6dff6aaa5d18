//! A row on its way to an example: the text that is tokenised with what is learnt of it, and the row as training sees
//! it, whole, with what becomes of it. Training, `rlhf data check` and `rlhf data preview` all take it from here.

use std::ops::Range;

use super::{PairExample, PromptExample, SftExample};
use crate::data::ledger::{Mask, Reason};
use crate::data::tokenizer::Encoding;
use crate::error::{Error, Result};

/// A text ready to be tokenised.
pub(super) struct Prepared {
    pub(super) text: String,
    /// Which bytes the loss learns, ascending.
    pub(super) learnt: Vec<Range<usize>>,
    /// Whether a chat template wrote it: it then has its own special tokens.
    pub(super) is_conversation: bool,
}

impl Prepared {
    pub(super) fn plain(text: String, learnt_from: usize) -> Self {
        let learnt = one(learnt_from..text.len());
        Self { text, learnt, is_conversation: false }
    }

    pub(super) fn conversation(text: String, learnt: Vec<Range<usize>>) -> Self {
        Self { text, learnt, is_conversation: true }
    }

    /// How many tokens begin before a place where learning begins or ends, and end behind it.
    pub(super) fn count_straddling(&self, offsets: &[(usize, usize)]) -> u64 {
        let places: Vec<usize> = self.learnt.iter().flat_map(|span| [span.start, span.end]).collect();
        let straddles = |(start, end): &&(usize, usize)| {
            let next = places.get(places.partition_point(|place| place <= start));
            next.is_some_and(|place| place < end)
        };
        offsets.iter().filter(straddles).count() as u64
    }

    /// Whether the byte at `place` is learnt.
    pub(super) fn is_learnt(&self, place: usize) -> bool {
        let span = self.learnt.get(self.learnt.partition_point(|span| span.end <= place));
        span.is_some_and(|span| span.start <= place)
    }

    /// Which tokens are learnt, and why the others are not. Learnt are those that begin in a learnt span, and the EOS
    /// behind a text that is learnt to its end.
    pub(super) fn masks(&self, encoding: &Encoding) -> Vec<Option<Mask>> {
        let end = self.text.len();
        let is_end_learnt = self.learnt.last().is_some_and(|span| span.end == end);
        let places = encoding.offsets.iter().zip(&encoding.is_added).enumerate();
        let mask = |(index, ((from, to), is_added)): (usize, (&(usize, usize), &bool))| {
            if *is_added {
                // A BOS stands for nothing in the text.
                let is_closing = index > 0 && *from == end && is_end_learnt;
                return if is_closing { None } else { Some(Mask::Added) };
            }
            if self.is_learnt(*from) {
                // Nothing comes before the first token, so no loss can learn it.
                return (index == 0).then_some(Mask::First);
            }
            let reaches = self.learnt.get(self.learnt.partition_point(|span| span.start <= *from));
            let straddles = reaches.is_some_and(|span| span.start < *to && span.start < span.end);
            Some(if straddles { Mask::Straddling } else { Mask::Given })
        };
        places.map(mask).collect()
    }
}

/// What becomes of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It becomes an example, after so many tokens were cut from its end.
    Kept {
        /// Tokens.
        cut: usize,
    },
    /// It becomes none.
    Dropped(Reason),
}

/// One sequence of a row, whole.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sequence {
    pub(crate) text: String,
    pub(crate) encoding: Encoding,
    /// Why the loss does not learn a token; none for one that it learns.
    pub(crate) masks: Vec<Option<Mask>>,
    /// Whether a chat template wrote the text.
    pub(crate) is_conversation: bool,
    /// Whether nothing in it teaches the model to end its answer.
    pub(crate) lacks_eos: bool,
    /// Tokens that stand for text that the tokenizer does not know.
    pub(crate) unknown: usize,
    /// Characters for which it made no token.
    pub(crate) lost: usize,
    pub(super) straddling: u64,
    pub(super) is_closed: bool,
}

/// A row as training sees it: its sequences before anything is cut, and what becomes of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Seen {
    /// One, of a pair the chosen and the rejected; none for what has no text.
    pub(crate) sequences: Vec<Sequence>,
    pub(crate) fate: Fate,
    pub(super) margin: f32,
    /// Columns that nothing reads.
    pub(super) extra: Vec<String>,
}

impl Seen {
    pub(super) fn new(sequences: Vec<Sequence>, fate: Fate) -> Self {
        Self { sequences, fate, margin: 0.0, extra: Vec::new() }
    }

    /// Tokens of all sequences.
    pub(crate) fn tokens(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.encoding.ids.len()).sum()
    }

    fn is_kept(&self) -> bool {
        matches!(self.fate, Fate::Kept { .. })
    }

    pub(super) fn into_example(self, place: String) -> Option<SftExample> {
        let Fate::Kept { cut } = self.fate else { return None };
        let sequence = self.sequences.into_iter().next()?;
        let mut ids = sequence.encoding.ids;
        ids.truncate(ids.len() - cut);
        let is_target = sequence.masks.iter().take(ids.len()).map(Option::is_none).collect();
        Some(SftExample { ids, is_target, place })
    }

    pub(super) fn into_pair(self, place: String) -> Option<PairExample> {
        let margin = self.margin;
        let sides = if self.is_kept() { self.sequences } else { Vec::new() };
        let [chosen, rejected] = <[Sequence; 2]>::try_from(sides).ok()?;
        Some(PairExample { chosen: chosen.encoding.ids, rejected: rejected.encoding.ids, margin, place })
    }

    pub(super) fn into_prompt(self, place: String) -> Option<PromptExample> {
        let sequences = if self.is_kept() { self.sequences } else { Vec::new() };
        let sequence = sequences.into_iter().next()?;
        Some(PromptExample { ids: sequence.encoding.ids, text: sequence.text, place })
    }

    /// An error where anything is lost.
    pub(super) fn refuse_loss(&self) -> Result<()> {
        let lost = self.sequences.iter().map(|sequence| sequence.lost).find(|lost| *lost > 0);
        let (error, fix) = match (lost, self.fate) {
            (Some(lost), _) => {
                let what = format!("the tokenizer has no token for {lost} characters of the row");
                (Error::input("strict-text-lost", what), "use a tokenizer with byte fallback, remove the characters")
            }
            (None, Fate::Dropped(reason)) => {
                let what = format!("the row would be dropped: {reason}");
                (Error::input("strict-row-dropped", what), "correct or remove the row")
            }
            (None, Fate::Kept { cut: 0 }) => return Ok(()),
            (None, Fate::Kept { cut }) => {
                let tokens = self.tokens();
                let what = format!("the row has {tokens} tokens and would be cut to {}", tokens - cut);
                (Error::input("strict-row-cut", what), "raise max_length, shorten the row")
            }
        };
        Err(error.because("--strict forbids any loss of data").fix(format!("{fix}, or leave --strict out")))
    }
}

impl Sequence {
    pub(super) fn without_token_loss(mut self) -> Self {
        self.masks.iter_mut().for_each(|mask| *mask = Some(Mask::Read));
        self
    }
}

pub(super) fn one(span: Range<usize>) -> Vec<Range<usize>> {
    std::iter::once(span).collect()
}
