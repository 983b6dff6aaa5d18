//! Matrix products by cuBLASLt: bf16 or f32 factors, f32 accumulation, never TF32. The algorithm is chosen by rule, the
//! first answer of the library's heuristic that does not split K, and never by timing: the same product has the same
//! bits in every run. Constants have their names of cublasLt.h and library_types.h in comments.

use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::ptr;

use super::library::{Algorithm, Answer, Functions, Handle, Library, Status};
use crate::device::driver::Address;
use crate::device::gemm::LtCall;
use crate::dtype::DType;
use crate::error::{Code, Error, Result};

/// CUBLAS_COMPUTE_32F: f32 arithmetic as it is; the TF32 form has a number of its own.
const COMPUTE_F32: c_int = 68;
/// CUDA_R_32F.
const TYPE_F32: c_int = 0;
/// CUDA_R_16BF.
const TYPE_BF16: c_int = 14;
/// CUBLASLT_MATMUL_DESC_TRANSA and _TRANSB (int32_t), _EPILOGUE (uint32_t), _BIAS_POINTER (const void *).
const DESC_TRANSA: c_int = 3;
const DESC_TRANSB: c_int = 4;
const DESC_EPILOGUE: c_int = 7;
const DESC_BIAS_POINTER: c_int = 8;
/// CUBLAS_OP_T; CUBLAS_OP_N, 0, is what a new descriptor has.
const OP_T: i32 = 1;
/// CUBLASLT_EPILOGUE_BIAS.
const EPILOGUE_BIAS: u32 = 4;
/// CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES (uint64_t), _REDUCTION_SCHEME_MASK and _MIN_ALIGNMENT_{A,B,C,D}_BYTES
/// (uint32_t).
const PREF_WORKSPACE: c_int = 1;
const PREF_REDUCTION: c_int = 3;
const PREF_ALIGNMENT: [c_int; 4] = [5, 6, 7, 8];
/// CUBLASLT_REDUCTION_SCHEME_NONE.
const REDUCTION_NONE: u32 = 0;
/// CUBLASLT_ALGO_CONFIG_SPLITK_NUM (int32_t).
const CONFIG_SPLITK: c_int = 2;
/// CUBLAS_STATUS_ALLOC_FAILED.
const STATUS_ALLOC_FAILED: Status = 3;
/// CUBLAS_STATUS_NOT_SUPPORTED.
const STATUS_NOT_SUPPORTED: Status = 15;

/// Answers of the heuristic that are looked at.
const ANSWERS: usize = 16;
/// Shapes that are remembered. Packed batches have ever new lengths, so there is no end of shapes.
const PLANS_MAX: usize = 4096;

/// What the library made and takes back.
#[derive(Debug)]
struct Owned {
    raw: Handle,
    destroy: unsafe extern "C" fn(Handle) -> Status,
}

impl Owned {
    fn new(
        doing: &str,
        destroy: unsafe extern "C" fn(Handle) -> Status,
        create: impl FnOnce(*mut Handle) -> Status,
    ) -> Result<Self> {
        let mut raw = ptr::null_mut();
        check(doing, create(&raw mut raw))?;
        Ok(Self { raw, destroy })
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: `raw` was made by the counterpart of `destroy`, and nobody else has it.
        let _ = unsafe { (self.destroy)(self.raw) };
    }
}

/// A product of one shape: how it is described and how it is computed.
#[derive(Debug)]
struct Plan {
    operation: Owned,
    a: Owned,
    b: Owned,
    d: Owned,
    algorithm: Algorithm,
}

/// The library at work in one context, on one stream.
#[derive(Debug)]
pub(super) struct CublasLt {
    functions: &'static Functions,
    /// By [`LtCall::shape`]; none for a shape that the library does not serve.
    plans: HashMap<LtCall, Option<Plan>>,
    handle: Owned,
    workspace: Address,
    workspace_bytes: usize,
}

impl CublasLt {
    /// Bytes of workspace that NVIDIA advises for a compute capability (cuBLAS manual, `cublasSetWorkspace`).
    pub(super) fn workspace_bytes(capability: [i32; 2]) -> usize {
        if capability >= [9, 0] { 32 << 20 } else { 4 << 20 }
    }

