//! PPO's arithmetic against numbers computed by hand, and in f32 against f64.

use super::advantages::advantages;
use super::losses::{Coefficients, Tokens, ppo_loss};
use super::rewards::{KlController, Shaped, Shaping, episode_kl};
use crate::config::KlEstimator;
use crate::device::Device;
use crate::dtype::DType;
use crate::ops;
use crate::ops::ppo_loss::PpoLoss;
use crate::random::{Philox, Stage};
use crate::tensor::Tensor;

fn column(values: &[f64]) -> Tensor {
    Tensor::from_f64(&Device::Cpu, DType::F64, &[values.len()], values).unwrap()
}

fn assert_close(ours: &[f64], theirs: &[f64]) {
    assert_eq!(ours.len(), theirs.len());
    for (a, b) in ours.iter().zip(theirs) {
        assert!((a - b).abs() < 1e-9, "{ours:?} is not {theirs:?}");
    }
}

/// Two episodes of two tokens and one token: d = (0.5, -1, 0.25), kl_coef 0.1, scores 2 and -1.
#[test]
fn rewards_by_hand() {
    let (new, old) = (column(&[-1.0, -2.0, -0.5]), column(&[-1.5, -1.0, -0.75]));
    let scores = column(&[2.0, -1.0]);
    let of = |estimator| {
        let shaped = Shaped { logprobs: [&new, &old], scores: &scores, offsets: &[0, 2, 3], estimator, kl_coef: 0.1 };
        ops::gae::rewards(&shaped).unwrap().to_f64().unwrap()
    };
    assert_close(&of(KlEstimator::K1), &[-0.05, 0.1 + 2.0, -0.025 - 1.0]);
    assert_close(&of(KlEstimator::K2), &[-0.0125, -0.05 + 2.0, -0.003_125 - 1.0]);
    let k3 = |d: f64| (-d).exp() - 1.0 + d;
    assert_close(&of(KlEstimator::K3), &[-0.1 * k3(0.5), -0.1 * k3(-1.0) + 2.0, -0.1 * k3(0.25) - 1.0]);
    assert!((episode_kl(&[-1.0, -2.0], &[-1.5, -1.0], KlEstimator::K1) + 0.5).abs() < 1e-12);
}

/// gamma 0.9, lam 0.5. Episode 1: r = (1, 2, 3), V = (0.5, 1, 1.5). From the end:
/// delta_3 = 3 - 1.5 = 1.5; delta_2 = 2 + 0.9 1.5 - 1 = 2.35; delta_1 = 1 + 0.9 1 - 0.5 = 1.4;
/// A_3 = 1.5; A_2 = 2.35 + 0.45 1.5 = 3.025; A_1 = 1.4 + 0.45 3.025 = 2.76125. Episode 2: one token, A = 4 - 2 = 2.
#[test]
fn advantages_by_hand() {
    let (r, v) = (column(&[1.0, 2.0, 3.0, 4.0]), column(&[0.5, 1.0, 1.5, 2.0]));
    let ops::gae::Gae { advantages: a, returns, .. } = ops::gae::gae(&r, &v, &[0, 3, 4], [0.9, 0.5]).unwrap();
    assert_close(&a.to_f64().unwrap(), &[2.76125, 3.025, 1.5, 2.0]);
    assert_close(&returns.to_f64().unwrap(), &[3.26125, 4.025, 3.0, 4.0]);
}

/// x = (1, 2, 3, 6): mean 3, unbiased variance (4 + 1 + 0 + 9) / 3.
#[test]
fn whitening_by_hand() {
    let x = column(&[1.0, 2.0, 3.0, 6.0]);
    let s = (14.0f64 / 3.0 + 1e-8).sqrt();
    assert_close(&ops::whiten::whiten(&x, None, false).unwrap().to_f64().unwrap(), &[-2.0 / s, -1.0 / s, 0.0, 3.0 / s]);
    let kept = [3.0 - 2.0 / s, 3.0 - 1.0 / s, 3.0, 3.0 + 3.0 / s];
    assert_close(&ops::whiten::whiten(&x, None, true).unwrap().to_f64().unwrap(), &kept);
    assert_close(&ops::whiten::whiten(&column(&[5.0]), None, false).unwrap().to_f64().unwrap(), &[0.0]);
    assert!(ops::whiten::whiten(&column(&[]), None, false).unwrap().to_f64().unwrap().is_empty());
}

#[test]
fn returns_are_taken_before_whitening() {
    let (zeros, scores) = (column(&[0.0, 0.0]), column(&[1.0, 2.0]));
    let estimator = KlEstimator::K1;
    let shaped = Shaped { logprobs: [&zeros, &zeros], scores: &scores, offsets: &[0, 1, 2], estimator, kl_coef: 0.1 };
    let both = advantages(&shaped, &zeros, [1.0, 1.0], false).unwrap();
    assert_close(&both.returns.to_f64().unwrap(), &[1.0, 2.0]);
    let s = (0.5f64 + 1e-8).sqrt();
    assert_close(&both.advantages.to_f64().unwrap(), &[-0.5 / s, 0.5 / s]);
}

const COEFFICIENTS: Coefficients = Coefficients {
    cliprange_low: 0.2,
    cliprange_high: 0.2,
    cliprange_value: 0.2,
    vf_coef: 0.1,
    dual_clip: None,
    scale: 0.25,
};

