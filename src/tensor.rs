//! A tensor is a handle: a view (offset and shape, always contiguous) of shared storage, and where it came from: a node
//! of the tape, a parameter with its gradient slot, or nothing that has a gradient. Storage is a vector on the host, or
//! a buffer on a GPU; integers that came from the host (ids, positions, indices) stay readable there.

#![forbid(unsafe_code)]

use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::autograd::Origin;
use crate::cpu;
use crate::device::buffer::Buffer;
use crate::device::driver::Written;
use crate::device::launch::OnDevice;
use crate::device::{Device, Gpu};
use crate::dtype::DType;
use crate::error::{Error, Result};

/// The elements themselves, on the host.
#[derive(Debug)]
pub(crate) enum Data {
    F64(Vec<f64>),
    F32(Vec<f32>),
    I32(Vec<i32>),
}

/// A type that a host tensor can hold.
pub(crate) trait Element: bytemuck::Pod + Default + Send + Sync {
    const DTYPE: DType;
    fn slice(data: &Data) -> &[Self];
    fn slice_mut(data: &mut Data) -> &mut [Self];
    fn data(vec: Vec<Self>) -> Data;
}

macro_rules! element {
    ($type:ty, $variant:ident) => {
        impl Element for $type {
            const DTYPE: DType = DType::$variant;
            // A tensor's dtype is checked before its elements are asked for; a wrong variant reads as empty and the
            // operation's length check names it.
            fn slice(data: &Data) -> &[Self] {
                match data {
                    Data::$variant(vec) => vec,
                    _ => &[],
                }
            }
            fn slice_mut(data: &mut Data) -> &mut [Self] {
                match data {
                    Data::$variant(vec) => vec,
                    _ => &mut [],
                }
            }
            fn data(vec: Vec<Self>) -> Data {
                Data::$variant(vec)
            }
        }
    };
}
element!(f64, F64);
element!(f32, F32);
element!(i32, I32);

/// Elements on a device, shared by the tensors that view them.
#[derive(Debug)]
pub(crate) struct Storage {
    device: Device,
    dtype: DType,
    // One host thread owns the device, so the lock is never contended; it makes sharing safe without `unsafe`.
    // Of a GPU's tensor: the integers it was made of, or nothing.
    host: RwLock<Data>,
    buffer: Option<Buffer>,
}

impl Storage {
    #[cfg_attr(test, track_caller)]
    fn on_host<T: Element>(vec: Vec<T>) -> Arc<Self> {
        let data = T::data(vec);
        #[cfg(test)]
        let data = births::pass(data);
        Arc::new(Self { device: Device::Cpu, dtype: T::DTYPE, host: RwLock::new(data), buffer: None })
    }

    fn on_gpu(gpu: &Gpu, dtype: DType, elements: usize, host: Data) -> Result<Arc<Self>> {
        if dtype == DType::F64 {
            return Err(Error::shape("f64 tensors live on the CPU"));
        }
        let buffer = Some(Buffer::new(gpu, elements * dtype.bytes())?);
        Ok(Arc::new(Self { device: Device::Gpu(gpu.clone()), dtype, host: RwLock::new(host), buffer }))
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        let data = self.host.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        match std::mem::replace(data, Data::I32(Vec::new())) {
            Data::F32(vec) => cpu::pool::give(vec),
            Data::F64(vec) => cpu::pool::give(vec),
            Data::I32(_) => {}
        }
    }
}

fn check_len(shape: &[usize], len: usize) -> Result<()> {
    if shape.iter().product::<usize>() == len {
        return Ok(());
    }
    Err(Error::shape(format!("{len} elements do not fill shape {shape:?}")))
}

/// A view of shared elements: shape in elements, row-major and contiguous.
#[derive(Debug, Clone)]
pub(crate) struct Tensor {
    storage: Arc<Storage>,
    offset: usize,
    shape: Vec<usize>,
    pub(crate) origin: Origin,
}

/// Read access to a tensor's elements on the host.
pub(crate) struct Read<'a, T> {
    guard: RwLockReadGuard<'a, Data>,
    range: std::ops::Range<usize>,
    element: std::marker::PhantomData<T>,
}

impl<T: Element> std::ops::Deref for Read<'_, T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        T::slice(&self.guard).get(self.range.clone()).unwrap_or_default()
    }
}

/// Write access to a tensor's elements on the host.
pub(crate) struct Write<'a, T> {
    guard: RwLockWriteGuard<'a, Data>,
    range: std::ops::Range<usize>,
    element: std::marker::PhantomData<T>,
}

