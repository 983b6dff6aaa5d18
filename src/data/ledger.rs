//! The data ledger: every row and token of a data set, kept, cut, dropped or masked, and why. Nothing is lost in
//! silence: the parts add up to the whole, exactly, and `check` says so.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What a data set is read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Supervised fine-tuning.
    Sft,
    /// Reward-model training.
    Reward,
    /// Prompts for PPO.
    Ppo,
}

/// Why a row was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It has no text, or no token.
    Empty,
    /// No token is left that the loss would learn.
    NoTarget,
    /// It is longer than the maximum, and cutting it would change what it says.
    TooLong,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "empty",
            Self::NoTarget => "nothing to learn",
            Self::TooLong => "too long",
        })
    }
}

/// Why a kept token is not learnt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mask {
    /// It belongs to what is given: the prompt, or another's turn.
    Given,
    /// It is the first of its sequence: nothing comes before it that it could be predicted from.
    First,
    /// The tokenizer added it, and it stands for nothing that is learnt.
    Added,
    /// It begins before the learnt text and ends in it.
    Straddling,
    /// The stage has no loss on tokens: a reward model scores them, PPO continues them.
    Read,
}

impl fmt::Display for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Given => "given",
            Self::First => "first of a sequence",
            Self::Added => "added by the tokenizer",
            Self::Straddling => "straddling a boundary",
            Self::Read => "read",
        })
    }
}

/// A row as it comes in, and what is left of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    /// All tokens of the row.
    pub(crate) tokens: usize,
    /// Of these, the ones that the loss would learn.
    pub(crate) targets: usize,
    /// What the example keeps: tokens that are learnt, and tokens that are not, by reason.
    pub(crate) kept_targets: usize,
    pub(crate) kept_masked: BTreeMap<Mask, u64>,
}

/// What became of the rows and tokens of one data set. Rows: `rows_in = rows_kept + sum(rows_dropped)`. Tokens:
/// `tokens_in = tokens_kept + tokens_cut + tokens_dropped`, `tokens_dropped = sum(tokens_dropped_by)`,
/// `tokens_kept = tokens_masked + tokens_target`, `tokens_masked = sum(tokens_masked_by)`. And
/// `targets_in = tokens_target + targets_cut + targets_dropped`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// What the data set was read for.
    pub stage: Stage,
    /// Rows of the file.
    pub rows_in: u64,
    /// Rows that became examples.
    pub rows_kept: u64,
    /// Of the kept ones, those cut at the end.
    pub rows_cut: u64,
    /// Rows that did not become examples, by reason.
    pub rows_dropped: BTreeMap<Reason, u64>,
    /// Tokens of all rows, special tokens included.
    pub tokens_in: u64,
    /// Tokens of the examples.
    pub tokens_kept: u64,
    /// Tokens cut from the ends of kept rows.
    pub tokens_cut: u64,
    /// Tokens of dropped rows.
    pub tokens_dropped: u64,
    /// Tokens of dropped rows, by the reason for which the row was dropped.
    pub tokens_dropped_by: BTreeMap<Reason, u64>,
    /// Kept tokens that the loss does not learn. Outside fine-tuning, all kept ones.
    pub tokens_masked: u64,
    /// The same, by reason.
    pub tokens_masked_by: BTreeMap<Mask, u64>,
    /// Kept tokens that the loss learns.
    pub tokens_target: u64,
    /// Of `tokens_in`, those that the loss would learn if nothing were cut or dropped.
    pub targets_in: u64,
    /// Of `tokens_cut`, those that the loss would have learnt.
    pub targets_cut: u64,
    /// Of `tokens_dropped`, those that the loss would have learnt.
    pub targets_dropped: u64,
    /// Of `tokens_in`, EOS that we appended.
    pub eos_appended: u64,
    /// Tokens that begin before a boundary between masked and learnt text and end behind it; they are not learnt.
    pub tokens_straddling: u64,
    /// Tokens that stand for text that the tokenizer does not know.
    pub tokens_unknown: u64,
    /// Characters, whitespace aside, for which the tokenizer made no token.
    pub characters_lost: u64,
    /// Pairs whose answers are the same tokens.
    pub identical_pairs: u64,
    /// Sequences that a chat template wrote; a pair has two.
    pub conversations: u64,
    /// Of these, the ones in which nothing teaches the model to end its answer: no EOS is learnt (fine-tuning), or none
    /// is there.
    pub conversations_without_eos: u64,
    /// Columns, and keys of messages, that nothing reads, with the number of rows that have them.
    pub extra_columns: BTreeMap<String, u64>,
}

