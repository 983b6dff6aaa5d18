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

/// What became of the rows and tokens of one data set. Rows: `rows_in = rows_kept + sum(rows_dropped)`. Tokens:
/// `tokens_in = tokens_kept + tokens_cut + tokens_dropped`, `tokens_kept = tokens_masked + tokens_target`.
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
    /// Kept tokens that the loss does not learn. Outside fine-tuning, all kept ones.
    pub tokens_masked: u64,
    /// Kept tokens that the loss learns.
    pub tokens_target: u64,
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
            tokens_masked: 0,
            tokens_target: 0,
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

    /// Enters a row that becomes no example, with all its tokens.
    pub(super) fn drop_row(&mut self, reason: Reason, tokens: usize) {
        self.rows_in += 1;
        self.tokens_in += tokens as u64;
        self.tokens_dropped += tokens as u64;
        *self.rows_dropped.entry(reason).or_default() += 1;
    }

    /// Enters a row that becomes an example of `kept` tokens, of which `targets` are learnt, after `cut` were cut.
    pub(super) fn keep_row(&mut self, kept: usize, cut: usize, targets: usize) {
        self.rows_in += 1;
        self.rows_kept += 1;
        self.rows_cut += u64::from(cut > 0);
        self.tokens_in += (kept + cut) as u64;
        self.tokens_kept += kept as u64;
        self.tokens_cut += cut as u64;
        self.tokens_target += targets as u64;
        self.tokens_masked += kept.saturating_sub(targets) as u64;
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
        }
        add("  cut", self.tokens_cut, share(self.tokens_cut, self.tokens_in));
        add("  dropped", self.tokens_dropped, share(self.tokens_dropped, self.tokens_in));
        add("  straddling a boundary", self.tokens_straddling, "masked".to_string());
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
        ledger.keep_row(10, 3, 4);
        ledger.keep_row(5, 0, 5);
        ledger.drop_row(Reason::Empty, 1);
        ledger.drop_row(Reason::NoTarget, 6);
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
        let breaks: [fn(&mut Ledger); 3] = [|l| l.rows_in += 1, |l| l.tokens_cut += 1, |l| l.tokens_masked -= 1];
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
  cut                                   3  12.0 %
  dropped                               7  28.0 %
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
