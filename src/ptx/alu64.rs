//! Arithmetic of 64-bit lanes, and what mixes 64-bit and 32-bit lanes.

use super::alu::{bfe, bfi};
use super::float::min_max64;
use super::inst::{Inst, L1, L1W, L2, L3, Shift};
use super::warp::Warp;

const NAN64: u64 = 0x7fff_ffff_ffff_ffff;

fn canon(x: f64) -> u64 {
    if x.is_nan() { NAN64 } else { x.to_bits() }
}

#[inline(always)]
fn un(w: &mut Warp, i: &Inst, mask: u32, f: impl Fn(u64) -> u64) {
    let a = w.long(i.src[0]);
    let out: [u64; 32] = std::array::from_fn(|l| f(a[l]));
    w.put_long(i.dst[0], mask, &out);
}

#[inline(always)]
fn bin(w: &mut Warp, i: &Inst, mask: u32, f: impl Fn(u64, u64) -> u64) {
    let (a, b) = (w.long(i.src[0]), w.long(i.src[1]));
    let mut out = [0; 32];
    for l in 0..32 {
        out[l] = f(a[l], b[l]);
    }
    w.put_long(i.dst[0], mask, &out);
}

#[inline(always)]
fn binf(w: &mut Warp, i: &Inst, mask: u32, f: impl Fn(f64, f64) -> f64) {
    bin(w, i, mask, |a, b| canon(f(f64::from_bits(a), f64::from_bits(b))));
}

/// long -> long
pub(super) fn long1(w: &mut Warp, i: &Inst, mask: u32, f: L1) {
    match f {
        L1::Not => un(w, i, mask, |a| !a),
        L1::Neg => un(w, i, mask, u64::wrapping_neg),
        L1::Abs => un(w, i, mask, |a| (a as i64).wrapping_abs() as u64),
        L1::Brev => un(w, i, mask, u64::reverse_bits),
        L1::DNeg => un(w, i, mask, |a| a ^ 1 << 63),
        L1::DAbs => un(w, i, mask, |a| a & !(1 << 63)),
        L1::DRcp => un(w, i, mask, |a| canon(1.0 / f64::from_bits(a))),
        L1::DSqrt => un(w, i, mask, |a| canon(f64::from_bits(a).sqrt())),
    }
}

/// long -> word
pub(super) fn long1_word(w: &mut Warp, i: &Inst, mask: u32, f: L1W) {
    let out = w.long(i.src[0]).map(|a| match f {
        L1W::Popc => a.count_ones(),
        L1W::Clz => a.leading_zeros(),
        L1W::Bfind { signed, shift } => {
            let x = if signed && a >> 63 == 1 { !a } else { a };
            match (x, shift) {
                (0, _) => u32::MAX,
                (_, true) => x.leading_zeros(),
                _ => 63 - x.leading_zeros(),
            }
        }
    });
    w.put(i.dst[0], mask, &out);
}

/// long, long -> long
pub(super) fn long2(w: &mut Warp, i: &Inst, mask: u32, f: L2) {
    match f {
        L2::Add => bin(w, i, mask, u64::wrapping_add),
        L2::Sub => bin(w, i, mask, u64::wrapping_sub),
        L2::MulLo => bin(w, i, mask, u64::wrapping_mul),
        L2::MulHiU => bin(w, i, mask, |a, b| ((u128::from(a) * u128::from(b)) >> 64) as u64),
        L2::MulHiS => bin(w, i, mask, |a, b| ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64),
        L2::DivU => bin(w, i, mask, |a, b| a.checked_div(b).unwrap_or(u64::MAX)),
        L2::DivS => bin(w, i, mask, |a, b| if b == 0 { u64::MAX } else { (a as i64).wrapping_div(b as i64) as u64 }),
        L2::RemU => bin(w, i, mask, |a, b| a.checked_rem(b).unwrap_or(a)),
        L2::RemS => bin(w, i, mask, |a, b| if b == 0 { a } else { (a as i64).wrapping_rem(b as i64) as u64 }),
        L2::MinU => bin(w, i, mask, u64::min),
        L2::MinS => bin(w, i, mask, |a, b| (a as i64).min(b as i64) as u64),
        L2::MaxU => bin(w, i, mask, u64::max),
        L2::MaxS => bin(w, i, mask, |a, b| (a as i64).max(b as i64) as u64),
        L2::And => bin(w, i, mask, |a, b| a & b),
        L2::Or => bin(w, i, mask, |a, b| a | b),
        L2::Xor => bin(w, i, mask, |a, b| a ^ b),
        L2::DAdd => binf(w, i, mask, |a, b| a + b),
        L2::DSub => binf(w, i, mask, |a, b| a - b),
        L2::DMul => binf(w, i, mask, |a, b| a * b),
        L2::DDiv => binf(w, i, mask, |a, b| a / b),
        L2::DMin => binf(w, i, mask, |a, b| min_max64(a, b, false)),
        L2::DMax => binf(w, i, mask, |a, b| min_max64(a, b, true)),
        L2::CopySign => bin(w, i, mask, |a, b| b & !(1 << 63) | a & 1 << 63),
    }
}

