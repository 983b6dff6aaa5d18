//! The driver where there is no GPU: a sentence and no panic. Where there is one, memory, copies and time.

use super::*;

/// The first GPU; says what is left out where there is none.
fn first() -> Option<Cuda> {
    let opened = Cuda::open(0);
    match &opened {
        Ok(_) => {}
        Err(error) => {
            assert!([Code::Device, Code::Resources].contains(&error.code()), "{error}");
            assert!(error.to_string().contains("\n  fix: "), "{error}");
            println!("skipped: {error}");
        }
    }
    opened.ok()
}

#[test]
fn a_machine_without_a_driver_gets_a_sentence() {
    // SAFETY: loads libcuda and closes it again.
    if unsafe { sys::is_culib_present() } {
        println!("skipped: there is a libcuda");
        return;
    }
    for ordinal in [0, 7, usize::MAX] {
        let error = Cuda::open(ordinal).unwrap_err();
        assert_eq!((error.code(), error.id()), (Code::Device, "cuda-missing"));
        for says in ["libcuda.so.1", "--device cpu", "--device emulated"] {
            assert!(error.to_string().contains(says), "{error}");
        }
    }
}

#[test]
fn a_gpu_that_is_not_there_is_an_error() {
    let error = Cuda::open(4095).unwrap_err();
    assert_eq!(error.code(), Code::Device, "{error}");
}

#[test]
fn arguments_are_pointed_at_in_their_widths() {
    let args = [Arg::Pointer(0x7f00_1234_5678), Arg::I32(-3), Arg::I64(1 << 40), Arg::F32(0.5)];
    let pointers = pointers(&args);
    // SAFETY: each pointer was made from a value of this type, and `args` lives.
    let read = unsafe {
        (
            pointers[0].cast::<u64>().read(),
            pointers[1].cast::<i32>().read(),
            pointers[2].cast::<i64>().read(),
            pointers[3].cast::<f32>().read(),
        )
    };
    assert_eq!(read, (0x7f00_1234_5678, -3, 1 << 40, 0.5));
    assert_eq!(super::pointers(&[]).len(), 0);
}

#[test]
fn memory_is_copied_filled_and_given_back() {
    let Some(cuda) = first() else { return };
    let data: Vec<u8> = (0..100_003u32).map(|i| (i % 251) as u8).collect();
    let [a, b] = [cuda.alloc(data.len()).unwrap(), cuda.alloc(data.len()).unwrap()];
    cuda.upload(a, &data).unwrap();
    cuda.copy(b, a, data.len()).unwrap();
    cuda.fill(b + 7, 11, 255).unwrap();
    let mut out = vec![0; data.len()];
    cuda.download(&mut out, b).unwrap();
    let mut expected = data;
    expected[7..18].fill(255);
    assert_eq!(out, expected);
    let seconds = cuda.time(&mut || cuda.fill(a, out.len(), 0)).unwrap();
    assert!(seconds > 0.0 && seconds < 10.0, "{seconds}");
    let [free, total] = cuda.memory().unwrap();
    assert!(0 < free && free <= total);
    cuda.free(a);
    cuda.free(b);
    cuda.synchronize().unwrap();
    let error = cuda.alloc(1 << 50).unwrap_err();
    assert_eq!((error.code(), error.id()), (Code::Resources, "device-memory"));
    // An error of that kind leaves the GPU as it was.
    let empty = cuda.alloc(0).unwrap();
    cuda.free(empty);
    cuda.synchronize().unwrap();
}