impl Ledger {
    /// A ledger without entries.
    pub fn new(stage: Stage) -> Self {
        Self {
            stage,
            rows_in: 0,
            rows_kept: 0,
            rows_cut: 0,
            rows_dropped: BTreeMap::new(),
            tokens_in: 0,
            tokens_kept: 0,
            tokens_cut: 0,
            tokens_dropped: 0,
            tokens_dropped_by: BTreeMap::new(),
            tokens_masked: 0,
            tokens_masked_by: BTreeMap::new(),
            tokens_target: 0,
            targets_in: 0,
            targets_cut: 0,
            targets_dropped: 0,
            eos_appended: 0,
            tokens_straddling: 0,
            tokens_unknown: 0,
            characters_lost: 0,
            identical_pairs: 0,
            conversations: 0,
            conversations_without_eos: 0,
            extra_columns: BTreeMap::new(),
        }
    }

    /// Enters a row as it comes in, before its fate is known: what [`check`](Self::check) holds the parts against.
    fn enter(&mut self, entry: &Entry) {
        self.rows_in += 1;
        self.tokens_in += entry.tokens as u64;
        self.targets_in += entry.targets as u64;
    }

    /// Enters a row that becomes no example, with all its tokens.
    pub(super) fn drop_row(&mut self, reason: Reason, entry: &Entry) {
        self.enter(entry);
        self.tokens_dropped += entry.tokens as u64;
        self.targets_dropped += entry.targets as u64;
        *self.rows_dropped.entry(reason).or_default() += 1;
        *self.tokens_dropped_by.entry(reason).or_default() += entry.tokens as u64;
    }

    /// Enters a row that becomes an example, after `cut` tokens were cut from its end, `targets_cut` of them targets.
    pub(super) fn keep_row(&mut self, entry: &Entry, cut: usize, targets_cut: usize) {
        self.enter(entry);
        let masked: u64 = entry.kept_masked.values().sum();
        self.rows_kept += 1;
        self.rows_cut += u64::from(cut > 0);
        self.tokens_kept += masked + entry.kept_targets as u64;
        self.tokens_cut += cut as u64;
        self.targets_cut += targets_cut as u64;
        self.tokens_target += entry.kept_targets as u64;
        self.tokens_masked += masked;
        for (mask, tokens) in &entry.kept_masked {
            *self.tokens_masked_by.entry(*mask).or_default() += tokens;
        }
    }

    /// Enters the unused columns of a row.
    pub(super) fn note_extra(&mut self, columns: &[String]) {
        for column in columns {
            *self.extra_columns.entry(column.clone()).or_default() += 1;
        }
    }

    /// Rows that became no example.
    pub fn rows_dropped_total(&self) -> u64 {
        self.rows_dropped.values().sum()
    }

    /// Whether no conversation at all teaches the model to end its answer: the template never writes the EOS.
    pub fn template_never_writes_eos(&self) -> bool {
        self.conversations > 0 && self.conversations_without_eos == self.conversations
    }

    /// Shows that the sums are exact. Error `ledger`, a bug of ours.
    pub fn check(&self) -> Result<()> {
        let sums = [
            ("rows", self.rows_in, self.rows_kept + self.rows_dropped_total()),
            ("tokens", self.tokens_in, self.tokens_kept + self.tokens_cut + self.tokens_dropped),
            ("kept tokens", self.tokens_kept, self.tokens_masked + self.tokens_target),
            ("masked tokens", self.tokens_masked, self.tokens_masked_by.values().sum()),
            ("dropped tokens", self.tokens_dropped, self.tokens_dropped_by.values().sum()),
            ("targets", self.targets_in, self.tokens_target + self.targets_cut + self.targets_dropped),
        ];
        match sums.into_iter().find(|(_, whole, parts)| whole != parts) {
            None => Ok(()),
            Some((what, whole, parts)) => {
                Err(Error::failure("ledger", format!("the data ledger lost {what}: {whole} came in, {parts} went out")))
            }
        }
    }

