//! The alarms themselves. A rule reads the series of one stage and answers in one sentence with numbers. Bounds come
//! in pairs: where it is raised, and where it has cleared.

use super::{RECENT, Rule, Series, Stage, Verdict, WINDOW};

/// KL, nats an answer: above this a jump is told. A tuned run on short answers ends between 2 and 20.
const KL_HIGH: f64 = 10.0;
/// A jump: so many times its own recent level.
const KL_JUMP: [f64; 2] = [2.5, 1.5];
/// Whatever its level: runs that reached 50 to 85 nats lost four of five comparisons (Huang et al., 2024, the N+
/// implementation details of RLHF, 1B models).
const KL_ABSOLUTE: [f64; 2] = [50.0, 40.0];
/// The estimator's mean may be a little below 0 by chance, never far: then sampler and trainer disagree.
const KL_NEGATIVE: [f64; 2] = [-1.0, -0.25];
/// Nats a token. Below 0.01 has collapsed, 0.05 to 0.5 is healthy (axolotl's guide to training stability).
const ENTROPY: [f64; 2] = [0.01, 0.02];
/// Below this share of its start, and below the healthy band, entropy collapses as well.
const ENTROPY_FALL: [f64; 2] = [0.1, 0.2];
const ENTROPY_HEALTHY: f64 = 0.05;
/// Share of answers that end by themselves.
const EOS_SHARE: [f64; 2] = [0.5, 0.7];
/// Length against the first rows, and tokens by which it must have grown.
const LENGTH_GROWTH: [f64; 2] = [1.5, 1.3];
const LENGTH_TOKENS: f64 = 8.0;
/// Share of clipped tokens; a fifth is usual, a third means that most of the step is thrown away.
const CLIPFRAC: [f64; 2] = [0.35, 0.25];
/// Value loss against its own recent level, and against its start.
const VALUE_LOSS: [f64; 2] = [10.0, 3.0];
/// Mean ratio of new to old probability: near 1; trouble at 2 or 0.1 (a tip of TRL's documentation).
const RATIO: [f64; 2] = [2.0, 0.1];
/// Standard errors by which a change must exceed chance; the best of many windows was chosen, so the fall needs more.
const JUDGE_FALL: f64 = 4.0;
const REWARD_RISE: f64 = 2.0;
/// Held-out loss above its lowest, as a share; twice in a row.
const OVERFIT: [f64; 2] = [1.02, 1.005];
/// Targets among all tokens.
const TARGETS: [f64; 2] = [0.02, 0.04];
/// Loss against that of the first rows.
const LOSS_GROWTH: [f64; 2] = [1.15, 1.0];
/// Accuracy of a coin is 0.5; people agree with each other on 0.6 to 0.8 of comparisons.
const CHANCE: [f64; 2] = [0.55, 0.58];
/// Held-out accuracy below its best; twice in a row.
const ACCURACY_FALL: [f64; 2] = [0.03, 0.01];
/// Correlation of score and length.
const LENGTH_CORRELATION: [f64; 2] = [0.5, 0.4];

/// Metrics that rules read beside the one that they judge.
const BESIDE: [&str; 2] = ["loss", "objective/scores"];

/// Every metric of which a series is kept.
pub(super) fn keys() -> impl Iterator<Item = &'static str> {
    let judged = RULES.iter().map(|rule| rule.key);
    // A key that two rules judge, or that stands in both lists, must be taken once.
    let mut keys: Vec<&str> = judged.chain(BESIDE).collect();
    keys.sort_unstable();
    keys.dedup();
    keys.into_iter()
}