    /// Starts the library in the current context. `workspace` is device memory that only it uses.
    pub(super) fn new(library: &'static Library, workspace: Address, workspace_bytes: usize) -> Result<Self> {
        let functions = &library.functions;
        // SAFETY: the place may be written; the context of the GPU is current.
        let handle = Owned::new("starting cuBLASLt", functions.destroy, |place| unsafe { (functions.create)(place) })?;
        Ok(Self { functions, plans: HashMap::new(), handle, workspace, workspace_bytes })
    }

    /// Queues the product; false if the library does not serve it. The context must be current.
    pub(super) fn run(&mut self, call: &LtCall, stream: *mut c_void) -> Result<bool> {
        // A bias has the type of D in cuBLASLt. An empty sum is written by nobody there.
        if call.bias != 0 && call.dtype != call.d_dtype || call.k == 0 {
            return Ok(false);
        }
        let shape = call.shape();
        if !self.plans.contains_key(&shape) {
            if self.plans.len() >= PLANS_MAX {
                self.plans.clear();
            }
            let plan = self.plan(call)?;
            self.plans.insert(shape, plan);
        }
        match self.plans.get(&shape) {
            Some(Some(plan)) => self.multiply(plan, call, stream).map(|()| true),
            _ => Ok(false),
        }
    }

    fn multiply(&self, plan: &Plan, call: &LtCall, stream: *mut c_void) -> Result<()> {
        if call.bias != 0 {
            self.set(plan.operation.raw, DESC_BIAS_POINTER, &call.bias)?;
        }
        let (alpha, beta) = (1f32, if call.accumulate { 1f32 } else { 0f32 });
        let device = |address: Address| ptr::without_provenance_mut::<c_void>(address as usize);
        // SAFETY: descriptors and algorithm belong together: `plan` made them for this shape. The addresses are the
        // device's, of matrices that have these sizes and strides. The scalars are read before the call returns.
        let status = unsafe {
            (self.functions.matmul)(
                self.handle.raw,
                plan.operation.raw,
                (&raw const alpha).cast(),
                device(call.a),
                plan.a.raw,
                device(call.b),
                plan.b.raw,
                (&raw const beta).cast(),
                device(call.d),
                plan.d.raw,
                device(call.d),
                plan.d.raw,
                &raw const plan.algorithm,
                device(self.workspace),
                self.workspace_bytes,
                stream,
            )
        };
        check("a matrix product of cuBLASLt", status)
    }

    /// Describes a product and chooses its algorithm; none if the library has no answer that the rule takes.
    fn plan(&self, call: &LtCall) -> Result<Option<Plan>> {
        let (Some(factor), Some(d)) = (type_of(call.dtype), type_of(call.d_dtype)) else { return Ok(None) };
        let operation = self.operation(call)?;
        let stored = |transposed: bool, rows: usize, cols: usize| if transposed { [cols, rows] } else { [rows, cols] };
        let a = self.layout(factor, stored(call.transa, call.m, call.k), call.lda)?;
        let b = self.layout(factor, stored(call.transb, call.k, call.n), call.ldb)?;
        let d = self.layout(d, [call.m, call.n], call.ldd)?;
        let preference = self.preference(call)?;
        let mut answers = [Answer::default(); ANSWERS];
        let mut count: c_int = 0;
        // SAFETY: all handles are alive; `answers` has room for as many as are asked for, `count` may be written.
        let status = unsafe {
            (self.functions.heuristic)(
                self.handle.raw,
                operation.raw,
                a.raw,
                b.raw,
                d.raw,
                d.raw,
                preference.raw,
                ANSWERS as c_int,
                answers.as_mut_ptr(),
                &raw mut count,
            )
        };
        if status == STATUS_NOT_SUPPORTED {
            return Ok(None);
        }
        check("asking cuBLASLt for an algorithm", status)?;
        let count = usize::try_from(count).unwrap_or(0).min(ANSWERS);
        let algorithm = choose(&answers[..count], self.workspace_bytes, |algorithm| self.splits(algorithm));
        Ok(algorithm.map(|algorithm| Plan { operation, a, b, d, algorithm }))
    }

