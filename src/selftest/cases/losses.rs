//! The losses and scans of reinforcement learning, f32 on every device.

use super::super::engine::normal;
use super::super::{Case, Engine, Output};
use crate::config::KlEstimator;
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::gae::{Gae, Shaped, gae, rewards, shaped_gae};
use crate::ops::pairwise_loss::pairwise_loss;
use crate::ops::ppo_loss::{Coefficients, STATISTICS, Tokens, ppo_loss};
use crate::ops::whiten::whiten;
use crate::tensor::Tensor;

/// Lengths of episodes: one token, the warp (32) and its neighbours, empty ones, many.
const EPISODES: [&[usize]; 6] = [&[1], &[31, 32, 33], &[0, 5, 0, 1], &[127, 64], &[1000, 3], &[7; 40]];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for lengths in EPISODES {
        for (estimator, discounts) in
            [(KlEstimator::K1, [1.0, 0.95]), (KlEstimator::K2, [0.99, 0.0]), (KlEstimator::K3, [0.99, 1.0])]
        {
            let shape = format!("lengths {} of {} {estimator:?} gamma, lam {discounts:?}", lengths.len(), lengths[0]);
            cases.push(Case::new("gae", shape, DType::F32, move |e| episodes(e, lengths, estimator, discounts, 0.5)));
        }
    }
    for estimator in [KlEstimator::K1, KlEstimator::K2, KlEstimator::K3] {
        let shape = format!("lengths [40, 9] {estimator:?} log-probs to 30");
        cases.push(Case::new("gae", shape, DType::F32, move |e| episodes(e, &[40, 9], estimator, [0.9, 0.8], 7.0)));
    }
    for n in [1, 2, 31, 33, 512, 4097] {
        for keep_mean in [false, true] {
            let shape = format!("N {n} keep_mean {keep_mean}");
            cases.push(Case::new("whiten", shape, DType::F32, move |e| {
                let shifted: Vec<f64> = normal(n, 1).iter().map(|x| x * 2.0 + 3.0).collect();
                Ok(vec![e.wide_output("out", &whiten(&e.wide(&[n], &shifted)?, None, keep_mean)?)?])
            }));
        }
    }
    for n in [1, 31, 32, 33, 1000, 4097] {
        for (dual_clip, spread) in [(None, 0.3), (Some(1.5), 0.3), (None, 30.0)] {
            let shape = format!("N {n} dual clip {dual_clip:?} log-ratios to {}", spread * 4.0);
            cases.push(Case::new("ppo_loss", shape, DType::F32, move |e| ppo(e, n, dual_clip, spread)));
        }
    }
    for seed in 0..12 {
        let ppo =
            Case::new("ppo_loss", format!("N 1100 integers, seed {seed}"), DType::F32, move |e| exact_ppo(e, seed));
        let pairs = Case::new("pairwise_loss", format!("P 1100 integers, seed {seed}"), DType::F32, move |e| {
            exact_pairs(e, seed)
        });
        cases.extend([ppo, pairs].map(|case| case.floor(1e-9, "terms and sums are exact")));
        let shape = format!("N 1100 one ratio of 1, seed {seed}");
        let ratios = Case::new("ppo_loss", shape, DType::F32, move |e| small_ratios(e, seed));
        cases.push(ratios.floor(6e-8, "sums are rounded once, where the nearest number is 0.4 of a step away"));
    }
    let infinite = "N 40 with an infinite advantage, return and log-prob";
    cases.push(Case::new("ppo_loss", infinite, DType::F32, infinite_ppo));
    cases.push(Case::new("pairwise_loss", "P 40 with an infinite margin or score", DType::F32, infinite_pairs));
    let single = Case::new("pairwise_loss", "P 1 leads -90 to 16", DType::F32, single_pairs);
    cases.push(single.floor(1e-6, "a few roundings a pair"));
    for p in [1, 5, 32, 33, 1000] {
        for centering in [0.0, 0.01] {
            let shape = format!("P {p} centering {centering}");
            cases.push(Case::new("pairwise_loss", shape, DType::F32, move |e| pairs(e, p, centering)));
        }
    }
    cases
}

