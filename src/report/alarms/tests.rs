//! Each alarm is raised by a series that was made to raise it, once, and by no healthy one.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::rules::RULES;
use super::{Alarm, Watch};

/// A healthy number of each metric at row `i`, with some noise.
fn healthy(stage: &str, i: usize) -> Map<String, Value> {
    let noise = ((i * 7919) % 13) as f64 / 13.0 - 0.5;
    let t = i as f64 / 60.0;
    let row = match stage {
        "sft" => json!({
            "loss": 2.0 - t + 0.1 * noise, "eval_loss": 2.05 - 0.9 * t + 0.005 * noise, "target_share": 0.4,
        }),
        "reward" => json!({
            "loss": 0.69 - 0.3 * t + 0.04 * noise, "accuracy": 0.55 + 0.3 * t + 0.1 * noise,
            "eval_loss": 0.68 - 0.2 * t, "eval_accuracy": 0.6 + 0.2 * t + 0.01 * noise,
            "eval_reward_length_correlation": 0.2 + 0.1 * noise,
        }),
        _ => json!({
            "objective/kl": 8.0 * t + 0.4 * noise, "objective/scores": t + 0.1 * noise,
            "objective/judge_scores": 0.5 + 0.4 * t.sqrt() + 0.05 * noise, "policy/entropy_avg": 0.6 - 0.4 * t,
            "response/eos_share": 0.97 + 0.02 * noise, "response/length_mean": 20.0 + 4.0 * noise,
            "policy/clipfrac_avg": 0.1 + 0.05 * noise, "val/ratio": 1.0 + 0.01 * noise,
            "loss/value_avg": 0.3 / (1.0 + 5.0 * t) + 0.05 * noise, "val/explained_variance": -0.2 + 1.5 * t,
        }),
    };
    let Value::Object(mut row) = row else { panic!() };
    row.insert("stage".into(), json!(stage));
    row.insert("step".into(), json!(i + 1));
    row
}

/// What 60 rows raise, changed by `change` where it wants to.
fn raised(stage: &str, change: impl Fn(usize, &mut Map<String, Value>)) -> Vec<Alarm> {
    let mut watch = Watch::new();
    let row = |i| {
        let mut row = healthy(stage, i);
        change(i, &mut row);
        row
    };
    (0..60).flat_map(|i| watch.see(&row(i))).collect()
}

/// A fault: the stage, the metric, the row from which on it is so, and what it is then, `i` rows later.
type Fault = (&'static str, &'static str, &'static str, usize, fn(f64) -> f64);

const FAULTS: &[Fault] = &[
    ("kl-runaway", "ppo", "objective/kl", 30, |i| 60.0 + i),
    ("kl-runaway", "ppo", "objective/kl", 30, |_| 14.0),
    ("kl-negative", "ppo", "objective/kl", 30, |_| -3.0),
    ("entropy-collapse", "ppo", "policy/entropy_avg", 30, |_| 0.005),
    ("entropy-collapse", "ppo", "policy/entropy_avg", 30, |_| 0.03),
    ("eos-missing", "ppo", "response/eos_share", 20, |_| 0.3),
    ("over-optimisation", "ppo", "objective/judge_scores", 30, |i| 0.75 - 0.02 * i),
    ("length-growth", "ppo", "response/length_mean", 20, |i| 20.0 + i),
    ("clipped-updates", "ppo", "policy/clipfrac_avg", 30, |_| 0.5),
    ("ratio-explosion", "ppo", "val/ratio", 30, |_| 2.5),
    ("value-loss-explosion", "ppo", "loss/value_avg", 30, |_| 9.0),
    ("value-model-useless", "ppo", "val/explained_variance", 0, |_| -0.4),
    ("overfitting", "sft", "eval_loss", 30, |i| 1.6 + 0.02 * i),
    ("overfitting", "reward", "eval_loss", 30, |i| 0.58 + 0.01 * i),
    ("loss-growth", "sft", "loss", 10, |i| 2.0 + 0.1 * i),
    ("targets-few", "sft", "target_share", 0, |_| 0.004),
    ("reward-at-chance", "reward", "accuracy", 0, |_| 0.51),
    ("reward-accuracy-falls", "reward", "eval_accuracy", 30, |_| 0.62),
    ("reward-is-length", "reward", "eval_reward_length_correlation", 5, |_| -0.8),
];

#[test]
fn a_healthy_run_raises_nothing() {
    for stage in ["sft", "reward", "ppo"] {
        assert_eq!(raised(stage, |_, _| ()), [], "{stage}");
    }
}

#[test]
fn each_alarm_is_raised_once_by_its_fault_and_alone() {
    for (id, stage, key, from, value) in FAULTS {
        let alarms = raised(stage, |i, row| {
            if i >= *from {
                row.insert((*key).to_owned(), json!(value((i - from) as f64)));
            }
        });
        let ids: Vec<&str> = alarms.iter().map(|alarm| alarm.id).collect();
        assert_eq!(ids, [*id], "{alarms:?}");
        let alarm = &alarms[0];
        assert!(alarm.stage == *stage && alarm.step > *from && alarm.step <= 60, "{alarm:?}");
        assert!(alarm.what.chars().any(|c| c.is_ascii_digit()), "no number: {alarm:?}");
    }
    let tested: BTreeSet<&str> = FAULTS.iter().map(|fault| fault.0).chain(["not-finite"]).collect();
    let all: BTreeSet<&str> = RULES.iter().map(|rule| rule.id).collect();
    assert_eq!(tested, all, "an alarm without a fault, or the other way round");
}

#[test]
fn an_alarm_that_has_cleared_may_come_again() {
    let share = |i: usize| match i {
        0..10 => 0.9,
        10..20 => 0.3,
        // Between the bounds: as before.
        20..30 => 0.6,
        30..40 => 0.3,
        40..50 => 0.9,
        _ => 0.3,
    };
    let alarms = raised("ppo", |i, row| drop(row.insert("response/eos_share".into(), json!(share(i)))));
    let steps: Vec<(&str, usize)> = alarms.iter().map(|alarm| (alarm.id, alarm.step)).collect();
    assert_eq!(steps, [("eos-missing", 13), ("eos-missing", 53)]);
}

#[test]
fn numbers_that_are_not_finite_are_told_in_every_stage_and_stay_out_of_the_series() {
    for stage in ["sft", "reward", "ppo"] {
        let alarms = raised(stage, |i, row| {
            if i == 5 {
                row.extend([("loss".to_owned(), json!("NaN")), ("objective/kl".to_owned(), json!("-inf"))]);
            }
        });
        let told: Vec<(&str, usize, &str)> = alarms.iter().map(|a| (a.id, a.step, &a.what[..])).collect();
        let order = match stage {
            "ppo" => "not finite: objective/kl is -inf, loss is NaN",
            _ => "not finite: loss is NaN, objective/kl is -inf",
        };
        assert_eq!(told, [("not-finite", 6, order)], "{stage}");
    }
    assert_eq!(raised("sft", |_, row| drop(row.insert("note".into(), json!("nothing")))), []);
}

#[test]
fn what_is_watched_is_told_with_whether_it_was_seen() {
    let mut watch = Watch::new();
    let mut row = healthy("ppo", 0);
    row.remove("objective/judge_scores");
    assert_eq!(watch.see(&row), []);
    let watched = watch.watched("ppo");
    let seen = |id: &str| watched.iter().find(|w| w.id == id).map(|w| w.seen);
    assert_eq!([seen("kl-runaway"), seen("over-optimisation"), seen("targets-few")], [Some(true), Some(false), None]);
}
