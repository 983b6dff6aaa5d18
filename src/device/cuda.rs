//! The driver whose GPU is an NVIDIA card: the calls of [`Driver`] as calls of the CUDA driver, on one stream. The
//! binding's raw level is used throughout: nothing is tracked behind our back, and the order of work is the stream's.

// The only room that calls C; every block says why it may.
#![allow(unsafe_code)]

mod cublaslt;
mod fault;
mod graph;
pub(crate) mod library;
mod modules;
pub(crate) mod probe;
mod staging;

use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use cudarc::driver::sys::{self, CUmemPool_attribute as PoolAttribute};

use super::driver::{Accounting, Address, Arg, Driver, Recording, Shape, Written, host_work};
use super::gemm::Gemm;
use super::kernel::{Entry, Source};
use crate::error::{Code, Error, Result};
use cublaslt::CublasLt;
use fault::check;
#[cfg(test)]
pub(crate) use fault::explain;
use graph::Graph;
use library::Found;
use modules::Modules;
use probe::Properties;
use staging::Staging;

/// The primary context of a GPU, the one that the CUDA libraries use too.
struct Context {
    device: sys::CUdevice,
    raw: sys::CUcontext,
}

impl Context {
    fn new(device: sys::CUdevice) -> Result<Self> {
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` may be written; `device` is one of the driver's.
        let result = unsafe { sys::cuDevicePrimaryCtxRetain(&raw mut raw, device) };
        check("taking the GPU", result)?;
        Ok(Self { device, raw })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: taken once by `new`, given back once. An error has no reader.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// A stream that the null stream, which belongs to everybody in the process, does not hold up.
struct Stream(sys::CUstream);

impl Stream {
    /// In the current context.
    fn new() -> Result<Self> {
        let mut raw = ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: `raw` may be written, and a context is current.
        check("making a stream", unsafe { sys::cuStreamCreate(&raw mut raw, flags) })?;
        Ok(Self(raw))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: made by `new`; its context is alive, being dropped after it.
        let _ = unsafe { sys::cuStreamDestroy_v2(self.0) };
    }
}

/// A point in the stream's time.
struct Event(sys::CUevent);

impl Event {
    /// In the current context.
    fn new() -> Result<Self> {
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` may be written, and a context is current.
        check("making an event", unsafe { sys::cuEventCreate(&raw mut raw, 0) })?;
        Ok(Self(raw))
    }

    fn record(&self, stream: &Stream) -> Result<()> {
        // SAFETY: both are alive and of the same context.
        check("recording an event", unsafe { sys::cuEventRecord(self.0, stream.0) })
    }

    /// Waits until the stream has come to where it was recorded last.
    fn wait(&self) -> Result<()> {
        // SAFETY: the event is alive.
        check("computing on the GPU", unsafe { sys::cuEventSynchronize(self.0) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by `new`. An event that has not come yet is destroyed when it has.
        let _ = unsafe { sys::cuEventDestroy_v2(self.0) };
    }
}

/// cuBLASLt and the device memory that it works in.
struct Blas {
    lt: Mutex<CublasLt>,
    workspace: Address,
}

/// An NVIDIA GPU. The order of the fields is the order in which they are given back.
pub(crate) struct Cuda {
    name: String,
    properties: Properties,
    /// The version of CUDA that the driver speaks.
    version: i32,
    pool: sys::CUmemoryPool,
    modules: Mutex<Modules>,
    /// Looked for at the first product; none if it is not there or switched off.
    blas: OnceLock<Result<Option<Blas>>>,
    graphs: Mutex<HashMap<Recording, Graph>>,
    /// Whether the stream is being recorded: then an allocation or a copy would silently become part of the graph.
    recording: AtomicBool,
    staging: Mutex<Staging>,
    stream: Stream,
    context: Context,
}

// SAFETY: the driver lets every thread use a context's handles once the context is current there, which each call here
// sees to first; what changes on the host lies behind a mutex.
unsafe impl Send for Cuda {}
// SAFETY: as above.
unsafe impl Sync for Cuda {}

impl std::fmt::Debug for Cuda {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cuda({})", self.name)
    }
}

impl Cuda {
    /// The GPU of a number, from 0, in the order of the driver.
    ///
    /// # Errors
    /// A driver or GPU that is missing, too old, full or broken; each with a cure.
    pub(crate) fn open(ordinal: usize) -> Result<Self> {
        let version = probe::start()?;
        let device = probe::device(ordinal)?;
        let properties = probe::properties(ordinal)?;
        properties.judge()?;
        let context = Context::new(device)?;
        make_current(&context)?;
        let stream = Stream::new()?;
        let pool = keep_memory(device)?;
        Ok(Self {
            name: format!("cuda:{ordinal}"),
            properties,
            version,
            pool,
            modules: Mutex::default(),
            blas: OnceLock::new(),
            graphs: Mutex::default(),
            recording: AtomicBool::new(false),
            staging: Mutex::default(),
            stream,
            context,
        })
    }

