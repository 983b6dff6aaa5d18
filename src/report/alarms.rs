//! Alarms: what is going wrong in a run, seen from its rows of metrics alone. Each is a row of [`RULES`] with the
//! numbers at which it is raised and at which it has cleared; between the two it stays as it was, so that a number
//! that wavers around a bound is told once. The bounds are starting points of the field's guides, cited where they
//! stand; where none is known they are set so that a healthy run stays silent.

mod rules;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde_json::{Map, Value};

use rules::RULES;

/// Something that went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Alarm {
    /// A stable name, such as `kl-runaway`.
    pub(crate) id: &'static str,
    /// The stage whose row raised it: sft, reward, ppo.
    pub(crate) stage: String,
    /// The step of that row.
    pub(crate) step: usize,
    /// What was seen, with its numbers.
    pub(crate) what: String,
    /// Why that matters.
    pub(crate) why: &'static str,
    /// What to change.
    pub(crate) advice: &'static str,
}

/// What is watched for, and whether the rows had the number that it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Watched {
    /// The name of the alarm.
    pub(crate) id: &'static str,
    /// When it is raised, in words.
    pub(crate) when: &'static str,
    /// The metric that it judges; empty for one that judges all.
    pub(crate) key: &'static str,
    /// Whether any row had that metric.
    pub(crate) seen: bool,
}

/// One alarm: what it judges, and how.
struct Rule {
    id: &'static str,
    stage: &'static str,
    key: &'static str,
    when: &'static str,
    why: &'static str,
    advice: &'static str,
    judge: fn(&Stage) -> Verdict,
}

/// What a rule says of the newest row.
enum Verdict {
    /// All is well: the alarm may be raised again.
    Clear,
    /// Neither well nor bad enough: as before.
    Hold,
    /// Bad, for this reason.
    Raise(String),
}

/// Rows that count as the present.
const RECENT: usize = 4;
/// Rows that a slow change is judged over.
const WINDOW: usize = 8;

/// One metric: how it began and how it goes; the memory does not grow with the run.
#[derive(Debug, Default)]
struct Series {
    first: Vec<f64>,
    recent: VecDeque<f64>,
    count: usize,
}

impl Series {
    fn push(&mut self, x: f64) {
        self.count += 1;
        if self.first.len() < RECENT {
            self.first.push(x);
        }
        if self.recent.len() > 2 * WINDOW {
            self.recent.pop_front();
        }
        self.recent.push_back(x);
    }

    fn newest(&self) -> f64 {
        self.recent.back().copied().unwrap_or(f64::NAN)
    }

    /// The newest `n` values, once there are so many.
    fn last(&self, n: usize) -> Option<Vec<f64>> {
        let skipped = self.recent.len().checked_sub(n)?;
        Some(self.recent.iter().skip(skipped).copied().collect())
    }

    fn mean_of_last(&self, n: usize) -> Option<f64> {
        self.last(n).map(|values| mean(&values))
    }

    /// The median of the values before the newest one, at most `WINDOW`, at least `RECENT`.
    fn level(&self) -> Option<f64> {
        let mut before: Vec<f64> = self.recent.iter().rev().skip(1).take(WINDOW).copied().collect();
        before.sort_by(f64::total_cmp);
        if before.len() < RECENT { None } else { before.get(before.len() / 2).copied() }
    }