pub(super) const RULES: &[Rule] = &[
    Rule {
        id: "not-finite",
        stage: "",
        key: "",
        when: "a metric is NaN or infinite",
        why: "what was computed from this number means nothing",
        advice: "lower the learning rate, look at the data rows of this step, and go on from an earlier checkpoint",
        judge: not_finite,
    },
    Rule {
        id: "kl-runaway",
        stage: "ppo",
        key: "objective/kl",
        when: "KL is above 50 nats an answer, or above 10 and 2.5 times its recent level",
        why: "far from the SFT model the reward model's score no longer says what people prefer",
        advice: "raise kl_coef or set kl_target, lower the learning rate, or stop earlier",
        judge: kl_runaway,
    },
    Rule {
        id: "kl-negative",
        stage: "ppo",
        key: "objective/kl",
        when: "KL is below -1 nat an answer",
        why: "the mean of KL cannot be far below 0 unless answers are sampled otherwise than they are scored",
        advice: "use temperature alone, without top_k and top_p, and look at logp_diff/max",
        judge: kl_negative,
    },
    Rule {
        id: "entropy-collapse",
        stage: "ppo",
        key: "policy/entropy_avg",
        when: "entropy is below 0.01 nats a token, or below 0.05 and a tenth of its start",
        why: "the policy gives one answer to each prompt and explores nothing more",
        advice: "raise kl_coef or entropy_coef, lower the learning rate, or go back to an earlier checkpoint",
        judge: entropy,
    },
    Rule {
        id: "eos-missing",
        stage: "ppo",
        key: "response/eos_share",
        when: "fewer than half of the answers end by themselves, over 4 rows",
        why: "an answer that is cut off is scored as if it were whole",
        advice: "raise response_length, set missing_eos_penalty, and check that the SFT data ends with EOS",
        judge: eos,
    },
    Rule {
        id: "over-optimisation",
        stage: "ppo",
        key: "objective/judge_scores",
        when: "the reward has risen while the judge's score has fallen below its best, both beyond chance, over 8 rows",
        why: "the policy exploits the reward model's errors: by the judge, its answers get worse",
        advice: "take the checkpoint of the judge's best step; raise kl_coef, or train a better reward model",
        judge: over_optimisation,
    },
    Rule {
        id: "length-growth",
        stage: "ppo",
        key: "response/length_mean",
        when: "answers are half as long again as in the first rows",
        why: "a reward model often takes length for quality, and PPO finds that out",
        advice: "look at the reward model's correlation with length, balance its pairs' lengths, or raise kl_coef",
        judge: length,
    },
    Rule {
        id: "clipped-updates",
        stage: "ppo",
        key: "policy/clipfrac_avg",
        when: "more than 35 % of the tokens are clipped, over 4 rows",
        why: "clipped tokens teach nothing: the policy moves too far on one batch",
        advice: "lower the learning rate or num_ppo_epochs, or set target_kl",
        judge: clipfrac,
    },
    Rule {
        id: "ratio-explosion",
        stage: "ppo",
        key: "val/ratio",
        when: "the mean probability ratio is above 2 or below 0.1",
        why: "the policy is no longer near the one that wrote the answers that it learns from",
        advice: "lower the learning rate or num_ppo_epochs, or set target_kl",
        judge: ratio,
    },
    Rule {
        id: "value-loss-explosion",
        stage: "ppo",
        key: "loss/value_avg",
        when: "the value loss is 10 times its recent level and above its start",
        why: "advantages come from the value model, and are noise while it is lost",
        advice: "lower value_learning_rate, set value_warmup_batches, or normalise the reward (normalize_reward)",
        judge: value_loss,
    },
    Rule {
        id: "value-model-useless",
        stage: "ppo",
        key: "val/explained_variance",
        when: "the explained variance is negative over 16 rows",
        why: "the value model predicts returns worse than their mean does, and adds noise to every advantage",
        advice: "set value_warmup_batches, start the value model from the reward model, or lower value_learning_rate",
        judge: explained_variance,
    },
    Rule {
        id: "overfitting",
        stage: "sft reward",
        key: "eval_loss",
        when: "the held-out loss is 2 % above its lowest while the training loss has fallen, twice in a row",
        why: "the model learns the rows by heart",
        advice: "stop at the lowest held-out loss: fewer epochs, a lower learning rate, or more data",
        judge: overfitting,
    },
    Rule {
        id: "loss-growth",
        stage: "sft reward",
        key: "loss",
        when: "the loss is 15 % above that of the first rows, over 8 rows",
        why: "training makes the model worse",
        advice: "lower the learning rate, lengthen warmup_steps, and check the chat template",
        judge: loss_growth,
    },
    Rule {
        id: "targets-few",
        stage: "sft",
        key: "target_share",
        when: "less than 2 % of the tokens are learnt",
        why: "nearly all of the computation is spent on text that teaches nothing",
        advice: "look at the data ledger: are answers cut off by max_length, or masked by mistake?",
        judge: targets,
    },
    Rule {
        id: "reward-at-chance",
        stage: "reward",
        key: "accuracy",
        when: "the accuracy is below 0.55 over 16 rows",
        why: "the model orders pairs hardly better than a coin, and PPO would follow its noise",
        advice: "check that chosen and rejected are not swapped, raise the learning rate, or get cleaner labels",
        judge: chance,
    },
    Rule {
        id: "reward-accuracy-falls",
        stage: "reward",
        key: "eval_accuracy",
        when: "the held-out accuracy is 0.03 below its best, twice in a row",
        why: "the model learns the labels' noise",
        advice: "stop at the best evaluation: one epoch, or a lower learning rate",
        judge: accuracy_falls,
    },
    Rule {
        id: "reward-is-length",
        stage: "reward",
        key: "eval_reward_length_correlation",
        when: "score and length correlate by more than 0.5",
        why: "PPO will make answers long (or short) instead of good",
        advice: "balance the lengths of chosen and rejected answers in the pairs",
        judge: length_correlation,
    },
];

