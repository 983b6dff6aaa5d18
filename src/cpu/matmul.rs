//! Matrix products, row-major: C = A B, or C += A B, with either factor transposed by its strides. The one place that
//! calls the GEMM library. A row of C has the same bits whatever other rows stand with it (see [`matmul`]).

use super::math::Real;

/// A matrix inside a slice: `rows` x `columns`, element (i, j) at `i * row_stride + j * column_stride`.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, T> {
    data: &'a [T],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// A contiguous row-major matrix.
    pub(crate) fn new(data: &'a [T], rows: usize, columns: usize) -> Self {
        Self { data, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// The same matrix with rows and columns exchanged.
    pub(crate) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    fn holds_all(&self) -> bool {
        self.rows == 0
            || self.columns == 0
            || (self.rows - 1) * self.row_stride + (self.columns - 1) * self.column_stride < self.data.len()
    }
}

/// The library takes other paths for few rows and for small results; with at least this many rows, and results larger
/// than `SMALL_RESULT`, each element is one ascending chain of fused multiply-adds.
const ROWS_MIN: usize = 8;
const SMALL_RESULT: usize = 256;

/// The library cuts long sums at a length that depends on the shape; cut here, every sum is cut at the same places.
const DEPTH: usize = 512;

/// out [M, N] = a b, or out += a b if `accumulate`. Products with few rows are computed among rows of zeros, so that a
/// row's bits do not depend on M.
pub(crate) fn matmul<T: Real>(out: &mut [T], a: Matrix<'_, T>, b: Matrix<'_, T>, accumulate: bool) {
    let (m, n) = (a.rows, b.columns);
    let enough = ROWS_MIN.max(SMALL_RESULT / n.max(1) + 1);
    if m >= enough || m == 0 || n == 0 {
        return product(out, a, b, accumulate);
    }
    let mut rows = vec![T::ZERO; enough * a.columns];
    for i in 0..m {
        for k in 0..a.columns {
            rows[i * a.columns + k] = a.data[i * a.row_stride + k * a.column_stride];
        }
    }
    let mut result = vec![T::ZERO; enough * n];
    if accumulate {
        result[..m * n].copy_from_slice(&out[..m * n]);
    }
    product(&mut result, Matrix::new(&rows, enough, a.columns), b, accumulate);
    out[..m * n].copy_from_slice(&result[..m * n]);
}

/// The product in slices of DEPTH along the sum, each added to the one before.
fn product<T: Real>(out: &mut [T], a: Matrix<'_, T>, b: Matrix<'_, T>, accumulate: bool) {
    if a.columns == 0 && !accumulate {
        out.fill(T::ZERO);
    }
    let mut at = 0;
    while at < a.columns {
        let depth = DEPTH.min(a.columns - at);
        let a = Matrix { data: a.data.get(at * a.column_stride..).unwrap_or_default(), columns: depth, ..a };
        let b = Matrix { data: b.data.get(at * b.row_stride..).unwrap_or_default(), rows: depth, ..b };
        gemm(out, a, b, accumulate || at > 0);
        at += depth;
    }
}

#[allow(unsafe_code)]
fn gemm<T: Real>(out: &mut [T], a: Matrix<'_, T>, b: Matrix<'_, T>, accumulate: bool) {
    assert!(a.columns == b.rows && out.len() == a.rows * b.columns, "the shapes of a product agree");
    assert!(a.holds_all() && b.holds_all(), "the factors lie inside their slices");
    let (m, n, k) = (a.rows, b.columns, a.columns);
    // SAFETY: `out` is exclusively borrowed and holds m x n elements addressed as i n + j < m n. The factors' largest
    // indices were checked to lie inside their slices, and all their strides are non-negative. T is f32 or f64, which
    // the library supports, and every bit pattern of which is valid.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            accumulate,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            T::ONE,
            T::ONE,
            false,
            false,
            false,
            gemm::Parallelism::Rayon(0),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Philox, Stage};

    fn random(n: usize, row: u32) -> Vec<f64> {
        let mut stream = Philox::new(3, Stage::Init, 0, row);
        (0..n).map(|_| stream.normal()).collect()
    }

    /// The plain form: one ascending sum per element.
    fn plain(a: &[f64], b: &[f64], [m, n, k]: [usize; 3], a_t: bool, b_t: bool) -> Vec<f64> {
        let at = |i: usize, p: usize| if a_t { a[p * m + i] } else { a[i * k + p] };
        let bt = |p: usize, j: usize| if b_t { b[j * k + p] } else { b[p * n + j] };
        let element = |i, j| (0..k).map(|p| at(i, p) * bt(p, j)).sum();
        (0..m).flat_map(|i| (0..n).map(move |j| (i, j))).map(|(i, j)| element(i, j)).collect()
    }

    #[test]
    fn agrees_with_the_plain_form() {
        for [m, n, k] in [[1, 1, 1], [3, 5, 7], [8, 33, 17], [65, 31, 600], [2, 300, 1200], [17, 16, 0]] {
            let (a, b) = (random(m * k, 1), random(k * n, 2));
            for (a_t, b_t) in [(false, false), (false, true), (true, false), (true, true)] {
                let lhs = if a_t { Matrix::new(&a, k, m).transposed() } else { Matrix::new(&a, m, k) };
                let rhs = if b_t { Matrix::new(&b, n, k).transposed() } else { Matrix::new(&b, k, n) };
                let mut out = vec![f64::NAN; m * n];
                matmul(&mut out, lhs, rhs, false);
                let expected = plain(&a, &b, [m, n, k], a_t, b_t);
                for (x, y) in out.iter().zip(&expected) {
                    assert!((x - y).abs() <= 1e-12 * (k as f64 + 1.0), "{m} {n} {k}: {x} {y}");
                }
                matmul(&mut out, lhs, rhs, true);
                for (x, y) in out.iter().zip(&expected) {
                    assert!((x - 2.0 * y).abs() <= 1e-12 * (k as f64 + 1.0));
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_whatever_stands_with_it() {
        let as_f32 = |v: Vec<f64>| v.into_iter().map(|x| x as f32).collect::<Vec<_>>();
        for (n, k) in
            [(1, 96), (7, 40), (16, 64), (33, 24), (96, 96), (288, 96), (512, 96), (512, 128), (344, 700), (65, 1400)]
        {
            let (a, b) = (as_f32(random(64 * k, 4)), as_f32(random(n * k, 5)));
            let rows = |m: usize| {
                let mut out = vec![0f32; m * n];
                matmul(&mut out, Matrix::new(&a[..m * k], m, k), Matrix::new(&b, n, k).transposed(), false);
                out
            };
            let all = rows(64);
            for m in 1..64 {
                assert_eq!(rows(m), all[..m * n], "rows {m}, n {n}, k {k}");
            }
            let mut more = vec![0f32; 640 * n];
            let stacked: Vec<f32> = a.iter().cycle().take(640 * k).copied().collect();
            matmul(&mut more, Matrix::new(&stacked, 640, k), Matrix::new(&b, n, k).transposed(), false);
            assert_eq!(more[..64 * n], all, "rows 640, n {n}, k {k}");
        }
    }
}
