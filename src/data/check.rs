//! `rlhf data check`: reads a data set as training would, enters it in the same ledger, and looks for what costs people
//! weeks. The lints are described in `lint.rs`; what a chat template does to a row is asked in `check/probe.rs`.

mod pairs;
mod probe;

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::encode::{Encoder, Fate, Seen, Sequence};
use super::formats::{self, Message, SftBody, Turns};
use super::job::Job;
use super::ledger::{Ledger, Mask, Reason, Stage};
use super::lint::lengths::Lengths;
use super::lint::{Finding, Lint, Rows, Severity, text};
use super::records::Row;
use super::template::ChatTemplate;
use super::tokenizer::Tokenizer;
use crate::error::{Code, Error, Result, visible};
use pairs::Answers;
use probe::{Probe, PromptFault};

/// A prompt that so many of the training rows share (one in ten) is an instruction, and no question of its own.
const SHARED_PROMPT: u64 = 10;

/// The first bytes of a hash: enough that two rows of any data set differ in it.
type Print = [u8; 16];

/// What the rows of a file were, by their hashes: to find them again in another.
#[derive(Debug, Clone, Default)]
pub(crate) struct Memory {
    /// The number of the first row with these tokens.
    rows: HashMap<Print, u64>,
    /// How many rows have a prompt.
    prompts: HashMap<Print, u64>,
}

/// What became of one file.
#[derive(Debug, Clone)]
pub(crate) struct Checked {
    /// Rows of the file, those that cannot be read included.
    pub(crate) rows: u64,
    pub(crate) ledger: Ledger,
    lengths: Lengths,
    answers: Option<Answers>,
    /// Worst first.
    pub(crate) findings: Vec<Finding>,
    pub(crate) memory: Memory,
}

impl Checked {
    /// The report as JSON.
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "rows": self.rows,
            "ledger": self.ledger,
            "lengths": self.lengths.to_json(),
            "answers": self.answers.as_ref().map(Answers::to_json),
            "findings": self.findings,
        })
    }

    /// The report for a terminal.
    pub(crate) fn describe(&self) -> String {
        let ledger = visible(&self.ledger.to_string()).into_owned();
        let mut parts = vec![ledger + "\n", self.lengths.describe()];
        parts.extend(self.answers.as_ref().map(Answers::describe));
        parts.push(text::describe(&self.findings, self.rows));
        parts.retain(|part| !part.is_empty());
        parts.join("\n")
    }

    /// How many findings there are: errors, warnings, notes.
    pub(crate) fn counts(&self) -> [u64; 3] {
        [Severity::Error, Severity::Warning, Severity::Note]
            .map(|severity| self.findings.iter().filter(|finding| finding.severity == severity).count() as u64)
    }
}

/// Looks at the rows of a file, one after the other.
pub(crate) struct Checker<'a> {
    tokenizer: &'a Tokenizer,
    job: Job,
    encoder: Encoder<'a>,
    probe: Probe<'a>,
    rows: u64,
    found: BTreeMap<Lint, Rows>,
    unreadable: BTreeMap<&'static str, (Error, Rows)>,
    /// Of the rows without a target, those whose targets lie behind the cut.
    masked_by_cut: u64,
    lengths: Lengths,
    answers: Answers,
    memory: Memory,
    /// The training rows, if these are for evaluation.
    training: Option<&'a Memory>,
}

impl<'a> Checker<'a> {
    pub(crate) fn new(
        job: Job,
        tokenizer: &'a Tokenizer,
        template: Option<&'a ChatTemplate>,
        training: Option<&'a Memory>,
    ) -> Self {
        Self {
            tokenizer,
            job,
            encoder: job.encoder(tokenizer, template),
            probe: Probe::new(tokenizer, template),
            rows: 0,
            found: BTreeMap::new(),
            unreadable: BTreeMap::new(),
            masked_by_cut: 0,
            lengths: Lengths::new(job.stage(), job.longest()),
            answers: Answers::default(),
            memory: Memory::default(),
            training,
        }
    }

    /// Looks at some rows. An error is one of the command line or of the machine; what is wrong with a row is a
    /// finding.
    ///
    /// Turning them into tokens is nearly all of the work, so each thread takes a share; the findings are made after
    /// that, in the file's order.
    pub(crate) fn rows(&mut self, rows: Vec<Result<Row>>) -> Result<()> {
        let (job, encoder) = (self.job, &self.encoder);
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let share = rows.len().div_ceil(threads).max(1);
        let see = |rows: &[Result<Row>]| -> Vec<Option<Result<Seen>>> {
            rows.iter().map(|row| row.as_ref().ok().map(|row| job.see(encoder, row))).collect()
        };
        let seen = std::thread::scope(|scope| -> Result<Vec<Option<Result<Seen>>>> {
            let workers: Vec<_> = rows.chunks(share).map(|rows| scope.spawn(move || see(rows))).collect();
            let mut all = Vec::with_capacity(rows.len());
            for worker in workers {
                let done = worker.join();
                all.extend(done.map_err(|_| Error::failure("thread", "a thread that reads rows has stopped"))?);
            }
            Ok(all)
        })?;
        for (row, seen) in rows.into_iter().zip(seen) {
            self.row(row, seen)?;
        }
        Ok(())
    }