/// long, long, long -> long
pub(super) fn long3(w: &mut Warp, i: &Inst, mask: u32, f: L3) {
    let (a, b, c) = (w.long(i.src[0]), w.long(i.src[1]), w.long(i.src[2]));
    let out: [u64; 32] = std::array::from_fn(|l| match f {
        L3::MadLo => a[l].wrapping_mul(b[l]).wrapping_add(c[l]),
        L3::DFma => canon(f64::from_bits(a[l]).mul_add(f64::from_bits(b[l]), f64::from_bits(c[l]))),
    });
    w.put_long(i.dst[0], mask, &out);
}

/// Shifts of longs by words.
pub(super) fn shift(w: &mut Warp, i: &Inst, mask: u32, f: Shift) {
    let (a, b) = (w.long(i.src[0]), w.word(i.src[1]));
    let mut out = [0; 32];
    for l in 0..32 {
        let n = b[l].min(63);
        let over = b[l] > 63;
        out[l] = match f {
            Shift::Left => {
                if over {
                    0
                } else {
                    a[l] << n
                }
            }
            Shift::RightU => {
                if over {
                    0
                } else {
                    a[l] >> n
                }
            }
            Shift::RightS => ((a[l] as i64) >> n) as u64,
        };
    }
    w.put_long(i.dst[0], mask, &out);
}

/// mul.wide and mad.wide
pub(super) fn wide(w: &mut Warp, i: &Inst, mask: u32, signed: bool, add: bool) {
    let (a, b) = (w.word(i.src[0]), w.word(i.src[1]));
    let mut out = [0u64; 32];
    if signed {
        for l in 0..32 {
            out[l] = (i64::from(a[l] as i32) * i64::from(b[l] as i32)) as u64;
        }
    } else {
        for l in 0..32 {
            out[l] = u64::from(a[l]) * u64::from(b[l]);
        }
    }
    if add {
        let c = w.long(i.src[2]);
        for l in 0..32 {
            out[l] = out[l].wrapping_add(c[l]);
        }
    }
    w.put_long(i.dst[0], mask, &out);
}

/// bfe and bfi of longs
pub(super) fn field(w: &mut Warp, i: &Inst, mask: u32, insert: bool, signed: bool) {
    let out: [u64; 32] = std::array::from_fn(|l| {
        let a = w.long(i.src[0])[l];
        if insert {
            bfi(a, w.long(i.src[1])[l], w.word(i.src[2])[l], w.word(i.src[3])[l], 64)
        } else {
            bfe(a, w.word(i.src[1])[l], w.word(i.src[2])[l], 64, signed)
        }
    });
    w.put_long(i.dst[0], mask, &out);
}

/// selp of longs
pub(super) fn select(w: &mut Warp, i: &Inst, mask: u32) {
    let (a, b, p) = (w.long(i.src[0]), w.long(i.src[1]), w.pred(i.src[2]));
    let out: [u64; 32] = std::array::from_fn(|l| if p >> l & 1 == 1 { a[l] } else { b[l] });
    w.put_long(i.dst[0], mask, &out);
}

/// lo, hi -> long
pub(super) fn pack(w: &mut Warp, i: &Inst, mask: u32) {
    let (lo, hi) = (w.word(i.src[0]), w.word(i.src[1]));
    let out: [u64; 32] = std::array::from_fn(|l| u64::from(hi[l]) << 32 | u64::from(lo[l]));
    w.put_long(i.dst[0], mask, &out);
}

/// long -> lo, hi
pub(super) fn unpack(w: &mut Warp, i: &Inst, mask: u32) {
    let a = *w.long(i.src[0]);
    w.put(i.dst[0], mask, &a.map(|x| x as u32));
    w.put(i.dst[1], mask, &a.map(|x| (x >> 32) as u32));
}

/// halves -> word
pub(super) fn pack_halves(w: &mut Warp, i: &Inst, mask: u32) {
    let (lo, hi) = (w.word(i.src[0]), w.word(i.src[1]));
    let out: [u32; 32] = std::array::from_fn(|l| hi[l] << 16 | lo[l] & 0xffff);
    w.put(i.dst[0], mask, &out);
}

/// word -> halves
pub(super) fn unpack_halves(w: &mut Warp, i: &Inst, mask: u32) {
    let a = *w.word(i.src[0]);
    w.put(i.dst[0], mask, &a.map(|x| x & 0xffff));
    w.put(i.dst[1], mask, &a.map(|x| x >> 16));
}

/// four halves -> long
pub(super) fn pack_quarters(w: &mut Warp, i: &Inst, mask: u32) {
    let out: [u64; 32] =
        std::array::from_fn(|l| (0..4).fold(0, |out, n| out | u64::from(w.word(i.src[n])[l] & 0xffff) << (16 * n)));
    w.put_long(i.dst[0], mask, &out);
}

/// long -> four halves
pub(super) fn unpack_quarters(w: &mut Warp, i: &Inst, mask: u32) {
    let a = *w.long(i.src[0]);
    for n in 0..4 {
        w.put(i.dst[n], mask, &a.map(|x| (x >> (16 * n)) as u32 & 0xffff));
    }
}
