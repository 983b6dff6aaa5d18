//! A tensor is a handle: a view (offset and shape, always contiguous) of shared storage, and where it came from: a node
//! of the tape, a parameter with its gradient slot, or nothing that has a gradient.

use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::autograd::Origin;
use crate::cpu;
use crate::device::Device;
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
pub(crate) trait Element: Copy + Default + Send + Sync + 'static {
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
    data: RwLock<Data>,
}

impl Storage {
    pub(crate) fn new<T: Element>(device: &Device, vec: Vec<T>) -> Arc<Self> {
        Arc::new(Self { device: device.clone(), dtype: T::DTYPE, data: RwLock::new(T::data(vec)) })
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        let data = self.data.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        match std::mem::replace(data, Data::I32(Vec::new())) {
            Data::F32(vec) => cpu::pool::give(vec),
            Data::F64(vec) => cpu::pool::give(vec),
            Data::I32(_) => {}
        }
    }
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
    /// A tensor of `shape` that owns `vec`. The lengths must agree.
    pub(crate) fn new<T: Element>(device: &Device, shape: &[usize], vec: Vec<T>) -> Result<Self> {
        if shape.iter().product::<usize>() != vec.len() {
            return Err(Error::shape(format!("{} elements do not fill shape {shape:?}", vec.len())));
        }
        Ok(Self { storage: Storage::new(device, vec), offset: 0, shape: shape.to_vec(), origin: Origin::None })
    }

    /// A tensor of `shape` and `dtype` made from f64 values, rounded where the dtype is narrower.
    pub(crate) fn from_f64(device: &Device, dtype: DType, shape: &[usize], values: &[f64]) -> Result<Self> {
        match dtype {
            DType::F64 => Self::new(device, shape, values.to_vec()),
            DType::F32 => Self::new(device, shape, values.iter().map(|x| *x as f32).collect()),
            DType::I32 => Self::new(device, shape, values.iter().map(|x| *x as i32).collect()),
        }
    }

    /// A tensor of `shape` and `dtype` made from f32 values.
    pub(crate) fn from_f32(device: &Device, dtype: DType, shape: &[usize], values: Vec<f32>) -> Result<Self> {
        match dtype {
            DType::F32 => Self::new(device, shape, values),
            _ => Self::from_f64(device, dtype, shape, &values.iter().map(|x| f64::from(*x)).collect::<Vec<_>>()),
        }
    }

    /// A tensor of zeros.
    pub(crate) fn zeros(device: &Device, dtype: DType, shape: &[usize]) -> Self {
        let n = shape.iter().product();
        let storage = match dtype {
            DType::F64 => Storage::new(device, vec![0f64; n]),
            DType::F32 => Storage::new(device, vec![0f32; n]),
            DType::I32 => Storage::new(device, vec![0i32; n]),
        };
        Self { storage, offset: 0, shape: shape.to_vec(), origin: Origin::None }
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
        let guard = self.storage.data.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        Read { guard, range: self.range(), element: std::marker::PhantomData }
    }

    /// The elements, for writing on the host.
    pub(crate) fn write<T: Element>(&self) -> Write<'_, T> {
        debug_assert_eq!(self.dtype(), T::DTYPE);
        let guard = self.storage.data.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        Write { guard, range: self.range(), element: std::marker::PhantomData }
    }

    /// The elements as f32, copied to the host.
    pub(crate) fn to_f32(&self) -> Vec<f32> {
        match self.dtype() {
            DType::F64 => self.read::<f64>().iter().map(|x| *x as f32).collect(),
            DType::F32 => self.read::<f32>().to_vec(),
            DType::I32 => self.read::<i32>().iter().map(|x| *x as f32).collect(),
        }
    }

    /// The elements as f64, copied to the host.
    pub(crate) fn to_f64(&self) -> Vec<f64> {
        match self.dtype() {
            DType::F64 => self.read::<f64>().to_vec(),
            DType::F32 => self.read::<f32>().iter().map(|x| f64::from(*x)).collect(),
            DType::I32 => self.read::<i32>().iter().map(|x| f64::from(*x)).collect(),
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
