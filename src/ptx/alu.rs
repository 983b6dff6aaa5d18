//! Arithmetic of 32-bit lanes. One arm executes an instruction for the whole warp; its loop over 32 lanes is what the
//! compiler vectorises, and lanes that are off are blended out once, in `Warp::put`.

use super::float::{self, canon, flush};
use super::inst::{Cmp, F1, F2, F3, Inst, Logic, Mode, Ty};
use super::warp::Warp;

#[inline(always)]
fn un(w: &mut Warp, i: &Inst, mask: u32, f: impl Fn(u32) -> u32) {
    let a = w.word(i.src[0]);
    let out: [u32; 32] = std::array::from_fn(|l| f(a[l]));
    w.put(i.dst[0], mask, &out);
}

#[inline(always)]
fn bin(w: &mut Warp, i: &Inst, mask: u32, f: impl Fn(u32, u32) -> u32) {
    let (a, b) = (w.word(i.src[0]), w.word(i.src[1]));
    let mut out = [0; 32];
    for l in 0..32 {
        out[l] = f(a[l], b[l]);
    }
    w.put(i.dst[0], mask, &out);
}

#[inline(always)]
fn binf(w: &mut Warp, i: &Inst, mask: u32, f: impl Fn(f32, f32) -> f32) {
    bin(w, i, mask, |a, b| canon(f(f32::from_bits(a), f32::from_bits(b))));
}

#[inline(always)]
fn tri(w: &mut Warp, i: &Inst, mask: u32, f: impl Fn(u32, u32, u32) -> u32) {
    let (a, b, c) = (w.word(i.src[0]), w.word(i.src[1]), w.word(i.src[2]));
    let mut out = [0; 32];
    for l in 0..32 {
        out[l] = f(a[l], b[l], c[l]);
    }
    w.put(i.dst[0], mask, &out);
}

/// Most significant bit that differs from the sign, or -1.
fn bfind(x: u32, signed: bool, shift: bool) -> u32 {
    let x = if signed && x >> 31 == 1 { !x } else { x };
    match (x, shift) {
        (0, _) => u32::MAX,
        (_, true) => x.leading_zeros(),
        _ => 31 - x.leading_zeros(),
    }
}

/// word -> word; the approximate functions are the caller's, because noise needs the launch's seed.
pub(super) fn word1(w: &mut Warp, i: &Inst, mask: u32, f: F1) {
    let float = |x: u32, ftz: bool| if ftz { flush(f32::from_bits(x)).to_bits() } else { x };
    match f {
        F1::Not => un(w, i, mask, |a| !a),
        F1::Cnot => un(w, i, mask, |a| u32::from(a == 0)),
        F1::Neg => un(w, i, mask, u32::wrapping_neg),
        F1::Abs => un(w, i, mask, |a| (a as i32).wrapping_abs() as u32),
        F1::Popc => un(w, i, mask, u32::count_ones),
        F1::Clz => un(w, i, mask, u32::leading_zeros),
        F1::Brev => un(w, i, mask, u32::reverse_bits),
        F1::Bfind { signed, shift } => un(w, i, mask, |a| bfind(a, signed, shift)),
        F1::FNeg { ftz } => un(w, i, mask, |a| float(a, ftz) ^ 0x8000_0000),
        F1::FAbs { ftz } => un(w, i, mask, |a| float(a, ftz) & 0x7fff_ffff),
        F1::Rcp(mode) => un(w, i, mask, |a| float::div(1.0, f32::from_bits(a), mode)),
        F1::Sqrt(mode) => un(w, i, mask, |a| float::sqrt(f32::from_bits(a), mode)),
        F1::Approx(_) => {}
    }
}

#[inline(always)]
fn shift(a: u32, b: u32, f: impl Fn(u32, u32) -> u32) -> u32 {
    if b > 31 { 0 } else { f(a, b) }
}