/// Four tokens with ratios 1, 1.5, 0.5, 1.5 and advantages 1, 1, -1, -1; values move by 0, 0.5, 0.1, -0.5 from 0
/// towards returns 1, 1, 1, -2.
fn four_tokens() -> Tokens {
    Tokens {
        logprobs: column(&[0.0, 1.5f64.ln(), 0.5f64.ln(), 1.5f64.ln()]),
        old_logprobs: column(&[0.0; 4]),
        advantages: column(&[1.0, 1.0, -1.0, -1.0]),
        values: column(&[0.0, 0.5, 0.1, -0.5]),
        old_values: column(&[0.0; 4]),
        returns: column(&[1.0, 1.0, 1.0, -2.0]),
    }
}

fn sums(tokens: &Tokens, coefficients: &Coefficients) -> Vec<f64> {
    ppo_loss(tokens, coefficients).unwrap().statistics.to_f64().unwrap()
}

/// Policy: -1; max(-1.5, -1.2) = -1.2, clipped; max(0.5, 0.8) = 0.8, clipped; max(1.5, 1.2) = 1.5. Sum 0.1.
/// Value: 1/2 of 1; max(0.25, 0.64) = 0.64, clipped; 0.81; max(2.25, 3.24) = 3.24, clipped. Sum 1/2 of 5.69.
#[test]
fn losses_by_hand() {
    let PpoLoss { loss, statistics, .. } = ppo_loss(&four_tokens(), &COEFFICIENTS).unwrap();
    let delta = [0.0, 1.5f64.ln(), 0.5f64.ln(), 1.5f64.ln()];
    let half_squares = 0.5 * delta.iter().map(|d| d * d).sum::<f64>();
    assert_close(
        &statistics.to_f64().unwrap(),
        &[0.1, 2.845, half_squares, 2.0, 2.0, 4.5, 1.0 + 2.25 + 0.25 + 2.25, 4.5f64.ln(), 2f64.ln()],
    );
    assert_close(&loss.to_f64().unwrap(), &[0.25 * (0.1 + 0.1 * 2.845)]);
    let dual = Coefficients { dual_clip: Some(1.2), ..COEFFICIENTS };
    assert_close(&sums(&four_tokens(), &dual)[..1], &[0.1 - 0.3]);
    let high = Coefficients { cliprange_high: 0.4, ..COEFFICIENTS };
    assert_close(&sums(&four_tokens(), &high)[..1], &[0.1 - 0.2]);
}

#[test]
fn not_a_number_does_not_vanish() {
    for which in 0..6 {
        let mut tokens = four_tokens();
        let nan = column(&[0.0, f64::NAN, 0.0, 0.0]);
        let Tokens { logprobs, old_logprobs, advantages, values, old_values, returns } = &mut tokens;
        *[logprobs, old_logprobs, advantages, values, old_values, returns][which] = nan;
        let loss = ppo_loss(&tokens, &COEFFICIENTS).unwrap().loss;
        assert!(loss.to_f64().unwrap()[0].is_nan(), "input {which}");
        let apart = &sums(&tokens, &COEFFICIENTS)[7..];
        assert!(apart.iter().all(|x| x.is_nan() == (which < 2)), "input {which}: {apart:?}");
    }
}

/// A log-ratio beyond 20 is cut there, so that the loss stays finite.
#[test]
fn an_exploded_ratio_is_finite() {
    let tokens = Tokens { logprobs: column(&[100.0, 0.0, 0.0, 0.0]), ..four_tokens() };
    assert!((sums(&tokens, &COEFFICIENTS)[5] - 20f64.exp() - 3.0).abs() < 1e-3);
}

#[test]
fn f32_agrees_with_f64() {
    let mut stream = Philox::new(9, Stage::Init, 0, 0);
    let mut draw = || (0..300).map(|_| stream.normal()).collect::<Vec<f64>>();
    let values: [Vec<f64>; 6] = std::array::from_fn(|_| draw());
    let of = |dtype| {
        let [logprobs, old_logprobs, advantages, values, old_values, returns] =
            values.each_ref().map(|v| Tensor::from_f64(&Device::Cpu, dtype, &[300], v).unwrap());
        sums(&Tokens { logprobs, old_logprobs, advantages, values, old_values, returns }, &COEFFICIENTS)
    };
    for (a, b) in of(DType::F32).iter().zip(of(DType::F64)) {
        assert!((a - b).abs() <= 1e-5 * b.abs().max(1.0), "{a} {b}");
    }
}

#[test]
fn scores_are_shaped_in_order() {
    let shaping = Shaping { normalize: Some([1.0, 2.0]), missing_eos_penalty: Some(3.0), score_clip: Some(2.5) };
    assert_eq!(shaping.apply(5.0, true), 2.0);
    assert_eq!(shaping.apply(5.0, false), -1.0);
    assert_eq!(shaping.apply(-5.0, false), -2.5);
    assert_eq!(Shaping::default().apply(7.0, false), 7.0);
}

/// KL twice its target: the error is cut to 0.2, so 100 of 1000 episodes raise the coefficient by 2 %.
#[test]
fn the_controller_follows_its_target() {
    let mut controller = KlController { coefficient: 0.1, target: Some(3.0), horizon: 1000.0 };
    controller.update(6.0, 100);
    assert!((controller.coefficient - 0.102).abs() < 1e-12);
    controller.update(2.7, 100);
    assert!((controller.coefficient - 0.102 * 0.99).abs() < 1e-12);
    let mut fixed = KlController { target: None, ..controller };
    fixed.update(100.0, 100);
    assert_eq!(fixed.coefficient, controller.coefficient);
}