impl<T: Element> std::ops::Deref for Write<'_, T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        T::slice(&self.guard).get(self.range.clone()).unwrap_or_default()
    }
}

impl<T: Element> std::ops::DerefMut for Write<'_, T> {
    fn deref_mut(&mut self) -> &mut [T] {
        T::slice_mut(&mut self.guard).get_mut(self.range.clone()).unwrap_or_default()
    }
}

impl Tensor {
    /// A tensor of `shape` that holds `vec`. The lengths must agree.
    #[cfg_attr(test, track_caller)]
    pub(crate) fn new<T: Element>(device: &Device, shape: &[usize], vec: Vec<T>) -> Result<Self> {
        check_len(shape, vec.len())?;
        let Device::Gpu(gpu) = device else { return Ok(Self::of(Storage::on_host(vec), shape)) };
        let host = if T::DTYPE == DType::I32 { T::data(vec.clone()) } else { Data::I32(Vec::new()) };
        let tensor = Self::of(Storage::on_gpu(gpu, T::DTYPE, vec.len(), host)?, shape);
        gpu.driver().upload(tensor.place(gpu)?.0, bytemuck::cast_slice(&vec))?;
        Ok(tensor)
    }

    /// Integers that operations will change: on a GPU the host keeps no copy of them.
    pub(crate) fn changing(device: &Device, shape: &[usize], vec: Vec<i32>) -> Result<Self> {
        let Device::Gpu(gpu) = device else { return Self::new(device, shape, vec) };
        let tensor = Self::empty(device, DType::I32, shape)?;
        check_len(shape, vec.len())?;
        gpu.driver().upload(tensor.place(gpu)?.0, bytemuck::cast_slice(&vec))?;
        Ok(tensor)
    }

    fn of(storage: Arc<Storage>, shape: &[usize]) -> Self {
        Self { storage, offset: 0, shape: shape.to_vec(), origin: Origin::None }
    }

    /// A tensor of `shape` and `dtype` made from f64 values, rounded where the dtype is narrower.
    pub(crate) fn from_f64(device: &Device, dtype: DType, shape: &[usize], values: &[f64]) -> Result<Self> {
        match dtype {
            DType::F64 => Self::new(device, shape, values.to_vec()),
            DType::I32 => Self::new(device, shape, values.iter().map(|x| *x as i32).collect()),
            DType::F32 | DType::BF16 => {
                Self::from_f32(device, dtype, shape, values.iter().map(|x| *x as f32).collect())
            }
        }
    }

    /// A tensor of `shape` and `dtype` made from f32 values.
    pub(crate) fn from_f32(device: &Device, dtype: DType, shape: &[usize], values: Vec<f32>) -> Result<Self> {
        match dtype {
            DType::F32 => Self::new(device, shape, values),
            DType::BF16 => {
                let tensor = Self::empty(device, dtype, shape)?;
                tensor.set(&values)?;
                Ok(tensor)
            }
            _ => Self::from_f64(device, dtype, shape, &values.iter().map(|x| f64::from(*x)).collect::<Vec<_>>()),
        }
    }

    /// A tensor of zeros.
    pub(crate) fn zeros(device: &Device, dtype: DType, shape: &[usize]) -> Result<Self> {
        let n = shape.iter().product();
        match (device, dtype) {
            (Device::Gpu(_), _) => {
                let tensor = Self::empty(device, dtype, shape)?;
                tensor.clear()?;
                Ok(tensor)
            }
            (Device::Cpu, DType::F64) => Self::new(device, shape, vec![0f64; n]),
            (Device::Cpu, DType::F32) => Self::new(device, shape, vec![0f32; n]),
            (Device::Cpu, DType::I32) => Self::new(device, shape, vec![0i32; n]),
            (Device::Cpu, DType::BF16) => Err(Error::shape("bf16 tensors live on a GPU")),
        }
    }

    /// A tensor on a GPU whose elements nobody has written yet; on the CPU, zeros.
    pub(crate) fn empty(device: &Device, dtype: DType, shape: &[usize]) -> Result<Self> {
        match device {
            Device::Cpu => Self::zeros(device, dtype, shape),
            Device::Gpu(gpu) => {
                let storage = Storage::on_gpu(gpu, dtype, shape.iter().product(), Data::I32(Vec::new()))?;
                Ok(Self::of(storage, shape))
            }
        }
    }

