//! One description of a matrix product, row-major: D = A B, with either factor transposed, an optional bias, and D
//! overwritten or added to. A driver's library serves it, or `kernels/gemm.cu` does.

#![forbid(unsafe_code)]

use super::driver::Address;
use crate::dtype::DType;

/// A factor as it lies in memory: rows of `stride` elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Factor {
    pub(crate) address: Address,
    /// Elements from one row in memory to the next.
    pub(crate) stride: usize,
    /// Whether the product uses it with rows and columns exchanged.
    pub(crate) transposed: bool,
}

/// D [M, N] = A [M, K] B [K, N] (+ bias [N]), or D += A B.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gemm {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) a: Factor,
    pub(crate) b: Factor,
    pub(crate) d: Address,
    /// Elements from one row of D to the next.
    pub(crate) d_stride: usize,
    /// Of A, B and the bias.
    pub(crate) dtype: DType,
    pub(crate) d_dtype: DType,
    /// 0 for none.
    pub(crate) bias: Address,
    pub(crate) accumulate: bool,
}

/// The same product for a library that thinks in columns: D [m, n] = op(A) [m, k] op(B) [k, n] + C, where each matrix
/// lies in memory as columns of `ld` elements, C is D, and the bias [m] is added to every column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct LtCall {
    pub(crate) transa: bool,
    pub(crate) transb: bool,
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) a: Address,
    pub(crate) b: Address,
    pub(crate) d: Address,
    pub(crate) lda: usize,
    pub(crate) ldb: usize,
    pub(crate) ldd: usize,
    /// 0 for none.
    pub(crate) bias: Address,
    pub(crate) dtype: DType,
    pub(crate) d_dtype: DType,
    pub(crate) accumulate: bool,
}

impl Gemm {
    /// The translation. A row-major matrix read by columns is its transpose, so the library is asked for D^T = B^T A^T:
    /// the factors change places, and a factor that was used as it lies is used as it lies again.
    pub(crate) fn translated(&self) -> LtCall {
        LtCall {
            transa: self.b.transposed,
            transb: self.a.transposed,
            m: self.n,
            n: self.m,
            k: self.k,
            a: self.b.address,
            b: self.a.address,
            d: self.d,
            lda: self.b.stride,
            ldb: self.a.stride,
            ldd: self.d_stride,
            bias: self.bias,
            dtype: self.dtype,
            d_dtype: self.d_dtype,
            accumulate: self.accumulate,
        }
    }
}

impl LtCall {
    /// What decides the algorithm: the call with every address replaced by its alignment, at most 256 bytes. No address
    /// stays none.
    pub(crate) fn shape(&self) -> Self {
        let alignment = |address: Address| if address == 0 { 0 } else { 1 << address.trailing_zeros().min(8) };
        let [a, b, d, bias] = [self.a, self.b, self.d, self.bias].map(alignment);
        Self { a, b, d, bias, ..*self }
    }
}