/// One 32-bit operation on integers, as a function of two words.
fn integer(f: F2, a: u32, b: u32) -> u32 {
    let (x, y) = (a as i32, b as i32);
    match f {
        F2::Add => a.wrapping_add(b),
        F2::Sub => a.wrapping_sub(b),
        F2::AddSat => x.saturating_add(y) as u32,
        F2::SubSat => x.saturating_sub(y) as u32,
        F2::MulLo => a.wrapping_mul(b),
        F2::MulHiU => ((u64::from(a) * u64::from(b)) >> 32) as u32,
        F2::MulHiS => ((i64::from(x) * i64::from(y)) >> 32) as u32,
        F2::MulWide16U => (a & 0xffff) * (b & 0xffff),
        F2::MulWide16S => (i32::from(a as i16) * i32::from(b as i16)) as u32,
        // Division by zero is unspecified; hardware gives all ones.
        F2::DivU => a.checked_div(b).unwrap_or(u32::MAX),
        F2::DivS => {
            if y == 0 {
                u32::MAX
            } else {
                x.wrapping_div(y) as u32
            }
        }
        F2::RemU => a.checked_rem(b).unwrap_or(a),
        F2::RemS => {
            if y == 0 {
                a
            } else {
                x.wrapping_rem(y) as u32
            }
        }
        F2::MinU => a.min(b),
        F2::MinS => x.min(y) as u32,
        F2::MaxU => a.max(b),
        F2::MaxS => x.max(y) as u32,
        F2::And => a & b,
        F2::Or => a | b,
        F2::Xor => a ^ b,
        F2::Shl => shift(a, b, |a, b| a << b),
        F2::ShrU => shift(a, b, |a, b| a >> b),
        F2::ShrS => (x >> b.min(31)) as u32,
        F2::CopySign => b & 0x7fff_ffff | a & 0x8000_0000,
        _ => 0,
    }
}

/// word, word -> word; approximate division is the caller's.
pub(super) fn word2(w: &mut Warp, i: &Inst, mask: u32, f: F2) {
    match f {
        // The frequent ones stand alone so that each loop vectorises.
        F2::Add => bin(w, i, mask, u32::wrapping_add),
        F2::Sub => bin(w, i, mask, u32::wrapping_sub),
        F2::MulLo => bin(w, i, mask, u32::wrapping_mul),
        F2::And => bin(w, i, mask, |a, b| a & b),
        F2::Or => bin(w, i, mask, |a, b| a | b),
        F2::Xor => bin(w, i, mask, |a, b| a ^ b),
        F2::Shl => bin(w, i, mask, |a, b| shift(a, b, |a, b| a << (b & 31))),
        F2::ShrU => bin(w, i, mask, |a, b| shift(a, b, |a, b| a >> (b & 31))),
        F2::ShrS => bin(w, i, mask, |a, b| ((a as i32) >> b.min(31)) as u32),
        F2::MinS => bin(w, i, mask, |a, b| (a as i32).min(b as i32) as u32),
        F2::MaxS => bin(w, i, mask, |a, b| (a as i32).max(b as i32) as u32),
        F2::FAdd(Mode::PLAIN) => binf(w, i, mask, |a, b| a + b),
        F2::FSub(Mode::PLAIN) => binf(w, i, mask, |a, b| a - b),
        F2::FMul(Mode::PLAIN) => binf(w, i, mask, |a, b| a * b),
        F2::FDiv(Mode::PLAIN) => binf(w, i, mask, |a, b| a / b),
        F2::FAdd(mode) => bin(w, i, mask, |a, b| float::add(f32::from_bits(a), f32::from_bits(b), mode)),
        F2::FSub(mode) => bin(w, i, mask, |a, b| float::add(f32::from_bits(a), -f32::from_bits(b), mode)),
        F2::FMul(mode) => bin(w, i, mask, |a, b| float::mul(f32::from_bits(a), f32::from_bits(b), mode)),
        F2::FDiv(mode) => bin(w, i, mask, |a, b| float::div(f32::from_bits(a), f32::from_bits(b), mode)),
        F2::FMin { ftz: false, nan } => minmax(w, i, mask, false, nan),
        F2::FMax { ftz: false, nan } => minmax(w, i, mask, true, nan),
        F2::FMin { nan, .. } => {
            bin(w, i, mask, |a, b| float::min_max(flush(f32::from_bits(a)), flush(f32::from_bits(b)), false, nan))
        }
        F2::FMax { nan, .. } => {
            bin(w, i, mask, |a, b| float::min_max(flush(f32::from_bits(a)), flush(f32::from_bits(b)), true, nan))
        }
        _ => bin(w, i, mask, |a, b| integer(f, a, b)),
    }
}