/// Raises when `bad`, clears when `good`.
fn between(bad: bool, good: bool, what: impl FnOnce() -> String) -> Verdict {
    match (bad, good) {
        (true, _) => Verdict::Raise(what()),
        (false, true) => Verdict::Clear,
        (false, false) => Verdict::Hold,
    }
}

fn not_finite(stage: &Stage) -> Verdict {
    // A row may have many, and their names come from outside.
    let some = stage.not_finite.iter().take(3).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = stage.not_finite.len().saturating_sub(3);
    let rest = if more > 0 { format!(", and {more} more") } else { String::new() };
    between(!some.is_empty(), some.is_empty(), || format!("not finite: {some}{rest}"))
}

fn kl_runaway(stage: &Stage) -> Verdict {
    let kl = stage.newest("objective/kl");
    let level = stage.get("objective/kl").and_then(Series::level);
    let times = level.map_or(0.0, |level| kl / level.max(1.0));
    let is_jump = kl > KL_HIGH && times > KL_JUMP[0];
    between(is_jump || kl > KL_ABSOLUTE[0], kl < KL_ABSOLUTE[1] && (kl < KL_HIGH || times < KL_JUMP[1]), || {
        let before = level.map_or_else(String::new, |level| format!("; the rows before had {level:.2}"));
        format!("KL to the SFT model is {kl:.2} nats an answer{before}")
    })
}

fn kl_negative(stage: &Stage) -> Verdict {
    let kl = stage.newest("objective/kl");
    let what = || format!("KL to the SFT model is {kl:.2} nats an answer");
    between(kl < KL_NEGATIVE[0], kl > KL_NEGATIVE[1], what)
}

fn entropy(stage: &Stage) -> Verdict {
    let Some(series) = stage.get("policy/entropy_avg") else { return Verdict::Hold };
    let (now, start) = (series.newest(), series.start().unwrap_or(0.0));
    let fell = |share: f64| now < share * start && now < ENTROPY_HEALTHY;
    between(now < ENTROPY[0] || fell(ENTROPY_FALL[0]), now > ENTROPY[1] && !fell(ENTROPY_FALL[1]), || {
        let began = series.start().map_or_else(String::new, |start| format!("; it began at {start:.3}"));
        format!("entropy is {now:.4} nats a token{began}")
    })
}

fn eos(stage: &Stage) -> Verdict {
    let Some(share) = stage.get("response/eos_share").and_then(|s| s.mean_of_last(RECENT)) else {
        return Verdict::Hold;
    };
    let what = || format!("{:.0} % of the last answers ended by themselves", 100.0 * share);
    between(share < EOS_SHARE[0], share > EOS_SHARE[1], what)
}

fn over_optimisation(stage: &Stage) -> Verdict {
    let (Some(now), Some(best)) = (stage.window(), stage.best_judged) else { return Verdict::Hold };
    let error = |a: (f64, f64), b: (f64, f64)| a.1.hypot(b.1);
    let fall = best.judge.0 - now.judge.0;
    let rise = now.reward.0 - best.reward.0;
    let fell = fall > JUDGE_FALL * error(now.judge, best.judge) && fall > 0.0;
    let rose = rise > REWARD_RISE * error(now.reward, best.reward) && rise > 0.0;
    between(fell && rose, fall < error(now.judge, best.judge), || {
        format!(
            "over {WINDOW} rows the reward rose from {:.3} to {:.3}, while the judge's score fell from {:.3} to {:.3}",
            best.reward.0, now.reward.0, best.judge.0, now.judge.0
        )
    })
}

fn length(stage: &Stage) -> Verdict {
    let Some(series) = stage.get("response/length_mean") else { return Verdict::Hold };
    let (Some(start), Some(now)) = (series.start(), series.mean_of_last(RECENT)) else { return Verdict::Hold };
    let grew = |times: f64| now > times * start && now > start + LENGTH_TOKENS;
    let what = || format!("answers have {now:.1} tokens on average; in the first rows they had {start:.1}");
    between(grew(LENGTH_GROWTH[0]), !grew(LENGTH_GROWTH[1]), what)
}

