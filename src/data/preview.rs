//! `rlhf data preview`: rows as training sees them, token for token, with what the loss learns of them. Every token is
//! shown by the text it stands for; what a terminal would obey or hide is shown as its code.

mod layout;

use std::ops::RangeInclusive;

use super::check::prompt_without_opening;
use super::encode::{Fate, Seen, Sequence};
use super::job::Job;
use super::ledger::Mask;
use super::records::Row;
use super::template::ChatTemplate;
use super::tokenizer::Tokenizer;
use crate::error::{self, Code, Error, Result};
pub(crate) use layout::Paint;
use layout::{Piece, State};

/// Which rows are shown, in the file's order, from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Selection(Vec<RangeInclusive<u64>>);

/// What opens, closes and names a special token, and what ends each token: in a text they are shown as codes.
const SIGNS: [char; 3] = ['⟨', '⟩', layout::END];

impl Selection {
    /// `3` is the first three rows; `2,7,10-12` are these.
    pub(crate) fn parse(text: &str) -> std::result::Result<Self, String> {
        let wrong = || "a number of rows (3), or a list of them (2,7,10-12) is needed".to_owned();
        let number = |text: &str| text.trim().parse::<u64>().ok().filter(|number| *number > 0).ok_or_else(wrong);
        if !text.contains([',', '-']) {
            return Ok(Self(std::iter::once(1..=number(text)?).collect()));
        }
        let range = |part: &str| match part.split_once('-') {
            Some((from, to)) => Ok(number(from)?..=number(to)?),
            None => number(part).map(|number| number..=number),
        };
        let parts = text.split(',').filter(|part| !part.trim().is_empty());
        let ranges: Vec<_> = parts.map(range).collect::<std::result::Result<_, String>>()?;
        if ranges.is_empty() || ranges.iter().any(RangeInclusive::is_empty) { Err(wrong()) } else { Ok(Self(ranges)) }
    }

    /// Whether row `number` is shown.
    pub(crate) fn contains(&self, number: u64) -> bool {
        self.0.iter().any(|range| range.contains(&number))
    }

    /// The last row that is shown.
    pub(crate) fn last(&self) -> u64 {
        self.0.iter().map(|range| *range.end()).max().unwrap_or(0)
    }

    /// A row that the file must have, because it was named.
    pub(crate) fn named(&self) -> Option<u64> {
        let counts = matches!(self.0.as_slice(), [range] if *range.start() == 1);
        (!counts).then(|| self.0.iter().map(|range| *range.start()).max()).flatten()
    }
}

/// Shows rows.
pub(crate) struct Preview<'a> {
    job: Job,
    tokenizer: &'a Tokenizer,
    template: Option<&'a ChatTemplate>,
    paint: Paint,
}

impl<'a> Preview<'a> {
    pub(crate) fn new(job: Job, tokenizer: &'a Tokenizer, template: Option<&'a ChatTemplate>, paint: Paint) -> Self {
        Self { job, tokenizer, template, paint }
    }

    /// Row `number` of the file. What is wrong with the row is shown in its place; an error is one of the command line
    /// or of the machine.
    pub(crate) fn row(&self, number: u64, row: Result<Row>) -> Result<String> {
        let encoder = self.job.encoder(self.tokenizer, self.template);
        match row.and_then(|row| Ok((self.job.see(&encoder, &row)?, row))) {
            Ok((seen, row)) => Ok(self.show(number, &row, &seen)),
            Err(error) if error.code() == Code::Input => {
                let place = error.place().unwrap_or_default();
                let why = error.why().map(|why| format!("\n  why: {why}")).unwrap_or_default();
                let text = format!("row {number}  {place}: cannot be read: {} [{}]{why}\n", error.what(), error.id());
                Ok(error::visible(&text).into_owned())
            }
            Err(error) => Err(error),
        }
    }

    fn show(&self, number: u64, row: &Row, seen: &Seen) -> String {
        let place = error::visible(&row.place);
        let fate = match seen.fate {
            Fate::Dropped(reason) => format!("; the row is dropped: {reason}"),
            Fate::Kept { .. } => String::new(),
        };
        let head = |what: String| format!("row {number}  {place}: {what}{fate}\n");
        match (self.job, seen.sequences.as_slice()) {
            (_, []) => head("no token".to_owned()),
            (Job::Sft(_), [sequence, ..]) => self.show_example(&head, sequence, seen.fate),
            (Job::Reward(_), [chosen, rejected]) => self.show_pair(&head, chosen, rejected),
            (Job::Reward(_) | Job::Ppo(_), [sequence, ..]) => self.show_prompt(&head, row, sequence),
        }
    }

    fn show_example(&self, head: &dyn Fn(String) -> String, sequence: &Sequence, fate: Fate) -> String {
        let length = sequence.encoding.ids.len();
        // Of a row that is dropped nothing is cut: all of it is lost.
        let cut = if let Fate::Kept { cut } = fate { cut } else { 0 };
        let state = |(index, mask): (usize, &Option<Mask>)| match mask {
            _ if index >= length - cut => State::Cut,
            None => State::Learnt,
            Some(Mask::Straddling) => State::Straddling,
            Some(_) => State::Masked,
        };
        let states: Vec<State> = sequence.masks.iter().enumerate().map(state).collect();
        let count = |wanted: State| states.iter().filter(|state| **state == wanted).count();
        let mut what = format!("{length} tokens: {} learnt, {} masked", count(State::Learnt), count(State::Masked));
        if count(State::Straddling) > 0 {
            what += &format!(", {} masked because they straddle the boundary", count(State::Straddling));
        }
        if cut > 0 {
            let targets = sequence.masks.iter().skip(length - cut).filter(|mask| mask.is_none()).count();
            what += &format!(", {cut} cut ({targets} of them to be learnt)");
        }
        head(what) + &self.paint.lines(&self.pieces(sequence, &states))
    }

