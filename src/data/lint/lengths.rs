//! How long the rows are, and what each `max_length` would cost: the histogram and the table of `rlhf data check`.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Value, json};

use crate::data::encode::Seen;
use crate::data::ledger::Stage;

/// Bars of a histogram, the open one at the end included.
const BARS: usize = 12;

/// Columns of the longest bar.
const BAR_WIDTH: usize = 40;

/// Values of `max_length` that are shown beside the one at hand.
const LIMITS_SHOWN: usize = 6;

/// The lengths of a data set's rows, in tokens; of a pair, its longer side.
#[derive(Debug, Clone)]
pub(crate) struct Lengths {
    stage: Stage,
    counts: BTreeMap<usize, u64>,
    limits: Vec<Limit>,
}

/// What a longest length would cost.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Limit {
    tokens: usize,
    /// Whether it is the one that training would take.
    is_set: bool,
    /// Rows that are longer.
    rows: u64,
    /// Tokens that would be cut or dropped.
    lost: u64,
    /// Of these, the ones that would be learnt.
    targets: u64,
}

impl Lengths {
    /// For rows of a stage in which `longest` is the limit.
    pub(crate) fn new(stage: Stage, longest: usize) -> Self {
        let mut tokens: Vec<usize> = (3..18).map(|power| 1 << power).chain([longest]).collect();
        tokens.sort_unstable();
        tokens.dedup();
        let limit = |tokens| Limit { tokens, is_set: tokens == longest, ..Limit::default() };
        Self { stage, counts: BTreeMap::new(), limits: tokens.into_iter().map(limit).collect() }
    }

    /// Counts a row.
    pub(crate) fn add(&mut self, seen: &Seen) {
        let lengths = seen.sequences.iter().map(|sequence| sequence.encoding.ids.len());
        let Some(length) = lengths.max() else { return };
        *self.counts.entry(length).or_default() += 1;
        for limit in self.limits.iter_mut().take_while(|limit| limit.tokens < length) {
            limit.rows += 1;
            if self.stage == Stage::Sft {
                limit.lost += (length - limit.tokens) as u64;
                let masks = seen.sequences.iter().flat_map(|sequence| sequence.masks.iter().skip(limit.tokens));
                limit.targets += masks.filter(|mask| mask.is_none()).count() as u64;
            } else {
                limit.lost += seen.tokens() as u64;
            }
        }
    }

    fn rows(&self) -> u64 {
        self.counts.values().sum()
    }

    /// The length that `share` of the rows do not pass.
    fn quantile(&self, share: f64) -> usize {
        let rank = (share * self.rows() as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        let reaches = |(_, count): &(&usize, &u64)| {
            seen += **count;
            seen >= rank
        };
        self.counts.iter().find(reaches).map_or(0, |(length, _)| *length)
    }

    fn longest(&self) -> usize {
        self.counts.last_key_value().map_or(0, |(length, _)| *length)
    }

    /// The bars: the first and the last length that each holds, and how many rows; equal widths of 1, 2 or 5 times a
    /// power of ten, and a last one for the longest few.
    fn bars(&self) -> Vec<(usize, usize, u64)> {
        let longest = self.longest();
        let shown = (self.quantile(0.95) * 3 / 2).clamp(1, longest.max(1));
        let widths = (0..9).flat_map(|power| [1, 2, 5].map(|digit| digit * 10_usize.pow(power)));
        let width = widths.into_iter().find(|width| shown / width < BARS).unwrap_or(usize::MAX);
        let first = self.counts.keys().next().map_or(0, |length| length / width);
        let last = shown / width;
        let bar = |index: usize| {
            let (from, to) =
                (index * width, if index == last { longest.max(from_to(index, width)) } else { from_to(index, width) });
            (from, to, self.counts.range(from..=to).map(|(_, count)| count).sum())
        };
        (first.min(last)..=last).map(bar).collect()
    }

    /// The limits to show: those that cost something, the largest few, and the one that is set.
    fn shown(&self) -> Vec<&Limit> {
        let costly: Vec<&Limit> = self.limits.iter().filter(|limit| limit.rows > 0 && !limit.is_set).collect();
        let free = self.limits.iter().find(|limit| limit.rows == 0 && !limit.is_set);
        let few = costly.iter().rev().take(LIMITS_SHOWN - 1).copied();
        let mut shown: Vec<&Limit> = few.chain(free).chain(self.limits.iter().filter(|limit| limit.is_set)).collect();
        shown.sort_by_key(|limit| limit.tokens);
        shown
    }

    /// The same as JSON.
    pub(crate) fn to_json(&self) -> Value {
        let bars = self.bars().into_iter().map(|(from, to, rows)| json!({ "from": from, "to": to, "rows": rows }));
        let limits = self.limits.iter().map(|limit| {
            let Limit { tokens, rows, lost, targets, .. } = limit;
            json!({ "limit": tokens, "rows": rows, "tokens": lost, "targets": targets })
        });
        json!({
            "median": self.quantile(0.5),
            "p95": self.quantile(0.95),
            "longest": self.longest(),
            "histogram": bars.collect::<Vec<_>>(),
            "limits": limits.collect::<Vec<_>>(),
        })
    }

    /// The same for a terminal.
    pub(crate) fn describe(&self) -> String {
        if self.counts.is_empty() {
            return String::new();
        }
        let mut text = format!(
            "lengths in tokens{}: median {}, 95 % within {}, longest {}\n",
            if self.stage == Stage::Reward { " (a pair's longer side)" } else { "" },
            self.quantile(0.5),
            self.quantile(0.95),
            self.longest()
        );
        let bars = self.bars();
        let most = bars.iter().map(|(_, _, rows)| *rows).max().unwrap_or(1).max(1);
        for (from, to, rows) in bars {
            let filled = (rows as f64 / most as f64 * BAR_WIDTH as f64).ceil() as usize;
            let range = if from == to { from.to_string() } else { format!("{from}-{to}") };
            let line = format!("{range:>15}  {:<BAR_WIDTH$}  {rows}", "█".repeat(filled));
            let _ = writeln!(text, "{line}");
        }
        let (name, what) = match self.stage {
            Stage::Sft => ("max_length", "rows cut"),
            Stage::Reward => ("max_length", "pairs dropped"),
            Stage::Ppo => ("longest prompt", "prompts refused"),
        };
        let _ = write!(text, "{name:>15}  {what:>15}  {:>12}", "tokens lost");
        text += if self.stage == Stage::Sft { "  targets lost\n" } else { "\n" };
        for limit in self.shown() {
            let _ = write!(text, "{:>15}  {:>15}  {:>12}", limit.tokens, limit.rows, limit.lost);
            if self.stage == Stage::Sft {
                let _ = write!(text, "  {:>12}", limit.targets);
            }
            text += if limit.is_set { "  <- as set\n" } else { "\n" };
        }
        text
    }
}

/// The last length of a bar.
fn from_to(index: usize, width: usize) -> usize {
    index * width + (width - 1)
}