/// min or max without branches: integer keys order floats, -0 below +0.
#[inline(always)]
fn minmax(w: &mut Warp, i: &Inst, mask: u32, max: bool, nan: bool) {
    bin(w, i, mask, |a, b| {
        let key = |x: u32| (x ^ (((x as i32) >> 31) as u32 >> 1)) as i32;
        let is_nan = |x: u32| x & 0x7fff_ffff > 0x7f80_0000;
        let first = (key(a) < key(b)) != max;
        let number = if first { a } else { b };
        let either = if is_nan(a) { if is_nan(b) { float::NAN32 } else { b } } else { a };
        let other = if nan { float::NAN32 } else { either };
        if is_nan(a) | is_nan(b) { other } else { number }
    });
}

/// 16-bit integers: sources are extended, the result cut.
pub(super) fn half2(w: &mut Warp, i: &Inst, mask: u32, f: F2, signed: bool) {
    let shifts = matches!(f, F2::Shl | F2::ShrU | F2::ShrS);
    bin(w, i, mask, |a, b| {
        let extend = |x: u32| if signed { i32::from(x as i16) as u32 } else { x & 0xffff };
        let b = if shifts { b } else { extend(b) };
        integer(f, extend(a), b) & 0xffff
    });
}

/// Byte permutation.
fn prmt(a: u32, b: u32, c: u32) -> u32 {
    let bytes = u64::from(b) << 32 | u64::from(a);
    (0..4).fold(0, |out, n| {
        let select = c >> (4 * n);
        let byte = (bytes >> (8 * (select & 7))) as u8;
        let byte = if select & 8 != 0 { ((byte as i8) >> 7) as u8 } else { byte };
        out | u32::from(byte) << (8 * n)
    })
}

/// Bit field extract of `len` bits from `pos`, both one byte.
pub(super) fn bfe(a: u64, pos: u32, len: u32, bits: u32, signed: bool) -> u64 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    if len == 0 {
        return 0;
    }
    let sign_at = (pos + len - 1).min(bits - 1);
    let sign = signed && a >> sign_at & 1 == 1;
    let field = if pos >= bits { 0 } else { a >> pos };
    let have = bits.saturating_sub(pos).min(len);
    let low = if have >= 64 { u64::MAX } else { (1 << have) - 1 };
    field & low | if sign { !low } else { 0 }
}

/// Bit field insert.
pub(super) fn bfi(a: u64, b: u64, pos: u32, len: u32, bits: u32) -> u64 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    if pos >= bits || len == 0 {
        return b;
    }
    let low = if len >= 64 { u64::MAX } else { (1 << len) - 1 };
    let mask = low << pos;
    b & !mask | a << pos & mask
}

