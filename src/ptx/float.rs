//! Floats as PTX defines them: canonical NaN, rounding modes, subnormals, 16-bit formats, and the approximate
//! functions.

use super::inst::{Mode, Round, Special1};

/// Every NaN that f32 arithmetic makes.
pub(super) const NAN32: u32 = 0x7fff_ffff;

/// An f32 result's bits with NaN made canonical.
#[inline(always)]
pub(super) fn canon(x: f32) -> u32 {
    if x.is_nan() { NAN32 } else { x.to_bits() }
}

/// Subnormals to zero of the same sign.
#[inline(always)]
pub(super) fn flush(x: f32) -> f32 {
    if x.is_subnormal() { f32::from_bits(x.to_bits() & 0x8000_0000) } else { x }
}

/// The sum of two f64 and its exact error (Knuth's two-sum).
#[inline(always)]
pub(super) fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let s = a + b;
    let t = s - a;
    (s, (a - (s - t)) + (b - t))
}

/// Rounds `value + error` to f32, where `error` is far below the last place of `value`.
pub(super) fn round_sum(value: f64, error: f64, round: Round) -> f32 {
    if value == 0.0 && error == 0.0 || !value.is_finite() {
        return value as f32;
    }
    let near = odd(value, error) as f32;
    let exact = f64::from(near);
    // Which side of the true value did the nearest fall on?
    let above = exact > value || (exact == value && error < 0.0);
    let below = exact < value || (exact == value && error > 0.0);
    match round {
        Round::Nearest | Round::Away => near,
        Round::Down if above => near.next_down(),
        Round::Up if below => near.next_up(),
        Round::Zero if near > 0.0 && above => near.next_down(),
        Round::Zero if near < 0.0 && below => near.next_up(),
        _ => near,
    }
}

/// `value + error` rounded to odd, so that a second rounding to f32 is a single correct one.
#[inline(always)]
fn odd(value: f64, error: f64) -> f64 {
    if error == 0.0 || value.to_bits() & 1 == 1 {
        return value;
    }
    let away = (error > 0.0) == (value > 0.0);
    f64::from_bits(if away { value.to_bits() + 1 } else { value.to_bits() - 1 })
}

/// a * b + c with one rounding.
#[inline(always)]
pub(super) fn fma(a: f32, b: f32, c: f32) -> f32 {
    let (s, e) = two_sum(f64::from(a) * f64::from(b), f64::from(c));
    if e == 0.0 || !s.is_finite() { s as f32 } else { odd(s, e) as f32 }
}

fn finish(value: f32, exact_zero_negative: bool, mode: Mode) -> u32 {
    let mut x = value;
    if mode.ftz {
        x = flush(x);
    }
    if mode.sat {
        // NaN saturates to +0.
        x = if x.is_nan() { 0.0 } else { x.clamp(0.0, 1.0) + 0.0 };
    }
    // Round-down gives -0 for an exact zero sum of unlike signs.
    if exact_zero_negative && x == 0.0 && !mode.sat {
        x = -0.0;
    }
    canon(x)
}

fn inputs(mode: Mode, x: f32) -> f32 {
    if mode.ftz { flush(x) } else { x }
}

/// f32 addition in any mode.
pub(super) fn add(a: f32, b: f32, mode: Mode) -> u32 {
    let (a, b) = (inputs(mode, a), inputs(mode, b));
    let (s, e) = two_sum(f64::from(a), f64::from(b));
    let e = if s.is_finite() { e } else { 0.0 };
    let cancels = mode.round == Round::Down && a == -b && a != 0.0;
    let mixed_zero = mode.round == Round::Down && a == 0.0 && b == 0.0 && a.to_bits() != b.to_bits();
    finish(round_sum(s, e, mode.round), cancels || mixed_zero, mode)
}

/// f32 multiplication in any mode.
pub(super) fn mul(a: f32, b: f32, mode: Mode) -> u32 {
    let (a, b) = (inputs(mode, a), inputs(mode, b));
    finish(round_sum(f64::from(a) * f64::from(b), 0.0, mode.round), false, mode)
}

/// f32 fused multiply-add in any mode.
pub(super) fn fma_mode(a: f32, b: f32, c: f32, mode: Mode) -> u32 {
    let (a, b, c) = (inputs(mode, a), inputs(mode, b), inputs(mode, c));
    let p = f64::from(a) * f64::from(b);
    let (s, e) = two_sum(p, f64::from(c));
    let e = if s.is_finite() { e } else { 0.0 };
    let cancels = mode.round == Round::Down && s == 0.0 && p == -f64::from(c) && p.to_bits() != f64::from(c).to_bits();
    finish(round_sum(s, e, mode.round), cancels, mode)
}