    fn operation(&self, call: &LtCall) -> Result<Owned> {
        let functions = self.functions;
        let operation = Owned::new("describing a matrix product", functions.desc_destroy, |place| {
            // SAFETY: the place may be written.
            unsafe { (functions.desc_create)(place, COMPUTE_F32, TYPE_F32) }
        })?;
        for (attribute, transposed) in [(DESC_TRANSA, call.transa), (DESC_TRANSB, call.transb)] {
            if transposed {
                self.set(operation.raw, attribute, &OP_T)?;
            }
        }
        if call.bias != 0 {
            self.set(operation.raw, DESC_EPILOGUE, &EPILOGUE_BIAS)?;
            // The heuristic reads its alignment from it.
            self.set(operation.raw, DESC_BIAS_POINTER, &call.bias)?;
        }
        Ok(operation)
    }

    fn layout(&self, kind: c_int, [rows, cols]: [usize; 2], stride: usize) -> Result<Owned> {
        let functions = self.functions;
        Owned::new("describing a matrix", functions.layout_destroy, |place| {
            // SAFETY: the place may be written.
            unsafe { (functions.layout_create)(place, kind, rows as u64, cols as u64, stride as i64) }
        })
    }

    fn preference(&self, call: &LtCall) -> Result<Owned> {
        let functions = self.functions;
        let doing = "describing what is wanted of an algorithm";
        let preference = Owned::new(doing, functions.preference_destroy, |place| {
            // SAFETY: the place may be written.
            unsafe { (functions.preference_create)(place) }
        })?;
        let shape = call.shape();
        let workspace = self.workspace_bytes as u64;
        // SAFETY: the handle is alive, and the value of eight bytes is read before the call returns.
        check(doing, unsafe {
            (functions.preference_set)(preference.raw, PREF_WORKSPACE, (&raw const workspace).cast(), 8)
        })?;
        let alignments = PREF_ALIGNMENT.into_iter().zip([shape.a, shape.b, shape.d, shape.d]);
        for (attribute, value) in alignments.map(|(a, x)| (a, x as u32)).chain([(PREF_REDUCTION, REDUCTION_NONE)]) {
            // SAFETY: the handle is alive, and the value of four bytes is read before the call returns.
            check(doing, unsafe {
                (functions.preference_set)(preference.raw, attribute, (&raw const value).cast(), 4)
            })?;
        }
        Ok(preference)
    }

    /// Sets an attribute of a description of a product.
    fn set<T: Copy>(&self, operation: Handle, attribute: c_int, value: &T) -> Result<()> {
        // SAFETY: the handle is alive, and the value is read before the call returns.
        check("describing a matrix product", unsafe {
            (self.functions.desc_set)(operation, attribute, ptr::from_ref(value).cast(), size_of::<T>())
        })
    }

    /// How often an algorithm splits K; none if the library does not say.
    fn splits(&self, algorithm: &Algorithm) -> Option<i32> {
        let (mut splits, mut written) = (0i32, 0usize);
        // SAFETY: four bytes may be written to `splits`, and their number to `written`.
        let status = unsafe {
            (self.functions.config_get)(algorithm, CONFIG_SPLITK, (&raw mut splits).cast(), 4, &raw mut written)
        };
        (status == 0 && written == 4).then_some(splits)
    }
}

/// The rule: the first answer that is valid, has room in the workspace and does not split K.
fn choose(answers: &[Answer], workspace_bytes: usize, splits: impl Fn(&Algorithm) -> Option<i32>) -> Option<Algorithm> {
    let valid = |answer: &&Answer| answer.status == 0 && answer.workspace <= workspace_bytes;
    let whole = |answer: &&Answer| splits(&answer.algorithm).is_some_and(|splits| splits <= 1);
    answers.iter().filter(valid).find(whole).map(|answer| answer.algorithm)
}

fn type_of(dtype: DType) -> Option<c_int> {
    match dtype {
        DType::BF16 => Some(TYPE_BF16),
        DType::F32 => Some(TYPE_F32),
        DType::F64 | DType::I32 => None,
    }
}