    /// A copy with its own elements.
    pub(crate) fn duplicate(&self) -> Result<Self> {
        match self.device() {
            Device::Cpu => match self.dtype() {
                DType::F64 => Self::new(self.device(), &self.shape, self.read::<f64>().to_vec()),
                DType::I32 => Self::new(self.device(), &self.shape, self.read::<i32>().to_vec()),
                _ => Self::new(self.device(), &self.shape, self.read::<f32>().to_vec()),
            },
            Device::Gpu(gpu) => {
                let copy = Self::empty(self.device(), self.dtype(), &self.shape)?;
                let (to, bytes) = copy.place(gpu)?;
                gpu.driver().copy(to, self.place(gpu)?.0, bytes as usize)?;
                Ok(copy)
            }
        }
    }

    /// Overwrites the elements with f32 values, rounded where the dtype is narrower.
    pub(crate) fn set(&self, values: &[f32]) -> Result<()> {
        if values.len() != self.len() {
            return Err(Error::shape(format!("{} values for a tensor of {:?}", values.len(), self.shape)));
        }
        match (self.device(), self.dtype()) {
            (Device::Cpu, DType::F64) => {
                self.write::<f64>().iter_mut().zip(values).for_each(|(x, v)| *x = f64::from(*v));
            }
            (Device::Cpu, _) => self.write::<f32>().copy_from_slice(values),
            (Device::Gpu(gpu), DType::F32) => gpu.driver().upload(self.place(gpu)?.0, bytemuck::cast_slice(values))?,
            (Device::Gpu(gpu), DType::BF16) => {
                let rounded: Vec<half::bf16> = values.iter().map(|x| half::bf16::from_f32(*x)).collect();
                gpu.driver().upload(self.place(gpu)?.0, bytemuck::cast_slice(&rounded))?;
            }
            (Device::Gpu(_), other) => return Err(Error::shape(format!("{other} elements are not set from f32"))),
        }
        Ok(())
    }

    /// Overwrites the elements with zeros.
    pub(crate) fn clear(&self) -> Result<()> {
        match self.device() {
            Device::Cpu => self.set(&vec![0.0; self.len()]),
            Device::Gpu(gpu) => {
                let (address, bytes) = self.place(gpu)?;
                gpu.driver().fill(address, bytes as usize, 0)
            }
        }
    }

    /// A view of `shape` that starts `offset` elements into this tensor.
    pub(crate) fn view(&self, offset: usize, shape: &[usize]) -> Result<Self> {
        let n: usize = shape.iter().product();
        if offset + n > self.len() {
            return Err(Error::shape(format!("a view of {shape:?} at {offset} leaves a tensor of {:?}", self.shape)));
        }
        let storage = self.storage.clone();
        Ok(Self { storage, offset: self.offset + offset, shape: shape.to_vec(), origin: Origin::None })
    }

    /// The same elements under another shape; the gradient flows through, because gradients follow element order.
    pub(crate) fn reshape(mut self, shape: &[usize]) -> Result<Self> {
        if shape.iter().product::<usize>() != self.len() {
            return Err(Error::shape(format!("shape {:?} cannot be seen as {shape:?}", self.shape)));
        }
        self.shape = shape.to_vec();
        Ok(self)
    }

    /// The same elements, without a gradient.
    pub(crate) fn detach(&self) -> Self {
        Self { origin: Origin::None, ..self.clone() }
    }

    /// Whether no other tensor shares these elements.
    pub(crate) fn is_unique(&self) -> bool {
        Arc::strong_count(&self.storage) == 1
    }

    /// Where the elements live.
    pub(crate) fn device(&self) -> &Device {
        &self.storage.device
    }

    /// The elements' type.
    pub(crate) fn dtype(&self) -> DType {
        self.storage.dtype
    }