/// f32 division in any mode: the quotient to f64, its error from the remainder.
pub(super) fn div(a: f32, b: f32, mode: Mode) -> u32 {
    let (a, b) = (inputs(mode, a), inputs(mode, b));
    if mode.round == Round::Nearest {
        return finish(a / b, false, mode);
    }
    let (x, y) = (f64::from(a), f64::from(b));
    let q = x / y;
    let e = if q.is_finite() && q != 0.0 { (-q).mul_add(y, x) / y } else { 0.0 };
    finish(round_sum(q, e, mode.round), false, mode)
}

/// f32 square root in any mode.
pub(super) fn sqrt(a: f32, mode: Mode) -> u32 {
    let a = inputs(mode, a);
    if mode.round == Round::Nearest {
        return finish(a.sqrt(), false, mode);
    }
    let x = f64::from(a);
    let q = x.sqrt();
    let e = if q.is_finite() && q != 0.0 { (-q).mul_add(q, x) / (2.0 * q) } else { 0.0 };
    finish(round_sum(q, e, mode.round), false, mode)
}

/// min or max: a NaN loses to a number, or with `.NaN` wins; -0 is below +0.
#[inline(always)]
pub(super) fn min_max(a: f32, b: f32, max: bool, nan: bool) -> u32 {
    if a.is_nan() || b.is_nan() {
        return if nan || (a.is_nan() && b.is_nan()) {
            NAN32
        } else if a.is_nan() {
            b.to_bits()
        } else {
            a.to_bits()
        };
    }
    let first = if a == b { (a.to_bits() >> 31 == 1) != max } else { (a < b) != max };
    if first { a.to_bits() } else { b.to_bits() }
}

/// The same for f64.
pub(super) fn min_max64(a: f64, b: f64, max: bool) -> f64 {
    match (a.is_nan(), b.is_nan()) {
        (true, true) => f64::from_bits(0x7fff_ffff_ffff_ffff),
        (true, false) => b,
        (false, true) => a,
        _ if a == b => {
            if a.is_sign_negative() != max {
                a
            } else {
                b
            }
        }
        _ => {
            if (a < b) != max {
                a
            } else {
                b
            }
        }
    }
}

/// The approximate functions: the exact value rounded to nearest. Hardware is within 1-2 ulp of it, which noise mode
/// imitates.
pub(super) fn approx(f: Special1, ftz: bool, a: f32) -> f32 {
    let a = if ftz { flush(a) } else { a };
    let x = f64::from(a);
    let y = match f {
        Special1::Ex2 => return flush_if(ftz, exp2(a)),
        Special1::Lg2 => x.log2(),
        Special1::Rcp => 1.0 / x,
        Special1::Rsqrt => 1.0 / x.sqrt(),
        Special1::Sqrt => x.sqrt(),
        Special1::Sin => x.sin(),
        Special1::Cos => x.cos(),
        Special1::Tanh => x.tanh(),
    };
    flush_if(ftz, y as f32)
}

fn flush_if(ftz: bool, x: f32) -> f32 {
    if ftz { flush(x) } else { x }
}

/// 2^x, correct to well below an f32's last place: x = n + r with |r| <= 1/2, a degree-11 Taylor sum in f64 for 2^r. A
/// plain polynomial, so that thirty-two lanes vectorise and every host gives the same bits.
#[inline(always)]
pub(super) fn exp2(a: f32) -> f32 {
    let x = f64::from(a.clamp(-200.0, 200.0));
    // Adding 1.5 * 2^52 leaves the nearest integer in the low bits.
    const SHIFTER: f64 = 6_755_399_441_055_744.0;
    let shifted = x + SHIFTER;
    let n = shifted - SHIFTER;
    let r = (x - n) * std::f64::consts::LN_2;
    let mut p = 1.0 / 39_916_800.0;
    for c in [
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        p = p * r + c;
    }
    let scale = f64::from_bits((shifted.to_bits().wrapping_add(1023) & 0x7ff) << 52);
    if a.is_nan() { f32::from_bits(NAN32) } else { (p * scale) as f32 }
}

/// f32 to bf16, to nearest even; NaN becomes 0x7fff.
#[inline(always)]
pub(super) fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return 0x7fff;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// bf16 to f32.
#[inline(always)]
pub(super) fn from_bf16(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

/// f32 to f16, to nearest even; NaN becomes 0x7fff.
pub(super) fn to_f16(x: f32) -> u16 {
    if x.is_nan() { 0x7fff } else { half::f16::from_f32(x).to_bits() }
}

/// f16 to f32.
pub(super) fn from_f16(x: u16) -> f32 {
    half::f16::from_bits(x).to_f32()
}
