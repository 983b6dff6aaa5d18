//! What a judge of the user's own reads and writes: a file of answers, and a file of scores for them. Both come from
//! outside; a row that does not fit is an error that names it.

use std::path::Path;

use serde_json::Value;

use super::win_rate::Answers;
use crate::data::records::{Row, kind_of, open_rows};
use crate::error::{Error, Result};

/// What was said of each pair of answers; the model's side first.
pub(super) enum Verdicts {
    /// Scores, higher is better.
    Scores(Vec<[f64; 2]>),
    /// Preferences: the preferred side has 1, the other 0, and in a tie both have 0.
    Preferences(Vec<[f64; 2]>),
}

impl Verdicts {
    /// Two numbers a comparison, of which the larger one wins.
    pub(super) fn ranks(&self) -> impl Iterator<Item = [f64; 2]> {
        let (Self::Scores(ranks) | Self::Preferences(ranks)) = self;
        ranks.iter().copied()
    }

    /// The scores, if they are more than preferences.
    pub(super) fn scores(&self) -> Option<&[[f64; 2]]> {
        match self {
            Self::Scores(scores) => Some(scores),
            Self::Preferences(_) => None,
        }
    }
}

/// The answers in a file that `--output` wrote.
///
/// # Errors
/// `answers-row` for a row without the texts, or with another index than its place; those of a data set.
pub(super) fn read_answers(path: &Path) -> Result<Vec<Answers>> {
    let mut all = Vec::new();
    for row in open_rows(path)? {
        let row = row?;
        let wrong = |what: String| {
            let error = Error::input("answers-row", what).at(&row.place);
            error.fix("give the file that `rlhf eval win-rate --output` wrote, as it was written")
        };
        let text = |name: &str| match row.fields.get(name) {
            Some(Value::String(text)) => Ok(text.clone()),
            found => Err(wrong(format!("`{name}` is {}, not a string", found.map_or("absent", kind_of)))),
        };
        if row.fields.get("index").is_some_and(|index| index.as_u64() != Some(all.len() as u64)) {
            return Err(wrong(format!("the row has the index {}, and is number {}", row.fields["index"], all.len())));
        }
        all.push(Answers { prompt: String::new(), texts: [text("model")?, text("baseline")?] });
    }
    Ok(all)
}

/// What a row of scores says.
enum Said {
    Scores([f64; 2]),
    Preferred([f64; 2]),
}

/// The verdict on each of `count` comparisons.
///
/// # Errors
/// `scores-index` for an index that is no comparison's; `scores-duplicate`, `scores-missing` where there are two or
/// none of a comparison; `scores-row` for a row that says nothing, or scores that are not finite; `scores-mixed` where
/// some rows have scores and others preferences; those of a data set.
pub(super) fn read_verdicts(path: &Path, count: usize) -> Result<Verdicts> {
    let mut found: Vec<Option<(Said, String)>> = (0..count).map(|_| None).collect();
    for row in open_rows(path)? {
        let row = row?;
        let index = index_of(&row, count)?;
        let said = said(&row).map_err(|what| {
            let why = "a row has finite numbers `score_model` and `score_baseline`, or `preferred`";
            let fix = "let the judge write {\"index\": 0, \"score_model\": 1.5, \"score_baseline\": 0.5}, or \
                       {\"index\": 0, \"preferred\": \"model\"}, \"baseline\" or \"tie\"";
            Error::input("scores-row", what).at(&row.place).because(why).fix(fix)
        })?;
        if let Some((_, first)) = &found[index] {
            return Err(Error::input("scores-duplicate", format!("comparison {index} is judged twice"))
                .at(&row.place)
                .because(format!("the first time at {first}"))
                .fix("let the judge write one row a comparison"));
        }
        found[index] = Some((said, row.place));
    }
    let missing = found.iter().filter(|row| row.is_none()).count();
    if let Some(first) = found.iter().position(Option::is_none) {
        return Err(Error::input("scores-missing", format!("{missing} of {count} comparisons are not judged"))
            .at(path.display().to_string())
            .because(format!("the first of them has the index {first}"))
            .fix("let the judge write one row for every row of the answers"));
    }
    together(found.into_iter().flatten())
}

/// The comparison that a row is about.
fn index_of(row: &Row, count: usize) -> Result<usize> {
    let wrong = |what: String| {
        let why = format!("the answers have the indices 0 to {}", count.saturating_sub(1));
        Err(Error::input("scores-index", what).at(&row.place).because(why).fix("copy `index` from the answers"))
    };
    match row.fields.get("index") {
        Some(Value::Number(index)) => match index.as_u64().filter(|index| (*index as usize) < count) {
            Some(index) => Ok(index as usize),
            None => wrong(format!("there is no comparison {index}")),
        },
        found => wrong(format!("`index` is {}, not a number", found.map_or("absent", kind_of))),
    }
}

/// What a row says, or why it says nothing.
fn said(row: &Row) -> std::result::Result<Said, String> {
    let has = |name: &str| row.fields.contains_key(name);
    if has("preferred") && (has("score_model") || has("score_baseline")) {
        return Err("the row has both scores and a preference".to_owned());
    }
    if let Some(preferred) = row.fields.get("preferred") {
        return match preferred.as_str() {
            Some("model") => Ok(Said::Preferred([1.0, 0.0])),
            Some("baseline") => Ok(Said::Preferred([0.0, 1.0])),
            Some("tie") => Ok(Said::Preferred([0.0, 0.0])),
            _ => Err("`preferred` is none of \"model\", \"baseline\" and \"tie\"".to_owned()),
        };
    }
    let number = |name: &str| match row.fields.get(name) {
        Some(Value::Number(x)) => x.as_f64().filter(|x| x.is_finite()).ok_or(format!("`{name}` is not finite")),
        found => Err(format!("`{name}` is {}, not a finite number", found.map_or("absent", kind_of))),
    };
    Ok(Said::Scores([number("score_model")?, number("score_baseline")?]))
}

/// All verdicts, which must be of one kind.
fn together(rows: impl Iterator<Item = (Said, String)>) -> Result<Verdicts> {
    let (mut scores, mut preferences) = (Vec::new(), Vec::new());
    for (said, place) in rows {
        match said {
            Said::Scores(both) => scores.push(both),
            Said::Preferred(both) => preferences.push(both),
        }
        if !scores.is_empty() && !preferences.is_empty() {
            return Err(Error::input("scores-mixed", "some rows have scores, and others preferences")
                .at(place)
                .fix("let the judge write the same kind of row for all"));
        }
    }
    Ok(if scores.is_empty() { Verdicts::Preferences(preferences) } else { Verdicts::Scores(scores) })
}