fn clipfrac(stage: &Stage) -> Verdict {
    let Some(share) = stage.get("policy/clipfrac_avg").and_then(|s| s.mean_of_last(RECENT)) else {
        return Verdict::Hold;
    };
    let what = || format!("{:.0} % of the tokens were clipped", 100.0 * share);
    between(share > CLIPFRAC[0], share < CLIPFRAC[1], what)
}

fn ratio(stage: &Stage) -> Verdict {
    let ratio = stage.newest("val/ratio");
    let bad = !(RATIO[1]..=RATIO[0]).contains(&ratio);
    between(bad, !bad, || format!("the mean ratio of new to old probability is {ratio:.3}"))
}

fn value_loss(stage: &Stage) -> Verdict {
    let Some(series) = stage.get("loss/value_avg") else { return Verdict::Hold };
    let (Some(level), now) = (series.level(), series.newest()) else { return Verdict::Hold };
    let start = super::mean(&series.first);
    let what = || format!("the value loss is {now:.4}; the rows before had {level:.4}");
    between(now > VALUE_LOSS[0] * level && now > start, now < VALUE_LOSS[1] * level, what)
}

fn explained_variance(stage: &Stage) -> Verdict {
    // A fresh value model needs a few batches.
    let rows = 2 * WINDOW;
    let Some(values) = stage.get("val/explained_variance").and_then(|s| s.last(rows)) else { return Verdict::Hold };
    let highest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let what = || format!("in {rows} rows the explained variance was {highest:.3} at best");
    between(highest < 0.0, values.last().is_some_and(|x| *x > 0.0), what)
}

fn overfitting(stage: &Stage) -> Verdict {
    let (Some(series), Some((best, then))) = (stage.get("eval_loss"), stage.best_eval) else { return Verdict::Hold };
    let trained = stage.get("loss").and_then(|s| s.mean_of_last(RECENT.min(s.count))).unwrap_or(f64::NAN);
    let now = series.newest();
    let twice = series.last(2).is_some_and(|two| two.iter().all(|loss| *loss > OVERFIT[0] * best));
    between(twice && trained < then, now < OVERFIT[1] * best, || {
        let lowest = format!("{best:.4} at its lowest");
        format!("the held-out loss is {now:.4}, {lowest}; the training loss fell from {then:.4} to {trained:.4}")
    })
}

fn loss_growth(stage: &Stage) -> Verdict {
    let Some(series) = stage.get("loss") else { return Verdict::Hold };
    let (Some(start), Some(now)) = (series.start(), series.mean_of_last(WINDOW)) else { return Verdict::Hold };
    // The window must lie behind the rows that it is compared with.
    if series.count < RECENT + WINDOW {
        return Verdict::Hold;
    }
    let what = || format!("the loss is {now:.4}; in the first rows it was {start:.4}");
    between(now > LOSS_GROWTH[0] * start, now < LOSS_GROWTH[1] * start, what)
}

fn targets(stage: &Stage) -> Verdict {
    let share = stage.newest("target_share");
    let what = || format!("{:.2} % of the tokens are learnt", 100.0 * share);
    between(share < TARGETS[0], share > TARGETS[1], what)
}

fn chance(stage: &Stage) -> Verdict {
    let Some(accuracy) = stage.get("accuracy").and_then(|s| s.mean_of_last(2 * WINDOW)) else { return Verdict::Hold };
    let what = || format!("the accuracy was {accuracy:.3} over {} rows", 2 * WINDOW);
    between(accuracy < CHANCE[0], accuracy > CHANCE[1], what)
}

fn accuracy_falls(stage: &Stage) -> Verdict {
    let (Some(series), Some(best)) = (stage.get("eval_accuracy"), stage.best_accuracy) else { return Verdict::Hold };
    let now = series.newest();
    let twice = series.last(2).is_some_and(|two| two.iter().all(|x| *x < best - ACCURACY_FALL[0]));
    let what = || format!("the held-out accuracy is {now:.3}, {best:.3} at its best");
    between(twice, now > best - ACCURACY_FALL[1], what)
}

fn length_correlation(stage: &Stage) -> Verdict {
    let correlation = stage.newest("eval_reward_length_correlation");
    let what = || format!("score and length of held-out answers correlate by {correlation:.2}");
    between(correlation.abs() > LENGTH_CORRELATION[0], correlation.abs() < LENGTH_CORRELATION[1], what)
}