    /// Hands a text to the driver, as its first launch would.
    pub(crate) fn load(&self, source: &'static Source) -> Result<()> {
        make_current(&self.context)?;
        lock(&self.modules).module(source).map(|_| ())
    }

    fn alloc_once(&self, bytes: usize) -> Result<Address> {
        let mut address = 0;
        // SAFETY: `address` may be written, and the stream is alive.
        let result = unsafe { sys::cuMemAllocAsync(&raw mut address, bytes, self.stream.0) };
        check("taking memory of the GPU", result)?;
        Ok(address)
    }

    fn not_recording(&self, what: &str) -> Result<()> {
        if self.recording.load(Ordering::Relaxed) { Err(host_work(what)) } else { Ok(()) }
    }

    /// Gives what was freed back to the system, in the hope that the pieces make a whole.
    fn trim(&self) -> Result<()> {
        self.synchronize()?;
        // SAFETY: the pool is the device's own and lives as long as the device.
        check("giving back memory of the GPU", unsafe { sys::cuMemPoolTrimTo(self.pool, 0) })
    }

    fn pool_bytes(&self, attribute: PoolAttribute) -> Result<usize> {
        let mut bytes = 0u64;
        // SAFETY: the pool is alive, and these attributes are written as 64-bit numbers.
        let result = unsafe { sys::cuMemPoolGetAttribute(self.pool, attribute, (&raw mut bytes).cast()) };
        check("asking for the memory of the GPU", result)?;
        Ok(bytes as usize)
    }

    fn start_blas(&self) -> Result<Option<Blas>> {
        let library = match library::find(Some(self.version)) {
            Found::Library(library) => library,
            Found::Off | Found::Missing(_) => return Ok(None),
            Found::Refused(error) => return Err(error.clone()),
        };
        let bytes = CublasLt::workspace_bytes(self.properties.capability);
        let workspace = self.alloc(bytes)?;
        match CublasLt::new(library, workspace, bytes) {
            Ok(lt) => Ok(Some(Blas { lt: Mutex::new(lt), workspace })),
            Err(error) => {
                self.free(workspace);
                Err(error.at(library.path.clone()))
            }
        }
    }
}

/// A panic elsewhere leaves what these mutexes guard whole: a map gains an entry or does not.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Binds the context to the calling thread, which may be any thread of a pool; cheap if it is bound.
fn make_current(context: &Context) -> Result<()> {
    // SAFETY: the context is retained as long as `context` lives.
    check("choosing the GPU", unsafe { sys::cuCtxSetCurrent(context.raw) })
}

/// The GPU's pool of memory, told to keep what is freed: by default it gives everything back at each wait.
fn keep_memory(device: sys::CUdevice) -> Result<sys::CUmemoryPool> {
    let doing = "preparing the memory of the GPU";
    let mut pool = ptr::null_mut();
    // SAFETY: `pool` may be written, and `device` is one of the driver's.
    check(doing, unsafe { sys::cuDeviceGetDefaultMemPool(&raw mut pool, device) })?;
    let mut threshold = u64::MAX;
    let attribute = PoolAttribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the pool is alive, and this attribute is read as a 64-bit number.
    check(doing, unsafe { sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut threshold).cast()) })?;
    Ok(pool)
}