/// Each form of factors, bias, accumulation and both types against a plain loop: small whole numbers are exact in both.
#[test]
fn products_of_the_library_are_exact_on_whole_numbers() {
    use crate::device::gemm::Factor;
    use crate::dtype::DType;

    let Some(cuda) = first() else { return };
    let bytes = |values: &[f32], dtype: DType| -> Vec<u8> {
        let bf16 = |x: &f32| half::bf16::from_f32(*x).to_le_bytes().to_vec();
        values.iter().flat_map(|x| if dtype == DType::BF16 { bf16(x) } else { x.to_le_bytes().to_vec() }).collect()
    };
    let put = |values: &[f32], dtype: DType| {
        let data = bytes(values, dtype);
        let address = cuda.alloc(data.len()).unwrap();
        cuda.upload(address, &data).unwrap();
        address
    };
    let [m, n, k] = [24, 40, 16];
    let whole = |i: usize, seed: usize| ((i * 7 + seed) % 5) as f32 - 2.0;
    for bits in 0..64 {
        let [ta, tb, bias, accumulate, f32_in, f32_out] = [0, 1, 2, 3, 4, 5].map(|bit| bits >> bit & 1 == 1);
        let dtype = if f32_in { DType::F32 } else { DType::BF16 };
        let d_dtype = if f32_in || f32_out { DType::F32 } else { DType::BF16 };
        let [a, b, c, v] = [(m * k, 1), (k * n, 2), (m * n, 3), (n, 4)]
            .map(|(len, seed)| (0..len).map(|i| whole(i, seed)).collect::<Vec<_>>());
        let factor = |values, [rows, cols]: [usize; 2], transposed| Factor {
            address: put(values, dtype),
            stride: if transposed { rows } else { cols },
            transposed,
        };
        let gemm = Gemm {
            m,
            n,
            k,
            a: factor(&a, [m, k], ta),
            b: factor(&b, [k, n], tb),
            d: put(&c, d_dtype),
            d_stride: n,
            dtype,
            d_dtype,
            bias: if bias { put(&v, dtype) } else { 0 },
            accumulate,
        };
        if cuda.gemm(&gemm).unwrap() {
            let mut expected = vec![0f32; m * n];
            for (i, out) in expected.iter_mut().enumerate() {
                let (row, col) = (i / n, i % n);
                let x = |l: usize| a[if ta { l * m + row } else { row * k + l }];
                let y = |l: usize| b[if tb { col * k + l } else { l * n + col }];
                let sum: f32 = (0..k).map(|l| x(l) * y(l)).sum();
                *out = sum + if bias { v[col] } else { 0.0 } + if accumulate { c[i] } else { 0.0 };
            }
            let mut out = vec![0; m * n * d_dtype.bytes()];
            cuda.download(&mut out, gemm.d).unwrap();
            assert_eq!(out, bytes(&expected, d_dtype), "{gemm:?}");
        } else {
            println!("not served: {gemm:?}");
        }
        for address in [gemm.a.address, gemm.b.address, gemm.d] {
            cuda.free(address);
        }
        if gemm.bias != 0 {
            cuda.free(gemm.bias);
        }
    }
}

/// More small uploads than the ring of page-locked memory holds, queued faster than the GPU fetches them.
#[test]
fn uploads_that_do_not_wait_arrive_in_order() {
    let Some(cuda) = first() else { return };
    let (pieces, bytes) = (3000, 4096);
    let all = cuda.alloc(pieces * bytes).unwrap();
    let piece = |i: usize| vec![(i % 253) as u8; bytes - i % 100];
    for i in 0..pieces {
        cuda.upload(all + (i * bytes) as u64, &piece(i)).unwrap();
    }
    let mut out = vec![0; pieces * bytes];
    cuda.download(&mut out, all).unwrap();
    for (i, found) in out.chunks_exact(bytes).enumerate() {
        assert!(found[..bytes - i % 100] == piece(i), "piece {i}");
    }
    cuda.free(all);
}

#[test]
fn a_recording_is_done_again_on_what_stands_there() {
    let Some(cuda) = first() else { return };
    let [a, b] = [cuda.alloc(1000).unwrap(), cuda.alloc(1000).unwrap()];
    let mut work = || cuda.copy(b, a, 1000).and_then(|()| cuda.fill(b, 10, 9));
    cuda.fill(b, 1000, 0).unwrap();
    let recording = cuda.record(&mut work).unwrap();
    let read = || {
        let mut out = vec![0; 1000];
        cuda.download(&mut out, b).unwrap();
        out
    };
    assert_eq!(read(), [0; 1000], "recording does nothing");
    for value in [3, 5] {
        cuda.upload(a, &[value; 1000]).unwrap();
        cuda.replay(recording).unwrap();
        assert_eq!(read(), [&[9; 10][..], &[value; 990]].concat());
    }
    cuda.forget(recording);
    assert_eq!(cuda.replay(recording).unwrap_err().id(), "graph-unknown");
    // What cannot be recorded is refused, and the stream is as it was.
    for refused in [cuda.record(&mut || cuda.upload(a, &[1])), cuda.record(&mut || cuda.alloc(1).map(|_| ()))] {
        assert_eq!(refused.unwrap_err().id(), "graph-host-work");
    }
    cuda.upload(b, &[7; 1000]).unwrap();
    assert_eq!(read(), [7; 1000]);
    [a, b].into_iter().for_each(|address| cuda.free(address));
}
