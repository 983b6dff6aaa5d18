//! What the loops of this room are generic over, the exponential, and sums in a fixed order. [`vectorized`] compiles a
//! loop for the widest vectors that the machine has; the arithmetic stays what the source says, so results do not
//! depend on that width.

#![forbid(unsafe_code)]

use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub, SubAssign};

/// A float: f32 for training, f64 for the golden values of tests.
pub(crate) trait Real:
    Copy
    + Default
    + PartialOrd
    + Send
    + Sync
    + std::fmt::Debug
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + 'static
{
    const ZERO: Self;
    const ONE: Self;
    const NEG_INFINITY: Self;
    fn of(x: f64) -> Self;
    fn to_f64(self) -> f64;
    fn exp(self) -> Self;
    fn ln(self) -> Self;
    fn sqrt(self) -> Self;
    fn mul_add(self, a: Self, b: Self) -> Self;
    fn is_nan(self) -> bool;
    /// The free buffers of this type (see [`super::pool`]).
    fn shelf<R>(work: impl FnOnce(&mut super::pool::Shelf<Self>) -> R) -> R;

    /// The smaller of two; NaN if either is NaN, so that a NaN cannot vanish in a loss.
    #[inline(always)]
    fn min_nan(self, other: Self) -> Self {
        if self < other || self.is_nan() { self } else { other }
    }

    /// The larger of two; NaN if either is NaN.
    #[inline(always)]
    fn max_nan(self, other: Self) -> Self {
        if self > other || self.is_nan() { self } else { other }
    }

    /// The nearest number in [low, high]; NaN stays NaN.
    #[inline(always)]
    fn clamp_nan(self, low: Self, high: Self) -> Self {
        self.max_nan(low).min_nan(high)
    }
}

macro_rules! real {
    ($type:ty, $exp:expr, $shelf:path) => {
        impl Real for $type {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const NEG_INFINITY: Self = <$type>::NEG_INFINITY;
            #[inline(always)]
            fn of(x: f64) -> Self {
                x as $type
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                self as f64
            }
            #[inline(always)]
            fn exp(self) -> Self {
                $exp(self)
            }
            #[inline(always)]
            fn ln(self) -> Self {
                <$type>::ln(self)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                <$type>::sqrt(self)
            }
            #[inline(always)]
            fn mul_add(self, a: Self, b: Self) -> Self {
                <$type>::mul_add(self, a, b)
            }
            #[inline(always)]
            fn is_nan(self) -> bool {
                <$type>::is_nan(self)
            }
            fn shelf<R>(work: impl FnOnce(&mut super::pool::Shelf<Self>) -> R) -> R {
                work(&mut $shelf.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
            }
        }
    };
}
real!(f32, exp_f32, super::pool::F32);
real!(f64, f64::exp, super::pool::F64);

/// exp(x) in f32 without branches, so that loops over it become vector code. Cody and Waite's reduction
/// x = n ln 2 + r, |r| <= ln 2 / 2, then a polynomial of degree 6 in r (Taylor coefficients; remainder 2e-8 relative).
/// At most 2 ulp from the true value; below -86 the result is 0, above 88.72 it is infinite, NaN stays NaN.
#[inline(always)]
fn exp_f32(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-1.428_606_8e-6, n.mul_add(-0.693_145_75, x));
    let mut p = 1.0 / 720.0;
    for c in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = r.mul_add(p, c);
    }
    // 2^(n-1) by adding n - 1 to the exponent field, then doubled: n = 128 would not fit the field.
    let bits = p.to_bits().wrapping_add(shifted.to_bits().wrapping_sub(1) << 23);
    let y = f32::from_bits(bits) * 2.0;
    let y = if x < -86.0 { 0.0 } else { y };
    let y = if x > 88.722_83 { f32::INFINITY } else { y };
    if x.is_nan() { x } else { y }
}

/// 1 / (1 + exp(-x)).
#[inline(always)]
pub(crate) fn sigmoid<T: Real>(x: T) -> T {
    T::ONE / (T::ONE + (-x).exp())
}