    /// The shape, in elements.
    pub(crate) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of elements.
    pub(crate) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// The number of rows: the first dimension.
    pub(crate) fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(0)
    }

    /// The elements in one row: the product of all dimensions but the first.
    pub(crate) fn width(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.len()
    }

    /// The elements, for reading on the host.
    pub(crate) fn read<T: Element>(&self) -> Read<'_, T> {
        debug_assert_eq!(self.dtype(), T::DTYPE);
        let guard = self.storage.host.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        Read { guard, range: self.range(), element: std::marker::PhantomData }
    }

    /// The elements, for writing on the host.
    pub(crate) fn write<T: Element>(&self) -> Write<'_, T> {
        debug_assert_eq!(self.dtype(), T::DTYPE);
        let guard = self.storage.host.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        Write { guard, range: self.range(), element: std::marker::PhantomData }
    }

    /// The elements as f32, copied to the host.
    pub(crate) fn to_f32(&self) -> Result<Vec<f32>> {
        Ok(match (self.device(), self.dtype()) {
            (_, DType::I32) => self.read::<i32>().iter().map(|x| *x as f32).collect(),
            (Device::Cpu, DType::F64) => self.read::<f64>().iter().map(|x| *x as f32).collect(),
            (Device::Cpu, _) => self.read::<f32>().to_vec(),
            (Device::Gpu(gpu), DType::BF16) => {
                let mut data = vec![half::bf16::ZERO; self.len()];
                gpu.driver().download(bytemuck::cast_slice_mut(&mut data), self.place(gpu)?.0)?;
                data.into_iter().map(half::bf16::to_f32).collect()
            }
            (Device::Gpu(gpu), _) => {
                let mut data = vec![0f32; self.len()];
                gpu.driver().download(bytemuck::cast_slice_mut(&mut data), self.place(gpu)?.0)?;
                data
            }
        })
    }

    /// The elements as f64, copied to the host.
    pub(crate) fn to_f64(&self) -> Result<Vec<f64>> {
        match (self.device(), self.dtype()) {
            (Device::Cpu, DType::F64) => Ok(self.read::<f64>().to_vec()),
            _ => Ok(self.to_f32()?.into_iter().map(f64::from).collect()),
        }
    }

    /// Integers that a kernel wrote, copied to the host.
    pub(crate) fn to_i32(&self) -> Result<Vec<i32>> {
        match self.device() {
            Device::Gpu(gpu) if self.dtype() == DType::I32 => {
                let mut data = vec![0i32; self.len()];
                gpu.driver().download(bytemuck::cast_slice_mut(&mut data), self.place(gpu)?.0)?;
                Ok(data)
            }
            _ => Ok(self.read::<i32>().to_vec()),
        }
    }
}

impl OnDevice for Tensor {
    fn place(&self, gpu: &Gpu) -> Result<Written> {
        match (&self.storage.buffer, self.device()) {
            (Some(buffer), Device::Gpu(own)) if own == gpu => {
                let bytes = self.dtype().bytes();
                Ok((buffer.address() + (self.offset * bytes) as u64, (self.len() * bytes) as u64))
            }
            _ => Err(Error::shape(format!("a tensor of {:?} lies on another device", self.shape))),
        }
    }
}

/// Runs `$body` with `$type` as the Rust type of a float tensor's dtype.
macro_rules! floats {
    ($tensor:expr, $type:ident => $body:expr) => {
        match $tensor.dtype() {
            $crate::dtype::DType::F32 => {
                type $type = f32;
                $body
            }
            $crate::dtype::DType::F64 => {
                type $type = f64;
                $body
            }
            other => Err($crate::error::Error::shape(format!("a float tensor is needed, this one holds {other}"))),
        }
    };
}
pub(crate) use floats;

/// For tests: a number in one of the float tensors that are born on the host is replaced at its birth.
#[cfg(test)]
pub(crate) mod births {
    use std::cell::Cell;

    use super::Data;

    thread_local! {
        /// Births so far, which of them is meant, the number, and the file of the birth.
        static PLAN: Cell<Option<(usize, usize, f64, &'static str)>> = const { Cell::new(None) };
    }

    /// Does `work`, in which birth number `at` (from 0, on this thread) gets `value` in one element; returns how many
    /// births there were, and in which source file this one was.
    pub(crate) fn with<R>(at: usize, value: f64, work: impl FnOnce() -> R) -> (R, usize, &'static str) {
        PLAN.set(Some((0, at, value, "")));
        let done = work();
        let (births, _, _, file) = PLAN.take().unwrap_or((0, 0, 0.0, ""));
        (done, births, file)
    }

    #[track_caller]
    pub(super) fn pass(mut data: Data) -> Data {
        let len = match &data {
            Data::F32(vec) => vec.len(),
            Data::F64(vec) => vec.len(),
            Data::I32(_) => 0,
        };
        let Some((birth, at, value, file)) = PLAN.get().filter(|_| len > 0) else { return data };
        let file = if birth == at { std::panic::Location::caller().file() } else { file };
        PLAN.set(Some((birth + 1, at, value, file)));
        // Another place in every tensor, so that no row or column is favoured.
        let element = birth.wrapping_mul(7919) % len;
        match &mut data {
            Data::F32(vec) if birth == at => vec[element] = value as f32,
            Data::F64(vec) if birth == at => vec[element] = value,
            _ => {}
        }
        data
    }
}