    fn row(&mut self, row: Result<Row>, seen: Option<Result<Seen>>) -> Result<()> {
        let both = row.and_then(|row| {
            let seen = seen.unwrap_or_else(|| self.job.see(&self.encoder, &row))?;
            Ok((self.encoder.enter(seen, &row)?, row))
        });
        match both {
            Ok((seen, row)) => {
                self.rows += 1;
                self.look(&row, &seen)
            }
            Err(error) if error.code() == Code::Input && error.id() != "dataset-empty" => {
                self.rows += 1;
                let place = error.place().unwrap_or_default().to_owned();
                self.unreadable.entry(error.id()).or_insert_with(|| (error, Rows::default())).1.add(|| place);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn add(&mut self, lint: Lint, row: &Row) {
        self.found.entry(lint).or_default().add(|| row.place.clone());
    }

    fn add_if(&mut self, is_so: bool, lint: Lint, row: &Row) {
        if is_so {
            self.add(lint, row);
        }
    }

    fn look(&mut self, row: &Row, seen: &Seen) -> Result<()> {
        self.lengths.add(seen);
        self.look_at_fate(row, seen);
        self.look_at_tokens(row, seen);
        match self.job {
            Job::Sft(_) => self.look_at_turns(row, &sft_turns(row)?),
            Job::Reward(_) => self.look_at_pair(row, seen)?,
            Job::Ppo(_) => self.look_at_prompt(row, seen)?,
        }
        self.look_for_others(row, seen)
    }

    fn look_at_fate(&mut self, row: &Row, seen: &Seen) {
        match seen.fate {
            Fate::Dropped(Reason::Empty) => self.add(Lint::EmptyRow, row),
            Fate::Dropped(Reason::TooLong) => self.add(Lint::DroppedByMaxLength, row),
            Fate::Dropped(Reason::NoTarget) => {
                self.masked_by_cut += u64::from(has_targets(seen));
                self.add(Lint::AllMasked, row);
            }
            Fate::Kept { cut } => self.add_if(cut > 0, Lint::CutByMaxLength, row),
        }
    }

    fn look_at_tokens(&mut self, row: &Row, seen: &Seen) {
        let any = |holds: &dyn Fn(&Sequence) -> bool| seen.sequences.iter().any(holds);
        let is_double = any(&|sequence| self.begins_twice(sequence));
        let straddles = any(&|sequence| sequence.masks.contains(&Some(Mask::Straddling)));
        let eos = self.tokenizer.eos_token_ids();
        let goes_on = |sequence: &Sequence| {
            !sequence.lacks_eos && sequence.encoding.ids.last().is_some_and(|id| !eos.contains(id))
        };
        let stage = self.job.stage();
        let goes_on = stage == Stage::Reward && any(&goes_on);
        let lacks_eos = any(&|sequence| sequence.lacks_eos);
        let lacks_eos = match stage {
            Stage::Sft => lacks_eos && has_targets(seen),
            Stage::Reward => lacks_eos && matches!(seen.fate, Fate::Kept { .. }),
            Stage::Ppo => false,
        };
        let pad_ends = self.tokenizer.pad_token_id().is_some_and(|pad| eos.contains(&pad));
        self.add_if(any(&|sequence| sequence.unknown > 0), Lint::UnknownToken, row);
        self.add_if(any(&|sequence| sequence.lost > 0), Lint::LostCharacter, row);
        self.add_if(is_double, Lint::DoubleBos, row);
        self.add_if(straddles, Lint::StraddlingBoundary, row);
        self.add_if(lacks_eos, Lint::MissingEos, row);
        self.add_if(lacks_eos && pad_ends, Lint::PadIsEos, row);
        self.add_if(goes_on, Lint::EndsBehindEos, row);
    }

    /// Whether a BOS stands behind another at the beginning, or in the midst of a plain text. Templates that write one
    /// before every exchange put it behind an EOS.
    fn begins_twice(&self, sequence: &Sequence) -> bool {
        let Some(bos) = self.tokenizer.bos_token_id() else { return false };
        let ids = &sequence.encoding.ids;
        let eos = self.tokenizer.eos_token_ids();
        let begins_twice = ids.iter().take(2).filter(|id| **id == bos).count() == 2;
        let is_text = !sequence.is_conversation && !eos.contains(&bos);
        let again = |pair: &[i32]| matches!(pair, [before, id] if *id == bos && !eos.contains(before));
        begins_twice || is_text && ids.windows(2).any(again)
    }

    fn look_at_turns(&mut self, row: &Row, conversations: &[Vec<Message>]) {
        let asks = self.job.stage() == Stage::Ppo;
        let leaves_out = conversations.iter().any(|messages| !self.probe.renders_all(messages, asks));
        self.add_if(leaves_out, Lint::RoleNotRendered, row);
    }

    fn look_at_pair(&mut self, row: &Row, seen: &Seen) -> Result<()> {
        let pair = formats::pair(row)?.body;
        self.add_if(is_blank(&pair.chosen), Lint::EmptyChosen, row);
        self.add_if(is_blank(&pair.rejected), Lint::EmptyRejected, row);
        if let (Fate::Kept { .. }, [chosen, rejected]) = (seen.fate, seen.sequences.as_slice()) {
            let [chosen, rejected] = [chosen, rejected].map(|sequence| &sequence.encoding.ids);
            self.answers.add(chosen.len(), rejected.len());
            self.add_if(chosen == rejected, Lint::IdenticalPair, row);
        }
        let turns = |answer: &Turns| match (&pair.prompt, answer) {
            (Turns::Messages(prompt), Turns::Messages(answer)) => Some([prompt.as_slice(), answer].concat()),
            _ => None,
        };
        let turns: Vec<_> = [&pair.chosen, &pair.rejected].into_iter().filter_map(turns).collect();
        self.look_at_turns(row, &turns);
        Ok(())
    }

    fn look_at_prompt(&mut self, row: &Row, seen: &Seen) -> Result<()> {
        let Some(sequence) = seen.sequences.first().filter(|_| matches!(seen.fate, Fate::Kept { .. })) else {
            return Ok(());
        };
        self.add_if(sequence.encoding.ids.len() > self.job.longest(), Lint::PromptTooLong, row);
        let fault = match formats::prompt(row)?.body {
            Turns::Messages(messages) => {
                self.look_at_turns(row, std::slice::from_ref(&messages));
                self.probe.fault_of_conversation(&messages)
            }
            Turns::Text(_) => self.probe.fault_of_text(sequence),
        };
        match fault {
            None => {}
            Some(PromptFault::Plain) => self.add(Lint::PlainPrompt, row),
            Some(PromptFault::NotOpened) => self.add(Lint::MissingGenerationPrompt, row),
        }
        Ok(())
    }

    /// Looks for the same row before, and in the training data.
    fn look_for_others(&mut self, row: &Row, seen: &Seen) -> Result<()> {
        if seen.tokens() == 0 {
            return Ok(());
        }
        let print = print_of_tokens(seen);
        let lint = if self.job.stage() == Stage::Ppo { Lint::RepeatedPrompt } else { Lint::DuplicateRow };
        let number = self.rows;
        if let Some(first) = self.memory.rows.get(&print) {
            self.found.entry(lint).or_default().add(|| format!("{} (as row {first})", row.place));
        } else {
            self.memory.rows.insert(print, number);
        }
        let prompt = print_of_prompt(self.job.stage(), row)?;
        if let Some(print) = prompt {
            *self.memory.prompts.entry(print).or_default() += 1;
        }
        let Some(training) = self.training else { return Ok(()) };
        if training.rows.contains_key(&print) {
            self.add(Lint::EvalRowInTraining, row);
        } else if let Some(count) = prompt.and_then(|print| training.prompts.get(&print)) {
            let rows: u64 = training.prompts.values().sum();
            self.add_if(*count == 1 || count * SHARED_PROMPT < rows, Lint::EvalPromptInTraining, row);
        }
        Ok(())
    }

    /// The report, once all rows were looked at. Error `ledger`, a bug of ours.
    pub(crate) fn close(mut self) -> Result<Checked> {
        let ledger = self.encoder.ledger().clone();
        ledger.check()?;
        if ledger.rows_in + self.unreadable.values().map(|(_, rows)| rows.count()).sum::<u64>() != self.rows {
            return Err(Error::failure("ledger", "the data ledger lost a row"));
        }
        if ledger.rows_kept == 0 {
            self.found.entry(Lint::NothingLeft).or_default();
        }
        let answers = (self.answers.pairs() > 0).then_some(self.answers);
        if let Some(answers) = answers.as_ref().filter(|answers| answers.is_biased()) {
            self.found.insert(Lint::LengthBias, Rows::counted(answers.decided_by_length()));
        }
        if self.probe.is_dated() && ledger.conversations > 0 {
            self.found.entry(Lint::DatedTemplate).or_default();
        }
        if let Some(rows) = ledger.extra_columns.values().max() {
            self.found.insert(Lint::UnusedColumn, Rows::counted(*rows));
        }
        let unreadable = self.unreadable.into_values().map(|(error, rows)| Finding::unreadable(&error, rows));
        let mut findings: Vec<Finding> = unreadable.collect();
        for (lint, rows) in self.found {
            let detail = detail(lint, &ledger, answers.as_ref(), self.masked_by_cut, self.job.longest());
            findings.push(Finding::of(lint, rows, &detail));
        }
        findings.sort_by_key(|finding| finding.severity);
        let (rows, lengths, memory) = (self.rows, self.lengths, self.memory);
        Ok(Checked { rows, ledger, lengths, answers, findings, memory })
    }
}

/// The numbers that belong to a finding.
fn detail(lint: Lint, ledger: &Ledger, answers: Option<&Answers>, masked_by_cut: u64, longest: usize) -> String {
    match lint {
        Lint::AllMasked if masked_by_cut > 0 => {
            format!("in {masked_by_cut} all that would be learnt lies behind max_length {longest}")
        }
        Lint::CutByMaxLength => {
            let [cut, targets] = [ledger.tokens_cut, ledger.targets_cut];
            format!("max_length {longest}: {cut} tokens, {targets} of them to be learnt")
        }
        Lint::DroppedByMaxLength => {
            let tokens = ledger.tokens_dropped_by.get(&Reason::TooLong).copied().unwrap_or_default();
            format!("max_length {longest}: {tokens} tokens")
        }
        Lint::PromptTooLong => format!("at most {longest} tokens"),
        Lint::UnknownToken => format!("{} tokens", ledger.tokens_unknown),
        Lint::LostCharacter => format!("{} characters", ledger.characters_lost),
        Lint::LengthBias => answers.map(Answers::remark).unwrap_or_default(),
        Lint::UnusedColumn => ledger.extra_columns.keys().map(String::as_str).collect::<Vec<_>>().join(", "),
        _ => String::new(),
    }
}

/// What a template writes of a prompt before it begins the answer; none for plain text.
pub(crate) fn prompt_without_opening(template: Option<&ChatTemplate>, row: &Row) -> Option<String> {
    let Turns::Messages(messages) = formats::prompt(row).ok()?.body else { return None };
    Some(template?.render(&messages, false, &Map::new()).ok()?.text)
}

fn has_targets(seen: &Seen) -> bool {
    seen.sequences.iter().any(|sequence| sequence.masks.contains(&None))
}

fn is_blank(turns: &Turns) -> bool {
    match turns {
        Turns::Text(text) => text.trim().is_empty(),
        Turns::Messages(messages) => messages.iter().all(|message| message.content.trim().is_empty()),
    }
}

/// The conversation of a row for fine-tuning, if it is one.
fn sft_turns(row: &Row) -> Result<Vec<Vec<Message>>> {
    Ok(match formats::sft_body(row)?.body {
        SftBody::Messages(messages) => vec![messages],
        SftBody::Dialogue { prompt, completion } => vec![[prompt, completion].concat()],
        SftBody::Text(_) | SftBody::Completion { .. } => Vec::new(),
    })
}

fn print_of(bytes: impl Iterator<Item = u8>) -> Print {
    let bytes: Vec<u8> = bytes.collect();
    let digest = Sha256::digest(&bytes);
    let mut print = Print::default();
    print.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
    print
}

fn print_of_tokens(seen: &Seen) -> Print {
    let ids = seen.sequences.iter().flat_map(|sequence| sequence.encoding.ids.iter().copied().chain([-1]));
    print_of(ids.flat_map(i32::to_le_bytes))
}

/// What a row asks, where the row says so: two files that ask the same share it, whatever the answers are.
fn print_of_prompt(stage: Stage, row: &Row) -> Result<Option<Print>> {
    let text = |text: &str| print_of(text.trim().bytes());
    let turns = |messages: &[Message]| {
        let said = messages.iter().flat_map(|message| [&message.role, &message.content]);
        print_of(said.flat_map(|text| text.bytes().chain([0xff])))
    };
    let explicit = row.fields.get("prompt").is_some_and(Value::is_string);
    Ok(match stage {
        Stage::Sft => match formats::sft_body(row)?.body {
            SftBody::Completion { prompt, .. } if !prompt.trim().is_empty() => Some(text(&prompt)),
            SftBody::Dialogue { prompt, .. } if !prompt.is_empty() => Some(turns(&prompt)),
            _ => None,
        },
        Stage::Reward => match formats::pair(row)?.body.prompt {
            // What two texts merely begin with alike is no prompt.
            Turns::Text(prompt) if explicit && !prompt.trim().is_empty() => Some(text(&prompt)),
            Turns::Messages(messages) if !messages.is_empty() => Some(turns(&messages)),
            _ => None,
        },
        Stage::Ppo => None,
    })
}

#[cfg(test)]
mod tests;
