//! Samples: what the model answered to fixed prompts over time, and two models' answers side by side. Texts are cut
//! and their number is bounded; how much was left out is kept and told.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::curves::brief;

/// Stages of which samples are shown: as many as a run has, and some more.
const STAGES_MAX: usize = 6;
/// Prompts of a stage that are shown over time.
const PROMPTS_MAX: usize = 48;
/// Steps at which they are shown.
const STEPS_MAX: usize = 12;
/// Pairs of answers that are shown.
const PAIRS_MAX: usize = 500;
/// Characters of a text.
const TEXT_CHARS: usize = 2_000;

/// A text for the page, cut if need be.
fn text(value: Option<&Value>) -> Value {
    let text = match value {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    };
    match text.char_indices().nth(TEXT_CHARS) {
        None => Value::String(text),
        Some((end, _)) => Value::String(format!("{} [cut: {} bytes more]", &text[..end], text.len() - end)),
    }
}

fn number(row: &Map<String, Value>, key: &str) -> Option<f64> {
    row.get(key).and_then(Value::as_f64)
}

/// An answer, without what names its place.
fn answer(row: &Map<String, Value>) -> Value {
    let mut entry = json!({ "completion": text(row.get("completion")) });
    for key in ["tokens", "score", "judge"] {
        if let Some(x) = number(row, key) {
            entry[key] = json!(brief(x));
        }
    }
    if let Some(reason) = row.get("finish_reason").and_then(Value::as_str) {
        entry["finish_reason"] = json!(reason.chars().take(40).collect::<String>());
    }
    entry
}

/// Samples of one stage.
#[derive(Debug, Default)]
struct Track {
    /// Prompts in their order, each with the answers by step.
    prompts: Vec<(Value, BTreeMap<u64, Value>)>,
    /// How many samples of a step have come: their order names the prompt.
    counts: BTreeMap<u64, usize>,
}

impl Track {
    fn steps(&self) -> Vec<u64> {
        self.prompts
            .iter()
            .flat_map(|(_, answers)| answers.keys().copied())
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect()
    }
}

/// All samples of a run.
#[derive(Debug, Default)]
pub(super) struct Samples {
    tracks: BTreeMap<String, Track>,
    /// Rows that are no samples: they have no completion.
    skipped: u64,
}

impl Samples {
    /// Takes in a row of samples.jsonl; `stage` where the row names none.
    pub(super) fn take(&mut self, row: &Map<String, Value>, stage: &str) {
        if !row.contains_key("completion") {
            self.skipped += 1;
            return;
        }
        let stage = row.get("stage").and_then(Value::as_str).unwrap_or(stage);
        let step = row.get("step").and_then(Value::as_u64).unwrap_or(0);
        let track = self.tracks.entry(stage.to_owned()).or_default();
        let count = track.counts.entry(step).or_default();
        let place = *count;
        *count += 1;
        if place >= PROMPTS_MAX {
            return;
        }
        if track.prompts.len() <= place {
            track.prompts.resize_with(place + 1, || (text(row.get("prompt")), BTreeMap::new()));
        }
        if let Some((_, answers)) = track.prompts.get_mut(place) {
            answers.insert(step, answer(row));
        }
    }

    /// Rows that had no completion.
    pub(super) fn skipped(&self) -> u64 {
        self.skipped
    }

    /// PPO's first answers beside its last.
    pub(super) fn comparison(&self) -> Option<Comparison> {
        let track = self.tracks.get("ppo")?;
        let steps = track.steps();
        let (first, last) = (steps.first()?, steps.last().filter(|_| steps.len() > 1)?);
        let mut comparison =
            Comparison { source: format!("samples.jsonl, steps {first} and {last}"), ..Default::default() };
        for (prompt, answers) in &track.prompts {
            if let (Some(baseline), Some(model)) = (answers.get(first), answers.get(last)) {
                let mut row = Map::new();
                row.insert("prompt".into(), prompt.clone());
                for (side, answer) in [("baseline", baseline), ("model", model)] {
                    row.insert(side.into(), answer["completion"].clone());
                    row.insert(format!("score_{side}"), answer["score"].clone());
                    row.insert(format!("judge_{side}"), answer["judge"].clone());
                }
                comparison.take(&row);
            }
        }
        Some(comparison)
    }

    /// For the page: by stage the prompts with their answers, at most so many prompts and steps.
    pub(super) fn to_json(&self) -> Value {
        let tracks = self.tracks.iter().take(STAGES_MAX).map(|(stage, track)| {
            let steps = track.steps();
            let kept = spaced(&steps);
            let prompts = track.prompts.iter().map(|(prompt, answers)| {
                let answers = kept.iter().filter_map(|step| {
                    let mut answer = answers.get(step)?.clone();
                    answer["step"] = json!(step);
                    Some(answer)
                });
                json!({ "prompt": prompt, "answers": answers.collect::<Vec<_>>() })
            });
            let most = track.counts.values().copied().max().unwrap_or(0);
            json!({
                "stage": stage,
                "prompts": prompts.collect::<Vec<_>>(),
                "prompts_total": most,
                "steps_total": steps.len(),
                "steps": kept,
            })
        });
        Value::Array(tracks.collect())
    }
}

/// The first, the last and steps between at even distances.
fn spaced(steps: &[u64]) -> Vec<u64> {
    if steps.len() <= STEPS_MAX {
        return steps.to_vec();
    }
    let at = |i: usize| steps.get(i * (steps.len() - 1) / (STEPS_MAX - 1)).copied();
    (0..STEPS_MAX).filter_map(at).collect()
}

/// Two models' answers to the same prompts.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    source: String,
    rows: Vec<Value>,
    total: u64,
    /// The second model's wins, ties and losses over all rows that can be decided.
    tally: [u64; 3],
    /// Rows that a judge decided.
    judged: u64,
}

impl Comparison {
    /// Of a file that has this name.
    pub(super) fn new(source: &str) -> Self {
        Self { source: source.to_owned(), ..Self::default() }
    }

    /// Takes in a row of comparison.jsonl.
    pub(super) fn take(&mut self, row: &Map<String, Value>) {
        self.total += 1;
        let pair =
            |kind: &str| Some((number(row, &format!("{kind}_baseline"))?, number(row, &format!("{kind}_model"))?));
        self.judged += u64::from(pair("judge").is_some());
        if let Some((baseline, model)) = pair("judge").or_else(|| pair("score")) {
            let [wins, ties, losses] = &mut self.tally;
            let count = if model > baseline {
                wins
            } else if model < baseline {
                losses
            } else {
                ties
            };
            *count += 1;
        }
        if self.rows.len() == PAIRS_MAX {
            return;
        }
        let mut entry = Map::new();
        for side in ["prompt", "baseline", "model"] {
            entry.insert(side.into(), text(row.get(side)));
        }
        for key in ["score_baseline", "score_model", "judge_baseline", "judge_model"] {
            entry.extend(number(row, key).map(|x| (key.to_owned(), json!(brief(x)))));
        }
        self.rows.push(Value::Object(entry));
    }

    /// Whether there is anything to show.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// For the page.
    pub(super) fn to_json(&self) -> Value {
        let [wins, ties, losses] = self.tally;
        json!({
            "source": self.source, "rows": self.rows, "total": self.total, "judged": self.judged,
            "wins": wins, "ties": ties, "losses": losses,
        })
    }
}
