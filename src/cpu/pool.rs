//! Host buffers used again. A training step allocates the same few hundred buffers every time; fresh memory from the
//! operating system costs a page fault per 4 KiB, which at small sizes is a fifth of the step. Contents are
//! unspecified: every operation writes all that it returns. Debug builds hand out NaN, so that a forgotten element
//! shows.

use std::sync::Mutex;

use super::math::Real;

/// Bytes that are kept at most.
const KEPT_BYTES: usize = 512 << 20;
/// Elements below which the allocator is fast enough.
const SMALL: usize = 1024;

/// Free buffers by size class: class c holds buffers of at least 2^c elements.
#[derive(Debug, Default)]
pub(crate) struct Shelf<T> {
    classes: Vec<Vec<Vec<T>>>,
    bytes: usize,
}

/// A buffer of `n` elements whose contents are unspecified.
pub(crate) fn take<T: Real>(n: usize) -> Vec<T> {
    let mut buffer = if n < SMALL { Vec::new() } else { T::shelf(|shelf| shelf.take(n)) };
    if buffer.capacity() < n {
        buffer = Vec::with_capacity(if n < SMALL { n } else { n.next_power_of_two() });
    }
    buffer.resize(n, T::ZERO);
    if cfg!(debug_assertions) {
        buffer.fill(T::of(f64::NAN));
    }
    buffer
}

/// Puts a buffer back for the next [`take`].
pub(crate) fn give<T: Real>(buffer: Vec<T>) {
    if buffer.capacity() >= SMALL {
        T::shelf(|shelf| shelf.give(buffer));
    }
}

/// A buffer that goes back when it is dropped; contents unspecified at first.
pub(crate) struct Scratch<T: Real>(Vec<T>);

/// A [`Scratch`] of `n` elements.
pub(crate) fn scratch<T: Real>(n: usize) -> Scratch<T> {
    Scratch(take(n))
}

impl<T: Real> std::ops::Deref for Scratch<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: Real> std::ops::DerefMut for Scratch<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}

impl<T: Real> Drop for Scratch<T> {
    fn drop(&mut self) {
        give(std::mem::take(&mut self.0));
    }
}

impl<T> Shelf<T> {
    pub(crate) const fn new() -> Self {
        Self { classes: Vec::new(), bytes: 0 }
    }

    fn take(&mut self, n: usize) -> Vec<T> {
        let class = n.next_power_of_two().trailing_zeros() as usize;
        let found = self.classes.get_mut(class).and_then(Vec::pop).unwrap_or_default();
        self.bytes -= found.capacity() * size_of::<T>();
        found
    }

    fn give(&mut self, buffer: Vec<T>) {
        let bytes = buffer.capacity() * size_of::<T>();
        if self.bytes + bytes > KEPT_BYTES {
            return;
        }
        let class = buffer.capacity().ilog2() as usize;
        if self.classes.len() <= class {
            self.classes.resize_with(class + 1, Vec::new);
        }
        self.bytes += bytes;
        self.classes[class].push(buffer);
    }
}

pub(super) static F32: Mutex<Shelf<f32>> = Mutex::new(Shelf::new());
pub(super) static F64: Mutex<Shelf<f64>> = Mutex::new(Shelf::new());