/// Pointers to the arguments, as a launch wants them; they are as good as `args` is.
fn pointers(args: &[Arg]) -> Vec<*mut c_void> {
    let pointer = |arg: &Arg| match arg {
        Arg::Pointer(x) => ptr::from_ref(x).cast_mut().cast(),
        Arg::I32(x) => ptr::from_ref(x).cast_mut().cast(),
        Arg::I64(x) => ptr::from_ref(x).cast_mut().cast(),
        Arg::F32(x) => ptr::from_ref(x).cast_mut().cast(),
    };
    args.iter().map(pointer).collect()
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // Errors have no reader here; after a fault of the GPU each of these calls fails.
        let _ = self.synchronize();
        lock(&self.graphs).clear();
        if let Some(Ok(Some(Blas { lt, workspace }))) = self.blas.take() {
            drop(lt);
            self.free(workspace);
        }
    }
}

impl Driver for Cuda {
    fn name(&self) -> &str {
        &self.name
    }

    fn description(&self) -> String {
        let Properties { name, capability: [major, minor], .. } = &self.properties;
        let driver = probe::release().map_or_else(String::new, |release| format!(", driver {release}"));
        let blas = match library::find(Some(self.version)) {
            Found::Library(library) => format!("cuBLASLt {}", library.version()),
            Found::Off | Found::Missing(_) | Found::Refused(_) => "no cuBLASLt".to_owned(),
        };
        let cuda = probe::version_text(self.version);
        format!("{name} (compute capability {major}.{minor}, CUDA {cuda}{driver}, {blas})")
    }

    fn alloc(&self, bytes: usize) -> Result<Address> {
        self.not_recording("memory is taken")?;
        make_current(&self.context)?;
        let bytes = bytes.max(1);
        self.alloc_once(bytes).or_else(|error| {
            if error.code() != Code::Resources {
                return Err(error);
            }
            self.trim()?;
            let [free, total] = self.memory()?.map(|bytes| bytes >> 20);
            let why = format!("{} MiB were asked for; {free} of {total} MiB are free", bytes.div_ceil(1 << 20));
            self.alloc_once(bytes).map_err(|error| error.because(why))
        })
    }

    fn free(&self, address: Address) {
        // An error here is one of an earlier launch, and the next call that can tell it does.
        if make_current(&self.context).is_ok() {
            // SAFETY: only an address that `alloc` gave and nobody freed arrives here.
            let _ = unsafe { sys::cuMemFreeAsync(address, self.stream.0) };
        }
    }

    fn upload(&self, to: Address, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.not_recording("an upload")?;
        make_current(&self.context)?;
        if lock(&self.staging).upload(to, bytes, &self.stream)? {
            return Ok(());
        }
        // SAFETY: `bytes` can be read until the wait below is over; the driver checks the device's address.
        let result = unsafe { sys::cuMemcpyHtoDAsync_v2(to, bytes.as_ptr().cast(), bytes.len(), self.stream.0) };
        check("copying to the GPU", result)?;
        self.synchronize()
    }