fn check(doing: &str, status: Status) -> Result<()> {
    // `cublasStatus_t`.
    let name = match status {
        0 => return Ok(()),
        1 => "CUBLAS_STATUS_NOT_INITIALIZED",
        STATUS_ALLOC_FAILED => "CUBLAS_STATUS_ALLOC_FAILED",
        7 => "CUBLAS_STATUS_INVALID_VALUE",
        8 => "CUBLAS_STATUS_ARCH_MISMATCH",
        11 => "CUBLAS_STATUS_MAPPING_ERROR",
        13 => "CUBLAS_STATUS_EXECUTION_FAILED",
        14 => "CUBLAS_STATUS_INTERNAL_ERROR",
        STATUS_NOT_SUPPORTED => "CUBLAS_STATUS_NOT_SUPPORTED",
        16 => "CUBLAS_STATUS_LICENSE_ERROR",
        _ => "an unknown status",
    };
    let (code, id) = match status {
        STATUS_ALLOC_FAILED => (Code::Resources, "device-memory"),
        1 | 8 | 11 | 13 | 14 => (Code::Device, "cublaslt-device"),
        _ => (Code::Failure, "cublaslt-call"),
    };
    Err(Error::new(code, id, format!("{doing} failed")).because(format!("{name} ({status})")).fix(
        "try again with RLHF_CUBLASLT=off, which uses the kernels of this program; `rlhf doctor` names the library",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cuda::library::{Found, find};

    fn answer(id: u64, status: Status, workspace: usize) -> Answer {
        Answer { algorithm: [id, 0, 0, 0, 0, 0, 0, 0], workspace, status, ..Answer::default() }
    }

    #[test]
    fn the_first_answer_that_splits_nothing_is_taken() {
        // The algorithm's first word stands for its number of splits: 9 for one that the library does not tell.
        let splits = |algorithm: &Algorithm| (algorithm[0] != 9).then_some(algorithm[0] as i32);
        let none: [Answer; 0] = [];
        assert_eq!(choose(&none, 100, splits), None);
        let answers = [answer(4, 0, 0), answer(1, 15, 0), answer(1, 0, 101), answer(9, 0, 0), answer(2, 0, 0)];
        assert_eq!(choose(&answers, 100, splits), None);
        let answers = [answer(4, 0, 0), answer(0, 0, 100), answer(1, 0, 0)];
        assert_eq!(choose(&answers, 100, splits), Some([0; 8]));
    }

    #[test]
    fn a_status_decides_the_exit_code() {
        assert_eq!(check("x", 0), Ok(()));
        for (status, code) in [(3, Code::Resources), (13, Code::Device), (7, Code::Failure), (99, Code::Failure)] {
            let error = check("a matrix product", status).unwrap_err();
            assert_eq!(error.code(), code, "{status}");
            assert!(error.to_string().contains("RLHF_CUBLASLT=off"), "{error}");
        }
    }

    /// Where the library is, it says itself whether attributes and sizes are right; that needs no GPU.
    #[test]
    fn the_library_takes_our_descriptions() {
        let Found::Library(library) = find(None) else {
            println!("skipped: cuBLASLt is not there");
            return;
        };
        let functions = &library.functions;
        // A handle that is null: nothing below asks the GPU.
        unsafe extern "C" fn keep(_: Handle) -> Status {
            0
        }
        let handle = Owned { raw: ptr::null_mut(), destroy: keep };
        let lt = CublasLt { functions, plans: HashMap::new(), handle, workspace: 0, workspace_bytes: 4 << 20 };
        let call = LtCall {
            transa: true,
            transb: true,
            m: 5,
            n: 3,
            k: 7,
            a: 512,
            b: 24,
            d: 2,
            lda: 9,
            ldb: 8,
            ldd: 6,
            bias: 4,
            dtype: DType::BF16,
            d_dtype: DType::BF16,
            accumulate: true,
        };
        lt.operation(&call).unwrap();
        lt.preference(&call).unwrap();
        lt.layout(TYPE_BF16, [7, 5], 9).unwrap();
        // The positive control: a size that is wrong is refused.
        let operation = lt.operation(&call).unwrap();
        assert_eq!(lt.set(operation.raw, DESC_TRANSA, &1u8).unwrap_err().id(), "cublaslt-call");
    }
}