    /// The lines of the table: a name, a number, and a remark.
    fn lines(&self) -> Vec<(String, u64, String)> {
        let share = |part: u64, whole: u64| {
            let percent = 100.0 * part as f64 / whole.max(1) as f64;
            format!("{percent:.1} %")
        };
        let mut lines = vec![
            ("rows in".to_string(), self.rows_in, String::new()),
            ("  kept".to_string(), self.rows_kept, share(self.rows_kept, self.rows_in)),
        ];
        let mut add = |name: &str, count: u64, remark: String| {
            if count > 0 {
                lines.push((name.to_string(), count, remark));
            }
        };
        add("    cut at the end", self.rows_cut, share(self.rows_cut, self.rows_in));
        for (reason, count) in &self.rows_dropped {
            add(&format!("  dropped: {reason}"), *count, share(*count, self.rows_in));
        }
        add("    identical pairs", self.identical_pairs, String::new());
        let hint = if self.template_never_writes_eos() { "the chat template never ends an answer" } else { "" };
        add("conversations without EOS", self.conversations_without_eos, hint.to_string());
        add("tokens in", self.tokens_in, format!("{} EOS appended", self.eos_appended));
        add("  kept", self.tokens_kept, share(self.tokens_kept, self.tokens_in));
        if self.stage == Stage::Sft {
            add("    learnt", self.tokens_target, share(self.tokens_target, self.tokens_kept));
            add("    masked", self.tokens_masked, share(self.tokens_masked, self.tokens_kept));
            for (mask, tokens) in &self.tokens_masked_by {
                add(&format!("      {mask}"), *tokens, share(*tokens, self.tokens_kept));
            }
        }
        add("  cut", self.tokens_cut, share(self.tokens_cut, self.tokens_in));
        add("    of them to be learnt", self.targets_cut, share(self.targets_cut, self.targets_in));
        for (reason, tokens) in &self.tokens_dropped_by {
            add(&format!("  dropped: {reason}"), *tokens, share(*tokens, self.tokens_in));
        }
        add("    of them to be learnt", self.targets_dropped, share(self.targets_dropped, self.targets_in));
        add("  unknown", self.tokens_unknown, share(self.tokens_unknown, self.tokens_in));
        add("characters lost", self.characters_lost, "the tokenizer has no token for them".to_string());
        for (column, rows) in &self.extra_columns {
            add(&format!("unused column {column}"), *rows, "rows".to_string());
        }
        lines
    }
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.lines();
        let width = lines.iter().map(|(name, ..)| name.chars().count()).max().unwrap_or(0);
        for (index, (name, count, remark)) in lines.iter().enumerate() {
            let end = if index + 1 < lines.len() { "\n" } else { "" };
            let line = format!("{name:width$}  {count:>12}  {remark}");
            write!(f, "{}{end}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Ledger {
        let mut ledger = Ledger::new(Stage::Sft);
        let kept = |targets, masked: &[(Mask, u64)], cut, targets_cut| {
            let kept_masked: BTreeMap<Mask, u64> = masked.iter().copied().collect();
            let tokens = targets + kept_masked.values().sum::<u64>() as usize + cut;
            Entry { tokens, targets: targets + targets_cut, kept_targets: targets, kept_masked }
        };
        ledger.keep_row(&kept(4, &[(Mask::Given, 5), (Mask::First, 1)], 3, 2), 3, 2);
        ledger.keep_row(&kept(5, &[], 0, 0), 0, 0);
        ledger.drop_row(Reason::Empty, &Entry { tokens: 1, ..Entry::default() });
        ledger.drop_row(Reason::NoTarget, &Entry { tokens: 6, targets: 1, ..Entry::default() });
        ledger.note_extra(&["id".to_string()]);
        ledger.eos_appended = 2;
        ledger
    }

    #[test]
    fn the_sums_are_exact_or_an_error() {
        let ledger = example();
        ledger.check().unwrap();
        assert_eq!((ledger.rows_in, ledger.rows_kept, ledger.rows_cut, ledger.rows_dropped_total()), (4, 2, 1, 2));
        assert_eq!((ledger.tokens_in, ledger.tokens_kept, ledger.tokens_cut, ledger.tokens_dropped), (25, 15, 3, 7));
        assert_eq!((ledger.tokens_masked, ledger.tokens_target), (6, 9));
        assert_eq!((ledger.targets_in, ledger.targets_cut, ledger.targets_dropped), (12, 2, 1));
        assert_eq!(ledger.tokens_dropped_by, [(Reason::Empty, 1), (Reason::NoTarget, 6)].into());
        assert_eq!(ledger.tokens_masked_by, [(Mask::Given, 5), (Mask::First, 1)].into());
        let breaks: [fn(&mut Ledger); 8] = [
            |l| l.rows_in += 1,
            |l| l.tokens_in += 1,
            |l| l.tokens_cut += 1,
            |l| l.tokens_masked -= 1,
            |l| *l.tokens_masked_by.entry(Mask::Given).or_default() += 1,
            |l| *l.tokens_dropped_by.entry(Reason::Empty).or_default() += 1,
            |l| l.targets_cut -= 1,
            |l| l.targets_dropped += 1,
        ];
        for break_it in breaks {
            let mut broken = example();
            break_it(&mut broken);
            assert_eq!(broken.check().unwrap_err().id(), "ledger");
        }
    }

    #[test]
    fn the_table_is_short_and_aligned() {
        let text = example().to_string();
        let expected = "\
rows in                                 4
  kept                                  2  50.0 %
    cut at the end                      1  25.0 %
  dropped: empty                        1  25.0 %
  dropped: nothing to learn             1  25.0 %
tokens in                              25  2 EOS appended
  kept                                 15  60.0 %
    learnt                              9  60.0 %
    masked                              6  40.0 %
      given                             5  33.3 %
      first of a sequence               1  6.7 %
  cut                                   3  12.0 %
    of them to be learnt                2  16.7 %
  dropped: empty                        1  4.0 %
  dropped: nothing to learn             6  24.0 %
    of them to be learnt                1  8.3 %
unused column id                        1  rows";
        assert_eq!(text, expected);
    }

    #[test]
    fn it_is_written_and_read_as_json() {
        let text = serde_json::to_string(&example()).unwrap();
        assert!(text.contains("\"rows_dropped\":{\"empty\":1,\"no_target\":1}"), "{text}");
        assert_eq!(serde_json::from_str::<Ledger>(&text).unwrap(), example());
    }
}