    fn download(&self, out: &mut [u8], from: Address) -> Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        self.not_recording("a download")?;
        make_current(&self.context)?;
        // SAFETY: `out` is ours alone until the wait below is over; the driver checks the device's address.
        let result = unsafe { sys::cuMemcpyDtoHAsync_v2(out.as_mut_ptr().cast(), from, out.len(), self.stream.0) };
        check("copying from the GPU", result)?;
        self.synchronize()
    }

    fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        make_current(&self.context)?;
        // SAFETY: no memory of the host takes part; the driver checks the addresses.
        check("copying on the GPU", unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, self.stream.0) })
    }

    fn fill(&self, to: Address, bytes: usize, value: u8) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        make_current(&self.context)?;
        // SAFETY: no memory of the host takes part; the driver checks the address.
        check("filling memory of the GPU", unsafe { sys::cuMemsetD8Async(to, value, bytes, self.stream.0) })
    }

    fn launch(&self, entry: &Entry, shape: Shape, args: &[Arg], _: &[Written]) -> Result<()> {
        make_current(&self.context)?;
        let function = lock(&self.modules).function(entry, shape.shared)?;
        let ([gx, gy, gz], [bx, by, bz]) = (shape.grid, shape.block);
        let mut args = pointers(args);
        // SAFETY: the arguments are as many and as wide as the entry's parameters, which every launch is checked
        // against before it comes here, and they are read before the call returns.
        let result = unsafe {
            sys::cuLaunchKernel(
                function,
                gx,
                gy,
                gz,
                bx,
                by,
                bz,
                shape.shared,
                self.stream.0,
                args.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        check("launching a kernel", result).map_err(|error| error.at(entry.name))
    }

    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Recording> {
        make_current(&self.context)?;
        self.not_recording("a recording")?;
        self.recording.store(true, Ordering::Relaxed);
        let graph = Graph::capture(&self.stream, work);
        self.recording.store(false, Ordering::Relaxed);
        let graph = graph?;
        let mut graphs = lock(&self.graphs);
        let number = graphs.keys().max().map_or(1, |last| last + 1);
        graphs.insert(number, graph);
        Ok(number)
    }

    fn replay(&self, recording: Recording) -> Result<()> {
        make_current(&self.context)?;
        match lock(&self.graphs).get(&recording) {
            Some(graph) => graph.launch(&self.stream),
            None => Err(Error::failure("graph-unknown", format!("there is no recording {recording}"))),
        }
    }

    fn forget(&self, recording: Recording) {
        // Launches of it that were queued still run: the driver keeps the graph until they have.
        if make_current(&self.context).is_ok() {
            lock(&self.graphs).remove(&recording);
        }
    }

    fn gemm(&self, gemm: &Gemm) -> Result<bool> {
        if gemm.m == 0 || gemm.n == 0 {
            return Ok(true);
        }
        make_current(&self.context)?;
        match self.blas.get_or_init(|| self.start_blas()) {
            Ok(Some(blas)) => lock(&blas.lt).run(&gemm.translated(), self.stream.0.cast()),
            Ok(None) => Ok(false),
            Err(error) => Err(error.clone()),
        }
    }

    fn is_row_invariant(&self) -> bool {
        // A library is there from the first product on; before it nothing was computed.
        !matches!(self.blas.get(), Some(Ok(Some(_))))
    }

    fn synchronize(&self) -> Result<()> {
        make_current(&self.context)?;
        // SAFETY: the stream is alive.
        check("computing on the GPU", unsafe { sys::cuStreamSynchronize(self.stream.0) })
    }

    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        make_current(&self.context)?;
        let (start, end) = (Event::new()?, Event::new()?);
        start.record(&self.stream)?;
        work()?;
        make_current(&self.context)?;
        end.record(&self.stream)?;
        self.synchronize()?;
        let mut milliseconds = 0f32;
        // SAFETY: `milliseconds` may be written; both events were recorded and have come.
        let result = unsafe { sys::cuEventElapsedTime(&raw mut milliseconds, start.0, end.0) };
        check("reading the GPU's clock", result)?;
        Ok(f64::from(milliseconds) / 1e3)
    }

    /// What the pool keeps and nobody uses is free too.
    fn memory(&self) -> Result<[usize; 2]> {
        make_current(&self.context)?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: both may be written, and a context is current.
        check("asking for the memory of the GPU", unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) })?;
        let reserved = self.pool_bytes(PoolAttribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
        let used = self.pool_bytes(PoolAttribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
        Ok([free + reserved.saturating_sub(used), total])
    }

    fn take_peak(&self) -> Result<usize> {
        make_current(&self.context)?;
        let attribute = PoolAttribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
        // After a reset the mark may lie below what is in use until the next piece is taken.
        let used = self.pool_bytes(PoolAttribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
        let (peak, mut reset) = (self.pool_bytes(attribute)?.max(used), 0u64);
        // SAFETY: the pool is alive, and this attribute is read as a 64-bit number, of which only 0 is taken.
        let result = unsafe { sys::cuMemPoolSetAttribute(self.pool, attribute, (&raw mut reset).cast()) };
        check("asking for the memory of the GPU", result)?;
        Ok(peak)
    }

    /// The pool cuts its memory into pieces of 512 bytes. Beside them lie the kernels' texts, cuBLASLt's own, and gaps
    /// that the pool cannot fill.
    fn accounting(&self) -> Accounting {
        let workspace = match library::find(Some(self.version)) {
            Found::Library(_) => CublasLt::workspace_bytes(self.properties.capability),
            Found::Off | Found::Missing(_) | Found::Refused(_) => 0,
        };
        Accounting { granule: 512, workspace, reserve: 0.05 }
    }
}

#[cfg(test)]
mod tests;