fn episodes(
    e: &Engine,
    lengths: &[usize],
    estimator: KlEstimator,
    discounts: [f64; 2],
    spread: f64,
) -> Result<Vec<Output>> {
    let n: usize = lengths.iter().sum();
    let offsets: Vec<i32> = std::iter::once(0)
        .chain(lengths.iter().scan(0, |at, l| {
            *at += *l as i32;
            Some(*at)
        }))
        .collect();
    let column = |stream, scale: f64| e.wide(&[n], &normal(n, stream).iter().map(|x| x * scale).collect::<Vec<_>>());
    let (logprobs, ref_logprobs, values) = (column(1, spread)?, column(2, spread)?, column(3, 1.0)?);
    let scores = e.wide(&[lengths.len()], &normal(lengths.len(), 4))?;
    let shaped =
        Shaped { logprobs: [&logprobs, &ref_logprobs], scores: &scores, offsets: &offsets, estimator, kl_coef: 0.1 };
    let rewards = rewards(&shaped)?;
    let fused = shaped_gae(&shaped, &values, discounts)?;
    let apart = gae(&rewards, &values, &offsets, discounts)?;
    let white = whiten(&fused.advantages, fused.statistics.as_ref(), false)?;
    let mut outputs = vec![
        e.wide_output("rewards", &rewards)?,
        e.wide_output("advantages", &fused.advantages)?,
        e.wide_output("returns", &fused.returns)?,
        e.wide_output("advantages from rewards", &apart.advantages)?,
        e.wide_output("returns from rewards", &apart.returns)?,
        e.wide_output("whitened", &white)?,
    ];
    for (name, gae) in [("moments", &fused), ("moments from rewards", &apart)] {
        outputs.extend(moments(name, gae, &offsets)?);
    }
    Ok(outputs)
}

/// Mean and sum of squared distances from it, episode by episode.
fn moments(name: &'static str, gae: &Gae, offsets: &[i32]) -> Result<[Output; 2]> {
    let of_episodes = |advantages: &[f64]| {
        let (n, sum) = (advantages.len().max(1) as f64, advantages.iter().sum::<f64>());
        [sum / n, advantages.iter().map(|x| (x - sum / n) * (x - sum / n)).sum()]
    };
    let episodes: Vec<[f64; 2]> = match &gae.statistics {
        Some(statistics) => statistics.to_f64()?.chunks_exact(3).map(|row| [row[1], row[2]]).collect(),
        None => {
            let advantages = gae.advantages.to_f64()?;
            offsets.windows(2).map(|o| of_episodes(&advantages[o[0] as usize..o[1] as usize])).collect()
        }
    };
    Ok([0, 1].map(|i| Output { name, values: episodes.iter().map(|row| row[i]).collect(), is_gradient: false }))
}

/// The coefficients of a loss over `n` tokens.
fn coefficients(n: usize, dual_clip: Option<f64>) -> Coefficients {
    Coefficients {
        cliprange_low: 0.2,
        cliprange_high: 0.28,
        cliprange_value: 0.2,
        vf_coef: 0.1,
        dual_clip,
        scale: 1.0 / n as f64,
    }
}

const PPO_STATISTICS: [&str; STATISTICS] = [
    "policy loss",
    "value loss",
    "kl",
    "clipped",
    "values clipped",
    "ratio",
    "squared ratio",
    "distance",
    "largest distance",
];
const PAIR_STATISTICS: [&str; 3] = ["pair loss", "chosen", "gap"];