/// word, word, word -> word
pub(super) fn word3(w: &mut Warp, i: &Inst, mask: u32, f: F3) {
    match f {
        F3::MadLo => tri(w, i, mask, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        F3::MadHiU => tri(w, i, mask, |a, b, c| integer(F2::MulHiU, a, b).wrapping_add(c)),
        F3::MadHiS => tri(w, i, mask, |a, b, c| integer(F2::MulHiS, a, b).wrapping_add(c)),
        F3::Fma(Mode::PLAIN) => fma(w, i, mask),
        F3::Fma(mode) => {
            tri(w, i, mask, |a, b, c| float::fma_mode(f32::from_bits(a), f32::from_bits(b), f32::from_bits(c), mode))
        }
        F3::BfeU => tri(w, i, mask, |a, b, c| bfe(u64::from(a), b, c, 32, false) as u32),
        F3::BfeS => tri(w, i, mask, |a, b, c| bfe(u64::from(a), b, c, 32, true) as u32),
        F3::Lop3(table) => tri(w, i, mask, |a, b, c| {
            (0..8u32).filter(|n| table >> n & 1 == 1).fold(0, |out, n| {
                let pick = |x: u32, on: u32| if on != 0 { x } else { !x };
                out | pick(a, n & 4) & pick(b, n & 2) & pick(c, n & 1)
            })
        }),
        F3::Prmt => tri(w, i, mask, prmt),
        F3::Shf { left, wrap } => tri(w, i, mask, |a, b, c| {
            let n = if wrap { c & 31 } else { c.min(32) };
            let wide = u64::from(b) << 32 | u64::from(a);
            if left { (wide << n >> 32) as u32 } else { (wide >> n) as u32 }
        }),
        F3::SadU => tri(w, i, mask, |a, b, c| c.wrapping_add(a.abs_diff(b))),
        F3::SadS => tri(w, i, mask, |a, b, c| c.wrapping_add((a as i32).abs_diff(b as i32))),
    }
}

/// fma.rn.f32. The sum of the exact product and c in f64, rounded again to f32, is the right answer unless it lies on
/// the middle between two floats or in the subnormal range; those lanes are done with care, and they are rare.
fn fma(w: &mut Warp, i: &Inst, mask: u32) {
    let (a, b, c) = (w.word(i.src[0]), w.word(i.src[1]), w.word(i.src[2]));
    let (mut out, mut doubt) = ([0u32; 32], 0u64);
    for l in 0..32 {
        let p = f64::from(f32::from_bits(a[l])) * f64::from(f32::from_bits(b[l]));
        let s = p + f64::from(f32::from_bits(c[l]));
        let middle = s.to_bits() & 0x1fff_ffff == 0x1000_0000;
        let small = s.abs() < f64::from(f32::MIN_POSITIVE) && s != 0.0;
        doubt |= u64::from(middle | small);
        out[l] = canon(s as f32);
    }
    if doubt != 0 {
        for l in 0..32 {
            out[l] = canon(float::fma(f32::from_bits(a[l]), f32::from_bits(b[l]), f32::from_bits(c[l])));
        }
    }
    w.put(i.dst[0], mask, &out);
}

/// Bit field insert, four sources.
pub(super) fn insert(w: &mut Warp, i: &Inst, mask: u32) {
    let (a, b, c, d) = (w.word(i.src[0]), w.word(i.src[1]), w.word(i.src[2]), w.word(i.src[3]));
    let out: [u32; 32] = std::array::from_fn(|l| bfi(u64::from(a[l]), u64::from(b[l]), c[l], d[l], 32) as u32);
    w.put(i.dst[0], mask, &out);
}

#[inline(always)]
fn gather<T: Copy>(a: &[T; 32], b: &[T; 32], f: impl Fn(T, T) -> bool) -> u32 {
    let mut bytes = [0u8; 32];
    for l in 0..32 {
        bytes[l] = u8::from(f(a[l], b[l]));
    }
    // Eight bytes of 0 or 1 to eight bits by one multiplication.
    bytes.chunks_exact(8).enumerate().fold(0, |out, (n, chunk)| {
        let mut eight = [0; 8];
        eight.copy_from_slice(chunk);
        let bits = u64::from_le_bytes(eight).wrapping_mul(0x0102_0408_1020_4080) >> 56;
        out | (bits as u32) << (8 * n)
    })
}

#[allow(clippy::double_comparisons, reason = "`a != b` holds for NaN, `ne` of PTX does not")]
fn order<T: Copy + PartialOrd>(a: &[T; 32], b: &[T; 32], cmp: Cmp) -> u32 {
    match cmp {
        Cmp::Eq => gather(a, b, |a, b| a == b),
        Cmp::Ne => gather(a, b, |a, b| a < b || a > b),
        Cmp::Lt => gather(a, b, |a, b| a < b),
        Cmp::Le => gather(a, b, |a, b| a <= b),
        Cmp::Gt => gather(a, b, |a, b| a > b),
        Cmp::Ge => gather(a, b, |a, b| a >= b),
        Cmp::EqU => !order(a, b, Cmp::Ne),
        Cmp::NeU => gather(a, b, |a, b| a != b),
        Cmp::LtU => !order(a, b, Cmp::Ge),
        Cmp::LeU => !order(a, b, Cmp::Gt),
        Cmp::GtU => !order(a, b, Cmp::Le),
        Cmp::GeU => !order(a, b, Cmp::Lt),
        Cmp::Num => gather(a, b, |a, b| a.partial_cmp(&b).is_some()),
        Cmp::Nan => gather(a, b, |a, b| a.partial_cmp(&b).is_none()),
    }
}

/// The lanes for which a comparison holds.
pub(super) fn compare(w: &Warp, i: &Inst, cmp: Cmp, ty: Ty, ftz: bool) -> u32 {
    let (sa, sb) = (i.src[0], i.src[1]);
    match ty {
        Ty::U64 | Ty::B64 => order(w.long(sa), w.long(sb), cmp),
        Ty::S64 => order(&w.long(sa).map(|x| x as i64), &w.long(sb).map(|x| x as i64), cmp),
        Ty::F64 => order(&w.long(sa).map(f64::from_bits), &w.long(sb).map(f64::from_bits), cmp),
        Ty::S32 => order(&w.word(sa).map(|x| x as i32), &w.word(sb).map(|x| x as i32), cmp),
        Ty::F32 if ftz => {
            order(&w.word(sa).map(|x| flush(f32::from_bits(x))), &w.word(sb).map(|x| flush(f32::from_bits(x))), cmp)
        }
        Ty::F32 => order(&w.word(sa).map(f32::from_bits), &w.word(sb).map(f32::from_bits), cmp),
        Ty::S16 => order(&w.word(sa).map(|x| x as i16), &w.word(sb).map(|x| x as i16), cmp),
        Ty::U16 | Ty::B16 => order(&w.word(sa).map(|x| x as u16), &w.word(sb).map(|x| x as u16), cmp),
        _ => order(w.word(sa), w.word(sb), cmp),
    }
}

/// setp with its combination and second destination.
pub(super) fn set(w: &mut Warp, i: &Inst, mask: u32, holds: u32, combine: Option<(Logic, bool)>, pair: bool) {
    let join = |x: u32| match combine {
        Some((logic, negated)) => {
            let c = w.pred(i.src[2]) ^ if negated { u32::MAX } else { 0 };
            logic2(logic, x, c)
        }
        None => x,
    };
    let (p, q) = (join(holds), join(!holds));
    w.put_pred(i.dst[0], mask, p);
    if pair {
        w.put_pred(i.dst[1], mask, q);
    }
}

/// Combination of predicates.
pub(super) fn logic2(logic: Logic, a: u32, b: u32) -> u32 {
    match logic {
        Logic::And => a & b,
        Logic::Or => a | b,
        Logic::Xor => a ^ b,
    }
}

/// testp
pub(super) fn test(w: &Warp, i: &Inst, nan: bool, inf: bool, finite: bool) -> u32 {
    let a = w.word(i.src[0]).map(f32::from_bits);
    gather(&a, &a, |x, _| nan && x.is_nan() || inf && x.is_infinite() || finite && x.is_finite())
}

/// selp
pub(super) fn select(w: &mut Warp, i: &Inst, mask: u32) {
    let (a, b, p) = (w.word(i.src[0]), w.word(i.src[1]), w.pred(i.src[2]));
    let out: [u32; 32] = std::array::from_fn(|l| if p >> l & 1 == 1 { a[l] } else { b[l] });
    w.put(i.dst[0], mask, &out);
}

/// slct: a where c >= 0.
pub(super) fn select_sign(w: &mut Warp, i: &Inst, mask: u32, float: bool) {
    tri(w, i, mask, |a, b, c| {
        let first = if float { f32::from_bits(c) >= 0.0 } else { c as i32 >= 0 };
        if first { a } else { b }
    });
}
