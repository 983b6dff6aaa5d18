//! Whitening: (x - mean) / sqrt(var + 1e-8), the variance unbiased (divided by n - 1); optionally the mean is put back,
//! so that only the scale changes. One element whitens to 0 (or stays, with its mean).

#![forbid(unsafe_code)]

use super::math::Real;

/// out [N] from inp [N].
pub(crate) fn forward<T: Real>(out: &mut [T], inp: &[T], keep_mean: bool) {
    let count = inp.len() as f64;
    let mean = inp.iter().map(|x| x.to_f64()).sum::<f64>() / count.max(1.0);
    let squares = inp.iter().map(|x| (x.to_f64() - mean).powi(2)).sum::<f64>();
    let variance = squares / (count - 1.0).max(1.0);
    let inverse = 1.0 / (variance + 1e-8).sqrt();
    let shift = if keep_mean { mean } else { 0.0 };
    for (o, x) in out.iter_mut().zip(inp) {
        *o = T::of((x.to_f64() - mean) * inverse + shift);
    }
}