fn statistics(names: &[&'static str], values: &Tensor) -> Result<Vec<Output>> {
    Ok(names.iter().zip(values.to_f64()?).map(|(name, value)| statistic(name, value)).collect())
}

/// Each statistic is judged alone, because their sizes differ.
fn statistic(name: &'static str, value: f64) -> Output {
    Output { name, values: vec![value], is_gradient: false }
}

fn ppo(e: &Engine, n: usize, dual_clip: Option<f64>, spread: f64) -> Result<Vec<Output>> {
    let column = |stream, scale: f64| e.wide(&[n], &normal(n, stream).iter().map(|x| x * scale).collect::<Vec<_>>());
    let mut old = normal(n, 1);
    // Ratio exactly 1 at the first token.
    let mut new: Vec<f64> = old.iter().zip(normal(n, 2)).map(|(o, d)| o + spread * d).collect();
    new[0] = old[0];
    old.truncate(n);
    let tokens = Tokens {
        logprobs: e.trained(e.wide(&[n], &new)?)?,
        old_logprobs: e.wide(&[n], &old)?,
        advantages: column(3, 1.0)?,
        values: e.trained(column(4, 1.0)?)?,
        old_values: column(5, 1.0)?,
        returns: column(6, 1.0)?,
    };
    let out = ppo_loss(&tokens, &coefficients(n, dual_clip))?;
    let mut outputs = vec![e.wide_output("loss", &out.loss)?];
    outputs.extend(statistics(&PPO_STATISTICS, &out.statistics)?);
    out.root.backward()?;
    outputs.extend([e.wide_gradient("dlogprobs", &tokens.logprobs)?, e.wide_gradient("dvalues", &tokens.values)?]);
    Ok(outputs)
}

/// Where the large number stands: in any warp and lane, or, in every second case, among the tokens of threads that have
/// two.
fn place(n: usize, seed: u32) -> usize {
    let seed = seed as usize;
    if seed.is_multiple_of(2) { (seed * 13 + 5) % (n % 1024) } else { (seed * 359 + 700) % n }
}

/// Integers times `unit` whose sum has few enough bits for an f32, but not the sums on the way: one is large and the
/// others, `small` of normal numbers, fall below its last digit. Sums that carry their rounding errors are exact.
fn integers(n: usize, seed: u32, unit: f64, small: impl Fn(f64) -> f64) -> Vec<f64> {
    let mut numbers: Vec<f64> = normal(n, 40 + seed).into_iter().map(small).collect();
    numbers[place(n, seed)] = 17_825_792.0;
    // An odd multiple of 2: what is off by one is not rounded back.
    let off = numbers.iter().sum::<f64>().rem_euclid(4.0);
    numbers[n - 1] += (6.0 - off).rem_euclid(4.0);
    numbers.iter().map(|x| x * unit).collect()
}

/// The sums of the loss where each term is exact: first with a ratio of 1, then the sum of squared log-ratios.
fn exact_ppo(e: &Engine, seed: u32) -> Result<Vec<Output>> {
    let n = 1100;
    let column = |values: &[f64]| e.wide(&[n], values);
    let zeros = vec![0.0; n];
    let run = |logprobs: &[f64], advantages: &[f64], returns: &[f64]| {
        let tokens = Tokens {
            logprobs: e.trained(column(logprobs)?)?,
            old_logprobs: column(&zeros)?,
            advantages: column(advantages)?,
            values: e.trained(column(&zeros)?)?,
            old_values: column(&zeros)?,
            returns: column(returns)?,
        };
        ppo_loss(&tokens, &coefficients(n, None))?.statistics.to_f64()
    };
    // Half the sum of squares must be an odd multiple of 2 above 2^24: ones at the end see to it.
    let mut roots: Vec<f64> = normal(n, 50 + seed).iter().map(|x| (x * 3.0).round()).collect();
    roots[place(n, seed)] = 5800.0;
    roots[n - 8..].fill(0.0);
    let ones = (12.0 - roots.iter().map(|x| x * x).sum::<f64>().rem_euclid(8.0)) as usize % 8;
    roots[n - 8..][..ones].fill(1.0);
    let advantages = integers(n, seed, -1.0, |x| (x * 20.0).round());
    let first = run(&zeros, &advantages, &roots)?;
    let second = run(&roots, &zeros, &zeros)?;
    // All on one side, the large one too.
    let distances = integers(n, seed, -1.0, |x| (x.abs() * 20.0).round());
    let third = run(&distances, &zeros, &zeros)?;
    Ok(vec![
        statistic("distance", third[7]),
        statistic("largest distance", third[8]),
        statistic("policy loss", first[0]),
        statistic("value loss", first[1]),
        statistic("kl", second[2]),
    ])
}

/// The sums of ratios and of their squares where one is 1 and the others are some 2^-24: what falls below the last
/// digit on the way moves the sum beyond the nearest number. The errors of the small exponentials do not count.
fn small_ratios(e: &Engine, seed: u32) -> Result<Vec<Output>> {
    let n = 1100;
    let step = f64::from(f32::EPSILON);
    let mut ratios: Vec<f64> = normal(n, 60 + seed).iter().map(|x| (x.abs() * 0.7 + 0.05) * step).collect();
    ratios[place(n, seed)] = 1.0;
    // The sum lies at 0.4 or 0.6 of the way from one number to the next.
    let wanted = if seed % 4 < 2 { 0.4 } else { 0.6 };
    ratios[n - 1] = step;
    let off = (ratios.iter().sum::<f64>() / step).fract();
    ratios[n - 1] += (wanted + 1.0 - off).fract() * step;
    let zeros = || e.wide(&[n], &vec![0.0; n]);
    let sum_of = |power: f64, statistic: usize| {
        let logprobs: Vec<f64> = ratios.iter().map(|ratio| ratio.ln() / power).collect();
        let tokens = Tokens {
            logprobs: e.trained(e.wide(&[n], &logprobs)?)?,
            old_logprobs: zeros()?,
            advantages: zeros()?,
            values: e.trained(zeros()?)?,
            old_values: zeros()?,
            returns: zeros()?,
        };
        Ok::<_, crate::error::Error>(ppo_loss(&tokens, &coefficients(n, None))?.statistics.to_f64()?[statistic])
    };
    Ok(vec![statistic("ratio", sum_of(1.0, 5)?), statistic("squared ratio", sum_of(2.0, 6)?)])
}

/// Pairs so far apart, and all in the wrong order, that a pair's loss is its gap to the last digit.
fn exact_pairs(e: &Engine, seed: u32) -> Result<Vec<Output>> {
    let p = 1100;
    let leads = integers(p, seed, 1.0, |x| (x.abs() * 40.0).round() + 120.0);
    let scores: Vec<f64> = leads.iter().flat_map(|x| [0.0, *x]).collect();
    let scores = e.trained(e.wide(&[2 * p], &scores)?)?;
    let sums = pairwise_loss(&scores, &e.wide(&[p], &vec![0.0; p])?, 0.0, 1.0)?.statistics.to_f64()?;
    Ok(vec![statistic("pair loss", sums[0]), statistic("gap", sums[2])])
}

fn pairs(e: &Engine, p: usize, centering: f64) -> Result<Vec<Output>> {
    let scores = e.trained(e.wide(&[2 * p], &normal(2 * p, 1).iter().map(|x| x * 3.0).collect::<Vec<_>>())?)?;
    let margin = e.wide(&[p], &normal(p, 2))?;
    let out = pairwise_loss(&scores, &margin, centering, 1.0 / p as f64)?;
    let mut outputs = vec![e.wide_output("loss", &out.loss)?];
    outputs.extend(statistics(&PAIR_STATISTICS, &out.statistics)?);
    out.root.backward()?;
    outputs.push(e.wide_gradient("dscores", &scores)?);
    Ok(outputs)
}

/// Each lead alone, so that every stretch of softplus counts.
fn single_pairs(e: &Engine) -> Result<Vec<Output>> {
    let mut outputs = Vec::new();
    for lead in [-90.0, -20.0, -8.3, -3.1, -1.2, -0.6, -0.3, -0.1, 0.0, 0.05, 0.2, 0.4, 0.9, 1.7, 4.4, 9.9, 16.0] {
        let scores = e.trained(e.wide(&[2], &[lead + 0.5, 0.25])?)?;
        let out = pairwise_loss(&scores, &e.wide(&[1], &[0.25])?, 0.0, 1.0)?;
        outputs.push(statistic("pair loss", out.statistics.to_f64()?[0]));
        out.root.backward()?;
        outputs.push(e.wide_gradient("dscores", &scores)?);
    }
    Ok(outputs)
}

/// Sums stay infinite, though their rounding errors are NaN.
fn infinite_pairs(e: &Engine) -> Result<Vec<Output>> {
    let p = 40;
    let mut outputs = Vec::new();
    for (margin, score) in [(f64::INFINITY, 1.0), (0.0, f64::INFINITY), (0.0, f64::NEG_INFINITY)] {
        let (mut margins, mut scores) = (normal(p, 1), normal(2 * p, 2));
        (margins[7], scores[50]) = (margin, score);
        let scores = e.wide(&[2 * p], &scores)?;
        let out = pairwise_loss(&scores, &e.wide(&[p], &margins)?, 0.0, 0.5)?;
        outputs.extend(statistics(&PAIR_STATISTICS, &out.statistics)?);
        outputs.push(e.wide_output("loss", &out.loss)?);
    }
    Ok(outputs)
}

fn infinite_ppo(e: &Engine) -> Result<Vec<Output>> {
    let n = 40;
    let mut outputs = Vec::new();
    for sign in [1.0, -1.0] {
        let column = |stream, at: usize, value: f64| {
            let mut values = normal(n, stream);
            values[at] = value;
            e.wide(&[n], &values)
        };
        let tokens = Tokens {
            logprobs: e.trained(column(1, 3, f64::NEG_INFINITY)?)?,
            old_logprobs: column(2, 3, 0.0)?,
            advantages: column(3, 35, sign * f64::INFINITY)?,
            values: e.trained(column(4, 3, 0.0)?)?,
            old_values: column(5, 3, 0.0)?,
            returns: column(6, 17, f64::INFINITY)?,
        };
        outputs.extend(statistics(&PPO_STATISTICS, &ppo_loss(&tokens, &coefficients(n, None))?.statistics)?);
    }
    Ok(outputs)
}