    /// The mean of the first rows, once the present is not among them.
    fn start(&self) -> Option<f64> {
        if self.count < 2 * RECENT { None } else { Some(mean(&self.first)) }
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Mean, and its standard error.
fn spread(values: &[f64]) -> (f64, f64) {
    let (n, middle) = (values.len().max(2) as f64, mean(values));
    let variance = values.iter().map(|x| (x - middle).powi(2)).sum::<f64>() / (n - 1.0);
    (middle, (variance / n).sqrt())
}

/// A window of rows that had both a reward and a judge's score.
#[derive(Debug, Clone, Copy)]
struct Judged {
    reward: (f64, f64),
    judge: (f64, f64),
}

/// One stage's numbers.
#[derive(Debug, Default)]
struct Stage {
    series: BTreeMap<&'static str, Series>,
    /// Names and texts of the newest row's numbers that are not finite.
    not_finite: Vec<String>,
    /// The lowest loss on held-out data, and the training loss then.
    best_eval: Option<(f64, f64)>,
    /// The highest accuracy on held-out data.
    best_accuracy: Option<f64>,
    /// The newest rows with a reward and a judge's score.
    judged: VecDeque<(f64, f64)>,
    /// The window in which the judge was most content.
    best_judged: Option<Judged>,
    raised: BTreeSet<&'static str>,
}

impl Stage {
    fn get(&self, key: &str) -> Option<&Series> {
        self.series.get(key)
    }

    fn newest(&self, key: &str) -> f64 {
        self.get(key).map_or(f64::NAN, Series::newest)
    }

    /// Takes in a row.
    fn take(&mut self, row: &Map<String, Value>) {
        self.not_finite.clear();
        for (name, value) in row {
            if value.as_str().and_then(|text| text.parse().ok()).is_some_and(|x: f64| !x.is_finite()) {
                self.not_finite.push(format!("{name} is {}", value.as_str().unwrap_or_default()));
            }
        }
        for key in rules::keys().filter(|key| !key.is_empty()) {
            if let Some(x) = row.get(key).and_then(Value::as_f64) {
                self.series.entry(key).or_default().push(x);
            }
        }
        let number = |key: &str| row.get(key).and_then(Value::as_f64);
        if let (Some(reward), Some(judge)) = (number("objective/scores"), number("objective/judge_scores")) {
            if self.judged.len() == WINDOW {
                self.judged.pop_front();
            }
            self.judged.push_back((reward, judge));
        }
    }

    /// The newest window of rewards and judge's scores, once it is full.
    fn window(&self) -> Option<Judged> {
        let (rewards, judges): (Vec<f64>, Vec<f64>) = self.judged.iter().copied().unzip();
        let full = rewards.len() == WINDOW;
        full.then(|| Judged { reward: spread(&rewards), judge: spread(&judges) })
    }

    /// Remembers the best, after the row was held against what was best before.
    fn remember(&mut self, row: &Map<String, Value>) {
        let number = |key: &str| row.get(key).and_then(Value::as_f64);
        if let Some(loss) = number("eval_loss") {
            let trained = self.get("loss").and_then(|s| s.mean_of_last(RECENT.min(s.count))).unwrap_or(f64::NAN);
            if self.best_eval.is_none_or(|(best, _)| loss < best) {
                self.best_eval = Some((loss, trained));
            }
        }
        if let Some(accuracy) = number("eval_accuracy") {
            self.best_accuracy = Some(self.best_accuracy.unwrap_or(accuracy).max(accuracy));
        }
        let window = self.window().filter(|_| row.contains_key("objective/judge_scores"));
        let is_best = |window: &Judged| self.best_judged.is_none_or(|best| window.judge.0 > best.judge.0);
        self.best_judged = window.filter(is_best).or(self.best_judged);
    }
}

/// Sees a run row by row, and says what goes wrong.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    stages: BTreeMap<String, Stage>,
}

impl Watch {
    /// Has seen nothing.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// The row as metrics.jsonl has it, stage and step included; returns what it newly raises. An alarm that was
    /// raised is raised again only after it had cleared.
    pub(crate) fn see(&mut self, row: &Map<String, Value>) -> Vec<Alarm> {
        let name = row.get("stage").and_then(Value::as_str).unwrap_or_default();
        let step = row.get("step").and_then(Value::as_u64).unwrap_or(0) as usize;
        let stage = self.stages.entry(name.to_owned()).or_default();
        stage.take(row);
        let mut alarms = Vec::new();
        for rule in RULES.iter().filter(|rule| rule.concerns(name) && rule.judges(row)) {
            match (rule.judge)(stage) {
                Verdict::Clear => drop(stage.raised.remove(rule.id)),
                Verdict::Hold => {}
                Verdict::Raise(what) => {
                    if stage.raised.insert(rule.id) {
                        let stage = name.to_owned();
                        alarms.push(Alarm { id: rule.id, stage, step, what, why: rule.why, advice: rule.advice });
                    }
                }
            }
        }
        stage.remember(row);
        alarms
    }

    /// What a stage was watched for.
    pub(crate) fn watched(&self, stage: &str) -> Vec<Watched> {
        let series = self.stages.get(stage).map(|stage| &stage.series);
        let seen = |key: &str| key.is_empty() || series.is_some_and(|series| series.contains_key(key));
        let rules = RULES.iter().filter(|rule| rule.concerns(stage));
        rules.map(|rule| Watched { id: rule.id, when: rule.when, key: rule.key, seen: seen(rule.key) }).collect()
    }
}

impl Rule {
    fn concerns(&self, stage: &str) -> bool {
        self.stage.is_empty() || self.stage.split(' ').any(|name| name == stage)
    }

    /// Whether the row has the number that this rule judges.
    fn judges(&self, row: &Map<String, Value>) -> bool {
        self.key.is_empty() || row.get(self.key).is_some_and(Value::is_number)
    }
}