    fn show_pair(&self, head: &dyn Fn(String) -> String, chosen: &Sequence, rejected: &Sequence) -> String {
        let [left, right] = [chosen, rejected].map(|side| &side.encoding.ids);
        let same = left.iter().zip(right).take_while(|(a, b)| a == b).count();
        let difference = match left == right {
            true => "they are identical".to_owned(),
            false => format!("they differ from token {} on", same + 1),
        };
        let what = format!("chosen {} tokens, rejected {}: {difference}", left.len(), right.len());
        let side = |sequence: &Sequence, state| {
            let shared = std::iter::repeat_n(State::Shared, same);
            let own = std::iter::repeat_n(state, sequence.encoding.ids.len() - same);
            self.pieces(sequence, &shared.chain(own).collect::<Vec<_>>())
        };
        let [chosen, rejected] = [side(chosen, State::Chosen), side(rejected, State::Rejected)];
        let (shared, chosen) = chosen.split_at(same);
        let (_, rejected) = rejected.split_at(same);
        head(what) + &self.paint.lines(shared) + &self.paint.columns(chosen, rejected)
    }

    fn show_prompt(&self, head: &dyn Fn(String) -> String, row: &Row, sequence: &Sequence) -> String {
        let length = sequence.encoding.ids.len();
        let opening = prompt_without_opening(self.template, row).filter(|text| sequence.text.starts_with(text));
        let from = opening.map_or(sequence.text.len(), |text| text.len());
        let state = |(start, _): &(usize, usize)| if *start >= from { State::Opening } else { State::Given };
        let states: Vec<State> = sequence.encoding.offsets.iter().map(state).collect();
        let opening = states.iter().filter(|state| **state == State::Opening).count();
        let mut what = format!("{length} tokens, the last {opening} of them the generation prompt");
        if opening == 0 {
            what = format!("{length} tokens, no generation prompt");
        }
        if length > self.job.longest() {
            what += &format!("; too long: at most {} leave room for the response", self.job.longest());
        }
        head(what) + &self.paint.lines(&self.pieces(sequence, &states))
    }

    /// The tokens of a sequence as they are shown.
    fn pieces(&self, sequence: &Sequence, states: &[State]) -> Vec<Piece> {
        let encoding = &sequence.encoding;
        let mut reached = 0;
        let tokens = encoding.ids.iter().zip(&encoding.offsets).zip(&encoding.is_added).zip(states).enumerate();
        tokens
            .map(|(index, (((id, (from, to)), is_added), state))| {
                // Bytes of one character are tokens of the same place.
                let text = sequence.text.get((*from).max(reached)..*to).unwrap_or_default();
                let gap = sequence.text.get(reached..*from).unwrap_or_default().trim();
                reached = reached.max(*to);
                let is_special = *is_added || self.tokenizer.is_special(*id) || self.is_unknown(*id);
                let shown = match (is_special, text) {
                    (true, _) => self.special(*id, index, text),
                    (false, "") => "⟨…⟩".to_owned(),
                    (false, text) => visible(text),
                };
                let lost = if gap.is_empty() { String::new() } else { format!("⟨lost {}⟩", visible(gap)) };
                Piece { state: *state, is_special, text: lost + &shown, breaks: text.ends_with('\n') }
            })
            .collect()
    }

    fn is_unknown(&self, id: i32) -> bool {
        self.tokenizer.unk_token_id() == Some(id)
    }

    /// A special token by its name and its role.
    fn special(&self, id: i32, index: usize, text: &str) -> String {
        let name = self.tokenizer.id_to_token(id).unwrap_or_else(|| id.to_string());
        let name = visible(&name);
        let is_bos = self.tokenizer.bos_token_id() == Some(id);
        let is_eos = self.tokenizer.eos_token_ids().contains(&id);
        let role = if is_bos && (index == 0 || !is_eos) {
            "BOS "
        } else if is_eos {
            "EOS "
        } else if self.tokenizer.pad_token_id() == Some(id) {
            "PAD "
        } else if self.is_unknown(id) {
            return format!("⟨UNK {name} for {}⟩", visible(text));
        } else {
            ""
        };
        format!("⟨{role}{name}⟩")
    }

    /// What the signs mean.
    pub(crate) fn legend(&self) -> String {
        let states: &[State] = match self.job {
            Job::Sft(_) => &[State::Learnt, State::Masked, State::Straddling, State::Cut],
            Job::Reward(_) => &[State::Shared, State::Chosen, State::Rejected],
            Job::Ppo(_) => &[State::Given, State::Opening],
        };
        self.paint.legend(states)
    }
}

/// A text in which every character is seen and none is obeyed: a newline is `\n`, an escape `\u{1b}`, a backslash `\\`.
fn visible(text: &str) -> String {
    // Quotes alone need no code here; their backslash is not one of the text's, which is doubled.
    let shown = text.escape_debug().to_string().replace("\\\"", "\"").replace("\\'", "'");
    if !shown.contains(SIGNS) {
        return shown;
    }
    let sign =
        |letter: char| if SIGNS.contains(&letter) { letter.escape_unicode().to_string() } else { letter.to_string() };
    shown.chars().map(sign).collect()
}

/// An error for a row that was named and is not there.
pub(crate) fn missing_row(number: u64, rows: u64, place: &str) -> Error {
    Error::usage("row-missing", format!("there is no row {number}"))
        .at(place)
        .because(format!("the file has {rows} rows"))
        .fix("name rows that it has, or give a number of rows")
}

#[cfg(test)]
mod tests;