/// What a library would do with a call, on the host; the order of its sums depends on the number of columns.
#[cfg(test)]
pub(crate) fn on_host(memory: &mut crate::ptx::Memory, call: &LtCall) -> crate::ptx::Result<()> {
    let read = |address: Address, elements: usize, dtype: DType| -> crate::ptx::Result<Vec<f32>> {
        let mut bytes = vec![0; elements * dtype.bytes()];
        memory.download(address, &mut bytes)?;
        let bf16 = |pair: &[u8]| half::bf16::from_le_bytes([pair[0], pair[1]]).to_f32();
        let f32 = |word: &[u8]| f32::from_le_bytes([word[0], word[1], word[2], word[3]]);
        Ok(match dtype {
            DType::BF16 => bytes.chunks_exact(2).map(bf16).collect(),
            _ => bytes.chunks_exact(4).map(f32).collect(),
        })
    };
    let extent = |ld: usize, transposed: bool, rows: usize, cols: usize| {
        let (rows, cols) = if transposed { (cols, rows) } else { (rows, cols) };
        (cols - 1) * ld + rows
    };
    let (m, n, k) = (call.m, call.n, call.k);
    let a = read(call.a, extent(call.lda, call.transa, m, k), call.dtype)?;
    let b = read(call.b, extent(call.ldb, call.transb, k, n), call.dtype)?;
    let bias = if call.bias == 0 { vec![0.0; m] } else { read(call.bias, m, call.dtype)? };
    let mut d = match call.accumulate {
        true => read(call.d, (n - 1) * call.ldd + m, call.d_dtype)?,
        false => vec![0.0; (n - 1) * call.ldd + m],
    };
    let at =
        |ld: usize, transposed: bool, row: usize, col: usize| if transposed { row * ld + col } else { col * ld + row };
    for (col, row) in (0..n).flat_map(|col| (0..m).map(move |row| (col, row))) {
        let term = |k: usize| a[at(call.lda, call.transa, row, k)] * b[at(call.ldb, call.transb, k, col)];
        let sum: f32 = if n < 32 { (0..k).map(term).sum() } else { (0..k).rev().map(term).sum() };
        d[col * call.ldd + row] += sum + bias[row];
    }
    let bytes = match call.d_dtype {
        DType::BF16 => bytemuck::cast_slice(&d.iter().map(|x| half::bf16::from_f32(*x)).collect::<Vec<_>>()).to_vec(),
        _ => bytemuck::cast_slice(&d).to_vec(),
    };
    memory.upload(call.d, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Memory whose addresses count elements; elements that no matrix has are NaN, so that a stray read shows.
    struct Host(Vec<f64>);

    impl Host {
        /// Puts `rows` rows of `cols` small whole numbers there, `stride` apart; returns the address.
        fn put(&mut self, [rows, cols]: [usize; 2], stride: usize) -> Address {
            let start = self.0.len();
            let value = |i: usize| ((i * 7919 + start * 31) % 13) as f64 - 6.0;
            for row in 0..rows {
                self.0.extend((0..stride).map(|col| if col < cols { value(row * cols + col) } else { f64::NAN }));
            }
            start as Address
        }

        /// The definition of the product, row-major.
        fn multiply(&self, gemm: &Gemm, d: &mut [f64]) {
            let factor = |f: &Factor, row: usize, col: usize| {
                let (row, col) = if f.transposed { (col, row) } else { (row, col) };
                self.0[f.address as usize + row * f.stride + col]
            };
            for i in 0..gemm.m {
                for j in 0..gemm.n {
                    let out = &mut d[i * gemm.d_stride + j];
                    let sum: f64 = (0..gemm.k).map(|k| factor(&gemm.a, i, k) * factor(&gemm.b, k, j)).sum();
                    let bias = if gemm.bias == 0 { 0.0 } else { self.0[gemm.bias as usize + j] };
                    *out = sum + bias + if gemm.accumulate { *out } else { 0.0 };
                }
            }
        }

        /// What the library's manual says that a call does, column-major.
        fn interpret(&self, call: &LtCall, d: &mut [f64]) -> Option<()> {
            let element = |address: Address, ld: usize, transposed: bool, row: usize, col: usize| {
                let (row, col) = if transposed { (col, row) } else { (row, col) };
                self.0.get(address as usize + col * ld + row).copied()
            };
            for col in 0..call.n {
                for row in 0..call.m {
                    let mut sum = 0.0;
                    for k in 0..call.k {
                        let a = element(call.a, call.lda, call.transa, row, k)?;
                        sum += a * element(call.b, call.ldb, call.transb, k, col)?;
                    }
                    let bias = if call.bias == 0 { 0.0 } else { *self.0.get(call.bias as usize + row)? };
                    let out = d.get_mut(col * call.ldd + row)?;
                    *out = sum + bias + if call.accumulate { *out } else { 0.0 };
                }
            }
            Some(())
        }
    }

    /// Products with every form of factors, with and without bias and accumulation, tight and with odd strides.
    fn cases() -> Vec<(Host, Gemm)> {
        let mut cases = Vec::new();
        for bits in 0..32 {
            let [a_transposed, b_transposed, bias, accumulate, wide] = [0, 1, 2, 3, 4].map(|bit| bits >> bit & 1 == 1);
            let ([m, n, k], pad) = ([5, 4, 3], if wide { [3, 1, 7] } else { [0, 0, 0] });
            // An address of 0 would be no bias.
            let mut host = Host(vec![f64::NAN; 3]);
            let mut factor = |shape: [usize; 2], pad: usize, transposed: bool| {
                let [rows, cols] = if transposed { [shape[1], shape[0]] } else { shape };
                Factor { address: host.put([rows, cols], cols + pad), stride: cols + pad, transposed }
            };
            let a = factor([m, k], pad[0], a_transposed);
            let b = factor([k, n], pad[1], b_transposed);
            let bias = if bias { host.put([1, n], n) } else { 0 };
            let (dtype, d_dtype, d_stride) = (DType::BF16, DType::F32, n + pad[2]);
            cases.push((host, Gemm { m, n, k, a, b, d: 0, d_stride, dtype, d_dtype, bias, accumulate }));
        }
        cases
    }

    /// Whether a call does what a product means; what lies between D's rows counts too.
    fn agrees(host: &Host, gemm: &Gemm, call: &LtCall) -> bool {
        let before: Vec<f64> = (0..gemm.m * gemm.d_stride).map(|i| i as f64).collect();
        let (mut expected, mut found) = (before.clone(), before);
        host.multiply(gemm, &mut expected);
        assert!(expected.iter().all(|x| x.is_finite()));
        host.interpret(call, &mut found).is_some() && found == expected
    }

    #[test]
    fn the_translated_call_is_the_same_product() {
        for (host, gemm) in cases() {
            assert!(agrees(&host, &gemm, &gemm.translated()), "{gemm:?}");
        }
    }

    /// The positive control: each wrong translation is found.
    #[test]
    fn a_wrong_translation_is_found() {
        type Spoil = fn(&mut LtCall);
        let wrong: [(&str, Spoil); 7] = [
            ("strides of the factors exchanged", |call| std::mem::swap(&mut call.lda, &mut call.ldb)),
            ("factors exchanged", |call| std::mem::swap(&mut call.a, &mut call.b)),
            ("sizes exchanged", |call| std::mem::swap(&mut call.m, &mut call.n)),
            ("the first factor transposed", |call| call.transa = !call.transa),
            ("the second factor transposed", |call| call.transb = !call.transb),
            ("another stride of D", |call| call.ldd += 1),
            ("accumulation exchanged", |call| call.accumulate = !call.accumulate),
        ];
        for (what, spoil) in wrong {
            let found = cases().into_iter().any(|(host, gemm)| {
                let mut call = gemm.translated();
                spoil(&mut call);
                !agrees(&host, &gemm, &call)
            });
            assert!(found, "{what}");
        }
    }

    #[test]
    fn a_shape_keeps_alignments_and_forgets_addresses() {
        let (_, gemm) = cases().remove(0);
        let call = LtCall { a: 0x7f00_0000_0400, b: 0x7f00_0000_0030, d: 0x7f00_0000_0002, ..gemm.translated() };
        let shape = call.shape();
        assert_eq!([shape.a, shape.b, shape.d, shape.bias], [256, 16, 2, 0]);
        assert_eq!(shape, LtCall { a: 0x1000, b: 0x50, d: 6, ..call }.shape());
        assert_ne!(shape, LtCall { lda: call.lda + 1, ..call }.shape());
    }
}