/// ln(1 + exp(x)), stable for large |x|: max(x, 0) + ln(1 + exp(-|x|)).
#[inline(always)]
pub(crate) fn softplus<T: Real>(x: T) -> T {
    let magnitude = if x > T::ZERO { x } else { -x };
    x.max_nan(T::ZERO) + (T::ONE + (-magnitude).exp()).ln()
}

/// Runs `work` compiled for the widest vector instructions of this machine. A closure given to this function must be
/// marked `#[inline(always)]`: one that is only called, not inlined, keeps the baseline's instructions, in which every
/// fused multiply-add is a call.
#[inline(always)]
pub(crate) fn vectorized<R>(work: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(work)
}

/// The vector instructions that [`vectorized`] uses here.
pub(crate) fn instructions() -> String {
    let name = format!("{:?}", pulp::Arch::new());
    name.split(['(', ' ']).next().unwrap_or_default().to_owned()
}

/// How many partial sums a reduction keeps; element i goes to partial sum i mod LANES.
pub(crate) const LANES: usize = 16;

/// Adds up partial sums pairwise, in one fixed order.
#[inline(always)]
pub(crate) fn fold<T: Real>(mut lanes: [T; LANES]) -> T {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The sum of f(0) + ... + f(n - 1), in lanes.
#[inline(always)]
pub(crate) fn sum_by<T: Real>(n: usize, f: impl Fn(usize) -> T) -> T {
    let mut lanes = [T::ZERO; LANES];
    let whole = n - n % LANES;
    let mut i = 0;
    while i < whole {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += f(i + lane);
        }
        i += LANES;
    }
    for (sum, i) in lanes.iter_mut().zip(whole..n) {
        *sum += f(i);
    }
    fold(lanes)
}

/// The largest element; NaN if any is NaN.
#[inline(always)]
pub(crate) fn max_of<T: Real>(x: &[T]) -> T {
    let mut lanes = [T::NEG_INFINITY; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = chunk[lane].max_nan(lanes[lane]);
        }
    }
    for (lane, value) in rest.iter().enumerate() {
        lanes[lane] = value.max_nan(lanes[lane]);
    }
    lanes.into_iter().fold(T::NEG_INFINITY, |a, b| b.max_nan(a))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp() {
        let mut worst = 0.0f64;
        for i in -860_000..887_000 {
            let x = i as f32 * 1e-4;
            let (ours, exact) = (f64::from(Real::exp(x)), f64::from(x).exp());
            let ulp = f64::from(f32::EPSILON) * exact.max(f64::from(f32::MIN_POSITIVE));
            worst = worst.max((ours - exact).abs() / ulp);
        }
        assert!(worst <= 2.0, "{worst} ulp");
    }

    #[test]
    fn exp_at_the_edges() {
        assert_eq!(Real::exp(0.0f32), 1.0);
        assert_eq!(Real::exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(Real::exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(Real::exp(-200.0f32), 0.0);
        assert_eq!(Real::exp(89.0f32), f32::INFINITY);
        assert!(Real::exp(f32::NAN).is_nan());
    }

    #[test]
    fn extremes_keep_nan() {
        for (a, b) in [(f32::NAN, 1.0), (1.0, f32::NAN)] {
            assert!(a.min_nan(b).is_nan() && a.max_nan(b).is_nan());
        }
        assert!(f32::NAN.clamp_nan(0.0, 1.0).is_nan());
        assert_eq!(5f32.clamp_nan(0.0, 1.0), 1.0);
        for at in [0, 5, 16, 20] {
            let mut row = [0f32; 21];
            row[at] = f32::NAN;
            assert!(max_of(&row).is_nan());
        }
    }

    #[test]
    fn softplus_is_stable() {
        assert_eq!(softplus(1000f64), 1000.0);
        assert_eq!(softplus(-1000f64), 0.0);
        assert!((softplus(0f64) - 2f64.ln()).abs() < 1e-15);
        assert!(softplus(f64::NAN).is_nan());
    }
}
