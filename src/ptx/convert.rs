//! cvt: between integers and floats of all widths, with PTX's rounding, clamping and flushing.

use super::float::{NAN32, flush, from_bf16, from_f16, round_sum, to_bf16, to_f16};
use super::inst::{Element, Inst, Round, Ty};
use super::warp::Warp;

/// A conversion's parts.
#[derive(Clone, Copy)]
pub(super) struct Cvt {
    pub(super) to: Ty,
    pub(super) from: Ty,
    pub(super) round: Option<Round>,
    pub(super) integral: bool,
    pub(super) ftz: bool,
    pub(super) sat: bool,
}

/// Converts a warp.
pub(super) fn convert(w: &mut Warp, i: &Inst, mask: u32, c: Cvt) {
    let (d, s) = (i.dst[0], i.src[0]);
    // The frequent ones alone; the rest one lane at a time.
    match (c.to, c.from) {
        (Ty::S64 | Ty::U64, Ty::S32) => {
            let out = w.word(s).map(|x| i64::from(x as i32) as u64);
            return w.put_long(d, mask, &out);
        }
        (Ty::U64 | Ty::S64, Ty::U32) => {
            let out = w.word(s).map(u64::from);
            return w.put_long(d, mask, &out);
        }
        (Ty::U32 | Ty::S32, Ty::U64 | Ty::S64) if !c.sat => {
            let out = w.long(s).map(|x| x as u32);
            return w.put(d, mask, &out);
        }
        (Ty::F32, Ty::S32) if c.round == Some(Round::Nearest) && !c.sat => {
            let out = w.word(s).map(|x| (x as i32 as f32).to_bits());
            return w.put(d, mask, &out);
        }
        _ => {}
    }
    let wide = c.from.bits() == 64;
    let source: [u64; 32] = if wide { *w.long(s) } else { w.word(s).map(u64::from) };
    let out = source.map(|x| lane(x, c));
    if c.to.bits() == 64 {
        w.put_long(d, mask, &out);
    } else {
        w.put(d, mask, &out.map(|x| x as u32));
    }
}

/// Reads a lane as a signed 128-bit integer, which holds every source.
fn integer(x: u64, ty: Ty) -> i128 {
    match ty {
        Ty::S8 => i128::from(x as i8),
        Ty::S16 => i128::from(x as i16),
        Ty::S32 => i128::from(x as i32),
        Ty::S64 => i128::from(x as i64),
        Ty::U8 | Ty::B8 => i128::from(x as u8),
        Ty::U16 | Ty::B16 => i128::from(x as u16),
        Ty::U32 | Ty::B32 => i128::from(x as u32),
        _ => i128::from(x),
    }
}

/// The ends of an integer type.
fn range(ty: Ty) -> (i128, i128) {
    let bits = ty.bits();
    if ty.signed() { (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) }
}

fn float(x: u64, ty: Ty, ftz: bool) -> f64 {
    let single = match ty {
        Ty::F64 => return f64::from_bits(x),
        Ty::F16 => from_f16(x as u16),
        Ty::BF16 => from_bf16(x as u16),
        _ => f32::from_bits(x as u32),
    };
    // Flushing concerns f32 alone.
    f64::from(if ftz && ty == Ty::F32 { flush(single) } else { single })
}

fn integral(x: f64, round: Round) -> f64 {
    match round {
        Round::Nearest | Round::Away => x.round_ties_even(),
        Round::Zero => x.trunc(),
        Round::Down => x.floor(),
        Round::Up => x.ceil(),
    }
}

fn lane(x: u64, c: Cvt) -> u64 {
    let round = c.round.unwrap_or(Round::Nearest);
    match (c.to.float(), c.from.float()) {
        (false, false) => {
            let value = integer(x, c.from);
            let (low, high) = range(c.to);
            let value = if c.sat { value.clamp(low, high) } else { value };
            // The register keeps the value extended to 32 bits, as the destination's sign asks.
            extend(value as u64, c.to)
        }
        (false, true) => {
            let value = integral(float(x, c.from, c.ftz), round);
            let (low, high) = range(c.to);
            // A NaN becomes 0 (the top value for 64 bits is hardware's choice of 2^63); out of range clamps.
            let clamped = if value.is_nan() {
                if c.to.bits() == 64 { 1 << 63 } else { 0 }
            } else if value <= low as f64 {
                low
            } else if value >= high as f64 {
                high
            } else {
                value as i128
            };
            extend(clamped as u64, c.to)
        }
        (true, false) => from_integer(integer(x, c.from), c, round),
        (true, true) => between(x, c, round),
    }
}

fn extend(value: u64, ty: Ty) -> u64 {
    match ty {
        Ty::S8 => value as i8 as u32 as u64,
        Ty::S16 => value as i16 as u32 as u64,
        Ty::U8 | Ty::B8 => u64::from(value as u8),
        Ty::U16 | Ty::B16 => u64::from(value as u16),
        Ty::S64 | Ty::U64 | Ty::B64 => value,
        _ => u64::from(value as u32),
    }
}

fn from_integer(value: i128, c: Cvt, round: Round) -> u64 {
    if c.to == Ty::F64 {
        let near = value as f64;
        let exact = near as i128;
        let out = match round {
            Round::Down if exact > value => near.next_down(),
            Round::Up if exact < value => near.next_up(),
            Round::Zero if value > 0 && exact > value => near.next_down(),
            Round::Zero if value < 0 && exact < value => near.next_up(),
            _ => near,
        };
        return out.to_bits();
    }
    // High part exact, remainder as the error.
    let high = value as f64;
    let error = (value - high as i128) as f64;
    let out = round_sum(high, error, round);
    u64::from((if c.sat { out.clamp(0.0, 1.0) } else { out }).to_bits())
}

fn between(x: u64, c: Cvt, round: Round) -> u64 {
    let mut value = float(x, c.from, c.ftz);
    if c.integral {
        value = integral(value, round);
    }
    if c.sat {
        value = if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) + 0.0 };
    }
    match c.to {
        Ty::F64 => {
            if value.is_nan() {
                NAN64
            } else {
                value.to_bits()
            }
        }
        Ty::F32 => {
            let out = round_sum(value, 0.0, if c.integral { Round::Nearest } else { round });
            let out = if c.ftz { flush(out) } else { out };
            u64::from(if out.is_nan() { NAN32 } else { out.to_bits() })
        }
        Ty::TF32 => {
            // Nearest with ties away, 10 bits of fraction.
            let bits = (value as f32).to_bits();
            u64::from(if value.is_nan() { NAN32 } else { bits.wrapping_add(0x1000) & !0x1fff })
        }
        Ty::BF16 => u64::from(short(value, round, to_bf16, from_bf16)),
        _ => u64::from(short(value, round, to_f16, from_f16)),
    }
}

const NAN64: u64 = 0x7fff_ffff_ffff_ffff;

/// To a 16-bit float: nearest, or truncated toward zero.
fn short(value: f64, round: Round, to: fn(f32) -> u16, from: fn(u16) -> f32) -> u16 {
    let single = round_sum(value, 0.0, Round::Zero);
    // A value that needs more than an f32 rounds to odd on the way.
    let single =
        if f64::from(single) != value && single.is_finite() { f32::from_bits(single.to_bits() | 1) } else { single };
    let near = to(single);
    let back = f64::from(from(near));
    match round {
        Round::Zero if back.abs() > value.abs() && !value.is_infinite() => near - 1,
        Round::Down if back > value => {
            if near & 0x8000 == 0 {
                near.wrapping_sub(1)
            } else {
                near + 1
            }
        }
        Round::Up if back < value => {
            if near & 0x8000 == 0 {
                near + 1
            } else {
                near.wrapping_sub(1)
            }
        }
        _ => near,
    }
}

/// cvt.rn.bf16x2.f32 and f16x2: the first source is the upper half.
pub(super) fn pair(w: &mut Warp, i: &Inst, mask: u32, to: Element, relu: bool) {
    let (a, b) = (w.word(i.src[0]), w.word(i.src[1]));
    let cut = |x: u32| {
        let x = f32::from_bits(x);
        if relu && x < 0.0 { 0.0 } else { x }
    };
    let mut out = [0u32; 32];
    match to {
        Element::BF16 => {
            for l in 0..32 {
                out[l] = u32::from(to_bf16(cut(a[l]))) << 16 | u32::from(to_bf16(cut(b[l])));
            }
        }
        Element::F16 => {
            for l in 0..32 {
                out[l] = u32::from(to_f16(cut(a[l]))) << 16 | u32::from(to_f16(cut(b[l])));
            }
        }
    }
    w.put(i.dst[0], mask, &out);
}
